"""Texts for models of an encoder and a decoder: the tokens are those of the tokenizer's own calls."""

import json

import pytest
import torch

from glue_cli.data.dataset import Replies
from glue_cli.data.loader import Examples
from glue_cli.data.seq2seq import is_encoder_decoder, tokenise_seq2seq
from glue_cli.foundation.errors import DataError, SpecError
from glue_cli.foundation.progress import silent
from glue_cli.running.device import Compute
from glue_cli.running.losses import IGNORED

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("torchvision")

PAIRS = [("the film is good", "good"), ("a book", "the book was bad"), ("very very very very bad", "bad")]


def tokenised(folder, pairs=PAIRS, max_length=None):
    replies = Replies(pairs, are_conversations=False)
    return tokenise_seq2seq(replies, folder, max_length, where="the texts", progress=silent)


@pytest.fixture
def folder(tmp_path, make_tokenizer):
    return make_tokenizer(tmp_path / "model", model_max_length=12)


def test_both_texts_are_those_of_the_tokenizer(folder):
    found = tokenised(folder, max_length=5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for rows, texts in ((found.inputs, "text"), (found.targets, "text_target")):
        given = [pair[texts == "text_target"] for pair in PAIRS]
        wanted = tokenizer(**{texts: given}, truncation=True, max_length=5)["input_ids"]
        own = [rows.values[start : start + n].tolist() for start, n in zip(rows.starts, rows.lengths, strict=True)]
        assert own == wanted
    assert found.has_decoder and found.subset(torch.tensor([1])).has_decoder and found.joined(found).has_decoder


def test_a_batch_has_the_labels_as_wide_as_the_longest(folder):
    inputs, targets = next(Examples(tokenised(folder), None, None).on(Compute(torch.device("cpu"))).in_order(3))
    assert inputs["input_ids"].shape == (3, 7) and targets.shape == inputs["labels"].shape == (3, 6)
    assert torch.equal(inputs["labels"], targets)
    assert ((targets == IGNORED).sum(1) + torch.tensor([3, 3, 6])).tolist() == [6, 6, 6]  # the longest input first


def test_batches_of_an_evaluation_are_bounded_by_what_is_written_too(tmp_path, make_tokenizer):
    folder = make_tokenizer(tmp_path / "long", model_max_length=600)
    examples = Examples(tokenised(folder, [("a", "bad " * 590)] * 20), None, None).on(Compute(torch.device("cpu")))
    sizes = [targets.numel() for _, targets in examples.in_order()]
    assert max(sizes) <= 4096 and len(sizes) > 1


def test_a_text_without_a_token_is_told(tmp_path, make_tokenizer):
    folder = make_tokenizer(tmp_path / "bare", ends=False)
    with pytest.raises(DataError, match=r"row 2 \(from 1\) has a completion that gives no token"):
        tokenised(folder, [("a book", "good"), ("a film", " ")])


def test_conversations_are_refused(folder):
    with pytest.raises(SpecError, match="are conversations") as caught:
        tokenise_seq2seq(Replies([[]], are_conversations=True), folder, None, where="the texts", progress=silent)
    assert "prompt, completion" in caught.value.hint


@pytest.mark.parametrize(("config", "wanted"), [({"is_encoder_decoder": True}, True), ({}, False), (None, False)])
def test_a_model_says_whether_it_has_a_decoder(tmp_path, config, wanted):
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    assert is_encoder_decoder(tmp_path) is wanted
    assert not is_encoder_decoder(None)
