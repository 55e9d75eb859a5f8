"""How far to trust few examples: minimises a quadratic, pulled towards where the search began.

The quadratics are kept per fold of the examples. Each fold's quadratic tests the estimate from the other folds, so
that the choice between strengths of the pull takes no forward.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from glue_cli.methods.domains import Simplex

# Strengths of the pull, in units of the mean curvature; the last one leaves no room to move. A factor of 10 between
# them is fine enough: the held-out loss hardly differs between 0.03, 0.1 and 0.3 (reviews, spoken digits, handwritten
# digits; 25 to 100 labels).
_STRENGTHS = (0.0, 0.1, 1.0, 10.0, 1000.0)
_DAMPING = 0.001  # keeps the curvature above zero; in the same units


@dataclass(frozen=True)
class Shrunk:
    """An estimate of alpha, [G, K], and those with the same weights that each leave out one fold, [F, G, K]."""

    alpha: Tensor
    without: Tensor


def shrink(
    domain: Simplex, curvature: Tensor, linear: Tensor, anchor: Tensor, near: Tensor, n_examples: float
) -> Shrunk:
    """Return the mean of estimates of several strengths, each weighted by the likelihood of the held-out folds.

    With penalties c |mean_g alpha_g - mean_g anchor_g|^2 and b sum_g |alpha_g - mean|^2, c <= b, a strength's
    estimate alpha_s minimises all folds together, and alpha_s,-f all folds but f. Its weight is exp(-n L), where L
    is the mean loss of the n examples, each under the alpha_s,-f without its fold: stacking by pseudo-likelihood,
    which is smooth where picking the best would follow noise. With one fold nothing can be held out, and the estimate
    is not pulled.

    Args:
        curvature: [F, G K, G K], linear: [F, G K]; their sums are the mean loss, x . curvature . x / 2 - linear . x,
            in nats.
        anchor: where the estimates are pulled to, [G, K]; near: where the minimisation starts, [G, K].
        n_examples: how many examples the quadratics come from.
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
    """Return the curvatures [S, G K, G K] that pull on the groups' mean and on the groups' differences from it."""
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
    """Return where each of B quadratics is least under each of S penalties, [S, B, G, K]."""
    scale = curvature.diagonal(dim1=1, dim2=2).mean(1)
    added = scale[:, None, None] * penalties[:, None]
    damping = (scale * _DAMPING)[:, None]
    whole = curvature + added + damping[..., None] * torch.eye(linear.shape[1], dtype=torch.float64)
    return domain.minimise(whole, linear + added @ anchor.flatten() + damping * near.flatten(), near)
