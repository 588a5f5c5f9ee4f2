import os
import signal
import threading

import pytest

from superself.training import FinishStepOnSignal, interrupt


@pytest.mark.parametrize("number, expected", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_the_first_signal_is_raised_by_leave(number, expected):
    with FinishStepOnSignal() as signals:
        os.kill(os.getpid(), number)
        assert signals.received == number
        with pytest.raises(expected):
            signals.leave()


@pytest.mark.parametrize("second, expected", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_the_second_signal_is_raised_at_once(second, expected, monkeypatch):
    monkeypatch.setattr(interrupt, "REPEATED", 0.0)
    with FinishStepOnSignal() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(expected):
            os.kill(os.getpid(), second)
        assert signals.twice


def test_a_signal_that_arrives_twice_within_a_moment_counts_once():
    """``timeout`` sends it to the process and to its group."""
    with FinishStepOnSignal() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM and not signals.twice


def test_the_first_signal_is_announced_at_once():
    seen = []
    with FinishStepOnSignal(seen.append):
        os.kill(os.getpid(), signal.SIGINT)
        assert seen == [signal.SIGINT]


def test_sigusr1_asks_to_save_and_stops_nothing():
    with FinishStepOnSignal() as signals:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.asked_to_save and signals.received is None
        signals.leave()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGXCPU])
def test_other_signals_that_end_a_process_stop_after_the_step(number):
    with FinishStepOnSignal() as signals:
        os.kill(os.getpid(), number)
        with pytest.raises(SystemExit) as stopped:
            signals.leave()
    assert stopped.value.code == 128 + number


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda number, frame: None], ids=["nohup", "users"])
def test_handlers_that_nohup_or_a_user_has_set_stay(handler):
    before = signal.signal(signal.SIGHUP, handler)
    try:
        with FinishStepOnSignal():
            assert signal.getsignal(signal.SIGHUP) == handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_torch_raises_for_a_dead_worker_waits_for_the_end_of_the_step():
    def fails(number, frame):
        raise RuntimeError("a worker is dead")

    before = signal.signal(signal.SIGCHLD, fails)
    try:
        with FinishStepOnSignal() as signals:
            signals.hold_back_children()
            os.kill(os.getpid(), signal.SIGCHLD)  # within a step
            signals.report_children()
            signals.is_waiting = True
            with pytest.raises(RuntimeError, match="a worker is dead"):
                signals.report_children()
            with pytest.raises(RuntimeError, match="a worker is dead"):
                os.kill(os.getpid(), signal.SIGCHLD)  # while the loop waits for data
        assert signal.getsignal(signal.SIGCHLD) is fails
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_previous_handlers_are_restored():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with FinishStepOnSignal() as signals:
        assert signal.getsignal(signal.SIGINT) != before[0]
        signals.leave()  # no signal was received, so nothing is raised
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_outside_the_main_thread_no_handler_is_set():
    seen = []

    def enter():
        with FinishStepOnSignal() as signals:
            seen.append(signals.received)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [None]
