"""The small world in which two revisions are compared: data, specs, checkpoints that no revision has made, and the
commands by which the old revision makes the others.
"""

import json
import random
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

CLASSES = ["ant", "bee", "cat", "dog", "eel", "fox"]
KNOWN = {
    "m0": ["ant", "bee", "cat", "dog"],
    "m1": ["fox", "eel", "dog", "cat", "bee"],
}  # classes of the members in heads.yaml
WORDS = ["good", "bad", "dull", "great", "book", "film", "is", "was", "very", "not"]

EXPERTS = [f"experts/expert-00{k}.safetensors" for k in range(3)]

SPECS = {
    "glue.yaml": """\
model: {arch: cnn, args: {num_classes: 6, in_channels: 1, width: 4}}
data: {format: safetensors, root: data, target: {train: 120, val: 60}}
experts: {count: 3, size: 80, dirichlet: 0.5, init: shared}
train: {epochs: 2, batch_size: 40, lr: 0.02}
mix: {steps: 12, validate_every: 4, batch_size: 30}
finetune: {epochs: 2, batch_size: 40, lr: 0.02}
precision: fp32
seed: 7
""",
    "heads.yaml": """\
model: {arch: cnn, args: {num_classes: 6, in_channels: 1, width: 4}}
data: {format: safetensors, root: data, target: {train: 120, val: 60}}
experts:
  members:
    - {name: m0, data: {format: safetensors, root: m0}, args: {num_classes: 4}}
    - {name: m1, data: {format: safetensors, root: m1}, args: {num_classes: 5}}
train: {epochs: 2, batch_size: 40, lr: 0.02}
mix: {steps: 12, validate_every: 4, batch_size: 30}
precision: fp32
""",
    "table.yaml": """\
model: {arch: "python:own:net", args: {width: 6}}
loss: mse
data: {format: "python:own:table", root: table, target: {train: 80, val: 40}}
experts: {members: [{name: one, data: {format: "python:own:table", root: table}}]}
train: {epochs: 2, batch_size: 20, lr: 0.02}
mix: {steps: 12, validate_every: 4, batch_size: 20}
finetune: {epochs: 2, batch_size: 20, lr: 0.02}
precision: fp32
""",
    "bert.yaml": """\
model: {arch: "transformers:AutoModelForSequenceClassification", args: {path: bert, num_labels: 2}}
data: {format: jsonl, root: texts, target: {train: 40, val: 20}}
experts: {count: 2, size: 20}
train: {epochs: 1, batch_size: 10, lr: 0.01}
mix: {steps: 6, validate_every: 2, batch_size: 10}
finetune: {epochs: 1, batch_size: 10, lr: 0.01}
precision: fp32
""",
}

OWN = """\
import torch
from PIL import Image
from safetensors.torch import load_file

def net(width):
    return torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.Tanh(), torch.nn.Linear(width, 1))

def table(split, root):
    if split == "val":
        return None
    file = load_file(root / f"{split}.safetensors")
    return torch.utils.data.TensorDataset(file["inputs"], file["targets"])

def sure(outputs, targets):
    return outputs.softmax(1).gather(1, targets[:, None]).mean()
"""

BERT = {
    "architectures": ["BertForSequenceClassification"],
    "hidden_act": "gelu",
    "hidden_size": 8,
    "id2label": {"0": "bad", "1": "good"},
    "intermediate_size": 8,
    "label2id": {"bad": 0, "good": 1},
    "max_position_embeddings": 12,
    "model_type": "bert",
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 16,
}

# What the old revision makes of it, in this order; a name before a colon gets the command's stdout.
COMMANDS = [
    *(f"train-expert --expert {k}" for k in range(3)),
    *(f"train-expert --spec heads.yaml --expert {k} -o heads/m{k}.safetensors" for k in range(2)),
    *(f"train-expert --spec table.yaml --expert 0 --seed {k} -o tables/e{k}.safetensors" for k in range(3)),
    *(f"train-expert --spec bert.yaml --expert {k} -o bert-{k}" for k in range(2)),
    f"mix --method uniform {' '.join(EXPERTS)} -o uniform.safetensors",
    *(
        f"runs/row/seed-{seed}/{method}-mix.json: mix --method {method} {' '.join(EXPERTS)} --seed {seed} --explain "
        f"-o runs/row/seed-{seed}/{method}.safetensors --history runs/row/seed-{seed}/{method}-mix.jsonl --json"
        for method in ("spsa", "fullgrad")
        for seed in range(2)
    ),
    *(
        f"runs/row/seed-{seed}/spsa-finetune.json: finetune runs/row/seed-{seed}/spsa.safetensors --track test --json "
        f"-o runs/row/seed-{seed}/tuned.safetensors --history runs/row/seed-{seed}/spsa-finetune.jsonl"
        for seed in range(2)
    ),
    f"runs/row/seed-0/experts.json: evaluate {' '.join(EXPERTS)} --json",
]


def write_world(folder: Path) -> None:
    """Write what no revision is needed for; always the same."""
    for name, text in SPECS.items():
        (folder / name).write_text(text)
    (folder / "own.py").write_text(OWN)
    _write_images(folder)
    _write_table(folder / "table")
    _write_bert(folder / "bert")
    _write_texts(folder / "texts")


def write_variants(folder: Path) -> None:
    """Write the experts in the other forms in which people have them, once there are experts."""
    for k, path in enumerate(EXPERTS):
        state = load_file(folder / path)
        torch.save({"state_dict": state, "epoch": 3} if k else state, folder / f"expert-{k}.pt")
        half = {name: x.bfloat16() if x.is_floating_point() else x for name, x in state.items()}
        save_file(half, folder / f"half-{k}.safetensors")
    for k in range(2):
        _write_shards(folder / f"bert-{k}", folder / f"sharded-{k}")
        _write_adapter(folder / f"lora-{k}", rank=k + 1)
    _write_broken(folder)


def _draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images(labels: Tensor, seed: int) -> Tensor:
    """Draw noisy images [n, 1, 8, 8], each of its class's pattern."""
    patterns = torch.randint(0, 120, (len(CLASSES), 1, 8, 8), generator=_draw(0), dtype=torch.uint8)
    noise = torch.randint(0, 136, (len(labels), 1, 8, 8), generator=_draw(seed), dtype=torch.uint8)
    return patterns[labels] + noise


def _write_images(folder: Path) -> None:
    for number, (split, n) in enumerate((("train", 600), ("test", 90))):
        labels = torch.randint(0, len(CLASSES), (n,), generator=_draw(10 + number))
        _write_labelled(folder / "data", split, _images(labels, 20 + number), labels, CLASSES)
        for name, known in KNOWN.items():
            own = torch.randint(0, len(known), (n // 3,), generator=_draw(30 + number))
            numbers = torch.tensor([CLASSES.index(one) for one in known])
            _write_labelled(folder / name, split, _images(numbers[own], 40 + number), own, known)
        for number, image in enumerate(_images(labels[:40], 25)):
            file = folder / "pictures" / split / CLASSES[labels[number]] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.frombytes("L", (8, 8), bytes(image.flatten().tolist())).save(file)


def _write_labelled(folder: Path, split: str, images: Tensor, labels: Tensor, classes: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    tensors = {"images": images, "labels": labels}
    save_file(tensors, folder / f"{split}.safetensors", {"class_names": json.dumps(classes)})


def _write_table(folder: Path) -> None:
    folder.mkdir()
    for number, (split, n) in enumerate((("train", 200), ("test", 50))):
        inputs = torch.rand(n, 3, generator=_draw(50 + number))
        targets = inputs @ torch.tensor([[3.0], [-1.0], [0.5]]) + 2
        save_file({"inputs": inputs, "targets": targets}, folder / f"{split}.safetensors")


def _write_bert(folder: Path) -> None:
    """Write a BERT's configuration and tokenizer; its weights are drawn by whoever trains it."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(BERT))
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    ends = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    ends.append({"SpecialToken": {"id": "[SEP]", "type_id": 0}})
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": ends,
            "pair": ends,
            "special_tokens": {t: {"id": t, "ids": [specials.index(t)], "tokens": [t]} for t in ("[CLS]", "[SEP]")},
        },
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {word: k for k, word in enumerate(specials + WORDS)},
            "unk_token": "[UNK]",
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 12}))


def _write_texts(folder: Path) -> None:
    folder.mkdir()
    draws = random.Random(0)
    for split, n in (("train", 100), ("test", 20)):
        lines = []
        for _ in range(n):
            label = draws.choice(["good", "bad"])
            said = draws.choice(["good", "great"] if label == "good" else ["bad", "dull"])
            words = [draws.choice(["book", "film"]), draws.choice(["is", "was"]), said, *draws.choices(WORDS, k=2)]
            lines.append(json.dumps({"text": " ".join(words), "label": label}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


def _write_shards(source: Path, folder: Path) -> None:
    """Write a copy of a Hugging Face folder whose weights lie in two files."""
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    tensors = load_file(source / "model.safetensors")
    names, index = sorted(tensors), {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        shard = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / shard, {"format": "pt"})
        index |= dict.fromkeys(part, shard)
    text = json.dumps({"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)


def _write_adapter(folder: Path, rank: int) -> None:
    """Write an adapter of the BERT as PEFT does: two updated layers, and a classifier of its own."""
    folder.mkdir()
    draws, prefix = _draw(60 + rank), "base_model.model."
    tensors = {f"{prefix}classifier.{name}": torch.randn(s, generator=draws) for name, s in
               (("weight", (2, 8)), ("bias", (2,)))}  # fmt: skip
    for layer in ("query", "value"):
        module = f"{prefix}bert.encoder.layer.0.attention.self.{layer}"
        tensors[f"{module}.lora_A.weight"] = torch.randn(rank, 8, generator=draws)
        tensors[f"{module}.lora_B.weight"] = torch.randn(8, rank, generator=draws)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "SEQ_CLS", "r": rank, "lora_alpha": 3, "bias": "none"}
    config |= {"target_modules": ["query", "value"], "modules_to_save": ["classifier"]}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "bert-0"}))


def _write_broken(folder: Path) -> None:
    (folder / "broken").mkdir()
    whole = (folder / EXPERTS[1]).read_bytes()
    (folder / "broken/cut.safetensors").write_bytes(whole[:-10])
    (folder / "broken/text.safetensors").write_text("these are no weights\n")
    state = load_file(folder / EXPERTS[1])
    save_file({name: x for name, x in state.items() if name != "head.bias"}, folder / "broken/lacks.safetensors")
    state["head.weight"][0, 0] = float("nan")
    save_file(state, folder / "broken/nan.safetensors")
    state["head.weight"][0, 0] = 1e30
    save_file(state, folder / "broken/huge.safetensors")
    (folder / "broken.yaml").write_text("model: {arch: cnnn, arg: 3}\nmix: {steps: 0, lr: fast}\nseed: -1\n")
