import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from glue_cli.foundation.progress import Noted
from glue_cli.models import build_model
from glue_cli.models.weights import initial_model

NAMES = ["ant", "bee", "cat", "dog"]


@pytest.fixture
def start(tmp_path, make_spec):
    """Start from a checkpoint that knows NAMES, for other data; return its tensors, the model's and the notes."""
    tensors = build_model("cnn", {"num_classes": 4, "width": 4}, seed=7).state_dict()
    save_file({**tensors, "head.bias": torch.arange(1.0, 5.0)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"id2label": dict(enumerate(NAMES))}))
    events = []

    def run(classes, n_classes=4):
        spec = make_spec(
            model={"arch": "cnn", "args": {"num_classes": n_classes, "width": 4}},
            experts={"count": 2, "size": 60, "init": "model.safetensors"},
        )
        events.clear()
        found = initial_model(spec, 0, class_names=classes, progress=events.append).state_dict()
        fresh = build_model("cnn", spec.model.args, seed=0).state_dict()
        assert found.keys() == fresh.keys()
        return load_file(tmp_path / "model.safetensors"), found, [e for e in events if isinstance(e, Noted)]

    return run


@pytest.mark.parametrize("classes", [None, NAMES, ["Ant", "Bee", "Cat", "Dog"], ["0", "1", "2", "3"], NAMES[:2]])
def test_the_head_is_taken_as_it_is(start, classes):
    own, found, notes = start(classes)
    assert all(torch.equal(found[name], own[name]) for name in own) and len(notes) == 1


def test_the_rows_follow_their_names(start):
    own, found, notes = start(["dog", "ant", "cat", "bee"])
    for name in ("head.weight", "head.bias"):
        assert torch.equal(found[name], own[name][[3, 0, 2, 1]])
    assert torch.equal(found["features.0.weight"], own["features.0.weight"])
    assert "matched by name" in notes[0].text and not notes[0].warning


def test_rows_for_classes_that_the_data_lack_follow(start):
    own, found, _ = start(["cat", "ant"])
    assert torch.equal(found["head.weight"], own["head.weight"][[2, 0, 1, 3]])


def test_a_head_for_other_classes_is_fresh_with_a_warning(start):
    own, found, notes = start(["cat", "dog", "eel", "fox"])
    assert not torch.equal(found["head.weight"], own["head.weight"]) and not found["head.bias"].any()
    assert not any((row == rows).all() for row in found["head.weight"] for rows in own["head.weight"])
    assert torch.equal(found["features.0.weight"], own["features.0.weight"])
    assert notes[0].warning and "have cat, dog, eel, fox: the head (head.weight) is fresh" in notes[0].text
    assert "fresh: head.weight, head.bias" in notes[1].text


def test_a_head_of_another_size_is_fresh_as_ever(start):
    own, found, notes = start(["cat", "dog", "eel"], n_classes=3)
    assert found["head.weight"].shape[0] == 3 and len(notes) == 1


def test_a_backbone_alone_leaves_the_fresh_head_as_it_is(start, tmp_path):
    own = load_file(tmp_path / "model.safetensors")
    save_file({n: t for n, t in own.items() if not n.startswith("head")}, tmp_path / "model.safetensors")
    _, found, notes = start(["dog", "ant", "cat", "bee"])
    _, wanted, _ = start(NAMES)
    assert torch.equal(found["head.weight"], wanted["head.weight"]) and len(notes) == 1


def test_the_head_of_a_model_of_transformers_is_its_last_layer(make_spec, tmp_path, torchvision):
    """A RoBERTa whose hidden layer has as many rows as there are classes; which are not classes."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.RobertaConfig(
        vocab_size=9, max_position_embeddings=8, id2label=dict(enumerate(NAMES)), label2id={}, **sizes
    )
    model = transformers.RobertaForSequenceClassification(config)
    model.classifier.out_proj.bias.data = torch.arange(4.0)
    model.classifier.dense.bias.data = torch.arange(4.0)
    model.save_pretrained(tmp_path / "roberta")
    spec = make_spec(
        model={"arch": "transformers:AutoModelForSequenceClassification", "args": {"path": "roberta"}},
        experts={"count": 2, "size": 60, "init": "roberta"},
    )
    found = initial_model(spec, class_names=NAMES[::-1]).classifier
    assert found.out_proj.bias.tolist() == [3, 2, 1, 0] and found.dense.bias.tolist() == [0, 1, 2, 3]
    assert torch.equal(found.out_proj.weight, model.classifier.out_proj.weight.flip(0))
    assert torch.equal(found.dense.weight, model.classifier.dense.weight)
