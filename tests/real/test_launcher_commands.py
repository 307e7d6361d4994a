"""The commands beside CONNECT, and proxies before and behind, under each launcher."""

import contextlib
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import commands
import launchers
import pytest
from launchers import LAUNCHERS, Server
from programs import VERSIONS
from real_server import running
from test_launchers import connect, launcher, serving  # noqa: F401  (the first fixture too)

HERE = launchers.ADDRESS
NEAREST = "127.0.0.1"  # of our addresses, to HERE
VIA = ("socks5", "socks5h")
# The program has the client's own TCP connection, and not a socket of the launcher's.
GIVE_TCP = [name for name, one in LAUNCHERS.items() if one.tells_client]

Serve = Callable[..., contextlib.AbstractContextManager[Server]]


@pytest.fixture
def serve(launcher: str, tmp_path: Path) -> Serve:  # noqa: F811
    """Runs the launcher with options of the program's; gives the server."""

    @contextlib.contextmanager
    def serve(*options: str) -> Iterator[Server]:
        with serving(launcher, list(options), tmp_path) as server:
            yield server

    return serve


@contextlib.contextmanager
def upstream(scheme: str) -> Iterator[str]:
    """The option to go through a muonsocks; nothing, without a scheme."""
    if not scheme:
        yield ""
        return
    with running("--resolve-commands", workers=1) as server:
        yield f"--via={scheme}://{server.address[0]}:{server.address[1]}"


def to(server: Server) -> Callable[[], socket.socket]:
    return lambda: connect(server)


@pytest.mark.parametrize("scheme", ["", *VIA])
def test_bind(serve: Serve, scheme: str) -> None:
    with upstream(scheme) as via, serve(*([via] if via else [])) as server:
        for version in VERSIONS.values():
            commands.binds(to(server), version, HERE, NEAREST)
        server.log.await_line(r"bound client=.* listen=")
        server.log.await_line(r"closed client=.* reply=0 in=8 out=6 .*end=closed")


@pytest.mark.parametrize("scheme", ["", *VIA])
def test_associate(launcher: str, serve: Serve, scheme: str) -> None:  # noqa: F811
    with upstream(scheme) as via, serve(*([via] if via else [])) as server:
        if launcher in GIVE_TCP:
            commands.associates(to(server), HERE)
            server.log.await_line("closed client=.* datagrams-in=1 datagrams-out=1 dropped=0 ")
        else:
            commands.refuses_to_associate(to(server), 7)
            server.log.await_line("closed client=.* reply=7 .*the client does not come over TCP")


def test_look_ups(serve: Serve) -> None:
    with serve("--resolve-commands", "-4") as server:
        commands.resolves(to(server), "localhost", "127.0.0.1")


@pytest.mark.parametrize("scheme", VIA)
def test_connect_through_a_proxy(serve: Serve, scheme: str) -> None:
    with upstream(scheme) as via, serve(via) as server:
        commands.connects(to(server), HERE)
        server.log.await_line("closed client=.* reply=0 .*end=closed")


def test_behind_a_proxy(launcher: str, serve: Serve) -> None:  # noqa: F811
    """Only from these networks: whoever comes over a unix socket is believed, too."""
    here = ["--proxy-from=127.0.0.0/8"] if launcher != "socat-pipes" else []
    with serve("--proxy-protocol=required", *here) as server:
        commands.connects(to(server), HERE, front=commands.FRONT)
        server.log.await_line(f"closed client={re.escape(commands.CLIENT)} .* reply=0 ")


def test_who_is_connected_to_is_told_of_the_client(launcher: str, serve: Serve) -> None:  # noqa: F811
    with serve("--send-proxy") as server:
        told_of = "the client" if launcher in GIVE_TCP else "somebody"
        commands.connects(to(server), HERE, told_of=told_of)
