"""A loss to second order along directions, from the outputs at their ends: Gauss-Newton without derivatives."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glue_cli.running.losses import IGNORED, Loss

# Tokens of the vocabulary drawn at each position; the curvature is a mean over them, the gradient is exact.
_DRAWN_TOKENS = 64
# Rows of a text handled at a time, in buffers that are reused: new ones of this size leave holes in the heap that
# glibc does not fill, up to 1 GiB for outputs [8, 256, 50257] (measured).
_BLOCK_ROWS = 64


@dataclass(frozen=True)
class Quadratic:
    """loss + gradient . x + x . curvature . x / 2, for x in units of the n directions.

    Attributes:
        loss: its value at the point; if a score is the goal, the score's value instead.
        gradient: [F, n]; curvature: [F, n, n], symmetric, with no negative eigenvalue; both float64 on the CPU. They
            are the contributions of F folds of the examples; their sums are those of the mean loss.
        n_examples: the number of examples that the loss is a mean over.
        nat: how much of the loss is a nat of the likelihood that it stands for; see `Objective.nat_at`.
    """

    loss: float
    gradient: Tensor
    curvature: Tensor
    n_examples: int = 1
    nat: float = 1.0


class Secants:
    """The outputs at a point, and how they change along directions.

    With z the outputs and D_k = (z_k - z) / radius_k, the mean loss has the slopes <dloss/dz, D_k> and, in the
    Gauss-Newton approximation, the curvatures D_k . (d2loss/dz2) . D_l: Schraudolph 2002, with secants for
    derivatives.

    Args:
        radius: how far the ends are from the point: the same for all directions, or float64 [n].
        outputs: z at the point; targets: as `example_losses` takes them. Both are kept, not copied.
        draws: the random generator for drawing tokens.
        whole: the targets of the whole minibatch, if these are only some of its rows; n_before: how many of its rows
            come before these.
    Attributes:
        slopes, roots: for each direction, the slope and r, with which the curvatures are r_k . r_l; row by row.
    Cost: if tokens are predicted, 64 numbers per target are kept for each direction.
    """

    def __init__(
        self,
        loss: Loss,
        outputs: Tensor,
        targets: Tensor,
        *,
        radius: float | Tensor,
        draws: torch.Generator,
        whole: Tensor | None = None,
        n_before: int = 0,
    ) -> None:
        self._loss, self._outputs, self._targets = loss, outputs, targets
        self._radii = iter(radius.tolist()) if isinstance(radius, Tensor) else itertools.repeat(radius)
        self._whole = targets if whole is None else whole
        self.slopes: list[Tensor] = []
        self.roots: list[Tensor] = []
        if loss == "mse" or targets.dim() == 1:
            return
        self._n_tokens = int((self._whole != IGNORED).sum())
        torch.rand(n_before, targets.shape[1], _DRAWN_TOKENS, generator=draws)  # those of the rows before
        rows = min(_BLOCK_ROWS, targets.shape[1])
        # Buffers that `_draw` and `_centred` overwrite.
        self._work = torch.empty(3, rows, outputs.shape[-1], dtype=torch.float32, device=outputs.device)
        drawn = [_draw(self._work, z, draws) for (z,) in _blocks(outputs)]
        self._tokens = torch.cat([targets.clamp_min(0)[..., None], torch.cat(drawn).view(*targets.shape, -1)], -1)

    def add(self, outputs: Tensor) -> None:
        """Add a direction, given the outputs at its end."""
        if self._loss == "mse":
            slope, root = self._of_squares(outputs)
        else:
            slope, root = self._of_labels(outputs) if self._targets.dim() == 1 else self._of_tokens(outputs)
        radius = next(self._radii)
        self.slopes.append(slope / radius)
        self.roots.append(root / radius)

    def _of_squares(self, ends: Tensor) -> tuple[Tensor, Tensor]:
        """Return the slope for the change from z to the end, and r, with which the curvatures are r_k . r_l.

        Both are given row by row: summed over the rows of the minibatch, they are those of its mean loss.
        """
        z, ends = (outputs.float().view_as(self._targets) for outputs in (self._outputs, ends))
        change, n = ends - z, self._whole.numel()
        slope = 2 * ((z - self._targets) * change).double() / n
        return slope, change * math.sqrt(2 / n)

    def _of_labels(self, ends: Tensor) -> tuple[Tensor, Tensor]:
        """The same for logits [N, C]: the curvature is the covariance of their changes under the probabilities."""
        z, ends = self._outputs.float(), ends.float()
        change, probabilities = (ends - z).masked_fill_(ends == z, 0), z.softmax(-1)  # a masked class is -inf in both
        change -= (probabilities * change).sum(-1, keepdim=True)
        slope = -change.gather(1, self._targets[:, None]).double() / len(self._whole)
        return slope, change * (probabilities / len(self._whole)).sqrt()

    def _of_tokens(self, ends: Tensor) -> tuple[Tensor, Tensor]:
        """The same for logits [N, T, C]: the covariance is the mean product at the tokens drawn."""
        changes = [_centred(self._work, *block) for block in _blocks(self._outputs, ends, self._tokens)]
        at_target, at_drawn = torch.cat(changes)[self._targets.flatten() != IGNORED].tensor_split([1], 1)
        n = self._n_tokens
        return -at_target.double() / n, at_drawn / math.sqrt(n * at_drawn.shape[1])


def quadratic_of(
    slopes: Sequence[Tensor],
    roots: Sequence[Tensor],
    targets: Tensor,
    loss: float,
    folds: Tensor | None = None,
    n_folds: int = 1,
    nat: float = 1.0,
) -> Quadratic:
    """Return the loss of a minibatch to second order, fold by fold, given its value at the point.

    Args:
        slopes, roots: of each direction, for all rows of the minibatch; see `Secants`.
        targets: those of the minibatch.
        folds: the fold of each example, int64 [N], below `n_folds`; None if there is only one.
        nat: as in `Quadratic`.
    """
    by_slope, by_root = torch.stack([*slopes]), torch.stack([*roots])  # [n, rows, ...]
    parts: list[Tensor | slice] = [slice(None)]
    if folds is not None:
        by_row = _fold_by_row(folds, targets) if targets.dim() > 1 and not targets.is_floating_point() else folds
        parts = [(by_row == fold).nonzero()[:, 0].to(by_root.device) for fold in range(n_folds)]
    gradient = torch.stack([by_slope[:, rows].flatten(1).sum(1) for rows in parts])
    by_part = (by_root[:, rows].flatten(1) for rows in parts)
    curvature = torch.stack([part @ part.T for part in by_part])
    return Quadratic(loss, gradient.cpu(), curvature.double().cpu(), len(targets), nat)


def _fold_by_row(folds: Tensor, tokens: Tensor) -> Tensor:
    """Return the fold of each predicted token, given those of the texts."""
    return folds.repeat_interleave((tokens != IGNORED).sum(1).cpu())


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield views of the same few rows of each tensor [N, T, ...], text by text."""
    for texts in zip(*tensors, strict=True):
        yield from zip(*(torch.split(text, _BLOCK_ROWS) for text in texts), strict=True)


def _draw(work: Tensor, logits: Tensor, draws: torch.Generator) -> Tensor:
    """Return tokens [n, _DRAWN_TOKENS], drawn with the probabilities that logits [n, C] give."""
    z, probabilities, _ = work[:, : len(logits)].unbind()
    torch.softmax(z.copy_(logits), -1, out=probabilities)
    cumulated = torch.cumsum(probabilities, -1, out=z)
    uniform = torch.rand(len(logits), _DRAWN_TOKENS, generator=draws).to(cumulated)
    return torch.searchsorted(cumulated, uniform).clamp_max(logits.shape[-1] - 1)


def _centred(work: Tensor, logits: Tensor, ends: Tensor, tokens: Tensor) -> Tensor:
    """Return the changes from logits [n, C] to the end, at tokens [n, m], minus their mean under the probabilities."""
    z, probabilities, change = work[:, : len(logits)].unbind()
    change.copy_(ends).sub_(z.copy_(logits)).masked_fill_(logits == ends, 0)  # a masked token is -inf in both
    torch.softmax(z, -1, out=probabilities)
    return change.gather(1, tokens) - probabilities.mul_(change).sum(-1, keepdim=True)
