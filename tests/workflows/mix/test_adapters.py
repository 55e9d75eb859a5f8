"""Adapters of one base, as PEFT writes them: to an adapter, into the base, and searched over."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from glue_cli.blend.adapters.adapter import read_adapter
from glue_cli.blend.adapters.disk_space import mixed_bytes
from glue_cli.blend.tensor_rules import TensorRules
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.tensors import write_checkpoint
from glue_cli.foundation.errors import CheckpointError, ResourceError, SpecError, UsageError
from glue_cli.foundation.run import Run
from glue_cli.plans.check import plan_check
from glue_cli.plans.evaluate import plan_evaluate
from glue_cli.plans.mix import plan_mix
from glue_cli.plans.mix_records import GIVEN, Coefficients, Search, Writing
from glue_cli.plans.outputs import Outputs
from glue_cli.results.record import as_object
from glue_cli.spec.schema import Spec
from glue_cli.workflows.check.check import check
from glue_cli.workflows.evaluate import evaluate
from glue_cli.workflows.mix.mix import mix

transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.usefixtures("torchvision"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
]

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TOKENS = torch.tensor([[2, 4, 9, 10, 3], [2, 5, 11, 12, 3]])
CONFIGS = [{"r": 2, "lora_alpha": 3, "target_modules": ["query", "value"]}, {"r": 1, "target_modules": ["query"]}]


@pytest.fixture(scope="module")
def peft(torchvision):
    return pytest.importorskip("peft")


def classifier(path):
    return transformers.AutoModelForSequenceClassification.from_pretrained(path)


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=TOKENS).logits


@pytest.fixture
def base(tmp_path, make_tokenizer):
    """A BERT with two labels and its tokenizer, in a folder."""
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=16, max_position_embeddings=12, num_labels=2, **SIZES)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    return make_tokenizer(tmp_path / "bert", model_max_length=12)


@pytest.fixture
def make_adapter(base, peft, tmp_path):
    """Save an adapter of the base, a head of its own included, with random numbers."""

    def make_adapter(name, base=base, **config):
        model = peft.get_peft_model(classifier(base), peft.LoraConfig(task_type="SEQ_CLS", **config))
        torch.manual_seed(len(name) + sum(map(ord, name)))
        for parameter in model.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.8)
        model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make_adapter


@pytest.fixture
def adapters(make_adapter):
    return [make_adapter(f"adapter-{k}", **config) for k, config in enumerate(CONFIGS)]


@pytest.fixture
def spec(base, tmp_path):
    for split, n in (("train", 60), ("test", 10)):
        words = ["good", "bad", "good", "good", "good"] * (n // 5)
        lines = [{"text": f"{word} book is very", "label": word} for word in words]
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sections = {
        "model": {
            "arch": "transformers:AutoModelForSequenceClassification",
            "args": {"path": "bert", "num_labels": 2},
        },
        "data": {"format": "jsonl", "root": "data", "target": {"train": 30, "val": 12}},
        "mix": {"steps": 3, "validate_every": 1, "batch_size": 10, "lr": 0.3},
        "precision": "fp32",
    }
    return Spec.model_validate(sections).located_in(tmp_path)


@pytest.fixture
def plan(tmp_path):
    def plan(experts, output="prior", *, spec=None, method=None, alpha=None, sizes=None, force=False, **options):
        outputs = Outputs(tmp_path / output, force=force)
        return plan_mix(experts, outputs, Coefficients(method or GIVEN, alpha, sizes), spec=spec, **options)

    return plan


@pytest.fixture
def blend(plan, run):
    return lambda *args, **options: as_object(mix(plan(*args, **options), run))


def merged_mean(adapters, base, alpha, peft):
    """Return the model that is the mean of the models into which PEFT merges each adapter."""
    models = [peft.PeftModel.from_pretrained(classifier(base), path).merge_and_unload() for path in adapters]
    states = [model.state_dict() for model in models]
    mean = {name: sum(a * state[name].double() for a, state in zip(alpha, states, strict=True)) for name in states[0]}
    models[0].load_state_dict(mean)
    return models[0]


def test_adapters_give_an_adapter_that_peft_loads(adapters, base, blend, peft, tmp_path):
    result = blend(adapters, alpha=[0.3, 0.7])
    assert sorted(path.name for path in (tmp_path / "prior").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    found = logits(peft.PeftModel.from_pretrained(classifier(base), tmp_path / "prior"))
    torch.testing.assert_close(found, logits(merged_mean(adapters, base, [0.3, 0.7], peft)), rtol=1e-4, atol=1e-5)
    assert (found - logits(peft.PeftModel.from_pretrained(classifier(base), adapters[0]))).abs().max() > 0.01
    assert result["output"] == str(tmp_path / "prior") and result["alpha"] == [0.3, 0.7]
    assert [expert["path"] for expert in result["experts"]] == [str(path) for path in adapters]
    assert all(len(expert["sha256"]) == 64 for expert in result["experts"])
    assert read_adapter(tmp_path / "prior").checkpoint.glue["alpha"] == [0.3, 0.7]


def test_an_adapters_weights_stand_for_its_folder(adapters, blend, tmp_path):
    blend(adapters, "by-folder", alpha=[0.3, 0.7])
    blend([path / "adapter_model.safetensors" for path in adapters], "by-file", alpha=[0.3, 0.7])
    found = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("by-folder", "by-file")]
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_adapters_are_merged_into_their_base(adapters, base, blend, peft, tmp_path):
    result = blend(adapters, alpha=[0.3, 0.7], base=base)
    wanted = logits(merged_mean(adapters, base, [0.3, 0.7], peft))
    torch.testing.assert_close(logits(classifier(tmp_path / "prior")), wanted, rtol=1e-4, atol=1e-5)
    names = {path.name for path in base.iterdir()}
    assert {path.name for path in (tmp_path / "prior").iterdir()} == {*names, "README.md"} > {"tokenizer.json"}
    assert (tmp_path / "prior" / "config.json").read_text() == (base / "config.json").read_text()
    assert read_checkpoint(tmp_path / "prior").glue["experts"][1]["name"] == "adapter-1"
    assert result["output"] == str(tmp_path / "prior")


def test_adapters_are_merged_into_one_file(adapters, base, blend, tmp_path):
    blend(adapters, alpha=[0.3, 0.7], base=base)
    blend(adapters, "prior.safetensors", alpha=[0.3, 0.7], base=base / "model.safetensors")
    folder, file = load_file(tmp_path / "prior" / "model.safetensors"), load_file(tmp_path / "prior.safetensors")
    assert folder.keys() == file.keys() and all(torch.equal(tensor, file[name]) for name, tensor in folder.items())


def test_methods_that_need_no_model(adapters, blend):
    assert blend(adapters, "a", method="uniform")["alpha"] == [0.5, 0.5]
    assert blend(adapters, "b", method="data-size", sizes=[1, 3])["alpha"] == [0.25, 0.75]
    with pytest.raises(UsageError, match="do not say how many examples") as caught:
        blend(adapters, "c", method="data-size")
    assert caught.value.items == tuple(map(str, adapters)) and "--sizes" in caught.value.hint


# ---- searches


@pytest.mark.parametrize("method", ["spsa", "fullgrad"])
def test_a_search_over_adapters(adapters, base, spec, blend, run, tmp_path, method):
    found = {}
    for name, options in (("adapter", {}), ("merged", {"base": base})):
        found[name] = blend(adapters, f"{method}-{name}", spec=spec, method=method, **options)
    result = found["merged"]
    assert result["alpha"] == found["adapter"]["alpha"] and result["loss"] == found["adapter"]["loss"]
    assert result["loss"]["val"] < result["loss"]["val_uniform"]
    plan = plan_evaluate(spec, [tmp_path / f"{method}-merged"], "val", {}, Outputs(None))
    assert evaluate(plan, run).results[0].figures["loss"] == pytest.approx(result["loss"]["val"], rel=1e-4)


@pytest.mark.parametrize("method", ["spsa", "fullgrad"])
def test_factors_and_dense_updates_find_the_same_alpha(adapters, spec, blend, method):
    found = [
        blend(adapters, f"{method}-{bank}", spec=spec, method=method, search=Search(bank=bank))
        for bank in ("factors", "dense")
    ]
    assert found[0]["alpha"] == pytest.approx(found[1]["alpha"], abs=1e-5)
    assert found[0]["loss"]["val"] == pytest.approx(found[1]["loss"]["val"], rel=1e-4)
    assert found[0]["alpha"] != pytest.approx([0.5, 0.5], abs=0.01)


@pytest.mark.parametrize(("bank", "n_elements"), [("factors", 5 * 32 + 3 * 34), ("dense", (2 + 3) * (2 * 256 + 34))])
def test_adapters_keep_to_the_memory(adapters, spec, plan, run, bank, n_elements):
    """Three updates of width 16, of ranks 2, 2 and 1, and heads of 34 numbers."""
    mix(plan(adapters, "fits", spec=spec, method="spsa", search=Search(bank, memory_bytes=4 * n_elements)), run)
    short = Search(bank, memory_bytes=4 * n_elements - 1)
    with pytest.raises(ResourceError, match=f"--bank {bank} takes .* of --memory") as caught:
        mix(plan(adapters, "short", spec=spec, method="spsa", search=short), run)
    assert caught.value.hint.startswith("--memory 1MiB")


def test_what_factors_cannot_do_goes_by_dense_updates(adapters, spec, plan, monkeypatch):
    notes = []
    listening = Run(device="cpu", progress=notes.append)
    monkeypatch.setattr("glue_cli.workflows.mix.adapter_experts.find_obstacle", lambda *_: "the model is odd")
    result = as_object(mix(plan(adapters, spec=spec, method="spsa"), listening))
    assert any("not in factors: the model is odd" in getattr(note, "text", "") for note in notes)
    with pytest.raises(UsageError, match="--bank factors: the model is odd"):
        mix(plan(adapters, "other", spec=spec, method="spsa", search=Search(bank="factors")), listening)
    assert sum(result["alpha"]) == pytest.approx(1)


@pytest.mark.parametrize("merges", [False, True])
def test_a_base_in_bfloat16_is_judged_as_it_is_written(adapters, base, spec, blend, run, tmp_path, merges):
    weights = load_file(base / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in weights.items()}, base / "model.safetensors")
    options = {"base": base} if merges else {}
    result = blend(adapters, spec=spec, method="spsa", search=Search(bank="factors"), **options)
    if not merges:
        blend(adapters, "merged", alpha=result["alpha"], base=base)
    plan = plan_evaluate(spec, [tmp_path / ("prior" if merges else "merged")], "val", {}, Outputs(None))
    loss = evaluate(plan, run).results[0].figures["loss"]
    assert loss == pytest.approx(result["loss"]["val"], rel=1e-5 if merges else 2e-2)


def test_proxy_evaluates_each_adapter_on_its_base(adapters, base, spec, blend, run, tmp_path):
    result = blend(adapters, spec=spec, method="proxy")
    for k, adapter in enumerate(adapters):
        blend([adapter], f"alone-{k}", alpha=[1.0], base=base)
    alone = plan_evaluate(spec, [tmp_path / f"alone-{k}" for k in range(2)], "val", {}, Outputs(None))
    accuracies = [found.figures["accuracy"] for found in evaluate(alone, run).results]
    assert result["val_accuracies"] == accuracies
    assert result["alpha"] == pytest.approx([accuracy / sum(accuracies) for accuracy in accuracies])


def test_adapters_are_evaluated_on_their_base(adapters, base, spec, blend, run, tmp_path):
    for k, adapter in enumerate(adapters):
        blend([adapter], f"merged-{k}", alpha=[1.0], base=base)
    merged = [tmp_path / f"merged-{k}" for k in range(2)]
    plan = plan_evaluate(spec, [*adapters, *merged], "test", {}, Outputs(None), baseline=adapters[0])
    found = evaluate(plan, run)
    losses = [row.figures["loss"] for row in found.results]
    assert losses[:2] == pytest.approx(losses[2:], rel=1e-5)
    assert losses[0] != pytest.approx(losses[1], rel=1e-2)
    assert [row.checkpoint for row in found.results] == [str(path) for path in (*adapters, *merged)]
    assert found.baseline.figures["loss"] == losses[0] and found.gates[0].value == losses[0]


def test_adapters_are_checked_with_their_losses(adapters, spec, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    found = check(plan_check(adapters, spec=spec), run)
    splits = [
        evaluate(plan_evaluate(spec, adapters, split, {}, Outputs(None)), run).results for split in ("train", "val")
    ]
    n_train, n_val = (rows[0].examples for rows in splits)
    wanted = [
        (train.figures["loss"] * n_train + val.figures["loss"] * n_val) / (n_train + n_val)
        for train, val in zip(*splits, strict=True)
    ]
    assert found.losses.experts == pytest.approx(wanted, rel=1e-5) and found.losses.examples == n_train + n_val
    assert sorted(tmp_path.iterdir()) == before


def test_an_adapter_without_class_names_has_those_of_its_base(adapters, base, spec, run):
    config = json.loads((base / "config.json").read_text())
    names = {"id2label": {"0": "good", "1": "bad"}, "label2id": {"good": 0, "bad": 1}}  # the data have bad first
    plan = plan_evaluate(spec, [adapters[0]], "test", {}, Outputs(None))
    as_data = evaluate(plan, run).results[0].figures["accuracy"]
    (base / "config.json").write_text(json.dumps({**config, **names}))
    plan = plan_evaluate(spec, [adapters[0]], "test", {}, Outputs(None))
    assert evaluate(plan, run).results[0].figures["accuracy"] == pytest.approx(1 - as_data)


# ---- what is refused


def test_an_adapter_is_not_evaluated_without_its_base(adapters, spec, tmp_path):
    own = spec.model_copy(update={"model": spec.model.model_copy(update={"args": {"num_labels": 2}})})
    error = refused(SpecError, plan_evaluate, own.located_in(tmp_path), adapters, "test", {}, Outputs(None))
    assert "needs its base model" in error.message and "model.args.path" in error.hint


def refused(error, plan, *args, **options):
    with pytest.raises(error) as caught:
        plan(*args, **options)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("method", ["spsa", "fullgrad", "proxy"])
def test_a_search_needs_the_base(adapters, spec, plan, tmp_path, method):
    own = spec.model_copy(update={"model": spec.model.model_copy(update={"args": {"num_labels": 2}})})
    error = refused(SpecError, plan, adapters, spec=own.located_in(tmp_path), method=method)
    assert "need" in error.message and "model.args.path" in error.hint


@pytest.mark.parametrize(
    "rules",
    [
        {"batchnorm": "refresh"},
        {"head": "classifier.*"},
        {"exclude": ("*",), "copy_from": "0"},
        {"include": ("*",), "copy_from": "0"},
    ],
)
def test_rules_by_tensor_are_not_for_adapters(adapters, plan, rules):
    error = refused(UsageError, plan, adapters, alpha=[0.5, 0.5], rules=TensorRules(**rules))
    assert "adapters are mixed as they are" in error.message and "merge" in error.hint


def test_groups_are_not_for_adapters(adapters, spec, plan, tmp_path):
    grouped = spec.model_copy(update={"mix": spec.mix.model_copy(update={"groups": {"head": "classifier.*"}})})
    grouped = grouped.located_in(tmp_path)
    assert "groups" in refused(UsageError, plan, adapters, spec=grouped, method="spsa").message
    assert plan(adapters, spec=grouped, method="proxy").tensors.recipe.groups == ("all",)


@pytest.mark.parametrize("options", [{"dtype": "float16"}, {"max_shard_bytes": 1000}])
@pytest.mark.parametrize("merging", [False, True])
def test_other_forms_of_output_are_not_for_adapters(adapters, base, plan, options, merging):
    error = refused(
        UsageError, plan, adapters, alpha=[0.5, 0.5], base=base if merging else None, writing=Writing(**options)
    )
    assert "--dtype and --max-shard-size" in error.hint


def test_the_banks_of_whole_checkpoints_are_not_for_adapters(adapters, base, spec, plan):
    error = refused(UsageError, plan, adapters, spec=spec, method="spsa", search=Search(bank="disk"))
    assert "--bank disk is for whole checkpoints" in error.message and "factors" in error.hint
    error = refused(UsageError, plan, [base, base], spec=spec, method="spsa", search=Search(bank="factors"))
    assert "--bank factors is for adapters" in error.message


@pytest.mark.parametrize("merging", [False, True])
def test_a_mix_without_room_on_the_disk_is_refused_before_any_work(adapters, base, plan, monkeypatch, merging):
    def with_free(n_bytes):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=n_bytes))
        return plan(adapters, alpha=[0.5, 0.5], base=base if merging else None)

    n_bytes = mixed_bytes([read_adapter(path) for path in adapters])
    if merging:
        n_bytes = with_free(1 << 40).destination.n_bytes
    with_free(n_bytes)
    error = refused(ResourceError, with_free, n_bytes - 1)
    assert "free" in error.message


def test_adapters_and_whole_checkpoints_are_not_mixed(adapters, base, plan):
    error = refused(CheckpointError, plan, [adapters[0], base, base / "model.safetensors"], method="uniform")
    assert error.items == (str(base), str(base / "model.safetensors"))


@pytest.mark.parametrize("name", ["prior.safetensors", "prior.pt", "prior.safetensors.index.json"])
def test_an_adapter_is_a_folder(adapters, plan, name):
    error = refused(UsageError, plan, adapters, name, method="uniform")
    assert f"{name}' is a file's name" in error.message and "-o prior/" in error.hint
    assert plan(adapters, "prior-0.5", method="uniform").destination.is_folder


def test_a_merged_model_is_no_index(adapters, base, plan):
    error = refused(UsageError, plan, adapters, "prior.safetensors.index.json", method="uniform", base=base)
    assert "is an index" in error.message


def test_a_base_is_for_adapters(base, plan):
    assert "--base is for adapters" in refused(UsageError, plan, [base, base], method="uniform", base=base).message


def test_adapters_of_different_bases(adapters, plan):
    config = json.loads((adapters[1] / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "elsewhere"
    (adapters[1] / "adapter_config.json").write_text(json.dumps(config))
    error = refused(CheckpointError, plan, adapters, method="uniform")
    assert error.items == (f"{adapters[0]}: '{adapters[0].with_name('bert')}'", f"{adapters[1]}: 'elsewhere'")


def test_a_base_that_does_not_fit(adapters, base, plan, tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "other.safetensors")
    other = tmp_path / "other.safetensors"
    assert "lacks weights" in refused(CheckpointError, plan, adapters, method="uniform", base=other).message
    with pytest.raises(UsageError, match="no checkpoint at"):
        plan(adapters, method="uniform", base=tmp_path / "gone")


def test_factors_without_their_configuration_are_refused(adapters, plan, tmp_path):
    for k, path in enumerate(adapters):
        (tmp_path / f"plain-{k}.safetensors").write_bytes((path / "adapter_model.safetensors").read_bytes())
    error = refused(CheckpointError, plan, [tmp_path / f"plain-{k}.safetensors" for k in range(2)], method="uniform")
    assert any("lora_A" in item for item in error.items) and "adapter_config.json" in error.hint


# ---- what is on disk already


def test_a_folder_that_exists_is_replaced_by_force_alone(adapters, base, blend, tmp_path):
    for options in ({}, {"base": base}):
        (tmp_path / "prior").mkdir(exist_ok=True)
        (tmp_path / "prior" / "model.safetensors.index.json").write_text("{}")
        with pytest.raises(UsageError, match="exists"):
            blend(adapters, alpha=[0.5, 0.5], **options)
        blend(adapters, alpha=[0.5, 0.5], force=True, **options)
    assert read_checkpoint(tmp_path / "prior").glue["alpha"] == [0.5, 0.5]  # the index is not read in its place


@pytest.mark.parametrize("name", ["bert", "adapter-0"])
def test_an_input_is_never_written_over(adapters, base, plan, name):
    with pytest.raises(UsageError, match="is also an input"):
        plan(adapters, name, method="uniform", base=base, force=True)


def test_a_blend_that_fails_leaves_nothing(adapters, base, blend, tmp_path):
    weights = adapters[1] / "adapter_model.safetensors"
    with safe_open(weights, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name][0, 0] = float("nan")
    write_checkpoint(weights, tensors, {})
    for options in ({}, {"base": base}):
        with pytest.raises(CheckpointError, match="adapter-1.*has nan"):
            blend(adapters, alpha=[0.5, 0.5], **options)
        assert not (tmp_path / "prior").exists()


def test_the_room_that_is_asked_for_is_what_the_mix_takes(adapters, blend, tmp_path):
    """Of unequal ranks and dtypes, with a head in `modules_to_save`."""
    config = json.loads((adapters[1] / "adapter_config.json").read_text())
    state = load_file(adapters[1] / "adapter_model.safetensors")
    for name, tensor in state.items():
        if "lora_A" in name:
            state[name] = torch.cat([tensor, tensor])
        elif "lora_B" in name:
            state[name] = torch.cat([tensor, tensor], 1).half()
    wide = tmp_path / "wide"
    wide.mkdir()
    (wide / "adapter_config.json").write_text(json.dumps({**config, "r": 2 * config["r"]}))
    save_file(state, wide / "adapter_model.safetensors")
    for experts in (adapters, [adapters[0], wide]):
        written = blend(experts, f"prior-{experts[1].name}", alpha=[0.5, 0.5])["output"]
        found = load_file(f"{written}/adapter_model.safetensors").values()
        assert mixed_bytes([read_adapter(path) for path in experts]) == sum(t.nbytes for t in found)
