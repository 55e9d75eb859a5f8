"""What goes into a model of any library, and what comes out."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from glue_cli.foundation.errors import SpecError
from glue_cli.running.forward import outputs_of


class Returning(nn.Module):
    """Doubles its input and returns it in a wrapping of its own."""

    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, x, mask=None):
        return self.wrap(2 * x if mask is None else 2 * x * mask)


@pytest.mark.parametrize(
    "wrap", [lambda y: y, lambda y: {"logits": y}, lambda y: SimpleNamespace(logits=y, loss=None)]
)
def test_a_tensor_or_what_is_called_logits_is_the_output(wrap):
    x = torch.arange(6.0).view(2, 3)
    assert torch.equal(outputs_of(Returning(wrap), x), 2 * x)


def test_named_inputs_are_passed_by_name():
    x, mask = torch.ones(2, 3), torch.tensor([[1.0, 0, 1], [0, 1, 1]])
    assert torch.equal(outputs_of(Returning(lambda y: y), {"mask": mask, "x": x}), 2 * mask)


@pytest.mark.parametrize("wrap", [lambda y: {"hidden": y}, lambda y: [y], lambda y: SimpleNamespace(logits=None)])
def test_a_model_without_a_head_is_an_error(wrap):
    with pytest.raises(SpecError, match="wanted a tensor, or one under the name 'logits'"):
        outputs_of(Returning(wrap), torch.ones(1, 1))
