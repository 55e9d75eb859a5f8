"""Whether a model and the data fit each other, by a forward pass over a few examples."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from glue_cli.data.dataset import Dataset, Ragged
from glue_cli.data.loader import Examples
from glue_cli.foundation.errors import DataError, GlueError, SpecError
from glue_cli.foundation.memory import is_out_of_memory
from glue_cli.models.libraries.faults import reason_of
from glue_cli.running.device import Compute
from glue_cli.running.forward import Batch, Inputs, outputs_of
from glue_cli.running.losses import Loss
from glue_cli.search.protocol import Blends


@torch.no_grad()
def check_fits_data(model: nn.Module, examples: Examples, loss: Loss, where: str) -> None:
    """Check that the model takes the data's inputs and has an output for each label, on two examples.

    Raises:
        SpecError: it does not take the inputs, or its outputs have another shape than the targets.
        DataError: a label is out of range, or a token is not in the model's vocabulary.
    """
    was_training = model.training
    model.eval()
    try:
        on_cpu = Compute(torch.device("cpu"))
        _check(model, on_cpu, lambda batch: outputs_of(model, batch[0]), examples, loss, where)
    finally:
        model.train(was_training)


def check_blends_fit_data(blends: Blends, examples: Examples, loss: Loss, where: str) -> None:
    """As `check_fits_data`, for the uniform blend."""
    uniform = torch.full((1, blends.n_groups, blends.n_experts), 1 / blends.n_experts, dtype=torch.float64)

    def forward(batch: Batch) -> Tensor:
        ((outputs, _),) = blends.outputs(uniform, [batch], 0)
        return outputs

    _check(blends.model, blends.compute, forward, examples, loss, where)


def _check(
    model: nn.Module,
    compute: Compute,
    forward: Callable[[Batch], Tensor],
    examples: Examples,
    loss: Loss,
    where: str,
) -> None:
    _check_tokens(model, examples.dataset, where)
    inputs, targets = next(examples.on(compute).in_order(2))
    try:
        outputs = forward((inputs, targets))
    except GlueError:
        raise
    except Exception as error:  # a model from outside glue may raise anything
        if is_out_of_memory(error):
            raise
        raise SpecError(
            f"the model does not take the data's inputs {_shape_of(inputs)}: {reason_of(error)}",
            hint="set model.args to fit the data",
        ) from error
    if loss == "mse":
        if outputs.shape[1:].numel() != targets.shape[1:].numel():
            raise SpecError(
                f"the model's outputs are {list(outputs.shape)}, the targets {list(targets.shape)}",
                hint="set model.args.num_classes to the numbers that an example's target has",
            )
        return
    if outputs.dim() != targets.dim() + 1 or outputs.shape[:-1] != targets.shape:
        raise SpecError(
            f"the model's outputs are {list(outputs.shape)}, wanted {[*targets.shape, 'classes']}",
            hint="set model.arch to a model with a head for the task",
        )
    labels = examples.dataset.labels
    if labels is None:
        return
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= outputs.shape[1]:
        raise DataError(
            f"labels out of range in '{where}': found {lowest} to {highest}, the model has {outputs.shape[1]} outputs",
            hint="set model.args.num_classes, or mend the labels",
        )


def _check_tokens(model: nn.Module, dataset: Dataset, where: str) -> None:
    """Check that a model of transformers knows every token of a data set of texts."""
    get_embeddings: Any = getattr(model, "get_input_embeddings", None)
    if not isinstance(dataset.inputs, Ragged) or get_embeddings is None:
        return
    highest, n_tokens = int(dataset.inputs.values.max()), len(get_embeddings().weight)
    if highest >= n_tokens:
        raise DataError(
            f"the tokenizer gives token {highest:,} for '{where}', the model's vocabulary has {n_tokens:,} tokens",
            hint="use the tokenizer that the model was made with",
        )


def _shape_of(inputs: Inputs) -> str:
    if isinstance(inputs, Mapping):
        return ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in inputs.items())
    return str(list(inputs.shape))
