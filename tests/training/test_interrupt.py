import os
import signal
import threading

import pytest

from superself.training import FinishStepOnSignal


@pytest.mark.parametrize("number, expected", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_the_first_signal_waits_until_it_is_let_go(number, expected):
    with FinishStepOnSignal() as signals:
        os.kill(os.getpid(), number)
        assert signals.received == number
        with pytest.raises(expected):
            signals.leave()


def test_the_second_signal_does_not_wait():
    with FinishStepOnSignal():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with FinishStepOnSignal() as signals:
        assert signal.getsignal(signal.SIGINT) != before[0]
        signals.leave()  # nothing received, nothing raised
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_outside_the_main_thread_nothing_is_changed():
    seen = []

    def enter():
        with FinishStepOnSignal() as signals:
            seen.append(signals.received)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [None]
