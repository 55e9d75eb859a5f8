"""Greedy soup, Wortsman et al. 2022: the uniform mean of the experts that do not raise the held-out loss."""

import math
from collections.abc import Iterable
from dataclasses import replace

import torch

from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.foundation.seeds import generator
from glue_cli.foundation.state import SaveState, State, list_of, list_state, part_of, prefixed, save_nothing
from glue_cli.methods.domains import Simplex
from glue_cli.methods.only_expert import judge_only_expert
from glue_cli.methods.result import Learned, StepRecord, if_finite
from glue_cli.methods.skips import not_finite
from glue_cli.methods.stepwise import Observe, run, unobserved
from glue_cli.results.mix import GreedySearch, name_of_expert, name_with
from glue_cli.search.account import Purse
from glue_cli.search.protocol import Objective
from glue_cli.spec.schema import MixSpec


def greedy(
    objective: Objective,
    settings: MixSpec,
    *,
    seed: int,
    observe: Observe = unobserved,
    save_state: SaveState = save_nothing,
    state: State | None = None,
) -> Learned:
    """Add experts to a soup one by one, from the best alone down; keep each that does not raise the soup's loss.

    Uses validation data only: two validations per expert, the uniform blend's included. A budget sets how many batches
    each validation takes, the same for all. If it is too small for a batch each, only some experts are tried, drawn by
    `seed`; if it is too small for two experts, the uniform blend is returned. One soup is made for each kind of
    BatchNorm statistics, with an equal share of the budget; the one with the least loss is returned. A loss that is
    not finite counts as infinitely bad.

    Args:
        observe: called for every expert tried: with the loss with it, and the soup after it with the soup's own loss.
        save_state: called between two validations; state: to resume from.
    Returns:
        `n_steps` experts were tried; `search` has the soup's experts in their order, and the loss after each.
    Raises:
        NumericalError: no expert has a finite loss, with either kind of statistics.
    """
    domain = Simplex.of(objective)
    if domain.n_experts == 1:
        return judge_only_expert(objective, settings)
    return run(domain, _Soups(objective, domain, settings, seed, observe), save_state, state)


class _Soups:
    """Searches for a soup with each kind of statistics, one after the other."""

    def __init__(self, objective: Objective, domain: Simplex, settings: MixSpec, seed: int, observe: Observe) -> None:
        purse = Purse(settings.parsed_budget, objective.cost, settings.batch_size)
        self._soups = [
            _Soup(objective, domain, purse, kind, seed=seed, observe=observe, number=number)
            for number, kind in enumerate(objective.kinds)
        ]
        self._domain, self._purse, self._n_done = domain, purse, 0

    def step(self) -> Learned | None:
        self._n_done += self._soups[self._n_done].step()
        if self._n_done < len(self._soups):
            return None
        learned = [soup.learned() for soup in self._soups]
        known = [soup for soup in learned if soup.val_loss is not None]
        best = min(known, key=lambda soup: soup.val_loss or 0, default=learned[0])
        lost = tuple(name for soup in learned for name in soup.lost)
        if lost and not known:
            raise not_finite("the validation loss of every expert", len(lost), self._domain.uniform())
        n_skipped = sum(soup.n_skipped for soup in learned)
        return replace(best, val_loss_start=learned[0].val_loss_start, n_skipped=n_skipped, lost=lost)

    def state(self) -> State:
        soups = list_state("soups", [soup.state() for soup in self._soups])
        return {"n_done": self._n_done, **soups, **prefixed("purse", self._purse.state())}

    def restore(self, state: State) -> None:
        self._n_done = state["n_done"]
        for soup, own in zip(self._soups, list_of(state, "soups"), strict=True):
            soup.restore(own)
        self._purse.restore(part_of(state, "purse"))


class _Soup:
    """A greedy soup. The first step looks at the budget; each later one is a validation.

    Args:
        statistics: the BatchNorm statistics that all blends have.
        number: of the kind of statistics, from 0; it may spend the budget up to (number + 1) / (number of kinds).
    """

    def __init__(
        self,
        objective: Objective,
        domain: Simplex,
        purse: Purse,
        statistics: Statistics,
        *,
        seed: int,
        observe: Observe,
        number: int,
    ) -> None:
        self._objective, self._domain, self._seed, self._observe = objective, domain, seed, observe
        self._purse, self._statistics, self._number = purse, statistics, number
        self._drawn: list[int] = []  # the experts to be tried, in their order; none before the first step
        self._n_batches: int | None = None  # per validation; None for all
        self._alone: list[float] = []  # the losses of the experts drawn
        self._n_added = 0  # experts that were tried in the soup, from the best alone down
        self._ingredients: list[int] = []
        self._losses: list[float] = []  # of the soup, after each ingredient
        self._last_loss = math.inf  # of the soup that was tried last
        self._uniform_loss: float | None = None
        self._n_skipped = 0  # experts whose soup has no finite loss

    def step(self) -> bool:
        """Make a step; return whether it was the last one."""
        if not self._drawn:
            self._draw()
            return not self._drawn
        if len(self._alone) < len(self._drawn):
            self._alone.append(self._loss_of([self._drawn[len(self._alone)]]))
            return len(self._alone) == len(self._drawn) and math.isinf(min(self._alone))
        self._add()
        is_done = self._n_added == len(self._drawn)
        if is_done:
            self._validate_uniform()
        return is_done

    def _draw(self) -> None:
        """Draw as many experts as the budget can pay for; none if that is fewer than two."""
        purse, n_experts, share = self._purse, self._domain.n_experts, (self._number + 1) / len(self._objective.kinds)
        cost = self._objective.n_written_forwards(self._statistics, 1)
        if purse.is_limited and purse.forwards(share) >= cost:
            self._try_uniform()
            purse.warmed_up()
        if purse.is_timed and purse.forwards(share):
            self._try_uniform()  # to measure how many forwards fit in the time
        affordable = purse.forwards(share)
        n_tried = int(min(n_experts, affordable / 2 / cost))
        if n_tried < 2:
            return
        if not math.isinf(affordable):
            self._n_batches = max(1, int(affordable / (2 * n_experts)) - (cost - 1))
        order = torch.randperm(n_experts, generator=generator(self._seed, "greedy"))
        self._drawn = sorted(order[:n_tried].tolist())

    def _try_uniform(self) -> None:
        self._objective.written_terms(self._domain.uniform(), self._statistics, 1)

    def _add(self) -> None:
        """Try the next expert in the soup."""
        expert = self._ranked()[self._n_added]
        self._n_added += 1
        loss = self._loss_of([*self._ingredients, expert]) if self._ingredients else min(self._alone)
        self._n_skipped += math.isinf(loss)
        if not self._losses or loss <= self._losses[-1]:
            self._ingredients.append(expert)
            self._losses.append(loss)
        self._last_loss = loss
        soup = self._domain.mean_of(self._ingredients)
        n_before = self._number * self._domain.n_experts
        self._observe(StepRecord(n_before + self._n_added, if_finite(loss), soup, self._losses[-1], self._n_skipped))

    def _validate_uniform(self) -> None:
        """Compute the loss of the uniform blend, unless it was the last soup tried."""
        n_experts, tried_last = self._domain.n_experts, {*self._ingredients, self._ranked()[-1]}
        loss = self._last_loss if len(tried_last) == n_experts else self._loss_of(range(n_experts))
        self._uniform_loss = if_finite(loss)

    def learned(self) -> Learned:
        """Return the soup, or the uniform blend with unknown loss if there is none: the budget had no room for one,
        or no expert has a finite loss.
        """
        experts = [k for k, loss in zip(self._drawn, self._alone, strict=True) if math.isinf(loss)]
        lost = tuple(name_with(name_of_expert(k), self._statistics) for k in experts)
        if not self._ingredients:
            return Learned(self._domain.uniform(), None, None, 0, "budget", lost=lost)
        return Learned(
            self._domain.mean_of(self._ingredients),
            self._losses[-1],
            self._uniform_loss,
            self._n_added,
            "steps" if self._n_added == self._domain.n_experts else "budget",
            GreedySearch(ingredients=self._ingredients, losses=self._losses),
            self._statistics,
            is_as_written=self._n_batches is None and self._objective.n_folds == 1,
            n_skipped=self._n_skipped,
            lost=lost,
        )

    def _ranked(self) -> list[int]:
        """Return the experts that are tried, from the best alone down."""
        return [expert for _, expert in sorted(zip(self._alone, self._drawn, strict=True))]

    def _loss_of(self, experts: Iterable[int]) -> float:
        alpha = self._domain.mean_of(experts)
        loss = self._objective.written_terms(alpha, self._statistics, self._n_batches).mean().item()
        return loss if math.isfinite(loss) else math.inf

    def state(self) -> State:
        return {
            "drawn": torch.tensor(self._drawn, dtype=torch.int64),
            "n_batches": self._n_batches,
            "alone": torch.tensor(self._alone, dtype=torch.float64),
            "n_added": self._n_added,
            "ingredients": torch.tensor(self._ingredients, dtype=torch.int64),
            "losses": torch.tensor(self._losses, dtype=torch.float64),
            "last_loss": torch.tensor(self._last_loss, dtype=torch.float64),  # in JSON it could not be infinite
            "uniform_loss": self._uniform_loss,
            "n_skipped": self._n_skipped,
        }

    def restore(self, state: State) -> None:
        self._drawn, self._ingredients = state["drawn"].tolist(), state["ingredients"].tolist()
        self._alone, self._losses = state["alone"].tolist(), state["losses"].tolist()
        self._n_batches, self._n_added = state["n_batches"], state["n_added"]
        self._last_loss, self._uniform_loss = state["last_loss"].item(), state["uniform_loss"]
        self._n_skipped = state["n_skipped"]
