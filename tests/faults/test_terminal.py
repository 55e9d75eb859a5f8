"""What a stranger wrote does not reach the terminal as it is: names of files, tensors and classes, and specs."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\nerror: all is well"
HARMLESS = "\\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\u202e\\n"


def fit_for_a_terminal(text):
    return not any(ord(c) < 32 and c != "\n" or 127 <= ord(c) < 160 or c == "\u202e" for c in text)


@pytest.fixture
def glue(tmp_path):
    """Run glue in a folder of its own; nothing that it prints may steer a terminal, nor be long."""

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "glue_cli", *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            timeout=120,
        )
        out, err = done.stdout.decode(), done.stderr.decode()
        assert fit_for_a_terminal(out + err) and len(out + err) < 20_000, (out, err)
        assert "Traceback" not in err, err
        return done.returncode, out, err

    return run


def test_names_of_files_tensors_and_classes(glue, tmp_path):
    names = []
    for number in range(2):
        names.append(f"{number}{EVIL}.safetensors".replace("/", ""))
        metadata = {"format": "pt", "glue": json.dumps({"class_names": [EVIL, "b"], "examples": 5})}
        save_file({f"w{EVIL}": torch.full((2,), float(number))}, tmp_path / names[-1], metadata)
    code, out, _ = glue("mix", "--method", "data-size", *names)
    assert code == 0 and HARMLESS in out and "prior.safetensors" in out
    code, _, err = glue("mix", "--alpha", "1,0", names[0], f"absent{EVIL}")
    assert code == 2 and HARMLESS in err and err.count("\nerror: ") == 0
    save_file({f"v{EVIL}": torch.zeros(3)}, tmp_path / "other.safetensors")
    code, _, err = glue("mix", "--alpha", "1,0", names[0], "other.safetensors", "-f")
    assert code == 3 and HARMLESS in err


def test_what_a_spec_says(glue, tmp_path):
    (tmp_path / "glue.yaml").write_text(
        json.dumps(
            {"model": {"arch": EVIL}, "data": {"format": EVIL, "root": EVIL, EVIL: 1}, EVIL: EVIL}, ensure_ascii=True
        )
    )
    code, _, err = glue("evaluate", "x.safetensors")
    assert code == 3 and HARMLESS in err
    code, _, err = glue("evaluate", "x.safetensors", "--set", f"a=\x1b[2J{'x' * 100_000}", f"--{EVIL}")
    assert code == 2


def test_what_is_refused_is_not_repeated_at_length(glue, tmp_path):
    long = "n" * 1_000_000
    save_file({long: torch.zeros(1)}, tmp_path / "a.safetensors")
    save_file({long + "o": torch.zeros(1)}, tmp_path / "b.safetensors")
    code, _, _ = glue("mix", "--alpha", "1,0", "a.safetensors", "b.safetensors")
    assert code == 3
    (tmp_path / "glue.yaml").write_text(f"model: {{arch: {'a' * 100_000}}}\ndata: [{'x,' * 40_000}]\n")
    code, _, _ = glue("evaluate", "a.safetensors")
    assert code == 3
