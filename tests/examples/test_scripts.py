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


@pytest.mark.parametrize(
    ("gate", "code"), [("accuracy=0.9", 6), ("loss=0.5", 6), ("served.safetensors", 6), ("none", 0)]
)
def test_the_pipeline_fails_at_each_gate(run, gate, code):
    """Each gate of the example alone: a small prior is under both bars, and worse than one that was finetuned."""
    workflow = yaml.safe_load((EXAMPLES / "ci" / "github-actions.yml").read_text())
    steps = {step.get("name"): step.get("run") for step in workflow["jobs"]["prior"]["steps"]}
    for expert in ("0", "1"):
        assert run("glue", "train-expert", "--expert", expert).returncode == 0
    assert run("sh", "-e", "-c", steps["Mix"]).returncode == 0
    assert json.loads((run.work / "mix.json").read_text())["schema"] == "glue.mix/1"
    served = ["prior.safetensors", "-o", "served.safetensors", "--set", "finetune.epochs=30"]
    if gate == "served.safetensors":
        assert run("glue", "finetune", *served).returncode == 0
    else:
        shutil.copy(run.work / "prior.safetensors", run.work / "served.safetensors")
    command = steps["Gate"]
    for strict, lax in (("accuracy=0.9", "accuracy=0"), ("loss=0.5", "loss=100")):
        assert strict in command
        command = command if strict == gate else command.replace(strict, lax)
    gated = run("sh", "-e", "-c", command)
    assert gated.returncode == code, gated.stderr
    assert "prior.safetensors" in gated.stdout
    assert (b"<failure" in (run.work / "gates.xml").read_bytes()) == (code == 6)


def test_shell_scripts_parse():
    assert shutil.which("sh")
    for script in [*EXAMPLES.rglob("*.sh"), *EXAMPLES.rglob("*.sbatch")]:
        subprocess.run(["bash", "-n", str(script)], check=True)
