"""The guard of a search: what it found is held against plain blends on held-out data, example by example."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glue_cli.search.account import Purse
from glue_cli.search.protocol import Objective

SHARE = 0.15  # of a budget, its last part
MOST_BLENDS = 5  # that are compared
# Standard errors by which a rival must be better. With one, the end of a search gives way to what only looks better on
# a few hundred examples: figures in examples/benchmarks/search/README.md.
_MARGIN = 2


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

    @property
    def is_better(self) -> bool:
        return self.standard_error is not None and self.difference < -_MARGIN * self.standard_error


@dataclass(frozen=True)
class Verdict:
    """Which blend is returned, "end" for the one that was found, by how many validation terms; none is no guard."""

    name: str
    alpha: Tensor
    loss: float | None
    n_terms: int
    end_loss: float | None
    rivals: list[Rival]


def reserve(objective: Objective, purse: Purse) -> float:
    """Return how many forwards of a budget are kept for the guard: what it could spend, at most its share."""
    return min(purse.worth(SHARE), MOST_BLENDS * objective.n_validation_batches)


def guard(objective: Objective, purse: Purse, end: Tensor, rivals: Mapping[str, Tensor]) -> Verdict:
    """Return the end of a search, or a rival that is better by more than two standard errors of their difference.

    If the loss of the end is not finite, the best rival whose loss is, is better.

    Args:
        end, rivals: alphas, [G, K]; the rivals in the order in which they matter.
    Cost: the guard's share of the budget, in validation batches, the same for each; all batches without a budget.
    """
    affordable = min(purse.forwards(), purse.worth(SHARE))
    if affordable < 2:
        return Verdict("end", end, None, 0, None, [])
    others = [(name, alpha) for name, alpha in rivals.items() if not torch.equal(alpha, end)][: MOST_BLENDS - 1]
    compared = others[: int(min(affordable - 1, len(others)))]
    per_blend = affordable / (1 + len(compared))
    n_batches = None if math.isinf(per_blend) else int(per_blend)
    wanted = objective.validation_terms(end, n_batches)
    found = []
    for name, alpha in compared:
        terms = objective.validation_terms(alpha, n_batches)
        found.append(Rival(name, alpha, terms.mean().item(), *paired_difference(terms, wanted)))
    end_loss = wanted.mean().item()
    better = [r for r in found if math.isfinite(r.loss) and (r.is_better or not math.isfinite(end_loss))]
    best = min(better, key=lambda rival: rival.loss, default=None)
    name, alpha, loss = (best.name, best.alpha, best.loss) if best else ("end", end, end_loss)
    return Verdict(name, alpha, loss, len(wanted), end_loss, found)


def paired_difference(terms: Tensor, others: Tensor) -> tuple[float, float | None]:
    """Return the mean of terms [N] less others [N], and its standard error, None of a single term."""
    differences = terms - others
    error = differences.std().item() / math.sqrt(len(terms)) if len(terms) > 1 else None
    return differences.mean().item(), error


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
