"""Rules by tensor from the experts' files to the prior's: groups, copies, BatchNorm, banks."""

import json

import pytest
import torch
from mixed_blends import STEPS, assert_is_mean, glue_of, loss_of
from safetensors.torch import load_file, save_file
from torch import nn

from glue_cli.checkpoints.tensors import write_checkpoint
from glue_cli.data.loader import Batches
from glue_cli.data.target import Target
from glue_cli.foundation.errors import CheckpointError
from glue_cli.foundation.progress import Noted
from glue_cli.models import build_model
from glue_cli.running.device import Compute

CNN = {"num_classes": 4, "width": 4}


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


# ---- groups


@pytest.mark.parametrize(("method", "search"), [("spsa", "staged"), ("spsa", "plain"), ("fullgrad", "plain")])
def test_every_group_is_blended_with_its_own_alpha(make_spec, experts, blend, run, tmp_path, method, search):
    spec = make_spec(
        mix={**STEPS, "search": search, "groups": {"convolutions": ["*.0.weight", "*.3.weight"], "head": "head.*"}}
    )
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


# ---- where the bank is kept


@pytest.mark.parametrize("method", ["spsa", "fullgrad"])
def test_the_place_of_the_bank_does_not_matter(make_spec, experts, blend, events, method):
    spec = make_spec(mix={**STEPS, "groups": {"head": "head.*"}})
    usual, _ = blend(experts, spec, method, name="device", bank="device")
    assert usual["alpha"] != pytest.approx([1 / 3] * 3, abs=0.01)
    for bank, where in (("disk", "on disk"), ("host", "in memory")):
        result, _ = blend(experts, spec, method, name=bank, bank=bank)
        noted = [event.text for event in events if isinstance(event, Noted) and event.text.startswith("bank: ")]
        assert where in noted[-1]
        for name, alpha in usual["groups"].items():
            assert result["groups"][name] == pytest.approx(alpha, abs=1e-3)


# ---- precision


@pytest.mark.parametrize("mix_section", [STEPS, {**STEPS, "groups": {"head": "head.*"}}, {**STEPS, "preset": "paper"}])
def test_a_search_in_bfloat16_finds_what_it_finds_in_float32(make_spec, experts, blend, events, mix_section):
    found = [
        blend(experts, make_spec(mix=mix_section, precision=precision), "spsa", name=precision)[0]
        for precision in ("fp32", "bf16")
    ]
    notes = [
        event.text for event in events if isinstance(event, Noted) and event.text.startswith("bfloat16 rounds by")
    ]
    assert len(notes) == 1 and [result["precision"] for result in found] == ["fp32", "bf16"]
    exact, other = (torch.tensor(result["alpha"]) for result in found)
    assert (exact - other).abs().sum() / 2 < 0.2
    assert found[1]["loss"]["val"] == pytest.approx(found[0]["loss"]["val"], rel=0.05)
