"""PEFT itself is the reference: it merges each adapter into its base, and the mean of such models is what a mix is."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from glue_cli.blend.adapters.adapted_base import fit
from glue_cli.blend.adapters.adapter import read_adapter
from glue_cli.blend.adapters.mixing import concatenate, expert_tensors, update_of, write_merged
from glue_cli.checkpoints.naming import Naming, Source
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.foundation.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers", "ignore:fan_in_fan_out is set to")


@pytest.fixture(scope="module")
def peft():
    """PEFT, whose import takes torchvision's along: its wheel lacks two operators with a CPU build of torch."""
    pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not hasattr(torch.ops.torchvision, "nms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            library = torch.library.Library("torchvision", "DEF")
            library.define("nms" + schema)
            library.define("qnms" + schema)
        return pytest.importorskip("peft")


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 12}
    return BertForSequenceClassification(BertConfig(vocab_size=30, max_position_embeddings=16, num_labels=3, **sizes))


def gpt2(kind):
    import transformers

    config = transformers.GPT2Config(
        vocab_size=30, n_embd=8, n_layer=2, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    return getattr(transformers, kind)(config)


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.narrow, self.head = nn.Conv2d(2, 5, 3), nn.Conv2d(5, 5, 1), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.narrow(self.wide(x[:, :8].double().view(-1, 2, 2, 2).tile(1, 1, 2, 2))).mean((2, 3)))


TOKENS = torch.randint(3, 30, (4, 9), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def outputs_of(model):
    found = model.double().eval()(TOKENS)
    return found if isinstance(found, torch.Tensor) else found.logits


@pytest.fixture
def make_experts(peft, tmp_path):
    """Save a base, and an adapter with random numbers for each configuration; return the base, the adapters, and
    the state dicts that PEFT makes of them."""

    def make_experts(build, configs, dtype=torch.float32):
        torch.manual_seed(0)
        base = build().to(dtype)
        for parameter in base.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.5)
        state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
        save_file(state, tmp_path / "base.safetensors")
        folders, merged = [], []
        for k, config in enumerate(configs):
            model = build().to(dtype)
            model.load_state_dict(state)
            model = peft.get_peft_model(model, peft.LoraConfig(**config), autocast_adapter_dtype=False)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    nn.init.normal_(parameter, std=0.5)
            folders.append(tmp_path / f"adapter-{k}")
            model.save_pretrained(folders[-1])
            merged.append(model.merge_and_unload().double().state_dict())
        return read_checkpoint(tmp_path / "base.safetensors"), [read_adapter(folder) for folder in folders], merged

    def rebuild(build, state):
        model = build().double()
        model.load_state_dict(state)
        return model

    make_experts.rebuild = rebuild
    return make_experts


CASES = {
    "encoder with a head": (
        bert,
        [
            {"task_type": "SEQ_CLS", "r": 3, "lora_alpha": 5, "target_modules": ["query", "value"]},
            {
                "task_type": "SEQ_CLS",
                "r": 2,
                "lora_alpha": 3,
                "use_rslora": True,
                "target_modules": ["query", "dense", "word_embeddings"],
                "rank_pattern": {"output.dense": 4, "layer.1.attention.self.query": 5},
                "alpha_pattern": {"0.output.dense": 7},
            },
            {"task_type": "SEQ_CLS", "r": 1, "lora_alpha": 2, "target_modules": r".*layer\.[12]\..*key"},
        ],
    ),
    "biases": (
        bert,
        [
            {"task_type": "SEQ_CLS", "bias": "all", "r": 2, "target_modules": ["query"]},
            {"task_type": "SEQ_CLS", "bias": "all", "r": 3, "target_modules": ["query"]},
        ],
    ),
    "transposed weights": (
        lambda: gpt2("GPT2LMHeadModel"),
        [
            {"r": 2, "lora_alpha": 1, "target_modules": ["c_attn"], "fan_in_fan_out": True},
            {"r": 2, "lora_alpha": 4, "target_modules": ["c_attn", "c_proj", "c_fc"]},
        ],
    ),
    "square weights of either orientation": (
        lambda: gpt2("GPT2ForSequenceClassification"),
        [
            {"r": 2, "lora_alpha": 1, "target_modules": ["attn.c_proj", "score"]},
            {"r": 3, "lora_alpha": 4, "target_modules": ["attn.c_proj", "c_attn"]},
        ],
    ),
    "convolutions": (
        Convolutions,
        [
            {"r": 2, "lora_alpha": 3, "target_modules": ["wide", "narrow", "head"]},
            {"r": 4, "lora_alpha": 3, "target_modules": ["wide", "narrow"]},
        ],
    ),
}


@pytest.fixture(params=CASES, ids=lambda case: case.replace(" ", "-"))
def case(request, make_experts):
    build, configs = CASES[request.param]
    base, adapters, merged = make_experts(build, configs)
    alpha = [0.2, 0.5, 0.3][: len(adapters)] if len(adapters) == 3 else [0.3, 0.7]
    return build, base, adapters, merged, alpha


def mean(states, alpha):
    return {name: sum(w * state[name] for w, state in zip(alpha, states, strict=True)) for name in states[0]}


def test_the_concatenated_adapter_is_the_mean_of_the_merged_experts(case, make_experts, peft, tmp_path):
    build, base, adapters, merged, alpha = case
    concatenate(adapters, alpha, tmp_path / "mix", {"kind": "prior"})
    model = peft.PeftModel.from_pretrained(make_experts.rebuild(build, load_file(base.path)), tmp_path / "mix")
    wanted = outputs_of(make_experts.rebuild(build, mean(merged, alpha)))
    assert torch.allclose(outputs_of(model), wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(outputs_of(make_experts.rebuild(build, merged[0])), wanted, rtol=1e-3, atol=1e-3)
    assert read_checkpoint(tmp_path / "mix" / "adapter_model.safetensors").glue == {"kind": "prior"}


def test_the_merged_checkpoint_is_the_mean_of_the_merged_experts(case, make_experts, tmp_path):
    build, base, adapters, merged, alpha = case
    write_merged(tmp_path / "merged.safetensors", fit(base, adapters), alpha, {"kind": "prior"})
    found = load_file(tmp_path / "merged.safetensors")
    wanted = mean(merged, alpha)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == torch.float32
        assert torch.allclose(found[name].double(), tensor, rtol=1e-6, atol=2e-6), name
    assert read_checkpoint(tmp_path / "merged.safetensors").glue == {"kind": "prior"}


def test_a_one_hot_alpha_gives_that_expert(case, make_experts, peft, tmp_path):
    build, base, adapters, merged, _ = case
    for k, adapter in enumerate(adapters):
        alpha = [float(j == k) for j in range(len(adapters))]
        concatenate(adapters, alpha, tmp_path / f"hot-{k}", {})
        states = [make_experts.rebuild(build, load_file(base.path)) for _ in range(2)]
        own, mixed = (
            outputs_of(peft.PeftModel.from_pretrained(state, folder))
            for state, folder in zip(states, (adapter.path, tmp_path / f"hot-{k}"), strict=True)
        )
        assert torch.allclose(own, mixed, rtol=1e-5, atol=1e-5)


def test_the_tensors_of_each_expert_are_those_that_peft_merges(case):
    _, base, adapters, merged, _ = case
    adapted = fit(base, adapters)
    naming = Naming({name: Source((name,)) for name, _, _ in adapted.merged}, ())
    names = {name for name, tensor in merged[0].items() if any((tensor != other[name]).any() for other in merged[1:])}
    for k, state in enumerate(merged):
        found = dict(expert_tensors(adapted, k, naming))
        assert list(found) == adapted.changed and found.keys() >= names
        for name, tensor in found.items():
            assert torch.allclose(tensor.double(), state[name], rtol=1e-6, atol=2e-6), name


def test_averaging_a_and_b_apart_would_be_another_model(make_experts, peft, tmp_path):
    config = {"task_type": "SEQ_CLS", "r": 2, "lora_alpha": 2, "target_modules": ["query", "value"]}
    base, adapters, merged = make_experts(bert, [config, config])
    concatenate(adapters, [0.5, 0.5], tmp_path / "mix", {})
    files = [load_file(adapter.checkpoint.files[0]) for adapter in adapters]
    (tmp_path / "apart").mkdir()
    save_file(mean(files, [0.5, 0.5]), tmp_path / "apart" / "adapter_model.safetensors")
    (tmp_path / "apart" / "adapter_config.json").write_text(json.dumps(adapters[0].config))
    mixed, apart = (
        outputs_of(peft.PeftModel.from_pretrained(make_experts.rebuild(bert, load_file(base.path)), tmp_path / name))
        for name in ("mix", "apart")
    )
    wanted = outputs_of(make_experts.rebuild(bert, mean(merged, [0.5, 0.5])))
    assert (mixed - wanted).abs().max() < 1e-5 < 1e-1 < (apart - wanted).abs().max()


def test_a_folder_published_without_its_head(make_experts, peft, tmp_path):
    config = {"r": 2, "target_modules": ["c_attn"], "fan_in_fan_out": True}
    base, adapters, merged = make_experts(lambda: gpt2("GPT2LMHeadModel"), [config, config])
    bare = gpt2("GPT2LMHeadModel")
    bare.load_state_dict(load_file(base.path))
    bare.transformer.save_pretrained(tmp_path / "bare")
    adapted = fit(read_checkpoint(tmp_path / "bare"), adapters)
    assert "wte.weight" in read_checkpoint(tmp_path / "bare").entries
    write_merged(tmp_path / "merged.safetensors", adapted, [0.3, 0.7], {})
    wanted = mean(merged, [0.3, 0.7])
    for name, tensor in load_file(tmp_path / "merged.safetensors").items():
        assert torch.allclose(tensor.double(), wanted[name], rtol=1e-6, atol=2e-6), name


# ---- adapters made by hand, for what PEFT's own files rarely have


@pytest.fixture
def make(tmp_path):
    """Save adapters of one linear layer `lin`, with B [3, r], A [r, 4] and further tensors, and their base."""

    def make(*parts, base=None):
        save_file({"lin.weight": torch.ones(3, 4)} if base is None else base, tmp_path / "base.safetensors")
        adapters = []
        for k, (b, a, others) in enumerate(parts):
            folder = tmp_path / f"adapter-{k}"
            folder.mkdir()
            config = {"peft_type": "LORA", "r": len(a), "lora_alpha": 2 * len(a), "base_model_name_or_path": "base"}
            (folder / "adapter_config.json").write_text(json.dumps(config))
            tensors = {"base_model.model.lin.lora_A.weight": a, "base_model.model.lin.lora_B.weight": b}
            save_file({**tensors, **others}, folder / "adapter_model.safetensors")
            adapters.append(read_adapter(folder))
        return read_checkpoint(tmp_path / "base.safetensors"), adapters

    return make


def test_the_mix_of_halves_is_exact_in_float32(make, tmp_path):
    parts = [(torch.randn(3, r).bfloat16(), torch.randn(r, 4).bfloat16(), {}) for r in (1, 2)]
    base, adapters = make(*parts, base={"lin.weight": torch.ones(3, 4).bfloat16()})
    concatenate(adapters, [0.1, 0.9], tmp_path / "mix", {})
    mix = read_adapter(tmp_path / "mix")
    assert {entry.dtype for entry in mix.checkpoint.entries.values()} == {"F32"}
    wanted = sum(2 * w * b.double() @ a.double() for w, (b, a, _) in zip((0.1, 0.9), parts, strict=True))
    found = update_of(mix, mix.updates["lin"], transposed=False)
    assert torch.allclose(found.double(), wanted, rtol=1e-6, atol=1e-6)
    write_merged(tmp_path / "merged.safetensors", fit(base, adapters), [0.1, 0.9], {})
    merged = load_file(tmp_path / "merged.safetensors")["lin.weight"]
    assert merged.dtype == torch.bfloat16 and torch.equal(merged, (1 + found).bfloat16())


def test_float64_stays_float64(make, tmp_path):
    parts = [(torch.randn(3, 2).double(), torch.randn(2, 4).double(), {}) for _ in range(2)]
    _, adapters = make(*parts)
    concatenate(adapters, [0.1, 0.9], tmp_path / "mix", {})
    mix = read_adapter(tmp_path / "mix")
    wanted = sum(2 * w * b @ a for w, (b, a, _) in zip((0.1, 0.9), parts, strict=True))
    assert torch.allclose(update_of(mix, mix.updates["lin"], transposed=False), wanted, rtol=1e-14, atol=1e-14)


def test_an_expert_with_coefficient_0_is_left_out(make, tmp_path):
    broken = torch.full((3, 5), float("nan"))
    base, adapters = make((torch.randn(3, 2), torch.randn(2, 4), {}), (broken, torch.randn(5, 4), {}))
    concatenate(adapters, [1.0, 0.0], tmp_path / "mix", {})
    assert read_adapter(tmp_path / "mix").config["r"] == 2
    write_merged(tmp_path / "merged.safetensors", fit(base, adapters), [1.0, 0.0], {})
    for mix in (
        lambda: concatenate(adapters, [0.5, 0.5], tmp_path / "bad", {}),
        lambda: write_merged(tmp_path / "bad.safetensors", fit(base, adapters), [0.5, 0.5], {}),
    ):
        with pytest.raises(CheckpointError, match=r"adapter-1.*lin.lora_B.weight' has nan"):
            mix()
    assert sorted(path.name for path in tmp_path.glob("*bad*")) == []


def test_a_merge_that_does_not_fit_its_dtype_leaves_nothing(make, tmp_path):
    half = torch.full((3, 4), 6e4, dtype=torch.float16)
    base, adapters = make((torch.full((3, 1), 100.0), torch.full((1, 4), 100.0), {}), base={"lin.weight": half})
    with pytest.raises(CheckpointError, match="'lin.weight' is too large for F16"):
        write_merged(tmp_path / "merged.safetensors", fit(base, adapters), [1.0], {})
    assert not (tmp_path / "merged.safetensors").exists()


def test_integers_beside_the_factors_are_never_averaged(make, tmp_path):
    def others(mask, n):
        return {
            "base_model.model.mask": torch.tensor(mask),
            "base_model.model.bn.num_batches_tracked": torch.tensor(n),
        }

    def part(mask, n):
        return torch.randn(3, 1), torch.randn(1, 4), others(mask, n)

    base, adapters = make(part([1, 2], 3), part([1, 2], 8))
    write_merged(tmp_path / "merged.safetensors", fit(base, adapters), [0.5, 0.5], {})
    found = load_file(tmp_path / "merged.safetensors")
    assert found["mask"].tolist() == [1, 2] and found["bn.num_batches_tracked"].item() == 8
    concatenate(adapters, [0.5, 0.5], tmp_path / "mix", {})
    assert load_file(tmp_path / "mix" / "adapter_model.safetensors")["base_model.model.mask"].dtype == torch.int64


def test_integers_that_differ_are_refused(make, tmp_path):
    parts = [(torch.randn(3, 1), torch.randn(1, 4), {"mask": torch.tensor([n])}) for n in (1, 2)]
    _, adapters = make(*parts)
    with pytest.raises(CheckpointError, match="'mask' is not floating point and differs"):
        concatenate(adapters, [0.5, 0.5], tmp_path / "mix", {})
    assert not (tmp_path / "mix").exists()
