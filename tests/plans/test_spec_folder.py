"""The same weights with another configuration or vocabulary are another model than the spec's."""

import json

import pytest
import torch
from safetensors.torch import save_file

from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.foundation.errors import CheckpointError
from glue_cli.plans.spec_folder import check_folders
from glue_cli.spec.schema import Spec

BERT = {"model_type": "bert", "hidden_act": "gelu", "num_attention_heads": 2, "id2label": {"0": "a", "1": "b"}}
WORDS = {"a": 0, "b": 1, "c": 2}


@pytest.fixture
def folder(tmp_path):
    def make(name, config=BERT, words=WORDS, added=()):
        (tmp_path / name).mkdir()
        save_file({"w": torch.zeros(2)}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        tokenizer = {"model": {"vocab": words}, "added_tokens": [{"content": t, "id": n} for t, n in added]}
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(tokenizer))
        return read_checkpoint(tmp_path / name)

    return make


def spec_of(path, arch="transformers:AutoModel", **args):
    return Spec.model_validate(
        {"model": {"arch": arch, "args": {"path": str(path), **args}}, "data": {"format": "svhn", "root": "."}}
    )


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"num_attention_heads": 4}, "num_attention_heads is 4, in the spec's model it is 2"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu', in the spec's model it is 'gelu'"),
        ({"layer_norm_eps": 1e-3}, None),  # of which the other says nothing, unless the library fills it in
        ({"id2label": {"0": "b", "1": "a"}}, None),
        ({"hidden_dropout_prob": 0.3, "dtype": "bfloat16"}, None),
    ],
)
def test_what_its_weights_compute_is_compared(folder, monkeypatch, config, named):
    monkeypatch.setattr("glue_cli.blend.configurations.import_beside_torchvision", lambda name: 1 / 0)
    base, other = folder("base"), folder("other", BERT | config)
    check_folders(spec_of(base.path), [base])
    if named is None:
        check_folders(spec_of(base.path), [base, other])
        return
    with pytest.raises(CheckpointError, match="other' computes something else than the spec's model") as caught:
        check_folders(spec_of(base.path), [base, other])
    assert caught.value.items == (named,)
    assert caught.value.hint.endswith(f"--set model.args.path={other.path}")
    check_folders(spec_of(other.path), [other])


def test_arguments_of_the_spec_count(folder):
    base, other = folder("base"), folder("other", BERT | {"hidden_act": "relu"})
    check_folders(spec_of(base.path, hidden_act="relu"), [other])
    numbers = folder("numbers", BERT | {"problem_type": "regression"})
    check_folders(spec_of(numbers.path, problem_type="single_label_classification"), [numbers])


def test_the_vocabulary_that_reads_the_texts_is_the_checkpoints(folder):
    base, longer = folder("base"), folder("longer", added=[("<x>", 3)])
    check_folders(spec_of(base.path), [longer])  # a token that the texts do not have
    swapped = folder("swapped", words={"a": 1, "b": 0, "c": 2})
    with pytest.raises(CheckpointError, match="swapped' numbers tokens otherwise than the tokenizer") as caught:
        check_folders(spec_of(base.path), [swapped])
    assert caught.value.items == ("'a', 'b'",)
    moved = folder("moved", added=[("<x>", 4)])
    with pytest.raises(CheckpointError, match="moved' numbers tokens otherwise") as caught:
        check_folders(spec_of(longer.path), [moved])
    assert caught.value.items == ("'<x>'",)


def test_models_that_are_built_otherwise_are_not_compared(folder, tmp_path):
    base, other = folder("base"), folder("other", BERT | {"hidden_act": "relu"})
    check_folders(spec_of(base.path, arch="cnn"), [other])
    save_file({"w": torch.zeros(2)}, tmp_path / "alone.safetensors")
    check_folders(spec_of(base.path), [read_checkpoint(tmp_path / "alone.safetensors")])
