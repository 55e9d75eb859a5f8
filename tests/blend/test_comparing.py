"""All that is compared of experts, in one call."""

import json

import pytest
import torch
from safetensors.torch import save_file

from glue_cli.blend.comparing import compare
from glue_cli.blend.recipe import PLAIN
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.foundation.errors import CheckpointError


@pytest.fixture
def expert(tmp_path):
    def make(name, added=(), **tensors):
        folder = tmp_path / name
        folder.mkdir()
        size = 2 + len(added)
        tensors = {"embed.weight": torch.zeros(size, 2), "w": torch.zeros(3), **tensors}
        save_file(tensors, folder / "model.safetensors")
        entries = [{"content": token, "id": number} for number, token in enumerate(added, 2)]
        tokenizer = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": entries}
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        config = {"model_type": "no such model", "vocab_size": size, "max_position_embeddings": size}
        (folder / "config.json").write_text(json.dumps(config))
        return read_checkpoint(folder)

    return make


def test_experts_that_are_alike_give_the_recipe_back(expert):
    found = compare([expert("x"), expert("y")], PLAIN, dtype_given=False)
    assert found.recipe == PLAIN and found.tokens is None and found.notes == ()


def test_aligned_tables_are_made_and_every_note_is_there(expert):
    found = compare([expert("x", ["<p>"]), expert("y", ["<q>", "<r>"])], PLAIN, dtype_given=False)
    assert found.recipe.made == {"embed.weight": (5, 2)} and found.tokens.n_rows == 5
    assert ["max_position_embeddings" in note for note in found.notes] == [True, False]
    assert ["added different tokens" in note for note in found.notes] == [False, True]


def test_what_else_differs_is_refused_all_the_same(expert):
    with pytest.raises(CheckpointError) as caught:
        compare([expert("x", ["<p>"]), expert("y", ["<q>"], w=torch.zeros(4))], PLAIN, dtype_given=False)
    assert any("'w' is [4]" in item for item in caught.value.items)
    with pytest.raises(CheckpointError, match="factors of an adapter"):
        compare([expert("z"), expert("v", **{"x.lora_down.weight": torch.zeros(2, 2)})], PLAIN, dtype_given=False)
