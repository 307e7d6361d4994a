"""Two sides joined by two pipes that deliver in any pieces, against a plain queue per direction.

The pipes lose what they have when a side restarts, or the port is lost, as real ones do: what the
side that is gone has written may end anywhere, and what was for it may begin anywhere.
"""

from typing import Any

from both import numbers
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from muonsocks.address import Endpoint
from muonsocks.mux.frames import HELLO_SIZE, MAGIC, Batch, frames_of
from muonsocks.mux.machine import (
    Answered,
    Began,
    Connection,
    Credited,
    Data,
    Ended,
    Mux,
    Opened,
    Over,
    WasReset,
)
from muonsocks.mux.windows import LEAST
from muonsocks.socks.request import UNSPECIFIED, Event

GUEST, HOST = "guest", "host"
OTHER = {GUEST: HOST, HOST: GUEST}
MOST = 4  # connections: their numbers are used again and again
BATCH = Batch(8)
LOST = "the port has gone"
REASONS = (
    "the other side has started anew",
    "the other side has ended it: enough",
    LOST,
    "enough",
)
# A HELLO that is torn may look as if one with connections, or without, had said it.
OF_TORN = ("the other side is a host, too", "the other side is a guest, too")


class Flow:
    """One direction of a connection: the plain queue. `sent` is all there ever was in it."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.sent = bytearray()
        self.received = 0
        self.ended = False  # the sender has said so

    def more(self, size: int, kind: str) -> bytes:
        """Make data that no other flow has, in no other place."""
        start = len(self.sent)
        words = b"".join(
            b"%04d:%06d," % (self._seed, n) for n in range(start // 12, (start + size) // 12 + 1)
        )
        data = words[start % 12 :][:size]
        if kind == "magic":
            data = (data[: size // 2] + MAGIC + data)[:size]
        elif kind == "as a HELLO begins":
            data = (data + b"\xff\xff\x34\x00" + MAGIC)[-size:]
            data = data[: max(size - 30, 1)]
        elif kind == "ff":
            data = data[:-1] + b"\xff"
        self.sent += data
        return data


class End:
    """What one side has of a connection. It is the `owner` of that."""

    def __init__(self, pair: "Pair", who: str, connection: Connection) -> None:
        self.pair = pair
        self.who = who
        self.connection = connection
        connection.owner = self
        self.outgoing, self.incoming = pair.flows[who], pair.flows[OTHER[who]]
        self.waits = 0  # bytes that have come and are not consumed
        self.answered = False
        self.end_heard = False
        self.over = False  # nothing may be heard of it any more
        self.has_reset = False
        self.released = False


class Pair:
    """A connection, as the model sees it."""

    def __init__(self, number: int) -> None:
        self.destination = Endpoint(f"n{number}.test", 1 + number)
        self.flows = {GUEST: Flow(2 * number), HOST: Flow(2 * number + 1)}  # by who sends
        self.ends: dict[str, End] = {}


class Side:
    """A Mux and its way to the other side."""

    def __init__(self, who: str, memory: int) -> None:
        self.who = who
        self.memory = memory
        self.fresh = numbers(who.encode()).__next__
        self.ends: list[End] = []
        self.wire = bytearray()  # what it has sent and the other one has not got yet
        self.restart()

    def restart(self) -> None:
        self.mux = Mux(self.who == HOST, MOST, self.memory, self.fresh)

    def flush(self) -> None:
        self.wire += b"".join(self.mux.output)
        self.mux.output.clear()

    def drop_all(self) -> None:
        """Its connections are over: nothing more may come."""
        for end in self.ends:
            end.over = True


class Joined(RuleBasedStateMachine):
    ends = Bundle("ends")

    def __init__(self) -> None:
        super().__init__()
        self.pairs: dict[Endpoint, Pair] = {}
        self.tokens = 0

    @initialize(memory=st.sampled_from((0, 1 << 17, 1 << 24)), greets=st.booleans())
    def begin(self, memory: int, greets: bool) -> None:
        self.sides = {who: Side(who, memory) for who in (GUEST, HOST)}
        self.sides[GUEST].mux.greet()
        if greets:
            self.sides[HOST].mux.greet()
            for who in 3 * (GUEST, HOST):
                self.deliver_all(who)
            assert self.is_up(GUEST) and self.is_up(HOST)

    def is_up(self, who: str) -> bool:
        return self.sides[who].mux.is_up

    # Connections

    @precondition(lambda self: self.is_up(GUEST))
    @rule(target=ends)
    def open(self) -> Any:
        guest = self.sides[GUEST]
        in_use = len(guest.mux._connections)
        pair = Pair(len(self.pairs))
        connection = guest.mux.open(pair.destination)
        if connection is None:
            assert in_use == MOST, "a number is lost"
            return multiple()
        assert in_use < MOST
        self.pairs[pair.destination] = pair
        pair.ends[GUEST] = end = End(pair, GUEST, connection)
        guest.ends.append(end)
        return pair

    def end_of(self, pair: Pair, who: str) -> End | None:
        end = pair.ends.get(who)
        return end if end is not None and not end.over and not end.released else None

    @rule(pair=ends, code=st.sampled_from((0, 0, 0, 5)))
    def answer(self, pair: Pair, code: int) -> None:
        end = self.end_of(pair, HOST)
        if end is not None and not end.answered and not end.has_reset:
            end.answered = True
            self.sides[HOST].mux.answer(end.connection, code)
            end.over = code != 0

    @rule(
        pair=ends,
        who=st.sampled_from((GUEST, HOST)),
        size=st.sampled_from((1, 2, 5, 100, 4096, 20_000, 70_000, 1 << 18)),
        kind=st.sampled_from(("plain", "plain", "magic", "ff", "as a HELLO begins")),
        in_batch=st.booleans(),
    )
    def send(self, pair: Pair, who: str, size: int, kind: str, in_batch: bool) -> None:
        end = self.end_of(pair, who)
        if end is None or not end.answered or end.outgoing.ended or end.has_reset:
            return
        size = min(size, end.connection.credit, BATCH.size)
        if not size:
            return
        data = end.outgoing.more(size, kind)
        end.connection.credit -= len(data)
        number = end.connection.number
        if in_batch:
            rest = data
            for place in BATCH.places_for(len(data)):
                place[:], rest = rest[: len(place)], rest[len(place) :]
            frames = bytes(BATCH.frames(number, len(data)))
        else:
            frames = frames_of(number, data)
        self.sides[who].mux.output.append(frames)

    @rule(pair=ends, who=st.sampled_from((GUEST, HOST)), percent=st.sampled_from((10, 50, 100)))
    def consume(self, pair: Pair, who: str, percent: int) -> None:
        end = pair.ends.get(who)
        if end is not None and not end.released and end.waits:
            count = max(end.waits * percent // 100, 1)
            end.waits -= count
            self.sides[who].mux.consume(end.connection, count)

    @rule(pair=ends, who=st.sampled_from((GUEST, HOST)))
    def end(self, pair: Pair, who: str) -> None:
        end = self.end_of(pair, who)
        if end is not None and end.answered and not end.has_reset:
            end.outgoing.ended = True
            self.sides[who].mux.end(end.connection)
            self.settle(end)

    @rule(pair=ends, who=st.sampled_from((GUEST, HOST)), releases=st.booleans())
    def reset(self, pair: Pair, who: str, releases: bool) -> None:
        end = pair.ends.get(who)
        if end is None or end.released:
            return
        if not end.over:
            end.has_reset = end.over = True
        if releases:
            end.released = True
            end.waits = 0
            self.sides[who].mux.release(end.connection)
        else:
            self.sides[who].mux.reset(end.connection, 2)
        assert end.connection.credit == 0

    def settle(self, end: End) -> None:
        if end.outgoing.ended and end.end_heard:
            end.over = True

    # The port

    @rule(who=st.sampled_from((GUEST, HOST)), size=st.sampled_from((1, 2, 3, 5, 20, 45, 300, 9000)))
    def deliver(self, who: str, size: int) -> None:
        """Let the other side have some of what this one has sent."""
        side = self.sides[who]
        side.flush()
        data, side.wire = bytes(side.wire[:size]), side.wire[size:]
        self.give(OTHER[who], data)

    @rule(who=st.sampled_from((GUEST, HOST)))
    def deliver_all(self, who: str) -> None:
        side = self.sides[who]
        side.flush()
        while side.wire:
            data, side.wire = bytes(side.wire[: 1 << 19]), side.wire[1 << 19 :]
            self.give(OTHER[who], data)

    def give(self, who: str, data: bytes) -> None:
        side = self.sides[who]
        room = side.mux.room()
        assert len(room) >= 1 << 19
        room[: len(data)] = data
        before = sum(map(len, side.mux.output))
        for event in side.mux.received(len(data)):
            self.hear(side, event)
        said = sum(map(len, side.mux.output)) - before
        assert said <= len(data) + 2 * HELLO_SIZE, "it says more than it has heard"

    def hear(self, side: Side, event: Event) -> None:
        if isinstance(event, Over):
            assert event.reason in REASONS + OF_TORN, "one of two that keep to the protocol"
            if event.reason not in OF_TORN:
                told = [end for end in side.ends if end.connection in self.dead(side)]
                assert set(event.owners) >= {end for end in told if not end.over}
                side.drop_all()
            return
        if isinstance(event, Began):
            assert event.connections == (MOST if side.who == GUEST else 0)
            assert all(end.over or end.released for end in side.ends)
            return
        assert isinstance(event, Opened | Answered | Data | Credited | Ended | WasReset), (
            "nothing else is heard"
        )
        connection = event.connection
        if isinstance(event, Opened):
            pair = self.pairs[event.destination]
            assert HOST not in pair.ends, "it was opened twice"
            assert not pair.flows[GUEST].sent
            if connection.let_go_here:  # in the same piece
                side.mux.release(connection)
                return
            pair.ends[HOST] = end = End(pair, HOST, connection)
            side.ends.append(end)
            return
        end = connection.owner
        if end is None:
            assert connection.let_go_here
            return
        assert isinstance(end, End)
        assert not end.over, "nothing comes after the end, or a reset"
        other = end.pair.ends.get(OTHER[side.who])
        if isinstance(event, Data):
            data = b"".join(event.parts)
            flow = end.incoming
            assert end.answered and not end.end_heard
            assert data == flow.sent[flow.received : flow.received + event.size]
            flow.received += event.size
            end.waits += event.size
        elif isinstance(event, Answered):
            assert not end.answered and other is not None
            end.answered = True
            end.over = event.code != 0
            assert event.bound == UNSPECIFIED
        elif isinstance(event, Ended):
            assert end.incoming.ended and end.incoming.received == len(end.incoming.sent)
            end.end_heard = True
            self.settle(end)
        elif isinstance(event, WasReset):
            assert other is None or other.has_reset
            end.over = True
        else:
            assert connection.credit

    def dead(self, side: Side) -> set[Connection]:
        return {end.connection for end in side.ends if end.connection.let_go_there}

    # Time, and what goes wrong

    @rule(who=st.sampled_from((GUEST, HOST)))
    def tick(self, who: str) -> None:
        """A side that is not up greets from time to time, and one that is asks for a sign."""
        side = self.sides[who]
        if side.mux.is_up:
            self.tokens += 1
            side.mux.ping(b"%07d\xff" % self.tokens)
        else:
            side.mux.greet()

    @rule(who=st.sampled_from((GUEST, HOST)))
    def goodbye(self, who: str) -> None:
        side = self.sides[who]
        if side.mux.is_up:
            side.mux.say_goodbye("enough")
            side.drop_all()

    @rule(
        who=st.sampled_from((GUEST, HOST)),
        is_new=st.booleans(),
        cuts=st.tuples(st.integers(0, 1 << 16), st.integers(0, 1 << 16)),
        loses=st.sampled_from(("all", "some", "end")),
    )
    def restart(self, who: str, is_new: bool, cuts: tuple[int, int], loses: str) -> None:
        """A side dies and another one comes; or it finds that the port has been away."""
        side, other = self.sides[who], self.sides[OTHER[who]]
        if loses != "all":
            side.flush()
            place = len(side.wire) * cuts[0] >> 16
            if loses == "end":
                place = max(len(side.wire) - cuts[0] % 60, 0)
            del side.wire[place:]
            del other.wire[: len(other.wire) * cuts[1] >> 16]
        else:
            side.wire.clear()
            other.wire.clear()
        if is_new:
            side.restart()
            for end in side.ends:  # they are gone with it
                end.over = end.released = True
            side.ends.clear()
        else:
            side.mux.lose(LOST)
            side.drop_all()
        side.mux.greet()

    # What is always so

    @invariant()
    def memory_is_bounded(self) -> None:
        for side in getattr(self, "sides", {}).values():
            waits = connections = 0
            for end in side.ends:
                if not end.released:
                    assert end.waits <= end.connection.window
                    waits += end.waits
                    connections += 1
            assert waits <= side.memory + LEAST * connections
            mux = side.mux
            assert len(mux._connections) <= MOST
            assert len(mux._free) <= MOST
            assert mux._intake.end - mux._intake.start < 1 << 16 or mux._intake.start == 0

    def teardown(self) -> None:
        if not self.pairs and not getattr(self, "sides", None):
            return
        self.settle_down()
        self.check_credit()
        # All ends are ended, the data of all windows is consumed: nothing stays.
        for pair in self.pairs.values():
            for who in (GUEST, HOST):
                self.end(pair, who)
        for pair in self.pairs.values():
            self.answer(pair, 5)
        self.settle_down()
        for side in self.sides.values():
            for end in side.ends:
                assert end.over, "it neither ends nor is reset"
                if end.end_heard:
                    assert end.incoming.received == len(end.incoming.sent)
                side.mux.release(end.connection)
        self.settle_down()
        for side in self.sides.values():
            assert not side.mux._connections, "a number is not free again"
            assert side.mux._windows._left == side.memory, "memory is lost"
        assert [self.sides[GUEST].mux.open(UNSPECIFIED) is None for _ in range(MOST + 1)] == [
            *MOST * [False],
            True,
        ]

    def settle_down(self) -> None:
        """Deliver and consume everything, with both sides up."""
        for _ in range(30):
            for who, side in self.sides.items():
                if not side.mux.is_up:
                    side.mux.greet()
                self.deliver_all(who)
            for pair in self.pairs.values():
                for who in (GUEST, HOST):
                    self.consume(pair, who, 100)
            if all(s.mux.is_up and not s.wire and not s.mux.output for s in self.sides.values()):
                return
        raise AssertionError("they never come to rest")

    def check_credit(self) -> None:
        """Nothing is on its way: what one side may send is what the other one expects."""
        for pair in self.pairs.values():
            for who in (GUEST, HOST):
                end, other = pair.ends.get(who), pair.ends.get(OTHER[who])
                if end is None or end.over or not end.answered:
                    continue
                assert other is not None
                assert end.incoming.received == len(end.incoming.sent), "data is lost"
                assert end.end_heard == end.incoming.ended, "an end is lost"
                if not end.end_heard:
                    assert other.connection.credit == end.connection.left > 0, "it stands still"


TestJoined = Joined.TestCase
TestJoined.settings = settings(
    deadline=None,
    max_examples=150,
    stateful_step_count=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
