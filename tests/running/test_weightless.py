"""Models built without values."""

from functools import partial

import pytest
import torch
from torch import nn

from glue_cli.models import ARCHITECTURES, build_model
from glue_cli.running.weightless import build_weightless, fill, without_values


class Tied(nn.Module):
    """One parameter under two names from the start, and one that is tied afterwards."""

    def __init__(self):
        super().__init__()
        shared = nn.Parameter(torch.ones(3, 3))
        self.one, self.other = shared, shared
        self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 3)
        self.head.weight = self.body.weight
        self.register_buffer("mask", torch.eye(3), persistent=False)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("scale", self.weight.detach() * 2)


class Looking(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        if self.weight.sum().item() > 2:
            self.bias = nn.Parameter(torch.zeros(3))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_only_the_values_are_missing(arch):
    whole, bare = (build_model(arch, {}, seed=0, weightless=weightless) for weightless in (False, True))
    wanted = {name: (tensor.shape, tensor.dtype) for name, tensor in whole.state_dict().items()}
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in bare.state_dict().items()} == wanted
    assert without_values(bare) == {name for name, _ in whole.named_parameters()}
    for name, buffer in whole.named_buffers():
        assert torch.equal(buffer, bare.get_buffer(name))


def test_filled_it_is_the_model_itself():
    inputs = torch.randn(2, 3, 32, 32)
    whole, bare = (build_model("resnet20", {}, seed=3, weightless=weightless).eval() for weightless in (False, True))
    fill(bare, whole.state_dict())
    assert not without_values(bare)
    assert torch.equal(whole(inputs), bare(inputs))


def test_tied_parameters_stay_tied():
    model = build_weightless(Tied)
    assert model.one is model.other and model.head.weight is model.body.weight
    fill(model, {"one": torch.full((3, 3), 2.0), "body.weight": torch.zeros(3, 3)})
    assert model.one is model.other and model.head.weight is model.body.weight
    assert (model.other == 2).all() and (model.head.weight == 0).all() and torch.equal(model.mask, torch.eye(3))
    assert without_values(model) == {"body.bias", "head.bias"}


class Projecting(nn.Module):
    """Draws its layer, a buffer that no file holds, and a class token, in this order."""

    def __init__(self, *, persistent=False, as_attribute=False):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        drawn = torch.randn(3, 3)
        if as_attribute:
            self.projection = drawn
        else:
            self.register_buffer("projection", drawn, persistent=persistent)
        self.token = nn.Parameter(torch.randn(3))


class Seeding(Projecting):
    def __init__(self):
        torch.manual_seed(3)
        super().__init__()


@pytest.mark.parametrize("make", [Projecting, partial(Projecting, as_attribute=True), Seeding])
def test_what_is_drawn_and_in_no_file_is_as_in_a_whole_model(make):
    torch.manual_seed(1)
    whole = make()
    torch.manual_seed(1)
    bare = build_weightless(make)
    assert torch.equal(bare.projection, whole.projection)


def test_what_is_drawn_and_in_a_file_needs_no_values():
    assert without_values(build_weightless(partial(Projecting, persistent=True)))


@pytest.mark.parametrize("make", [Scaled, Looking])
def test_a_model_that_needs_its_values_is_built_with_them(make):
    assert not without_values(build_weightless(make))


def test_what_is_built_afterwards_has_values():
    build_weightless(Tied)
    assert not nn.Linear(2, 2).weight.is_meta


def test_an_error_of_the_user_is_raised():
    def broken():
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        build_weightless(broken)
    assert not nn.Linear(2, 2).weight.is_meta
