import copy

import pytest
import torch
from torch import nn

from glue_cli.running.batchnorm import statistics_of
from glue_cli.running.refreshing import refresh_from_few, refresh_statistics

N_CHANNELS = 16


def layer(mean, variance):
    """Return one BatchNorm in eval mode that expects inputs of this mean and variance in every channel."""
    module = nn.BatchNorm2d(N_CHANNELS, momentum=0.2).eval()
    module.running_mean.fill_(mean)
    module.running_var.fill_(variance)
    return module


def refreshed(module, *batches, by=refresh_from_few):
    module = copy.deepcopy(module)
    by(module, [(batch, None) for batch in batches], lambda model, batch: model(batch[0]))
    return module


def images(n, *, mean=0.0, sd=1.0, between=0.0, seed=0):
    """Return n images of 3x3; `between` is how far the means of the images scatter."""
    generator = torch.Generator().manual_seed(seed)
    offsets = between * torch.randn(n, N_CHANNELS, 1, 1, generator=generator)
    return mean + offsets + sd * torch.randn(n, N_CHANNELS, 3, 3, generator=generator)


def by_example(module, inputs):
    """Return the shrunk mean and variance by plain loops over channels and examples."""
    x = inputs.double().flatten(2)  # [N, C, 9]
    n = len(x)
    mean, variance = x.mean((0, 2)), x.var((0, 2), correction=0)
    before, variance_before = module.running_mean.double(), module.running_var.double()
    way = error = way_of_log = error_of_log = 0.0
    for c in range(N_CHANNELS):
        means = torch.stack([x[i, c].mean() for i in range(n)])
        squares = torch.stack([((x[i, c] - mean[c]) ** 2).mean() for i in range(n)])
        unit = (variance[c] + variance_before[c]) / 2
        way += (mean[c] - before[c]) ** 2 / unit
        error += means.var() / n / unit
        way_of_log += (variance[c].log() - variance_before[c].log()) ** 2
        error_of_log += squares.var() / n / variance[c] ** 2
    shares = [max(0.0, 1 - float(e / w)) for e, w in ((error, way), (error_of_log, way_of_log))]
    unbiased = x.var((0, 2), correction=1)
    return before + shares[0] * (mean - before), variance_before + shares[1] * (unbiased - variance_before), shares


@pytest.mark.parametrize(
    ("mean", "sd", "between"), [(0.3, 1.2, 0.5), (0.05, 1.0, 1.0), (2.0, 3.0, 0.1), (100.0, 0.5, 0.5)]
)
@pytest.mark.parametrize("n_batches", [1, 3])
def test_statistics_are_those_of_plain_loops_over_all_examples(mean, sd, between, n_batches):
    module, inputs = layer(0.0, 1.0), images(20, mean=mean, sd=sd, between=between)
    found = refreshed(module, *inputs.tensor_split(n_batches))
    wanted_mean, wanted_variance, shares = by_example(module, inputs)
    assert all(0 <= share <= 1 for share in shares)
    torch.testing.assert_close(found.running_mean.double(), wanted_mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.running_var.double(), wanted_variance, rtol=1e-3, atol=1e-5)
    assert found.num_batches_tracked == n_batches


def test_a_mean_that_only_seems_to_have_moved_stays_nearly_where_it_was():
    module = layer(0.0, 2.0)
    plain, shrunk = (
        refreshed(module, images(8, between=1.0), by=by).running_mean for by in (refresh_statistics, refresh_from_few)
    )
    assert shrunk.norm() < plain.norm() / 2


def test_a_mean_that_has_clearly_moved_is_taken():
    found = refreshed(layer(0.0, 1.0), images(8, mean=5.0, between=0.3)).running_mean
    assert ((found - 5).abs() < 0.5).all()


def test_many_examples_are_taken_as_they_are():
    module, inputs = layer(0.0, 1.5), images(4000, mean=0.5, sd=2.0, between=0.5)
    few, plain = (refreshed(module, inputs, by=by) for by in (refresh_from_few, refresh_statistics))
    for name, tensor in statistics_of(plain).items():
        torch.testing.assert_close(statistics_of(few)[name], tensor, rtol=5e-3, atol=5e-3)


def test_one_example_tells_nothing_of_its_error():
    module = layer(0.5, 2.0)
    found = refreshed(module, images(1, mean=9.0))
    assert torch.equal(found.running_mean, module.running_mean)
    assert torch.equal(found.running_var, module.running_var)


def test_constant_channels_and_equal_examples_give_finite_statistics():
    found = refreshed(layer(0.0, 1.0), torch.ones(4, N_CHANNELS, 3, 3))
    torch.testing.assert_close(found.running_mean, torch.ones(N_CHANNELS))
    assert found.running_var.isfinite().all()


def test_the_model_is_left_as_it_was_but_for_its_statistics():
    model = nn.Sequential(nn.Conv2d(2, N_CHANNELS, 1), layer(0.0, 1.0), nn.Dropout(), nn.Flatten(), nn.Linear(144, 3))
    model.eval()
    inputs = torch.randn(6, 2, 3, 3)
    found = refreshed(model, inputs)
    assert not any(module.training for module in found.modules())
    assert found[1].momentum == 0.2 and not found[1]._forward_pre_hooks
    changed = {name for name, t in found.state_dict().items() if not torch.equal(t, model.state_dict()[name])}
    assert changed == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


@pytest.mark.parametrize(("kind", "shape"), [(nn.BatchNorm1d, (12, 16)), (nn.BatchNorm3d, (12, 16, 2, 2, 2))])
def test_inputs_of_other_shapes(kind, shape):
    inputs = 3 + torch.randn(shape, generator=torch.Generator().manual_seed(1))
    module = refreshed(kind(16).eval(), inputs)
    torch.testing.assert_close(module.running_mean, inputs.transpose(0, 1).flatten(1).mean(1), rtol=0.1, atol=0.1)
