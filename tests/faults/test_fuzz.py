"""Generated inputs of every kind: each is accepted, or refused with exit 2, 3 or 5.

Nothing ends in a traceback, takes over 5 s, or takes more than 512 MiB.
"""

import io
import json
import random
import re
import string
import zipfile

import pytest
import torch
from bounded import bounded
from safetensors.torch import save_file

from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.cli.app import main
from glue_cli.foundation.errors import GlueError
from glue_cli.spec.yaml_file import read_spec

REFUSED = (2, 3, 5)
ODD = [
    *("null", "true", "NaN", "-1", "0", "1e999", "9" * 400, '""', '"x"', "[]", "{}", "[[]]", '"\\u0000"', '"\\ud800"'),
    *(
        '"../x"',
        '"/etc/passwd"',
        '"/dev/zero"',
        '"one.safetensors"',
        "[" * 200 + "]" * 200,
        "\x1b[2J",
        "\0",
        "é",
        "😀",
    ),
    *(
        "&a [*a]",
        "*a",
        "!!python/object:os.system x",
        "!!binary x",
        "2001-13-45",
        "no",
        "1_0",
        "0o7",
        "~",
        "? x",
        "- x",
    ),
    *(": ", "\t", "%YAML 9", "---", "...", "<<: {}", "{a: 1, a: 2}", "'", '"', "|", ">", "@", "`"),
]


def mutate(draws, content):
    """Return content with one to four faults: bytes flipped, pieces repeated, left out, or replaced by odd ones."""
    for _ in range(draws.randint(1, 4)):
        begin = draws.randrange(len(content) + 1)
        end = min(len(content), begin + draws.choice([0, 1, 2, 8, 40]))
        match draws.randrange(5):
            case 0:
                content = content[:begin] + draws.randbytes(end - begin) + content[end:]
            case 1:
                content = content[:begin] + content[end:]
            case 2:
                content = content[:end] + content[begin:]
            case 3:
                piece = draws.choice(ODD).encode("utf-8", "surrogatepass")
                content = content[:begin] + piece + content[end:]
            case 4:  # a whole word
                words = [found.span() for found in re.finditer(rb"[\w.\-]+|\"[^\"]*\"", content)] or [(0, 0)]
                begin, end = draws.choice(words)
                content = content[:begin] + draws.choice(ODD).encode("utf-8", "surrogatepass") + content[end:]
    return content


def is_read_or_refused(read, path):
    with bounded():
        try:
            read(path)
        except GlueError as error:
            assert error.exit_code in REFUSED and len(error.message) < 6_000
            return False
        return True


@pytest.fixture
def shards(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "one.safetensors", {"format": "pt"})
    save_file({"b": torch.zeros(3)}, tmp_path / "two.safetensors")
    return json.dumps({"metadata": {"total_size": 20}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})


def test_indexes(tmp_path, shards, how_many):
    draws = random.Random(1)
    path = tmp_path / "model.safetensors.index.json"
    n_read = 0
    for _ in range(how_many(400, 100_000)):
        path.write_bytes(mutate(draws, shards.encode()))
        n_read += is_read_or_refused(read_checkpoint, path)
    assert n_read  # some faults lie where nobody looks


def archives():
    """Yield what torch.save writes of a state dict and of a training checkpoint, and the same compressed."""
    tensors = {"w": torch.arange(12.0).view(3, 4), "b": torch.ones(5)[1:], "n": torch.tensor(3)}
    for content in (tensors, {"state_dict": tensors, "epoch": 3}):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        yield buffer.getvalue()
        for compression in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
            packed = io.BytesIO()
            with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(packed, "w", compression) as target:
                for name in source.namelist():
                    target.writestr(name, source.read(name))
            yield packed.getvalue()


def test_torch_files(tmp_path, how_many):
    draws = random.Random(2)
    path, whole = tmp_path / "x.pt", list(archives())
    n_read = 0
    for number in range(how_many(400, 100_000)):
        path.write_bytes(mutate(draws, whole[number % len(whole)]))
        n_read += is_read_or_refused(read_checkpoint, path)
    assert n_read


SPEC = """\
# a spec
model: {arch: resnet20, args: {num_classes: 10}}
loss: cross_entropy
data:
  format: safetensors
  root: data/folder
  target: {train: 1000, val: 100}
  splits: {test: "val"}
experts: {count: 5, size: 2000, dirichlet: 1.0, init: shared}
train: {epochs: 40, batch_size: 64, lr: 1e-3}
mix: {preset: default, batch_size: 64}
finetune: {epochs: 20, batch_size: 64, lr: 0.01}
seed: 0
"""


def test_specs(tmp_path, how_many):
    draws = random.Random(3)
    path = tmp_path / "glue.yaml"
    n_read = 0
    for _ in range(how_many(400, 100_000)):
        path.write_bytes(mutate(draws, SPEC.encode()))
        n_read += is_read_or_refused(read_spec, path)
    assert n_read


OPTIONS = [
    *("--method", "--alpha", "--sizes", "--seed", "--set", "--device", "--spec", "--output", "--history", "--dtype"),
    *(
        "--max-shard-size",
        "--bank",
        "--force",
        "--json",
        "--quiet",
        "--dry-run",
        "-n",
        "-o",
        "-f",
        "-h",
        "--",
        "-",
        "--x",
    ),
]
VALUES = [
    *("", "0.5,0.5", "1", "0,0", "1,nan", "1e999,1", "-1,2", "uniform", "data-size", "spsa", "cuda:99", "cpu", "F16"),
    *("a.safetensors", "b.safetensors", ".", "/dev/null", "/dev/zero/x", "x" * 5000, "\x1b[2J", "é", "\udce9", "1GB"),
    *("seed=-1", "mix.lr=0.1", "a.b.c=[", "=", "model=&a [*a]", "99999999999999999999", "out.safetensors", "out/"),
]


def test_options(tmp_path, monkeypatch, capsys, how_many):
    draws = random.Random(4)
    for name, value in (("a", 0.0), ("b", 1.0)):
        save_file({"w": torch.full((3,), value)}, tmp_path / f"{name}.safetensors")
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    codes = set()
    for _ in range(how_many(200, 20_000)):
        words = ["mix", "a.safetensors", "b.safetensors"] if draws.random() < 0.8 else [draws.choice(VALUES)]
        for _ in range(draws.randint(0, 4)):
            words.insert(draws.randint(1, len(words)), draws.choice(OPTIONS + VALUES))
            if draws.random() < 0.1:
                words.append("".join(draws.choices(string.printable, k=draws.randrange(9))))
        with bounded():
            codes.add(code := main(words))
        out, err = capsys.readouterr()
        assert code in (0, *REFUSED) and "Traceback" not in err and "\x1b" not in out + err, (words, code, err)
        for path in set(tmp_path.iterdir()) - before:
            if path.suffix == ".safetensors" and path.is_file():
                read_checkpoint(path)  # what is written is whole
            if path.is_file():
                path.unlink()
    assert {0, 2} <= codes
