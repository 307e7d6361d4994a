"""Sockets of ours on the way to a proxy, in the place of a program's."""

import socket

import pytest
from ends import nothing_left_behind

from muonsocks.address import Endpoint
from muonsocks.intercept.stand_in import StandIn
from muonsocks.net.loop import Loop

V4, V6 = socket.AF_INET, socket.AF_INET6
OPTIONS = {
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE): b"\1\0\0\0",
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): b"\x21\0\0\0",
}


@pytest.mark.parametrize(
    ("family", "host", "expected"),
    [(V4, "127.0.0.1", V4), (V6, "127.0.0.1", V6), (V6, "::1", V6), (V4, "::1", V6)],
)
def test_it_is_of_the_programs_family_where_that_can_be(
    family: int, host: str, expected: int
) -> None:
    with (
        nothing_left_behind(),
        socket.create_server((host, 0), family=V6 if ":" in host else V4) as far,
    ):
        loop = Loop()

        async def run() -> None:
            endpoint = Endpoint(host, far.getsockname()[1])
            stream = await StandIn(family, OPTIONS).dial(loop, endpoint)
            sock = stream.detach()
            assert sock.family == expected
            assert sock.getpeername()[:2] in (
                far.getsockname()[:2],
                (f"::ffff:{host}", endpoint.port),
            )
            for option in OPTIONS:
                assert sock.getsockopt(*option, 4) == OPTIONS[option]
            sock.close()

        loop.run(run())
        loop.close()
