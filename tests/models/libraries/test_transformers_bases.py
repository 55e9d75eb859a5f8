"""What a base's tensors are called while it is adapted."""

import json
import shutil

import pytest

from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.models.libraries.transformers_bases import names_in_memory, unquantised

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("torchvision")

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
VIT = {**SIZES, "image_size": 8, "patch_size": 4}
MIXTRAL = {**SIZES, "num_key_value_heads": 2, "vocab_size": 16, "num_local_experts": 2, "bos_token_id": None}
QUERY = ("vit.layers.0.attention.q_proj.weight", "vit.encoder.layer.0.attention.attention.query.weight")


@pytest.fixture
def vit(tmp_path):
    transformers.ViTForImageClassification(transformers.ViTConfig(**VIT)).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


@pytest.mark.parametrize("config", [{}, {"auto_mapping": {"base_model_class": "ViTForImageClassification"}}])
@pytest.mark.parametrize("file", ["", "model.safetensors"])
def test_the_class_is_the_adapters_or_the_bases_own(vit, config, file):
    base = read_checkpoint(vit / file)
    names = names_in_memory(base, config)
    assert names[QUERY[0]] == QUERY[1] and names["classifier.bias"] == "classifier.bias"
    assert {*names.values()} == {*base.entries}


def test_a_bare_base_of_an_adapted_model_with_a_head(vit, tmp_path):
    transformers.ViTForImageClassification.from_pretrained(vit).vit.save_pretrained(tmp_path / "bare")
    config = {"auto_mapping": {"base_model_class": "ViTForImageClassification"}}
    names = names_in_memory(read_checkpoint(tmp_path / "bare"), config)
    assert names[QUERY[0]] == QUERY[1].removeprefix("vit.") and "classifier.bias" not in names


def test_a_quantised_base_is_described_as_the_model_that_it_was_made_from(vit):
    model = transformers.ViTForImageClassification.from_pretrained(vit)
    config = json.loads((vit / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (vit / "config.json").write_text(json.dumps(config))
    described = unquantised(read_checkpoint(vit), {})
    assert {name: e.shape for name, e in described.entries.items()} == {
        n: t.shape for n, t in model.state_dict().items()
    }
    assert {entry.dtype for entry in described.entries.values()} == {"F32"}
    assert described.path == read_checkpoint(vit).path


def test_tied_weights_are_described_once(tmp_path):
    sizes = {**SIZES, "vocab_size": 16, "tie_word_embeddings": True}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).save_pretrained(tmp_path / "tied")
    described = unquantised(read_checkpoint(tmp_path / "tied"), {"task_type": "CAUSAL_LM"})
    assert "model.embed_tokens.weight" in described.entries and "lm_head.weight" not in described.entries


def test_the_class_of_a_task_and_tensors_that_are_put_together(tmp_path):
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**MIXTRAL))
    model.save_pretrained(tmp_path / "mixtral")
    names = names_in_memory(read_checkpoint(tmp_path / "mixtral"), {"task_type": "CAUSAL_LM"})
    assert names["model.layers.0.self_attn.q_proj.weight"] == "model.layers.0.self_attn.q_proj.weight"
    assert {*names} == {name for name in model.state_dict() if ".experts." not in name}


@pytest.mark.parametrize(
    "text", [None, "{", "[]", json.dumps({"model_type": "unheard", "architectures": ["Unheard"]})]
)
def test_a_base_that_transformers_does_not_know(vit, text, tmp_path):
    if text is None:
        (vit / "config.json").unlink()
    else:
        (vit / "config.json").write_text(text)
    assert names_in_memory(read_checkpoint(vit), {}) == {} and unquantised(read_checkpoint(vit), {}) is None
    shutil.copy(vit / "model.safetensors", tmp_path / "alone.safetensors")
    assert names_in_memory(read_checkpoint(tmp_path / "alone.safetensors"), {}) == {}
