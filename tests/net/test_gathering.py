"""A fast source gathers, and nothing that is not bulk is ever held back by that."""

import select
import socket
from collections.abc import Awaitable, Callable, Iterator

import pytest
from ends import PATIENCE, CountedRounds, Ours, noise, nothing_left_behind, tcp_pair
from joined import carried

from muonsocks.net import gathering
from muonsocks.net.loop import Loop
from muonsocks.net.relay import Ended, Relay
from muonsocks.net.stream import Stream

MIB = 1 << 20
PIECE = noise(256 << 10)


@pytest.fixture(autouse=True)
def leaks_nothing() -> Iterator[None]:
    with nothing_left_behind():
        yield


@pytest.fixture(autouse=True)
def any_speed_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is that this runs on."""
    monkeypatch.setattr(gathering, "_FAST", 1.0)
    monkeypatch.setattr(gathering, "_PROOF", 0.001)


def pair(kind: str) -> tuple[socket.socket, socket.socket]:
    if kind == "mptcp":
        return multipath_pair()
    return tcp_pair() if kind == "tcp" else socket.socketpair()


def multipath_pair() -> tuple[socket.socket, socket.socket]:
    try:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
        ours = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
    except OSError as error:
        pytest.skip(f"no MPTCP here: {error.strerror}")
    with listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        ours.connect(listener.getsockname())
        return ours, listener.accept()[0]


class Bulk:
    """A relay in a loop of its own, and its two ends: `client` sends and `far` takes, by default.

    `sent` and `taken` are all that has passed between them.
    """

    def __init__(self, kind: str = "tcp") -> None:
        self.loop = Loop()
        self.rounds = CountedRounds(self.loop)
        self.source, self.client = pair(kind)
        self.sink, self.far = pair(kind)
        for end in (self.client, self.far):
            end.setblocking(False)
        self.sent, self.taken = bytearray(), bytearray()
        self.ended: Ended | None = None

    def run(self, story: Callable[["Bulk"], Awaitable[None]]) -> None:
        """Relay while `story` goes on, and see the relay end behind it."""

        async def main() -> None:
            source, sink = (
                Ours(sock.fileno(), sock.fileno(), sock).stream(self.loop)
                for sock in (self.source, self.sink)
            )
            with self.loop.deadline(PATIENCE):
                task = self.loop.spawn(self._relay(source, sink), pytest.fail)
                await story(self)
                self.client.close()
                self.far.close()
                while not task.is_over:
                    await self.loop.sleep(0.001)

        self.loop.run(main())
        assert not any(timer.callback for _, _, timer in self.loop.timers)
        self.loop.close()

    async def _relay(self, source: Stream, sink: Stream) -> None:
        self.relay = Relay(source, sink)
        self.ended = await carried(self.relay, PATIENCE, PATIENCE)
        halves = self.relay.up, self.relay.down
        assert not any(half._gathering for half in halves), "a reference cycle"
        self.low_water = [low_water(sock) for sock in (self.source, self.sink)]
        source.close()
        sink.close()

    def send(self, data: bytes) -> None:
        self.sent += data[: self.client.send(data)]

    def take(self) -> bool:
        """Take all that is there; False at the end."""
        try:
            while part := self.far.recv(4 * MIB):
                self.taken += part
        except BlockingIOError:
            return True
        return False

    async def until_it_gathers(self) -> None:
        while low_water(self.source) == 1:
            try:
                self.send(PIECE)
            except BlockingIOError:
                pass
            await self.loop.sleep(0.0005)
            self.take()

    async def until_all_is_there(self) -> None:
        while len(self.taken) < len(self.sent):
            assert self.take()
            await self.loop.sleep(0.0001)
        assert self.taken == self.sent

    async def until_it_does_not(self) -> None:
        while low_water(self.source) > 1:
            await self.loop.sleep(0.0005)


def low_water(sock: socket.socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)


@pytest.fixture
def nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only events tell."""
    monkeypatch.setattr(gathering, "_LOOK", 10 * PATIENCE)


@pytest.mark.usefixtures("nobody_looks")
def test_many_pieces_are_one_event() -> None:
    async def story(bulk: Bulk) -> None:
        await bulk.until_it_gathers()
        events, fd = [], bulk.source.fileno()
        handler = bulk.loop.handlers[fd]

        def on_event(happened: int) -> None:
            events.append(happened & select.EPOLLIN)
            handler(happened)

        bulk.loop.handlers[fd] = on_event
        before = bulk.relay.up.count
        for _ in range(100):
            bulk.send(PIECE[:5000])
            await bulk.loop.sleep(0.0001)
        assert not any(events)
        while not any(events):
            bulk.send(PIECE[:5000])
            await bulk.loop.sleep(0.0001)
        assert bulk.relay.up.count - before >= gathering._GATHERED

    Bulk().run(story)


@pytest.mark.parametrize("size", [1, 1000, 100_000, MIB - 1])
@pytest.mark.parametrize("kind", ["tcp", "mptcp"])
def test_the_last_bytes_are_fetched(kind: str, size: int) -> None:
    async def story(bulk: Bulk) -> None:
        await bulk.until_it_gathers()
        bulk.send(noise(size))
        await bulk.until_all_is_there()
        # And what comes later comes at once: it is an event again.
        await bulk.until_it_does_not()
        bulk.send(b"later")
        await bulk.until_all_is_there()

    Bulk(kind).run(story)


def test_over_and_over() -> None:
    async def story(bulk: Bulk) -> None:
        for _ in range(5):
            await bulk.until_it_gathers()
            bulk.send(b"the last of this burst")
            await bulk.until_all_is_there()
            await bulk.until_it_does_not()

    Bulk().run(story)


# What does not gather


@pytest.fixture
def nothing_gathers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold that it never did: it might be over before anybody looks."""
    monkeypatch.setattr(gathering.Gathering, "_set", lambda *_: pytest.fail("it gathers"))


@pytest.mark.usefixtures("nothing_gathers")
@pytest.mark.parametrize("limit", ["_PROOF", "_FAST"])
def test_short_burst_and_slow_source(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(gathering, limit, 1e12)
    Bulk().run(pieces)


@pytest.mark.usefixtures("nothing_gathers")
def test_unix_socket() -> None:
    Bulk("unix").run(pieces)


async def pieces(bulk: Bulk) -> None:
    for _ in range(50):
        bulk.send(PIECE)
        await bulk.until_all_is_there()


@pytest.mark.usefixtures("nothing_gathers")
def test_source_that_is_answered() -> None:
    """Whoever answers may be waited for: a window of the two programs' own, say."""

    async def story(bulk: Bulk) -> None:
        for _ in range(50):
            bulk.send(PIECE)
            await bulk.until_all_is_there()
            bulk.far.send(b"go on")
            await bulk.loop.sleep(0.0005)
        assert bulk.client.recv(MIB) == b"go on" * 50

    Bulk().run(story)


def test_answer_ends_the_gathering() -> None:
    async def story(bulk: Bulk) -> None:
        await bulk.until_it_gathers()
        bulk.far.send(b"answer")
        while low_water(bulk.source) > 1:
            bulk.send(b"x")
            await bulk.loop.sleep(0.0005)
        await bulk.until_all_is_there()

    Bulk().run(story)


def test_acknowledged_at_once() -> None:
    """A sender may wait for that (Nagle), and what is answered would else be acknowledged later."""

    def is_at_once(sock: socket.socket) -> int:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK)

    async def story(bulk: Bulk) -> None:
        while is_at_once(bulk.source):
            bulk.send(b"question")
            await bulk.until_all_is_there()
            bulk.far.send(b"answer")
            await bulk.loop.sleep(0.0005)
        await bulk.until_it_gathers()
        await bulk.until_it_does_not()
        assert is_at_once(bulk.source)
        await bulk.until_all_is_there()

    Bulk().run(story)


# What is told at once


@pytest.mark.usefixtures("nobody_looks")
def test_an_end_is_told_at_once() -> None:
    async def story(bulk: Bulk) -> None:
        await bulk.until_it_gathers()
        bulk.send(b"the last words")
        bulk.client.shutdown(socket.SHUT_WR)
        while bulk.take():
            await bulk.loop.sleep(0.0005)
        assert bulk.taken == bulk.sent

    bulk = Bulk()
    bulk.run(story)
    assert bulk.ended
    assert bulk.ended.reason == "closed"


@pytest.mark.usefixtures("nobody_looks")
def test_a_reset_is_told_at_once() -> None:
    async def story(bulk: Bulk) -> None:
        await bulk.until_it_gathers()
        linger = (1).to_bytes(4, "little") + bytes(4)
        bulk.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        bulk.client.close()
        while not bulk.ended:
            await bulk.loop.sleep(0.0005)
            bulk.take()
        assert bulk.ended.reason == "reset"

    Bulk().run(story)


@pytest.mark.usefixtures("nobody_looks")
def test_urgent_data_is_told_at_once() -> None:
    async def story(bulk: Bulk) -> None:
        await bulk.until_it_gathers()
        bulk.send(b"in front")
        bulk.sent += b"!"
        bulk.client.send(b"!", socket.MSG_OOB)
        await bulk.until_all_is_there()

    Bulk().run(story)


@pytest.mark.usefixtures("nobody_looks")
def test_a_full_buffer_is_told_at_once() -> None:
    """One that never holds as much as is to gather."""

    async def story(bulk: Bulk) -> None:
        bulk.source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 << 10)
        await bulk.until_it_gathers()
        while len(bulk.sent) < 8 * MIB:
            try:
                bulk.send(PIECE)
            except BlockingIOError:
                pass
            await bulk.loop.sleep(0.0005)
            bulk.take()

    Bulk().run(story)


# When it is over


@pytest.mark.usefixtures("nobody_looks")
def test_what_came_meanwhile_is_told_when_it_stops() -> None:
    async def story(bulk: Bulk) -> None:
        await bulk.until_it_gathers()
        bulk.send(b"too little for an event")
        await bulk.loop.sleep(0.01)
        assert bulk.take()
        assert len(bulk.taken) < len(bulk.sent)
        assert bulk.relay.up._gathering
        bulk.relay.up._gathering.stop()
        await bulk.until_all_is_there()

    Bulk().run(story)


def test_sink_that_takes_nothing_is_not_asked_again_and_again() -> None:
    async def story(bulk: Bulk) -> None:
        await bulk.until_it_gathers()
        while bulk.relay.up.pending is None:
            try:
                bulk.send(PIECE)
            except BlockingIOError:
                pass
            await bulk.loop.sleep(0.0001)
        await bulk.until_it_does_not()
        rounds = bulk.rounds.count
        await bulk.loop.sleep(0.05)
        assert 0 < bulk.rounds.count - rounds < 20
        await bulk.until_all_is_there()

    Bulk().run(story)


def test_source_is_given_back_as_it_was() -> None:
    """Who has it next is told of every byte."""

    async def story(bulk: Bulk) -> None:
        await bulk.until_it_gathers()
        bulk.relay._finish("idle-timeout")
        while not bulk.ended:
            await bulk.loop.sleep(0.0005)
        assert bulk.low_water == [1, 1]

    Bulk().run(story)


def test_look_that_ends_the_relay() -> None:
    """It finds the end of the other side too, and nothing is left of the relay then."""

    async def story(bulk: Bulk) -> None:
        bulk.far.shutdown(socket.SHUT_WR)
        while not bulk.relay.down.over:
            await bulk.loop.sleep(0.0005)
        await bulk.until_it_gathers()
        # No event is to see it first.
        bulk.loop.handlers[bulk.source.fileno()] = lambda _: None
        bulk.client.shutdown(socket.SHUT_WR)
        while not bulk.ended:
            bulk.take()
            await bulk.loop.sleep(0.0005)
        assert bulk.ended.reason == "closed"

    Bulk().run(story)
