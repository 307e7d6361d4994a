"""The nth system call fails, is interrupted or short, for all n: no hang, no leak, no lost byte."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from conformance import Thread
from ends import (
    KINDS,
    PATIENCE,
    End,
    Lines,
    Ours,
    Outcome,
    descriptors,
    no_garbage,
    noise,
    nothing_left_behind,
    tcp_pair,
)
from faults import FAULTS, Fault, Files, each_call
from faults import Peer as Scripted
from joined import carried, finished

from muonsocks.net.dial import Dialler
from muonsocks.net.inherit import Peer
from muonsocks.net.loop import Loop
from muonsocks.net.relay import Ended, Relay
from muonsocks.net.stream import Stream
from muonsocks.socks.policy import Access, Limits, Policy
from muonsocks.socks.rules import Rules, parse_rules
from muonsocks.socks.session import Session
from muonsocks.socks.users import single_user

BIN = Path(__file__).resolve().parents[2] / "bin"
MIB = 1 << 20
LIMITS = Limits(handshake=2, idle=2, half_close=2)

REASONS = {
    "EINTR": {"closed"},
    "EAGAIN": {"closed"},
    "short": {"closed"},
    "reset": {"closed", "reset", "broken-pipe"},
    "close": {"closed", "reset", "broken-pipe"},
}


@pytest.fixture(autouse=True)
def leaks_nothing() -> Iterator[None]:
    previous = signal.signal(signal.SIGUSR1, lambda *_: None)
    with nothing_left_behind():
        yield
    signal.signal(signal.SIGUSR1, previous)


def side(fault: Fault, kind: str, script: bytes, place: Path) -> tuple[Ours, Scripted | Files]:
    """Make our descriptors and what is behind them; "-small" for one that holds a part only."""
    family, _, small = kind.partition("-")
    if family == "files":
        files = Files(place, script)
        return files.ours, files
    ours, theirs = KINDS[family].make(place)
    if ours.sock and theirs.sock:
        ours.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096 if small else MIB)
        theirs.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MIB)
    peer = Scripted(fault.loop, theirs, script)
    fault.peers |= {ours.reader: peer, ours.writer: peer}
    return ours, peer


SCRIPTS = {
    "little": (noise(1000), noise(300, 2)),
    "upload": (noise(300_000), noise(32, 2)),
    "download": (noise(100), noise(200_000, 2)),
    "both": (noise(150_000), noise(150_001, 2)),
}


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize(
    "ends",
    ["tcp tcp", "tcp-small tcp-small", "unix unix", "tcp unix-small", "pipes tcp", "files tcp"],
)
@pytest.mark.parametrize("script", SCRIPTS)
def test_relay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, ends: str, kind: str
) -> None:
    up, down = SCRIPTS[script]

    def run(nth: int) -> int:
        loop = Loop()
        fault = Fault(loop, kind, nth)
        client_kind, far_kind = ends.split()
        our_client, client = side(fault, client_kind, up, tmp_path)
        our_far, far = side(fault, far_kind, down, tmp_path)
        streams = our_client.stream(loop), our_far.stream(loop)
        for peer in (client, far):
            peer.on_event()
        joined = Relay(*streams, early=b"early")
        with monkeypatch.context() as patch:
            fault.install(patch)
            ended = loop.run(joined_by(loop, joined, streams))
        for peer in (client, far):
            peer.on_event()  # takes what is still there
            peer.close()
        assert not loop.handlers
        later = [timer.callback for due, _, timer in loop.timers if due > loop.now]
        assert not any(later)
        loop.close()

        what = f"{kind} at call {nth} ({fault.struck})"
        assert ended.reason in REASONS[kind], what
        received = len(far.received), len(client.received)
        assert (b"early" + up).startswith(bytes(far.received)), what
        assert down.startswith(bytes(client.received)), what
        whole = 5 + len(up), len(down)
        if not client.left and not far.left:
            assert ended.reason == "closed", what
            assert received == whole == (joined.up.count, joined.down.count), what
            assert client.ended == far.ended == "end", what
        for leaver, survivor, early in ((client, far, 5), (far, client, 0)):
            if leaver.left and not survivor.left:
                count, sent = len(survivor.received), early + leaver.sent
                assert count >= early + leaver.acknowledged, f"{what} lost bytes"
                if ended.reason == "closed" or (survivor.is_tcp and survivor.ended == "end"):
                    assert count == sent, f"{what} pretends that it is the whole"
        return fault.calls

    assert each_call(run) > 5


async def joined_by(loop: Loop, joined: Relay, streams: tuple[Stream, Stream]) -> Ended:
    try:
        with loop.deadline(PATIENCE):
            ended = await carried(joined, LIMITS.idle, LIMITS.half_close)
        for stream in ended.owed_resets:
            await stream.abort(2)
        return ended
    finally:
        for stream in streams:
            stream.close()


GREETING = b"\5\1\2" + b"\1\4user\6secret" + b"\5\1\0\1\x7f\0\0\1"
ANSWERS = b"\5\2" + b"\1\0" + b"\5\0\0\1"  # then the bound address
POLICY = Policy(
    Access(single_user("user", "secret")),
    Rules((), allow_local=True),
    Dialler(connect_timeout=2, dial_timeout=2),
    LIMITS,
)


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("size", [0, 1000, 100_000])
@pytest.mark.parametrize("exact", [False, True], ids=["as-it-comes", "exact"])
def test_session(monkeypatch: pytest.MonkeyPatch, exact: bool, size: int, kind: str) -> None:
    """Negotiation, dialling and the relay behind it, with the client's data right behind."""
    data, answer = noise(size), noise(500, 2)

    def run(nth: int) -> int:
        loop, log = Loop(), Lines()
        fault = Fault(loop, kind, nth)
        ours, client = side(fault, "tcp", b"", Path())
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        fars: list[Scripted] = []

        def on_listener(_: int) -> None:
            try:
                while True:
                    fars.append(Scripted(loop, End.of(listener.accept()[0]), answer))
            except BlockingIOError:
                return

        loop.register(listener.fileno(), on_listener)
        port = listener.getsockname()[1].to_bytes(2, "big")
        client.script = GREETING + port + data
        client.on_event()
        stream = ours.stream(loop)
        session = Session(stream, Peer("test"), POLICY, log)

        async def story() -> Relay | None:
            server, request = await session.negotiate(exact)
            return await session.fulfil(server, request, server.trailing)

        async def main() -> None:
            with loop.deadline(PATIENCE):
                await finished(loop, session.logged(story))

        with monkeypatch.context() as patch:
            fault.install(patch)
            loop.run(main())
        on_listener(0)
        for peer in (client, *fars):
            peer.on_event()
            peer.close()
        loop.unregister(listener.fileno())
        listener.close()
        what = f"{kind} at call {nth} ({fault.struck}): {log.lines}"
        assert not loop.handlers, what
        assert not any(timer.callback for _, _, timer in loop.timers), what
        loop.close()
        outcome = Outcome.of("\n".join(log.lines))
        assert len(fars) < 2, what
        received = bytes(fars[0].received) if fars else b""
        assert data.startswith(received), what
        told = bytes(client.received)
        if outcome.end == "closed" and kind not in ("reset", "close"):
            assert told[:4] == ANSWERS[:4], what
            assert told[4:8] == ANSWERS[4:], what
            assert told[14:] == answer, what
            assert received == data, what
            assert outcome == ("closed", len(data), len(answer)), what
        elif kind == "short" and "connect" in fault.struck:
            assert outcome.end == "dial-failed", what
            assert told == ANSWERS[:4] + b"\5\1\0\1" + bytes(6), what
        else:
            assert kind in ("reset", "close"), what
            assert outcome.end in ("closed", "client-left", "client-lost", "reset", "broken-pipe")
        return fault.calls

    assert each_call(run) > 8


# Nothing is left behind

CONNECT = b"\5\1\0\1\x7f\0\0\1"
PASSWORD = GREETING[: -len(CONNECT)]
STORIES = {
    "closed": GREETING + b"PORT" + b"data",
    "dial-failed": GREETING + b"\0\1",
    "refused-by-rule": PASSWORD + b"\5\1\0\3\6denied\0\1",
    "name-not-found": PASSWORD + b"\5\1\0\3\5a..no\0\1",
    "command-not-supported": PASSWORD + b"\5\x09\0\1\x7f\0\0\1\0\1",
    "protocol-error": b"GET / HTTP/1.0",
    "no-acceptable-method": b"\5\1\0",
    "authentication-failed": b"\5\1\2" + b"\1\4user\5wrong",
    "client-left": b"\5\1\2\1",
    "handshake-timeout": b"",
}


def test_sessions_leave_no_garbage() -> None:
    """With gc off: 300 sessions that end in all ways."""
    loop, log = Loop(), Lines()
    rules = Rules(parse_rules("deny denied", "test"), allow_local=True)
    limits = Limits(handshake=0.01, idle=PATIENCE, half_close=PATIENCE)
    policy = Policy(POLICY.access, rules, POLICY.dialler, limits)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    port = listener.getsockname()[1].to_bytes(2, "big")
    interrupted = []

    def serving(ours: Ours, exact: bool) -> Coroutine[Any, None, Any]:
        session = Session(ours.stream(loop), Peer("test"), policy, log)

        async def story() -> Relay | None:
            server, request = await session.negotiate(exact)
            return await session.fulfil(server, request, server.trailing)

        return session.logged(story)

    def on_failure(error: BaseException) -> None:
        interrupted.append(type(error))

    async def main() -> None:
        fault, stories = Fault(loop, "", 0), list(STORIES.values())
        for number in range(300):
            said = stories[number % len(stories)]
            ours, client = side(fault, "tcp", said.replace(b"PORT", port), Path())
            client.on_event()
            task = loop.spawn(serving(ours, bool(number % 3)), on_failure)
            fars: list[Scripted] = []
            while not task.is_over:
                try:
                    fars.append(Scripted(loop, End.of(listener.accept()[0]), b"answer"))
                    if number % 4 == 0:
                        task.interrupt(KeyboardInterrupt())
                except BlockingIOError:
                    await loop.sleep(0.0005)
            for peer in (client, *fars):
                peer.close()

    with no_garbage():
        loop.run(main())
        loop.close()
    listener.close()
    ends = {Outcome.of(line).end for line in log.lines if "closed " in line}
    assert ends == STORIES.keys() | {"terminated"}
    assert set(interrupted) == {KeyboardInterrupt}


# And by the kernel itself


@pytest.mark.parametrize("which", ["1+2", "2+3"])
def test_interrupted_by_the_kernel(tmp_path: Path, which: str) -> None:
    """Every other system call of socks-inetd is interrupted, from its first read on."""
    size = 3 << 20
    ours, theirs = tcp_pair(small_buffers=True)
    client = End.of(theirs)
    listener = socket.create_server(("127.0.0.1", 0))
    program = subprocess.Popen(
        [BIN / "socks-inetd", "--allow-local"], stdin=ours, stdout=ours, stderr=subprocess.PIPE
    )
    ours.close()
    wait_until(lambda: has_epoll(program.pid))
    # A connect that does not block is not interrupted: Linux has no such place in it.
    calls = "read,readv,write,splice,epoll_wait"
    try:
        tracer = subprocess.Popen(
            [
                "strace",
                "-qq",
                "-p",
                str(program.pid),
                "-o",
                tmp_path / "trace",
                "-e",
                f"trace={calls}",
                "-e",
                f"inject={calls}:error=EINTR:when={which}",
            ],
        )
    except FileNotFoundError:
        program.kill()
        program.communicate()
        pytest.skip("no strace here")
    wait_until(lambda: is_traced(program.pid) or tracer.poll() is not None)
    assert tracer.poll() is None, "strace may not trace here"
    port = listener.getsockname()[1].to_bytes(2, "big")
    client.send(b"\5\1\0" + b"\5\1\0\1\x7f\0\0\1" + port + b"early")
    assert client.read_exactly(12)[:6] == b"\5\0\5\0\0\1"
    far = End.of(listener.accept()[0])
    up, down = noise(size), noise(size, 2)
    senders = [Thread(lambda: client.send(up)), Thread(lambda: far.send(down))]
    takers = [Thread(lambda: take(far, b"early" + up)), Thread(lambda: take(client, down))]
    for thread in senders + takers:
        thread.join()
    client.close()
    far.close()
    listener.close()
    said = program.communicate(timeout=PATIENCE)[1].decode()
    tracer.wait(PATIENCE)
    assert program.returncode == 0, said
    assert Outcome.of(said) == ("closed", 5 + size, size)
    trace = (tmp_path / "trace").read_text()
    for call in ("readv", "write", "splice", "epoll_wait"):
        assert f"\n{call}(" in trace
    assert trace.count("EINTR") > 20


def take(end: End, data: bytes) -> None:
    assert end.read_exactly(len(data)) == data


def has_epoll(pid: int) -> bool:
    try:
        return "eventpoll" in "".join(descriptors(pid).values())
    except FileNotFoundError:
        return False


def is_traced(pid: int) -> bool:
    return "TracerPid:\t0" not in Path(f"/proc/{pid}/status").read_text()


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        os.sched_yield()
