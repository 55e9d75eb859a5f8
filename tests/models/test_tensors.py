import pytest
import torch
from torch import nn

from glue_cli.foundation.errors import SpecError
from glue_cli.models.tensors import check_names, left_out, tensors_of


class Versioned(nn.Linear):
    """A layer whose state dict says a version, too."""

    def get_extra_state(self):
        return {"version": 2}

    def set_extra_state(self, state):
        pass


def test_an_extra_state_that_is_no_tensor_is_left_out():
    model = nn.Sequential(Versioned(2, 3), nn.BatchNorm1d(3))
    assert [*tensors_of(model)] == [name for name in model.state_dict() if "extra" not in name]
    check_names(model)


def test_names_given_by_a_hook_are_told():
    model = nn.Sequential(nn.Linear(2, 3))
    model._register_state_dict_hook(lambda module, state, prefix, local: state.update(old=state.pop("0.bias")))
    with pytest.raises(SpecError, match="has 'old', which no module"):
        check_names(model)


def test_a_frozen_part_that_a_hook_leaves_out_is_no_fault():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3))
    model._register_state_dict_hook(lambda module, state, prefix, local: [state.pop("0.weight")] and None)
    check_names(model)
    assert "0.weight" not in tensors_of(model) and torch.is_tensor(tensors_of(model)["1.weight"])


class Stateful(nn.Linear):
    """Has state beside its tensors, which torch saves with them."""

    def __init__(self, state):
        super().__init__(2, 2)
        self.state = state

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state


@pytest.mark.parametrize(
    ("state", "is_left_out"), [({"n": 1}, True), ("a", True), ({}, False), (None, False), (torch.ones(1), False)]
)
def test_state_that_is_no_tensor_is_left_out(state, is_left_out):
    assert left_out(nn.Sequential(Stateful(state))) == ["0._extra_state"] * is_left_out
