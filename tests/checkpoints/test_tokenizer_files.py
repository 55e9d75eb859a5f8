"""Files of tokenizers with more tokens, as transformers reads them."""

import json

import pytest

from glue_cli.checkpoints.tokenizer_files import AddedToken, read_added_token, with_tokens


@pytest.fixture
def folder(tmp_path, make_tokenizer):
    return make_tokenizer(tmp_path / "tokenizer")


def added(text, number, **settings):
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    return AddedToken(text, number, {**plain, **settings})


def grow(folder, tokens):
    for file in list(folder.iterdir()):
        if (text := with_tokens(file, tokens)) is not None:
            file.write_bytes(text)


def test_the_library_reads_the_tokens_with_their_numbers_and_settings(folder):
    transformers = pytest.importorskip("transformers")
    before = transformers.AutoTokenizer.from_pretrained(folder)
    user, space = len(before), len(before) + 1
    grow(folder, [added("<|user|>", user, special=True, normalized=False), added("wide  ", space)])
    after = transformers.AutoTokenizer.from_pretrained(folder)
    assert after.get_vocab() == {**before.get_vocab(), "<|user|>": user, "wide  ": space}
    ids = after("good<|user|> film wide  bad", add_special_tokens=False)["input_ids"]
    good, film, bad = before.convert_tokens_to_ids(["good", "film", "bad"])
    assert ids == [good, user, film, space, bad]
    assert after.decode([user], skip_special_tokens=True) == "" != after.decode([space], skip_special_tokens=True)


def test_a_token_is_taken_as_its_own_tokenizer_has_it(folder):
    grow(folder, [added("<|user|>", 15, special=True, normalized=False, lstrip=True)])
    token = read_added_token(folder, "<|user|>", 99)
    assert token == added("<|user|>", 99, special=True, normalized=False, lstrip=True)
    assert read_added_token(folder, "nowhere", 3) == added("nowhere", 3)


def test_files_of_older_releases_are_extended_too(tmp_path):
    (tmp_path / "added_tokens.json").write_text('{"<a>": 3}')
    decoder = {"3": {"content": "<a>", "lstrip": False, "normalized": False, "rstrip": False, "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder, "x": "\u00e9"}))
    (tmp_path / "special_tokens_map.json").write_text("{}")
    grow(tmp_path, [added("<b>", 4, special=True)])
    assert json.loads((tmp_path / "added_tokens.json").read_text()) == {"<a>": 3, "<b>": 4}
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["x"] == "\u00e9" and config["added_tokens_decoder"]["3"] == decoder["3"]
    assert config["added_tokens_decoder"]["4"]["content"] == "<b>" and config["added_tokens_decoder"]["4"]["special"]
    assert (tmp_path / "special_tokens_map.json").read_text() == "{}"
    assert read_added_token(tmp_path, "<a>", 7).settings["special"]


def test_a_configuration_without_a_list_of_tokens_is_copied(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 5}')
    assert with_tokens(tmp_path / "tokenizer_config.json", [added("<b>", 4)]) is None
