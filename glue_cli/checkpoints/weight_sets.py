"""Files with several sets of weights, such as a model and its moving average: which there are, and which is meant.

Needs no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from glue_cli.checkpoints.header import Checkpoint, TensorEntry
from glue_cli.foundation.errors import CheckpointError, UsageError
from glue_cli.foundation.units import counted

# What averages of a model's weights over its training are called, beside the weights themselves.
AVERAGES = frozenset(
    (
        *("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "params_ema", "module_ema"),
        *("teacher", "averaged_model", "swa_model", "model_swa"),
    )
)
# What a training checkpoint calls the weights that it is about, where none of its sets is an average.
CONVENTIONAL = frozenset(
    ("state_dict", "model_state_dict", "model", "net", "network", "network_weights", "params", "module", "weights")
)
# As the first part of a tensor's name, a teacher is as often a part of one model.
_PREFIXES = AVERAGES - {"teacher"}
WHOLE = "all"  # in place of a set's name, where sets are told by the tensors' names: the file as it is
_ALIKE = 0.9  # the share of an average's tensors that the weights beside it have as well, by name and shape
_OR_ALONE = "or save the one that is meant alone"
_OR_WHOLE = f"or, if they are parts of one model, --weights {WHOLE}"


def choose_set(path: object, sizes: Mapping[str, int], wanted: str | None, otherwise: str = _OR_ALONE) -> str:
    """Return which set of weights is meant: the one asked for, the only one, or the one that by convention is.

    Args:
        path: the file, for messages.
        sizes: how many tensors each set has, by its name; not empty.
        otherwise: what else than a choice would mend it, as the end of a hint.
    Raises:
        UsageError: the one asked for is not there.
        CheckpointError: there are several, and no convention decides.
    """
    if wanted is not None and wanted in sizes:
        return wanted
    listed = [f"{name}: {counted(size, 'tensor')}" for name, size in sizes.items()]
    if len(sizes) == 1:
        return next(iter(sizes))
    if wanted is not None:
        raise UsageError(
            f"--weights {wanted}: '{path}' has no such set of weights", items=listed, hint="name one of these"
        )
    known = [name for name in sizes if name in CONVENTIONAL]
    if len(known) == 1 and not sizes.keys() & AVERAGES:
        return known[0]
    example = next((name for name in sizes if name in AVERAGES), next(iter(sizes)))
    raise CheckpointError(
        f"'{path}' holds several sets of weights",
        items=listed,
        hint=f"choose one with --weights, such as --weights {example}; {otherwise}",
    )


def choose_by_prefix(checkpoint: Checkpoint, wanted: str | None) -> Checkpoint:
    """Return one set of a checkpoint's weights, where it holds an average beside them: `ema.w` beside `model.w`.

    Args:
        wanted: which set is meant; `WHOLE` for a model that has both as its parts; None is refused.
    Raises:
        UsageError, CheckpointError: as `choose_set`.
    """
    prefixes = {name.partition(".")[0] for name in checkpoint.entries} & _PREFIXES
    if not prefixes:
        return checkpoint
    sets = _sets_by_prefix(checkpoint.entries)
    alike = [
        (name, other)
        for name in sorted(prefixes)
        for other, entries in sets.items()
        if other not in _PREFIXES and _share_alike(sets[name], entries) >= _ALIKE
    ]
    if not alike:
        return checkpoint
    names = dict.fromkeys(name for pair in alike for name in reversed(pair))
    if wanted == WHOLE:
        return replace(checkpoint, weights=WHOLE)
    chosen = choose_set(checkpoint.path, {name: len(sets[name]) for name in names}, wanted, _OR_WHOLE)
    entries = {name: entry._replace(name=name) for name, entry in sets[chosen].items()}
    return replace(checkpoint, entries=entries, weights=chosen)


def _sets_by_prefix(entries: Mapping[str, TensorEntry]) -> dict[str, dict[str, TensorEntry]]:
    """Return the tensors by the first part of their names; each set by the rest of the names."""
    sets: dict[str, dict[str, TensorEntry]] = {}
    for name, entry in entries.items():
        prefix, dot, rest = name.partition(".")
        if dot:
            sets.setdefault(prefix, {})[rest] = entry
    return sets


def _share_alike(average: Mapping[str, TensorEntry], weights: Mapping[str, TensorEntry]) -> float:
    n_alike = sum((other := weights.get(name)) is not None and other.shape == e.shape for name, e in average.items())
    return n_alike / len(average) if average else 0.0


def check_any_has(checkpoints: Sequence[Checkpoint], wanted: str | None) -> None:
    """Check that a set of weights that was asked for is one of a file's; a file with one set is read as it is.

    Raises:
        UsageError: no file has several.
    """
    if wanted is not None and not any(checkpoint.weights for checkpoint in checkpoints):
        items = [str(checkpoint.path) for checkpoint in checkpoints]
        raise UsageError(
            f"--weights {wanted}: none of these files has several sets of weights", items=items, hint="leave it out"
        )
