"""What glue mix tells people: the coefficients, and how a search came by them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from glue_cli.cli.output import duration, number, percent, print_lines, print_table
from glue_cli.foundation.units import counted, size

_STAGES = {
    "screen": "screening",
    "race": "race",
    "descend": "descent",
    "guard": "guard",
    "explain": "explanation",
}
_ENDED = {
    "plateau": "at a plateau",
    "converged": "as it had converged",
    "budget": "with the budget",
    "steps": "at the last step",
}


def show_mix(result: dict[str, Any]) -> None:
    """Print a result of `glue.mix/1`."""
    _show_experts(result)
    search = result.get("search", {})
    if _has_compared(search.get("guard", {})):
        print()
        _show_guard(result, search)
    if "stages" in search:
        print()
        _show_stages(result, search["stages"])
    print_lines("", *_search_lines(result, search), *_cost_lines(result), f"written to {result['output']}")


def _show_experts(result: dict[str, Any]) -> None:
    columns = ["expert", "alpha"]
    rows = [[e["path"], number(a)] for e, a in zip(result["experts"], result["alpha"], strict=True)]
    if "val_accuracies" in result:
        columns.append("validation accuracy")
        for row, accuracy in zip(rows, result["val_accuracies"], strict=True):
            row.append(percent(accuracy))
    if "left_out" in result:
        columns.append(f"{_objective(result)} without it")
        for row, left_out in zip(rows, result["left_out"], strict=True):
            row.append(_difference(result, left_out))
    print_table(columns, rows)


def _show_guard(result: dict[str, Any], search: dict[str, Any]) -> None:
    """Print how the end of the search compares with plain blends, on the same held-out data."""
    guard, names = search["guard"], _names(result)
    rows = [["end of the search", _figure(result, guard["end_loss"]), "-"]]
    for rival in guard["rivals"]:
        name = _blend(rival["name"], names)
        name = f"start: {name}" if rival["name"] == search["start"] else name
        rows.append([name, _figure(result, rival["loss"]), _difference(result, rival)])
    objective = _objective(result)
    print_table(
        [f"on {counted(guard['terms'], f'held-out {_term(result)}')}", objective, f"{objective} beyond the end's"],
        rows,
    )


def _show_stages(result: dict[str, Any], stages: Sequence[dict[str, Any]]) -> None:
    """Print what each stage spent, and what that bought: the objective before and after it, on the same data."""
    columns = ["stage", "forwards", f"{_objective(result)} before", f"{_objective(result)} after"]
    rows = []
    for stage in stages:
        if stage["forwards"]:
            losses = stage.get("loss_before"), stage.get("loss_after")
            rows.append(
                [_STAGES[stage["stage"]], f"{stage['forwards']:,}", *(_figure(result, loss) for loss in losses)]
            )
    if all(row[2:] == ["-", "-"] for row in rows):
        columns, rows = columns[:2], [row[:2] for row in rows]
    print_table(columns, rows)


def _search_lines(result: dict[str, Any], search: dict[str, Any]) -> list[str]:
    lines, figures, names = [], result.get("objective", result["loss"]), _names(result)
    if "guard" in search:
        n_starts = len(search["starts"])
        best = f"the best of {n_starts} starts" if n_starts > 1 else "the only start"
        lines.append(f"started {_start(search['start'], names)}, {best}")
    elif figures.get("val") is not None and "before_refresh" not in result:
        beside = f", uniform blend {number(figures['val_uniform'])}" if figures["val_uniform"] is not None else ""
        lines.append(f"validation {_objective(result)} {number(figures['val'])}{beside}")
    if "ingredients" in search:
        lines.append(_soup([names[k] for k in search["ingredients"]], result["steps"]))
    elif result.get("steps"):
        lines.append(f"{counted(result['steps'], 'step')}, ended {_ENDED[result['stopped']]}")
    elif result.get("stopped") == "budget":
        lines.append(f"the budget had no room for {'two experts' if result['method'] == 'greedy' else 'a step'}")
    if "guard" in search:
        lines += _guard_lines(result, search, names)
    if "before_refresh" in result:
        lines.append(_refresh_line(result, figures))
    return lines


def _refresh_line(result: dict[str, Any], figures: dict[str, Any]) -> str:
    """Return the figure of the blend as it is written, and what the search saw: other statistics of BatchNorm."""
    before = result["before_refresh"]
    saw = [
        f"{name} {number(before[key])}"
        for name, key in (("blend", "val"), ("uniform blend", "val_uniform"))
        if before[key] is not None
    ]
    beside = f"; before BatchNorm was refreshed: {', '.join(saw)}" if saw else ""
    return f"validation {_objective(result)} {number(figures['val'])} as written{beside}"


def _guard_lines(result: dict[str, Any], search: dict[str, Any], names: Sequence[str]) -> list[str]:
    guard, lines = search["guard"], []
    if not _has_compared(guard):
        lack = "the budget had no room for the guard"
        if guard["terms"] == 1:
            lack = f"a single held-out {_term(result)}: nothing could be compared"
        known = guard["end_loss"] is not None
        beside = f"; validation {_objective(result)} {_figure(result, guard['end_loss'])}" if known else ""
        lines.append(lack + beside)
    if search["returned"] != "end":
        lines.append(f"the guard returned {_returned(search['returned'], names)} instead")
    return lines


def _cost_lines(result: dict[str, Any]) -> list[str]:
    cost = result["cost"]
    lines = []
    if cost["forwards"]:
        lines.append(
            f"{counted(cost['forwards'], 'forward')} ({cost['validation_forwards']:,} for validation), "
            f"{counted(cost['backwards'], 'backward')}, {counted(cost['examples'], 'example')}"
        )
    return [*lines, f"{duration(cost['wall_s'])}, peak memory {size(cost['peak_bytes'])}"]


def _has_compared(guard: dict[str, Any]) -> bool:
    """Return whether a guard could tell blends apart: a single term has no standard error."""
    return bool(guard.get("rivals")) and guard["terms"] > 1


# ---- names


def _names(result: dict[str, Any]) -> list[str]:
    """Return a short name of each expert; the path where others would have the same."""
    from glue_cli.foundation.units import name_of

    paths = [expert["path"] for expert in result["experts"]]
    names = [name_of(path) for path in paths]
    n_of = Counter(names)
    return [name if n_of[name] == 1 else path for name, path in zip(names, paths, strict=True)]


def _blend(name: str, names: Sequence[str]) -> str:
    """Return what a blend that a search knows by `name` is called."""
    plain = {"uniform": "uniform blend", "by loss": "softmax of the losses", "runner-up": "runner-up of the race"}
    if name in plain:
        return plain[name]
    kind, _, expert = name.rpartition("expert ")
    return f"half-way to {names[int(expert)]}" if kind else names[int(expert)]


def _start(name: str, names: Sequence[str]) -> str:
    blend = _blend(name, names)
    return blend if name.startswith("towards") else f"from the {blend}"


def _returned(name: str, names: Sequence[str]) -> str:
    blend = _blend(name, names)
    if name.startswith("expert"):
        return blend
    return f"the start {blend}" if name.startswith("towards") else f"the {blend}"


def _soup(names: Sequence[str], n_tried: int) -> str:
    if len(names) == 1:
        return f"{names[0]} alone, the best of {n_tried} experts tried"
    return f"the mean of {len(names)} of {n_tried} experts tried: {', '.join(names)}"


def _objective(result: dict[str, Any]) -> str:
    """Return the objective's name; of a user's function, its own."""
    return str(result.get("objective", {}).get("name", "loss")).rpartition(":")[2]


def _term(result: dict[str, Any]) -> str:
    """Return what the objective is a mean over."""
    name = result.get("objective", {}).get("name", "loss")
    return "example" if name in ("loss", "accuracy") else "minibatch"


# ---- figures


def _figure(result: dict[str, Any], minimised: float | None) -> str:
    """Return what was minimised as the objective's own figure."""
    if minimised is None or "objective" not in result:
        return number(minimised)
    is_users = ":" in result["objective"]["name"]
    return _signed((0 if is_users else 1) - minimised).removeprefix("+")


def _difference(result: dict[str, Any], compared: dict[str, Any]) -> str:
    difference, error = compared["difference"], compared["standard_error"]
    if difference is None:
        return "-"
    sign = -1 if "objective" in result else 1
    return _signed(sign * difference) + (f" ± {number(error)}" if error is not None else "")


def _signed(figure: float) -> str:
    """Return a figure with its sign, and zero without one."""
    text = number(abs(figure))
    return text if float(text) == 0 else f"{'-' if figure < 0 else '+'}{text}"
