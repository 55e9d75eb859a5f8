"""Whether a model and the data fit each other, by a forward pass over a few examples."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from glue_cli.data.dataset import Dataset, Ragged
from glue_cli.data.loader import Examples
from glue_cli.foundation.errors import DataError, GlueError, SpecError
from glue_cli.foundation.memory import is_out_of_memory
from glue_cli.foundation.progress import Noted, Progress, silent
from glue_cli.models.libraries.faults import reason_of
from glue_cli.models.libraries.transformers_names import is_of_transformers
from glue_cli.models.tasks import has_loss, no_loss_for
from glue_cli.running.device import Compute
from glue_cli.running.forward import Batch, Inputs, outputs_of
from glue_cli.running.losses import Loss
from glue_cli.search.points import uniform_alpha
from glue_cli.search.protocol import Blends

# Of transformers' problem_type, those that are no choice between classes -> what an example has then, and what to do.
_AS_NUMBERS = "set loss: mse, and read the numbers as data.columns: {target: NAME}, with format: huggingface; "
_NO_CLASSES = {"multi_label_classification": ("several labels an example", ""), "regression": ("numbers", _AS_NUMBERS)}
_ONE_LABEL = "if it knows one label an example: --set model.args.problem_type=single_label_classification"
KEPT_ELSEWHERE = (
    "blends fill the parameters and buffers that the model's modules hold: let forward take them from there alone, and"
    " let no layer change them in eval() or train(), or keep functions, views or copies of them"
)
# How much of a change the outputs before it may show: rounding shows less, a model that sees it shows more.
_SEEN = 1e-3
_OFF_ONE = 1e-2  # probabilities in bfloat16 sum to 1 within this


@torch.no_grad()
def check_fits_data(model: nn.Module, examples: Examples, loss: Loss, where: str, progress: Progress = silent) -> None:
    """Check that the model takes the data's inputs and has an output for each label, on two examples.

    Args:
        progress: is told where cross entropy is given probabilities; silent where another check of the same model is.
    Raises:
        SpecError: it does not take the inputs, or its outputs have another shape than the targets.
        DataError: a label is out of range, or a token is not in the model's vocabulary.
    """
    was_training = model.training
    model.eval()
    try:
        on_cpu = Compute(torch.device("cpu"))
        _check(model, on_cpu, lambda batch: outputs_of(model, batch[0]), examples, loss, where, progress)
    finally:
        model.train(was_training)


@torch.no_grad()
def warn_of_neighbours(model: nn.Module, examples: Examples, progress: Progress) -> None:
    """Warn where an example has other outputs beside others: padding that is not masked, statistics of the batch."""
    inputs = examples.dataset.inputs
    if isinstance(examples.dataset.targets, Ragged):
        return  # targets by token end where their text does
    if isinstance(inputs, Ragged):
        short, long = inputs.lengths.argmin(), inputs.lengths.argmax()
        if inputs.lengths[short] == inputs.lengths[long]:
            return
        batches_of, why = ([short], [short, long]), "does not mask padding"
    elif len(examples) > 2:
        first, second, third = torch.arange(3)
        batches_of, why = ([first, second], [first, third]), "lets examples see each other"
    else:
        return
    was_training = model.training
    model.eval()
    batches = examples.on(Compute(torch.device("cpu")))
    one, other = (_first_output(model, batches.pick(torch.stack(rows))) for rows in batches_of)
    model.train(was_training)
    off, largest = (one - other).abs().max().item(), one.abs().max().item()
    if off > _SEEN * largest:
        text = f"the model {why}: outputs of {largest:.2g} change by {off:.2g} beside another"
        progress(Noted(f"{text}, so that figures depend on which examples share a batch", warning=True))


def _first_output(model: nn.Module, batch: Batch) -> Tensor:
    """Return the first example's outputs, float32, by the same random numbers whatever the batch."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return outputs_of(model, batch[0])[0].float()


def check_blends_fit_data(
    blends: Blends, examples: Examples, loss: Loss, where: str, progress: Progress = silent
) -> None:
    """As `check_fits_data`, for the uniform blend."""
    uniform = uniform_alpha(blends.n_groups, blends.n_experts)[None]

    def forward(batch: Batch) -> Tensor:
        ((outputs, _),) = blends.outputs(uniform, [batch], 0)
        return outputs

    _check(blends.model, blends.compute, forward, examples, loss, where, progress)


def _check(
    model: nn.Module,
    compute: Compute,
    forward: Callable[[Batch], Tensor],
    examples: Examples,
    loss: Loss,
    where: str,
    progress: Progress,
) -> None:
    _check_tokens(model, examples.dataset, where)
    outputs = _check_outputs(model, compute, forward, examples, loss, 2)
    if 2 in outputs.shape[1:] and len(examples) > 2:  # else an axis may be taken for that of the examples
        _check_outputs(model, compute, forward, examples, loss, 3)
    if loss == "cross_entropy" and (labels := examples.dataset.labels) is not None:
        _check_labels(model, labels, outputs.shape[1], _key_of_outputs(model), where)
    if loss == "cross_entropy" and _are_probabilities(outputs):
        text = (
            "the outputs look like probabilities, and cross entropy takes logits: leave the softmax out of the model"
        )
        progress(Noted(text, warning=True))


def _are_probabilities(outputs: Tensor) -> bool:
    """Tell whether outputs [..., n] of two classes or more are all within [0, 1] and sum to 1, within rounding."""
    are_within = outputs.shape[-1] > 1 and bool(outputs.min() >= 0)  # what sums to 1 then has no more than 1
    return are_within and bool((outputs.float().sum(-1) - 1).abs().max() <= _OFF_ONE)


def _check_outputs(
    model: nn.Module,
    compute: Compute,
    forward: Callable[[Batch], Tensor],
    examples: Examples,
    loss: Loss,
    n_examples: int,
) -> Tensor:
    """Return a model's outputs for a few examples, checked; of those whose tokens are predicted, for one."""
    predicts_tokens = isinstance(examples.dataset.targets, Ragged)
    inputs, targets = next(examples.on(compute).in_order(1 if predicts_tokens else n_examples))
    is_causal = predicts_tokens and not examples.dataset.has_decoder
    if is_causal:
        inputs, targets = _with_another_half(inputs, targets)
    try:
        outputs = forward((inputs, targets))
    except GlueError:
        raise
    except Exception as error:  # a model from outside glue may raise anything
        if is_out_of_memory(error):
            raise
        raise SpecError(
            f"the model does not take the data's inputs {_shape_of(inputs)}: {reason_of(error)}",
            hint=_hint_for(model, inputs, error),
        ) from error
    if loss == "mse":
        _check_numbers(outputs, targets, _key_of_outputs(model))
        return outputs
    if outputs.dim() != targets.dim() + 1 or outputs.shape[:-1] != targets.shape:
        raise SpecError(
            f"the model's outputs are {list(outputs.shape)}, wanted {[*targets.shape, 'classes']}",
            hint=_hint_for_shape(model, outputs, targets, predicts_tokens=predicts_tokens),
        )
    name = type(model).__name__
    if is_causal and (name.endswith("ForMaskedLM") or _sees_what_follows(outputs)):
        raise SpecError(
            f"the {name} sees the tokens that it is to predict, so its loss on them says nothing",
            hint="texts without labels are for causal language models; others, such as masked ones, need labels",
        )
    return outputs


def _hint_for_shape(model: nn.Module, outputs: Tensor, targets: Tensor, *, predicts_tokens: bool) -> str:
    if lacking := _lacks_loss(model):
        return lacking
    if predicts_tokens and outputs.dim() == 2:
        return "a model of classes needs labels: name their column in data.columns"
    if targets.dim() == 1 and outputs.dim() == 3:
        return "a language model reads texts without labels: leave their column out of the data"
    return "set model.arch to a model with a head for the task"


def _lacks_loss(model: nn.Module) -> str | None:
    """Return what to tell of a model of transformers that glue has no loss for; None for any other."""
    name = type(model).__name__
    return no_loss_for(name) if is_of_transformers(model) and not has_loss(name) else None


def _key_of_outputs(model: nn.Module) -> str:
    """Return the key of the spec that sets the number of outputs."""
    return f"model.args.{'num_labels' if is_of_transformers(model) else 'num_classes'}"


def _check_numbers(outputs: Tensor, targets: Tensor, n_outputs: str) -> None:
    """Check that outputs and targets [N, ...] are as many numbers, in one order: but for ones, or flattened.

    Args:
        n_outputs: `_key_of_outputs`.
    """
    one, other = ([n for n in tensor.shape[1:] if n != 1] for tensor in (outputs, targets))
    is_flat = min(len(one), len(other)) <= 1
    are_as_many = outputs.shape[1:].numel() == targets.shape[1:].numel()
    if outputs.shape[:1] != targets.shape[:1] or (one != other and not (is_flat and are_as_many)):
        hint = f"set {n_outputs} to the numbers that an example's target has; for classes, read the column as "
        hint += "data.columns: {label: NAME}, with loss: cross_entropy"
        raise SpecError(
            f"the model's outputs are {list(outputs.shape)}, the targets {list(targets.shape)}",
            hint="bring the axes into one order in forward, or in the data" if are_as_many else hint,
        )


def _check_labels(model: nn.Module, labels: Tensor, n_classes: int, n_outputs: str, where: str) -> None:
    """Check that each label has an output, in a model of one label an example; `n_outputs` as above."""
    problem_type = getattr(getattr(model, "config", None), "problem_type", None)
    if problem_type in _NO_CLASSES:
        made_for, instead = _NO_CLASSES[problem_type]
        raise SpecError(
            f"the model was made for {made_for} ({problem_type}), and cross entropy is for one label an example",
            hint=instead + _ONE_LABEL,
        )
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= n_classes:
        raise DataError(
            f"labels out of range in '{where}': found {lowest} to {highest}, the model has {n_classes} outputs",
            hint="for a regression, read them as data.columns: {target: NAME}, with format: huggingface and loss: mse"
            if n_classes == 1
            else f"set {n_outputs}, or mend the labels",
        )


def _with_another_half(inputs: Inputs, targets: Tensor) -> tuple[Inputs, Tensor]:
    """Return a text twice, with other tokens in its second half the second time."""
    assert isinstance(inputs, Mapping)
    twice = {name: tensor.expand(2, *tensor.shape[1:]).clone() for name, tensor in inputs.items()}
    first, second = twice["input_ids"][0, 0], twice["input_ids"][1]
    half = second[len(second) // 2 :]
    half.copy_(torch.where(half != first, first, (first == 0).long()))
    return twice, targets.expand(2, *targets.shape[1:])


def _sees_what_follows(outputs: Tensor) -> bool:
    """Tell whether the change of the second half has changed the outputs of the first, [2, T, n_tokens]."""
    change = (outputs[0].float() - outputs[1].float()).abs().amax(1)
    n = len(change) // 2
    return bool(change[:n].max() > _SEEN * change[n:].max())


def _hint_for(model: nn.Module, inputs: Inputs, error: Exception) -> str:
    """Return what to do about a model that does not take the data's inputs."""
    name = type(model).__name__
    if lacking := _lacks_loss(model):
        return lacking
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False) and "labels" not in inputs:
        return f"a {name} needs texts and what to write of each: data.columns: {{prompt: NAME, completion: NAME}}"
    longest = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if isinstance(inputs, Mapping) and isinstance(longest, int) and inputs["input_ids"].shape[1] > longest:
        return f"the model takes texts of at most {longest:,} tokens: set data.max_length"
    if "meta" in str(error):  # where a search's model has no values but those that it is filled with
        return KEPT_ELSEWHERE
    if "padding token" in str(error):
        return "say which token fills short texts: --set model.args.pad_token_id=NUMBER"
    if "dtype" in str(error) or "Double" in str(error) or "BFloat16" in str(error):
        return "a search computes in float32: let forward cast its inputs to the dtype of the parameters"
    if isinstance(inputs, Tensor) and inputs.dim() == 4 and inputs.shape[1] in (1, 3):
        read = "image-folder reads every image in colour, huggingface in grey where all of a split are grey"
        return f"set model.args to fit the data, or bring the images to the model's channels: {read}"
    return "set model.args to fit the data"


def _check_tokens(model: nn.Module, dataset: Dataset, where: str) -> None:
    """Check that a model of transformers knows every token of a data set of texts."""
    if not isinstance(dataset.inputs, Ragged) or (embeddings := _embeddings(model)) is None:
        return
    tokens = [dataset.inputs, *([dataset.targets] if isinstance(dataset.targets, Ragged) else [])]
    highest, n_tokens = max(int(rows.values.max()) for rows in tokens), len(embeddings.weight)
    if highest >= n_tokens:
        raise DataError(
            f"the tokenizer gives token {highest:,} for '{where}', the model's vocabulary has {n_tokens:,} tokens",
            hint="use the tokenizer that the model was made with",
        )


def _embeddings(model: nn.Module) -> Any:
    """Return the table that a model looks its tokens up in; None if it has none, such as one of characters."""
    with suppress(AttributeError, NotImplementedError):
        found: Any = model.get_input_embeddings()  # type: ignore[operator]
        return found if hasattr(found, "weight") else None
    return None


def _shape_of(inputs: Inputs) -> str:
    if isinstance(inputs, Mapping):
        return ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in inputs.items())
    return str(list(inputs.shape))
