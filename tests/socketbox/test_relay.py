"""One connection on its way to where it is to go; the whole is in tests/tools."""

import os
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from ends import PATIENCE, Lines, nothing_left_behind
from programs import listener
from senders import accepted

from muonsocks.net.dial import Dialler
from muonsocks.net.inherit import peer_of
from muonsocks.net.loop import Loop
from muonsocks.net.task import Task, Waitable
from muonsocks.socketbox.destination import ToAddress, ToUnixSocket
from muonsocks.socketbox.relay import Forwarding, Relayer
from muonsocks.socks.policy import Access, Limits, Policy
from muonsocks.socks.proxy_header import version_1
from muonsocks.socks.rules import Rules

LOOPBACK = socket.inet_aton("127.0.0.1")


def relay(forwarding: Forwarding, sock: socket.socket, allow_local: bool = True) -> list[str]:
    """Have a connection relayed to its end, and give the log."""
    loop, log, ends = Loop(), Lines(), list[object]()
    policy = Policy(Access(), Rules((), allow_local), Dialler(), Limits())
    sock.setblocking(False)
    over = Waitable()

    def end(result: object) -> None:
        ends.append(result)
        over.wake()

    async def story() -> None:
        with loop.deadline(PATIENCE):
            work = Relayer(forwarding, policy, log).serve(loop, sock, peer_of(sock, {}))
            Task(loop, work, end, end).step()
            if not ends:
                await over

    loop.run(story())
    loop.close()
    assert ends == [0]
    assert sock.fileno() == -1
    return log.lines


def to(far: socket.socket) -> ToAddress:
    return ToAddress(LOOPBACK, far.getsockname()[1])


def test_the_header_comes_first() -> None:
    with nothing_left_behind(), listener() as far, accepted() as (client, passed):
        here, there = client.getsockname()[1], client.getpeername()[1]
        client.sendall(b"ping")
        client.shutdown(socket.SHUT_WR)
        taken = passed.dup()
        passed.close()
        lines = relay_with_far(Forwarding(to(far), version_1), taken, far)
        assert lines[0] == f"PROXY TCP4 127.0.0.1 127.0.0.1 {here} {there}\r\nping".encode()


def relay_with_far(forwarding: Forwarding, sock: socket.socket, far: socket.socket) -> list[object]:
    """The same where the far end reads all, and says no more."""

    def read() -> bytes:
        far.settimeout(PATIENCE)
        with far.accept()[0] as conn:
            conn.settimeout(PATIENCE)
            return b"".join(iter(lambda: conn.recv(100), b""))

    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(read)
        log = relay(forwarding, sock)
        return [reading.result(), *log]


def test_who_has_gone_before_it_is_known_who_it_is() -> None:
    """The far end has been connected to by then, and is told by an end."""
    with nothing_left_behind(), listener() as far:
        said, last = relay_with_far(Forwarding(to(far), version_1), socket.socket(), far)
        assert said == b""
        assert "client=gone " in str(last) and " end=client-lost " in str(last)


def test_where_nothing_is_said_first() -> None:
    with nothing_left_behind(), listener() as far:
        said, connected, closed = relay_with_far(Forwarding(to(far), None), socketpair_end(), far)
        assert said == b"ping"
        port = far.getsockname()[1]
        there = f"127.0.0.1:{port}"
        assert connected == f"connected client=unix user=- target={there} address={there}"
        assert " in=4 out=0 " in str(closed)


def socketpair_end() -> socket.socket:
    """One end of a connection of which the other has said something, and gone."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(b"ping")
    return ours


def test_a_path_that_is_not_there(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "no where")
    with nothing_left_behind():
        [line] = relay(Forwarding(ToUnixSocket(path), None), socketpair_end())
    escaped = path.replace(" ", "\\x20")
    assert f"target=unix:{escaped} " in line and " end=dial-failed " in line


@pytest.mark.parametrize(
    ("destination", "why"),
    [
        (ToAddress(LOOPBACK, 80), "127.0.0.1 is on this host's own side, see --allow-local"),
        (ToAddress(LOOPBACK, 0), "it has come to no address, which would say where it goes"),
    ],
)
def test_where_it_may_not_go(destination: ToAddress, why: str) -> None:
    with nothing_left_behind():
        [line] = relay(Forwarding(destination, None), socketpair_end(), allow_local=False)
    assert line.endswith(f'end=refused-by-rule detail="{why}"')
