"""What the held-out losses of a search benchmark say: who wins where, and by how much."""

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

# By method and budget: the loss of each held-out example under each seed's alpha, float64 [n_seeds, n_examples].
Losses = dict[str, dict[int, Tensor]]
Problems = Mapping[tuple[str, int], Losses]  # by family and K
Rows = list[dict[str, Any]]

DEFAULT = "default"
PAPER = ("paper-0.01", "paper-0.03", "paper-0.1", "paper-0.3")
# What each alternative is the best of: where there are several, the best in hindsight, cell by cell.
GRADIENT_FREE = {
    "paper SPSA": PAPER[:1],
    "paper SPSA, best lr": PAPER,
    "CMA-ES, best sigma": ("cmaes-0.5", "cmaes-1"),
    "NGOpt": ("ngopt",),
    "uniform": ("uniform",),
    "proxy": ("proxy",),
    "best expert": ("best-expert",),
}
FULL_GRADIENT = {"full gradient, best lr": ("fullgrad-0.03", "fullgrad-0.1", "fullgrad-0.3")}
BASELINES = ("uniform", "proxy", "best-expert")

GAP_BUDGET, GAP_CLOSED = 300, 0.9
REACH = ((200, "paper SPSA"), (500, "paper SPSA, best lr"))  # what the default has after as many forwards
REACHED_BUDGET = 1000


@dataclass(frozen=True)
class Comparison:
    """Mean difference of two alphas' losses, the first less the second, and its standard error over the examples."""

    difference: float
    standard_error: float

    @property
    def outcome(self) -> str:
        if abs(self.difference) <= 2 * self.standard_error:
            return "tie"
        return "win" if self.difference < 0 else "loss"


def compare(own: Tensor, other: Tensor) -> Comparison:
    """Compare losses [n_seeds, n_examples] of the same examples by the differences of their means over the seeds."""
    differences = own.mean(0) - other.mean(0)
    return Comparison(differences.mean().item(), (differences.std() / len(differences) ** 0.5).item())


def figure(losses: Tensor) -> dict[str, float]:
    """Return the mean over the seeds, and their standard deviation."""
    by_seed = losses.mean(1)
    return {"mean": by_seed.mean().item(), "sd": by_seed.std().item() if len(by_seed) > 1 else 0.0}


def best_of(losses: Losses, settings: Sequence[str], budget: int) -> str | None:
    """Return the setting with the lowest mean; None unless all are there."""
    if any(budget not in losses.get(setting, {}) for setting in settings):
        return None
    return min(settings, key=lambda setting: losses[setting][budget].mean().item())


def summarise(problems: Problems, left_out: AbstractSet[str]) -> dict[str, Any]:
    """Return all figures.

    Args:
        left_out: the families that nothing was tuned on.
    """
    comparisons = list(_comparisons(problems))
    return {
        "figures": list(_figures(problems)),
        "comparisons": comparisons,
        "totals": list(_totals(comparisons, left_out)),
        "closed_gap": list(_closed_gaps(problems)),
        "reach": list(_reaches(problems)),
        "guard": list(_guards(problems)),
    }


def _figures(problems: Problems) -> Iterator[dict[str, Any]]:
    for (family, n_experts), losses in problems.items():
        for method, by_budget in losses.items():
            for budget, rows in by_budget.items():
                cell = {"family": family, "n_experts": n_experts, "budget": budget}
                yield {**cell, "method": method, **figure(rows), "n_examples": rows.shape[1]}


def _comparisons(problems: Problems) -> Iterator[dict[str, Any]]:
    """Compare the default search with every alternative in every cell (family, K, budget) that has both."""
    for (family, n_experts), losses in problems.items():
        for budget, own in losses.get(DEFAULT, {}).items():
            for alternative, settings in {**GRADIENT_FREE, **FULL_GRADIENT}.items():
                if setting := best_of(losses, settings, budget):
                    found = compare(own, losses[setting][budget])
                    cell = {"family": family, "n_experts": n_experts, "budget": budget}
                    yield {**cell, "alternative": alternative, "setting": setting, **_row(found)}


def _totals(comparisons: Rows, left_out: AbstractSet[str]) -> Iterator[dict[str, Any]]:
    """Count wins, ties and losses by alternative and over all gradient-free ones, what was left out apart."""
    alternatives = {name: [name] for name in (*GRADIENT_FREE, *FULL_GRADIENT)}
    for alternative, names in {**alternatives, "all gradient-free": list(GRADIENT_FREE)}.items():
        rows = [row for row in comparisons if row["alternative"] in names]
        for families, of in (
            ("all", rows),
            ("tuned on", [row for row in rows if row["family"] not in left_out]),
            ("left out", [row for row in rows if row["family"] in left_out]),
        ):
            counts = {name: sum(row["outcome"] == name for row in of) for name in ("win", "tie", "loss")}
            share = (counts["win"] + counts["tie"]) / len(of) if of else None
            yield {"alternative": alternative, "families": families, **counts, "won_or_tied": share}


def _closed_gaps(problems: Problems) -> Iterator[dict[str, Any]]:
    """Say how much the default search has closed of the gap from uniform to the best that any method finds."""
    for (family, n_experts), losses in problems.items():
        if GAP_BUDGET not in losses.get(DEFAULT, {}) or GAP_BUDGET not in losses.get("uniform", {}):
            continue
        means = {(method, b): rows.mean().item() for method, of in losses.items() for b, rows in of.items()}
        best = min(means, key=means.__getitem__)
        start, own = means["uniform", GAP_BUDGET], means[DEFAULT, GAP_BUDGET]
        yield {
            "family": family,
            "n_experts": n_experts,
            "uniform": start,
            "default": own,
            "best": means[best],
            "best_by": "{} at {}".format(*best),
            "closed": (start - own) / (start - means[best]) if start > means[best] else None,
        }


def _reaches(problems: Problems) -> Iterator[dict[str, Any]]:
    """Compare the default search after few forwards with the paper's after many."""
    for (family, n_experts), losses in problems.items():
        for budget, alternative in REACH:
            setting = best_of(losses, GRADIENT_FREE[alternative], REACHED_BUDGET)
            if setting and budget in losses.get(DEFAULT, {}):
                own, other = losses[DEFAULT][budget], losses[setting][REACHED_BUDGET]
                row = {"family": family, "n_experts": n_experts, "alternative": alternative, "setting": setting}
                means = {"default": own.mean().item(), "other": other.mean().item()}
                found = compare(own, other)
                yield {**row, "budget": budget, **means, **_row(found), "reached": found.difference <= 0}


def _guards(problems: Problems) -> Iterator[dict[str, Any]]:
    """Count the runs of the default search, seed by seed, that end worse than what takes no search."""
    for baseline in BASELINES:
        found = [
            compare(own[None], other[None])
            for losses in problems.values()
            for budget in losses.get(DEFAULT, {}).keys() & losses.get(baseline, {}).keys()
            for own, other in zip(losses[DEFAULT][budget], losses[baseline][budget], strict=True)
        ]
        worse = [one.difference for one in found if one.difference > 0]
        yield {
            "baseline": baseline,
            "runs": len(found),
            "worse": len(worse),
            "clearly_worse": sum(one.outcome == "loss" for one in found),
            "mean_excess": sum(worse) / len(worse) if worse else None,
            "largest_excess": max(worse, default=None),
        }


def _row(found: Comparison) -> dict[str, Any]:
    return {**asdict(found), "outcome": found.outcome}
