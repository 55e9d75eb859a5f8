"""How many rows blends take, and that those who share them do not disturb each other."""

from functools import partial

import pytest
import torch
from small_nets import ALPHA, ALPHAS, BOTH, N_CLASSES, batch_of, conv_net
from torch import nn
from torch.nn import functional as F

from glue_cli.foundation.errors import SpecError
from glue_cli.foundation.ranks import Ranks
from glue_cli.running.device import Compute
from glue_cli.search import points as points_module
from glue_cli.search.blend_rows import BlendRows
from glue_cli.search.reach import measure_reach

CPU = torch.device("cpu")


@pytest.fixture
def rows(monkeypatch):
    """Return the largest number of rows that blends have taken at once."""
    taken = [0]
    take = BlendRows.take

    def count(self, m):
        taken[0] = max(taken[0], m)
        return take(self, m)

    monkeypatch.setattr(BlendRows, "take", count)
    return taken


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr(points_module, "_LARGE_COLUMNS", 0)
    monkeypatch.setattr(points_module, "_PASS_BYTES", 0)


def outputs_of_all(blends):
    yield from (outputs for outputs, _ in blends.outputs(ALPHAS, BOTH, 1))
    yield from blends.towards(ALPHA, torch.arange(3), 0.1, batch_of(1), 1)


@pytest.mark.parametrize(("precision", "n_rows"), [("fp32", 2), ("bf16", 1)])
def test_a_large_model_has_few_rows_and_the_same_outputs(objective_of, rows, large, monkeypatch, precision, n_rows):
    compute = Compute(CPU, precision)
    found = list(outputs_of_all(objective_of(conv_net, compute=compute)[0]._blends))
    assert rows == [n_rows]
    monkeypatch.setattr(points_module, "_LARGE_COLUMNS", 1 << 26)
    monkeypatch.setattr(points_module, "_PASS_BYTES", 1 << 26)
    wanted = list(outputs_of_all(objective_of(conv_net, compute=compute)[0]._blends))
    assert rows == [4] and len(found) == len(wanted) == 3 * 2 + 4
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-2 if precision == "bf16" else 1e-5)


def test_blends_that_are_asked_together_take_no_more_than_a_pass_may(objective_of, rows, monkeypatch):
    blends = objective_of(conv_net)[0]._blends
    row_bytes = 4 * blends._bank.n_columns
    for pass_bytes, n_rows in ((0, 2), (3 * row_bytes - 1, 2), (3 * row_bytes, 3)):
        rows[0] = 0
        monkeypatch.setattr(points_module, "_PASS_BYTES", pass_bytes)
        assert len(list(blends.outputs(ALPHAS, BOTH, 1))) == 3 * 2
        assert rows == [n_rows]


def test_the_reach_in_bfloat16_is_measured_with_one_row_too(objective_of, rows, large):
    measure_reach(objective_of(conv_net)[0]._blends, batch_of(1))
    assert rows == [1]


def test_all_kinds_share_the_rows_and_none_is_disturbed(objective_of, rows, large):
    running = objective_of(conv_net)[0]._blends
    batch, exact = running.with_statistics("refreshed"), running.as_written({})
    half = running.with_precision("bf16")

    def passes():
        exact.load(ALPHA)
        exact.refresh(BOTH, Ranks())
        yield [outputs for outputs, _ in exact.outputs(BOTH)]
        for blends in (running, batch, half):
            yield [outputs for outputs, _ in blends.outputs(ALPHAS[:2], BOTH, 1)]

    first, again = list(passes()), list(passes())
    assert rows == [1]
    for one, other in zip(first, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    means = [torch.cat(found).float().mean().item() for found in first]
    assert len(set(means)) == 4


class Counting(nn.Module):
    """Keeps a running mean of its inputs, which it changes in its forward."""

    def __init__(self, changes):
        super().__init__()
        self.head, self.changes = nn.Linear(32, N_CLASSES), changes
        self.register_buffer("mean", torch.zeros(32))

    def forward(self, images):
        flat = images.flatten(1)
        self.changes(self, flat)
        return self.head(flat - self.mean)


def in_a_buffer(self, flat):
    self.mean.mul_(0.5).add_(flat.mean(0), alpha=0.5)


def in_a_parameter(self, flat):
    self.head.bias.mul_(0.5)


def with_instance_norm():
    norm = nn.InstanceNorm2d(2, affine=True, track_running_stats=True)
    return nn.Sequential(norm, nn.Flatten(), nn.Linear(32, N_CLASSES))


@pytest.mark.parametrize("make", [with_instance_norm, partial(Counting, in_a_buffer)])
def test_a_gradient_passes_beside_buffers_that_have_none(objective_of, make):
    blends = objective_of(make)[0]._blends
    alpha = ALPHA if blends.n_experts == ALPHA.shape[-1] else torch.full((1, blends.n_experts), 1 / blends.n_experts)
    loss, slopes = blends.gradient(alpha, batch_of(1), 0, lambda outputs, targets: F.cross_entropy(outputs, targets))
    assert loss > 0 and slopes.abs().max() > 0 and slopes.isfinite().all()


def test_a_model_that_no_gradient_passes_through_is_told(objective_of):
    blends = objective_of(partial(Counting, in_a_parameter))[0]._blends
    with pytest.raises(SpecError, match="no gradient passes through the model") as caught:
        blends.gradient(ALPHA, batch_of(1), 0, lambda outputs, targets: F.cross_entropy(outputs, targets))
    assert "--method spsa" in caught.value.hint


class LimitedWords(nn.Module):
    """Its forward passes shorten the embedding's rows in place."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(8, 6, max_norm=0.1)
        self.out = nn.Linear(6, N_CLASSES)

    def forward(self, images):
        return self.out(self.words((4 + images.flatten(1)[:, :5]).round().long().clamp(0, 7)).mean(1))


class Clamped(nn.Module):
    """Its forward passes clamp weights by their data."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(32, N_CLASSES)

    def forward(self, images):
        self.out.weight.data.clamp_(-0.1, 0.1)
        return self.out(images.flatten(1))


@pytest.mark.parametrize("net", [LimitedWords, Clamped])
def test_blends_are_moved_from_weights_that_no_forward_has_changed(objective_of, monkeypatch, net):
    found = []
    for pass_bytes in (0, 1 << 26):
        monkeypatch.setattr(points_module, "_PASS_BYTES", pass_bytes)
        blends = objective_of(net)[0]._blends
        found.append(list(blends.towards(ALPHA, torch.arange(3), 0.5, batch_of(1), 1)))
    for moved, loaded in zip(*found, strict=True):
        torch.testing.assert_close(moved, loaded, rtol=1e-5, atol=1e-6)
