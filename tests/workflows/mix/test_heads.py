"""Heads that differ, from the experts' files to the prior's: aligned, copied or drawn anew."""

import json

import pytest
import torch
from mixed_blends import STEPS, assert_is_mean, glue_of, loss_of
from safetensors.torch import load_file, save_file

from glue_cli.blend.tensor_rules import TensorRules
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.tensors import write_checkpoint
from glue_cli.foundation.errors import CheckpointError, DataError
from glue_cli.plans.evaluate import plan_evaluate
from glue_cli.plans.mix import plan_mix
from glue_cli.plans.mix_records import GIVEN, Coefficients, Writing
from glue_cli.plans.outputs import Outputs
from glue_cli.plans.train_expert import plan_train_expert
from glue_cli.workflows.evaluate import evaluate
from glue_cli.workflows.mix.mix import mix
from glue_cli.workflows.train_expert import train_expert

WRITING = Writing(memory_bytes=1 << 20, hashing=False)
CLASSES = [f"class {c}" for c in range(10)]
KNOWN = [CLASSES[:6], CLASSES[9:2:-1]]  # 6 and 7 of the 10, of which they share 3


@pytest.fixture
def members(make_spec, tmp_path, run):
    """Ten classes; experts that were trained on 6 and 7 of them, in orders of their own."""
    random = torch.Generator().manual_seed(0)

    def save(folder, split, names, n):
        numbers = torch.arange(n) % len(names)
        images = torch.randint(0, 100, (n, 1, 10, 10), generator=random, dtype=torch.uint8)
        for i, number in enumerate(numbers):
            images[i, 0, CLASSES.index(names[number])] += 150
        (tmp_path / folder).mkdir(exist_ok=True)
        tensors = {"images": images, "labels": numbers}
        save_file(tensors, tmp_path / folder / f"{split}.safetensors", {"class_names": json.dumps(names)})

    for k, names in enumerate(KNOWN):
        save(f"own{k}", "train", names, 84)
    save("ten", "train", CLASSES, 200)
    save("ten", "test", CLASSES, 40)
    member = {"format": "safetensors"}
    spec = make_spec(
        model={"arch": "cnn", "args": {"num_classes": 10, "width": 4}},
        data={"format": "safetensors", "root": "ten", "target": {"train": 80, "val": 40}},
        experts={
            "members": [
                {"name": f"m{k}", "data": member | {"root": f"own{k}"}, "args": {"num_classes": len(names)}}
                for k, names in enumerate(KNOWN)
            ]
        },
        train={"epochs": 1, "batch_size": 20, "lr": 0.02},
        mix=STEPS,
    )
    paths = [tmp_path / f"m{k}.safetensors" for k in range(2)]
    for k, path in enumerate(paths):
        train_expert(plan_train_expert(spec, k, Outputs(path)), run)
    return spec, paths


def test_members_have_heads_and_classes_of_their_own(members):
    spec, paths = members
    for k, path in enumerate(paths):
        assert load_file(path)["head.bias"].shape == (len(KNOWN[k]),)
        glue = read_checkpoint(path).glue
        assert glue["class_names"] == KNOWN[k] and glue["model"]["args"] == {"num_classes": len(KNOWN[k]), "width": 4}
    assert spec.of_expert(1).model.args == {"num_classes": 7, "width": 4} and spec.model.args["num_classes"] == 10


def aligned(paths, alpha, name):
    """Build the rows of CLASSES one by one."""
    heads = [load_file(path)[name].double() for path in paths]
    rows = []
    for class_name in CLASSES:
        known = [(a, head[own.index(class_name)]) for a, head, own in zip(alpha, heads, KNOWN, strict=True)
                 if class_name in own]  # fmt: skip
        rows.append(sum(a * row for a, row in known) / sum(a for a, _ in known))
    return torch.stack(rows)


@pytest.mark.parametrize("how", [{"alpha": [0.3, 0.7]}, {"method": "spsa"}, {"method": "fullgrad"}])
def test_heads_are_aligned_by_class_name(members, blend, run, how):
    spec, paths = members
    result, found = blend(paths, spec, head="head.*", head_policy="align", classes=tuple(CLASSES), **how)
    for name in ("head.weight", "head.bias"):
        torch.testing.assert_close(found[name].double(), aligned(paths, result["alpha"], name), rtol=1e-5, atol=1e-6)
    assert_is_mean(found["features.0.weight"], paths, result["alpha"], "features.0.weight")
    metadata = glue_of(result)
    assert metadata["class_names"] == CLASSES and "model" not in metadata
    loss = loss_of(spec, result["output"], run)
    if "method" in how:
        assert loss == pytest.approx(result["loss"]["val"], rel=1e-5)


def test_the_aligned_head_has_an_alpha_of_its_own_where_its_group_has(make_spec, members, blend, run):
    spec, paths = members
    mixing = make_spec(mix={**STEPS, "groups": {"head": "head.*"}}).mix
    spec = spec.model_copy(update={"mix": mixing})
    result, found = blend(paths, spec, "fullgrad", head="head.*", head_policy="align", classes=tuple(CLASSES))
    groups = result["groups"]
    assert groups["head"] != groups["rest"]
    for name in ("head.weight", "head.bias"):
        torch.testing.assert_close(found[name].double(), aligned(paths, groups["head"], name), rtol=1e-5, atol=1e-6)
    assert_is_mean(found["features.0.weight"], paths, groups["rest"], "features.0.weight")
    assert loss_of(spec, result["output"], run) == pytest.approx(result["loss"]["val"], rel=1e-5)


def test_without_classes_given_the_head_has_all_that_anyone_knows(members, blend):
    _, paths = members
    result, found = blend(paths, alpha=[0.5, 0.5], head="head.*", head_policy="align")
    names = KNOWN[0] + [name for name in KNOWN[1] if name not in KNOWN[0]]
    assert glue_of(result)["class_names"] == names
    wanted = aligned(paths, [0.5, 0.5], "head.weight")[[CLASSES.index(name) for name in names]]
    torch.testing.assert_close(found["head.weight"].double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["spsa", "proxy"])
def test_the_order_of_the_classes_in_the_head_does_not_matter(members, blend, run, method):
    spec, paths = members
    rules = {"head": "head.*", "head_policy": "align"}
    found = []
    for name, classes in (("data", CLASSES), ("turned", CLASSES[::-1])):
        result, _ = blend(paths, spec, method, name=name, classes=tuple(classes), **rules)
        assert glue_of(result)["class_names"] == classes
        found.append(result.get("val_accuracies") or [result["loss"]["val"], *result["alpha"]])
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    if method == "spsa":
        assert loss_of(spec, result["output"], run) == pytest.approx(result["loss"]["val"], rel=1e-5)


def test_a_head_without_a_class_of_the_data_is_refused(members, blend, tmp_path):
    spec, paths = members
    with pytest.raises(DataError, match="'ten' has classes that the blend does not have: class 9") as caught:
        blend(paths, spec, "spsa", head="head.*", head_policy="align", classes=(*CLASSES[:9], "new"))
    assert "--classes" in caught.value.hint
    assert not (tmp_path / "prior.safetensors").exists()


def test_proxy_tries_each_expert_with_the_aligned_head(members, blend, run):
    spec, paths = members
    rules = {"head": "head.*", "head_policy": "align", "classes": tuple(CLASSES)}
    result, _ = blend(paths, spec, "proxy", batchnorm="average", **rules)
    for k in range(2):
        blend(paths, alpha=[float(j == k) for j in range(2)], name=f"alone{k}", **rules)
        alone = plan_evaluate(spec, [paths[k].with_name(f"alone{k}.safetensors")], "val", {}, Outputs(None))
        assert evaluate(alone, run).results[0].figures["accuracy"] == result["val_accuracies"][k]


def test_a_head_from_an_expert_is_its_own(make_spec, members, blend, run):
    spec, paths = members
    result, found = blend(paths, alpha=[0.5, 0.5], head="head.*", head_policy="from:m1")
    assert glue_of(result)["class_names"] == KNOWN[1]
    own = load_file(paths[1])
    assert torch.equal(found["head.weight"], own["head.weight"])
    assert torch.equal(found["head.bias"], own["head.bias"])
    seven = spec.model_copy(update={"model": spec.of_expert(1).model, "data": spec.experts.members[1].data})
    result, found = blend(paths, seven, "spsa", head="head.*", head_policy="from:m1", name="searched")
    assert torch.equal(found["head.weight"], own["head.weight"])
    assert loss_of(seven, result["output"], run) == pytest.approx(result["loss"]["val"], rel=1e-5)


def test_a_head_that_is_reset_is_drawn_from_the_seed(members, blend):
    _, paths = members
    drawn = [
        blend(paths, alpha=[0.5, 0.5], head="head.*", head_policy="reset", classes=("x", "y"), seed=seed, name=f"{i}")
        for i, seed in enumerate((0, 0, 1))
    ]
    weights = [found["head.weight"] for _, found in drawn]
    assert weights[0].shape == (2, 8) and weights[0].abs().max() <= 8**-0.5
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert glue_of(drawn[0][0])["class_names"] == ["x", "y"]


def test_a_class_that_nobody_knows_is_drawn_within_an_aligned_head(members, blend):
    _, paths = members
    _, found = blend(paths, alpha=[0.5, 0.5], head="head.*", head_policy="align", classes=("new", "class 4"))
    torch.testing.assert_close(found["head.bias"][1].double(), aligned(paths, [0.5, 0.5], "head.bias")[4])
    assert 0 < found["head.weight"][0].abs().max() <= 8**-0.5


def test_a_head_that_is_not_finite_is_refused(members, blend, tmp_path):
    _, paths = members
    tensors, glue = load_file(paths[1]), read_checkpoint(paths[1]).glue
    tensors["head.bias"][2] = float("nan")
    write_checkpoint(paths[1], tensors, glue)
    with pytest.raises(CheckpointError, match=r"m1\.safetensors: 'head.bias' has nan"):
        blend(paths, alpha=[0.5, 0.5], head="head.*", head_policy="align")
    assert not (tmp_path / "prior.safetensors").exists()


def test_a_bank_of_what_is_blended_has_heads_that_differ_apart(members, blend):
    spec, paths = members
    rules = {"head": "head.*", "head_policy": "align", "classes": tuple(CLASSES)}
    found = [blend(paths, spec, "fullgrad", name=bank, bank=bank, **rules)[0] for bank in ("device", "disk")]
    assert found[0]["alpha"] == pytest.approx(found[1]["alpha"], abs=1e-4)


# ---- Hugging Face folders


@pytest.fixture
def folders(tmp_path, torchvision):
    """Two BERTs with heads for 2 and 3 classes, as transformers writes them."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    for k, classes in enumerate((["cat", "dog"], ["eel", "dog", "fox"])):
        torch.manual_seed(k)
        config = transformers.BertConfig(
            vocab_size=9, max_position_embeddings=4, id2label=dict(enumerate(classes)), **sizes
        )
        transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / f"bert{k}")
    return [tmp_path / f"bert{k}" for k in range(2)]


@pytest.mark.parametrize(
    ("rules", "classes"),
    [
        ({"head_policy": "align"}, ["cat", "dog", "eel", "fox"]),
        ({"head_policy": "align", "classes": ("fox",)}, ["fox"]),
        ({"head_policy": "reset", "classes": ("x", "y", "z")}, ["x", "y", "z"]),
        ({"head_policy": "from:bert1"}, ["eel", "dog", "fox"]),
    ],
)
def test_the_folder_of_a_blend_is_configured_for_its_head(folders, tmp_path, run, rules, classes):
    transformers = pytest.importorskip("transformers")
    head, coefficients = TensorRules(head="classifier.*", **rules), Coefficients(GIVEN, (0.25, 0.75))
    plan = plan_mix(folders, Outputs(tmp_path / "prior"), coefficients, rules=head, writing=WRITING)
    mix(plan, run)
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    model, info = load(tmp_path / "prior", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.id2label == dict(enumerate(classes)) and len(model.classifier.bias) == len(classes)
    assert model.config.label2id == {name: k for k, name in enumerate(classes)}
    assert read_checkpoint(tmp_path / "prior").glue["class_names"] == classes
    if "from" in rules["head_policy"]:
        assert torch.equal(model.classifier.weight, load(folders[1]).classifier.weight)


def test_a_folder_whose_configuration_is_none_leaves_nothing(folders, tmp_path, run):
    (folders[0] / "config.json").write_text("{")
    rules = TensorRules(head="classifier.*", head_policy="from:bert1")
    with pytest.raises(CheckpointError, match=r"bert0/config.json' is no JSON object"):
        mix(plan_mix(folders, Outputs(tmp_path / "prior"), Coefficients("uniform"), rules=rules, writing=WRITING), run)
    assert not (tmp_path / "prior").exists()
