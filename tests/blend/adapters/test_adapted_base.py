import json

import pytest
import torch
from safetensors.torch import save_file

from glue_cli.blend.adapters.adapted_base import fit
from glue_cli.blend.adapters.adapter import read_adapter
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.foundation.errors import CheckpointError


@pytest.fixture
def fitted(tmp_path):
    """Fit one adapter, of modules with their [n_out, n_in] and further tensors, to a base of these shapes."""

    def fitted(base, modules, plain=(), fan_in_fan_out=False, dtype=torch.float32, **options):
        save_file(
            {name: torch.zeros(shape, dtype=dtype) for name, shape in base.items()}, tmp_path / "base.safetensors"
        )
        tensors = {f"base_model.model.{name}": torch.zeros(shape) for name, shape in dict(plain).items()}
        for module, (n_out, n_in) in modules.items():
            tensors[f"base_model.model.{module}.lora_A.weight"] = torch.zeros(2, n_in)
            tensors[f"base_model.model.{module}.lora_B.weight"] = torch.zeros(n_out, 2)
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "fan_in_fan_out": fan_in_fan_out}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "org/base"}))
        return fit(read_checkpoint(tmp_path / "base.safetensors"), [read_adapter(tmp_path)], **options)

    return fitted


def test_equal_names(fitted):
    adapted = fitted({"bert.q.weight": (3, 4), "bert.q.bias": (3,)}, {"bert.q": (3, 4)})
    assert list(adapted.base.entries) == ["bert.q.bias", "bert.q.weight"] and adapted.transposed == set()


def test_a_base_without_the_models_prefix(fitted):
    adapted = fitted(
        {"h.0.q.weight": (3, 4), "ln.bias": (3,)}, {"transformer.h.0.q": (3, 4)}, {"score.weight": (2, 3)}
    )
    assert sorted(adapted.base.entries) == ["transformer.h.0.q.weight", "transformer.ln.bias"]
    assert adapted.changed == ["score.weight", "transformer.h.0.q.weight"]
    assert ("score.weight", "F32", (2, 3)) in adapted.merged and len(adapted.merged) == 3


def test_a_base_with_a_prefix_that_the_model_lacks(fitted):
    base = {"bert.q.weight": (3, 4), "bert.k.weight": (3, 4), "aux.q.weight": (3, 4), "cls.weight": (3,)}
    adapted = fitted(base, {"q": (3, 4), "k": (3, 4)})
    assert sorted(adapted.base.entries) == ["aux.q.weight", "cls.weight", "k.weight", "q.weight"]
    with pytest.raises(CheckpointError, match="fit several parts of") as caught:
        fitted(base, {"q": (3, 4)})
    assert sorted(caught.value.items) == ["aux.q.weight", "bert.q.weight"]
    base["q.weight"] = (4, 3)
    assert fitted(base, {"q": (3, 4)}).transposed == {"q"}


def test_a_head_of_the_adapters_own_takes_the_place_of_the_bases(fitted):
    base = {"q.weight": (3, 4), "head.weight": (2, 3)}
    adapted = fitted(base, {"q": (3, 4)}, {"head.weight": (5, 3)}, dtype=torch.float16)
    assert sorted(adapted.merged) == [("head.weight", "F16", (5, 3)), ("q.weight", "F16", (3, 4))]


def test_another_base_is_refused(fitted):
    with pytest.raises(CheckpointError, match=r"base.safetensors' lacks weights that the adapters update") as caught:
        fitted({"h.q.weight": (3, 4), "h.k.weight": (3, 4)}, {"t.h.q": (3, 4), "t.h.k": (3, 4), "t.h.v": (3, 4)})
    assert caught.value.items == ("t.h.v.weight",) and "'org/base'" in caught.value.hint
    with pytest.raises(CheckpointError, match="do not fit") as caught:
        fitted({"q.weight": (3, 5)}, {"q": (3, 4)})
    assert caught.value.items == ("'q.weight' is F32 [3, 5], and its update is [3, 4]",)


def test_a_quantised_base_is_refused(fitted):
    with pytest.raises(CheckpointError, match="is quantised, and adapters need a base of floating-point") as caught:
        fitted({"q.weight": (3, 4)}, {"q": (3, 4)}, dtype=torch.int8)
    assert caught.value.items == ("'q.weight' is I8 [3, 4]",) and "dequantise" in caught.value.hint
    with pytest.raises(CheckpointError, match="is quantised, and adapters"):  # GPTQ's names, not the adapters'
        fitted({"q.qweight": (1, 4)}, {"q": (3, 4)}, dtype=torch.int32)


def test_a_base_of_integers_is_refused(fitted):
    with pytest.raises(CheckpointError, match="do not fit") as caught:
        fitted({"q.weight": (3, 4)}, {"q": (3, 4)}, dtype=torch.int64)
    assert caught.value.items == ("'q.weight' is I64 [3, 4], and its update is [3, 4]",)


# ---- orientation


def test_weights_that_are_not_square_tell_themselves(fitted):
    shapes = {"q.weight": (4, 3), "k.weight": (3, 4)}
    assert fitted(shapes, {"q": (3, 4), "k": (3, 4)}).transposed == {"q"}


@pytest.mark.parametrize("setting", [True, False])
def test_square_weights_without_a_namesake_go_by_the_configuration(fitted, setting):
    shapes = {"q.weight": (4, 4), "other.weight": (3, 4), "other.bias": (3,)}
    assert fitted(shapes, {"q": (4, 4)}, fan_in_fan_out=setting).transposed == ({"q"} if setting else set())


@pytest.mark.parametrize("bias", [4, 6])
def test_square_weights_go_by_a_namesake_with_a_bias(fitted, bias):
    shapes = {"attn.proj.weight": (4, 4), "mlp.proj.weight": (6, 4), "mlp.proj.bias": (bias,)}
    for setting in (True, False):
        adapted = fitted(shapes, {"attn.proj": (4, 4)}, fan_in_fan_out=setting)
        assert adapted.transposed == ({"attn.proj"} if bias == 4 else set())


def test_square_weights_of_which_nothing_tells_are_refused(fitted):
    shapes = {"attn.proj.weight": (4, 4), "mlp.proj.weight": (6, 4), "up.proj.weight": (6, 4)}
    with pytest.raises(CheckpointError, match="not clear which of these square weights") as caught:
        fitted(shapes, {"attn.proj": (4, 4), "mlp.proj": (6, 4), "up.proj": (4, 6)})
    assert caught.value.items == ("attn.proj",)


# ---- bases with other names on disk than in memory


def test_a_base_is_asked_for_its_names_in_memory_where_its_own_do_not_fit(fitted):
    base = {"layer.0.query.weight": (3, 4), "layer.0.query.bias": (3,), "head.bias": (5,)}
    names = {"layers.0.q.weight": "layer.0.query.weight", "layers.0.q.bias": "layer.0.query.bias"}
    asked = []

    def names_in_memory(base, config):
        asked.append(config["base_model_name_or_path"])
        return names

    adapted = fitted(base, {"layers.0.q": (3, 4)}, {"head.bias": (2,)}, names_in_memory=names_in_memory)
    assert asked == ["org/base"] and adapted.base.entries.keys() == base.keys()
    assert adapted.changed == ["head.bias", "layer.0.query.weight"]
    assert ("head.bias", "F32", (2,)) in adapted.merged
    (update,) = adapted.adapters[0].updates.values()
    assert (update.module, update.a.name) == ("layer.0.query", "base_model.model.layers.0.q.lora_A.weight")
    fitted(base, {"layer.0.query": (3, 4)}, names_in_memory=names_in_memory)
    assert len(asked) == 1  # it fits as it is


@pytest.mark.parametrize("names", [{}, {"layers.0.q.weight": "layer.0.query.kernel"}])
def test_a_base_that_does_not_fit_by_those_either(fitted, names):
    with pytest.raises(CheckpointError, match="lacks weights that the adapters update"):
        fitted(
            {"layer.0.query.weight": (3, 4), "layer.0.query.kernel": (3, 4)},
            {"layers.0.q": (3, 4)},
            names_in_memory=lambda base, config: names,
        )
