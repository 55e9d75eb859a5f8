"""Commands on models that are named by their id on the Hub and lie in its cache."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

A, B, C = "a" * 40, "b" * 40, "c" * 40


@pytest.fixture
def models(here, hub_cache, tmp_path):
    """Two experts on the Hub, one of them in two revisions."""
    for number, (name, commit, refs) in enumerate(
        [("o/first", A, ("main",)), ("o/second", B, ("v1",)), ("o/second", C, ("main",))]
    ):
        folder = tmp_path / "models" / str(number)
        folder.mkdir(parents=True)
        shutil.copyfile(f"experts/expert-00{number}.safetensors", folder / "model.safetensors")
        (folder / "config.json").write_text('{"model_type": "mine"}')
        hub_cache(name, folder, commit, refs)
    return here


def metadata(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["glue"])


def test_experts_on_the_hub_are_blended_and_their_commits_recorded(models, glue):
    named = glue(
        "mix", "--alpha", "0.25,0.75", "hf:o/first", "hf:o/second@v1", "-o", "hub.safetensors", "--json", code=0
    )
    paths = ["experts/expert-000.safetensors", "experts/expert-001.safetensors"]
    local = glue("mix", "--alpha", "0.25,0.75", *paths, "-o", "local.safetensors", "--json", code=0)
    assert [expert["path"] for expert in named.json["experts"]] == [f"hf:o/first@{A}", f"hf:o/second@{B}"]
    assert [expert["name"] for expert in metadata("hub.safetensors")["experts"]] == [
        f"hf:o/first@{A}",
        f"hf:o/second@{B}",
    ]
    found, wanted = load_file("hub.safetensors"), load_file("local.safetensors")
    assert all(found[name].equal(wanted[name]) for name in wanted) and local.code == 0


def test_a_search_and_an_evaluation_of_models_on_the_hub(models, glue):
    answer = glue(
        "mix", "--method", "spsa", "hf:o/first", "hf:o/second", "-o", "p.safetensors", "--json", "-q", code=0
    )
    assert [expert["path"] for expert in answer.json["experts"]] == [f"hf:o/first@{A}", f"hf:o/second@{C}"]
    answer = glue("evaluate", f"hf:o/second@{B}", "experts/expert-001.safetensors", "--json", "-q", code=0)
    first, second = answer.json["results"]
    assert first["checkpoint"] == f"hf:o/second@{B}" and second["checkpoint"] == "experts/expert-001.safetensors"
    assert first["loss"] == second["loss"]


def test_a_rule_names_an_expert_as_it_was_typed(models, glue):
    rule = ["--exclude", "*weight", "--copy-from"]
    for name in ("hf:o/second@v1", f"hf:o/second@{B}", "hf:o/second"):
        output = ["-o", f"out-{len(name)}.safetensors", "-q"]
        glue("mix", "--alpha", "1,0", "hf:o/first", "hf:o/second@v1", *rule, name, *output, code=0)
        found, wanted = load_file(output[1]), load_file("experts/expert-001.safetensors")
        assert all(found[key].equal(wanted[key]) for key in wanted if key.endswith("weight"))


def test_experts_start_from_a_model_on_the_hub(models, glue):
    start = ["--set", "experts.init=hf:o/second@v1", "--expert", "0", "-q", "--json"]
    answer = glue("train-expert", *start, "-o", "e.safetensors", code=0)
    assert answer.json["settings"]["experts"]["init"] == f"hf:o/second@{B}"
    same = ["--set", "experts.init=experts/expert-001.safetensors", "--expert", "0", "-q"]
    glue("train-expert", *same, "-o", "f.safetensors", code=0)
    found, wanted = load_file("e.safetensors"), load_file("f.safetensors")
    assert all(found[name].equal(wanted[name]) for name in wanted)


def test_a_checkpoint_on_the_hub_is_finetuned_and_shown(models, glue):
    answer = glue("finetune", "hf:o/first", "-o", "t.safetensors", "--json", "-q", code=0)
    assert answer.json["start"] == f"hf:o/first@{A}" == metadata("t.safetensors")["start"]
    assert glue("show", "hf:o/first", "--json", code=0).json["checkpoint"] == f"hf:o/first@{A}"


def test_what_is_not_in_the_cache_is_an_error_that_says_so(models, glue):
    for arguments in (
        ["mix", "--alpha", "1,0", "hf:o/first", "hf:o/gone"],
        ["evaluate", "hf:o/gone"],
        ["finetune", "hf:o/gone"],
        ["train-expert", "--expert", "0", "--set", "experts.init=hf:o/gone", "-o", "out.safetensors"],
        ["show", "hf:o/gone"],
    ):
        glue(*arguments).refused(
            2, "'hf:o/gone' is not whole in the cache", "HF_HUB_OFFLINE is set", "hf download o/gone"
        )
    glue("evaluate", "hf:o/first@").refused(2, "names no model on the Hub")
    glue("evaluate", "hf:o/second@v9").refused(2, f"the cache has hf:o/second@{B}", "--revision v9")


@pytest.mark.usefixtures("torchvision")
def test_a_model_of_transformers_on_the_hub(here, glue, hub_cache, tmp_path):
    """The cache is looked at before transformers is imported, which turns the network off."""
    pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    images = {"image_size": 8, "patch_size": 4, "num_channels": 1}
    labels = {"id2label": {str(number): str(number) for number in range(10)}}
    (here / "fresh").mkdir()
    (here / "fresh/config.json").write_text(json.dumps({"model_type": "vit", **sizes, **images, **labels}))
    fresh = ["--set", "model={arch: 'transformers:AutoModelForImageClassification', args: {path: fresh}}"]
    glue("finetune", "--from-scratch", *fresh, "-o", tmp_path / "vit", "-q", code=0)
    processor = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.25], "image_std": [0.5]}
    (tmp_path / "vit/preprocessor_config.json").write_text(json.dumps(processor))
    hub_cache("o/vit", tmp_path / "vit", A)
    spec = ["--set", "model={arch: 'transformers:AutoModelForImageClassification', args: {path: 'hf:o/vit'}}"]
    answer = glue("evaluate", "hf:o/vit", *spec, "--json", code=0)
    assert answer.json["model"]["args"] == {"path": f"hf:o/vit@{A}"}
    assert answer.json["data"]["model_says"] == {"mean": [0.25], "std": [0.5], "file": "preprocessor_config.json"}
    glue("finetune", "hf:o/vit", *spec, "-o", "tuned", "-q", code=0)
    assert {path.name for path in Path("tuned").iterdir()} >= {
        "model.safetensors",
        "config.json",
        "preprocessor_config.json",
    }
    assert not any(path.is_symlink() for path in Path("tuned").iterdir())
    answer = glue("mix", "--alpha", "0.5,0.5", "hf:o/vit", "tuned", "-o", "blend", "--json", "-q", code=0)
    assert [expert["path"] for expert in answer.json["experts"]] == [f"hf:o/vit@{A}", "tuned"]


def test_adapters_and_their_base_on_the_hub(here, glue, hub_cache, tmp_path):
    base = {"layer.weight": torch.ones(3, 4)}
    (tmp_path / "base").mkdir()
    save_file(base, tmp_path / "base/model.safetensors", {"format": "pt"})
    (tmp_path / "base/config.json").write_text('{"model_type": "mine"}')
    hub_cache("o/base", tmp_path / "base", A)
    wanted = base["layer.weight"].clone()
    for number, commit in enumerate((B, C)):
        folder = tmp_path / f"adapter-{number}"
        folder.mkdir()
        a, b = torch.full((2, 4), number + 1.0), torch.full((3, 2), 0.5)
        names = ("base_model.model.layer.lora_A.weight", "base_model.model.layer.lora_B.weight")
        save_file(dict(zip(names, (a, b), strict=True)), folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["layer"]}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        hub_cache(f"o/adapter-{number}", folder, commit)
        wanted += 0.5 * b @ a
    adapters = ["hf:o/adapter-0", "hf:o/adapter-1@main"]
    answer = glue("mix", "--alpha", "0.5,0.5", *adapters, "--base", "hf:o/base", "-o", "merged", "--json", code=0)
    assert [expert["path"] for expert in answer.json["experts"]] == [f"hf:o/adapter-0@{B}", f"hf:o/adapter-1@{C}"]
    assert load_file("merged/model.safetensors")["layer.weight"].equal(wanted)
