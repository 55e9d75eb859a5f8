"""The example scripts, run as they stand, on a spec small enough for a test."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL_SPEC = """
model: {{arch: cnn, args: {{in_channels: 1, width: 8}}}}
data: {{format: safetensors, root: '{digits}', target: {{train: 100, val: 50}}}}
experts: {{count: {count}, size: 100}}
train: {{epochs: 2}}
mix: {{budget: 20}}
finetune: {{epochs: 2}}
precision: fp32
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command in a folder with a small glue.yaml, with this interpreter's `glue` in front."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    glue = bin_folder / "glue"
    glue.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m glue_cli "$@"\n')
    glue.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    (work / "glue.yaml").write_text(SMALL_SPEC.format(digits=EXAMPLES / "digits", count=2))
    path = f"{bin_folder}:{os.environ['PATH']}"

    def run(*command, **variables):
        return subprocess.run(
            command,
            cwd=work,
            env={**os.environ, "PATH": path, **variables},
            capture_output=True,
            text=True,
            timeout=200,
        )

    run.work, run.bin = work, bin_folder
    return run


# Runs what it is given as Slurm would: every task of the array, then says the job's number.
SBATCH = """#!/bin/bash
for script; do :; done
echo "$@" >>sbatch.log
for task in $(sed -n 's/^#SBATCH --array=0-4$/0 1/p' "$script"); do
    SLURM_ARRAY_TASK_ID=$task SLURM_SUBMIT_DIR=$PWD SLURM_CPUS_PER_TASK=1 bash "$script" >&2 || exit 1
done
grep -q array "$script" || SLURM_SUBMIT_DIR=$PWD SLURM_CPUS_PER_TASK=1 bash "$script" >&2 || exit 1
echo "4711;cluster"
"""


def test_slurm_jobs_train_mix_finetune_and_evaluate(run):
    sbatch = run.bin / "sbatch"
    sbatch.write_text(SBATCH)
    sbatch.chmod(0o755)
    done = run("sh", str(EXAMPLES / "slurm" / "submit.sh"), "--partition=gpu")
    assert done.returncode == 0, done.stderr
    submitted = (run.work / "sbatch.log").read_text().splitlines()
    assert submitted[0] == f"--parsable --partition=gpu {EXAMPLES}/slurm/experts.sbatch"
    assert submitted[1] == f"--dependency=afterok:4711 --partition=gpu {EXAMPLES}/slurm/prior.sbatch"
    rows = json.loads((run.work / "evaluation.json").read_text())["results"]
    assert [row["checkpoint"] for row in rows] == ["prior.safetensors", "finetuned.safetensors"]


def test_a_requeued_array_task_keeps_its_expert(run):
    (run.work / "experts").mkdir()
    expert = run.work / "experts" / "expert-001.safetensors"
    expert.write_bytes(b"finished before")
    done = run("bash", str(EXAMPLES / "slurm" / "experts.sbatch"), SLURM_ARRAY_TASK_ID="1")
    assert done.returncode == 0, done.stderr
    assert expert.read_bytes() == b"finished before"


@pytest.mark.parametrize(("bar", "code"), [("0.9", 6), ("0.0", 0)])
def test_the_pipeline_fails_under_the_bar(run, bar, code):
    workflow = yaml.safe_load((EXAMPLES / "ci" / "github-actions.yml").read_text())
    steps = {step.get("name"): step.get("run") for step in workflow["jobs"]["prior"]["steps"]}
    for expert in ("0", "1"):
        assert run("glue", "train-expert", "--expert", expert).returncode == 0
    assert run("sh", "-e", "-c", steps["Mix"]).returncode == 0
    assert "accuracy=0.9" in steps["Gate"]
    gated = run("sh", "-e", "-c", steps["Gate"].replace("accuracy=0.9", f"accuracy={bar}"))
    assert gated.returncode == code, gated.stderr
    assert "prior.safetensors" in gated.stdout


def test_shell_scripts_parse():
    assert shutil.which("sh")
    for script in [*EXAMPLES.rglob("*.sh"), *EXAMPLES.rglob("*.sbatch")]:
        subprocess.run(["bash", "-n", str(script)], check=True)
