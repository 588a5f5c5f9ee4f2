import os
import signal
import threading

import pytest

from superself.training import FinishStepOnSignal


@pytest.mark.parametrize("number, expected", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_the_first_signal_is_raised_by_leave(number, expected):
    with FinishStepOnSignal() as signals:
        os.kill(os.getpid(), number)
        assert signals.received == number
        with pytest.raises(expected):
            signals.leave()


def test_the_second_signal_is_raised_at_once():
    with FinishStepOnSignal():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


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
