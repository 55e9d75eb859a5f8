"""Make results.md and the figure of the map from what is in results/: python page.py"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cells import FAMILIES, HERE, cells_of
from rivals import DEFAULT, RANDOM_EXPERTS, SCRATCH, START, refreshed
from verdicts import (
    LEVEL,
    LOST,
    WON,
    Behind,
    Found,
    behind,
    behind_over_seeds,
    by_place,
    finetuned_verdicts,
    group_of,
    harm_verdicts,
    mean_of,
    median_saving,
    read_found,
    zero_shot_verdicts,
)

FEW = 300  # labels up to which a blend is meant to be ahead after finetuning
ENSEMBLE = "ensemble"
# The figure's lines: the stage, the method, what it is called, its colour and dashes.
LINES = (
    ("finetuned", DEFAULT, "default search, finetuned", "#0072B2", "-"),
    ("zero_shot", DEFAULT, "default search, as it is", "#0072B2", "--"),
    ("finetuned", "best-expert", "best expert, finetuned", "#E69F00", "-"),
    ("finetuned", "uniform", "uniform blend, finetuned", "#009E73", "-"),
    ("finetuned", START, "pretrained start, finetuned", "#D55E00", "-"),
    ("finetuned", SCRATCH, "from scratch", "#000000", "-"),
    ("zero_shot", ENSEMBLE, "ensemble of the experts", "#999999", ":"),
)


def main() -> None:
    cells = read_found(HERE / "results")
    (HERE / "results.md").write_text("\n".join(page(cells)))
    if cells:
        draw(cells, HERE / "figures")


def page(cells: Sequence[Found]) -> Iterator[str]:
    """Yield the lines of results.md."""
    yield "# The map's results\n"
    yield "Made by `python page.py`; what the columns and methods are is said in [`README.md`](README.md).\n"
    yield from coverage(cells)
    yield from accuracies(cells)
    yield from verdict_tables(cells)
    yield from behind_table(cells)
    yield from steps_table(cells)
    yield from controls(cells)


def coverage(cells: Sequence[Found]) -> Iterator[str]:
    done = Counter(cell.group for cell in cells)
    planned = Counter(group_of(cell.family.name) for cell in cells_of())
    is_design = {group_of(family.name): family.is_design for family in FAMILIES}
    yield f"## What is there: {len(cells)} of {planned.total()} cells\n"
    rows = [(group, f"{done[group]} of {n}", "design" if is_design[group] else "test") for group, n in planned.items()]
    yield from table(("family", "cells", "kind"), rows)


def accuracies(cells: Sequence[Found]) -> Iterator[str]:
    """Yield the table of test accuracies by place, means over seeds (and domains) with their standard errors."""
    zero_shot = ("uniform", "best-expert", DEFAULT)
    finetuned = (SCRATCH, START, "best-expert", "uniform", "mashup", DEFAULT)
    columns = [
        *("family", "start", "labels", "cells"),
        *(f"{name}, as it is" for name in zero_shot),
        "ensemble",
        *(f"{name}, finetuned" for name in finetuned),
    ]
    rows = []
    for (group, start, labels), here in by_place(cells).items():
        found = [_better(here, "zero_shot", name) for name in (*zero_shot, ENSEMBLE)]
        found += [_percent(mean_of(here, "finetuned", name, "accuracy")) for name in finetuned]
        rows.append((group, start, f"{labels:,}", str(len(here)), *found))
    yield "\n## Accuracy on the test split, %\n"
    yield "Where statistics may be averaged or refreshed, the better kind is shown, in hindsight; the default chose.\n"
    yield from table(columns, rows)


def _better(cells: Sequence[Found], stage: str, name: str) -> str:
    means = [mean_of(cells, stage, kind, "accuracy") for kind in (name, refreshed(name))]
    return _percent(max((mean for mean in means if mean), key=lambda mean: mean[0], default=None))


def _percent(mean: tuple[float, float | None] | None) -> str:
    if mean is None:
        return ""
    return f"{mean[0]:.1%}".rstrip("%") + (f" ± {100 * mean[1]:.1f}" if mean[1] is not None else "")


def verdict_tables(cells: Sequence[Found]) -> Iterator[str]:
    kinds: tuple[tuple[str, Callable[[str], bool]], ...] = (
        ("all", lambda group: True),
        ("of families that only test", lambda group: not _is_design(group)),
    )
    yield "\n## The default search against each rival\n"
    yield "Cells won, level within two paired standard errors, and lost: by the loss as it is, by the accuracy after"
    yield f"finetuning (with at most {FEW} labels).\n"
    counted = []
    for _, is_wanted in kinds:
        chosen = [cell for cell in cells if is_wanted(cell.group)]
        few = [cell for cell in chosen if cell.labels <= FEW]
        counted += [zero_shot_verdicts(chosen), finetuned_verdicts(few) | {"its own prior": harm_verdicts(few)}]
    columns = [f"{stage}, {kind}" for kind, _ in kinds for stage in ("as it is", "finetuned")]
    names = sorted({name for counts in counted for name in counts} - {RANDOM_EXPERTS})
    rows = [(name, *(_wins(counts.get(name)) for counts in counted)) for name in names]
    yield from table(("rival", *columns), rows)


def behind_table(cells: Sequence[Found]) -> Iterator[str]:
    rows = []
    for (group, start, labels), here in by_place(cells).items():
        each, over_seeds = behind(here), behind_over_seeds(here)
        rows.append((group, start, f"{labels:,}", str(len(here)), *_not_behind(each), *_not_behind(over_seeds)))
    yield "\n## Where the default search is behind\n"
    yield "Of all comparisons with rivals, before finetuning, those in which the default's loss is not above the"
    yield "rival's by more than two paired standard errors, and the most that it is above it otherwise: cell by cell,"
    yield "with the standard errors of the test examples; and by the means over seeds, with those between seeds.\n"
    columns = ("not behind", "most behind", "over seeds, not behind", "over seeds, most behind")
    yield from table(("family", "start", "labels", "cells", *columns), rows)


def _not_behind(found: Behind) -> tuple[str, str]:
    if not found.n:
        return "", ""
    return f"{found.n - found.n_behind} of {found.n}", f"{found.most:.3f}" if found.n_behind else ""


def _is_design(group: str) -> bool:
    return any(family.is_design for family in FAMILIES if group_of(family.name) == group)


def _wins(counts: Counter[str] | None) -> str:
    return f"{counts[WON]} / {counts[LEVEL]} / {counts[LOST]}" if counts else ""


def steps_table(cells: Sequence[Found]) -> Iterator[str]:
    """Yield Mashup Learning's measure by place."""
    methods = (DEFAULT, "uniform", "best-expert", "mashup")
    rows = [
        (group, start, f"{labels:,}", *(_share(median_saving(here, method)) for method in methods))
        for (group, start, labels), here in by_place(cells).items()
    ]
    yield "\n## Steps of finetuning to where training without experts ends\n"
    yield "Of the steps that the pretrained start, or where there is none scratch, takes itself; medians over cells.\n"
    yield from table(("family", "start", "labels", *methods), rows)


def _share(share: float | None) -> str:
    if share is None:
        return ""
    return "never" if math.isinf(share) else f"{share:.0%}"


def controls(cells: Sequence[Found]) -> Iterator[str]:
    columns = ("family", "start", "labels", "experts", "random experts", "all labels on finetuning", "as in the cell")
    rows = []
    for (group, start, labels), here in by_place(cells).items():
        rival = here[0].without_experts
        pairs = ((RANDOM_EXPERTS, DEFAULT), (f"{rival}-all-labels", rival))
        (random, own), (everything, as_usual) = (
            tuple(_percent(mean_of(here, "finetuned", name, "accuracy")) for name in pair) for pair in pairs
        )
        if random or everything:
            shown = (own if random else "", random, everything, as_usual if everything else "")
            rows.append((group, start, f"{labels:,}", *shown))
    yield "\n## Controls: accuracy after finetuning, %\n"
    yield "Experts that went as far from the start but in random directions, mixed by the default search, against the"
    yield "experts; and training without experts on all labels, none kept for validation, against that of the cell.\n"
    yield from table(columns, rows)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def draw(cells: Sequence[Found], folder: Path) -> None:
    """Draw accuracy against labels, a panel a family and start."""
    from matplotlib.figure import Figure

    places = by_place(cells)
    panels = list(dict.fromkeys((group, start) for group, start, _ in places))
    figure = Figure(figsize=(max(7, 3.2 * len(panels)), 4.2), layout="constrained")  # the legend needs the width
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    shown = {}
    for axes, (group, start) in zip(all_axes, panels, strict=True):
        here = {labels: found for (g, s, labels), found in places.items() if (g, s) == (group, start)}
        for stage, method, name, color, dashes in LINES:
            kinds = (method, refreshed(method)) if stage == "zero_shot" else (method,)
            points = [
                (labels, max(mean[0] for mean in means if mean))
                for labels, found in here.items()
                if any(means := [mean_of(found, stage, kind, "accuracy") for kind in kinds])
            ]
            if points:
                (line,) = axes.plot(*zip(*points, strict=True), dashes, color=color, marker=".")
                shown[name] = line
        axes.set(xscale="log", title=f"{group}, {start} start", xlabel="labels", xticks=list(here))
        axes.set_xticklabels([f"{labels:,}" for labels in here])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("accuracy on the test split")
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=3, frameon=False)
    folder.mkdir(exist_ok=True)
    for kind in ("svg", "png"):
        figure.savefig(folder / f"when.{kind}", dpi=150, metadata={"Date": None} if kind == "svg" else None)


if __name__ == "__main__":
    main()
