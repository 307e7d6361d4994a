"""What both halves of the older pair have in common: two C programs, one in a virtual machine and
one outside of it, that carry SOCKS connections over a virtio serial port. These models behave on
the port as they do, faults included, and share no code with what is tested.

On the port a frame is `u16 connId, u16 length`, little-endian, then so many bytes. A half has one
buffer, and takes what one read of the port has put there for one frame:

- a second frame that the same read returned is lost;
- of a frame split over two reads, the missing bytes are what an earlier read left in the buffer,
  and the second read is taken for a frame of its own;
- the length is believed, up to the end of the buffer (the program would read past it).

The port is read by one thread, which sends to the sockets and waits while one takes nothing: there
is no flow control. Each socket is read by a thread of its own: a frame a read, a write a frame.

Not known, and chosen as the simplest program would have it:

- The buffer for a read and for a frame is 4096 bytes with the header: that is all that one read of
  a port gives in the machine, so that a longer frame would always have been split. `frame_limit`
  changes both; with 4100, the length of a frame is up to 4096.
- A socket that has come to its end, or is reset, is framed like all else it gives: as a frame of
  length 0, and closed. With `tells_end=False` it is closed, and the other half is not told.
- A connection that a frame of length 0 has closed is not answered with another.
- A connId is free again as soon as its half has closed it; a late frame reaches its next user.
- A connId above 63, or a frame for a connection that is not there, is passed over.
- When the port is at its end, so is the program, with all its connections.
"""

import select
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from classic_port import HEADER, PATIENCE, Over, Port

CONNECTIONS = 64


class Half(Port):
    """One half, in threads of this process, which end with `close` or at the end of the port.

    `sockets` has the connections that are open, by connId. `tells_end` and `frame_limit` (bytes)
    are explained above, the rest in Port.
    """

    def __init__(
        self,
        port: socket.socket | str | Path,
        frame_limit: int,
        tells_end: bool,
        out: TextIO | None,
    ) -> None:
        super().__init__(port, frame_limit, out)
        self.sockets: dict[int, socket.socket] = {}
        self._tells_end = tells_end
        self._threads: list[threading.Thread] = []
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all threads and close all that is open; raise what one of them has failed with."""
        self._halt()
        while self._threads:
            with self._changed:
                thread = self._threads.pop()
            thread.join(PATIENCE)
            if thread.is_alive():
                raise TimeoutError(f"{thread.name} does not end")
        super().close()
        if self._failure:
            raise self._failure

    # Threads: each is started here, and ends with Over at the latest.

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(
            target=self._run,
            args=(work, *arguments),
            name=f"{type(self).__name__}.{work.__name__}",
            daemon=True,
        )
        with self._changed:
            self._threads[:] = [t for t in self._threads if t.is_alive()]
            self._threads.append(thread)
            thread.start()

    def _run(self, work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        except Over:
            pass  # as it should
        except BaseException as error:
            self._failure = error  # raised by close()
            self._halt()

    # The connections.

    def _open(self, number: int, sock: socket.socket, work: Callable[..., None]) -> None:
        """Keep a connection, which is open while a thread of its own does the work."""
        sock.setblocking(False)
        with self._changed:
            self.sockets[number] = sock
            self._changed.notify_all()
        self._start(self._hold, number, sock, work)

    def _hold(self, number: int, sock: socket.socket, work: Callable[..., None]) -> None:
        try:
            work(number, sock)
        finally:
            self._forget(number, sock)
            sock.close()

    def _carry(self, number: int, sock: socket.socket) -> None:
        """Frame what a socket gives, to its end."""
        while data := self._receive(sock, len(self._buffer) - HEADER.size):
            self._write(number, data)
        if self._tells_end and self.sockets.get(number) is sock:
            self._write(number, b"")

    def _receive(self, sock: socket.socket, limit: int) -> bytes:
        """Wait for what one recv() gives; nothing at the end, and after a reset."""
        self._wait(sock.fileno(), select.POLLIN)
        try:
            return sock.recv(limit)
        except OSError:
            return b""  # to a program that asks `n <= 0`, all the same

    def _send(self, number: int, sock: socket.socket, data: bytes) -> None:
        """Send all of it, however long that takes. When send() returns 0, that is the end."""
        try:
            while self._wait(sock.fileno(), select.POLLOUT):
                try:
                    count = sock.send(data)
                except BlockingIOError:
                    continue
                if count == 0:
                    self._forget(number, sock)
                    return
                if not (data := data[count:]):
                    return
        except (OSError, ValueError):
            return  # it is closed, or will be by the thread that reads it

    def _forget(self, number: int, sock: socket.socket) -> None:
        """Free a connection's number if it still has it; shut it down, which ends its thread."""
        with self._changed:
            if self.sockets.get(number) is sock:
                del self.sockets[number]
            self._changed.notify_all()
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has been, or its peer has reset it


def run(half: Half) -> None:
    """What a half does as a program: it serves to the end of its port."""
    with half:
        half.wait_until(lambda: half.over, None)
