"""glue mix --like: a blend again from the recipe in its metadata, to the byte, or not at all."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from glue_cli.checkpoints.digests import Digests


def again(glue, experts, *flags, blend="prior.safetensors", output="again.safetensors"):
    return glue("mix", "--like", blend, *experts, "-o", output, "-q", *flags)


def same_bytes(folder, blend="prior.safetensors", output="again.safetensors"):
    return (folder / blend).read_bytes() == (folder / output).read_bytes()


@pytest.mark.parametrize(
    "flags",
    [
        ("--alpha", "0.2,0.3,0.5"),
        ("--method", "uniform"),
        ("--method", "data-size"),
        ("--method", "spsa", "--budget", "20"),
        ("--method", "proxy", "--seed", "3"),
        ("--alpha", "0.1,0.9,0", "--dtype", "bfloat16"),
        ("--alpha", "0.1,0.9,0", "--exclude", "head.*", "--copy-from", "expert-001.safetensors"),
        ("--alpha", "0.1,0.9,0", "--batchnorm", "from:expert-002"),
        ("--alpha", "0.1,0.9,0", "--head", "head.*", "--head-policy", "from:1"),
        ("--method", "uniform", "--head", "head.*", "--head-policy", "reset", "--classes", "a,b", "--seed", "5"),
    ],
    ids=" ".join,
)
def test_the_same_bytes_without_spec_or_data(here, glue, experts, flags):
    glue("mix", *flags, *experts, "-q", code=0)
    shutil.rmtree("data")
    (here / "glue.yaml").unlink()
    answer = again(glue, experts, "--json")
    assert answer.code == 0, answer.err
    assert same_bytes(here) and answer.json["like"] == "prior.safetensors"


def test_each_group_gets_its_own_coefficients(here, glue, experts):
    settings = [
        "--set",
        "mix.groups={low: 'features.*', high: ['head.*']}",
        "--set",
        "mix.preset=paper",
        "--budget",
        "60",
    ]
    found = glue("mix", "--method", "spsa", *experts, *settings, "-q", "--json", code=0).json
    assert found["groups"]["low"] != found["groups"]["high"]
    assert again(glue, experts).code == 0 and same_bytes(here)


def test_the_experts_may_have_other_names(here, glue, experts):
    glue("mix", "--alpha", "0.3,0.3,0.4", "--batchnorm", f"from:{experts[1]}", *experts, "-q", code=0)
    moved = [shutil.copy(path, f"moved-{i}.safetensors") for i, path in enumerate(reversed(experts))][::-1]
    assert again(glue, moved).code == 0 and same_bytes(here)


def test_experts_of_which_each_had_another_set_of_weights(here, glue, experts):
    tensors = load_file(experts[0])
    torch.save({"ema": tensors, "model": {name: 2 * tensor for name, tensor in tensors.items()}}, "both.pt")
    glue("mix", "both.pt", experts[1], "--weights", "ema", "--alpha", "0.3,0.7", "-q", code=0)
    glue("mix", "--like", "prior.safetensors", experts[1], "both.pt", "-o", "again.safetensors", code=0)
    assert same_bytes(here)


@pytest.mark.parametrize("named", ["as before", "otherwise", "alike"])
def test_the_experts_may_come_in_another_order(here, glue, experts, named):
    if named == "alike":
        experts = [
            shutil.copy(path, here / f"{path.stem}.d/model.safetensors")
            for path in map(Path, experts)
            if (here / f"{path.stem}.d").mkdir() is None
        ]
    flags = ("--alpha", "0.2,0.3,0.5", "--batchnorm", f"from:{experts[2]}")
    glue("mix", *flags, *experts, "-q", code=0)
    if named == "otherwise":
        experts = [shutil.copy(path, f"moved-{i}.safetensors") for i, path in enumerate(reversed(experts))][::-1]
    one, two, three = experts
    answer = glue("mix", "--like", "prior.safetensors", two, one, three, "-o", "again.safetensors", code=0)
    assert same_bytes(here) and f"in the blend's order: {one}, {two}, {three}" in answer.err


def test_shards_and_their_index(here, glue, experts):
    flags = ("--max-shard-size", "2kB", "-q")
    glue("mix", "--method", "uniform", *experts, "-o", "one/blend.safetensors", *flags, code=0)
    output = "two/blend.safetensors"
    assert again(glue, experts, blend="one/blend.safetensors.index.json", output=output).code == 0
    files = sorted(path.name for path in (here / "one").iterdir())
    assert len(files) > 2 and files == sorted(path.name for path in (here / "two").iterdir())
    assert all(same_bytes(here, f"one/{name}", f"two/{name}") for name in files)


def test_a_folder_with_its_modules_and_its_card(here, glue, experts):
    folders = []
    for k, path in enumerate(experts):
        (here / f"f{k}/head").mkdir(parents=True)
        shutil.copy(path, f"f{k}/model.safetensors")
        save_file({"w": torch.full((3,), float(k))}, f"f{k}/head/model.safetensors")
        folders.append(f"f{k}")
    alpha = glue("mix", "--method", "spsa", "--budget", "20", *folders, "-o", "one", "--json", code=0).json["alpha"]
    assert again(glue, folders, blend="one", output="two").code == 0
    names = {path.relative_to(here / "one") for path in (here / "one").rglob("*.*")}
    assert len(names) == 3 and all(same_bytes(here, f"one/{name}", f"two/{name}") for name in names)
    assert load_file("one/head/model.safetensors")["w"].tolist() == pytest.approx([alpha[1] + 2 * alpha[2]] * 3)
    card = (here / "one/README.md").read_text()
    assert f"| `f1` | {alpha[1]:.4f} |" in card and "the loss on the target's validation data" in card
    assert again(glue, folders, "--no-card", blend="one", output="bare").code == 0
    assert not (here / "bare/README.md").exists()


# ---- refreshed statistics


def test_refreshed_statistics_need_the_spec_and_its_data(here, glue, experts):
    glue("mix", "--alpha", "0.2,0.3,0.5", "--batchnorm", "refresh", "--seed", "9", *experts, "-q", code=0)
    (here / "glue.yaml").write_text((here / "glue.yaml").read_text().replace("batch_size: 30", "batch_size: 17"))
    assert again(glue, experts).code == 0  # the recipe's is taken
    assert same_bytes(here)
    (here / "glue.yaml").rename("other.yaml")
    again(glue, experts, "-f").refused(2, "no spec at 'glue.yaml'")


def test_other_data_or_another_model_are_refused(here, glue, experts):
    glue("mix", "--alpha", "0.2,0.3,0.5", "--batchnorm", "refresh", *experts, "-q", code=0)
    refused = again(glue, experts, "--set", "data.mean=[0.4]")  # other inputs to the model
    refused.refused(3, "target's examples are not those")
    again(glue, experts, "--set", "data.target.train=100").refused(3, "target's examples are not those")
    train = load_file("data/train.safetensors")
    train["images"][-1, 0, 0, 0] ^= 1
    for i in range(len(train["images"])):  # whichever of them are the target's
        train["images"][i, 0, 0, 0] ^= 1
    save_file(train, "data/train.safetensors")
    again(glue, experts).refused(3, "target's examples are not those")
    again(glue, experts, "--set", "model.args.num_classes=9").refused(3, "model")
    assert not (here / "again.safetensors").exists()


# ---- refusals


def test_another_expert_is_refused(here, glue, experts):
    glue("mix", "--alpha", "0.2,0.3,0.5", *experts, "-q", code=0)
    shutil.copy("prior.safetensors", "foreign.safetensors")
    foreign = again(glue, [experts[1], "foreign.safetensors", experts[2]])
    foreign.refused(3, "'foreign.safetensors' is not what the blend", f"wanted '{Path(experts[0]).name}'")
    assert experts[1] not in foreign.err
    twice = again(glue, [experts[0], experts[1], experts[1]])
    twice.refused(3, f"'{experts[1]}' is given more often", f"wanted '{Path(experts[2]).name}'")
    tensors = load_file(experts[2])
    tensors["head.bias"][0] += 1
    with safe_open(experts[2], "pt") as file:
        save_file(tensors, experts[2], metadata=file.metadata())
    again(glue, experts).refused(3, experts[2], "sha256")
    assert not (here / "again.safetensors").exists()
    again(glue, experts[:2]).refused(2, "made from 3 experts, and 2 are given", "in any order")


def test_it_is_never_written_over_itself(here, glue, experts):
    glue("mix", "--method", "uniform", *experts, "-q", code=0)
    before = (here / "prior.safetensors").read_bytes()
    again(glue, experts, "--force", output="prior.safetensors").refused(2, "also an input")
    assert (here / "prior.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "flags",
    [
        ("--method", "uniform"),
        ("--alpha", "1,0,0"),
        ("--dtype", "float16"),
        ("--no-hash",),
        ("--seed", "3"),
        ("--batchnorm", "from:0"),
        ("--explain",),
        ("--set", "mix.batch_size=64"),
        ("--set", "seed=3"),
        ("--set", "precision=bf16"),
    ],
    ids=" ".join,
)
def test_what_the_recipe_says_cannot_be_said_again(here, glue, experts, flags):
    glue("mix", "--method", "uniform", *experts, "-q", code=0)
    again(glue, experts, *flags).refused(2, "--like", flags[0])


def test_what_the_recipe_does_not_say_can_be_set(here, glue, experts):
    glue("mix", "--alpha", "0.2,0.3,0.5", "--batchnorm", "refresh", *experts, "-q", code=0)
    (here / "data").rename("moved")
    assert again(glue, experts, "--set", "data.root=moved").code == 0 and same_bytes(here)


def change_metadata(path, change):
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    found = json.loads(metadata["glue"])
    change(found)
    save_file(load_file(path), path, metadata={**metadata, "glue": json.dumps(found)})


@pytest.mark.parametrize(
    "change",
    [
        lambda glue: glue.pop("recipe"),
        lambda glue: glue["experts"][0].update(sha256=None),
        lambda glue: glue["experts"][0].update(sha256="0" * 63),
        lambda glue: glue.update(alpha=[0.5, 0.5]),
        lambda glue: glue.update(alpha=["1", 0, 0]),
        lambda glue: glue.update(alpha=[0.9, 0.9, -0.8]),
        lambda glue: glue.update(alpha=[0.9, 0.3, 0.3]),
        lambda glue: glue["recipe"].update(dtype="int8"),
        lambda glue: glue["recipe"].update(later="a key of a later version"),
        lambda glue: glue["recipe"].update(rules={"copy_from": 7, "exclude": ["head.*"]}),
        lambda glue: glue["recipe"].update(rules={"batchnorm": "from:../x"}),
    ],
)
def test_metadata_that_are_not_enough_are_refused(here, glue, experts, change):
    glue("mix", "--method", "uniform", *experts, "-q", code=0)
    change_metadata("prior.safetensors", change)
    again(glue, experts).refused(3)
    assert not (here / "again.safetensors").exists()


def test_what_no_mix_wrote_is_refused(here, glue, experts):
    again(glue, experts, blend=experts[0]).refused(3, "not enough to make it again")
    again(glue, experts, blend="nothing.safetensors").refused(2, "nothing.safetensors")


# ---- adapters


@pytest.fixture
def adapters(here):
    """Two adapters of one linear layer, and their base."""
    for seed, name in enumerate(("a", "b")):
        (here / name).mkdir()
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["fc"], "task_type": None}
        (here / name / "adapter_config.json").write_text(json.dumps(config))
        draws = torch.Generator().manual_seed(seed)
        factors = {"lora_A": (2, 5), "lora_B": (3, 2)}
        tensors = {f"base_model.model.fc.{k}.weight": torch.randn(*n, generator=draws) for k, n in factors.items()}
        save_file(tensors, f"{name}/adapter_model.safetensors")
    save_file({"fc.weight": torch.randn(3, 5), "fc.bias": torch.zeros(3)}, "base.safetensors")
    return ["a", "b"]


def test_adapters_stay_adapters(here, glue, adapters):
    glue("mix", "--alpha", "0.4,0.6", *adapters, "-o", "mixed", "-q", code=0)
    assert again(glue, adapters, blend="mixed", output="again").code == 0
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert same_bytes(here, f"mixed/{name}", f"again/{name}")
    again(glue, adapters, "--base", "base.safetensors", blend="mixed", output="m.safetensors").refused(2, "--base")


def test_merged_adapters_need_the_same_base(here, glue, adapters):
    glue("mix", "--alpha", "0.4,0.6", *adapters, "--base", "base.safetensors", "-q", code=0)
    again(glue, adapters).refused(2, "--base")
    assert again(glue, adapters, "--base", "base.safetensors").code == 0 and same_bytes(here)
    base = load_file("base.safetensors")
    save_file({**base, "fc.bias": base["fc.bias"] + 1}, "base.safetensors")
    again(glue, adapters, "--base", "base.safetensors", "-f").refused(3, "base.safetensors", "sha256")


def test_remembered_sha256_are_told_and_not_believed_when_made_again(here, glue, experts, monkeypatch):
    monkeypatch.setattr("glue_cli.checkpoints.digests._TICK_NS", 0)
    first = glue("mix", "--alpha", "0.2,0.3,0.5", *experts, "--json", code=0)
    second = glue("mix", "--alpha", "0.2,0.3,0.5", *experts, "--json", "--force", code=0)
    assert "remembered" not in first.err and "sha256 of 3 of 3 experts as remembered" in second.err
    assert first.json["experts"] == second.json["experts"]
    remembered = Digests(Path(os.environ["XDG_CACHE_HOME"], "glue"))
    remembered.add(dict.fromkeys(remembered.read(), "0" * 64))
    answer = again(glue, experts)
    assert answer.code == 0 and same_bytes(here)
