"""Settle differences between experts that have one right answer; all others are refused later. Needs no torch.

The blend has the first expert's tensors: one that it lacks is left out, one that others lack is copied from it.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from glue_cli.blend.buffers import agree, is_idle, is_known_buffer
from glue_cli.blend.tied import find_tied_copies
from glue_cli.checkpoints.files import same_bytes
from glue_cli.checkpoints.header import FLOAT_DTYPES, Checkpoint, TensorEntry, is_counter
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
    Cost: reads tensors that only some experts have, unless their names tell what they are, and constants.
    """
    lacking = [name for name in _in_some_only(experts) if name not in apart]
    counters = [name for name in lacking if all(map(is_counter, _entries(experts, name)))]
    buffers = [n for n in lacking if n not in counters and all(map(is_known_buffer, _entries(experts, n)))]
    unclear = [name for name in lacking if name not in buffers and name not in counters]
    shared = _shared_buffers(experts, apart)
    tied = find_tied_copies(experts, unclear) if unclear else None
    copies = tied.of if tied else {}
    notes = []
    where = f"as in {experts[0].path}"
    if no_weights := [*buffers, *counters, *(name for name, differ in shared.items() if differ)]:
        notes.append(f"the experts differ in tensors that are no weights, {_named(no_weights)}: they are {where}")
    if copies:
        notes.append(f"only some experts have {_named(copies)}, copies of {_named(set(copies.values()))}: {where}")
    left_out = [name for name in copies if name not in experts[0].entries]
    copied = dict.fromkeys((*buffers, *shared, *left_out), 0)
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


def _shared_buffers(experts: Sequence[Checkpoint], apart: Collection[str]) -> dict[str, bool]:
    """Return the known buffers of all experts that are copied from the first one, and whether they differ in any way.

    They decide nothing, or agree up to rounding. Integers of one dtype are copied anyway, or refused if they differ.
    """
    first, *others = experts
    shared = {}
    for name, entry in first.entries.items():
        if name in apart or not others or not is_known_buffer(entry) or any(name not in o.entries for o in others):
            continue
        entries = _entries(experts, name)
        dtypes = {e.dtype for e in entries}
        if all(map(is_counter, entries)) or (len(dtypes) == 1 and not dtypes & {*FLOAT_DTYPES} and not is_idle(name)):
            continue
        pairs = [(first, entry, other, other.entries[name]) for other in others]
        if all(same_bytes(*pair) for pair in pairs):
            shared[name] = False
        elif is_idle(name) or all(agree(*pair) for pair in pairs):
            shared[name] = True
    return shared


def _named(names: Collection[str]) -> str:
    return listed([f"'{name}'" for name in names])
