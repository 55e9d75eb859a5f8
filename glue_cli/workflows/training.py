"""The training loop that experts and finetuning share, and evaluation."""

import math
from collections.abc import Callable

import torch
from torch import nn

from glue_cli.data.loader import Batches
from glue_cli.foundation.errors import NumericalError, SpecError
from glue_cli.foundation.progress import Advanced, Finished, Started
from glue_cli.foundation.run import Run
from glue_cli.foundation.seeds import derive_seed
from glue_cli.running.device import Compute
from glue_cli.running.forward import Inputs, outputs_of
from glue_cli.running.losses import Loss, example_losses
from glue_cli.spec.schema import FinetuneSpec, TrainSpec

Settings = TrainSpec | FinetuneSpec

_STEPS_A_REPORT = 10


def train(
    model: nn.Module,
    batches: Batches,
    settings: Settings,
    *,
    loss: Loss,
    compute: Compute,
    seed: int,
    task: str,
    run: Run,
    on_epoch: Callable[[int, float], None],
) -> None:
    """Train all parameters with Adam.

    Epoch e is a pure function of the weights, the optimiser's state, the seed and e.

    Args:
        model: on the device; changed in place.
        on_epoch: called with the epoch, from 1, and its mean training loss.
    Raises:
        NumericalError: the loss is not finite, or the weights at the end.
    """
    optimizer = make_optimizer(model, settings)
    run.progress(Started(task, settings.epochs * len(batches), "examples"))
    n_done = 0
    for epoch in range(1, settings.epochs + 1):
        torch.manual_seed(derive_seed(seed, task, epoch))  # dropout
        model.train()
        total = torch.zeros((), dtype=torch.float64, device=compute.device)
        n_seen = n_losses = 0
        for step, (inputs, targets) in enumerate(batches.epoch(settings.batch_size, seed, epoch, settings.augment)):
            losses = training_step(model, optimizer, inputs, targets, loss, compute)
            total += losses.sum(dtype=torch.float64)
            n_seen += len(targets)
            n_losses += len(losses)
            if step % _STEPS_A_REPORT == 0:
                mean = total.item() / n_losses
                _check_finite(mean, task, epoch)
                run.progress(Advanced(n_done + n_seen, {"epoch": epoch, "loss": mean}))
        _check_finite(total.item(), task, epoch)
        n_done += len(batches)
        run.progress(Advanced(n_done, {"epoch": epoch, "loss": total.item() / n_losses}))
        on_epoch(epoch, total.item() / n_losses)
    _check_weights(model, task)
    run.progress(Finished())


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Inputs,
    targets: torch.Tensor,
    loss: Loss,
    compute: Compute,
) -> torch.Tensor:
    """Make one step on a batch; return its losses, as `example_losses` does.

    Raises:
        SpecError: the batch is too small for the model's BatchNorm.
    """
    try:
        with compute.autocast():
            outputs = outputs_of(model, inputs)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        message = f"the model has BatchNorm, which cannot train on a batch of {len(targets)} of these examples"
        raise SpecError(message, hint="raise batch_size, or the number of training examples") from error
    losses = example_losses(loss, outputs, targets)
    optimizer.zero_grad()
    losses.mean().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return losses.detach()


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Return Adam with torch's defaults and the settings' lr."""
    return torch.optim.Adam(model.parameters(), lr=settings.lr, fused=True)


def _check_finite(loss: float, task: str, epoch: int) -> None:
    if not math.isfinite(loss):
        raise NumericalError(f"the training loss is {loss} in epoch {epoch} of '{task}'", hint="lower the lr")


def _check_weights(model: nn.Module, task: str) -> None:
    """Check the weights after the last step, which no loss has seen."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise NumericalError(f"'{name}' is not finite at the end of '{task}'", hint="lower the lr")
