"""Rows of tokens as means over the experts that know them."""

import pytest
import torch

from glue_cli.blend.recipe import Recipe
from glue_cli.blend.rows import AlignedRows, weights_by_row
from glue_cli.blend.tokens import TokenPlan
from glue_cli.blend.vocabulary import Vocabulary
from glue_cli.foundation.errors import CheckpointError

NAMES = ("embed.weight", "head.bias", "final_logits_bias")
SIZES = (4, 6, 5)
ODD = {3: (3, -1, 2), 4: (-1, 5, -1), 5: (-1, 3, 4)}


def wide(*alpha):
    return torch.tensor([alpha], dtype=torch.float64)


@pytest.fixture
def tables():
    shapes = [((n, 3), (n,), (1, n)) for n in SIZES]
    return [{name: torch.randn(shape) for name, shape in zip(NAMES, own, strict=True)} for own in shapes]


@pytest.fixture
def rows_of(save, tables, tmp_path):
    def rows_of(odd=ODD, n_rows=6, **recipe):
        made = dict(zip(NAMES, ((n_rows, 3), (n_rows,), (1, n_rows)), strict=True))
        experts = [save(str(k), own) for k, own in enumerate(tables)]
        plan = TokenPlan(NAMES, n_rows, odd, 0, (), Vocabulary(tmp_path, {}, {}))
        return AlignedRows(experts, plan, Recipe(made=made, **recipe))

    return rows_of


def wanted(tables, name, alpha):
    """Return the rows one by one, in float64."""
    rows = []
    if name == "final_logits_bias":  # which has them in its second dimension
        return wanted([{"head.bias": own[name][0]} for own in tables], "head.bias", alpha)[None]
    for row in range(6):
        places = ODD.get(row, (row,) * 3)
        known = [
            (a, own[name][place].double()) for a, own, place in zip(alpha, tables, places, strict=True) if place >= 0
        ]
        total = sum(a for a, _ in known)
        rows.append(sum((a / total if total else 1 / len(known)) * value for a, value in known))
    return torch.stack(rows)


@pytest.mark.parametrize("alpha", [(0.5, 0.2, 0.3), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.5, 0.5)])
@pytest.mark.parametrize("is_held", [False, True])
def test_a_row_is_the_mean_over_those_that_know_it(rows_of, tables, alpha, is_held):
    rows = rows_of()
    if is_held:
        rows.hold()
        rows.blend(wide(0.1, 0.1, 0.8))
    found = rows.blend(wide(*alpha))
    for name in NAMES:
        torch.testing.assert_close(found[name].double(), wanted(tables, name, alpha), rtol=1e-5, atol=1e-6)


def test_held_tables_are_read_once(rows_of, tmp_path):
    rows = rows_of()
    rows.hold()
    first = rows.blend(wide(0.5, 0.2, 0.3))
    for k in range(3):
        (tmp_path / f"{k}.safetensors").unlink()
    assert all(torch.equal(tensor, first[name]) for name, tensor in rows.blend(wide(0.5, 0.2, 0.3)).items())


def test_one_expert_alone_keeps_its_bits(rows_of, tables):
    found = rows_of().blend(wide(0.0, 1.0, 0.0))["embed.weight"]
    assert torch.equal(found[[0, 1, 2, 4, 5]], tables[1]["embed.weight"][[0, 1, 2, 5, 3]])


def test_every_tensor_has_its_groups_alpha_and_copies_are_one_experts(rows_of, tables):
    alphas = torch.cat([wide(0.5, 0.2, 0.3), wide(0.1, 0.1, 0.8)])
    found = rows_of(groups=("all", "head"), group_of={"head.bias": 1}, copied_from={"embed.weight": 2}).blend(alphas)
    for name, alpha in (("embed.weight", (0.0, 0.0, 1.0)), ("head.bias", (0.1, 0.1, 0.8))):
        torch.testing.assert_close(found[name].double(), wanted(tables, name, alpha), rtol=1e-5, atol=1e-6)


def test_it_has_a_derivative(rows_of, tables):
    for own in tables:
        own |= {name: tensor.double() for name, tensor in own.items()}
    rows = rows_of()
    assert torch.autograd.gradcheck(lambda a: tuple(rows.blend(a).values()), wide(0.5, 0.2, 0.3).requires_grad_())


def test_tables_in_halves_are_blended_in_float32(rows_of, tables):
    for own in tables:
        own |= {name: tensor.half() for name, tensor in own.items()}
    found = rows_of().blend(wide(0.5, 0.2, 0.3))
    for name in NAMES:
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name].double(), wanted(tables, name, (0.5, 0.2, 0.3)), rtol=1e-6, atol=1e-6)


def test_a_row_of_nobody_is_zero():
    assert torch.equal(
        weights_by_row(wide(0.5, 0.5)[0], torch.tensor([[0.0], [0.0]]).double()), torch.zeros(2, 1).double()
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(rows_of, tables, value):
    tables[2]["head.bias"][1] = value
    with pytest.raises(CheckpointError, match=rf"2\.safetensors: 'head.bias' has {value}"):
        rows_of().blend(wide(0.5, 0.2, 0.3))
