"""What differs between experts that are to be blended. Needs no torch."""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from glue_cli.checkpoints.header import FLOAT_DTYPES, Checkpoint, is_counter
from glue_cli.foundation.errors import CheckpointError
from glue_cli.foundation.regular_files import regular

_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Difference:
    """One tensor in which an expert differs from the first."""

    kind: Literal["missing", "unexpected", "shape", "dtype"]
    name: str
    text: str


def find_differences(experts: Sequence[Checkpoint]) -> list[Difference]:
    """Return every tensor in which an expert differs from the first one by name, shape or dtype."""
    first, *others = experts
    found = []
    for expert in others:
        for name, wanted in first.entries.items():
            entry = expert.entries.get(name)
            if entry is None:
                found.append(Difference("missing", name, f"{expert.path}: '{name}' is missing"))
            elif entry.shape != wanted.shape:
                text = f"{expert.path}: '{name}' is {list(entry.shape)}, in {first.path} it is {list(wanted.shape)}"
                found.append(Difference("shape", name, text))
            elif entry.dtype != wanted.dtype:
                text = f"{expert.path}: '{name}' is {entry.dtype}, in {first.path} it is {wanted.dtype}"
                found.append(Difference("dtype", name, text))
        for name in sorted(expert.entries.keys() - first.entries.keys()):
            found.append(Difference("unexpected", name, f"{expert.path}: '{name}' is not in {first.path}"))
    return found


def check_compatible(experts: Sequence[Checkpoint], *, dtype_given: bool, apart: Collection[str] = ()) -> None:
    """Check that the experts can be blended; float dtypes may differ when the user says what to blend to.

    Args:
        apart: tensors in which they may differ, since they are not blended.
    Raises:
        CheckpointError: with every tensor that differs, or is of a floating-point dtype that glue cannot blend.
    """
    first = experts[0].entries
    odd = [entry for entry in first.values() if entry.dtype.startswith(("F8", "C")) and entry.name not in apart]
    if odd:
        items = [f"{experts[0].path}: '{entry.name}' is {entry.dtype}" for entry in odd]
        hint = "convert the experts to float32, float16 or bfloat16"
        raise CheckpointError("glue cannot blend tensors of these dtypes", items=items, hint=hint)
    found = [difference for difference in find_differences(experts) if difference.name not in apart]
    if dtype_given:
        found = [d for d in found if not (d.kind == "dtype" and _float_everywhere(d.name, experts))]
    if not found:
        return
    if all(d.kind == "dtype" and _float_everywhere(d.name, experts) for d in found):
        message, hint = "the experts differ in dtype", "say what to blend to: --dtype float32"
    elif all(d.kind == "shape" and _differ_in_classes(d.name, experts) for d in found):
        message = "the experts differ in these tensors"
        hint = "if they are a head, say what becomes of it: --head PATTERN --head-policy align, from:EXPERT or reset"
    else:
        message, hint = "the experts are not of one architecture", "blend checkpoints of one architecture only"
    raise CheckpointError(message, items=[difference.text for difference in found], hint=hint)


def _differ_in_classes(name: str, experts: Sequence[Checkpoint]) -> bool:
    """Tell whether a tensor has one shape but for its first dimension, as that of a head for other classes."""
    shapes = [expert.entries[name].shape for expert in experts]
    return len({shape[1:] for shape in shapes}) == 1 and all(shapes)


def check_copied(experts: Sequence[Checkpoint], *, apart: Collection[str] = ()) -> None:
    """Check that tensors which are neither floating point nor counters are the same in all compatible experts.

    Args:
        apart: tensors that are not asked to be.
    Raises:
        CheckpointError: one differs.
    Cost: reads these tensors, which are few and small in a network.
    """
    first, *others = experts
    for entry in first.entries.values():
        if entry.dtype in FLOAT_DTYPES or is_counter(entry) or entry.name in apart:
            continue
        for other in others:
            if not _same_bytes(first, other, entry.name):
                raise CheckpointError(
                    f"'{entry.name}' is not floating point and differs between {first.path} and {other.path}",
                    hint="only equal tensors of whole numbers can be kept",
                )


def _same_bytes(left: Checkpoint, right: Checkpoint, name: str) -> bool:
    a, b = left.entries[name], right.entries[name]
    with (
        open(left.files[a.file], "rb", opener=regular) as left_file,
        open(right.files[b.file], "rb", opener=regular) as right_file,
    ):
        for start in range(0, a.n_bytes, _READ_BYTES):
            n_bytes = min(_READ_BYTES, a.n_bytes - start)
            here = os.pread(left_file.fileno(), n_bytes, a.offset + start)
            if here != os.pread(right_file.fileno(), n_bytes, b.offset + start):
                return False
    return True


def _float_everywhere(name: str, experts: Sequence[Checkpoint]) -> bool:
    return all(name in expert.entries and expert.entries[name].dtype in FLOAT_DTYPES for expert in experts)
