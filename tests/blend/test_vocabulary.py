"""The tokens of a folder and their numbers, whatever file keeps them.

Sources: arcee-ai/mergekit#169 (tokenizer.json in one folder, tokenizer.model in the other), #342 (tokens beyond the
rows), QwenLM/Qwen3#29 (tokens in added_tokens alone).
"""

import base64
import json

import pytest

from glue_cli.blend.vocabulary import in_one_kind, preparation_notes, read_vocabulary

WORDS = {"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3}


def pieces(*texts, kinds=()):
    """Return the bytes of a sentencepiece model, as its protobuf has it: piece, score and kind, then settings."""

    def field(number, kind, data):
        return bytes([number << 3 | kind]) + (bytes([len(data)]) if kind == 2 else b"") + data

    kinds = [*kinds, *[1] * len(texts)]
    listed = [
        field(1, 2, text.encode()) + field(2, 5, b"\0\0\x80\xbf") + field(3, 0, bytes([kind]))
        for text, kind in zip(texts, kinds, strict=False)
    ]
    settings = field(2, 2, field(4, 0, b"\xac\x02") + field(5, 1, b"\0" * 8))
    return b"".join(field(1, 2, piece) for piece in listed) + settings


def ranks(*tokens):
    return "".join(f"{base64.b64encode(token).decode()} {number}\n" for number, token in enumerate(tokens)).encode()


def tokenizer(vocabulary, added=()):
    return json.dumps({"model": {"vocab": vocabulary}, "added_tokens": [{"content": t, "id": n} for t, n in added]})


@pytest.fixture
def folder(tmp_path):
    def make(name="folder", **files):
        (tmp_path / name).mkdir()
        for file, content in files.items():
            path = tmp_path / name / file.replace("__", "/").replace("_DOT_", ".")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / name

    return make


@pytest.mark.parametrize(
    ("file", "content", "wanted"),
    [
        ("tokenizer_DOT_json", tokenizer(WORDS), WORDS),
        ("tokenizer_DOT_json", tokenizer([["<pad>", 0.0], ["a", -1.0]]), {"<pad>": 0, "a": 1}),
        ("vocab_DOT_json", json.dumps(WORDS), WORDS),
        ("vocab_DOT_json", json.dumps({"eng": {"a": 0}, "fra": {"a": 0}}), {"eng a": 0, "fra a": 0}),
        ("vocab_DOT_txt", "a\nb\u2028c\n\n", {"a": 0, "b\u2028c": 1, "": 2}),  # a line may end so, and be empty
        ("vocab_DOT_txt", "a\r\nb", {"a": 0, "b": 1}),
        ("spiece_DOT_model", pieces("<unk>", "<s>", "\u2581the", "a", kinds=[2, 3]), {"\u2581the": 2, "a": 3}),
        ("tokenizer_DOT_model", ranks(b"a", b" the", b"\xff\n"), {"a": 0, "\u0120the": 1, "\u00ff\u010a": 2}),
        ("qwen_DOT_tiktoken", ranks(b"a", b"b"), {"a": 0, "b": 1}),
        ("tokenizer__vocab_DOT_json", json.dumps({"a": 0}), {"a": 0}),
        (
            "tekken_DOT_json",
            json.dumps({"vocab": [{"rank": 0, "token_bytes": base64.b64encode(b" a").decode(), "token_str": None}]}),
            {"\u0120a": 0},
        ),
    ],
)  # fmt: skip
def test_tokens_are_read_from_any_kind_of_file(folder, file, content, wanted):
    assert read_vocabulary(folder(**{file: content})).numbers == wanted


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_DOT_json": tokenizer(WORDS, [("<x>", 4), ("[PAD]", 0)])},
        {"vocab_DOT_txt": "\n".join(WORDS), "added_tokens_DOT_json": '{"<x>": 4}'},
        {
            "vocab_DOT_txt": "\n".join(WORDS),
            "tokenizer_config_DOT_json": '{"added_tokens_decoder": {"4": {"content": "<x>"}}}',
        },
    ],
)
def test_added_tokens_are_read_wherever_they_are_kept(folder, files):
    found = read_vocabulary(folder(**files))
    assert found.numbers == {**WORDS, "<x>": 4} and found.base == WORDS and found.added["<x>"] == 4


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"model": {}}', '{"model": {"vocab": "5"}}', '{"model": {"vocab": [5]}}', "[" * 100_000],
)
@pytest.mark.parametrize("file", ["tokenizer_DOT_json", "vocab_DOT_json", "tekken_DOT_json", "word2vec_DOT_model"])
def test_what_is_no_vocabulary_is_passed_over(folder, file, content):
    assert read_vocabulary(folder(**{file: content})) is None


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_file_of_pieces_that_is_cut_off_is_none(folder, cut):
    whole = pieces("\u2581the", "\u2581a", "\u2581film")
    assert read_vocabulary(folder(spiece_DOT_model=whole[:-cut])) is None


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a\x04\x08\xff\xff\x03",  # a piece whose text is a number, 65,535
        b"\x08\x01",  # a number in place of a piece
        b"\x0a\x02\x0a\x05",  # a text that is longer than its piece
        b"\x0b\x0c" * 9,  # groups, which no such file has
        b"\x80" * 99,  # a number without an end
        b"\xff\xfe",
    ],
)
def test_a_file_of_pieces_that_says_nonsense_is_none(folder, data):
    assert read_vocabulary(folder(spiece_DOT_model=data)) is None


def test_a_link_to_nothing_and_a_folder_are_no_files_of_pieces(folder):
    place = folder(vocab_DOT_txt="a")
    (place / "gone.model").symlink_to(place / "nowhere")
    (place / "folder.model").mkdir()
    assert read_vocabulary(place).tables == {"vocab.txt": {"a": 0}}


def test_odd_entries_are_no_tokens(folder):
    odd = {
        "added_tokens": [5, {"content": ["x"], "id": 1}, {"content": "neg", "id": -1}, {"content": "half", "id": 0.5}]
    }
    place = folder(tokenizer_DOT_json=json.dumps({"model": {"vocab": {"a": 0, "b": "1", "c": -1, "d": True}}, **odd}))
    assert read_vocabulary(place).numbers == {"a": 0}


def test_real_tokenizers_are_read_as_their_library_reads_them(tmp_path, make_tokenizer):
    transformers = pytest.importorskip("transformers")
    make_tokenizer(tmp_path / "made")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "made")
    tokenizer.add_tokens(["<new>", "very long"])
    tokenizer.save_pretrained(tmp_path / "grown")
    assert read_vocabulary(tmp_path / "grown").numbers == tokenizer.get_vocab()


@pytest.mark.parametrize(("train", "model"), [("unigram", "Unigram"), ("bpe", "BPE"), ("wordpiece", "WordPiece")])
def test_trained_tokenizers_of_every_model(tmp_path, train, model):
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(getattr(tokenizers.models, model)())
    trainers = {"unigram": "UnigramTrainer", "bpe": "BpeTrainer", "wordpiece": "WordPieceTrainer"}
    trainer = getattr(tokenizers.trainers, trainers[train])(
        vocab_size=40, special_tokens=["<pad>"], show_progress=False
    )
    made.train_from_iterator(["the film was good", "a bad book, not great"] * 5, trainer)
    made.add_tokens(["<new>"])
    made.save(str(tmp_path / "tokenizer.json"))
    assert read_vocabulary(tmp_path).numbers == made.get_vocab()


# ---- in one kind of file


def test_vocabularies_are_compared_by_the_file_that_all_have(folder):
    both = folder("both", tokenizer_DOT_json=tokenizer({"x": 0}), spiece_DOT_model=pieces("a", "b"))
    slow = folder("slow", spiece_DOT_model=pieces("a", "b"))
    found = in_one_kind([read_vocabulary(both), read_vocabulary(slow)])
    assert [each.numbers for each in found] == [{"a": 0, "b": 1}] * 2


@pytest.mark.parametrize("move", [0, 1, 3])  # 1 as XLM-R's library moves all numbers of its file
def test_pieces_in_the_order_of_a_fast_tokenizer_are_its_own(folder, move):
    texts = ["a", "b", "c"]
    fast = folder("fast", tokenizer_DOT_json=tokenizer({"<s>": 9, **{t: k + move for k, t in enumerate(texts)}}))
    slow = folder("slow", spiece_DOT_model=pieces(*texts), added_tokens_DOT_json='{"<x>": 10}')
    found = in_one_kind([read_vocabulary(fast), read_vocabulary(slow)])
    assert found[1].base == found[0].base and found[1].numbers == {**found[0].numbers, "<x>": 10}


@pytest.mark.parametrize("texts", [("b", "a", "c"), ("a", "x", "y", "z")])
def test_pieces_in_another_order_are_not(folder, texts):
    fast = folder("fast", tokenizer_DOT_json=tokenizer({"a": 0, "b": 1, "c": 2}))
    slow = folder("slow", spiece_DOT_model=pieces(*texts))
    found = in_one_kind([read_vocabulary(fast), read_vocabulary(slow)])
    assert found[1].base == {text: k for k, text in enumerate(texts)}


def test_tokenizers_that_prepare_texts_otherwise_are_told(tmp_path):
    for name, lowers in (("a", True), ("b", True), ("c", False)):
        (tmp_path / name).mkdir()
        content = {"version": name, "normalizer": {"type": "BertNormalizer", "lowercase": lowers}}
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(content))
    [note] = preparation_notes([tmp_path / name for name in "abc"])
    assert f"{tmp_path / 'c'} has another normalizer than {tmp_path / 'a'}" in note
    assert preparation_notes([tmp_path / "a", tmp_path / "none"]) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"post_processor": {"type": "TemplateProcessing"}}, "post_processor"),
        ({"model": {"merges": [["b", "c"], ["a", "b"]]}}, "list of merges"),
        ({"model": {"merges": ["a b", "b c"]}}, None),  # as older files write them
        ({"chat_template": "[{{ messages }}]"}, "writes conversations by another chat template"),
        ({"add_bos_token": True}, "add_bos_token"),
    ],
)
def test_all_that_makes_tokens_of_a_text_is_compared(tmp_path, change, named):
    plain = {"model": {"merges": [["a", "b"], ["b", "c"]]}}
    settings = {"chat_template": "{{ messages }}", "add_bos_token": False}
    for name, own in (("a", {}), ("b", change)):
        (tmp_path / name).mkdir()
        said = {key: own.get(key, value) for key, value in settings.items()}
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(said))
        others = {key: value for key, value in own.items() if key not in settings}
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(plain | others))
    notes = preparation_notes([tmp_path / "a", tmp_path / "b"])
    assert [named in note for note in notes] == ([True] if named else [])


def test_what_is_done_to_sentences_before_is_compared(tmp_path):
    """As sentence-transformers does it; the versions that wrote the files do not matter."""
    for name, length, prompts in (("a", 32, {"query": "q: "}), ("b", 4, {})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text("{}")
        said = {"max_seq_length": length, "do_lower_case": False}
        (tmp_path / name / "sentence_bert_config.json").write_text(json.dumps(said))
        said = {"__version__": {"torch": name}, "prompts": prompts, "default_prompt_name": None}
        said |= {"similarity_fn_name": "cosine"} if name == "a" else {"later": {"key": ""}}
        (tmp_path / name / "config_sentence_transformers.json").write_text(json.dumps(said))
    first, second = preparation_notes([tmp_path / "a", tmp_path / "b"])
    assert first.endswith("in max_seq_length") and "b/sentence_bert_config.json differs from that of" in first
    assert second.endswith("in prompts") and "b/config_sentence_transformers.json differs" in second
