import math

import pytest
import torch

from glue_cli.core.seeds import generator
from glue_cli.methods.directions import draw_directions


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
@pytest.mark.parametrize("zero_sum", [False, True])
@pytest.mark.parametrize("n_experts", [2, 3, 5, 16])
def test_directions_have_length_one_and_repeat_with_the_seed(kind, zero_sum, n_experts):
    found = draw_directions(1000, n_experts, kind, zero_sum=zero_sum, generator=generator(3))
    assert found.shape == (1000, n_experts) and found.dtype == torch.float64
    torch.testing.assert_close(found.norm(dim=1), torch.ones(1000, dtype=torch.float64), rtol=1e-12, atol=0)
    assert (found.sum(1).abs().max() < 1e-12) == zero_sum
    assert torch.equal(found, draw_directions(1000, n_experts, kind, zero_sum=zero_sum, generator=generator(3)))


def test_rademacher_has_entries_of_one_size():
    found = draw_directions(100, 5, "rademacher", zero_sum=False, generator=generator(0))
    torch.testing.assert_close(found.abs(), torch.full((100, 5), 1 / math.sqrt(5), dtype=torch.float64))


def test_projected_rademacher_draws_that_vanish_are_drawn_again():
    # at K = 2 half of the draws are (1, 1) or (-1, -1), whose projection is nothing
    found = draw_directions(400, 2, "rademacher", zero_sum=True, generator=generator(0))
    one = torch.tensor([1.0, -1.0], dtype=torch.float64) / math.sqrt(2)
    signs = found @ one
    torch.testing.assert_close(found, signs[:, None] * one)
    assert abs(signs.sum().item()) < 5 * math.sqrt(400)  # either one as often


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
@pytest.mark.parametrize("zero_sum", [False, True])
def test_directions_are_spread_evenly(kind, zero_sum):
    n, n_experts = 20_000, 4
    found = draw_directions(n, n_experts, kind, zero_sum=zero_sum, generator=generator(1))
    moments = torch.einsum("ni,nj->nij", found, found)
    identity = torch.eye(n_experts, dtype=torch.float64)
    wanted = (identity - 1 / n_experts) / (n_experts - 1) if zero_sum else identity / n_experts
    errors = (moments.mean(0) - wanted).abs()
    assert (errors <= 5 * moments.std(0) / math.sqrt(n) + 1e-12).all()  # E[u u^T]
    assert (found.mean(0).abs() <= 5 * found.std(0) / math.sqrt(n)).all()
