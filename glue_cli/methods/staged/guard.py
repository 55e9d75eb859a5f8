"""The guard of a search: what it found is held against plain blends on held-out data, example by example.

All are judged as they would be written: with their own BatchNorm's statistics, in the dtype of the output.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.results.mix import name_with
from glue_cli.search.account import Purse
from glue_cli.search.protocol import Objective

SHARE = 0.15  # of a budget, its last part
# Standard errors by which a rival must be better. With one, the end of a search gives way to what only looks better on
# a few hundred examples: figures in examples/benchmarks/search/README.md.
_MARGIN = 2


@dataclass(frozen=True, eq=False)
class Candidate:
    """A blend that may be returned: alpha [G, K], and BatchNorm's statistics.

    Attributes:
        without: the alphas that were found in the same way without one fold of the examples each, [F, G, K], by which
            it is judged on that fold; None where alpha depends on none of them.
    """

    name: str
    alpha: Tensor
    statistics: Statistics = "averaged"
    without: Tensor | None = None

    @property
    def label(self) -> str:
        """What an account calls it."""
        return name_with(self.name, self.statistics)

    def is_like(self, other: "Candidate") -> bool:
        return self.statistics == other.statistics and torch.equal(self.alpha, other.alpha)


@dataclass(frozen=True)
class Rival:
    """A blend beside the one that was found: the mean of the paired differences of their losses, rival - found.

    `standard_error` is that of the difference; None where there is a single term.
    """

    candidate: Candidate
    loss: float
    difference: float
    standard_error: float | None

    @property
    def is_better(self) -> bool:
        return self.standard_error is not None and self.difference < -_MARGIN * self.standard_error


@dataclass(frozen=True)
class Verdict:
    """Which blend is returned, by how many held-out terms; none is no guard.

    Attributes:
        name: "end" for the one that was found, else a rival's label.
        standard_error: of the loss of the one that is returned; None of fewer than two terms.
        is_whole: whether all held-out batches were judged by.
    """

    name: str
    returned: Candidate
    loss: float | None
    standard_error: float | None
    n_terms: int
    end_loss: float | None
    rivals: list[Rival]
    is_whole: bool


def reserve(objective: Objective, purse: Purse) -> float:
    """Return how many forwards of a budget are kept for the guard: what it could spend, at most its share."""
    by_kind = [objective.n_written_forwards(kind) for kind in objective.kinds]
    # The end, the one alpha and the runner-up; and of each kind the uniform blend and an expert.
    return min(purse.worth(SHARE), 3 * max(by_kind) + 2 * sum(by_kind))


def guard(objective: Objective, purse: Purse, end: Candidate, rivals: Sequence[Candidate]) -> Verdict:
    """Return the end of a search, or a rival that is better by more than two standard errors of their difference.

    If the loss of the end is not finite, the best rival whose loss is, is better.

    Args:
        rivals: in the order in which they matter.
    Cost: the guard's share of the budget, in held-out batches, the same for each; all batches without a budget.
    """
    others = [rival for i, rival in enumerate(rivals) if not any(rival.is_like(o) for o in (end, *rivals[:i]))]
    compared, n_batches = _affordable(objective, min(purse.forwards(), purse.worth(SHARE)), [end, *others])
    if not compared:
        return Verdict("end", end, None, None, 0, None, [], False)
    terms = [_terms(objective, candidate, n_batches) for candidate in compared]
    wanted = terms[0]
    found = [
        Rival(candidate, own.mean().item(), *paired_difference(own, wanted))
        for candidate, own in zip(compared[1:], terms[1:], strict=True)
    ]
    end_loss = wanted.mean().item()
    better = [r for r in found if math.isfinite(r.loss) and (r.is_better or not math.isfinite(end_loss))]
    best = min(better, key=lambda rival: rival.loss, default=None)
    returned = best.candidate if best else end
    own = next(own for candidate, own in zip(compared, terms, strict=True) if candidate is returned)
    mean, error = paired_difference(own, torch.zeros_like(own))
    name = returned.label if best else "end"
    is_whole = n_batches == objective.n_held_out_batches
    return Verdict(name, returned, mean, error, len(own), end_loss, found, is_whole)


def _affordable(
    objective: Objective, n_forwards: float, candidates: Sequence[Candidate]
) -> tuple[list[Candidate], int]:
    """Return the first candidates that so many forwards can judge by a batch each, and by how many batches they can.

    None where the end alone could be judged, which tells nothing of others.
    """

    def cost(n_candidates: int, n_batches: int) -> int:
        kinds = (candidate.statistics for candidate in candidates[:n_candidates])
        return sum(objective.n_written_forwards(kind, n_batches) for kind in kinds)

    n_compared = max((n for n in range(len(candidates) + 1) if cost(n, 1) <= n_forwards), default=0)
    if n_compared < min(2, len(candidates)):
        return [], 0
    n_most = objective.n_held_out_batches
    n_batches = max(n for n in range(1, n_most + 1) if n == 1 or cost(n_compared, n) <= n_forwards)
    return [*candidates[:n_compared]], n_batches


def _terms(objective: Objective, candidate: Candidate, n_batches: int) -> Tensor:
    alphas = candidate.alpha
    if candidate.without is not None and len(candidate.without) == objective.n_folds > 1:
        alphas = candidate.without
    whole = n_batches == objective.n_held_out_batches
    return objective.written_terms(alphas, candidate.statistics, None if whole else n_batches)


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
            "loss": verdict.loss,
            "standard_error": verdict.standard_error,
            "end_loss": verdict.end_loss,
            "rivals": [
                {
                    "name": rival.candidate.label,
                    "loss": rival.loss,
                    "difference": rival.difference,
                    "standard_error": rival.standard_error,
                }
                for rival in verdict.rivals
            ],
        },
    }
