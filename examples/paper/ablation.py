"""The table of an ablation: python ablation.py RUNS RESULT.json; ablation.sh makes what it reads."""

import json
import sys
from pathlib import Path
from typing import Any

import gather  # noqa: F401, by which the benchmarks' own module is found
from measure import machine, show, write


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Return a row a blend of a variant's experts: accuracies on the validation data, in percent."""
    experts = [100 * row["accuracy"] for row in read(folder / "experts-val.json")["results"]]
    rows = []
    for path in sorted(folder.glob("*-mix.json")):
        name = path.name.removesuffix("-mix.json")
        (prior,) = read(folder / f"{name}-val.json")["results"]
        epochs = [100 * epoch["val_accuracy"] for epoch in read(folder / f"{name}-finetune.json")["history"][1:]]
        rows.append(
            {
                "variant": folder.name,
                "start": name,
                "best_expert": max(experts),
                "prior": 100 * prior["accuracy"],
                "prior_loss": prior["loss"],
                "finetuned": sum(epochs) / len(epochs),
                "steps": read(path).get("steps"),
            }
        )
    return rows


def with_leads(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add by how many points each start is ahead of the uniform blend of the same experts."""
    uniform = {row["variant"]: row for row in rows if row["start"] == "uniform"}
    return [
        {**row, **{f"{key}_lead": row[key] - uniform[row["variant"]][key] for key in ("prior", "finetuned")}}
        for row in rows
    ]


def main(runs: Path, result: Path) -> None:
    variants = sorted(folder for folder in runs.iterdir() if folder.name != "experts")
    found = with_leads([row for folder in variants for row in rows_of(folder)])
    columns = ["variant", "start", "best_expert", "prior", "prior_lead", "finetuned", "finetuned_lead"]
    cells = [[row[c] if isinstance(row[c], str) else f"{row[c]:.1f}" for c in columns] for row in found]
    show("Accuracy on the validation data, %", [column.replace("_", " ") for column in columns], cells)
    write(result, {"machine": machine(), "rows": found})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
