"""Models and their weights: built from the spec, filled from checkpoints."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from glue_cli.checkpoints.header import FLOAT_DTYPES, Checkpoint
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.tensors import read_tensors
from glue_cli.foundation.errors import CheckpointError
from glue_cli.foundation.progress import Noted, Progress, silent
from glue_cli.foundation.seeds import derive_seed
from glue_cli.models import build_model
from glue_cli.models.names import list_differences, match_names, match_pretrained_names, tensor_fits
from glue_cli.spec.schema import Spec

_LISTED = 6  # names in a note


def initial_model(spec: Spec, expert: int | None = None, *, progress: Progress = silent) -> nn.Module:
    """Return the model that training starts from: the experts' shared start, an expert's own, or a pretrained one.

    Args:
        expert: the expert's number; None for training from scratch.
        progress: hears which tensors of a pretrained start are fresh.
    Raises:
        CheckpointError: the pretrained checkpoint has less than half of the model; every difference is listed.
    """
    init = spec.experts.init if spec.experts else "shared"
    if init == "independent":
        return _build(spec, derive_seed(spec.seed, "init", "scratch" if expert is None else expert))
    model = _build(spec, derive_seed(spec.seed, "init"))
    if init != "shared":
        _start_from(model, read_checkpoint(spec.path(init)), spec, progress)
    return model


def load_model(spec: Spec, checkpoint: Checkpoint) -> nn.Module:
    """Return the spec's model with a checkpoint's weights.

    Raises:
        CheckpointError: the checkpoint does not fit the model; every difference is listed.
    """
    model = _build(spec, seed=0)
    check_fits_model(model, checkpoint, spec)
    _load(model, checkpoint, match_names(model, checkpoint))
    return model


def check_fits_model(model: nn.Module, checkpoint: Checkpoint, spec: Spec) -> None:
    """Check that a checkpoint has the tensors that the spec's model has, from its header alone.

    Raises:
        CheckpointError: with every difference.
    """
    items = list_differences(model, checkpoint, match_names(model, checkpoint))
    if items:
        raise CheckpointError(
            f"'{checkpoint.path}' does not fit the spec's model '{spec.model.arch}'",
            items=items,
            hint="set model.arch and model.args to what the checkpoint was trained as",
        )


def _build(spec: Spec, seed: int) -> nn.Module:
    return build_model(spec.model.arch, spec.model.args, seed=seed, folder=spec.path("."))


def _start_from(model: nn.Module, checkpoint: Checkpoint, spec: Spec, progress: Progress) -> None:
    """Load what fits of a pretrained checkpoint; the rest stays as it is."""
    tensors = model.state_dict(keep_vars=True)
    matched = match_pretrained_names(model, checkpoint)
    names = {name: other for name, other in matched.items() if tensor_fits(tensors[name], checkpoint.entries[other])}
    n_weights, n_loaded = _count(tensors.values()), _count(tensors[name] for name in names)
    if 2 * n_loaded < n_weights:
        raise CheckpointError(
            f"'{checkpoint.path}' has {n_loaded:,} of the {n_weights:,} weights of the spec's model"
            f" '{spec.model.arch}', less than half",
            items=list_differences(model, checkpoint, matched),
            hint="name another checkpoint in experts.init, or set model.arch and model.args to what it was trained as",
        )
    _load(model, checkpoint, names)
    fresh = [name for name in tensors if name not in names]
    used = set(matched.values())
    unused = [name for name, entry in checkpoint.entries.items() if name not in used and entry.dtype in FLOAT_DTYPES]
    progress(Noted(f"started from {checkpoint.path}{_listed('fresh', fresh)}{_listed('not used', unused)}"))


def _count(tensors: Iterable[Tensor]) -> int:
    """Return how many floating-point elements there are, those of tied tensors once."""
    return sum({id(tensor): tensor.numel() for tensor in tensors if tensor.is_floating_point()}.values())


def _listed(what: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"; {what}: {', '.join(names[:_LISTED])}{more}" if names else ""


def _load(model: nn.Module, checkpoint: Checkpoint, names: Mapping[str, str]) -> None:
    """Fill the model's tensors with a checkpoint's, whose names are given by the model's.

    Raises:
        CheckpointError: one is not finite.
    """
    tensors = read_tensors(checkpoint)
    for name in dict.fromkeys(names.values()):
        if tensors[name].is_floating_point() and not torch.isfinite(tensors[name]).all():
            raise CheckpointError(f"{checkpoint.path}: '{name}' has NaN or infinity", hint="train it again")
    model.load_state_dict({name: tensors[other] for name, other in names.items()}, strict=False)
