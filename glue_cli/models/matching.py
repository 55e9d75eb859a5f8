"""Match a checkpoint's tensors with a model's, and list what does not fit; only the header is read."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from itertools import islice
from os.path import commonprefix

from torch import Tensor, nn

from glue_cli.checkpoints.header import FLOAT_DTYPES, Checkpoint, TensorEntry
from glue_cli.checkpoints.naming import Naming, Source
from glue_cli.checkpoints.spelling import align_names
from glue_cli.checkpoints.tensors import FILE_DTYPES
from glue_cli.foundation.batchnorm_names import COUNTER
from glue_cli.models.libraries.transformers_names import (
    is_of_transformers,
    may_be_missing,
    name_tensors,
    names_on_disk,
)
from glue_cli.models.tensors import tensors_of

# Tensors beside a model's: the weights of a loss by classes, the counter of torch's AveragedModel, sums of metrics.
_BESIDE = re.compile(r"(criterion|criteria|loss\w*|\w*_loss|pos_weight|class_weights?|n_averaged|\w*_metrics?)(\.|$)")
_NEAR = 0.3  # two names are similar if their common beginning and end make up this share of the longer name
_COMPARED = 200  # the most names compared on either side: all pairs take half a second, and nobody reads more


def match_names(model: nn.Module, checkpoint: Checkpoint) -> Naming:
    """Find a model's tensors in a checkpoint.

    For a model of transformers, these are the tensors that the library itself loads; for any other model, those with
    the model's names. If some are missing then, the checkpoint's names are also tried in other spellings: without the
    prefixes of wrappers, and with the names of the model's parametrisations. A tied tensor, which the model has under
    several names (such as a language model's embedding and head), is found if the checkpoint has one of these names.
    Where nothing is missing, the weights of a loss, which a training module keeps beside the model, are passed over.

    Raises:
        SpecError: glue does not support the installed version of transformers.
    """
    naming = _match(model, checkpoint)
    if len(naming.sources) < len(tensors_of(model)):
        return naming
    return replace(naming, unused=tuple(name for name in naming.unused if not _BESIDE.match(name)))


def _match(model: nn.Module, checkpoint: Checkpoint) -> Naming:
    names = tensors_of(model)
    naming = _with_tied(model, _name_tensors(model, checkpoint.entries))
    if len(naming.sources) == len(names):
        return naming
    spelling = align_names(checkpoint.entries, _names_on_disk(model))
    written = {spelling.get(name, name): name for name in checkpoint.entries}
    if len(written) < len(checkpoint.entries):
        return naming
    respelled = _with_tied(model, _name_tensors(model, written)).respelled(written)
    return max(naming, respelled, key=lambda either: len(either.sources))  # the first if both have equally many


def _name_tensors(model: nn.Module, names: Iterable[str]) -> Naming:
    if is_of_transformers(model):
        return name_tensors(model, names)
    wanted = tensors_of(model)
    present = dict.fromkeys(names)
    sources = {name: Source((name,)) for name in wanted if name in present}
    return Naming(sources, tuple(name for name in present if name not in wanted))


def _names_on_disk(model: nn.Module) -> Collection[str]:
    """Return the names that a model's tensors have in a checkpoint."""
    tensors = {name: tensor.to("meta") for name, tensor in tensors_of(model).items()}
    return names_on_disk(model, tensors) if is_of_transformers(model) else tensors


def _with_tied(model: nn.Module, naming: Naming) -> Naming:
    """Add all names that are tied to a name with a source, in the model's order."""
    tensors = model.state_dict(keep_vars=True)  # tied names have the same tensor object
    by_tensor = {id(tensors[name]): source for name, source in naming.sources.items()}
    sources = {
        name: naming.sources.get(name, by_tensor[id(tensor)])
        for name, tensor in tensors.items()
        if id(tensor) in by_tensor
    }
    return Naming(sources, naming.unused)


def tensors_on_disk(model: nn.Module, tensors: Mapping[str, Tensor], start: Checkpoint | None) -> dict[str, Tensor]:
    """Return a model's tensors with the names under which they are written to a file.

    Args:
        tensors: with the model's names.
        start: the checkpoint that the model was loaded from, whose names are kept; None if there is none.
    """
    if is_of_transformers(model):
        return names_on_disk(model, tensors, start.entries if start else None)
    if start is None:
        return dict(tensors)
    naming = match_names(model, start)
    return {**naming.on_disk(tensors), **{n: tensor for n, tensor in tensors.items() if n not in naming.sources}}


def tensor_fits(tensor: Tensor, entry: TensorEntry | None) -> bool:
    """Tell whether a tensor of the model can be loaded from this entry of a checkpoint; None never fits."""
    return entry is not None and entry.shape == tuple(tensor.shape) and entry.dtype in _dtypes_for(tensor)


def list_missing(model: nn.Module, found: Collection[str]) -> list[str]:
    """Return the model's tensors that are not among those found, and that it needs.

    A BatchNorm's counter of batches may be missing: torch before 0.4.1 had none, and nothing is computed from it. So
    may what transformers itself does without, such as a Swin's last norm where only its feature maps are used.
    """
    missing = [name for name in tensors_of(model) if name not in found and not name.endswith(COUNTER)]
    return [name for name in missing if not (is_of_transformers(model) and may_be_missing(model, name))]


def list_differences(model: nn.Module, checkpoint: Checkpoint, naming: Naming) -> list[str]:
    """Return a line for each tensor that only one side has, or both differently; the nearest names first."""
    wanted = tensors_of(model)
    missing = {name: wanted[name] for name in list_missing(model, naming.sources)}
    unused = {name: checkpoint.entries[name] for name in naming.unused}
    near = _nearest(missing, unused)
    lines = []
    for name, source in naming.distinct():
        entry = source.entry(checkpoint)
        if entry is None:
            lines.append(f"'{name}' cannot be made from '{source.names[0]}' and {len(source.names) - 1} more")
        elif not tensor_fits(wanted[name], entry):
            lines.append(_misfit(wanted[name], entry, name if source.make else entry.name))
    lines += [f"'{name}' is missing; the checkpoint has '{other}'" for name, other in near.items()]
    lines += [f"'{name}' is missing" for name in missing if name not in near]
    return lines + [f"'{name}' is not in the model" for name in unused if name not in near.values()]


def _misfit(tensor: Tensor, entry: TensorEntry, name: str) -> str:
    if entry.shape != tuple(tensor.shape):
        return f"'{name}' is {list(entry.shape)}, the model has {list(tensor.shape)}"
    return f"'{name}' is {entry.dtype}, the model has {FILE_DTYPES[tensor.dtype]}"


def _dtypes_for(tensor: Tensor) -> tuple[str, ...]:
    return FLOAT_DTYPES if tensor.is_floating_point() else (FILE_DTYPES[tensor.dtype],)


def _nearest(missing: Mapping[str, Tensor], unused: Mapping[str, TensorEntry]) -> dict[str, str]:
    """Pair each missing name with a similar unused one, if there is one; the most similar pairs are made first."""
    pairs = [
        (similarity, name, other)
        for name, tensor in islice(missing.items(), _COMPARED)
        for other, entry in islice(unused.items(), _COMPARED)
        if (similarity := _similarity(name, tensor, entry)) >= _NEAR
    ]
    near: dict[str, str] = {}
    taken: set[str] = set()
    for _, name, other in sorted(pairs, key=lambda pair: -pair[0]):
        if name not in near and other not in taken:
            near[name] = other
            taken.add(other)
    return near


def _similarity(name: str, tensor: Tensor, entry: TensorEntry) -> float:
    """Return the share of the longer name that the common beginning and end make up; 0 if the shapes do not fit.

    The first dimension may differ, like that of a head for another number of classes.
    """
    if entry.shape[1:] != tuple(tensor.shape[1:]):
        return 0.0
    shared = len(commonprefix([name, entry.name])) + len(commonprefix([name[::-1], entry.name[::-1]]))
    is_same_shape = entry.shape == tuple(tensor.shape)
    return shared / max(len(name), len(entry.name)) + 0.01 * is_same_shape  # decides between equally similar names
