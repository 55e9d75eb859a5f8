"""Several processes by torchrun: the same results, one voice, and one end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from glue_cli.checkpoints.run_state import read_state, rows_files, state_file
from glue_cli.checkpoints.run_state_rows import read_furthest

LAUNCHER = [sys.executable, "-m", "torch.distributed.run"]
TIMEOUT_S = 300  # generous: the machine may be busy
EXPERT = "experts/expert-000.safetensors"
MIX = ["mix", "--method", "spsa", EXPERT, "experts/expert-001.safetensors"]


class Job:
    """A glue in several processes."""

    def __init__(self, n, *arguments, program=("-m", "glue_cli"), place=("--standalone",)):
        self.popen = subprocess.Popen(
            [*LAUNCHER, *place, "--nproc-per-node", str(n), *program, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    @property
    def processes(self):
        """The process numbers of the ranks, in their order."""
        children = Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children").read_text().split()
        by_rank = {}
        for child in map(int, children):
            variables = dict(
                pair.split("=", 1) for pair in Path(f"/proc/{child}/environ").read_text().split("\0") if "=" in pair
            )
            if "RANK" in variables:
                by_rank[int(variables["RANK"])] = child
        return [by_rank[rank] for rank in sorted(by_rank)]

    def end(self):
        """Return the launcher's exit code, stdout, and what glue itself said on stderr."""
        out, err = self.popen.communicate(timeout=TIMEOUT_S)
        self.err = err
        said = [line for line in err.splitlines() if line.startswith(("error:", "hint:", "warning:", "Traceback"))]
        return self.popen.returncode, out, [line for line in said if not line.startswith("Traceback")]


@pytest.fixture
def start():
    started = []

    def start(*arguments, **named):
        started.append(Job(*arguments, **named))
        return started[-1]

    yield start
    for job in started:
        if job.popen.poll() is None:
            os.killpg(job.popen.pid, signal.SIGKILL)
        job.popen.communicate()


def result_of(job):
    code, out, said = job.end()
    assert (code, said, out.count("\n")) == (0, [], 1), (code, out, said)
    return json.loads(out)


def apart(path, other):
    """Return the largest difference between two checkpoints, relative to the largest number of each tensor."""
    one, two = load_file(path), load_file(other)
    assert one.keys() == two.keys()
    return max(
        ((one[name].double() - two[name].double()).abs().max() / one[name].double().abs().max().clamp_min(1e-9)).item()
        for name in one
    )


def test_alpha_does_not_depend_on_the_number_of_processes(here, glue, start):
    """With half of the search by the blended statistics of BatchNorm, half by those of the batch, and a guard."""
    options = [*MIX, "experts/expert-002.safetensors", "--budget", "120", "--explain", "--json", "-q"]
    alone = glue(*options, "-o", "alone.safetensors", code=0).json
    found = {n: result_of(start(n, *options, "-o", f"{n}.safetensors")) for n in (1, 2, 4)}
    assert len({str(alpha) for alpha in alone["alpha"]}) > 1
    for n, result in found.items():
        assert result["alpha"] == found[1]["alpha"], n
        assert result["alpha"] == pytest.approx(alone["alpha"], abs=1e-6)
        assert result["loss"]["val"] == pytest.approx(alone["loss"]["val"], rel=1e-5)
        for same in ("forwards", "backwards", "examples", "validation_forwards"):
            assert result["cost"][same] == alone["cost"][same]
        assert result["left_out"] == found[1]["left_out"]
        assert apart(here / f"{n}.safetensors", here / "1.safetensors") == 0
    assert not [path for path in here.rglob("*") if "state" in path.name or path.name.endswith((".tmp", ".lock"))]


def test_experts_that_are_held_together_give_the_same_alpha(here, start):
    """With statistics of both kinds, and a guard; of two processes, because all of them do not fit one."""
    line = [*MIX, "experts/expert-002.safetensors", "--budget", "60", "--json"]
    wanted = result_of(start(1, *line, "-q", "-o", "1.safetensors"))
    size = sum((here / f"experts/expert-00{k}.safetensors").stat().st_size for k in range(3))
    job = start(2, *line, "--memory", f"{size - 5000}B", "-o", "2.safetensors")
    out, err = job.popen.communicate(timeout=TIMEOUT_S)
    assert job.popen.returncode == 0 and "a share in the memory of each of 2 processes" in err
    for n, found in (
        (2, json.loads(out)),
        (4, result_of(start(4, *line, "-q", "--bank", "sharded", "-o", "4.safetensors"))),
    ):
        assert (found["alpha"], found["loss"]) == (wanted["alpha"], wanted["loss"])
        assert apart(here / f"{n}.safetensors", here / "1.safetensors") == 0


@pytest.mark.parametrize("bank", ["sharded", "streamed"])
def test_experts_used_block_by_block_give_the_same_alpha_in_bfloat16(here, start, bank):
    """Where the reach of a step is measured first."""
    line = [*MIX, "--budget", "40", "--set", "mix.search=plain", "--precision", "bf16", "--json", "-q"]
    wanted = result_of(start(1, *line, "-o", "1.safetensors"))["alpha"]
    assert result_of(start(2, *line, "--bank", bank, "-o", "2.safetensors"))["alpha"] == wanted


def test_shards_are_refused_where_they_cannot_be(here, glue, start):
    glue(*MIX, "--bank", "sharded").refused(2, "--bank sharded is for several processes", "torchrun")
    line = ["mix", "--method", "fullgrad", *MIX[3:], "--bank", "sharded", "-o", "p.safetensors"]
    code, out, said = start(2, *line).end()
    assert (code != 0, out, len(said)) == (True, "", 2) and said[0].startswith("error: --method fullgrad needs")


def test_experts_are_evaluated_together(here, glue, start):
    line = ["mix", "--method", "proxy", *MIX[3:], "--json", "-q"]
    alone = glue(*line, "-o", "alone.safetensors", code=0).json
    several = result_of(start(2, *line, "-o", "several.safetensors"))
    for same in ("alpha", "val_accuracies"):
        assert several[same] == pytest.approx(alone[same], abs=1e-6)


@pytest.mark.parametrize(
    "how",
    [
        ["--method", "uniform"],
        ["--method", "proxy"],
        ["--method", "spsa", "--set", "mix.search=plain", "--set", "objective=f1"],
    ],
    ids=["uniform", "proxy", "spsa by F1"],
)
def test_statistics_are_taken_together(here, glue, start, how):
    """Of all training data, once alpha is chosen; the bytes are the same without a launcher."""
    line = ["mix", *how, *MIX[3:], "--batchnorm", "refresh", "--json", "-q"]
    alone = glue(*line, "-o", "alone.safetensors", code=0).json
    for n in (2, 3):
        found = result_of(start(n, *line, "-o", f"{n}.safetensors"))
        assert found["alpha"] == pytest.approx(alone["alpha"], abs=1e-6)
        for key in ("forwards", "validation_forwards", "examples"):
            assert found["cost"][key] == alone["cost"][key]
        assert apart(here / f"{n}.safetensors", here / "alone.safetensors") < (1e-9 if "uniform" in how else 1e-5)
    assert apart(here / "2.safetensors", here / "3.safetensors") == 0
    glue("mix", "--like", "2.safetensors", *MIX[3:], "-q", "-o", "again.safetensors", code=0)
    assert (here / "again.safetensors").read_bytes() == (here / "2.safetensors").read_bytes()


def test_training_and_evaluation_are_those_of_one_process_up_to_rounding(here, glue, start):
    lines = {
        "e.safetensors": ["train-expert", "--expert", "0", "--set", "train.epochs=2"],
        "f.safetensors": ["finetune", EXPERT, "--set", "finetune.epochs=2"],
    }
    for output, line in lines.items():
        glue(*line, "-o", f"1{output}", "-q", code=0)
        result_of(start(2, *line, "-o", f"2{output}", "--json", "-q"))
        assert 0 < apart(here / f"1{output}", here / f"2{output}") < 1e-3
        assert apart(here / f"1{output}", here / EXPERT) > 0.05
    figures = ["evaluate", EXPERT, "1e.safetensors", "--metric", "f1", "--compare", "1f.safetensors", "--json", "-q"]
    alone = glue(*figures)
    code, out, said = start(3, *figures, "-o", "e.json").end()
    assert alone.code == 6 and code != 0  # the launcher's own
    assert out == alone.out == (here / "e.json").read_text()
    assert [line for line in alone.err.splitlines() if line.startswith(("error", "hint"))] == said
    assert len(said) == 2 and said[0].startswith("error: a checkpoint is worse") and said[1].startswith("hint:")


IN_LITTLE_MEMORY = """
from glue_cli.workflows import spreading

spreading.usable_memory = lambda device: 1000
from glue_cli.cli.app import run

run()
"""


def test_a_model_that_does_not_fit_one_process_is_trained_by_parts(here, start):
    (here / "little.py").write_text(IN_LITTLE_MEMORY)
    little = {"program": ("little.py",)}
    line = ["finetune", EXPERT, "--set", "finetune.epochs=2", "--json"]
    whole = result_of(start(2, *line, "-q", "-o", "whole.safetensors"))
    job = start(3, *line, "-o", "parts.safetensors", **little)
    out, err = job.popen.communicate(timeout=TIMEOUT_S)
    assert job.popen.returncode == 0 and "each of 3 holds a part" in err, err
    for one, other in zip(json.loads(out)["history"], whole["history"], strict=True):
        assert one["val_loss"] == pytest.approx(other["val_loss"], rel=1e-4)
    assert apart(here / "parts.safetensors", here / "whole.safetensors") < 1e-3

    line = ["train-expert", "--expert", "0", "--set", "train.epochs=6", "--set", "train.batch_size=4", "--json", "-q"]
    result_of(start(1, *line, "-o", "w.safetensors"))
    history, output = here / "h.jsonl", "p.safetensors"
    line += ["-o", output, "--history", str(history), "--resume"]
    job = start(2, *line, "--save-every", "3", **little)
    while lines_of(history) < 2:
        assert job.popen.poll() is None, job.end()
        time.sleep(0.01)
    os.kill(job.popen.pid, signal.SIGTERM)
    job.end()
    assert saved(here).exists() and 2 <= lines_of(history) < 6
    assert all(
        tensor.shape == load_file("w.safetensors")[name].shape for name, tensor in weights_in(saved(here)).items()
    )
    result_of(start(3, *line, **little))
    assert lines_of(history) == 6 and apart(here / output, here / "w.safetensors") < 1e-2
    assert load_file(output).keys() == load_file("w.safetensors").keys()


def weights_in(state):
    """Return the model's tensors in a saved state."""
    tensors = read_state(state).state
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}


def saved(here):
    return state_file(here / "p.safetensors")


def lines_of(path):
    return path.read_text().count("\n") if path.exists() else 0


ENDLESS = ["--set", "mix.steps=1000000", "--set", "mix.patience=1000000", "--set", "mix.search=plain"]


def is_running(process):
    """Tell whether a process runs; one that has ended may wait for its parent to take notice."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


WHO = {
    "launcher": "SIGTERM",
    "launcher, killed": "SIGKILL",
    "last": "SIGUSR1",
    "first, killed": "SIGKILL",
    "last, killed": "SIGKILL",
}


@pytest.mark.parametrize("who", WHO)
def test_a_signal_to_any_process_ends_all_of_them_with_the_state_saved(here, start, who):
    history = here / "h.jsonl"
    job = start(2, *MIX, *ENDLESS, "-o", "p.safetensors", "--history", history, "--save-every", "3", "--json", "-q")
    end = time.monotonic() + TIMEOUT_S
    while lines_of(history) < 8:
        assert job.popen.poll() is None, job.end()
        assert time.monotonic() < end
        time.sleep(0.02)
    processes = job.processes
    assert len(processes) == 2
    target = job.popen.pid if "launcher" in who else processes[-1 if "last" in who else 0]
    os.kill(target, getattr(signal, WHO[who]))
    code, out, said = job.end()
    assert code not in (0, 75) and out == ""
    while any(map(is_running, processes)):  # orphans end a moment after their output does
        assert time.monotonic() < end
        time.sleep(0.02)
    by = "SIGHUP" if who == "launcher, killed" else "the end of another process" if "killed" in who else WHO[who]
    assert len(said) == 2 and said[0].startswith(f"error: stopped by {by}") and "--resume" in said[1], job.err
    assert str(saved(here).name) in said[0]
    steps = read_state(saved(here)).state["n_steps"]
    # The last whole step; the first process may be killed before it has told the other one.
    assert lines_of(history) - 1 - (who == "first, killed") <= steps <= lines_of(history) - 1
    assert {path.name for path in here.iterdir() if path.name.startswith(".")} <= {
        saved(here).name,
        f"{saved(here).name}.lock",  # of a process that was killed
    }
    assert not (here / "p.safetensors").exists()


@pytest.mark.parametrize("rank", range(3))
def test_a_search_goes_on_from_the_last_whole_step_whichever_process_is_killed(here, start, rank):
    """With statistics of both kinds and a guard; nothing is saved by the clock."""
    line = [*MIX, "experts/expert-002.safetensors", "--set", "mix.steps=40", "--set", "mix.patience=1000"]
    line += ["--json", "-q", "--history"]
    wanted = result_of(start(1, *line, "w.jsonl", "-o", "w.safetensors"))
    n_before = lines_of(here / "w.jsonl")
    line += ["h.jsonl", "-o", "p.safetensors", "--save-every", "1h", "--resume"]
    job = start(3, *line)
    while lines_of(here / "h.jsonl") < 6:
        assert job.popen.poll() is None, job.end()
        time.sleep(0.01)
    os.kill(job.processes[rank], signal.SIGKILL)
    code, out, said = job.end()
    assert (code != 0, out) == (True, "") and said[0].startswith("error: stopped by the end of another process"), said
    n_lines = lines_of(here / "h.jsonl")
    kept = (here / "h.jsonl").read_bytes()[: read_state(saved(here)).history_bytes].count(b"\n")
    assert n_lines - 1 <= kept <= n_lines < n_before
    found = result_of(start(3, *line))
    assert (found["alpha"], found["loss"]) == (wanted["alpha"], wanted["loss"])
    assert found["cost"]["forwards"] == wanted["cost"]["forwards"]
    assert lines_of(here / "h.jsonl") == n_before
    assert apart(here / "p.safetensors", here / "w.safetensors") == 0
    assert not [path for path in here.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("rank", range(2))
@pytest.mark.parametrize("in_parts", [False, True])
def test_a_training_whose_process_is_killed_goes_on_from_the_last_whole_step(here, start, rank, in_parts):
    """To what an uninterrupted one comes to: neither a weight nor a statistic of BatchNorm is ahead of the others."""
    history = here / "h.jsonl"
    (here / "little.py").write_text(IN_LITTLE_MEMORY)
    how = {"program": ("little.py",)} if in_parts else {}
    line = ["train-expert", "--expert", "0", "--set", "train.epochs=15", "--set", "train.batch_size=4", "--json", "-q"]
    result_of(start(2, *line, "-o", "w.safetensors", **how))
    line += ["-o", "p.safetensors", "--history", str(history), "--resume"]
    job = start(2, *line, **how)
    while lines_of(history) < 2:  # of steps in parts that are so short, not every one is copied
        assert job.popen.poll() is None, job.end()
        time.sleep(0.01)
    os.kill(job.processes[rank], signal.SIGKILL)
    _, _, said = job.end()
    assert said and said[0].startswith("error: stopped by the end of another process"), job.err
    state = read_state(saved(here)).state
    assert 20 <= state["n_steps"] < 20 * 15
    result_of(start(2, *line, **how))
    assert lines_of(history) == 15 and apart(here / "p.safetensors", here / "w.safetensors") < 1e-6


KILLED_AFTER_A_LINE = """
import os, signal
from glue_cli.results import history

append = history._append

def append_and_die(descriptor, line):
    append(descriptor, line)
    if os.fstat(descriptor).st_size > 3 * len(line):
        os.kill(os.getpid(), signal.SIGKILL)

history._append = append_and_die
from glue_cli.cli.app import run

run()
"""


def test_the_first_process_is_killed_before_the_others_know_of_a_line_that_it_wrote(here, start):
    (here / "dying.py").write_text(KILLED_AFTER_A_LINE)
    history = here / "h.jsonl"
    line = ["train-expert", "--expert", "0", "--set", "train.epochs=6", "--set", "train.batch_size=4", "--json", "-q"]
    result_of(start(2, *line, "-o", "w.safetensors"))
    line += ["-o", "p.safetensors", "--history", str(history), "--save-every", "1h", "--resume"]
    start(2, *line, program=("dying.py",)).end()
    n_kept = history.read_bytes()[: read_state(saved(here)).history_bytes].count(b"\n")
    assert n_kept == lines_of(history) - 1 > 1
    result_of(start(2, *line))
    assert [json.loads(one)["epoch"] for one in history.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]
    assert apart(here / "p.safetensors", here / "w.safetensors") < 1e-6


def test_of_two_machines_each_saves_the_part_that_it_holds(here, start):
    """Two processes on each; where one is killed, the job goes on from the last whole step nevertheless."""
    (here / "little.py").write_text(IN_LITTLE_MEMORY)
    history = here / "h.jsonl"
    line = ["train-expert", "--expert", "0", "--set", "train.epochs=15", "--set", "train.batch_size=4", "--json", "-q"]
    line += ["-o", "p.safetensors", "--history", str(history), "--save-every", "1h", "--resume"]

    def on_two(port):
        at = ("--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(port), "--node-rank")
        return [start(2, *line, program=("little.py",), place=(*at, str(node))) for node in range(2)]

    jobs = on_two(free_port())
    while lines_of(history) < 2:
        assert all(job.popen.poll() is None for job in jobs), [job.end() for job in jobs]
        time.sleep(0.01)
    os.kill(jobs[1].processes[0], signal.SIGKILL)
    assert all(job.end()[0] for job in jobs)
    assert len(rows_files(saved(here))) == 2 and not saved(here).exists()
    assert 20 <= read_furthest(saved(here)).state["n_steps"] < 20 * 15
    first, other = on_two(free_port())
    assert (result_of(first)["output"], other.end()[0]) == ("p.safetensors", 0)
    assert lines_of(history) == 15
    assert not [path for path in here.iterdir() if path.name.startswith(".") and not path.name.endswith(".lock")]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_a_stopped_job_goes_on_with_another_number_of_processes(here, glue, start):
    options = ["--set", "mix.search=plain", "--set", "mix.steps=60", "--set", "mix.patience=1000", "--json", "-q"]
    wanted = glue(*MIX, *options, "-o", "w.safetensors", code=0).json["alpha"]
    history = here / "h.jsonl"
    line = [*MIX, *options, "-o", "p.safetensors", "--history", str(history), "--resume"]
    job = start(2, *line)
    while lines_of(history) < 5:
        assert job.popen.poll() is None, job.end()
        time.sleep(0.01)
    os.kill(job.popen.pid, signal.SIGTERM)
    job.end()
    before = lines_of(history)
    assert saved(here).exists() and before < 60
    found = result_of(start(3, *line))["alpha"]
    assert found == pytest.approx(wanted, abs=1e-6) and lines_of(history) > before
    assert result_of(start(2, *line))["output"] == "p.safetensors"  # there is nothing left to do


def test_what_one_process_alone_finds_wrong_is_said_once(here, start):
    broken = {name: tensor.clone() for name, tensor in load_file(EXPERT).items()}
    broken["head.weight"][0, 0] = torch.nan
    save_file(broken, here / "broken.safetensors")
    code, out, said = start(2, *MIX, "broken.safetensors", "-o", "p.safetensors", "-q").end()
    assert code != 0 and out == "" and not (here / "p.safetensors").exists()
    assert len([line for line in said if line.startswith("error:")]) == 1 and "broken.safetensors" in said[0]
    code, out, said = start(2, "mix", "--method", "spsa", "none.safetensors").end()  # before torch is imported
    assert (code != 0, out, len([line for line in said if line.startswith("error:")])) == (True, "", 1)


def test_what_needs_no_help_is_done_by_the_first_process_alone(here, start):
    code, out, said = start(3, "mix", "--alpha", "0.5,0.5", *MIX[3:], "-o", "p.safetensors", "--json").end()
    assert (code, said) == (0, []) and json.loads(out)["alpha"] == [0.5, 0.5]
