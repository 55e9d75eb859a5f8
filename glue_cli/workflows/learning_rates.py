"""The trial ahead of a finetuning: trainings with several lr, judged on examples that they do not train on."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from glue_cli.data.loader import Batches, Examples
from glue_cli.data.partition import draw_folds
from glue_cli.foundation.errors import NumericalError
from glue_cli.foundation.progress import Advanced, Event, Finished, Progress, Started
from glue_cli.foundation.state import SaveState, State, list_of, list_state, part_of, prefixed, save_nothing
from glue_cli.models.tensors import tensors_of
from glue_cli.running.device import Compute
from glue_cli.spec.schema import FinetuneSpec
from glue_cli.workflows.judging import ERROR, LOSS, Judge, is_better
from glue_cli.workflows.training import Measure, Training, with_lr

LRS = (3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
_N_FOLDS = 5
_HANDFUL = 50  # fewer validation examples than this are joined with the training examples, and divided into folds
_FOLDED = 500  # most examples for folds, which take as long as five trainings for each lr
_SHARE = 4  # without folds, a trial has a quarter of the epochs, or more to reach the least number of steps
_LEAST_STEPS = 100  # in a trial without folds: BatchNorm's running statistics and Adam's moments take tens to settle


@dataclass(frozen=True)
class TrialPlan:
    """What a trial does; with a single lr, it only shows how many epochs are best.

    Attributes:
        lrs: those that may be tried, from the largest down.
        epochs: the length of each training.
        splits: pairs of examples to train on and to judge by; an lr is tried on all of them. Empty for no trial.
        examples: what the finetuning itself trains on afterwards.
        is_folded: whether the splits are folds of `examples`, so that none are left to judge the finetuning itself.
        n_judged: how many examples an epoch is judged by.
    """

    lrs: tuple[float, ...]
    epochs: int
    splits: tuple[tuple[Examples, Examples], ...]
    examples: Examples
    is_folded: bool
    n_judged: int


def plan_trial(settings: FinetuneSpec, train: Examples, val: Examples, seed: int) -> TrialPlan:
    """Decide what to try, and on which examples: the validation split, or folds if that split is too small."""
    lrs = LRS if settings.lr == "auto" else (float(settings.lr),)
    if settings.lr != "auto" and settings.keep == "last":
        return TrialPlan(lrs, 0, (), train, is_folded=False, n_judged=len(val))
    if len(val) < _HANDFUL and len(train) + len(val) <= _FOLDED and train.joins(val):
        joined = train.joined(val)
        folds = draw_folds(len(joined), _N_FOLDS, seed=seed)
        splits = tuple((joined.subset(kept), joined.subset(held_out)) for kept, held_out in folds)
        return TrialPlan(lrs, settings.epochs, splits, joined, is_folded=True, n_judged=len(joined))
    if settings.lr != "auto":
        return TrialPlan(lrs, 0, (), train, is_folded=False, n_judged=len(val))
    n_epochs = max(-(-settings.epochs // _SHARE), -(-_LEAST_STEPS * settings.batch_size // len(train)))
    n_epochs = min(settings.epochs, n_epochs)
    return TrialPlan(lrs, n_epochs, ((train, val),), train, is_folded=False, n_judged=len(val))


@dataclass(frozen=True)
class Tried:
    """The result of one lr: the held-out examples' figures by epoch, float64 [1 + epochs], where 0 is the start.

    They are means over the folds, weighted by their examples; all NaN if a training diverged.

    Attributes:
        n_judged: how many examples they are means over.
    """

    lr: float
    figures: Mapping[str, Tensor]
    n_judged: int

    def val_loss(self, keep: str) -> float:
        """Return the loss that this lr reaches: after the last epoch, or after the best one or at the start."""
        if keep == "last":
            return self._losses[-1]
        start, *later = self._losses
        epochs = zip(later, self._errors, strict=True)
        return min([start, *(loss for loss, error in epochs if is_better(loss, start, error, self.n_judged))])

    @property
    def least_loss(self) -> float:
        """The least loss after an epoch, whether or not it is better than the start's."""
        return min(self._losses[1:])

    def score(self, keep: str) -> tuple[float, float]:
        """Return what lr are compared by; less is better. Of those that keep the start it is the one nearest to it."""
        return self.val_loss(keep), self.least_loss

    @property
    def _losses(self) -> list[float]:
        return self.figures[LOSS].nan_to_num(math.inf, posinf=math.inf).tolist()

    @property
    def _errors(self) -> list[float]:
        return self.figures[ERROR][1:].tolist()


def next_to_try(tried: Mapping[int, Tried], n_lrs: int, keep: str) -> int | None:
    """Return which lr to try next, as its number from the largest down; None if the best one's neighbours are tried.

    The loss by lr has one valley, so it is enough to walk down from the middle. Of 122 finetunings of reviews and
    traffic signs with 25 to 300 labels this ends at the best of all six lr in 111, after 3.0 of them on average.
    """
    middle = [number for number in ((n_lrs - 1) // 2, (n_lrs + 1) // 2) if number < n_lrs]
    if untried := [number for number in middle if number not in tried]:
        return untried[0]
    # Of equals the smallest lr: two that diverge lie above the valley.
    best = min(sorted(tried, reverse=True), key=lambda number: tried[number].score(keep))
    beside = [number for number in (best - 1, best + 1) if 0 <= number < n_lrs and number not in tried]
    return beside[0] if beside else None


# Makes a training of the model on batches, with a function that measures each epoch.
MakeTraining = Callable[[FinetuneSpec, Batches, Measure, Progress], Training]


class Trial:
    """The trainings of a trial, made one after another from the same start; the state is taken between two steps.

    Args:
        model: on the device; after the trial it is back at its start.
        settings: the finetuning's.
        judge: returns a judge of the model, which is at its start, by held-out examples.
    Attributes:
        n_steps: the steps of the finished trainings.
    """

    def __init__(
        self,
        plan: TrialPlan,
        model: nn.Module,
        settings: FinetuneSpec,
        *,
        compute: Compute,
        make_training: MakeTraining,
        judge: Callable[[Batches], Judge],
        progress: Progress,
    ) -> None:
        self.n_steps = 0
        self._plan, self._model, self._make_training = plan, model, make_training
        self._keep = settings.keep
        self._settings = settings.model_copy(update={"epochs": plan.epochs, "keep": "last"})
        self._judge, self._progress = judge, progress
        self._start: dict[str, Tensor] = {}
        self._splits = [(train.on(compute), held_out.on(compute)) for train, held_out in plan.splits]
        self._done: list[dict[str, Tensor]] = []  # the figures by epoch, one entry for each run
        self._training_state: State = {}  # of the current run, to resume from

    def run(self, save_state: SaveState = save_nothing) -> list[Tried]:
        """Make the remaining trainings, and return the results of the lr that were tried, from the largest down.

        Args:
            save_state: called between two steps, with a function that returns the state there.
        Raises:
            NumericalError: all of them diverge.
        """
        self._model.train()  # as in `Training`
        self._start = {name: tensor.detach().clone() for name, tensor in tensors_of(self._model).items()}
        lrs = self._plan.lrs
        tried: dict[int, Tried] = {}
        while (number := next_to_try(tried, len(lrs), self._keep)) is not None:
            tried[number] = self._try(lrs[number], len(tried) * len(self._splits), save_state)
        self._model.load_state_dict(self._start, strict=False)
        if all(math.isinf(one.val_loss("best")) for one in tried.values()):
            diverged = ", ".join(f"{one.lr:g}" for _, one in sorted(tried.items()))
            raise NumericalError(f"the training diverges at each lr tried: {diverged}", hint="set a lower finetune.lr")
        return [one for _, one in sorted(tried.items())]

    def _try(self, lr: float, first: int, save_state: SaveState) -> Tried:
        """Try one lr on all splits, by the runs from number `first` on; those that are done are not made again."""
        end = first + len(self._splits)
        if len(self._done) < end:
            lengths = [self._plan.epochs * len(train) for train, _ in self._splits]
            self._progress(Started(f"try lr {lr:g}", sum(lengths), "examples"))
            for i in range(len(self._done) - first, len(self._splits)):
                self._done.append(self._make(lr, *self._splits[i], sum(lengths[:i]), save_state))
            self._progress(Finished())
        return self._summary(lr, self._done[first:end])

    def _make(
        self, lr: float, train: Batches, held_out: Batches, n_before: int, save_state: SaveState
    ) -> dict[str, Tensor]:
        """Train with one lr on one split; return the figures by epoch, NaN where it diverges."""

        def report(event: Event) -> None:
            if isinstance(event, Advanced):
                self._progress(Advanced(n_before + event.done, event.figures))

        self._model.load_state_dict(self._start, strict=False)
        training = self._make_training(with_lr(self._settings, lr), train, self._judge(held_out), report)
        if self._training_state:
            training.restore(self._training_state)
            self._training_state = {}

        def state() -> State:
            return self.state() | prefixed("training", training.state())

        try:
            training.run(lambda line: None, lambda _: save_state(state))
        except NumericalError:
            diverged = dict.fromkeys(training.history[0], math.nan)
            training.history[:] = [diverged] * (1 + self._plan.epochs)
        self.n_steps += training.n_steps
        names = training.history[0].keys() - {"epoch", "train_loss"}
        return {
            name: torch.tensor([line[name] for line in training.history], dtype=torch.float64)
            for name in sorted(names)
        }

    def _summary(self, lr: float, runs: Sequence[Mapping[str, Tensor]]) -> Tried:
        weights = [len(held_out) for _, held_out in self._splits]
        total = sum(weights)
        figures = {
            name: sum((run[name] * weight / total for run, weight in zip(runs, weights, strict=True)), torch.zeros(()))
            for name in runs[0]
        }
        squares = sum(  # the mean square of the differences from the start
            (
                (run[ERROR].square() * (weight - 1) + _changes(run).square()) * weight / total
                for run, weight in zip(runs, weights, strict=True)
            ),
            torch.zeros(()),
        )
        if len(runs) > 1:
            figures[ERROR] = ((squares - _changes(figures).square()) / (total - 1)).clamp(min=0).sqrt()
        return Tried(lr, figures, self._plan.n_judged)

    def state(self) -> State:
        """Return all that later runs depend on, between two runs."""
        return {"n_steps": self.n_steps, **list_state("done", [dict(figures) for figures in self._done])}

    def restore(self, state: State) -> None:
        """Load the state of a trial with the same plan, start and seed, to continue it."""
        self.n_steps, self._done = state["n_steps"], list_of(state, "done")
        self._training_state = part_of(state, "training")


def _changes(figures: Mapping[str, Tensor]) -> Tensor:
    """Return the difference of the validation loss from the start's, by epoch."""
    return figures[LOSS] - figures[LOSS][0]


def best_of(tried: Sequence[Tried], keep: str) -> Tried:
    """Return the lr with the lowest validation loss; of those that keep the start, the one whose epochs are nearest.

    Of equals it is the largest, which gets furthest.
    """
    return min(tried, key=lambda one: one.score(keep))
