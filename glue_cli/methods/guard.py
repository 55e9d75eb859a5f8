"""The guard of a search: what it found is held against plain blends on held-out data, example by example."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from glue_cli.core.budget import Purse
from glue_cli.methods.objective import Objective

SHARE = 0.15  # what is kept of a budget for the guard, its last part; it takes all that is left


@dataclass(frozen=True)
class Rival:
    """A blend beside the one that was found: the mean of the paired differences of their losses, rival - found.

    `standard_error` is that of the difference; None where there is a single term.
    """

    name: str
    alpha: Tensor
    loss: float
    difference: float
    standard_error: float | None


@dataclass(frozen=True)
class Verdict:
    """Which blend is returned, "end" for the one that was found, by how many validation terms; none is no guard."""

    name: str
    alpha: Tensor
    loss: float | None
    n_terms: int
    end_loss: float | None
    rivals: list[Rival]


def guard(objective: Objective, purse: Purse, end: Tensor, rivals: Mapping[str, Tensor]) -> Verdict:
    """Return the end of a search, or a rival that is better by more than the standard error of their difference.

    Args:
        end, rivals: alphas, [G, K]; the rivals in the order in which they matter.
    Cost: as many validation batches for each as the budget has left, all without a budget; and no more rivals.
    """
    affordable = purse.forwards()
    if affordable < 1:
        return Verdict("end", end, None, 0, None, [])
    compared = dict(list(rivals.items())[: int(min(affordable - 1, len(rivals)))])
    per_blend = affordable / (1 + len(compared))
    n_batches = None if math.isinf(per_blend) else int(per_blend)
    wanted = objective.validation_terms(end, n_batches)
    found = [
        _compare(name, alpha, objective.validation_terms(alpha, n_batches), wanted) for name, alpha in compared.items()
    ]
    end_loss = wanted.mean().item()
    better = [r for r in found if r.standard_error is not None and r.difference < -r.standard_error]
    if better:
        best = min(better, key=lambda rival: rival.loss)
        return Verdict(best.name, best.alpha, best.loss, len(wanted), end_loss, found)
    return Verdict("end", end, end_loss, len(wanted), end_loss, found)


def account(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as it is written down, without the alphas."""
    return {
        "returned": verdict.name,
        "guard": {
            "terms": verdict.n_terms,
            "end_loss": verdict.end_loss,
            "rivals": [
                {key: value for key, value in vars(rival).items() if key != "alpha"} for rival in verdict.rivals
            ],
        },
    }


def _compare(name: str, alpha: Tensor, terms: Tensor, wanted: Tensor) -> Rival:
    differences = terms - wanted
    error = differences.std().item() / math.sqrt(len(terms)) if len(terms) > 1 else None
    return Rival(name, alpha, terms.mean().item(), differences.mean().item(), error)
