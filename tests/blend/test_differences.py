"""Differences between experts of one architecture that have one right way.

After PytorchConverter#34 and guided-stereo#2 (counters), facebookresearch/DPR#165, transformers#6882 and #24505
(position_ids), Swin's and GPT-2's buffers, thop's counts, Transformer Engine's extra states, and language models whose
tied head some tools write and some do not.
"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from glue_cli.blend.comparing import compare
from glue_cli.blend.differences import settle_differences
from glue_cli.blend.misfit import refuse
from glue_cli.blend.recipe import PLAIN, Recipe
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.foundation.errors import CheckpointError

BUFFERS = {
    "embeddings.position_ids": torch.arange(5)[None],
    "rotary_emb.inv_freq": torch.rand(4),
    "h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool).tril(),
    "h.0.attn.masked_bias": torch.tensor(-1e4),
    "attn.relative_position_index": torch.arange(4).view(2, 2),
    "attn.relative_coords_table": torch.rand(1, 3, 3, 2),
    "total_ops": torch.zeros(1, dtype=torch.float64),
    "fc1._extra_state": torch.arange(7, dtype=torch.uint8),
}


def weights(k):
    torch.manual_seed(k)
    return {"w": torch.randn(4, 3), "b": torch.randn(4)}


def test_experts_that_are_alike_are_left_alone(save):
    experts = [save(name, {**weights(k), **BUFFERS}) for k, name in enumerate("ab")]
    found = settle_differences(experts)
    floats = [name for name, tensor in BUFFERS.items() if tensor.is_floating_point()]
    assert found.copied.keys() == {*floats, "fc1._extra_state"}  # no sum of equal terms, which can be rounded
    assert found.notes == () and all(a is b for a, b in zip(found.experts, experts, strict=True))


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("name", BUFFERS)
def test_a_buffer_that_one_expert_has_is_as_the_first_has_it(save, blend, name, place):
    experts = [save("ab"[k], {**weights(k), **({name: BUFFERS[name]} if k == place else {})}) for k in (0, 1)]
    compared = compare(experts, PLAIN, dtype_given=False)
    (note,) = compared.notes
    assert f"'{name}'" in note and "no weights" in note
    found = blend(compared.experts, [0.5, 0.5], recipe=compared.recipe)
    assert found.keys() == {"w", "b", *([name] if place == 0 else [])}
    assert place == 1 or torch.equal(found[name], BUFFERS[name])
    assert torch.allclose(found["w"], (weights(0)["w"] + weights(1)["w"]) / 2, atol=1e-6)


def test_a_bias_is_no_mask_by_its_name_alone(save):
    experts = [save("a", weights(0)), save("b", {**weights(1), "h.0.attn.bias": torch.ones(4)})]
    assert settle_differences(experts).copied == {}


@pytest.mark.parametrize("lacking", [0, 1])
def test_counters_that_one_expert_lacks(save, blend, lacking):
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)) for _ in range(3)]
    experts = []
    for k, net in enumerate(nets):
        net[1].num_batches_tracked += 10 * (k + 1)
        experts.append(save(str(k), {n: t for n, t in net.state_dict().items() if k != lacking or "tracked" not in n}))
    compared = compare(experts, PLAIN, dtype_given=False)
    found = blend(compared.experts, [0.5, 0.25, 0.25], recipe=compared.recipe)
    assert found.keys() == experts[0].entries.keys()
    nets[0].load_state_dict(found, strict=True)  # torch loads it without counters too
    if lacking == 1:
        assert found["1.num_batches_tracked"] == 30
        only = blend(compared.experts, [0.0, 1.0, 0.0], "only", recipe=compared.recipe)
        assert only["1.num_batches_tracked"] == 30  # of those that count, where this one does not


def test_counters_in_another_dtype_and_extra_states_are_the_first_ones(save, blend):
    one = {
        **weights(0),
        "bn.num_batches_tracked": torch.tensor(5),
        "fc._extra_state": torch.ones(3, dtype=torch.uint8),
    }
    other = {
        **weights(1),
        "bn.num_batches_tracked": torch.tensor(7.0),
        "fc._extra_state": torch.ones(9, dtype=torch.uint8),
    }
    compared = compare([save("a", one), save("b", other)], PLAIN, dtype_given=False)
    found = blend(compared.experts, [0.5, 0.5], recipe=compared.recipe)
    assert found["bn.num_batches_tracked"] == 5 and found["fc._extra_state"].numel() == 3


def frequencies(theta, n=8):
    return 1 / theta ** (torch.arange(n, dtype=torch.float64) / n)


def cosines(theta, n=64):
    return (torch.arange(n, dtype=torch.float64)[:, None] * frequencies(theta)).cos()[None, None]


@pytest.mark.parametrize("of_theta", [frequencies, cosines])
@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("float32", "bfloat16"), ("float16", "bfloat16")])
def test_rotary_positions_of_another_base_are_refused(save, blend, of_theta, dtypes):
    name = {frequencies: "rotary_emb.inv_freq", cosines: "rotary_emb.cos_cached"}[of_theta]

    def experts(*thetas):
        tables = [of_theta(theta).to(getattr(torch, dtype)) for theta, dtype in zip(thetas, dtypes, strict=True)]
        return [save("ab"[k], {**weights(k), name: table}) for k, table in enumerate(tables)]

    kept = compare(experts(1e4, 1e4), PLAIN, dtype_given=False)
    assert not kept.misfits and len(kept.notes) == len(set(dtypes)) - 1
    found = blend(kept.experts, [0.3, 0.7], recipe=kept.recipe)[name]
    assert torch.equal(found, of_theta(1e4).to(getattr(torch, dtypes[0])))
    (misfit,) = compare(experts(1e4, 1e6), PLAIN, dtype_given=True).misfits
    assert f"'{name}' is a constant" in misfit.message and f"--exclude {name} --copy-from" in misfit.hint
    only_a = Recipe(copied_from={name: 0})
    assert not compare(experts(1e4, 1e6), only_a, dtype_given=True).misfits


def test_constants_computed_on_another_machine_are_the_first_ones(save):
    table = cosines(1e4).float()
    experts = [save("ab"[k], {"w": torch.ones(2), "sin_cached": table * (1 + 1e-6 * k) + 1e-7 * k}) for k in (0, 1)]
    compared = compare(experts, PLAIN, dtype_given=False)
    assert compared.recipe.copied_from == {"sin_cached": 0} and len(compared.notes) == 1 and not compared.misfits


def test_positions_are_compared_across_dtypes(save):
    for k, is_same in ((0, True), (1, False)):
        ids = [torch.arange(5), torch.arange(5.0) + k]
        experts = [save("ab"[n], {"w": torch.ones(2), "position_ids": ids[n]}) for n in (0, 1)]
        assert (not compare(experts, PLAIN, dtype_given=False).misfits) == is_same


def test_large_negative_numbers_of_masks_may_differ(save):
    experts = [save(str(k), {"w": torch.ones(2), "attn.masked_bias": torch.tensor(-(10.0**k))}) for k in (4, 9)]
    compared = compare(experts, PLAIN, dtype_given=False)
    assert compared.recipe.copied_from == {"attn.masked_bias": 0} and not compared.misfits


def test_what_the_user_takes_out_is_not_settled(save):
    experts = [save("a", weights(0)), save("b", {**weights(1), **BUFFERS})]
    compared = compare(experts, Recipe(copied_from=dict.fromkeys(BUFFERS, 1)), dtype_given=False)
    assert compared.notes == () and set(compared.recipe.copied_from.values()) == {1}


# ---- tied tensors


def language_model(k, *, tied_copy, embedding="model.embed_tokens.weight", head="lm_head.weight"):
    torch.manual_seed(k)
    tensors = {
        embedding: torch.randn(6, 3),
        "model.norm.weight": torch.ones(3),
        "model.other.weight": torch.randn(6, 3),
    }
    return {**tensors, **({head: tensors[embedding].clone()} if tied_copy else {})}


@pytest.mark.parametrize("place", [0, 1])
def test_a_copy_of_the_embedding_is_there_if_the_first_has_it(save, blend, place):
    experts = [save("ab"[k], language_model(k, tied_copy=k == place)) for k in (0, 1)]
    compared = compare(experts, PLAIN, dtype_given=False)
    (note,) = compared.notes
    assert "'lm_head.weight', copies of 'model.embed_tokens.weight'" in note
    found = blend(compared.experts, [0.25, 0.75], recipe=compared.recipe)
    assert found.keys() == experts[0].entries.keys()
    if place == 0:
        assert torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])
    wanted = 0.25 * language_model(0, tied_copy=False)["model.embed_tokens.weight"]
    wanted += 0.75 * language_model(1, tied_copy=False)["model.embed_tokens.weight"]
    assert torch.allclose(found["model.embed_tokens.weight"], wanted, atol=1e-6)


def test_a_tensor_that_is_no_copy_is_refused(save):
    own = {**language_model(1, tied_copy=False), "lm_head.weight": torch.randn(6, 3)}
    with pytest.raises(CheckpointError, match="differ in these tensors") as caught:
        refuse(
            compare([save("a", language_model(0, tied_copy=False)), save("b", own)], PLAIN, dtype_given=False).misfits
        )
    assert "--exclude lm_head.weight --copy-from" in caught.value.hint


def test_equal_by_chance_is_no_copy(save):
    ones = {"norm.weight": torch.ones(3), "more.weight": torch.ones(3)}
    with pytest.raises(CheckpointError, match="differ in these tensors"):
        experts = [save("a", weights(0) | {"norm.weight": torch.ones(3)}), save("b", weights(1) | ones)]
        refuse(compare(experts, PLAIN, dtype_given=False).misfits)


@pytest.fixture
def llama(tmp_path, torchvision):
    transformers = pytest.importorskip("transformers")

    def llama(name, seed, *, tied, keeps_head):
        config = transformers.LlamaConfig(
            vocab_size=12,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=tied,
        )
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(config)
        with torch.no_grad():
            model.lm_head.weight.copy_(model.model.embed_tokens.weight)
        model.save_pretrained(tmp_path / name)
        if keeps_head:
            path = tmp_path / name / "model.safetensors"
            tensors = load_file(path)
            save_file({**tensors, "lm_head.weight": model.lm_head.weight.detach().clone()}, path, {"format": "pt"})
        return model

    return llama


@pytest.mark.parametrize("first_is_tied", [True, False])
@pytest.mark.parametrize("keeps_head", [True, False])
def test_a_tied_and_an_untied_model_of_equal_head_and_embedding(llama, tmp_path, glue_mix, first_is_tied, keeps_head):
    import transformers

    models = [
        llama(name, seed, tied=(seed == 0) == first_is_tied, keeps_head=keeps_head) for seed, name in enumerate("ab")
    ]
    glue_mix("--alpha", "0.5,0.5", str(tmp_path / "a"), str(tmp_path / "b"), "-o", str(tmp_path / "ab"), "-q")
    loaded, report = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "ab", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    wanted = sum(model.model.embed_tokens.weight for model in models) / 2
    assert torch.allclose(loaded.lm_head.weight, wanted, atol=1e-6)
    assert torch.allclose(loaded.model.embed_tokens.weight, wanted, atol=1e-6)


@pytest.fixture
def glue_mix():
    from glue_cli.cli.app import main

    def glue_mix(*arguments):
        assert main(["mix", *arguments]) == 0

    return glue_mix


def test_models_of_which_one_is_untied_in_truth_are_refused(tmp_path):
    for name, tied in (("a", True), ("b", False)):
        (tmp_path / name).mkdir()
        tensors = language_model(ord(name), tied_copy=False) | ({} if tied else {"lm_head.weight": torch.randn(6, 3)})
        save_file(tensors, tmp_path / name / "model.safetensors")
        config = {"model_type": "no such model", "tie_word_embeddings": tied}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    experts = [read_checkpoint(tmp_path / name) for name in "ab"]
    with pytest.raises(CheckpointError, match="configurations differ"):
        refuse(compare(experts, PLAIN, dtype_given=False).misfits)
