"""The loss halfway between two experts, against that of the two: whether they lie in one basin on the target's data.

Measured on examples/digits, 3 experts with each of 2 seeds (loss halfway over the mean of the two ends', with blended
statistics of BatchNorm): experts from one start 0.43 to 0.98, from starts of their own 0.75 to 1.30, with permuted
hidden units 0.66 to 1.09. So a loss well above that of the ends shows a barrier, but where experts are wrong and sure
of it, a useless blend has a lower loss too: the weights have to tell that experts are related.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

import torch
from torch import Tensor

from glue_cli.data.loader import Examples
from glue_cli.data.target import Target
from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.foundation.progress import Advanced, Finished, Started
from glue_cli.foundation.run import Run
from glue_cli.foundation.seeds import generator
from glue_cli.foundation.units import counted
from glue_cli.methods.staged.guard import paired_difference
from glue_cli.plans.mix import MixPlan
from glue_cli.results.check import CheckedLosses
from glue_cli.running.batchnorm import has_batchnorm
from glue_cli.running.losses import Loss
from glue_cli.search.criterion import criterion_of
from glue_cli.search.held_out import HeldOut, Judge, Part
from glue_cli.search.protocol import Blends
from glue_cli.spec.schema import Spec
from glue_cli.workflows.mix.experts_interface import Experts
from glue_cli.workflows.mix.labels import batches_of, share_out
from glue_cli.workflows.mix.setting import as_written

# A midpoint's loss may exceed the mean of its ends' by 5 %: experts that hardly differ are not told apart by noise.
# Beyond that, by two standard errors: without them, a draw of twelve examples in two condemned a good blend.
_BARRIER, _SURE = 1.05, 2
# Refreshed statistics are worth a pass over the data if they lower the midpoints' loss to this share.
_CLEARLY = 0.95
# With up to this many pairs, the loss is measured between all of them; otherwise, between each expert and the next.
_MOST_PAIRS = 10
# An end with so many times the loss of guessing has diverged, and a midpoint with so many times that, and that of the
# better end, is of no use.
_DIVERGED, _LOST = 10, 2
# A loss of guessing up to this is rounding: there is one class, or one value.
_CERTAIN = 1e-12
# Examples that losses are measured on, at most: a loss is then known to a few hundredths.
_JUDGED = 512


@dataclass(frozen=True)
class Losses:
    """Losses on some of the target's examples, with the blended statistics of BatchNorm, and with refreshed ones.

    Attributes:
        ends: of each expert, by kind of statistics, [K]; refreshed ones only if the model has BatchNorm.
        midpoints: halfway between two experts, by their numbers.
        guessing: of predicting how often each class occurs, or the mean of the targets; None for tokens.
        n_examples: how many examples there are.
        errors: of what a midpoint's loss is above the most that it may be, its standard error, by example.
    """

    ends: Mapping[Statistics, Sequence[float]]
    midpoints: Mapping[Statistics, Mapping[tuple[int, int], float]]
    guessing: float | None
    n_examples: int
    errors: Mapping[Statistics, Mapping[tuple[int, int], float]]

    @property
    def best(self) -> Statistics | None:
        """The statistics with which a mix is of use; None if there are none.

        That is where every midpoint is about as good as its ends or better, or one is better than every expert: a
        search leaves out experts that others do not go with. If both kinds are of use, refreshed ones are named only
        if they make the midpoints clearly better.
        """
        sound = [kind for kind in self.midpoints if self._is_sound(kind) or self._helping(kind)]
        if len(sound) < 2:
            return sound[0] if sound else None
        return "refreshed" if self._mean("refreshed") < _CLEARLY * self._mean("averaged") else "averaged"

    def _is_sound(self, kind: Statistics) -> bool:
        """Tell whether no midpoint's loss is surely far above the mean of its ends', as a convex loss never is.

        An end that has diverged would raise that mean above any midpoint.
        """
        ends = self.ends[kind]
        return all(
            loss - _barrier(ends[i], ends[j]) <= _SURE * self.errors[kind][i, j]
            and math.isfinite(loss)
            and not self._is_lost(loss, ends[i], ends[j])
            for (i, j), loss in self.midpoints[kind].items()
        )

    def _helping(self, kind: Statistics) -> tuple[int, int] | None:
        """Return the pair with the best midpoint if that is better than every expert."""
        midpoints, best = self.midpoints[kind], min(self.ends[kind])
        return min((pair for pair, loss in midpoints.items() if loss < best), key=midpoints.__getitem__, default=None)

    def _is_lost(self, loss: float, *ends: float) -> bool:
        """Tell whether one end is far worse than guessing, and has drawn the midpoint there from the other."""
        if self.guessing is None:
            return False
        is_drawn = loss > _LOST * max(self.guessing, min(ends))
        return is_drawn and max(ends) > _DIVERGED * self.guessing

    def _mean(self, kind: Statistics) -> float:
        return statistics.fmean(self.midpoints[kind].values() or self.ends[kind])

    def as_result(self) -> CheckedLosses:
        """Return the experts' losses as the command reports them."""
        return CheckedLosses(
            experts=self.ends["averaged"],
            experts_refreshed=self.ends.get("refreshed"),
            guessing=self.guessing,
            examples=self.n_examples,
        )

    def describe(self) -> tuple[str, ...]:
        """Return sentences with the worst midpoint of each kind of statistics."""
        words = {"averaged": "", "refreshed": " with BatchNorm's statistics refreshed"}
        said = []
        for kind, midpoints in self.midpoints.items():
            if not midpoints:  # of a single expert
                continue
            (i, j), loss = max(midpoints.items(), key=lambda item: item[1])
            ends = f"{self.ends[kind][i]:.3f} and {self.ends[kind][j]:.3f}"
            where = f"on {counted(self.n_examples, 'example')}, halfway between experts {i} and {j}"
            said.append(f"{where}, the loss is {loss:.3f}{words[kind]}, at the ends {ends}")
            if not self._is_sound(kind) and (pair := self._helping(kind)):
                i, j = pair
                said.append(
                    f"between {i} and {j} it is {midpoints[pair]:.3f}{words[kind]}, below that of every expert"
                )
        if self.guessing is not None:
            said += self._against_guessing(self.guessing)
        return tuple(said)

    def _against_guessing(self, guessing: float) -> list[str]:
        said = [f"the loss of guessing, by how often each class occurs, is {guessing:.3f}"]
        measured = [loss for kind, ends in self.ends.items() for loss in (*ends, *self.midpoints[kind].values())]
        if not any(loss < guessing for loss in measured):
            mixes = ", and no mix halfway," if any(self.midpoints.values()) else ""
            said.append(f"no expert{mixes} does better than guessing")
        if guessing <= _CERTAIN:
            said.insert(1, "the examples are of one class, or value: losses on them tell little of a mix")
        return said


def measure_losses(plan: MixPlan, spec: Spec, target: Target, experts: Experts, blends: Blends, run: Run) -> Losses:
    """Measure the loss of every expert and halfway between pairs of them, as they would be written.

    Cost: for each, forwards over the examples that judge it, and over those that statistics are taken from.
    """
    criterion = criterion_of("loss", spec.loss, spec.path("."))
    labels = share_out(target, criterion.goal, spec.mix, blends.compute, seed=plan.seed, may_fold=False)
    examples = judged_examples(target, plan.seed)
    judged = batches_of(examples, spec.mix.batch_size, blends.compute, plan.seed)
    held_out = HeldOut(Judge(as_written(plan, experts, blends), criterion), [Part(judged, labels.refreshing)])
    kinds: list[Statistics] = ["averaged", "refreshed"] if has_batchnorm(blends.model) else ["averaged"]
    n_experts, pairs = blends.n_experts, _pairs(blends.n_experts)
    run.progress(Started("measure losses", len(kinds) * (n_experts + len(pairs)), "blends"))
    n_done = 0

    def terms_of(alpha: Tensor, kind: Statistics) -> Tensor:
        nonlocal n_done
        terms = held_out.terms(alpha.expand(blends.n_groups, n_experts), kind, None, lambda targets: None)
        n_done += 1
        run.progress(Advanced(n_done))
        return terms

    points = torch.eye(n_experts, dtype=torch.float64)
    found: dict[Statistics, _Found] = {}
    for kind in kinds:
        ends = [terms_of(point, kind) for point in points]
        found[kind] = _Found(ends, {(i, j): terms_of((points[i] + points[j]) / 2, kind) for i, j in pairs})
    run.progress(Finished())
    return Losses(
        {kind: one.of_ends() for kind, one in found.items()},
        {kind: one.of_midpoints() for kind, one in found.items()},
        _guessing([targets for _, targets in judged.again()], spec.loss),
        len(examples),
        {kind: one.errors() for kind, one in found.items()},
    )


@dataclass(frozen=True)
class _Found:
    """Terms by example, float64 [N]: of the experts, and halfway between two."""

    ends: Sequence[Tensor]
    midpoints: Mapping[tuple[int, int], Tensor]

    def of_ends(self) -> list[float]:
        return [terms.mean().item() for terms in self.ends]

    def of_midpoints(self) -> dict[tuple[int, int], float]:
        return {pair: terms.mean().item() for pair, terms in self.midpoints.items()}

    def errors(self) -> dict[tuple[int, int], float]:
        """Return the standard error of what each midpoint is above its barrier; infinite for a single example."""
        found = {}
        for (i, j), terms in self.midpoints.items():
            _, error = paired_difference(terms, _barrier(self.ends[i], self.ends[j]))
            found[i, j] = math.inf if error is None else error
        return found


Figure = TypeVar("Figure", float, Tensor)


def _barrier(one: Figure, other: Figure) -> Figure:
    """Return the most that the loss halfway between two ends may be; of figures, or example by example."""
    return _BARRIER * (one + other) / 2


def judged_examples(target: Target, seed: int) -> Examples:
    """Return validation examples, and examples for training where there are too few, drawn at random."""
    val, train = target["val"], target["train"]
    n_more = _JUDGED - len(val)
    if n_more <= 0 or not val.joins(train):
        return _some_of(val, _JUDGED, seed)
    return val.joined(_some_of(train, n_more, seed))


def _some_of(examples: Examples, n: int, seed: int) -> Examples:
    """Draw up to n examples: the first ones of a split may all be of one class."""
    drawn = torch.randperm(len(examples), generator=generator(seed, "check"))[:n]
    return examples.subset(drawn.sort().values)


def _pairs(n_experts: int) -> list[tuple[int, int]]:
    pairs = list(combinations(range(n_experts), 2))
    return pairs if len(pairs) <= _MOST_PAIRS else [(k, k + 1) for k in range(n_experts - 1)] + [(0, n_experts - 1)]


def _guessing(batches: Sequence[Tensor], loss: Loss) -> float | None:
    """Return the loss of the best constant prediction; None for a language model, whose tokens are not compared."""
    if loss == "cross_entropy" and any(batch.dim() != 1 for batch in batches):
        return None
    targets = torch.cat(list(batches)).cpu() if batches else torch.empty(0)
    if loss == "mse":
        return float((targets - targets.mean(0)).square().mean())
    shares = targets.bincount().double() / len(targets)
    return 0.0 - float(torch.special.xlogy(shares, shares).sum())  # not -0.0, where there is one class
