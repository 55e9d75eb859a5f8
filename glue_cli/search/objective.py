"""What a search minimises, as a function of alpha, eq. (2), with every pass charged to one account."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice, starmap

import torch
from torch import Tensor

from glue_cli.foundation.seeds import generator
from glue_cli.running.forward import Batch
from glue_cli.running.means import ExampleSums, Mean
from glue_cli.search.account import Cost
from glue_cli.search.criterion import Criterion
from glue_cli.search.protocol import Blends
from glue_cli.search.secants import Quadratic, Secants


@dataclass(frozen=True)
class Minibatches:
    """The target's data as a search sees them, on the device.

    Attributes:
        at_step: the minibatch of a step, from the training data; the same for every method.
        validation: the whole validation data, in batches; the same at every call.
        n_validation: how many these are.
    """

    at_step: Callable[[int], Batch]
    validation: Callable[[], Iterable[Batch]]
    n_validation: int


class BlendObjective:
    """L(alpha) on minibatches of the target's training data, and on its validation data.

    Args:
        blends: who yields the outputs.
        criterion: what they are judged by.
        minibatches: the examples.
        seed: of the tokens that curvatures are drawn by.
    """

    def __init__(self, blends: Blends, criterion: Criterion, minibatches: Minibatches, *, seed: int) -> None:
        self.n_groups, self.n_experts = blends.n_groups, blends.n_experts
        self.is_smooth, self.follows_loss = criterion.goal.is_smooth, criterion.goal.follows_loss
        self.cost = Cost()
        self._blends, self._criterion, self._minibatches, self._seed = blends, criterion, minibatches, seed

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
    def quadratic(self, alpha: Tensor, coordinates: Tensor, radius: float, step: int) -> Quadratic:
        """Return the loss on the minibatch of `step` to second order, from alpha towards single experts.

        Where the goal has no slope, its value at alpha stands with the slopes and curvatures of the loss.

        Args:
            alpha: [G, K], on the simplex.
            coordinates: the directions, int64 [n], as positions in alpha flattened: a group goes to an expert.
            radius: how far towards the expert the outputs are taken, in (0, 1].
        Cost: n + 1 forwards.
        """
        batch = self._minibatches.at_step(step)
        on_the_way = self._blends.towards(alpha, coordinates, radius, batch, step)
        outputs = next(on_the_way)
        value = Mean().add(self._judge(outputs, batch[1])).value.item()
        draws = generator(self._seed, "secants", step)
        secants = Secants(self._criterion.loss, outputs, batch[1], radius=radius, draws=draws)
        for ends in on_the_way:
            self._charge(batch[1])
            secants.add(ends)
            del ends  # before the next forward: a language model's outputs may take most of the memory
        return secants.quadratic(value)

    def gradient(self, alpha: Tensor, step: int) -> tuple[float, Tensor]:
        """Return the loss on the minibatch of `step`, and dL/dalpha up to a constant by group, [G, K], float64.

        Args:
            alpha: [G, K], on the simplex.
        Cost: a forward and a backward.
        """
        batch = self._minibatches.at_step(step)
        self._charge(batch[1])
        self.cost.backwards += 1
        return self._blends.gradient(alpha, batch, step, lambda *pair: self._criterion.terms(*pair).mean())

    @torch.no_grad()
    def validation_terms(self, alpha: Tensor, n_batches: int | None = None) -> Tensor:
        """Return what the loss of the blend with coefficients alpha [G, K] on validation data is the mean of.

        Args:
            n_batches: of how many validation batches, from the first on; None for all.
        Returns:
            float64, a term an example, or a batch where the criterion has no others. That of a text is the sum over
            its tokens by the mean number of tokens: texts are independent, tokens are not.
        """
        before = self.cost.forwards
        batches = islice(self._minibatches.validation(), n_batches)
        found = ExampleSums.join(starmap(self._sum_up, self._blends.outputs(alpha[None], batches, 0)))
        self.cost.validation_forwards += self.cost.forwards - before
        return found.shares

    def validation_loss(self, alpha: Tensor, n_batches: int | None = None) -> float:
        """Return the loss of the blend with coefficients alpha [G, K] on validation data, as `validation_terms`."""
        return self.validation_terms(alpha, n_batches).mean().item()

    @property
    def n_validation_batches(self) -> int:
        """How many batches the validation data are."""
        return self._minibatches.n_validation

    def _judge(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the terms of a forward's outputs, and charge it."""
        self._charge(targets)
        return self._criterion.terms(outputs, targets)

    def _sum_up(self, outputs: Tensor, targets: Tensor) -> ExampleSums:
        return ExampleSums.of(self._judge(outputs, targets), targets)

    def _charge(self, targets: Tensor) -> None:
        """Charge a forward on a batch, by its targets."""
        self.cost.forwards += 1
        self.cost.examples += len(targets)
