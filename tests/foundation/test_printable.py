import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from glue_cli.foundation.printable import printable, shown


def test_what_is_shown_is_cut_in_the_middle():
    assert shown("short") == "short" and shown([1, 2]) == "[1, 2]"
    found = shown("a" * 1_000_000 + "end")
    assert len(found) < 250 and found.endswith("aend") and "999,803 characters" in found


def test_nothing_that_moves_a_terminal_is_printable():
    assert printable("a\x1b[2J\rb\nc\x9bd\u202ee\udce9") == "a\\x1b[2J\\rb\\nc\\x9bd\\u202ee\\udce9"
    assert printable("Zoë/ß 中文 😀.safetensors") == "Zoë/ß 中文 😀.safetensors"


@given(st.text(st.characters(), max_size=50))
def test_every_control_character_is_written_out(text):
    found = printable(text)
    assert not [c for c in found if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert all(c in found for c in text if c.isalnum())
