"""BatchNorm's statistics from data: those of torch, whoever takes them."""

import copy

import pytest
import torch
from batchnorm_net import BATCHES, seeded
from in_threads import by_several
from torch import nn

from glue_cli.foundation.errors import DataError
from glue_cli.running.batchnorm import statistics_of
from glue_cli.running.forward import outputs_of
from glue_cli.running.refreshing import SumOverBatches, refresh_from_few, refresh_statistics


def refresh(model):
    refresh_statistics(model, BATCHES, lambda model, batch: outputs_of(model, batch[0]))
    return model


def test_refreshed_statistics_equal_those_of_torch():
    ours, torchs = refresh(seeded()), seeded()
    torch.optim.swa_utils.update_bn([images for images, _ in BATCHES], torchs)
    for name, tensor in torchs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=1e-6, atol=1e-7)
    assert not torch.equal(ours.first[1].running_mean, seeded().first[1].running_mean)


def test_refreshing_leaves_dropout_off_and_eval_mode_on():
    noisy, quiet = refresh(seeded(0.5)), refresh(seeded())
    for name, tensor in statistics_of(quiet).items():
        assert torch.equal(statistics_of(noisy)[name], tensor)
    assert not any(module.training for module in noisy.modules())
    assert all(parameter.grad is None for parameter in noisy.parameters())


def test_refreshing_twice_changes_nothing_more():
    once, twice = refresh(seeded()), refresh(refresh(seeded()))
    for name, tensor in statistics_of(once).items():
        assert torch.equal(statistics_of(twice)[name], tensor)


def test_refreshing_leaves_the_momentum_of_later_training():
    assert [module.momentum for module in refresh(seeded()).modules() if isinstance(module, nn.BatchNorm2d)] == [
        0.1,
        0.1,
    ]


@pytest.mark.parametrize("by", [refresh_statistics, refresh_from_few])
@pytest.mark.parametrize("n_batches", [1, 3, 64, 130])
def test_the_statistics_have_the_same_bits_whoever_shares_the_batches(n_batches, by):
    draws = torch.Generator().manual_seed(1)
    batches = [(torch.randn(3, 2, 4, 4, generator=draws) + number % 7, None) for number in range(n_batches)]

    start = seeded()  # threads share torch's random state

    def taken(ranks):
        model, seen = copy.deepcopy(start), []

        def forward(model, batch):
            seen.append(batch)
            return outputs_of(model, batch[0])

        by(model, iter(batches), forward, ranks)
        return statistics_of(model), len(seen)

    wanted, n_seen = taken(None)
    assert n_seen == n_batches == wanted["first.1.num_batches_tracked"]
    if by is refresh_statistics:
        torchs = seeded()
        torch.optim.swa_utils.update_bn([batch for batch, _ in batches], torchs)
        torch.testing.assert_close(wanted, statistics_of(torchs), rtol=1e-5, atol=1e-5)
    for n in (2, 3, 5):
        found = by_several(n, taken)
        assert sum(seen for _, seen in found) == n_batches and max(seen for _, seen in found) <= -(-n_batches // n) + 2
        assert all(torch.equal(own[name], wanted[name]) for own, _ in found for name in wanted)


def test_rows_are_added_in_float64_in_the_order_of_the_batches():
    rows = SumOverBatches()
    for own in rows.rounds((value, None) for value in [1e8, 1.0, -1e8, 1.0]):  # in float32, 1e8 swallows the 1
        for value, _ in own:
            rows.add(torch.tensor([value]))
    assert rows.total.item() == 2 and rows.n == 4


class Routed(nn.Module):
    """Its first layer sees every batch, the second those of positive mean, the third runs twice, the fourth never."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.BatchNorm1d(2) for _ in range(4))

    def forward(self, inputs):
        outputs = self.layers[0](inputs)
        if inputs.mean() > 0:
            outputs = self.layers[1](inputs)
        return self.layers[2](inputs) + self.layers[2](inputs + 1) + outputs


def test_layers_that_run_in_some_batches_have_the_statistics_of_those():
    draws = torch.Generator().manual_seed(0)
    batches = [(torch.randn(8, 2, generator=draws) + shift, None) for shift in (3, -3, 5, -1, 2)]
    ours, torchs = Routed().eval(), Routed()
    before = ours.layers[3].running_mean.fill_(7.0).clone()
    refresh_statistics(ours, batches, lambda model, batch: model(batch[0]))
    torch.optim.swa_utils.update_bn([inputs for inputs, _ in batches], torchs)
    for n in range(3):
        for name, tensor in torchs.layers[n].state_dict().items():
            torch.testing.assert_close(ours.layers[n].state_dict()[name], tensor, rtol=1e-6, atol=1e-6)
    assert ours.layers[1].running_mean.mean() > 2
    assert torch.equal(ours.layers[3].running_mean, before)


@pytest.mark.parametrize("by", [refresh_statistics, refresh_from_few])
def test_one_value_a_channel_has_no_statistics(by):
    with pytest.raises(DataError, match="one value a channel") as caught:
        by(nn.Sequential(nn.BatchNorm1d(2)).eval(), [(torch.ones(1, 2), None)], lambda model, batch: model(batch[0]))
    assert "--batchnorm average" in caught.value.hint
