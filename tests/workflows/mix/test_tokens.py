"""Language models that added different tokens to one vocabulary, from their folders to the prior's.

Sources: arcee-ai/mergekit#139 (one expert has tokens besides), #47 and #342 (tables of unequal size), #425 (padded
rows), shibing624/MedicalGPT#350 (a tokenizer that does not fit the rows).
"""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from glue_cli.foundation.errors import CheckpointError, SpecError, UsageError
from glue_cli.foundation.progress import Noted
from glue_cli.plans.evaluate import plan_evaluate
from glue_cli.plans.mix import plan_mix
from glue_cli.plans.mix_records import GIVEN, Coefficients, Writing
from glue_cli.plans.outputs import Outputs
from glue_cli.workflows.evaluate import evaluate
from glue_cli.workflows.mix.mix import mix

WORDS = ["<unk>", "the", "film", "is", "good", "bad"]
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
STEPS = {"steps": 3, "validate_every": 2, "batch_size": 4, "lr": 0.2}
NO_TOKENS = {f"{name}_token_id": None for name in ("bos", "eos", "pad", "decoder_start", "forced_eos")}
KINDS = {
    "llama": ("LlamaForCausalLM", SIZES),
    "bert": ("BertForSequenceClassification", SIZES),
    "t5": ("T5ForConditionalGeneration", {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}),
    "gpt_neox": ("GPTNeoXForCausalLM", SIZES),
    "bart": (
        "BartForConditionalGeneration",
        {"d_model": 8, "max_position_embeddings": 9}
        | {f"{part}_{what}": n for part in ("encoder", "decoder")
           for what, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 16))},
    ),
    "distilbert": ("DistilBertForMaskedLM", {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}),
}  # fmt: skip
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def model(tmp_path, torchvision):
    """Save a small model with a tokenizer that has added tokens, and rows of padding behind these."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")

    def make(name, added=(), padding=0, tied=False, kind="llama"):
        vocabulary = tokenizers.models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="<unk>")
        inner = tokenizers.Tokenizer(vocabulary)
        inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
        tokenizer.add_tokens(list(added), special_tokens=True)
        torch.manual_seed(sum(map(ord, name)))
        model_class, settings = KINDS[kind]
        config = transformers.AutoConfig.for_model(
            kind, vocab_size=len(tokenizer) + padding, tie_word_embeddings=tied, **NO_TOKENS, **settings
        )
        folder = tmp_path / name
        getattr(transformers, model_class)(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def blend(tmp_path, run):
    def blend(experts, alpha=None, spec=None, method=GIVEN, output="prior", **writing):
        coefficients, way = Coefficients(method, alpha), Writing(**writing)
        plan = plan_mix(experts, Outputs(tmp_path / output), coefficients, writing=way, spec=spec)
        result = mix(plan, run)
        for expert, said in zip(experts, result.experts, strict=True):
            assert said.sha256 == hashlib.sha256((expert / "model.safetensors").read_bytes()).hexdigest()
        return result

    return blend


def rows_of(folder):
    """Return a folder's rows by token, as its own library reads them: of the embedding, and of an output layer."""
    transformers = pytest.importorskip("transformers")
    model_class = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, info = getattr(transformers, model_class).from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    modules = [
        module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None
    ]
    vocabulary = transformers.AutoTokenizer.from_pretrained(folder).get_vocab()
    return {token: [module.weight[number].detach() for module in modules] for token, number in vocabulary.items()}


def assert_blended(folder, experts, alpha):
    """Check every row against the mean of the experts' rows of that token, alpha's share among those that have it."""
    found, *known = map(rows_of, (folder, *experts))
    assert found.keys() == {token for own in known for token in own}
    for token, tables in found.items():
        weights = [a if token in own else 0.0 for a, own in zip(alpha, known, strict=True)]
        if not sum(weights):
            weights = [float(token in own) for own in known]
        for place, row in enumerate(tables):
            terms = [w / sum(weights) * own[token][place] for w, own in zip(weights, known, strict=True) if w]
            torch.testing.assert_close(row, sum(terms), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["<|im_start|>", "<|im_end|>"], ["<|user|>", "<|bot|>"]),  # the same numbers, other tokens
        (["<a>", "<b>"], ["<b>", "<a>"]),  # the same tokens, other numbers
        ([], ["<a>", "<b>"]),  # the second has all
        (["<a>", "<b>"], ["<b>"]),  # the first has all
        (["<a>", "<b>", "<c>"], ["<c>", "<d>", "<a>"]),
    ],
)
def test_rows_are_blended_by_token(model, blend, tmp_path, one, other):
    experts = [model("one", one), model("other", other)]
    blend(experts, (0.25, 0.75))
    assert_blended(tmp_path / "prior", experts, (0.25, 0.75))


@pytest.mark.parametrize("alpha", [(1.0, 0.0), (0.0, 1.0)])
def test_an_expert_alone_keeps_its_rows_and_gets_the_others_tokens(model, blend, tmp_path, alpha):
    experts = [model("one", ["<a>", "<b>"]), model("other", ["<b>", "<c>"])]
    blend(experts, alpha)
    assert_blended(tmp_path / "prior", experts, alpha)
    own, found = rows_of(experts[alpha.index(1.0)]), rows_of(tmp_path / "prior")
    assert all(torch.equal(found[token][0], row) for token, (row, _) in own.items())


def test_tied_tables_stay_tied(model, blend, tmp_path):
    experts = [model("one", ["<a>"], tied=True), model("other", ["<b>", "<c>"], tied=True)]
    blend(experts, (0.25, 0.75))
    assert_blended(tmp_path / "prior", experts, (0.25, 0.75))
    assert HEAD not in load_file(tmp_path / "prior" / "model.safetensors")


@pytest.mark.parametrize("other", [["<b>", "<c>"], ["<b>", "<c>", "<a>"]], ids=["equal sizes", "unequal sizes"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "llama"])
def test_the_tables_of_many_architectures_are_found(model, blend, tmp_path, kind, other):
    experts = [model("one", ["<a>", "<b>"], kind=kind), model("other", other, kind=kind)]
    blend(experts, (0.25, 0.75))
    assert_blended(tmp_path / "prior", experts, (0.25, 0.75))


def test_three_experts_of_three_sizes(model, blend, tmp_path):
    experts = [model("x", ["<a>"]), model("y", ["<b>", "<a>", "<c>"]), model("z", ["<d>"])]
    blend(experts, (0.5, 0.2, 0.3))
    assert_blended(tmp_path / "prior", experts, (0.5, 0.2, 0.3))


def test_a_text_becomes_the_rows_of_its_tokens(model, blend, tmp_path):
    transformers = pytest.importorskip("transformers")
    experts = [model("one", ["<|user|>"]), model("other", ["<|bot|>"])]
    blend(experts, (0.5, 0.5))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "prior")
    assert tokenizer("the <|user|> film <|bot|>")["input_ids"] == [1, 6, 2, 7]
    assert tokenizer.decode([6, 7]) == "<|user|> <|bot|>"


def test_equal_added_tokens_are_blended_as_they_lie(model, blend, events, tmp_path):
    experts = [model("one", ["<a>", "<b>"]), model("other", ["<a>", "<b>"])]
    blend(experts, (0.5, 0.5))
    assert_blended(tmp_path / "prior", experts, (0.5, 0.5))
    assert not [event for event in events if isinstance(event, Noted) and "token" in event.text]


def test_it_is_said_in_a_warning(model, blend, events):
    blend([model("one", ["<a>"]), model("other", ["<b>", "<c>"])], (0.5, 0.5))
    (text,) = [event.text for event in events if isinstance(event, Noted) and event.warning and "token" in event.text]
    assert "different tokens: '<a>', '<b>', '<c>' come from those that have them" in text


def test_padded_rows_stay(model, blend, tmp_path):
    experts = [model("one", ["<a>"], padding=5), model("other", ["<b>"], padding=5)]
    blend(experts, (0.25, 0.75))
    assert_blended(tmp_path / "prior", experts, (0.25, 0.75))
    found, *own = (load_file(folder / "model.safetensors") for folder in (tmp_path / "prior", *experts))
    for name in (EMBEDDING, HEAD):
        assert len(found[name]) == len(WORDS) + 6  # the second token took a row of the padding
        mean = 0.25 * own[0][name] + 0.75 * own[1][name]
        torch.testing.assert_close(found[name][-4:], mean[-4:])
        torch.testing.assert_close(found[name][: len(WORDS)], mean[: len(WORDS)])


def test_one_table_is_padded(model, blend, tmp_path):
    experts = [model("one", ["<a>"]), model("other", ["<a>"], padding=3)]
    blend(experts, (0.25, 0.75))
    assert_blended(tmp_path / "prior", experts, (0.25, 0.75))
    found, other = (load_file(folder / "model.safetensors")[HEAD] for folder in (tmp_path / "prior", experts[1]))
    assert torch.equal(found[-3:], other[-3:])


def test_all_else_is_the_plain_blend_and_halves_stay_halves(model, blend, tmp_path):
    experts = [model("one", ["<a>"]), model("other", ["<b>"])]
    blend(experts, (0.25, 0.75), dtype="bfloat16")
    found, *own = (load_file(folder / "model.safetensors") for folder in (tmp_path / "prior", *experts))
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    name = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(found[name], (0.25 * own[0][name] + 0.75 * own[1][name]).bfloat16())
    assert json.loads((tmp_path / "prior" / "config.json").read_text())["vocab_size"] == len(found[EMBEDDING]) == 8


# ---- in a search


@pytest.fixture
def texts(tmp_path, make_spec):
    """A spec of a language model on a few texts."""
    random = torch.Generator().manual_seed(0)
    lines = [" ".join(WORDS[1 + i] for i in torch.randint(5, (6,), generator=random)) for _ in range(40)]
    folder = tmp_path / "texts"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))

    def of(path, **changes):
        return make_spec(
            model={"arch": "transformers:AutoModelForCausalLM", "args": {"path": str(path)}},
            data={"format": "jsonl", "root": str(folder), "target": {"train": 16, "val": 8}},
            mix=STEPS,
            **changes,
        )

    return of


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("method", ["spsa", "fullgrad"])
def test_the_reported_loss_is_that_of_the_written_folder(model, blend, texts, tmp_path, run, method, tied):
    experts = [model("one", ["<a>"], tied=tied), model("other", ["<b>", "<c>"], tied=tied)]
    result = blend(experts, spec=texts(experts[0]), method=method)
    assert_blended(tmp_path / "prior", experts, result.alpha)
    spec = texts(tmp_path / "prior")
    (found,) = evaluate(plan_evaluate(spec, [tmp_path / "prior"], "val", {}, Outputs(None)), run).results
    assert found.figures["loss"] == pytest.approx(result.loss.val, rel=1e-4)


def test_a_tokenizer_with_other_numbers_than_the_blends_is_refused(model, blend, texts, tmp_path):
    experts = [model("one", ["<a>"]), model("other", ["<b>", "<a>"])]
    with pytest.raises(SpecError, match="numbers tokens otherwise than the blend") as caught:
        blend(experts, spec=texts(experts[0]), method="spsa")
    assert caught.value.items == ("'<a>'",) and str(experts[1]) in caught.value.hint
    assert not (tmp_path / "prior").exists()


# ---- faults


def test_a_slow_tokenizer_cannot_be_extended(model, blend, tmp_path):
    """Source: arcee-ai/mergekit#169, a folder with its tokens in another file than tokenizer.json."""
    experts = [model("one", ["<a>"]), model("other", ["<b>"])]
    (experts[0] / "tokenizer.json").unlink()
    (experts[0] / "vocab.txt").write_text("\n".join(WORDS))
    (experts[0] / "added_tokens.json").write_text('{"<a>": 6}')
    with pytest.raises(CheckpointError, match="no expert's tokenizer has all tokens of the blend") as caught:
        blend(experts, (0.5, 0.5))
    assert "tokenizer.json" in caught.value.hint and not (tmp_path / "prior").exists()


def test_a_file_has_no_tokenizer_to_write_tokens_to(model, blend, tmp_path):
    experts = [model("one", ["<a>"]), model("other", ["<b>"])]
    with pytest.raises(UsageError, match="one lacks '<b>'"):
        blend(experts, (0.5, 0.5), output="prior.safetensors")
    assert not (tmp_path / "prior.safetensors").exists()
    experts[0] = model("all", ["<a>", "<b>"])
    blend(experts, (0.5, 0.5), output="prior.safetensors")
    assert len(load_file(tmp_path / "prior.safetensors")[HEAD]) == 8


def test_a_row_that_is_not_finite_is_refused(model, blend, tmp_path):
    experts = [model("one", ["<a>"]), model("other", ["<b>"])]
    tensors = load_file(experts[1] / "model.safetensors")
    tensors[EMBEDDING][3, 3] = float("nan")
    save_file(tensors, experts[1] / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"other: '{EMBEDDING}' has nan"):
        blend(experts, (0.5, 0.5))
    assert not (tmp_path / "prior").exists()
