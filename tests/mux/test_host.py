"""A host: it carries out what the guest asks for, under the rules, and says how that went."""

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from both import MEMORY, Places
from ends import Lines, no_garbage, noise
from hand import SILENCE, WINDOW, Clock, Hand, play, rounds, stuff, until
from places import descriptor_limit

from muonsocks.address import Endpoint
from muonsocks.errors import DialError, NameNotResolved
from muonsocks.log import DEBUG
from muonsocks.mux.connection import ResetReason
from muonsocks.mux.frames import (
    HEADER,
    HELLO_SIZE,
    NO_NUMBER,
    Answer,
    Done,
    Eof,
    Goodbye,
    Hello,
    Open,
    Reset,
    decode,
)
from muonsocks.mux.host import Host
from muonsocks.mux.link import Bounds
from muonsocks.mux.places import UnixSocket
from muonsocks.net.dial import Dialler
from muonsocks.net.loop import Loop
from muonsocks.net.stream import Stream
from muonsocks.net.task import Mailbox
from muonsocks.socks.policy import Access, Limits, Policy
from muonsocks.socks.request import UNSPECIFIED
from muonsocks.socks.rules import Rules, parse_rules


class Serving:
    """A host with a hand for its guest."""

    def __init__(
        self, loop: Loop, hand: Hand, dialler: Dialler | None = None, rules: str = ""
    ) -> None:
        self.loop, self.hand = loop, hand
        self.log = Lines()
        self.log.level = DEBUG
        policy = Policy(
            Access(),
            Rules(parse_rules(rules, "rules"), allow_local=True),
            dialler or Dialler(),
            Limits(600, 600, 600),
        )
        self.place = Places(hand.ours, again=False)
        self.host = Host(loop, self.place, policy, Bounds(10, MEMORY, SILENCE), self.log)
        self.ended: list[Any] = []
        self.task = loop.spawn(self.host.run(), self.ended.append, self.ended.append)

    async def meet(self, number: bytes = b"a number") -> None:
        hand = self.hand
        hand.heard()
        hand.say(Hello(1, 0, number, NO_NUMBER))
        hello = await hand.hears(Hello)
        hand.say(Hello(1, 0, number, hello.number))
        await until(self.loop, lambda: self.host.link.mux.is_up)
        await rounds(self.loop)

    async def hears(self, count: int = 1) -> list[Any]:
        """Wait for so many messages: give them all."""
        found: list[Any] = []
        while len(found) < count:
            found += self.hand.heard()
            await rounds(self.loop, 1)
        await rounds(self.loop)
        return found + self.hand.heard()

    async def is_empty(self) -> None:
        """Wait until no connection is left, on this side or that, and no window."""
        await until(self.loop, lambda: not self.host.tasks)
        await rounds(self.loop)
        assert not self.host.link.mux._connections
        assert self.host.link.mux._windows._left == MEMORY

    def end(self) -> str:
        """The last line of the log that says how something ended."""
        [line] = [line for line in self.log.lines if line.startswith("closed ")][-1:]
        return line


@contextmanager
def a_listener() -> Iterator[tuple[socket.socket, Endpoint]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener, Endpoint(*listener.getsockname())


async def accepted(loop: Loop, listener: socket.socket) -> socket.socket:
    while True:
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            await loop.sleep(0.001)
        else:
            sock.setblocking(False)
            return sock


def test_why_the_guest_resets_is_logged(loop: Loop) -> None:
    async def story() -> None:
        with Hand(loop) as hand, a_listener() as (listener, address):
            serving = Serving(loop, hand)
            await serving.meet()
            hand.say(Open(5, 1 << 20, address))
            with await accepted(loop, listener):
                await serving.hears()
                hand.say(Reset(5, ResetReason.TIMEOUT))
                assert await serving.hears() == [Done(5)]
                await serving.is_empty()
                assert serving.end().endswith('end=reset detail="the guest says: a time limit"')
            serving.host.stop("enough")
            serving.task.interrupt(KeyboardInterrupt())

    play(loop, story)


class Script(Dialler):
    """A dialler that does what the test says, when it says so."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.outcome = Mailbox()
        self.was_stopped: list[BaseException] = []

    async def dial(
        self, loop: Loop, destination: Endpoint, permit: Callable[[bytes], bool] = lambda _: True
    ) -> Stream:
        self.asked.append(str(destination))
        try:
            outcome = await self.outcome.take()
        except BaseException as error:
            self.was_stopped.append(error)
            raise
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


# What is asked for


def test_a_connection(loop: Loop) -> None:
    async def story() -> None:
        with Hand(loop) as hand, a_listener() as (listener, address):
            serving = Serving(loop, hand)
            await serving.meet()
            hand.say(Open(5, 1 << 20, address))
            with await accepted(loop, listener) as far:
                bound = Endpoint(*far.getpeername())
                assert await serving.hears() == [Answer(5, WINDOW, 0, bound)]
                hand.data(5, b"question")
                await until(loop, lambda: _peek(far) == b"question")
                far.send(noise(100_000))
                got = b""
                while len(got) < 100_000:
                    got += b"".join(part for _, part in await serving.hears())
                assert got == noise(100_000)
                hand.say(Eof(5))
                assert far.recv(100) == b"question"
                await until(loop, lambda: _peek(far) == b"")
            assert await serving.hears(2) == [Eof(5), Done(5)]
            hand.say(Done(5))
            await serving.is_empty()
            assert f"client=mux:5 user=- target={address} reply=0 in=8 out=100000" in serving.end()
            assert serving.host.served == 1
            await serving.host.leave("enough")
            serving.task.interrupt(KeyboardInterrupt())

    play(loop, story)


def _peek(sock: socket.socket) -> bytes | None:
    try:
        return sock.recv(100, socket.MSG_PEEK)
    except BlockingIOError:
        return None


def test_a_guest_that_opens_and_resets(loop: Loop) -> None:
    """Of sessions that have not ended yet there are twice as many as of connections, at most."""
    script = Script()

    async def story() -> None:
        with Hand(loop) as hand:
            serving = Serving(loop, hand, script)
            await serving.meet()
            host = serving.host
            for number in range(20):  # each is dialled, and that lasts
                hand.say(Open(number % 10, 9, Endpoint("192.0.2.1", 25)))
                await until(loop, lambda n=number: host.served == n + 1)
                if number < 10:
                    host.link.mux._connections[number].owner._watcher = None  # and it goes on
                    hand.say(Reset(number, 0))
                    assert await serving.hears() == [Done(number)]
            assert len(host.tasks) == 20
            host.link.mux._connections[3].owner._watcher = None
            hand.say(Reset(3, 0), Open(3, 9, Endpoint("192.0.2.1", 25)))
            assert await serving.hears(2) == [Done(3), Answer(3, 0, 1, UNSPECIFIED)]
            hand.say(Done(3), Reset(0, 0))
            assert await serving.hears() == [Done(0)]
            await until(loop, lambda: len(host.tasks) == 19)
            await host.leave("enough")
            serving.task.interrupt(KeyboardInterrupt())

    play(loop, story)


def test_refused_by_rule(loop: Loop) -> None:
    """Answered at once, and nobody is dialled."""
    script = Script()

    async def story() -> None:
        with Hand(loop) as hand:
            serving = Serving(loop, hand, script, "deny * 25")
            await serving.meet()
            hand.say(Open(0, 9, Endpoint("192.0.2.1", 25)), Open(1, 9, Endpoint("name.test", 25)))
            assert await serving.hears(2) == [
                Answer(0, 0, 2, UNSPECIFIED),
                Answer(1, 0, 2, UNSPECIFIED),
            ]
            assert "reply=2" in serving.end() and "end=refused-by-rule" in serving.end()
            hand.say(Done(0), Done(1))
            await serving.is_empty()
            assert not script.asked
            await serving.host.leave("enough")
            serving.task.interrupt(KeyboardInterrupt())

    play(loop, story)


FAILURES = {
    errno.ECONNREFUSED: 5,
    errno.ENETUNREACH: 3,
    errno.EHOSTUNREACH: 4,
    errno.ETIMEDOUT: 6,
    errno.EAFNOSUPPORT: 8,
    errno.EINVAL: 1,
}


@pytest.mark.parametrize("number", [*FAILURES, 0], ids=[*map(os.strerror, FAILURES), "a name"])
def test_what_cannot_be_dialled(loop: Loop, number: int) -> None:
    script = Script()
    failure: OSError = NameNotResolved("no such name")
    if number:
        failure = DialError(number, os.strerror(number), [("192.0.2.1", number)])

    async def story() -> None:
        with Hand(loop) as hand:
            serving = Serving(loop, hand, script)
            await serving.meet()
            for turn in range(3):
                hand.say(Open(0, 9, Endpoint("192.0.2.1", 80)))
                await until(loop, lambda turn=turn: len(script.asked) == turn + 1)
                script.outcome.post(failure)
                assert await serving.hears() == [Answer(0, 0, FAILURES.get(number, 4), UNSPECIFIED)]
                hand.say(Done(0))
                await serving.is_empty()
            assert ("dial-failed" if number else "name-not-found") in serving.end()
            assert not [line for line in serving.log.lines if "could not be carried" in line]
            await serving.host.leave("enough")
            serving.task.interrupt(KeyboardInterrupt())

    play(loop, story)


@pytest.mark.parametrize("told", ["reset", "goodbye", "anew"])
def test_the_guest_leaves_while_it_is_dialled(loop: Loop, told: str) -> None:
    """The dial ends, and what of it there was."""
    script = Script()

    async def story() -> None:
        with Hand(loop) as hand:
            serving = Serving(loop, hand, script)
            await serving.meet()
            with no_garbage():
                hand.say(Open(0, 9, Endpoint("192.0.2.1", 80)))
                await until(loop, lambda: script.asked)
                if told == "reset":
                    hand.say(Reset(0, ResetReason.UNKNOWN))
                    assert await serving.hears() == [Done(0)]
                elif told == "goodbye":
                    hand.say(Goodbye("so"))
                else:
                    hand.say(Hello(1, 0, b"number 2", NO_NUMBER))
                await rounds(loop)
                assert len(script.was_stopped) == 1 and not serving.host.tasks
                script.was_stopped.clear()
            assert "end=client-lost" in serving.end()
            await serving.is_empty()
            await serving.host.leave("enough")
            serving.task.interrupt(KeyboardInterrupt())

    play(loop, story)


def test_a_real_dial_that_ends(loop: Loop) -> None:
    """Its socket is closed (the fixture looks)."""

    async def story() -> None:
        with Hand(loop) as hand, socket.socket() as full:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            ends = [socket.create_connection(full.getsockname()) for _ in range(1)]
            serving = Serving(loop, hand)
            await serving.meet()
            hand.say(Open(0, 9, Endpoint(*full.getsockname())))
            await rounds(loop)
            answered = hand.heard()
            if not answered:  # the backlog was full, as it was to be
                hand.say(Reset(0, 0))
                assert await serving.hears() == [Done(0)]
            await until(loop, lambda: answered or not serving.host.tasks)
            await serving.host.leave("enough")
            serving.task.interrupt(KeyboardInterrupt())
            for end in ends:
                end.close()

    play(loop, story)


# What this host runs out of


def test_a_shortage_is_answered_and_said_now_and_then(loop: Loop, clock: Clock) -> None:
    said = "a request could not be carried out: Too many open files"

    async def story() -> None:
        with Hand(loop) as hand, a_listener() as (_, address):
            serving = Serving(loop, hand)
            await serving.meet()

            async def asks(number: int) -> None:
                with descriptor_limit(0):
                    hand.say(Open(number, 9, address))
                    assert await serving.hears() == [Answer(number, 0, 1, UNSPECIFIED)]
                hand.say(Done(number))
                await serving.is_empty()

            for number in range(5):
                await asks(number)
            assert serving.log.lines.count(said) == 1
            assert "reply=1" in serving.end() and "end=system-error" in serving.end()
            await clock.passes(loop, 9.5)
            await asks(0)
            assert serving.log.lines.count(said) == 1
            await clock.passes(loop, 1)
            await asks(0)
            assert serving.log.lines.count(said) == 2
            hand.say(Open(0, 9, address))
            [answer] = await serving.hears()
            assert answer.code == 0, "it lives on"
            await serving.host.leave("enough")
            serving.task.interrupt(KeyboardInterrupt())

    play(loop, story, 600)


def test_no_port_is_left(loop: Loop) -> None:
    """That is a shortage too, but the dial's failure."""
    script = Script()

    async def story() -> None:
        with Hand(loop) as hand:
            serving = Serving(loop, hand, script)
            await serving.meet()
            hand.say(Open(0, 9, Endpoint("192.0.2.1", 80)))
            await until(loop, lambda: script.asked)
            number = errno.EADDRNOTAVAIL
            script.outcome.post(DialError(number, os.strerror(number), []))
            assert await serving.hears() == [Answer(0, 0, 1, UNSPECIFIED)]
            await until(loop, lambda: not serving.host.tasks)
            assert serving.log.lines[-1].endswith(os.strerror(number))
            assert "could not be carried out" in serving.log.lines[-1]
            await serving.host.leave("enough")
            serving.task.interrupt(KeyboardInterrupt())

    play(loop, story)


def test_a_bug_is_said_and_survived(loop: Loop) -> None:
    script = Script()

    async def story() -> None:
        with Hand(loop) as hand:
            serving = Serving(loop, hand, script)
            await serving.meet()
            hand.say(Open(0, 9, Endpoint("192.0.2.1", 80)))
            await until(loop, lambda: script.asked)
            script.outcome.post(ZeroDivisionError("oops"))
            assert await serving.hears() == [Reset(0, ResetReason.UNKNOWN)]
            assert "this is a bug, please report it: ZeroDivisionError: oops" in serving.log.lines
            hand.say(Done(0))
            await serving.is_empty()
            await serving.host.leave("enough")
            serving.task.interrupt(KeyboardInterrupt())

    play(loop, story)


# The end


def test_the_port_is_lost(loop: Loop) -> None:
    """Far ends get what was sent to them, and then a reset; the host ends after that."""

    async def story() -> None:
        with Hand(loop) as hand, a_listener() as (listener, address):
            serving = Serving(loop, hand)
            await serving.meet()
            fars = []
            for number in range(3):
                hand.say(Open(number, 9, address))
                fars.append(await accepted(loop, listener))
                await serving.hears()
                hand.data(number, b"last words")
            hand.sock.close()
            began = loop.now
            await until(loop, lambda: serving.ended)
            assert loop.now - began < 3, "it does not wait for longer than there is somebody"
            assert serving.ended == [None] and not serving.host.tasks
            for far in fars:
                assert far.recv(100) == b"last words"
                with pytest.raises(ConnectionResetError):
                    far.recv(1)
                far.close()
            await serving.host.leave("enough")

    play(loop, story)


async def meet_over(loop: Loop, sock: socket.socket, host: Host) -> None:
    """Begin a session, as a guest at a socket."""
    sock.sendall(Hello(1, 0, b"a number", NO_NUMBER).encode())
    heard = b""
    while len(heard) < 2 * HELLO_SIZE:
        await rounds(loop, 1)
        heard += stuff_of(sock)
    hello = decode(heard[HEADER.size : HELLO_SIZE])
    assert isinstance(hello, Hello)
    sock.sendall(Hello(1, 0, b"a number", hello.number).encode())
    await until(loop, lambda: host.link.mux.is_up)


def stuff_of(sock: socket.socket) -> bytes:
    try:
        return sock.recv(65536)
    except BlockingIOError:
        return b""


def test_a_socket_that_says_nothing_is_connected_to_once_more(
    loop: Loop, clock: Clock, tmp_path: Path
) -> None:
    """At first, and after each session."""

    async def story() -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "port"))
            listener.listen()
            listener.setblocking(False)
            policy = Policy(Access(), Rules([], allow_local=True), Dialler(), Limits(600, 600, 600))
            bounds = Bounds(10, MEMORY, SILENCE)
            host = Host(loop, UnixSocket(str(tmp_path / "port")), policy, bounds, Lines())
            ended: list[Any] = []
            task = loop.spawn(host.run(), ended.append)
            for _ in range(2):
                with await accepted(loop, listener):
                    await clock.passes(loop, 1.3)
                    with await accepted(loop, listener) as second:
                        await clock.passes(loop, 20)
                        with pytest.raises(BlockingIOError):
                            listener.accept()
                        await meet_over(loop, second, host)
            assert not ended
            task.interrupt(KeyboardInterrupt())
            await host.leave("enough")

    play(loop, story, 600)


def test_the_port_is_lost_and_a_far_end_does_not_read(loop: Loop, clock: Clock) -> None:
    """It has 4 s, and is reset by the stop."""

    async def story() -> None:
        with Hand(loop) as hand, a_listener() as (listener, address):
            serving = Serving(loop, hand)
            await serving.meet()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            hand.say(Open(0, 9, address))
            far = await accepted(loop, listener)
            await serving.hears()
            sent = 0
            while not _waits(serving):
                await hand.say_much(b"\0\0\0\x10" + bytes(4096))
                sent += 4096
                await rounds(loop, 3)
            hand.sock.close()
            await clock.passes(loop, 3.5)
            assert not serving.ended and len(serving.host.tasks) == 1
            await clock.passes(loop, 1)
            assert serving.ended == [None] and len(serving.host.tasks) == 1
            await serving.host.leave("enough")
            assert not serving.host.tasks
            assert "end=terminated" in serving.end()
            assert not [line for line in serving.log.lines if "bug" in line]
            with pytest.raises(ConnectionResetError):
                while far.recv(1 << 20):
                    pass
            far.close()

    play(loop, story, 600)


def test_the_port_is_lost_and_a_far_end_reads_later(loop: Loop, clock: Clock) -> None:
    """The host ends when it has got all."""

    async def story() -> None:
        with Hand(loop) as hand, a_listener() as (listener, address):
            serving = Serving(loop, hand)
            await serving.meet()
            hand.say(Open(0, 9, address))
            far = await accepted(loop, listener)
            await serving.hears()
            [connection] = serving.host.link.mux._connections.values()
            stream = connection.owner.incoming.sink
            stuffed = stuff(stream.socket)
            while more := stuff(stream.socket):
                stuffed += more
                await rounds(loop)
            hand.data(0, b"last words")
            await until(loop, lambda: _waits(serving))
            hand.sock.close()
            await clock.passes(loop, 1)
            assert not serving.ended
            got, began = b"", clock.now()
            while len(got) < stuffed + 10:
                try:
                    got += far.recv(1 << 20)
                except BlockingIOError:
                    await rounds(loop, 1)
            assert got.endswith(b"last words")
            await until(loop, lambda: serving.ended)
            assert clock.now() - began < 2
            far.close()

    play(loop, story, 600)


def test_an_answer_is_sent_when_it_is_known(loop: Loop) -> None:
    """Nothing else need happen at the port."""
    script = Script()

    async def story() -> None:
        with Hand(loop) as hand:
            serving = Serving(loop, hand, script)
            await serving.meet()
            hand.say(Open(0, 9, Endpoint("192.0.2.1", 80)))
            await rounds(loop)
            assert not hand.heard()
            await rounds(loop)
            ours, far = socket.socketpair()
            ours.setblocking(False)
            script.outcome.post(Stream(loop, ours))
            await rounds(loop)
            assert hand.heard() == [Answer(0, WINDOW, 0, UNSPECIFIED)]
            far.close()
            await serving.host.leave("enough")
            serving.task.interrupt(KeyboardInterrupt())

    play(loop, story)


def _waits(serving: Serving) -> bool:
    """Whether some of what came from the guest waits for its far end."""
    [connection] = serving.host.link.mux._connections.values()
    incoming = connection.owner.incoming
    return incoming is not None and incoming.pending is not None


def test_stop(loop: Loop) -> None:
    """The guest is told, and every session ends, whatever it is at."""
    script = Script()

    async def story() -> None:
        with Hand(loop) as hand:
            serving = Serving(loop, hand, script)
            await serving.meet()
            ours, far = socket.socketpair()
            ours.setblocking(False)
            hand.say(*(Open(number, 9, Endpoint("192.0.2.1", 80)) for number in range(3)))
            await until(loop, lambda: len(script.asked) == 3)
            script.outcome.post(Stream(loop, ours))
            await serving.hears()
            serving.host.stop("the host is told to stop")
            assert hand.heard() == [Goodbye("the host is told to stop")]
            assert hand.is_closed() and not serving.host.tasks
            ends = [line.split("end=")[1] for line in serving.log.lines if "end=" in line]
            assert len(ends) == 3 and {end.split()[0] for end in ends} <= {
                "client-lost",
                "reset",
                "terminated",
            }
            assert far.recv(1) == b""
            far.close()
            assert not [line for line in serving.log.lines if "any more" in line or "bug" in line]
            serving.host.stop("again")
            serving.task.interrupt(KeyboardInterrupt())

    play(loop, story)


def test_another_guest(loop: Loop) -> None:
    """Connections of the one before are reset at once, and their numbers are free."""

    async def story() -> None:
        with Hand(loop) as hand, a_listener() as (listener, address):
            serving = Serving(loop, hand)
            for turn in range(3):
                await serving.meet(b"number %d" % turn)
                hand.say(Open(0, 1 << 18, address))
                far = await accepted(loop, listener)
                await serving.hears()
                far.send(b"for guest %d" % turn)
                assert await serving.hears() == [(0, b"for guest %d" % turn)]
                hand.say(Hello(1, 0, b"a newone", NO_NUMBER))
                await rounds(loop, 50)
                with pytest.raises(ConnectionResetError):
                    far.recv(1)
                far.close()
                assert not serving.host.tasks
                hand.heard()
            await serving.host.leave("enough")
            serving.task.interrupt(KeyboardInterrupt())

    play(loop, story)


def test_many_at_once_leave_nothing(loop: Loop) -> None:
    async def story() -> None:
        with Hand(loop) as hand, a_listener() as (listener, address):
            serving = Serving(loop, hand)
            await serving.meet()
            with no_garbage():
                for _ in range(20):
                    hand.say(*(Open(number, 9, address) for number in range(10)))
                    fars = [await accepted(loop, listener) for _ in range(10)]
                    await serving.hears(10)
                    hand.say(*(Reset(number, 0) for number in range(10)))
                    await serving.is_empty()
                    hand.heard()
                    for far in fars:
                        far.close()
            assert serving.host.served == 200
            await serving.host.leave("enough")
            serving.task.interrupt(KeyboardInterrupt())

    play(loop, story)
