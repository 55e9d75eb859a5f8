"""Texts from the file to the checkpoint and its figures, with small models of transformers."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from glue_cli.data.expert_data import read_expert
from glue_cli.data.target import Target
from glue_cli.foundation.errors import DataError, SpecError, UsageError
from glue_cli.foundation.seeds import generator
from glue_cli.models.weights import initial_model
from glue_cli.plans.check import plan_check
from glue_cli.plans.evaluate import plan_evaluate
from glue_cli.plans.finetune import plan_finetune
from glue_cli.plans.mix import plan_mix
from glue_cli.plans.mix_records import Coefficients, Search
from glue_cli.plans.outputs import Outputs
from glue_cli.plans.train_expert import plan_train_expert
from glue_cli.results.record import as_object
from glue_cli.running.device import Compute
from glue_cli.running.forward import outputs_of
from glue_cli.spec.schema import AugmentSpec, Spec
from glue_cli.workflows.check import midpoints
from glue_cli.workflows.check.check import check
from glue_cli.workflows.evaluate import evaluate
from glue_cli.workflows.evaluation import evaluate_model
from glue_cli.workflows.finetune import finetune
from glue_cli.workflows.mix.mix import mix
from glue_cli.workflows.train_expert import train_expert

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("torchvision")

CPU = Compute(torch.device("cpu"))
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
BERT = {"model_type": "bert", **SIZES, "vocab_size": 16, "max_position_embeddings": 12}
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 16, "n_positions": 12}
GPT2 |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def some_reviews(n, seed):
    """Draw reviews of 1 to 8 words, of which the one that is 'good' or 'bad' tells the label."""
    draws = torch.Generator().manual_seed(seed)
    for i in range(n):
        words = ["the", "a", "book", "film", "is", "was", "very"]
        picked = [
            words[k] for k in torch.randint(0, 7, (int(torch.randint(0, 8, (), generator=draws)),), generator=draws)
        ]
        place = int(torch.randint(0, len(picked) + 1, (), generator=draws))
        yield {
            "text": " ".join([*picked[:place], ("bad", "good")[i % 2], *picked[place:]]),
            "label": ("no", "yes")[i % 2],
        }


@pytest.fixture
def folder(tmp_path, make_tokenizer):
    """Data with labels, the same texts alone, a BERT and a GPT-2."""
    for name, n, seed in (("train", 120, 0), ("test", 40, 1)):
        lines = list(some_reviews(n, seed))
        for place, keys in (("labelled", ("text", "label")), ("alone", ("text",))):
            (tmp_path / place).mkdir(exist_ok=True)
            text = "".join(json.dumps({key: line[key] for key in keys}) + "\n" for line in lines)
            (tmp_path / place / f"{name}.jsonl").write_text(text)
    for name, config, special in (("bert", BERT, {}), ("gpt2", GPT2, {"pad_token": None, "eos_token": "[SEP]"})):
        make_tokenizer(tmp_path / name, model_max_length=12, **special)
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    return tmp_path


def text_spec(folder, **sections):
    usual = {
        "model": {
            "arch": "transformers:AutoModelForSequenceClassification",
            "args": {"path": "bert", "num_labels": 2},
        },
        "data": {"format": "jsonl", "root": "labelled", "target": {"train": 60, "val": 20}},
        "experts": {"count": 2, "size": 30, "dirichlet": 10.0},
        "train": {"epochs": 1, "batch_size": 10, "lr": 0.01},
        "finetune": {"epochs": 6, "batch_size": 10, "lr": 0.01},
        "precision": "fp32",
    }
    return Spec.model_validate({**usual, **sections}).located_in(folder)


@pytest.fixture
def labelled(folder):
    return text_spec(folder)


@pytest.fixture
def alone(folder):
    member = {"name": "all", "data": {"format": "jsonl", "root": "alone"}}
    return text_spec(
        folder,
        model={"arch": "transformers:AutoModelForCausalLM", "args": {"path": "gpt2"}},
        data={"format": "jsonl", "root": "alone", "target": {"train": 60, "val": 20}},
        experts={"members": [member]},
    )


def test_a_classifier_from_end_to_end(labelled, run, tmp_path):
    expert = tmp_path / "e.safetensors"
    result = as_object(train_expert(plan_train_expert(labelled, 1, Outputs(expert)), run))
    assert result["examples"] == sum(result["class_counts"]) == 30
    tuned = tmp_path / "f.safetensors"
    history = as_object(finetune(plan_finetune(labelled, expert, Outputs(tuned), track_test=True), run))["history"]
    assert history[-1]["test_accuracy"] > 0.9
    found = evaluate(plan_evaluate(labelled, [expert, tuned], "test", {}, Outputs(None)), run).results
    accuracies = [one.figures["accuracy"] for one in found]
    assert accuracies == [history[0]["test_accuracy"], history[-1]["test_accuracy"]]
    by_class = found[1].class_accuracy
    assert set(by_class) == {"no", "yes"} and sum(by_class.values()) / 2 == pytest.approx(accuracies[1])


SEQ2SEQ = {
    "t5": ("T5ForConditionalGeneration", {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}),
    "bart": (
        "BartForConditionalGeneration",
        {
            "d_model": 8,
            **{f"{part}_layers": 1 for part in ("encoder", "decoder")},
            **{f"{part}_ffn_dim": 8 for part in ("encoder", "decoder")},
            **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
            "max_position_embeddings": 12,
            "forced_eos_token_id": None,
        },
    ),
}


@pytest.fixture(params=SEQ2SEQ)
def writers(request, folder, make_tokenizer):
    """A spec of texts and what to write of each, and two models that do so, by random numbers."""
    name, sizes = SEQ2SEQ[request.param]
    make_tokenizer(folder / "writer", model_max_length=12)
    for split, n, seed in (("train", 60, 0), ("test", 20, 1)):
        rows = zip(some_reviews(n, seed), some_reviews(n, seed + 7), strict=True)
        lines = [json.dumps({"article": one["text"], "summary": other["text"]}) + "\n" for one, other in rows]
        (folder / "written").mkdir(exist_ok=True)
        (folder / f"written/{split}.jsonl").write_text("".join(lines))
    config = transformers.AutoConfig.for_model(
        request.param, vocab_size=16, pad_token_id=0, eos_token_id=3, decoder_start_token_id=0, **sizes
    )
    config.save_pretrained(folder / "writer")
    paths = []
    for k in range(2):
        torch.manual_seed(k)
        model = getattr(transformers, name)(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)  # so that the model says something
        paths.append(folder / f"writer-{k}")
        model.save_pretrained(paths[-1])
    spec = text_spec(
        folder,
        model={"arch": f"transformers:{name}", "args": {"path": "writer"}},
        data={
            "format": "huggingface",
            "root": "written",
            "target": {"train": 40, "val": 20},
            "columns": {"prompt": ["article"], "completion": ["summary"]},
        },
        mix={"steps": 2, "validate_every": 1, "batch_size": 10},
    )
    return spec, paths


@torch.no_grad()
def loss_by_hand(path, folder):
    """The mean loss of the tokens to write in the test texts, each text by itself."""
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "writer")
    losses = []
    for line in map(json.loads, (folder / "written/test.jsonl").read_text().splitlines()):
        inputs = tokenizer(line["article"], return_tensors="pt", truncation=True, max_length=12)
        labels = tokenizer(text_target=line["summary"], return_tensors="pt", truncation=True, max_length=12).input_ids
        logits = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, labels=labels).logits
        losses += torch.nn.functional.cross_entropy(logits[0], labels[0], reduction="none").tolist()
    return sum(losses) / len(losses)


def test_models_of_encoder_and_decoder_from_end_to_end(writers, folder, run):
    spec, paths = writers
    found = {}
    for bank in ("device", "streamed"):
        prior = folder / f"prior-{bank}"
        plan = plan_mix(paths, Outputs(prior), Coefficients("spsa"), spec=spec, search=Search(bank), seed=0)
        found[bank] = mix(plan, run).alpha
    assert found["device"] == found["streamed"] and 0 < found["device"][0] < 1
    tuned = folder / "tuned"
    finetune(plan_finetune(spec, prior, Outputs(tuned), track_test=False), run)
    for path in (paths[0], prior, tuned):
        figures = evaluate(plan_evaluate(spec, [path], "test", {}, Outputs(None)), run).results[0].figures
        assert figures["loss"] == pytest.approx(loss_by_hand(path, folder), rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("overridden", [False, True])
def test_texts_are_filled_with_what_the_model_takes_for_padding(folder, run, overridden):
    """A classifier that reads the last token that is no padding, beside a tokenizer with other padding, or none."""
    said = 1 if overridden else 3
    (folder / "gpt2/config.json").write_text(json.dumps(GPT2 | {"pad_token_id": 0 if overridden else said}))
    args = {"path": "gpt2", "num_labels": 2} | ({"pad_token_id": said} if overridden else {})
    spec = text_spec(folder, model={"arch": "transformers:GPT2ForSequenceClassification", "args": args})
    config = transformers.AutoConfig.from_pretrained(
        folder / "gpt2", num_labels=2, pad_token_id=said, initializer_range=1.0
    )
    model = transformers.GPT2ForSequenceClassification(config).eval()
    model.save_pretrained(folder / "model")
    spec = spec.with_model_args(path="model" if not overridden else "gpt2")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "model" / name).write_bytes((folder / "gpt2" / name).read_bytes())
    found = evaluate(plan_evaluate(spec, [folder / "model"], "test", {}, Outputs(None)), run).results[0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "gpt2")
    losses = []
    for line in some_reviews(40, 1):
        ids = torch.tensor([tokenizer(line["text"], truncation=True, max_length=12)["input_ids"]])
        label = torch.tensor([line["label"] == "yes"]).long()
        losses.append(torch.nn.functional.cross_entropy(model(input_ids=ids[:, :]).logits, label).item())
    assert found.figures["loss"] == pytest.approx(sum(losses) / 40, rel=1e-5)


@torch.no_grad()
def test_pairs_are_evaluated_as_transformers_reads_them(folder, make_tokenizer, run):
    lines = [
        line | {"text_pair": other["text"]}
        for line, other in zip(some_reviews(40, 3), some_reviews(40, 4), strict=True)
    ]
    for name in ("train", "test"):
        (folder / "labelled" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    make_tokenizer(
        folder / "bert", model_input_names=["input_ids", "token_type_ids", "attention_mask"], model_max_length=12
    )
    spec = text_spec(folder, data={"format": "jsonl", "root": "labelled", "target": {"train": 20, "val": 10}})
    config = transformers.AutoConfig.from_pretrained(folder / "bert", num_labels=2, initializer_range=1.0)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(folder / "model")
    found = evaluate(plan_evaluate(spec, [folder / "model"], "test", {}, Outputs(None)), run).results[0]
    texts, seconds = ([line[key] for line in lines] for key in ("text", "text_pair"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "bert")
    inputs = tokenizer(texts, seconds, truncation=True, max_length=12, padding=True, return_tensors="pt")
    labels = torch.tensor([line["label"] == "yes" for line in lines]).long()
    wanted = torch.nn.functional.cross_entropy(model(**inputs).logits, labels)
    assert found.figures["loss"] == pytest.approx(wanted.item(), rel=1e-5)
    inputs["token_type_ids"].zero_()
    assert found.figures["loss"] != pytest.approx(
        torch.nn.functional.cross_entropy(model(**inputs).logits, labels).item(), rel=1e-3
    )


def test_language_models_are_checked_on_texts_of_many_lengths(alone, run, tmp_path, monkeypatch):
    spec = alone.model_copy(update={"mix": alone.mix.model_copy(update={"batch_size": 5})})
    experts = [tmp_path / f"{k}.safetensors" for k in range(2)]
    for seed, path in enumerate(experts):
        of_seed = spec.model_copy(update={"seed": seed}).located_in(tmp_path)
        train_expert(plan_train_expert(of_seed, 0, Outputs(path)), run)
    rows = evaluate(plan_evaluate(spec.located_in(tmp_path), experts, "val", {}, Outputs(None)), run).results
    monkeypatch.setattr(midpoints, "_JUDGED", rows[0].examples)  # the validation split alone
    found = check(plan_check(experts, spec=spec.located_in(tmp_path)), run)
    assert found.losses.experts == pytest.approx([row.figures["loss"] for row in rows], rel=1e-4)


def test_a_language_model_from_end_to_end(alone, folder, run, tmp_path):
    expert = tmp_path / "e.safetensors"
    result = as_object(train_expert(plan_train_expert(alone, 0, Outputs(expert)), run))
    assert result["examples"] == 120 and "class_counts" not in result
    tuned = tmp_path / "f.safetensors"
    history = as_object(finetune(plan_finetune(alone, expert, Outputs(tuned), track_test=True), run))["history"]
    assert history[-1]["test_perplexity"] < history[0]["test_perplexity"]
    [found] = evaluate(plan_evaluate(alone, [tuned], "test", {}, Outputs(None)), run).results
    assert "accuracy" not in found.figures and found.class_accuracy is None

    config = transformers.AutoConfig.from_pretrained(folder / "gpt2")
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.load_state_dict(load_file(tuned), strict=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "gpt2")
    total = n_tokens = 0
    for line in (folder / "alone" / "test.jsonl").read_text().splitlines():
        ids = torch.tensor([tokenizer(json.loads(line)["text"])["input_ids"]])
        with torch.no_grad():
            loss = model(input_ids=ids, labels=ids).loss.item()  # transformers shifts, one text at a time: no padding
        total, n_tokens = total + loss * (ids.shape[1] - 1), n_tokens + ids.shape[1] - 1
    assert found.figures["loss"] == pytest.approx(total / n_tokens, rel=1e-5)
    assert found.figures["perplexity"] == pytest.approx(math.exp(total / n_tokens), rel=1e-5)


def test_language_models_are_mixed_towards_what_lowers_the_loss(alone, run, tmp_path):
    experts = []
    for epochs in (1, 6):  # from one start, so that they blend
        spec = alone.model_copy(update={"finetune": alone.finetune.model_copy(update={"epochs": epochs})})
        experts.append(tmp_path / f"e{epochs}.safetensors")
        plan = plan_finetune(spec.located_in(alone.path(".")), None, Outputs(experts[-1]), track_test=False)
        finetune(plan, run)
    mixing = alone.mix.model_copy(update={"budget": "120", "batch_size": 10})
    spec = alone.model_copy(update={"mix": mixing}).located_in(alone.path("."))
    outputs = Outputs(tmp_path / "p.safetensors")
    plan = plan_mix(experts, outputs, Coefficients("spsa"), spec=spec)
    result = as_object(mix(plan, run))
    found = evaluate(plan_evaluate(spec, experts, "val", {}, Outputs(None)), run).results
    losses = [one.figures["loss"] for one in found]
    assert result["search"]["returned"] in ("end", "expert 1") and result["loss"]["val"] <= min(losses) * 1.001
    assert result["alpha"][1] > 0.9 and losses[1] < losses[0]


def test_the_training_loss_of_a_language_model_is_a_mean_over_tokens(alone, run, tmp_path):
    still = {"train": alone.train.model_copy(update={"lr": 1e-12})}
    spec = alone.model_copy(update=still).located_in(alone.path("."))
    result = as_object(train_expert(plan_train_expert(spec, 0, Outputs(tmp_path / "e.safetensors")), run))
    batches = read_expert(spec, 0, run).on(CPU)
    found = evaluate_model(initial_model(spec, 0), batches, loss=spec.loss, compute=CPU)
    assert result["loss"] == pytest.approx(found["loss"], rel=1e-6)


def test_padding_does_not_change_the_outputs(labelled, run):
    model = initial_model(labelled).eval()
    batches = Target(labelled, run)["test"].on(CPU)
    with torch.no_grad():
        together = outputs_of(model, batches.pick(torch.arange(40))[0])
        apart = [outputs_of(model, batches.pick(torch.tensor([i]))[0]) for i in range(40)]
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-4, atol=1e-5)


def test_an_epoch_of_texts_is_a_pure_function_of_seed_and_epoch(labelled, run):
    examples = Target(labelled, run)["train"]
    batches = examples.on(CPU)

    def epoch(seed, number):
        return [inputs["input_ids"] for inputs, _ in batches.epoch(8, seed, number, AugmentSpec())]

    first = epoch(0, 1)
    assert sum(map(len, first)) == 60 and sorted(map(len, first)) == [4] + [8] * 7
    assert all(torch.equal(a, b) for a, b in zip(first, epoch(0, 1), strict=True))
    shapes = [ids.shape for ids in first]
    assert shapes != [ids.shape for ids in epoch(0, 2)] != [ids.shape for ids in epoch(1, 1)]
    n_cells, n_tokens = sum(ids.numel() for ids in first), int(examples.dataset.inputs.lengths.sum())
    assert n_cells < 1.1 * n_tokens
    with pytest.raises(SpecError, match="augment crops and flips images"):
        next(batches.epoch(8, 0, 1, AugmentSpec(flip=True)))


def test_texts_are_evaluated_from_the_longest_to_the_shortest(labelled, run):
    batches = Target(labelled, run)["test"].on(CPU)
    found = list(batches.in_order(7))
    lengths = torch.cat([inputs["attention_mask"].sum(1) for inputs, _ in found])
    assert len(lengths) == 40 and torch.equal(lengths, lengths.sort(descending=True).values)
    assert batches.n_in_order == 1
    first = Target(labelled, run)["test"].first_in_order.on(CPU)
    assert first.n_in_order == 1 and torch.equal(next(first.in_order())[1], next(batches.in_order())[1])
    assert batches.n_in_random_order(7) == len(list(batches.in_random_order(7, seed=0))) == 6


def test_minibatches_of_the_search_are_drawn_at_random(labelled, run):
    batches = Target(labelled, run)["train"].on(CPU)
    order = torch.randperm(60, generator=generator(0, "mix", 0))
    inputs, labels = batches.at_step(1, 8, 0)
    wanted, wanted_labels = batches.pick(order[8:16])
    assert torch.equal(inputs["input_ids"], wanted["input_ids"]) and torch.equal(labels, wanted_labels)


def test_what_texts_alone_do_not_have(alone, folder, run, tmp_path):
    finetune(plan_finetune(alone, None, Outputs(tmp_path / "f.safetensors"), track_test=False), run)
    for options in ({"bars": {"accuracy": 0.5}}, {"bars": {}, "metrics": ["f1"]}):
        plan = plan_evaluate(alone, [tmp_path / "f.safetensors"], "test", outputs=Outputs(None), **options)
        with pytest.raises(UsageError, match="texts without labels have no (accuracy|f1)"):
            evaluate(plan, run)
    shares = alone.model_copy(update={"experts": text_spec(folder).experts}).located_in(folder)
    with pytest.raises(SpecError, match="experts.dirichlet shares the data by class, but this data set has no labels"):
        read_expert(shares, 0, run)
    with pytest.raises(DataError, match="has texts alone, which loss: mse does not fit"):
        Target(alone.model_copy(update={"loss": "mse"}).located_in(folder), run)["test"]


def test_a_model_of_another_library_does_not_read_texts(folder, run):
    spec = text_spec(folder, model={"arch": "cnn", "args": {"num_classes": 2}})
    with pytest.raises(SpecError, match="the test texts in '.*labelled' need a model of transformers"):
        Target(spec, run)["test"]
