"""The search benchmark's figures as tables, for people."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from search_statistics import DEFAULT, FULL_GRADIENT, GAP_BUDGET, GAP_CLOSED, GRADIENT_FREE, REACHED_BUDGET

Summary = dict[str, Any]


@dataclass(frozen=True)
class Table:
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(summary: Summary) -> Iterator[Table]:
    """Yield what `search_statistics.summarise` has found, table by table."""
    for family, n_experts in dict.fromkeys((row["family"], row["n_experts"]) for row in summary["figures"]):
        yield _problem(summary, family, n_experts)
    for make in (_totals, _closed_gaps, _reaches, _guards):
        table = make(summary)
        if table.rows:
            yield table


def to_markdown(table: Table) -> str:
    lines = [table.columns, ["---", *["---:"] * (len(table.columns) - 1)], *table.rows]
    return "\n".join([f"**{table.title}**", "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def _problem(summary: Summary, family: str, n_experts: int) -> Table:
    """Show each method's loss at each budget, and how the default search compares."""

    def of(key: str) -> list[dict[str, Any]]:
        return [row for row in summary[key] if (row["family"], row["n_experts"]) == (family, n_experts)]

    figures = {(row["method"], row["budget"]): row for row in of("figures")}
    compared = {(row["alternative"], row["budget"]): row for row in of("comparisons")}
    budgets = sorted({budget for method, budget in figures if method != DEFAULT})
    rows = [["default SPSA", *(cell for b in budgets for cell in (_loss([figures.get((DEFAULT, b))]), ""))]]
    for alternative, settings in {**GRADIENT_FREE, **FULL_GRADIENT}.items():
        row = [alternative]
        for budget in budgets:
            found = [figures.get((setting, budget)) for setting in settings]
            row += [_loss(found), _outcome(compared.get((alternative, budget)))]
        rows.append(row)
    n_examples = max(row["n_examples"] for row in figures.values())
    columns = ["", *(cell for budget in budgets for cell in (f"{budget:,} forwards", "default less it"))]
    return Table(f"{family}, K = {n_experts}: loss on {n_examples:,} held-out examples", columns, rows)


def _totals(summary: Summary) -> Table:
    found = {(row["alternative"], row["families"]): row for row in summary["totals"]}
    rows = []
    for alternative in dict.fromkeys(name for name, _ in found):
        row = [alternative]
        for families in ("all", "tuned on", "left out"):
            total = found[alternative, families]
            share = total["won_or_tied"]
            counts = "" if share is None else f"{total['win']} / {total['tie']} / {total['loss']}"
            row += [counts, _percent(share)]
        if any(row[1:]):
            rows.append(row)
    columns = ["", "all: win / tie / loss", "won or tied", "tuned on", "won or tied", "left out", "won or tied"]
    return Table("Default SPSA against each alternative, in cells (family, K, budget)", columns, rows)


def _closed_gaps(summary: Summary) -> Table:
    rows = [
        [f"{row['family']}, K = {row['n_experts']}"]
        + [f"{row[name]:.4f}" for name in ("uniform", "default", "best")]
        + [row["best_by"], _percent(row["closed"])]
        for row in summary["closed_gap"]
    ]
    if rows:
        n_closed = sum((row["closed"] or 0) >= GAP_CLOSED for row in summary["closed_gap"])
        rows.append([f"closed to {GAP_CLOSED:.0%} or more", "", "", "", "", f"{n_closed} of {len(rows)}"])
    title = f"The gap from uniform to the best found by any method at any budget, after {GAP_BUDGET} forwards"
    return Table(title, ["", "uniform", "default", "best", "found by", "closed"], rows)


def _reaches(summary: Summary) -> Table:
    rows = [
        [f"{row['family']}, K = {row['n_experts']}: {row['budget']} for {row['alternative']}"]
        + [f"{row['default']:.4f}", f"{row['other']:.4f}", _outcome(row), "yes" if row["reached"] else "no"]
        for row in summary["reach"]
    ]
    title = f"Default SPSA after few forwards, the paper's after {REACHED_BUDGET:,}"
    return Table(title, ["", "default", "paper's", "difference", "reached"], rows)


def _guards(summary: Summary) -> Table:
    rows = [
        [row["baseline"], *(str(row[name]) for name in ("runs", "worse", "clearly_worse"))]
        + ["" if row[name] is None else f"{row[name]:.4f}" for name in ("mean_excess", "largest_excess")]
        for row in summary["guard"]
        if row["runs"]
    ]
    columns = ["", "runs", "worse", "by more than 2 SE", "mean excess where worse", "largest"]
    return Table("How often default SPSA, seed by seed, ends worse than what takes no search", columns, rows)


def _loss(figures: Sequence[dict[str, Any] | None]) -> str:
    """Show the best of several settings, mean and standard deviation over the seeds; nothing unless all are there."""
    there = [figure for figure in figures if figure]
    best = min(there, key=lambda figure: figure["mean"], default={})
    return f"{best['mean']:.4f}±{best['sd']:.4f}" if len(there) == len(figures) else ""


def _outcome(row: dict[str, Any] | None) -> str:
    return f"{row['difference']:+.4f} {row['outcome']}" if row else ""


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"
