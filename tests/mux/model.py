"""Two real sides, two pipes between them, and what they should make of it: a queue per direction.

A `Joint` does what two drivers and a port would, and checks each event against the queues. The
pipes deliver in any pieces; and they lose what they have when a side restarts, or the port is lost,
as real ones do: what one that is gone has written may end anywhere, what was for it may begin
anywhere.
"""

from random import Random

from played import numbers

from muonsocks.address import Endpoint
from muonsocks.mux.connection import Connection
from muonsocks.mux.events import Answered, Began, Credited, Data, Ended, Opened, Over, WasReset
from muonsocks.mux.frames import HELLO_SIZE, MAGIC, Batch, frames_of
from muonsocks.mux.machine import Mux
from muonsocks.mux.windows import LEAST
from muonsocks.socks.request import UNSPECIFIED, Event

GUEST, HOST = "guest", "host"
OTHER = {GUEST: HOST, HOST: GUEST}
MOST = 4  # connections: their numbers are used again and again
BATCH = Batch(9)
NOISE = Random(1).randbytes(1 << 20)
LOST = "the port has gone"
REASONS = ("the other side has started anew", "the other side has ended it: enough")
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
        """Make data that no other flow has in the same place."""
        start = (7919 * self._seed + len(self.sent)) % (len(NOISE) // 2)
        data = NOISE[start : start + size]
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

    def __init__(self, pair: "Pair", side: "Side", connection: Connection) -> None:
        self.pair, self.side, self.connection = pair, side, connection
        pair.ends[side.who] = self
        side.ends.append(self)
        connection.owner = self
        self.outgoing, self.incoming = pair.flows[side.who], pair.flows[OTHER[side.who]]
        self.waits = 0  # bytes that have come and are not consumed
        self.answered = self.end_heard = False
        self.over = False  # nothing may be heard of it any more
        self.has_reset = self.released = False

    @property
    def other(self) -> "End | None":
        return self.pair.ends.get(OTHER[self.side.who])

    @property
    def may_answer(self) -> bool:
        return self.side.who == HOST and not self.over and not self.answered

    @property
    def may_end(self) -> bool:
        return self.answered and not self.over and not self.outgoing.ended

    @property
    def may_send(self) -> bool:
        return self.may_end and self.connection.credit > 0

    @property
    def may_consume(self) -> bool:
        return self.waits > 0 and not self.released

    @property
    def may_release(self) -> bool:
        return not self.released


class Pair:
    """A connection."""

    def __init__(self, number: int) -> None:
        self.destination = Endpoint(f"n{number}.test", 1 + number)
        self.flows = {GUEST: Flow(2 * number), HOST: Flow(2 * number + 1)}  # by who sends
        self.ends: dict[str, End] = {}
        self.code = -1  # of the answer


class Side:
    """A Mux and its pipe to the other side."""

    def __init__(self, who: str, memory: int) -> None:
        self.who = who
        self.memory = memory
        self.fresh = numbers(who.encode()).__next__
        self.ends: list[End] = []
        self.pipe = bytearray()  # what it has sent and the other one has not got yet
        self.was_torn = False  # what it has sent ends anywhere, and no session has begun since
        self.restart()

    def restart(self) -> None:
        """Another one comes: what there was is gone without a word."""
        self.mux = Mux(self.who == HOST, MOST, self.memory, self.fresh)
        for end in self.ends:
            end.over = end.released = True
        self.ends.clear()

    def flush(self) -> None:
        self.pipe += b"".join(self.mux.output)
        self.mux.output.clear()

    def drop_all(self) -> None:
        """Its session is over: nothing more may be heard of its connections."""
        for end in self.ends:
            end.over = True


class Joint:
    """Both sides. What is said is in `output` until something is delivered."""

    def __init__(self, memory: int) -> None:
        self.sides = {who: Side(who, memory) for who in (GUEST, HOST)}
        self.pairs: dict[Endpoint, Pair] = {}
        self.tokens = 0

    @property
    def ends(self) -> list[End]:
        return [end for side in self.sides.values() for end in side.ends]

    # What the owners of connections do

    def open(self) -> Pair | None:
        """Have the guest open a connection, unless there are as many as there may be."""
        guest = self.sides[GUEST]
        pair = Pair(len(self.pairs))
        in_use = len(guest.mux._connections)
        connection = guest.mux.open(pair.destination)
        assert (connection is None) == (in_use == MOST), "a number is lost, or made up"
        if connection is None:
            return None
        self.pairs[pair.destination] = pair
        End(pair, guest, connection)
        return pair

    def answer(self, end: End, code: int) -> None:
        end.answered = True
        end.over = code != 0
        end.pair.code = code
        end.side.mux.answer(end.connection, code)

    def send(self, end: End, size: int, kind: str = "plain", in_batch: bool = True) -> None:
        size = min(size, end.connection.credit, BATCH.size)
        data, number = end.outgoing.more(size, kind), end.connection.number
        end.connection.credit -= len(data)
        if in_batch:
            rest = data
            for place in BATCH.places_for(len(data)):
                place[:], rest = rest[: len(place)], rest[len(place) :]
            frames = bytes(BATCH.frames(number, len(data)))
        else:
            frames = frames_of(number, data)
        end.side.mux.output.append(frames)

    def consume(self, end: End, percent: int = 100) -> None:
        count = max(end.waits * percent // 100, 1)
        end.waits -= count
        end.side.mux.consume(end.connection, count)

    def end(self, end: End) -> None:
        end.outgoing.ended = True
        end.side.mux.end(end.connection)
        end.over = end.end_heard

    def reset(self, end: End, releases: bool) -> None:
        """Let go of one end, in whatever state it is."""
        if not end.over:
            end.has_reset = end.over = True
        if releases:
            end.released = True
            end.waits = 0
            end.side.mux.release(end.connection)
        else:
            end.side.mux.reset(end.connection, 2)
        assert end.connection.credit == 0

    def fill(self) -> None:
        """Have all windows full, both ways."""
        for end in self.ends:
            while end.may_send:
                self.send(end, BATCH.size)
        for who in (GUEST, HOST):
            self.deliver(who)

    # What the port does

    def deliver(self, who: str, size: int = 1 << 30) -> None:
        """Let the other side have some of what this one has sent."""
        side = self.sides[who]
        side.flush()
        data, side.pipe = bytes(side.pipe[:size]), side.pipe[size:]
        for start in range(0, len(data), 1 << 19):
            self._give(self.sides[OTHER[who]], data[start : start + (1 << 19)])

    def _give(self, side: Side, data: bytes) -> None:
        room = side.mux.room()
        assert len(room) >= 1 << 19
        room[: len(data)] = data
        before = sum(map(len, side.mux.output))
        for event in side.mux.received(len(data)):
            self._hear(side, event)
        said = sum(map(len, side.mux.output)) - before
        assert said <= len(data) + 2 * HELLO_SIZE, "it says more than it has heard"

    def lose(self, who: str, cuts: tuple[int, int], loses: str) -> None:
        """Lose what is in the pipes: all, some of it at the end that is gone, or a few bytes.

        One that is gone before a session has begun loses nothing of its HELLOs: one that is torn
        behind what was torn before may be taken for the rest of that.
        """
        side, other = self.sides[who], self.sides[OTHER[who]]
        side.flush()
        place = len(side.pipe) * cuts[0] >> 16
        if loses == "all":
            place = 0
            cuts = 0, 1 << 16
        elif loses == "few":
            place = max(len(side.pipe) - cuts[0] % 60, 0)
        if not side.was_torn:
            del side.pipe[place:]
            side.was_torn = True
        del other.pipe[: len(other.pipe) * cuts[1] >> 16]

    def catch_up(self) -> None:
        """Let some time pass: those who are not up greet, and all is delivered."""
        for _ in range(3):
            for who, side in self.sides.items():
                if not side.mux.is_up:
                    side.mux.greet()
                self.deliver(who)

    def come_to_rest(self) -> None:
        """Deliver and consume everything, with both sides up."""
        for _ in range(30):
            self.catch_up()
            for end in self.ends:
                if end.may_consume:
                    self.consume(end)
            sides = self.sides.values()
            if all(side.mux.is_up and not side.pipe and not side.mux.output for side in sides):
                return
        raise AssertionError("they never come to rest")

    # What is heard

    def _hear(self, side: Side, event: Event) -> None:
        if isinstance(event, Over):
            assert event.reason in REASONS + OF_TORN, "of two that keep to the protocol"
            if event.reason in REASONS:
                assert {end for end in side.ends if not end.over} <= set(event.owners)
                side.drop_all()
        elif isinstance(event, Began):
            assert side.mux.limit == (MOST if side.who == GUEST else 0)
            assert all(end.over for end in side.ends)
            self.sides[OTHER[side.who]].was_torn = False
        elif isinstance(event, Opened):
            pair = self.pairs[event.destination]
            assert HOST not in pair.ends and not pair.flows[GUEST].sent, "it was opened twice"
            if event.connection.let_go_here:  # reset in the same piece
                side.mux.release(event.connection)
            else:
                End(pair, side, event.connection)
        else:
            assert isinstance(event, Answered | Data | Credited | Ended | WasReset)
            end = event.connection.owner
            if end is None:
                assert event.connection.let_go_here
                return
            assert end.side is side and not end.over, "nothing comes behind the last word"
            self._hear_of(end, event)

    def _hear_of(self, end: End, event: Event) -> None:
        flow, other = end.incoming, end.other
        if isinstance(event, Data):
            assert end.answered and not end.end_heard
            data = b"".join(event.parts)
            assert data == flow.sent[flow.received : flow.received + event.size]
            flow.received += event.size
            end.waits += event.size
        elif isinstance(event, Answered):
            assert not end.answered
            assert (event.code, event.bound) == (end.pair.code, UNSPECIFIED)
            end.answered = True
            end.over = event.code != 0
        elif isinstance(event, Ended):
            assert flow.ended and flow.received == len(flow.sent)
            end.end_heard = True
            end.over = end.outgoing.ended
        elif isinstance(event, WasReset):
            assert other is None or other.has_reset
            end.over = True
        else:
            one = end.connection
            assert one.credit or one.let_go_here  # by what comes behind it

    # What is always so

    def check(self) -> None:
        for side in self.sides.values():
            mux = side.mux
            alive = [end for end in side.ends if not end.released]
            for end in alive:
                one = end.connection
                assert end.waits <= one.window
                if not end.over and not end.end_heard:
                    assert one.window == one.left + one.unreturned + end.waits
            windows = sum(end.connection.window for end in alive)
            assert windows == side.memory - mux._windows._left
            assert windows <= side.memory + LEAST * len(alive)
            assert len(mux._connections) <= MOST and len(mux._free) <= MOST

    def check_at_rest(self) -> None:
        """Nothing is on its way: then nothing is lost, and what one side may send is what the
        other one expects.
        """
        for end in self.ends:
            if end.over or not end.answered:
                continue
            flow, other = end.incoming, end.other
            assert other is not None
            assert flow.received == len(flow.sent), "data is lost"
            assert end.end_heard == flow.ended, "an end is lost"
            if not end.end_heard:
                assert other.connection.credit == end.connection.left > 0, "it stands still"
