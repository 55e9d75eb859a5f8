"""Figures of a model on the batches of a data set."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from glue_cli.data.loader import Batches
from glue_cli.foundation.ranks import Ranks
from glue_cli.foundation.seeds import derive_seed, seeded
from glue_cli.running.device import Compute
from glue_cli.running.evaluation import Evaluation, Measured
from glue_cli.running.forward import Batch, outputs_of
from glue_cli.running.losses import Loss
from glue_cli.running.metrics import usual_metrics
from glue_cli.running.sharding import is_sharded
from glue_cli.search.protocol import Blends

# Makes the outputs on batches, each with its targets.
MakeOutputs = Callable[[Iterable[Batch]], Iterator[tuple[Tensor, Tensor]]]


def evaluate_model(
    model: nn.Module, batches: Batches, *, loss: Loss, compute: Compute, ranks: Ranks | None = None
) -> dict[str, float]:
    """Return the loss and the figures of merit on all examples, in eval mode.

    Args:
        ranks: the processes that share the batches; all of them get the figures.
    """
    evaluation = Evaluation(loss, usual_metrics(loss))
    add_all(evaluation, model, batches, compute, ranks or Ranks())
    return evaluation.figures()


@torch.no_grad()
def add_all(
    evaluation: Evaluation, model: nn.Module, batches: Batches, compute: Compute, ranks: Ranks, *, seed: int = 0
) -> None:
    """Add a model's outputs on all examples, in eval mode, to an evaluation.

    Several processes share the batches, and each of them adds what all have found, in the order of the batches: the
    figures do not depend on how many there are. A forward that draws random numbers draws the same ones each time,
    from the seed and the number of the batch. Buffers that the forwards change are then as they were.
    """
    model.eval()
    found: list[Tensor] = []
    own = ranks.share(batches.n_in_order)
    with _same_buffers(model):
        for number, (inputs, targets) in zip(own, batches.in_order(numbers=own), strict=True):
            with seeded(derive_seed(seed, "evaluate", number), compute.device), compute.autocast():
                outputs = outputs_of(model, inputs)
            found += _measured_or_counted(evaluation, outputs, targets, ranks)
            del outputs  # before the next forward: a language model's outputs may take most of the memory
        if is_sharded(model) and len(own) * ranks.size < batches.n_in_order:
            _help_with_another(model, batches, compute)
    _count_of_all(evaluation, found, ranks)


@contextmanager
def _same_buffers(model: nn.Module) -> Iterator[None]:
    """Put a model's buffers back after its forwards: what they learn of validation and test data must not stay.

    Those that no file holds are left alone: they are caches, such as of rotary positions, beside attributes of Python.
    """
    buffers = [
        (module._buffers, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    ]
    try:
        yield
    finally:
        for of_module, name, buffer, value in buffers:
            of_module[name] = buffer
            buffer.copy_(value)


def _help_with_another(model: nn.Module, batches: Batches, compute: Compute) -> None:
    """Make one more forward pass of a sharded model, for the processes with one more batch."""
    for inputs, _ in batches.in_order(numbers=range(1)):
        with compute.autocast():
            outputs_of(model, inputs)


def add_only_blend(evaluation: Evaluation, blends: Blends, batches: Batches, ranks: Ranks) -> None:
    """As `add_all`, for the only blend of a single expert."""
    alpha = torch.ones(1, 1, 1, dtype=torch.float64)
    add_outputs(evaluation, lambda own: blends.outputs(alpha, own, 0), batches, ranks)


@torch.no_grad()
def add_outputs(evaluation: Evaluation, make: MakeOutputs, batches: Batches, ranks: Ranks) -> None:
    """As `add_all`, for outputs that are made from this process's batches."""
    found: list[Tensor] = []
    for outputs, targets in make(batches.in_order(numbers=ranks.share(batches.n_in_order))):
        found += _measured_or_counted(evaluation, outputs, targets, ranks)
        del outputs
    _count_of_all(evaluation, found, ranks)


def _measured_or_counted(evaluation: Evaluation, outputs: Tensor, targets: Tensor, ranks: Ranks) -> Sequence[Tensor]:
    """Count a batch at once where this is the only process; else return what all processes will count."""
    measured = evaluation.measured(outputs, targets)
    if ranks.size > 1:
        return measured
    evaluation.count(measured)
    return []


def _count_of_all(evaluation: Evaluation, found: list[Tensor], ranks: Ranks) -> None:
    of_all = ranks.gather(found)
    n = len(Measured._fields)
    for start in range(0, len(of_all), n):
        evaluation.count(Measured(*of_all[start : start + n]))
