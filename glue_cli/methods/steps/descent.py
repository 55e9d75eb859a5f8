"""The paper's plain search: a descent from the uniform blend that watches the validation loss."""

import math

import torch
from torch import Tensor

from glue_cli.foundation.state import SaveState, State, part_of, prefixed, save_nothing
from glue_cli.methods.domains import Simplex
from glue_cli.methods.only_expert import judge_only_expert
from glue_cli.methods.result import Learned, StepRecord, if_finite
from glue_cli.methods.skips import Skips, not_finite
from glue_cli.methods.steps.logit_descent import GradientRule, LogitDescent
from glue_cli.methods.steps.plateau import Plateau
from glue_cli.methods.steps.strategy import Strategy, make_step
from glue_cli.methods.stepwise import Observe, run, unobserved
from glue_cli.search.account import Purse
from glue_cli.search.protocol import Objective
from glue_cli.spec.schema import MixSpec

# The largest share of a budget that a validation may take.
_VALIDATION_SHARE = 0.05


def descend(
    objective: Objective,
    rule: GradientRule,
    settings: MixSpec,
    *,
    observe: Observe = unobserved,
    save_state: SaveState = save_nothing,
    state: State | None = None,
) -> Learned:
    """Minimise the target loss over alpha = softmax(beta) from the uniform blend, eqs. (7) and (8).

    Stops at a plateau of the validation loss, after `steps`, or when the budget cannot pay for another step and
    validation; returns the alpha with the lowest validation loss on the way. A loss that is not finite counts as
    infinitely bad.

    Args:
        rule: how the gradient at beta [G, K] is estimated.
        observe: called with every step when it ends.
        save_state: called between two steps; state: to resume from.
    Raises:
        NumericalError: no validation loss is finite, or no loss at several steps in a row.
    """
    domain = Simplex.of(objective)
    if domain.n_experts == 1:
        return judge_only_expert(objective, settings)
    strategy = LogitDescent(domain, torch.zeros(domain.shape, dtype=torch.float64), rule, settings)
    return run(domain, _PlainSearch(objective, strategy, settings, observe), save_state, state)


def most_forwards(objective: Objective, rule: GradientRule, settings: MixSpec) -> int:
    """Return how many forwards `descend` makes at most without a budget."""
    n_validations = 1 + -(-settings.steps // settings.validate_every)
    return settings.steps * rule.n_forwards + n_validations * objective.n_validation_batches


class _PlainSearch:
    """A plain search in progress. Its first step validates the start; each later one is a step of the strategy.

    Args:
        strategy: to be made beforehand: that imports parts of torch, and a budget's clock starts here.
    """

    def __init__(self, objective: Objective, strategy: Strategy, settings: MixSpec, observe: Observe) -> None:
        self._objective, self._strategy, self._settings, self._observe = objective, strategy, settings, observe
        self._purse = Purse(settings.parsed_budget, objective.cost, settings.batch_size)
        self._plateau = Plateau(settings.patience)
        self._n_steps = 0
        self._n_batches: int | None = None  # per validation; None before the first
        # On validation; None if it is not finite
        self._start_loss: float | None = None
        self._best_loss: float | None = None
        self._skips = Skips()
        self._best_alpha = strategy.alpha

    def step(self) -> Learned | None:
        return self._begin() if self._n_batches is None else self._descend(self._n_batches)

    def _begin(self) -> Learned | None:
        alpha, purse = self._strategy.alpha, self._purse
        if purse.is_timed:  # the first validation is slow with set-up, the second shows the pace
            self._validate(alpha, 1)
            purse.warmed_up()
            self._validate(alpha, 1)
        n_batches = int(min(self._objective.n_validation_batches, max(1, _VALIDATION_SHARE * purse.worth())))
        if self._is_too_poor(n_batches):
            return Learned(alpha, None, None, 0, "budget")
        self._n_batches = n_batches
        self._start_loss = self._best_loss = self._validate(alpha, n_batches)
        self._plateau = Plateau(self._settings.patience, self._start_loss)
        self._observe(StepRecord(0, None, alpha, self._start_loss))
        return None

    def _descend(self, n_batches: int) -> Learned | None:
        before = self._strategy.alpha
        loss = make_step(self._strategy, self._objective, self._n_steps, math.inf)
        self._skips.count([loss], self._n_steps, before)
        self._n_steps += 1
        alpha, val_loss, stopped = self._strategy.alpha, None, ""
        if self._is_too_poor(n_batches):
            stopped = "budget"
        elif not self._purse.is_limited and self._n_steps == self._settings.steps:
            stopped = "steps"
        if stopped or self._n_steps % self._settings.validate_every == 0:
            val_loss = self._validate(alpha, n_batches)
            if val_loss is not None and (self._best_loss is None or val_loss < self._best_loss):
                self._best_alpha, self._best_loss = alpha, val_loss
            if self._plateau.reached(val_loss) and stopped != "budget":
                stopped = "plateau"
        self._observe(StepRecord(self._n_steps, if_finite(loss), alpha, val_loss, self._skips.n_steps))
        if not stopped:
            return None
        if self._best_loss is None:
            raise not_finite("every validation loss", self._n_steps, alpha)
        n_skipped = self._skips.n_steps
        return Learned(
            self._best_alpha, self._best_loss, self._start_loss, self._n_steps, stopped, n_skipped=n_skipped
        )

    def _is_too_poor(self, n_batches: int) -> bool:
        """Tell whether the budget has no room for a step and validation besides the last validation."""
        return self._purse.forwards() < 2 * n_batches + self._strategy.n_forwards

    def _validate(self, alpha: Tensor, n_batches: int) -> float | None:
        return if_finite(self._objective.validation_loss(alpha, n_batches))

    def state(self) -> State:
        return {
            "n_steps": self._n_steps,
            "n_batches": self._n_batches,
            "start_loss": self._start_loss,
            "best_loss": self._best_loss,
            "best_alpha": self._best_alpha,
            **prefixed("strategy", self._strategy.state()),
            **prefixed("plateau", self._plateau.state()),
            **prefixed("skips", self._skips.state()),
            **prefixed("purse", self._purse.state()),
        }

    def restore(self, state: State) -> None:
        self._n_steps, self._n_batches = state["n_steps"], state["n_batches"]
        self._start_loss, self._best_loss = state["start_loss"], state["best_loss"]
        self._best_alpha = state["best_alpha"]
        self._strategy.restore(part_of(state, "strategy"))
        self._plateau.restore(part_of(state, "plateau"))
        self._skips.restore(part_of(state, "skips"))
        self._purse.restore(part_of(state, "purse"))
