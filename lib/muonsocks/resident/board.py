"""What the workers of a server know of each other, in memory that they share.

Each worker writes in its own column only, so nothing is locked; a sum over the columns is what it
was or what it will be in a moment.
"""

from __future__ import annotations

from mmap import mmap
from time import monotonic_ns

OPEN, SERVED, REFUSED, CUT, SHORT, HEARTBEAT, FULL, _COUNTS = range(8)
FIRST_OWN, SECOND_OWN, OWN_OPEN, ENDED = range(8, 12)
_FIELDS = 12  # 64-bit numbers a worker
_ROWS, _BITS = 4, 16
_CELLS = 1 << _BITS  # of each row of the sketch that counts connections by source


class Board:
    """Counters by worker, and connections by source.

    The fields: connections that are OPEN, have been SERVED, were REFUSED for a limit, were CUT at
    the end of a drain; whether the worker is SHORT of something; when it was last alive; whether it
    is FULL, as one is that is not there. A service may count what it likes in two of its OWN, and
    in OWN_OPEN what it has for the moment, which is gone with the worker. ENDED are the entrances
    that nobody comes in at any more.

    The sources are counted in a count-min sketch, so that no peer can make it grow: a source may be
    taken for more than it is when in each of four rows others share its cell. With a hash that
    nobody outside knows, and 16384 connections of as many sources, that is so for one source in
    400; it is taken for two more than it is in one of two million cases.
    """

    __slots__ = ("_column", "_counters", "_first", "_memory", "_sources", "workers")

    def __init__(self, workers: int) -> None:
        """Make a board for so many workers; to be shared, it must be made before they are."""
        self.workers = workers
        size = workers * _FIELDS * 8
        self._memory = mmap(-1, size + workers * _ROWS * _CELLS * 4)
        view = memoryview(self._memory)
        self._counters = view[:size].cast("Q")
        self._sources = view[size:].cast("I")
        self.take_column(0)

    def take_column(self, worker: int) -> None:
        """Write in the column of this worker from now on."""
        self._column = worker
        self._first = worker * _FIELDS  # of the counters

    def clear(self, worker: int) -> int:
        """Forget the connections of a worker that is no more, and say how many they were.

        What it has done still counts.
        """
        base = worker * _FIELDS
        lost = self._counters[base + OPEN]
        for field in (OPEN, SHORT, OWN_OPEN):
            self._counters[base + field] = 0
        self._counters[base + HEARTBEAT] = monotonic_ns()
        self._counters[base + FULL] = 1
        if self._counters[base + _COUNTS]:  # else it is all zeros, and takes no memory
            self._counters[base + _COUNTS] = 0
            size = _ROWS * _CELLS
            mine = slice(worker * size, (worker + 1) * size)
            self._sources[mine] = memoryview(bytes(4 * size)).cast("I")
        return lost

    def add(self, field: int, count: int) -> None:
        """Add to a counter of ours."""
        self._counters[self._first + field] += count

    def set(self, field: int, value: int) -> None:
        """Set a number of ours."""
        self._counters[self._first + field] = value

    def total(self, field: int) -> int:
        """Sum a counter over all workers."""
        return sum(self._counters[field::_FIELDS])

    def beat(self) -> None:
        """Say that this worker is alive."""
        self._counters[self._first + HEARTBEAT] = monotonic_ns()

    def silence(self, worker: int) -> float:
        """Say how long a worker has not been heard of, in seconds."""
        return (monotonic_ns() - self._counters[worker * _FIELDS + HEARTBEAT]) / 1e9

    def count_source(self, source: bytes, change: int) -> None:
        """Note that a connection of `source` has come (1) or gone (-1)."""
        self._counters[self._first + _COUNTS] = 1
        base = self._column * _ROWS * _CELLS
        for cell in _cells(source):
            self._sources[base + cell] += change

    def connections_of(self, source: bytes) -> int:
        """Count the connections of a source over all workers."""
        sources, size = self._sources, _ROWS * _CELLS
        return min(sum(sources[cell::size]) for cell in _cells(source))


def _cells(source: bytes) -> tuple[int, ...]:
    number = hash(source)  # with the secret of this process, which the workers inherit
    return tuple(row * _CELLS + (number >> row * _BITS) % _CELLS for row in range(_ROWS))
