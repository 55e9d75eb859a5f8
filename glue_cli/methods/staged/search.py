"""The default preset's search: screen starts, race the best, descend from the winners, guard the result.

The descent is done by a strategy: Gauss-Newton, SPSA, CMA-ES, or the true gradient. If there are groups of tensors and
a strategy for them, one alpha for all is learned first, and from there an alpha for each group.
"""

import math
from dataclasses import replace
from typing import Literal

from glue_cli.foundation.state import SaveState, State, list_of, list_state, part_of, prefixed, save_nothing
from glue_cli.methods.domains import Simplex
from glue_cli.methods.only_expert import judge_only_expert
from glue_cli.methods.result import Learned, StepRecord, if_finite
from glue_cli.methods.skips import Skips, not_finite
from glue_cli.methods.staged import by_group, guard
from glue_cli.methods.staged.by_group import ByGroup, MakeGroups
from glue_cli.methods.staged.contenders import Contender, MakeStrategy, better_half, enter, first_of_each_kind
from glue_cli.methods.staged.guard import Candidate
from glue_cli.methods.staged.most_forwards import validation_interval
from glue_cli.methods.staged.rivals import rivals_of
from glue_cli.methods.staged.screening import N_MINIBATCHES, Start, screen
from glue_cli.methods.steps.plateau import Plateau
from glue_cli.methods.steps.strategy import Strategy, make_step
from glue_cli.methods.stepwise import Observe, run, unobserved
from glue_cli.results.mix import END, ONE_ALPHA, RUNNER_UP, UNIFORM, Stage, StagedSearch, StageLosses
from glue_cli.results.record import as_object, read_record
from glue_cli.search.account import Purse
from glue_cli.search.protocol import Objective
from glue_cli.spec.schema import MixSpec

_RACE_SHARE = 0.5  # the most that the race takes of a budget


def search(
    objective: Objective,
    settings: MixSpec,
    make_strategy: MakeStrategy,
    *,
    make_groups: MakeGroups | None = None,
    seed: int,
    observe: Observe = unobserved,
    save_state: SaveState = save_nothing,
    state: State | None = None,
) -> Learned:
    """Minimise the target loss over alpha within the settings' budget, or to a plateau of the validation loss.

    Args:
        make_strategy: a strategy from a start, alpha [G, K].
        make_groups: makes the strategy with an alpha for each group, if `make_strategy` moves all groups as one; None
            if there is one group, or if the strategy moves each group from the beginning.
        observe: called with the uniform blend, or the best start if the uniform blend's loss is not finite; with every
            step of the leading contender; and with what is returned.
        save_state: called after the screening, and after every step on a minibatch; state: to resume from.
    Raises:
        NumericalError: no start has a finite loss, or none has one at several steps in a row, or the blend to return.
    """
    domain = Simplex.of(objective)
    if domain.n_experts == 1:
        return judge_only_expert(objective, settings)
    return run(
        domain, _StagedSearch(objective, settings, make_strategy, make_groups, seed, observe), save_state, state
    )


class _StagedSearch:
    """A search in progress: its stage, what is left of the budget, and what each stage has spent.

    Screening is one step, and so is the guard. A step of the race, the descent or the groups is one minibatch.
    """

    def __init__(
        self,
        objective: Objective,
        settings: MixSpec,
        make_strategy: MakeStrategy,
        make_groups: MakeGroups | None,
        seed: int,
        observe: Observe,
    ) -> None:
        self._objective, self._settings, self._seed = objective, settings, seed
        self._make_strategy, self._make_groups, self._observe = make_strategy, make_groups, observe
        self._domain = Simplex.of(objective)
        self._purse = Purse(settings.parsed_budget, objective.cost, settings.batch_size)
        self._stage: Literal["screen", "race", "descend", "groups", "guard"] = "screen"
        self._spending: list[Stage] = []  # of the finished stages
        self._starts: list[Start] = []  # the best first
        self._lost: list[str] = []  # the names of the starts whose loss is not finite
        self._skips = Skips()
        self._contenders: list[Contender] = []  # the first leads; after the descent it is the winner
        self._runner_up: Candidate | None = None  # what came second in the race
        self._groups: ByGroup | None = None
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
            case "groups":
                self._descend_by_group()
            case "guard":
                return self._guard()
        return None

    # ---- the stages

    def _screen(self) -> None:
        self._starts, lost = screen(self._objective, self._purse, self._seed)
        self._lost = [start.label for start in lost]
        best = self._starts[0]
        first = next((start for start in self._starts if start.name == UNIFORM), best)
        self._observe(StepRecord(0, first.losses[0], first.alpha))
        self._note(first.losses[0] if first.name == UNIFORM else None, best.losses[0])
        self._contenders = enter(self._starts, self._make_strategy, _RACE_SHARE * self._left())
        self._stage = "race"

    def _race(self) -> None:
        """Let all contenders make a step; after every `n_rounds` steps, drop the worse half.

        Without a budget the best of each kind of statistics stays: a few steps from a start do not tell which kind is
        better at the end.
        """
        contenders = self._contenders
        if len(contenders) == len(self._winners()) or not self._can_step():
            self._end_race()
            return
        self._make_step()
        if len(contenders[0].losses) % contenders[0].strategy.n_rounds == 0:
            contenders.sort(key=lambda contender: contender.score)
            self._runner_up = self._estimate(RUNNER_UP, contenders[1])
            self._contenders = better_half(contenders, self._winners())

    def _end_race(self) -> None:
        if self._contenders[0].losses:
            self._contenders.sort(key=lambda contender: contender.score)
        winners = self._winners()
        others = [contender for contender in self._contenders if contender not in winners]
        if others and others[0].losses:  # the race was cut short
            self._runner_up = self._estimate(RUNNER_UP, others[0])
        self._contenders = winners
        self._note()
        self._stage = "descend"

    def _winners(self) -> list[Contender]:
        """Return the contenders that would descend now: the first, or without a budget the first of each kind."""
        return self._contenders[:1] if self._purse.is_limited else first_of_each_kind(self._contenders)

    def _descend(self) -> None:
        """Make a step, until the budget's part is spent or, without one, the leader's validation loss is level."""
        if self._can_step():
            is_due = self._validation_is_due()
            val_loss = self._make_step(validate=is_due)
            if not is_due or not self._plateau.reached(val_loss):
                return
            self._stopped = "plateau"
        n_winners = len(self._contenders)
        self._choose_winner()
        self._note()
        self._begin_groups(n_winners)
        self._stage = "groups" if self._groups else "guard"

    def _choose_winner(self) -> None:
        """Of the winners with each kind of statistics, keep the one that is better as it would be written."""
        if len(self._contenders) == 1:
            return
        found = [self._estimate(RUNNER_UP, contender) for contender in self._contenders]
        losses = [guard.loss_of(self._objective, candidate) for candidate in found]
        best, second = sorted(range(len(found)), key=lambda k: (math.isnan(losses[k]), losses[k]))[:2]
        self._contenders, self._runner_up = [self._contenders[best]], found[second]

    def _begin_groups(self, n_winners: int) -> None:
        """Begin to learn an alpha for each group, if there are several and the budget has room for them.

        Args:
            n_winners: how many have descended; groups cost a share of one's descent.
        """
        if self._make_groups is None:
            return
        (winner,) = self._contenders
        n_forwards = self._purse.worth(by_group.SHARE)
        if self._purse.is_limited:
            n_forwards = min(n_forwards, self._left() + self._kept_for_groups())
        else:
            spent = {stage.stage: stage.forwards for stage in self._spending}
            n_forwards = by_group.share_of_descent(spent["race"] + spent["descend"] / n_winners)
        one = self._estimate(ONE_ALPHA, winner)
        groups = ByGroup(self._make_groups, one, winner.start.alpha, n_forwards)
        if not self._purse.is_limited or by_group.fits(groups.strategy, n_forwards):
            self._groups = groups

    def _descend_by_group(self) -> None:
        groups, strategy = self._groups, self._groups.strategy if self._groups else None
        assert groups and strategy
        if not groups.is_done and self._left() >= strategy.least_forwards:
            objective = self._objective.with_statistics(groups.one.statistics)
            n_forwards = min(self._left(), groups.forwards_a_step if self._purse.is_limited else math.inf)
            loss = make_step(strategy, objective, N_MINIBATCHES + self._n_steps, n_forwards)
            self._skips.count([loss], self._n_steps, strategy.alpha)
            groups.n_made += 1
            self._n_steps += 1
            self._observe(StepRecord(self._n_steps, if_finite(loss), strategy.alpha, None, self._skips.n_steps))
            return
        self._note()
        self._stage = "guard"

    def _guard(self) -> Learned:
        """Compare the end with plain blends, and return the blend that wins."""
        (winner,) = self._contenders
        end = self._end()
        rivals = rivals_of(
            self._objective,
            winner.start,
            self._starts if self._purse.is_limited else None,
            one_alpha=self._groups.one if self._groups else None,
            runner_up=self._runner_up,
        )
        verdict = guard.guard(self._objective, self._purse, end, rivals)
        if verdict.loss is not None and not math.isfinite(verdict.loss):
            raise not_finite("the validation loss of the end and of every rival", self._n_steps, end.alpha)
        self._note()
        losses = {rival.candidate.label: rival.loss for rival in verdict.rivals}
        of_descent = StageLosses(loss_before=losses.get(winner.start.label), loss_after=verdict.end_loss)
        search = StagedSearch(
            start=winner.start.label,
            starts={start.label: start.loss for start in self._starts},
            stages=[replace(s, losses=of_descent) if s.stage == "descend" else s for s in self._spending],
            returned=verdict.name,
            guard=guard.as_written_down(verdict),
        )
        returned = verdict.returned
        self._observe(StepRecord(self._n_steps, None, returned.alpha, verdict.loss, self._skips.n_steps))
        uniform = Candidate(UNIFORM, self._domain.uniform(), self._objective.kinds[0])
        return Learned(
            returned.alpha,
            verdict.loss,
            verdict.end_loss if end.is_like(uniform) else losses.get(uniform.label),
            self._n_steps,
            self._stopped,
            search,
            returned.statistics,
            is_as_written=verdict.is_whole and self._objective.n_folds == 1,
            n_skipped=self._skips.n_steps,
            lost=tuple(self._lost),
        )

    # ---- estimates

    def _end(self) -> Candidate:
        if self._groups:
            return self._groups.candidate(self._n_seen(self._groups.n_made))
        return self._estimate(END, self._contenders[0])

    def _estimate(self, name: str, contender: Contender) -> Candidate:
        """Return a contender's estimate, pulled back as far as the examples that it saw do not support it."""
        return contender.candidate(name, self._n_seen(len(contender.losses)))

    def _n_seen(self, n_steps: int) -> int:
        """Return how many examples `n_steps` steps have seen."""
        return max(1, min(self._objective.n_examples, n_steps * self._settings.batch_size))

    # ---- steps

    def _can_step(self) -> bool:
        strategies = [contender.strategy for contender in self._contenders]
        if not self._purse.is_limited and self._n_steps >= self._settings.steps:
            self._stopped = "steps"
        elif self._left() < len(strategies) * strategies[0].least_forwards:
            self._stopped = "budget"
        elif all(strategy.has_converged for strategy in strategies):
            self._stopped = "converged"
        else:
            return True
        return False

    def _make_step(self, *, validate: bool = False) -> float | None:
        """Make a step with each contender on one minibatch; report the first.

        Returns:
            The first's validation loss, if that was asked for; None if it is not finite.
        """
        n_forwards = self._left() / len(self._contenders)
        for contender in self._contenders:
            if contender.strategy.has_converged:
                contender.losses.append(contender.losses[-1])
                continue
            objective = self._objective.with_statistics(contender.start.statistics)
            loss = make_step(contender.strategy, objective, N_MINIBATCHES + self._n_steps, n_forwards)
            contender.losses.append(loss if math.isfinite(loss) else math.inf)
        leader, val_loss = self._contenders[0], None
        alpha = leader.strategy.alpha
        self._skips.count([contender.losses[-1] for contender in self._contenders], self._n_steps, alpha)
        self._n_steps += 1
        if validate:
            objective = self._objective.with_statistics(leader.start.statistics)
            val_loss = if_finite(objective.validation_loss(alpha))
        loss_shown = if_finite(leader.losses[-1])
        self._observe(StepRecord(self._n_steps, loss_shown, alpha, val_loss, self._skips.n_steps))
        return val_loss

    def _validation_is_due(self) -> bool:
        """Tell whether a validation follows the next step."""
        strategy: Strategy = self._contenders[0].strategy
        every = validation_interval(self._settings, strategy)
        return not self._purse.is_limited and (self._n_steps + 1) % every == 0

    # ---- the budget

    def _left(self) -> float:
        """Return how many forwards the stage may still take, without those kept for later stages."""
        kept = guard.reserve(self._objective, self._purse)
        return max(0, self._purse.forwards() - kept - (0 if self._stage == "groups" else self._kept_for_groups()))

    def _kept_for_groups(self) -> float:
        """Return how many forwards of a budget are kept for the groups' own alphas, if there is room for them."""
        if self._make_groups is None or not self._purse.is_limited:
            return 0
        n_forwards = self._purse.worth(by_group.SHARE)
        uniform = self._domain.uniform()
        return n_forwards if by_group.fits(self._make_groups(uniform, uniform), n_forwards) else 0

    def _note(self, before: float | None = None, after: float | None = None) -> None:
        """Record what the stage has spent, and the loss before and after it on the same data, if known."""
        spent = sum(done.forwards for done in self._spending)
        forwards = self._objective.cost.forwards - spent
        losses = StageLosses(loss_before=before, loss_after=after)
        self._spending.append(Stage(stage=self._stage, forwards=forwards, losses=losses))

    # ---- the state

    def state(self) -> State:
        second = self._runner_up
        return {
            "stage": self._stage,
            "n_steps": self._n_steps,
            "stopped": self._stopped,
            "runner_up": second and second.alpha,
            "runner_up_statistics": second and second.statistics,
            "runner_up_without": second and second.without,
            **list_state("spending", [as_object(stage) for stage in self._spending]),
            **list_state("starts", [start.state() for start in self._starts]),
            **list_state("lost", [{"label": label} for label in self._lost]),
            **list_state("contenders", [contender.state() for contender in self._contenders]),
            **(prefixed("groups", self._groups.state()) if self._groups else {}),
            **prefixed("plateau", self._plateau.state()),
            **prefixed("skips", self._skips.state()),
            **prefixed("purse", self._purse.state()),
        }

    def restore(self, state: State) -> None:
        self._stage, self._n_steps, self._stopped = state["stage"], state["n_steps"], state["stopped"]
        second = state["runner_up_statistics"], state["runner_up_without"]
        self._runner_up = None if state["runner_up"] is None else Candidate(RUNNER_UP, state["runner_up"], *second)
        self._spending = [read_record(Stage, stage) for stage in list_of(state, "spending")]
        self._starts = [Start.of(start) for start in list_of(state, "starts")]
        self._lost = [start["label"] for start in list_of(state, "lost")]
        self._contenders = [
            Contender.of(contender, self._starts, self._make_strategy) for contender in list_of(state, "contenders")
        ]
        groups = part_of(state, "groups")
        self._groups = ByGroup.of(groups, self._make_groups) if groups and self._make_groups else None
        self._plateau.restore(part_of(state, "plateau"))
        self._skips.restore(part_of(state, "skips"))
        self._purse.restore(part_of(state, "purse"))
