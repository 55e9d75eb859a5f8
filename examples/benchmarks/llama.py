"""Random language models in Llama's shape, experts near one of them, and texts to search with: made, not trained.

The weights are drawn from a pool of normal numbers at an offset of each tensor's own, so that billions take seconds.
The distance between an expert and the base is that of fine-tuned models: a thousandth of the weights' size.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from glue_cli.checkpoints.safetensors_file import header_of, lay_out
from glue_cli.checkpoints.tensors import bytes_of
from glue_cli.foundation.output_files import write_all, writing

_POOL, _PART = 1 << 25, 1 << 22  # the pool, and what is drawn from it at once
_WIDTH, _DISTANCE = 0.02, 1e-3  # of the weights' distribution, and of an expert from the base relative to that
_WORDS = 1000  # that the texts are made of


@dataclass(frozen=True)
class Shape:
    """The size of a model; the vocabulary is not shared between embedding and head."""

    hidden: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int = 32_000

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield names and shapes in the order of the model."""
        keys = self.hidden // self.heads * self.key_heads
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}"
            yield f"{prefix}.self_attn.q_proj.weight", (self.hidden, self.hidden)
            yield f"{prefix}.self_attn.k_proj.weight", (keys, self.hidden)
            yield f"{prefix}.self_attn.v_proj.weight", (keys, self.hidden)
            yield f"{prefix}.self_attn.o_proj.weight", (self.hidden, self.hidden)
            yield f"{prefix}.mlp.gate_proj.weight", (self.inner, self.hidden)
            yield f"{prefix}.mlp.up_proj.weight", (self.inner, self.hidden)
            yield f"{prefix}.mlp.down_proj.weight", (self.hidden, self.inner)
            yield f"{prefix}.input_layernorm.weight", (self.hidden,)
            yield f"{prefix}.post_attention_layernorm.weight", (self.hidden,)
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocabulary, self.hidden)

    @property
    def n_parameters(self) -> int:
        return sum(torch.Size(shape).numel() for _, shape in self.tensors())


def write_experts(folder: Path, shape: Shape, n_experts: int) -> list[Path]:
    """Write model folders `expert-0`, `expert-1`, ..., in bfloat16, each with the config and the tokenizer."""
    pool = torch.randn(_POOL, generator=torch.Generator().manual_seed(0))
    experts = [folder / f"expert-{k}" for k in range(n_experts)]
    for k, expert in enumerate(experts):
        expert.mkdir(parents=True, exist_ok=True)
        _write_config(expert, shape)
        _write_tokenizer(expert)
        entries = lay_out([(name, "BF16", size) for name, size in shape.tensors()])
        header = header_of(entries, {"format": "pt"})
        with writing(expert / "model.safetensors") as descriptor:
            write_all(descriptor, header, 0)
            for number, entry in enumerate(entries):
                offset = len(header) + entry.offset
                for part in _weights(pool, number, k, entry.shape):
                    write_all(descriptor, bytes_of(part), offset)
                    offset += 2 * len(part)
    return experts


def write_texts(folder: Path, n_texts: int, n_words: int) -> None:
    """Write `train.jsonl`, `val.jsonl` and `test.jsonl`, each with so many texts of so many words."""
    folder.mkdir(parents=True, exist_ok=True)
    draws = random.Random(0)
    for split in ("train", "val", "test"):
        texts = (" ".join(f"w{draws.randrange(_WORDS)}" for _ in range(n_words)) for _ in range(n_texts))
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def write_spec(path: Path, expert: Path, texts: Path, *, n_train: int, n_val: int, batch_size: int) -> None:
    spec = {
        "model": {"arch": "transformers:AutoModelForCausalLM", "args": {"path": str(expert)}},
        "data": {"format": "jsonl", "root": str(texts), "target": {"train": n_train, "val": n_val}},
        "mix": {"batch_size": batch_size},
        "seed": 0,
    }
    path.write_text(json.dumps(spec))  # JSON is YAML


def _weights(pool: Tensor, number: int, expert: int, shape: tuple[int, ...]) -> Iterator[Tensor]:
    """Yield a tensor of an expert, flat and in parts: the base's, and the expert's own distance from it."""
    if len(shape) == 1:
        yield torch.ones(shape, dtype=torch.bfloat16)
        return
    n, base, own = torch.Size(shape).numel(), 7919 * number, 7919 * number + 104_729 * (expert + 1)
    for start in range(0, n, _PART):
        size = min(_PART, n - start)
        parts = (pool[(first + start) % (len(pool) - _PART) :][:size] for first in (base, own))
        yield torch.add(*parts, alpha=_DISTANCE).mul_(_WIDTH).to(torch.bfloat16)


def _write_config(folder: Path, shape: Shape) -> None:
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_heads,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"?": 0} | {f"w{i}": i + 1 for i in range(_WORDS)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
