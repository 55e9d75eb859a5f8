"""What a search minimises, as a function of alpha, eq. (2); every pass is charged to one account."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice, starmap

import torch
from torch import Tensor

from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.foundation.seeds import generator
from glue_cli.running.forward import Batch
from glue_cli.running.means import ExampleSums, Mean
from glue_cli.search.account import Cost
from glue_cli.search.criterion import Criterion
from glue_cli.search.held_out import HeldOut
from glue_cli.search.protocol import Blends
from glue_cli.search.secants import Quadratic, Secants


@dataclass(frozen=True)
class Minibatches:
    """The target's data as a search sees them, on the device.

    Attributes:
        at_step: the minibatch of a step, from the training data; the same for every method.
        validation: the whole validation data, in batches; the same at every call.
        n_validation: the number of validation batches.
        n_examples: the number of training examples.
        folds: the fold of each example of a step's minibatch, int64 [N], below n_folds; None if there is only one.
    """

    at_step: Callable[[int], Batch]
    validation: Callable[[], Iterable[Batch]]
    n_validation: int
    n_examples: int = 1
    folds: Callable[[int], Tensor] | None = None
    n_folds: int = 1


class BlendObjective:
    """L(alpha) on minibatches of the target's training data, and on its validation data.

    Args:
        blends: yields the outputs.
        criterion: judges the outputs.
        minibatches: the examples.
        seed: for drawing the tokens that curvatures are estimated from.
        held_out: judges blends as they would be written; if None, `blends` is used for that, on the validation data.
        kinds: the kinds of statistics that a blend may be written with.
    """

    def __init__(
        self,
        blends: Blends,
        criterion: Criterion,
        minibatches: Minibatches,
        *,
        seed: int,
        held_out: HeldOut | None = None,
        kinds: tuple[Statistics, ...] = ("averaged",),
    ) -> None:
        self.n_groups, self.n_experts = blends.n_groups, blends.n_experts
        self.is_smooth, self.follows_loss = criterion.goal.is_smooth, criterion.goal.follows_loss
        self.kinds, self.n_examples, self.n_folds = kinds, minibatches.n_examples, minibatches.n_folds
        self.cost = Cost()
        self._blends, self._criterion, self._minibatches, self._seed = blends, criterion, minibatches, seed
        self._held_out, self._by_kind = held_out, {kinds[0]: self}

    def with_statistics(self, statistics: Statistics) -> "BlendObjective":
        """Return this objective for blends with other statistics; the account is shared."""
        if statistics not in self._by_kind:
            other = copy.copy(self)
            other._blends = self._blends.with_statistics(statistics)
            self._by_kind[statistics] = other
        return self._by_kind[statistics]

    @torch.no_grad()
    def probe_losses(self, alphas: Tensor, step: int) -> Tensor:
        """Return the loss of each blend on the minibatch of `step`, [m], float64, eq. (3).

        All blends see the same examples and the same random state.

        Args:
            alphas: [m, G, K], on the simplex.
        Cost: m forwards.
        """
        outputs = self._blends.outputs(alphas, [self._minibatches.at_step(step)], step)
        return torch.stack([Mean().add(terms).value for terms in starmap(self._judge, outputs)]).cpu()

    @torch.no_grad()
    def quadratic(
        self, alpha: Tensor, coordinates: Tensor, radius: float, step: int, *, is_tied: bool = False
    ) -> Quadratic:
        """Return the loss on the minibatch of `step` to second order, from alpha towards single experts.

        If the goal has no slope, its value at alpha is returned with the slopes and curvatures of the loss.

        Args:
            alpha: [G, K], on the simplex.
            coordinates: the directions, int64 [n], as positions in the flattened alpha: one group moves to one expert.
            radius: how far towards the expert the outputs are computed, in (0, 1].
            is_tied: whether all groups move together; coordinates are then numbers of experts.
        Cost: n + 1 forwards.
        """
        batch = self._minibatches.at_step(step)
        on_the_way = self._blends.towards(alpha, coordinates, radius, batch, step, is_tied=is_tied)
        outputs = next(on_the_way)
        value = Mean().add(self._judge(outputs, batch[1])).value.item()
        draws = generator(self._seed, "secants", step)
        secants = Secants(self._criterion.loss, outputs, batch[1], radius=radius, draws=draws)
        for ends in on_the_way:
            self.charge(batch[1])
            secants.add(ends)
            del ends  # before the next forward: a language model's outputs may take most of the memory
        folds = self._minibatches.folds
        return secants.quadratic(value, folds(step) if folds else None, self.n_folds)

    def gradient(self, alpha: Tensor, step: int) -> tuple[float, Tensor]:
        """Return the loss on the minibatch of `step`, and dL/dalpha, [G, K], float64, up to a constant for each group.

        Args:
            alpha: [G, K], on the simplex.
        Cost: a forward and a backward.
        """
        batch = self._minibatches.at_step(step)
        self.charge(batch[1])
        self.cost.backwards += 1
        return self._blends.gradient(alpha, batch, step, lambda *pair: self._criterion.terms(*pair).mean())

    @torch.no_grad()
    def validation_terms(self, alpha: Tensor, n_batches: int | None = None) -> Tensor:
        """Return the terms whose mean is the validation loss of the blend with coefficients alpha [G, K].

        Args:
            n_batches: how many validation batches to use, from the first on; None for all.
        Returns:
            float64, a term for each example, or for each batch if the criterion gives only those. A text's term is the
            sum over its tokens divided by the mean number of tokens: texts are independent, tokens are not.
        """
        before = self.cost.forwards
        batches = islice(self._minibatches.validation(), n_batches)
        sums = ExampleSums.join(starmap(self._sum_up, self._blends.outputs(alpha[None], batches, 0)))
        self.cost.validation_forwards += self.cost.forwards - before
        return sums.shares

    def validation_loss(self, alpha: Tensor, n_batches: int | None = None) -> float:
        """Return the validation loss of the blend with coefficients alpha [G, K]: the mean of `validation_terms`."""
        return self.validation_terms(alpha, n_batches).mean().item()

    def written_terms(self, alphas: Tensor, statistics: Statistics, n_batches: int | None = None) -> Tensor:
        """As `Objective.written_terms`."""
        if self._held_out is None:
            return self.with_statistics(statistics).validation_terms(alphas, n_batches)
        before = self.cost.forwards
        terms = self._held_out.terms(alphas, statistics, n_batches, self.charge)
        self.cost.validation_forwards += self.cost.forwards - before
        return terms

    def n_written_forwards(self, statistics: Statistics, n_batches: int | None = None) -> int:
        """As `Objective.n_written_forwards`."""
        if self._held_out is None:
            return min(n_batches or self.n_validation_batches, self.n_validation_batches)
        return self._held_out.n_forwards(statistics, n_batches)

    @property
    def n_held_out_batches(self) -> int:
        """The number of batches that `written_terms` uses."""
        return self._held_out.n_batches if self._held_out else self.n_validation_batches

    @property
    def n_validation_batches(self) -> int:
        """The number of validation batches."""
        return self._minibatches.n_validation

    def _judge(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the terms of a forward's outputs, and charge it."""
        self.charge(targets)
        return self._criterion.terms(outputs, targets)

    def _sum_up(self, outputs: Tensor, targets: Tensor) -> ExampleSums:
        return ExampleSums.of(self._judge(outputs, targets), targets)

    def charge(self, targets: Tensor) -> None:
        """Charge a forward on a batch with these targets."""
        self.cost.forwards += 1
        self.cost.examples += len(targets)
