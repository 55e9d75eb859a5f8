"""Signals that come at a bad moment."""

import signal
import subprocess
import sys

import pytest

from glue_cli.cli.signals import holding_signals, ignoring_signals

TIMEOUT_S = 200


def run_program(text, *arguments):
    return subprocess.run([sys.executable, "-c", text, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S)


def test_a_signal_waits_for_the_end_of_the_block():
    reached = []
    with pytest.raises(KeyboardInterrupt), holding_signals():
        signal.raise_signal(signal.SIGINT)
        reached.append("the end")
    assert reached and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_goes_before_a_signal():
    with pytest.raises(ImportError), holding_signals():
        signal.raise_signal(signal.SIGINT)
        raise ImportError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_second_signal_ends_the_process_at_once(name):
    program = f"""
import signal
from glue_cli.cli.signals import holding_signals, unwind_on_signals
unwind_on_signals()
with holding_signals():
    signal.raise_signal(signal.SIGINT)
    print("held", flush=True)
    signal.raise_signal(signal.{name})
    print("not reached", flush=True)
"""
    done = run_program(program)
    assert (done.returncode, done.stdout) == (128 + getattr(signal, name), "held\n")


def test_what_the_caller_ignores_stays_ignored():
    program = """
import signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
from glue_cli.cli.signals import holding_signals, unwind_on_signals
unwind_on_signals()
with holding_signals():
    signal.raise_signal(signal.SIGHUP)
signal.raise_signal(signal.SIGHUP)
print("still here")
"""
    assert run_program(program).stdout == "still here\n"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("arguments", [("mix", "--alpha", "1"), ("evaluate",), ("finetune",)], ids=" ".join)
def test_a_signal_while_torch_is_imported_is_not_lost(here, snapshot, experts, name, arguments):
    program = f"""
import signal, sys
class Sender:
    def find_spec(self, module, path=None, target=None):
        if module == "numpy":  # which torch asks for where exceptions get lost
            sys.meta_path.remove(self)
            signal.raise_signal(signal.{name})
sys.meta_path.insert(0, Sender())
from glue_cli.cli.app import run
run()
"""
    before = snapshot()
    done = run_program(program, *arguments, experts[0])
    assert done.returncode == 128 + getattr(signal, name), done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr
    assert snapshot() == before


def test_signals_are_ignored_while_a_process_says_why_it_stops():
    with ignoring_signals():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_step_that_does_not_end_leaves_the_state_that_can_be_rescued():
    program = """
import os, signal, threading, time
from glue_cli.cli import signals
signals._END_S, signals._RESCUE_S = 0.2, 20
with signals.stopping() as stop, stop.deferred():
    stop.can_resume, stop.rescue = True, lambda: print("rescued", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(100)
"""
    done = run_program(program)
    assert (done.returncode, done.stdout) == (75, "rescued\n") and "in the middle of a step" in done.stderr


def test_a_signal_while_the_handlers_are_installed_ends_the_process_as_before():
    """torchrun may send one while its processes start."""
    program = """
import os, signal
from glue_cli.cli import signals
install = signal.signal
def install_and_be_told(number, handler):
    old = install(number, handler)
    if number == signal.SIGTERM and getattr(handler, "__name__", "") == "ask":
        os.kill(os.getpid(), signal.SIGTERM)
    return old
signals.unwind_on_signals()
signals.signal.signal = install_and_be_told
with signals.stopping():
    print("not reached")
"""
    done = run_program(program)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "")
