"""How far blends are moved in bfloat16, so that rounding does not hide how their outputs change.

A search learns from how the outputs change when alpha moves a little. In bfloat16 the outputs are off by rounding, and
between experts that hardly differ a small move changes them by less than that. A longer move changes them by more; and
such experts are so near each other that the outputs change in proportion to it, even beyond the experts themselves.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from glue_cli.running.forward import Batch
from glue_cli.search.points import towards_experts, uniform_alpha
from glue_cli.search.protocol import Blends

# By how many times the rounding a move is to change the outputs. With 3, slopes of a small language model and of
# ResNet-20 are off by 15 to 40 %, with 10 by 5 to 15 %, with 30 by 10 to 45 %: they are no longer those at the blend.
# examples/benchmarks/near.py shows what that means for alpha.
_ABOVE_ROUNDING = 10.0
# The share of the outputs' spread that rounding may be: 10 times as much is too long a move for a slope.
_MOST_ROUNDING = 0.03
_FIRST_RADIUS = 0.1
# Farther than this, a blend in float32 loses digits: it is a sum of experts times numbers of this size.
_FARTHEST = 1e4
_MOST_TRIALS = 8
_SAMPLED_ROWS = 512


@dataclass(frozen=True)
class Reach:
    """How far a blend is moved towards each expert, as a share of the way to it, for its outputs to show the change.

    Attributes:
        radii: [K], float64, above 0; more than 1 leads beyond the expert.
        rounding: by how much bfloat16 is off at the uniform blend, as a share of the outputs' spread.
        is_short: whether an expert is so near that a blend cannot be moved far enough.
    """

    radii: Tensor
    rounding: float
    is_short: bool

    @property
    def is_fine(self) -> bool:
        """Whether the changes can be told from rounding, and are still small beside the outputs' own spread."""
        return self.rounding <= _MOST_ROUNDING and not self.is_short

    @property
    def is_within(self) -> bool:
        """Whether bfloat16 tells the experts themselves apart, so that whole blends can be compared in it."""
        return bool((self.radii <= 1).all())

    def towards(self, coordinates: Tensor, radius: float, n_groups: int, *, is_tied: bool) -> Tensor:
        """Return how far to move for each coordinate, float64 [n], at least `radius`; see `Blends.towards`.

        A single one of G groups of tensors is taken to change the outputs by 1 / sqrt(G) of what all change together.
        """
        alone = self.radii[coordinates % len(self.radii)] * (1 if is_tied else math.sqrt(n_groups))
        return alone.clamp(min=radius)

    def stretch(self, pairs: Tensor) -> float:
        """Return by what factor the blends of pairs, alphas [2, n, G, K], have to be moved apart, at least 1."""
        half = (pairs[0] - pairs[1]) / 2
        # The experts' differences are taken as orthogonal to each other, and the groups as above.
        n_reaches = (half / self.radii).square().sum(2).mean(1).sqrt()  # [n]
        return max(1.0, 1 / max(n_reaches.min().item(), 1 / _FARTHEST))


@torch.no_grad()
def measure_reach(blends: Blends, batch: Batch) -> Reach:
    """Measure the reach of blends around the uniform one, on a batch, in both precisions.

    Cost: usually 1 + 2 (K + 1) forwards, all but one in float32; of streamed experts, in three passes over them.
    """
    n_experts, limit = blends.n_experts, _FARTHEST if blends.is_linear else 0.5
    uniform = uniform_alpha(blends.n_groups, n_experts)
    ((in_bf16, _),) = blends.with_precision("bf16").outputs(uniform[None], [batch], 0)
    in_bf16, exact = _sample(in_bf16), blends.with_precision("fp32")
    radii = torch.full((n_experts,), _FIRST_RADIUS, dtype=torch.float64)
    unsettled, is_short = torch.arange(n_experts), False
    for _ in range(_MOST_TRIALS):
        # Tried at twice the radius: from another blend, outputs may change twice as fast.
        outputs = _towards(exact, uniform, unsettled, 2 * radii[unsettled], batch)
        at = _sample(next(outputs))
        off_by = _change(in_bf16, at)
        changes = torch.tensor([_change(_sample(end), at) for end in outputs], dtype=torch.float64)
        ratios = torch.where(changes.isfinite(), 2 * _ABOVE_ROUNDING * off_by / changes, 0.25)
        ratios[changes == 0] = 1  # an expert that is the same as the others
        is_off = (ratios < 0.5) | (ratios > 2)
        wanted = radii[unsettled] * torch.where(is_off, ratios, 1)
        is_short |= bool((wanted > 2 * limit).any())
        radii[unsettled] = wanted.clamp(max=limit)
        unsettled = unsettled[is_off & (wanted < limit)]
        if not len(unsettled):
            break
    return Reach(radii, off_by / (_size(at) or 1.0), is_short)


def _towards(blends: Blends, alpha: Tensor, experts: Tensor, radii: Tensor, batch: Batch) -> Iterator[Tensor]:
    """Yield outputs at alpha, and on the way to each of the experts.

    Of experts in memory, one blend at a time is made: bfloat16 is for models whose memory has no room for two.
    """
    if not blends.is_resident:
        yield from blends.towards(alpha, experts, radii, batch, 0, is_tied=True)
        return
    for point in (alpha, *towards_experts(alpha, experts, radii, is_tied=True)):
        yield from (outputs for outputs, _ in blends.outputs(point[None], [batch], 0))


def _sample(outputs: Tensor) -> Tensor:
    """Return a copy of some of a blend's outputs, float32 [n, C]: a language model's take much memory."""
    rows = outputs.flatten(0, -2) if outputs.dim() > 1 else outputs[:, None]
    return rows[:: math.ceil(len(rows) / _SAMPLED_ROWS)].to(torch.float32, copy=True)


def _change(outputs: Tensor, others: Tensor) -> float:
    return _size((outputs - others).masked_fill_(outputs == others, 0))  # a masked class is -inf in both


def _size(rows: Tensor) -> float:
    """Return the root mean square of rows [n, C]; for C > 1 without what the numbers of a row have in common."""
    finite = rows.masked_fill(rows.isneginf(), 0)
    if rows.shape[1] > 1:
        finite -= finite.mean(1, keepdim=True)
    return finite.square().mean().sqrt().item()
