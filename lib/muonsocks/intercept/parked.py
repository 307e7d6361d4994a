"""Connections of sockets that do not block: a program goes on, and is told when they are up.

    connect(2)       the program's socket is parked (parking.py), and the call fails with
                     EINPROGRESS; a socket of ours is connected meanwhile
    that is up       the parked one gets room for output, and ours waits to be fetched
    the program asks how it went, by SO_ERROR, connect(2) or getpeername(2): ours is put in the
                     place of the parked one (in_place.py), and nothing is copied from then on
    it does not ask  but writes, or closes it, or has something to read: the two are relayed
    that has failed  the parked one is reset, and who asks is told why, once

Another process that has the parked socket too, by fork(2), finds it reset once it is replaced.
"""

from __future__ import annotations

import errno
import os
from _socket import MSG_DONTWAIT, MSG_PEEK, SO_ERROR, SOL_SOCKET, socket
from select import EPOLLERR, EPOLLHUP, EPOLLRDHUP

from muonsocks.client.errand import Errand
from muonsocks.client.errors import number_of
from muonsocks.intercept import kernel
from muonsocks.intercept.bpf import NOTIFY, Rule, equals
from muonsocks.intercept.in_place import Places
from muonsocks.intercept.notify import Call, Refused, descriptor_of
from muonsocks.intercept.parking import Parking, ParkingLot
from muonsocks.intercept.peers import Peers
from muonsocks.intercept.socket_options import options_of, set_options
from muonsocks.intercept.stand_in import StandIn
from muonsocks.net.loop import READABLE, Loop, Timer
from muonsocks.net.relay import Relay
from muonsocks.net.stream import Stream
from muonsocks.net.task import Task, Waitable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muonsocks.intercept.bpf import Rules
    from muonsocks.intercept.socket_options import Options

    # Told what has gone wrong with us.
    Complain = Callable[[BaseException], None]

RULES: Rules = {
    "getsockopt": (Rule(NOTIFY, equals(1, SOL_SOCKET), equals(2, SO_ERROR)),),
    "getpeername": (Rule(NOTIFY),),
}

_MOST = 8192  # journeys at once; what comes beyond is held
_MOST_FAILURES = 1024  # that wait to be told; then the first is a plain reset
_GRACE = 0.05  # s for a program to ask, when there is something to be read already
_FOREVER = 1e9  # s
_HALF_CLOSED = 3600.0  # s without a byte, of a relay of which one direction is over
_LAST_WORDS = 30.0  # s for them to arrive
_HANG_UP = EPOLLRDHUP | EPOLLHUP | EPOLLERR
_SO_COOKIE = 57
_UNDER_WAY, _ARRIVED, _RELAYED, _FAILED = range(4)


class _Left(Exception):
    """The program has closed the parked socket."""


class Parked:
    """The sockets of all programs that are parked, by their cookies (socket(7), SO_COOKIE)."""

    __slots__ = (
        "_complain",
        "_failures",
        "_journeys",
        "_loop",
        "_lot",
        "_over",
        "_peers",
        "_timeout",
    )

    def __init__(self, loop: Loop, timeout: float, complain: Complain, peers: Peers) -> None:
        """A connection may take so many seconds to come up. `peers` know of other sockets."""
        self._peers = peers
        self._loop = loop
        self._timeout = timeout
        self._complain = complain
        self._lot = ParkingLot(loop)
        self._journeys: dict[bytes, Journey] = {}
        self._failures: dict[bytes, Journey] = {}  # those of them that have failed
        self._over = Waitable()

    # Calls

    async def connect(
        self,
        call: Call,
        sock: socket,
        raw: bytes,
        errand: Errand,
        done: Callable[[int], None],
    ) -> bool:
        """Answer the connect(2) of a socket that does not block; False if that has to be held. An
        errand leads to where `raw` means; `done` is told the errno, 0 if it is up.
        """
        if len(self._journeys) >= _MOST or not _is_fresh(sock):
            return False
        options = options_of(sock)
        try:
            parking = await self._lot.park(sock)
        except OSError:
            return False  # no loopback, or a shortage
        cookie = _cookie(sock)
        journey = Journey(self, call, cookie, raw, parking, options)
        self._journeys[cookie] = journey
        errand.dialler = StandIn(sock.family, options, errand.dialler.lookup)
        journey.begin(errand, done)
        call.fail(errno.EINPROGRESS)
        return True

    async def connect_again(self, call: Call, sock: socket, raw: bytes) -> bool:
        """Answer the connect(2) of a socket that has been parked; False if none has."""
        journey = self._of(sock)
        if journey is None:
            return False
        if len(raw) >= 2 and not any(raw[:2]):  # AF_UNSPEC: it is to be disconnected
            journey.drop()
            journey.give_back(sock)
            return False
        if journey.phase == _UNDER_WAY:
            if not os.get_blocking(sock.fileno()):
                raise Refused(errno.EALREADY)
            await journey.end()
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
            if journey is None or journey.phase in (_UNDER_WAY, _RELAYED):
                call.go_on()
                return
            room = call.read_int(call.arguments[4])
            if room < 0:
                raise Refused(errno.EINVAL)
            number = journey.ask(call, sock)
            call.write(call.arguments[3], number.to_bytes(4, "little")[:room])
            call.write_int(call.arguments[4], min(room, 4))
            call.succeed()
        finally:
            sock.close()

    async def getpeername(self, call: Call) -> None:
        """Answer getpeername(2)."""
        if not self._journeys:
            await self._peers.getpeername(call)
            return
        sock = call.duplicate()
        try:
            journey = self._of(sock)
            if journey is not None:
                if journey.phase in (_UNDER_WAY, _FAILED):
                    raise Refused(errno.ENOTCONN)
                journey.ask(call, sock)
                if journey.phase == _RELAYED:
                    call.write_address(call.arguments[1], call.arguments[2], journey.raw)
                    call.succeed()
                    return
        finally:
            sock.close()
        await self._peers.getpeername(call)

    # Journeys

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

    def has_failed(self, journey: Journey) -> None:
        """Keep what is to be told; as many of those who never ask as there is room for."""
        self._failures[journey.cookie] = journey
        if len(self._failures) > _MOST_FAILURES:
            self.forget(next(iter(self._failures.values())))

    def forget(self, journey: Journey) -> None:
        """Know nothing of one any more."""
        self._journeys.pop(journey.cookie, None)
        self._failures.pop(journey.cookie, None)
        if len(self._journeys) == len(self._failures):
            self._over.wake()

    def _of(self, sock: socket) -> Journey | None:
        return self._journeys.get(_cookie(sock)) if self._journeys else None

    async def finish(self) -> None:
        """Wait for the relays: a program that has ended may have written what has not arrived."""
        for journey in tuple(self._journeys.values()):
            if journey.phase != _RELAYED:
                journey.drop()
        while len(self._journeys) > len(self._failures):
            await self._over
        self._lot.close()


class Journey:
    """One connection, from connect(2) to where it is in its place. `phase` is how far it is."""

    __slots__ = (
        "_all",
        "_grace",
        "_new",
        "_number",
        "_options",
        "_parking",
        "_place",
        "_task",
        "_waiters",
        "cookie",
        "phase",
        "raw",
    )

    def __init__(
        self,
        journeys: Parked,
        call: Call,
        cookie: bytes,
        raw: bytes,
        parking: Parking,
        options: Options,
    ) -> None:
        self._all = journeys
        self._place = call.tid, call.fd
        self.cookie = cookie
        self.raw = raw
        self._parking = parking
        self._options = options
        self._new: socket | None = None
        self._number = 0
        self._grace: Timer | None = None
        self._task: Task | None = None
        self._waiters: list[Waitable] = []
        self.phase = _UNDER_WAY

    # Under way

    def begin(self, errand: Errand, done: Callable[[int], None]) -> None:
        """Go on errand."""
        journeys = self._all
        loop = journeys.loop
        loop.register(self._parking.far.fileno(), self._on_far)

        def on_failure(error: BaseException) -> None:
            if isinstance(error, _Left):
                done(errno.ECANCELED)
                self._forget()
                self._wake_all()
                return
            number = errno.ENETUNREACH
            if isinstance(error, OSError):
                number = number_of(error)
            else:
                journeys.complain(error)
            done(number)
            self._fail(number)

        def on_return(new: socket) -> None:
            done(0)
            self._arrive(new)

        task = loop.spawn(self._go(errand), on_failure, on_return)
        if self.phase == _UNDER_WAY:
            self._task = task

    async def _go(self, errand: Errand) -> socket:
        return (await errand.run(self._all.loop, self._all.timeout)).sock

    async def end(self) -> None:
        """Wait until it is under way no more."""
        waiter = Waitable()
        self._waiters.append(waiter)
        await waiter

    def _wake_all(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.wake()

    def _on_far(self, events: int) -> None:
        """Something has happened at the other end of the parked socket."""
        if self.phase == _ARRIVED:
            self._make_room_or_relay()
        elif self.phase == _UNDER_WAY and events & _HANG_UP:
            self.drop()

    def drop(self) -> None:
        """Interrupt it: nobody waits for it any more."""
        if self.phase in (_UNDER_WAY, _RELAYED):
            task, self._task = self._task, None
            if task is not None:
                task.interrupt(_Left())
        else:
            self._forget()

    def _forget(self) -> None:
        """Close what it has."""
        loop = self._all.loop
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        if self._parking.far.fileno() >= 0:
            loop.unregister(self._parking.far.fileno())
            self._parking.reset()
        if self._new is not None:
            loop.unregister(self._new.fileno())
            self._new.close()
            self._new = None
        self._all.forget(self)

    def _fail(self, number: int) -> None:
        self._task = None
        self.phase = _FAILED
        self._number = number
        self._all.loop.unregister(self._parking.far.fileno())
        self._parking.reset()
        self._all.has_failed(self)
        self._wake_all()

    # Up

    def _arrive(self, new: socket) -> None:
        self._task = None
        self.phase = _ARRIVED
        self._new = new
        self._find_and_give_back()
        self._all.loop.register(new.fileno(), self._on_new)
        self._make_room_or_relay()
        self._wake_all()

    def _find_and_give_back(self) -> None:
        """Have the parked socket be as the program has set it, where that still has it: from now on
        its end is an end, after all that has been written.
        """
        tid, number = self._place
        try:
            fd = descriptor_of(tid, number)
        except OSError:
            return  # the thread has ended
        try:
            sock = socket(fileno=fd)
        except OSError:
            os.close(fd)
            return
        try:
            if _cookie(sock) == self.cookie:
                self._parking.give_back(sock)
        finally:
            sock.close()

    def _make_room_or_relay(self) -> None:
        try:
            is_empty = self._parking.is_empty
            if self._parking.make_room() and is_empty:
                self._relay()  # there is something after it
        except OSError:
            self._forget()

    def _on_new(self, events: int) -> None:
        if events & READABLE and self._grace is None and self.phase == _ARRIVED:
            self._grace = self._all.loop.call_later(_GRACE, self._relay)

    def ask(self, call: Call, sock: socket) -> int:
        """Give the errno of how it has gone, 0 if the program's socket is connected now."""
        if self.phase == _FAILED:
            self._all.forget(self)
            sock.getsockopt(SOL_SOCKET, SO_ERROR)  # that of the reset
            kernel.disconnect(sock.fileno())
            self.give_back(sock)
            return self._number
        if self.phase == _RELAYED:
            return 0
        assert self._new is not None
        if self._has_been_written_to():
            self._relay()
            return 0
        try:
            places = Places(call, sock)
        except OSError:
            self._relay()
            return 0
        new = self._new
        set_options(new, changed(options_of(sock), self._options))
        os.set_blocking(new.fileno(), os.get_blocking(sock.fileno()))
        try:
            places.take(new)
            self._pass_on_the_rest(new)
        finally:
            self._forget()
        return 0

    def give_back(self, sock: socket) -> None:
        """Have the program's socket be as it has set it."""
        self._parking.give_back(sock)

    def _has_been_written_to(self) -> bool:
        if not self._parking.is_empty:
            return False
        try:
            self._parking.far.recv(1, MSG_PEEK | MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def _pass_on_the_rest(self, new: socket) -> None:
        """Another thread may have written to the parked one before it was replaced."""
        try:
            while self._parking.make_room():
                data = self._parking.far.recv(1 << 16)
                if not data:
                    return
                while data:
                    data = data[new.send(data, MSG_DONTWAIT) :]  # there is room in a new one
        except BlockingIOError:
            return
        except ConnectionResetError:
            return  # nobody has it any more

    # Relayed

    def _relay(self) -> None:
        """Copy between the two from now on."""
        new, self._new = self._new, None
        assert new is not None
        if self._grace is not None:
            self._grace.cancel()
        self.phase = _RELAYED
        loop, far = self._all.loop, self._parking.far
        for sock in (far, new):
            loop.unregister(sock.fileno())
        near, farther = Stream(loop, far), Stream(loop, new)

        def on_failure(error: BaseException) -> None:
            if not isinstance(error, _Left | OSError):
                self._all.complain(error)
            self._all.forget(self)

        task = loop.spawn(_carry(near, farther), on_failure, lambda _: self._all.forget(self))
        if not task.is_over:
            self._task = task


async def _carry(near: Stream, farther: Stream) -> None:
    relay = Relay(near, farther)
    failure: BaseException | None = None
    try:
        relay.start(_FOREVER, _HALF_CLOSED)
        if not relay.reason:
            await relay
    except BaseException as error:
        failure = error
    try:
        await relay.wind_up(failure, _LAST_WORDS)
    finally:
        failure = None
        near.close()


def changed(now: Options, then: Options) -> Options:
    """Give the options that are others now."""
    return {which: value for which, value in now.items() if then.get(which) != value}


def _is_fresh(sock: socket) -> bool:
    """Say whether nobody has bound or connected a socket."""
    host, port = sock.getsockname()[:2]
    return not port and host in ("0.0.0.0", "::")


def _cookie(sock: socket) -> bytes:
    return sock.getsockopt(SOL_SOCKET, _SO_COOKIE, 8)
