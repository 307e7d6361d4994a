"""Whoever answers: each call gets its handler, and a failure of ours lets none through."""

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest
from filtered import LIBRARY, child, result
from programs import SECONDS

from muonsocks.intercept import supervisor
from muonsocks.intercept.bpf import NOTIFY, Rule
from muonsocks.intercept.notify import Call, CallGone, Refused
from muonsocks.intercept.supervisor import Supervisor
from muonsocks.net.loop import Loop
from muonsocks.net.task import Waitable

Say = Callable[[object], None]
RULES = {"connect": [Rule(NOTIFY)], "bind": [Rule(NOTIFY)]}


def supervise(program: Callable[[Say], None], **handlers: Any) -> tuple[str, list[BaseException]]:
    """Run a program to its end; give what it says, and what is reported."""
    loop = Loop()
    failures: list[BaseException] = []
    rules = {name: RULES[name] for name in handlers}
    with child(rules, program) as (listener, one):
        answering = Supervisor(
            loop, listener, rules, handlers, lambda _, error: failures.append(error)
        )

        async def run() -> None:
            with loop.deadline(SECONDS):
                await answering.run()

        try:
            loop.spawn(_reap(loop, one.pid), failures.append)
            loop.run(run())
            return one.says(), failures
        finally:
            loop.close()


async def _reap(loop: Loop, pid: int) -> None:
    """A process that nobody has waited for may still be one that could call."""
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        await loop.sleep(0.01)


def connect(_: object = None) -> int:
    return result(LIBRARY.connect(-1, b"", 0))


def test_each_call_has_a_handler_and_a_task_of_its_own() -> None:
    """One that waits keeps no other waiting."""
    waits, names = Waitable(), []

    async def slow(call: Call) -> None:
        names.append(call.name)
        if len(names) < 2:
            await waits
        call.succeed(1)

    async def quick(call: Call) -> None:
        names.append(call.name)
        if len(names) < 2:
            await waits
        call.succeed(2)

    async def either(call: Call) -> None:
        await {"connect": slow, "bind": quick}[call.name](call)
        waits.wake()

    def program(say: Say) -> None:
        if not os.fork():
            os._exit(result(LIBRARY.bind(-1, b"", 0)))
        say((connect(), os.waitstatus_to_exitcode(os.wait()[1])))

    said, failures = supervise(program, connect=either, bind=either)
    assert (sorted(names), failures) == (["bind", "connect"], [])
    assert said == "(1, 2)"


@pytest.mark.parametrize(
    ("error", "number", "is_reported"),
    [
        (Refused(errno.EACCES), errno.EACCES, False),
        (OSError(errno.EPERM, "not you"), errno.ENETUNREACH, True),
        (ValueError("our own fault"), errno.ENETUNREACH, True),
        (KeyError("x"), errno.ENETUNREACH, True),
    ],
)
def test_what_goes_wrong_lets_nothing_through(
    error: Exception, number: int, is_reported: bool
) -> None:
    async def fail(_: Call) -> None:
        raise error

    said, failures = supervise(lambda say: say([connect(), connect()]), connect=fail)
    assert said == repr([-number] * 2)
    assert failures == [error] * 2 * is_reported


def test_who_is_gone_is_no_failure() -> None:
    async def answer(call: Call) -> None:
        call.succeed(7)
        raise CallGone

    said, failures = supervise(lambda say: say(connect()), connect=answer)
    assert (said, failures) == ("7", [])


def test_calls_that_are_too_many_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a program does, it does not get all of our memory and descriptors."""
    monkeypatch.setattr(supervisor, "_MOST", 3)
    waiting: list[Waitable] = []

    async def wait(call: Call) -> None:
        waiting.append(Waitable())
        await waiting[-1]
        call.succeed()

    def program(say: Say) -> None:
        reader, writer = os.pipe()
        for _ in range(5):
            if not os.fork():
                os.write(writer, bytes([-connect()]))
                os._exit(0)
        refused = os.read(reader, 1) + os.read(reader, 1)
        say(sorted(refused))
        os.killpg(0, 9)

    said, failures = supervise(program, connect=wait)
    assert said == repr([errno.ENOBUFS] * 2)
    assert not failures and len(waiting) == 3
