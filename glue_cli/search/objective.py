"""What a search minimises, as a function of alpha, eq. (2); every pass is charged to one account."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, starmap

import torch
from torch import Tensor

from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.foundation.ranks import Ranks
from glue_cli.foundation.seeds import generator
from glue_cli.running.forward import Batch
from glue_cli.running.losses import n_terms
from glue_cli.running.means import ExampleSums, mean_of
from glue_cli.search.account import Cost
from glue_cli.search.criterion import Criterion
from glue_cli.search.held_out import HeldOut
from glue_cli.search.protocol import Blends
from glue_cli.search.reach import Reach
from glue_cli.search.secants import Quadratic, Secants, quadratic_of
from glue_cli.search.sharing import Sharing, gathered_sums

_SMALLEST = 1e-60  # a squared error below which there is none


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
        reach: how far blends are moved in bfloat16; None in float32.
        held_out: judges blends as they would be written; if None, `blends` is used for that, on the validation data.
        kinds: the kinds of statistics that a blend may be written with.
        sharing: how the forwards are shared with other processes; every process then has to be asked the same.
    """

    def __init__(
        self,
        blends: Blends,
        criterion: Criterion,
        minibatches: Minibatches,
        *,
        seed: int,
        reach: Reach | None = None,
        held_out: HeldOut | None = None,
        kinds: tuple[Statistics, ...] = ("averaged",),
        sharing: Sharing | None = None,
    ) -> None:
        self.n_groups, self.n_experts = blends.n_groups, blends.n_experts
        self.is_smooth, self.follows_loss = criterion.goal.is_smooth, criterion.goal.follows_loss
        self.kinds, self.n_examples, self.n_folds = kinds, minibatches.n_examples, minibatches.n_folds
        self.cost = Cost()
        self._blends, self._criterion, self._minibatches, self._seed = blends, criterion, minibatches, seed
        self._reach, self._held_out, self._by_kind = reach, held_out, {kinds[0]: self}
        # Whole blends are compared in float32 where bfloat16 does not even tell the experts apart.
        self._compared = blends if reach is None or reach.is_within else blends.with_precision("fp32")
        self._sharing = sharing or Sharing(Ranks(), is_cut=False)

    def with_statistics(self, statistics: Statistics) -> "BlendObjective":
        """Return this objective for blends with other statistics; the account is shared."""
        if statistics not in self._by_kind:
            other = copy.copy(self)
            other._blends = self._blends.with_statistics(statistics)
            other._compared = self._compared.with_statistics(statistics)
            other._sharing = Sharing(self._sharing.ranks, is_cut=statistics == "averaged")
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
        return self._losses(self._compared, alphas, step)

    @torch.no_grad()
    def pair_losses(self, alphas: Tensor, step: int) -> Tensor:
        """Return losses as `probe_losses`, of pairs of blends of which only the difference in loss matters.

        Where that would be lost in rounding, the blends of a pair are moved apart, and the difference is scaled back.

        Args:
            alphas: [2 n, G, K], on the simplex: the first blend of each pair, then the second ones.
        Cost: 2 n forwards.
        """
        if self._reach is None:
            return self.probe_losses(alphas, step)
        pairs = alphas.reshape(2, -1, *alphas.shape[1:])
        farther = self._reach.stretch(pairs)
        losses = self._losses(self._blends, _spread(pairs, farther).flatten(0, 1), step)
        return _spread(losses.view(2, -1), 1 / farther).flatten()

    @torch.no_grad()
    def quadratic(
        self, alpha: Tensor, coordinates: Tensor, radius: float, step: int, *, is_tied: bool = False
    ) -> Quadratic:
        """Return the loss on the minibatch of `step` to second order, from alpha towards single experts.

        If the goal has no slope, its value at alpha is returned with the slopes and curvatures of the loss.

        Args:
            alpha: [G, K], on the simplex.
            coordinates: the directions, int64 [n], as positions in the flattened alpha: one group moves to one expert.
            radius: how far towards the expert the outputs are computed, in (0, 1]; farther if that is out of reach.
            is_tied: whether all groups move together; coordinates are then numbers of experts.
        Cost: n + 1 forwards.
        """
        batch, n = self._minibatches.at_step(step), len(coordinates)
        far = torch.full((n,), radius, dtype=torch.float64)
        if self._reach:
            far = self._reach.towards(coordinates, radius, self.n_groups, is_tied=is_tied)
        rows: list[list[Tensor]] = [[], [], []]  # slopes and roots for each way, and what is found at alpha
        pieces = self._sharing.pieces(len(batch[1]), n)
        on_the_way = self._blends.towards(alpha, coordinates, far, batch, step, is_tied=is_tied, pieces=pieces)
        for piece in pieces:
            small, outputs = piece.of(batch), next(on_the_way)
            secants = Secants(
                self._criterion.loss,
                outputs,
                small[1],
                radius=far[piece.blends],
                draws=generator(self._seed, "secants", step),
                whole=batch[1],
                n_before=piece.rows.start,
            )
            for ends in islice(on_the_way, piece.count(n)):
                secants.add(ends)
                del ends  # before the next forward: a language model's outputs may take most of the memory
            at_alpha = [self._found(outputs, small[1])] if piece.blends.start == 0 else []
            for column, more in zip(rows, (secants.slopes, secants.roots, at_alpha), strict=True):
                column += more
        next(on_the_way, None)  # there is no more, but other processes may need this one until they are done
        self.cost.charge(batch[1], n=1 + n)
        slopes, roots = ([torch.cat(slices) for slices in self._sharing.by_blend(one, n)] for one in rows[:2])
        (at_alpha,) = self._sharing.by_blend(rows[2], 1)
        value = self._value(at_alpha, batch[1]).item()
        folds = self._minibatches.folds
        own = folds(step) if folds else None
        return quadratic_of(slopes, roots, batch[1], value, own, self.n_folds, self.nat_at(value))

    def nat_at(self, loss: float) -> float:
        """Return how much of the loss is a nat of the likelihood that it stands for, where it has this value.

        Cross-entropy is in nats. Squared errors e^2 of mean m have the likelihood of a normal distribution with the
        variance m, e^2 / 2 m, so that no unit of the targets' counts. Where there is no error it is 1.
        """
        is_squared = self._criterion.loss == "mse" and self.is_smooth
        return 2 * loss if is_squared and loss > _SMALLEST else 1.0

    def gradient(self, alpha: Tensor, step: int) -> tuple[float, Tensor]:
        """Return the loss on the minibatch of `step`, and dL/dalpha, [G, K], float64, up to a constant for each group.

        Args:
            alpha: [G, K], on the simplex.
        Cost: a forward and a backward.
        """
        batch = self._minibatches.at_step(step)
        sharing = self._sharing
        if not self._criterion.goal.has_example_terms:  # no mean over slices
            sharing = Sharing(sharing.ranks, is_cut=False)
        pieces = sharing.pieces(len(batch[1]), 1)
        found = [self._weighted_gradient(alpha, piece.of(batch), step, batch[1]) for piece in pieces]
        self.cost.charge(batch[1])
        self.cost.backwards += 1
        (slices,) = sharing.by_blend(found, 1)
        total = torch.stack(slices).sum(0)
        return total[0].item(), total[1:].view_as(alpha)

    def _weighted_gradient(self, alpha: Tensor, batch: Batch, step: int, whole: Tensor) -> Tensor:
        """Return a slice's part of the mean loss, and of its gradient in flattened alpha: [1 + G K], float64.

        Args:
            whole: the targets of the whole minibatch.
        """
        terms = self._criterion.terms
        is_cut = len(batch[1]) < len(whole)
        n = n_terms(whole)
        value, products = self._blends.gradient(
            alpha, batch, step, lambda *pair: terms(*pair).sum() / n if is_cut else terms(*pair).mean()
        )
        return torch.cat([torch.tensor([value], dtype=torch.float64), products.flatten()])

    @torch.no_grad()
    def validation_terms(self, alpha: Tensor, n_batches: int | None = None) -> Tensor:
        """Return the terms whose mean is the validation loss of the blend with coefficients alpha [G, K].

        Args:
            n_batches: how many validation batches to use, from the first on; None for all.
        Returns:
            float64, a term for each example, or for each batch if the criterion gives only those. A text's term is the
            sum over its tokens divided by the mean number of tokens: texts are independent, tokens are not.
        """
        before, n = self.cost.forwards, min(n_batches or self.n_validation_batches, self.n_validation_batches)
        ranks = self._sharing.ranks
        batches = self._charged(islice(self._minibatches.validation(), n), ranks.share(n))
        sums = [*starmap(self._sum_up, self._compared.outputs(alpha[None], batches, 0))]
        self.cost.validation_forwards += self.cost.forwards - before
        return ExampleSums.join(gathered_sums(sums, ranks)).shares

    def validation_loss(self, alpha: Tensor, n_batches: int | None = None) -> float:
        """Return the validation loss of the blend with coefficients alpha [G, K]: the mean of `validation_terms`."""
        return self.validation_terms(alpha, n_batches).mean().item()

    def written_terms(self, alphas: Tensor, statistics: Statistics, n_batches: int | None = None) -> Tensor:
        """As `Objective.written_terms`."""
        if self._held_out is None:
            return self.with_statistics(statistics).validation_terms(alphas, n_batches)
        before = self.cost.forwards
        terms = self._held_out.terms(alphas, statistics, n_batches, self.cost.charge)
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

    def _losses(self, blends: Blends, alphas: Tensor, step: int) -> Tensor:
        batch = self._minibatches.at_step(step)
        pieces = self._sharing.blends_first(len(batch[1]), len(alphas))
        found = list(starmap(self._found, blends.outputs(alphas, [batch], step, pieces=pieces)))
        self.cost.charge(batch[1], n=len(alphas))
        by_blend = self._sharing.in_blends(found, len(alphas))
        return torch.stack([self._value(slices, batch[1]) for slices in by_blend]).cpu()

    def _found(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return what a slice's outputs contribute to the goal: its terms, or the outputs if it needs them all."""
        is_by_example = self._criterion.goal.has_example_terms
        return self._criterion.terms(outputs, targets) if is_by_example else outputs

    def _value(self, slices: Sequence[Tensor], targets: Tensor) -> Tensor:
        """Return the mean of the goal's terms over a minibatch, float64 [], given what its slices contribute."""
        whole = torch.cat([*slices])
        is_by_example = self._criterion.goal.has_example_terms
        return mean_of(whole if is_by_example else self._criterion.terms(whole, targets.to(whole.device)))

    def _sum_up(self, outputs: Tensor, targets: Tensor) -> ExampleSums:
        return ExampleSums.of(self._criterion.terms(outputs, targets), targets)

    def _charged(self, batches: Iterable[Batch], own: range) -> Iterator[Batch]:
        """Charge a forward on each batch, and yield those whose numbers are this process's own."""
        for number, batch in enumerate(batches):
            self.cost.charge(batch[1])
            if number in own:
                yield batch


def _spread(pairs: Tensor, factor: float) -> Tensor:
    """Return pairs [2, ...], with the two of each pair `factor` times as far from their mean."""
    mean = pairs.mean(0)
    return mean + factor * (pairs - mean)
