"""Models and their weights: built from the spec, filled from checkpoints."""

from collections.abc import Mapping

import torch
from torch import nn

from glue_cli.core.checkpoint import Checkpoint, read_checkpoint
from glue_cli.core.compatibility import FLOAT_DTYPES
from glue_cli.core.device import Compute
from glue_cli.core.errors import CheckpointError, DataError, GlueError, SpecError
from glue_cli.core.forward import Inputs, outputs_of
from glue_cli.core.losses import Loss
from glue_cli.core.seeds import derive_seed
from glue_cli.core.spec import Spec
from glue_cli.core.tensors import FILE_DTYPES, read_tensors
from glue_cli.models import build_model
from glue_cli.workflows.examples import Examples


def initial_model(spec: Spec, expert: int | None = None) -> nn.Module:
    """Return the model that training starts from: the experts' shared start, an expert's own, or a pretrained one.

    Args:
        expert: the expert's number; None for training from scratch.
    """
    init = spec.experts.init if spec.experts else "shared"
    if init == "shared":
        return build_model(spec.model.arch, spec.model.args, seed=derive_seed(spec.seed, "init"))
    if init == "independent":
        purpose = ("init", "scratch" if expert is None else expert)
        return build_model(spec.model.arch, spec.model.args, seed=derive_seed(spec.seed, *purpose))
    return load_model(spec, read_checkpoint(spec.path(init)))


def load_model(spec: Spec, checkpoint: Checkpoint) -> nn.Module:
    """Return the spec's model with a checkpoint's weights.

    Raises:
        CheckpointError: the checkpoint does not fit the model; every difference is listed.
    """
    model = build_model(spec.model.arch, spec.model.args, seed=0)
    check_fits_model(model, checkpoint, spec)
    tensors = read_tensors(checkpoint)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(f"{checkpoint.path}: '{name}' has NaN or infinity", hint="train it again")
    model.load_state_dict(tensors)
    return model


def check_fits_model(model: nn.Module, checkpoint: Checkpoint, spec: Spec) -> None:
    """Check that a checkpoint has the tensors that the spec's model has, from its header alone.

    Raises:
        CheckpointError: with every difference.
    """
    wanted = model.state_dict()
    items = []
    for name, tensor in wanted.items():
        entry = checkpoint.entries.get(name)
        if entry is None:
            items.append(f"'{name}' is missing")
        elif entry.shape != tuple(tensor.shape):
            items.append(f"'{name}' is {list(entry.shape)}, the model has {list(tensor.shape)}")
        elif entry.dtype not in (FLOAT_DTYPES if tensor.is_floating_point() else (FILE_DTYPES[tensor.dtype],)):
            items.append(f"'{name}' is {entry.dtype}, the model has {FILE_DTYPES[tensor.dtype]}")
    items += [f"'{name}' is not in the model" for name in checkpoint.entries if name not in wanted]
    if items:
        raise CheckpointError(
            f"'{checkpoint.path}' does not fit the spec's model '{spec.model.arch}'",
            items=items,
            hint="set model.arch and model.args to what the checkpoint was trained as",
        )


@torch.no_grad()
def check_fits_data(model: nn.Module, examples: Examples, loss: Loss, where: str) -> None:
    """Check that the model takes the data's inputs and has an output for each label, on two examples.

    Raises:
        SpecError: it does not take the inputs, or its outputs have another shape than the targets.
        DataError: a label is out of range.
    """
    was_training = model.training
    model.eval()
    inputs, targets = next(examples.on(Compute(torch.device("cpu"))).in_order(2))
    try:
        outputs = outputs_of(model, inputs)
    except GlueError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        message = str(error).strip().splitlines()[0]
        raise SpecError(
            f"the model does not take the data's inputs {_shape_of(inputs)}: {message}",
            hint="set model.args to fit the data",
        ) from error
    finally:
        model.train(was_training)
    if loss == "mse":
        if outputs.shape[1:].numel() != targets.shape[1:].numel():
            raise SpecError(
                f"the model's outputs are {list(outputs.shape)}, the targets {list(targets.shape)}",
                hint="set model.args.num_classes to the numbers that an example's target has",
            )
        return
    labels = examples.dataset.targets
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= outputs.shape[1]:
        raise DataError(
            f"labels out of range in '{where}': found {lowest} to {highest}, the model has {outputs.shape[1]} outputs",
            hint="set model.args.num_classes, or mend the labels",
        )


def _shape_of(inputs: Inputs) -> str:
    if isinstance(inputs, Mapping):
        return ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in inputs.items())
    return str(list(inputs.shape))
