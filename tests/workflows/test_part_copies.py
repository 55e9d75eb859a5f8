"""Copies of parts of tensors, as processes hold them that train a model together; the processes are threads here."""

import pytest
import torch
from in_threads import Part, by_several

from glue_cli.checkpoints.run_state import SavedState, rows_file, rows_files, write_state
from glue_cli.checkpoints.run_state_rows import read_furthest
from glue_cli.workflows import part_copies
from glue_cli.workflows.part_copies import PartCopies

WHOLE = {"a": torch.arange(35.0).view(5, 7), "b": torch.arange(4).to(torch.bfloat16), "c": torch.ones(1, 3)}


class Killed(Exception):
    """Stands for the end of a process."""


def killed():
    raise Killed


def state_of(ranks, step):
    parts = {name: Part(tensor + step, ranks) for name, tensor in WHOLE.items()}
    return {"step": step, "mean": torch.tensor([float(step)]), **parts}


def is_whole(state, step):
    tensors = all(torch.equal(state[name], tensor + step) for name, tensor in WHOLE.items())
    return tensors and state["step"] == state["mean"].item() == step


@pytest.mark.parametrize("n", [2, 3, 7])
def test_any_process_has_the_last_two_steps_of_all(n):
    def work(ranks):
        copies = PartCopies(ranks)
        taken = []
        for step in range(4):
            state = state_of(ranks, step)
            taken.append(copies.take(state))
            state["mean"] += 1  # as the training goes on
            ranks.gather([])
        found = [taken[step]() for step in (2, 3)]
        return all(is_whole(state, step) for state, step in zip(found, (2, 3), strict=True))

    assert all(by_several(n, work))


def test_of_several_machines_each_has_its_rows(tmp_path):
    file = tmp_path / ".p.state"

    def work(ranks):
        copies = PartCopies(ranks)
        taken = copies.take(state_of(ranks, 3))
        ranks.gather([])
        assert copies.has_room and not copies.are_of_all
        if ranks.place.local_rank == 1:
            saved = SavedState(taken(), {"seed": 1}, "fp32", 1, None, 7)
            write_state(rows_file(file, copies.processes, ranks.size), saved)

    by_several(6, work, a_machine=2)
    assert [path.name for path in rows_files(file)] == [f".p.state.of-{k}-to-{k + 1}-of-6" for k in (0, 2, 4)]
    found = read_furthest(file)
    assert is_whole(found.state, 3) and (found.n_made, found.state.keys()) == (7, {"step", "mean", *WHOLE})


def test_where_each_machine_has_one_process_copies_are_of_no_use():
    def work(ranks):
        copies = PartCopies(ranks)
        return copies.take(state_of(ranks, 0)) is None and not copies.has_room

    assert all(by_several(2, work, a_machine=1))


def test_a_process_killed_in_the_middle_of_a_copy_leaves_the_one_before():
    def work(ranks):
        copies = PartCopies(ranks)
        before = copies.take(state_of(ranks, 0))
        state = state_of(ranks, 1)
        ranks.gather([])
        if ranks.place.rank == 1:
            state["b"].to_local = killed  # with "a" copied already
            with pytest.raises(Killed):
                copies.take(state)
        else:
            copies.take(state)
        ranks.gather([])
        return is_whole(before(), 0)

    assert all(by_several(3, work))


def test_what_is_new_in_a_state_finds_room():
    def work(ranks):
        copies = PartCopies(ranks)
        first = copies.take({"a": Part(WHOLE["a"], ranks)})
        ranks.gather([])
        copies.take(state_of(ranks, 1))
        found = copies.take(state_of(ranks, 2))
        ranks.gather([])
        return torch.equal(first()["a"], WHOLE["a"]) and is_whole(found(), 2)

    assert all(by_several(2, work))


def test_without_memory_there_are_none(monkeypatch):
    monkeypatch.setattr(part_copies, "usable_memory", lambda device: 100)

    def work(ranks):
        copies = PartCopies(ranks)
        return copies.take(state_of(ranks, 0)) is None and not copies.has_room

    assert all(by_several(2, work))


def test_short_steps_are_not_all_copied(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(part_copies.time, "monotonic", lambda: clock[0])

    def work(ranks):
        copies, state = PartCopies(ranks), state_of(ranks, 0)
        own = state["a"].to_local()

        def slow():
            clock[0] += 1.0
            return own

        state["a"].to_local = slow
        assert copies.is_due
        copies.take(state)
        took, due = clock[0], []
        for clock[0] in (2 * took, 5 * took, 7 * took):
            due.append(copies.is_due)
        return due

    assert by_several(1, work) == [[False, False, True]]
