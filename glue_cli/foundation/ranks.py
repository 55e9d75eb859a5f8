"""The processes of one job, as torchrun starts them: who this one is, and what they exchange.

What is exchanged are numbers in JSON and tensors on the CPU, without pickle, by torch.distributed's gloo; torch is not
imported before the first exchange. Only tensors on GPUs that torch itself exchanges while it trains go by NCCL.
"""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar

from glue_cli.foundation.errors import UsageError
from glue_cli.foundation.stopping import Lost, Stop

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Value = TypeVar("Value")

# What gloo and NCCL say when another process is gone, or does not answer.
_LOST = re.compile(r"gloo|NCCL|Connection (closed|reset|refused)|[Tt]imed out|Broken pipe")
# So many bytes are exchanged first, with the length of all in them. Most of what a step exchanges is that short, and
# one exchange is then enough.
_FIRST, _NUMBERS = 4096, 3
_TENSOR = "a tensor's number"  # the key of what stands for a tensor in JSON
_BY_LAUNCHER = "torchrun sets these variables: unset RANK and WORLD_SIZE for a process of its own"
_STORE_S = 5  # how long a process that has failed waits for the launcher's store


@dataclass(frozen=True)
class Place:
    """Where a process stands in its job.

    Attributes:
        rank: its number; size: how many processes there are.
        local_rank: its number on its machine; local_size: how many there are on this machine.
        is_launched: whether a launcher has started it, even if it is the only one.
        has_agent: whether its parent is torchrun's own process, which ends with the job.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    is_launched: bool = False
    has_agent: bool = False

    @property
    def is_first(self) -> bool:
        """Whether it is the one that chooses, writes, prints and asks."""
        return self.rank == 0

    def n_sharing(self, device: "torch.device") -> int:
        """Return how many processes share the memory of this one's device: each has a GPU of its own."""
        return self.local_size if device.type == "cpu" else 1


def place_of(environment: Mapping[str, str]) -> Place:
    """Return the place that torchrun, or another launcher for torch, has set in the environment."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if not all(environment.get(name) for name in names):
        return Place()
    usual = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", **environment}
    given = {name: usual[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")}
    if wrong := [name for name, value in given.items() if not value.isdecimal()]:
        raise UsageError(f"{wrong[0]} is '{given[wrong[0]]}', wanted a number", hint=_BY_LAUNCHER)
    rank, size, local_rank, local_size = (int(given[name]) for name in [*given][:4])
    if not rank < size:
        raise UsageError(f"there is no process {rank} of {size}: processes count from 0", hint=_BY_LAUNCHER)
    has_agent = "TORCHELASTIC_RUN_ID" in environment
    return Place(rank, size, local_rank, local_size, is_launched=True, has_agent=has_agent)


class GaveUpError(Exception):
    """Another process has given up what all are at, and all are to go on with something else."""


class Ranks:
    """The processes of a job, seen from one of them; alone, it exchanges with nobody.

    Every process has to make the same exchanges in the same order.

    Args:
        stop: this process's wish to stop; every gathering tells it to all.
    Attributes:
        stopped_by: the number of a signal that asks the job to stop, known to all processes alike; None so far.
    """

    def __init__(self, place: Place = Place(), stop: Stop | None = None) -> None:
        self.place = place
        self.size, self.is_first = place.size, place.is_first
        self.stopped_by: int | None = None
        self._stop = stop or Stop()
        self._parent = os.getppid()

    def start(self, device: str) -> None:
        """Meet the other processes; returns when all are there.

        Args:
            device: as the user names it; without a number, each process of a machine gets a GPU of its own.
        """
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        on_gpu = device != "cpu" and torch.cuda.is_available()
        if on_gpu:
            torch.cuda.set_device(self.place.local_rank % torch.cuda.device_count())
        with meeting():
            dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")

    def share(self, n: int) -> range:
        """Return the numbers of this process's units of work, of n that all processes share: a block of them."""
        rank, size = self.place.rank, self.size
        return range(rank * n // size, (rank + 1) * n // size)

    def gather(self, own: Sequence["Tensor"]) -> list["Tensor"]:
        """Return the tensors of all processes, those of the first process first; of several processes on the CPU.

        Raises:
            GaveUpError: another process has given up.
        """
        if self.size == 1:
            return [*own]
        found, has_given_up = self._exchange(own, gives_up=False)
        if has_given_up:
            raise GaveUpError
        return found

    def give_up(self) -> None:
        """Let the next exchange of all other processes end what they are at, which this one cannot do."""
        if self.size > 1:
            self._exchange([], gives_up=True)

    def _exchange(self, own: Sequence["Tensor"], *, gives_up: bool) -> tuple[list["Tensor"], bool]:
        """Return the tensors of all processes, and whether one of them has given up."""
        import torch
        import torch.distributed as dist

        packed = _pack(own)
        numbers = torch.tensor([len(packed), self._asked_by(), int(gives_up)])
        first, rest = _parted(torch.cat([numbers.view(torch.uint8), packed]))
        with meeting():
            firsts = [torch.empty_like(first) for _ in range(self.size)]
            dist.all_gather(firsts, first)
            heads = [each[: _NUMBERS * 8].view(torch.int64).tolist() for each in firsts]
            longest = max(_NUMBERS * 8 + head[0] - _FIRST for head in heads)
            blobs = [each[_NUMBERS * 8 :] for each in firsts]
            if longest > 0:
                rests = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
                dist.all_gather(rests, torch.nn.functional.pad(rest, (0, longest - len(rest))))
                blobs = [torch.cat(pair) for pair in zip(blobs, rests, strict=True)]
        self.stopped_by = self.stopped_by or max(head[1] for head in heads) or None
        return [tensor for blob in blobs for tensor in _unpack(blob)], any(head[2] for head in heads)

    def _asked_by(self) -> int:
        """Return the signal that asks this process to stop, 0 for none; a launcher that was killed could send none."""
        is_orphan = self.place.has_agent and os.getppid() != self._parent
        return self._stop.asked_by or (signal.SIGHUP if is_orphan else 0)

    def gather_into(self, out: "Tensor", own: "Tensor") -> None:
        """Write the tensors of all processes to `out` [size, ...], those of the first first; all have one shape.

        Both are contiguous, and stay on their device. Only several processes can do that.
        """
        import torch.distributed as dist

        gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)  # its name from torch 2.13 on
        with meeting():
            gather(out.view(-1), own.view(-1))

    def from_first(self, make: Callable[[], Value]) -> Value:
        """Return what the first process makes, a JSON value; the others wait for it, and make nothing."""
        return self.from_one(0, make)

    def from_one(self, rank: int, make: Callable[[], Value]) -> Value:
        """Return what one process makes, a JSON value that may hold tensors; the others wait for it."""
        if self.size == 1:
            return make()
        if self.place.rank == rank:
            value = make()
            self.tell(value)
            return value
        return self.hear(rank)  # type: ignore[no-any-return]

    def check_alike(self, given: Mapping[str, Any]) -> None:
        """Check that all processes were given the same: machines without a common disk may have other files.

        Args:
            given: what this one was given, by names, as JSON values.
        Raises:
            UsageError: they were not; in all of them.
        """
        if self.size == 1:
            return
        import torch

        own = {name: sha256(json.dumps(value, sort_keys=True).encode()).hexdigest() for name, value in given.items()}
        first = self.from_first(lambda: own)
        others = [name for name in first.keys() | own.keys() if first.get(name) != own.get(name)]
        told = torch.frombuffer(bytearray(json.dumps(sorted(others)).encode()), dtype=torch.uint8)
        found = [json.loads(bytes(part.tolist())) for part in self.gather([told])]
        if differing := sorted({name for names in found for name in names}):
            raise UsageError(
                "the processes of this job were not given the same",
                items=differing,
                hint="let every machine have the same spec, experts and data",
            )

    def tell(self, value: Any) -> None:
        """Send a JSON value, which may hold tensors, from this process to the others, which `hear` it."""
        if self.size == 1:
            return
        tensors: list[Tensor] = []

        def numbered(value: object) -> dict[str, int]:
            if not hasattr(value, "untyped_storage"):
                raise TypeError(f"{type(value).__name__} is neither JSON nor a tensor")
            tensors.append(value)  # type: ignore[arg-type]
            return {_TENSOR: len(tensors) - 1}

        text = json.dumps(value, default=numbered).encode()
        self._broadcast(_with_head(text, _pack(tensors)), self.place.rank)

    def hear(self, rank: int = 0) -> Any:
        """Return what another process tells, the first one by default."""
        text, packed = _without_head(self._broadcast(None, rank))
        tensors = _unpack(packed)

        def restored(found: dict[str, Any]) -> Any:
            return tensors[found[_TENSOR]] if found.keys() == {_TENSOR} else found

        return json.loads(text, object_hook=restored)

    def _broadcast(self, sent: "Tensor | None", rank: int) -> "Tensor":
        """Return the row of bytes that a process sends; None in the others."""
        import torch
        import torch.distributed as dist

        length = torch.tensor([0 if sent is None else len(sent)]).view(torch.uint8)
        first, rest = _parted(length if sent is None else torch.cat([length, sent]))
        with meeting():
            dist.broadcast(first, rank)
            n_left = 8 + int(first[:8].view(torch.int64)) - _FIRST
            if n_left > 0:
                rest = torch.empty(n_left, dtype=torch.uint8) if sent is None else rest
                dist.broadcast(rest, rank)
                first = torch.cat([first, rest])
        return first[8 : _FIRST + n_left]


def _parted(packed: "Tensor") -> tuple["Tensor", "Tensor"]:
    """Return the part of a row of bytes that is always exchanged, filled up with zeros, and the rest."""
    import torch

    first = packed[:_FIRST]
    return torch.nn.functional.pad(first, (0, _FIRST - len(first))), packed[_FIRST:]


def _pack(tensors: Sequence["Tensor"]) -> "Tensor":
    """Return tensors as one row of bytes: their description in JSON as its head, and their data."""
    import torch

    plain = [tensor.detach().cpu().contiguous() for tensor in tensors]
    described = json.dumps([[str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for tensor in plain])
    return _with_head(described.encode(), *(tensor.flatten().view(torch.uint8) for tensor in plain if tensor.numel()))


def _unpack(packed: "Tensor") -> list["Tensor"]:
    """Return the tensors in a row of bytes, which may be longer than they are; the inverse of `_pack`."""
    import torch

    described, data = _without_head(packed)
    tensors, start = [], 0
    for name, shape in json.loads(described):
        empty = torch.empty(shape, dtype=getattr(torch, name))
        n_bytes = empty.numel() * empty.element_size()
        if n_bytes:
            empty.view(-1).view(torch.uint8).copy_(data[start : start + n_bytes])
        tensors.append(empty)
        start += n_bytes
    return tensors


def _with_head(text: bytes, *rows: "Tensor") -> "Tensor":
    """Return the length of a text, the text and rows of bytes as one row."""
    import torch

    head = len(text).to_bytes(8, "little") + text
    return torch.cat([torch.frombuffer(bytearray(head), dtype=torch.uint8), *rows])


def _without_head(row: "Tensor") -> tuple[bytes, "Tensor"]:
    """Return the text and the rest of a row of bytes; the inverse of `_with_head`."""
    start = 8 + int.from_bytes(bytes(row[:8].tolist()), "little")
    return bytes(row[8:start].tolist()), row[start:]


@contextmanager
def meeting() -> Iterator[None]:
    """Turn the errors of an exchange whose other side is gone into `Lost`."""
    try:
        yield
    except RuntimeError as error:
        if is_lost(error):
            raise Lost from error
        raise


def is_lost(error: BaseException) -> bool:
    """Tell whether an error means that another process is gone."""
    return isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None


def speaks(environment: Mapping[str, str]) -> bool:
    """Tell whether this process, which has failed, is to say so: the first one of a job does, the others are silent.

    The launcher's store counts them; where it cannot be reached, every process speaks.
    """
    try:
        is_alone = place_of(environment).size == 1
    except UsageError:  # which every process is to say
        return True
    if is_alone or environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    from datetime import timedelta

    import torch.distributed as dist

    address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            address, port, is_master=False, timeout=timedelta(seconds=_STORE_S)
        )
        return store.add(f"glue/failed/{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1) == 1
    except RuntimeError:
        return True
