"""One connection of a parked socket, from connect(2) to where it is in its place."""

from __future__ import annotations

import errno
import os
from _socket import SO_RCVLOWAT, SOL_SOCKET, socket
from select import EPOLLERR, EPOLLHUP, EPOLLRDHUP

from muonsocks.client.errand import Errand
from muonsocks.client.errors import number_of
from muonsocks.intercept.cookies import cookie_of
from muonsocks.intercept.descriptors import descriptor_of
from muonsocks.intercept.in_place import Look, Places
from muonsocks.intercept.notify import Call
from muonsocks.intercept.own_socket import unconnect
from muonsocks.intercept.parking import Parking
from muonsocks.intercept.socket_options import options_of, set_options
from muonsocks.net.loop import READABLE, Timer
from muonsocks.net.relay import Relay
from muonsocks.net.stream import Stream
from muonsocks.net.task import Waitable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muonsocks.intercept.connecting import Interruptible
    from muonsocks.intercept.journeys import Journeys
    from muonsocks.intercept.socket_options import Options

    Ends = tuple[Callable[[BaseException], None], Callable[[socket], None]]

UNDER_WAY, ARRIVED, RELAYED, FAILED = range(4)
_GRACE = 0.05  # s for a program to ask, when there is something to be read already
_FOREVER = 1e9  # s
_HALF_CLOSED = 3600.0  # s without a byte, of a relay of which one direction is over
_LAST_WORDS = 30.0  # s for them to arrive
_HANG_UP = EPOLLRDHUP | EPOLLHUP | EPOLLERR


class _Left(Exception):
    """The program has closed its socket, or wants something else of it."""


class Journey:
    """A connection. `phase` is how far it is; `raw` is the address that the program has given,
    `number` the errno of its failure, `cookie` what the program's socket is known by.
    """

    __slots__ = (
        "_all",
        "_began",
        "_grace",
        "_later",
        "_new",
        "_options",
        "_parking",
        "_place",
        "_waiters",
        "cookie",
        "number",
        "phase",
        "raw",
        "under_way",
    )

    def __init__(
        self,
        journeys: Journeys,
        call: Call,
        cookie: bytes,
        raw: bytes,
        options: Options,
        later: Options,
    ) -> None:
        """For the connect(2) that is a call; `options` are those of the program's socket that what
        is connected has from the beginning, and others those that it is to have `later`.
        """
        self._all = journeys
        self._place = call.tid, call.fd
        self.cookie = cookie
        self.raw = raw
        self._parking: Parking | None = None
        self._options = options
        self._later = later
        self._new: socket | None = None
        self.number = 0
        self._grace: Timer | None = None
        self.under_way: Interruptible | None = None
        self._waiters: list[Waitable] = []
        self._began = 0.0
        self.phase = UNDER_WAY

    # Under way

    def begin(self, errand: Errand, done: Callable[[OSError | int], None]) -> None:
        """Go on errand. `done` is told what has failed or its errno, 0 if nothing has."""
        journeys = self._all
        self._began = journeys.loop.now
        on_failure, on_return = self.ends(done)
        task = journeys.loop.spawn(self._go(errand), on_failure, on_return)
        if not task.is_over:
            self.under_way = task

    def ends(self, done: Callable[[OSError | int], None]) -> Ends:
        """Give what is to be told of a failure, and what is to be given the socket that is up.
        `done` is told as of `begin`.
        """
        journeys = self._all

        def on_failure(error: BaseException) -> None:
            self.under_way = None
            if isinstance(error, _Left):
                done(errno.ECANCELED)
                self.phase, self.number = FAILED, errno.ECANCELED  # for who waits for its end
                self._forget()
                self._wake_all()
                return
            if isinstance(error, OSError):
                done(error)
                self._fail(number_of(error))
                return
            journeys.complain(error)
            done(errno.ENETUNREACH)
            self._fail(errno.ENETUNREACH)

        def on_return(new: socket) -> None:
            self.under_way = None
            done(0)
            self._arrive(new)

        return on_failure, on_return

    async def _go(self, errand: Errand) -> socket:
        return (await errand.run(self._all.loop, self._all.timeout)).sock

    @property
    def is_under_way(self) -> bool:
        """Whether it has not come to where it can be asked."""
        return self.phase == UNDER_WAY or (self.phase == ARRIVED and self._parking is None)

    async def end(self, timeout: float = _FOREVER) -> None:
        """Wait until it is under way no more, for so many seconds at most."""
        if self.phase != UNDER_WAY:
            return
        waiter = Waitable()
        self._waiters.append(waiter)
        timer = self._all.loop.call_later(timeout, waiter.wake)
        try:
            await waiter
        finally:
            timer.cancel()
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _wake_all(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.wake()

    def park(self, parking: Parking) -> None:
        """Know where the program's socket is connected to."""
        self._parking = parking
        self._all.loop.register(parking.far.fileno(), self._on_far)
        if self.phase == ARRIVED:
            self._open_up(parking)

    def _on_far(self, events: int) -> None:
        """Something has happened at our end of the parked socket."""
        if self.phase == ARRIVED:
            self._make_room_or_relay()
        elif self.phase == UNDER_WAY and events & _HANG_UP:
            self.drop()

    # Over

    def drop(self) -> None:
        """Interrupt it: nobody waits for it any more."""
        task, self.under_way = self.under_way, None
        if task is not None:
            task.interrupt(_Left())
        elif self.phase != RELAYED:
            self._forget()

    def be_left(self) -> None:
        """Drop it, unless there is something to be carried: there is no program any more."""
        if self.phase == ARRIVED and self._parking is not None:
            self._make_room_or_relay()
        if self.phase != RELAYED:
            self.drop()

    def leave(self, sock: socket) -> None:
        """Drop it, and let the program's socket be as if it had never been connected."""
        parking = self._parking
        self.drop()
        if parking is not None:
            unconnect(sock)
            parking.give_back(sock)
            self._all.is_fresh_again(sock)

    def _forget(self) -> None:
        """Close what it has."""
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        self._reset()
        if self._new is not None:
            self._all.loop.unregister(self._new.fileno())
            self._new.close()
            self._new = None
        self._all.forget(self)

    def _reset(self) -> None:
        """Have the parked socket fail, if it is there."""
        if self._parking is not None and self._parking.far.fileno() >= 0:
            self._all.loop.unregister(self._parking.far.fileno())
            self._parking.reset()

    def _fail(self, number: int) -> None:
        self.phase = FAILED
        self.number = number
        self._reset()
        self._all.has_failed(self)
        self._wake_all()

    # Up

    def _arrive(self, new: socket) -> None:
        self.phase = ARRIVED
        self._new = new
        self._all.has_arrived(self._all.loop.now - self._began)
        if self._parking is not None:
            self._open_up(self._parking)
        self._wake_all()

    def is_put(self, call: Call, sock: socket) -> bool:
        """Put it in its place at once, where nothing has been parked; False if it has not come so
        far, or cannot be put there. OSError, CallGone.
        """
        new = self._new
        if self.phase != ARRIVED or new is None:
            return False
        set_options(new, self._later)
        try:
            Places(call, sock).take(new)
        except OSError:
            return False
        self._all.peers.remember_stream(new, self.raw)
        self._forget()
        return True

    def _open_up(self, parking: Parking) -> None:
        """Let the program find that it is up."""
        assert self._new is not None
        self._find_and_give_back(parking)
        self._all.loop.register(self._new.fileno(), self._on_new)
        self._make_room_or_relay()

    def _find_and_give_back(self, parking: Parking) -> None:
        """Have the parked socket be as the program has set it, where that still has it: from now on
        its end is an end, after all that has been written.
        """
        sock = self._find()
        if sock is not None:
            try:
                parking.give_back(sock)
            finally:
                sock.close()

    def _find(self) -> socket | None:
        """Get a duplicate of the parked socket, where the program has connected it, if that still
        has it.
        """
        tid, number = self._place
        try:
            fd = descriptor_of(tid, number)
        except OSError:
            return None  # the thread has ended, or closed it
        try:
            sock = socket(fileno=fd)
        except OSError:
            os.close(fd)
            return None  # it is something else by now
        try:
            if cookie_of(sock) == self.cookie:
                return sock
        except OSError:
            pass  # nor is it for the internet
        sock.close()
        return None

    def _make_room_or_relay(self) -> None:
        parking = self._parking
        assert parking is not None
        try:
            # What the program has written may have come with the last of what fills it.
            if parking.make_room() and parking.has_been_written_to():
                self._relay(parking)
        except OSError:
            self._forget()

    def _on_new(self, events: int) -> None:
        parking = self._parking
        if events & READABLE and self._grace is None and parking is not None:
            self._grace = self._all.loop.call_later(_GRACE, lambda: self._relay(parking))

    def is_due_for(self, tid: int) -> bool:
        """Say whether a thread that has begun it can have it in its place."""
        return self._place[0] == tid and self.phase == ARRIVED and self._parking is not None

    def put_as_well(self, call: Call, look: Look | None) -> None:
        """Put it in its place before anybody asks. CallGone."""
        sock = self._find()
        if sock is None:
            return
        try:
            self.ask(call, sock, look)
        except OSError as error:
            self._all.complain(error)  # the call is about another one
        finally:
            sock.close()

    def ask(self, call: Call, sock: socket, look: Look | None = None) -> int:
        """Give the errno of how it has gone, 0 if the program's socket is connected now. OSError,
        CallGone.
        """
        parking, new = self._parking, self._new
        if self.phase == FAILED:
            self.leave(sock)
            return self.number
        if self.phase == RELAYED or parking is None or new is None:
            return 0
        if parking.has_been_written_to():
            self._relay(parking)
            return 0
        parking.give_back(sock)
        options = options_of(sock)
        then = self._options
        set_options(new, {one: value for one, value in options.items() if then.get(one) != value})
        os.set_blocking(new.fileno(), os.get_blocking(sock.fileno()))
        self._all.peers.remember_stream(new, self.raw)
        try:
            Places(call, sock, look).take(new)
        except OSError:
            self._relay(parking)
            return 0
        except BaseException:
            self._forget()
            raise
        try:
            parking.pass_on_the_rest(new)
        finally:
            self._forget()
        return 0

    # Relayed

    def _relay(self, parking: Parking) -> None:
        """Copy between the two from now on."""
        new, self._new = self._new, None
        if new is None:
            return
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        self.phase = RELAYED
        os.set_blocking(new.fileno(), False)  # whatever it was to be in its place
        new.setsockopt(SOL_SOCKET, SO_RCVLOWAT, 1)
        loop = self._all.loop
        for sock in (parking.far, new):
            loop.unregister(sock.fileno())
        near, farther = Stream(loop, parking.far), Stream(loop, new)

        def on_failure(error: BaseException) -> None:
            if not isinstance(error, _Left | OSError):
                self._all.complain(error)
            over()

        def over(_: object = None) -> None:
            self.under_way = None
            self._all.forget(self)

        task = loop.spawn(_carry(near, farther), on_failure, over)
        if not task.is_over:
            self.under_way = task


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
