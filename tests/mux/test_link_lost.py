"""What a link has heard in one read may be over before it is looked at; what it lost is not its."""

import select
import socket
from collections.abc import Callable, Iterator

import pytest
from classic_port import frame
from ends import nothing_left_behind
from hand import BOUNDS, REQUEST, Clock, Hand, older_guest, play, rounds
from played import V4, frames_in, wire

from muonsocks.mux.events import Opened
from muonsocks.mux.frames import Control, Done, Eof, Goodbye, Hello, Open, Reset, decode
from muonsocks.mux.link import Bounds, Link
from muonsocks.mux.machine import Mux
from muonsocks.mux.port import Port
from muonsocks.net.loop import Loop
from muonsocks.net.stream import Stream
from muonsocks.socks.request import Event

MEMORY = 1 << 20
THEIRS = b"theirs01"


@pytest.fixture
def loop() -> Iterator[Loop]:
    with nothing_left_behind():
        loop = Loop()
        yield loop
        loop.close()


class Peer:
    """The other side of a link, made by hand, over a pair of sockets."""

    def __init__(self, loop: Loop, is_host: bool) -> None:
        self.loop = loop
        self.events: list[Event] = []
        self.losses: list[str] = []
        bounds = Bounds(100, MEMORY, 30.0)
        self.link = Link(loop, is_host, bounds, self.events.append, self.losses.append)
        self.sock = self.attach()

    def attach(self) -> socket.socket:
        sock, ours = socket.socketpair()
        ours.setblocking(False)
        self.link.attach(Port(Stream(self.loop, ours)))
        return sock

    def until(self, condition: Callable[[], object]) -> None:
        async def story() -> None:
            with self.loop.deadline(10):
                while not condition():
                    await self.loop.sleep(0.001)

        self.loop.run(story())

    def said(self) -> list[Control]:
        """What the link says next, as soon as there is something."""
        self.until(lambda: select.select([self.sock], [], [], 0)[0])
        data = self.sock.recv(1 << 16)
        return [decode(body) for _, body in frames_in(data) if body]

    def hello(self) -> Hello:
        """The last HELLO of that."""
        hello = self.said()[-1]
        assert isinstance(hello, Hello)
        return hello

    def meet(self, theirs: bytes = THEIRS) -> None:
        assert isinstance(self.link.mux, Mux)
        connections = 0 if self.link.mux._is_host else 100
        number = self.hello().number
        self.sock.sendall(wire(Hello(1, connections, theirs, number)))
        self.until(lambda: self.link.mux.is_up)
        assert self.hello().echo == theirs

    def close(self) -> None:
        self.link.detach("the test is over")
        self.sock.close()


@pytest.mark.parametrize(
    "end", [Reset(0, 0), Goodbye("bye"), Eof(9)], ids=["reset", "bye", "fault"]
)
def test_what_was_opened_and_is_over_is_not_begun(loop: Loop, end: Reset | Goodbye | Eof) -> None:
    """Or a hostile guest has us dial as often as it can write, whatever the limit is."""
    peer = Peer(loop, is_host=True)
    peer.meet()
    mux = peer.link.mux
    assert isinstance(mux, Mux)
    answer = [Done(0)] if isinstance(end, Reset) else []
    peer.sock.sendall(wire(Open(0, 1000, V4), end))
    if answer:
        assert peer.said() == answer
    else:
        peer.until(lambda: not mux.is_up)
    assert not [event for event in peer.events if isinstance(event, Opened)]
    assert mux._windows._left == MEMORY
    peer.close()


@pytest.mark.parametrize("is_host", [True, False], ids=["host", "guest"])
def test_a_port_that_is_lost_while_they_meet_takes_the_number_with_it(
    loop: Loop, is_host: bool
) -> None:
    """The other side may have heard us, and we not: it would take the session for begun."""
    peer = Peer(loop, is_host)
    first = peer.hello()
    peer.sock.sendall(wire(Hello(1, 0 if is_host else 100, THEIRS, bytes(8))))
    assert peer.hello() == Hello(1, 100 if is_host else 0, first.number, THEIRS)
    peer.sock.close()  # and with it our answer is lost
    peer.until(lambda: peer.losses)
    peer.sock = peer.attach()
    again = peer.hello()
    assert again.number != first.number
    assert again.echo == bytes(8)
    peer.close()


def test_what_an_older_guest_opened_is_let_go_where_it_was_opened(loop: Loop, clock: Clock) -> None:
    """The port fails while the first of two requests is looked at, and the next peer is one of
    ours: what is given back of the second is not memory of its.
    """

    async def story() -> None:
        with Hand(loop) as hand:
            side = await older_guest(loop, clock, hand)
            await side.hears(Opened)
            heard: list[Event] = []

            def on_event(event: Event) -> None:
                heard.append(event)
                if isinstance(event, Opened):
                    side.link._lose("Input/output error")  # as when an answer cannot be written

            side.link._on_event = on_event
            hand.say(frame(4, REQUEST), frame(5, REQUEST))
            await rounds(loop)
            assert len([event for event in heard if isinstance(event, Opened)]) == 1
            mux = side.link.mux
            assert isinstance(mux, Mux) and mux._windows._left == BOUNDS.memory

    play(loop, story, 600)
