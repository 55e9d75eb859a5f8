"""The paper's rows: what their specs say, and that a run which was cut goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from glue_cli.cli.app import main
from glue_cli.data import FORMATS
from glue_cli.models import ARCHITECTURES, build_model
from glue_cli.spec.yaml_file import read_spec

PAPER = Path(__file__).parents[2] / "examples" / "paper"
ROWS = ["cifar10-resnet20", "gtsrb-mobilenetv2", "imagenette-vit8", "svhn-mobilenetv2"]

# Writes down how it was called, leaves what glue would, and fails at the call FAIL_AT, half done.
GLUE = """#!/bin/sh
n_calls=$(wc -l <"$LOG")
{{ printf '%s|' "${{GLUE_SEED-}}" "$@"; echo; }} >>"$LOG"
if [ $((n_calls)) -eq "${{FAIL_AT:--1}}" ]; then
    printf '{{"half":'
    exit 1
fi
command=$1
while [ $# -gt 1 ]; do
    case $command$1 in
    report-o) mkdir -p "$2" && : >"$2/report.json" ;;
    *-o) : >"$2" ;;
    esac
    shift
done
echo '{{"alpha": [0.25, 0.75], "steps": 950}}'
"""
# Gathers in no time; gather.py itself has its own test.
PYTHON = """#!/bin/sh
case $1 in
*/gather.py) mkdir -p "$(dirname "$3")" && cp "$2" "$3" ;;
*) exec {python} -IS "$@" ;;
esac
"""


def spec_of(row, *overrides):
    known = {"arch": ARCHITECTURES, "format": FORMATS}
    return read_spec(PAPER / row / "glue.yaml", overrides, known_names=known)


@pytest.fixture
def run(tmp_path):
    """Run run.sh in a folder of its own with a `glue` that only writes down its calls, which are returned."""
    programs, log = tmp_path / "bin", tmp_path / "log"
    programs.mkdir()
    for name, program in (("glue", GLUE), ("python", PYTHON)):
        (programs / name).write_text(program.format(python=sys.executable))
        (programs / name).chmod(0o755)

    def run(*arguments, code=0, **variables):
        log.write_text("")
        path = f"{programs}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "LOG": str(log), "RESULTS": "results", **variables}
        command = ["sh", str(PAPER / "run.sh"), *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
        assert done.returncode == code, done.stderr
        return [line.removesuffix("|").split("|") for line in log.read_text().splitlines()]

    return run


def made_by(calls):
    """Return the names of the files that the calls were to write."""
    return [Path(call[call.index("-o") + 1]).name for call in calls if "-o" in call]


@pytest.mark.parametrize("row", ROWS)
def test_a_row_keeps_what_the_paper_states(row):
    spec = spec_of(row)
    assert (spec.mix.optimizer, spec.mix.lr, spec.mix.betas, spec.mix.n_directions) == ("adam", 0.01, [0.9, 0.99], 1)
    assert (spec.train.epochs, spec.train.batch_size, spec.train.lr) == (40, 64, 0.001)
    sizes = {"gtsrb-mobilenetv2": (6000, 800), "imagenette-vit8": (4000, 800)}
    assert (spec.data.target.train, spec.experts.size) == sizes.get(row, (10000, 2000))


def test_rows_make_the_same_choices():
    assert {path.parent.name for path in PAPER.glob("*/glue.yaml")} == set(ROWS)
    choices = [spec.model_dump(include={"train", "mix", "finetune", "loss"}) for spec in map(spec_of, ROWS)]
    assert all(choice == choices[0] for choice in choices)


@pytest.mark.parametrize("row", ROWS)
def test_choices_that_the_paper_leaves_open_are_marked(row):
    marked = [line for line in (PAPER / row / "glue.yaml").read_text().splitlines() if "# our choice" in line]
    keys = {line.split(":")[0].strip() for line in marked}
    assert keys >= {"val", "count", "dirichlet", "init", "batch_size", "mu", "steps", "epochs", "precision"}


@pytest.mark.parametrize(("row", "n_classes"), [*zip(ROWS, (10, 43, 10, 10), strict=True)])
def test_a_row_builds_its_model(row, n_classes):
    model = build_model(spec_of(row).model.arch, spec_of(row).model.args, seed=0)
    assert list(model.parameters())[-1].shape == (n_classes,)


@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_planned_without_faults(row, tmp_path, capsys):
    arguments = ["--spec", str(PAPER / row / "glue.yaml"), "-o", str(tmp_path / "expert.safetensors"), "--dry-run"]
    assert main(["train-expert", "--expert", "4", *arguments, "--set", f"data.root={tmp_path}"]) == 0
    assert spec_of(row).model.arch in capsys.readouterr().out


def test_the_default_preset_replaces_the_choices_of_the_row():
    from glue_cli.spec.schema import MixSpec

    override = "mix={preset: default}"
    assert override in (PAPER / "run.sh").read_text()
    assert spec_of("cifar10-resnet20", override).mix == MixSpec.model_validate({"preset": "default"})


def test_a_run_makes_every_prior_and_finetunes_the_methods(run):
    calls = run("cifar10-resnet20", "3", DATA_ROOT="data with spaces")
    assert {call[0] for call in calls[:-1]} == {"3"}
    made = made_by(calls)
    methods = ["data-size", "proxy", "fullgrad", "spsa", "spsa-default"]
    assert made[:5] == [f"expert-00{k}.safetensors" for k in range(5)]
    assert {f"{name}-refreshed.safetensors" for name in ["uniform", *methods]} < set(made)
    finetuned = [name for name in made if name.endswith("-finetuned.safetensors")]
    assert finetuned == [f"{name}-finetuned.safetensors" for name in [*methods, "scratch"]]
    worked = [call for call in calls if "report" not in call]
    assert all(call[-2:] == ["--set", "data.root=data with spaces"] for call in worked)
    assert all("--track" in call for call in worked if "finetune" in call)
    refreshed = next(call for call in calls if "runs/cifar10-resnet20/seed-3/spsa-refreshed.safetensors" in call)
    assert refreshed[refreshed.index("--alpha") + 1] == "0.25,0.75"
    evaluated = next(call for call in calls if call[1] == "evaluate" and "spsa-n2" in str(call))
    assert len([name for name in evaluated if name.endswith(".safetensors")]) == 16


def test_more_directions_have_the_steps_or_the_forwards_of_one(run):
    calls = {Path(call[call.index("-o") + 1]).stem: call for call in run("cifar10-resnet20", "0") if "-o" in call}
    steps = {}
    for name in ("spsa-n2", "spsa-n4", "spsa-n2-same-forwards", "spsa-n4-same-forwards"):
        settings = dict(item.removeprefix("mix.").split("=") for item in calls[name] if item.startswith("mix."))
        steps[name] = int(settings["n_directions"]), int(settings["steps"])
        assert int(settings["patience"]) >= int(settings["steps"])
    assert list(steps.values()) == [(2, 950), (4, 950), (2, 475), (4, 237)]


def test_the_other_rows_leave_out_what_is_not_for_them(run):
    made = made_by(run("imagenette-vit8", "0"))
    assert "spsa.safetensors" in made and "spsa-default-finetuned.safetensors" in made
    assert not [name for name in made if "refreshed" in name or "spsa-n" in name]


@pytest.mark.parametrize("call", [2, 7, 25])
def test_a_run_that_was_cut_goes_on(run, tmp_path, call):
    before = run("cifar10-resnet20", "0", code=1, FAIL_AT=str(call))
    after = run("cifar10-resnet20", "0")
    assert len(before) == call + 1
    assert before[-1] == after[0]
    made = made_by(before[:-1]) + made_by(after)
    assert len(made) == len(set(made)) + 1  # the report of the row is called as that of the seed
    assert not list(tmp_path.rglob("*.part"))


def test_experts_that_are_there_are_not_trained_again(run, tmp_path):
    expert = tmp_path / "runs" / "svhn-mobilenetv2" / "seed-0" / "experts" / "expert-002.safetensors"
    expert.parent.mkdir(parents=True)
    expert.write_bytes(b"trained before")
    made = made_by(run("svhn-mobilenetv2", "0"))
    assert made[:4] == [f"expert-00{k}.safetensors" for k in (0, 1, 3, 4)]
    assert expert.read_bytes() == b"trained before"


def test_a_seed_that_is_there_is_passed_over(run, tmp_path):
    run("svhn-mobilenetv2", "0")
    assert [call[1] for call in run("svhn-mobilenetv2", "0")] == ["report"]
    (tmp_path / "results" / "svhn-mobilenetv2-0.json").unlink()
    again = run("svhn-mobilenetv2", "0")
    assert [call[1] for call in again] == ["report", "report"]


def test_results_hold_what_a_report_needs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(PAPER)
    from gather import gather

    from glue_cli.report.sources import read_sources

    steps = [{"schema": "glue.history/1", "step": i, "val_loss": 1.0 if i == 50 else None} for i in range(72)]
    mixed = {"schema": "glue.mix/1", "alpha": [0.5, 0.5]}
    sources = [
        {"row": "r", "seed": 4, "name": "spsa-mix.json", "objects": [mixed]},
        {"row": "r", "seed": 4, "name": "spsa-mix.jsonl", "objects": steps},
    ]
    report, result = tmp_path / "report.json", tmp_path / "results" / "r-4.json"
    report.write_text(json.dumps({"schema": "glue.report/1", "rows": [], "files": [], "sources": sources}))
    gather(report, result)
    first, second = read_sources([result], lambda event: None)
    assert (first.row, first.seed, first.objects) == ("r", 4, [mixed])
    assert [line["step"] for line in second.objects] == [0, 20, 40, 50, 60, 71]
    assert json.loads(result.read_text())["machine"]["versions"]["torch"]


class Slope:
    """A loss that is linear in beta, so that eqs. (12) and (13) hold at any mu."""

    def __init__(self, slope):
        self.slope = slope - slope.mean()  # which the softmax leaves
        self.n_experts = len(slope)

    def probe_losses(self, alphas, step):
        return alphas[:, 0].log() @ self.slope

    def gradient(self, alpha, step):
        return 0.0, self.slope / alpha


@pytest.fixture
def variance(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(PAPER)
    import variance

    return variance


def test_the_variance_of_a_linear_loss_is_as_the_paper_says(variance):
    torch.manual_seed(0)
    objective = Slope(torch.randn(5, dtype=torch.float64))
    beta = torch.randn(1, 5, dtype=torch.float64)
    gradient = variance.gradient_at(objective, beta)
    torch.testing.assert_close(gradient, objective.slope)
    for zero_sum, dimensions in ((False, 4), (True, 3)):
        for found in variance.measure_variance(objective, beta, gradient, zero_sum=zero_sum):
            assert found["expected"] == dimensions / found["n"]
            assert abs(found["trace"] - found["expected"]) < 5 * found["standard_error"]


def test_a_linear_loss_has_no_bias_at_any_radius(variance):
    objective = Slope(torch.arange(4.0, dtype=torch.float64))
    beta = torch.zeros(1, 4, dtype=torch.float64)
    found = variance.measure_error(objective, beta, objective.slope, mu=10.0)
    assert found["bias"] < 1e-12 and found["noise"] < 1e-12
    bent = variance.measure_error(objective, beta, 2 * objective.slope, mu=10.0)  # half of what is asked for
    assert 0.5 == pytest.approx(bent["bias"], abs=4 * bent["bias_standard_error"])


def test_the_figures_of_the_estimator_are_drawn(variance, tmp_path):
    places = ("uniform", "near the optimum")
    traces = [
        {"n_experts": k, "place": place, "zero_sum": zero_sum, "n": n, "trace": 1.0, "standard_error": 0.1}
        | {"expected": (k - 1 - zero_sum) / n}
        for k in variance.N_EXPERTS
        for place in places
        for zero_sum in (False, True)
        for n in variance.N_DIRECTIONS
    ]
    errors = [
        {"n_experts": 5, "place": place, "precision": precision, "mu": mu}
        | {"bias": 0.5, "bias_standard_error": 0.1, "noise": 1.0}
        for place in places
        for precision in variance.PRECISIONS
        for mu in variance.MUS
    ]
    (tmp_path / "variance.json").write_text(json.dumps({"mu": 0.01, "variance": traces, "error": errors}))
    variance.draw(tmp_path / "variance.json", tmp_path / "figures")
    drawn = {path.name for path in (tmp_path / "figures").iterdir() if path.stat().st_size > 5000}
    assert drawn == {"variance.svg", "variance.png", "mu.svg", "mu.png"}
