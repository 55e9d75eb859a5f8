import json
import os
import resource
import signal
from pathlib import Path

import pytest

from glue_cli.foundation.errors import ResourceError, UsageError
from glue_cli.results.history import writing_history


def test_every_line_says_what_it_is_and_is_there_at_once(tmp_path):
    path = tmp_path / "new" / "h.jsonl"
    with writing_history(path, replace=False, command="mix") as write:
        for step in range(2):
            write({"step": step})
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            assert lines == [{"schema": "glue.history/1", "command": "mix", "step": s} for s in range(step + 1)]


def test_without_a_path_lines_go_nowhere():
    with writing_history(None, replace=False) as write:
        write({"step": 1})


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_names_the_file():
    with pytest.raises(ResourceError, match="'/dev/full' cannot be written: No space left") as caught:
        with writing_history(Path("/dev/full"), replace=True) as write:
            write({"step": 1})
    assert "--history" in caught.value.hint


@pytest.mark.parametrize("n_more", [0, 1, 40])
def test_a_line_that_has_no_room_leaves_no_part_of_itself(tmp_path, n_more):
    """A limit of a file's size works as a disk that is full in the middle of a line: as much as fits is written."""
    path = tmp_path / "history.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with writing_history(path, replace=False) as write:
            write({"step": 0})
            whole = path.read_bytes()
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + n_more, hard))
            with pytest.raises(ResourceError, match="File too large"):
                write({"step": 1, "alpha": [0.5] * 40})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert path.read_bytes() == whole


def test_of_two_runs_with_one_history_the_second_finds_it_taken(tmp_path):
    path = tmp_path / "h.jsonl"
    with writing_history(path, replace=False) as write:
        write({"step": 1})
    with pytest.raises(UsageError, match="another run has written the history '.*h.jsonl'") as caught:
        with writing_history(path, replace=False):
            raise AssertionError("not reached")
    assert "--force" in caught.value.hint and json.loads(path.read_text())["step"] == 1
    with writing_history(path, replace=True) as write:
        write({"step": 2})
    assert json.loads(path.read_text())["step"] == 2


@pytest.mark.parametrize(
    ("content", "is_replaced"),
    [
        ("", True),
        ('{"schema": "glue.history/1", "command": "mix", "step": 0}\n{"sche', True),
        ('{"schema": "glue.history/1", "command": "finetune", "epoch": 0}\n', False),
        ("my notes\n", False),
        ("[1]\n", False),
        ("\n\n", False),
    ],
)
@pytest.mark.parametrize("kept_bytes", [None, 0])
def test_a_resumed_run_replaces_histories_of_its_own_kind_alone(tmp_path, content, is_replaced, kept_bytes):
    path = tmp_path / "h.jsonl"
    path.write_text(content)
    how = {"resumes": True, "kept_bytes": kept_bytes, "command": "mix"}
    if not is_replaced:
        with pytest.raises(UsageError, match="h.jsonl' exists, and is no history of glue mix") as caught:
            with writing_history(path, replace=False, **how):
                raise AssertionError("not reached")
        assert "--force" in caught.value.hint and path.read_text() == content
    with writing_history(path, replace=not is_replaced, **how) as write:
        write({"step": 5})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [5]
