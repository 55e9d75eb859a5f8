import signal

import pytest

from glue_cli.foundation.stopping import Stop, Stopped, exit_code_of


def test_a_run_stops_at_once_where_it_makes_no_steps():
    stop = Stop()
    stop.give_up()  # nobody has asked
    with pytest.raises(Stopped) as stopped:
        stop.ask(signal.SIGTERM)
    assert (stopped.value.by, stopped.value.exit_code, stop.asked_by) == ("SIGTERM", 75, signal.SIGTERM)


def test_steps_are_finished_first_and_the_first_signal_counts():
    stop = Stop()
    with stop.deferred():
        stop.ask(signal.SIGUSR1)
        stop.ask(signal.SIGINT)
        with pytest.raises(Stopped) as stopped:
            stop.give_up()
    assert stopped.value.number == signal.SIGUSR1


def test_libraries_do_not_swallow_it():
    assert not issubclass(Stopped, Exception)
    assert exit_code_of(signal.SIGINT) == 130 and Stopped(signal.SIGINT).by == "Ctrl-C"
