"""A proxy that says what a test has it say, whatever it hears; for tests in one loop.

    with Upstream([3, b"\\5\\0", 10, granted + b"carried"], [END]) as upstream:
        stream = loop.run(connect through upstream.url("socks5"))

Each connection has a script, the last one all further ones: a number of bytes to be heard, bytes to
be said, seconds to pass, or one of the words below. In the end it waits for us to go.
"""

import contextlib
import itertools
import socket
import struct
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType

from muonsocks.socks.proxy_address import ProxyAddress

END, RESET, DEAF = "end", "reset", "deaf"  # the last one: it hears nothing any more
BYTE_BY_BYTE = "byte by byte"  # what it says next
SECONDS = 20

Script = Iterable[int | float | bytes | str]


class Endless(list[int | float | bytes | str]):
    """A script that begins again when it is over, until we go."""

    def __iter__(self) -> Iterator[int | float | bytes | str]:
        return itertools.cycle(list(super().__iter__()))


class Upstream:
    """Listens on loopback, or at a path. `heard` has the bytes of each connection."""

    def __init__(self, *scripts: Script, path: str = "") -> None:
        self._scripts = list(scripts)
        self._listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        self._listener.bind(path or ("127.0.0.1", 0))
        self._listener.listen()
        self.place = f"unix:{path}" if path else f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.heard: list[bytes] = []
        self._connections: list[socket.socket] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def url(self, scheme: str, login: str = "") -> ProxyAddress:
        return ProxyAddress.parse(f"{scheme}://{login}{self.place}")

    def __enter__(self) -> "Upstream":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: object, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._connections:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for one in self._connections:
            one.close()

    def _serve(self) -> None:
        while True:
            try:
                one, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(one)
            one.settimeout(SECONDS)
            number = len(self.heard)
            self.heard.append(b"")
            script = self._scripts[min(number, len(self._scripts) - 1)]
            with contextlib.suppress(OSError):
                self._perform(one, number, script)

    def _perform(self, one: socket.socket, number: int, script: Script) -> None:
        by_byte = False
        for step in script:
            if isinstance(step, int):
                while step and (data := one.recv(step)):
                    self.heard[number] += data
                    step -= len(data)
            elif isinstance(step, bytes):
                for piece in [bytes((byte,)) for byte in step] if by_byte else [step]:
                    one.sendall(piece)
            elif isinstance(step, float):
                self._is_over.wait(step)
            elif step == DEAF:
                self._is_over.wait(SECONDS)
                return
            elif step == BYTE_BY_BYTE:
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                by_byte = True
            else:
                if step == RESET:
                    linger = struct.pack("ii", 1, 0)
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                one.close()
                return
        while data := one.recv(1 << 16):
            self.heard[number] += data
