import os
import signal
import threading

import pytest

from pipelines.interrupt import noticing_interrupts


def test_an_interrupt_that_was_swallowed_is_raised_again():
    with noticing_interrupts() as check:
        check()  # nothing yet
        with pytest.raises(KeyboardInterrupt):  # as a callback of an extension would swallow it
            os.kill(os.getpid(), signal.SIGINT)
            signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            check()


def test_the_handler_is_put_back():
    before = signal.getsignal(signal.SIGINT)
    with noticing_interrupts():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_leave_signals_alone():
    found = []

    def work() -> None:
        with noticing_interrupts() as check:
            check()
            found.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True]
