"""All that is compared of experts, in one call."""

import json

import pytest
import torch
from safetensors.torch import save_file

from glue_cli.blend.comparing import compare, name_alike
from glue_cli.blend.misfit import refuse
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
    (found,) = compare(
        [expert("x", ["<p>"]), expert("y", ["<q>"], w=torch.zeros(4))], PLAIN, dtype_given=False
    ).misfits
    assert found.about == "tensors" and any("'w' is [4]" in item for item in found.items)


def test_everything_that_differs_is_listed_and_the_first_is_raised(expert):
    odd = {"w": torch.zeros(4), "x.lora_down.weight": torch.zeros(2, 2), "b.weight": torch.zeros(2, dtype=torch.int8)}
    found = compare([expert("z"), expert("v", **odd)], PLAIN, dtype_given=False).misfits
    assert [misfit.about for misfit in found] == ["adapters", "quantisation", "tensors"]
    with pytest.raises(CheckpointError, match="factors of an adapter"):
        refuse(found)
    refuse([])


# ---- names in several spellings


STATE = {"0.weight": torch.ones(2, 3), "0.bias": torch.ones(2), "1.running_mean": torch.ones(2)}
COUNTER = {"1.num_batches_tracked": torch.tensor(3)}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "net.model._orig_mod."])
@pytest.mark.parametrize("lacking", [{}, COUNTER])
def test_experts_get_the_names_of_the_first(save, prefix, lacking):
    first = save("a", STATE | COUNTER)
    other = save("b", {prefix + name: tensor for name, tensor in (STATE | COUNTER).items() if name not in lacking})
    (kept, named), notes = name_alike([first, other])
    assert kept is first and {*named.entries} == {*STATE, *COUNTER} - {*lacking}
    for name, entry in named.entries.items():
        assert entry.name == name and entry[1:] == other.entries[prefix + name][1:]
    (note,) = notes
    assert str(other.path) in note and f"'{prefix}" in note


def test_equal_names_are_left_as_they_are(save):
    experts = [save(name, STATE | COUNTER) for name in "ab"]
    named, notes = name_alike(experts)
    assert all(one is own for one, own in zip(named, experts, strict=True)) and notes == ()


@pytest.mark.parametrize(
    "other",
    [
        {"module.0.weight": torch.ones(2, 3), "module.2.weight": torch.ones(2), "module.head": torch.ones(2)},
        {f"{side}.{name}": tensor.clone() for side in ("online", "target") for name, tensor in STATE.items()},
        {"a": torch.ones(1)},
    ],
)
def test_experts_that_differ_in_more_than_spelling_keep_their_names(save, other):
    experts = [save("a", STATE), save("b", other)]
    named, notes = name_alike(experts)
    assert named[1].entries.keys() == other.keys() and notes == ()


def test_an_expert_that_has_a_head_besides_is_named_all_the_same(save):
    """Whether it can be blended is decided later, by what is missing."""
    head = {"model.head.weight": torch.ones(1)}
    experts = [save("a", STATE), save("b", {f"model.{n}": tensor.clone() for n, tensor in STATE.items()} | head)]
    (_, named), notes = name_alike(experts)
    assert {*named.entries} == {*STATE, "model.head.weight"} and len(notes) == 1
