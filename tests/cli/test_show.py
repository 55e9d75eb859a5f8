"""glue show: what a checkpoint says of itself, of every kind that glue reads."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file


def test_a_blend_shows_its_experts_and_coefficients(here, glue, experts):
    glue("mix", "--alpha", "0.25,0.75,0", *experts, "-q", code=0)
    shown = glue("show", "prior.safetensors", code=0)
    lines = [line.split() for line in shown.out.splitlines()]
    mixed = {line[0]: line[1] for line in lines if line and line[0].startswith("expert-")}
    assert mixed == {
        "expert-000.safetensors": "0.2500",
        "expert-001.safetensors": "0.7500",
        "expert-002.safetensors": "0.0000",
    }
    assert shown.err == ""


def test_experts_of_one_name_are_shown_with_their_folders(here, glue, experts):
    paths = [f"all/{name}/model.safetensors" for name in ("books", "dvd")] + ["other.safetensors"]
    for expert, path in zip(experts, paths, strict=True):
        (here / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(expert, path)
    glue("mix", "--method", "uniform", *paths[:2], here / paths[2], "-q", code=0)
    shown = glue("show", "prior.safetensors", code=0).out
    assert "\nbooks/model.safetensors " in shown and "\ndvd/model.safetensors " in shown
    assert "\nother.safetensors " in shown and "all/" not in shown


def test_what_a_search_measured_and_was_set_to_has_a_line_each(here, glue, experts):
    glue("mix", "--method", "spsa", *experts, "-q", code=0)
    facts = dict(
        line.split("  ", 1) for line in glue("show", "prior.safetensors", code=0).out.splitlines()[3:20] if line
    )
    shown = {key: text.strip() for key, text in facts.items()}
    assert shown["measured objective"] == shown["settings loss"].replace("cross_entropy", "loss") == "loss"
    assert float(shown["measured val"]) > 0 and "measured" not in shown


def test_the_figures_are_those_of_the_tensors(here, glue, experts):
    found = glue("show", experts[0], "--json", code=0).json
    tensors = load_file(experts[0])
    assert found["schema"] == "glue.show/1" and found["checkpoint"] == experts[0]
    assert {t["name"]: (t["shape"], t["bytes"]) for t in found["tensors"]} == {
        name: (list(tensor.shape), tensor.numel() * tensor.element_size()) for name, tensor in tensors.items()
    }
    assert found["parameters"] == sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point())
    assert found["bytes"] == sum(t["bytes"] for t in found["tensors"])
    assert found["bytes"] == sum(n["bytes"] for n in found["dtypes"].values())
    assert found["files"] == [{"path": experts[0], "bytes": (here / experts[0]).stat().st_size}]
    assert found["glue"]["model"]["arch"] == "cnn" and found["metadata"] == {"format": "pt"}


def test_shards_count_together(here, glue, experts):
    glue("mix", "--method", "uniform", *experts, "--max-shard-size", "2kB", "-o", "many.safetensors", "-q", code=0)
    whole = glue("show", experts[0], "--json", code=0).json
    sharded = glue("show", "many.safetensors.index.json", "--json", code=0).json
    assert len(sharded["files"]) > 1
    assert {t["name"]: t["shape"] for t in sharded["tensors"]} == {t["name"]: t["shape"] for t in whole["tensors"]}
    assert (sharded["parameters"], sharded["bytes"]) == (whole["parameters"], whole["bytes"])


def test_a_file_of_torch(here, glue):
    torch.save({"state_dict": {"weight": torch.zeros(2, 3, dtype=torch.bfloat16)}}, "net.pt")
    found = glue("show", "net.pt", "--json", code=0).json
    assert found["tensors"] == [{"name": "weight", "dtype": "BF16", "shape": [2, 3], "bytes": 12}]
    assert found["glue"] == {}
    assert "no metadata of glue" in glue("show", "net.pt", code=0).out


def test_a_model_folder_shows_its_configuration(here, glue):
    (here / "net").mkdir()
    save_file({"weight": torch.zeros(2)}, "net/model.safetensors", metadata={"format": "pt"})
    (here / "net" / "config.json").write_text(json.dumps({"architectures": ["BertModel"], "model_type": "bert"}))
    assert glue("show", "net", "--json", code=0).json["config"]["model_type"] == "bert"
    assert "BertModel" in glue("show", "net", code=0).out
    (here / "net" / "config.json").write_text("[1]")
    assert glue("show", "net", "--json", code=0).json["config"] == {}


def test_an_adapter_shows_its_factors_and_settings(here, glue):
    (here / "lora").mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"], "base_model_name_or_path": "base"}
    (here / "lora" / "adapter_config.json").write_text(json.dumps(config))
    factors = {"lora_A": torch.zeros(2, 5), "lora_B": torch.zeros(3, 2)}
    tensors = {f"base_model.model.q.{name}.weight": tensor for name, tensor in factors.items()}
    save_file(tensors, "lora/adapter_model.safetensors")
    found = glue("show", "lora", "--json", code=0).json
    assert found["config"] == config and found["parameters"] == 16
    assert "LORA" in glue("show", "lora", code=0).out


@pytest.mark.parametrize(("n_groups", "header"), [(2, "expert first second"), (4, "group a b c")])
def test_the_alpha_of_each_group_is_a_table_longer_than_wide(here, glue, n_groups, header):
    groups = dict(
        zip(["first", "second", "third", "last"][:n_groups], [[0.5, 0.25, 0.25], [0, 1, 0]] * 2, strict=False)
    )
    experts = [{"name": name, "sha256": None, "examples": None} for name in "abc"]
    said = {"alpha": [0.25, 0.625, 0.125], "groups": groups, "experts": experts}
    save_file({"weight": torch.zeros(2)}, "net.safetensors", metadata={"glue": json.dumps(said)})
    lines = [" ".join(line.split()) for line in glue("show", "net.safetensors", code=0).out.splitlines()]
    rows = ["a 0.5000 0.0000", "b 0.2500 1.0000"] if n_groups == 2 else ["last 0.0000 1.0000 0.0000"]
    assert all(line in lines for line in [header, "b 0.6250 -", *rows])


@pytest.mark.parametrize(
    "said",
    ["[]", "{", '{"alpha": 3, "experts": 5}', '{"alpha": [1], "experts": [{}, 2]}', '{"groups": [], "experts": {}}'],
)
def test_what_others_wrote_under_glues_name_stops_nothing(here, glue, said):
    save_file({"weight": torch.zeros(2)}, "net.safetensors", metadata={"glue": said})
    assert "weight" in glue("show", "net.safetensors", code=0).out
    glue("show", "net.safetensors", "--json", code=0)


def test_what_is_no_checkpoint_is_refused(here, glue):
    glue("show", "nothing.safetensors").refused(2, "no checkpoint at 'nothing.safetensors'")
    glue("show", "n" * 300).refused(2, f"no checkpoint at '{'n' * 300}'")
    (here / "text.safetensors").write_text("hello")
    glue("show", "text.safetensors").refused(3, "text.safetensors")
