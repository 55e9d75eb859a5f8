import json
import math

import pytest
import torch
from safetensors.torch import save_file

from glue_cli.blend.adapters.adapter import adapter_misfits, is_adapter, read_adapter
from glue_cli.blend.misfit import refuse
from glue_cli.foundation.errors import CheckpointError, UsageError

FACTORS = {
    "base_model.model.net.q.lora_A.weight": torch.zeros(2, 4),
    "base_model.model.net.q.lora_B.weight": torch.zeros(3, 2),
}


@pytest.fixture
def save_adapter(tmp_path):
    def save_adapter(name="adapter", tensors=FACTORS, **config):
        folder = tmp_path / name
        folder.mkdir()
        plain = {"peft_type": "LORA", "base_model_name_or_path": "base", "r": 2, "lora_alpha": 6}
        (folder / "adapter_config.json").write_text(json.dumps(plain | config))
        save_file(tensors, folder / "adapter_model.safetensors")
        return folder

    return save_adapter


def test_an_adapter_is_its_folder_or_the_weights_in_it(save_adapter, tmp_path):
    folder = save_adapter()
    assert is_adapter(folder) and is_adapter(folder / "adapter_model.safetensors")
    assert read_adapter(folder / "adapter_model.safetensors") == read_adapter(folder)
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "adapter_model.safetensors").touch()
    assert not any(
        is_adapter(tmp_path / name) for name in ("", "model.safetensors", "adapter_model.safetensors", "no")
    )
    with pytest.raises(UsageError, match="no adapter at"):
        read_adapter(tmp_path / "no")


def test_weights_that_torch_saved(save_adapter):
    folder = save_adapter()
    wanted = read_adapter(folder)
    (folder / "adapter_model.safetensors").unlink()
    torch.save(FACTORS, folder / "adapter_model.bin")
    found = read_adapter(folder)
    assert is_adapter(folder / "adapter_model.bin") and found.checkpoint.files == (folder / "adapter_model.bin",)
    assert found.updates["net.q"].a._replace(offset=0) == wanted.updates["net.q"].a._replace(offset=0)


def test_what_an_adapter_holds(save_adapter):
    adapter = read_adapter(
        save_adapter(
            tensors={
                **FACTORS,
                "base_model.model.emb.lora_embedding_A": torch.zeros(2, 30),
                "base_model.model.emb.lora_embedding_B": torch.zeros(4, 2),
                "base_model.model.conv.lora_A.weight": torch.zeros(2, 4, 3, 3),
                "base_model.model.conv.lora_B.weight": torch.zeros(5, 2, 1, 1),
                "base_model.model.net.q.base_layer.bias": torch.zeros(3),
                "base_model.model.head.weight": torch.zeros(2, 3),
                "base_model.model.head.modules_to_save.weight": torch.zeros(2, 3),
                "base_model.model.head.original_module.weight": torch.zeros(2, 3),
            }
        )
    )
    assert {name: (u.outer_shape, u.rank, u.is_embedding) for name, u in adapter.updates.items()} == {
        "net.q": ((3, 4), 2, False),
        "emb": ((30, 4), 2, True),
        "conv": ((5, 4, 3, 3), 2, False),
    }
    assert {name: entry.name for name, entry in adapter.plain.entries.items()} == {
        "net.q.bias": "base_model.model.net.q.base_layer.bias",
        "head.weight": "base_model.model.head.weight",
    }


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 3),
        ({"use_rslora": True}, 6 / math.sqrt(2)),
        ({"alpha_pattern": {"q": 4}}, 2),
        ({"alpha_pattern": {"net.q": 4, "q": 8}}, 2),
        ({"alpha_pattern": {r"n\w+\.[qv]": 4}}, 2),
        ({"alpha_pattern": {"^q": 4, "et.q": 8, "ne": 12}}, 3),
        ({"r": 9, "rank_pattern": {"q": 2}}, 3),
        ({"rank_pattern": None, "alpha_pattern": None}, 3),
    ],
)
def test_the_scale(save_adapter, config, scale):
    assert read_adapter(save_adapter(**config)).updates["net.q"].scale == scale


# ---- refused


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True},
        {"target_parameters": ["experts.down"]},
        {"trainable_token_indices": [1]},
        {"lora_bias": True},
        {"layer_replication": [[0, 2]]},
        {"alora_invocation_tokens": [5]},
    ],
)
def test_more_than_plain_lora_is_refused(save_adapter, config):
    with pytest.raises(CheckpointError, match=r"adapter_config.json' asks for more than plain LoRA") as caught:
        read_adapter(save_adapter(**config))
    ((key, value),) = config.items()
    assert caught.value.items == (f"{key}: {json.dumps(value)}",)


@pytest.mark.parametrize("kind", ["IA3", "LOHA", None])
def test_other_adapters_are_refused(save_adapter, kind):
    with pytest.raises(CheckpointError, match=f"is of the type '{kind}', not LORA"):
        read_adapter(save_adapter(peft_type=kind))


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "loftq"])
def test_an_initialisation_that_changed_the_base_is_refused(save_adapter, start):
    with pytest.raises(CheckpointError, match=f"the initialisation '{start}' has changed the base"):
        read_adapter(save_adapter(init_lora_weights=start))


@pytest.mark.parametrize(
    "name",
    [
        "net.q.lora_magnitude_vector",
        "net.q.lora_B.bias",
        "net.q.lora_A.default.weight",
        "net.base_layer.o.lora_A.weight",
    ]
    + ["emb.token_adapter.trainable_tokens_delta"],
)
def test_tensors_that_are_no_plain_factors_are_refused(save_adapter, name):
    with pytest.raises(CheckpointError, match="has tensors that are no plain LoRA factors") as caught:
        read_adapter(save_adapter(tensors={**FACTORS, f"base_model.model.{name}": torch.zeros(2)}))
    assert caught.value.items == (f"base_model.model.{name}",)


def test_factors_that_do_not_fit(save_adapter):
    a, b = FACTORS
    with pytest.raises(
        CheckpointError, match=r"'base_model.model.net.q.lora_A.weight' is there without the other factor"
    ):
        read_adapter(save_adapter("half", {a: torch.zeros(2, 4)}))
    wrong = [
        (torch.zeros(3, 4), torch.zeros(3, 3)),
        (torch.zeros(2, 4), torch.zeros(3, 3)),
        (torch.zeros(2), torch.zeros(3, 2)),
        (torch.zeros(2, 4, 3, 3), torch.zeros(6, 1, 1, 1)),
        (torch.zeros(2, 4, dtype=torch.uint8), torch.zeros(3, 2)),
    ]
    for number, (down, up) in enumerate(wrong):
        with pytest.raises(CheckpointError, match="these are no factors of rank 2") as caught:
            read_adapter(save_adapter(f"wrong-{number}", {a: down, b: up}))
        assert len(caught.value.items) == 2 and str(list(down.shape)) in caught.value.items[0]
    with pytest.raises(CheckpointError, match="has no LoRA factors"):
        read_adapter(save_adapter("none", {"head.weight": torch.zeros(2)}))


@pytest.mark.parametrize(
    "config",
    [{"r": 0}, {"r": None}, {"r": "2"}, {"lora_alpha": [1]}, {"rank_pattern": [1]}, {"alpha_pattern": {"(": 2}}],
)
def test_a_configuration_without_rank_and_alpha(save_adapter, config):
    with pytest.raises(CheckpointError, match=r"adapter_config.json' has no rank and alpha for 'net.q'"):
        read_adapter(save_adapter(**config))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", '"LORA"', b"\xff"])
def test_a_configuration_that_is_none(save_adapter, text):
    folder = save_adapter()
    (folder / "adapter_config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match=r"adapter_config.json' is no JSON"):
        read_adapter(folder)


def test_a_folder_without_weights(save_adapter):
    folder = save_adapter()
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no adapter_model.safetensors"):
        read_adapter(folder)


def refused(*folders):
    with pytest.raises(CheckpointError) as caught:
        refuse(adapter_misfits([read_adapter(folder) for folder in folders]))
    return caught.value


def test_adapters_of_different_bases(save_adapter):
    folders = [save_adapter(name, base_model_name_or_path=base) for name, base in [("a", "bert"), ("b", "gpt2")]]
    error = refused(*folders)
    assert error.message == "the adapters were trained on different bases"
    assert error.items == (f"{folders[0]}: 'bert'", f"{folders[1]}: 'gpt2'")
    refuse(
        adapter_misfits([read_adapter(folders[0]), read_adapter(save_adapter("c", base_model_name_or_path="bert/"))])
    )


def test_a_head_that_only_some_have(save_adapter):
    error = refused(save_adapter("a", {**FACTORS, "head.weight": torch.zeros(2)}), save_adapter("b"))
    assert "differ in their tensors" in error.message and "'head.weight' is missing" in error.items[0]
    error = refused(
        save_adapter("c", {**FACTORS, "head.weight": torch.zeros(2)}),
        save_adapter("d", {**FACTORS, "head.weight": torch.zeros(3)}),
    )
    assert "'head.weight' is [3]" in error.items[0]


def test_updates_of_different_shapes(save_adapter):
    a, b = FACTORS
    error = refused(save_adapter("a"), save_adapter("b", {a: torch.zeros(2, 5), b: torch.zeros(3, 2)}))
    assert error.message == "the adapters update weights of different shapes"
    assert "'net.q' is [3, 5]" in error.items[0] and "it is [3, 4]" in error.items[0]


def test_adapters_may_differ_in_rank_and_in_what_they_update(save_adapter):
    a, b = FACTORS
    wider = {a: torch.zeros(5, 4), b: torch.zeros(3, 5)}
    other = {name.replace("q", "v"): tensor for name, tensor in FACTORS.items()}
    folders = [save_adapter("a"), save_adapter("b", wider, r=5), save_adapter("c", other)]
    refuse(adapter_misfits([read_adapter(folder) for folder in folders]))


@pytest.mark.parametrize(
    "wrapped",
    [
        "_orig_mod.base_model.model.net.q.",
        "module._orig_mod.base_model.model.net.q.",
        "base_model.model._orig_mod.net._checkpoint_wrapped_module.q.",
    ],
)
def test_what_wrappers_put_into_names_is_taken_out(save_adapter, wrapped):
    """PEFT would find none of these tensors, and load an adapter that does nothing."""
    names = {name: name.replace("base_model.model.net.q.", wrapped) for name in FACTORS}
    folders = save_adapter("plain"), save_adapter("wrapped", {new: FACTORS[name] for name, new in names.items()})
    plain, found = map(read_adapter, folders)
    assert found.checkpoint.entries.keys() == FACTORS.keys() and found.updates.keys() == {"net.q"}
    assert found.updates["net.q"].a.name == plain.updates["net.q"].a.name
    refuse(adapter_misfits([plain, found]))
