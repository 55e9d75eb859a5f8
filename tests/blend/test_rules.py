import pytest
import torch

from glue_cli.blend.recipe import PLAIN
from glue_cli.blend.rules import head_classes_of, plan_recipe
from glue_cli.blend.tensor_rules import NO_RULES, TensorRules
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.tensors import write_checkpoint
from glue_cli.foundation.errors import CheckpointError, SpecError, UsageError

STATISTICS = {
    "bn.running_mean": torch.zeros(2),
    "bn.running_var": torch.ones(2),
    "bn.num_batches_tracked": torch.tensor(3),
}
BODY = {"conv.weight": torch.zeros(2, 2), "bn.weight": torch.ones(2), **STATISTICS}
CATS, DOGS = ["tabby", "manx"], ["pug", "manx", "husky"]


def head(n, width=2):
    return {"fc.weight": torch.zeros(n, width), "fc.bias": torch.zeros(n)}


@pytest.fixture
def make(tmp_path):
    """Save an expert, with class names where there are any, and read its header."""

    def make(name, tensors, classes=None):
        write_checkpoint(tmp_path / f"{name}.safetensors", tensors, {"class_names": classes} if classes else {})
        return read_checkpoint(tmp_path / f"{name}.safetensors")

    return make


@pytest.fixture
def alike(make):
    return [make(name, BODY | head(2)) for name in ("a", "b", "c")]


@pytest.fixture
def pair(make):
    """Experts that know 2 and 3 classes, of which they share one."""
    return [make("cats", BODY | head(2), CATS), make("dogs", BODY | head(3), DOGS)]


def recipe_of(experts, groups=None, **rules):
    return plan_recipe(experts, TensorRules(**rules), groups or {})


def refused(error, experts, **rules):
    with pytest.raises(error) as caught:
        recipe_of(experts, **rules)
    assert caught.value.hint
    return caught.value


def test_without_rules_all_is_blended_alike(alike):
    assert plan_recipe(alike, NO_RULES, {}) == (PLAIN, None)


# ---- groups


def test_groups_are_numbered_by_their_patterns(alike):
    recipe, _ = recipe_of(alike, {"body": ["conv.*", "bn.*"], "head": "fc.*"})
    assert recipe.groups == ("body", "head")
    assert {name: recipe.group_of[name] for name in ("conv.weight", "bn.running_mean", "fc.bias")} == {
        "conv.weight": 0,
        "bn.running_mean": 0,
        "fc.bias": 1,
    }
    assert recipe_of(alike, {"head": "fc.*"})[0].groups == ("head", "rest")


def test_a_group_without_a_tensor_is_refused(alike):
    with pytest.raises(SpecError, match="mix.groups: no tensor of the experts matches") as caught:
        recipe_of(alike, {"body": "*", "head": "classifier.*"})
    assert caught.value.items == ("head: classifier.*",) and caught.value.hint


def tied_experts(make, *, n_layers=2):
    """Experts whose head is a copy of the embedding, as some tools write both."""
    experts = []
    for k in range(2):
        table = torch.arange(8.0).view(4, 2) + k
        layers = {f"layers.{n}.{part}": torch.rand(2, 2) for n in range(n_layers) for part in ("a", "b")}
        fixed = {"first.scale": torch.ones(3), "last.scale": torch.ones(3)}  # equal, but not by being tied
        experts.append(make(str(k), {"wte.weight": table, **layers, "lm_head.weight": table.clone(), **fixed}))
    return experts


def test_tied_tensors_are_in_one_block(make):
    recipe, _ = recipe_of(tied_experts(make), "blocks")
    assert recipe.group_of["lm_head.weight"] == recipe.group_of["wte.weight"]
    assert len({recipe.group_of[name] for name in ("layers.0.a", "layers.1.a", "wte.weight")}) == 3
    assert set(range(len(recipe.groups))) == set(recipe.group_of.values())


def test_a_module_that_every_layer_uses_is_in_one_block(make):
    shared = [torch.rand(2, 3, generator=torch.Generator().manual_seed(k)) for k in range(2)]
    experts = [make(str(k), {f"layers.{n}.{part}": shared[k] for n in range(3) for part in "ab"}) for k in range(2)]
    assert recipe_of(experts, "blocks")[0] == PLAIN


def test_statistics_of_layers_that_see_the_same_are_no_copies(make):
    experts = [
        make(str(k), {f"{head}.{n}": torch.full((3,), float(k)) for head in "ab" for n in ("bn.running_mean",)}
             | {f"{head}.fc": torch.rand(3) for head in "ab"})
        for k in range(2)
    ]  # fmt: skip
    assert recipe_of(experts, {"a": "a.*", "b": "b.*"})[0].groups == ("a", "b")


def test_tied_tensors_in_several_groups_are_refused(make):
    experts = tied_experts(make)
    with pytest.raises(SpecError, match="copies of one tensor") as caught:
        recipe_of(experts, {"head": "lm_head.*", "first": "first.*"})
    assert caught.value.items == ("'lm_head.weight' in head, 'wte.weight' in rest",)
    groups, _ = recipe_of(experts, {"tables": ["wte.*", "lm_head.*"], "first": "first.*"})
    assert groups.groups == ("tables", "first", "rest")  # equal numbers in all experts tie nothing


# ---- include, exclude, copy-from


@pytest.mark.parametrize("copy_from", ["b", "b.safetensors", "1"])
def test_excluded_tensors_are_an_experts_own(alike, copy_from):
    recipe, head = recipe_of(alike, exclude=("fc.*", "*.running_var"), copy_from=copy_from)
    assert recipe.copied_from == {"fc.weight": 1, "fc.bias": 1, "bn.running_var": 1} and head is None


def test_all_but_included_tensors_are_an_experts_own(alike):
    recipe, _ = recipe_of(alike, include=("bn.*", "fc.*"), exclude=("*.bias",), copy_from="c")
    assert recipe.copied_from == {"conv.weight": 2, "fc.bias": 2}


@pytest.mark.parametrize("k", [0, 1, 2])
def test_an_excluded_tensor_may_be_any_experts_alone(make, k):
    experts = [make(str(j), BODY | ({"extra": torch.ones(5)} if j == k else {})) for j in range(3)]
    recipe, _ = recipe_of(experts, exclude=("extra",), copy_from="1.safetensors")
    assert recipe.copied_from == {"extra": 1}
    assert ("extra" in [name for name, _, _ in recipe.describe(experts)]) == (k == 1)


def test_copy_from_alone_has_nothing_to_copy(alike):
    assert "not blended" in refused(UsageError, alike, copy_from="a").message


@pytest.mark.parametrize("rules", [{"include": ("fc.*",)}, {"exclude": ("fc.*",)}])
def test_tensors_that_are_left_out_need_an_owner(alike, rules):
    assert "--copy-from EXPERT" in refused(UsageError, alike, **rules).hint


def test_copying_from_an_expert_that_is_not_there(alike):
    error = refused(UsageError, alike, exclude=("fc.*",), copy_from="z")
    assert error.message == "--copy-from z: no expert of that name" and "b.safetensors" in error.hint


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_named(alike, option):
    rules = {option: ("conv.*", "classifier.*"), "copy_from": "a"}
    assert f"--{option} 'classifier.*' matches no tensor" in refused(UsageError, alike, **rules).message


@pytest.mark.parametrize("rules", [{"exclude": ("*",)}, {"include": ("*num_batches_tracked",)}])
def test_something_has_to_be_left_to_blend(alike, rules):
    assert "nothing to blend" in refused(UsageError, alike, copy_from="a", **rules).message


# ---- BatchNorm


def test_statistics_may_be_an_experts_own(alike):
    recipe, _ = recipe_of(alike, batchnorm="from:c")
    assert recipe.copied_from == dict.fromkeys(STATISTICS, 2)
    recipe, _ = recipe_of(alike, batchnorm="from:c", exclude=("bn.*",), copy_from="a")
    assert recipe.copied_from == {**dict.fromkeys(STATISTICS, 2), "bn.weight": 0}


def test_statistics_that_are_refreshed_are_blended_until_then(alike):
    assert recipe_of(alike, batchnorm="refresh") == (PLAIN, None)


@pytest.mark.parametrize("policy", ["Refresh", "from", "", "none"])
def test_an_unknown_policy_for_batchnorm(alike, policy):
    error = refused(UsageError, alike, batchnorm=policy)
    assert f"--batchnorm {policy}: no such policy" in error.message and "refresh" in error.hint


def test_statistics_of_an_expert_that_is_not_there(alike):
    assert "--batchnorm from: z" in refused(UsageError, alike, batchnorm="from:z").message


# ---- heads


@pytest.mark.parametrize("rules", [{}, {"head_policy": "blend"}])
def test_equal_heads_are_blended(alike, rules):
    assert recipe_of(alike, head="fc.*", **rules) == (PLAIN, None)


def test_heads_that_differ_are_refused_with_what_would_work(pair):
    error = refused(CheckpointError, pair, head="fc.*")
    assert len(error.items) == 2 and "'fc.weight' is [3, 2]" in error.items[1]
    assert "align" in error.hint and "from:EXPERT" in error.hint and "reset" in error.hint


def test_a_head_that_differs_in_dtype_alone_is_left_to_the_dtype_option(make):
    experts = [make("a", head(2)), make("b", {name: tensor.half() for name, tensor in head(2).items()})]
    assert recipe_of(experts, head="fc.*") == (PLAIN, None)


def test_a_head_may_be_an_experts_own(pair):
    recipe, made = recipe_of(pair, head="fc.*", head_policy="from:dogs")
    assert recipe.copied_from == {"fc.weight": 1, "fc.bias": 1} and made is None and not recipe.made


def test_an_aligned_head_has_all_classes_that_anyone_knows(pair):
    recipe, made = recipe_of(pair, head="fc.*", head_policy="align")
    classes = ("tabby", "manx", "pug", "husky")
    assert sorted(made.names) == ["fc.bias", "fc.weight"]
    assert (made.known, made.classes, made.group) == ((tuple(CATS), tuple(DOGS)), classes, 0)
    assert recipe.made == {"fc.weight": (4, 2), "fc.bias": (4,)} and not recipe.copied_from


def test_an_aligned_head_has_the_classes_that_are_wanted(pair):
    recipe, made = recipe_of(pair, head="fc.*", head_policy="align", classes=("husky", "beagle"))
    assert made.classes == ("husky", "beagle") and recipe.made["fc.weight"] == (2, 2)


def test_a_head_is_aligned_by_its_own_groups_alpha(pair):
    assert recipe_of(pair, {"body": "bn.*", "last": "fc.*"}, head="fc.*", head_policy="align")[1].group == 1


def test_a_head_that_is_reset_knows_nothing(pair, alike):
    _, made = recipe_of(pair, head="fc.*", head_policy="reset")
    assert made.known == ((), ()) and made.classes == ("tabby", "manx", "pug", "husky")
    assert recipe_of(alike, head="fc.*", head_policy="reset", classes=("x",))[0].made["fc.bias"] == (1,)


def test_a_head_that_is_made_is_copied_from_nobody(pair):
    recipe, _ = recipe_of(pair, head="fc.*", head_policy="align", include=("conv.*",), copy_from="dogs")
    assert recipe.made.keys() == {"fc.weight", "fc.bias"} and not recipe.copied_from.keys() & recipe.made.keys()


@pytest.mark.parametrize("rules", [{"head_policy": "align"}, {"classes": ("x",)}])
def test_what_is_for_a_head_needs_one(alike, rules):
    assert "--head 'fc.*'" in refused(UsageError, alike, **rules).hint


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"head": "classifier.*"}, "--head 'classifier.*' matches no tensor"),
        ({"head_policy": "mean"}, "--head-policy mean: no such policy"),
        ({"head_policy": "from:z"}, "--head-policy from: z: no expert"),
        ({"head_policy": "align", "classes": ("manx", "pug", "manx")}, "--classes names a class twice"),
        ({"head_policy": "from:dogs", "classes": ("manx",)}, "--classes is for a head that is made anew"),
    ],
)
def test_rules_for_heads_that_make_no_sense(pair, rules, message):
    assert message in refused(UsageError, pair, **{"head": "fc.*", **rules}).message


def test_experts_that_do_not_say_their_classes_are_named(pair, alike):
    error = refused(CheckpointError, [pair[0], alike[1]], head="fc.*", head_policy="align")
    assert error.items == (str(alike[1].path),) and "from:EXPERT" in error.hint
    error = refused(CheckpointError, alike, head="fc.*", head_policy="reset")
    assert len(error.items) == 3


def test_classes_that_nobody_knows(pair):
    error = refused(CheckpointError, pair, head="fc.*", head_policy="align", classes=("cow", "goat"))
    assert "no expert knows any" in error.message and "tabby, manx" in error.items[0] and "reset" in error.hint


@pytest.mark.parametrize("policy", ["align", "reset"])
def test_a_head_that_the_first_expert_lacks_is_named(make, policy):
    experts = [make("a", BODY | {"fc.weight": torch.zeros(2, 2)}, CATS), make("b", BODY | head(2), CATS)]
    error = refused(CheckpointError, experts, head="fc.*", head_policy=policy)
    assert error.items == (f"{experts[0].path}: 'fc.bias'",) and "--head" in error.hint


# ---- class names


@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        ({}, ()),
        ({"head_policy": "align"}, ("tabby", "manx", "pug", "husky")),
        ({"head_policy": "reset", "classes": ("x",)}, ("x",)),
        ({"head_policy": "from:dogs"}, tuple(DOGS)),
        ({"head_policy": "from:plain"}, ()),
    ],
)
def test_classes_of_a_head_that_is_not_blended(make, pair, rules, wanted):
    experts = [*pair, make("plain", BODY | head(2))] if "from" in rules.get("head_policy", "") else pair
    rules = TensorRules(head="fc.*", **rules) if rules else NO_RULES
    assert head_classes_of(experts, rules, plan_recipe(experts, rules, {})[1]) == wanted


@pytest.mark.parametrize(
    ("others", "given", "classes", "known"),
    [
        (["Manx", "TABBY"], (), ("tabby", "manx"), ("manx", "tabby")),
        (["Manx", "pug"], (), ("tabby", "manx", "pug"), ("manx", "pug")),
        (["Manx", "tabby"], ("MANX", "Tabby"), ("MANX", "Tabby"), ("MANX", "Tabby")),
        (["0", "1"], (), ("tabby", "manx", "0", "1"), ("0", "1")),
    ],
)
def test_a_class_may_be_spelt_in_several_ways(make, others, given, classes, known):
    experts = [make("first", BODY | head(2), CATS), make("second", BODY | head(2), others)]
    _, plan = recipe_of(experts, head="fc.*", head_policy="align", classes=given)
    assert plan.classes == classes and plan.known[1] == known
    assert plan.known[0] == (("Tabby", "MANX") if given else tuple(CATS))
