"""transformers itself is the reference: what `from_pretrained` loads, and what `save_pretrained` writes."""

import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.foundation.errors import SpecError
from glue_cli.models.matching import list_differences, match_names, tensors_on_disk

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("torchvision")

SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
VISION = {**SIZES, "image_size": 8, "patch_size": 4}
TEXT = {**SIZES, "vocab_size": 16, "max_position_embeddings": 16}
LLAMA = {**TEXT, "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
PYRAMID = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "sr_ratios": [2, 1],
    "hidden_sizes": [4, 8],
    "patch_sizes": [3, 3],
    "strides": [2, 2],
    "num_attention_heads": [1, 2],
    "mlp_ratios": [1, 1],
    "decoder_hidden_size": 8,
}
SOUND = {
    **SIZES,
    "conv_dim": (8, 8),
    "conv_kernel": (4, 4),
    "conv_stride": (2, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 8,
}
ESM = {**TEXT, "vocab_size": 24, "pad_token_id": 1, "mask_token_id": 2}
# class -> its configuration; twelve experts, so that their natural order is not the alphabet's
MODELS = {
    "ViTForImageClassification": ("ViTConfig", VISION),
    "DeiTForImageClassification": ("DeiTConfig", VISION),
    "BeitForImageClassification": ("BeitConfig", {**VISION, "use_relative_position_bias": True}),
    "Dinov2ForImageClassification": ("Dinov2Config", {**VISION, "mlp_ratio": 1}),
    "SwinForImageClassification": (
        "SwinConfig",
        {"image_size": 8, "patch_size": 2, "embed_dim": 4, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2},
    ),
    "SegformerForSemanticSegmentation": ("SegformerConfig", PYRAMID),
    "ConvNextForImageClassification": (
        "ConvNextConfig",
        {"num_stages": 2, "hidden_sizes": [4, 8], "depths": [1, 1]},
    ),
    "ResNetForImageClassification": (
        "ResNetConfig",
        {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"},
    ),
    "ASTForAudioClassification": (
        "ASTConfig",
        {**SIZES, "patch_size": 4, "frequency_stride": 4, "time_stride": 4, "max_length": 16, "num_mel_bins": 8},
    ),
    "VivitForVideoClassification": (
        "VivitConfig",
        {**SIZES, "image_size": 8, "num_frames": 4, "tubelet_size": [2, 4, 4]},
    ),
    "Wav2Vec2ForSequenceClassification": ("Wav2Vec2Config", SOUND),
    "CLIPModel": (
        "CLIPConfig",
        {"text_config": {**TEXT, "num_hidden_layers": 1}, "vision_config": {**VISION, "num_hidden_layers": 1}},
    ),
    "BertForMaskedLM": ("BertConfig", TEXT),
    "EsmForSequenceClassification": ("EsmConfig", {**ESM, "position_embedding_type": "rotary"}),
    "EsmForMaskedLM": ("EsmConfig", ESM),
    "GPT2ForSequenceClassification": (
        "GPT2Config",
        {"vocab_size": 16, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16, "pad_token_id": 0},
    ),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}),
    "T5ForConditionalGeneration": (
        "T5Config",
        {"vocab_size": 16, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2},
    ),
    "LlamaForCausalLM": ("LlamaConfig", {**LLAMA, "tie_word_embeddings": True}),
    "MixtralForCausalLM": ("MixtralConfig", {**LLAMA, "num_local_experts": 12, "num_experts_per_tok": 2}),
    "Qwen3MoeForCausalLM": (
        "Qwen3MoeConfig",
        {**LLAMA, "head_dim": 4, "num_experts": 12, "num_experts_per_tok": 2, "moe_intermediate_size": 4},
    ),
    "OlmoeForCausalLM": ("OlmoeConfig", {**LLAMA, "num_experts": 3, "num_experts_per_tok": 2}),
    "NemotronHForCausalLM": (
        "NemotronHConfig",
        {
            "vocab_size": 16,
            "hidden_size": 8,
            "layers_block_type": ["mamba", "attention", "moe"],
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 4,
            "intermediate_size": 8,
            "mamba_num_heads": 2,
            "mamba_head_dim": 8,
            "ssm_state_size": 4,
            "n_groups": 1,
            "chunk_size": 8,
            "n_routed_experts": 3,
            "moe_intermediate_size": 4,
            "moe_shared_expert_intermediate_size": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    "LlavaForConditionalGeneration": ("LlavaConfig", {"vision_config": VISION, "text_config": LLAMA}),
    "DINOv3ViTModel": ("DINOv3ViTConfig", VISION),
    "Gemma3ForConditionalGeneration": (
        "Gemma3Config",
        {"vision_config": VISION, "text_config": {**LLAMA, "head_dim": 4}, "mm_tokens_per_image": 4},
    ),
}
RENAMED = {"ViTForImageClassification", "SwinForImageClassification", "GPTNeoXForCausalLM", "EsmForMaskedLM"}
MERGED = {"MixtralForCausalLM", "Qwen3MoeForCausalLM", "OlmoeForCausalLM", "NemotronHForCausalLM"}


def make(name, seed=0, **changes):
    """Return a model of random numbers, none of which is equal to another by its initialisation."""
    config, sizes = MODELS[name]
    torch.manual_seed(seed)
    model = getattr(transformers, name)(getattr(transformers, config)(**{**sizes, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def save(model, folder):
    model.save_pretrained(folder)
    return read_checkpoint(folder)


def load(model, checkpoint):
    """Load as glue does, without its checks; return the naming."""
    naming = match_names(model, checkpoint)
    tensors = {}
    for file in checkpoint.files:
        tensors |= load_file(file)
    model.load_state_dict(naming.in_memory(tensors), strict=False)
    return naming


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_loaded_and_written_as_by_transformers_itself(tmp_path, name):
    checkpoint = save(make(name), tmp_path / "saved")
    wanted = type(make(name)).from_pretrained(tmp_path / "saved").state_dict()
    model = make(name, seed=1)
    naming = load(model, checkpoint)
    assert list_differences(model, checkpoint, naming) == []
    assert_equal(model.state_dict(), wanted)
    written = load_file(checkpoint.files[0])
    assert_equal(tensors_on_disk(model, model.state_dict(), checkpoint), written)
    assert_equal(tensors_on_disk(make(name), make(name).state_dict(), None), written)
    sources = naming.sources.items()
    assert name not in RENAMED or any(source.names[0] != own and not source.make for own, source in sources)
    assert any(source.make for _, source in sources) == (name in MERGED)


@pytest.mark.parametrize("name", ["ViTForImageClassification", "Wav2Vec2ForSequenceClassification", *MERGED])
def test_a_file_with_the_names_in_memory_is_loaded_too(tmp_path, name):
    model, other = make(name), make(name, seed=1)
    save_file(model.state_dict(), tmp_path / "memory.safetensors")
    load(other, read_checkpoint(tmp_path / "memory.safetensors"))
    assert_equal(other.state_dict(), model.state_dict())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model."])
@pytest.mark.parametrize("name", ["ViTForImageClassification", "MixtralForCausalLM", "LlamaForCausalLM"])
def test_a_wrappers_prefix_is_passed_over(tmp_path, name, prefix):
    model, other = make(name), make(name, seed=1)
    saved = load_file(save(model, tmp_path / "saved").files[0])
    save_file({prefix + key: tensor for key, tensor in saved.items()}, tmp_path / "wrapped.safetensors")
    checkpoint = read_checkpoint(tmp_path / "wrapped.safetensors")
    assert list_differences(other, checkpoint, load(other, checkpoint)) == []
    assert_equal(other.state_dict(), model.state_dict())


def test_old_weight_norm_goes_back_as_it_came(tmp_path):
    name = "Wav2Vec2ForSequenceClassification"
    saved = load_file(save(make(name), tmp_path / "saved").files[0])
    old = {
        key.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for key, tensor in saved.items()
    }
    assert old.keys() != saved.keys()
    save_file(old, tmp_path / "old.safetensors")
    checkpoint, model = read_checkpoint(tmp_path / "old.safetensors"), make(name, seed=1)
    assert list_differences(model, checkpoint, load(model, checkpoint)) == []
    assert_equal(model.state_dict(), make(name).state_dict())
    assert_equal(tensors_on_disk(model, model.state_dict(), checkpoint), old)


@pytest.mark.parametrize(
    ("bare", "headed"),
    [
        ("ViTModel", "ViTForImageClassification"),
        ("GPT2Model", "GPT2ForSequenceClassification"),
        ("EsmModel", "EsmForMaskedLM"),
    ],
)
@pytest.mark.parametrize("is_bare_start", [True, False])
def test_a_relative_is_loaded_as_by_transformers_itself(tmp_path, bare, headed, is_bare_start):
    config = make(headed).config
    classes = getattr(transformers, bare), getattr(transformers, headed)
    start, wanted = classes if is_bare_start else classes[::-1]
    checkpoint = save(start(config), tmp_path / "start")
    reference, info = wanted.from_pretrained(tmp_path / "start", output_loading_info=True)
    model = wanted(config)
    naming = load(model, checkpoint)
    assert set(naming.unused) == set(info["unexpected_keys"])
    missing = {name for name in model.state_dict() if name not in naming.sources}
    assert missing == set(info["missing_keys"])
    for name in naming.sources:
        assert torch.equal(model.state_dict()[name], reference.state_dict()[name]), name


def test_a_tied_copy_is_written_where_the_start_had_one(tmp_path):
    model = make("LlamaForCausalLM")
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, tmp_path / "both.safetensors")
    both = read_checkpoint(tmp_path / "both.safetensors")
    assert "lm_head.weight" in tensors_on_disk(model, model.state_dict(), both)
    one = save(make("LlamaForCausalLM"), tmp_path / "one")
    assert "lm_head.weight" not in tensors_on_disk(model, model.state_dict(), one)


def test_what_the_library_does_without_may_be_missing(tmp_path):
    torch.manual_seed(0)
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes |= {
        "encoder_ffn_dim": 8,
        "decoder_ffn_dim": 8,
        "vocab_size": 16,
        "d_model": 8,
        "max_position_embeddings": 16,
    }
    model = transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes))
    saved = load_file(save(model, tmp_path / "saved").files[0])
    del saved["final_logits_bias"]  # as in checkpoints that were converted from fairseq
    save_file(saved, tmp_path / "lacking.safetensors")
    checkpoint = read_checkpoint(tmp_path / "lacking.safetensors")
    assert list_differences(model, checkpoint, match_names(model, checkpoint)) == []
    del saved["model.encoder.layers.0.fc1.bias"]
    save_file(saved, tmp_path / "lacking.safetensors")
    checkpoint = read_checkpoint(tmp_path / "lacking.safetensors")
    items = list_differences(model, checkpoint, match_names(model, checkpoint))
    assert items == ["'model.encoder.layers.0.fc1.bias' is missing"]


def mixtral_without(tmp_path, *lacking):
    """Save a Mixtral of three experts without some of its tensors; return what does not fit."""
    model = make("MixtralForCausalLM", num_local_experts=3)
    saved = load_file(save(model, tmp_path / "saved").files[0])
    for end in lacking:
        (name,) = [name for name in saved if "layers.0" in name and name.endswith(end)]
        del saved[name]
    save_file(saved, tmp_path / "lacking.safetensors")
    checkpoint = read_checkpoint(tmp_path / "lacking.safetensors")
    return list_differences(model, checkpoint, match_names(model, checkpoint))


@pytest.mark.parametrize(
    "lacking",
    [
        ["experts.1.w2.weight"],
        ["experts.1.w1.weight", "experts.1.w3.weight"],
        ["experts.0.w1.weight", "experts.1.w3.weight"],  # which the library would pair wrongly, without a word
        ["experts.0.w1.weight", "experts.1.w1.weight", "experts.2.w1.weight"],
    ],
)
def test_a_stack_that_lacks_a_matrix_does_not_fit(tmp_path, lacking):
    assert mixtral_without(tmp_path) == []
    items = mixtral_without(tmp_path, *lacking)
    assert items and all("experts" in item for item in items)


def test_a_release_that_names_tensors_in_another_way_is_named(tmp_path, monkeypatch):
    model = make("ViTForImageClassification")
    checkpoint = save(model, tmp_path / "saved")
    core = sys.modules["transformers.core_model_loading"]
    monkeypatch.setattr(core, "rename_source_key", lambda key: key)
    with pytest.raises(SpecError, match="does not know how transformers .* names tensors") as caught:
        match_names(model, checkpoint)
    assert "pip install" in caught.value.hint
    monkeypatch.delattr(core, "rename_source_key")
    with pytest.raises(SpecError, match="does not know how transformers"):
        match_names(model, checkpoint)
