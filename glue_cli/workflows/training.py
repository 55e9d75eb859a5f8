"""The training that experts and finetuning share."""

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from glue_cli.data.loader import Batches
from glue_cli.foundation.errors import NumericalError, SpecError
from glue_cli.foundation.progress import Advanced, Finished, Progress, Started
from glue_cli.foundation.ranks import Ranks, meeting
from glue_cli.foundation.seeds import derive_seed, seed_others
from glue_cli.foundation.state import GOOD, SaveState, State, list_of, list_state, part_of, prefixed, save_nothing
from glue_cli.foundation.stopping import Lost
from glue_cli.models.tensors import tensors_of
from glue_cli.models.weights import constant_buffers
from glue_cli.results.history import Write
from glue_cli.running.batchnorm import statistics_of
from glue_cli.running.device import Compute
from glue_cli.running.forward import Batch, Inputs, outputs_of
from glue_cli.running.losses import Loss, example_losses, n_terms
from glue_cli.running.optimizer_state import optimizer_state, restore_optimizer
from glue_cli.running.parallel import part_of as process_part
from glue_cli.running.random_state import random_state, restore_random
from glue_cli.running.sharding import own_part, parts_like, whole
from glue_cli.spec.schema import FinetuneSpec, TrainSpec
from glue_cli.workflows.judging import ERROR, LOSS, is_better

Settings = TrainSpec | FinetuneSpec
# Returns figures of the model at the end of an epoch; epoch 0 is the start.
Measure = Callable[[int], dict[str, float]]

_STEPS_A_REPORT = 10


class Training:
    """A training of all parameters with Adam; its state between two steps is all that later steps depend on.

    The seed and the epoch determine the order of an epoch's examples and the random draws of dropout.

    Args:
        model: on the device; changed in place.
        settings: their lr is a number.
        measure: returns figures of the model on other data; taken at the start, as epoch 0, and after every epoch.
        keeps_best: whether to keep the tensors of the epoch with the lowest `val_loss`, which may be the start; NaN
            counts as higher than any number.
        n_judged: how many examples `measure` takes the `val_loss` of.
        net: makes the forward passes, if the model does not: what `spread_training` returns.
        ranks: the processes that take part, each in a training of its own; each makes its part of every step.
    Attributes:
        history: one line for each epoch: `epoch`, `train_loss`, and the figures.
        kept: the epoch whose tensors are kept; without `keeps_best`, the last one.
        n_steps: the number of steps made so far.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        settings: Settings,
        *,
        loss: Loss,
        compute: Compute,
        seed: int,
        task: str,
        progress: Progress,
        measure: Measure | None = None,
        keeps_best: bool = False,
        n_judged: int = 0,
        net: nn.Module | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.history: list[dict[str, Any]] = []
        self.kept = self.n_steps = 0
        self._model, self._batches, self._settings = model, batches, settings
        self._net, self._ranks = net or model, ranks or Ranks()
        self._loss, self._compute, self._seed, self._task = loss, compute, seed, task
        self._progress, self._measure, self._keeps_best, self._n_judged = progress, measure, keeps_best, n_judged
        self._optimizer = make_optimizer(model, settings)
        self._epoch, self._steps_made = 0 if measure else 1, 0  # the current epoch, and its steps so far
        self._total = torch.zeros((), dtype=torch.float64, device=compute.device)  # of the epoch's losses so far
        self._n_losses = self._n_seen = 0
        self._best: dict[str, Tensor] = {}
        self._best_loss = math.inf

    def run(self, write: Write, save_state: SaveState = save_nothing) -> None:
        """Train from the current state to the last epoch.

        Args:
            write: called with each line of the history.
            save_state: called between two steps, with a function that returns the state there.
        Raises:
            NumericalError: the loss is not finite, or the final weights are not.
        """
        self._progress(Started(self._task, self._settings.epochs * len(self._batches), "examples"))
        while self._epoch <= self._settings.epochs:
            for _ in self._steps() if self._epoch else ():
                save_state(self.state)
            self._end_epoch(write)
            save_state(self.state)
        _check_weights(self._model, self._task)
        self._progress(Finished())

    def best_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the best epoch if it is kept, else those of the last; all processes have to ask."""
        return whole(self._best or tensors_of(self._model))

    def _steps(self) -> Iterator[None]:
        """Make the remaining steps of the epoch, and yield after each."""
        if self._steps_made == 0:
            torch.manual_seed(derive_seed(self._seed, self._task, self._epoch))  # dropout; its state is saved
        self._model.train()
        settings = self._settings
        batches = self._batches.epoch(settings.batch_size, self._seed, self._epoch, settings.augment)
        for inputs, targets in islice(batches, self._steps_made, None):
            self._total += self._make_step((inputs, targets))
            self._n_losses += n_terms(targets)
            self._n_seen += len(targets)
            if self._steps_made % _STEPS_A_REPORT == 0:
                self._report(self._n_seen)
            self._steps_made += 1
            self.n_steps += 1
            yield

    def _make_step(self, batch: Batch) -> Tensor:
        """Make a step, with the other processes if there are any; return the sum of the batch's losses, float64 []."""
        place = self._ranks.place
        seed_others(derive_seed(self._seed, self._task, self._epoch, self._steps_made, place.rank))
        if self._ranks.size == 1:
            losses = training_step(self._net, self._optimizer, *batch, self._loss, self._compute)
            return losses.sum(dtype=torch.float64)
        torch.manual_seed(derive_seed(self._seed, self._task, self._epoch, self._steps_made, place.rank))  # dropout
        part, statistics = process_part(batch, self._ranks), statistics_of(self._model)
        before = {name: tensor.clone() for name, tensor in statistics.items()}

        def sum_of_all(losses: Tensor) -> Tensor:
            own = losses.sum(dtype=torch.float64) * (part.weight * n_terms(batch[1]) / place.size)
            return torch.stack(self._ranks.gather([own])).sum().to(self._total.device)

        try:
            with meeting():
                return training_step(
                    self._net,
                    self._optimizer,
                    *part.batch,
                    self._loss,
                    self._compute,
                    weight=part.weight,
                    exchange=sum_of_all,
                )
        except Lost:  # no weight has changed; the statistics are again those of the last whole step
            for name, tensor in statistics.items():
                tensor.copy_(before[name])
            raise

    def _end_epoch(self, write: Write) -> None:
        train_loss = self._report(len(self._batches)) if self._epoch else None
        line: dict[str, Any] = {"epoch": self._epoch, "train_loss": train_loss}
        line |= self._measure(self._epoch) if self._measure else {}
        self._model.train()  # in eval mode some layers hold other weights, such as LoRA's with its update merged
        write(line)  # the state is still that after the epoch's last step: a process may be lost here
        self.history.append(line)
        if self._keeps_best:
            self._keep_if_best(line)
        else:
            self.kept = self._epoch
        self._epoch, self._steps_made = self._epoch + 1, 0
        self._total.zero_()
        self._n_losses = self._n_seen = 0

    def _keep_if_best(self, line: Mapping[str, float]) -> None:
        val_loss, start = line[LOSS], self.history[0][LOSS]
        is_lower = val_loss < self._best_loss and is_better(val_loss, start, line.get(ERROR, 0.0), self._n_judged)
        if not self._best or is_lower:
            self._best = {name: tensor.detach().clone() for name, tensor in tensors_of(self._model).items()}
            self._best_loss = math.inf if math.isnan(val_loss) else val_loss
            self.kept = self._epoch

    def _report(self, n_seen: int) -> float:
        """Report the epoch's mean loss so far, and return it."""
        mean = self._total.item() / self._n_losses
        if not math.isfinite(mean):
            message = f"the training loss is {mean} in epoch {self._epoch} of '{self._task}'"
            raise NumericalError(message, hint="lower the lr")
        n_done = (self._epoch - 1) * len(self._batches) + n_seen
        self._progress(Advanced(n_done, {"epoch": self._epoch, "loss": mean}))
        return mean

    def state(self) -> State:
        """Return all that later steps depend on; of a sharded model, this process's parts."""
        return {
            "epoch": self._epoch,
            "steps_made": self._steps_made,
            "n_steps": self.n_steps,
            "kept": self.kept,
            "total": self._total,
            GOOD: bool(self._total.isfinite()) and _find_not_finite(self._model, tensors_of(self._model)) is None,
            "n_losses": self._n_losses,
            "n_seen": self._n_seen,
            "best_loss": torch.tensor(self._best_loss, dtype=torch.float64),  # a tensor, since JSON has no infinity
            **prefixed("best", self._best),
            **prefixed("model", tensors_of(self._model)),
            **prefixed("optimizer", optimizer_state(self._optimizer)),
            **list_state("history", self.history),
            **prefixed("random", random_state(self._compute.device)),
        }

    def restore(self, state: State) -> None:
        """Load the state of a training with the same model, data, settings and seed, to continue it."""
        self._epoch, self._steps_made = state["epoch"], state["steps_made"]
        self.n_steps, self.kept = state["n_steps"], state["kept"]
        self._total = state["total"].to(self._compute.device, copy=True)
        self._n_losses, self._n_seen = state["n_losses"], state["n_seen"]
        own = tensors_of(self._model)
        self._best, self._best_loss = parts_like(part_of(state, "best"), own), state["best_loss"].item()
        self._model.load_state_dict(
            parts_like(part_of(state, "model"), own), strict=False
        )  # but for what is no tensor
        restore_optimizer(self._optimizer, part_of(state, "optimizer"))
        self.history = list_of(state, "history")
        restore_random(self._compute.device, part_of(state, "random"))


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Inputs,
    targets: Tensor,
    loss: Loss,
    compute: Compute,
    *,
    weight: float | None = None,
    exchange: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Make one step on a batch; return the losses that `example_losses` gives, or what `exchange` makes of them.

    Args:
        weight: what the sum of the losses is multiplied by, if they are part of a batch; None takes their mean.
        exchange: the last thing that needs other processes; the weights change after it.
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
    (losses.mean() if weight is None else losses.sum() * weight).backward()  # type: ignore[no-untyped-call]
    found = losses.detach() if exchange is None else exchange(losses.detach())
    optimizer.step()
    return found


def with_lr(settings: FinetuneSpec, lr: float) -> FinetuneSpec:
    """Return the settings with the given number as lr."""
    return settings.model_copy(update={"lr": lr})


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Return Adam with torch's defaults and the settings' lr, which is a number; gradients become dense ones."""
    assert isinstance(settings.lr, float)
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            module.sparse = False  # Adam takes no sparse gradients, and fused no others
    is_real = all(parameter.is_floating_point() for parameter in model.parameters())  # fused takes no complex ones
    return torch.optim.Adam(model.parameters(), lr=settings.lr, fused=is_real)


def _check_weights(model: nn.Module, task: str) -> None:
    """Check the weights after the last step, from which no loss has been computed."""
    if name := _find_not_finite(model, whole(tensors_of(model))):
        raise NumericalError(f"'{name}' is not finite at the end of '{task}'", hint="lower the lr")


def _find_not_finite(model: nn.Module, tensors: Mapping[str, Any]) -> str | None:
    """Return the first of a model's tensors that is not finite, if any; of those that are dealt out, see this part."""
    constants = constant_buffers(model)
    own = ((name, own_part(tensor)) for name, tensor in tensors.items() if name not in constants)
    return next((name for name, tensor in own if not torch.isfinite(tensor).all()), None)
