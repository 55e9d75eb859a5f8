"""Which row of the experts' embeddings is which of the blend's, decided from the folders alone.

Sources: arcee-ai/mergekit#139, #47, #169, #342, #425; unslothai/unsloth#3416 (reserved tokens that are renamed).
"""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from glue_cli.blend.misfit import refuse
from glue_cli.blend.recipe import PLAIN, Recipe
from glue_cli.blend.tokens import align_tokens
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.foundation.errors import CheckpointError

BASE = {"<unk>": 0, "good": 1, "bad": 2}
EMBED = "model.embed_tokens.weight"


@pytest.fixture
def expert(tmp_path):
    """Save an expert's folder: tables with `rows` rows, and a tokenizer with added tokens in the order of numbers."""

    def make(
        name, added=(), *, rows=None, base=BASE, config=True, tables=(EMBED, "lm_head.weight"), dtype=torch.float32
    ):
        folder = tmp_path / name
        folder.mkdir()
        tokens = [*added] if isinstance(added, dict) else added
        numbers = added if isinstance(added, dict) else {t: k for k, t in enumerate(tokens, len(base or ()))}
        rows = rows or max([*(base or {"": 0}).values(), *numbers.values()]) + 1
        tensors = {table: torch.zeros(rows, 4, dtype=dtype) for table in tables}
        save_file({**tensors, "model.norm.weight": torch.zeros(4)}, folder / "model.safetensors")
        if config:
            (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": rows}))
        if base is not None:
            entries = [{"content": t, "id": n, "special": True} for t, n in numbers.items()]
            text = json.dumps({"model": {"vocab": base}, "added_tokens": entries})
            (folder / "tokenizer.json").write_text(text)
        return read_checkpoint(folder)

    return make


def align(*experts, recipe=PLAIN, dtype_given=False):
    plan, misfits = align_tokens(experts, recipe, dtype_given=dtype_given)
    refuse(misfits)
    return plan


def test_equal_tokens_at_equal_numbers_lie_as_they_are(expert):
    assert align(expert("a", ["<x>"]), expert("b", ["<x>"])) is None
    assert align(expert("c"), expert("d", base=None)) is None  # which says nothing
    assert align(expert("e", base=None), expert("f", base=None, rows=9)) is None


def test_tokens_of_the_second_follow_behind_the_firsts(expert):
    plan = align(expert("a", ["<x>", "<y>"]), expert("b", ["<y>", "<z>"]))
    assert (plan.keeper, plan.n_rows, set(plan.names)) == (0, 6, {EMBED, "lm_head.weight"})
    assert [(token.text, token.number, token.settings["special"]) for token in plan.new] == [("<z>", 5, True)]
    assert plan.odd == {3: (3, -1), 4: (4, 3), 5: (-1, 4)}
    assert plan.vocabulary.numbers == {**BASE, "<x>": 3, "<y>": 4, "<z>": 5}


def test_an_expert_with_all_tokens_gives_the_numbers(expert):
    plan = align(expert("a", ["<x>"]), expert("b", ["<y>", "<x>"]), expert("c", ["<y>"]))
    assert (plan.keeper, plan.new, plan.n_rows) == (1, (), 5)
    assert plan.odd == {3: (-1, 3, 3), 4: (3, 4, -1)}


def test_the_note_names_tokens_that_are_not_everywhere(expert):
    experts = expert("a", ["<x>"]), expert("b", ["<y>", "<z>", "<w>"])
    note = align(*experts).note(experts)
    assert "'<x>', '<y>', '<z>' and 1 more" in note and str(experts[0].path) in note
    padded = expert("c"), expert("d", rows=8)
    assert "the blend has the most, 8" in align(*padded).note(padded)


def test_padding_stays_and_new_tokens_take_its_rows(expert):
    plan = align(expert("a", ["<x>"], rows=8), expert("b", ["<y>"], rows=8))
    assert plan.n_rows == 8 and plan.odd == {3: (3, -1), 4: (-1, 3)}
    plan = align(expert("c", rows=4), expert("d", rows=6))
    assert plan.n_rows == 6 and plan.odd == {4: (-1, 4), 5: (-1, 5)}


def test_a_token_in_what_is_padding_for_the_other(expert):
    plan = align(expert("a", rows=6), expert("b", ["<x>"], rows=6))
    assert (plan.keeper, plan.n_rows, plan.odd) == (1, 6, {3: (-1, 3)})


def test_a_reserved_token_that_one_renamed_gets_a_row_of_its_own(expert):
    plan = align(expert("a", ["<reserved 0>", "<reserved 1>"]), expert("b", ["<reserved 0>", "<mine>"]))
    assert plan.odd == {4: (4, -1), 5: (-1, 4)} and plan.new[0].text == "<mine>"


def test_tokens_without_a_row_are_known_to_nobody(expert):
    assert align(expert("a", ["<x>"], rows=3), expert("b", rows=3)) is None
    plan = align(expert("c", ["<x>"], rows=3), expert("d", ["<x>"]))
    assert plan.keeper == 1 and plan.odd == {3: (-1, 3)}


def test_every_row_of_the_blend_comes_from_somewhere(expert):
    plan = align(expert("a", ["<x>"]), expert("b", {"<y>": 3, "<x>": 7}, rows=9), expert("c", rows=5))
    assert all(max(rows) >= 0 for rows in plan.odd.values())
    sizes = (4, 9, 5)
    assert all(row < size for rows in plan.odd.values() for row, size in zip(rows, sizes, strict=True))
    assert {row for row in range(plan.n_rows) if row >= min(sizes)} <= plan.odd.keys()


def test_the_tables_are_those_whose_rows_are_as_many_as_tokens(expert):
    tables = (EMBED, "lm_head.weight", "model.position_embeddings.weight", "model.mlp.weight")
    plan = align(expert("a", ["<x>"], tables=tables), expert("b", ["<y>"], tables=tables))
    assert set(plan.names) == {EMBED, "lm_head.weight"}
    # where the experts' sizes differ, and are those that they state, the name does not matter
    plan = align(expert("c", tables=("odd",)), expert("d", ["<y>"], tables=("odd",)))
    assert plan.names == ("odd",)
    # without a configuration, the name alone tells
    plan = align(*(expert(n, [n], config=False, tables=("embed.weight", "mlp.weight")) for n in "ef"))
    assert plan.names == ("embed.weight",)


def test_tables_that_are_copied_from_one_expert_are_its_own(expert):
    experts = expert("a", ["<x>"]), expert("b", ["<y>", "<z>"])
    copied = Recipe(copied_from={EMBED: 1, "lm_head.weight": 1})
    plan = align(*experts, recipe=copied)
    assert (plan.names, plan.keeper, plan.new) == ((), 1, ())
    plan = align(*experts, recipe=Recipe(copied_from={EMBED: 1}))
    assert set(plan.names) == {EMBED, "lm_head.weight"}


# ---- refused


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"base": {"<unk>": 0, "good": 2, "bad": 1}}, "3 tokens, .* has 3; they differ in 'bad', 'good'"),
        ({"base": {**BASE, "new": 3}}, "4 tokens, .* has 3; they differ in 'new'"),
        ({"base": {"<unk>": 0, "good": 1}, "added": ["bad"]}, None),  # the same number, whichever file says so
        ({"base": {"<unk>": 0, "good": 1}, "added": ["x", "bad"]}, "they differ in 'bad'"),
        ({"base": {str(n): n for n in range(9)}}, "'0', '1', '2' and 9 more"),
    ],
)
def test_other_vocabularies_are_refused_with_their_tokens(expert, other, named):
    first, second = expert("first"), expert("second", **other)
    if named is None:
        assert align(first, second) is None
        return
    with pytest.raises(CheckpointError, match="unequal vocabularies") as caught:
        align(first, second)
    (item,) = caught.value.items
    assert str(second.path) in item and str(first.path) in item and re.search(named, item), item


@pytest.mark.parametrize(
    "files", [("vocab.json", "vocab.json"), ("vocab.txt", "vocab.txt"), ("vocab.json", "vocab.txt")]
)
def test_vocabularies_are_compared_whatever_file_keeps_them(expert, files):
    experts = expert("a", base=None), expert("b", base=None)
    for each, file, order in zip(experts, files, (["x", "y"], ["y", "x"]), strict=True):
        text = "\n".join(order) if file == "vocab.txt" else json.dumps({t: n for n, t in enumerate(order)})
        (each.path / file).write_text(text)
    with pytest.raises(CheckpointError, match="unequal vocabularies"):
        align(*experts)


def test_an_expert_that_does_not_say_its_tokens_cannot_be_aligned(expert):
    silent = expert("c", base=None)
    with pytest.raises(CheckpointError, match="do not say theirs") as caught:
        align(expert("a", ["<x>"]), expert("b", ["<y>"]), silent)
    assert caught.value.items == (str(silent.path),)


def test_without_a_table_there_is_nothing_to_align(expert):
    with pytest.raises(CheckpointError, match="none of their tensors has a row for each") as caught:
        align(expert("a", ["<x>"], tables=("odd",)), expert("b", ["<y>"], tables=("odd",)))
    assert caught.value.items[0].endswith("a: '<x>'")


def test_tables_of_unequal_dtypes_want_one_to_blend_to(expert):
    experts = expert("a", ["<x>"]), expert("b", ["<y>"], dtype=torch.float16)
    with pytest.raises(CheckpointError, match="differ in dtype") as caught:
        align(*experts)
    assert caught.value.items[1].endswith("' is F16")
    assert align(*experts, dtype_given=True) is not None
