import shlex

import pytest
import torch

from glue_cli.blend.compatibility import copied_misfits, find_differences, tensor_misfits
from glue_cli.blend.misfit import refuse
from glue_cli.blend.rules import plan_recipe
from glue_cli.blend.tensor_rules import TensorRules
from glue_cli.foundation.errors import CheckpointError

FIRST = {"w": torch.zeros(2, 3), "b": torch.zeros(3), "ids": torch.arange(3)}


def test_alike(save):
    experts = [save(name, FIRST) for name in "abc"]
    assert find_differences(experts) == []
    refuse(tensor_misfits(experts, dtype_given=False))
    refuse(tensor_misfits(experts[:1], dtype_given=False))


def test_every_difference_is_listed_with_its_file(save):
    other = {"w": torch.zeros(3, 2), "b": torch.zeros(3, dtype=torch.float16), "extra": torch.zeros(1)}
    experts = [save("a", FIRST), save("b", other), save("c", FIRST | {"w": torch.zeros(6)})]
    kinds = [(difference.kind, difference.name) for difference in find_differences(experts)]
    assert sorted(kinds) == [
        ("dtype", "b"),
        ("missing", "ids"),
        ("shape", "w"),
        ("shape", "w"),
        ("unexpected", "extra"),
    ]
    with pytest.raises(CheckpointError, match="not of one architecture") as caught:
        refuse(tensor_misfits(experts, dtype_given=False))
    assert len(caught.value.items) == 5
    assert any("c.safetensors: 'w' is [6], in" in item and "it is [2, 3]" in item for item in caught.value.items)


def test_float_dtypes_may_differ_when_one_is_given(save):
    experts = [save("a", FIRST), save("b", FIRST | {"b": torch.zeros(3, dtype=torch.bfloat16)})]
    with pytest.raises(CheckpointError, match="differ in dtype") as caught:
        refuse(tensor_misfits(experts, dtype_given=False))
    assert "--dtype float32" in caught.value.hint
    refuse(tensor_misfits(experts, dtype_given=True))


@pytest.mark.parametrize("dtype_given", [False, True])
def test_other_dtypes_may_not(save, dtype_given):
    experts = [save("a", FIRST), save("b", FIRST | {"ids": torch.arange(3, dtype=torch.int32)})]
    with pytest.raises(CheckpointError) as caught:
        refuse(tensor_misfits(experts, dtype_given=dtype_given))
    assert "'ids' is I32" in caught.value.items[0] and "--dtype" not in caught.value.hint


def test_a_dtype_that_differs_in_one_expert_and_is_missing_in_another(save):
    experts = [save("a", FIRST), save("b", FIRST | {"w": FIRST["w"].half()}), save("c", {"b": FIRST["b"]})]
    with pytest.raises(CheckpointError) as caught:
        refuse(tensor_misfits(experts, dtype_given=True))
    found = sorted(item.partition(": ")[2] for item in caught.value.items)
    assert found[::2] == ["'ids' is missing", "'w' is missing"] and found[1].startswith("'w' is F16")


LAYERS = {f"layers.{n}.{part}": torch.zeros(2) for n in range(4) for part in ("weight", "bias")}


@pytest.mark.parametrize(
    ("more", "options"),
    [
        ({"criterion.weight": torch.ones(3)}, "--exclude criterion.weight --copy-from"),
        ({"acc.correct": torch.tensor(3), "acc.total": torch.tensor(4)}, "--exclude acc.correct --exclude acc.total"),
        ({f"metrics.{n}.total": torch.tensor(3.0) for n in (1, 2)}, "--exclude '*.total' --copy-from"),
        ({"odd[0]": torch.ones(3)}, "--exclude 'odd[[]0]' --copy-from"),
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_a_few_tensors_are_refused_with_the_options_that_mend_it(save, more, options, place):
    """After Lightning#4361 and #4666, whose metrics keep states, and open-metric-learning#430."""
    experts = [save(name, {**LAYERS, **(more if k == place else {})}) for k, name in enumerate("ab")]
    with pytest.raises(CheckpointError, match="the experts differ in these tensors") as caught:
        refuse(tensor_misfits(experts, dtype_given=False))
    assert options in caught.value.hint and len(caught.value.items) == len(more)
    excluded = tuple(shlex.split(caught.value.hint.partition(": ")[2]))
    patterns = tuple(excluded[n + 1] for n, word in enumerate(excluded) if word == "--exclude")
    recipe, _ = plan_recipe(experts, TensorRules(exclude=patterns, copy_from=excluded[-1]), {})
    assert set(recipe.copied_from) == set(more)
    refuse(tensor_misfits(experts, dtype_given=False, apart=recipe.apart))
    assert {name for name, *_ in recipe.describe(experts)} == experts[0].entries.keys()


@pytest.mark.parametrize(
    "other",
    [
        {f"layers.{n}.{part}": torch.zeros(2) for n in range(5) for part in ("weight", "bias")},  # a layer more
        {name: tensor for name, tensor in LAYERS.items() if name != "layers.3.bias"},
        {f"x{n}": torch.zeros(2) for n in range(8)},
        {**LAYERS, "layers.0.weight": torch.zeros(1, 1, 3)},
        {**LAYERS, **{f"extra{n}": torch.zeros(2) for n in range(3)}},
    ],
)
def test_another_architecture_is_called_so(save, other):
    with pytest.raises(CheckpointError, match="not of one architecture"):
        refuse(tensor_misfits([save("a", LAYERS), save("b", other)], dtype_given=False))


def test_positions_for_images_of_another_size(save):
    experts = [save(str(n), {**LAYERS, "pos_embed": torch.zeros(1, n, 4)}) for n in (5, 10)]
    with pytest.raises(CheckpointError, match="differ in these tensors") as caught:
        refuse(tensor_misfits(experts, dtype_given=False))
    assert "--exclude pos_embed --copy-from" in caught.value.hint


def test_tensors_that_are_copied_and_differ(save):
    experts = [save(name, {"w": torch.ones(2), "ids": torch.tensor([k])}) for k, name in enumerate("ab")]
    with pytest.raises(CheckpointError, match="'ids' is not floating point and differs") as caught:
        refuse(copied_misfits(experts))
    assert "--exclude ids --copy-from" in caught.value.hint and "dequantise" not in caught.value.hint


def test_differing_codes_of_an_unknown_format_are_not_to_be_copied(save):
    experts = [save(str(k), {"w": torch.ones(2), "codes": torch.full((4, 4), k)}) for k in range(2)]
    with pytest.raises(CheckpointError, match="'codes' is not floating point and differs") as caught:
        refuse(copied_misfits(experts))
    assert "dequantise the experts instead" in caught.value.hint


@pytest.mark.parametrize(
    "shapes",
    [
        {"a.weight": (0,), "a.bias": (4,)},  # small ones are whole in every process
        {"a.weight": (0,), "a.bias": (0,), "scale": (0,)},
        {"head.prompt": (0, 4)},
    ],
)
def test_what_zero_3_leaves_in_each_process_is_no_model(save, shapes):
    """transformers#20082, DeepSpeed#2413: save_pretrained without gathering."""
    experts = [save(str(k), {name: torch.ones(shape) for name, shape in shapes.items()}) for k in range(2)]
    with pytest.raises(CheckpointError, match="weights without numbers, as DeepSpeed's ZeRO-3") as caught:
        refuse(tensor_misfits(experts, dtype_given=False))
    assert f"'{next(iter(shapes))}'" in caught.value.items and "zero_to_fp32.py" in caught.value.hint


def test_empty_tensors_of_other_kinds_are_left_alone(save):
    marked = LAYERS | {"v_pred": torch.ones(0), "extra.weight": torch.ones(0, 4)}  # a marker, and no inputs
    assert tensor_misfits([save("a", marked), save("b", marked)], dtype_given=False) == []


def test_checkpoints_without_tensors_are_told(save):
    with pytest.raises(CheckpointError, match=r"b\.safetensors' has no tensor"):
        refuse(tensor_misfits([save("a", LAYERS), save("b", {})], dtype_given=False))
