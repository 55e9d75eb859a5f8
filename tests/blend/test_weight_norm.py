"""Weights under weight norm whose blend is not the mean of the experts' are told."""

import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from glue_cli.blend.weight_norm import weights_off_the_mean
from glue_cli.checkpoints.read import read_checkpoint


def normed(new, seed, distance, *, layer=None):
    """A model with weight norm that is so far from another of the same kind, as a share of its weights."""
    model = layer or nn.Conv1d(6, 20, 3)
    with torch.no_grad():
        for k, share in ((0, 1.0), (seed, distance)):
            draws = torch.Generator().manual_seed(k)
            drawn = share * torch.randn(model.weight.shape, generator=draws)
            model.weight.copy_(drawn if k == 0 else model.weight + drawn)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older of them is deprecated
        return nn.Sequential((nn.utils.parametrizations.weight_norm if new else nn.utils.weight_norm)(model)).eval()


@pytest.fixture
def experts(tmp_path):
    def save(*models, dtype=torch.float32):
        for k, model in enumerate(models):
            tensors = {n: t.to(dtype).contiguous() for n, t in model.state_dict().items()}
            save_file(tensors, tmp_path / f"{k}.safetensors")
        return [read_checkpoint(tmp_path / f"{k}.safetensors") for k in range(len(models))]

    return save


def directions_of(model):
    return next(t for name, t in model.state_dict().items() if name.endswith(("weight_v", "original1")))


def weight_of(model):
    with torch.no_grad():
        model(torch.zeros(1, 6, 9))  # which computes it
        return model[0].weight.detach().clone()


def farthest(models):
    """Return what torch says: the farthest row of the blend's weight from the mean of the experts' weights."""
    mean = torch.stack([weight_of(model) for model in models]).mean(0)
    states = [model.state_dict() for model in models]
    blend = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    models[0].load_state_dict(blend)
    off = (weight_of(models[0]) - mean).flatten(1).norm(dim=1) / mean.flatten(1).norm(dim=1)
    return off[:2].max().item()  # the rows that are looked at


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_near_experts_are_not_told_and_far_ones_are(experts, new, dtype):
    near = [normed(new, seed, 0.1) for seed in (1, 2, 3)]
    assert weights_off_the_mean(experts(*near, dtype=dtype), apart=()) == []
    far = [normed(new, seed, 1.5) for seed in (1, 2, 3)]
    [note] = weights_off_the_mean(experts(*far, dtype=dtype), apart=())
    assert f"come out {farthest(far):.0%} off the mean" in note or dtype == torch.bfloat16


@pytest.mark.parametrize("new", [True, False])
def test_directions_of_another_length_are_told_though_no_expert_changes(experts, new):
    one, other = normed(new, 1, 0.3), normed(new, 2, 0.3)
    assert weights_off_the_mean(experts(one, other), apart=()) == []
    before = weight_of(other)
    with torch.no_grad():
        directions_of(other).mul_(100)
    torch.testing.assert_close(weight_of(other), before)
    saved = experts(one, other)
    [note] = weights_off_the_mean(saved, apart=())
    name = next(n for n in saved[0].entries if n.endswith(("weight_v", "original1")))
    assert f"the weights of '{name}'" in note and weights_off_the_mean(saved, apart=(name,)) == []


def test_what_has_no_length_for_each_row_is_passed_over(tmp_path):
    saved = []
    for k in range(2):
        v = torch.randn(3, 2, generator=torch.Generator().manual_seed(k))
        others = {"b.weight_g": torch.ones(3), "c.weight_g": torch.ones(()), "c.weight_v": v.clone()}
        save_file({"a.weight_g": torch.ones(1, 2), "a.weight_v": v, **others}, tmp_path / f"{k}.st")
        saved.append(read_checkpoint(tmp_path / f"{k}.st"))
    assert weights_off_the_mean(saved, apart=()) == []
