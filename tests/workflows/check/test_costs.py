"""What a step costs, part by part, of blends whose parts take known times."""

import time
from types import SimpleNamespace

import pytest
import torch

from glue_cli.workflows.check.costs import measure_costs


class _Slow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, slope):
        time.sleep(0.03)
        return slope


class SlowBlends:
    """A blend takes 10 ms, a forward 20 ms, a backward 30 ms, and inner products 5 ms."""

    n_groups, n_experts, has_gradient = 1, 2, True

    def __init__(self, compute):
        self.compute, self.model = compute, torch.nn.Linear(1, 3)

    def as_written(self, dtypes):
        return SimpleNamespace(load=lambda alpha: time.sleep(0.01))

    def outputs(self, alphas, batches, step):
        time.sleep(0.01 * len(alphas))
        for _, targets in batches:
            for _ in alphas:
                time.sleep(0.02)
                yield torch.zeros(len(targets), 3), targets

    def gradient(self, alpha, batch, step, mean_loss):
        time.sleep(0.03)
        loss = mean_loss(_Slow.apply(self.model(batch[0])), batch[1])
        loss.backward()
        time.sleep(0.005)
        return loss.item(), alpha


class MetaBlends(SlowBlends):
    has_gradient = False

    def __init__(self, compute):
        super().__init__(compute)
        self.model = self.model.to("meta")


@pytest.fixture
def costs_of():
    batch = torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64)
    target = {"train": SimpleNamespace(on=lambda compute: SimpleNamespace(at_step=lambda *step: batch))}
    spec = SimpleNamespace(mix=SimpleNamespace(batch_size=4), loss="cross_entropy")
    compute = SimpleNamespace(device=torch.device("cpu"))
    return lambda kind: measure_costs(spec, target, kind(compute), 0)


def test_every_part_is_timed_by_itself(costs_of):
    found = costs_of(SlowBlends)
    assert 0.005 <= found.inner_products_s < found.blend_s < found.forward_s < found.backward_s
    assert found.blend_s >= 0.01 and found.forward_s >= 0.02 and found.backward_s >= 0.03
    assert found.cheaper == "spsa"
    assert found.spread_s >= 0


def test_of_blends_made_block_by_block_a_pass_is_shared_out(costs_of):
    found = costs_of(MetaBlends)
    assert found.blend_s + found.forward_s >= 0.03 and found.forward_s > 0.01
    assert found.backward_s is None and found.cheaper == "spsa" and found.spread_s is None
