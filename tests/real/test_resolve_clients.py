"""Tor's own commands, as its tools ask for them: a name looked up, the name of an address."""

import contextlib
from collections.abc import Iterator

import clients
import pytest
from clients import NAME, TARGET, Network, body

PROXY = ("127.0.0.1", 1080)
WHERE = "127.0.0.1:1080"

EACH_SERVER = [
    pytest.param(server, marks=pytest.mark.xdist_group(f"RESOLVE of {server}"))  # a network each
    for server in ("socks-inetd", "muonsocks, 1 worker")
]


@pytest.fixture(scope="module", params=EACH_SERVER)
def net(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Network]:
    if reason := clients.missing("unshare", "nsenter", "ip", "systemd-socket-activate"):
        pytest.skip(reason)
    work = tmp_path_factory.mktemp("resolve")
    with clients.network(work) as net, contextlib.ExitStack() as stack:
        net.proxy(stack, request.param, PROXY, ["--resolve-commands"])
        yield net
    assert "Traceback" not in net.log and "this is a bug" not in net.log


ASKED = {
    "SOCKS5": (["-5", NAME], TARGET),
    "SOCKS4": (["-4", NAME], TARGET),
    "an address": (["-x", TARGET], NAME),
    "no such name": (["-5", "nobody.invalid"], ""),
    "no such name, SOCKS4": (["-4", "nobody.invalid"], ""),
}


@pytest.mark.parametrize("what", ASKED)
def test_tor_resolve(net: Network, what: str) -> None:
    if reason := clients.missing("tor-resolve"):
        pytest.skip(reason)
    arguments, answer = ASKED[what]
    done = net.run(["tor-resolve", *arguments, WHERE])
    assert done.stdout.decode().strip() == answer, done.stderr
    assert (done.returncode == 0) == bool(answer)


def test_torsocks(net: Network) -> None:
    """It looks the name up so, and then connects to the address."""
    if reason := clients.missing("torsocks", "curl"):
        pytest.skip(reason)
    torsocks = ["torsocks", "-a", PROXY[0], "-P", str(PROXY[1])]
    done = net.run([*torsocks, "curl", "-sS", f"http://{NAME}:{net.web[TARGET]}/1000"])
    assert done.stdout == body(1000), done.stderr
