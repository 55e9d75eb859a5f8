import copy
import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from glue_cli.blend.spectral_norm import short_vectors
from glue_cli.checkpoints.read import read_checkpoint


def normed(new):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older of them is deprecated
        layer = (nn.utils.parametrizations.spectral_norm if new else nn.utils.spectral_norm)(nn.Linear(6, 5))
    for _ in range(20):
        layer(torch.zeros(1, 6))  # in training mode, where the vectors converge
    return nn.Sequential(layer).eval()


@pytest.fixture
def experts(tmp_path):
    def save(*models, dtype=torch.float32):
        for k, model in enumerate(models):
            save_file(
                {n: t.to(dtype).contiguous() for n, t in model.state_dict().items()}, tmp_path / f"{k}.safetensors"
            )
        return [read_checkpoint(tmp_path / f"{k}.safetensors") for k in range(len(models))]

    return save


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_vectors_that_point_apart_are_told_and_near_ones_are_not(experts, new, dtype):
    first, other = normed(new), normed(new)
    assert short_vectors(experts(first, other, dtype=dtype), apart=()) == []
    name = next(name for name in other.state_dict() if name.endswith("_v"))
    with torch.no_grad():
        other.state_dict()[name].neg_()  # the same vector, as good as before beside a negated u
    found = experts(first, other, dtype=dtype)
    [note] = short_vectors(found, apart=())
    assert f"the mean of '{name}' has a length of 0.00" in note
    assert short_vectors(found, apart=(name,)) == []


def test_the_length_is_that_of_the_mean(experts):
    first = normed(True)
    other = copy.deepcopy(first)
    vector = next(tensor for name, tensor in other.state_dict().items() if name.endswith("_u"))
    turned = torch.zeros(5)
    turned[0], turned[1] = -vector[1], vector[0]  # at a right angle in these two
    with torch.no_grad():
        expected = ((vector + turned) / 2).norm().item()
        vector.copy_(turned)
    [note] = short_vectors(experts(first, other), apart=())
    assert f"a length of {expected:.2f}" in note


def test_names_that_only_look_like_it_are_left(experts):
    model = nn.Module()
    model.bias_u = nn.Parameter(torch.ones(3))
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.bias_u.neg_()
    assert short_vectors(experts(model, other), apart=()) == []
