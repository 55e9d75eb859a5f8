"""Settle differences between experts that have one right answer; all others are refused later. Needs no torch.

The blend has the first expert's tensors: one that it lacks is left out, one that others lack is copied from it.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from glue_cli.blend.buffers import is_extra_state, is_known_buffer
from glue_cli.blend.tied import find_tied_copies
from glue_cli.checkpoints.files import same_bytes
from glue_cli.checkpoints.header import Checkpoint, TensorEntry, is_counter
from glue_cli.foundation.units import listed


@dataclass(frozen=True)
class Settled:
    """Experts after the differences that have one right answer are settled.

    Attributes:
        experts: the experts; a tensor that is a copy of another one in the first expert is added to all.
        copied: tensors that are copied from the first expert, or left out if it lacks them; with its number, 0.
        notes: sentences to show the user.
    """

    experts: tuple[Checkpoint, ...]
    copied: dict[str, int]
    notes: tuple[str, ...]


def settle_differences(experts: Sequence[Checkpoint], *, apart: Collection[str] = ()) -> Settled:
    """Settle the differences in buffers, counters and copies of tied tensors.

    Args:
        apart: tensors that are not blended.
    Cost: reads tensors that only some experts have, unless their names tell what they are.
    """
    lacking = [name for name in _in_some_only(experts) if name not in apart]
    counters = [name for name in lacking if all(map(is_counter, _entries(experts, name)))]
    buffers = [n for n in lacking if n not in counters and all(map(is_known_buffer, _entries(experts, n)))]
    unclear = [name for name in lacking if name not in buffers and name not in counters]
    unequal = [name for name in experts[0].entries if name not in apart and _is_unequal_buffer(name, experts)]
    tied = find_tied_copies(experts, unclear) if unclear else None
    copies = tied.of if tied else {}
    notes = []
    where = f"as in {experts[0].path}"
    if no_weights := [*buffers, *counters, *unequal]:
        notes.append(f"the experts differ in tensors that are no weights, {_named(no_weights)}: they are {where}")
    if copies:
        notes.append(f"only some experts have {_named(copies)}, copies of {_named(set(copies.values()))}: {where}")
    left_out = [name for name in copies if name not in experts[0].entries]
    copied = dict.fromkeys((*buffers, *unequal, *left_out), 0)
    return Settled(tied.experts if tied else tuple(experts), copied, tuple(notes))


def _in_some_only(experts: Sequence[Checkpoint]) -> list[str]:
    """Return the tensors that at least one expert lacks."""
    first, *others = experts
    names: dict[str, None] = {}
    for expert in others:
        if expert.entries is not first.entries:
            names |= dict.fromkeys(name for name in first.entries if name not in expert.entries)
            names |= dict.fromkeys(name for name in expert.entries if name not in first.entries)
    return list(names)


def _entries(experts: Iterable[Checkpoint], name: str) -> list[TensorEntry]:
    return [expert.entries[name] for expert in experts if name in expert.entries]


def _is_unequal_buffer(name: str, experts: Sequence[Checkpoint]) -> bool:
    """Tell whether all experts have this buffer, but with different dtypes or, for extra state, different bytes."""
    first, *others = experts
    entry = first.entries[name]
    if not is_known_buffer(entry) or any(name not in expert.entries for expert in others):
        return False
    if is_extra_state(name):
        return not all(same_bytes(first, entry, expert, expert.entries[name]) for expert in others)
    entries = [expert.entries[name] for expert in others]
    return any(e.dtype != entry.dtype for e in entries) and all(e.shape == entry.shape for e in entries)


def _named(names: Collection[str]) -> str:
    return listed([f"'{name}'" for name in names])
