"""How far few examples are believed: the least of a quadratic, drawn towards where the search began.

The quadratics are kept by fold of the examples. What the other folds say is tried on each by its own quadratic, so
that the choice between strengths takes no forward.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from glue_cli.methods.domains import Simplex

# Strengths, in units of the mean curvature; the last ties what it holds. They lie a decade apart: the loss held out
# hardly differs between 0.03, 0.1 and 0.3 (reviews, spoken digits, handwritten digits; 25 to 100 labels).
_STRENGTHS = (0.0, 0.1, 1.0, 10.0, 1000.0)
_DAMPING = 0.001  # a curvature where there is none, in the same units


@dataclass(frozen=True)
class Shrunk:
    """An estimate of alpha, [G, K], and those of the same weights without one fold each, [F, G, K]."""

    alpha: Tensor
    without: Tensor


def shrink(
    domain: Simplex, curvature: Tensor, linear: Tensor, anchor: Tensor, near: Tensor, n_examples: float
) -> Shrunk:
    """Return the mean of estimates of several strengths, each weighted by the likelihood of what it held out.

    With penalties c |mean_g alpha_g - mean_g anchor_g|^2 and b sum_g |alpha_g - mean|^2, c <= b, a strength's
    estimate alpha_s is the least of all folds together, and alpha_s,-f that of all folds but f. Its weight is
    exp(-n L), L the mean loss of the n examples, each by the alpha_s,-f without its fold: stacking by
    pseudo-likelihood, smooth where a choice of the best would be noise. With one fold there is nothing to choose by,
    and the estimate is not drawn.

    Args:
        curvature: [F, G K, G K], linear: [F, G K]; their sums are the mean loss, x . curvature . x / 2 - linear . x.
        anchor: where the estimates are drawn to, [G, K]; near: where they are looked for from, [G, K].
        n_examples: how many the quadratics are of.
    """
    least = partial(_least, domain, anchor=anchor, near=near)
    whole = curvature.sum(0)[None], linear.sum(0)[None]
    penalties = _penalties(domain)
    if len(curvature) == 1:
        alpha = least(*whole, penalties[:1])[0]
        return Shrunk(alpha[0], alpha)
    without = least(whole[0] - curvature, whole[1] - linear, penalties)  # [S, F, G, K]
    x = without.flatten(2)
    losses = (torch.einsum("sfi,fij,sfj->sf", x, curvature, x) / 2 - torch.einsum("sfi,fi->sf", x, linear)).sum(1)
    weights = torch.softmax(-n_examples * losses, 0)
    alphas = least(*whole, penalties)[:, 0]
    return Shrunk(torch.einsum("s,sgk->gk", weights, alphas), torch.einsum("s,sfgk->fgk", weights, without))


def _penalties(domain: Simplex) -> Tensor:
    """Return the curvatures [S, G K, G K] that draw the groups' mean, and the groups' differences from it."""
    n_groups, n_experts = domain.shape
    eye, experts = torch.eye(n_groups, dtype=torch.float64), torch.eye(n_experts, dtype=torch.float64)
    mean = torch.full_like(eye, 1 / n_groups)
    pairs = [(common, between) for common in _STRENGTHS for between in _STRENGTHS if common <= between]
    if n_groups == 1:
        pairs = [(common, common) for common in _STRENGTHS]
    return torch.stack([torch.kron(common * mean + between * (eye - mean), experts) for common, between in pairs])


def _least(
    domain: Simplex, curvature: Tensor, linear: Tensor, penalties: Tensor, *, anchor: Tensor, near: Tensor
) -> Tensor:
    """Return the least of each of B quadratics under each of S penalties, [S, B, G, K]."""
    scale = curvature.diagonal(dim1=1, dim2=2).mean(1)
    added = scale[:, None, None] * penalties[:, None]
    damping = (scale * _DAMPING)[:, None]
    whole = curvature + added + damping[..., None] * torch.eye(linear.shape[1], dtype=torch.float64)
    return domain.minimise(whole, linear + added @ anchor.flatten() + damping * near.flatten(), near)
