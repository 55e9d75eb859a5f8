import copy

import pytest
import torch
from batchnorm_net import BATCHES, seeded
from torch import nn

from glue_cli.running.batchnorm import differentiate_statistics, statistics_of, use_batch_statistics
from glue_cli.running.refreshing import refresh_from_few, refresh_statistics


def make(kind, **options):
    torch.manual_seed(0)
    module = kind(4, **options).eval()
    with torch.no_grad():
        for tensor in [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]:
            tensor.uniform_(0.5, 2)
    return module


@pytest.mark.parametrize(
    ("kind", "shape"), [(nn.BatchNorm1d, (5, 4)), (nn.BatchNorm1d, (5, 4, 3)), (nn.BatchNorm2d, (5, 4, 3, 2))]
)
@pytest.mark.parametrize("affine", [True, False])
def test_affine_form_equals_torch_in_eval_mode(kind, shape, affine):
    module = make(kind, affine=affine, eps=1e-3)
    inputs = torch.randn(shape) * 10
    wanted = module(inputs)
    differentiate_statistics(nn.Sequential(module))
    torch.testing.assert_close(module(inputs), wanted, rtol=1e-6, atol=1e-5)


def test_the_statistics_have_a_derivative():
    module = make(nn.BatchNorm2d).double()
    differentiate_statistics(module)
    inputs = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    leaves = [module.running_mean, module.running_var, module.weight, module.bias]

    def forward(mean, var, weight, bias):
        module.running_mean, module.running_var = mean, var
        return torch.func.functional_call(module, {"weight": weight, "bias": bias}, (inputs,))

    assert torch.autograd.gradcheck(forward, [leaf.detach().clone().requires_grad_() for leaf in leaves])


def test_memory_format_and_precision_of_the_input_are_kept():
    module = make(nn.BatchNorm2d)
    inputs = torch.randn(2, 4, 3, 3).to(memory_format=torch.channels_last)
    wanted = module(inputs)
    differentiate_statistics(module)
    assert module(inputs).is_contiguous(memory_format=torch.channels_last)
    half = module(inputs.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), wanted, rtol=2e-2, atol=2e-2)


def test_without_running_statistics_nothing_changes():
    module = nn.BatchNorm1d(4, track_running_stats=False).eval()
    inputs = torch.randn(5, 4)
    wanted = module(inputs)
    differentiate_statistics(module)
    assert torch.equal(module(inputs), wanted)


# ---- statistics of batches


NAMES = ["first.1.running_mean", "first.1.running_var", "first.1.num_batches_tracked"]
NAMES += [f"last.2.{field}" for field in ("running_mean", "running_var", "num_batches_tracked")]


def test_statistics_by_their_names_in_the_state_dict():
    model = seeded()
    found, state = statistics_of(model), model.state_dict()
    assert list(found) == NAMES
    assert all(found[name].data_ptr() == state[name].data_ptr() for name in NAMES)
    assert list(statistics_of(nn.BatchNorm1d(3))) == ["running_mean", "running_var", "num_batches_tracked"]
    assert statistics_of(nn.Linear(2, 2)) == {}


def test_batch_statistics_are_those_of_train_mode():
    model, wanted = seeded(0.5), seeded().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    use_batch_statistics(model)
    for images, _ in BATCHES:
        torch.testing.assert_close(model(images), wanted(images), rtol=1e-6, atol=1e-6)
    assert (model(BATCHES[0][0]) - seeded()(BATCHES[0][0])).abs().max() > 0.1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class WithMore(nn.BatchNorm2d):
    """A BatchNorm whose forward does more than normalise, such as timm's BatchNormAct2d."""

    def __init__(self, n_channels):
        super().__init__(n_channels)
        self.drop = nn.Dropout(0.5)

    def forward(self, input):
        return torch.relu(self.drop(super().forward(input)))


def test_what_a_forward_does_beside_normalising_is_kept():
    module = make(WithMore)
    inputs = torch.randn(2, 4, 3, 3)
    wanted = module(inputs)
    leaves = dict(module.named_parameters()) | {
        name: getattr(module, name) for name in ("running_mean", "running_var")
    }
    differentiate_statistics(module)
    for leaf in leaves.values():
        leaf.requires_grad_()
    found = module(inputs)
    torch.testing.assert_close(found, wanted)
    found.square().sum().backward()
    plain = {name: leaf.detach().clone().requires_grad_() for name, leaf in leaves.items()}
    by_channel = {name: leaf[:, None, None] for name, leaf in plain.items()}
    scale = by_channel["weight"] / (by_channel["running_var"] + module.eps).sqrt()
    torch.relu((inputs - by_channel["running_mean"]) * scale + by_channel["bias"]).square().sum().backward()
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, plain[name].grad, rtol=1e-4, atol=1e-4)
    assert module.weight is leaves["weight"] and module.running_mean is leaves["running_mean"]


@pytest.mark.parametrize("by", [refresh_statistics, refresh_from_few])
def test_dropout_inside_stays_off_while_statistics_are_taken_anew(by):
    model = nn.Sequential(make(WithMore), make(nn.BatchNorm2d))
    batches = [(torch.randn(8, 4, 3, 3), None)]
    found = []
    for _ in range(2):
        again = copy.deepcopy(model)
        by(again, batches, lambda model, batch: model(batch[0]))
        found.append(statistics_of(again))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_dropout_inside_stays_off_with_batch_statistics():
    module = make(WithMore)
    use_batch_statistics(module)
    inputs = torch.randn(8, 4, 3, 3)
    assert torch.equal(module(inputs), module(inputs))
