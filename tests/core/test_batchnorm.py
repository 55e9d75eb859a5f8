import pytest
import torch
from torch import nn

from glue_cli.core.batchnorm import differentiate_statistics


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
