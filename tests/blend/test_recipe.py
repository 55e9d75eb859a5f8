from pathlib import Path

import pytest
import torch

from glue_cli.blend.recipe import PLAIN, Recipe, find_expert, find_matching, group_tensors, matches
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.tensors import write_checkpoint
from glue_cli.foundation.errors import SpecError, UsageError

NAMES = ["encoder.0.weight", "encoder.0.bias", "encoder.1.weight", "head.weight", "head.bias"]


# ---- groups


def test_the_first_pattern_that_matches_wins():
    patterns = {"biases": "*.bias", "encoder": ["encoder.0.*", "encoder.1.*"], "head": "head.*"}
    groups, group_of = group_tensors(NAMES, patterns)
    assert groups == ("biases", "encoder", "head")
    assert [group_of[name] for name in NAMES] == [1, 0, 1, 2, 0]


def test_what_no_pattern_matches_is_the_rest():
    groups, group_of = group_tensors(NAMES, {"head": "head.*"})
    assert groups == ("head", "rest")
    assert [group_of[name] for name in NAMES] == [1, 1, 1, 0, 0]


def test_a_group_may_be_called_rest():
    groups, group_of = group_tensors(NAMES, {"rest": "head.*", "biases": "*.bias"})
    assert groups == ("rest", "biases")
    assert [group_of[name] for name in NAMES] == [0, 1, 0, 0, 0]


def test_without_patterns_all_is_the_rest():
    assert group_tensors(NAMES, {}) == (("rest",), dict.fromkeys(NAMES, 0))


def test_groups_without_a_tensor_are_named_all_at_once():
    patterns = {"all": "*", "late": ["head.*", "*.bias"], "head": "head.*"}
    with pytest.raises(SpecError, match="no tensor of the experts matches") as caught:
        group_tensors(NAMES, patterns)
    assert caught.value.items == ("late: head.*, *.bias", "head: head.*") and caught.value.hint


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("encoder.*", True),
        ("encoder.0.weight", True),
        ("*", True),
        ("*.0.*", True),
        ("encoder", False),
        ("ENCODER.*", False),
        ("head.*", False),
    ],
)
def test_patterns_match_whole_names(pattern, found):
    assert matches("encoder.0.weight", [pattern]) == found
    assert matches("encoder.0.weight", ["nothing", pattern]) == found


@pytest.fixture
def experts(save):
    return [save("a", {"body": torch.zeros(2), "head": torch.zeros(3)}), save("b", {"tail": torch.zeros(1)})]


def test_matching_tensors_of_any_expert(experts):
    assert find_matching(experts, ["*a*"], "--head") == ["head", "tail"]
    assert find_matching(experts, ["tail", "body"], "--head") == ["body", "tail"]


def test_a_pattern_without_a_match_is_named(experts):
    with pytest.raises(UsageError, match=r"--head 'classifier\.\*' matches no tensor") as caught:
        find_matching(experts, ["head", "classifier.*"], "--head")
    assert "'body'" in caught.value.hint


# ---- experts by name


@pytest.fixture
def named(tmp_path):
    """Experts that glue wrote, with names; their files have others."""

    def named(file, name):
        write_checkpoint(tmp_path / f"{file}.safetensors", {"w": torch.zeros(1)}, {"name": name})
        return read_checkpoint(tmp_path / f"{file}.safetensors")

    return named


def test_an_expert_is_found_by_name_file_stem_path_and_number(named, tmp_path):
    experts = [named("one", "cats"), named("two", "dogs"), named("three", "birds")]
    for wanted in ("dogs", "two.safetensors", "two", str(tmp_path / "two.safetensors"), "1"):
        assert find_expert(experts, wanted, "--head") == 1


def test_a_name_goes_before_a_number(named):
    assert find_expert([named("one", "1"), named("two", "0")], "0", "--head") == 1


def test_an_expert_of_a_foreign_tool_has_no_name(save):
    experts = [save("a", {"w": torch.zeros(1)}), save("b", {"w": torch.zeros(1)})]
    assert find_expert(experts, "b", "--head") == 1
    with pytest.raises(UsageError, match="no expert of that name"):
        find_expert(experts, "None", "--head")


@pytest.mark.parametrize("wanted", ["fish", "3", "-1", "1.0", ""])
def test_an_expert_that_is_not_there(named, wanted):
    experts = [named("one", "cats"), named("two", "dogs"), named("three", "birds")]
    with pytest.raises(UsageError, match=f"--head {wanted}: no expert of that name") as caught:
        find_expert(experts, wanted, "--head")
    assert "0: " in caught.value.hint and "three.safetensors" in caught.value.hint


@pytest.mark.parametrize(
    "wanted", ["./two.safetensors", "sub/../two.safetensors", "{}/two.safetensors", ".//two.safetensors"]
)
def test_an_expert_may_be_named_as_it_was_typed(named, tmp_path, monkeypatch, wanted):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        named(name, "cats")
        (tmp_path / f"folder-{name}").mkdir()
        write_checkpoint(tmp_path / f"folder-{name}" / "model.safetensors", {"w": torch.zeros(1)}, {})
    experts = [
        read_checkpoint(Path(path)) for path in ("one.safetensors", "./two.safetensors", "folder-one/", "folder-two")
    ]
    assert find_expert(experts, wanted.format(tmp_path), "--copy-from") == 1
    for k, typed in ((2, "folder-one/"), (2, "./folder-one"), (3, "folder-two/"), (3, f"{tmp_path}/folder-two")):
        assert find_expert(experts, typed, "--copy-from") == k
    (tmp_path / "link").symlink_to("folder-two")
    assert find_expert(experts, "link", "--copy-from") == 3


def test_several_experts_of_one_name(named):
    with pytest.raises(UsageError, match="--head cats: 2 experts of that name"):
        find_expert([named("one", "cats"), named("two", "cats")], "cats", "--head")


# ---- the recipe

RECIPE = Recipe(("a", "b"), {"late": 1, "copied late": 1}, {"copied": 2, "copied late": 0}, {"made": (4, 3)})
ALPHAS = [[0.2, 0.3, 0.5], [0.1, 0.8, 0.1]]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("early", [0.2, 0.3, 0.5]),
        ("late", [0.1, 0.8, 0.1]),
        ("copied", [0.0, 0.0, 1.0]),
        ("copied late", [1.0, 0.0, 0.0]),
    ],
)
def test_coefficients_of_a_tensor(name, wanted):
    assert list(RECIPE.coefficients(name, ALPHAS)) == wanted


def test_what_is_apart_is_not_blended():
    assert RECIPE.apart == {"copied", "copied late", "made"} and PLAIN.apart == set()
    assert [RECIPE.is_blended(name) for name in ("early", "late", "copied", "made")] == [True, True, False, False]


def test_the_blends_tensors_are_described(save):
    first = save(
        "a", {"w": torch.zeros(2, 3), "head": torch.zeros(5, 3), "made": torch.zeros(5), "ids": torch.arange(4)}
    )
    second = save("b", {"w": torch.zeros(2, 3), "head": torch.zeros(7, 3).half(), "extra": torch.zeros(6)})
    assert sorted(PLAIN.describe([first, second])) == [
        ("head", "F32", (5, 3)),
        ("ids", "I64", (4,)),
        ("made", "F32", (5,)),
        ("w", "F32", (2, 3)),
    ]
    recipe = Recipe(copied_from={"head": 1, "extra": 1, "made": 1}, made={"w": (9, 9)})
    described = recipe.describe([first, second], dtype="BF16")
    assert sorted(described) == [
        ("extra", "BF16", (6,)),  # of the second expert alone
        ("head", "BF16", (7, 3)),
        ("ids", "I64", (4,)),
        ("w", "BF16", (9, 9)),  # "made" is copied from an expert that has none
    ]
    assert ("head", "F16", (7, 3)) in recipe.describe([first, second])
