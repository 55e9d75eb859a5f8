"""A net that overflows for some blends, from the experts' files to what the user is told, with every search."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from glue_cli.checkpoints.run_state import read_state, state_file
from glue_cli.cli.app import main
from glue_cli.foundation.state import is_good

NET = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 10), nn.Linear(10, 3)
    def forward(self, x):
        return self.head(self.body(x).exp())
"""
SPEC = """
model: {arch: "python:overflowing_net:Net"}
data: {format: safetensors, root: ., target: {train: 60, val: 40}}
mix: {steps: 12, batch_size: 20}
precision: fp32
"""
BAD = 1  # the number of the expert that overflows


@pytest.fixture
def glue(tmp_path, monkeypatch, capsys):
    """Run a mix in a folder with three experts, of which one overflows; return the exit code and what was printed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "overflowing_net.py").write_text(NET)
    (tmp_path / "glue.yaml").write_text(SPEC)
    random = torch.Generator().manual_seed(0)
    base = {
        "body.weight": torch.randn(10, 6, generator=random) / 3,
        "body.bias": torch.zeros(10),
        "head.weight": torch.randn(3, 10, generator=random) / 5,
        "head.bias": torch.zeros(3),
    }
    for k in range(3):
        expert = {name: tensor + torch.randn(tensor.shape, generator=random) / 20 for name, tensor in base.items()}
        if k == BAD:
            expert["body.weight"] *= 2000  # exp overflows in float32 beyond 88
        save_file(expert, f"e{k}.safetensors")
    for split, n in (("train", 200), ("test", 50)):
        inputs = torch.randn(n, 6, generator=random)
        outputs = (inputs @ base["body.weight"].T).exp() @ base["head.weight"].T
        save_file({"inputs": inputs, "labels": outputs.argmax(1)}, f"{split}.safetensors")

    def run(*arguments, experts=(0, 1, 2)):
        paths = [f"e{k}.safetensors" for k in experts]
        code = main(["mix", *paths, "--force", "--history", "history.jsonl", *arguments])
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("method", ["spsa", "cmaes", "fullgrad", "greedy", "proxy"])
def test_the_expert_that_overflows_gets_next_to_nothing(glue, method):
    code, out, err = glue("--method", method, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["alpha"][BAD] < 0.01
    assert any(f"expert {BAD}" in name for name in result["skipped"]["blends"])
    assert all(tensor.isfinite().all() for tensor in load_file("prior.safetensors").values())
    lines = [json.loads(line) for line in Path("history.jsonl").read_text().splitlines()]
    assert lines and "NaN" not in out + json.dumps(lines) and "Infinity" not in out + json.dumps(lines)
    assert main(["evaluate", "prior.safetensors", "--fail-under", "accuracy=0.5", "-q"]) == 0
    code, out, _ = glue("--method", method)
    assert code == 0 and "not finite: " in out and "left out: " in out


def test_the_paper_s_search_goes_on_from_a_start_without_a_finite_loss_until_it_gives_up(glue):
    code, _, err = glue("--method", "spsa", "--set", "mix.preset=paper")
    assert code == 4 and "at mixing step 9, near alpha [0.3333, 0.3333, 0.3333]" in err and "Traceback" not in err


def test_the_state_before_the_steps_without_a_finite_loss_is_kept(glue, tmp_path):
    """All steps are skipped here, so that the state of the start is the last good one."""
    paper = ["--method", "spsa", "--set", "mix.preset=paper", "--save-every", "1"]
    first = glue(*paper)
    state = read_state(state_file(tmp_path / "prior.safetensors")).state
    assert first[0] == 4 and state["n_steps"] == state["skips.n_in_a_row"] == 0 and is_good(state)
    code, _, err = glue(*paper, "--resume")
    assert code == 4 and "going on from the state" in err and "at mixing step 9" in err
    assert read_state(state_file(tmp_path / "prior.safetensors")).state.keys() == state.keys()


@pytest.mark.parametrize("method", ["spsa", "cmaes", "fullgrad", "greedy", "proxy"])
def test_experts_of_which_none_is_finite(glue, method, tmp_path):
    for k in (0, 2):
        expert = load_file(f"e{k}.safetensors")
        expert["body.weight"] *= 2000
        save_file(expert, f"e{k}.safetensors")
    code, out, err = glue("--method", method)
    assert code == 4 and "not finite" in err.replace("no expert has a finite", "not finite"), err
    assert "Traceback" not in err and not out and not (tmp_path / "prior.safetensors").exists()
