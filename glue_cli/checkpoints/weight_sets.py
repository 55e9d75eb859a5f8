"""Files with several sets of weights, such as a model and its moving average: list the sets, and choose one.

Needs no torch.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from glue_cli.checkpoints.header import Checkpoint, TensorEntry
from glue_cli.foundation.errors import CheckpointError, UsageError
from glue_cli.foundation.units import counted

# Usual names for averages of a model's weights over its training.
AVERAGES = frozenset(
    (
        *("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "params_ema", "module_ema"),
        *("teacher", "averaged_model", "swa_model", "model_swa"),
    )
)
# Usual names for the weights themselves in a training checkpoint.
CONVENTIONAL = frozenset(
    ("state_dict", "model_state_dict", "model", "net", "network", "network_weights", "params", "module", "weights")
)
_AVERAGE = re.compile(r"(?:^|_)(?:ema|swa|shadow|averag\w*)(?:_|$)", re.IGNORECASE)
# Names of what a training checkpoint holds beside a model, such as the classes' weights in the loss.
_OF_TRAINING = re.compile(
    r"optim|sched|scaler|rng|random|criterion|loss|class_?weight|metric|callback|hist|frozen_param|hyper_?param|args|"
    r"config|(?:^|_)(?:acc|prec\d*$|lr)|curve|confusion|thresh|early_|plateau|sampler",
    re.IGNORECASE,
)
# As the first part of a tensor's name, "teacher" is just as often a module of one model.
_PREFIXES = AVERAGES - {"teacher"}
_COUNTER = "n_averaged"
WHOLE = "all"  # given instead of a prefix, it means the whole file
_ALIKE = 0.9  # the least share of an average's tensors that its model has too, by name and shape
_OR_WHOLE = "or, if they are parts of one model, --weights %s"


def is_average(name: str) -> bool:
    """Tell whether a set of weights is called as an average of others."""
    last = name.rpartition(".")[2]
    return last in AVERAGES or _AVERAGE.search(last) is not None


def is_of_training(name: str) -> bool:
    """Tell whether something in a training checkpoint is called as no part of the model."""
    return _OF_TRAINING.search(name) is not None


def choose_set(path: object, sizes: Mapping[str, int], wanted: str | None, otherwise: str | None = None) -> str:
    """Choose a set of weights: the one asked for, or the only one.

    Args:
        path: the file, for messages.
        sizes: the number of tensors in each set, by its name; not empty.
        otherwise: another remedy than choosing a set, as the end of a hint; None for saving the set alone, which
            serves where a checkpoint is named without --weights, as in --base and experts.init.
    Raises:
        UsageError: the set asked for does not exist.
        CheckpointError: there are several, and none was asked for.
    """
    if wanted is not None and (within := [name for name in sizes if _is_in(wanted, name)]):
        return max(within, key=len)
    listed = [f"{name}: {counted(size, 'tensor')}" for name, size in sizes.items()]
    if len(sizes) == 1:
        return next(iter(sizes))
    if wanted is not None:
        raise UsageError(
            f"--weights {wanted}: '{path}' has no such set of weights", items=listed, hint="name one of these"
        )
    example = next((name for name in sizes if is_average(name)), next(iter(sizes)))
    alone = f"or save it alone: glue mix --alpha 1 --weights {example} '{path}' -o alone.safetensors"
    raise CheckpointError(
        f"'{path}' holds several sets of weights",
        items=listed,
        hint=f"choose one with --weights, such as --weights {example}; {otherwise or alone}",
    )


def _is_in(wanted: str, name: str) -> bool:
    """Tell whether what is asked for is a set, or a part of it, as `ema.ema_model` of `ema`."""
    return wanted == name or wanted.startswith(f"{name}.")


def choose_by_prefix(checkpoint: Checkpoint, wanted: str | None) -> Checkpoint:
    """Choose one set of weights if a checkpoint also holds an average of them: `ema.w` besides `model.w`.

    Args:
        wanted: the set to choose; `WHOLE` if both are parts of one model; None is an error if there are several. In a
            set of a file with several ones, the names of both, with a dot between.
    Raises:
        UsageError, CheckpointError: as `choose_set`.
    """
    sets = _sets_by_prefix(checkpoint.entries)
    alike = [
        (name, other)
        for name in sorted(sets.keys() & _PREFIXES)
        for other, entries in sets.items()
        if other not in _PREFIXES and _share_alike(sets[name], entries) >= _ALIKE
    ]
    if not alike:
        if checkpoint.weights and wanted not in (None, checkpoint.weights):
            raise UsageError(
                f"--weights {wanted}: the set '{checkpoint.weights}' of '{checkpoint.path}' has no sets in it",
                hint=f"take it whole: --weights {checkpoint.weights}",
            )
        return checkpoint
    names = dict.fromkeys(name for pair in alike for name in reversed(pair))
    outer = f"{checkpoint.weights}." if checkpoint.weights else ""
    if wanted == f"{outer}{WHOLE}":
        return replace(checkpoint, weights=wanted)
    named = {f"{outer}{name}": sets[name] for name in names}
    inner = None if wanted == checkpoint.weights else wanted
    chosen = choose_set(
        checkpoint.path, {name: len(own) for name, own in named.items()}, inner, _OR_WHOLE % f"{outer}{WHOLE}"
    )
    entries = {name: entry._replace(name=name) for name, entry in named[chosen].items()}
    return replace(checkpoint, entries=entries, weights=chosen)


def _sets_by_prefix(entries: Mapping[str, TensorEntry]) -> dict[str, dict[str, TensorEntry]]:
    """Group the tensors by the first part of their names; in each group, they are named by the rest.

    An average by torch's `AveragedModel` has the part `module` and a counter besides, which are left out.
    """
    sets: dict[str, dict[str, TensorEntry]] = {}
    for name, entry in entries.items():
        prefix, dot, rest = name.partition(".")
        if dot:
            sets.setdefault(prefix, {})[rest] = entry
    for prefix, own in sets.items():
        if prefix in _PREFIXES and _COUNTER in own:
            sets[prefix] = {rest.removeprefix("module."): entry for rest, entry in own.items() if rest != _COUNTER}
    return sets


def _share_alike(average: Mapping[str, TensorEntry], weights: Mapping[str, TensorEntry]) -> float:
    n_alike = sum((other := weights.get(name)) is not None and other.shape == e.shape for name, e in average.items())
    return n_alike / len(average) if average else 0.0


def check_any_has(checkpoints: Sequence[Checkpoint], wanted: str | None) -> None:
    """Check that at least one file has several sets of weights if one was asked for by name.

    Raises:
        UsageError: no file has several.
    """
    if wanted is not None and not any(checkpoint.weights for checkpoint in checkpoints):
        items = [str(checkpoint.path) for checkpoint in checkpoints]
        raise UsageError(
            f"--weights {wanted}: none of these files has several sets of weights", items=items, hint="leave it out"
        )
