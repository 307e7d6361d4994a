"""An association with SOCKS5 proxies (RFC 1928 section 7): the socket to the first one's relay, and
the connections that it lasts as long as.
"""

from __future__ import annotations

import errno
import os
from _socket import (
    MSG_CONFIRM,
    MSG_DONTROUTE,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    MSG_PEEK,
    MSG_TRUNC,
    MSG_WAITALL,
    SHUT_RDWR,
    SO_RCVBUF,
    SOL_SOCKET,
    socket,
)
from _thread import allocate_lock
from select import POLLIN, POLLOUT, POLLRDHUP, poll
from time import monotonic

from muonsocks.client.background import Thread
from muonsocks.client.errors import ProxyMisbehaved, ProxyUnreachable, timed_out, try_again
from muonsocks.errors import RemoteProtocolError
from muonsocks.net.ending import Ending
from muonsocks.net.stream import Stream
from muonsocks.socks.datagram import LONGEST_HEADER, decode_header, encode_header, last_header
from muonsocks.socks.relays import MOST_SAID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from muonsocks.address import Endpoint
    from muonsocks.socks.rules import Chain

AT_ONCE = 0.0  # a deadline for what must not wait
_SENDING = MSG_DONTWAIT | MSG_NOSIGNAL | MSG_CONFIRM | MSG_DONTROUTE
_RECEIVING = MSG_DONTWAIT | MSG_PEEK | MSG_TRUNC | MSG_WAITALL
_SMALLEST = 256  # bytes of SO_RCVBUF that a datagram takes at least: there is its bookkeeping
_MOST_HEADS = 1024  # destinations that are remembered
_DRAIN = 4096  # bytes


class Association:
    """What datagrams go and come by. `sock` is connected to the relay, and for those who have the
    association; none of its calls ever waits.
    """

    __slots__ = (
        "_heads",
        "_left",
        "_outer",
        "_owners",
        "_watch",
        "bound",
        "chain",
        "connections",
        "sock",
    )

    def __init__(
        self, chain: Chain, sock: socket, relays: list[Endpoint], connections: list[socket]
    ) -> None:
        """Take over the sockets. OSError, and they are still the caller's."""
        self._owners = 0
        self.chain = chain
        self.sock = sock
        self.bound = relays[-1]
        self.connections = connections
        self._outer = b"".join(map(encode_header, relays[1:]))
        self._heads: dict[Any, bytes] = {}
        self._left = MOST_SAID  # of what the proxies may say, and nobody listens
        self._watch = _Watch(sock, connections)
        self._owners = 1

    def share(self) -> Association:
        """Have one owner more."""
        self._owners += 1
        return self

    def close(self) -> None:
        """Have one owner less; without any it is over."""
        self._owners -= 1
        if not self._owners:
            self._watch.close()

    def __del__(self) -> None:
        if self._owners > 0:  # whoever had it has forgotten it
            self._watch.close()

    def expect_life(self) -> None:
        """Hold that no proxy has ended its connection, or says more there than anybody waits for.
        ProxyMisbehaved (ECONNRESET).
        """
        for proxy, connection in zip(self.chain, self.connections, strict=True):
            if self._watch.is_over or self._has_ended(connection):
                self._watch.end()
                raise ProxyMisbehaved(errno.ECONNRESET, f"{proxy}: it has ended the association")

    def _has_ended(self, connection: socket) -> bool:
        try:
            while self._left >= 0:
                data = connection.recv(_DRAIN)
                if not data:
                    return True
                self._left -= len(data)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def head_for(self, address: Any) -> bytes | None:
        """Give what goes in front of data for an address that has been led somewhere."""
        return self._heads.get(address)

    def lead(self, address: Any, endpoint: Endpoint) -> bytes:
        """Have what is for an address go to an endpoint, from now on."""
        if len(self._heads) >= _MOST_HEADS:
            self._heads.clear()
        head = self._heads[address] = self._outer + encode_header(endpoint)
        return head

    # Datagrams; a deadline is a time of monotonic(), None for ever

    def send(self, pieces: list[Any], flags: int, deadline: float | None) -> int:
        """Send one, with its headers, from several buffers; give its length. OSError."""
        _expect(flags, _SENDING)
        while True:
            self.expect_life()
            try:
                return self.sock.sendmsg(pieces, (), flags | MSG_DONTWAIT)
            except BlockingIOError:
                self._wait(POLLOUT, deadline)
            except ConnectionRefusedError as error:
                raise self._no_relay(error) from None
            except BrokenPipeError:
                self.expect_life()
                raise  # it was shutdown() here

    def receive(
        self, size: int, flags: int, deadline: float | None, is_wanted: Callable[[Endpoint], bool]
    ) -> tuple[memoryview, int, Endpoint | None]:
        """Receive the next one of those that are wanted, by where they come from, and drop others:
        the data, at most so many bytes, how many there were, and where from; that is None if
        there is nothing more after a shutdown(). OSError.
        """
        if size < 0:
            raise ValueError("negative buffersize in recv")
        _expect(flags, _RECEIVING)
        sock, count = self.sock, len(self.chain)
        view = memoryview(bytearray(count * LONGEST_HEADER + size))
        dropped = 0
        while True:
            try:
                length = sock.recv_into(view, 0, flags & MSG_PEEK | MSG_DONTWAIT | MSG_TRUNC)
            except BlockingIOError:
                is_shut_down = _is_shut_down(sock)
                self.expect_life()  # at the end of which it is shut down, too
                if is_shut_down:
                    return view[:0], 0, None
                self._wait(POLLIN, deadline)
                continue
            except ConnectionRefusedError as error:
                self.expect_life()
                raise self._no_relay(error) from None
            start, data = last_header(view, 0, min(length, len(view)), count)
            source = _source(view[start:data]) if data else None
            if source is not None and is_wanted(source):
                return view[data : min(length, data + size)], length - data, source
            dropped += 1
            if flags & MSG_PEEK:
                sock.recv_into(view, 0, MSG_DONTWAIT)
            self._expect_patience(dropped, deadline)

    def _wait(self, events: int, deadline: float | None) -> None:
        """Wait for the relay, or the end of the association: a child process has no thread that
        would look after it.
        """
        if deadline == AT_ONCE:
            raise try_again()
        seconds = left(deadline)
        all_of_them = poll()
        for sock in (self.sock, *self.connections):
            if sock.fileno() < 0:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))  # by another thread
            all_of_them.register(sock.fileno(), events if sock is self.sock else POLLIN)
        if not all_of_them.poll(None if seconds is None else seconds * 1000):
            raise timed_out()

    def _expect_patience(self, dropped: int, deadline: float | None) -> None:
        """Hold that there is time to look at more than what has been dropped.

        Who must not wait has looked at all that had come when it began: the next one wakes it.
        """
        if deadline == AT_ONCE:
            if dropped * _SMALLEST > self.sock.getsockopt(SOL_SOCKET, SO_RCVBUF):
                raise try_again()
        elif deadline is not None and monotonic() >= deadline:
            raise timed_out()

    def _no_relay(self, error: OSError) -> ProxyUnreachable:
        reason = f"{self.chain[0]}: nobody is where datagrams are to go"
        return ProxyUnreachable(error.errno or 0, reason)


class _Watch:
    """What the background thread has to do with it: it shuts the socket down when a connection
    ends. That wakes whoever waits for the socket, in whichever way.
    """

    __slots__ = ("_connections", "_lock", "_sock", "_streams", "_thread", "is_over")

    def __init__(self, sock: socket, connections: list[socket]) -> None:
        self._sock = sock
        self._connections = connections
        self._streams: list[Stream] = []
        self._lock = allocate_lock()
        self.is_over = False  # somebody has ended a connection
        self._thread = Thread.of_this_process()
        self._thread.call(self._begin)

    def _begin(self) -> None:
        if self._sock.fileno() < 0:
            return
        try:
            for connection in self._connections:
                self._streams.append(Stream(self._thread.loop, connection))
        except OSError:  # epoll(7) has a limit for each user: an association nobody watches is over
            self._end()
            return
        for stream in tuple(self._streams):
            if stream in self._streams:  # the end of another one has been its own
                Ending(stream, lambda _: self._end(), MOST_SAID)

    def _end(self) -> None:
        self._leave()
        self.end()

    def end(self) -> None:
        """Wake whoever waits for the socket. It is of no use any more."""
        self.is_over = True
        self._alone(self._shut_down)

    def _shut_down(self) -> None:
        try:
            self._sock.shutdown(SHUT_RDWR)
        except OSError:
            return  # it has been done, or it is closed

    def _alone(self, act: Callable[[], None]) -> None:
        """Do it while the background thread does not. A child process has none: there the lock may
        be what that of its parent had when they were forked, for ever.
        """
        if not self._thread.is_here:
            act()
            return
        with self._lock:
            act()

    def _leave(self) -> None:
        streams, self._streams = self._streams, []
        for stream in streams:
            stream.detach()

    def close(self) -> None:
        """Let go of all of it."""
        self._alone(self._sock.close)
        if self._thread.is_here:
            self._thread.call(self._close_connections)
        else:
            self._close_connections()  # of a child process: its parent looks after its own

    def _close_connections(self) -> None:
        if self._thread.is_here:
            self._leave()
        for connection in self._connections:
            connection.close()


def left(deadline: float | None) -> float | None:
    """Say how many seconds there are up to a deadline."""
    return None if deadline is None else max(0.0, deadline - monotonic())


def _expect(flags: int, known: int) -> None:
    if flags & ~known:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def _source(header: memoryview) -> Endpoint | None:
    try:
        return decode_header(bytes(header))
    except RemoteProtocolError:
        return None


def _is_shut_down(sock: socket) -> bool:
    state = poll()
    state.register(sock.fileno(), POLLRDHUP)
    return bool(state.poll(0))
