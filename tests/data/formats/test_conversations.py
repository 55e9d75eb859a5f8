import pytest

from glue_cli.data.formats.conversations import read_conversation
from glue_cli.foundation.errors import DataError


@pytest.mark.parametrize("who", ["assistant", "gpt", "model", "bot"])
@pytest.mark.parametrize("keys", [("role", "content"), ("from", "value")])
def test_whoever_replies_is_the_assistant(who, keys):
    said = [dict(zip(keys, pair, strict=True)) for pair in (("user", "is it?"), (who, "It is."))]
    wanted = [{"role": "user", "content": "is it?"}, {"role": "assistant", "content": "It is."}]
    assert read_conversation(said, "here") == wanted


def test_a_text_in_parts_is_one():
    parts = [{"type": "text", "text": "It "}, {"type": "text", "text": "is."}]
    assert read_conversation([{"role": "model", "content": parts}], "here")[0]["content"] == "It is."
    assert read_conversation([{"role": "assistant", "content": None, "tool_calls": [1]}], "here")[0]["content"] == ""


def test_what_is_no_text_is_told():
    with pytest.raises(DataError, match=r"here, message 0 .*wanted text"):
        read_conversation([{"role": "user", "content": [{"type": "image", "url": "a.png"}]}], "here")
