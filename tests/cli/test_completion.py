"""What a shell offers for the values of options: through the calls that typer makes, and as bash asks for it."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

import glue_cli
from glue_cli.cli import completion
from glue_cli.cli.app import app
from glue_cli.methods import METHODS
from glue_cli.spec.schema import Spec
from glue_cli.spec.yaml_file import read_spec

GLUE = [sys.executable, "-m", "glue_cli"]


def offered(command, option, incomplete=""):
    """Return what typer would offer for an option's value."""
    found = typer.main.get_command(app).commands[command]
    context = found.make_context(command, [], resilient_parsing=True)
    (parameter,) = [parameter for parameter in found.params if option in parameter.opts]
    return [item.value for item in parameter.shell_complete(context, incomplete)]


@pytest.mark.parametrize(
    ("command", "option", "incomplete", "wanted"),
    [
        ("mix", "--method", "", [*METHODS]),
        ("mix", "--method", "s", ["spsa"]),
        ("mix", "--bank", "", ["auto", "device", "blocks", "sharded", "host", "disk", "streamed", "factors", "dense"]),
        ("mix", "--dtype", "f", ["float64", "float32", "float16"]),
        ("mix", "--batchnorm", "", ["auto", "average", "refresh", "from:"]),
        ("mix", "--head-policy", "", ["blend", "from:", "align", "reset"]),
        ("evaluate", "--split", "", ["train", "val", "test"]),
        ("evaluate", "--metric", "", ["auroc", "f1", "mae", "precision", "r2", "recall"]),
        ("evaluate", "--fail-under", "a", ["accuracy=", "auroc="]),
        ("finetune", "--track", "", ["test"]),
        ("finetune", "--precision", "", ["auto", "fp32", "bf16"]),
        ("train-expert", "--device", "c", ["cpu", "cuda"]),
        ("mix", "--set", "mix.pre", ["mix.preset="]),
        ("mix", "--set", "mix.preset=", ["mix.preset=default", "mix.preset=paper"]),
        ("mix", "--set", "mix.zero_sum=t", ["mix.zero_sum=true"]),
        ("mix", "--set", "model.arch=res", ["model.arch=resnet20"]),
        ("mix", "--set", "data.format=c", ["data.format=cifar10"]),
        ("mix", "--set", "objective=", ["objective=loss", "objective=accuracy", "objective=f1"]),
        ("mix", "--set", "nothing.such=", []),
        ("mix", "--set", "mix.lr=", []),
    ],
)
def test_values_are_offered(command, option, incomplete, wanted):
    assert offered(command, option, incomplete) == wanted


def test_every_key_that_is_offered_is_one_of_the_spec(tmp_path):
    """A key that the spec does not have would be refused; every section of it is offered."""
    spec = tmp_path / "glue.yaml"
    spec.write_text("model: {arch: cnn}\ndata: {format: cifar10, root: data}\n")
    keys = [key.removesuffix("=") for key in completion.settings("")]
    assert {key.partition(".")[0] for key in keys} == set(Spec.model_fields)
    assert len(keys) == len(set(keys)) > 40
    for key, value in (("mix.lr", "0.5"), ("finetune.epochs", "3"), ("data.target.train", "7"), ("seed", "4")):
        assert key in keys
        read_spec(spec, [f"{key}={value}"])


def ask_bash(words, *, cursor=None):
    """Ask as bash does, with the words of `words` and the last one to be completed."""
    cursor = len(words) - 1 if cursor is None else cursor
    surroundings = {"_GLUE_COMPLETE": "complete_bash", "COMP_WORDS": "\n".join(words), "COMP_CWORD": str(cursor)}
    done = subprocess.run(GLUE, capture_output=True, text=True, timeout=200, env={**os.environ, **surroundings})
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["glue", "mix", "--method", "fu"], ["fullgrad"]),
        (["glue", "mix", "--set", "mix.presen"], []),
        (["glue", "mix", "--set", "mix.prese"], ["mix.preset="]),
        (["glue", "mix", "--set", "mix.preset", "="], ["default", "paper"]),
        (["glue", "mix", "--set", "mix.preset", "=", "p"], ["paper"]),
        (["glue", "mix", r"a\ b", "--set", "mix.lr", "=", "0.1", "--bank", "d"], ["device", "disk", "dense"]),
    ],
)
def test_bash_is_answered(words, wanted):
    assert ask_bash(words) == wanted


def in_a_terminal(shell, text, wanted, environment):
    """Type a text and TAB in a new interactive shell; return what is on its screen once `wanted` is, or in the end."""
    spawn = [sys.executable, "-c", "import pty, sys; pty.spawn(sys.argv[1:])", shell, "-i"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process, screen = subprocess.Popen(spawn, env=environment, **pipes), b""
    os.set_blocking(process.stdout.fileno(), False)
    typed_at, end = 0.0, time.monotonic() + 60
    while wanted.encode() not in screen and time.monotonic() < end:
        if any(sign in screen for sign in (b"#", b"$", b"%", b">")):  # a prompt
            typed_at = typed_at or time.monotonic() + 0.5
        if typed_at and time.monotonic() > typed_at and text:
            process.stdin.write(f"{text}\t".encode())
            process.stdin.flush()
            text = ""
        screen += process.stdout.read() or b""
        time.sleep(0.05)
    process.kill()
    process.communicate()
    return screen.decode(errors="replace")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_at_the_first_tab_once_it_is_installed(tmp_path, shell):
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "bin").mkdir()
    glue = tmp_path / "bin" / "glue"
    glue.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m glue_cli "$@"\n')
    glue.chmod(0o755)
    environment = {**os.environ, "HOME": str(tmp_path), "SHELL": path, "TERM": "xterm", "PS1": "$ "}
    environment |= {
        "PATH": f"{glue.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(glue_cli.__file__).parents[1]),
    }
    environment.pop("XDG_CONFIG_HOME", None)
    done = subprocess.run(
        [path, "-c", "glue --install-completion; true"], env=environment, capture_output=True, text=True, timeout=200
    )
    assert f"{shell} completion installed" in done.stdout, done.stderr
    screen = in_a_terminal(path, "glue mix --method fu", "fullgrad", environment)
    assert "fullgrad" in screen, screen


def test_completing_a_value_imports_no_torch():
    program = (
        "import sys; from glue_cli.cli import completion as c; c.settings('model.arch='); c.metrics(); c.banks(); "
        "c.dtypes(); c.bars(); assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=200).returncode == 0
