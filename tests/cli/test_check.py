"""glue check: verdicts on experts that belong together, and on such as do not; before and with a spec."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from glue_cli.checkpoints.digests import Digests
from glue_cli.models.cnn import cnn

CHANNELS = {"features.0": "features.1", "features.3": "features.4", "features.7": "features.8"}


@pytest.fixture
def alone(here):
    """No spec in the folder."""
    (here / "glue.yaml").rename(here / "kept.yaml")
    return here


def independent(tensors, seed=1):
    """Give weights the values of another start."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in tensors.items():
        if tensor.dim() > 1:
            tensors[name] = torch.randn(tensor.shape, generator=generator) * tensor.std()


def permute(tensors):
    """Put the hidden units of every layer into another order; what the model computes stays the same."""
    generator = torch.Generator().manual_seed(0)
    nexts = [*list(CHANNELS)[1:], "head"]
    for (layer, norm), following in zip(CHANNELS.items(), nexts, strict=True):
        order = torch.randperm(len(tensors[f"{layer}.weight"]), generator=generator)
        for name in [
            f"{layer}.weight",
            *(f"{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var")),
        ]:
            tensors[name] = tensors[name][order]
        tensors[f"{following}.weight"] = tensors[f"{following}.weight"][:, order].contiguous()


def test_half_of_16_bits_is_kept_in_32(alone, glue, experts):
    half = {name: t.half() if t.is_floating_point() else t for name, t in load_file(experts[1]).items()}
    save_file(half, experts[1])
    found = glue("check", *experts[:2], "--json").json
    assert found["mix"]["experts_bytes"] == 2 * 4 * found["experts"][0]["parameters"]  # as glue mix keeps them


def test_experts_that_belong_together(alone, glue, experts):
    answer = glue("check", *experts, "--json", code=0)
    found = answer.json
    assert (found["schema"], found["verdict"]) == ("glue.check/1", "mix")
    for expert, path in zip(found["experts"], experts, strict=True):
        content = Path(path).read_bytes()
        assert (expert["path"], expert["bytes"]) == (path, len(content))
        assert expert["sha256"] == hashlib.sha256(content).hexdigest() and expert["non_finite"] == []
        assert expert["parameters"] == sum(t.numel() for t in load_file(path).values() if t.is_floating_point())
    assert [pair["experts"] for pair in found["pairs"]] == [[0, 1], [0, 2], [1, 2]]
    assert all(pair["cosine"] > 0.5 and 0 < pair["distance"] < 1 for pair in found["pairs"])
    assert found["differences"] == [] and "losses" not in found and found["mix"]["free_bytes"] > 0
    assert found["mix"]["experts_bytes"] == 3 * 4 * found["experts"][0]["parameters"]
    shown = glue("check", *experts, code=0)
    assert "verdict" in shown.out and all(path in shown.out for path in experts)
    assert f"hint: glue mix --method spsa {' '.join(experts)}" in shown.err


def test_experts_from_other_starts_are_refused_with_what_to_do(alone, glue, experts, altered):
    other = altered("other.safetensors", independent)
    answer = glue("check", experts[1], other, "--json")
    assert answer.code == 3 and answer.json["verdict"] == "no" and not answer.json["permuted"]
    assert abs(answer.json["pairs"][0]["cosine"]) < 0.2
    assert "of no use" in answer.err and "hint: train the experts from one start" in answer.err
    answer = glue("check", experts[1], experts[2], other)
    assert answer.code == 3 and "do not mix" in answer.out and "without other.safetensors" in answer.out


def test_permuted_units_are_named_as_the_reason(alone, glue):
    """Wider experts, of which one was trained on and has its units in another order."""
    start = {name: tensor.clone() for name, tensor in cnn(in_channels=1).state_dict().items()}
    save_file(start, "a.safetensors")
    trained = {n: t + 0.3 * t.std() * torch.randn_like(t) if t.dim() > 1 else t for n, t in start.items()}
    save_file(trained, "b.safetensors")
    permute(trained)
    save_file(trained, "c.safetensors")
    assert glue("check", "a.safetensors", "b.safetensors", "--json", code=0).json["verdict"] == "mix"
    answer = glue("check", "a.safetensors", "c.safetensors", "--json")
    assert answer.code == 3 and answer.json["permuted"] and "order" in answer.json["instead"][0]


def test_nan_is_found_with_its_tensor(alone, glue, experts, altered):
    def spoil(tensors):
        tensors["features.3.weight"][0, 0, 0] = torch.tensor([torch.nan, torch.inf, 1.0])

    answer = glue("check", experts[1], altered("bad.safetensors", spoil), "--json")
    assert answer.code == 3 and answer.json["verdict"] == "no"
    wanted = [{"tensor": "features.3.weight", "nan": 1, "infinite": 1}]
    assert [expert["non_finite"] for expert in answer.json["experts"]] == [[], wanted]
    assert answer.json["pairs"][0]["distance"] is None
    assert "2 in features.3.weight" in glue("check", experts[1], "bad.safetensors").out


def test_everything_that_differs_is_listed_at_once(alone, glue, experts, altered):
    def change(tensors):
        tensors["features.3.weight"] = tensors["features.3.weight"][:4].contiguous()
        tensors["fc.lora_down.weight"] = torch.zeros(2, 2)

    answer = glue("check", experts[1], altered("odd.safetensors", change), "--json")
    assert answer.code == 3 and answer.json["verdict"] == "no" and "cannot be mixed" in answer.err
    assert [difference["about"] for difference in answer.json["differences"]] == ["adapters", "tensors"]
    assert any("features.3.weight" in item for item in answer.json["differences"][1]["items"])
    shown = glue("check", experts[1], "odd.safetensors").out
    assert "tensors: the experts" in shown and "adapters: 'odd.safetensors' holds" in shown


@pytest.mark.parametrize("kind", ["shards", "torch", "both"])
def test_every_kind_of_file_is_checked(alone, glue, experts, kind):
    paths = list(experts[:2])
    if kind in ("shards", "both"):
        glue("mix", "--alpha", "0,1", *experts[:2], "--max-shard-size", "2kB", "-o", "b.safetensors", "-q", code=0)
        paths[1] = "b.safetensors.index.json"
    if kind in ("torch", "both"):
        torch.save(load_file(paths[0]), "a.pt")
        paths[0] = "a.pt"
    found = glue("check", *paths, "--json", code=0).json
    assert found["pairs"] == glue("check", *experts[:2], "--json", code=0).json["pairs"]


def test_model_folders_are_compared_with_their_configurations(alone, glue):
    for name, heads in (("a", 2), ("b", 4)):
        (alone / name).mkdir()
        save_file({"w.weight": torch.ones(8, 8)}, alone / name / "model.safetensors")
        config = {"model_type": "llama", "num_attention_heads": heads, "hidden_size": 8}
        (alone / name / "config.json").write_text(json.dumps(config))
    answer = glue("check", "a", "b", "--json")
    assert answer.code == 3 and answer.json["differences"][0]["about"] == "configurations"


def test_adapters_are_compared_by_their_updates(alone, glue):
    torch.manual_seed(0)
    for k in range(3):
        (alone / f"{k}").mkdir()
        a, b = torch.randn(2, 6), torch.randn(5, 2)
        factors = {"lora_A": a, "lora_B": b} if k < 2 else {"lora_A": 2 * a, "lora_B": b}
        named = {f"base_model.model.q.{name}.weight": tensor for name, tensor in factors.items()}
        save_file(named, alone / f"{k}" / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "bert" if k < 2 else "gpt"}
        (alone / f"{k}" / "adapter_config.json").write_text(json.dumps(config))
    found = glue("check", "0", "1", "--json", code=0).json
    updates = []
    for k in range(2):
        tensors = load_file(alone / f"{k}" / "adapter_model.safetensors")
        one, other = (tensors[f"base_model.model.q.lora_{part}.weight"].double() for part in "BA")
        updates.append((2 * one @ other).flatten())
    assert found["pairs"][0]["cosine"] == pytest.approx(torch.cosine_similarity(*updates, dim=0).item())
    answer = glue("check", "0", "2", "--json")
    assert answer.code == 3 and answer.json["differences"][0]["about"] == "bases"


def test_with_a_spec_losses_and_costs_are_measured(here, glue, experts):
    found = glue("check", *experts, "--json", code=0).json
    losses = found["losses"]

    def loss_of(path):
        """On all labels: there are fewer than 512."""
        splits = [
            glue("evaluate", path, "--split", split, "--json", code=0).json["results"][0] for split in ("train", "val")
        ]
        assert sum(row["examples"] for row in splits) == losses["examples"]
        return sum(row["loss"] * row["examples"] for row in splits) / losses["examples"]

    for k, path in enumerate(experts):
        assert losses["experts"][k] == pytest.approx(loss_of(path), rel=1e-4)
    glue("mix", "--alpha", "0.5,0.5,0", *experts, "-q", code=0)
    assert found["pairs"][0]["midpoint"] == pytest.approx(loss_of("prior.safetensors"), rel=1e-4)
    assert len(losses["experts_refreshed"]) == 3 and found["pairs"][0]["midpoint_refreshed"] > 0
    step = found["mix"]["step"]
    first, second = step["forward_s"] + step["blend_s"], step["backward_s"] + step["inner_products_s"]
    assert all(step[part] > 0 for part in ("forward_s", "backward_s", "blend_s", "inner_products_s"))
    assert step["cheaper"] == ("spsa" if first < second else "fullgrad") and step["batch_size"] == 30
    assert "in memory" in found["mix"]["bank"]
    assert not (here / "glue-check.safetensors").exists()
    shown = glue("check", *experts, code=0).out
    assert "C_mix" in shown and "halfway" in shown


@pytest.mark.parametrize("more", [[], ["mix.budget=40"], ["mix.preset=paper", "mix.steps=20"], ["objective=accuracy"]])
@pytest.mark.parametrize("labels", [180, 600])
def test_a_search_makes_at_most_the_forwards_that_are_planned(here, glue, experts, more, labels):
    """With few labels in folds, and with more of them."""
    split = ["data.target.train=500", "data.target.val=100"] if labels == 600 else []
    keys = [word for key in (*split, "mix.patience=1000", *more) for word in ("--set", key)]
    planned = glue("check", *experts, *keys, "--json", code=0).json["mix"]
    used = glue("mix", "--method", "spsa", *experts, *keys, "--json", code=0).json["cost"]["forwards"]
    assert used <= planned["forwards"] <= 2 * used and planned["seconds"] > 0


def test_an_unfinished_spec_that_just_lies_here_is_left_aside(here, glue, experts):
    text = "# CHOOSE the architecture\n# model:\n#   arch: cnn\n\n# data:\n#   format: cifar10\nseed: 0\n"
    (here / "glue.yaml").write_text(text)
    answer = glue("check", *experts, "--json", code=0)
    assert "warning: glue.yaml is unfinished" in answer.err and "losses" not in answer.json
    named = glue("check", *experts, "--spec", "glue.yaml")
    named.refused(3, "glue.yaml:2: model: missing; choose", "glue.yaml:5: data: missing; choose")
    (here / "glue.yaml").write_text("sed: 0\nmodel: {arch: cnn}\ndata: {format: cifar10, root: data}\n")
    glue("check", *experts).refused(3, "sed: unknown key")


def test_large_experts_are_tried_block_by_block_as_a_search_would(here, glue, experts, monkeypatch):
    wanted = glue("check", *experts, "--set", "precision=fp32", "--json", code=0).json
    monkeypatch.setattr("glue_cli.search.bank.load.usable_memory", lambda device, **how: 24_000)
    monkeypatch.setattr("glue_cli.workflows.mix.whole_experts.usable_memory", lambda device, **how: 24_000)
    found = glue("check", *experts, "--set", "precision=fp32", "--json", code=0).json
    assert found["losses"] == wanted["losses"] and found["verdict"] == wanted["verdict"]
    assert "blended block by block" in found["mix"]["bank"]
    step = found["mix"]["step"]
    assert step["backward_s"] is step["inner_products_s"] is None and step["cheaper"] == "spsa"
    assert step["forward_s"] + step["blend_s"] > 0
    monkeypatch.setattr("glue_cli.workflows.mix.whole_experts.lacks_compiler", lambda *args: True)
    answer = glue("check", *experts, code=0)
    assert "SPSA, as no gradient passes blocks" in answer.out
    assert "numba" in answer.err and "bank:" not in answer.err


def test_a_single_expert_is_checked_with_a_spec_too(here, glue, experts):
    found = glue("check", experts[0], "--json", code=0).json
    assert found["verdict"] == "mix" and len(found["losses"]["experts"]) == 1


def test_statistics_that_do_not_fit_are_to_be_refreshed(here, glue, experts, altered):
    """One expert has the statistics of inputs that were scaled otherwise, and halfway they fit neither."""

    def scale(tensors):
        for number in (1, 4, 8):
            tensors[f"features.{number}.running_var"] *= 10

    for expert in ("0", "1"):
        settings = ["--set", "train.epochs=20", "--set", "model.args.width=8"]
        glue("train-expert", "--expert", expert, *settings, "-o", f"{expert}.safetensors", "-q", code=0)
    other = altered("scaled.safetensors", scale, of="1.safetensors")
    found = glue("check", "0.safetensors", other, "--set", "model.args.width=8", "--json", code=0)
    assert found.json["verdict"] == "refresh" and "--batchnorm refresh" in found.json["instead"][0]
    shown = glue("check", "0.safetensors", other, "--set", "model.args.width=8", code=0)
    assert "--batchnorm refresh" in shown.err and "refresh BatchNorm's statistics" in shown.out


def test_an_error_of_the_spec_is_told_as_by_other_commands(here, glue, experts):
    glue("check", *experts, "--set", "mix.nothing=1").refused(2, "mix.nothing")
    glue("check", "nothing.safetensors").refused(2, "no checkpoint")
    glue("check", *experts, "--spec", "nothing.yaml").refused(2, "nothing.yaml")


def test_sha256_are_remembered_between_check_and_mix(alone, glue, experts, monkeypatch):
    monkeypatch.setattr("glue_cli.checkpoints.digests._TICK_NS", 0)
    first = glue("check", *experts, "--json", code=0)
    assert "remembered" not in first.err
    mixed = glue("mix", "--method", "uniform", *experts, "--json", code=0)
    assert "sha256 of 3 of 3 experts as remembered" in mixed.err
    remembered = Digests(Path(os.environ["XDG_CACHE_HOME"], "glue"))
    remembered.add(dict.fromkeys(remembered.read(), "0" * 64))  # they are believed, so the files are not hashed again
    assert {expert["sha256"] for expert in glue("check", *experts, "--json", code=0).json["experts"]} == {"0" * 64}


def test_a_remembered_sha256_is_not_believed_of_a_file_that_changed(alone, glue, experts, monkeypatch):
    monkeypatch.setattr("glue_cli.checkpoints.digests._TICK_NS", 0)
    glue("check", *experts, "--json", code=0)
    changed, times = Path(experts[1]), os.stat(experts[1])
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))
    again = glue("check", *experts, "--json", code=0)
    assert "sha256 of 2 of 3 experts as remembered" in again.err
    assert again.json["experts"][1]["sha256"] == hashlib.sha256(content).hexdigest()
