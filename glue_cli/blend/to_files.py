"""Blend checkpoints file to file: theta(alpha) = sum_k alpha_k theta_k, eq. (1), in bounded memory.

A few threads each read, hash, blend and write one block of the output at a time. The arithmetic runs over chunks whose
boundaries follow only from the layout of the tensors, so the bytes depend on neither the threads nor the memory.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from glue_cli.blend.alike import find_alike
from glue_cli.blend.blocks import COPIED, Block, Plan, Source, plan_blend, survey
from glue_cli.blend.compatibility import copied_misfits
from glue_cli.blend.constants import not_finite
from glue_cli.blend.misfit import refuse
from glue_cli.blend.recipe import PLAIN, Recipe
from glue_cli.checkpoints.destination import Destination
from glue_cli.checkpoints.files import announce, check_unchanged, open_files, read_into
from glue_cli.checkpoints.hashing import StreamedHash
from glue_cli.checkpoints.header import DTYPE_BYTES, Checkpoint, TensorEntry
from glue_cli.checkpoints.safetensors_file import header_of, metadata_of
from glue_cli.checkpoints.tensors import TORCH_DTYPES, bytes_of
from glue_cli.foundation.errors import CheckpointError, NumericalError
from glue_cli.foundation.memory import MEMORY_BYTES
from glue_cli.foundation.output_files import copy_into, reserve, write_all, writing
from glue_cli.foundation.progress import Advanced, Finished, Progress, Started, silent
from glue_cli.foundation.threads import single_threaded

_SMALLER = "split the blend into smaller files: --max-shard-size 2GB"
# More than the cores, since a thread may wait for the disk, or for its turn to hash; beyond a dozen, the storage is
# the limit. 8 float32 experts of 400 MB with their sha256, on two cores: 2.2 s with 6 threads, 2.8 s with 3.
N_THREADS = min(2 * (os.cpu_count() or 1) + 2, 12)
# A thread's buffers: larger were slower; 8 float32 experts of 400 MB on two cores took 0.54 s at 16 MiB, 0.66 at 64.
SLOT_BYTES = 16 << 20
# Blocks made, and announced to the system, in advance: the disk reads them while the threads compute. 3 bfloat16
# experts of 2 GB with their sha256, cold, on two cores, whole processes: 7.0 s with 32 and 64 blocks, 7.3 s with 128,
# 7.3 to 8.1 s with 192; 5.6 to 6.1 s without sha256, whatever the number.
AHEAD = 64
# Bytes read between two flushes of the output.
FLUSH_BYTES = 512 << 20
_flush = getattr(os, "fdatasync", os.fsync)  # macOS has the latter alone
# Elements per chunk: K chunks stay in the cache. Blocks end at its multiples, so the output's bytes depend on it.
CHUNK = 131_072


def blend_files(
    experts: Sequence[Checkpoint],
    alphas: Sequence[Sequence[float]],
    destination: Destination,
    describe: Callable[[Sequence[str | None]], dict[str, Any]],
    *,
    recipe: Recipe = PLAIN,
    made: Mapping[str, Tensor] | None = None,
    memory_bytes: int = MEMORY_BYTES,
    hashes: Sequence[StreamedHash] = (),
    n_threads: int = N_THREADS,
    progress: Progress = silent,
) -> Sequence[str | None]:
    """Write the blend of compatible experts with coefficients `alphas` [G, K] to the files of a destination.

    Floating-point tensors are blended in float32, in float64 when an expert's is float64; experts with a coefficient
    of 0 are skipped, so a one-hot alpha copies bits; so are tensors that all the others have alike.
    `num_batches_tracked` is the largest among the experts that take part; every other tensor is copied and must be
    equal in all of them.

    Args:
        recipe: which of the G groups a tensor belongs to, and which tensors are not blended.
        made: the tensors that the recipe expects to be computed elsewhere.
        describe: builds glue's metadata from the experts' sha256 [K], None if they are not computed.
        memory_bytes: the limit on the buffers of all threads together; at least a chunk of every expert is needed.
        hashes: the experts' sha256 [K], which the blend updates while it reads; empty to compute none.
    Returns:
        the experts' sha256 in hexadecimal [K]; for an expert in shards, that of its files joined together.
    Raises:
        CheckpointError: an expert has NaN or infinity, changes while it is read, or a copied tensor differs; a
            tensor of the blend is too large for its dtype.
        NumericalError: a tensor that was made elsewhere has NaN or infinity.
        ResourceError: the output cannot be written.
    Cost: every expert is read once; for its sha256 a second time, if the experts store their tensors in different
        orders and its order is not the output's.
    Source: eq. (1).
    """
    refuse(copied_misfits(experts, apart=recipe.apart))
    plan = plan_blend(experts, alphas, destination, recipe)
    # a digest's length is known before its value, and so is that of the headers
    digests: Sequence[str | None] = ["0" * 64 if hashes else None] * len(experts)
    starts = [len(header) for header in _headers(plan, destination, describe(digests))]
    with ExitStack() as stack:
        readers = [_Reader(stack, expert) for expert in experts]
        alike = find_alike(plan, experts, [reader.descriptors for reader in readers], n_threads)
        plan = replace(plan, alike=alike)
        outputs = _open_outputs(stack, destination, plan, starts)
        for counter in plan.counters:
            weights = recipe.coefficients(counter.name, alphas)
            outputs[counter.file].write(_largest_counter(counter, readers, weights), counter.offset)
        for entry in plan.made:
            tensor = _cast(entry, (made or {})[entry.name])
            outputs[entry.file].write(bytes_of(tensor), entry.offset)
        _Blending(plan, readers, outputs, memory_bytes, hashes, n_threads, progress).run()
        if hashes:
            with ThreadPoolExecutor(n_threads) as pool:
                digests = list(pool.map(StreamedHash.finish, hashes))
        for reader in readers:
            check_unchanged(reader.expert, reader.descriptors)
        for output, header in zip(outputs, _headers(plan, destination, describe(digests)), strict=True):
            write_all(output.descriptor, header, 0)
    for stale in destination.stale_files():
        stale.unlink()
    progress(Finished())
    return digests


def _headers(plan: Plan, destination: Destination, glue: dict[str, Any]) -> list[bytes]:
    """Return the header of each file, with the tensors' names within the file."""
    return [
        header_of([entry._replace(name=entry.name.removeprefix(prefix)) for entry in entries], metadata_of(glue))
        for prefix, entries in zip(destination.prefixes, plan.entries_by_file(), strict=True)
    ]


@dataclass(frozen=True)
class _Output:
    """An open file of the output, and where its tensors start."""

    descriptor: int
    start: int

    def write(self, data: memoryview | bytes, offset: int) -> None:
        write_all(self.descriptor, data, self.start + offset)


def _open_outputs(stack: ExitStack, destination: Destination, plan: Plan, starts: Sequence[int]) -> list[_Output]:
    """Open the weights files for writing, and write the files that accompany them.

    The files get their final names in the reverse order: first the weights, then the index, then the configuration.
    """
    for source, copy in destination.companions:
        copy_into(stack.enter_context(writing(copy, replace=destination.force)), source)
    by_file = plan.entries_by_file()
    if destination.index:
        text = _index_text(destination, by_file)
        write_all(stack.enter_context(writing(destination.index, replace=destination.force)), text.encode(), 0)
    outputs = [
        _Output(stack.enter_context(writing(f, replace=destination.force, smaller=_SMALLER)), s)
        for f, s in zip(destination.files, starts, strict=True)
    ]
    for output, entries in zip(outputs, by_file, strict=True):
        reserve(output.descriptor, output.start + sum(entry.n_bytes for entry in entries))
    return outputs


def _index_text(destination: Destination, by_file: Sequence[Sequence[TensorEntry]]) -> str:
    shards = list(zip(destination.files, by_file, strict=True))[: len(by_file) - len(destination.parts)]
    weight_map = {entry.name: file.name for file, entries in shards for entry in entries}
    total_size = sum(entry.n_bytes for _, entries in shards for entry in entries)
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    return json.dumps(index, indent=2) + "\n"


class _Reader:
    """The open files of one expert."""

    def __init__(self, stack: ExitStack, expert: Checkpoint) -> None:
        self.expert = expert
        self.descriptors = stack.enter_context(open_files(expert))

    def read(self, file: int, offset: int, buffer: memoryview) -> None:
        read_into(self.descriptors[file], buffer, offset, self.expert.files[file])

    def announce(self, source: Source, n_elements: int) -> None:
        announce(self.descriptors[source.file], source.offset, n_elements * DTYPE_BYTES[source.dtype])


class _Blending:
    """One pass over the blocks of a plan."""

    def __init__(
        self,
        plan: Plan,
        readers: Sequence[_Reader],
        outputs: Sequence[_Output],
        memory_bytes: int,
        hashes: Sequence[StreamedHash],
        n_threads: int,
        progress: Progress,
    ) -> None:
        self._plan, self._readers, self._outputs = plan, readers, outputs
        self._hashes, self._progress = hashes, progress
        self._block_bytes = min(memory_bytes // n_threads, SLOT_BYTES)
        self._survey = survey(plan.blocks(self._block_bytes, CHUNK), len(readers))
        slot_bytes = self._survey.buffer_bytes + 64 * (len(readers) + 1)
        # with many experts, a chunk of each may exceed a thread's share
        self._n_threads = max(1, min(n_threads, memory_bytes // slot_bytes))
        self._slots: SimpleQueue[Tensor] = SimpleQueue()
        for _ in range(min(self._n_threads, self._survey.n_blocks)):
            self._slots.put(torch.empty(slot_bytes, dtype=torch.uint8))
        self._n_done = self._n_flushed = 0

    def run(self) -> None:
        self._progress(Started("blend", self._survey.n_bytes, "B"))
        waiting: deque[tuple[Block, Future[None]]] = deque()
        with single_threaded(self._n_threads) as pool:
            try:
                for block, turns in self._with_turns():
                    if len(waiting) == AHEAD:
                        self._await(*waiting.popleft())
                    for source in block.sources:
                        self._readers[source.expert].announce(source, block.n_elements)
                    waiting.append((block, pool.submit(self._do, block, turns)))
                for block, future in waiting:
                    self._await(block, future)
            finally:
                for _, future in waiting:
                    future.cancel()
                for streamed in self._hashes:
                    streamed.stop()

    def _with_turns(self) -> Iterator[tuple[Block, dict[int, int]]]:
        """Yield each block with its turn: its place in the order in which each expert's hash takes blocks."""
        counts = [0] * len(self._readers)
        for block in self._plan.blocks(self._block_bytes, CHUNK):
            yield block, {source.expert: counts[source.expert] for source in block.sources}
            for source in block.sources:
                counts[source.expert] += 1

    def _await(self, block: Block, future: Future[None]) -> None:
        future.result()
        self._n_done += block.n_bytes
        self._progress(Advanced(self._n_done))
        if self._n_done - self._n_flushed > FLUSH_BYTES:  # the disk writes while the threads compute
            _flush(self._outputs[block.targets[-1].file].descriptor)
            self._n_flushed = self._n_done

    def _do(self, block: Block, turns: dict[int, int]) -> None:
        slot = self._slots.get()
        try:
            out, inputs = _carve(slot, block)
            for (expert, _, file, offset, _), tensor in zip(block.sources, inputs, strict=True):
                self._readers[expert].read(file, offset, bytes_of(tensor))
                if self._hashes and self._survey.in_file_order[expert]:
                    self._hashes[expert].update(turns[expert], file, offset, bytes_of(tensor))
            if block.dtype == COPIED:
                out.copy_(inputs[0])
            else:
                self._blend(block, inputs, out)
            data = bytes_of(out)
            for file, offset, n_elements in block.targets:
                n_bytes = n_elements * DTYPE_BYTES[block.dtype]
                self._outputs[file].write(data[:n_bytes], offset)
                data = data[n_bytes:]
        except BaseException:
            for streamed in self._hashes:
                streamed.stop()
            raise
        finally:
            self._slots.put(slot)

    def _blend(self, block: Block, inputs: Sequence[Tensor], out: Tensor) -> None:
        wide = torch.float64 if any(tensor.dtype == torch.float64 for tensor in inputs) else torch.float32
        weights = [source.weight for source in block.sources]
        # made once a block: memory that is new to the process has to be cleared first
        total, widened = torch.empty(2, min(CHUNK, block.n_elements), dtype=wide)
        for start in range(0, block.n_elements, CHUNK):
            chunk = out[start : start + CHUNK]
            parts = [tensor[start : start + CHUNK] for tensor in inputs]
            summed = chunk if chunk.dtype == wide else total[: len(chunk)]
            for number, (part, weight) in enumerate(zip(parts, weights, strict=True)):
                term = part if part.dtype == wide else widened[: len(part)].copy_(part)
                if number:
                    summed.add_(term, alpha=weight)  # eq. (1)
                else:
                    torch.mul(term, weight, out=summed)
            if summed is not chunk:
                chunk.copy_(summed)
            # a finite sum means that all are finite, and is cheaper to check; otherwise the exact test follows
            if not torch.isfinite(chunk.sum(dtype=wide)) and not torch.isfinite(chunk).all():
                self._check_finite(block, start, parts, chunk)

    def _check_finite(self, block: Block, start: int, parts: Sequence[Tensor], chunk: Tensor) -> None:
        """Raise an error for the first NaN, infinity or overflow; one expert's kept tensors may have infinities."""
        for source, part in zip(block.sources, parts, strict=True):
            wrong = (torch.isnan(part) if block.is_kept else ~torch.isfinite(part)).nonzero()
            if len(wrong):
                name = self._plan.name_at(*block.position_of(start + int(wrong[0])))
                raise not_finite(self._readers[source.expert].expert, name, part[int(wrong[0])].item())
        wrong = (~torch.isfinite(chunk) & torch.isfinite(parts[0])).nonzero()
        if len(wrong):
            raise _too_large(self._plan.name_at(*block.position_of(start + int(wrong[0]))), block.dtype)


def _too_large(name: str, dtype: str) -> CheckpointError:
    return CheckpointError(f"'{name}' is too large for {dtype}", hint="choose a wider --dtype")


def _cast(entry: TensorEntry, made: Tensor) -> Tensor:
    """Return a tensor that was computed elsewhere in the dtype of the output, on the CPU."""
    if made.is_floating_point() and not torch.isfinite(made).all():
        wrong = made[~torch.isfinite(made)][0].item()
        raise NumericalError(
            f"'{entry.name}' has {wrong} after it was made anew for the blend",
            hint="keep the experts' own: leave out --batchnorm refresh and --head-policy",
        )
    tensor = made.to("cpu", TORCH_DTYPES[entry.dtype]).contiguous()
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise _too_large(entry.name, entry.dtype)
    return tensor


def _carve(slot: Tensor, block: Block) -> tuple[Tensor, list[Tensor]]:
    """Return the block's output and its K inputs as tensors [n] in the slot's memory, each aligned to 64 bytes."""
    position = 0

    def take(dtype: str) -> Tensor:
        nonlocal position
        n_bytes = block.n_elements * DTYPE_BYTES[dtype]
        part = slot[position : position + n_bytes].view(TORCH_DTYPES[dtype])
        position += n_bytes + (-n_bytes % 64)
        return part

    return take(block.dtype), [take(source.dtype) for source in block.sources]


def _largest_counter(counter: TensorEntry, readers: Sequence[_Reader], weights: Sequence[float]) -> bytes:
    """Return the largest value of a `num_batches_tracked` among the experts that take part, as the file's bytes.

    A mean would count nothing real; with a one-hot alpha, the largest is the chosen expert's own value.
    """
    counts: list[tuple[bool, int]] = []
    for reader, weight in zip(readers, weights, strict=True):
        if entry := reader.expert.entries.get(counter.name):
            value = bytearray(8)
            reader.read(entry.file, entry.offset, memoryview(value))
            counts.append((weight != 0, int.from_bytes(value, "little", signed=True)))
    _, largest = max(counts)  # if none that takes part has the counter, the largest of the others
    return largest.to_bytes(8, "little", signed=True)
