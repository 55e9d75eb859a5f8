"""Experts whose names on disk are not those in memory: searched, blended, evaluated and finetuned."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from glue_cli.blend.tensor_rules import TensorRules
from glue_cli.checkpoints.tensors import write_checkpoint
from glue_cli.foundation.errors import CheckpointError, SpecError, UsageError
from glue_cli.foundation.progress import Noted
from glue_cli.models import build_model
from glue_cli.models.weights import initial_model
from glue_cli.plans.evaluate import plan_evaluate
from glue_cli.plans.finetune import plan_finetune
from glue_cli.plans.mix import plan_mix
from glue_cli.plans.mix_records import GIVEN, Coefficients, Search
from glue_cli.plans.outputs import Outputs
from glue_cli.spec.schema import Spec
from glue_cli.workflows.evaluate import evaluate
from glue_cli.workflows.finetune import finetune
from glue_cli.workflows.mix.mix import mix

transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.usefixtures("torchvision"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
]

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
VIT = {**SIZES, "image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 4}
NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
EXPERTS = {"num_local_experts": 3, "num_experts_per_tok": 2, "num_key_value_heads": 2, "vocab_size": 20}
STEPS = {"steps": 2, "validate_every": 1, "batch_size": 20, "lr": 0.3}
QUERY = "vit.encoder.layer.0.attention.attention.query.weight"
CNN = {"num_classes": 4, "width": 4}


@pytest.fixture
def save(tmp_path, make_tokenizer):
    """Save experts of one architecture, of random numbers, in folders `0` and up; return these."""

    def save(build, n=2, text=False):
        folders = []
        for k in range(n):
            torch.manual_seed(k)
            model = build()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.2 * torch.randn_like(parameter))
            folders.append(tmp_path / str(k))
            model.save_pretrained(folders[-1])
            if text:
                make_tokenizer(folders[-1], ends=False, model_max_length=12)
        return folders

    return save


@pytest.fixture
def vits(save):
    return save(lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**VIT)))


@pytest.fixture
def vit_spec(make_spec, tmp_path):
    def vit_spec(**mixing):
        model = {"arch": "transformers:ViTForImageClassification", "args": {"path": "0"}}
        return make_spec(
            model=model, mix={**STEPS, **mixing}, finetune={"epochs": 1, "batch_size": 20, "lr": 0.01, "keep": "last"}
        )

    return vit_spec


@pytest.fixture
def mixtrals(save):
    config = transformers.MixtralConfig(**SIZES, **EXPERTS, **NO_TOKENS, max_position_embeddings=16)
    return save(lambda: transformers.MixtralForCausalLM(config), text=True)


@pytest.fixture
def text_spec(tmp_path, mixtrals):
    def text_spec(**mixing):
        (tmp_path / "texts").mkdir(exist_ok=True)
        for split, n in (("train", 60), ("test", 10)):
            lines = [json.dumps({"text": f"{word} book is very"}) for word in ("good", "bad") * (n // 2)]
            (tmp_path / "texts" / f"{split}.jsonl").write_text("\n".join(lines))
        sections = {
            "model": {"arch": "transformers:MixtralForCausalLM", "args": {"path": "0"}},
            "data": {"format": "jsonl", "root": "texts", "target": {"train": 30, "val": 12}},
            "mix": {**STEPS, "batch_size": 12, **mixing},
            "finetune": {"epochs": 1, "batch_size": 10, "lr": 0.01, "keep": "last"},
            "precision": "fp32",
        }
        return Spec.model_validate(sections).located_in(tmp_path)

    return text_spec


@pytest.fixture
def blend(tmp_path, run):
    def blend(experts, spec=None, method=None, alpha=None, output="prior", rules=None, base=None, **options):
        plan = plan_mix(
            experts,
            Outputs(tmp_path / output),
            Coefficients(method or GIVEN, alpha),
            rules=rules or TensorRules(),
            base=base,
            search=Search(**options),
            spec=spec,
        )
        return mix(plan, run)

    return blend


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def loss_of(spec, path, run, split="val"):
    return evaluate(plan_evaluate(spec, [path], split, {}, Outputs(None)), run).results[0].figures["loss"]


def assert_blended(folder, experts, alpha, model_class):
    """Check the names and numbers of a blend, and that the library finds all that it wants in it."""
    found, *own = map(weights_of, (folder, *experts))
    assert found.keys() == own[0].keys()
    for name, tensor in found.items():
        wanted = sum(a * tensors[name].double() for a, tensors in zip(alpha, own, strict=True))
        torch.testing.assert_close(tensor.double(), wanted, rtol=1e-5, atol=1e-6)
    _, info = model_class.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())


@pytest.mark.parametrize("bank", ["auto", "disk"])
@pytest.mark.parametrize("method", ["spsa", "fullgrad"])
def test_a_search_over_vits(vits, vit_spec, blend, run, tmp_path, method, bank):
    assert QUERY in weights_of(vits[0])
    spec = vit_spec()
    result = blend(vits, spec, method, bank=bank)
    assert result.alpha != [0.5, 0.5]
    assert_blended(tmp_path / "prior", vits, result.alpha, transformers.ViTForImageClassification)
    assert loss_of(spec, tmp_path / "prior", run) == pytest.approx(result.loss.val, rel=1e-4)


@pytest.mark.parametrize("method", ["spsa", "fullgrad", "greedy"])
def test_a_search_over_mixtures_of_experts(mixtrals, text_spec, blend, run, tmp_path, method):
    assert any("experts.2.w3" in name for name in weights_of(mixtrals[0]))
    spec = text_spec()
    result = blend(mixtrals, spec, method)
    assert_blended(tmp_path / "prior", mixtrals, result.alpha, transformers.MixtralForCausalLM)
    assert loss_of(spec, tmp_path / "prior", run) == pytest.approx(result.loss.val, rel=1e-4)


def test_groups_have_the_names_on_disk(vits, vit_spec, blend, run, tmp_path):
    spec = vit_spec(groups={"queries": "*.attention.attention.query.*"})
    result = blend(vits, spec, "fullgrad")
    queries, rest = result.groups["queries"], result.groups["rest"]
    assert queries != rest
    found, *own = map(weights_of, (tmp_path / "prior", *vits))
    for name, tensor in found.items():
        alpha = queries if "attention.query" in name else rest
        wanted = sum(a * tensors[name].double() for a, tensors in zip(alpha, own, strict=True))
        torch.testing.assert_close(tensor.double(), wanted, rtol=1e-5, atol=1e-6)
    assert loss_of(spec, tmp_path / "prior", run) == pytest.approx(result.loss.val, rel=1e-4)


@pytest.mark.parametrize("what", ["groups", "exclude"])
def test_parts_of_one_tensor_are_treated_alike(mixtrals, text_spec, blend, what):
    spec = text_spec(groups={"first": "*.experts.0.*"} if what == "groups" else {})
    rules = TensorRules(exclude=("*.experts.0.*",), copy_from="1") if what == "exclude" else None
    with pytest.raises(SpecError, match="holds 'model.layers.0.mlp.experts.*' as one tensor") as caught:
        blend(mixtrals, spec, "spsa", rules=rules)
    assert any("experts.1" in item for item in caught.value.items)


def test_whole_tensors_may_be_copied_or_grouped(mixtrals, text_spec, blend, run, tmp_path):
    spec = text_spec(groups={"experts": "*.experts.*"})
    result = blend(mixtrals, spec, "spsa", rules=TensorRules(exclude=("*.experts.*.w2.*",), copy_from="1"))
    found, own = weights_of(tmp_path / "prior"), weights_of(mixtrals[1])
    assert all(torch.equal(found[name], own[name]) for name in own if ".w2." in name)
    assert loss_of(spec, tmp_path / "prior", run) == pytest.approx(result.loss.val, rel=1e-4)


def test_tensors_that_are_put_together_are_streamed_but_not_read_row_by_row(mixtrals, text_spec, blend, tmp_path):
    with pytest.raises(UsageError, match="--bank disk: the model makes 2 tensors from several") as caught:
        blend(mixtrals, text_spec(), "spsa", bank="disk")
    assert caught.value.hint == "--bank streamed"
    results = []
    for bank in ("device", "streamed"):
        results.append(blend(mixtrals, text_spec(), "spsa", bank=bank))
        shutil.rmtree(tmp_path / "prior")
    assert results[0].alpha == results[1].alpha and results[0].loss == results[1].loss


@pytest.mark.parametrize("kind", ["vit", "mixtral"])
def test_a_finetuned_model_has_the_names_of_its_start(request, run, tmp_path, kind):
    folder = request.getfixturevalue("vits" if kind == "vit" else "mixtrals")[0]
    spec = request.getfixturevalue("vit_spec" if kind == "vit" else "text_spec")()
    result = finetune(plan_finetune(spec, folder, Outputs(tmp_path / "tuned"), track_test=False), run)
    found, before = weights_of(tmp_path / "tuned"), weights_of(folder)
    assert found.keys() == before.keys()
    assert any(not torch.equal(found[name], before[name]) for name in found)
    assert loss_of(spec, tmp_path / "tuned", run) == pytest.approx(result.history[-1].figures["val_loss"], rel=1e-4)


def test_a_head_that_is_aligned(vits, vit_spec, blend, run, tmp_path):
    for folder, names in zip(vits, (["b", "a", "c", "d"], ["d", "c", "b", "a"]), strict=True):
        config = json.loads((folder / "config.json").read_text())
        config |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        (folder / "config.json").write_text(json.dumps(config))
    spec = vit_spec()
    rules = TensorRules(head="classifier.*", head_policy="align", classes=("a", "b", "c", "d"))
    result = blend(vits, spec, "spsa", rules=rules)
    found, *own = (weights_of(folder)["classifier.bias"] for folder in (tmp_path / "prior", *vits))
    rows = own[0][[1, 0, 2, 3]], own[1][[3, 2, 1, 0]]
    torch.testing.assert_close(found, sum(a * row for a, row in zip(result.alpha, rows, strict=True)))
    assert loss_of(spec, tmp_path / "prior", run) == pytest.approx(result.loss.val, rel=1e-4)


# ---- prefixes of wrappers


@pytest.fixture
def cnns(tmp_path):
    def cnns(*spellings):
        paths = []
        for k, spelling in enumerate(spellings):
            state = build_model("cnn", CNN, seed=k).state_dict()
            paths.append(tmp_path / f"e{k}.safetensors")
            write_checkpoint(paths[-1], {spelling.format(name): tensor for name, tensor in state.items()}, {})
        return paths

    return cnns


@pytest.mark.parametrize("refreshed", [False, True])
@pytest.mark.parametrize("spellings", [("module.{}", "module.{}"), ("{}", "module._orig_mod.{}"), ("model.{}", "{}")])
def test_experts_in_several_spellings(make_spec, cnns, blend, run, events, tmp_path, spellings, refreshed):
    spec = make_spec(mix=STEPS)
    rules = TensorRules(batchnorm="refresh" if refreshed else "average")
    result = blend(cnns(*spellings), spec, "spsa", output="prior.safetensors", rules=rules)
    found = load_file(tmp_path / "prior.safetensors")
    experts = [load_file(tmp_path / f"e{k}.safetensors") for k in range(2)]
    assert found.keys() == experts[0].keys()
    for plain in build_model("cnn", CNN, seed=0).state_dict():
        own = [tensors[spelling.format(plain)].double() for tensors, spelling in zip(experts, spellings, strict=True)]
        if "running" not in plain and "tracked" not in plain:
            wanted = sum(a * tensor for a, tensor in zip(result.alpha, own, strict=True))
            torch.testing.assert_close(found[spellings[0].format(plain)].double(), wanted, rtol=1e-5, atol=1e-6)
    assert loss_of(spec, tmp_path / "prior.safetensors", run) == pytest.approx(result.loss.val, rel=1e-4)
    warnings = [event.text for event in events if isinstance(event, Noted) and event.warning]
    assert any("another spelling" in text for text in warnings) == (spellings[0] != spellings[1])


def test_a_model_that_is_finetuned_keeps_its_prefix(make_spec, cnns, run, tmp_path):
    (start,) = cnns("model._orig_mod.{}")
    spec = make_spec(finetune={"epochs": 1, "batch_size": 20, "lr": 0.01, "keep": "last"})
    output = tmp_path / "tuned.safetensors"
    result = finetune(plan_finetune(spec, start, Outputs(output), track_test=False), run)
    assert load_file(output).keys() == load_file(start).keys()
    assert loss_of(spec, output, run) == pytest.approx(result.history[-1].figures["val_loss"], rel=1e-4)


# ---- adapters and starts


def test_adapters_of_a_vit_are_merged_into_its_names_on_disk(vits, vit_spec, blend, run, tmp_path):
    peft = pytest.importorskip("peft")
    merged = []
    for k in range(2):
        model = transformers.ViTForImageClassification.from_pretrained(vits[0])
        config = peft.LoraConfig(
            r=2, lora_alpha=3, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"]
        )
        model = peft.get_peft_model(model, config)
        torch.manual_seed(k)
        for parameter in model.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.5)
        model.save_pretrained(tmp_path / f"adapter{k}")
        merged.append(model.merge_and_unload().state_dict())
    adapters = [tmp_path / f"adapter{k}" for k in range(2)]
    spec = vit_spec()
    result = blend(adapters, spec, "spsa", base=vits[0])
    assert weights_of(tmp_path / "prior").keys() == weights_of(vits[0]).keys()
    found, info = transformers.ViTForImageClassification.from_pretrained(tmp_path / "prior", output_loading_info=True)
    assert not any(info.values())
    for name, tensor in found.state_dict().items():
        wanted = sum(a * state[name].double() for a, state in zip(result.alpha, merged, strict=True))
        torch.testing.assert_close(tensor.double(), wanted, rtol=1e-4, atol=1e-5)
    assert loss_of(spec, tmp_path / "prior", run) == pytest.approx(result.loss.val, rel=1e-4)


def start_of(vit_spec, init, progress=lambda event: None):
    spec = vit_spec()
    experts = {"count": 2, "size": 10, "init": init}
    return initial_model(
        Spec.model_validate({**spec.model_dump(), "experts": experts}).located_in(spec.path(".")), 0, progress=progress
    )


def test_a_start_from_a_bare_vit_takes_all_of_its_backbone(vits, vit_spec, tmp_path):
    bare = transformers.ViTForImageClassification.from_pretrained(vits[1]).vit
    bare.save_pretrained(tmp_path / "bare")
    events = []
    model = start_of(vit_spec, "bare", events.append)
    for name, tensor in bare.state_dict().items():
        assert torch.equal(model.vit.state_dict()[name], tensor), name
    assert events == [Noted(f"started from {tmp_path / 'bare'}; fresh: classifier.weight, classifier.bias")]


def test_a_start_with_more_layers_than_the_model_is_warned_of(vits, vit_spec, tmp_path):
    config = transformers.ViTConfig(**{**VIT, "num_hidden_layers": 3})
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "deep")
    events = []
    start_of(vit_spec, "deep", events.append)
    assert [event.warning for event in events] == [True, False]
    assert "has more layers than the spec's model; not used: vit.encoder.layer.1." in events[0].text


def test_a_start_that_the_library_would_leave_half_random_is_refused(vits, vit_spec, tmp_path):
    (tmp_path / "broken").mkdir()
    broken = {name.replace("encoder.layer", "encoder.stage"): tensor for name, tensor in weights_of(vits[0]).items()}
    save_file(broken, tmp_path / "broken" / "model.safetensors")
    with pytest.raises(CheckpointError, match="lacks .* weights of the backbone .* more than 10%"):
        start_of(vit_spec, "broken/model.safetensors")


def test_a_pooler_that_the_start_lacks_is_a_warning(tmp_path, run):
    sizes = {**SIZES, "num_hidden_layers": 2, "vocab_size": 200, "max_position_embeddings": 16}
    transformers.BertForMaskedLM(transformers.BertConfig(**sizes)).save_pretrained(tmp_path / "mlm")
    sections = {
        "model": {"arch": "transformers:BertForSequenceClassification", "args": {"path": "mlm"}},
        "data": {"format": "jsonl", "root": "texts"},
        "experts": {"count": 2, "size": 10, "init": "mlm"},
    }
    events = []
    initial_model(Spec.model_validate(sections).located_in(tmp_path), 0, progress=events.append)
    assert [event.warning for event in events] == [True, False]
    assert "of the backbone, which are fresh: bert.pooler.dense.weight, bert.pooler.dense.bias" in events[0].text
