"""Experts that number the same tokens differently have no blend."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from glue_cli.blend.vocabulary import check_vocabularies
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.foundation.errors import CheckpointError

WORDS = {"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3}


@pytest.fixture
def expert(tmp_path):
    """Make a model's folder, with a tokenizer of any kind."""

    def make(name, **files):
        folder = tmp_path / name
        folder.mkdir()
        save_file({"w": torch.zeros(2)}, folder / "model.safetensors")
        for file, content in files.items():
            text = content if isinstance(content, str) else json.dumps({"model": {"vocab": content}})
            (folder / file.replace("_", ".")).write_text(text)
        return read_checkpoint(folder)

    return make


SWAPPED = {**WORDS, "good": 3, "bad": 2}
PIECES = [["<pad>", 0.0], ["good", -1.0], ["bad", -2.0]]


@pytest.mark.parametrize(
    ("file", "one", "other", "named"),
    [
        ("tokenizer_json", WORDS, SWAPPED, "'bad', 'good'"),
        ("tokenizer_json", WORDS, {**WORDS, "new": 4}, "5 tokens, .* has 4; they differ in 'new'"),
        ("tokenizer_json", PIECES, [PIECES[0], PIECES[2], PIECES[1]], "'bad', 'good'"),
        ("vocab_txt", "a\nb\nc", "a\nc\nb", "'b', 'c'"),
        ("tokenizer_json", {str(n): n for n in range(9)}, {"x": 0}, "'0', '1', '2' and 7 more"),
    ],
)
def test_unequal_vocabularies_are_named(expert, file, one, other, named):
    first, second = expert("first", **{file: one}), expert("second", **{file: other})
    check_vocabularies([first, first])
    with pytest.raises(CheckpointError, match="unequal vocabularies") as caught:
        check_vocabularies([first, second])
    (item,) = caught.value.items
    assert str(second.path) in item and str(first.path) in item
    assert re.search(named, item)


def test_equal_vocabularies_in_files_of_two_kinds_fit(expert):
    in_json = expert("json", tokenizer_json={"a": 0, "b": 1})
    in_lines = expert("lines", vocab_txt="a\nb\n")
    check_vocabularies([in_json, in_lines])


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"model": {}}', '{"model": {"vocab": 5}}', '{"model": {"vocab": [5]}}']
)
def test_what_is_no_vocabulary_is_passed_over(expert, text):
    check_vocabularies([expert("whole", tokenizer_json=WORDS), expert("odd", tokenizer_json=text), expert("none")])
