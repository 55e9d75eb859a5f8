"""The state of a run that was stopped, in a file beside its output: tensors, and the rest as JSON. No pickle.

The file also holds the run's identity, which is all that it depends on: settings, and fingerprints of what it reads.
"""

import glob
import hashlib
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.tensors import bytes_of, read_tensors, write_checkpoint
from glue_cli.foundation.errors import UNREADABLE, CheckpointError, ResourceError
from glue_cli.foundation.output_files import made_folder
from glue_cli.foundation.regular_files import regular
from glue_cli.foundation.state import State
from glue_cli.foundation.temporary_files import held_file, remove_abandoned

_ABOUT = ("identity", "precision", "threads", "history_bytes", "n_made")  # in the order of `SavedState`
_BEGIN_AGAIN = "remove it, and begin again"
_KIND = "state"
_LOOK_S = 0.02  # between two looks at a lock
_ROWS_FILE = re.compile(r".+\.of-(\d+)-to-(\d+)-of-(\d+)")
# Bytes of a checkpoint's file that a fingerprint covers at each end, if it is larger than both, and in between.
_END, _PAGE = 32 << 20, 4096


@dataclass(frozen=True)
class SavedState:
    """A state and the run that it belongs to, as in the file.

    Attributes:
        identity: what the run depends on, by dotted names; values as read from JSON.
        n_made: how many states the run had come to, this one included: of two, the larger is further on.
        history_bytes: the size of the `--history` file; None if there was none.
    """

    state: State
    identity: Mapping[str, Any]
    precision: Any
    threads: int
    history_bytes: int | None
    n_made: int


def state_file(output: Path) -> Path:
    """Return the file for a run's state: hidden, so that `*` in a shell does not match it as a checkpoint."""
    return output.with_name(f".{output.name}.state")


def rows_file(file: Path, processes: range, n_processes: int) -> Path:
    """Return the file beside a state for what the processes of one machine hold of it; see `run_state_rows`."""
    return file.with_name(f"{file.name}.of-{processes.start}-to-{processes.stop - 1}-of-{n_processes}")


def rows_files(file: Path) -> list[Path]:
    """Return all such files beside a state."""
    return sorted(path for path in file.parent.glob(f"{glob.escape(file.name)}.*") if _ROWS_FILE.fullmatch(path.name))


def processes_of(path: Path) -> tuple[range, int]:
    """Return which processes have written such a file, and of how many; the inverse of `rows_file`."""
    found = _ROWS_FILE.fullmatch(path.name)
    assert found
    first, last, size = map(int, found.groups())
    return range(first, last + 1), size


def is_saved(file: Path) -> bool:
    """Tell whether there is a state, whole or by rows."""
    return file.exists() or bool(rows_files(file))


def remove_state(file: Path) -> None:
    """Remove a state, whole and by rows; in a folder that cannot be written it stays."""
    with suppress(OSError):
        file.unlink()
    remove_rows(file)


def remove_rows(file: Path) -> None:
    """Remove what there is of a state by rows, as `remove_state` does."""
    for path in rows_files(file):
        for each in (path, _lock_of(path)):
            with suppress(OSError):
                each.unlink()


@contextmanager
def holding_state(output: Path) -> Iterator[Path]:
    """Lock the state of an output against other processes while the block runs; yield its file.

    Raises:
        ResourceError: a living process holds it; that passes, as a mistake on the command line does not.
    """
    file = state_file(output)
    with made_folder(output.absolute().parent), held_file(_lock_of(file)) as is_ours:
        if not is_ours:
            message = f"another process is at work on '{output}', and holds its state"
            raise ResourceError(message, hint="wait for it, or name another output with --output")
        yield file


@contextmanager
def taking_over(file: Path, wait_s: float) -> Iterator[bool]:
    """Lock a state whose process may have ended, and wait for that; yield whether the lock is this process's."""
    end = time.monotonic() + wait_s
    while True:
        with held_file(_lock_of(file)) as is_ours:
            if is_ours or time.monotonic() >= end:
                yield is_ours
                return
        time.sleep(_LOOK_S)


def _lock_of(state: Path) -> Path:
    return state.with_name(f"{state.name}.lock")


def forget_run(output: Path) -> None:
    """Remove what a run that was killed after writing its output has left beside it: state, lock, temporary files.

    What belongs to living processes stays, as does everything in a folder that cannot be written.
    """
    file = state_file(output)
    with suppress(OSError), held_file(_lock_of(file)) as is_ours:
        if is_ours:
            remove_state(file)
            remove_abandoned(output.parent)


def write_state(file: Path, saved: SavedState) -> None:
    """Replace the saved state by a new one. If that fails, the old one stays.

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
        "n_made": saved.n_made,
    }
    write_checkpoint(file, tensors, about)


def read_state(file: Path) -> SavedState:
    """Read what `write_state` has written.

    Raises:
        CheckpointError: it is no state, or damaged.
    """
    checkpoint = _read_header(file)
    about = checkpoint.glue
    state = {**about["values"], **read_tensors(checkpoint)}
    return SavedState(state, *(about[name] for name in _ABOUT))


def moment_of(file: Path) -> tuple[int, Mapping[str, Any]]:
    """Return how far on a saved state is, and in which run, without reading its tensors.

    Raises:
        CheckpointError: as for `read_state`.
    """
    about = _read_header(file).glue
    return about["n_made"], about["identity"]


def _read_header(file: Path) -> Checkpoint:
    try:
        checkpoint = read_checkpoint(file)
    except CheckpointError as error:
        raise CheckpointError(error.message, items=error.items, hint=_BEGIN_AGAIN) from error
    if checkpoint.glue.get("kind") != _KIND or not {"values", *_ABOUT} <= checkpoint.glue.keys():
        raise CheckpointError(f"'{file}' is no state of a run of this glue", hint=_BEGIN_AGAIN)
    return checkpoint


def differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Describe how two identities differ, one text for each name."""
    return [
        f"{name}: {_said(saved, name)} there, {_said(wanted, name)} here"
        for name in sorted(saved.keys() | wanted.keys())
        if name not in saved or name not in wanted or saved[name] != wanted[name]
    ]


def _said(identity: Mapping[str, Any], name: str) -> str:
    return str(identity[name]) if name in identity else "nothing"


def flat(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of nested sections by dotted names."""
    by_dotted_name: dict[str, Any] = {}
    for name, value in sections.items():
        if isinstance(value, Mapping) and value:
            by_dotted_name |= {f"{name}.{inner}": deep for inner, deep in flat(value).items()}
        else:
            by_dotted_name[name] = value
    return by_dotted_name


def fingerprint_of_tensors(tensors: Iterable[Tensor]) -> str:
    """Return a hash that identifies tensors by all that they hold."""
    sha256 = hashlib.sha256()
    for tensor in tensors:
        sha256.update(f"{tensor.dtype} {list(tensor.shape)};".encode())
        plain = tensor.detach().contiguous().flatten().view(torch.uint8)
        sha256.update(bytes_of(plain.to("cpu")))
    return sha256.hexdigest()[:16]


def fingerprint_of_checkpoint(checkpoint: Checkpoint) -> str:
    """Return a hash that identifies a checkpoint: of a large file by both ends and three pages of every tensor.

    Raises:
        CheckpointError: a file cannot be read.
    """
    pages: dict[int, set[int]] = {}
    for entry in checkpoint.entries.values():
        last = entry.offset + max(0, entry.n_bytes - _PAGE)
        pages.setdefault(entry.file, set()).update({entry.offset, (entry.offset + last) // 2, last})
    sha256 = hashlib.sha256()
    for number, path in enumerate(checkpoint.files):
        _update(sha256, path, sorted(pages.get(number, ())))
    return sha256.hexdigest()[:16]


def fingerprint_of_files(files: Iterable[Path]) -> str:
    """Return a hash that identifies small files by all that they hold.

    Raises:
        CheckpointError: one cannot be read.
    """
    sha256 = hashlib.sha256()
    for path in files:
        _update(sha256, path, None)
    return sha256.hexdigest()[:16]


def _update(sha256: "hashlib._Hash", path: Path, pages: Sequence[int] | None) -> None:
    """Take a file into a hash: all of it, or if it is large and pages are named, both ends and these."""
    try:
        with open(path, "rb", buffering=0, opener=regular) as file:  # a buffer of a network's disk is a MiB and more
            size = file.seek(0, 2)
            sha256.update(f"{size};".encode())
            spans = [(0, size)]
            if pages is not None and size > 2 * _END:
                spans = [(0, _END), *((start, _PAGE) for start in pages), (size - _END, _END)]
            for start, n_bytes in spans:
                file.seek(start)
                sha256.update(file.read(n_bytes))
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror}", hint=UNREADABLE) from None
