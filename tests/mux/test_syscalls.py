"""The nth system call fails, is interrupted or short, for all n: no hang, no leak, no lost byte.

Both sides of a mux, and two connections through it; the calls are those at the port and at the
streams of the connections.
"""

import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from both import MEMORY, Both
from ends import End, noise, nothing_left_behind, tcp_pair
from faults import FAULTS, Fault, each_call
from faults import Peer as Scripted
from hand import play, rounds, until

from muonsocks.mux import carriage as carriage_module
from muonsocks.mux import port as port_module
from muonsocks.mux.carriage import Carriage
from muonsocks.net.loop import Loop
from muonsocks.net.stream import Stream, prepare_tcp

UP, DOWN = noise(400_000), noise(300_000, 2)
LIMIT = 10.0  # s


@pytest.fixture(autouse=True)
def leaks_nothing() -> Iterator[None]:
    previous = signal.signal(signal.SIGUSR1, lambda *_: None)
    with nothing_left_behind():
        yield
    signal.signal(signal.SIGUSR1, previous)


class MuxFault(Fault):
    """The same, at the port of one of the sides, or at the streams of its connections."""

    def install_at(self, monkeypatch: Any, module: Any) -> None:
        monkeypatch.setattr(module, "readv", self._readv)
        monkeypatch.setattr(module, "write", self._write)
        if hasattr(module, "writev"):
            monkeypatch.setattr(module, "writev", self._writev)

    def _readv(self, fd: int, buffers: Any) -> int:
        if self._strikes("readv", fd) == "short":
            count = os.readv(fd, [buffers[0][: (len(buffers[0]) + 1) // 2][:1000]])
            self.rearm(fd)
            return count
        return os.readv(fd, buffers)

    def _writev(self, fd: int, parts: Any) -> int:
        if self._strikes("writev", fd) == "short":
            count = os.write(fd, parts[0][: (len(parts[0]) + 1) // 2])
            self.rearm(fd)
            return count
        return os.writev(fd, parts)


class Cable:
    """What is behind both ports: when one call is to find it gone, it is pulled for both."""

    def __init__(self, both: Both) -> None:
        self.both = both
        self.left = ""

    def leave(self, kind: str) -> None:
        if not self.left:
            self.left = kind
            if kind == "reset":
                for sock in self.both.socks:
                    sock.send(b"")
            self.both.pull_the_cable()


class Connection:
    """Two scripted ends, and what joins them."""

    def __init__(self, fault: MuxFault, both: Both, channels: Any, up: bytes, down: bytes) -> None:
        self.loop = loop = both.loop
        self.channels = channels
        pairs = [tcp_pair(small_buffers=True) for _ in range(2)]
        self.peers = []
        self.streams = []
        for (ours, theirs), script in zip(pairs, (up, down), strict=True):
            ours.setblocking(False)
            prepare_tcp(ours)
            peer = Scripted(loop, End.of(theirs), script)
            fault.peers[ours.fileno()] = peer
            self.peers.append(peer)
            self.streams.append(Stream(loop, ours))
        self.relays = [
            Carriage(self.streams[0], channels[0]),
            Carriage(channels[1], self.streams[1]),
        ]
        self.reasons: list[str] = []
        for relay in self.relays:
            relay.start(LIMIT, LIMIT)
        for peer in self.peers:
            peer.on_event()

    async def over(self) -> None:
        left = list(zip(self.relays, self.streams, self.channels, strict=True))
        while left:
            await rounds(self.loop, 1)
            for relay, stream, channel in [one for one in left if one[0].reason]:
                ended = relay.stop()
                self.reasons.append(ended.reason)
                for one in ended.owed_resets:
                    one.reset_on_close()
                stream.close()
                channel.close()
                left.remove((relay, stream, channel))

    def close(self) -> None:
        for peer in self.peers:
            peer.on_event()
            peer.close()


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("where", ["port", "streams"])
def test_both_sides(monkeypatch: pytest.MonkeyPatch, where: str, kind: str) -> None:
    module = port_module if where == "port" else carriage_module

    def run(nth: int) -> int:
        loop = Loop()
        fault = MuxFault(loop, kind, nth)
        outcomes: list[Connection] = []

        async def story() -> None:
            both = Both(loop)
            cable = Cable(both)
            for sock in both.socks:
                # That of a port which takes little at a time.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
                if where == "port":
                    fault.peers[sock.fileno()] = cable  # type: ignore[assignment]
            await both.meet()
            pairs = [await both.channels() for _ in range(2)]
            with monkeypatch.context() as patch:
                fault.install_at(patch, module)
                both.guest.link.mux.ping(b"a token.")
                both.guest.link.outlet.flush_soon()
                for (up, down), channels in zip(((UP, DOWN), (b"q", b"a")), pairs, strict=True):
                    outcomes.append(Connection(fault, both, channels, up, down))
                for one in outcomes:
                    await one.over()
                await rounds(loop)
            if cable.left:
                both.guest.happened._items.clear()
                both.host.happened._items.clear()
                await until(loop, lambda: both.guest.lost._items and both.host.lost._items)
                both.join()
                await both.meet()
            ours, theirs = await both.channels()
            theirs.link.outlet.send_copy(theirs.connection, b"anew")
            await until(loop, lambda: ours.early)
            assert ours.early == b"anew"
            for channel in (ours, theirs):
                channel.close()
            await until(loop, lambda: not both.has_connections)
            for side in (both.guest, both.host):
                assert not side.happened._items
                assert not side.link.outlet._senders
                assert side.link.mux._windows._left == MEMORY
            both.close()

        play(loop, story, LIMIT)
        what = f"{kind} at call {nth} ({fault.struck})"
        for one, (up, down) in zip(outcomes, ((UP, DOWN), (b"q", b"a")), strict=True):
            client, far = one.peers
            one.close()
            assert up.startswith(bytes(far.received)) and down.startswith(bytes(client.received))
            if kind in ("EINTR", "EAGAIN", "short"):
                assert one.reasons == ["closed"] * 2, what
                assert len(far.received) == len(up) and len(client.received) == len(down), what
            elif one.reasons == ["closed"] * 2:
                for to, by in ((far, client), (client, far)):
                    assert to.left or len(to.received) == by.sent, what
            assert set(one.reasons) <= {"closed", "reset", "broken-pipe"}, what
        assert not loop.handlers
        assert not [timer.callback for _, _, timer in loop.timers if timer.callback]
        loop.close()
        return fault.calls

    assert each_call(run) > 30
