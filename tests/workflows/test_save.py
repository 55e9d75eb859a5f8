"""Trained models of transformers as Hugging Face folders."""

import json

import pytest
import torch
from safetensors.torch import load_file

from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.foundation.errors import ResourceError, UsageError
from glue_cli.plans.evaluate import plan_evaluate
from glue_cli.plans.finetune import plan_finetune
from glue_cli.plans.outputs import Outputs
from glue_cli.plans.train_expert import plan_train_expert
from glue_cli.results.record import as_object
from glue_cli.spec.schema import Spec
from glue_cli.workflows import save
from glue_cli.workflows.evaluate import evaluate
from glue_cli.workflows.finetune import finetune
from glue_cli.workflows.train_expert import train_expert

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("torchvision")

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
BERT = {"model_type": "bert", **SIZES, "vocab_size": 16, "max_position_embeddings": 12, "dtype": "bfloat16"}
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 16, "n_positions": 12}
TOKENS = torch.tensor([[2, 4, 9, 10, 3], [2, 5, 11, 12, 3]])


@pytest.fixture
def make_text_spec(tmp_path, make_tokenizer):
    """A BERT or GPT-2 without weights, its tokenizer, and a few texts."""
    for name, config in (("bert", BERT), ("gpt2", GPT2)):
        make_tokenizer(tmp_path / name, model_max_length=12)
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        (tmp_path / name / "README.md").write_text("not for the copy")
    for root, keys in (("labelled", ("text", "label")), ("alone", ("text",))):
        (tmp_path / root).mkdir()
        for split, n in (("train", 40), ("test", 8)):
            lines = [{"text": f"{word} book is very", "label": word} for word in ("good", "bad")] * (n // 2)
            text = "".join(json.dumps({key: line[key] for key in keys}) + "\n" for line in lines)
            (tmp_path / root / f"{split}.jsonl").write_text(text)

    def make(arch="AutoModelForSequenceClassification", path="bert", root="labelled", args=None, **sections):
        usual = {
            "model": {"arch": f"transformers:{arch}", "args": {"path": path, **(args or {})}},
            "data": {"format": "jsonl", "root": root, "target": {"train": 12, "val": 6}},
            "experts": {"members": [{"name": "one", "data": {"format": "jsonl", "root": root}}]},
            "train": {"epochs": 1, "batch_size": 10, "lr": 0.01},
            "finetune": {"epochs": 1, "batch_size": 10, "lr": 0.01},
            "precision": "fp32",
        }
        return Spec.model_validate({**usual, **sections}).located_in(tmp_path)

    return make


@pytest.fixture
def text_spec(make_text_spec):
    return make_text_spec()


def train(spec, run, output, force=False):
    return as_object(train_expert(plan_train_expert(spec, 0, Outputs(output, force=force)), run))


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=TOKENS).logits


def test_an_expert_is_written_as_a_folder_that_transformers_loads(text_spec, run, tmp_path):
    result = train(text_spec, run, tmp_path / "tuned")
    assert result["output"] == str(tmp_path / "tuned")
    train(text_spec, run, tmp_path / "tuned.safetensors")
    weights = load_file(tmp_path / "tuned.safetensors")
    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "tuned", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(model).__name__ == "BertForSequenceClassification" == model.config.architectures[0]
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, weights[name])
    wanted = transformers.AutoModelForSequenceClassification.from_config(model.config)
    wanted.load_state_dict(weights)
    assert torch.equal(logits(model), logits(wanted))
    assert model.config.id2label == {0: "bad", 1: "good"} and model.config.label2id == {"bad": 0, "good": 1}
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "tuned")
    assert tokenizer("good book")["input_ids"] == [2, 10, 6, 3]
    names = {path.name for path in (tmp_path / "tuned").iterdir()}
    assert names == {path.name for path in (tmp_path / "bert").iterdir()} - {"README.md"} | {"model.safetensors"}
    assert read_checkpoint(tmp_path / "tuned").glue["kind"] == "expert"
    assert json.loads((tmp_path / "bert" / "config.json").read_text()) == BERT


def test_a_finetuned_model_is_written_as_such_a_folder(text_spec, run, tmp_path):
    train(text_spec, run, tmp_path / "expert")
    plan = plan_finetune(text_spec, tmp_path / "expert", Outputs(tmp_path / "deep" / "tuned"), track_test=True)
    result = as_object(finetune(plan, run))
    assert result["start"] == str(tmp_path / "expert")
    [found] = evaluate(plan_evaluate(text_spec, [tmp_path / "deep/tuned"], "test", {}, Outputs(None)), run).results
    assert found.figures["loss"] == pytest.approx(result["history"][result["kept"]]["test_loss"], rel=1e-6)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "deep" / "tuned")
    assert torch.equal(
        model.classifier.weight, load_file(tmp_path / "deep/tuned/model.safetensors")["classifier.weight"]
    )


def test_all_that_is_no_weight_of_the_model_goes_along(text_spec, run, tmp_path):
    (tmp_path / "bert/2_Dense").mkdir()
    (tmp_path / "bert/own.py").write_text("code = True")
    (tmp_path / "bert/2_Dense/config.json").write_text("{}")
    (tmp_path / "bert/2_Dense/model.safetensors").write_bytes(b"weights that no training changes")
    (tmp_path / "bert/optimizer.pt").write_bytes(b"of another training")
    train(text_spec, run, tmp_path / "tuned")
    for name in ("own.py", "2_Dense/config.json", "2_Dense/model.safetensors"):
        assert (tmp_path / "tuned" / name).read_bytes() == (tmp_path / "bert" / name).read_bytes()
    assert not (tmp_path / "tuned/optimizer.pt").exists()


def test_a_language_model_with_tied_weights(make_text_spec, run, tmp_path):
    spec = make_text_spec("AutoModelForCausalLM", "gpt2", "alone")
    train(spec, run, tmp_path / "tuned")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "tuned", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.use_cache  # or it would generate slowly
    weights = load_file(tmp_path / "tuned" / "model.safetensors")
    assert torch.equal(model.lm_head.weight, weights["transformer.wte.weight"])
    assert torch.equal(model.transformer.wte.weight, weights["transformer.wte.weight"])


def test_names_of_other_classes_than_the_model_has_are_left_out(make_text_spec, run, tmp_path):
    train(make_text_spec(args={"num_labels": 5}), run, tmp_path / "tuned")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "tuned")
    assert config.id2label == {k: f"LABEL_{k}" for k in range(5)}


def test_other_models_are_written_to_one_file_of_any_name(spec, run, tmp_path):
    train(spec, run, tmp_path / "tuned")
    assert (tmp_path / "tuned").is_file() and read_checkpoint(tmp_path / "tuned").glue["kind"] == "expert"


def test_a_folder_that_exists_is_replaced_by_force_alone(text_spec, run, tmp_path):
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    (tmp_path / "tuned" / "model-00001-of-00002.safetensors").write_bytes(b"")
    (tmp_path / "tuned" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="tuned' exists"):
        plan_train_expert(text_spec, 0, Outputs(tmp_path / "tuned"))
    train(text_spec, run, tmp_path / "tuned", force=True)
    assert [path.name for path in (tmp_path / "tuned").glob("*model*")] == ["model.safetensors"]
    assert read_checkpoint(tmp_path / "tuned").glue["kind"] == "expert"
    assert (tmp_path / "tuned" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("force", [False, True])
def test_the_folder_of_the_model_is_never_written_over(text_spec, tmp_path, force):
    for output in (tmp_path / "bert", tmp_path / "labelled" / ".." / "bert"):
        with pytest.raises(UsageError, match="is also an input"):
            plan_train_expert(text_spec, 0, Outputs(output, force=force))
        with pytest.raises(UsageError, match="is also an input"):
            plan_finetune(text_spec, None, Outputs(output, force=force), track_test=False)


def test_the_folder_that_finetuning_starts_from_is_never_written_over(text_spec, run, tmp_path):
    train(text_spec, run, tmp_path / "expert")
    with pytest.raises(UsageError, match="is also an input"):
        plan_finetune(text_spec, tmp_path / "expert", Outputs(tmp_path / "expert", force=True), track_test=False)


@pytest.mark.parametrize("exists", [False, True])
def test_writing_that_fails_leaves_what_was_there(text_spec, run, tmp_path, monkeypatch, exists):
    if exists:
        train(text_spec, run, tmp_path / "tuned")
    before = {path.name: path.read_bytes() for path in tmp_path.glob("tuned/*")}

    def fail(output, tensors, glue, *, replace):
        raise ResourceError(f"'{output}' cannot be written: No space left on device")

    monkeypatch.setattr(save, "write_checkpoint", fail)
    with pytest.raises(ResourceError, match="No space left"):
        train(text_spec, run, tmp_path / "tuned", force=True)
    assert (tmp_path / "tuned").exists() == exists
    assert {path.name: path.read_bytes() for path in tmp_path.glob("tuned/*")} == before
