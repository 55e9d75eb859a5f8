"""The configuration of a folder that is written."""

import json

import pytest

from glue_cli.checkpoints.configuration import NO_CHANGES, Changes, configured, dtype_of
from glue_cli.foundation.errors import CheckpointError

CONFIG = {"dtype": "float32", "vocab_size": 9, "text_config": {"vocab_size": 9, "torch_dtype": "float32"}}


@pytest.fixture
def source(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path / "config.json"


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_what_says_the_same_already_is_left(source, dtype):
    assert configured(source, NO_CHANGES, dtype) is None


@pytest.mark.parametrize(
    ("changes", "dtype", "wanted"),
    [
        (NO_CHANGES, "bfloat16", {"dtype": "bfloat16", "text_config": {"vocab_size": 9, "torch_dtype": "bfloat16"}}),
        (
            Changes(n_tokens=(9, 11)),
            None,
            {"vocab_size": 11, "text_config": {"vocab_size": 11, "torch_dtype": "float32"}},
        ),
        (Changes(n_tokens=(8, 11), architecture="A"), None, {"architectures": ["A"]}),
        (Changes(unties=True), None, {"tie_word_embeddings": False}),
        (Changes(("a", "b")), None, {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}),
    ],
)
def test_what_changes(source, changes, dtype, wanted):
    assert json.loads(configured(source, changes, dtype)) == {**CONFIG, **wanted}


@pytest.mark.parametrize("text", ["{", "[]", "3", "null", "[[1, 2]]"])
def test_what_is_no_configuration_cannot_change(source, text):
    source.write_text(text)
    with pytest.raises(CheckpointError, match="is no JSON object"):
        configured(source, Changes(("a",)), None)
    assert configured(source, NO_CHANGES, "float16") is None


def test_the_dtype_of_tensors():
    assert dtype_of([("a", "BF16", ()), ("b", "I64", ())]) == "bfloat16"
    assert dtype_of([("a", "BF16", ()), ("b", "F32", ())]) is dtype_of([]) is None
