"""A whole finetuning: a trial of learning rates if one is needed, then the training whose result is kept."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from glue_cli.data.loader import Batches, Examples
from glue_cli.foundation.progress import Noted, Progress
from glue_cli.foundation.ranks import Ranks
from glue_cli.foundation.state import SaveState, State, part_of, prefixed, save_nothing
from glue_cli.results.finetune import FinetuneSteps, TriedLr
from glue_cli.results.history import Write
from glue_cli.running.device import Compute
from glue_cli.spec.schema import FinetuneSpec, Spec
from glue_cli.workflows.evaluation import evaluate_model
from glue_cli.workflows.judging import Judge
from glue_cli.workflows.learning_rates import Trial, TrialPlan, Tried, best_of
from glue_cli.workflows.training import Measure, Training, with_lr


class Finetuning:
    """The trial and the training of one model; its state between two steps is all that later steps depend on.

    Args:
        plan: what the trial does, and which examples the training uses.
        model: the start, on the device; changed in place.
        judges: by split, the examples to evaluate after every epoch; `val` is among them unless the trial uses folds.
        net: makes the forward passes, if the model does not: what `spread_training` returns.
        ranks: the processes that take part, each in a finetuning of its own.
    Attributes:
        tried: the result of each lr; empty before the trial is done, or if there is none.
    """

    def __init__(
        self,
        spec: Spec,
        plan: TrialPlan,
        model: nn.Module,
        judges: dict[str, Examples],
        *,
        compute: Compute,
        progress: Progress,
        net: nn.Module | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.tried: Sequence[Tried] = ()
        self._spec, self._plan, self._model, self._compute = spec, plan, model, compute
        self._judges = {split: examples.on(compute) for split, examples in judges.items()}
        self._progress, self._ranks = progress, ranks or Ranks()
        self._net = net or model
        self._trial = Trial(
            plan,
            model,
            spec.finetune,
            compute=compute,
            make_training=self._make,
            judge=self._judge,
            progress=progress,
        )
        self._val: Judge | None = None
        self._training: Training | None = None
        self._training_state: State = {}  # to resume from

    def run(self, write: Write, save_state: SaveState = save_nothing) -> None:
        """Continue from the current state to the end.

        Args:
            write: called with each line of the history.
            save_state: called between two steps, with a function that returns the state there.
        Raises:
            NumericalError: the loss is not finite, or the weights at the end.
        """
        if self._plan.splits:
            self.tried = self._trial.run(lambda state: save_state(lambda: prefixed("trial", state())))
        settings = with_lr(self._spec.finetune, self.lr)
        batches = self._plan.examples.on(self._compute)
        if "val" in self._judges:
            self._val = self._judge(self._judges["val"])
        self._training = training = self._make(settings, batches, self._measure, self._progress)
        if self._training_state:
            training.restore(self._training_state)
        elif self._plan.splits:
            self._tell_choice()
        training.run(write, lambda state: save_state(self.state))
        self._warn_of_harm()

    @property
    def lr(self) -> float:
        """The lr of the training."""
        return best_of(self.tried, self._spec.finetune.keep).lr if self.tried else self._plan.lrs[0]

    @property
    def history(self) -> list[dict[str, Any]]:
        """One line for each epoch of the training."""
        assert self._training
        return self._training.history

    @property
    def account(self) -> dict[str, Any]:
        """What a result records of it besides the history."""
        assert self._training
        keep = self._spec.finetune.keep
        return {
            "lr": self.lr,
            "trial": [TriedLr(lr=one.lr, val_loss=one.val_loss(keep)) for one in self.tried],
            "folds": len(self._plan.splits) if self._plan.is_folded else None,
            "kept": self._training.kept,
            "steps": FinetuneSteps(trial=self._trial.n_steps, training=self._training.n_steps),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the epoch that is kept; all processes have to ask."""
        assert self._training
        return self._training.best_tensors()

    def _make(self, settings: FinetuneSpec, batches: Batches, measure: Measure, progress: Progress) -> Training:
        return Training(
            self._model,
            batches,
            settings,
            loss=self._spec.loss,
            compute=self._compute,
            seed=self._spec.seed,
            task="finetune",
            progress=progress,
            measure=measure,
            keeps_best=settings.keep == "best",
            n_judged=self._plan.n_judged,
            net=self._net,
            ranks=self._ranks,
        )

    def _measure(self, epoch: int) -> dict[str, float]:
        """Return the figures of an epoch; with folds, the validation figures are the trial's for this lr."""
        figures: dict[str, float] = {}
        if self._plan.is_folded:
            tried = best_of(self.tried, self._spec.finetune.keep)
            figures = {name: column[epoch].item() for name, column in tried.figures.items()}
        if self._val:
            figures |= self._val(epoch)
        if "test" in self._judges:
            tested = evaluate_model(
                self._model, self._judges["test"], loss=self._spec.loss, compute=self._compute, ranks=self._ranks
            )
            figures |= {f"test_{name}": value for name, value in tested.items()}
        return figures

    def _judge(self, batches: Batches) -> Judge:
        return Judge(self._model, batches, loss=self._spec.loss, compute=self._compute, ranks=self._ranks)

    def _tell_choice(self) -> None:
        n_held_out = sum(len(held_out) for _, held_out in self._plan.splits)
        judged = f"{n_held_out} validation examples"
        if self._plan.is_folded:
            judged = f"{len(self._plan.splits)} folds of the {n_held_out} training and validation examples"
        text = f"lr {self.lr:g}, by {judged}: the trial of {len(self.tried)} lr made {self._trial.n_steps:,} steps"
        self._progress(Noted(text))

    def _warn_of_harm(self) -> None:
        """Warn if the training has not improved on its start."""
        start, *later = (line["val_loss"] for line in self.history)
        if self._spec.finetune.keep == "best":
            if self._training and self._training.kept == 0:
                text = f"no epoch is surely better than the start's validation loss {start:.4g}: the start is kept"
                self._progress(Noted(text, warning=True))
        elif not later[-1] < start:
            text = f"the end is no better than the start: validation loss {later[-1]:.4g} against {start:.4g}"
            self._progress(Noted(f"{text}; finetune.keep: best would keep the best epoch", warning=True))

    def state(self) -> State:
        """Return all that later steps of the training depend on, including the trial's results."""
        assert self._training
        return {**prefixed("trial", self._trial.state()), **prefixed("training", self._training.state())}

    def restore(self, state: State) -> None:
        """Load the state of a finetuning with the same plan, start and seed, to continue it."""
        if self._plan.splits:
            self._trial.restore(part_of(state, "trial"))
        self._training_state = part_of(state, "training")
