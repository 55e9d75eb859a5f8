"""What a mix of experts with different added tokens asks of its output and of its spec."""

import json

import pytest
import torch

from glue_cli.blend.tokens import TokenPlan
from glue_cli.blend.vocabulary import Vocabulary
from glue_cli.checkpoints.destination import Destination
from glue_cli.checkpoints.tokenizer_files import AddedToken
from glue_cli.foundation.errors import CheckpointError, SpecError, UsageError
from glue_cli.plans.mix_tokens import check_tokenizer_is_written, spec_with_rows

BASE = {"a": 0, "b": 1}


@pytest.fixture
def tokens(tmp_path):
    """Two words and an added token, in five rows."""

    def make(new=()):
        added = tuple(AddedToken(text, number, {}) for number, text in enumerate(new, 3))
        return TokenPlan((), 5, {}, 0, added, Vocabulary(tmp_path, {"tokenizer.json": BASE}, {"<x>": 2}))

    return make


@pytest.fixture
def folder(tmp_path):
    """Make a model's folder with a configuration and a tokenizer."""

    def make(config, vocabulary=BASE):
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / "config.json").write_text(json.dumps(config))
        (tmp_path / "model" / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
        return tmp_path / "model"

    return make


def destination(tmp_path, *companions):
    copies = tuple((tmp_path / name, tmp_path / "out" / name) for name in companions)
    return Destination(tmp_path / "out", (), (tmp_path / "out/model.safetensors",), None, copies)


def test_a_tokenizer_that_some_expert_has_needs_no_writing(save, tmp_path, tokens):
    check_tokenizer_is_written(
        tokens(), [], Destination(tmp_path / "x.safetensors", (), (tmp_path / "x.safetensors",))
    )


def test_a_tokenizer_that_nobody_has_is_written_where_it_can_be(save, tmp_path, tokens):

    plan, experts = tokens(["<y>", "<z>"]), [save("e", {"w": torch.zeros(1)})]
    check_tokenizer_is_written(plan, experts, destination(tmp_path, "config.json", "tokenizer.json"))
    with pytest.raises(CheckpointError, match="lacks '<y>', '<z>'"):
        check_tokenizer_is_written(plan, experts, destination(tmp_path, "config.json", "vocab.txt"))
    file = tmp_path / "x.safetensors"
    with pytest.raises(UsageError, match="lacks '<y>', '<z>'"):
        check_tokenizer_is_written(plan, experts, Destination(file, (), (file,)))


def spec_of(make_spec, arch="transformers:AutoModel", **args):
    return make_spec(model={"arch": arch, "args": args})


def test_the_model_gets_the_blends_rows(make_spec, tokens, folder):
    spec = spec_of(make_spec, path=str(folder({"vocab_size": 4})))
    found = spec_with_rows(spec, tokens())
    assert found.model.args == {**spec.model.args, "vocab_size": 5}
    assert found.model_copy(update={"model": spec.model}) == spec


def test_what_the_spec_says_or_another_library_builds_stays(make_spec, tokens, folder):
    path = str(folder({"vocab_size": 4}))
    for spec in (
        spec_of(make_spec, path=path, vocab_size=7),
        spec_of(make_spec, arch="cnn", num_classes=4),
        spec_of(make_spec, path=str(folder({"text_config": {"vocab_size": 4}}))),
    ):
        assert spec_with_rows(spec, tokens()) == spec


@pytest.mark.parametrize(
    ("vocabulary", "odd"),
    [({**BASE, "<x>": 3}, ["'<x>'"]), ({"a": 1, "b": 0}, ["'a'", "'b'"]), ({**BASE, "c": 2}, ["'c'"])],
)
def test_a_tokenizer_with_other_numbers_is_refused(make_spec, tokens, folder, vocabulary, odd):
    spec = spec_of(make_spec, path=str(folder({"vocab_size": 4}, vocabulary)))
    with pytest.raises(SpecError, match="numbers tokens otherwise than the blend") as caught:
        spec_with_rows(spec, tokens())
    assert list(caught.value.items) == odd
