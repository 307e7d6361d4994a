"""Errands for asyncio: the house's loop is a guest of asyncio's, for as long as there are any."""

from __future__ import annotations

import asyncio
import socket
from weakref import WeakValueDictionary

from muonsocks.client.errand import Errand, Granted, endpoint_of, expect_timeout, way_to
from muonsocks.errors import UsageError
from muonsocks.net.loop import Loop
from muonsocks.net.task import Waitable
from muonsocks.socks.request import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any, TypeVar

    from muonsocks.client.proxies import Proxies

    T = TypeVar("T")

_OF_THE_WAY = {
    *("all_errors", "family", "flags", "happy_eyeballs_delay", "interleave"),
    *("local_addr", "proto", "sock"),
}


async def open_connection(
    host: str,
    port: int | str,
    *,
    proxy: Proxies = None,
    timeout: float | None = None,
    **more: Any,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect through `proxy`, as asyncio.open_connection does without, which gets all `more`, for
    TLS say; but UsageError if that says how to connect. What `proxy` is and what else is raised is
    as for `create_connection`.

    `timeout` is in seconds, and for all up to the connection.
    """
    for name in _OF_THE_WAY & more.keys():  # asyncio ignores these when it gets a socket
        raise UsageError(f"{name} has no meaning here", "give a socket to asyncio.open_connection")
    if more.get("ssl") and "server_hostname" not in more:
        more["server_hostname"] = host
    sock = await open_socket(host, port, proxy=proxy, timeout=timeout)
    try:
        return await asyncio.open_connection(sock=sock, **more)
    except BaseException:
        sock.close()
        raise


async def open_socket(
    host: str, port: int | str, *, proxy: Proxies = None, timeout: float | None = None
) -> socket.socket:
    """The same, but give the socket, for loop.create_connection() and the like."""
    destination, limit = endpoint_of(host, port), expect_timeout(timeout)
    errand = Errand(Command.CONNECT, destination, way_to(destination, proxy))
    granted = await carry_out(lambda loop: errand.run(loop, limit))
    sock = socket.socket(fileno=granted.sock.detach())
    sock.setblocking(False)
    return sock


async def carry_out(start: Callable[[Loop], Coroutine[Waitable, None, T]]) -> T:
    """Run a coroutine that `start` makes for the house's loop, in a task of asyncio's."""
    host = asyncio.get_running_loop()
    guest = _guests.get(id(host))
    if guest is None:
        guest = _guests[id(host)] = _Guest(host)
    return await guest.run(start)


class _Guest:
    """The house's loop, of which asyncio's sees one descriptor and one timer."""

    __slots__ = ("__weakref__", "_alarm", "_host", "_loop", "_tasks")

    def __init__(self, host: asyncio.AbstractEventLoop) -> None:
        self._host = host
        self._loop = Loop()
        self._tasks = 0
        self._alarm: asyncio.TimerHandle | None = None
        host.add_reader(self._loop.fileno(), self._turn)

    async def run(self, start: Callable[[Loop], Coroutine[Waitable, None, T]]) -> T:
        """Run one coroutine. A task that is cancelled interrupts it."""
        future: asyncio.Future[T] = self._host.create_future()

        is_awaited = True

        def succeed(result: T) -> None:
            if future.done() or not is_awaited:
                _drop(result)
            else:
                future.set_result(result)

        def fail(error: BaseException) -> None:
            if is_awaited and not future.done():
                future.set_exception(error)

        self._tasks += 1
        try:
            task = self._loop.spawn(start(self._loop), fail, succeed)
            self._set_alarm()
            try:
                return await future
            except BaseException as error:  # it is cancelled, or nobody will ever resume it
                is_awaited = False
                if not task.is_over:
                    task.interrupt(error)
                elif not future.cancelled() and future.exception() is None:
                    _drop(future.result())
                raise
        finally:
            self._tasks -= 1
            if not self._tasks:
                self._close()

    def _turn(self) -> None:
        """Deal with what there is, and come back when there is something again."""
        self._loop.run(self._one_round())
        if self._tasks:
            self._set_alarm()

    async def _one_round(self) -> None:
        pause = Waitable()
        self._loop.call_soon(pause.wake)
        await pause

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        timers = self._loop.timers
        if timers:
            due, _, _ = timers[0]
            self._alarm = self._host.call_at(due, self._turn)

    def _close(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        _guests.pop(id(self._host), None)
        self._host.remove_reader(self._loop.fileno())
        self._loop.close()
        self._loop.timers.clear()  # those that were cancelled have the loop


# By the id of the host, which a guest keeps alive. Nothing here keeps a guest alive: what it waits
# for is garbage as soon as its host has been closed.
_guests: WeakValueDictionary[int, _Guest] = WeakValueDictionary()


def _drop(result: Any) -> None:
    """Close what nobody waits for any more."""
    if isinstance(result, Granted):
        result.close()
