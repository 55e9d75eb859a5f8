import threading
import warnings

import pytest
import torch
from torch import nn

from glue_cli.foundation.errors import SpecError
from glue_cli.running.copies import copy_model


def test_an_old_weight_norm_is_copied_and_computes_its_own_weight():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and in many people's models
        model = nn.utils.weight_norm(nn.Linear(3, 2))
    copied = copy_model(model)
    x = torch.randn(4, 3)
    assert torch.equal(copied(x), model(x))
    with torch.no_grad():
        copied.weight_g.mul_(2)
    assert not torch.allclose(copied(x), model(x))


def test_shared_tensors_stay_the_same_objects():
    model = nn.Linear(3, 2)
    copied = copy_model(model, [model.weight])
    assert copied.weight is model.weight and copied.bias is not model.bias


def test_what_cannot_be_copied_is_named():
    model = nn.Linear(3, 2)
    model.lock = threading.Lock()
    with pytest.raises(SpecError, match="cannot be copied.*lock") as caught:
        copy_model(model)
    assert "out of the module" in caught.value.hint
