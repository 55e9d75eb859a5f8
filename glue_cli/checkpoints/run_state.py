"""The state of a run that was stopped, in a file beside its output: tensors, and all else as JSON. No pickle.

A state belongs to what the run depends on, its identity: settings, and fingerprints of what it reads.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.tensors import bytes_of, read_tensors, write_checkpoint
from glue_cli.foundation.errors import CheckpointError, UsageError
from glue_cli.foundation.output_files import made_folder
from glue_cli.foundation.state import State
from glue_cli.foundation.temporary_files import held_file

_KIND = "state"
_PART = 32 << 20  # bytes; of larger tensors and files, a fingerprint looks at the first and the last so many


@dataclass(frozen=True)
class SavedState:
    """A state as it was read.

    Attributes:
        identity: what the run depends on, by dotted names; values as JSON has them.
        history_bytes: how long the file of `--history` was; None where there was none.
    """

    state: State
    identity: Mapping[str, Any]
    precision: Any
    threads: int
    history_bytes: int | None


def state_file(output: Path) -> Path:
    """Return where the state of a run lies: hidden, so that no `*` takes it for a checkpoint."""
    return output.with_name(f".{output.name}.state")


@contextmanager
def holding_state(output: Path) -> Iterator[Path]:
    """Keep other processes from the state of an output as long as the block lasts; yield its file.

    Raises:
        UsageError: a living process holds it.
    """
    file = state_file(output)
    lock = file.with_name(f"{file.name}.lock")
    with made_folder(output.absolute().parent), held_file(lock) as is_ours:
        if not is_ours:
            message = f"another process is at work on '{output}', and holds its state"
            raise UsageError(message, hint="wait for it, or name another output with --output")
        yield file


def write_state(file: Path, saved: SavedState) -> None:
    """Write a state in place of the one before, whole or not at all.

    Raises:
        ResourceError: it cannot be written.
    """
    tensors = {name: value for name, value in saved.state.items() if isinstance(value, Tensor)}
    about = {
        "kind": _KIND,
        "values": {name: value for name, value in saved.state.items() if name not in tensors},
        "identity": saved.identity,
        "precision": saved.precision,
        "threads": saved.threads,
        "history_bytes": saved.history_bytes,
    }
    write_checkpoint(file, tensors, about)


def read_state(file: Path) -> SavedState:
    """Read what `write_state` has written.

    Raises:
        CheckpointError: it is no state, or damaged.
    """
    found = read_checkpoint(file)
    about = found.glue
    if about.get("kind") != _KIND:
        raise CheckpointError(f"'{file}' is no state of a run", hint="remove it, and begin again")
    state = {**about["values"], **read_tensors(found)}
    return SavedState(state, about["identity"], about["precision"], about["threads"], about["history_bytes"])


def differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return in words where two identities differ."""
    return [
        f"{name}: {_said(saved, name)} there, {_said(wanted, name)} here"
        for name in sorted(saved.keys() | wanted.keys())
        if name not in saved or name not in wanted or saved[name] != wanted[name]
    ]


def _said(identity: Mapping[str, Any], name: str) -> str:
    return str(identity[name]) if name in identity else "nothing"


def flat(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested sections under dotted names."""
    found: dict[str, Any] = {}
    for name, value in sections.items():
        if isinstance(value, Mapping) and value:
            found |= {f"{name}.{inner}": deep for inner, deep in flat(value).items()}
        else:
            found[name] = value
    return found


def fingerprint_of_tensors(tensors: Iterable[Tensor]) -> str:
    """Return what tells tensors from others: of large ones, their ends are looked at."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {list(tensor.shape)};".encode())
        plain = tensor.detach().contiguous().flatten().view(torch.uint8)
        parts = [plain] if len(plain) <= 2 * _PART else [plain[:_PART], plain[-_PART:]]
        for part in parts:
            found.update(bytes_of(part.to("cpu")))
    return found.hexdigest()[:16]


def fingerprint_of_files(files: Iterable[Path]) -> str:
    """Return what tells files from others: their sizes, and of large ones the ends.

    Raises:
        CheckpointError: one cannot be read.
    """
    found = hashlib.sha256()
    for path in files:
        try:
            with open(path, "rb") as file:
                size = file.seek(0, 2)
                found.update(f"{size};".encode())
                for start in [0] if size <= 2 * _PART else [0, size - _PART]:
                    file.seek(start)
                    found.update(file.read(size if size <= 2 * _PART else _PART))
        except OSError as error:
            raise CheckpointError(f"'{path}' cannot be read: {error.strerror}") from None
    return found.hexdigest()[:16]
