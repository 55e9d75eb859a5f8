"""Modules that keep values of their weights until train()."""

import copy

import torch
from torch import nn

from glue_cli.running.forgetting import let_forget


class Keeping(nn.Module):
    """Keeps its weight's double until train(), which also unfreezes it."""

    def __init__(self):
        super().__init__()
        self.weight, self.norm, self.kept = nn.Parameter(torch.ones(2), requires_grad=False), nn.BatchNorm1d(2), None

    def train(self, mode=True):
        self.kept = None if mode else self.kept
        self.weight.requires_grad_(mode)
        return super().train(mode)

    def forward(self, inputs):
        if self.kept is None:
            self.kept = 2 * self.weight.detach()
        return inputs * self.kept


@torch.no_grad()
def test_a_copy_of_a_model_forgets_what_its_weights_were():
    model = nn.Sequential(Keeping()).eval()
    let_forget(model)
    copied, inputs = copy.deepcopy(model), torch.ones(3, 2)
    assert torch.equal(copied(inputs), 2 * inputs)
    copied[0].weight.fill_(5)
    assert torch.equal(copied(inputs), 10 * inputs) and torch.equal(model(inputs), 2 * inputs)


def test_flags_stay_as_they_are():
    model = Keeping().eval()
    model.norm.train()
    model.weight.requires_grad_(True)
    let_forget(model)
    model(torch.ones(3, 2))
    assert not model.training and model.norm.training and model.weight.requires_grad


def test_other_modules_are_left_alone():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    let_forget(model)
    assert not any(module._forward_pre_hooks for module in model.modules())
