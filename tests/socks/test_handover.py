"""The steps of a hand-over, at both ends: whose the connection is, whatever goes wrong when."""

import errno
import os
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conformance import Conformance, Thread
from ends import (
    KINDS,
    PATIENCE,
    End,
    Lines,
    Ours,
    Outcome,
    descriptors,
    no_garbage,
    nothing_left_behind,
    tcp_pair,
)
from hypothesis import given
from hypothesis import strategies as st
from places import descriptor_limit
from strategies import few

from muonsocks.log import DEBUG, INFO
from muonsocks.net import passing
from muonsocks.net.borrowed import BorrowedSocket
from muonsocks.net.dial import Dialler
from muonsocks.net.inherit import Peer
from muonsocks.net.listen import listen_at
from muonsocks.net.loop import Loop
from muonsocks.net.passing import Passage
from muonsocks.socks import handover
from muonsocks.socks.handover import NotTaken, hand_over, is_taken_over, serve
from muonsocks.socks.offer import FULL, GO, TAKEN, Offer
from muonsocks.socks.policy import Access, Limits, Policy
from muonsocks.socks.rules import Rules
from muonsocks.socks.session import Session

# What is closed by being forgotten only was not closed.
pytestmark = [
    pytest.mark.filterwarnings("error::ResourceWarning"),
    pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def leaks_nothing() -> Iterator[None]:
    with nothing_left_behind():
        yield


def accepted(listener: Any) -> socket.SocketType:
    fd, _ = listener._accept()
    return socket.SocketType(fileno=fd)


def session(client: Any, log: Lines, path: str, limits: Limits | None = None) -> Session:
    limits = limits or Limits(PATIENCE, PATIENCE, PATIENCE)
    policy = Policy(Access(), Rules((), allow_local=True), Dialler(), limits, path)
    made = Session(client, Peer("192.0.2.9:999"), policy, log)
    made.user, made.target = b"al ice", "host:80"
    return made


class TestConformance(Conformance):
    """A tool in a thread hands over to a relay in another: the ends notice nothing of that."""

    kinds = ("tcp-tcp", "unix-unix", "tcp-unix", "unix-tcp")

    def start(
        self, ours: Ours, theirs: End, kind: str, place: Path, early: bytes
    ) -> tuple[End, Callable[[], Outcome]]:
        (place / "far").mkdir()
        our_far, far = KINDS[kind.partition("-")[2]].make(place / "far")
        path, log = str(place / "relay"), Lines()
        listener = listen_at(path)

        def tool() -> None:
            loop = Loop()
            client, far_stream = ours.stream(loop), our_far.stream(loop)

            relaying = session(client, Lines(), path).relay(far_stream, early)
            assert loop.run(relaying) is None, "not handed over"
            assert not loop.handlers
            loop.close()

        def relay() -> None:
            select.select([listener], [], [], PATIENCE)
            loop = Loop()
            loop.run(serve(loop, accepted(listener), log))
            listener.close()
            assert not loop.handlers
            assert not any(timer.callback for _, _, timer in loop.timers)
            loop.close()

        threads = [Thread(relay), Thread(tool)]

        def over() -> Outcome:
            for thread in threads[::-1]:
                thread.join()
            return Outcome.of("\n".join(log.lines))

        return far, over


# One loop with a tool and a relay in it, step by step


class Stage:
    """A connection in a tool's hands, and a place where a relay would listen."""

    def __init__(self, loop: Loop, path: str) -> None:
        self.loop = loop
        self.path = path
        self.log = Lines()
        self.log.level = DEBUG
        self.relay_log = Lines()
        self.room = True
        self.served = 0
        (ours, self.client), (our_far, self.far) = tcp_pair(), tcp_pair()
        self.ours, self.our_far = (
            Ours(sock.fileno(), sock.fileno(), sock).stream(loop) for sock in (ours, our_far)
        )
        for end in (self.client, self.far):
            end.settimeout(PATIENCE)
        self.messages = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.failures: list[BaseException] = []

    def offer(self, **facts: Any) -> Offer:
        limits = {"idle": PATIENCE, "half_close": PATIENCE}
        words = {"client": "c", "user": b"", "target": "t", "address": "a"}
        return Offer(**words | {"reply": 0, "age": 0.0} | limits | facts)

    def listen(self, answer: Callable[[socket.SocketType], None]) -> Any:
        """Listen, and call with each connection."""
        listener = listen_at(self.path)
        self.loop.register(listener.fileno(), lambda _: answer(accepted(listener)))
        return listener

    def unlisten(self, listener: Any) -> None:
        self.loop.unregister(listener.fileno())
        listener.close()

    def reside(self) -> Any:
        """Listen, and serve."""

        def on_return(_: int) -> None:
            self.served += 1

        def answer(sock: socket.SocketType) -> None:
            serving = serve(self.loop, sock, self.relay_log, self.room)
            self.loop.spawn(serving, self.failures.append, on_return)

        return self.listen(answer)

    def call(self, offer: bytes, *fds: int) -> Passage:
        """Be a tool of another make, up to its offer."""
        passage = Passage.to(self.loop, self.path)
        assert passage.socket is not None
        passing.send(passage.socket, offer, fds)
        return passage

    def fds(self) -> tuple[int, int]:
        return self.ours.reader, self.our_far.reader

    async def until(self, condition: Callable[[], Any]) -> None:
        """Let the others have their turn until something is so."""
        with self.loop.deadline(PATIENCE):
            while not condition():
                await self.loop.sleep(0.001)

    def still_ours(self) -> None:
        """Hold that the tool's sockets are as they were, and nobody else reads from them."""
        for stream, end in ((self.ours, self.client), (self.our_far, self.far)):
            end.sendall(b"there")
            assert select.select([stream.reader], [], [], PATIENCE)[0]
            assert os.read(stream.reader, 100) == b"there"
            os.write(stream.writer, b"back")
            assert end.recv(100) == b"back"

    def close(self) -> None:
        for thing in (self.ours, self.our_far, self.client, self.far, self.messages):
            thing.close()


@pytest.fixture
def perform(tmp_path: Path) -> Callable[[Callable[[Stage], Any]], Stage]:
    def perform(story: Callable[[Stage], Any]) -> Stage:
        loop = Loop()
        stage = Stage(loop, str(tmp_path / "relay"))

        async def main() -> None:
            try:
                with loop.deadline(2 * PATIENCE):
                    await story(stage)
            finally:
                stage.close()

        with closing(loop):
            loop.run(main())
            assert not loop.handlers
        assert stage.failures == []
        return stage

    return perform


Perform = Callable[[Callable[[Stage], Any]], Stage]


def test_the_line_at_the_end_has_the_facts(perform: Perform) -> None:
    async def story(stage: Stage) -> None:
        listener = stage.reside()
        stage.relay_log.level = DEBUG
        tool = session(stage.ours, stage.log, stage.path, Limits(1, 70, 80))
        tool.reply = 0
        stage.our_far.name = "127.0.0.1:80"
        tool.started -= 100
        assert await tool.relay(stage.our_far, b"early, ") is None
        stage.our_far.close()
        stage.client.sendall(b"late")
        assert stage.ours.reader == -1
        heard = b""
        while len(heard) < 11:
            await stage.loop.sleep(0.001)
            if select.select([stage.far], [], [], 0)[0]:
                heard += stage.far.recv(100)
        assert heard == b"early, late"
        stage.far.sendall(b"answer")
        stage.client.close()
        stage.far.close()
        await stage.until(lambda: "closed" in stage.relay_log.lines[-1])
        stage.unlisten(listener)

    stage = perform(story)
    facts = r"client=192.0.2.9:999 user=al\x20ice target=host:80"
    [connected] = stage.log.lines
    assert connected.startswith(f"connected {facts} address=127.0.0.1:80")
    taken, closed = stage.relay_log.lines
    assert taken == connected.replace("connected", "taken")
    head, _, rest = closed.partition(" secs=")
    assert head == f"closed {facts} reply=0 in=11 out=6"
    seconds, _, end = rest.partition(" ")
    assert 100 <= float(seconds) < 100 + PATIENCE
    assert end in ("end=closed", "end=reset")


@pytest.mark.parametrize("which", ["idle", "half_close"])
def test_the_limits_are_the_tool_s(perform: Perform, which: str) -> None:
    async def story(stage: Stage) -> None:
        listener = stage.reside()
        limits = Limits(1, 0.1, 50) if which == "idle" else Limits(1, 50, 0.1)
        assert await session(stage.ours, stage.log, stage.path, limits).relay(stage.our_far) is None
        stage.our_far.close()
        if which == "half_close":
            stage.client.shutdown(socket.SHUT_WR)
        await stage.until(lambda: stage.relay_log.lines)
        with pytest.raises(ConnectionResetError):
            stage.client.recv(1)
        stage.unlisten(listener)

    assert f"end={which.replace('_', '-')}-timeout" in perform(story).relay_log.lines[0]


@pytest.mark.parametrize("after", ["nothing", "the offer", "TAKEN"])
def test_a_tool_that_leaves_keeps_its_connection(perform: Perform, after: str) -> None:
    async def story(stage: Stage) -> None:
        listener = stage.reside()
        before = descriptors()
        if after == "nothing":
            passage = Passage.to(stage.loop, stage.path)
        else:
            passage = stage.call(stage.offer().encode(), *stage.fds())
        if after == "TAKEN":
            assert await passage.receive_message(100) == (TAKEN, [])
        passage.close()
        await stage.until(lambda: stage.served)
        assert descriptors() == before
        stage.still_ours()
        stage.unlisten(listener)

    assert perform(story).relay_log.lines == []


def test_it_relays_only_on_go(perform: Perform) -> None:
    async def story(stage: Stage) -> None:
        listener = stage.reside()
        passage = stage.call(stage.offer(early=b"early").encode(), *stage.fds())
        assert await passage.receive_message(100) == (TAKEN, [])
        await stage.loop.sleep(0.05)
        assert not select.select([stage.far], [], [], 0)[0]
        stage.still_ours()
        await passage.send_message(GO)
        passage.close()
        stage.ours.close()
        stage.our_far.close()
        await stage.until(lambda: select.select([stage.far], [], [], 0)[0])
        assert stage.far.recv(100) == b"early"
        stage.client.close()
        stage.far.close()
        await stage.until(lambda: stage.relay_log.lines)
        stage.unlisten(listener)

    assert "in=5 " in perform(story).relay_log.lines[0]


def test_a_tool_that_never_says_go(perform: Perform, monkeypatch: Any) -> None:
    """It is told so when it tries after all."""
    monkeypatch.setattr(handover, "_STEP", 0.1)

    async def story(stage: Stage) -> None:
        listener = stage.reside()
        passage = stage.call(stage.offer().encode(), *stage.fds())
        assert await passage.receive_message(100) == (TAKEN, [])
        assert await passage.receive_message(100) == (b"", [])
        with pytest.raises(BrokenPipeError):
            await passage.send_message(GO)
        passage.close()
        stage.still_ours()
        stage.unlisten(listener)

    assert perform(story).relay_log.lines == []


def test_go_in_the_last_moment(perform: Perform, monkeypatch: Any) -> None:
    """The relay has given up waiting, and is about to say so: what was sent, counts."""
    monkeypatch.setattr(handover, "_STEP", 0.1)
    late: list[Passage] = []
    last_message = Passage.last_message

    def send_go_first(self: Passage, limit: int) -> bytes:
        assert late[0].socket is not None
        passing.send(late[0].socket, GO)
        return last_message(self, limit)

    monkeypatch.setattr(Passage, "last_message", send_go_first)

    async def story(stage: Stage) -> None:
        listener = stage.reside()
        late.append(stage.call(stage.offer().encode(), *stage.fds()))
        assert await late[0].receive_message(100) == (TAKEN, [])
        assert await late[0].receive_message(100) == (b"", [])
        late[0].close()
        stage.client.close()
        stage.far.close()
        await stage.until(lambda: stage.relay_log.lines)
        stage.unlisten(listener)

    assert "closed client=c" in perform(story).relay_log.lines[0]


def test_a_tool_that_offers_nothing(perform: Perform, monkeypatch: Any) -> None:
    monkeypatch.setattr(handover, "_STEP", 0.1)

    async def story(stage: Stage) -> None:
        listener = stage.reside()
        for level in (DEBUG, INFO):
            stage.relay_log.level = level
            passage = Passage.to(stage.loop, stage.path)
            assert await passage.receive_message(100) == (b"", [])
            passage.close()
        stage.unlisten(listener)

    assert perform(story).relay_log.lines == ["refused an offer: it has not come"]


def test_a_tool_that_says_something_else(perform: Perform) -> None:
    async def story(stage: Stage) -> None:
        listener = stage.reside()
        passage = stage.call(stage.offer().encode(), *stage.fds())
        assert await passage.receive_message(100) == (TAKEN, [])
        await passage.send_message(b"GO ON")
        assert await passage.receive_message(100) == (b"", [])
        passage.close()
        stage.still_ours()
        stage.unlisten(listener)

    assert perform(story).relay_log.lines == [
        "refused an offer: its tool says neither GO nor nothing"
    ]


def test_no_room(perform: Perform) -> None:
    async def story(stage: Stage) -> None:
        listener = stage.reside()
        stage.room = False
        passage = stage.call(stage.offer().encode(), *stage.fds())
        assert await passage.receive_message(100) == (FULL, [])
        passage.close()
        with pytest.raises(NotTaken, match="it is full"):
            await hand_over(stage.path, stage.offer(), stage.ours, stage.our_far)
        stage.still_ours()
        stage.unlisten(listener)

    assert perform(story).relay_log.lines == []


BAD_SOCKETS: dict[str, tuple[Callable[[Stage], tuple[int, ...]], str]] = {
    "none": (lambda _: (), "it has 0 sockets, not 2"),
    "one": (lambda stage: stage.fds()[:1], "it has 1 sockets, not 2"),
    "three": (lambda stage: (*stage.fds(), 0), "more than 2 descriptors are passed"),
    "many": (lambda stage: stage.fds() * 100, "more than 2 descriptors are passed"),
    "a file": (lambda stage: (stage.ours.reader, 0), "a descriptor that is passed is no socket"),
    "messages": (
        lambda stage: (stage.ours.reader, stage.messages.fileno()),
        "a socket that is passed is no stream",
    ),
}


@pytest.mark.parametrize("what", BAD_SOCKETS)
def test_an_offer_of_other_things(perform: Perform, what: str) -> None:
    choose, said = BAD_SOCKETS[what]

    async def story(stage: Stage) -> None:
        listener = stage.reside()
        with stage.messages:
            before = descriptors()
            passage = stage.call(stage.offer().encode(), *choose(stage))
            assert await passage.receive_message(100) == (b"", [])
            passage.close()
            assert descriptors() == before
        stage.still_ours()
        stage.unlisten(listener)

    assert perform(story).relay_log.lines == [f"refused an offer: {said}"]


MESSAGES = {
    "garbage": (b"\0\xff\n\x1b[2J", "it does not begin with OFFER 1: of another version?"),
    "another version": (b"OFFER 2\n", "it does not begin with OFFER 1: of another version?"),
    "no facts": (b"OFFER 1\n\n", "it has not 8 lines and an empty one"),
    "too long": (bytes(65537), "a message is longer than 65536 bytes"),
}


@pytest.mark.parametrize("what", MESSAGES)
def test_an_offer_that_is_none(perform: Perform, what: str) -> None:
    message, said = MESSAGES[what]

    async def story(stage: Stage) -> None:
        listener = stage.reside()
        passage = stage.call(message, *stage.fds())
        assert await passage.receive_message(100) == (b"", [])
        passage.close()
        stage.still_ours()
        stage.unlisten(listener)

    assert perform(story).relay_log.lines == [f"refused an offer: {said}"]


def test_an_empty_offer_with_sockets(perform: Perform) -> None:
    async def story(stage: Stage) -> None:
        listener = stage.reside()
        passage = Passage.to(stage.loop, stage.path)
        assert passage.socket is not None
        socket.send_fds(passage.socket, [b""], list(stage.fds()))
        assert await passage.receive_message(100) == (b"", [])
        passage.close()
        stage.still_ours()
        stage.unlisten(listener)

    lines = perform(story).relay_log.lines
    assert lines == ["refused an offer: descriptors are passed with no word"]


@few
@given(
    st.binary(max_size=200), st.integers(0, 250), st.lists(st.sampled_from((0, 1, 2)), max_size=4)
)
def test_damaged_offers(noise: bytes, place: int, fds: list[int]) -> None:
    """Whatever comes: refused with one line or taken, and nothing stays behind."""
    loop = Loop()
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sockets = socket.socketpair()
    log = Lines()
    offer = Offer("c", b"", "t", "a", 0, 0.0, 1.0, 1.0).encode()
    whose = [(0, sockets[0].fileno(), sockets[1].fileno())[number] for number in fds]

    async def story() -> None:
        relaying = serve(loop, socket.SocketType(fileno=ends[1].detach()), log)
        passing.send(ends[0], offer[:place] + noise + offer[place + len(noise) :] or b".", whose)
        failures: list[BaseException] = []
        task = loop.spawn(relaying, failures.append)
        await loop.sleep(0.001)
        ends[0].close()
        while not task.is_over:
            await loop.sleep(0.001)
        assert failures == []

    with closing(loop):
        loop.run(story())
        assert not loop.handlers
    for sock in sockets:
        sock.close()
    assert len(log.lines) <= 1
    assert all(line.isprintable() for line in log.lines)


def test_no_descriptors_are_free(perform: Perform) -> None:
    """The relay refuses, and goes on."""

    async def story(stage: Stage) -> None:
        listener = stage.reside()
        passage = stage.call(stage.offer().encode(), *stage.fds())
        with descriptor_limit(2):  # one for the connection, one of two
            assert await passage.receive_message(100) == (b"", [])
        passage.close()
        stage.still_ours()
        stage.unlisten(listener)

    lines = perform(story).relay_log.lines
    assert lines == ["refused an offer: no room for the descriptors that are passed"]


def test_sockets_that_would_wait_at_their_close(perform: Perform) -> None:
    """A relay of many has no time for what one launcher has set, nor for a blocking socket."""

    async def story(stage: Stage) -> None:
        listener = stage.reside()
        for stream in (stage.ours, stage.our_far):
            assert stream.socket is not None
            linger = (1).to_bytes(4, "little") + (60).to_bytes(4, "little")
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
            os.set_blocking(stream.reader, True)
        passage = stage.call(stage.offer().encode(), *stage.fds())
        assert await passage.receive_message(100) == (TAKEN, [])
        await passage.send_message(GO)
        passage.close()
        await stage.loop.sleep(0.01)
        for stream in (stage.ours, stage.our_far):
            assert stream.socket is not None
            assert not os.get_blocking(stream.reader)
            assert stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)[:4] == bytes(4)
            assert stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            stream.close()
        stage.client.close()
        stage.far.close()
        await stage.until(lambda: stage.relay_log.lines)
        stage.unlisten(listener)

    perform(story)


def test_nothing_is_garbage(perform: Perform) -> None:
    async def story(stage: Stage) -> None:
        listener = stage.reside()
        await hand_over(stage.path, stage.offer(), stage.ours, stage.our_far)
        stage.close()
        await stage.until(lambda: stage.relay_log.lines)
        passage = stage.call(b"no offer")
        assert await passage.receive_message(1) == (b"", [])
        passage.close()
        stage.unlisten(listener)

    with no_garbage():
        stage = perform(story)
    assert stage.served == 2  # and keeps the loop: that is there once, and has cycles of its own


# A tool, and relays that are not as they should be


async def kept(stage: Stage) -> str:
    """Offer; the connection must stay. Say why."""
    with pytest.raises(NotTaken) as raised:
        await hand_over(stage.path, stage.offer(), stage.ours, stage.our_far)
    stage.still_ours()
    said = str(raised.value)
    assert said.startswith(f"{stage.path}: ")
    return said.removeprefix(f"{stage.path}: ")


def test_no_relay(perform: Perform) -> None:
    async def story(stage: Stage) -> None:
        assert await kept(stage) == os.strerror(errno.ENOENT)
        listen_at(stage.path).close()
        assert await kept(stage) == os.strerror(errno.ECONNREFUSED)

    perform(story)


Answer = Callable[[socket.SocketType], None]


def says(*words: bytes) -> Answer:
    def answer(sock: socket.SocketType) -> None:
        if words:
            sock.recv(1 << 16)
        for word in words:
            passing.send(sock, word)
        sock.close()

    return answer


def takes_and_dies(sock: socket.SocketType) -> None:
    """There is nobody any more to read GO."""
    sock.recv(1 << 16)
    passing.send(sock, TAKEN)
    sock.close()


def sends_descriptors(sock: socket.SocketType) -> None:
    sock.recv(1 << 16)
    passing.send(sock, TAKEN, (0, 1))
    sock.close()


STRANGE: dict[str, tuple[Answer, str]] = {
    "closes": (says(), "Broken pipe|Connection reset by peer|it refuses"),
    "refuses": (says(b"REFUSED"), "it refuses"),
    "speaks another language": (says(b"\0"), "it refuses"),
    "speaks too much": (says(bytes(100)), "longer than 16 bytes"),
    "takes and dies": (takes_and_dies, "Broken pipe"),
    "sends descriptors": (sends_descriptors, "more than 0 descriptors"),
}


@pytest.mark.parametrize("what", STRANGE)
def test_a_strange_relay(perform: Perform, what: str) -> None:
    answer, said = STRANGE[what]

    async def story(stage: Stage) -> None:
        listener = stage.listen(answer)
        reason = await kept(stage)
        assert any(part in reason for part in said.split("|")), reason
        stage.unlisten(listener)

    perform(story)


def test_a_relay_that_says_nothing(perform: Perform, monkeypatch: Any) -> None:
    """The session goes on by itself; what comes late from the relay is no matter."""
    monkeypatch.setattr(handover, "_PATIENCE", 0.1)
    held: list[socket.SocketType] = []

    async def story(stage: Stage) -> None:
        listener = stage.listen(held.append)
        tool = session(stage.ours, stage.log, stage.path)
        over: list[int] = []
        relaying = tool.logged(lambda: tool.relay(stage.our_far, b"early"))
        stage.loop.spawn(relaying, pytest.fail, over.append)
        await stage.until(lambda: select.select([stage.far], [], [], 0)[0])
        assert stage.far.recv(100) == b"early"
        stage.client.close()
        stage.far.close()
        await stage.until(lambda: over)
        assert stage.log.lines[-1].split(" end=")[1] in ("closed", "reset")
        [sock] = held
        _, fds = passing.receive(sock, 1 << 16, 2)
        passing.close_all(fds)
        with pytest.raises(BrokenPipeError):
            passing.send(sock, TAKEN)
        sock.close()
        stage.unlisten(listener)

    log = perform(story).log.lines
    assert [line.split(" ", 1)[0] for line in log] == [
        "connected",
        "client=192.0.2.9:999",
        "closed",
    ]
    assert "not handed over: " in log[1] and "time limit" in log[1]


def test_terminated_while_it_is_offered(perform: Perform) -> None:
    """The client has been told that it is connected: an end would look like an empty answer."""

    class Terminated(BaseException):
        pass

    held: list[socket.SocketType] = []

    async def story(stage: Stage) -> None:
        listener = stage.listen(held.append)
        failures: list[BaseException] = []
        tool = session(stage.ours, stage.log, stage.path)

        async def relay() -> None:
            try:
                await tool.relay(stage.our_far)
            finally:
                stage.ours.close()
                stage.our_far.close()

        task = stage.loop.spawn(relay(), failures.append)
        await stage.until(lambda: held)
        task.interrupt(Terminated())
        assert [type(error) for error in failures] == [Terminated]
        held[0].close()
        for end in (stage.client, stage.far):
            with pytest.raises(ConnectionResetError):
                end.recv(1)
        stage.unlisten(listener)

    perform(story)


def test_only_sockets_are_offered(perform: Perform) -> None:
    async def story(stage: Stage) -> None:
        listener = stage.listen(lambda _: pytest.fail("offered"))
        ours, theirs = KINDS["pipes"].make(Path())
        pipes = ours.stream(stage.loop)
        for pair in ((pipes, stage.our_far), (stage.ours, pipes)):
            with pytest.raises(NotTaken, match="only stream sockets"):
                await hand_over(stage.path, stage.offer(), *pair)
        pipes.close()
        theirs.close()
        messages, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        no_stream = Ours(messages.fileno(), messages.fileno(), messages).stream(stage.loop)
        with other, pytest.raises(NotTaken, match="only stream sockets"):
            await hand_over(stage.path, stage.offer(), no_stream, stage.our_far)
        no_stream.close()
        stage.unlisten(listener)

    perform(story)


def test_facts_that_cannot_be_said(perform: Perform) -> None:
    """A user name by SOCKS_USER, say, may be longer than any in the protocol."""

    async def story(stage: Stage) -> None:
        listener = stage.listen(lambda _: pytest.fail("offered"))
        tool = session(stage.ours, stage.log, stage.path)
        tool.user = bytes(256)
        assert not await is_taken_over(tool, stage.our_far, b"")
        stage.still_ours()
        stage.unlisten(listener)

    assert "not handed over: its user is too long" in perform(story).log.lines[0]


def test_blocking_mode_is_not_given_back(perform: Perform) -> None:
    """The relay has the same file description, and needs it as it is."""

    async def story(stage: Stage) -> None:
        listener = stage.reside()
        kept = os.dup(stage.ours.reader)
        fd = stage.ours.reader
        stage.loop.unregister(fd)
        ours = BorrowedSocket(stage.loop, stage.ours.socket, (fd,))
        assert await session(ours, stage.log, stage.path).relay(stage.our_far) is None
        stage.our_far.close()
        assert not os.get_blocking(kept)
        os.close(kept)
        stage.client.close()
        stage.far.close()
        await stage.until(lambda: stage.relay_log.lines)
        stage.unlisten(listener)

    perform(story)
