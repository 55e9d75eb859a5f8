import pytest
import torch

from glue_cli.blend.compatibility import check_compatible, find_differences
from glue_cli.foundation.errors import CheckpointError

FIRST = {"w": torch.zeros(2, 3), "b": torch.zeros(3), "ids": torch.arange(3)}


def test_alike(save):
    experts = [save(name, FIRST) for name in "abc"]
    assert find_differences(experts) == []
    check_compatible(experts, dtype_given=False)
    check_compatible(experts[:1], dtype_given=False)


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
        check_compatible(experts, dtype_given=False)
    assert len(caught.value.items) == 5
    assert any("c.safetensors: 'w' is [6], in" in item and "it is [2, 3]" in item for item in caught.value.items)


def test_float_dtypes_may_differ_when_one_is_given(save):
    experts = [save("a", FIRST), save("b", FIRST | {"b": torch.zeros(3, dtype=torch.bfloat16)})]
    with pytest.raises(CheckpointError, match="differ in dtype") as caught:
        check_compatible(experts, dtype_given=False)
    assert "--dtype float32" in caught.value.hint
    check_compatible(experts, dtype_given=True)


@pytest.mark.parametrize("dtype_given", [False, True])
def test_other_dtypes_may_not(save, dtype_given):
    experts = [save("a", FIRST), save("b", FIRST | {"ids": torch.arange(3, dtype=torch.int32)})]
    with pytest.raises(CheckpointError) as caught:
        check_compatible(experts, dtype_given=dtype_given)
    assert "'ids' is I32" in caught.value.items[0] and "--dtype" not in caught.value.hint


def test_a_dtype_that_differs_in_one_expert_and_is_missing_in_another(save):
    experts = [save("a", FIRST), save("b", FIRST | {"w": FIRST["w"].half()}), save("c", {"b": FIRST["b"]})]
    with pytest.raises(CheckpointError) as caught:
        check_compatible(experts, dtype_given=True)
    found = sorted(item.partition(": ")[2] for item in caught.value.items)
    assert found[::2] == ["'ids' is missing", "'w' is missing"] and found[1].startswith("'w' is F16")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64])
def test_dtypes_that_cannot_be_blended_are_named(save, dtype):
    experts = [save(name, {"w": torch.zeros(2), "odd": torch.zeros(2).to(dtype)}) for name in "ab"]
    with pytest.raises(CheckpointError, match="cannot blend") as caught:
        check_compatible(experts, dtype_given=True)
    assert "'odd' is" in caught.value.items[0] and len(caught.value.items) == 1
