"""A name server on loopback, for a network and files of one's own; and a gate for look-ups."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ends import PATIENCE
from places import sh

_A, _IN, _NXDOMAIN = 1, 1, 3


class Nameserver:
    """Answers from a table; what is asked for a name in `withheld` is answered at `release`."""

    def __init__(self, address: str, table: dict[str, str], withheld: frozenset[str]) -> None:
        self._table = table
        self._withheld = withheld
        self._kept: list[tuple[bytes, object]] = []
        self._lock = threading.Lock()
        self.asked: list[str] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, 53))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            query, client = self._socket.recvfrom(512)
            if not query:
                return
            name, _ = self._question(query)
            self.asked.append(name)
            with self._lock:
                if name in self._withheld:
                    self._kept.append((query, client))
                    continue
            self._answer(query, client)

    @staticmethod
    def _question(query: bytes) -> tuple[str, int]:
        labels, place = [], 12
        while length := query[place]:
            labels.append(query[place + 1 : place + 1 + length].decode())
            place += 1 + length
        return ".".join(labels).lower(), int.from_bytes(query[place + 1 : place + 3], "big")

    def _answer(self, query: bytes, client: object) -> None:
        name, kind = self._question(query)
        address = self._table.get(name)
        has_record = address is not None and kind == _A
        end = query.index(b"\0", 12) + 5
        head = query[:2] + b"\x81" + bytes([0x80 | (0 if address else _NXDOMAIN)])
        head += b"\0\1" + bytes([0, has_record]) + bytes(4)
        answer = head + query[12:end]
        if has_record:
            answer += b"\xc0\x0c\0\1\0\1" + bytes(4) + b"\0\4" + socket.inet_aton(str(address))
        self._socket.sendto(answer, client)  # type: ignore[arg-type]

    def release(self) -> None:
        """Answer what was kept, and keep nothing any more."""
        with self._lock:
            self._withheld = frozenset()
            kept, self._kept = self._kept, []
        for query, client in kept:
            self._answer(query, client)

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as farewell:
            farewell.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()


@contextmanager
def nameserver(
    address: str, table: dict[str, str], withheld: frozenset[str] = frozenset()
) -> Iterator[Nameserver]:
    server = Nameserver(address, table, withheld)
    try:
        yield server
    finally:
        server.close()


def own_files(place: Path, hosts: str, server: str = "127.0.0.1") -> None:
    """Have files of one's own in /etc, for who is in mounts of its own."""
    (place / "hosts").write_text(hosts)
    (place / "resolv.conf").write_text(resolv_conf(server))
    (place / "nsswitch.conf").write_text("hosts: files dns\n")
    for name in ("hosts", "resolv.conf", "nsswitch.conf"):
        sh(f"mount --bind {place}/{name} /etc/{name}")


def resolv_conf(server: str) -> str:
    return f"nameserver {server}\noptions timeout:30 attempts:1\n"


class Gate:
    """Look-ups of names with "slow" in them that wait, in any process, until they are let go.

    It stands in for `addresses_of`; processes with no descriptors in common meet at files.
    """

    def __init__(self, place: Path) -> None:
        self._fifo = place / "gate"
        os.mkfifo(self._fifo)
        self._journal = place / "journal"
        self._journal.touch()
        for path in (place, self._fifo, self._journal):
            path.chmod(0o777)

    def addresses_of(self, host: str) -> list[tuple[bytes, int]]:
        with open(self._journal, "a") as journal:
            journal.write(f"{host}\n")
        if "slow" in host:
            os.close(os.open(self._fifo, os.O_RDONLY))  # waits for a writer
        return [(host.encode()[-4:], 0)]

    def begun(self) -> list[str]:
        """The names of all look-ups that have begun."""
        return self._journal.read_text().split()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Let all go that wait, and let nobody wait meanwhile."""
        writer = os.open(self._fifo, os.O_RDWR)
        yield
        os.close(writer)


def wait_until(condition: Callable[[], object]) -> None:
    """Look until something that another process does is done."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        os.sched_yield()
