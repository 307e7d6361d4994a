"""--peername: a program is told that it is connected to where it wanted to go."""

import os
import re

import pytest
from parked_program import python, run
from scripted_proxy import proxy

ASK = """
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.socket(family) as sock:
    sock.setblocking(sys.argv[2] == "blocks")
    number = sock.connect_ex((sys.argv[1], 80))
    if number:
        assert number == errno.EINPROGRESS
        assert wait(sock) & select.POLLOUT and not error_of(sock)
    print(*sock.getpeername()[:2])
"""


@pytest.fixture(params=["async", "isolate", "hold"])
def mode(request: pytest.FixtureRequest) -> str:
    if request.param == "isolate" and not os.path.exists("/proc/self/ns/user"):
        pytest.skip("this kernel has no user namespaces")
    return str(request.param)


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
@pytest.mark.parametrize("how", ["blocks", "goes on", "waits"])
def test_it_is_where_it_wanted_to_go(mode: str, how: str, address: str) -> None:
    with proxy(delay=0.1 if how == "waits" else 0) as one:
        words = python(ASK, address, how)
        assert run(one, *words, mode=mode, options=("--peername",)).output.split() == [
            address,
            "80",
        ]


def test_otherwise_it_is_the_proxy(mode: str) -> None:
    with proxy() as one:
        done = run(one, *python(ASK, "192.0.2.1", "blocks"), mode=mode)
        assert re.fullmatch(r"127\.0\.0\.1 [0-9]+\n", done.output)
