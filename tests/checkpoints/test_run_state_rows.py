import pytest
import torch

from glue_cli.checkpoints.run_state import (
    SavedState,
    forget_run,
    is_saved,
    remove_rows,
    rows_file,
    state_file,
    write_state,
)
from glue_cli.checkpoints.run_state_rows import read_furthest, with_rows

WHOLE = torch.arange(10.0).view(5, 2)
OF_FOUR = {range(0, 1): WHOLE[:2], range(1, 4): WHOLE[2:]}


@pytest.fixture
def file(tmp_path):
    return state_file(tmp_path / "a[1].safetensors")  # as a pattern, its name would be that of another file


def saved(state, n_made, **identity):
    return SavedState(state, {"seed": 1, **identity}, "fp32", 2, 17, n_made)


def write_rows(file, n_made, parts=OF_FOUR, size=4, **identity):
    for processes, rows in parts.items():
        state = with_rows({"epoch": 3, "mean": torch.ones(2)}, {"weight": rows})
        write_state(rows_file(file, processes, size), saved(state, n_made, **identity))


def test_rows_of_all_machines_are_a_state(file):
    assert read_furthest(file) is None and not is_saved(file)
    write_rows(file, 9)
    found = read_furthest(file)
    assert is_saved(file) and torch.equal(found.state.pop("weight"), WHOLE)
    assert torch.equal(found.state.pop("mean"), torch.ones(2)) and found.state == {"epoch": 3}
    assert (found.identity, found.precision, found.threads, found.history_bytes, found.n_made) == (
        {"seed": 1},
        "fp32",
        2,
        17,
        9,
    )


@pytest.mark.parametrize(("n_made", "wanted"), [(8, "rows"), (7, "file"), (6, "file")])
def test_the_state_that_is_further_on_counts(file, n_made, wanted):
    write_state(file, saved({"weight": torch.zeros(5, 2)}, 7))
    write_rows(file, n_made)
    assert torch.equal(read_furthest(file).state["weight"], WHOLE if wanted == "rows" else torch.zeros(5, 2))


def test_rows_of_a_machine_that_is_gone_or_was_at_another_moment_are_missing(file):
    write_state(file, saved({"weight": torch.zeros(5, 2)}, 3))
    first, last = OF_FOUR.items()
    for others in ([], [(4, {})], [(5, {"seed": 2})], [(5, {"size": 3})]):
        write_rows(file, 5, dict([first]))
        for n_made, how in others:
            write_rows(file, n_made, dict([last]), **how)
        assert read_furthest(file).n_made == 3
        remove_rows(file)
    write_rows(file, 5)
    rows_file(file, range(1, 4), 4).write_bytes(b"half of it")
    assert read_furthest(file).n_made == 3


def test_rows_go_with_the_run(file):
    write_rows(file, 5)
    other = file.with_name(f"{file.name}.of-old-to-new-of-4")
    other.touch()
    forget_run(file.with_name("a[1].safetensors"))
    assert [*file.parent.iterdir()] == [other]
