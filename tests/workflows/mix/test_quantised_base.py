"""Adapters of a base that a library has quantised: searched beside what it computes, and written as an adapter."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from glue_cli.data.target import Target
from glue_cli.foundation.errors import CheckpointError, UsageError
from glue_cli.models.libraries import transformers_quantised
from glue_cli.plans.check import plan_check
from glue_cli.plans.evaluate import plan_evaluate
from glue_cli.plans.finetune import plan_finetune
from glue_cli.plans.mix import plan_mix
from glue_cli.plans.mix_records import GIVEN, Coefficients, Search
from glue_cli.plans.outputs import Outputs
from glue_cli.results.record import as_object
from glue_cli.running.device import Compute
from glue_cli.spec.schema import Spec
from glue_cli.workflows.check.check import check
from glue_cli.workflows.evaluate import evaluate
from glue_cli.workflows.mix.experts import gather_experts
from glue_cli.workflows.mix.mix import mix

transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.usefixtures("torchvision"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
]

# bitsandbytes computes with blocks of 64 numbers.
SIZES = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
TOKENS = torch.tensor([[2, 4, 9, 10, 3], [2, 5, 11, 12, 3]])
HEAD = ["classifier"]  # not quantised: the adapters have one of their own
# The library and its settings -> by how much outputs of size 1 may be off: bitsandbytes rounds what it computes with,
# and torchao does if the base is of bfloat16, as most are.
LIBRARIES = {"torchao": 1e-5, "torchao bfloat16": 0.05, "bitsandbytes 8": 0.05, "bitsandbytes 4": 0.05}


@pytest.fixture(scope="module")
def peft(torchvision):
    return pytest.importorskip("peft")


def classifier(path, dtype=torch.float32, **options):
    return transformers.AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype, **options)


@pytest.fixture
def plain(tmp_path, make_tokenizer):
    """A BERT with two labels and its tokenizer, in a folder."""
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=16, max_position_embeddings=12, num_labels=2, **SIZES)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


@pytest.fixture
def adapters(plain, peft, tmp_path):
    torch.manual_seed(1)
    paths = []
    for k, config in enumerate(
        [{"r": 2, "target_modules": ["query", "dense"]}, {"r": 1, "target_modules": ["query"]}]
    ):
        model = peft.get_peft_model(classifier(plain), peft.LoraConfig(task_type="SEQ_CLS", **config))
        for parameter in model.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.8)
        paths.append(tmp_path / f"adapter-{k}")
        model.save_pretrained(paths[-1])
    return paths


@pytest.fixture
def spec(tmp_path, make_tokenizer):
    def spec(base):
        make_tokenizer(base, model_max_length=12)
        (tmp_path / "data").mkdir()
        for split, n in (("train", 60), ("test", 10)):
            words = ["good", "bad", "good", "good", "good"] * (n // 5)
            lines = [json.dumps({"text": f"{word} book is very", "label": word}) for word in words]
            (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
        sections = {
            "model": {"arch": "transformers:AutoModelForSequenceClassification", "args": {"path": str(base)}},
            "data": {"format": "jsonl", "root": "data", "target": {"train": 30, "val": 12}},
            "mix": {"steps": 3, "validate_every": 1, "batch_size": 10},
            "precision": "fp32",
        }
        return Spec.model_validate(sections).located_in(tmp_path)

    return spec


@pytest.fixture
def plan(adapters, tmp_path):
    def plan(spec, method="spsa", *, alpha=None, output="prior", **options):
        outputs = Outputs(tmp_path / output)
        return plan_mix(adapters, outputs, Coefficients(method, alpha), spec=spec, **options)

    return plan


@pytest.fixture(params=LIBRARIES)
def quantised(request, plain, tmp_path):
    """Quantise the base by a library; return its folder and the tolerance of its outputs."""
    pytest.importorskip(request.param.split()[0], reason="the library that quantises is not installed")
    if request.param.startswith("torchao"):
        from torchao.quantization import Int8WeightOnlyConfig

        config = transformers.TorchAoConfig(quant_type=Int8WeightOnlyConfig(), modules_to_not_convert=HEAD)
    else:
        config = transformers.BitsAndBytesConfig(
            llm_int8_skip_modules=HEAD, **{f"load_in_{request.param.split()[1]}bit": True}
        )
    dtype = torch.bfloat16 if request.param.endswith("bfloat16") else torch.float32
    model = classifier(plain, dtype, quantization_config=config, device_map="cpu")
    model.save_pretrained(tmp_path / "quantised")
    return tmp_path / "quantised", LIBRARIES[request.param]


@pytest.fixture
def coded(plain, adapters):
    """The base as a file of codes, which says that a library made them; no library has."""
    tensors = load_file(plain / "model.safetensors")
    name = "bert.encoder.layer.0.attention.self.query.weight"
    save_file({**tensors, name: torch.ones(64, 64, dtype=torch.int8)}, plain / "model.safetensors")
    say_in_config(plain, {"quant_method": "bitsandbytes", "load_in_8bit": True})
    return plain


def say_in_config(folder, quantised):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantised}))


def is_of_4_bits(base):
    return json.loads((base / "config.json").read_text())["quantization_config"].get("load_in_4bit", False)


# ---- with a library


@torch.no_grad()
def test_each_adapter_computes_what_peft_does_beside_the_same_base(quantised, adapters, spec, plan, run, peft):
    base, tolerance = quantised
    spec = spec(base)
    blends = gather_experts(plan(spec)).blends(spec, run, seed=0, n_blends=1)
    for k, path in enumerate(adapters):
        one_hot = torch.eye(2, dtype=torch.float64)[None, None, k]
        ((found, _),) = blends.outputs(one_hot, [({"input_ids": TOKENS}, torch.zeros(2))], 0)
        beside = classifier(base, device_map="cpu")
        alone = beside(input_ids=TOKENS).logits.clone()
        wanted = peft.PeftModel.from_pretrained(beside, path).eval()(input_ids=TOKENS).logits
        torch.testing.assert_close(found, wanted.float(), rtol=0, atol=tolerance * wanted.abs().max().item())
        assert (found - alone).abs().max() > 4 * tolerance * wanted.abs().max()


@torch.no_grad()
def test_the_blend_is_an_adapter_for_the_quantised_base(quantised, spec, plan, run, peft, tmp_path):
    base, tolerance = quantised
    spec = spec(base)
    made = plan(spec)
    result = as_object(mix(made, run))
    model = peft.PeftModel.from_pretrained(classifier(base, device_map="cpu"), tmp_path / "prior").eval()
    blends = gather_experts(made).blends(spec, run, seed=0, n_blends=1)
    alpha = torch.tensor([[result["alpha"]]], dtype=torch.float64)
    ((found, _),) = blends.outputs(alpha, [({"input_ids": TOKENS}, torch.zeros(2))], 0)
    wanted = model(input_ids=TOKENS).logits.float()
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance * wanted.abs().max().item())


def test_the_blend_is_evaluated_beside_the_quantised_base(quantised, spec, plan, run, tmp_path):
    base, tolerance = quantised
    result = as_object(mix(plan(spec := spec(base)), run))
    found = evaluate(plan_evaluate(spec, [tmp_path / "prior"], "val", {}, Outputs(None)), run)
    assert found.results[0].figures["loss"] == pytest.approx(result["loss"]["val"], rel=max(1e-5, tolerance))


def test_adapters_of_a_quantised_base_are_checked_with_their_losses(quantised, adapters, spec, run):
    base, _ = quantised
    found = check(plan_check(adapters, spec=spec(base)), run)
    assert found.losses.experts[0] != pytest.approx(found.losses.experts[1], rel=1e-3)
    step = found.mix.step
    assert (step.backward_s is None) == (step.inner_products_s is None)
    if step.backward_s is None:
        assert step.cheaper == "spsa" and is_of_4_bits(base)


@torch.no_grad()
def test_a_quantised_model_is_evaluated_as_its_library_computes(quantised, plain, spec, run):
    base, tolerance = quantised
    plan = plan_evaluate(spec := spec(base), [base, plain], "test", {}, Outputs(None))
    found = evaluate(plan, run).results
    model, total = classifier(base, device_map="cpu").eval(), 0.0
    for inputs, targets in Target(spec, run)["test"].on(Compute(torch.device("cpu"))).in_order():
        total += nn.functional.cross_entropy(model(**inputs).logits.float(), targets, reduction="sum").item()
    assert found[0].figures["loss"] == pytest.approx(total / 10, rel=max(1e-5, tolerance))
    assert found[1].figures["loss"] == pytest.approx(found[0].figures["loss"], rel=0.1)


def test_the_search_finds_what_it_finds_on_the_dequantised_base(quantised, plain, spec, plan, run):
    base, tolerance = quantised
    if tolerance > 1e-5:
        pytest.skip("the library rounds what it computes with")
    on_codes = as_object(mix(plan(spec := spec(base)), run))
    tensors = classifier(base).state_dict()
    save_file({n: t.dequantize().contiguous() for n, t in tensors.items()}, plain / "model.safetensors")
    shutil.copytree(base, plain, ignore=lambda *_: ["config.json", "model.safetensors"], dirs_exist_ok=True)
    spec.model.args["path"] = str(plain)
    dequantised = as_object(mix(plan(spec, output="other"), run))
    assert on_codes["alpha"] == pytest.approx(dequantised["alpha"], abs=1e-3)
    assert on_codes["loss"]["val"] == pytest.approx(dequantised["loss"]["val"], rel=1e-3)
    assert on_codes["alpha"] != pytest.approx([0.5, 0.5], abs=0.01)


@torch.no_grad()
def test_proxy_judges_each_adapter_beside_the_quantised_base(quantised, adapters, spec, plan, run, peft):
    base, _ = quantised
    made = as_object(mix(plan(spec := spec(base), "proxy"), run))
    accuracies = []
    for path in adapters:
        model = peft.PeftModel.from_pretrained(classifier(base, device_map="cpu"), path).eval()
        found = 0
        for inputs, targets in Target(spec, run)["val"].on(Compute(torch.device("cpu"))).in_order():
            found += (model(**inputs).logits.argmax(-1) == targets).sum().item()
        accuracies.append(found / 12)
    assert made["val_accuracies"] == pytest.approx(accuracies)
    assert accuracies[0] != accuracies[1]
    assert made["alpha"] == pytest.approx([accuracy / sum(accuracies) for accuracy in accuracies])


@pytest.mark.parametrize("method", ["fullgrad", "cmaes", "greedy"])
def test_every_search_gets_below_the_uniform_blend(quantised, spec, plan, run, method):
    base, _ = quantised
    try:
        result = as_object(mix(plan(spec(base), method), run))
    except UsageError as error:  # where bitsandbytes packs 4-bit weights for the CPU
        assert method == "fullgrad" and is_of_4_bits(base)
        assert "no gradient passes 'bert.encoder.layer.0.attention.self.query'" in str(error)
    else:
        assert result["loss"]["val"] < result["loss"]["val_uniform"]


def test_a_base_that_lacks_weights_is_refused(quantised, spec, plan, run):
    base, _ = quantised
    with safe_open(base / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    tensors = load_file(base / "model.safetensors")
    name = "bert.encoder.layer.0.attention.output.LayerNorm.weight"
    save_file({n: t for n, t in tensors.items() if n != name}, base / "model.safetensors", metadata)
    spec = spec(base)
    with pytest.raises(CheckpointError, match="lacks weights") as caught:
        gather_experts(plan(spec)).blends(spec, run, seed=0, n_blends=1)
    assert caught.value.items == (name,)


# ---- without one


class _WithoutGradient(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs.detach()) + 0 * inputs.sum()


class _Codes(nn.Parameter):
    """As weights of a library are of a class of its own."""


def test_a_layer_through_which_no_gradient_passes_is_found():
    net = nn.Sequential(nn.Linear(3, 3), _WithoutGradient(3, 3)).requires_grad_(False)
    for layer in net:
        layer.weight = _Codes(layer.weight, requires_grad=False)
    assert transformers_quantised.find_layer_without_gradient(net) == "1"
    assert transformers_quantised.find_layer_without_gradient(net[:1]) is None


def test_a_library_that_is_missing_is_named(coded, spec, plan, monkeypatch):
    monkeypatch.setattr(transformers_quantised, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="bitsandbytes, which computes with it, is not installed") as caught:
        plan(spec(coded))
    assert caught.value.hint == "pip install bitsandbytes"


@pytest.mark.parametrize("says", [True, False], ids=["config", "no config"])
def test_codes_are_not_trained(coded, spec, tmp_path, says):
    if not says:
        say_in_config(coded, None)
    with pytest.raises(CheckpointError, match="is quantised.*, and its model needs weights") as caught:
        plan_finetune(spec(coded), coded, Outputs(tmp_path / "tuned.safetensors"), track_test=False)
    assert "dequantise" in caught.value.hint


def test_codes_that_no_library_runs_are_not_evaluated(coded, spec):
    spec = spec(coded)
    plan_evaluate(spec, [coded], "test", {}, Outputs(None))
    own = spec.model_copy(update={"model": spec.model.model_copy(update={"arch": "python:net:make"})})
    for at_fault in (lambda: own, lambda: say_in_config(coded, None) or spec):
        with pytest.raises(CheckpointError, match="is quantised.*, and its model needs weights"):
            plan_evaluate(at_fault(), [coded], "test", {}, Outputs(None))


def test_a_library_that_is_missing_is_named_by_evaluate_too(coded, spec, run, monkeypatch):
    monkeypatch.setattr(transformers_quantised, "find_spec", lambda name: None)
    plan = plan_evaluate(spec(coded), [coded], "test", {}, Outputs(None))
    with pytest.raises(CheckpointError, match="bitsandbytes, which computes with it, is not installed"):
        evaluate(plan, run)


def test_given_coefficients_need_no_library(coded, spec, plan, monkeypatch, run, tmp_path):
    monkeypatch.setattr(transformers_quantised, "find_spec", lambda name: None)
    assert as_object(mix(plan(spec(coded), GIVEN, alpha=[0.3, 0.7]), run))["alpha"] == [0.3, 0.7]
    assert (tmp_path / "prior" / "adapter_model.safetensors").exists()


def test_nothing_is_merged_into_codes(coded, spec, plan):
    with pytest.raises(CheckpointError, match=r"is quantised \(bitsandbytes\), and adapters need a base") as caught:
        plan(spec(coded), base=coded)
    assert "without --base the blend is an adapter" in caught.value.hint


def test_codes_that_nothing_says_how_to_load_are_refused(coded, spec, plan):
    say_in_config(coded, None)
    with pytest.raises(CheckpointError, match="is quantised, and adapters need a base of floating-point"):
        plan(spec(coded))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"bank": "dense"}, "--bank dense needs its weights"), ({"arch": "python:net:make"}, "has to load it")],
)
def test_what_only_plain_bases_can_is_refused(coded, spec, plan, run, monkeypatch, change, message):
    monkeypatch.setattr(transformers_quantised, "find_spec", lambda name: True)
    spec = spec(coded)
    made = plan(spec, search=Search(bank=change.get("bank", "auto")))
    if arch := change.get("arch"):
        (coded.parent / "net.py").write_text(
            "import transformers\n"
            "def make(path):\n"
            "    config = transformers.AutoConfig.from_pretrained(path)\n"
            "    return transformers.AutoModelForSequenceClassification.from_config(config)\n"
        )
        spec = spec.model_copy(update={"model": spec.model.model_copy(update={"arch": arch})})
    with pytest.raises(UsageError, match=message):
        gather_experts(made).blends(spec, run, seed=0, n_blends=1)


def test_a_method_that_transformers_does_not_know_is_refused(coded, spec, plan, run):
    say_in_config(coded, {"quant_method": "made of thin air"})
    spec = spec(coded)
    with pytest.raises(CheckpointError, match="transformers does not know how .*plain' is quantised"):
        gather_experts(plan(spec)).blends(spec, run, seed=0, n_blends=1)
