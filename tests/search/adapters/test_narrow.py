"""Layers whose weights a library has quantised, in a model that computes in float32."""

import pytest
import torch
from torch import nn

from glue_cli.search.adapters.narrow import compute_wide


class Codes(nn.Parameter):
    """As weights of a library are of a class of its own."""


def of_library(layer):
    layer.bfloat16()
    layer.weight = Codes(layer.weight, requires_grad=False)
    return layer


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_computes_as_its_library_does(bias):
    layer = of_library(nn.Linear(3, 2, bias=bias))
    inputs = torch.randn(4, 3)
    wanted = layer(inputs.bfloat16())
    compute_wide(layer)
    found = layer(inputs)
    assert found.dtype == torch.float32 and torch.equal(found, wanted.float())


def test_an_embedding_takes_numbers_of_tokens():
    layer = of_library(nn.Embedding(5, 3))
    numbers = torch.tensor([4, 0])
    wanted = layer(numbers)
    compute_wide(layer)
    assert layer(numbers).dtype == torch.float32 and torch.equal(layer(numbers), wanted.float())


def test_codes_are_left_alone_beside_a_bias_that_is_widened():
    class Coded(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = Codes(torch.ones(2, 3, dtype=torch.int8), requires_grad=False)
            self.bias = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))

        def forward(self, inputs):
            return inputs @ self.weight.float().T + self.bias

    layer = Coded()
    compute_wide(layer)
    assert layer(torch.ones(1, 3)).tolist() == [[4, 4]] and layer.weight.dtype == torch.int8
