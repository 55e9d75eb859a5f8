"""Rules by tensor from the experts' files to the prior's: groups, heads, copies, BatchNorm, banks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from glue_cli.blend.tensor_rules import TensorRules
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.tensors import write_checkpoint
from glue_cli.data.loader import Batches
from glue_cli.data.target import Target
from glue_cli.foundation.errors import CheckpointError, DataError
from glue_cli.foundation.progress import Noted
from glue_cli.foundation.run import Run
from glue_cli.models import build_model
from glue_cli.plans.evaluate import plan_evaluate
from glue_cli.plans.mix import plan_mix
from glue_cli.plans.mix_records import GIVEN, Coefficients, Search, Writing
from glue_cli.plans.outputs import Outputs
from glue_cli.plans.train_expert import plan_train_expert
from glue_cli.results.record import as_object
from glue_cli.running.device import Compute
from glue_cli.workflows.evaluate import evaluate
from glue_cli.workflows.mix.mix import mix
from glue_cli.workflows.train_expert import train_expert

WRITING = Writing(memory_bytes=1 << 20, hashing=False)
CNN = {"num_classes": 4, "width": 4}
STEPS = {"steps": 4, "validate_every": 2, "batch_size": 20, "lr": 0.2}
CLASSES = [f"class {c}" for c in range(10)]
KNOWN = [CLASSES[:6], CLASSES[9:2:-1]]  # 6 and 7 of the 10, of which they share 3


@pytest.fixture
def experts(tmp_path):
    """Three CNNs around one, as nobody trained them, with statistics of their own."""
    paths = []
    for k in range(3):
        state = build_model("cnn", CNN, seed=0).state_dict()
        random = torch.Generator().manual_seed(k)
        for name, tensor in state.items():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=random)
                state[name] = noise + 0.5 if name.endswith("running_var") else tensor + 0.4 * noise - 0.2
        state["features.1.num_batches_tracked"] = torch.tensor(10 + k)
        paths.append(tmp_path / f"e{k}.safetensors")
        write_checkpoint(paths[-1], state, {"name": f"expert {k}", "class_names": list("abcd")})
    return paths


@pytest.fixture
def blend(tmp_path, run):
    """Mix; return the result and the prior's tensors."""

    def blend(experts, spec=None, method=None, alpha=None, name="prior", history=None, seed=None, **options):
        output = tmp_path / f"{name}.safetensors"
        rules = TensorRules(**{key: options.pop(key) for key in [*options] if key in TensorRules.__dataclass_fields__})
        plan = plan_mix(
            experts,
            Outputs(output, history),
            Coefficients(method or GIVEN, alpha),
            rules=rules,
            writing=replace(WRITING, dtype=options.pop("dtype", None)),
            search=Search(**options),
            spec=spec,
            seed=seed or (spec.seed if spec else 0),
        )
        result = as_object(mix(plan, Run("cpu", cache=run.cache, history=history, progress=run.progress)))
        return result, load_file(output)

    return blend


def glue_of(result):
    with safe_open(result["output"], "pt") as file:
        return json.loads(file.metadata()["glue"])


def mean(experts, alpha, name):
    return sum(a * load_file(path)[name].double() for a, path in zip(alpha, experts, strict=True))


def assert_is_mean(tensor, experts, alpha, name):
    torch.testing.assert_close(tensor.double(), mean(experts, alpha, name), rtol=1e-5, atol=1e-6)


def loss_of(spec, path, run):
    return evaluate(plan_evaluate(spec, [Path(path)], "val", {}, Outputs(None)), run).results[0].figures["loss"]


# ---- groups


@pytest.mark.parametrize("method", ["spsa", "fullgrad"])
def test_every_group_is_blended_with_its_own_alpha(make_spec, experts, blend, run, tmp_path, method):
    spec = make_spec(mix={**STEPS, "groups": {"convolutions": ["*.0.weight", "*.3.weight"], "head": "head.*"}})
    result, found = blend(experts, spec, method, history=tmp_path / "h.jsonl")
    groups = result["groups"]
    assert list(groups) == ["convolutions", "head", "rest"]
    for alpha in groups.values():
        assert sum(alpha) == pytest.approx(1) and min(alpha) >= 0
    assert len({tuple(alpha) for alpha in groups.values()}) == 3
    assert result["alpha"] == pytest.approx([sum(column) / 3 for column in zip(*groups.values(), strict=True)])
    metadata = glue_of(result)
    assert (metadata["groups"], metadata["alpha"]) == (groups, result["alpha"])
    for name, tensor in found.items():
        if tensor.is_floating_point():
            group = "head" if name.startswith("head.") else "rest"
            group = "convolutions" if name in ("features.0.weight", "features.3.weight") else group
            assert_is_mean(tensor, experts, groups[group], name)
    assert loss_of(spec, result["output"], run) == pytest.approx(result["loss"]["val"], rel=1e-5)
    lines = [json.loads(line) for line in (tmp_path / "h.jsonl").read_text().splitlines()]
    assert all(line["groups"].keys() == groups.keys() for line in lines)


def test_without_groups_nothing_is_said_of_them(spec, experts, blend):
    result, _ = blend(experts, spec, "spsa")
    assert "groups" not in result and "groups" not in glue_of(result)


def test_groups_are_for_a_search_alone(make_spec, experts, blend):
    result, found = blend(experts, make_spec(mix={**STEPS, "groups": {"head": "head.*"}}), "proxy")
    assert "groups" not in result
    assert_is_mean(found["head.weight"], experts, result["alpha"], "head.weight")


# ---- BatchNorm


def test_refreshed_statistics_are_those_of_torch_over_the_same_batches(make_spec, experts, blend, run, monkeypatch):
    seen, original = [], Batches.epoch

    def epoch(self, *args):
        for batch in original(self, *args):
            seen.append(batch[0].clone())
            yield batch

    monkeypatch.setattr(Batches, "epoch", epoch)
    spec = make_spec(mix={**STEPS, "batch_size": 30})
    plain, before = blend(experts, alpha=[0.2, 0.5, 0.3], name="plain")
    result, found = blend(experts, spec, alpha=[0.2, 0.5, 0.3], batchnorm="refresh")
    assert [len(images) for images in seen] == [30, 30, 20]  # the target's training examples
    model = build_model("cnn", CNN, seed=0)
    model.load_state_dict(before)
    torch.optim.swa_utils.update_bn(seen, model)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
    assert (found["features.1.running_mean"] - before["features.1.running_mean"]).abs().max() > 0.01
    assert (result["cost"]["forwards"], result["cost"]["examples"]) == (3, 80)
    after = result["afterwards"]  # nothing of it was for the choice of alpha
    assert (after["forwards"], after["examples"]) == (3, 80) and 0 < after["wall_s"] < result["cost"]["wall_s"]
    assert plain["cost"]["forwards"] == 0 and "batchnorm" not in plain["settings"] and "afterwards" not in plain
    assert glue_of(result)["settings"]["batchnorm"] == "refresh" == result["settings"]["batchnorm"]


@pytest.mark.parametrize("method", ["proxy", "spsa"])
def test_a_plain_search_chooses_alpha_with_the_blended_statistics_before_they_are_refreshed(
    make_spec, experts, blend, method
):
    spec = make_spec(mix={**STEPS, "search": "plain"})
    plain, _ = blend(experts, spec, method, name="plain")
    result, _ = blend(experts, spec, method, batchnorm="refresh")
    assert result["alpha"] == plain["alpha"] and "before_refresh" not in plain
    assert result["loss"].get("val_uniform") == plain["loss"].get("val_uniform")
    assert result.get("before_refresh", {}) == plain["loss"]
    n_validation = 2 if method == "spsa" else 0  # to measure what is written
    assert result["cost"]["forwards"] == plain["cost"]["forwards"] + 4 + n_validation
    assert result["cost"]["validation_forwards"] == plain["cost"]["validation_forwards"] + n_validation


@pytest.mark.parametrize("method", ["spsa", "fullgrad", "greedy"])
@pytest.mark.parametrize("statistics", ["running", "batch"])
@pytest.mark.parametrize("search", ["plain", "staged"])
def test_the_loss_that_is_reported_is_that_of_the_refreshed_blend(
    make_spec, experts, blend, run, method, statistics, search
):
    """A plain search went by other statistics, which are not written."""
    spec = make_spec(mix={**STEPS, "bn_statistics": statistics, "search": search})
    result, _ = blend(experts, spec, method, batchnorm="refresh")
    found = loss_of(spec, result["output"], run)
    assert result["loss"]["val"] == pytest.approx(found, rel=1e-4)
    if search == "plain" and method != "greedy":
        assert abs(result["before_refresh"]["val"] - found) > 1e-3 * found
    elif search == "staged":
        assert "before_refresh" not in result


@pytest.mark.parametrize("objective", ["accuracy", "f1"])
def test_so_is_any_other_figure(make_spec, experts, blend, run, objective):
    spec = make_spec(mix={**STEPS, "batch_size": 10}, objective=objective)
    result, _ = blend(experts, spec, "spsa", batchnorm="refresh")
    assert result["loss"] == {} and "before_refresh" not in result
    model = build_model("cnn", CNN, seed=0).eval()
    model.load_state_dict(load_file(result["output"]))
    figures = []
    with torch.no_grad():
        for images, labels in Target(spec, run)["val"].on(Compute(torch.device("cpu"))).in_random_order(10, spec.seed):
            predicted = model(images).argmax(1)
            hits = torch.stack([((predicted == c) & (labels == c)).sum() for c in range(4)])
            totals = predicted.bincount(minlength=4) + labels.bincount(minlength=4)
            f1 = (2 * hits / totals)[totals > 0].mean()
            figures.append(f1 if objective == "f1" else (predicted == labels).double().mean())
    assert result["objective"]["val"] == pytest.approx(torch.stack(figures).mean().item(), abs=1e-6)


def test_nothing_is_refreshed_where_there_is_no_batchnorm(make_spec, blend, tmp_path, events):
    (tmp_path / "linear.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))\n"
    )
    spec = make_spec(model={"arch": "python:linear:make"})
    paths = [tmp_path / f"linear{k}.safetensors" for k in range(2)]
    for path in paths:
        save_file({f"1.{name}": tensor for name, tensor in nn.Linear(64, 4).state_dict().items()}, path)
    result, found = blend(paths, spec, alpha=[0.5, 0.5], batchnorm="refresh")
    notes = [event for event in events if isinstance(event, Noted) and "no BatchNorm" in event.text]
    assert [note.warning for note in notes] == [True] and result["cost"]["forwards"] == 0
    assert_is_mean(found["1.weight"], paths, [0.5, 0.5], "1.weight")


def test_statistics_of_other_layers_are_not_refreshed_but_blended(make_spec, blend, tmp_path):
    (tmp_path / "instance.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    norms = nn.BatchNorm2d(1), nn.InstanceNorm2d(1, track_running_stats=True)\n"
        "    return nn.Sequential(*norms, nn.Flatten(), nn.Linear(64, 4))\n"
    )
    spec = make_spec(model={"arch": "python:instance:make"})
    paths = [tmp_path / f"instance{k}.safetensors" for k in range(2)]
    for k, path in enumerate(paths):
        norms = {"0": nn.BatchNorm2d(1), "1": nn.InstanceNorm2d(1, track_running_stats=True), "3": nn.Linear(64, 4)}
        state = {f"{at}.{name}": tensor for at, norm in norms.items() for name, tensor in norm.state_dict().items()}
        save_file(state | {"1.running_mean": torch.tensor([2.0 * k])}, path)
    _, found = blend(paths, spec, alpha=[0.5, 0.5], batchnorm="refresh")
    assert found["1.running_mean"].item() == 1 and found["0.running_mean"].item() != 0


def test_statistics_from_an_expert(spec, experts, blend, run):
    result, found = blend(experts, spec, "spsa", batchnorm="from:expert 1")
    for name, tensor in load_file(experts[1]).items():
        if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.equal(found[name], tensor)
        else:
            assert_is_mean(found[name], experts, result["alpha"], name)
    assert loss_of(spec, result["output"], run) == pytest.approx(result["loss"]["val"], rel=1e-5)


# ---- include, exclude, copy-from


@pytest.mark.parametrize("method", ["spsa", "fullgrad"])
def test_excluded_tensors_are_copied_and_take_no_part_in_the_search(spec, experts, blend, run, method):
    result, found = blend(experts, spec, method, exclude=("head.*", "features.0.*"), copy_from="2")
    own = load_file(experts[2])
    for name, tensor in found.items():
        if name.startswith(("head.", "features.0.")):
            assert torch.equal(tensor, own[name])
        elif tensor.is_floating_point():
            assert_is_mean(tensor, experts, result["alpha"], name)
    assert loss_of(spec, result["output"], run) == pytest.approx(result["loss"]["val"], rel=1e-5)


def test_included_tensors_are_blended_and_the_others_copied(experts, blend):
    _, found = blend(experts, alpha=[0.5, 0.0, 0.5], include=("head.*",), copy_from="e1")
    own = load_file(experts[1])
    for name, tensor in found.items():
        if name.startswith("head."):
            assert_is_mean(tensor, experts, [0.5, 0.0, 0.5], name)
        else:
            assert torch.equal(tensor, own[name])


def test_experts_may_differ_in_what_is_not_blended(experts, blend):
    for k, shape in ((0, (3,)), (2, (5, 2))):
        save_file({**load_file(experts[k]), "aux": torch.full(shape, float(k))}, experts[k])
    with pytest.raises(CheckpointError, match="one architecture"):
        blend(experts, alpha=[0.5, 0.25, 0.25])
    _, found = blend(experts, alpha=[0.5, 0.25, 0.25], exclude=("aux",), copy_from="e2")
    assert torch.equal(found["aux"], torch.full((5, 2), 2.0))
    _, found = blend(experts, alpha=[0.5, 0.25, 0.25], exclude=("aux",), copy_from="e1", name="without")
    assert "aux" not in found


# ---- heads that differ


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
    with pytest.raises(CheckpointError, match=r"m1\.safetensors: 'head.bias' has NaN"):
        blend(paths, alpha=[0.5, 0.5], head="head.*", head_policy="align")
    assert not (tmp_path / "prior.safetensors").exists()


# ---- where the bank is kept


@pytest.mark.parametrize("method", ["spsa", "fullgrad"])
def test_the_place_of_the_bank_does_not_matter(make_spec, experts, blend, events, method):
    spec = make_spec(mix={**STEPS, "groups": {"head": "head.*"}})
    usual, _ = blend(experts, spec, method, name="device", bank="device")
    assert usual["loss"]["val"] < usual["loss"]["val_uniform"]
    for bank, where in (("disk", "on disk"), ("host", "in memory")):
        result, _ = blend(experts, spec, method, name=bank, bank=bank)
        noted = [event.text for event in events if isinstance(event, Noted) and event.text.startswith("bank: ")]
        assert where in noted[-1]
        for name, alpha in usual["groups"].items():
            assert result["groups"][name] == pytest.approx(alpha, abs=1e-4)


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
