import json
import os
from pathlib import Path

import pytest

from glue_cli.foundation.errors import ResourceError
from glue_cli.results.history import writing_history


def test_every_line_says_what_it_is_and_is_there_at_once(tmp_path):
    path = tmp_path / "new" / "h.jsonl"
    with writing_history(path, command="mix") as write:
        for step in range(2):
            write({"step": step})
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            assert lines == [{"schema": "glue.history/1", "command": "mix", "step": s} for s in range(step + 1)]


def test_without_a_path_lines_go_nowhere():
    with writing_history(None) as write:
        write({"step": 1})


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_names_the_file():
    with pytest.raises(ResourceError, match="'/dev/full' cannot be written: No space left") as caught:
        with writing_history(Path("/dev/full")) as write:
            write({"step": 1})
    assert "--history" in caught.value.hint
