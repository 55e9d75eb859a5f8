"""glue report as a user calls it, on what the other commands really write."""

import json
import subprocess
import sys

import pytest


@pytest.fixture
def runs(here, glue, experts):
    """A run's folder: two blends, one of them finetuned, and the experts' evaluation."""

    def keep(name, *arguments):
        answer = glue(*arguments, "--json", "-q", code=0)
        (here / "runs/seed-0" / name).write_text(answer.out)

    (here / "runs/seed-0").mkdir(parents=True)
    for method in ("spsa", "data-size"):
        blend = f"runs/seed-0/{method}.safetensors"
        history = ["--history", f"runs/seed-0/{method}-mix.jsonl"]
        keep(f"{method}-mix.json", "mix", "--method", method, *experts, "-o", blend, *history)
    tuned = ["runs/seed-0/spsa.safetensors", "--track", "test", "-o", "runs/seed-0/spsa-finetuned.safetensors"]
    keep("spsa-finetune.json", "finetune", *tuned)
    keep("experts.json", "evaluate", *experts)
    return sorted((here / "runs/seed-0").iterdir())


@pytest.fixture
def result(here):
    """A small result, which needs no other command."""
    history = [{"epoch": 0, "test_accuracy": 0.1}, {"epoch": 1, "test_accuracy": 0.4}]
    path = here / "finetune.json"
    path.write_text(json.dumps({"schema": "glue.finetune/1", "start": "scratch", "history": history}))
    return path


def test_a_report_on_what_the_commands_write(here, glue, runs):
    answer = glue("report", *runs, "-q", "--json", code=0)
    (row,) = answer.json["rows"]
    assert answer.json["schema"] == "glue.report/1" and answer.json["output"] == "report"
    assert (row["row"], row["seeds"], row["merit"]["figure"]) == ("runs", [0], "accuracy")
    methods = {method["label"]: method for method in row["methods"]}
    tuned = json.loads((here / "runs/seed-0/spsa-finetune.json").read_text())["history"]
    assert methods["spsa"]["merit"]["prior"]["mean"] == pytest.approx(100 * tuned[0]["test_accuracy"])
    assert methods["spsa"]["merit"]["last"]["mean"] == pytest.approx(100 * tuned[-1]["test_accuracy"])
    mixed = json.loads((here / "runs/seed-0/spsa-mix.json").read_text())
    choosing = mixed["cost"]["forwards"] - mixed.get("afterwards", {"forwards": 0})["forwards"]
    assert methods["spsa"]["cost"]["forwards"]["mean"] == choosing
    evaluated = json.loads((here / "runs/seed-0/experts.json").read_text())["results"]
    assert [e["merit"] for e in row["experts"]] == [[pytest.approx(100 * one["accuracy"])] for one in evaluated]
    page = (here / "report/report.html").read_text()
    assert all(expert["sha256"] in page for expert in mixed["experts"])
    assert "mix.lr" in page and "finetune.lr" in page  # the settings
    assert {path.name for path in (here / "report").iterdir()} == set(answer.json["files"])


def test_for_people(glue, result):
    answer = glue("report", result, code=0)
    lines = answer.out.splitlines()
    assert "from scratch" in answer.out and "40.0" in answer.out and "─" in lines[1]
    assert lines[-1].startswith("written to report: report.html, report.md, report.json")
    assert answer.err == "hint: open report/report.html\n"


def test_quietly_and_what_was_passed_over(here, glue, result):
    answer = glue("report", result, "glue.yaml", "data", code=0)
    assert "ignored 2 files" in answer.err
    answer = glue("report", result, "glue.yaml", "-f", "-q", code=0)
    assert answer.err == "" and answer.out


def test_outputs_that_exist_and_inputs_that_are_outputs(here, glue, result, snapshot):
    glue("report", result, "-q", code=0)
    before = snapshot()
    glue("report", result).refused(2, "'report/report.html' exists", "--force")
    glue("report", "n" * 300).refused(2, "these files do not exist")
    glue("report", "report/report.json", "-f").refused(2, "also an input")
    glue("report", result, "-o", result).refused(2, "is a file")
    assert snapshot() == before
    glue("report", result, "report/report.json", "-o", "again", "-q", "--title", "T", code=0)
    assert "<title>T</title>" in (here / "again/report.html").read_text()
    glue("report", result, "report", "-q", "-f", code=0)  # a folder of the glob, which is no input
    assert snapshot() | before == snapshot()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "FILE"),
        (["nope.json", "nor-this.jsonl"], 2, "nor-this.jsonl"),
        (["glue.yaml", "data"], 3, "none of the files"),
        (["damaged.json", "finetune.json"], 3, "damaged.json: no JSON"),
        (["finetune.json", "--splt", "test"], 2, "--splt"),
    ],
)
def test_what_is_refused(here, glue, result, snapshot, arguments, code, said):
    (here / "damaged.json").write_text('{"schema"')
    before = snapshot()
    glue("report", *arguments).refused(code, said)
    assert snapshot() == before


def test_neither_torch_nor_numpy_is_needed_for_the_tables(here, result):
    program = """
import sys
sys.modules["matplotlib"] = None
from glue_cli.cli.app import main
assert main(["report", "finetune.json"]) == 0
assert not {"torch", "numpy", "safetensors"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "pip install 'glue-cli[plot]'" in done.stderr
