import json
import os
import shutil

import pytest
import torch

from glue_cli.data import read_dataset, tokens
from glue_cli.data.dataset import Texts
from glue_cli.data.tokens import tokenise
from glue_cli.foundation.errors import DataError, SpecError
from glue_cli.foundation.progress import Advanced, Finished, Noted, Started
from glue_cli.running.losses import IGNORED
from glue_cli.spec.schema import DataSpec

TEXTS = ["the book is good", "bad", "not a very great film", "the zebra"]
LABELS = torch.tensor([1, 0, 0, 1])
IDS = [[2, 4, 6, 8, 10, 3], [2, 11, 3], [2, 14, 5, 15, 13, 7, 3], [2, 4, 1, 3]]


@pytest.fixture
def folder(make_tokenizer, tmp_path):
    return make_tokenizer(tmp_path / "model")


def run(found, folder, max_length=None, events=None, max_characters=None):
    progress = (events if events is not None else []).append
    return tokenise(found, folder, max_length, max_characters, where="the train texts in 'data'", progress=progress)


def rows(ragged):
    return [row[:n].tolist() for row, n in zip(ragged.padded(int(ragged.lengths.max())), ragged.lengths, strict=True)]


def test_texts_with_labels(folder, events):
    dataset = run(Texts(TEXTS, LABELS, ("bad", "good")), folder, events=events)
    assert rows(dataset.inputs) == IDS and dataset.inputs.values.dtype == torch.int32
    assert torch.equal(dataset.targets, LABELS) and dataset.class_names == ("bad", "good")
    assert events == [Started("tokenise", 4, "texts"), Advanced(4), Finished()]


def test_the_chunks_make_no_difference(folder, monkeypatch):
    monkeypatch.setattr(tokens, "_CHUNK", 3)
    assert rows(run(Texts(TEXTS, LABELS), folder).inputs) == IDS


def test_what_the_tokenizer_itself_gives(folder):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert rows(run(Texts(TEXTS, LABELS), folder).inputs) == tokenizer(TEXTS)["input_ids"]


def test_texts_alone_are_to_predict_what_follows(folder):
    dataset = run(Texts(TEXTS, None), folder)
    ids, targets = dataset.inputs.padded(8), dataset.targets.padded(8)
    assert ids[1].tolist() == [2, 11, 3, 0, 0, 0, 0, 0]
    assert targets[1].tolist() == [11, 3] + [IGNORED] * 6
    is_last = torch.arange(8) + 1 >= dataset.inputs.lengths[:, None]
    assert torch.equal(targets, torch.where(is_last, IGNORED, ids.roll(-1, 1)))
    assert dataset.labels is None and len(dataset) == 4


def test_pairs_of_texts(folder, make_tokenizer, tmp_path):
    import transformers

    plain, folder = (
        folder,
        make_tokenizer(tmp_path / "typed", model_input_names=["input_ids", "token_type_ids", "attention_mask"]),
    )
    seconds = ["bad film", "the book is good", "great", "zebra"]
    found = run(Texts(TEXTS, LABELS, pairs=seconds), folder).inputs
    wanted = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS, seconds, padding=True, return_tensors="pt")
    width = wanted["input_ids"].shape[1]
    assert torch.equal(found.padded(width), wanted["input_ids"])
    assert torch.equal(found.padded_types(width), wanted["token_type_ids"]) and wanted["token_type_ids"].any()
    cut = run(Texts(TEXTS, LABELS, pairs=seconds), folder, 6).inputs
    assert cut.lengths.tolist() == [6, 6, 6, 6] and (cut.padded_types(6) == 1).any(1).all()
    assert run(Texts(TEXTS, LABELS, pairs=seconds), plain).inputs.types is None
    assert run(Texts(TEXTS, LABELS), folder).inputs.types is None
    with pytest.raises(DataError, match="text 2 .from 1. has 16 characters, more than 15"):
        run(Texts(["a", "b"], LABELS[:2], pairs=["c", "d" * 16]), folder, max_characters=15)


def test_the_longest_texts_are_cut(folder, make_tokenizer, tmp_path):
    assert [len(row) for row in rows(run(Texts(TEXTS, LABELS), folder, 4).inputs)] == [4, 3, 4, 4]
    assert run(Texts(["good " * 600], LABELS[:1]), folder).inputs.lengths.tolist() == [512]
    short = make_tokenizer(tmp_path / "short", model_max_length=5)
    assert run(Texts(TEXTS, LABELS), short).inputs.lengths.tolist() == [5, 3, 5, 4]
    with pytest.raises(
        SpecError, match="data.max_length is 6, but the tokenizer in '.*short' is made for .* 5 tokens"
    ):
        run(Texts(TEXTS, LABELS), short, 6)


@pytest.mark.parametrize(
    ("special", "padding"), [({"pad_token": None, "eos_token": "[SEP]"}, 3), ({"pad_token": None}, 0), ({}, 0)]
)
def test_a_tokenizer_without_a_token_for_padding(make_tokenizer, tmp_path, special, padding):
    folder = make_tokenizer(tmp_path / "model", **special)
    assert run(Texts(TEXTS, LABELS), folder).inputs.padding == padding


def test_texts_that_are_too_short(make_tokenizer, tmp_path, events):
    folder = make_tokenizer(tmp_path / "model", ends=False)
    with pytest.raises(DataError, match="the train texts in 'data': text 2 .from 1. gives no token"):
        run(Texts(["good", " ", "bad"], torch.tensor([0, 1, 0])), folder)
    alone = run(Texts(["good", "", "bad film", "the bad book"], None), folder, events=events)
    assert rows(alone.inputs) == [[11, 7], [4, 11, 6]] and rows(alone.targets) == [[7], [11, 6]]
    note = events[-1]
    assert isinstance(note, Noted) and "2 of 4 have less than two tokens and are left out" in note.text
    with pytest.raises(DataError, match="none has two tokens or more"):
        run(Texts(["good", ""], None), folder)


def test_a_model_without_a_tokenizer(tmp_path, make_tokenizer, folder):
    with pytest.raises(SpecError, match="the train texts in 'data' need a model of transformers") as caught:
        run(Texts(TEXTS, LABELS), None)
    assert "transformers:AutoModelForSequenceClassification" in caught.value.hint
    shutil.rmtree(folder)
    for _ in ("no folder", "a config alone, of which transformers makes a tokenizer that knows no word"):
        with pytest.raises(SpecError, match="model' has no tokenizer: wanted tokenizer.json or vocab.txt") as caught:
            run(Texts(TEXTS, LABELS), folder)
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (folder / "tokenizer.json").write_text("{broken")
    with pytest.raises(SpecError, match="the tokenizer in '.*model' cannot be read: "):
        run(Texts(TEXTS, LABELS), folder)


def test_a_tokenizer_s_own_code_is_not_run(folder):
    (folder / "mine.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nclass T: pass\n"
    )
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["mine.T", "mine.T"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": config["auto_map"]}))
    with pytest.raises(SpecError, match="cannot be read"):
        run(Texts(TEXTS, LABELS), folder)
    assert not (folder / "ran").exists()


def test_a_text_that_would_end_the_process(folder, monkeypatch):
    monkeypatch.setattr(tokens, "MOST_CHARACTERS", 20)
    assert len(run(Texts(["bad " * 5, "good"], LABELS[:2]), folder)) == 2
    with pytest.raises(DataError, match=r"text 2 .from 1. has 21 characters, more than 20"):
        run(Texts(["good", "bad " * 5 + "a"], LABELS[:2]), folder)
    assert len(run(Texts(["good", "bad " * 5 + "a"], LABELS[:2]), folder, max_characters=21)) == 2


class PanicException(BaseException):  # as Rust's has it: no Exception
    pass


@pytest.mark.parametrize("kind", [PanicException, Exception])
def test_a_failing_tokenizer_is_a_fault_of_its_files(folder, monkeypatch, kind):
    class Panicking:
        model_max_length, pad_token_id, eos_token_id = 10, 0, None

        def __call__(self, *texts, **settings):
            raise kind("index out of bounds")

    monkeypatch.setattr(tokens, "load_tokenizer", lambda folder, where: Panicking())
    with pytest.raises(SpecError, match="tokenizer fails: index out of bounds"):
        run(Texts(TEXTS, LABELS), folder)


def test_a_tokenizer_without_its_unknown_token(folder):
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["unk_token"] = "<lost>"
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(SpecError, match="tokenizer fails: .* vocabulary"):
        run(Texts(["unheard of"], LABELS[:1]), folder)


def test_a_fifo_beside_the_tokenizer_is_not_waited_for(folder):
    os.mkfifo(folder / "special_tokens_map.json")
    with pytest.raises(SpecError, match="special_tokens_map.json' is no regular file"):
        run(Texts(TEXTS, LABELS), folder)


def test_transformers_missing(folder, monkeypatch):
    def refuse(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(tokens, "import_beside_torchvision", refuse)
    with pytest.raises(SpecError, match="transformers, which is not installed") as caught:
        run(Texts(TEXTS, LABELS), folder)
    assert caught.value.hint == "pip install 'glue-cli[hf]'"


def test_from_a_file_to_token_ids(tmp_path, folder):
    lines = [json.dumps({"text": text, "label": "ab"[label]}) for text, label in zip(TEXTS, LABELS, strict=True)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    dataset = read_dataset(DataSpec(format="jsonl", root=".", max_length=5), "train", root=tmp_path, tokenizer=folder)
    assert dataset.inputs.lengths.tolist() == [5, 3, 5, 4] and dataset.class_names == ("a", "b")
    assert dataset.shape == [5] and not dataset.has_images
    with pytest.raises(SpecError, match="mean nothing to texts"):
        read_dataset(DataSpec(format="jsonl", root=".", mean=[0.5]), "train", root=tmp_path, tokenizer=folder)
    with pytest.raises(SpecError, match="data.image_size means nothing to format 'jsonl'"):
        read_dataset(DataSpec(format="jsonl", root=".", image_size=8), "train", root=tmp_path, tokenizer=folder)


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"model_type": "bert", "max_position_embeddings": 5}, 5),
        ({"model_type": "roberta", "max_position_embeddings": 7}, 5),
        ({"model_type": "gpt2", "n_positions": 4}, 4),
        ({"model_type": "llama", "max_position_embeddings": 100_000}, 7),
        ({}, 7),
    ],
)
def test_texts_are_cut_at_the_models_positions(folder, config, length):
    (folder / "config.json").write_text(json.dumps(config))
    found = run(Texts(TEXTS, LABELS), folder).inputs
    assert found.lengths.max() == length
    assert run(Texts(TEXTS, LABELS), folder, 3).inputs.lengths.max() == 3
