"""What each figure shows, drawn with matplotlib's object interface: no window, and no state that is shared.

A plot is a function of a row's summary and runs. It returns the figure, a text in its place and a caption; None where
there is nothing to show.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from glue_cli.foundation.units import name_of
from glue_cli.foundation.user_code import PREFIX
from glue_cli.report.sort import Run
from glue_cli.report.statistics import Point
from glue_cli.report.styles import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, Look
from glue_cli.report.summary import MethodSummary, RowSummary
from glue_cli.report.tables import seed_name
from glue_cli.results.schemas import Step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Plot = tuple["Figure", str, str] | None

# What figure 1 of the paper shows, and, beside other methods, what these are to be seen against.
_PAPERS, _REFERENCES = ("data-size", "proxy", "fullgrad", "spsa", "scratch"), ("fullgrad", "spsa")
_MAX_LINES = 6
_MAX_EXPERTS = 14
_EXPERT_COLORS = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, BLACK)
_EXPERT_DASHES: tuple[Any, ...] = ("-", "--", ":", "-.")
_MIB = 2**20
# Whatever has an accuracy was trained by cross-entropy, the rest by squared error.
_LOSS_UNITS = {"accuracy": "cross-entropy, nats", "r2": "squared error"}
_FEW_POINTS = 3


def accuracy(row: RowSummary, runs: Sequence[Run]) -> Plot:
    """The paper's figure 1; methods that the paper does not have are in it where there are few."""
    return _against_epoch(row, _split(row)[0])


def variants(row: RowSummary, runs: Sequence[Run]) -> Plot:
    """The same for the methods that did not fit into it."""
    return _against_epoch(row, _split(row)[1])


def _split(row: RowSummary) -> tuple[list[MethodSummary], list[MethodSummary]]:
    methods = [method for method in row.methods if len(method.merit.curve) > 1]
    papers = [method for method in methods if method.label in _PAPERS]
    if len(methods) <= _MAX_LINES or not papers:
        return methods, []
    return papers, [method for method in methods if method not in papers or method.label in _REFERENCES]


def _against_epoch(row: RowSummary, methods: Sequence[MethodSummary]) -> Plot:
    from matplotlib.ticker import MaxNLocator

    if not methods or row.merit is None:
        return None
    figure, axes = _new(8.0, 4.6)
    for method in methods:
        _curve(axes, method.look, method.merit.curve)
    by_run = zip(*(expert.merit for expert in row.experts), strict=True)
    best = [max(known) for values in by_run if (known := [value for value in values if value is not None])]
    if best:
        axes.axhline(fmean(best), color=GREY, linewidth=1, linestyle=(0, (6, 2, 1, 2)), label="best expert alone")
    axes.set_xlabel("finetuning epoch (0: the prior, before finetuning)")
    axes.set_ylabel(f"{row.merit.name} ({row.merit.unit})" if row.merit.unit else row.merit.name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    figure.legend(loc="outside right center")
    names = ", ".join(method.look.name for method in methods)
    caption = f"{_capital(row.merit.name)} against finetuning epoch; epoch 0 is the prior. {_spread_said(row)}"
    return figure, f"{_capital(row.merit.name)} over the finetuning epochs, a line a start: {names}.", caption


def alpha(row: RowSummary, runs: Sequence[Run]) -> Plot:
    shown = [method for method in row.methods if any(_searched(run, method) for run in runs)]
    runs = [run for run in runs if any(_searched(run, method) for method in shown)]
    if not shown:
        return None
    n_columns = len(runs) if len(runs) > 1 else min(3, len(shown))
    n_lines = -(-len(shown) * len(runs) // n_columns)
    figure = _figure(1.9 + 2.6 * n_columns, 0.7 + 2.0 * n_lines)
    grid = figure.subplots(n_lines, n_columns, squeeze=False, sharex="row" if len(runs) > 1 else "none", sharey=True)
    drawn = _most_weighty(shown, runs)
    searches = [(method, run, _searched(run, method)) for method in shown for run in runs]
    for axes in grid.flat[len(searches) :]:
        axes.set_visible(False)
    for axes, (method, run, search) in zip(grid.flat, searches, strict=False):
        if search:
            axes.set_title(f"{method.look.name}, {seed_name(run.seed)}", fontsize=9)
            _coefficients(axes, search, run.trials[method.label].kept_step, drawn)
        else:
            axes.set_visible(False)
    figure.supxlabel("mixing step", fontsize=9)
    figure.supylabel("coefficient alpha", fontsize=9)
    figure.legend(handles=_expert_handles(drawn, shown, runs), loc="outside right center")
    caption = (
        "The coefficients over the steps of each search, a line an expert; every seed has experts of its own. "
        "Dotted: the alpha that is kept."
    )
    names = ", ".join(method.look.name for method in shown)
    return figure, f"Coefficients over the mixing steps, a panel for each method and seed: {names}.", caption


def _coefficients(
    axes: "Axes", search: Sequence[Step], kept_step: int | None, looks: dict[int, tuple[str, Any]]
) -> None:
    axes.set_ylim(0, 1)
    axes.margins(x=0.01)
    for k in range(len(search[0].alpha)):
        color, dash = looks.get(k, (GREY, "-"))
        axes.plot([s.step for s in search], [s.alpha[k] for s in search], color=color, linestyle=dash)
    if kept_step is not None:
        axes.axvline(kept_step, color=BLACK, linewidth=0.8, linestyle=":")


def _searched(run: Run, method: MethodSummary) -> list[Step]:
    return run.trials[method.label].search if method.label in run.trials else []


def _most_weighty(shown: Sequence[MethodSummary], runs: Sequence[Run]) -> dict[int, tuple[str, Any]]:
    """Return colour and dash of the experts that are told apart: all, or those with the largest coefficients."""
    largest: dict[int, float] = {}
    for search in (_searched(run, method) for method in shown for run in runs):
        for k, a in enumerate(search[-1].alpha if search else ()):
            largest[k] = max(largest.get(k, 0.0), a)
    kept = sorted(sorted(largest, key=lambda k: -largest[k])[:_MAX_EXPERTS])
    n = len(_EXPERT_COLORS)
    return {k: (_EXPERT_COLORS[i % n], _EXPERT_DASHES[(i + 2 * (i // n)) % 4]) for i, k in enumerate(kept)}


def _expert_handles(
    drawn: dict[int, tuple[str, Any]], shown: Sequence[MethodSummary], runs: Sequence[Run]
) -> list[Any]:
    from matplotlib.lines import Line2D

    mixes = [
        m for run in runs for method in shown if method.label in run.trials if (m := run.trials[method.label].mix)
    ]
    names = {tuple(name_of(expert.path) for expert in mix.experts) for mix in mixes}
    named = names.pop() if len(names) == 1 else ()  # other seeds' experts may have other names
    handles = [
        Line2D([], [], color=color, linestyle=dash, label=named[k] if k < len(named) else f"expert {k}")
        for k, (color, dash) in drawn.items()
    ]
    n_experts = max(len(search[0].alpha) for run in runs for method in shown if (search := _searched(run, method)))
    return handles + ([Line2D([], [], color=GREY, label="the others")] if n_experts > len(drawn) else [])


def loss(row: RowSummary, runs: Sequence[Run]) -> Plot:
    methods = [method for method in row.methods if method.search]
    if not methods:
        return None
    objectives = sorted({method.objective or "loss" for method in methods}, key=lambda name: (name != "loss", name))
    figure = _figure(8.0, 1.0 + 3.4 * len(objectives))
    panels = dict(zip(objectives, figure.subplots(len(objectives), squeeze=False, sharex=True).flat, strict=True))
    end = max(point.x for method in methods for point in method.search)
    for method in methods:
        axes = panels[method.objective or "loss"]
        _curve(axes, method.look, method.search, 7 if len(method.search) <= _FEW_POINTS else None)
        if method.objective is None:  # its loss, for as long as the searches go on
            axes.plot([method.search[0].x, end], [method.search[0].y.mean] * 2, color=method.look.color, linewidth=0.7)
    for objective, axes in panels.items():
        axes.set_ylabel(_minimised(objective, row))
    panels[objectives[-1]].set_xlabel(
        "budget spent (minibatch forwards, validation included; a backward counts as two)"
    )
    figure.legend(loc="outside right center")
    what = " and ".join(_minimised(objective, row) for objective in objectives)
    level = "A thin level line: a method without a search. " if any(m.objective is None for m in methods) else ""
    caption = (
        f"{_capital(what)} of the blend against the budget spent on the choice of alpha. "
        "Markers: validations, and the uniform blend where a search starts without one; lines just join them. "
        f"{level}A search that has ended keeps its last loss. {_spread_said(row)}"
    )
    names = ", ".join(method.look.name for method in methods)
    return figure, f"A line for each method, over the budget in minibatch forwards: {names}.", caption


def _minimised(objective: str, row: RowSummary) -> str:
    """Name what a search minimises on the validation split: the loss, or an objective turned round."""
    if objective == "loss":
        return f"validation loss ({_LOSS_UNITS[row.merit.figure]})" if row.merit else "validation loss"
    own = objective.removeprefix(PREFIX)
    return f"{'1 -' if own == objective else 'minus'} {own} on validation data"


def cost(row: RowSummary, runs: Sequence[Run]) -> Plot:
    methods = [method for method in row.methods if method.cost]
    if not any(method.cost["budget"].mean for method in methods):
        return None
    figure = _figure(9.6, 1.0 + 0.34 * len(methods))
    panels = figure.subplots(1, 4, sharey=True)
    panel_of = {
        "budget": ("budget\n(forwards, a backward as two)", 1.0),
        "examples": ("examples seen\n(thousands)", 1e3),
        "wall_s": ("wall time\n(s)", 1.0),
        "peak_bytes": ("peak memory\n(MiB)", _MIB),
    }
    for axes, (key, (title, unit)) in zip(panels, panel_of.items(), strict=True):
        found = [method.cost.get(key) for method in methods]
        values = [stat.mean / unit if stat else 0.0 for stat in found]
        bars = axes.barh(range(len(methods)), values, color=[method.look.color for method in methods], height=0.65)
        axes.bar_label(bars, [f"{value:,.0f}" if value >= 10 else f"{value:.2g}" for value in values], padding=2)
        axes.set_xlim(0, 1.35 * max(*values, 1e-9))
        axes.set_title(title, fontsize=9)
        axes.set_yticks(range(len(methods)), [method.look.name for method in methods])
        axes.set_xticks([])
        axes.grid(False)
        axes.spines["bottom"].set_visible(False)
    panels[0].invert_yaxis()
    caption = "What each method's choice of alpha took, mean over the seeds; the blend's own writing included."
    return figure, "Bars of budget, examples, wall time and peak memory by method, as in the table below.", caption


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _new(width: float, height: float) -> tuple["Figure", "Axes"]:
    figure = _figure(width, height)
    return figure, figure.add_subplot()


def _curve(axes: "Axes", look: Look, points: Sequence[Point], marker_size: float | None = None) -> None:
    """Draw a mean over the seeds, with a band of one standard deviation."""
    xs, means = [point.x for point in points], [point.y.mean for point in points]
    face = "white" if look.hollow else look.color
    axes.plot(
        xs,
        means,
        color=look.color,
        marker=look.marker,
        markersize=marker_size,
        linestyle=look.dash,
        markerfacecolor=face,
        label=look.name,
    )
    spreads = [point.y.sd or 0.0 for point in points]
    if any(spreads):
        low = [mean - spread for mean, spread in zip(means, spreads, strict=True)]
        high = [mean + spread for mean, spread in zip(means, spreads, strict=True)]
        axes.fill_between(xs, low, high, color=look.color, alpha=0.13, linewidth=0)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _spread_said(row: RowSummary) -> str:
    n = len(row.seeds)
    return "1 seed." if n == 1 else f"Lines: means over a method's seeds, {n} at most; bands: one standard deviation."
