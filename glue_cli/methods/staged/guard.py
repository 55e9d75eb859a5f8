"""The guard of a search: it compares the result with plain blends on held-out data, example by example.

All are judged as they would be written: with their own BatchNorm statistics, in the dtype of the output.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.methods.result import if_finite
from glue_cli.results.mix import END, Guard, name_with
from glue_cli.results.mix import Rival as RivalShown
from glue_cli.search.account import Purse
from glue_cli.search.protocol import Objective

SHARE = 0.15  # of a budget, its last part
# By how many standard errors a rival must be better. With one, it can win by chance on a few hundred examples: figures
# in examples/benchmarks/search/README.md.
_MARGIN = 2


@dataclass(frozen=True, eq=False)
class Candidate:
    """A blend that may be returned: alpha [G, K] and BatchNorm statistics.

    Attributes:
        without: [F, G, K], the alphas estimated in the same way, each without one fold of the examples; each is judged
            on the fold it has not seen. None if alpha depends on none of these examples.
    """

    name: str
    alpha: Tensor
    statistics: Statistics = "averaged"
    without: Tensor | None = None

    @property
    def label(self) -> str:
        """Its name in the result."""
        return name_with(self.name, self.statistics)

    def is_like(self, other: "Candidate") -> bool:
        return self.statistics == other.statistics and torch.equal(self.alpha, other.alpha)


@dataclass(frozen=True)
class Rival:
    """A blend to compare with the end of the search; `difference` is the mean of the paired losses, rival - end.

    `standard_error` is that of the difference; None if there is a single term.
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
    """Which blend is returned, and by how many held-out terms that was decided; 0 if the guard did not run.

    Attributes:
        name: `END` for the end of the search, else a rival's label.
        standard_error: of the returned blend's loss; None with fewer than two terms.
        is_whole: whether all held-out batches were used.
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
    """Return how many forwards of a budget are kept for the guard: as many as it can use, up to its share."""
    by_kind = [objective.n_written_forwards(kind) for kind in objective.kinds]
    # The end, the one alpha and the runner-up; and of each kind the uniform blend and an expert.
    return min(purse.worth(SHARE), 3 * max(by_kind) + 2 * sum(by_kind))


def guard(objective: Objective, purse: Purse, end: Candidate, rivals: Sequence[Candidate]) -> Verdict:
    """Return the end of a search, or a rival that is better by over two standard errors of their difference.

    If the loss of the end is not finite, the best rival with a finite loss wins.

    Args:
        rivals: the most important first; a small budget may leave out the last.
    Cost: up to the guard's share of the budget, the same held-out batches for each; without a budget, all of them.
    """
    others = [rival for i, rival in enumerate(rivals) if not any(rival.is_like(o) for o in (end, *rivals[:i]))]
    compared, n_batches = _affordable(objective, min(purse.forwards(), purse.worth(SHARE)), [end, *others])
    if not compared:
        return Verdict(END, end, None, None, 0, None, [], False)
    terms = [_terms(objective, candidate, n_batches) for candidate in compared]
    wanted = terms[0]
    judged = [
        Rival(candidate, own.mean().item(), *paired_difference(own, wanted))
        for candidate, own in zip(compared[1:], terms[1:], strict=True)
    ]
    end_loss = wanted.mean().item()
    better = [r for r in judged if math.isfinite(r.loss) and (r.is_better or not math.isfinite(end_loss))]
    best = min(better, key=lambda rival: rival.loss, default=None)
    returned = best.candidate if best else end
    own = next(own for candidate, own in zip(compared, terms, strict=True) if candidate is returned)
    mean, error = paired_difference(own, torch.zeros_like(own))
    name = returned.label if best else END
    is_whole = n_batches == objective.n_held_out_batches
    return Verdict(name, returned, mean, error, len(own), end_loss, judged, is_whole)


def loss_of(objective: Objective, candidate: Candidate) -> float:
    """Return a blend's mean loss on all held-out data, as it would be written."""
    return _terms(objective, candidate, objective.n_held_out_batches).mean().item()


def _affordable(
    objective: Objective, n_forwards: float, candidates: Sequence[Candidate]
) -> tuple[list[Candidate], int]:
    """Return the first candidates, as many as `n_forwards` can judge by a batch each, and how many batches they allow.

    Returns no candidates if only the end could be judged, as there would be nothing to compare it with.
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
    """Return the mean of terms [N] less others [N], and its standard error, None for a single term."""
    differences = terms - others
    error = differences.std().item() / math.sqrt(len(terms)) if len(terms) > 1 else None
    return differences.mean().item(), error


def as_written_down(verdict: Verdict) -> Guard:
    """Return a verdict as a result shows it, without the alphas."""
    return Guard(
        terms=verdict.n_terms,
        end_loss=verdict.end_loss,
        rivals=[
            RivalShown(
                name=rival.candidate.label,
                loss=if_finite(rival.loss),
                difference=if_finite(rival.difference),
                standard_error=None if rival.standard_error is None else if_finite(rival.standard_error),
            )
            for rival in verdict.rivals
        ],
        loss=verdict.loss,
        standard_error=verdict.standard_error,
    )
