"""What differs between experts that are to be blended. Needs no torch."""

import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape
from typing import Literal

from glue_cli.blend.buffers import agree, is_constant
from glue_cli.blend.misfit import Misfit
from glue_cli.checkpoints.files import same_bytes
from glue_cli.checkpoints.header import FLOAT_DTYPES, Checkpoint, is_counter

_FEW = 0.2  # up to this share of tensors may differ between experts that count as one architecture
_MOST_PATTERNS = 5  # in a hint
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Difference:
    """One tensor in which an expert differs from the first."""

    kind: Literal["missing", "unexpected", "shape", "dtype"]
    name: str
    text: str


def find_differences(experts: Sequence[Checkpoint]) -> list[Difference]:
    """Return every tensor in which an expert differs from the first one by name, shape or dtype."""
    first, *others = experts
    differences = []
    for expert in others:
        for name, wanted in first.entries.items():
            entry = expert.entries.get(name)
            if entry is None:
                differences.append(Difference("missing", name, f"{expert.path}: '{name}' is missing"))
            elif entry.shape != wanted.shape:
                text = f"{expert.path}: '{name}' is {list(entry.shape)}, in {first.path} it is {list(wanted.shape)}"
                differences.append(Difference("shape", name, text))
            elif entry.dtype != wanted.dtype:
                text = f"{expert.path}: '{name}' is {entry.dtype}, in {first.path} it is {wanted.dtype}"
                differences.append(Difference("dtype", name, text))
        for name in sorted(expert.entries.keys() - first.entries.keys()):
            differences.append(Difference("unexpected", name, f"{expert.path}: '{name}' is not in {first.path}"))
    return differences


def tensor_misfits(experts: Sequence[Checkpoint], *, dtype_given: bool, apart: Collection[str] = ()) -> list[Misfit]:
    """Compare the experts' tensors; float dtypes may differ when the user says what to blend to.

    BatchNorm's counters may be missing, since torch before 0.4.1 had none.

    Args:
        apart: tensors that may differ, since they are not blended.
    Returns:
        if the experts cannot be blended, a misfit that lists every tensor that differs, and options that would help.
    """
    if empty := [expert for expert in experts if not expert.entries]:
        hint = "save the model's tensors: torch.save(model.state_dict(), PATH)"
        return [Misfit("tensors", f"'{empty[0].path}' has no tensor", hint=hint)]
    for expert in experts:
        if placeholders := _placeholders(expert):
            message = f"'{expert.path}' has weights without numbers, as DeepSpeed's ZeRO-3 leaves them in each process"
            hint = "gather them first: run zero_to_fp32.py, which lies in the checkpoint's folder"
            return [Misfit("tensors", message, tuple(f"'{name}'" for name in placeholders), hint)]
    differences = [d for d in find_differences(experts) if d.name not in apart and not _is_missing_counter(d, experts)]
    if dtype_given:
        differences = [d for d in differences if not (d.kind == "dtype" and _float_everywhere(d.name, experts))]
    if not differences:
        return []
    if all(d.kind == "dtype" and _float_everywhere(d.name, experts) for d in differences):
        message, hint = "the experts differ in dtype", "say what to blend to: --dtype float32"
    elif all(d.kind == "shape" and _differ_in_classes(d.name, experts) for d in differences):
        message = "the experts differ in these tensors"
        hint = "if they are a head, say what becomes of it: --head PATTERN --head-policy align, from:EXPERT or reset"
    elif _are_few(differences, experts):
        message = "the experts differ in these tensors"
        names = dict.fromkeys(d.name for d in differences)
        hint = f"to have them in the blend as in {experts[0].path}, or not at all: {exclusion(list(names), experts)}"
    else:
        message, hint = "the experts are not of one architecture", "blend checkpoints of one architecture only"
    return [Misfit("tensors", message, tuple(difference.text for difference in differences), hint)]


def _placeholders(expert: Checkpoint) -> list[str]:
    """Return the weights that are empty: all of a checkpoint, or those of modules, which none has as [0]."""
    empty = [name for name, entry in expert.entries.items() if entry.n_elements == 0]
    return [n for n in empty if len(empty) == len(expert.entries) or _is_unset(n, expert.entries[n].shape)]


def _is_unset(name: str, shape: tuple[int, ...]) -> bool:
    return shape == (0,) and name.rpartition(".")[2] == "weight"


def _is_missing_counter(difference: Difference, experts: Sequence[Checkpoint]) -> bool:
    if difference.kind not in ("missing", "unexpected"):
        return False
    return all(is_counter(e) for expert in experts if (e := expert.entries.get(difference.name)))


def _differ_in_classes(name: str, experts: Sequence[Checkpoint]) -> bool:
    """Tell whether a tensor's shapes differ only in the first dimension, like those of heads for different classes."""
    shapes = [expert.entries[name].shape for expert in experts]
    return len({shape[1:] for shape in shapes}) == 1 and all(shapes)


def _differ_in_one_size(name: str, experts: Sequence[Checkpoint]) -> bool:
    """Tell whether a tensor's shapes differ in one dimension, such as that of positions or input channels."""
    shapes = [e.shape for expert in experts if (e := expert.entries.get(name))]
    if len({len(shape) for shape in shapes}) > 1:
        return False
    return sum(len(set(sizes)) > 1 for sizes in zip(*shapes, strict=True)) == 1


def _are_few(differences: Sequence[Difference], experts: Sequence[Checkpoint]) -> bool:
    """Tell whether the experts differ in few tensors: not in whole layers, nor in several dimensions of one tensor."""
    if any(d.kind == "shape" and not _differ_in_one_size(d.name, experts) for d in differences):
        return False
    names, everywhere = {d.name for d in differences}, set(experts[0].entries)
    known = set(everywhere)
    for expert in experts[1:]:
        everywhere &= expert.entries.keys()
        known |= expert.entries.keys()
    if len(names) > max(1, _FEW * len(known)):
        return False
    layers = {_NUMBER.sub("#", name) for name in everywhere}
    return not any("#" in (layer := _NUMBER.sub("#", name)) and layer in layers for name in known - everywhere)


def exclusion(names: Sequence[str], experts: Sequence[Checkpoint]) -> str:
    """Return the options that exclude tensors from the blend and copy them from the first expert."""
    others = {name for expert in experts for name in expert.entries} - set(names)
    patterns = _patterns(names, others)
    if len(patterns) > _MOST_PATTERNS:
        patterns = ["PATTERN"]
    options = [f"--exclude {shlex.quote(pattern)}" for pattern in patterns]
    return " ".join((*options, f"--copy-from {shlex.quote(str(experts[0].path))}"))


def _patterns(names: Sequence[str], others: Collection[str]) -> list[str]:
    """Return patterns that match these names and no others: a last part that several share, or the whole name."""
    patterns: dict[str, None] = {}
    for name in names:
        pattern = f"*.{name.rpartition('.')[2]}"
        alike = sum(fnmatchcase(other, pattern) for other in names)
        is_theirs = alike > 1 and not any(fnmatchcase(other, pattern) for other in others)
        patterns[pattern if is_theirs and fnmatchcase(name, pattern) else escape(name)] = None
    return list(patterns)


def copied_misfits(experts: Sequence[Checkpoint], *, apart: Collection[str] = ()) -> list[Misfit]:
    """Compare the tensors of compatible experts that are no weights and no counters, and have to be equal.

    These are all that are not floating point, and known constants, which have to be equal up to rounding.

    Args:
        apart: tensors that may differ.
    Returns:
        a misfit for each expert and tensor that differs from the first expert's.
    Cost: reads these tensors, which are few and small in a network.
    """
    first, *others = experts
    misfits = []
    for entry in first.entries.values():
        is_float = entry.dtype in FLOAT_DTYPES
        if entry.name in apart or is_counter(entry) or (is_float and not is_constant(entry)):
            continue
        same = agree if is_float else same_bytes
        for other in others:
            if not same(first, entry, other, other.entries[entry.name]):
                kind = "holds complex numbers" if entry.dtype.startswith("C") else "is not floating point"
                kind = "is a constant that the weights were trained with" if is_float else kind
                options = exclusion([entry.name], experts)
                message = f"'{entry.name}' {kind} and differs between {first.path} and {other.path}"
                hint = f"such tensors are copied and not blended; to take that of {first.path}: {options}"
                if is_float:
                    hint = f"blend experts that have the same; {hint}"
                elif len(entry.shape) > 1:
                    hint += "; if it holds the codes of quantised weights, dequantise the experts instead"
                misfits.append(Misfit("copied tensors", message, hint=hint))
    return misfits


def _float_everywhere(name: str, experts: Sequence[Checkpoint]) -> bool:
    return all(name in expert.entries and expert.entries[name].dtype in FLOAT_DTYPES for expert in experts)
