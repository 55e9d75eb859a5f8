"""Whether a model and the data fit each other, by a forward pass over a few examples."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from glue_cli.data.dataset import Dataset, Ragged
from glue_cli.data.loader import Examples
from glue_cli.foundation.errors import DataError, GlueError, SpecError
from glue_cli.foundation.memory import is_out_of_memory
from glue_cli.models.libraries.faults import reason_of
from glue_cli.running.device import Compute
from glue_cli.running.forward import Inputs, outputs_of
from glue_cli.running.losses import Loss


@torch.no_grad()
def check_fits_data(model: nn.Module, examples: Examples, loss: Loss, where: str) -> None:
    """Check that the model takes the data's inputs and has an output for each label, on two examples.

    Raises:
        SpecError: it does not take the inputs, or its outputs have another shape than the targets.
        DataError: a label is out of range, or a token is not in the model's vocabulary.
    """
    _check_tokens(model, examples.dataset, where)
    was_training = model.training
    model.eval()
    inputs, targets = next(examples.on(Compute(torch.device("cpu"))).in_order(2))
    try:
        outputs = outputs_of(model, inputs)
    except GlueError:
        raise
    except Exception as error:  # a model from outside glue may raise anything
        if is_out_of_memory(error):
            raise
        raise SpecError(
            f"the model does not take the data's inputs {_shape_of(inputs)}: {reason_of(error)}",
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
