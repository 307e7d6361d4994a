"""What holds for any two ends that we join, however: one suite for all that joins.

A subclass says in `kinds` which joints there are and in `start` how one is made. A check that needs
more than the bare minimum says so: `@needs("half-close")`.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ends import KINDS, PATIENCE, End, Ours, Outcome, at_once, noise, nothing_left_behind

LARGE = 8 << 20  # bytes, more than all the buffers on the way
BOUND = 12 << 20  # bytes that may be on the way when the reader has stopped

# The same where a program has sockets of its own: they have what the kernel will give, tcp(7).
BOUND_OF_ITS_OWN = BOUND + sum(
    int(Path(f"/proc/sys/net/ipv4/tcp_{name}").read_text().split()[2]) for name in ("rmem", "wmem")
)

Join = Callable[..., "Joint"]


def needs(*abilities: str) -> Callable[[Any], Any]:
    """Mark a check for the kinds that have an ability on both sides; "client-reset" on one."""

    def mark(check: Any) -> Any:
        check.needs = frozenset(abilities)
        return check

    return mark


class Joint:
    """Two ends that are joined; `over` waits for the end of it and says how it was."""

    def __init__(self, client: End, far: End, over: Callable[[], Outcome]) -> None:
        self.client = client
        self.far = far
        self.over = over

    def sides(self) -> tuple[tuple[End, End], tuple[End, End]]:
        """The same joint, seen in each direction."""
        return (self.client, self.far), (self.far, self.client)

    def close(self) -> None:
        self.client.close()
        self.far.close()


class Thread:
    """A call in a thread, whose failure is raised where the thread is waited for."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._failures: list[BaseException] = []

        def run() -> None:
            try:
                call()
            except BaseException as error:
                self._failures.append(error)

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "it does not come to its end"
        if self._failures:
            raise self._failures[0]


def left(received: int, sent: int) -> tuple[Outcome, Outcome]:
    """Both sides have closed. Of a pipe it is known at once that nobody reads it any more."""
    return Outcome("closed", received, sent), Outcome("broken-pipe", received, sent)


class Conformance:
    """The checks."""

    kinds: tuple[str, ...] = ()  # "CLIENT" or "CLIENT-FAR", of ends.KINDS
    bound = BOUND

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "kind" in metafunc.fixturenames:
            wanted = getattr(metafunc.function, "needs", frozenset())
            metafunc.parametrize("kind", [k for k in self.kinds if wanted <= self.abilities(k)])

    @staticmethod
    def abilities(kind: str) -> frozenset[str]:
        client, _, far = kind.partition("-")
        sides = KINDS[client].can, KINDS[far or "tcp"].can
        resets = [f"{who}-reset" for who, can in zip(("client", "far"), sides, strict=True)]
        return (sides[0] & sides[1]) | {
            name for name, can in zip(resets, sides, strict=True) if "reset" in can
        }

    def start(
        self, ours: Ours, theirs: End, kind: str, place: Path, early: bytes
    ) -> tuple[End, Callable[[], Outcome]]:
        """Join `ours` to a far end: give the test's end of that, and what waits for the end."""
        raise NotImplementedError

    @pytest.fixture
    def join(self, kind: str, tmp_path: Path) -> Iterator[Join]:
        joints = []

        def join(early: bytes = b"") -> Joint:
            ours, theirs = KINDS[kind.partition("-")[0]].make(tmp_path)
            far, over = self.start(ours, theirs, kind, tmp_path, early)
            joints.append(Joint(theirs, far, over))
            return joints[-1]

        with nothing_left_behind():
            yield join
            for joint in joints:
                joint.close()
                joint.over()

    def test_both_directions(self, join: Join) -> None:
        joint = join()
        for number in range(3):
            for writer, reader in joint.sides():
                message = noise(1000, number)
                writer.send(message)
                assert reader.read_exactly(1000) == message
        joint.close()
        assert joint.over()[1:] == (3000, 3000)

    @needs("half-close")
    @pytest.mark.parametrize("first", [0, 1], ids=["client-first", "far-first"])
    def test_half_close(self, join: Join, first: int) -> None:
        """Who has said all it has to say still gets the whole answer."""
        joint = join()
        asks, answers = joint.sides()[first]
        asks.send(b"question")
        asks.end_output()
        assert answers.read_to_end() == (b"question", "end")
        answer = noise(300_000)
        at_once(lambda: answers.send(answer), lambda: self.expect(asks, answer))
        answers.send(b"!")
        assert asks.read_exactly(1) == b"!"
        answers.end_output()
        assert asks.read_to_end() == (b"", "end")
        counts = (len(b"question"), len(answer) + 1)
        assert joint.over() == ("closed", *(counts if first == 0 else counts[::-1]))

    @staticmethod
    def expect(end: End, data: bytes) -> None:
        assert end.read_exactly(len(data)) == data

    @needs("half-close")
    @pytest.mark.parametrize("first", [0, 1], ids=["upload", "download"])
    def test_large_and_digest(self, join: Join, first: int) -> None:
        """8 MiB, an end of output, and then the digest comes back."""
        joint = join()
        data = noise(LARGE)
        asks, answers = joint.sides()[first]

        def ask() -> bytes:
            asks.send(data)
            asks.end_output()
            digest, end = asks.read_to_end()
            assert end == "end"
            return digest

        def answer() -> None:
            received, end = answers.read_to_end()
            assert end == "end"
            answers.send(hashlib.sha256(received).digest())
            answers.close()

        digest, _ = at_once(ask, answer)
        assert digest == hashlib.sha256(data).digest()
        counts = (LARGE, 32)
        assert joint.over() == ("closed", *(counts if first == 0 else counts[::-1]))

    def test_large_both_ways_at_once(self, join: Join) -> None:
        joint = join()
        up, down = noise(LARGE, 2), noise(LARGE - 1, 3)
        client, far = joint.client, joint.far
        _, _, received, sent = at_once(
            lambda: client.send(up),
            lambda: far.send(down),
            lambda: far.read_exactly(len(up)),
            lambda: client.read_exactly(len(down)),
        )
        assert received == up
        assert sent == down
        joint.close()
        assert joint.over()[1:] == (len(up), len(down))

    @pytest.mark.parametrize("first", [0, 1], ids=["up", "down"])
    def test_thousands_of_tiny_writes(self, join: Join, first: int) -> None:
        joint = join()
        writer, reader = joint.sides()[first]
        pieces = [noise(1 + number % 7, number) for number in range(4000)]
        whole = b"".join(pieces)

        def write() -> None:
            for piece in pieces:
                writer.send(piece)

        at_once(write, lambda: self.expect(reader, whole))
        joint.close()
        counts = (len(whole), 0)
        assert joint.over()[1:] == (counts if first == 0 else counts[::-1])

    def test_ping_pong(self, join: Join) -> None:
        joint = join()
        for number in range(300):
            for writer, reader in joint.sides():
                writer.send(bytes([number % 256]))
                assert reader.read_exactly(1) == bytes([number % 256])

    @pytest.mark.parametrize("first", [0, 1], ids=["up", "down"])
    def test_backpressure(self, join: Join, first: int) -> None:
        """When nobody reads, the writer has to stop, and nothing of it is lost."""
        joint = join()
        writer, reader = joint.sides()[first]
        data = noise(self.bound + LARGE)
        taken = writer.stuff(data, 0.25)
        assert taken < self.bound
        # The other direction does not mind.
        reader.send(b"meanwhile")
        assert writer.read_exactly(9) == b"meanwhile"
        at_once(lambda: writer.send(data[taken:]), lambda: self.expect(reader, data))

    @pytest.mark.parametrize("size", [1, 70_000, 3_000_000])
    def test_early_data(self, join: Join, size: int) -> None:
        """What came right behind the request comes first, and all of it."""
        early, later = noise(size, 4), noise(1000, 5)
        joint = join(early[:1000])
        rest = early[1000:] + later
        at_once(
            lambda: joint.client.send(rest), lambda: self.expect(joint.far, early[:1000] + rest)
        )
        joint.far.send(b"answer")
        assert joint.client.read_exactly(6) == b"answer"
        joint.close()
        assert joint.over()[1:] == (size + 1000, 6)

    @needs("client-reset")
    def test_reset_by_the_client(self, join: Join) -> None:
        joint = join()
        self.check_reset(joint, joint.client, joint.far, noise(50_000))

    @needs("far-reset")
    def test_reset_by_the_far_end(self, join: Join) -> None:
        joint = join()
        self.check_reset(joint, joint.far, joint.client, noise(50_000))

    @needs("client-reset")
    def test_reset_while_the_far_end_does_not_read(self, join: Join) -> None:
        joint = join()
        data = noise(LARGE)
        taken = joint.client.stuff(data, 0.25)
        self.check_reset(joint, joint.client, joint.far, b"", data[:taken])

    @needs("far-reset")
    def test_reset_while_the_client_does_not_read(self, join: Join) -> None:
        joint = join()
        data = noise(LARGE)
        taken = joint.far.stuff(data, 0.25)
        self.check_reset(joint, joint.far, joint.client, b"", data[:taken])

    @needs("half-close", "far-reset")
    def test_reset_by_the_far_end_after_a_half_close(self, join: Join) -> None:
        joint = join()
        joint.client.send(b"question")
        joint.client.end_output()
        assert joint.far.read_to_end() == (b"question", "end")
        self.check_reset(joint, joint.far, joint.client, b"half an answer")

    @needs("half-close", "client-reset")
    def test_reset_by_the_client_after_a_half_close(self, join: Join) -> None:
        joint = join()
        joint.far.send(b"question")
        joint.far.end_output()
        assert joint.client.read_to_end() == (b"question", "end")
        self.check_reset(joint, joint.client, joint.far, b"half an answer")

    @staticmethod
    def check_reset(joint: Joint, one: End, other: End, data: bytes, stuffed: bytes = b"") -> None:
        """`one` sends and resets: `other` gets all that was sent, and then a reset too."""
        one.send(data)
        if data:
            one.wait_until_acknowledged()
        acknowledged = len(data + stuffed) - one.unacknowledged()  # a reset drops the others
        one.reset()
        received, end = other.read_to_end()
        assert end == ("reset" if other.is_tcp else "end")
        assert (data + stuffed).startswith(received)
        assert len(received) >= acknowledged, "what was acknowledged is lost"
        assert joint.over().end == "reset"

    @needs("half-close")
    def test_close_without_a_byte(self, join: Join) -> None:
        joint = join()
        joint.client.close()
        assert joint.far.read_to_end() == (b"", "end")
        joint.far.close()
        assert joint.over() in left(0, 0)

    def test_simultaneous_close(self, join: Join) -> None:
        joint = join()
        at_once(joint.client.close, joint.far.close)
        assert joint.over() in left(0, 0)

    def test_data_and_simultaneous_close(self, join: Join) -> None:
        joint = join()
        for writer, reader in joint.sides():
            writer.send(b"last words")
            assert reader.read_exactly(10) == b"last words"
        at_once(joint.client.close, joint.far.close)
        assert joint.over() in left(10, 10)

    @needs("half-close")
    @pytest.mark.parametrize("first", [0, 1], ids=["client-leaves", "far-leaves"])
    def test_leaving_while_the_other_one_sends(self, join: Join, first: int) -> None:
        """Who sends to somebody who has gone is told so, and not left writing for ever."""
        joint = join()
        leaver, sender = joint.sides()[first]
        sender.send(noise(1000))
        assert leaver.read(1)
        leaver.close()
        limit = 64 << 20
        with pytest.raises(ConnectionError):
            for _ in range(limit // LARGE):
                sender.send(noise(LARGE))
        assert joint.over().end in ("broken-pipe", "reset", "closed")
