"""Related experts, unrelated ones and permuted ones, told by their weights alone."""

import pytest
import torch

from glue_cli.workflows.check.basin import find_basin
from glue_cli.workflows.check.weights import read_weights

SHAPES = {"0.weight": (16, 24), "2.weight": (20, 16), "head.weight": (8, 20), "0.bias": (16,)}


def drawn(seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def near(base, seed, by=0.3):
    return {name: tensor + by * drawn(seed)[name] for name, tensor in base.items()}


def permuted(tensors, seed=0):
    order = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
    return tensors | {
        "0.weight": tensors["0.weight"][order],
        "0.bias": tensors["0.bias"][order],
        "2.weight": tensors["2.weight"][:, order].contiguous(),
    }


@pytest.fixture
def basin_of(save):
    def find(*experts):
        checkpoints = [save(str(k), expert) for k, expert in enumerate(experts)]
        return find_basin(checkpoints, read_weights(checkpoints))

    return find


START = drawn(0)


def test_experts_from_one_start_are_one_basin_and_the_figures_are_right(basin_of):
    experts = [near(START, k) for k in (1, 2, 3)]
    found = basin_of(*experts)
    assert found.is_one and not found.unlike and not found.is_permuted and found.largest_family() == [0, 1, 2]
    rows = torch.stack([torch.cat([e[n].double().flatten() for n in SHAPES if n != "0.bias"]) for e in experts])
    size, mean = rows.square().sum(1).mean().sqrt(), rows.mean(0)
    torch.testing.assert_close(found.distances, torch.cdist(rows, rows) / size, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.mean_distances, (rows - mean).norm(dim=1) / size)
    away = torch.nn.functional.normalize(rows - mean)
    torch.testing.assert_close(found.difference_cosines, away @ away.T)


def test_experts_from_starts_of_their_own_are_not(basin_of):
    found = basin_of(drawn(1), drawn(2))
    assert found.is_known and not found.is_one and not found.is_permuted


def test_one_that_stands_apart_is_told_from_the_others(basin_of):
    found = basin_of(drawn(9), near(START, 1), near(START, 2), near(START, 3))
    assert not found.is_one and found.largest_family() == [1, 2, 3]


@pytest.mark.parametrize("seed", range(3))
def test_permuted_hidden_units_are_recognised_though_trained_on(basin_of, seed):
    found = basin_of(START, permuted(near(START, 1), seed))
    assert found.is_permuted and not found.is_one and "0.weight" in found.unlike


def test_units_permuted_in_a_small_layer_are_seen_in_the_columns_of_the_next(basin_of):
    start = START | {"0.weight": START["0.weight"][:, :9].contiguous()}
    found = basin_of(start, permuted(start))
    assert found.unlike == ("2.weight",) and found.is_permuted and not found.is_one
    before_head = start | {"head.weight": torch.randn(40, 16)}
    other = before_head | {"head.weight": before_head["head.weight"].flip(1)}
    found = basin_of(before_head, other)
    assert found.heads == found.unlike == ("head.weight",) and found.is_permuted and not found.is_one


def test_one_permuted_layer_is_not_hidden_by_the_many_others(basin_of):
    rest = {f"{k}.weight": torch.randn(32, 32, generator=torch.Generator().manual_seed(k)) for k in range(10, 20)}
    found = basin_of(START | rest, permuted(START) | rest)
    assert found.pair_cosines.min() > 0.9 and found.is_permuted and not found.is_one


def test_a_head_that_is_new_in_each_does_no_harm(basin_of):
    one, other = near(START, 1), near(START, 2) | {"head.weight": drawn(7)["head.weight"]}
    assert basin_of(one, other).unlike == ("head.weight",) and basin_of(one, other).is_one
    wide = {"head.weight": torch.randn(40, 20)}, {"head.weight": torch.randn(40, 20)}
    found = basin_of(one | wide[0], other | wide[1])
    assert found.unlike == ("head.weight",) and found.is_one
    inner = {"1.weight": wide[0]["head.weight"]}, {"1.weight": wide[1]["head.weight"]}
    assert not basin_of(one | inner[0], other | inner[1]).is_one


@pytest.mark.parametrize(
    ("names", "is_one"),
    [
        (["classifier.dense.weight", "classifier.out_proj.weight"], True),
        (["pre_classifier.weight", "classifier.weight"], True),
        (["pooler.dense.weight", "1.fc.weight"], True),
        (["fc.weight", "linear.weight"], False),
        (["classifier.weight", "body.weight"], False),
        (["layers.0.linear.weight"], False),  # there is layers.1.linear too
        (["layers.0.score.weight", "layers.1.score.weight"], False),
    ],
)
@pytest.mark.parametrize("width", [4, 40])
def test_heads_of_several_modules_are_heads_too(basin_of, names, is_one, width):
    blocks = {f"layers.{k}.{part}.weight": torch.randn(8, 8) for k in (0, 1) for part in ("linear", "score")}
    one, other = (near(START, seed) | blocks for seed in (1, 2))
    new = [{name: torch.randn(40, width if "classifier" in name else 20) for name in names} for _ in range(2)]
    found = basin_of(one | new[0], other | new[1])
    assert set(found.unlike) == set(names) and found.is_one == is_one
    assert set(found.heads) == set(names) if is_one else set(found.heads) < set(names)


def test_equal_experts_and_single_ones_are_no_trouble(basin_of):
    found = basin_of(START, START)
    assert found.is_one and found.distances.abs().max() < 1e-6
    assert basin_of(START).is_one and not basin_of(START).is_known
