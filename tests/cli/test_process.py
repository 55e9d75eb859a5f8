"""What only a process of its own shows: start-up, signals, pipes, and a stdout that is closed or full."""

import json
import os
import pstats
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXPERT_0 = "experts/expert-000.safetensors"
GLUE = [sys.executable, "-m", "glue_cli"]
TIMEOUT_S = 200  # generous: the machine may be busy


def run(*arguments, **options):
    return subprocess.run([*GLUE, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, **options)


def wait_until(condition, process):
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_main_job_needs_no_extra(here, experts):
    commands = [["mix", "--method", method, *experts, "-f"] for method in ("proxy", "fullgrad", "spsa", "greedy")]
    commands += [["mix", "--method", "spsa", *experts, "--bank", "streamed", "-f"], ["finetune", "prior.safetensors"]]
    commands += [["evaluate", "finetuned.safetensors"], ["check", *experts]]
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['numpy', 'numba', 'cmaes', 'transformers', 'torchvision']))\n"
        f"from glue_cli.cli.app import main; sys.exit(any([main([*command, '-q']) for command in {commands}]))"
    )
    line = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(line, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr


def test_torch_is_not_imported_where_it_is_not_needed(here):
    calls = [
        (["--help"], 0),
        (["-h"], 0),
        (["--version"], 0),
        ([], 2),
        (["mix", "--help"], 0),
        (["evaluate", "-h"], 0),
        (["mxi"], 2),
        (["mix", "--fast"], 2),
        (["mix", "--method", "spas", EXPERT_0], 2),
        (["mix", "--method", "spsa", "nope.safetensors"], 2),
        (["evaluate", EXPERT_0, "--set", "train.epoch=3"], 2),
        (["mix", "--alpha", "0.5,0.6", EXPERT_0, EXPERT_0], 2),
        (["mix", "--alpha", "1", "glue.yaml"], 3),
        (["train-expert", "--expert", "0", "-n", "-o", "x.safetensors"], 0),
        (["mix", "--method", "spsa", EXPERT_0, "-n"], 0),
        (["finetune", EXPERT_0, "-n"], 0),
        (["evaluate", EXPERT_0, "-n"], 0),
    ]
    program = f"""
import sys
from glue_cli.cli.app import main
for arguments, code in {calls!r}:
    assert main(arguments) == code, arguments
    heavy = {{"torch", "numpy", "safetensors"}} & set(sys.modules)
    assert not heavy, (arguments, heavy)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr


def test_help_does_not_wait_for_the_schema_of_the_spec(here):
    program = "import sys, glue_cli.cli.app; assert not {'pydantic', 'yaml', 'torch'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=TIMEOUT_S).returncode == 0


def test_a_blend_with_given_coefficients_does_not_wait_for_the_schema_of_the_spec(here):
    program = f"""
import sys
from glue_cli.cli.app import main
assert main(["mix", "--alpha", "0.5,0.5", {EXPERT_0!r}, {EXPERT_0!r}, "-q"]) == 0
needless = {{name for name in sys.modules if name == "yaml" or name.startswith(
    ("glue_cli.spec.schema", "glue_cli.report", "glue_cli.models", "glue_cli.data"))}}
assert not needless, needless
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr


def test_module_and_command_are_one_program():
    from glue_cli import __version__

    command = Path(sys.executable).with_name("glue")
    for line in [GLUE, *([[str(command)]] if command.exists() else [])]:
        done = subprocess.run([*line, "--version"], capture_output=True, text=True, timeout=TIMEOUT_S)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"glue {__version__}\n", "")


@pytest.mark.parametrize("arguments, code", [(["--version"], 0), (["evaluate", EXPERT_0, "-n"], 0), (["mxi"], 2)])
def test_what_is_left_for_the_exit_is_done(here, arguments, code):
    program = f"""
import atexit, sys, tempfile
from glue_cli.cli.app import run
folder = tempfile.TemporaryDirectory(dir=".", prefix="kept-to-the-end")
atexit.register(sys.stdout.write, "the end")
sys.argv[1:] = {arguments!r}
run()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == code and done.stdout.endswith("the end")
    assert not list(here.glob("kept-to-the-end*"))


def test_ctrl_c_while_training(here):
    files = set(here.rglob("*"))
    command = [*GLUE, "train-expert", "--expert", "0", "-o", "e.safetensors", "--history", "h.jsonl"]
    command += ["--set", "train.epochs=1000000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        history = here / "h.jsonl"
        wait_until(lambda: history.exists() and history.read_text().count("\n") > 1, process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    assert "error: stopped by Ctrl-C" in err and "Traceback" not in err
    assert set(here.rglob("*")) - files == {history, here / ".e.safetensors.state"}
    assert all(json.loads(line) for line in history.read_text().splitlines())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_batch_system_says_stop_while_writing(here, number):
    files = set(here.rglob("*"))
    program = """
import os, time
os.fsync = lambda descriptor: time.sleep(1000)  # a disk that takes its time
from glue_cli.cli.app import run
run()
"""
    command = [sys.executable, "-c", program, "mix", "--alpha", "1", EXPERT_0]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: set(here.rglob("*")) - files, process)
        time.sleep(0.3)
        process.send_signal(number)
        out, err = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    assert (process.returncode, out) == (128 + number, "")
    assert "Traceback" not in err
    assert set(here.rglob("*")) == files


def shell(line):
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    glue = " ".join(GLUE)
    done = subprocess.run(
        [bash, "-o", "pipefail", "-c", line.replace("GLUE", glue)], capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize("arguments", ["--help", f"evaluate {EXPERT_0} -n", f"evaluate {EXPERT_0} -n --json"])
def test_a_reader_who_has_enough(here, arguments):
    done = shell(f"GLUE {arguments} | sleep 0")
    assert done.stderr == "" and done.returncode == 141


def test_nobody_reads_the_progress(here):
    done = shell(f"GLUE mix --alpha 1 {EXPERT_0} 2>&1 >/dev/null | sleep 0")
    assert done.returncode == 0 and Path("prior.safetensors").exists()
    assert not list(here.glob(".*.tmp"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_behind_stderr_stops_nothing_and_changes_no_code(here):
    done = shell(f"GLUE mix --alpha 1 {EXPERT_0} --json 2>/dev/full")
    assert done.returncode == 0 and json.loads(done.stdout)["output"] == "prior.safetensors"
    assert shell("GLUE mxi 2>/dev/full").returncode == 2
    assert shell(f"GLUE mix --alpha 1 {EXPERT_0} -f 2>&-").returncode == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("arguments", ["--version", f"evaluate {EXPERT_0} -n", f"evaluate {EXPERT_0} -n --json"])
def test_a_full_disk_behind_stdout(here, arguments):
    done = shell(f"GLUE {arguments} > /dev/full")
    assert done.returncode == 5 and done.stderr.startswith("error: stdout cannot be written: No space left")
    assert done.stderr.splitlines()[-1].startswith("hint: ")


def test_a_closed_stdout(here):
    done = shell(f"GLUE evaluate {EXPERT_0} -n >&-")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_name_that_is_no_text(here):
    shutil.copy(EXPERT_0, b"\xff.safetensors")
    done = subprocess.run(
        [*GLUE, "mix", "--alpha", "1", b"\xff.safetensors", "-q"], capture_output=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, done.stderr
    assert b"safetensors" in done.stdout


def test_without_a_home_and_off_a_terminal(here):
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    done = run("evaluate", EXPERT_0, "--precision", "auto", env={**environment, "HOME": "/dev/null"})
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_what_a_users_code_prints_is_no_result(here):
    (here / "chatty.py").write_text(
        "print('imported')\n"
        "def score(outputs, targets):\n    print('scored')\n    return (outputs.argmax(1) == targets).float().mean()\n"
    )
    done = run("mix", "--method", "greedy", EXPERT_0, EXPERT_0, "--set", "objective=python:chatty:score", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["method"] == "greedy"
    assert "imported" in done.stderr and "scored" in done.stderr


def test_a_profiler_gets_its_results(tmp_path):
    profile = tmp_path / "profile"
    command = [sys.executable, "-m", "cProfile", "-o", str(profile), "-m", "glue_cli", "--version"]
    subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=True)
    functions = pstats.Stats(str(profile)).stats
    assert any(name == "main" and file.endswith("app.py") for file, _, name in functions)
