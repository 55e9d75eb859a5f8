"""What a step can ask of the objective, and the one function that answers it."""

from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from glue_cli.search.protocol import Objective
from glue_cli.search.secants import Quadratic


@dataclass(frozen=True)
class Probes:
    """The losses of m blends; the answer is a tensor [m], float64.

    Attributes:
        alphas: [m, G, K].
        n_at_once: how many of the blends may be in memory at once; these share a pass over the experts.
        are_pairs: whether only differences matter: between each of the first half and its partner in the second.
    """

    alphas: Tensor
    n_at_once: int
    are_pairs: bool = False


@dataclass(frozen=True)
class ToSecondOrder:
    """The loss near a blend, from how the outputs change towards single experts; the answer is a `Quadratic`.

    Attributes:
        alpha: [G, K].
        coordinates: the experts, as positions in flattened alpha, int64 [n].
        radius: how far towards each of them the outputs are measured, as a share of the way, in (0, 1].
        is_tied: whether all groups move together; coordinates are then the numbers of experts, below K.
    """

    alpha: Tensor
    coordinates: Tensor
    radius: float
    is_tied: bool = False


@dataclass(frozen=True)
class Gradient:
    """The loss of the blend alpha [G, K] and dL/dalpha, [G, K], up to a constant per group; the answer is the pair."""

    alpha: Tensor


Question = Probes | ToSecondOrder | Gradient
Answer = Tensor | Quadratic | tuple[float, Tensor]


def answer(objective: Objective, question: Question, step: int) -> Answer:
    """Answer a question by running the model on the minibatch of a step."""
    match question:
        case Probes(alphas, are_pairs=True):
            return objective.pair_losses(alphas, step)
        case Probes(alphas, n_at_once):
            return torch.cat([objective.probe_losses(some, step) for some in torch.split(alphas, n_at_once)])
        case ToSecondOrder(alpha, coordinates, radius, is_tied):
            return objective.quadratic(alpha, coordinates, radius, step, is_tied=is_tied)
        case Gradient(alpha):
            return objective.gradient(alpha, step)
    assert_never(question)


def probe(objective: Objective, question: Probes, step: int) -> Tensor:
    """Return the answer to a question for losses alone, [m], float64."""
    losses = answer(objective, question, step)
    assert isinstance(losses, Tensor)
    return losses
