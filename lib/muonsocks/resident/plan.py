"""What makes a resident program: the service it gives, and how much of it there is to be."""

from __future__ import annotations

from muonsocks.resident.board import Board

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable, Coroutine
    from typing import Any, Protocol

    from muonsocks.address import Network
    from muonsocks.net.inherit import Peer
    from muonsocks.net.loop import Loop
    from muonsocks.net.task import Pause, Waitable
    from muonsocks.resident.programs import Programs

    class Doorman(Protocol):
        """Tells clients when there is no room, where they are not to wait for some."""

        def turn_away(self, loop: Loop, sock: socket) -> Coroutine[Waitable, None, int | Pause]:
            """Tell a client so and close its socket; the rest is as for `serve`."""


class Service:
    """How a resident program is configured, and what it does for each client. Of what stands here
    it has its own where there is something to do. The supervisor gives it the `board` that all
    workers have in common.
    """

    __slots__ = ("board",)

    board: Board
    programs: Programs | None = None  # that it starts, if it does so: then there is one worker

    def reread(self) -> Any:
        """Read again what may change, in the supervisor. What is given is what `take` gets in the
        workers; it can be pickled. UsageError or OSError leave everything as it was.
        """
        return None

    def take(self, configuration: Any) -> None:
        """Go on with what `reread` has given."""

    def settle(self, loop: Loop, retire: Callable[..., None]) -> None:
        """Get ready in a worker: load what is needed, then give up privileges. `retire` may be
        called later, for another worker to take the place of this one; or, if it is `for_good`, for
        the whole program to end, as there is nothing to serve any more. If it has `failed`, which
        is in the log, so has the program; if it `cuts`, connections are not given the time of a
        drain.
        """

    def state(self) -> str:
        """Say in a few words for the status line how it goes, in the supervisor."""
        return ""

    def finish(self) -> None:
        """Leave things in order: the worker has drained and is about to end."""

    def serve(self, loop: Loop, sock: socket, peer: Peer) -> Coroutine[Waitable, None, int | Pause]:
        """Serve a client and close its socket. The coroutine gives the errno of what this host ran
        out of meanwhile, 0 for nothing; an OSError that it raises means the same.
        """
        raise NotImplementedError

    def go_on_with(self, loop: Loop, pid: int) -> Coroutine[Waitable, None, int]:
        """See one of the programs to its end that an earlier worker has started."""
        raise NotImplementedError


class Capacity:
    """How many connections there may be: in all workers, and there from one source; 0: any number.

    A source is an IPv4 address or a /64 of IPv6; who comes over a unix socket has none, and who is
    in one of the networks `fronts` comes for many, and is not counted. `each` is how many
    descriptors one takes. When no worker has descriptors for one more, clients wait, or the doorman
    turns them away. `option` is where the user has the number from.
    """

    __slots__ = ("connections", "doorman", "each", "fronts", "option", "per_source")

    def __init__(
        self,
        connections: int,
        per_source: int = 0,
        each: int = 2,
        doorman: Doorman | None = None,
        option: str = "--max-connections",
        fronts: tuple[Network, ...] = (),
    ) -> None:
        self.connections = connections
        self.per_source = per_source
        self.each = each
        self.doorman = doorman
        self.option = option
        self.fronts = fronts

    def source(self, peer: Peer) -> bytes:
        """Give what connections are counted by: an IPv4 address, or the network of an IPv6 one.

        Empty where they are not, because there is no limit or this peer has none.
        """
        address = peer.address
        if not self.per_source or address is None:
            return b""
        if any(address in network for network in self.fronts):
            return b""
        return address if len(address) == 4 else address[:8]


class Plan:
    """How many `workers` there are, the `capacity` of them all, and how long (s) they may `drain`.
    They have the `board` in common.
    """

    __slots__ = ("board", "capacity", "drain", "workers")

    def __init__(self, workers: int, capacity: Capacity, drain: float) -> None:
        self.workers = workers
        self.capacity = capacity
        self.drain = drain
        self.board = Board(workers)
