"""Work on the map: python work.py [--families NAME,...]. What is in the results already is passed over.

A finished cell becomes lines in results/FAMILY.jsonl, one a method. Checkpoints and experts are in runs/when; those of
finished cells are removed, and experts that are missing are trained again, on one machine to the same bits.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cells import FAMILIES, HERE, PRETRAINED, Cell, cells_of
from commands import CommandFailed, Glue, Result
from judged import ensemble_figures, write_random_experts
from rivals import DEFAULT, MIXES, RANDOM_EXPERTS, Priors, finetune_all, make_priors, refreshed

from glue_cli.spec.yaml_file import read_spec

Row = dict[str, Any]
CONTROL_LABELS = 100  # the control with random experts is made with as many labels alone


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", type=lambda text: text.split(","), help="only these, by the beginnings of names")
    options = parser.parse_args(arguments)
    wanted = tuple(options.families or [""])
    families = tuple(family for family in FAMILIES if family.name.startswith(wanted))
    failed = work_through(cells_of(families), HERE.parents[1] / "runs" / "when", HERE / "results")
    if failed:
        sys.exit(f"{len(failed)} cells failed: {', '.join(failed)}")


def work_through(cells: Iterable[Cell], work: Path, results: Path) -> list[str]:
    """Make the cells that the results lack; return those that failed, whose commands a next run tries again."""
    failed = []
    for cell in cells:
        path = results / f"{cell.family.name}.jsonl"
        if is_there(cell, path):
            continue
        began = time.monotonic()
        try:
            rows = make_cell(cell, work)
        except CommandFailed as error:
            failed.append(str(cell))
            log(f"{cell} failed: {error}")
            continue
        append(path, rows)
        remove_checkpoints(cell, work)
        log(f"{cell}: {len(rows)} methods in {time.monotonic() - began:.0f} s")
    return failed


def is_there(cell: Cell, path: Path) -> bool:
    """Tell whether the results have the cell."""
    return any(cell.key.items() <= row.items() for row in read_rows(path))


def read_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, rows: Sequence[Row]) -> None:
    """Add a cell's lines by one write, so that a cut leaves whole cells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write("".join(f"{json.dumps(row)}\n" for row in rounded(rows)))


def rounded(rows: Sequence[Row]) -> list[Row]:
    """Return the lines with six decimals, which is far finer than any standard error."""
    return json.loads(json.dumps(rows), parse_float=lambda digits: round(float(digits), 6))


def remove_checkpoints(cell: Cell, work: Path) -> None:
    """Remove what a finished cell no longer needs; its commands and what they printed stay."""
    for path in (work / "cells" / str(cell)).rglob("*.safetensors"):
        path.unlink()


def make_cell(cell: Cell, work: Path) -> list[Row]:
    """Run all commands of a cell and return its lines, one a method."""
    settings = settings_of(cell, work)
    experts = make_experts(cell, work)
    glue = Glue(work / "cells" / str(cell), settings)
    priors = make_priors(glue, experts, has_batchnorm=cell.family.has_batchnorm)
    spec = read_spec(cell.family.spec, settings[3::2])
    if cell.labels == CONTROL_LABELS:
        random = write_random_experts(spec, experts, work / "cells" / str(cell) / RANDOM_EXPERTS)
        priors.files[RANDOM_EXPERTS] = glue.file(RANDOM_EXPERTS)
        glue(RANDOM_EXPERTS, "mix", *random, *MIXES[DEFAULT], "-o", glue.file(RANDOM_EXPERTS))
    default = glue.file(DEFAULT)
    tested = glue("priors", "evaluate", *priors.files.values(), "--compare", default)
    rows = rows_of(priors, figures_of(tested, priors.files))
    if cell.family.is_finetuned:
        add_finetuned(rows, glue, priors, cell)
    rows["ensemble"] = {"zero_shot": ensemble_figures(spec, experts)}
    if cell.family.has_batchnorm:
        again = [glue.file(refreshed(f"expert-{k}")) for k in range(len(experts))]
        rows[refreshed("ensemble")] = {"zero_shot": ensemble_figures(spec, again)}
    return [{**cell.key, "method": method, **row} for method, row in rows.items()]


def settings_of(cell: Cell, work: Path) -> list[str]:
    """Return the options of all commands of a cell."""
    overrides = [f"seed={cell.seed}", f"data.target={{train: {cell.labels - cell.n_val}, val: {cell.n_val}}}"]
    overrides += start_settings(cell, work)
    if cell.family.data:
        overrides.append(f"data.root={work / 'data' / cell.family.data}")
    if cell.labels in cell.family.one_seed_labels:
        overrides.append("finetune.batch_size=64")  # many labels take long otherwise
    return ["--spec", str(cell.family.spec), *(word for override in overrides for word in ("--set", override))]


def start_settings(cell: Cell, work: Path) -> list[str]:
    """Return what tells the spec where the experts start; train that start where it is missing."""
    if cell.start != PRETRAINED:
        return ["experts.init=shared"]
    elsewhere = cell.family.elsewhere
    if elsewhere is None:
        return []
    glue = Glue(work / "starts" / elsewhere.stem, ["--spec", str(elsewhere), "--set", f"seed={cell.seed}"])
    name = f"seed-{cell.seed}"
    glue(name, "finetune", "--from-scratch", "-o", glue.file(name))
    return [f"experts.init={glue.file(name)}"]


def make_experts(cell: Cell, work: Path) -> list[Path]:
    """Return the cell's experts; train those that are missing. Their data do not depend on the number of labels."""
    overrides = [f"seed={cell.seed}", *start_settings(cell, work)]
    settings = ["--spec", str(cell.family.spec), *(word for override in overrides for word in ("--set", override))]
    glue = Glue(work / "experts" / cell.family.spec.stem / cell.start / f"seed-{cell.seed}", settings)
    paths = []
    for k in cell.family.experts:
        name = f"expert-{k:03d}"
        glue(name, "train-expert", "--expert", str(k), "-o", glue.file(name))
        paths.append(glue.file(name))
    return paths


def figures_of(evaluated: Result, names: Iterable[str]) -> dict[str, Row]:
    """Return loss and accuracy by model, with what they are beyond the baseline's and the standard error of that."""
    found: dict[str, Row] = {}
    gates = iter(evaluated["gates"])
    for name, row in zip(names, evaluated["results"], strict=True):
        found[name] = {"loss": row["loss"], "accuracy": row["accuracy"]}
        for _ in range(2):
            gate = next(gates)
            beyond = {"beyond": gate["value"] - gate["bar"], "standard_error": gate["standard_error"]}
            found[name] |= {f"{gate['figure']}_{key}": value for key, value in beyond.items()}
    return found


def rows_of(priors: Priors, zero_shot: dict[str, Row]) -> dict[str, Row]:
    """Return what the results keep of each blend: the figures on the test split, and where they come from."""
    rows: dict[str, Row] = {name: {"zero_shot": figures} for name, figures in zero_shot.items()}
    for name, result in priors.results.items():
        cost = result["cost"]
        rows[name] |= {"alpha": result["alpha"], "forwards": cost["forwards"], "backwards": cost["backwards"]}
    return rows


def add_finetuned(rows: dict[str, Row], glue: Glue, priors: Priors, cell: Cell) -> None:
    """Finetune the priors, train without experts, and add the figures on the test split to the rows."""
    finetuned = finetune_all(glue, priors, has_start=cell.start == PRETRAINED, n_labels=cell.labels)
    files = [Path(result["output"]) for result in finetuned.values()]
    tested = glue("finetuned", "evaluate", priors.files[DEFAULT], *files, "--compare", finetuned[DEFAULT]["output"])
    figures = figures_of(tested, ["prior", *finetuned])
    for name, result in finetuned.items():
        epochs = result["history"]
        rows.setdefault(name, {})["finetuned"] = {
            **figures[name],
            "lr": result["lr"],
            "kept": result["kept"],
            "steps": result["steps"]["training"],
            "test_accuracy": [epoch["test_accuracy"] for epoch in epochs],
        }
    rows[DEFAULT]["prior_beyond_finetuned"] = figures["prior"]


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
