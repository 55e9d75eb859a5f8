"""The default preset's search: screen starts, race the best of them, descend from the winner, guard the end.

What descends is a strategy: Gauss-Newton, SPSA, or CMA-ES.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from glue_cli.foundation.state import Checkpoint, State, list_of, list_state, no_checkpoint, part_of, prefixed
from glue_cli.methods.domains import Simplex
from glue_cli.methods.result import Learned, StepRecord, check_finite
from glue_cli.methods.staged import guard
from glue_cli.methods.staged.contenders import Contender, MakeStrategy, enter
from glue_cli.methods.staged.screening import N_MINIBATCHES, Start, screen
from glue_cli.methods.steps.plateau import Plateau
from glue_cli.methods.steps.strategy import make_step
from glue_cli.methods.stepwise import Observe, run, unobserved
from glue_cli.search.account import Purse
from glue_cli.search.protocol import Objective
from glue_cli.spec.schema import MixSpec

_RACE_SHARE = 0.5  # the most that the race takes of a budget


def search(
    objective: Objective,
    settings: MixSpec,
    make_strategy: MakeStrategy,
    *,
    seed: int,
    observe: Observe = unobserved,
    checkpoint: Checkpoint = no_checkpoint,
    state: State | None = None,
) -> Learned:
    """Minimise the target loss over alpha within the settings' budget, or to a plateau of the validation loss.

    Args:
        make_strategy: a strategy from a start, alpha [G, K].
        observe: told of the uniform blend, of every step of the contender in the lead, and of what is returned.
        checkpoint: called after the screening, and after every step on a minibatch; state: where to go on from.
    Raises:
        NumericalError: a loss is not finite.
    """
    domain = Simplex.of(objective)
    if domain.n_experts == 1:
        return Learned(domain.uniform(), None, None, 0, "steps")
    return run(domain, _StagedSearch(objective, settings, make_strategy, seed, observe), checkpoint, state)


class _StagedSearch:
    """The state of a search: how far its stages are, what is left of the budget, and what each stage has spent.

    Screening is one step, and so is the guard. A step of the race or the descent is one minibatch.
    """

    def __init__(
        self, objective: Objective, settings: MixSpec, make_strategy: MakeStrategy, seed: int, observe: Observe
    ) -> None:
        self._objective, self._settings, self._seed = objective, settings, seed
        self._make_strategy, self._observe = make_strategy, observe
        self._domain = Simplex.of(objective)
        self._purse = Purse(settings.parsed_budget, objective.cost, settings.batch_size)
        self._stage: Literal["screen", "race", "descend", "guard"] = "screen"
        self._spending: list[dict[str, Any]] = []  # of the stages that are done
        self._starts: list[Start] = []  # from the best down
        self._contenders: list[Contender] = []  # the first is in the lead; behind the race it is the winner
        self._runner_up: Tensor | None = None  # the alpha that came second in the race
        self._plateau = Plateau(settings.patience)
        self._n_steps, self._stopped = 0, ""

    def step(self) -> Learned | None:
        match self._stage:
            case "screen":
                self._screen()
            case "race":
                self._race()
            case "descend":
                self._descend()
            case "guard":
                return self._guard()
        return None

    def _screen(self) -> None:
        self._starts = screen(self._objective, self._purse, self._seed)
        uniform = self._start_named("uniform")
        self._observe(StepRecord(0, uniform.losses[0], uniform.alpha))
        self._note(uniform.losses[0], self._starts[0].losses[0])
        self._contenders = enter(self._starts, self._make_strategy, _RACE_SHARE * self._left())
        self._stage = "race"

    def _race(self) -> None:
        """Let all contenders make a step; whenever as many are made as tell them apart, drop the worse half."""
        contenders = self._contenders
        if len(contenders) == 1 or not self._can_step():
            self._end_race()
            return
        self._make_step()
        if len(contenders[0].losses) % contenders[0].strategy.n_rounds == 0:
            contenders.sort(key=lambda contender: contender.score)
            self._runner_up = contenders[1].strategy.alpha
            del contenders[(len(contenders) + 1) // 2 :]

    def _end_race(self) -> None:
        if len(self._contenders) > 1 and self._contenders[0].losses:  # the race was cut short
            self._contenders.sort(key=lambda contender: contender.score)
            self._runner_up = self._contenders[1].strategy.alpha
        del self._contenders[1:]
        self._note()
        self._stage = "descend"

    def _descend(self) -> None:
        """Go on until the budget's part is spent; without one, until the validation loss is level."""
        if self._can_step():
            is_due = not self._purse.is_limited and (self._n_steps + 1) % self._settings.validate_every == 0
            val_loss = self._make_step(validate=is_due)
            if val_loss is None or not self._plateau.reached(val_loss):
                return
            self._stopped = "plateau"
        self._note()
        self._stage = "guard"

    def _guard(self) -> Learned:
        """Hold the end against plain blends, and return what stands."""
        (winner,) = self._contenders
        end = winner.strategy.alpha
        verdict = guard.guard(self._objective, self._purse, end, self._rivals())
        if verdict.loss is not None:
            check_finite(verdict.loss, self._n_steps, "validation loss")
        self._note()
        losses = {rival.name: rival.loss for rival in verdict.rivals}
        descent = next(stage for stage in self._spending if stage["stage"] == "descend")
        descent |= {"loss_before": losses.get(winner.start.name), "loss_after": verdict.end_loss}
        account = {
            "start": winner.start.name,
            "starts": {start.name: start.loss for start in self._starts},
            "stages": self._spending,
            **guard.account(verdict),
        }
        self._observe(StepRecord(self._n_steps, None, verdict.alpha, verdict.loss))
        is_uniform = torch.equal(end, self._domain.uniform())
        val_uniform = verdict.end_loss if is_uniform else losses.get("uniform")
        return Learned(verdict.alpha, verdict.loss, val_uniform, self._n_steps, self._stopped, account)

    def _rivals(self) -> dict[str, Tensor]:
        """Return the uniform blend, the runner-up, the winner's start and the most promising expert."""
        (winner,) = self._contenders
        rivals = {"uniform": self._domain.uniform()}
        if self._runner_up is not None:
            rivals["runner-up"] = self._runner_up
        rivals[winner.start.name] = winner.start.alpha
        nearest = next((start.expert for start in self._starts if start.expert is not None), None)
        if nearest is not None:
            rivals[f"expert {nearest}"] = self._domain.corner(nearest)
        return rivals

    def _can_step(self) -> bool:
        strategies = [contender.strategy for contender in self._contenders]
        if not self._purse.is_limited and self._n_steps >= self._settings.steps:
            self._stopped = "steps"
        elif self._left() < len(strategies) * strategies[0].least_forwards:
            self._stopped = "budget"
        elif any(strategy.has_converged for strategy in strategies):
            self._stopped = "converged"
        else:
            return True
        return False

    def _make_step(self, *, validate: bool = False) -> float | None:
        """Make a step with each contender on one minibatch; tell of the first; return its validation loss if asked."""
        n_forwards = self._left() / len(self._contenders)
        for contender in self._contenders:
            minibatch = N_MINIBATCHES + self._n_steps
            loss = make_step(contender.strategy, self._objective, minibatch, n_forwards)
            contender.losses.append(check_finite(loss, self._n_steps, "loss"))
        self._n_steps += 1
        leader, val_loss = self._contenders[0], None
        alpha = leader.strategy.alpha
        if validate:
            val_loss = check_finite(self._objective.validation_loss(alpha), self._n_steps, "validation loss")
        self._observe(StepRecord(self._n_steps, leader.losses[-1], alpha, val_loss))
        return val_loss

    def _start_named(self, name: str) -> Start:
        return next(start for start in self._starts if start.name == name)

    def _left(self) -> float:
        return max(0, self._purse.forwards() - guard.reserve(self._objective, self._purse))

    def _note(self, before: float | None = None, after: float | None = None) -> None:
        """Note what the stage has spent, and the loss before and after it on the same data, where that is known."""
        spent = sum(done["forwards"] for done in self._spending)
        forwards = self._objective.cost.forwards - spent
        self._spending.append({"stage": self._stage, "forwards": forwards, "loss_before": before, "loss_after": after})

    def state(self) -> State:
        return {
            "stage": self._stage,
            "n_steps": self._n_steps,
            "stopped": self._stopped,
            "runner_up": self._runner_up,
            **list_state("spending", self._spending),
            **list_state("starts", [start.state() for start in self._starts]),
            **list_state("contenders", [contender.state() for contender in self._contenders]),
            **prefixed("plateau", self._plateau.state()),
            **prefixed("purse", self._purse.state()),
        }

    def restore(self, state: State) -> None:
        self._stage, self._n_steps, self._stopped = state["stage"], state["n_steps"], state["stopped"]
        self._runner_up = state["runner_up"]
        self._spending = list_of(state, "spending")
        self._starts = [Start.of(start) for start in list_of(state, "starts")]
        self._contenders = [
            Contender.of(contender, self._starts, self._make_strategy) for contender in list_of(state, "contenders")
        ]
        self._plateau.restore(part_of(state, "plateau"))
        self._purse.restore(part_of(state, "purse"))
