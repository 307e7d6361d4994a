"""Connections of sockets that do not block: a program goes on, and is told when they are up.

    connect(2)       the program's socket is parked (parking.py), and the call fails with
                     EINPROGRESS; a socket of ours is connected meanwhile
    that is up       the parked one gets room for output, and ours waits to be fetched
    the program asks how it went, by SO_ERROR, connect(2) or getpeername(2): ours is put in the
                     place of the parked one (in_place.py), and nothing is copied from then on;
                     if many are up, so are others that it will ask for next
    it does not ask  but writes, or closes it, or has something to read: the two are relayed
    that has failed  the parked one is reset, and who asks is told why, once

Another process that has the parked socket too, by fork(2), finds it reset once it is replaced.
"""

from __future__ import annotations

import errno
import os
from _socket import (
    IPPROTO_TCP,
    SO_BINDTODEVICE,
    SO_ERROR,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)
from resource import RLIMIT_NOFILE, getrlimit

from muonsocks.client.errand import Errand
from muonsocks.errors import SHORTAGES
from muonsocks.intercept.bpf import NOTIFY, Rule, equals
from muonsocks.intercept.connecting import Outcome
from muonsocks.intercept.cookies import cookie_of
from muonsocks.intercept.held import Held
from muonsocks.intercept.in_place import Look, Places, has_one_thread
from muonsocks.intercept.journey import FAILED, RELAYED, UNDER_WAY, Journey
from muonsocks.intercept.notify import Call, Refused
from muonsocks.intercept.own_socket import unconnect
from muonsocks.intercept.parking import ParkingLot
from muonsocks.intercept.peers import Peers
from muonsocks.intercept.socket_options import options_of, set_options
from muonsocks.intercept.stand_in import StandIn
from muonsocks.net.loop import Loop
from muonsocks.net.task import Waitable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muonsocks.intercept.bpf import Rules
    from muonsocks.intercept.connecting import Interruptible

    # Told what has gone wrong with us.
    Complain = Callable[[BaseException], None]

RULES: Rules = {
    "getsockopt": (Rule(NOTIFY, equals(1, SOL_SOCKET), equals(2, SO_ERROR)),),
    "getpeername": (Rule(NOTIFY),),
}

_MOST = 8192  # journeys at once; what comes beyond is held
_LONGEST_INTERFACE = 16  # bytes of its name
_LAST_WORDS = 600.0  # s for what programs have written before they ended to arrive
_FOR_CALLS = 64  # descriptors
_MOST_FAILURES = 1024  # that wait to be told; then the first is a plain reset
_MANY, _TOGETHER = 16, 64  # that are up, and are put in their places by one call
_SOON = 0.002  # s: a connection that is up by then need not be parked


class Parked:
    """The sockets of all programs that are parked, by their cookies (socket(7), SO_COOKIE)."""

    __slots__ = (
        "_complain",
        "_failures",
        "_is_quick",
        "_journeys",
        "_loop",
        "_lot",
        "_over",
        "_ports",
        "_timeout",
        "peers",
    )

    def __init__(self, loop: Loop, timeout: float, complain: Complain, peers: Peers) -> None:
        """A connection may take so many seconds to come up. `peers` know of other sockets."""
        self.peers = peers
        self._loop = loop
        self._timeout = timeout
        self._complain = complain
        self._lot = ParkingLot(loop)
        self._journeys: dict[bytes, Journey] = {}
        self._failures: dict[bytes, Journey] = {}  # those of them that have failed
        self._ports: dict[bytes, int] = {}  # of sockets that were parked and are not any more
        self._over = Waitable()
        self._is_quick = True  # the last one that was waited for was up soon

    # Calls

    async def connect(
        self,
        call: Call,
        sock: socket,
        raw: bytes,
        errand: Errand,
        done: Callable[[OSError | int], None],
    ) -> bool:
        """Answer the connect(2) of a socket that does not block; False if that has to be held. An
        errand leads to where `raw` means; `done` is told what has failed or its errno, 0 if it is
        up.
        """
        if len(self._journeys) >= _most() or not self._is_fresh(sock):
            return False
        options = options_of(sock)
        errand.dialler = StandIn(sock.family, options, errand.dialler.lookup)
        journey = Journey(self, call, cookie_of(sock), raw, options)
        self._journeys[journey.cookie] = journey
        try:
            journey.begin(errand, done)
            if self._is_quick:
                await journey.end(_SOON)
                self._is_quick = journey.phase != UNDER_WAY
                if journey.is_put(call, sock):
                    call.succeed()
                    return True
            if not await self._is_parked(journey, sock):
                return False
        except BaseException:
            journey.leave(sock)
            raise
        call.fail(errno.EINPROGRESS)
        return True

    async def _is_parked(self, journey: Journey, sock: socket) -> bool:
        """Park its socket; False, and the journey is over, if that cannot be. Refused if it has
        failed.
        """
        parking = None
        if journey.phase != FAILED:
            try:
                parking = await self._lot.park(sock)
            except OSError:  # no loopback, or a shortage
                if journey.phase != FAILED:
                    journey.drop()
                    return False
        if journey.phase == FAILED:
            is_held = parking is None and journey.number in SHORTAGES
            if parking is not None:
                parking.far.close()
                unconnect(sock)
                parking.give_back(sock)
                self.is_fresh_again(sock)
            self.forget(journey)
            if is_held:  # which takes no descriptor more
                return False
            raise Refused(journey.number)
        assert parking is not None
        journey.park(parking)
        return True

    async def set_aside(
        self,
        call: Call,
        held: Held,
        sock: socket,
        raw: bytes,
        done: Callable[[OSError | int], None],
    ) -> None:
        """Put a parked socket in the place of one that is under way, and was waited for, if that
        can be: until it is up it is not the program's. OSError, CallGone.
        """
        if len(self._journeys) >= _most():
            return
        options = options_of(sock)
        parked = socket(sock.family, SOCK_STREAM | SOCK_NONBLOCK, IPPROTO_TCP)
        try:
            set_options(parked, options)
            parking = await self._lot.park(parked)
            try:
                if not held.may_be_handed_over(sock):  # any more
                    parking.reset()
                    return
                os.set_blocking(parked.fileno(), True)
                Places(call, sock).take(parked)
            except BaseException:
                parking.reset()
                raise
            journey = Journey(self, call, cookie_of(parked), raw, options)
        finally:
            parked.close()
        self._journeys[journey.cookie] = journey
        journey.park(parking)
        on_failure, on_return = journey.ends(done)

        def on_up(new: socket) -> None:
            os.set_blocking(new.fileno(), False)
            on_return(new)

        under_way = held.hand_over(sock, on_failure, on_up)
        if journey.is_under_way:
            journey.under_way = under_way

    async def connect_again(self, call: Call, sock: socket, raw: bytes, held: Held) -> bool:
        """Answer the connect(2) of a socket that has been parked; False if none has. Who waits for
        it is `held`.
        """
        journey = self._of(sock)
        if journey is None:
            return False
        if len(raw) >= 2 and not any(raw[:2]):  # AF_UNSPEC: it is to be disconnected
            journey.leave(sock)
            return False
        if journey.is_under_way:
            if not os.get_blocking(sock.fileno()):
                raise Refused(errno.EALREADY)
            under_way = journey

            def wait(
                _: socket,
                __: bool,
                on_failure: Callable[[BaseException], None],
                on_outcome: Callable[[Outcome], None],
            ) -> Interruptible:
                return self._loop.spawn(
                    under_way.end(), on_failure, lambda _: on_outcome(Outcome())
                )

            await held.connect(call, sock, wait)
        number = journey.ask(call, sock)
        if number:
            call.fail(number)
        else:
            call.succeed()
        return True

    async def getsockopt(self, call: Call) -> None:
        """Answer getsockopt(2) for SO_ERROR."""
        if not self._journeys:
            call.go_on()
            return
        sock = call.duplicate()
        try:
            journey = self._of(sock)
            if journey is None or journey.is_under_way or journey.phase == RELAYED:
                call.go_on()
                return
            call.room_at(call.arguments[4])  # who is told is told once
            others, look = self._due_with(journey, call)
            call.write_option(journey.ask(call, sock, look).to_bytes(4, "little"))
            for other in others:
                other.put_as_well(call, look)
            call.succeed()
        finally:
            sock.close()

    def _due_with(self, journey: Journey, call: Call) -> tuple[list[Journey], Look | None]:
        """Give others that can be put in their places together with one that a program asks for,
        if there are many, and where it has them: it will ask for them next, and to look for one
        takes as long as for all. Another thread could close one meanwhile: there must be none.
        """
        due = [one for one in self._journeys.values() if one.is_due_for(call.tid)]
        if len(due) >= _MANY and has_one_thread(call.tid):
            try:
                return [one for one in due[:_TOGETHER] if one is not journey], Look(call)
            except OSError:
                pass  # a shortage; that one is relayed then
        return [], None

    async def getpeername(self, call: Call) -> None:
        """Answer getpeername(2)."""
        if self._journeys:
            sock = call.duplicate()
            try:
                journey = self._of(sock)
                if journey is not None:
                    if journey.is_under_way or journey.phase == FAILED:
                        raise Refused(errno.ENOTCONN)
                    journey.ask(call, sock)
                    if journey.phase == RELAYED:
                        call.write_address(call.arguments[1], call.arguments[2], journey.raw)
                        call.succeed()
                        return
            finally:
                sock.close()
        await self.peers.getpeername(call)

    # Journeys

    def _is_fresh(self, sock: socket) -> bool:
        """Say whether a socket is plain TCP, and nobody has bound it, to an interface either, or
        connected it.
        """
        if sock.proto != IPPROTO_TCP:
            return False
        host, port = sock.getsockname()[:2]
        interface = sock.getsockopt(SOL_SOCKET, SO_BINDTODEVICE, _LONGEST_INTERFACE)
        if host not in ("0.0.0.0", "::") or interface.strip(b"\0"):
            return False
        return not port or self._ports.get(cookie_of(sock)) == port

    def is_fresh_again(self, sock: socket) -> None:
        """Know that one is not bound to the port that it still tells of: that was ours."""
        self._ports[cookie_of(sock)] = sock.getsockname()[1]
        if len(self._ports) > _MOST_FAILURES:
            del self._ports[next(iter(self._ports))]

    @property
    def loop(self) -> Loop:
        """Where they are made."""
        return self._loop

    @property
    def timeout(self) -> float:
        """Seconds that one may take."""
        return self._timeout

    def complain(self, error: BaseException) -> None:
        """Tell what has gone wrong with us."""
        self._complain(error)

    def has_arrived(self, seconds: float) -> None:
        """Note how long one has taken: the next may be as fast."""
        if seconds < _SOON:
            self._is_quick = True

    def has_failed(self, journey: Journey) -> None:
        """Keep what is to be told; as many of those who never ask as there is room for."""
        self._failures[journey.cookie] = journey
        if len(self._failures) > _MOST_FAILURES:
            self.forget(next(iter(self._failures.values())))

    def forget(self, journey: Journey) -> None:
        """Know nothing of one any more."""
        for table in (self._journeys, self._failures):
            if table.get(journey.cookie) is journey:  # there may be another one by now
                del table[journey.cookie]
        if len(self._journeys) == len(self._failures):
            self._over.wake()

    def _of(self, sock: socket) -> Journey | None:
        return self._journeys.get(cookie_of(sock)) if self._journeys else None

    async def finish(self) -> None:
        """Wait for the relays: a program that has ended may have written what has not arrived."""
        for journey in tuple(self._journeys.values()):
            journey.be_left()
        try:
            with self._loop.deadline(_LAST_WORDS):
                while len(self._journeys) > len(self._failures):
                    await self._over
        except TimeoutError:
            for journey in tuple(self._journeys.values()):
                journey.drop()
        self._lot.close()


def _most() -> int:
    """Say how many there may be: each has two descriptors here, and calls want some, too."""
    return min(_MOST, (getrlimit(RLIMIT_NOFILE)[0] - _FOR_CALLS) // 2)
