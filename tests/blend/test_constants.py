"""Masks with infinities, and complex numbers: kept where all experts have the same.

After tatp22/linformer-pytorch#19, and causal masks and rotary tables that are saved with the weights.
"""

import math

import pytest
import torch

from glue_cli.blend.comparing import compare
from glue_cli.blend.constants import find_constants
from glue_cli.blend.in_memory import blend_tensors
from glue_cli.blend.misfit import refuse
from glue_cli.blend.recipe import PLAIN, Recipe
from glue_cli.foundation.errors import CheckpointError

INF = float("inf")
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def causal(n, dtype=torch.float32):
    return torch.full((n, n), -INF).triu(1).to(dtype)


@pytest.fixture
def pair(save):
    def pair(one, other=None):
        others = ((one, "a"), (one if other is None else other, "b"))
        return [save(name, {"w": torch.full((3,), float(ord(name))), **tensors}) for tensors, name in others]

    return pair


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [2, 3, 70])  # 70: the ends are a part of it
def test_masks_that_are_equal_are_found_whatever_their_dtype(pair, dtype, n):
    tensors = {
        "attn.bias": causal(n, dtype),
        "upper": causal(n, dtype).T.contiguous(),
        "logit_mask": torch.tensor([0.0, INF, -INF]).to(dtype),
    }
    assert find_constants(pair(tensors)) == {"attn.bias": 0, "upper": 0, "logit_mask": 0}


def test_what_is_no_constant(pair):
    spoilt = causal(3)
    spoilt[2, 0] = math.nan
    tensors = {
        "finite_mask": torch.zeros(3, 3),
        "nan_mask": spoilt,
        "all_nan_mask": torch.full((3,), math.nan),
        "layer.weight": causal(3),  # a matrix that went wrong
        "vector": torch.tensor([INF, 1.0]),
        "other_mask": causal(3),
        "int_mask": torch.ones(3, 3, dtype=torch.int64),
        "empty_mask": torch.zeros(0, 0),
    }
    assert find_constants(pair(tensors, {**tensors, "other_mask": causal(3).T.contiguous()})) == {}
    assert find_constants(pair({"mask": causal(3)})[:1]) == {}  # with one expert, nothing tells it from a fault
    assert find_constants(pair({"mask": causal(3)}), apart=["mask"]) == {}


def test_a_blend_keeps_the_mask_of_all_to_the_bit(pair, blend):
    experts = pair({"attn.bias": causal(5), "freqs_cis": torch.polar(torch.ones(3), torch.arange(3.0))})
    compared = compare(experts, PLAIN, dtype_given=False)
    found = blend(compared.experts, [0.5, 0.5], recipe=compared.recipe)
    assert torch.equal(found["attn.bias"], causal(5)) and torch.equal(found["w"], torch.full((3,), 97.5))
    assert torch.equal(torch.view_as_real(found["freqs_cis"]).reshape(-1)[0:2], torch.tensor([1.0, 0.0]))
    in_memory = dict(blend_tensors(compared.experts, [[0.5, 0.5]], compared.recipe))
    assert torch.equal(in_memory["attn.bias"], causal(5))


def test_infinities_that_are_asked_for_are_kept_and_nan_is_not(pair, blend):
    experts = pair({"x": torch.tensor([INF, 2.0])}, {"x": torch.tensor([1.0, -INF])})
    for k, wanted in enumerate(([INF, 2.0], [1.0, -INF])):
        assert blend(experts, [0.5, 0.5], f"from-{k}", recipe=Recipe(copied_from={"x": k}))["x"].tolist() == wanted
    with pytest.raises(CheckpointError, match="'x' has inf") as caught:
        blend(experts, [0.5, 0.5])
    assert "--exclude x --copy-from" in caught.value.hint
    with pytest.raises(CheckpointError, match="'x' has nan") as caught:
        blend(pair({"x": torch.tensor([math.nan])}), [0.5, 0.5], recipe=Recipe(copied_from={"x": 0}))
    assert "--exclude" not in caught.value.hint


def test_a_kept_tensor_that_is_too_large_for_its_dtype_is_still_told(pair, blend):
    experts = pair({"x": torch.tensor([INF, 1e6])})
    with pytest.raises(CheckpointError, match="'x' is too large for F16"):
        blend(experts, [0.5, 0.5], dtype="F16", recipe=Recipe(copied_from={"x": 0}))


def test_complex_numbers_that_differ_are_refused_with_what_mends_it(pair):
    one, other = (torch.polar(torch.ones(3), k * torch.arange(3.0)) for k in (1, 2))
    with pytest.raises(CheckpointError, match="'f' holds complex numbers and differs") as caught:
        refuse(compare(pair({"f": one}, {"f": other}), PLAIN, dtype_given=False).misfits)
    assert "--exclude f --copy-from" in caught.value.hint
    assert not compare(pair({"f": one}, {"f": other}), Recipe(copied_from={"f": 1}), dtype_given=False).misfits
