"""Runs as the commands leave them: results, histories and the empty files beside them."""

import json

import pytest

EXPERTS = [f"runs/experts/expert-{k:03d}.safetensors" for k in range(3)]


def mix_result(label, method, **more):
    experts = [{"path": path, "sha256": f"{k}" * 64, "examples": 200} for k, path in enumerate(EXPERTS)]
    cost = {"forwards": 10, "validation_forwards": 4, "backwards": 0, "examples": 640, "wall_s": 1.5}
    return {
        "schema": "glue.mix/1",
        "method": method,
        "alpha": [0.5, 0.3, 0.2],
        "experts": experts,
        "output": f"runs/{label}.safetensors",
        "loss": {},
        "cost": {**cost, "peak_bytes": 2**20},
        **more,
    }


def finetune_result(label, accuracies, **more):
    """Make a result whose epochs, the prior first, have these test accuracies."""
    history = [
        {"epoch": epoch, "train_loss": 1.0, "val_loss": 2.0, "val_accuracy": 0.1, "test_accuracy": accuracy}
        for epoch, accuracy in enumerate(accuracies)
    ]
    start = "scratch" if label == "scratch" else f"runs/{label}.safetensors"
    return {"schema": "glue.finetune/1", "output": "f.safetensors", "start": start, "history": history, **more}


def search_lines(method, n_steps=4, **more):
    """Make the history of a plain search, validated at every second step."""
    probes = 1 if method == "fullgrad" else 2
    return [
        {
            "schema": "glue.history/1",
            "command": "mix",
            "method": method,
            "step": step,
            "loss": 1.0 if step else None,
            "alpha": [0.5, 0.3, 0.2],
            "val_loss": 3.0 - step / 10 if step % 2 == 0 else None,
            "forwards": probes * step + 3 * (step // 2 + 1),
            "backwards": step if method == "fullgrad" else 0,
            **more,
        }
        for step in range(n_steps + 1)
    ]


def staged_lines(method, n_steps=3, **more):
    """Make the history of a staged search with a budget: 9 forwards a step, one validation, by the guard at its end.

    The guard returns another alpha than the last step's.
    """
    common = {"schema": "glue.history/1", "command": "mix", "method": method, "backwards": 0}
    steps = [
        {**common, "step": step, "loss": 1.0, "alpha": [0.5, 0.3, 0.2], "val_loss": None, "forwards": 9 * (step + 1)}
        for step in range(n_steps + 1)
    ]
    guarded = {"loss": None, "alpha": [0.2, 0.2, 0.6], "val_loss": 0.4, "forwards": 9 * (n_steps + 2)}
    return [{**line, **more} for line in [*steps, {**steps[-1], **guarded}]]


def evaluate_result(accuracy_of, split="test"):
    results = [{"checkpoint": path, "split": split, "examples": 9, "accuracy": a} for path, a in accuracy_of.items()]
    return {"schema": "glue.evaluate/1", "results": results}


@pytest.fixture
def write(tmp_path):
    """Write a file under the test's folder: an object as JSON, a list as a history, a text as it is."""

    def put(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(f"{json.dumps(line)}\n" for line in content)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return put


@pytest.fixture
def write_runs(write, tmp_path):
    """Write runs of the first row of the paper: each seed's accuracies by label; return every file."""

    def put(accuracies_of_seed):
        for seed, accuracies_of in accuracies_of_seed.items():
            folder = f"runs/cifar10-resnet20/seed-{seed}"
            evaluated = {path: 0.2 + k / 10 for k, path in enumerate(EXPERTS)}
            write(f"{folder}/experts.json", evaluate_result(evaluated))
            for label, accuracies in accuracies_of.items():
                write(f"{folder}/{label}-finetune.json", finetune_result(label, accuracies))
                method = label if label in ("data-size", "proxy", "fullgrad") else label.split("-")[0]
                if label != "scratch":
                    write(f"{folder}/{label}-mix.json", mix_result(label, method))
                searched = method in ("fullgrad", "spsa")
                write(f"{folder}/{label}-mix.jsonl", search_lines(method) if searched else "")
        return sorted((tmp_path / "runs").rglob("*.json*"))

    return put


@pytest.fixture
def make():
    """The makers of results."""
    from types import SimpleNamespace

    return SimpleNamespace(
        experts=EXPERTS,
        mix=mix_result,
        finetune=finetune_result,
        search=search_lines,
        staged=staged_lines,
        evaluate=evaluate_result,
    )


@pytest.fixture
def notes():
    """What the work told its listener: an object to give as `progress`, with the notes' texts in `texts`."""

    class Notes:
        def __init__(self):
            self.texts = []

        def __call__(self, event):
            self.texts.append(event.text)

    return Notes()
