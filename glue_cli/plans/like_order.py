"""The order in which a blend's recipe has its experts, found by their sha256 where their names do not tell it."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from glue_cli.blend.adapters.adapter import is_adapter, read_adapter
from glue_cli.checkpoints.hashing import SHOWN_DIGITS, StreamedHash
from glue_cli.checkpoints.header import Checkpoint, short_names
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.foundation.errors import CheckpointError, UsageError
from glue_cli.plans.mix_folders import with_parts
from glue_cli.results.blend import BlendExpert


def in_recorded_order(
    blend: Path,
    experts: Sequence[Path],
    recorded: Sequence[BlendExpert],
    output: Path,
    remembered: Mapping[str, str],
) -> list[Path]:
    """Return the experts in the order of a blend's recipe.

    Files whose names are the recorded ones are taken as they stand: what is in them is checked as they are blended.

    Args:
        output: of the new blend; what it is in does not belong to the experts.
        remembered: the digests of unchanged files, see `Digests`.
    Raises:
        CheckpointError: an expert is none of the blend's.
    Cost: reads the experts whole where their names are not the recorded ones, or alike, unless digests are remembered.
    """
    names = [expert.name for expert in recorded]
    if len(set(names)) == len(names) and short_names(experts) == names:
        return list(experts)
    sets = list(dict.fromkeys(expert.weights for expert in recorded))
    checkpoints = [_read(path, sets) for path in experts]
    if not any(is_adapter(path) for path in experts):
        checkpoints = list(with_parts(checkpoints, output)[0])
    digests = [StreamedHash(checkpoint, remembered=remembered).finish() for checkpoint in checkpoints]
    left = list(range(len(experts)))
    order: list[int | None] = []
    for number, expert in enumerate(recorded):
        fitting = [k for k in left if digests[k] == expert.sha256]
        chosen = number if number in fitting else next(iter(fitting), None)
        order.append(chosen)
        if chosen is not None:
            left.remove(chosen)
    if left:
        lacking = [expert for expert, k in zip(recorded, order, strict=True) if k is None]
        _refuse(blend, [(experts[k], digests[k]) for k in left], lacking, {expert.sha256 for expert in recorded})
    return [experts[k] for k in order if k is not None]


def _read(path: Path, sets: Sequence[str | None]) -> Checkpoint:
    """Read an expert's header by the first set of weights that it has: the digest is that of all its files."""
    if is_adapter(path):
        return read_adapter(path).checkpoint
    for weights in sets[:-1]:
        with suppress(UsageError, CheckpointError):
            return read_checkpoint(path, weights)
    return read_checkpoint(path, sets[-1])


def _refuse(
    blend: Path, surplus: Sequence[tuple[Path, str]], lacking: Sequence[BlendExpert], known: Collection[str]
) -> None:
    """Raise the error for experts that the recipe has no place for: foreign ones, or the blend's given too often."""
    foreign = [path for path, digest in surplus if digest not in known]
    listed = ", ".join(f"'{path}'" for path in foreign or [path for path, _ in surplus])
    what = "not what the blend was made from" if foreign else "given more often than the blend was made from it"
    raise CheckpointError(
        f"{listed} {'is' if len(foreign or surplus) == 1 else 'are'} {what}",
        items=[
            *(f"'{path}': its sha256 is {digest[:SHOWN_DIGITS]}" for path, digest in surplus),
            *(f"wanted '{expert.name}', whose sha256 is {expert.sha256[:SHOWN_DIGITS]}" for expert in lacking),
        ],
        hint=f"name the files that it was made from, in any order; glue show {blend} lists them",
    )
