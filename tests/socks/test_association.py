"""An association step by step: whose datagrams pass, what is counted, how it ends, what is left."""

import socket
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest
from associated import Associated, far_end, header
from ends import descriptors, no_garbage, nothing_left_behind, tcp_pair

from muonsocks.net.dial import Dialler
from muonsocks.net.loop import Loop
from muonsocks.net.stream import Stream
from muonsocks.socks import association, datagram_destinations
from muonsocks.socks.association import Association
from muonsocks.socks.policy import Access, Commands, Limits, Policy
from muonsocks.socks.rules import Rules


async def no_proxy(_: object) -> NoReturn:
    raise AssertionError("nothing goes through a proxy here")


SECONDS = 15
LOCALHOST = bytes((127, 0, 0, 1))


class Stage:
    """An association in a loop; the test has both of its ends."""

    def __init__(
        self, loop: Loop, commands: Commands | None = None, port: int = 0, idle: float = SECONDS
    ) -> None:
        self.loop = loop
        ours, theirs = tcp_pair()
        ours.setblocking(False)
        self.client = theirs
        self.stream = Stream(loop, ours)
        policy = Policy(
            Access(), Rules((), allow_local=True), Dialler(4), Limits(idle=idle), commands=commands
        )
        self.reports: list[str] = []
        self.association = Association(
            self.stream, LOCALHOST, port, policy, lambda _, why: self.reports.append(why), no_proxy
        )
        self.association.start()
        self.ends = Associated((self.association.bound.host, self.association.bound.port))

    def until(self, holds: Callable[[], object]) -> None:
        """Let the loop run until something holds."""

        async def wait() -> None:
            with self.loop.deadline(SECONDS):
                while not holds():
                    await self.loop.sleep(0.001)

        self.loop.run(wait())

    def counted(self, **counts: int) -> None:
        """Let the loop run until so many are counted."""
        wanted = {name.replace("_", "-"): count for name, count in counts.items()}.items()
        self.until(lambda: wanted <= self.association.counts().items())

    def heard(self, far: socket.socket) -> tuple[bytes, tuple[str, int]]:
        """What arrives at a far end, and from where."""
        far.settimeout(0)
        got: list[tuple[bytes, tuple[str, int]]] = []

        def came() -> bool:
            try:
                got.append(far.recvfrom(1 << 16))
            except BlockingIOError:
                return False
            return True

        self.until(came)
        return got[0]

    def over(self) -> str:
        """See it to its end, and say how it was."""
        self.until(lambda: self.association.reason)
        ended = self.loop.run(self.association.wind_up(None, 1))
        return ended.reason

    def close(self) -> None:
        self.association.stop()
        self.stream.close()
        self.client.close()
        self.ends.close()


@pytest.fixture
def make() -> Iterator[Callable[..., Stage]]:
    with nothing_left_behind():
        loop, stages = Loop(), []

        def make(**named: object) -> Stage:
            stages.append(Stage(loop, **named))  # type: ignore[arg-type]
            return stages[-1]

        yield make
        for stage in stages:
            stage.close()
        assert not loop.handlers
        assert not loop.watches
        loop.close()


def test_there_and_back(make: Callable[..., Stage]) -> None:
    stage = make()
    with far_end() as far:
        stage.ends.send(*far.getsockname(), b"question")
        data, outside = stage.heard(far)
        assert data == b"question"
        far.sendto(b"answer", outside)
        stage.counted(datagrams_out=1)
        assert stage.ends.receive() == (far.getsockname(), b"answer")
    counts = {"in": 8, "out": 6, "datagrams-in": 1, "datagrams-out": 1, "dropped": 0}
    assert stage.association.counts() == counts
    assert [*counts] == [*stage.association.counts()]


def test_nothing_is_opened_outside_before_it_is_used(make: Callable[..., Stage]) -> None:
    before = descriptors()
    stage = make()
    with far_end() as far:
        assert len(descriptors()) == len(before) + 2 + 1 + 1 + 1  # of which 2 are the test's
        stage.ends.send(*far.getsockname(), b"")
        stage.counted(datagrams_in=1)
        assert len(descriptors()) == len(before) + 2 + 1 + 1 + 1 + 1


def test_what_came_from_others_before_the_client_is_dropped(make: Callable[..., Stage]) -> None:
    """The kernel keeps what has come to a socket before that was connected."""
    stage = make()
    with far_end() as far, far_end("127.0.0.2") as other:
        datagram = header(*far.getsockname()) + b"spoofed"
        other.sendto(datagram, stage.ends.relay)
        stage.ends.send(*far.getsockname(), b"1")
        other.sendto(datagram, stage.ends.relay)
        stage.ends.send(*far.getsockname(), b"2")
        stage.counted(datagrams_in=2, dropped=2)
        assert [stage.heard(far)[0], stage.heard(far)[0]] == [b"1", b"2"]


def test_the_port_that_was_asked_for(make: Callable[..., Stage]) -> None:
    with far_end() as far, far_end() as ours:
        stage = make(port=ours.getsockname()[1])
        stage.ends.send(*far.getsockname(), b"from another port")
        ours.sendto(header(*far.getsockname()) + b"right", stage.ends.relay)
        stage.counted(datagrams_in=1, dropped=1)
        assert stage.heard(far)[0] == b"right"


def test_an_answer_that_nobody_has_asked_for_in_a_while(
    make: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = make()
    with far_end() as far:
        stage.ends.send(*far.getsockname(), b"question")
        _, outside = stage.heard(far)
        monkeypatch.setattr(association, "LIFE", -1.0)
        far.sendto(b"late", outside)
        stage.counted(dropped=1)


def test_an_open_filter_needs_a_client(make: Callable[..., Stage]) -> None:
    stage = make(commands=Commands(udp_open=True))
    with far_end() as far, far_end() as stranger:
        stage.ends.send(*far.getsockname(), b"question")
        _, outside = stage.heard(far)
        stranger.sendto(b"hello", outside)
        stage.counted(datagrams_out=1)
        assert stage.ends.receive() == (stranger.getsockname(), b"hello")


def test_the_other_family_has_no_place(make: Callable[..., Stage]) -> None:
    stage = make()
    stage.ends.send("2001:db8::1", 1, b"x")
    stage.counted(dropped=1)
    assert stage.reports == ["this way out has no place for 2001:db8::1"]


def test_what_cannot_be_sent_is_dropped(make: Callable[..., Stage]) -> None:
    stage = make()
    stage.ends.send("127.0.0.1", 0, b"no port")
    stage.ends.send("255.255.255.255", 1, b"to all")
    stage.counted(dropped=2, datagrams_in=0)


@pytest.mark.parametrize("how", ["end", "reset"])
def test_it_ends_with_the_connection(make: Callable[..., Stage], how: str) -> None:
    stage = make()
    stage.client.sendall(bytes(500_000))
    if how == "reset":
        stage.until(lambda: True)
        stage.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        stage.client.close()
    else:
        stage.client.shutdown(socket.SHUT_WR)
    assert stage.over() == ("closed" if how == "end" else "reset")
    assert stage.loop.handlers == {stage.stream.reader: stage.stream._on_event}, "let go of"


def test_idle_is_who_has_no_datagrams(make: Callable[..., Stage]) -> None:
    """Neither what is dropped counts, nor what is said on the connection."""
    stage = make(idle=0.4)
    with far_end() as far, far_end("127.0.0.2") as other:
        for _ in range(10):
            stage.ends.send(*far.getsockname(), b"x")
            stage.heard(far)
            stage.loop.run(stage.loop.sleep(0.08))
        assert not stage.association.reason
        for _ in range(100):
            if stage.association.reason:
                break
            other.sendto(b"", stage.ends.relay)
            stage.client.sendall(b"still here")
            stage.loop.run(stage.loop.sleep(0.02))
    assert stage.over() == "idle-timeout"


def test_what_is_old_is_forgotten_by_and_by(
    make: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datagram_destinations, "LIFE", -1.0)
    stage = make(idle=1.0)
    stage.ends.send("127.0.0.1", 9, b"x")
    stage.counted(datagrams_in=1)
    stage.until(lambda: not stage.association._destinations.mappings)
    assert not stage.association.reason


def test_interrupted(make: Callable[..., Stage]) -> None:
    stage = make()
    with pytest.raises(KeyboardInterrupt):
        stage.loop.run(stage.association.wind_up(KeyboardInterrupt(), 1))


def test_a_fault_of_ours_ends_it(make: Callable[..., Stage]) -> None:
    stage = make()
    stage.association._fail(ZeroDivisionError())
    assert stage.association.reason == "system-error"
    with pytest.raises(ZeroDivisionError):
        stage.loop.run(stage.association.wind_up(None, 1))


def test_nothing_is_garbage() -> None:
    loop = Loop()  # which is there once, and has cycles of its own
    with no_garbage(), far_end() as far:
        stage = Stage(loop)
        stage.ends.send(*far.getsockname(), b"x")
        stage.ends.send("localhost", 9, b"x")
        stage.ends.send("127.0.0.1", 0, b"x")
        stage.heard(far)
        stage.client.close()
        assert stage.over() == "closed"
        stage.close()
        del stage
        loop.run(loop.sleep(0.05))
    loop.close()
