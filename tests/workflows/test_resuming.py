"""A run that is stopped between any two steps, and goes on, comes to the end of one that is not stopped."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from in_threads import Part, by_several

from glue_cli.checkpoints.run_state import SavedState, read_state, rows_file, rows_files, state_file, write_state
from glue_cli.checkpoints.run_state_rows import with_rows
from glue_cli.foundation.errors import UsageError
from glue_cli.foundation.progress import Noted
from glue_cli.foundation.saving import SaveEvery, Saving
from glue_cli.foundation.stopping import Lost, Stop, Stopped
from glue_cli.methods import SEARCHES
from glue_cli.plans.finetune import plan_finetune
from glue_cli.plans.mix import plan_mix
from glue_cli.plans.mix_records import Coefficients
from glue_cli.plans.outputs import Outputs
from glue_cli.plans.train_expert import plan_train_expert
from glue_cli.results.record import as_object
from glue_cli.workflows import keeper as keeper_module
from glue_cli.workflows import part_copies
from glue_cli.workflows.finetune import finetune
from glue_cli.workflows.keeper import Keeper
from glue_cli.workflows.mix.mix import mix
from glue_cli.workflows.resuming import keeping
from glue_cli.workflows.train_expert import train_expert

MIXES = {name: {"steps": 6, "validate_every": 2, "batch_size": 20} for name in SEARCHES} | {
    "paper": {"preset": "paper", "steps": 5, "validate_every": 2, "batch_size": 20},
    "budget": {"budget": "40", "batch_size": 20},
}


@pytest.fixture
def experts(make_spec, run, tmp_path):
    spec, paths = make_spec(), [tmp_path / f"e{k}.safetensors" for k in range(3)]
    for k, path in enumerate(paths):
        train_expert(plan_train_expert(spec, k, Outputs(path)), run)
    return paths


@pytest.fixture
def stop_at(monkeypatch):
    """Let a run be asked to stop at its checkpoint number n, as a signal would; None for never."""
    original, wanted = Keeper.checkpoint, {"n": None, "left": 0}

    def checkpoint(self, make_state):
        if wanted["n"] is not None:
            wanted["left"] -= 1
            if wanted["left"] == 0:
                self._run.stop.asked_by = signal.SIGTERM
        original(self, make_state)

    monkeypatch.setattr(Keeper, "checkpoint", checkpoint)

    def set_(n):
        wanted.update(n=n, left=n or 0)

    return set_


def outputs_in(folder, run):
    return Outputs(folder / "o.safetensors", run.history, resumes=run.saving.resumes)


def works(make_spec, experts):
    """Return functions that run a command into a folder, by name."""

    def training(folder, run):
        spec = make_spec(train={"epochs": 2, "batch_size": 20, "lr": 0.02, "augment": {"flip": True}})
        return train_expert(plan_train_expert(spec, 0, outputs_in(folder, run)), run)

    def tuning(folder, run, **settings):
        spec = make_spec(finetune={"epochs": 2, "batch_size": 40, **settings})
        plan = plan_finetune(spec, experts[0], outputs_in(folder, run), track_test=True)
        return finetune(plan, run)

    def mixing(folder, run, name):
        spec = make_spec(mix=MIXES[name])
        method = name if name in SEARCHES else "spsa"
        return mix(plan_mix(experts, outputs_in(folder, run), Coefficients(method), spec=spec), run)

    return {
        "train-expert": training,
        "finetune": lambda folder, run: tuning(folder, run, lr=0.02),
        "finetune, trial": tuning,
        "finetune, last": lambda folder, run: tuning(folder, run, lr=0.02, keep="last"),
        **{f"mix, {name}": lambda folder, run, name=name: mixing(folder, run, name) for name in MIXES},
    }


def outcome(folder, result):
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    told = as_object(result)
    told.pop("wall_s", None)
    told.pop("output")
    for passes in (told.get("cost") or {}, told.get("afterwards") or {}):
        passes.pop("wall_s", None)
        passes.pop("peak_bytes", None)
    return found, json.dumps(told, sort_keys=True)


NAMES = ["train-expert", "finetune", "finetune, trial", "finetune, last", *(f"mix, {name}" for name in MIXES)]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_is_stopped_again_and_again_comes_to_the_same_end(make_spec, run, experts, tmp_path, stop_at, name):
    work = works(make_spec, experts)[name]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    wanted = outcome(whole, work(whole, replace(run, history=whole / "h.jsonl")))
    stride, n_stops = (9 if name == "finetune, trial" else 2), 0
    while True:
        stop_at(stride)
        saving = Saving(resumes=True, every=SaveEvery(steps=1000))
        try:
            result = work(cut, replace(run, history=cut / "h.jsonl", saving=saving, stop=Stop()))
        except Stopped as stopped:
            n_stops += 1
            assert stopped.state == cut / ".o.safetensors.state" and stopped.state.exists()
            assert not (cut / "o.safetensors").exists()
        else:
            break
    assert n_stops >= 2
    assert outcome(cut, result) == wanted  # bytes of the checkpoint and of the history, and nothing left behind


def test_lines_behind_the_state_are_cut_from_the_history(make_spec, run, experts, tmp_path, stop_at):
    work, history = works(make_spec, experts)["train-expert"], tmp_path / "h.jsonl"
    run = replace(run, history=history)
    work(tmp_path, run)
    wanted = history.read_bytes()
    (tmp_path / "o.safetensors").unlink()
    history.unlink()
    stop_at(5)
    with pytest.raises(Stopped):
        work(tmp_path, replace(run, stop=Stop()))
    with open(history, "a") as file:
        file.write('{"of": "a step whose state was not saved"}\n{"cut')
    stop_at(None)
    work(tmp_path, replace(run, saving=Saving(resumes=True), stop=Stop()))
    assert history.read_bytes() == wanted


@pytest.fixture
def stopped(make_spec, run, experts, tmp_path, stop_at):
    """A training that was stopped, with its state."""
    stop_at(3)
    with pytest.raises(Stopped):
        works(make_spec, experts)["train-expert"](tmp_path, replace(run, stop=Stop()))
    stop_at(None)
    return tmp_path / ".o.safetensors.state"


def test_a_search_of_data_that_are_normalised_otherwise_is_another_run(make_spec, run, experts, tmp_path, stop_at):
    plan = {}
    for std in (0.5, 0.1):
        data = {"format": "safetensors", "root": "data", "mean": [0.5], "std": [std]}
        spec = make_spec(mix=MIXES["budget"], data=data)
        plan[std] = plan_mix(experts, outputs_in(tmp_path, run), Coefficients("spsa"), spec=spec)
    stop_at(2)
    with pytest.raises(Stopped):
        mix(plan[0.5], replace(run, stop=Stop()))
    stop_at(None)
    with pytest.raises(UsageError, match="that of another run") as refused:
        mix(plan[0.1], replace(run, saving=Saving(resumes=True), stop=Stop()))
    assert [text.split(":")[0] for text in refused.value.items] == ["train", "val"]


def resume(spec, run, tmp_path, expert=0, history=None):
    run = replace(run, saving=Saving(resumes=True), stop=Stop(), history=history)
    return train_expert(plan_train_expert(spec, expert, Outputs(tmp_path / "o.safetensors")), run)


def test_a_state_of_another_run_is_refused(make_spec, run, stopped, tmp_path, monkeypatch):
    train = {"epochs": 2, "batch_size": 20, "lr": 0.02, "augment": {"flip": True}}
    state = stopped.read_bytes()
    for sections, difference in (
        ({"train": {**train, "lr": 0.01}}, "settings.train.lr: 0.02 there, 0.01 here"),
        ({"train": train, "seed": 5}, "seed: 0 there, 5 here"),
        ({"train": train, "experts": {"count": 3, "size": 61}}, "settings.experts.size: 60 there, 61 here"),
        ({"train": train, "precision": "bf16"}, "precision: fp32 there, bf16 here"),
    ):
        with pytest.raises(UsageError, match="that of another run") as refused:
            resume(make_spec(**sections), run, tmp_path)
        assert difference in refused.value.items
    with pytest.raises(UsageError) as refused:
        resume(make_spec(train=train), run, tmp_path, expert=1)
    assert "name: expert-000 there, expert-001 here" in refused.value.items
    with pytest.raises(UsageError) as refused:
        resume(make_spec(train=train), run, tmp_path, history=tmp_path / "h.jsonl")
    assert refused.value.items == ("history: none there, one here",)
    assert stopped.read_bytes() == state
    resume(make_spec(train=train), run, tmp_path)
    assert not stopped.exists()


def test_without_resume_a_run_begins_and_says_what_was_there(make_spec, run, experts, stopped, tmp_path, events):
    works(make_spec, experts)["train-expert"](tmp_path, run)
    assert any("an earlier run has left the state" in getattr(event, "text", "") for event in events)
    assert not stopped.exists()


def test_how_often_a_state_is_saved(make_spec, run, experts, tmp_path, monkeypatch):
    work, saved, clock = works(make_spec, experts)["train-expert"], [], [0.0]

    def write_state(file, state):
        saved.append(state.state["n_steps"])
        clock[0] += 2.0  # seconds that it takes
        file.write_bytes(b"")

    def tick(self, make_state):
        clock[0] += 10.0
        original(self, make_state)

    original = Keeper.checkpoint
    monkeypatch.setattr(Keeper, "checkpoint", tick)
    monkeypatch.setattr(keeper_module, "write_state", write_state)
    monkeypatch.setattr(keeper_module.time, "monotonic", lambda: clock[0])
    for every, wanted in (
        (SaveEvery(steps=3), [3, 5]),  # 3 steps and an epoch's end, twice
        (SaveEvery(seconds=20), [2, 3, 5, 6]),
        (None, [3]),  # after 30 s; then not for 100, since it took 2
    ):
        saved.clear()
        folder = Path(tmp_path / str(every))
        folder.mkdir()
        work(folder, replace(run, saving=Saving(every=every), stop=Stop()))
        assert saved == wanted, every


class Killed(Exception):
    """Stands for the end of a process that says nothing to the others."""


@pytest.mark.parametrize("killed", [0, 1])
def test_when_a_process_is_lost_another_one_saves_the_state_before_that_step(run, tmp_path, killed):
    history, output = tmp_path / "h.jsonl", tmp_path / "o.safetensors"
    history.write_text("1\n")

    def work(ranks):
        state = {"alpha": torch.zeros(2), "n_steps": 1}
        own = replace(run, ranks=ranks, stop=Stop(), history=history if ranks.is_first else None)
        end = Killed if ranks.place.rank == killed else Lost
        with pytest.raises(end) as ended, keeping(output, own) as keeper, keeper.steps():
            if ranks.is_first:
                keeper.checkpoint_and_tell(lambda: state)
                state["alpha"] += 1
                history.write_text("1\n2\n")
            else:
                keeper.keep(*ranks.hear()["arguments"])
            raise end
        return getattr(ended.value, "state", None)

    states = by_several(2, work)
    saved = read_state(state_file(output))
    assert (saved.state["alpha"].tolist(), saved.state["n_steps"], saved.history_bytes) == ([0, 0], 1, 2)
    assert states[1 - killed] == state_file(output)
    assert {path.name for path in tmp_path.iterdir()} == {"h.jsonl", state_file(output).name}


def test_a_training_is_saved_by_any_process_with_the_length_of_the_history(run, tmp_path):
    history, output = tmp_path / "h.jsonl", tmp_path / "o.safetensors"

    def work(ranks):
        own = replace(run, ranks=ranks, stop=Stop(), history=history if ranks.is_first else None)
        end = Killed if ranks.is_first else Lost
        with pytest.raises(end), keeping(output, own) as keeper:
            with keeper.history(force=False) as write, keeper.steps():
                write({"epoch": 0})
                keeper.checkpoint(lambda: {"n_steps": 0})
                keeper.checkpoint(lambda: {"n_steps": 1})
                write({"epoch": 1})  # not yet part of a state
                raise end

    by_several(2, work)
    saved = read_state(state_file(output))
    assert saved.state == {"n_steps": 1}
    assert saved.history_bytes == len(history.read_bytes().splitlines(keepends=True)[0]) < len(history.read_bytes())


@pytest.mark.parametrize("killed", range(4))
def test_of_several_machines_each_saves_its_rows_and_all_go_on_from_them(run, tmp_path, killed, monkeypatch):
    monkeypatch.setattr(part_copies, "_SHARE", float("inf"))  # however short these steps are
    output, whole = tmp_path / "o.safetensors", torch.arange(12.0).view(6, 2)

    def state(ranks, step):
        return {"n_steps": step, "weight": Part(whole + step, ranks)}

    def work(ranks):
        own = replace(run, ranks=ranks, stop=Stop())
        end = Killed if ranks.place.rank == killed else Lost
        with pytest.raises(end), keeping(output, own) as keeper:
            keeper.needs_all = True
            keeper.begin(seed=1)
            with keeper.steps():
                keeper.checkpoint(lambda: state(ranks, 1))
                keeper.checkpoint(lambda: state(ranks, 2))
                raise end

    by_several(4, work, a_machine=2)
    assert len(rows_files(state_file(output))) == 2 and not state_file(output).exists()

    def go_on(ranks):
        own = replace(run, ranks=ranks, stop=Stop(), saving=Saving(resumes=True))
        with keeping(output, own) as keeper:
            keeper.begin(seed=1)
            return keeper.state["n_steps"] == 2 and torch.equal(keeper.state["weight"], whole + 2)

    assert all(by_several(3, go_on))
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("of_first", [None, 3, 8])
def test_without_a_shared_disk_all_go_on_from_the_state_that_is_furthest_on(run, tmp_path, of_first):
    alphas = {rank: torch.tensor([0.1 + rank, float("nan")], dtype=torch.float64) for rank in range(3)}
    n_made = {0: of_first, 1: None, 2: 5}
    for rank, n in n_made.items():
        (tmp_path / str(rank)).mkdir()
        if n is not None:
            saved = SavedState({"alpha": alphas[rank]}, {"seed": 1}, "fp32", 1, 17, n)
            write_state(state_file(tmp_path / str(rank) / "o"), saved)

    def work(ranks):
        own = replace(run, ranks=ranks, stop=Stop(), saving=Saving(resumes=True))
        with keeping(tmp_path / str(ranks.place.rank) / "o", own) as keeper:
            return keeper.state["alpha"], keeper.history_bytes

    wanted = alphas[0] if of_first == 8 else alphas[2]
    for alpha, history_bytes in by_several(3, work):
        assert torch.equal(alpha[:1], wanted[:1]) and alpha.dtype == torch.float64 and history_bytes == 17
    assert not [*tmp_path.glob("0/.*")]


def test_the_state_of_another_run_on_another_machine_is_left_alone(run, tmp_path):
    for rank, seed in enumerate((1, 2)):
        (tmp_path / str(rank)).mkdir()
        saved = SavedState({"rank": rank}, {"seed": seed}, None, 1, None, 1 + rank)
        write_state(state_file(tmp_path / str(rank) / "o"), saved)

    def work(ranks):
        own = replace(run, ranks=ranks, stop=Stop(), saving=Saving(resumes=True))
        with keeping(tmp_path / str(ranks.place.rank) / "o", own) as keeper:
            return keeper.state["rank"]

    assert by_several(2, work) == [0, 0]


def test_rows_that_are_not_whole_are_told_before_a_run_begins_again(run, tmp_path, events):
    output = tmp_path / "o.safetensors"
    state = with_rows({"n_steps": 3}, {"weight": torch.ones(2, 2)})
    file = rows_file(state_file(output), range(2), 4)
    write_state(file, SavedState(state, {"seed": 1}, "fp32", 1, None, 3))
    with keeping(output, replace(run, saving=Saving(resumes=True), stop=Stop())) as keeper:
        assert keeper.state is None
    [note] = [event for event in events if isinstance(event, Noted)]
    assert note.warning and "is not whole" in note.text and file.name in note.text
