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
    SO_ERROR,
    SO_RCVLOWAT,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)

from muonsocks.client.errand import Errand
from muonsocks.errors import SHORTAGES
from muonsocks.intercept.bpf import NOTIFY, Rule, equals
from muonsocks.intercept.connecting import Outcome
from muonsocks.intercept.cookies import cookie_of
from muonsocks.intercept.held import Held
from muonsocks.intercept.in_place import Look, Places, has_one_thread
from muonsocks.intercept.journey import FAILED, RELAYED, UNDER_WAY, Journey
from muonsocks.intercept.journeys import SOON, Journeys
from muonsocks.intercept.notify import Call, Refused
from muonsocks.intercept.own_socket import unconnect
from muonsocks.intercept.parking import ParkingLot
from muonsocks.intercept.socket_options import NOT_BEFORE, options_of, set_options
from muonsocks.intercept.stand_in import StandIn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muonsocks.intercept.bpf import Rules
    from muonsocks.intercept.connecting import Interruptible
    from muonsocks.intercept.journeys import Complain
    from muonsocks.intercept.peers import Peers
    from muonsocks.net.loop import Loop

RULES: Rules = {
    "getsockopt": (Rule(NOTIFY, equals(1, SOL_SOCKET), equals(2, SO_ERROR)),),
    "getpeername": (Rule(NOTIFY),),
}

_MANY, _TOGETHER = 16, 64  # that are up, and are put in their places by one call


class Parked:
    """Parks the sockets of programs, and answers their calls about those."""

    __slots__ = ("_journeys", "_loop", "_lot", "_peers")

    def __init__(self, loop: Loop, timeout: float, complain: Complain, peers: Peers) -> None:
        """A connection may take so many seconds to come up. `peers` know of other sockets."""
        self._loop = loop
        self._peers = peers
        self._journeys = Journeys(loop, timeout, complain, peers)
        self._lot = ParkingLot(loop)

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
        journeys = self._journeys
        if journeys.is_full or not journeys.is_fresh(sock):
            return False
        options = options_of(sock)
        later = {which: options.pop(which) for which in NOT_BEFORE & options.keys()}
        errand.dialler = StandIn(sock.family, options, errand.dialler.lookup)
        journey = Journey(journeys, call, cookie_of(sock), raw, options, later)
        journeys.add(journey)
        try:
            journey.begin(errand, done)
            if journeys.is_quick:
                await journey.end(SOON)
                journeys.is_quick = journey.phase != UNDER_WAY
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
                self._journeys.is_fresh_again(sock)
            self._journeys.forget(journey)
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
        if self._journeys.is_full:
            return
        options = options_of(sock)
        if (enough := held.enough_for(sock)) > 1:
            options[SOL_SOCKET, SO_RCVLOWAT] = enough.to_bytes(4, "little")
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
            journey = Journey(self._journeys, call, cookie_of(parked), raw, options, {})
        finally:
            parked.close()
        self._journeys.add(journey)
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
        journey = self._journeys.of(sock)
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

            await held.connect(call, sock, wait, is_new=False)
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
            journey = self._journeys.of(sock)
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
        due = self._journeys.due_for(call.tid)
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
                journey = self._journeys.of(sock)
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
        await self._peers.getpeername(call)

    async def finish(self) -> None:
        """Wait for what programs have written before they ended."""
        await self._journeys.finish()
        self._lot.close()
