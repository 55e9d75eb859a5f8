"""Heads of experts that know other classes than the target's."""

import pytest
import torch
from torch import nn

from glue_cli.blend.heads import AlignedHead
from glue_cli.foundation.errors import CheckpointError

NAMES = ["head.weight", "head.bias"]
CLASSES = ["cat", "dog", "eel", "fox"]  # the target's; nobody knows an eel
KNOWN = [["dog", "cat"], ["fox", "cow", "cat"], ["cat", "dog"]]
WIDTH = 5


@pytest.fixture
def heads():
    random = torch.Generator().manual_seed(0)
    return [
        {"head.weight": torch.randn(len(own), WIDTH, generator=random), "head.bias": torch.randn(len(own))}
        for own in KNOWN
    ]


@pytest.fixture
def head_of(save, heads):
    def head_of(seed=0, known=KNOWN, classes=CLASSES, names=NAMES):
        experts = [save(str(k), head | {"body": torch.zeros(3)}) for k, head in enumerate(heads)]
        return AlignedHead(experts, names, known, classes, seed=seed)

    return head_of


def wide(*alpha):
    return torch.tensor(alpha, dtype=torch.float64)


def test_rows_are_means_over_the_experts_that_know_the_class(head_of, heads):
    head = head_of()
    assert head.shapes == {"head.weight": (4, WIDTH), "head.bias": (4,)}
    found = head.blend(wide(0.5, 0.2, 0.3))
    weights = {"cat": (0.5, 0.2, 0.3), "dog": (0.5 / 0.8, 0, 0.3 / 0.8), "fox": (0, 1, 0)}
    for name in NAMES:
        assert found[name].dtype == torch.float64 and found[name].shape == head.shapes[name]
        for row, class_name in zip(found[name], CLASSES, strict=True):
            if class_name != "eel":
                terms = zip(weights[class_name], KNOWN, heads, strict=True)
                wanted = sum(w * h[name][own.index(class_name)].double() for w, own, h in terms if w)
                torch.testing.assert_close(row, wanted, rtol=1e-12, atol=1e-15)


def test_equal_classes_in_equal_order_give_the_plain_blend(save):
    heads = [{"head.weight": torch.randn(3, WIDTH)} for _ in range(2)]
    experts = [save(str(k), head) for k, head in enumerate(heads)]
    head = AlignedHead(experts, ["head.weight"], [CLASSES[:3]] * 2, CLASSES[:3], seed=0)
    wanted = 0.3 * heads[0]["head.weight"].double() + 0.7 * heads[1]["head.weight"].double()
    torch.testing.assert_close(head.blend(wide(0.3, 0.7))["head.weight"], wanted, rtol=1e-12, atol=1e-15)


def test_a_class_whose_knowers_have_no_weight_is_their_plain_mean(head_of, heads):
    found = head_of().blend(wide(0, 1, 0))
    for name in NAMES:
        dogs = [heads[0][name][0], heads[2][name][1]]
        torch.testing.assert_close(found[name][1], sum(dogs).double() / 2, rtol=1e-6, atol=1e-6)
        assert torch.equal(found[name][0], heads[1][name][2].double())  # the one knower with a weight
        assert torch.equal(found[name][3], heads[1][name][0].double())


def test_a_class_that_nobody_knows_is_drawn_from_the_seed(head_of):
    eels = [head_of(seed).blend(wide(*alpha)) for seed, alpha in ((0, (1, 0, 0)), (0, (0, 0.5, 0.5)), (1, (1, 0, 0)))]
    for name in NAMES:
        one, same, other = (found[name][2] for found in eels)
        assert torch.equal(one, same) and not torch.equal(one, other)
        assert one.abs().max() <= WIDTH**-0.5 and one.abs().max() > 0


def test_without_known_classes_all_is_drawn_as_linear_draws(save):
    experts = [save(str(k), {"head.weight": torch.zeros(3, 400), "head.bias": torch.zeros(3)}) for k in range(2)]
    head = AlignedHead(experts, NAMES, [[], []], [str(c) for c in range(50)], seed=0)
    assert head.shapes == {"head.weight": (50, 400), "head.bias": (50,)}
    found, linear = head.blend(wide(0.5, 0.5)), nn.Linear(400, 50)
    for name, wanted in (("head.weight", linear.weight), ("head.bias", linear.bias)):
        assert found[name].abs().max() <= 400**-0.5
        # the standard error of the deviation of n even draws is 0.45 of it over sqrt(n)
        deviation = 0.05 / 3**0.5
        for tensor in (found[name], wanted):
            assert abs(tensor.std().item() - deviation) < 5 * 0.45 * deviation / tensor.numel() ** 0.5
    assert found["head.weight"].unique().numel() == 50 * 400


@pytest.mark.parametrize("alpha", [(0.5, 0.2, 0.3), (0.05, 0.9, 0.05), (1.0, 1.0, 1.0)])
def test_the_head_has_a_derivative(head_of, alpha):
    head = head_of()
    assert torch.autograd.gradcheck(lambda a: tuple(head.blend(a).values()), wide(*alpha).requires_grad_())


def test_the_derivative_is_finite_where_knowers_have_no_weight(head_of):
    alpha = wide(0, 1, 0).requires_grad_()
    sum(tensor.sum() for tensor in head_of().blend(alpha).values()).backward()
    assert torch.isfinite(alpha.grad).all()


# ---- faults


@pytest.mark.parametrize("k", [0, 1])
def test_a_tensor_that_is_missing_is_named(head_of, heads, k):
    del heads[k]["head.bias"]
    with pytest.raises(CheckpointError, match=rf"{k}\.safetensors' lacks tensors of the head") as caught:
        head_of()
    assert caught.value.items == ("'head.bias'",)


def test_a_head_with_another_number_of_rows_than_classes(head_of):
    with pytest.raises(CheckpointError, match=r"1\.safetensors' knows 4 classes") as caught:
        head_of(known=[KNOWN[0], [*KNOWN[1], "bee"], KNOWN[2]])
    assert caught.value.items == ("'head.weight' is [3, 5], wanted [4, 5]", "'head.bias' is [3], wanted [4]")


@pytest.mark.parametrize("width", [1, WIDTH + 1])  # a single column would spread over all
def test_a_head_of_another_width_is_named(head_of, heads, width):
    heads[2]["head.weight"] = torch.zeros(2, width)
    with pytest.raises(CheckpointError, match=r"2\.safetensors' knows 2 classes") as caught:
        head_of()
    assert caught.value.items == (f"'head.weight' is [2, {width}], wanted [2, 5]",)


def test_an_expert_without_classes_needs_no_head(head_of, heads):
    heads[1].clear()
    found = head_of(known=[KNOWN[0], [], KNOWN[2]]).blend(wide(0.25, 0.5, 0.25))
    wanted = (heads[0]["head.weight"][1] + heads[2]["head.weight"][0]) / 2
    torch.testing.assert_close(found["head.weight"][0].float(), wanted)
    heads[0].clear()
    with pytest.raises(CheckpointError, match=r"0\.safetensors' lacks tensors of the head"):
        head_of(known=[[], KNOWN[1], KNOWN[2]])
