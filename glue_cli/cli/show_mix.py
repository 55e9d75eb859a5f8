"""The output of glue mix: the coefficients, and how a search got them."""

from collections import Counter
from collections.abc import Mapping, Sequence

from glue_cli.cli.output import number, percent, print_lines, print_table
from glue_cli.foundation.units import counted, duration, listed, name_of, size
from glue_cli.results.mix import (
    BY_LOSS,
    END,
    ONE_ALPHA,
    RUNNER_UP,
    UNIFORM,
    GreedySearch,
    Guard,
    LeftOut,
    Losses,
    MixResult,
    Rival,
    Skipped,
    Stage,
    StagedSearch,
    name_of_expert,
    name_towards_expert,
    name_with,
)

_STAGES = {
    "screen": "screening",
    "race": "race",
    "descend": "descent",
    "groups": "by group",
    "guard": "guard",
    "write": "as written",
    "explain": "explanation",
}
_REFRESHED = "BatchNorm refreshed"
_ENDED = {
    "plateau": "at a plateau",
    "converged": "as it had converged",
    "budget": "with the budget",
    "steps": "at the last step",
}


def show_mix(result: MixResult) -> None:
    """Print the result of a mix."""
    _show_experts(result)
    if isinstance(result.search, StagedSearch):
        if result.search.guard.has_compared:
            print()
            _show_guard(result, result.search)
        print()
        _show_stages(result, result.search.stages)
    print_lines("", *_search_lines(result), *_cost_lines(result), f"written to {result.output}")


def _show_experts(result: MixResult) -> None:
    columns = ["expert", "alpha"]
    rows = [[e.path, number(a)] for e, a in zip(result.experts, result.alpha, strict=True)]
    if result.groups:
        columns[1:] = [f"alpha, mean of {counted(len(result.groups), 'group')}", "lowest", "highest"]
        for row, alphas in zip(rows, zip(*result.groups.values(), strict=True), strict=True):
            row += [number(min(alphas)), number(max(alphas))]
    if result.val_accuracies is not None:
        columns.append("validation accuracy")
        for row, accuracy in zip(rows, result.val_accuracies, strict=True):
            row.append(percent(accuracy))
    if result.left_out is not None:
        columns.append(f"{result.goal.label} without it")
        for row, left_out in zip(rows, result.left_out, strict=True):
            row.append(_difference(result, left_out))
    print_table(columns, rows)


def _show_guard(result: MixResult, search: StagedSearch) -> None:
    """Print how the end of the search compares with plain blends, on the same held-out data."""
    guard, blends = search.guard, _blends(result)
    rows = [["end of the search", _figure(result, guard.end_loss), "-"]]
    for rival in guard.rivals:
        name = f"start: {blends[rival.name]}" if rival.name == search.start else blends[rival.name]
        loss = "not finite" if rival.loss is None else _figure(result, rival.loss)
        rows.append([name, loss, _difference(result, rival)])
    label = result.goal.label
    print_table(
        [f"on {counted(guard.terms, f'held-out {_term(result)}')}", label, f"{label} beyond the end's"],
        rows,
    )


def _show_stages(result: MixResult, stages: Sequence[Stage]) -> None:
    """Print what each stage spent, and the objective before and after it on the same data."""
    label = result.goal.label
    columns = ["stage", "forwards", f"{label} before", f"{label} after"]
    rows = []
    for stage in stages:
        if stage.forwards:
            losses = (stage.losses.loss_before, stage.losses.loss_after) if stage.losses else (None, None)
            rows.append([_STAGES[stage.stage], f"{stage.forwards:,}", *(_figure(result, loss) for loss in losses)])
    if all(row[2:] == ["-", "-"] for row in rows):
        columns, rows = columns[:2], [row[:2] for row in rows]
    print_table(columns, rows)


def _search_lines(result: MixResult) -> list[str]:
    """Return where a search began, what it found, and how it ended."""
    lines, figures, search = [], result.figures, result.search
    if isinstance(search, StagedSearch):
        best = f"the best of {len(search.starts)} starts" if len(search.starts) > 1 else "the only start"
        lines.append(f"started {_started(search.start, _blends(result))}, {best}")
    elif figures.val is not None and result.before_refresh is None:
        beside = f", uniform blend {number(figures.val_uniform)}" if figures.val_uniform is not None else ""
        lines.append(f"validation {result.goal.label} {number(figures.val)}{beside}")
    if isinstance(search, GreedySearch):
        names = _names(result)
        lines.append(_soup([names[k] for k in search.ingredients], result.steps or 0))
    elif result.steps:
        lines.append(f"{counted(result.steps, 'step')}, ended {_ENDED[str(result.stopped)]}")
    elif result.stopped == "budget":
        lines.append(f"the budget had no room for {'two experts' if result.method == 'greedy' else 'a step'}")
    if result.skipped is not None:
        lines.append(_skipped_line(result, result.skipped))
    if isinstance(search, StagedSearch):
        lines += _guard_lines(result, search)
    if result.before_refresh is not None:
        lines.append(_refresh_line(result, result.before_refresh))
    return lines


def _skipped_line(result: MixResult, skipped: Skipped) -> str:
    """Say what was not finite. Of many blends only some are named."""
    blends = _blends(result)
    names = [blends[name] for name in skipped.blends]
    parts = [f"{counted(skipped.steps, 'step')} skipped"] if skipped.steps else []
    parts += [f"left out: {listed(names, 5)}"] if names else []
    return f"not finite: {'; '.join(parts)}"


def _refresh_line(result: MixResult, before: Losses) -> str:
    """Return the objective of the blend that is written, and what it was before BatchNorm's refresh."""
    seen = (("blend", before.val), ("uniform blend", before.val_uniform))
    known = [f"{name} {number(value)}" for name, value in seen if value is not None]
    beside = f"; before BatchNorm was refreshed: {', '.join(known)}" if known else ""
    return f"validation {result.goal.label} {number(result.figures.val)} as written{beside}"


def _guard_lines(result: MixResult, search: StagedSearch) -> list[str]:
    guard, lines = search.guard, []
    if not guard.has_compared:
        known = guard.end_loss is not None
        beside = f"; validation {result.goal.label} {_figure(result, guard.end_loss)}" if known else ""
        lines.append(_lack(result, guard) + beside)
    if search.returned != END:
        alone = search.returned.partition(",")[0] in map(name_of_expert, range(len(result.experts)))
        lines.append(f"the guard returned {_returned(search.returned, _blends(result), is_expert=alone)} instead")
    if guard.has_compared:
        lines.append(_returned_line(result, guard))
    return lines


def _returned_line(result: MixResult, guard: Guard) -> str:
    """Describe the blend that is written in one line: number of alphas, statistics, loss with standard error."""
    alphas = f"{len(result.groups)} alphas, one a group of tensors" if result.groups else "one alpha for all tensors"
    statistics = {"averaged": ", BatchNorm's statistics averaged", "refreshed": f", {_REFRESHED}"}
    kind = statistics[result.statistics] if result.statistics else ""
    error = f" ± {number(guard.standard_error)}" if guard.standard_error is not None else ""
    return f"returned: {alphas}{kind}; held-out {result.goal.label} {_figure(result, guard.loss)}{error}"


def _lack(result: MixResult, guard: Guard) -> str:
    """Say why the guard could not compare anything."""
    if guard.terms == 1:
        return f"a single held-out {_term(result)}: nothing could be compared"
    return "the budget had no room for the guard"


def _cost_lines(result: MixResult) -> list[str]:
    cost = result.cost
    lines = []
    if cost.forwards:
        lines.append(
            f"{counted(cost.forwards, 'forward')} ({cost.validation_forwards:,} for validation), "
            f"{counted(cost.backwards, 'backward')}, {counted(cost.examples, 'example')}"
        )
    return [*lines, f"{duration(cost.wall_s or 0)}, peak memory {size(cost.peak_bytes or 0)}"]


# ---- names


def _names(result: MixResult) -> list[str]:
    """Return a short name for each expert, or its path if the short name is not unique."""
    paths = [expert.path for expert in result.experts]
    names = [name_of(path) for path in paths]
    n_of = Counter(names)
    return [name if n_of[name] == 1 else path for name, path in zip(names, paths, strict=True)]


def _blends(result: MixResult) -> dict[str, str]:
    """Return a readable name for each blend that a search can name."""
    names = _names(result)
    plain = {
        UNIFORM: "uniform blend",
        BY_LOSS: "softmax of the losses",
        RUNNER_UP: "runner-up of the race",
        ONE_ALPHA: "blend with one alpha",
    }
    towards = {name_towards_expert(k): f"half-way to {name}" for k, name in enumerate(names)}
    averaged = {**plain, **towards, **{name_of_expert(k): name for k, name in enumerate(names)}}
    refreshed = {name_with(name, "refreshed"): f"{blend}, {_REFRESHED}" for name, blend in averaged.items()}
    return {**averaged, **refreshed}


def _is_plain(name: str) -> bool:
    """Tell whether the readable name of a blend is a noun that needs an article."""
    return name.partition(",")[0] in (UNIFORM, BY_LOSS, RUNNER_UP, ONE_ALPHA)


def _started(start: str, blends: Mapping[str, str]) -> str:
    return f"from the {blends[start]}" if _is_plain(start) else blends[start]


def _returned(name: str, blends: Mapping[str, str], *, is_expert: bool) -> str:
    if _is_plain(name):
        return f"the {blends[name]}"
    return blends[name] if is_expert else f"the start {blends[name]}"


def _soup(names: Sequence[str], n_tried: int) -> str:
    if len(names) == 1:
        return f"{names[0]} alone, the best of {n_tried} experts tried"
    return f"the mean of {len(names)} of {n_tried} experts tried: {', '.join(names)}"


def _term(result: MixResult) -> str:
    """Return the noun for one term of the goal's mean."""
    return "example" if result.goal.has_example_terms else "minibatch"


# ---- figures


def _figure(result: MixResult, mean: float | None) -> str:
    """Return the value of the goal's metric, given the mean of terms that the search minimises."""
    if mean is None or result.goal.is_smooth:
        return number(mean)
    return _signed(result.goal.figure(mean)).removeprefix("+")


def _difference(result: MixResult, compared: Rival | LeftOut) -> str:
    if compared.difference is None:
        return "-"
    sign = 1 if result.goal.is_smooth else -1
    error = compared.standard_error
    return _signed(sign * compared.difference) + (f" ± {number(error)}" if error is not None else "")


def _signed(figure: float) -> str:
    """Return a number with its sign; zero has none."""
    text = number(abs(figure))
    return text if float(text) == 0 else f"{'-' if figure < 0 else '+'}{text}"
