"""A small world to type commands in: part of examples/digits, a spec, three experts trained once a session."""

import json
import shutil
import signal
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from glue_cli.cli.app import main

DIGITS = Path(__file__).parents[2] / "examples" / "digits"

SPEC = """\
model: {arch: cnn, args: {num_classes: 10, in_channels: 1, width: 4}}
data: {format: safetensors, root: data, target: {train: 120, val: 60}}
experts: {count: 3, size: 80, dirichlet: 0.5, init: shared}
train: {epochs: 1, batch_size: 40, lr: 0.01}
mix: {steps: 4, validate_every: 2, batch_size: 30}
finetune: {epochs: 1, batch_size: 40, lr: 0.01}
precision: fp32
seed: 7
"""


@dataclass
class Answer:
    """What a call of glue gave."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        """The one JSON object of stdout, in strict JSON."""
        assert self.out.count("\n") == 1 and self.out.endswith("\n")

        def refuse(word):
            raise AssertionError(f"{word} is not JSON")

        return json.loads(self.out, parse_constant=refuse)

    def refused(self, code, *parts, hint=True):
        """Check that this is an error block with that exit code, which says `parts`; notes may stand before it."""
        assert (self.code, self.out) == (code, ""), (self.code, self.out, self.err)
        notes = ("warning: ", "images are normalised ")
        lines = list(dropwhile(lambda line: line.startswith(notes), self.err.splitlines()))
        assert lines[0].startswith("error: "), self.err
        assert lines[-1].startswith("hint: ") or not hint, self.err
        assert all(line.startswith("  ") for line in lines[1:-1]), self.err
        assert "Traceback" not in self.err
        assert not lines[0].endswith(".")
        for part in parts:
            assert str(part) in self.err, self.err


@pytest.fixture(autouse=True, scope="session")
def signals_as_in_a_terminal():
    """Let processes hear of Ctrl-C and hang-ups, which those of a shell's background job or nohup ignore."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture
def glue(capsys):
    """Call the command line in this process; return the exit code and what it printed."""

    def call(*arguments, code=None):
        capsys.readouterr()
        found = main([str(argument) for argument in arguments])
        answer = Answer(found, *capsys.readouterr())
        if code is not None:
            assert answer.code == code, answer.err
        return answer

    return call


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """The folder that every test starts from a copy of."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "data").mkdir()
    for split, n in (("train", 600), ("test", 80)):
        tensors = load_file(DIGITS / f"{split}.safetensors")
        save_file(
            {name: tensor[:n].clone() for name, tensor in tensors.items()}, folder / "data" / f"{split}.safetensors"
        )
    (folder / "glue.yaml").write_text(SPEC)
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GLUE_SPEC", "GLUE_SEED", "GLUE_DEVICE"):
            patch.delenv(name, raising=False)
        patch.chdir(folder)
        torch.set_num_threads(1)
        for expert in range(3):
            assert main(["train-expert", "--expert", str(expert), "--device", "cpu", "-q"]) == 0
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    """A fresh copy of the world, and the current folder."""
    folder = tmp_path / "here"
    shutil.copytree(world, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GLUE_DEVICE", "cpu")
    return folder


@pytest.fixture
def experts():
    """The experts' paths, as a shell's `*` would give them."""
    return [f"experts/expert-00{i}.safetensors" for i in range(3)]


@pytest.fixture
def prior(here, glue, experts):
    """A uniform blend of the experts."""
    glue("mix", "--method", "uniform", *experts, "-q", code=0)
    return "prior.safetensors"


@pytest.fixture
def snapshot(here):
    """Return every file under the current folder with its bytes, and every folder."""

    def take():
        return {str(path.relative_to(here)): path.read_bytes() if path.is_file() else None for path in here.rglob("*")}

    return take


def make_checkpoint(path, change=lambda tensors: None, *, of="experts/expert-000.safetensors", metadata=None):
    """Write a copy of an expert with its tensors changed; without glue's metadata unless given."""
    tensors = load_file(of)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    return path


@pytest.fixture
def altered(here):
    """Write an altered copy of expert 0."""
    return make_checkpoint
