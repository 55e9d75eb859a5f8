"""GLUE: coefficients by two-point SPSA, configuration 4 of the paper's section 5, with forward passes alone."""

from collections.abc import Callable

import torch
from torch import Tensor

from glue_cli.core.seeds import generator
from glue_cli.core.spec import MixSpec
from glue_cli.methods.descent import Estimate, Learned, Objective, StepRecord, descend, softmax
from glue_cli.methods.directions import draw_directions


def estimate_gradient(
    losses_at: Callable[[Tensor], Tensor], beta: Tensor, directions: Tensor, *, mu: float, zero_sum: bool
) -> Estimate:
    """Estimate grad_beta L at beta from 2n losses on one minibatch.

    Args:
        losses_at: the losses [m] of m sets of coefficients [m, G, K]; called once, for all probes of the step.
        beta: logits, [G, K], float64.
        directions: u_i of unit length, [n, G, K], float64.
        mu: radius, in logit units.
        zero_sum: whether the directions were drawn in the subspace where each group's entries sum to 0.
    Source: eqs. (3) to (6).
    """
    n, n_groups, n_experts = directions.shape
    probes = softmax(torch.cat([beta + mu * directions, beta - mu * directions]))  # eq. (3), [2n, G, K]
    losses = losses_at(probes)
    deltas = (losses[:n] - losses[n:]) / (2 * mu)  # eq. (4), [n]
    # E[u u^T] is I over the dimension of the sphere: K by group, K - 1 in the zero-sum subspace
    factor = n_groups * (n_experts - 1 if zero_sum else n_experts)
    gradient = factor * (deltas[:, None, None] * directions).mean(0)  # eqs. (5) and (6)
    return Estimate(gradient, losses.mean().item())


def spsa(
    objective: Objective, settings: MixSpec, *, seed: int, observe: Callable[[StepRecord], None] = lambda record: None
) -> Learned:
    """Learn alpha by two-point SPSA: n probe pairs a step, 2n forwards, no backward; eq. (9) right."""

    def estimate(beta: Tensor, step: int) -> Estimate:
        directions = draw_directions(
            settings.n_directions,
            (objective.n_groups, objective.n_experts),
            settings.directions,
            zero_sum=settings.zero_sum,
            generator=generator(seed, "directions", step),
        )
        return estimate_gradient(
            lambda alphas: objective.probe_losses(alphas, step),
            beta,
            directions,
            mu=settings.mu,
            zero_sum=settings.zero_sum,
        )

    return descend(objective, estimate, settings, observe)
