"""Errands in the one background thread."""

import errno
import os
import queue
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from ends import PATIENCE, no_garbage, tcp_pair
from relays import in_child, settle

from muonsocks.client import background
from muonsocks.client.background import Pending, Thread
from muonsocks.client.errand import Granted
from muonsocks.net.loop import Loop
from muonsocks.net.task import Waitable

pytestmark = pytest.mark.usefixtures("clean")


class Errand:
    """Waits until the test lets it go on."""

    def __init__(self, result: Granted | None = None, error: BaseException | None = None) -> None:
        self.result = result
        self.error = error
        self.gate = Waitable()
        self.began = threading.Event()
        self.interrupted: list[BaseException] = []

    async def run(self, loop: Loop, timeout: float | None = None) -> Granted:
        self.began.set()
        try:
            await self.gate
        except BaseException as error:
            self.interrupted.append(error)
            raise
        if self.error is not None:
            raise type(self.error)(*self.error.args)  # one that the test does not keep
        assert self.result is not None
        return self.result

    def go_on(self) -> None:
        Thread.of_this_process().call(self.gate.wake)


def granted() -> tuple[Granted, socket.socket]:
    ours, theirs = tcp_pair()
    return Granted(socket.socket(fileno=ours.detach())), theirs


def nothing(_: bool) -> None:
    pass


def test_success() -> None:
    result, theirs = granted()
    errand = Errand(result)
    ended: queue.SimpleQueue[bool] = queue.SimpleQueue()
    pending = Pending(errand.run, ended.put)
    assert not pending.wait(0.01)
    assert not pending.is_over and not pending.has_failed
    errand.go_on()
    assert pending.wait(None) and pending.wait(0)
    assert ended.get(timeout=PATIENCE) is False
    assert pending.is_over and not pending.has_failed
    assert pending.take() is result
    result.close()
    theirs.close()


def test_failure() -> None:
    errand = Errand(error=OSError(errno.ENETUNREACH, "no way"))
    pending = Pending(errand.run, nothing)
    errand.go_on()
    assert pending.wait(PATIENCE)
    assert pending.has_failed
    with pytest.raises(OSError, match="no way"):
        pending.take()


@pytest.mark.parametrize("when", ["before", "meanwhile", "afterwards"])
def test_dropped(when: str) -> None:
    """What it has brought, or brings, is closed."""
    result, theirs = granted()
    errand = Errand(result)
    hold = threading.Event()
    if when == "before":
        Thread.of_this_process().call(lambda: (hold.wait(PATIENCE), None)[1])
    pending = Pending(errand.run, nothing)
    if when == "before":
        pending.drop()
        hold.set()
    else:
        errand.began.wait(PATIENCE)
        if when == "afterwards":
            errand.go_on()
            pending.wait(PATIENCE)
        pending.drop()
    settle()
    assert len(errand.interrupted) == (when == "meanwhile")
    if when == "afterwards":
        assert theirs.recv(1) == b""
    result.close()
    theirs.close()


def test_dropped_just_before_it_succeeds() -> None:
    result, theirs = granted()
    errand = Errand(result)
    pending = Pending(errand.run, nothing)
    errand.began.wait(PATIENCE)

    def both() -> None:
        pending.drop()
        errand.gate.wake()

    Thread.of_this_process().call(both)
    assert pending.wait(PATIENCE)
    assert theirs.recv(1) == b""
    theirs.close()


def test_nothing_has_to_be_collected() -> None:
    def story() -> None:
        errand = Errand(error=OSError(errno.ENETUNREACH, "no way"))
        pending = Pending(errand.run, nothing)
        errand.go_on()
        pending.wait(PATIENCE)
        with pytest.raises(OSError):
            pending.take()
        settle()

    story()
    with no_garbage():
        story()


def test_in_a_child_process() -> None:
    """It has no such thread, and what is under way there is under way no more."""
    errand = Errand()
    pending = Pending(errand.run, nothing)
    errand.began.wait(PATIENCE)

    def story() -> None:
        assert pending.wait(None) and pending.is_over and pending.has_failed
        with pytest.raises(OSError) as told:
            pending.take()
        assert told.value.errno == errno.ECONNABORTED
        pending.drop()
        test_failure()

    in_child(story)
    assert not pending.is_over
    pending.drop()
    settle()
    assert errand.interrupted


@pytest.mark.parametrize("what", ["eventfd", "thread"])
def test_no_thread_can_be_started(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> int:
        raise OSError(errno.EMFILE, "too many") if what == "eventfd" else RuntimeError("too many")

    where: Any = background.os if what == "eventfd" else background
    monkeypatch.setattr(where, what if what == "eventfd" else "start_new_thread", fail)
    monkeypatch.setattr(Thread, "_only", None)
    with pytest.raises(OSError) as told:
        Pending(Errand().run, nothing)
    assert told.value.errno == (errno.EMFILE if what == "eventfd" else errno.ENOMEM)


def test_calls_come_one_after_the_other() -> None:
    seen: list[int] = []
    calls: list[Callable[[], None]] = [lambda n=n: seen.append(n) for n in range(500)]  # type: ignore
    for one in calls:
        Thread.of_this_process().call(one)
    settle()
    assert seen == list(range(500))


def test_it_keeps_no_process_from_its_end() -> None:
    code = (
        "from muonsocks.client.background import Thread\n"
        "Thread.of_this_process().call(lambda: None)\n"
    )
    import subprocess
    import sys

    lib = os.path.dirname(os.path.dirname(os.path.dirname(background.__file__)))
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": lib}, timeout=PATIENCE)
    assert done.returncode == 0
