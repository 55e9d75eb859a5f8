"""A model that ties its head to its embeddings, and checkpoints or adapters that have the two apart."""

import pytest
import torch
from safetensors.torch import save_file

from glue_cli.checkpoints.naming import Naming, Source
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.foundation.errors import CheckpointError
from glue_cli.models.tied import check_adapted_alike
from glue_cli.models.weights import load_model

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, *, is_tied=True):
        super().__init__()
        self.table, self.middle, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
        if is_tied:
            self.head.weight = self.table.weight
"""
TABLE, HEAD = "table.weight", "head.weight"


@pytest.fixture
def spec(make_spec, tmp_path):
    (tmp_path / "tied_net.py").write_text(NET)
    return make_spec(model={"arch": "python:tied_net:Net"})


@pytest.fixture
def checkpoint(tmp_path):
    def make(**tensors):
        state = {"middle.weight": torch.ones(4, 4), "middle.bias": torch.zeros(4)}
        save_file({**state, **{name.replace("_", "."): t for name, t in tensors.items()}}, tmp_path / "a.safetensors")
        return read_checkpoint(tmp_path / "a.safetensors")

    return make


def test_one_tensor_or_equal_ones_are_loaded(spec, checkpoint):
    table = torch.randn(7, 4)
    for tensors in (
        {"table_weight": table},
        {"head_weight": table},
        {"table_weight": table, "head_weight": table + 0},
    ):
        model = load_model(spec, checkpoint(**tensors))
        assert model.head.weight is model.table.weight and torch.equal(model.table.weight, table)


def test_tensors_that_differ_are_refused_by_name(spec, checkpoint, make_spec):
    apart = checkpoint(table_weight=torch.zeros(7, 4), head_weight=torch.ones(7, 4))
    with pytest.raises(CheckpointError, match="'table.weight' and 'head.weight' differ") as caught:
        load_model(spec, apart)
    assert "tie_word_embeddings=false" in caught.value.hint
    untied = make_spec(model={"arch": "python:tied_net:Net", "args": {"is_tied": False}})
    assert load_model(untied, apart).head.weight.sum() == 28


@pytest.mark.parametrize(
    ("on_disk", "changed", "is_refused"),
    [
        ({TABLE: TABLE, HEAD: TABLE}, [TABLE, "middle.weight"], True),  # the base has no head of its own
        ({TABLE: TABLE, HEAD: HEAD}, [HEAD], True),
        ({TABLE: TABLE, HEAD: HEAD}, [TABLE], True),
        ({TABLE: TABLE, HEAD: HEAD}, [TABLE, HEAD], False),
        ({TABLE: TABLE, HEAD: TABLE}, ["middle.weight"], False),
    ],
)
def test_adapters_change_all_that_is_tied_or_nothing(spec, checkpoint, on_disk, changed, is_refused):
    model = load_model(spec, checkpoint(table_weight=torch.zeros(7, 4)))
    naming = Naming({name: Source((other,)) for name, other in on_disk.items()}, ())
    if not is_refused:
        return check_adapted_alike(model, naming, changed)
    with pytest.raises(CheckpointError, match="table.weight, head.weight"):
        check_adapted_alike(model, naming, changed)
