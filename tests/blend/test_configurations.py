"""What config.json says of how the weights compute is compared; what it says besides is not.

Sources: arcee-ai/mergekit#325 (rope_theta), pull 688 (heads, rotary positions, activations, nested text_config), #536
(Gemma 3's nested configuration), intel/ipex-llm#10787 (rope_theta that is not read).
"""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from glue_cli.blend import configurations
from glue_cli.blend.configurations import compare_configurations, configuration_misfits
from glue_cli.blend.misfit import refuse
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.foundation.errors import CheckpointError

LLAMA = {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
MISTRAL, GEMMA = {"model_type": "mistral"}, {"model_type": "gemma2"}
OF_FOUR = {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
YARN = {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 10000.0}}
OF_YARN = {"original_max_position_embeddings": 16}  # from which its positions follow alone
OF_FIVE = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}


def notes_on(experts):
    misfits, notes = configuration_misfits(experts)
    refuse(misfits)
    return notes


@pytest.fixture
def expert(tmp_path):
    """Save an expert's folder with a configuration; None for none."""

    def make(name, config):
        folder = tmp_path / name
        folder.mkdir()
        save_file({"w": torch.zeros(2)}, folder / "model.safetensors")
        if config is not None:
            (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
        return read_checkpoint(folder)

    return make


@pytest.fixture(params=["with transformers", "without"])
def library(request, monkeypatch):
    """Whether the library can be asked for what a configuration leaves out."""
    if request.param == "with transformers":
        request.getfixturevalue("torchvision")
        pytest.importorskip("transformers")
    else:
        monkeypatch.setattr(configurations, "import_beside_torchvision", lambda name: 1 / 0)


@pytest.mark.parametrize(
    ("one", "other", "named"),
    [
        ({"num_attention_heads": 4}, {}, "num_attention_heads is 4, in .* it is 2"),
        ({"rope_theta": 1e6}, {"rope_theta": 1e4}, "rope_parameters.rope_theta is 1000000.0, in .* it is 10000.0"),
        ({"hidden_act": "gelu"}, {"hidden_act": "silu"}, 'hidden_act is "gelu", in .* it is "silu"'),
        ({"tie_word_embeddings": True}, {"tie_word_embeddings": False}, "tie_word_embeddings is true"),
        ({"rms_norm_eps": 1e-5}, {"rms_norm_eps": 1e-6}, "rms_norm_eps is 1e-05"),
        (OF_FOUR, {"rope_parameters": {**OF_FIVE["rope_parameters"], "factor": 4.0}}, "rope_parameters.factor is 2.0"),
        ({"model_type": "mistral"}, {}, 'model_type is "mistral"'),
        (
            LLAMA | YARN | {"max_position_embeddings": 64},
            LLAMA | YARN | {"max_position_embeddings": 32},
            "max_position_embeddings is 64",
        ),
        ({"token_dropout": True}, {"token_dropout": False}, "token_dropout is true"),
        (
            {"model_type": "dory", "initializer_range": 0.02},
            {"model_type": "dory", "initializer_range": 0.05},
            "initializer_range is 0.02",
        ),
        ({"output_stride": 8}, {"output_stride": 32}, "output_stride is 8"),
        (
            {"problem_type": "regression"},
            {"problem_type": "single_label_classification"},
            'problem_type is "regression", in .* it is "single_label_classification"',
        ),
        ({"output_logit_soft_cap": 0.3}, {"output_logit_soft_cap": 30.0}, "output_logit_soft_cap is 0.3"),
        (
            MISTRAL | {"sliding_window": None},
            MISTRAL | {"sliding_window": 16},
            "sliding_window is null, in .* it is 16",
        ),
        (GEMMA | {"attn_logit_softcapping": 50.0}, GEMMA | {"attn_logit_softcapping": None}, "softcapping is 50.0"),
        (
            {"sliding_window": 16, "model_type": "qwen2"},
            {"sliding_window": 8, "model_type": "qwen2"},
            "sliding_window",
        ),
    ],
)
def test_what_changes_the_computation_is_refused_by_name(library, expert, one, other, named):
    if "sliding_window" in one:
        one, other = {**one, "use_sliding_window": True}, {**other, "use_sliding_window": True}
    with pytest.raises(CheckpointError, match="configurations differ in what their weights compute") as caught:
        notes_on([expert("a", {**LLAMA, **other}), expert("b", {**LLAMA, **one})])
    items = "\n".join(caught.value.items)
    assert "b/config.json: " in items and "a/config.json" in items
    assert re.search(named, items), items


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"dtype": "float16", "transformers_version": "4.40"}, {"torch_dtype": "float32", "_name_or_path": "x"}),
        ({"id2label": {"0": "cat"}, "num_labels": 1}, {"label2id": {"dog": 0}, "problem_type": "regression"}),
        ({"attention_dropout": 0.1, "use_cache": False}, {"initializer_range": 0.01}),
        ({"eos_token_id": 5, "pad_token_id": 0, "vocab_size": 9}, {"vocab_size": 8}),
        ({"architectures": ["LlamaModel"], "max_length": 9, "temperature": 0.6}, {}),
        ({"rope_scaling": None, "rope_theta": 10000.0}, {"rope_theta": 10000}),
        (OF_FOUR, OF_FIVE),
        ({"hidden_act": "swish"}, {"hidden_act": "silu"}),
        (MISTRAL | {"head_dim": None}, MISTRAL | {"head_dim": 4}),
        ({"attn_implementation": None}, {}),
        ({"output_attentions": True, "output_hidden_states": True}, {"output_attentions": False}),
        ({"quantization_config": None, "unsloth_version": "1"}, {"_attn_implementation": "sdpa"}),
        ({"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 9, "max_window_layers": 3},
         {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 4}),
    ],
)  # fmt: skip
def test_what_is_harmless_passes_without_a_word(library, expert, one, other):
    assert notes_on([expert("a", {**LLAMA, **other}), expert("b", {**LLAMA, **one})]) == []


@pytest.mark.parametrize(
    ("said", "is_default"),
    [
        ({"rope_theta": 10000.0}, True),
        ({"rope_theta": 500000.0}, False),
        ({"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}, True),
        ({"attention_bias": True}, False),
        ({"tie_word_embeddings": True}, False),
    ],
)
def test_what_one_does_not_say_is_what_the_library_takes_it_for(torchvision, expert, said, is_default):
    pytest.importorskip("transformers")
    experts = [expert("a", LLAMA), expert("b", {**LLAMA, **said})]
    if is_default:
        assert notes_on(experts) == []
    else:
        with pytest.raises(CheckpointError, match="configurations differ"):
            notes_on(experts)


def test_without_the_library_it_is_noted(monkeypatch, expert):
    monkeypatch.setattr(configurations, "import_beside_torchvision", lambda name: 1 / 0)
    (note,) = notes_on([expert("a", LLAMA), expert("b", {**LLAMA, "attention_bias": True})])
    assert "b/config.json differs from" in note and "attention_bias (true, not null)" in note
    assert "harmless" not in note and "glue cannot tell" in note


def test_gemmas_rotary_positions_are_the_same_in_either_spelling(torchvision):
    pytest.importorskip("transformers")
    sizes = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "head_dim": 4}
    old = {"model_type": "gemma3_text", "rope_theta": 1e6, "rope_local_base_freq": 1e4, **sizes}
    new = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert compare_configurations(old, {"model_type": "gemma3_text", "rope_parameters": new, **sizes}) == []
    new["sliding_attention"]["rope_theta"] = 5e5
    (found,) = compare_configurations(old, {"model_type": "gemma3_text", "rope_parameters": new, **sizes})
    assert found.key == "rope_parameters.sliding_attention.rope_theta" and found.is_grave


def test_configurations_within_are_compared(library, expert):
    def of(theta, act="gelu"):
        text = {"model_type": "llama", **LLAMA, "rope_theta": theta, "dtype": act}
        return {"model_type": "llava", "text_config": text, "vision_config": {"model_type": "clip_vision_model"}}

    assert notes_on([expert("a", of(1e4)), expert("b", of(1e4, "other"))]) == []
    with pytest.raises(CheckpointError) as caught:
        notes_on([expert("c", of(1e4)), expert("d", of(1e6))])
    assert any("text_config.rope_parameters.rope_theta" in item for item in caught.value.items)


@pytest.mark.parametrize("key", ["max_position_embeddings", "pad_token_id"])
@pytest.mark.parametrize("config", [LLAMA, LLAMA | {"rope_parameters": {**YARN["rope_parameters"], **OF_YARN}}])
def test_what_does_no_harm_to_every_text_is_noted(library, expert, key, config):
    (note,) = notes_on([expert("a", {**config, key: 1}), expert("b", {**config, key: 3})])
    assert f"{key} (3, not 1)" in note and "harmless" in note


def test_every_expert_is_compared_and_every_difference_listed(expert):
    experts = [expert("a", LLAMA), expert("b", LLAMA), expert("c", {**LLAMA, "hidden_size": 9, "hidden_act": "x"})]
    with pytest.raises(CheckpointError) as caught:
        notes_on([*experts, expert("d", {**LLAMA, "num_attention_heads": 1})])
    assert len([item for item in caught.value.items if "c/config.json" in item]) >= 1
    assert any("d/config.json: num_attention_heads is 1" in item for item in caught.value.items)


def test_timm_says_its_model_in_its_own_words(expert):
    timm = {"architecture": "vit_tiny", "num_classes": 5, "pretrained_cfg": {"mean": [0, 0, 0], "tag": "x"}}
    same = {**timm, "num_classes": 3, "pretrained_cfg": {"tag": "y"}}
    assert notes_on([expert("a", timm), expert("b", same)]) == []
    with pytest.raises(CheckpointError) as caught:
        notes_on([expert("c", timm), expert("d", {**timm, "model_args": {"act_layer": "relu"},
                                                              "architecture": "vit_small"})])  # fmt: skip
    assert any('architecture is "vit_small"' in item for item in caught.value.items)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"architecture": "vit_tiny", "model_args": {"act_layer": "gelu"}}, {"architecture": "vit_tiny"}),
        (
            {"architecture": "vit_tiny", "model_args": {"act_layer": "gelu"}},
            {"architecture": "vit_tiny", "model_args": {"act_layer": "relu"}},
        ),
        ({"_class_name": "UNet2DModel", "act_fn": "silu"}, {"_class_name": "UNet2DModel", "act_fn": "relu"}),
        (
            {"_class_name": "UNet2DModel", "flip_sin_to_cos": True},
            {"_class_name": "UNet2DModel", "flip_sin_to_cos": False},
        ),
        ({"_class_name": "UNet2DModel"}, {"_class_name": "UNet2DConditionModel"}),
    ],
)
def test_timm_and_diffusers_are_compared_in_what_they_compute(expert, one, other):
    with pytest.raises(CheckpointError, match="configurations differ"):
        notes_on([expert("a", one), expert("b", other)])


@pytest.mark.parametrize(
    ("one", "other", "note"),
    [
        (  # what timm writes of itself, and a version that writes arguments
            {"architecture": "vit_tiny", "global_pool": "avg"},
            {"architecture": "vit_tiny", "global_pool": "avg", "model_args": {"global_pool": "avg", "in_chans": 3}},
            None,
        ),
        (
            {"_class_name": "UNet2DModel", "_diffusers_version": "0.14.0"},
            {"_class_name": "UNet2DModel", "_diffusers_version": "0.30.1", "upsample_type": "conv"},
            "glue cannot tell",
        ),
        ({"_class_name": "X", "sample_size": 64}, {"_class_name": "X", "sample_size": 96}, "harmless"),
        ({"architecture": "r"}, {"architecture": "r", "global_pool": "avg"}, "glue cannot tell"),
        (  # the layout of before
            {"architecture": "r", "mean": [0, 0, 0], "input_size": [3, 9, 9], "url": "u", "first_conv": "c"},
            {"architecture": "r", "pretrained_cfg": {"mean": [0, 0, 0]}, "license": "mit"},
            None,
        ),
    ],
)
def test_what_versions_of_timm_and_diffusers_write_otherwise_is_no_difference(expert, one, other, note):
    notes = notes_on([expert("a", one), expert("b", other)])
    assert [note in text for text in notes] == ([True] if note else [])


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ({"quick_gelu": True}, {"quick_gelu": False}, False),
        ({"quick_gelu": True}, {}, False),
        ({"embed_dim": 2}, {"embed_dim": 2}, True),
        ({"init_logit_scale": 2.7}, {}, True),
    ],
)
def test_configurations_of_open_clip_are_compared(tmp_path, one, other, is_same, name):
    experts = []
    for folder, config in ((tmp_path / "a", one), (tmp_path / "b", other)):
        folder.mkdir()
        save_file({"w": torch.zeros(2)}, folder / name)
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 2, **config}}))
        experts.append(read_checkpoint(folder / name))
    if is_same:
        assert notes_on(experts) == []
    else:
        with pytest.raises(CheckpointError, match="configurations differ") as caught:
            notes_on(experts)
        assert "model_cfg.quick_gelu" in caught.value.items[0]


def test_a_configuration_of_nobody_knows_what_is_noted_only(expert):
    (note,) = notes_on([expert("a", {"lr": 0.1, "width": 4}), expert("b", {"lr": 0.2, "width": 4})])
    assert "lr (0.2, not 0.1)" in note and "width" not in note and "glue cannot tell" in note


def test_an_expert_without_a_configuration_is_passed_over(expert):
    assert notes_on([expert("a", LLAMA), expert("b", None), expert("c", LLAMA)]) == []


@pytest.mark.parametrize("config", ["", "[1]", "{", "{}", "[" * 100_000])
def test_what_is_no_configuration_is_noted(expert, config):
    (note,) = notes_on([expert("a", LLAMA), expert("b", config), expert("c", LLAMA)])
    assert note.endswith("b/config.json is no configuration that can be read, and is not compared")


def test_the_weights_of_a_folder_that_are_named_alone_have_its_configuration(expert):
    folders = [expert("a", {**LLAMA, "hidden_act": "relu"}).path, expert("b", {**LLAMA, "hidden_act": "silu"}).path]
    with pytest.raises(CheckpointError, match="configurations differ"):
        notes_on([read_checkpoint(folder / "model.safetensors") for folder in folders])
    for folder in folders:
        (folder / "model.safetensors").rename(folder / "epoch 3.safetensors")  # of a training, beside who knows what
    assert notes_on([read_checkpoint(folder / "epoch 3.safetensors") for folder in folders]) == []


@pytest.mark.parametrize(
    "odd", [{"head_dim": "4"}, {"rope_scaling": "x"}, {"hidden_act": [1]}, {"rope_scaling": {}}, {"": {}}]
)
def test_values_of_odd_kinds_are_compared_as_they_are(library, expert, odd):
    experts = [
        expert("a", {**LLAMA, "hidden_act": "silu", **odd}),
        expert("b", {**LLAMA, **odd, "hidden_act": "relu"}),
    ]
    with pytest.raises(CheckpointError, match="configurations differ") as caught:
        notes_on(experts)
    assert any('hidden_act is "relu"' in item for item in caught.value.items)
