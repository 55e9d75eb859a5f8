"""Draw what variance.py measured: python examples/paper/variance_figures.py"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

HERE = Path(__file__).resolve().parent
matplotlib.rcParams.update({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "glue"})

# Okabe and Ito's colours, which are told apart with any colour vision.
BLUE, VERMILLION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#7F7F7F"
OF_EXPERTS = {2: (GREEN, "^"), 5: (VERMILLION, "o"), 10: (BLUE, "s")}
OF_PRECISION = {"fp32": ("float32", BLUE), "bf16": ("bfloat16", VERMILLION)}
PLACES = {"uniform": "at the uniform blend", "near the optimum": "near the optimum"}


def draw(result: Path, folder: Path) -> None:
    """Draw both figures of a result, as SVG and PNG."""
    found = json.loads(result.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in (("variance", draw_variance(found)), ("mu", draw_error(found))):
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        figure.savefig(folder / f"{name}.png", dpi=150)


def draw_variance(found: dict[str, Any]) -> Figure:
    """Draw trace Cov against n, a colour a K: points as measured, lines as eq. (13) says."""
    figure = Figure((8.0, 3.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (place, title) in zip(panels, PLACES.items(), strict=True):
        axes.set_title(title, fontsize=9)
        axes.set(xscale="log", yscale="log", xlabel="directions a step, n")
        for n_experts, (color, marker) in OF_EXPERTS.items():
            for zero_sum in (False, True):
                points = [v for v in found["variance"] if (v["n_experts"], v["place"]) == (n_experts, place)]
                points = [v for v in points if v["zero_sum"] == zero_sum]
                if points[0]["expected"]:
                    _draw_points(axes, points, color, marker, hollow=zero_sum)
        axes.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
        axes.minorticks_off()
        axes.grid(axis="y", linewidth=0.3)
    panels[0].set_ylabel("trace Cov of the estimate / |grad|²")
    handles = [
        Line2D([], [], color=color, marker=marker, linestyle="", label=f"K = {n_experts}")
        for n_experts, (color, marker) in OF_EXPERTS.items()
    ]
    handles += [
        Line2D([], [], color=GREY, marker="o", linestyle="-", label="(K − 1)/n, eq. (13)"),
        Line2D([], [], color=GREY, marker="o", linestyle="--", markerfacecolor="white", label="zero-sum: (K − 2)/n"),
    ]
    largest = max(v["trace"] for v in found["variance"] if not v["expected"])
    note = Line2D([], [], linestyle="", label=f"K = 2, zero-sum: none\n(at most {largest:.0e})")
    figure.legend(
        handles=[*handles, note],
        loc="outside right center",
        title="points measured,\n± 2 standard errors;\nlines expected",
    )
    return figure


def _draw_points(axes: Any, points: Sequence[dict[str, Any]], color: str, marker: str, *, hollow: bool) -> None:
    n = [p["n"] for p in points]
    beside = [p["n"] * (1.04 if hollow else 0.96) for p in points]  # so that neither hides the other
    axes.plot(n, [p["expected"] for p in points], color=color, linestyle="--" if hollow else "-", linewidth=1)
    axes.errorbar(
        beside,
        [p["trace"] for p in points],
        yerr=[2 * p["standard_error"] for p in points],
        color=color,
        marker=marker,
        markerfacecolor="white" if hollow else color,
        linestyle="",
        capsize=2,
    )


def draw_error(found: dict[str, Any]) -> Figure:
    """Draw bias and noise against mu, a colour a precision."""
    figure = Figure((8.0, 3.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (place, title) in zip(panels, PLACES.items(), strict=True):
        axes.set_title(title, fontsize=9)
        axes.set(xscale="log", yscale="log", xlabel="radius of the probes, mu (logit units)")
        for precision, (_, color) in OF_PRECISION.items():
            points = [e for e in found["error"] if (e["place"], e["precision"]) == (place, precision)]
            mu = [p["mu"] for p in points]
            axes.plot(mu, [p["noise"] for p in points], color=color, marker="o", markersize=4)
            bias = [p["bias"] if p["bias"] > 2 * p["bias_standard_error"] else math.nan for p in points]
            axes.plot(mu, bias, color=color, marker="D", markerfacecolor="white", markersize=4, linestyle="--")
        n_experts = points[0]["n_experts"]
        axes.axhline((n_experts - 1) ** 0.5, color=GREY, linestyle=":")
        axes.axvline(found["mu"], color=GREY, linewidth=0.8)
        axes.minorticks_off()
    panels[0].set_ylabel("error of the estimate / |grad|")
    handles = [Line2D([], [], color=color, label=name) for name, color in OF_PRECISION.values()]
    handles += [
        Line2D([], [], color=GREY, marker="o", markersize=4, label="noise by rounding\nand curvature"),
        Line2D(
            [],
            [],
            color=GREY,
            marker="D",
            markersize=4,
            linestyle="--",
            markerfacecolor="white",
            label="bias, where it is above\ntwo standard errors",
        ),
        Line2D([], [], color=GREY, linestyle=":", label="noise of one direction,\n√(K − 1), eq. (13)"),
        Line2D([], [], color=GREY, linewidth=0.8, label=f"mu = {found['mu']:g}"),
    ]
    figure.legend(handles=handles, loc="outside right center")
    return figure


if __name__ == "__main__":
    draw(HERE / "results" / "variance.json", HERE / "figures")
