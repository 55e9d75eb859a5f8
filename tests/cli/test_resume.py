"""--resume, --save-every and signals, as users and batch systems meet them: in processes of their own."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest

from glue_cli.checkpoints.run_state import read_state, state_file

EXPERT_0 = "experts/expert-000.safetensors"
GLUE = [sys.executable, "-m", "glue_cli"]
TIMEOUT_S = 200  # generous: the machine may be busy
TRAIN = ["train-expert", "--expert", "0", "-o", "e.safetensors", "--resume"]
SLOW_MODEL = """
import hashlib, os, pathlib, time
from torch import nn

class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, images):
        if len(images) > 2:  # no look at whether model and data fit
            pathlib.Path("in-a-step").touch()
            if os.environ["SLOW"] == "sleep":
                time.sleep(10_000)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # no handler of Python's runs until it is done
        return self.layer(images.flatten(1))
"""


class Process:
    """A glue of its own, as a batch system would start it."""

    def __init__(self, *arguments):
        arguments = [*GLUE, *map(str, arguments), "-q", "--json"]
        self.popen = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wait_for(self, condition):
        end = time.monotonic() + TIMEOUT_S
        while not condition():
            assert self.popen.poll() is None, self.popen.communicate()
            assert time.monotonic() < end
            time.sleep(0.01)

    def send(self, number):
        self.popen.send_signal(number)

    def end(self):
        """Return the exit code, and what was printed."""
        out, err = self.popen.communicate(timeout=TIMEOUT_S)
        assert "Traceback" not in err
        return self.popen.returncode, out, err


@pytest.fixture
def start():
    started = []

    def start(*arguments):
        started.append(Process(*arguments))
        return started[-1]

    yield start
    for process in started:
        process.popen.kill()
        process.popen.communicate()


def lines_of(path):
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGXCPU"])
def test_a_signal_saves_the_state_and_the_same_line_goes_on(here, glue, start, name):
    epochs = ["--set", "train.epochs=60"]
    glue("train-expert", "--expert", "0", "-o", "w.safetensors", "--history", "w.jsonl", *epochs, "-q", code=0)
    before, history = set(here.rglob("*")), here / "h.jsonl"
    process = start(*TRAIN, "--history", "h.jsonl", *epochs)
    process.wait_for(lambda: lines_of(history) >= 2)
    process.send(getattr(signal, name))
    code, out, err = process.end()
    assert (code, out) == (130 if name == "SIGINT" else 75, "")
    assert err.startswith(f"error: stopped by {'Ctrl-C' if name == 'SIGINT' else name}; the state is in")
    assert "--resume" in err.splitlines()[-1]
    assert set(here.rglob("*")) - before == {history, here / ".e.safetensors.state"}
    glue(*TRAIN, "--history", "h.jsonl", *epochs, "-q", code=0)
    assert set(here.rglob("*")) - before == {history, here / "e.safetensors"}
    assert (here / "e.safetensors").read_bytes() == (here / "w.safetensors").read_bytes()
    assert history.read_bytes() == (here / "w.jsonl").read_bytes()


@pytest.mark.parametrize(
    "command",
    [
        ["train-expert", "--expert", "0", "--set", "train.epochs=30"],
        ["finetune", EXPERT_0, "--set", "finetune.epochs=30"],
        ["mix", "--method", "spsa", EXPERT_0, "experts/expert-001.safetensors", "--set", "mix.steps=40"]
        + ["--set", "mix.preset=paper", "--set", "mix.patience=100"],
    ],
    ids=lambda command: command[0],
)
def test_a_run_that_is_killed_at_random_moments_comes_to_the_same_end(here, glue, start, how_many, command):
    draw = random.Random(0)
    began = time.monotonic()
    code, _, err = start(*command, "-o", "whole.safetensors", "--history", "whole.jsonl").end()
    assert code == 0, err
    took_s, before = time.monotonic() - began, set(here.rglob("*"))
    again = [*command, "-o", "cut.safetensors", "--history", "cut.jsonl", "--resume", "--save-every", "3"]
    for _ in range(how_many(4, 50)):
        process = start(*again)
        time.sleep(draw.uniform(0.3, 1.1) * took_s)
        process.send(signal.SIGKILL)
        process.end()
        for path in set(here.rglob("*")) - before:
            assert path.name.startswith((".glue-", ".cut.safetensors.state", "cut.")), path
    glue(*again, "-q", code=0)
    assert set(here.rglob("*")) - before == {here / "cut.safetensors", here / "cut.jsonl"}
    for suffix in ("safetensors", "jsonl"):
        assert (here / f"cut.{suffix}").read_bytes() == (here / f"whole.{suffix}").read_bytes()


def slow_spec(here, monkeypatch, kind="call"):
    (here / "slow.py").write_text(SLOW_MODEL)
    monkeypatch.setenv("SLOW", kind)
    return ["--set", "model={arch: 'python:slow:Slow'}", "--set", "train.epochs=2"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("kind", "said"), [("sleep", "no state was saved"), ("call", "stopped in the middle of a step")]
)
def test_a_step_that_takes_long_is_given_up(here, glue, start, monkeypatch, number, kind, said):
    process = start(*TRAIN, *slow_spec(here, monkeypatch, kind))
    process.wait_for((here / "in-a-step").exists)
    process.send(number)
    code, out, err = process.end()
    assert (code, out) == (130 if number == signal.SIGINT else 75, "") and said in err
    glue(*TRAIN, "-q", code=0)
    assert [path.name for path in here.iterdir() if path.name.startswith((".e.", "e."))] == ["e.safetensors"]


def test_a_second_ctrl_c_stops_at_once(here, start, monkeypatch):
    process = start(*TRAIN, *slow_spec(here, monkeypatch))
    process.wait_for((here / "in-a-step").exists)
    process.send(signal.SIGINT)
    time.sleep(0.3)
    process.send(signal.SIGINT)
    code, out, err = process.end()
    assert (code, out, err) == (130, "", "")  # not a word: there was no time for one


def test_a_state_that_is_held_is_refused(here, glue, start, monkeypatch):
    process = start(*TRAIN, *slow_spec(here, monkeypatch))
    process.wait_for((here / "in-a-step").exists)
    answer = glue(*TRAIN, "-q")
    answer.refused(5, "another process is at work on 'e.safetensors'")
    assert process.popen.poll() is None


@pytest.mark.parametrize(
    "command",
    [
        ["train-expert", "--expert", "0"],
        ["finetune", EXPERT_0],
        ["mix", "--method", "spsa", EXPERT_0, "experts/expert-001.safetensors"],
        ["mix", "--method", "uniform", EXPERT_0, "experts/expert-001.safetensors"],
        ["mix", "--method", "uniform", "--batchnorm", "refresh", EXPERT_0, "experts/expert-001.safetensors"],
        ["mix", "--method", "proxy", EXPERT_0, "experts/expert-001.safetensors"],
        ["mix", "--alpha", "0.5,0.5", EXPERT_0, "experts/expert-001.safetensors", "--no-hash"],
    ],
    ids=" ".join,
)
def test_a_run_that_is_finished_says_so(here, glue, snapshot, command):
    again = [*command, "-o", "o.safetensors", "--resume"]
    glue(*again, "-q", code=0)
    before = snapshot()
    for name in (".o.safetensors.state.lock", ".glue-0123456789abcdef.tmp"):
        (here / name).touch()  # as a kill in the run's last moment leaves them
    answer = glue(*again, "--json", code=0)
    assert answer.json["output"] == "o.safetensors" and answer.json["schema"] == f"glue.{command[0]}/1"
    assert answer.json["passed_over"]
    assert "nothing is left to do" in answer.err and snapshot() == before
    glue(*again, code=0)
    assert snapshot() == before


@pytest.mark.parametrize(
    ("command", "change", "difference"),
    [
        (["train-expert", "--expert", "0"], ["--set", "train.lr=0.5"], "settings.train.lr: 0.01 there, 0.5 here"),
        (["finetune", EXPERT_0], ["--seed", "9"], "seed: 7 there, 9 here"),
        (["mix", "--alpha", "0.5,0.5", EXPERT_0, EXPERT_0], ["--alpha", "0.25,0.75"], "alpha: [0.5, 0.5] there"),
        (["mix", "--method", "greedy", EXPERT_0, EXPERT_0], ["--set", "mix.budget=50"], "mix.budget"),
        (["mix", "--method", "proxy", EXPERT_0, EXPERT_0], ["--set", "data.target.train=24"], "inputs.train"),
        (["mix", "--method", "spsa", EXPERT_0, EXPERT_0], ["--precision", "bf16"], "inputs.precision"),
        (["finetune", EXPERT_0], ["--set", "data.target.val=16"], "inputs.val"),
        (["train-expert", "--expert", "0"], ["--set", "experts.init=experts/expert-001.safetensors"], "start"),
        *(
            (command, ["--set", "data.mean=[0.9]", "--set", "data.std=[0.05]"], "inputs.train")
            for command in (
                ["train-expert", "--expert", "0"],
                ["finetune", EXPERT_0],
                ["mix", "--method", "spsa", EXPERT_0, EXPERT_0],
            )
        ),
    ],
    ids=lambda value: value[0],
)
def test_another_runs_output_is_no_end(here, glue, snapshot, command, change, difference):
    again = [*command, "-o", "o.safetensors", "--resume", "-q"]
    glue(*again, code=0)
    before = snapshot()
    glue(*again, *change).refused(2, "that of another run", difference)
    assert snapshot() == before
    glue(*again, *change, "--force", code=0)
    assert snapshot() != before


def test_a_blend_by_more_rules_is_another_run(here, glue, experts):
    again = ["mix", "--method", "uniform", *experts, "-o", "o.safetensors", "--resume", "-q"]
    glue(*again, "--exclude", "*.bias", "--copy-from", experts[0], code=0)
    glue(*again).refused(2, "that of another run", "recipe.rules.exclude")


def test_a_start_of_the_same_name_is_another_run(here, glue, altered):
    again = ["finetune", "x.safetensors", "-o", "o.safetensors", "--resume", "-q"]
    altered("x.safetensors")
    glue(*again, code=0)
    altered("x.safetensors", lambda tensors: next(iter(tensors.values())).add_(1))
    glue(*again).refused(2, "that of another run", "inputs.start")


def test_another_module_that_the_users_imports_is_another_run(here, glue):
    (here / "net.py").write_text("def build():\n    from parts_of_net import make\n    return make()\n")
    args = "{'num_classes': 10, 'in_channels': 1}"
    parts = f"from glue_cli.models import build_model\ndef make(): return build_model('cnn', {args}, seed=%d)\n"
    (here / "parts_of_net.py").write_text(parts % 0)
    again = ["train-expert", "--expert", "0", "--set", "model={arch: 'python:net:build'}", "-o", "o.safetensors"]
    again += ["--resume", "-q"]
    glue(*again, code=0)
    glue(*again, code=0)
    (here / "parts_of_net.py").write_text(parts % 1)
    glue(*again).refused(2, "that of another run", "inputs.code")


@pytest.mark.parametrize("how", [[], ["--no-hash"]])
def test_other_experts_are_another_run(here, glue, altered, how):
    again = ["mix", "--method", "uniform", EXPERT_0, "x.safetensors", "-o", "o.safetensors", "--resume", "-q", *how]
    altered("x.safetensors")
    glue(*again, code=0)
    altered("x.safetensors", lambda tensors: next(iter(tensors.values())).add_(1))
    glue(*again).refused(2, "that of another run", "experts")


@pytest.mark.parametrize("command", [["train-expert", "--expert", "0"], ["finetune", EXPERT_0]], ids=lambda c: c[0])
def test_a_training_that_diverges_keeps_its_last_good_state(here, glue, command):
    """The first step leads to weights of 1e30, which are finite; the loss of the second is not."""
    section, part = ("train", "") if command[0] == "train-expert" else ("finetune", "training.")
    diverging = [*command, "-o", "d.safetensors", "--save-every", "1", "--set", f"{section}.lr=1e30", "-q"]
    for again in ([], ["--resume"]):
        glue(*diverging, *again).refused(4, "lower the lr")
        state = read_state(state_file(here / "d.safetensors")).state
        assert state[f"{part}n_steps"] == 1 and state[f"{part}total"].isfinite()
        assert all(value.isfinite().all() for name, value in state.items() if name.startswith(f"{part}model."))


@pytest.mark.parametrize("text", ["0", "fast", "1.5"])
def test_how_often_is_checked(here, glue, text):
    glue("finetune", EXPERT_0, "--save-every", text).refused(2, "--save-every", text)


def test_commands_without_steps_have_no_such_options(here, glue):
    glue("evaluate", EXPERT_0, "--resume").refused(2, "--resume")
    assert json.loads(glue("show", EXPERT_0, "--json", code=0).out)
