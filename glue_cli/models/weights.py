"""Build the spec's model and load weights from checkpoints into it."""

import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from glue_cli.checkpoints.header import FLOAT_DTYPES, Checkpoint
from glue_cli.checkpoints.naming import Naming, Source
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.tensors import read_tensors
from glue_cli.foundation.batchnorm_names import is_statistic
from glue_cli.foundation.errors import CheckpointError
from glue_cli.foundation.progress import Noted, Progress, silent
from glue_cli.foundation.seeds import derive_seed
from glue_cli.foundation.units import listed
from glue_cli.models import build_model
from glue_cli.models.backbone import backbone_of
from glue_cli.models.head_rows import plan_head_start
from glue_cli.models.matching import list_differences, list_missing, match_names, tensor_fits
from glue_cli.models.own_folder import build_from, own_folder
from glue_cli.models.tied import check_tied
from glue_cli.spec.schema import Spec

_MOST = 6  # names in a note
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")  # of a layer, a part of a name for itself
# What may be fresh of the backbone's weights after a pretrained start: a pooler or a few embeddings, not layers.
_MOST_FRESH = 0.1


def initial_model(
    spec: Spec, expert: int | None = None, *, class_names: Sequence[str] | None = None, progress: Progress = silent
) -> nn.Module:
    """Return the model that training starts from: the experts' shared start, an expert's own, or a pretrained one.

    Args:
        expert: the expert's number; None for training from scratch.
        class_names: of the data, whose classes the rows of a pretrained head become; None where they have none.
        progress: hears which tensors of a pretrained start are fresh.
    Raises:
        CheckpointError: the pretrained checkpoint lacks more than a tenth of the backbone; every difference is listed.
    """
    if spec.experts and spec.experts.init == "independent":
        return _build(spec, derive_seed(spec.seed, "init", "scratch" if expert is None else expert))
    model = _build(spec, derive_seed(spec.seed, "init"))
    if spec.start_of_experts:
        _start_from(model, read_checkpoint(spec.start_of_experts), spec, class_names, progress)
    return model


def load_model(spec: Spec, checkpoint: Checkpoint) -> nn.Module:
    """Return the spec's model with a checkpoint's weights.

    Raises:
        CheckpointError: the checkpoint does not fit the model; every difference is listed. Or what it ties differs.
    """
    model = _build(spec, seed=0)
    naming = check_fits_model(model, checkpoint, spec)
    check_tied(model, naming, checkpoint)
    _load(model, checkpoint, naming)
    return model


def constant_buffers(model: nn.Module) -> frozenset[str]:
    """Return the names of a model's buffers that training leaves alone; masks among them may hold infinities."""
    return frozenset(name for name, _ in model.named_buffers(remove_duplicate=False) if not is_statistic(name))


def check_fits_model(model: nn.Module, checkpoint: Checkpoint, spec: Spec) -> Naming:
    """Check from its header that a checkpoint has the tensors of the spec's model; return which tensor is which.

    Raises:
        CheckpointError: it does not have them; every difference is listed.
    """
    naming = match_names(model, checkpoint)
    items = list_differences(model, checkpoint, naming)
    if items:
        raise CheckpointError(
            f"'{checkpoint.path}' does not fit the spec's model '{spec.model.arch}'",
            items=items,
            hint=build_from(spec, own)
            if (own := own_folder(spec, checkpoint))
            else "set model.arch and model.args to the model that the checkpoint was trained with",
        )
    return naming


def _build(spec: Spec, seed: int) -> nn.Module:
    return build_model(spec.model.arch, spec.model_args, seed=seed, folder=spec.path("."))


def _start_from(
    model: nn.Module, checkpoint: Checkpoint, spec: Spec, class_names: Sequence[str] | None, progress: Progress
) -> None:
    """Load what fits of a pretrained checkpoint; the rest stays as it is, and is said."""
    tensors = model.state_dict(keep_vars=True)
    naming = match_names(model, checkpoint)
    fitting = {name: s for name, s in naming.sources.items() if tensor_fits(tensors[name], s.entry(checkpoint))}
    head = plan_head_start(model, checkpoint, fitting.keys(), class_names)
    if head.is_fresh:
        fitting = {name: source for name, source in fitting.items() if name not in head.names}
    fresh = list_missing(model, fitting)
    is_backbone = backbone_of(model)
    lacking = [name for name in fresh if is_backbone(name)]
    n_weights = _count(tensor for name, tensor in tensors.items() if is_backbone(name))
    n_fresh = _count(tensors[name] for name in lacking)
    if n_fresh > _MOST_FRESH * n_weights:
        raise CheckpointError(
            f"'{checkpoint.path}' lacks {n_fresh:,} of the {n_weights:,} weights of the backbone of the spec's model"
            f" '{spec.model.arch}', more than {_MOST_FRESH:.0%}",
            items=list_differences(model, checkpoint, naming),
            hint="name another checkpoint in experts.init, or set model.arch and model.args to its model",
        )
    _load(model, checkpoint, Naming(fitting, naming.unused))
    head.sort(tensors)
    if head.note:
        progress(Noted(head.note, warning=head.is_fresh))
    unused = [name for name in naming.unused if checkpoint.entries[name].dtype in FLOAT_DTYPES]
    if lacking:
        share = f"{n_fresh:,} of the {n_weights:,} weights of the backbone, which are fresh"
        progress(Noted(f"'{checkpoint.path}' lacks {share}: {listed(lacking, _MOST)}", warning=True))
    if left := _of_more_layers(unused, fitting.values()):
        text = f"'{checkpoint.path}' has more layers than the spec's model; not used: {listed(left, _MOST)}"
        progress(Noted(text, warning=True))
    notes = [f"; {what}: {listed(names, _MOST)}" for what, names in (("fresh", fresh), ("not used", unused)) if names]
    progress(Noted(f"started from {checkpoint.path}{''.join(notes)}"))


def _of_more_layers(unused: Iterable[str], sources: Iterable[Source]) -> list[str]:
    """Return what is called as something that is used, but for the number of its layer."""
    used = {_NUMBER.sub("", name) for source in sources for name in source.names}
    return [name for name in unused if _NUMBER.sub("", name) in used]


def _count(tensors: Iterable[Tensor]) -> int:
    """Return the number of floating-point elements; those of tied tensors count once."""
    return sum({id(tensor): tensor.numel() for tensor in tensors if tensor.is_floating_point()}.values())


def _load(model: nn.Module, checkpoint: Checkpoint, naming: Naming) -> None:
    """Load a checkpoint's tensors into the model.

    Raises:
        CheckpointError: one is not finite; a constant among the buffers, such as a mask, may have infinities.
    """
    buffers = constant_buffers(model)
    constants = {part for name, source in naming.sources.items() if name in buffers for part in source.names}
    tensors = read_tensors(checkpoint, dict.fromkeys(n for source in naming.sources.values() for n in source.names))
    for name, tensor in tensors.items():
        wrong = torch.isnan(tensor) if name in constants else ~torch.isfinite(tensor)
        if wrong.any():
            raise CheckpointError(f"{checkpoint.path}: '{name}' has {tensor[wrong][0].item()}", hint="train it again")
    model.load_state_dict(naming.in_memory(tensors), strict=False)
