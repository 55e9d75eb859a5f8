import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glue_cli.foundation.errors import ResourceError
from glue_cli.foundation.json_text import as_json
from glue_cli.results.history import writing_history

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def refuse(word):
    raise AssertionError(word)


@given(ANY)
def test_the_result_is_strict_json_on_one_line(value):
    text = as_json(value)
    assert "\n" not in text
    json.loads(text, parse_constant=refuse)


def test_only_what_json_lacks_changes():
    assert as_json({"a": [1, 2.5, (math.nan, -math.inf)], "b": None, "c": True}) == (
        '{"a": [1, 2.5, [null, null]], "b": null, "c": true}'
    )


def test_history_lines_are_on_disk_at_once(tmp_path):
    path = tmp_path / "deep" / "h.jsonl"
    with writing_history(path, replace=False, command="mix") as write:
        assert path.read_text() == ""
        write({"step": 1, "loss": math.nan})
        assert json.loads(path.read_text()) == {"schema": "glue.history/1", "command": "mix", "step": 1, "loss": None}
        write({"step": 2})
        assert path.read_text().count("\n") == 2


def test_history_without_a_path_or_without_a_place(tmp_path):
    with writing_history(None, replace=False) as write:
        write({"step": 1})
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ResourceError, match="cannot be written"),
        writing_history(tmp_path / "file" / "h.jsonl", replace=False),
    ):
        pass
