"""The process in front: it ends as the program has."""

import os
import signal

import pytest

from muonsocks.intercept.in_front import end_as


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSYS, 34])
def test_it_ends_by_the_signal_of_the_program_and_no_other(number: int) -> None:
    """One that has come from the supervisor meanwhile has a lower number than some."""
    pid = os.fork()
    if not pid:
        try:
            signal.signal(signal.SIGIO, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            os.kill(os.getpid(), signal.SIGIO)
            end_as(number)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -number
