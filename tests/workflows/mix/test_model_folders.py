"""Blends as folders, loaded by the libraries that they are for; outputs against those computed without glue."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.foundation.errors import CheckpointError, SpecError
from glue_cli.foundation.progress import Noted
from glue_cli.plans.mix import plan_mix
from glue_cli.plans.mix_folders import check_groups
from glue_cli.plans.mix_like import read_like
from glue_cli.plans.mix_records import GIVEN, Coefficients, Writing
from glue_cli.plans.outputs import Outputs
from glue_cli.workflows.mix.mix import mix

transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.usefixtures("torchvision"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
ALPHA = (0.25, 0.75)
TOKENS = torch.tensor([[1, 3, 2, 3]])


@pytest.fixture
def blend(run, tmp_path):
    def blend(folders, name="blend", alpha=ALPHA, base=None, like=None, **writing):
        plan = plan_mix(
            folders,
            Outputs(tmp_path / name),
            Coefficients(GIVEN, like.said.alpha if like else alpha),
            base=base,
            writing=Writing(**writing),
            like=like,
        )
        mix(plan, run)
        return tmp_path / name

    return blend


def shaken(model, seed):
    """Move all weights by random numbers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def mean_of(states):
    return {name: sum(a * state[name] for a, state in zip(ALPHA, states, strict=True)) for name in states[0]}


def bert_classifier():
    return transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=9, **SIZES))


@pytest.fixture
def folders(tmp_path, make_tokenizer):
    """Two classifiers of texts, each with a tokenizer."""
    for k in range(2):
        shaken(bert_classifier(), k).save_pretrained(tmp_path / str(k))
        make_tokenizer(tmp_path / str(k))
    return [tmp_path / str(k) for k in range(2)]


def write(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(content)


# ---- what goes along


def test_everything_that_is_no_weight_goes_along(folders, blend):
    kept = [
        "modeling_own.py",
        "deep/er/rules.yaml",
        "tokenizer.model",
        "bpe.codes",
        "LICENSE",
        "preprocessor_config.json",
    ]
    left = ["trainer_state.json", "runs/log.txt", "checkpoint-5/config.json", "eval_results.json", ".hidden", "a.onnx"]
    for folder in folders:
        for name in (*kept, *left):
            write(folder, **{name: f"{name} of any"})
        (folder / "optimizer.pt").write_bytes(b"1")
        (folder / "pytorch_model.bin").write_bytes(b"the same weights once more")
    output = blend(folders)
    found = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    assert {*kept, "config.json", "tokenizer.json", "model.safetensors", "README.md"} <= found
    assert not found & {*left, "optimizer.pt", "pytorch_model.bin"}


def test_code_of_the_folder_is_loaded_from_the_blend(folders, blend, monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    code = "from transformers import BertForSequenceClassification as Base\n\n\nclass Own(Base):\n    pass\n"
    for folder in folders:
        write(folder, **{"own.py": code})
        config = json.loads((folder / "config.json").read_text())
        config["auto_map"] = {"AutoModelForSequenceClassification": "own.Own"}
        (folder / "config.json").write_text(json.dumps(config))
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    model = load(blend(folders), trust_remote_code=True)
    assert type(model).__name__ == "Own"
    wanted = bert_classifier()
    wanted.load_state_dict(mean_of([load_file(folder / "model.safetensors") for folder in folders]))
    torch.testing.assert_close(model.eval()(TOKENS).logits, wanted.eval()(TOKENS).logits)


def test_the_configuration_says_the_dtype_that_was_written(folders, blend):
    for folder in folders:
        config = json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16"}
        (folder / "config.json").write_text(json.dumps(config))
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    assert load(blend(folders), dtype="auto").dtype == torch.float32
    assert load(blend(folders, "half", dtype="float16"), dtype="auto").dtype == torch.float16


def test_a_configuration_that_fits_stays_as_it_is_written(folders, blend):
    text = (folders[0] / "config.json").read_text().replace("\n", " \n")
    (folders[0] / "config.json").write_text(text)
    assert (blend(folders) / "config.json").read_text() == text


def test_further_weights_are_copied_where_they_are_the_same_and_else_refused(folders, blend):
    for folder in folders:
        (folder / "model_head.pkl").write_bytes(b"a head of scikit-learn")
    assert (blend(folders) / "model_head.pkl").read_bytes() == b"a head of scikit-learn"
    (folders[1] / "model_head.pkl").write_bytes(b"another head")
    torch.save({"weight": torch.ones(2)}, folders[0] / "colbert_linear.pt")
    with pytest.raises(CheckpointError, match="further weights that differ") as caught:
        blend(folders, "other")
    assert caught.value.items == ("'colbert_linear.pt'", "'model_head.pkl'")
    assert not (folders[0].parent / "other").exists()


# ---- modules with weights of their own


@pytest.fixture
def sentences(tmp_path, make_tokenizer):
    """Two models of sentence-transformers: a BERT, a pooling, and a Dense layer that is trained."""
    library = pytest.importorskip("sentence_transformers")
    from sentence_transformers import models

    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(vocab_size=16, **SIZES)).save_pretrained(tmp_path / "text")
    make_tokenizer(tmp_path / "text", model_max_length=16)
    made = []
    for k in range(2):
        text = models.Transformer(str(tmp_path / "text"))
        model = library.SentenceTransformer(
            modules=[text, models.Pooling(8, "mean"), models.Dense(8, 4)], device="cpu"
        )
        made.append(shaken(model, k))
        model.save(str(tmp_path / f"sentences{k}"))
    return made, [tmp_path / f"sentences{k}" for k in range(2)]


WORDS = ["good book", "bad book is very"]


def test_all_modules_of_sentence_transformers_are_blended(sentences, blend):
    library = pytest.importorskip("sentence_transformers")
    made, folders = sentences
    output = blend(folders)
    wanted = library.SentenceTransformer(str(folders[0]), device="cpu")
    wanted.load_state_dict(mean_of([model.state_dict() for model in made]))
    found = library.SentenceTransformer(str(output), device="cpu")
    torch.testing.assert_close(torch.tensor(found.encode(WORDS)), torch.tensor(wanted.encode(WORDS)))
    assert not torch.allclose(torch.tensor(found.encode(WORDS)), torch.tensor(made[0].encode(WORDS)), atol=1e-3)
    assert {*load_file(output / "model.safetensors")} == {*load_file(folders[0] / "model.safetensors")}
    said = read_checkpoint(output / "2_Dense").glue
    assert said == read_checkpoint(output).glue and len(said["experts"][0]["sha256"]) == 64


def test_a_blend_of_modules_is_made_again_to_the_byte(sentences, blend, tmp_path):
    _, folders = sentences
    first = blend(folders)
    moved = [shutil.copytree(folder, tmp_path / f"moved{k}") for k, folder in enumerate(folders)]
    second = blend(moved, "again", like=read_like(first, moved, tmp_path / "again"))
    names = {path.relative_to(first) for path in first.rglob("*") if path.is_file()}
    assert len(names) > 8 and names == {path.relative_to(second) for path in second.rglob("*") if path.is_file()}
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
    dense = load_file(moved[1] / "2_Dense/model.safetensors")
    dense["linear.bias"] += 1
    save_file(dense, moved[1] / "2_Dense/model.safetensors")
    with pytest.raises(CheckpointError, match="is not what the blend was made from"):
        blend(moved, "other", like=read_like(first, moved, tmp_path / "other"))


def test_modules_that_compute_something_else_are_refused(sentences, blend, tmp_path):
    _, folders = sentences
    pooling = json.loads((folders[1] / "1_Pooling/config.json").read_text())
    other = {key: not value if isinstance(value, bool) else value for key, value in pooling.items()}
    (folders[1] / "1_Pooling/config.json").write_text(json.dumps({**other, "pooling_mode": "cls"}))
    with pytest.raises(CheckpointError, match="modules compute different things") as caught:
        blend(folders)
    assert caught.value.items == (f"{folders[1]}/1_Pooling",)
    (folders[1] / "1_Pooling/config.json").write_text(json.dumps(pooling))
    shutil.rmtree(folders[1] / "2_Dense")
    with pytest.raises(CheckpointError, match="lack modules") as caught:
        blend(folders)
    assert caught.value.items == (f"{folders[1]}: '2_Dense'",)


def test_a_part_that_is_not_finite_leaves_nothing(sentences, blend, tmp_path):
    _, folders = sentences
    dense = load_file(folders[1] / "2_Dense/model.safetensors")
    save_file({**dense, "linear.bias": torch.full((4,), torch.nan)}, folders[1] / "2_Dense/model.safetensors")
    with pytest.raises(CheckpointError, match="'2_Dense/linear.bias' has nan"):
        blend(folders)
    assert not (tmp_path / "blend").exists()


def test_a_file_says_that_it_lacks_modules(sentences, blend, events):
    _, folders = sentences
    blend(folders, "one.safetensors")
    [lacking] = [event.text for event in events if isinstance(event, Noted) and "lacks the modules" in event.text]
    assert "'2_Dense'" in lacking


def test_a_group_of_modules_alone_has_no_search(sentences, tmp_path):
    _, folders = sentences
    plan = plan_mix(folders, Outputs(tmp_path / "blend"), Coefficients(GIVEN, ALPHA))
    recipe = plan.tensors.recipe
    groups = {name: int(name.startswith("2_Dense/")) for name in plan.experts[0].entries}
    grouped = type(recipe)(("text", "dense"), groups)
    with pytest.raises(SpecError, match="mix.groups") as caught:
        check_groups(grouped, plan.experts, plan.destination.parts)
    assert caught.value.items == ("dense",)


# ---- adapters merged into their base


def adapted(base, config, seed, name, tmp_path, tokenizer=None):
    """Save an adapter of random numbers; return the adapted model."""
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(base, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(tmp_path / name)
    if tokenizer:
        tokenizer.save_pretrained(tmp_path / name)
    return model


def merged_mean(models):
    """Return the mean of the weights of adapted models, each merged by PEFT."""
    return mean_of([model.merge_and_unload().state_dict() for model in models])


def llama(tied=False):
    config = transformers.LlamaConfig(
        vocab_size=16, num_key_value_heads=2, tie_word_embeddings=tied, **SIZES, **NO_TOKENS
    )
    return transformers.LlamaForCausalLM(config)


@pytest.fixture
def make_adapters(tmp_path, make_tokenizer):
    """Save a Llama and two adapters of it that bring embeddings, with two added tokens where asked."""

    def make(tied, added, with_tokenizer=True, saved=("embed_tokens", "lm_head")):
        peft = pytest.importorskip("peft")
        shaken(llama(tied), 5).save_pretrained(tmp_path / "base")
        make_tokenizer(tmp_path / "base")
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=[*saved])
        models = []
        for k in range(2):
            base = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
            tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "base")
            tokenizer.add_tokens(list(added), special_tokens=True)
            if added:
                base.resize_token_embeddings(18, mean_resizing=False)
            models.append(adapted(base, config, k, f"adapter{k}", tmp_path, tokenizer if with_tokenizer else None))
        return models, [tmp_path / "adapter0", tmp_path / "adapter1"]

    return make


@pytest.mark.parametrize("added", [(), ("<x>", "<y>")])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_embeddings_that_adapters_bring(make_adapters, blend, tmp_path, tied, added):
    models, paths = make_adapters(tied, added)
    output = blend(paths, base=tmp_path / "base")
    found, info = transformers.AutoModelForCausalLM.from_pretrained(output, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    wanted = llama()
    if added:
        wanted.resize_token_embeddings(18, mean_resizing=False)
    wanted.load_state_dict(merged_mean(models))
    torch.testing.assert_close(found.eval()(TOKENS).logits, wanted.eval()(TOKENS).logits)
    tokenizer = transformers.AutoTokenizer.from_pretrained(output)
    assert found.config.vocab_size == len(found.get_input_embeddings().weight) == 16 + len(added)
    assert [tokenizer.convert_tokens_to_ids(token) for token in added] == [len(tokenizer) - 2, len(tokenizer) - 1][
        : len(added)
    ]


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "MarianMTModel", "EncoderDecoderModel"])
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_embeddings_without_the_output_layer_that_shares_them_are_refused(make_adapters, blend, tmp_path, name):
    _, paths = make_adapters(True, (), saved=("embed_tokens",))
    config = tmp_path / "base" / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", name))
    with pytest.raises(CheckpointError, match="whose tensor the base's output layer shares"):
        blend(paths, base=tmp_path / "base")


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_added_tokens_that_no_adapter_names_are_warned_of_and_unequal_ones_refused(
    make_adapters, blend, tmp_path, events
):
    _, paths = make_adapters(False, ("<x>", "<y>"), with_tokenizer=False)
    blend(paths, base=tmp_path / "base")
    assert any("no adapter has its tokenizer" in event.text for event in events if isinstance(event, Noted))
    for path, added in zip(paths, (["<x>", "<y>"], ["<y>", "<x>"]), strict=True):
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "base")
        tokenizer.add_tokens(added, special_tokens=True)
        tokenizer.save_pretrained(path)
    with pytest.raises(CheckpointError, match="number tokens otherwise") as caught:
        blend(paths, "other", base=tmp_path / "base")
    assert caught.value.items == (str(paths[1]),)


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_a_head_that_adapters_bring_makes_a_classifier(blend, tmp_path):
    peft = pytest.importorskip("peft")
    shaken(transformers.BertModel(transformers.BertConfig(vocab_size=9, **SIZES)), 3).save_pretrained(
        tmp_path / "base"
    )
    config = peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
    models = []
    for k in range(2):
        load = transformers.AutoModelForSequenceClassification.from_pretrained
        models.append(adapted(load(tmp_path / "base", num_labels=3), config, k, f"adapter{k}", tmp_path))
    output = blend([tmp_path / "adapter0", tmp_path / "adapter1"], base=tmp_path / "base")
    found, info = load(output, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(found).__name__ == "BertForSequenceClassification" == found.config.architectures[0]
    assert found.config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    wanted = load(tmp_path / "base", num_labels=3)
    wanted.load_state_dict(merged_mean(models))
    torch.testing.assert_close(found.eval()(TOKENS).logits, wanted.eval()(TOKENS).logits)
    assert "BertForSequenceClassification.from_pretrained" in (output / "README.md").read_text()


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_an_adapter_of_adapters_is_loaded_on_its_base(blend, tmp_path):
    peft = pytest.importorskip("peft")
    shaken(llama(), 5).save_pretrained(tmp_path / "base")
    load = transformers.AutoModelForCausalLM.from_pretrained
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    models = [adapted(load(tmp_path / "base"), config, k, f"adapter{k}", tmp_path) for k in range(2)]
    output = blend([tmp_path / "adapter0", tmp_path / "adapter1"])
    assert "library_name: peft" in (output / "README.md").read_text()
    found = peft.PeftModel.from_pretrained(load(tmp_path / "base"), output)
    wanted = llama()
    wanted.load_state_dict(merged_mean(models))
    torch.testing.assert_close(found.eval()(TOKENS).logits, wanted.eval()(TOKENS).logits)


# ---- the card


def test_a_folder_has_a_card_unless_it_is_not_wanted(folders, blend):
    text = (blend(folders) / "README.md").read_text()
    assert "library_name: transformers" in text and "| `1` | 0.7500 |" in text
    assert not (blend(folders, "bare", card=False) / "README.md").exists()


@pytest.mark.parametrize(
    ("weights", "config", "written"),
    [
        ("diffusion_pytorch_model.safetensors", "config.json", "diffusion_pytorch_model.safetensors"),
        ("diffusion_pytorch_model.fp16.safetensors", "config.json", "diffusion_pytorch_model.safetensors"),
        ("open_clip_model.safetensors", "open_clip_config.json", "open_clip_model.safetensors"),
        ("open_clip_pytorch_model.bin", "open_clip_config.json", "open_clip_model.safetensors"),
    ],
)
def test_folders_of_other_libraries_give_a_folder_that_they_read(blend, tmp_path, weights, config, written):
    folders = [tmp_path / "a", tmp_path / "b"]
    for k, folder in enumerate(folders):
        folder.mkdir()
        save_file({"w": torch.full((4, 4), float(k))}, folder / weights)
        (folder / config).write_text('{"_class_name": "UNet2DModel", "model_cfg": {}}')
    out = blend(folders)
    assert {path.name for path in out.iterdir()} == {written, config, "README.md"}
    assert torch.equal(load_file(out / written)["w"], torch.full((4, 4), ALPHA[1]))
    assert read_checkpoint(out).model_folder == out
