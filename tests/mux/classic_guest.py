"""The guest's half of the older pair (see classic.py): a SOCKS5 server in the virtual machine, that
sends the requests and data of its clients out through the port.

    python3 classic_guest.py PORT [LISTENING-PORT]

It accepts no client until the host has sent it something. What one read gives of that is thrown
away. Its clients are told "success" at once, whatever becomes of the connection.

Not known, and chosen as the simplest program would have it:

- It listens from the start, so that early clients wait in the backlog.
- A client has the lowest free connId from when it is accepted, and a frame for that connId is sent
  to it even before its request. A client for whom there is none is closed at once.
- The request is on the port before the client is told. Before it, a client that leaves, or is
  refused, leaves no trace there.
- It takes CONNECT to an IPv4 address or a name and refuses all else as RFC 1928 has it; it does not
  look whether the client offers "no authentication", which it answers with.
"""

import select
import socket
import sys
from pathlib import Path
from typing import TextIO

from classic import CONNECTIONS, Half, run

# RFC 1928, sections 4 and 6.
CONNECT = 1
IPV4, NAME = 1, 3
SUCCEEDED, COMMAND_NOT_SUPPORTED, ADDRESS_TYPE_NOT_SUPPORTED = 0, 7, 8


class ClassicGuest(Half):
    """The guest's half. It starts at once; `address` is where it listens, `accepting` says that the
    host has spoken.
    """

    def __init__(
        self,
        port: socket.socket | str | Path,
        *,
        listen: tuple[str, int] = ("127.0.0.1", 0),
        frame_limit: int = 4096,
        tells_end: bool = True,
        out: TextIO | None = None,
    ) -> None:
        super().__init__(port, frame_limit, tells_end, out)
        try:
            self._listener = socket.create_server(listen, backlog=2 * CONNECTIONS)
        except OSError:
            super().close()
            raise
        self._listener.setblocking(False)
        self.address: tuple[str, int] = self._listener.getsockname()
        self.accepting = False
        self._start(self._serve_port)

    def close(self) -> None:
        """As in Half; the listener too."""
        try:
            super().close()
        finally:
            self._listener.close()

    def _serve_port(self) -> None:
        self._read()  # whatever it is
        with self._changed:
            self.accepting = True
            self._changed.notify_all()
        self._start(self._accept)
        while True:
            self._read()
            number, payload = self._first_frame()
            client = self.sockets.get(number)
            if client:
                self._send(number, client, payload)

    def _accept(self) -> None:
        while self._wait(self._listener.fileno(), select.POLLIN):
            try:
                client, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue  # it has left again
            free = [n for n in range(CONNECTIONS) if n not in self.sockets]
            if free:
                self._open(free[0], client, self._serve_client)
            else:
                client.close()

    def _serve_client(self, number: int, client: socket.socket) -> None:
        try:
            request = self._handshake(number, client)
        except EOFError:
            return
        if request:
            self._write(number, request)
            self._send(number, client, reply(SUCCEEDED))
            self._carry(number, client)

    def _handshake(self, number: int, client: socket.socket) -> bytes:
        """The request as the port has it; b"" if it is not served; EOFError if the client left."""
        version, methods = self._receive_all(client, 2)
        if version != 5:
            return b""
        self._receive_all(client, methods)
        self._send(number, client, b"\x05\0")
        _, command, _, kind = self._receive_all(client, 4)
        if kind not in (IPV4, NAME):
            self._send(number, client, reply(ADDRESS_TYPE_NOT_SUPPORTED))
            return b""
        length = b"" if kind == IPV4 else self._receive_all(client, 1)
        rest = self._receive_all(client, (length[0] if length else 4) + 2)
        if command != CONNECT:
            self._send(number, client, reply(COMMAND_NOT_SUPPORTED))
            return b""
        return bytes([kind]) + length + rest

    def _receive_all(self, client: socket.socket, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self._receive(client, count - len(data))
            if not part:
                raise EOFError
            data += part
        return data


def reply(code: int) -> bytes:
    """The server's answer, which names no address."""
    return bytes([5, code, 0, IPV4]) + bytes(6)


if __name__ == "__main__":
    wanted = int((sys.argv[2:] or ["1080"])[0])
    guest = ClassicGuest(sys.argv[1], listen=("127.0.0.1", wanted), out=sys.stdout)
    sys.stdout.write(f"listening on port {guest.address[1]}\n")
    sys.stdout.flush()
    run(guest)
