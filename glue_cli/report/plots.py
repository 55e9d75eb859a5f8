"""The plots of a report, drawn with matplotlib's object interface, which opens no window and shares no state.

A plot is a function of a row's summary. It returns the figure, a description for readers who
cannot see it, and a caption; None if there is nothing to show.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from glue_cli.foundation.units import name_of
from glue_cli.foundation.user_code import PREFIX
from glue_cli.report.sort import Repetition
from glue_cli.report.statistics import Point
from glue_cli.report.styles import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, Style
from glue_cli.report.summary import MethodSummary, RowSummary
from glue_cli.report.tables import MIB, capital, seed_name
from glue_cli.results.history import Step
from glue_cli.spec.goal import goal_named

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Plot = tuple["Figure", str, str] | None

# The methods in figure 1 of the paper, and those that are drawn beside other methods for comparison.
_PAPERS, _REFERENCES = ("data-size", "proxy", "fullgrad", "spsa", "scratch"), ("fullgrad", "spsa")
_MAX_LINES = 6
_MAX_EXPERTS = 14
_EXPERT_COLORS = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, BLACK)
_EXPERT_DASHES: tuple[Any, ...] = ("-", "--", ":", "-.")
# The unit of the loss, by the figure that is compared: a model with an accuracy was trained with cross-entropy.
_LOSS_UNITS = {"accuracy": "cross-entropy, nats", "r2": "squared error"}
_FEW_POINTS = 3
_LOSS = "loss"  # the objective under which methods without a search are drawn


def accuracy(row: RowSummary) -> Plot:
    """Figure 1 of the paper; it also has methods that are not in the paper, if there are few methods in all."""
    return _against_epoch(row, _split(row)[0])


def variants(row: RowSummary) -> Plot:
    """The same figure for the methods that did not fit into the first one."""
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
        _curve(axes, method.style, method.merit.curve)
    by_seed = zip(*(expert.merit for expert in row.experts), strict=True)
    best = [max(known) for values in by_seed if (known := [value for value in values if value is not None])]
    if best:
        axes.axhline(fmean(best), color=GREY, linewidth=1, linestyle=(0, (6, 2, 1, 2)), label="best expert alone")
    axes.set_xlabel("finetuning epoch (0: the prior, before finetuning)")
    axes.set_ylabel(f"{row.merit.name} ({row.merit.unit})" if row.merit.unit else row.merit.name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    figure.legend(loc="outside right center")
    names = ", ".join(method.style.name for method in methods)
    caption = f"{capital(row.merit.name)} against finetuning epoch; epoch 0 is the prior. {_describe_spread(row)}"
    return figure, f"{capital(row.merit.name)} over the finetuning epochs, one line per start: {names}.", caption


def alpha(row: RowSummary, repetitions: Sequence[Repetition]) -> Plot:
    shown = [method for method in row.methods if any(_searched(repetition, method) for repetition in repetitions)]
    repetitions = [repetition for repetition in repetitions if any(_searched(repetition, method) for method in shown)]
    if not shown:
        return None
    n_columns = len(repetitions) if len(repetitions) > 1 else min(3, len(shown))
    n_lines = -(-len(shown) * len(repetitions) // n_columns)
    figure = _figure(1.9 + 2.6 * n_columns, 0.7 + 2.0 * n_lines)
    grid = figure.subplots(
        n_lines, n_columns, squeeze=False, sharex="row" if len(repetitions) > 1 else "none", sharey=True
    )
    drawn = _most_weighty(shown, repetitions)
    searches = [(method, repetition, _searched(repetition, method)) for method in shown for repetition in repetitions]
    for axes in grid.flat[len(searches) :]:
        axes.set_visible(False)
    for axes, (method, repetition, search) in zip(grid.flat, searches, strict=False):
        if search:
            axes.set_title(f"{method.style.name}, {seed_name(repetition.seed)}", fontsize=9)
            _coefficients(axes, search, repetition.trials[method.label].kept_step, drawn)
        else:
            axes.set_visible(False)
    figure.supxlabel("mixing step", fontsize=9)
    figure.supylabel("coefficient alpha", fontsize=9)
    figure.legend(handles=_expert_handles(drawn, shown, repetitions), loc="outside right center")
    caption = (
        "The coefficients over the steps of each search, one line per expert; every seed has its own experts. "
        "The dotted line marks the alpha that is kept."
    )
    names = ", ".join(method.style.name for method in shown)
    return figure, f"Coefficients over the mixing steps, one panel per method and seed: {names}.", caption


def _coefficients(
    axes: "Axes", search: Sequence[Step], kept_step: int | None, styles: dict[int, tuple[str, Any]]
) -> None:
    axes.set_ylim(0, 1)
    axes.margins(x=0.01)
    for k in range(len(search[0].alpha)):
        color, dash = styles.get(k, (GREY, "-"))
        axes.plot([s.step for s in search], [s.alpha[k] for s in search], color=color, linestyle=dash)
    if kept_step is not None:
        axes.axvline(kept_step, color=BLACK, linewidth=0.8, linestyle=":")


def _searched(repetition: Repetition, method: MethodSummary) -> list[Step]:
    return repetition.trials[method.label].search if method.label in repetition.trials else []


def _most_weighty(shown: Sequence[MethodSummary], repetitions: Sequence[Repetition]) -> dict[int, tuple[str, Any]]:
    """Return the colour and dash of the experts that are drawn in colour: all, or those with the largest coefficients.

    The others are drawn in grey.
    """
    largest: dict[int, float] = {}
    for search in (_searched(repetition, method) for method in shown for repetition in repetitions):
        for k, a in enumerate(search[-1].alpha if search else ()):
            largest[k] = max(largest.get(k, 0.0), a)
    kept = sorted(sorted(largest, key=lambda k: -largest[k])[:_MAX_EXPERTS])
    n = len(_EXPERT_COLORS)
    return {k: (_EXPERT_COLORS[i % n], _EXPERT_DASHES[(i + 2 * (i // n)) % 4]) for i, k in enumerate(kept)}


def _expert_handles(
    drawn: dict[int, tuple[str, Any]], shown: Sequence[MethodSummary], repetitions: Sequence[Repetition]
) -> list[Any]:
    from matplotlib.lines import Line2D

    mixes = [
        m
        for repetition in repetitions
        for method in shown
        if method.label in repetition.trials
        if (m := repetition.trials[method.label].mix)
    ]
    names = {tuple(name_of(expert.path) for expert in mix.experts) for mix in mixes}
    named = names.pop() if len(names) == 1 else ()  # with other seeds, experts may have other names
    handles = [
        Line2D([], [], color=color, linestyle=dash, label=named[k] if k < len(named) else f"expert {k}")
        for k, (color, dash) in drawn.items()
    ]
    n_experts = max(
        len(search[0].alpha)
        for repetition in repetitions
        for method in shown
        if (search := _searched(repetition, method))
    )
    return handles + ([Line2D([], [], color=GREY, label="the others")] if n_experts > len(drawn) else [])


def loss(row: RowSummary) -> Plot:
    methods = [method for method in row.methods if method.search]
    if not methods:
        return None
    objectives = sorted({method.objective or _LOSS for method in methods}, key=lambda name: (name != _LOSS, name))
    figure = _figure(8.0, 1.0 + 3.4 * len(objectives))
    panels = dict(zip(objectives, figure.subplots(len(objectives), squeeze=False, sharex=True).flat, strict=True))
    end = max(point.x for method in methods for point in method.search)
    for method in methods:
        axes = panels[method.objective or _LOSS]
        _curve(axes, method.style, method.search, 7 if len(method.search) <= _FEW_POINTS else None)
        if method.objective is None:  # a level line, as long as the longest search
            axes.plot(
                [method.search[0].x, end], [method.search[0].y.mean] * 2, color=method.style.color, linewidth=0.7
            )
    for objective, axes in panels.items():
        axes.set_ylabel(_minimised(objective, row))
    panels[objectives[-1]].set_xlabel(
        "budget spent (minibatch forwards, validation included; a backward counts as two forwards)"
    )
    figure.legend(loc="outside right center")
    what = " and ".join(_minimised(objective, row) for objective in objectives)
    level = "Thin level lines are methods without a search. " if any(m.objective is None for m in methods) else ""
    caption = (
        f"{capital(what)} of the blend against the budget spent on the choice of alpha. "
        "Markers are validations, and the uniform blend if a search starts without validating it; "
        "the lines only connect them. "
        f"{level}A search that has ended keeps its last loss. {_describe_spread(row)}"
    )
    names = ", ".join(method.style.name for method in methods)
    return figure, f"One line per method, over the budget in minibatch forwards: {names}.", caption


def _minimised(objective: str, row: RowSummary) -> str:
    """Name what a search minimises on the validation split: the loss, or an objective with its sign changed."""
    goal = goal_named(objective)
    if goal.is_smooth:
        return f"validation loss ({_LOSS_UNITS[row.merit.figure]})" if row.merit else "validation loss"
    return f"{f'{goal.best:g} -' if goal.best else 'minus'} {goal.name.removeprefix(PREFIX)} on validation data"


def cost(row: RowSummary) -> Plot:
    methods = [method for method in row.methods if method.cost]
    if not any(method.cost["budget"].mean for method in methods):
        return None
    figure = _figure(9.6, 1.0 + 0.34 * len(methods))
    panels = figure.subplots(1, 4, sharey=True)
    panel_of = {
        "budget": ("budget\n(forwards, a backward as two)", 1.0),
        "examples": ("examples seen\n(thousands)", 1e3),
        "wall_s": ("wall time\n(s)", 1.0),
        "peak_bytes": ("peak memory\n(MiB)", MIB),
    }
    for axes, (key, (title, unit)) in zip(panels, panel_of.items(), strict=True):
        stats = [method.cost.get(key) for method in methods]
        values = [stat.mean / unit if stat else 0.0 for stat in stats]
        bars = axes.barh(range(len(methods)), values, color=[method.style.color for method in methods], height=0.65)
        axes.bar_label(bars, [f"{value:,.0f}" if value >= 10 else f"{value:.2g}" for value in values], padding=2)
        axes.set_xlim(0, 1.35 * max(*values, 1e-9))
        axes.set_title(title, fontsize=9)
        axes.set_yticks(range(len(methods)), [method.style.name for method in methods])
        axes.set_xticks([])
        axes.grid(False)
        axes.spines["bottom"].set_visible(False)
    panels[0].invert_yaxis()
    caption = (
        "The cost of each method's choice of alpha, mean over the seeds. It includes writing the blend, but not "
        "explaining it or refreshing BatchNorm."
    )
    return figure, "Bars of budget, examples, wall time and peak memory by method, as in the table below.", caption


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _new(width: float, height: float) -> tuple["Figure", "Axes"]:
    figure = _figure(width, height)
    return figure, figure.add_subplot()


def _curve(axes: "Axes", style: Style, points: Sequence[Point], marker_size: float | None = None) -> None:
    """Draw a mean over the seeds, with a band of one standard deviation."""
    xs, means = [point.x for point in points], [point.y.mean for point in points]
    face = "white" if style.hollow else style.color
    axes.plot(
        xs,
        means,
        color=style.color,
        marker=style.marker,
        markersize=marker_size,
        linestyle=style.dash,
        markerfacecolor=face,
        label=style.name,
    )
    spreads = [point.y.sd or 0.0 for point in points]
    if any(spreads):
        low = [mean - spread for mean, spread in zip(means, spreads, strict=True)]
        high = [mean + spread for mean, spread in zip(means, spreads, strict=True)]
        axes.fill_between(xs, low, high, color=style.color, alpha=0.13, linewidth=0)


def _describe_spread(row: RowSummary) -> str:
    n = len(row.seeds)
    if n == 1:
        return "1 seed."
    return f"Lines are means over a method's seeds, at most {n}; bands are one standard deviation."
