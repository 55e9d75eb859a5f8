"""The default preset's search: screen starts, race the best of them, descend from the winner, guard the end.

What descends is a strategy: Gauss-Newton, SPSA, or CMA-ES.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from glue_cli.methods.result import Learned, StepRecord, check_finite
from glue_cli.methods.staged import guard, screening
from glue_cli.methods.steps.plateau import Plateau
from glue_cli.search.account import Purse
from glue_cli.search.protocol import Objective
from glue_cli.spec.schema import MixSpec

_RACE_SHARE = 0.5  # the most that the race takes of a budget
_MOST_CONTENDERS = 4


class Strategy(Protocol):
    """A way down from a start.

    Attributes:
        alpha: the estimate so far, [G, K].
        n_forwards: of a step; least_forwards: the fewest that a step can be made with.
        n_rounds: steps after which contenders can be told apart.
        has_converged: whether further steps serve nothing.
    """

    n_forwards: int
    n_rounds: int

    @property
    def least_forwards(self) -> int: ...

    @property
    def has_converged(self) -> bool: ...

    @property
    def alpha(self) -> Tensor: ...

    def step(self, step: int, n_forwards: float) -> float:
        """Make a step on the minibatch of `step` with at most `n_forwards`; return the loss near the old alpha."""


@dataclass
class _Contender:
    start: screening.Start
    strategy: Strategy
    losses: list[float] = field(default_factory=list)

    @property
    def score(self) -> float:
        """The mean loss over the later half of the steps, whose minibatches are the same for all contenders."""
        later = self.losses[len(self.losses) // 2 :]
        return sum(later) / len(later)


def search(
    objective: Objective,
    settings: MixSpec,
    make_strategy: Callable[[Tensor], Strategy],
    *,
    seed: int,
    observe: Callable[[StepRecord], None],
) -> Learned:
    """Minimise the target loss over alpha within the settings' budget, or to a plateau of the validation loss.

    Args:
        make_strategy: a strategy from a start, alpha [G, K].
        observe: told of the uniform blend, of every step of the contender in the lead, and of what is returned.
    Raises:
        NumericalError: a loss is not finite.
    """
    if objective.n_experts == 1:
        return Learned(torch.ones(objective.n_groups, 1, dtype=torch.float64), None, None, 0, "steps")
    return _Search(objective, settings, make_strategy, seed, observe).run()


class _Search:
    """The state of a search: what is left of the budget, and what each stage has spent."""

    def __init__(
        self,
        objective: Objective,
        settings: MixSpec,
        make_strategy: Callable[[Tensor], Strategy],
        seed: int,
        observe: Callable[[StepRecord], None],
    ) -> None:
        self._objective, self._settings, self._seed = objective, settings, seed
        self._make_strategy, self._observe = make_strategy, observe
        self._purse = Purse(settings.parsed_budget, objective.cost, settings.batch_size)
        self._stages: list[dict[str, Any]] = []
        self._n_steps, self._stopped = 0, ""

    def run(self) -> Learned:
        starts = screening.screen(self._objective, self._purse, self._seed)
        uniform = next(start for start in starts if start.name == "uniform")
        self._observe(StepRecord(0, uniform.losses[0], uniform.alpha))
        self._note("screen", uniform.losses[0], starts[0].losses[0])
        winner, runner_up = self._race(starts)
        self._note("race")
        self._descend(winner)
        self._note("descend")
        verdict = self._guard(winner, runner_up, starts)
        self._note("guard")
        losses = {rival.name: rival.loss for rival in verdict.rivals}
        descent = next(stage for stage in self._stages if stage["stage"] == "descend")
        descent |= {"loss_before": losses.get(winner.start.name), "loss_after": verdict.end_loss}
        account = {
            "start": winner.start.name,
            "starts": {start.name: start.loss for start in starts},
            "stages": self._stages,
            **guard.account(verdict),
        }
        self._observe(StepRecord(self._n_steps, None, verdict.alpha, verdict.loss))
        is_uniform = torch.equal(winner.strategy.alpha, uniform.alpha)
        val_uniform = verdict.end_loss if is_uniform else losses.get("uniform")
        return Learned(verdict.alpha, verdict.loss, val_uniform, self._n_steps, self._stopped, account)

    def _race(self, starts: list[screening.Start]) -> tuple[_Contender, _Contender | None]:
        """Let the best starts descend on the same minibatches; return the winner, and who was second.

        Whenever each has made as many steps as tell them apart, the worse half is dropped.
        """
        first = _Contender(starts[0], self._make_strategy(starts[0].alpha))
        n_rounds = first.strategy.n_rounds
        affordable = _RACE_SHARE * self._left() / (n_rounds * first.strategy.n_forwards)
        n_contenders = max(n for n in range(1, _MOST_CONTENDERS + 1) if _race_length(n) <= affordable)
        entered = starts[:n_contenders]
        uniform = next(start for start in starts if start.name == "uniform")
        if n_contenders > 1 and uniform not in entered:
            entered[-1] = uniform
        contenders = [first, *(_Contender(start, self._make_strategy(start.alpha)) for start in entered[1:])]
        runner_up = None
        while len(contenders) > 1 and self._can_step(contenders):
            self._step(contenders)
            if len(contenders[0].losses) % n_rounds == 0:
                contenders.sort(key=lambda contender: contender.score)
                runner_up = contenders[1]
                del contenders[(len(contenders) + 1) // 2 :]
        if len(contenders) > 1 and contenders[0].losses:  # the race was cut short
            contenders.sort(key=lambda contender: contender.score)
            runner_up = contenders[1]
        return contenders[0], runner_up

    def _descend(self, winner: _Contender) -> None:
        """Go on until the budget's part is spent; without one, until the validation loss is level."""
        plateau = Plateau(self._settings.patience)
        while self._can_step([winner]):
            is_due = not self._purse.is_limited and (self._n_steps + 1) % self._settings.validate_every == 0
            val_loss = self._step([winner], validate=is_due)
            if val_loss is not None and plateau.reached(val_loss):
                self._stopped = "plateau"
                return

    def _can_step(self, contenders: list[_Contender]) -> bool:
        if not self._purse.is_limited and self._n_steps >= self._settings.steps:
            self._stopped = "steps"
        elif self._left() < len(contenders) * contenders[0].strategy.least_forwards:
            self._stopped = "budget"
        elif any(contender.strategy.has_converged for contender in contenders):
            self._stopped = "converged"
        else:
            return True
        return False

    def _step(self, contenders: list[_Contender], *, validate: bool = False) -> float | None:
        """Make a step with each contender on one minibatch; tell of the first; return its validation loss if asked."""
        n_forwards = self._left() / len(contenders)
        for contender in contenders:
            loss = contender.strategy.step(screening.N_MINIBATCHES + self._n_steps, n_forwards)
            contender.losses.append(check_finite(loss, self._n_steps, "loss"))
        self._n_steps += 1
        alpha, val_loss = contenders[0].strategy.alpha, None
        if validate:
            val_loss = check_finite(self._objective.validation_loss(alpha), self._n_steps, "validation loss")
        self._observe(StepRecord(self._n_steps, contenders[0].losses[-1], alpha, val_loss))
        return val_loss

    def _guard(self, winner: _Contender, runner_up: _Contender | None, starts: list[screening.Start]) -> guard.Verdict:
        """Hold the end against the uniform blend, the runner-up, the winner's start and the most promising expert."""
        by_name = {start.name: start.alpha for start in starts}
        rivals = {"uniform": by_name["uniform"]}
        if runner_up:
            rivals["runner-up"] = runner_up.strategy.alpha
        rivals[winner.start.name] = winner.start.alpha
        nearest = next((start.expert for start in starts if start.expert is not None), None)
        if nearest is not None:
            expert = torch.zeros_like(winner.strategy.alpha)
            expert[:, nearest] = 1
            rivals[f"expert {nearest}"] = expert
        verdict = guard.guard(self._objective, self._purse, winner.strategy.alpha, rivals)
        if verdict.loss is not None:
            check_finite(verdict.loss, self._n_steps, "validation loss")
        return verdict

    def _left(self) -> float:
        return max(0, self._purse.forwards() - guard.reserve(self._objective, self._purse))

    def _note(self, stage: str, before: float | None = None, after: float | None = None) -> None:
        """Note what a stage has spent, and the loss before and after it on the same data, where that is known."""
        spent = sum(done["forwards"] for done in self._stages)
        forwards = self._objective.cost.forwards - spent
        self._stages.append({"stage": stage, "forwards": forwards, "loss_before": before, "loss_after": after})


def _race_length(n_contenders: int) -> int:
    """Return how often a contender is moved on by `n_rounds` steps until one of them is left."""
    return 0 if n_contenders == 1 else n_contenders + _race_length((n_contenders + 1) // 2)
