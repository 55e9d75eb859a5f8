"""Small runs of every command, for tests that disturb them: what they read, and what they leave behind."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

NET = """
from torch import nn
def make():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
"""
SPEC = """
model: {arch: "python:small_net:make"}
data: {format: safetensors, root: data, target: {train: 60, val: 40}}
experts: {count: 2, size: 40, dirichlet: 1.0}
train: {epochs: 2, batch_size: 40, lr: 0.01}
mix: {steps: 2, batch_size: 60}
finetune: {epochs: 2, batch_size: 60, lr: 0.01, keep: last}
precision: fp32
"""


@dataclass(frozen=True)
class SmallRun:
    """A command, and what it writes: files whose bytes do not change from run to run.

    Attributes:
        arguments: of glue, in the folder that `make_small_world` has made.
        outputs: files and folders.
        saves: whether the run saves its state and can resume.
        changing: outputs of which only the JSON is the same, apart from times.
    """

    arguments: str
    outputs: tuple[str, ...] = ()
    saves: bool = False
    changing: tuple[str, ...] = ()


_SAVING = "--save-every 1 --history new/history.jsonl"
RUNS = {
    "mix": SmallRun("mix --alpha 0.3,0.7 e0.safetensors e1.safetensors -o new/x.safetensors", ("new/x.safetensors",)),
    "mix, shards": SmallRun(
        "mix --alpha 0.3,0.7 e0.safetensors e1.safetensors -o new/x.safetensors --max-shard-size 200B", ("new",)
    ),
    "mix, spsa": SmallRun(
        f"mix --method spsa e0.safetensors e1.safetensors -o new/x.safetensors {_SAVING}",
        ("new/x.safetensors",),
        saves=True,
        changing=("new/history.jsonl",),
    ),
    **{
        f"mix, {kind}": SmallRun(
            f"mix --method spsa e0.safetensors e1.safetensors -o new/x.safetensors --bank {kind}",
            ("new/x.safetensors",),
        )
        for kind in ("disk", "streamed")
    },
    "mix, adapters": SmallRun("mix --alpha 0.3,0.7 adapter-0 adapter-1 -o new/a", ("new/a",)),
    "mix, merged": SmallRun("mix --alpha 0.3,0.7 adapter-0 adapter-1 --base base -o new/a", ("new/a",)),
    "train-expert": SmallRun(
        f"train-expert --expert 1 -o new/x.safetensors {_SAVING}",
        ("new/x.safetensors",),
        saves=True,
        changing=("new/history.jsonl",),
    ),
    "finetune": SmallRun(
        f"finetune e0.safetensors -o new/x.safetensors {_SAVING}",
        ("new/x.safetensors",),
        saves=True,
        changing=("new/history.jsonl",),
    ),
    "evaluate": SmallRun("evaluate e0.safetensors --junit new/junit.xml --json", changing=("new/junit.xml",)),
    "check": SmallRun("check e0.safetensors e1.safetensors"),
    "init": SmallRun("init e0.safetensors e1.safetensors --data data -o new/glue.yaml", ("new/glue.yaml",)),
    "show": SmallRun("show e0.safetensors"),
    "report": SmallRun("report history.jsonl -o new/report", ("new/report",)),
}


def make_small_world(folder: Path) -> None:
    """Write two experts, two adapters with their base, data, a spec and a history into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    random = torch.Generator().manual_seed(0)
    (folder / "small_net.py").write_text(NET)
    (folder / "glue.yaml").write_text(SPEC)
    made: dict = {}
    exec(NET, made)
    for k in range(2):
        state = made["make"]().state_dict()
        expert = {
            name: tensor if not tensor.is_floating_point() else torch.rand(tensor.shape, generator=random)
            for name, tensor in state.items()
        }
        save_file(expert, folder / f"e{k}.safetensors", {"format": "pt"})
    (folder / "data").mkdir()
    for split, n in (("train", 200), ("test", 40)):
        inputs = torch.randn(n, 6, generator=random)
        tensors = {"inputs": inputs, "labels": inputs[:, :3].argmax(1)}
        save_file(tensors, folder / "data" / f"{split}.safetensors")
    (folder / "base").mkdir()
    save_file({"layer.weight": torch.ones(3, 4)}, folder / "base/model.safetensors", {"format": "pt"})
    (folder / "base/config.json").write_text('{"model_type": "mine"}')
    for k in range(2):
        adapter = folder / f"adapter-{k}"
        adapter.mkdir()
        names = ("base_model.model.layer.lora_A.weight", "base_model.model.layer.lora_B.weight")
        factors = (torch.rand(2, 4, generator=random), torch.rand(3, 2, generator=random))
        save_file(dict(zip(names, factors, strict=True)), adapter / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["layer"]}
        (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "base"}))
    history = [
        {
            "schema": "glue.history/1",
            "command": "mix",
            "method": "spsa",
            "step": t,
            "loss": 1 / (t + 1),
            "alpha": [0.5, 0.5],
        }
        for t in range(4)
    ]
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))


def found(folder: Path, run: SmallRun) -> dict[str, bytes]:
    """Return the content of each file at the run's output paths that exists; temporary files are left out."""
    contents = {}
    for output in (*run.outputs, *run.changing):
        path = folder / output
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        for file in files:
            if not file.name.startswith("."):
                contents[str(file.relative_to(folder))] = file.read_bytes()
    return contents


def unchanging(contents: dict[str, bytes]) -> dict[str, object]:
    """Return what the files say that is the same in every run: without times."""
    said: dict[str, object] = {}
    for name, content in contents.items():
        if name.endswith(".jsonl"):
            lines = [json.loads(line) for line in content.splitlines()]
            said[name] = [{key: value for key, value in line.items() if not key.endswith("_s")} for line in lines]
        else:
            said[name] = re.sub(rb'(time|timestamp)="[^"]*"', b"", content)
    return said


def leftovers(folder: Path) -> list[str]:
    """Return what no run may leave behind under a folder: temporary files, states and locks, which are all hidden."""
    return [str(path) for path in folder.rglob(".*")]
