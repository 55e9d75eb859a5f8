"""The factors of adapters, under the names that tools give them, are told from weights."""

import pytest
import torch

from glue_cli.blend.factors import factor_misfits, find_factors, mask_misfits
from glue_cli.blend.misfit import refuse
from glue_cli.foundation.errors import CheckpointError

UNET = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1"

# Two factors each, as the tools write them; the issues show the names.
FACTORS = {
    "peft": ("base_model.model.q_proj.lora_A.weight", "base_model.model.q_proj.lora_B.weight"),
    "peft, named": ("q_proj.lora_A.default.weight", "q_proj.lora_B.default.weight"),
    "peft, embedding": ("embed.lora_embedding_A", "embed.lora_embedding_B"),
    "loralib": ("x.lora_A", "x.lora_B"),
    "kohya (sd-scripts#586)": ("lora_unet_x_to_q.lora_down.weight", "lora_unet_x_to_q.lora_up.weight"),
    "LoCon (kohya_ss#310)": ("lora_unet_conv.lora_mid.weight", "lora_unet_conv.lora_up.weight"),
    "old diffusers": (f"{UNET}.processor.to_q_lora.down.weight", f"{UNET}.processor.to_q_lora.up.weight"),
    "diffusers": (f"{UNET}.to_q.lora.down.weight", f"{UNET}.to_q.lora.up.weight"),
    "diffusers' layers": (f"{UNET}.to_k.lora_linear_layer.down.weight", f"{UNET}.to_k.lora_linear_layer.up.weight"),
    "XLabs": ("double_blocks.0.processor.qkv_lora1.down.weight", "double_blocks.0.processor.qkv_lora1.up.weight"),
    "MLX": ("model.layers.0.self_attn.q_proj.lora_a", "model.layers.0.self_attn.q_proj.lora_b"),
    "torchtune": ("layers.0.attn.q_proj.lora_a.weight", "layers.0.attn.q_proj.lora_b.weight"),
    "Keras": ("layers.dense.lora_kernel_a", "layers.dense.lora_kernel_b"),
    "NeMo (RL#2190)": ("output_layer.adapter.linear_in.weight", "output_layer.adapter.linear_out.weight"),
    "old NeMo": (
        "self_attention.lora_kqv_adapter.linear_in.weight",
        "self_attention.lora_kqv_adapter.linear_out.weight",
    ),
    "LoHa (supermerger#177)": ("lora_te_fc1.hada_w1_a", "lora_te_fc1.hada_w2_b"),
    "LoHa, convolution": ("lycoris_conv.hada_t1", "lycoris_conv.hada_t2"),
    "LoKr (diffusers#13250)": ("lycoris_x.lokr_w1", "lycoris_x.lokr_w2_a"),
    "DoRA (musubi-tuner#206)": ("lora_unet_blocks_14_v.dora_scale", "q_proj.lora_magnitude_vector.weight"),
    "OFT": ("lycoris_x.oft_blocks", "q_proj.oft_R.weight"),
    "BOFT": ("q_proj.boft_R", "q_proj.boft_s"),
    "VeRA": ("q_proj.vera_lambda_b", "q_proj.vera_lambda_d"),
    **{
        f"PEFT's {names[0].partition('_')[0]}": tuple(f"model.layers.0.self_attn.q_proj.{name}" for name in names)
        for names in (
            *(("gralora_A", "gralora_B"), ("delora_A", "delora_B"), ("hira_A", "hira_B"), ("hra_u",)),
            *(("deft_P", "deft_R"), ("lily_A.weight", "lily_B.weight"), ("peanut_A.weight", "peanut_B.weight")),
            *(("adamss_A.0", "adamss_B.0"), ("glora_A.Xd", "glora_B.Xu"), ("tinylora_A", "tinylora_B")),
            *(("pvera_lambda_b", "pvera_lambda_d"), ("psoft_R.weight",), ("osf_svd_params.U_low",)),
            *(("frod_lambda_l",), ("miss_block",), ("road_theta",), ("vblora_logits_A",), ("unilora_theta_d",)),
        )
    },
    "RandLoRA": ("q_proj.randlora_lambda", "q_proj.randlora_gamma"),
}

# Names of whole networks that resemble those.
WEIGHTS = (
    "blocks.0.att.w1",  # RWKV's own decays
    "model.layers.0.self_attn.q_a_proj.weight",  # DeepSeek's low ranks, with a norm between
    "model.layers.0.self_attn.kv_b_proj.weight",
    "explora_base.weight",
    "flora.bias",
    "down_blocks.0.adapters.conv.weight",
    "encoder.adapter_down.weight",  # with a nonlinearity in between, weights as others
    "x.a1.weight",
    "x.b1.weight",
    "up.weight",
    "loratorium.down.weight",
)


@pytest.mark.parametrize("names", FACTORS.values(), ids=FACTORS)
def test_factors_are_told_under_any_tools_names(save, names):
    adapter = save("adapter", {name: torch.zeros(2, 2) for name in (*names, *WEIGHTS)})
    assert sorted(find_factors(adapter)) == sorted(names)


def test_the_weights_of_whole_networks_are_none(save):
    assert find_factors(save("whole", {name: torch.zeros(2, 2) for name in WEIGHTS})) == []


def test_glora_is_told_by_its_five_tensors(save):
    five = {f"lycoris_x.{part}": torch.zeros(2, 2) for part in ("a1.weight", "a2.weight", "b1.weight", "b2.weight")}
    assert find_factors(save("four", five)) == []
    five["lycoris_x.alpha"] = torch.tensor(4.0)
    assert sorted(find_factors(save("five", five))) == sorted(five)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_adapter_among_whole_checkpoints_is_found_wherever_it_stands(save, place):
    experts = [save(str(k), {"x.weight": torch.zeros(4, 4)}) for k in range(3)]
    experts[place] = save("loralib", {"x.weight": torch.zeros(4, 4), "x.lora_A": torch.zeros(2, 4)})
    with pytest.raises(CheckpointError, match=r"loralib\.safetensors' holds the factors of an adapter") as caught:
        refuse(factor_misfits(experts))
    assert caught.value.items == ("x.lora_A",)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("x.lora_A.weight", "name the adapter's folder"),
        ("lora_unet_x.lora_up.weight", "merge each adapter into its base"),
    ],
)
def test_the_hint_is_what_the_tool_allows(save, name, hint):
    with pytest.raises(CheckpointError) as caught:
        refuse(factor_misfits([save("adapter", {name: torch.zeros(2, 2)})]))
    assert caught.value.hint.startswith(hint)


def test_factors_that_are_not_blended_may_be_there(save):
    built_in = save("built-in", {"x.weight": torch.zeros(4, 4), "x.lora_A.speech.weight": torch.zeros(2, 4)})
    refuse(factor_misfits([built_in], apart=["x.lora_A.speech.weight"]))
    with pytest.raises(CheckpointError):
        refuse(factor_misfits([built_in]))


@pytest.mark.parametrize("differ", [False, True])
def test_masks_of_pruning_have_no_mean(save, differ):
    experts = [
        save(
            str(k), {"fc.weight_orig": torch.rand(4) + k, "fc.weight_mask": torch.tensor([1.0, 0.0, 1.0, k * differ])}
        )
        for k in range(2)
    ]
    found = mask_misfits(experts)
    assert [misfit.items for misfit in found] == ([("'fc.weight_mask'",)] if differ else [])
    assert not mask_misfits(experts, apart=["fc.weight_mask"])
    assert not differ or "prune.remove" in found[0].hint
