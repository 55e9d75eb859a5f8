"""What glue mix tells people: the coefficients, and how a search came by them."""

import re
from pathlib import Path
from typing import Any

from glue_cli.cli.output import duration, number, percent, print_table
from glue_cli.core.units import size

_STAGES = {"screen": "screening", "race": "racing", "descend": "descent", "guard": "guard"}
_ENDED = {"plateau": "at a plateau", "budget": "with the budget", "steps": "at the last step"}


def show_mix(result: dict[str, Any]) -> None:
    """Print a result of `glue.mix/1`."""
    _show_experts(result)
    search = result.get("search", {})
    if search.get("guard", {}).get("rivals"):
        print()
        _show_guard(result, search)
    print("", *_search_lines(result, search), *_cost_lines(result), f"written to {result['output']}", sep="\n")


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
    """Print how the end of the search compares with plain blends, on the same held-out examples."""
    guard, rows = search["guard"], []
    for rival in guard["rivals"]:
        name = f"start: {rival['name']}" if rival["name"] == search["start"] else rival["name"]
        rows.append([_named(result, name), _figure(result, rival["loss"]), _difference(result, rival)])
    rows.insert(0, ["end of the search", _figure(result, guard["end_loss"]), "-"])
    print_table(["on held-out data", _objective(result), f"difference, {guard['terms']:,} paired"], rows)


def _search_lines(result: dict[str, Any], search: dict[str, Any]) -> list[str]:
    lines, loss = [], result["loss"]
    if "guard" in search:
        lines.append(f"started from {_named(result, search['start'])}, the best of {len(search['starts'])} starts")
        if search["returned"] != "end":
            lines.append(f"the guard returned {_named(result, search['returned'])} instead")
    elif loss.get("val") is not None:
        beside = f", uniform blend {number(loss['val_uniform'])}" if loss["val_uniform"] is not None else ""
        lines.append(f"validation loss {number(loss['val'])}{beside}")
    if "ingredients" in search:
        names = [_named(result, f"expert {k}") for k in search["ingredients"]]
        lines.append(f"the mean of {len(names)} of {result['steps']} experts tried: {', '.join(names)}")
    elif result.get("steps"):
        lines.append(f"{result['steps']} steps, ended {_ENDED[result['stopped']]}")
    if "stages" in search:
        spent = ", ".join(f"{_STAGES[stage['stage']]} {stage['forwards']:,}" for stage in search["stages"])
        lines.append(f"forwards by stage: {spent}")
    return lines


def _cost_lines(result: dict[str, Any]) -> list[str]:
    cost = result["cost"]
    lines = []
    if cost["forwards"]:
        lines.append(
            f"{cost['forwards']:,} forwards ({cost['validation_forwards']:,} for validation), "
            f"{cost['backwards']:,} backwards, {cost['examples']:,} examples"
        )
    return [*lines, f"{duration(cost['wall_s'])}, peak memory {size(cost['peak_bytes'])}"]


def _objective(result: dict[str, Any]) -> str:
    return str(result.get("objective", {}).get("name", "loss"))


def _figure(result: dict[str, Any], minimised: float) -> str:
    """Return what was minimised as the objective's own figure."""
    if "objective" not in result:
        return number(minimised)
    return number((0 if _objective(result).startswith("python:") else 1) - minimised)


def _difference(result: dict[str, Any], compared: dict[str, Any]) -> str:
    difference, error = compared["difference"], compared["standard_error"]
    if difference is None:
        return "-"
    sign = -1 if "objective" in result else 1
    return f"{sign * difference:+.4f}" + (f" ± {error:.4f}" if error is not None else "")


def _named(result: dict[str, Any], text: str) -> str:
    """Return a text with the experts' own names in place of their numbers."""
    return re.sub(r"expert (\d+)", lambda found: Path(result["experts"][int(found[1])]["path"]).stem, text)
