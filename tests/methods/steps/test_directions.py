import math

import pytest
import torch

from glue_cli.foundation.seeds import generator
from glue_cli.methods.steps.directions import draw_directions


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
@pytest.mark.parametrize("zero_sum", [False, True])
@pytest.mark.parametrize("n_experts", [2, 3, 5, 16])
@pytest.mark.parametrize("n_groups", [1, 3])
def test_directions_have_length_one_and_repeat_with_the_seed(kind, zero_sum, n_experts, n_groups):
    shape = (n_groups, n_experts)
    found = draw_directions(1000, shape, kind, zero_sum=zero_sum, generator=generator(3))
    assert found.shape == (1000, *shape) and found.dtype == torch.float64
    lengths = found.square().sum((1, 2)).sqrt()
    torch.testing.assert_close(lengths, torch.ones(1000, dtype=torch.float64), rtol=1e-12, atol=0)
    assert (found.sum(2).abs().max() < 1e-12) == zero_sum  # by group
    assert torch.equal(found, draw_directions(1000, shape, kind, zero_sum=zero_sum, generator=generator(3)))


def test_rademacher_has_entries_of_one_size():
    for n_groups in (1, 2):
        shape = (n_groups, 5)
        found = draw_directions(100, shape, "rademacher", zero_sum=False, generator=generator(0))
        wanted = torch.full((100, *shape), 1 / math.sqrt(5 * n_groups), dtype=torch.float64)
        torch.testing.assert_close(found.abs(), wanted)


def test_projected_rademacher_draws_that_vanish_are_drawn_again():
    # at K = 2 half of the draws are (1, 1) or (-1, -1), whose projection is nothing
    found = draw_directions(400, (1, 2), "rademacher", zero_sum=True, generator=generator(0))[:, 0]
    one = torch.tensor([1.0, -1.0], dtype=torch.float64) / math.sqrt(2)
    signs = found @ one
    torch.testing.assert_close(found, signs[:, None] * one)
    assert abs(signs.sum().item()) < 5 * math.sqrt(400)  # either one as often


def test_a_group_whose_projected_draw_vanishes_is_kept_where_another_does_not():
    found = draw_directions(400, (2, 2), "rademacher", zero_sum=True, generator=generator(0))
    still = found.abs().sum(2) < 1e-12  # [n, G]
    assert not still.all(1).any()
    assert ((still.sum(0) - 400 / 3).abs() < 5 * math.sqrt(400 * 2 / 9)).all()  # a third of the draws each


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
@pytest.mark.parametrize("zero_sum", [False, True])
@pytest.mark.parametrize("shape", [(1, 4), (2, 2), (3, 4)])
def test_directions_are_spread_evenly(kind, zero_sum, shape):
    n, (n_groups, n_experts) = 20_000, shape
    found = draw_directions(n, shape, kind, zero_sum=zero_sum, generator=generator(1)).flatten(1)
    moments = torch.einsum("ni,nj->nij", found, found)
    within = torch.eye(n_experts, dtype=torch.float64) - zero_sum / n_experts  # the projection by group
    wanted = torch.block_diag(*[within] * n_groups) / (n_groups * (n_experts - zero_sum))
    errors = (moments.mean(0) - wanted).abs()
    assert (errors <= 5 * moments.std(0) / math.sqrt(n) + 1e-12).all()  # E[u u^T]
    assert (found.mean(0).abs() <= 5 * found.std(0) / math.sqrt(n)).all()
