"""The host's half of the older pair (see classic.py): it connects to the unix socket that the
emulator listens on, and dials what the other half asks for.

    python3 classic_host.py SOCKET [SECONDS]

First it greets, with five test frames on connId 0xFFFF, for 6 s or the seconds given; what comes
from the port meanwhile is read and thrown away. The first frame of a connId after that is the
request, `u8 ATYP, address, u16 port big-endian`: ATYP 1 and 4 bytes, or 3, a length and a name.

Not known, and chosen as the simplest program would have it:

- A test frame comes first, and a fifth of the time passes after each, the last included.
- It dials in the thread that reads the port, or the data that follow a request at once would have
  nowhere to go. So a target that does not answer stalls everything until the kernel gives up.
- It dials the first IPv4 address of a name, and no other.
- It says nothing of a connection that it cannot make, and forgets it: the next frame of this connId
  is a request again. A request that is too short, or of another ATYP, is passed over likewise; what
  follows a request in the same frame is lost.
"""

import errno
import select
import socket
import struct
import sys
import time
from pathlib import Path
from typing import TextIO

from classic import CONNECTIONS, Half, run

TEST_NUMBER = 0xFFFF
TEST_FRAMES = [bytes(range(16 * i, 16 * i + 16)) for i in range(5)]


class ClassicHost(Half):
    """The host's half. It starts at once; `greeted` says that the greeting is over."""

    def __init__(
        self,
        port: socket.socket | str | Path,
        *,
        greeting: float = 6.0,
        frame_limit: int = 4096,
        tells_end: bool = True,
        out: TextIO | None = None,
    ) -> None:
        super().__init__(port, frame_limit, tells_end, out)
        self.greeted = False
        self._greeting = greeting  # s
        self._start(self._serve_port)

    def _serve_port(self) -> None:
        self._greet()
        while True:
            self._read()
            number, payload = self._first_frame()
            sock = self.sockets.get(number)
            if sock:
                self._send(number, sock, payload)
            elif number < CONNECTIONS:
                self._connect(number, payload)

    def _greet(self) -> None:
        start = time.monotonic()
        for turn, payload in enumerate(TEST_FRAMES, 1):
            self._write(TEST_NUMBER, payload)
            end = start + self._greeting * turn / len(TEST_FRAMES)
            while (left := end - time.monotonic()) > 0:
                if self._wait(self._port, select.POLLIN, left):
                    self._read()
        with self._changed:
            self.greeted = True
            self._changed.notify_all()

    def _connect(self, number: int, request: bytes) -> None:
        target = parse_request(request)
        sock = self._dial(*target) if target else None
        if sock:
            self._open(number, sock, self._carry)

    def _dial(self, host: bytes, port: int) -> socket.socket | None:
        try:
            found = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)
        except OSError:
            return None
        sock = socket.socket(socket.AF_INET)
        sock.setblocking(False)
        try:
            error = sock.connect_ex(found[0][4])
            if error == errno.EINPROGRESS:
                self._wait(sock.fileno(), select.POLLOUT)
                error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        except BaseException:
            sock.close()
            raise
        if error:
            sock.close()
            return None
        return sock


def parse_request(request: bytes) -> tuple[bytes, int] | None:
    """The host, as an address in digits or a name, and the port; None for what is no request."""
    if request[:1] == b"\x01":
        host, rest = socket.inet_ntoa(request[1:5].ljust(4, b"\0")).encode(), request[5:]
    elif request[:1] == b"\x03" and len(request) > 1:
        end = 2 + request[1]
        host, rest = request[2:end].split(b"\0")[0], request[end:]
    else:
        return None
    if len(rest) < 2:
        return None
    (port,) = struct.unpack_from(">H", rest)
    return host, port


if __name__ == "__main__":
    run(ClassicHost(sys.argv[1], greeting=float((sys.argv[2:] or ["6"])[0]), out=sys.stdout))
