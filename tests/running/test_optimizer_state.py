import copy

import pytest
import torch

from glue_cli.running.optimizer_state import optimizer_state, restore_optimizer

OPTIMIZERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1),
    "fused": lambda parameters: torch.optim.Adam(parameters, lr=0.1, fused=True),
    "plain": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
}


def step(parameters, optimizer, number):
    for parameter in parameters:
        parameter.grad = (parameter.detach() - 1) * number
    optimizer.step()


@pytest.mark.parametrize("n_before", [0, 1, 3])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_another_optimizer_goes_on_in_its_place(make, n_before):
    parameters = [torch.zeros(3), torch.ones(2, 2) * 3]
    optimizer = make(parameters)
    for number in range(n_before):
        step(parameters, optimizer, number + 1)
    kept = copy.deepcopy(optimizer_state(optimizer))
    others = [parameter.clone() for parameter in parameters]
    other = make(others)
    restore_optimizer(other, kept)
    for number in range(3):
        step(parameters, optimizer, number + 2)
        step(others, other, number + 2)
    assert all(torch.equal(one, two) for one, two in zip(parameters, others, strict=True))


def test_what_is_remembered_is_flat_and_not_shared_with_who_goes_on():
    parameters = [torch.zeros(3)]
    optimizer = OPTIMIZERS["adam"](parameters)
    assert optimizer_state(optimizer) == {}
    step(parameters, optimizer, 1)
    state = optimizer_state(optimizer)
    assert set(state) == {"parameters.0.step", "parameters.0.exp_avg", "parameters.0.exp_avg_sq"}
    others = [torch.zeros(3)]
    other = OPTIMIZERS["adam"](others)
    restore_optimizer(other, state)
    before = {name: tensor.clone() for name, tensor in state.items()}
    step(others, other, 2)
    assert all(torch.equal(state[name], before[name]) for name in state)


def test_moments_lie_as_their_parameters_do():
    """A fused step goes by memory: moments of another layout would be those of other elements."""
    parameters = [torch.arange(48.0).view(2, 3, 4, 2).to(memory_format=torch.channels_last)]
    optimizer = OPTIMIZERS["fused"](parameters)
    step(parameters, optimizer, 1)
    state = {name: value.clone().contiguous() for name, value in optimizer_state(optimizer).items()}  # as files do
    others = [parameter.clone() for parameter in parameters]
    again = OPTIMIZERS["fused"](others)
    restore_optimizer(again, state)
    step(parameters, optimizer, 2)
    step(others, again, 2)
    assert others[0].is_contiguous(memory_format=torch.channels_last) and torch.equal(parameters[0], others[0])
