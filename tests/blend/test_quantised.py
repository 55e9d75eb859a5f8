"""Quantised experts are told in every place and format.

After ComfyUI-DonutNodes#50 (fp8), bitsandbytes#411 (SCB), unsloth-zoo#803 (weight_scale), tinker-cookbook#587 (MXFP4)
and AutoGPTQ's and AWQ's files.
"""

import json

import pytest
import torch
from safetensors.torch import save_file

from glue_cli.blend.misfit import refuse
from glue_cli.blend.quantised import quantised_misfits
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.foundation.errors import CheckpointError

PLAIN = {"layer.weight": torch.ones(4, 8), "ids": torch.arange(3), "blur.kernel": torch.ones(3, 3).long()}
CODES = torch.ones(4, 8, dtype=torch.int8)
FORMATS = {
    "fp8": {"layer.weight": torch.ones(4, 8).to(torch.float8_e4m3fn), "layer.weight_scale": torch.ones(1)},
    "fp8 alone": {"layer.weight": torch.ones(4, 8).to(torch.float8_e5m2)},
    "bitsandbytes 8": {"layer.weight": CODES, "layer.SCB": torch.ones(4)},
    "bitsandbytes 4": {
        "layer.weight": torch.ones(16, 1, dtype=torch.uint8),
        "layer.weight.absmax": torch.ones(1),
        "layer.weight.quant_map": torch.ones(16),
        "layer.weight.quant_state.bitsandbytes__nf4": torch.ones(80, dtype=torch.uint8),
    },
    "torchao": {
        "layer._weight_qdata": CODES,
        "layer._weight_scale": torch.ones(4, 1),
        "layer._weight_zero_point": torch.zeros(4, 1, dtype=torch.int8),
    },
    "gptq": {
        "layer.qweight": torch.ones(1, 8, dtype=torch.int32),
        "layer.qzeros": torch.ones(1, 1, dtype=torch.int32),
        "layer.scales": torch.ones(1, 8).half(),
        "layer.g_idx": torch.zeros(8, dtype=torch.int32),
    },
    "quanto": {"layer.weight._data": CODES, "layer.weight._scale": torch.ones(4, 1)},
    "hqq": {"layer.W_q": CODES, "layer.scale": torch.ones(4, 1), "layer.zero": torch.ones(4, 1)},
    "quip": {"layer.Qidxs": CODES.long(), "layer.SU": torch.ones(4).half()},
    "exl3": {"layer.trellis": CODES.short(), "layer.suh": torch.ones(4).half()},
    "compressed-tensors": {
        "layer.weight_packed": torch.ones(4, 1, dtype=torch.int32),
        "layer.weight_scale": torch.ones(4),
    },
    "mxfp4": {
        "experts.gate_up_proj_blocks": torch.ones(2, 4, dtype=torch.uint8),
        "experts.gate_up_proj_scales": torch.ones(2, dtype=torch.uint8),
    },
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("place", [0, 1])
def test_a_quantised_expert_is_named_wherever_it_stands(save, form, place):
    plain, quantised = save("plain", PLAIN), save("odd", FORMATS[form])
    experts = [quantised, plain] if place == 0 else [plain, quantised]
    with pytest.raises(CheckpointError, match=r"odd\.safetensors' is quantised") as caught:
        refuse(quantised_misfits(experts))
    assert "dequantise" in caught.value.hint
    assert caught.value.items and all(item.split("'")[1] in FORMATS[form] for item in caught.value.items)


def test_the_method_is_named_where_the_configuration_says_it(tmp_path):
    save_file(FORMATS["bitsandbytes 8"], tmp_path / "model.safetensors")
    for said, wanted in [
        ({"quant_method": "bitsandbytes"}, "quantised (bitsandbytes),"),
        (None, "quantised,"),
        (7, "d,"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps({"quantization_config": said}))
        with pytest.raises(CheckpointError) as caught:
            refuse(quantised_misfits([read_checkpoint(tmp_path)]))
        assert wanted in caught.value.message


def test_what_is_not_quantised(save, tmp_path):
    tensors = {
        "scales": torch.ones(3),  # a parameter of this name, and no codes
        "layer.weight_scale": torch.ones(1),
        "mask": torch.ones(4, 4, dtype=torch.uint8),
        "index": torch.ones(4, 4, dtype=torch.int32),
        "loss.weight": torch.ones((), dtype=torch.int32),
        "relative.blocks": torch.ones(2, dtype=torch.uint8),
    }
    refuse(quantised_misfits([save("a", tensors)]))
    (tmp_path / "dequantised").mkdir()
    save_file(PLAIN, tmp_path / "dequantised" / "model.safetensors")
    (tmp_path / "dequantised" / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    refuse(quantised_misfits([read_checkpoint(tmp_path / "dequantised")]))


def test_codes_that_are_not_blended_are_nobodys_fault(save):
    refuse(quantised_misfits([save("a", {"layer.weight": CODES, **{"w": torch.ones(2)}})], apart=["layer.weight"]))
