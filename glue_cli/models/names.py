"""Which of a checkpoint's tensors are which of a model's, and what does not fit; from the header alone."""

from collections.abc import Mapping
from itertools import islice
from os.path import commonprefix

from torch import Tensor, nn

from glue_cli.checkpoints.header import FLOAT_DTYPES, Checkpoint, TensorEntry
from glue_cli.checkpoints.tensors import FILE_DTYPES

_NEAR = 0.3  # two names are near when they share so much of the longer one at its beginning and end
_COMPARED = 200  # names on either side: their pairs take half a second, and nobody reads so many


def match_names(model: nn.Module, checkpoint: Checkpoint) -> dict[str, str]:
    """Return the checkpoint's name of each of the model's tensors that it has, by the model's name.

    A tied tensor, which the model has under several names, as a language model's embedding and head, is there when
    one of its names is.
    """
    return _with_tied(model, {name: name for name in model.state_dict() if name in checkpoint.entries})


def match_pretrained_names(model: nn.Module, checkpoint: Checkpoint) -> dict[str, str]:
    """Return what `match_names` does, for a checkpoint of which the model need only be a relative.

    In transformers a model with a head has its backbone under `base_model_prefix`, and the bare backbone has the same
    names without; old files call a LayerNorm's weight and bias gamma and beta.
    """
    prefix = getattr(model, "base_model_prefix", "")
    if not isinstance(prefix, str) or not prefix:
        return match_names(model, checkpoint)

    def plain(name: str) -> str:
        name = name.removeprefix(f"{prefix}.")
        return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")

    by_plain_name = {plain(name): name for name in checkpoint.entries}
    names = model.state_dict()
    return _with_tied(model, {name: by_plain_name[plain(name)] for name in names if plain(name) in by_plain_name})


def tensor_fits(tensor: Tensor, entry: TensorEntry) -> bool:
    """Tell whether a tensor of the model can take its values from a checkpoint's."""
    return entry.shape == tuple(tensor.shape) and entry.dtype in _dtypes_for(tensor)


def list_differences(model: nn.Module, checkpoint: Checkpoint, names: Mapping[str, str]) -> list[str]:
    """Return a line for each tensor that only one side has, or both differently; the nearest names first.

    Args:
        names: the checkpoint's name of a tensor, by the model's.
    """
    wanted = model.state_dict()
    used = set(names.values())
    missing = {name: tensor for name, tensor in wanted.items() if name not in names}
    unused = {name: entry for name, entry in checkpoint.entries.items() if name not in used}
    near = _nearest(missing, unused)
    lines = [
        _misfit(wanted[name], checkpoint.entries[other])
        for name, other in names.items()
        if not tensor_fits(wanted[name], checkpoint.entries[other])
    ]
    lines += [f"'{name}' is missing; the checkpoint has '{other}'" for name, other in near.items()]
    lines += [f"'{name}' is missing" for name in missing if name not in near]
    return lines + [f"'{name}' is not in the model" for name in unused if name not in near.values()]


def _with_tied(model: nn.Module, names: dict[str, str]) -> dict[str, str]:
    """Add the names that are tied to a name which is there."""
    tensors = model.state_dict(keep_vars=True)  # in which tied names have the same object
    found = {id(tensors[name]): other for name, other in names.items()}
    return {name: names.get(name, found[id(tensor)]) for name, tensor in tensors.items() if id(tensor) in found}


def _misfit(tensor: Tensor, entry: TensorEntry) -> str:
    if entry.shape != tuple(tensor.shape):
        return f"'{entry.name}' is {list(entry.shape)}, the model has {list(tensor.shape)}"
    return f"'{entry.name}' is {entry.dtype}, the model has {FILE_DTYPES[tensor.dtype]}"


def _dtypes_for(tensor: Tensor) -> tuple[str, ...]:
    return FLOAT_DTYPES if tensor.is_floating_point() else (FILE_DTYPES[tensor.dtype],)


def _nearest(missing: Mapping[str, Tensor], unused: Mapping[str, TensorEntry]) -> dict[str, str]:
    """Pair missing names with unused ones that are near, each once; the nearest pairs first."""
    pairs = [
        (likeness, name, other)
        for name, tensor in islice(missing.items(), _COMPARED)
        for other, entry in islice(unused.items(), _COMPARED)
        if (likeness := _likeness(name, tensor, entry)) >= _NEAR
    ]
    near: dict[str, str] = {}
    taken: set[str] = set()
    for _, name, other in sorted(pairs, key=lambda pair: -pair[0]):
        if name not in near and other not in taken:
            near[name] = other
            taken.add(other)
    return near


def _likeness(name: str, tensor: Tensor, entry: TensorEntry) -> float:
    """Return how much of the longer name two tensors share at its ends; 0 when their shapes rule them out.

    The first dimension may differ, as that of a head for other classes.
    """
    if entry.shape[1:] != tuple(tensor.shape[1:]):
        return 0.0
    shared = len(commonprefix([name, entry.name])) + len(commonprefix([name[::-1], entry.name[::-1]]))
    is_same_shape = entry.shape == tuple(tensor.shape)
    return shared / max(len(name), len(entry.name)) + 0.01 * is_same_shape  # which decides between equally near names
