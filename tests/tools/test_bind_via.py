"""BIND and look-ups through other proxies, one through the other, by the real programs."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from bound import HERE, come, exchange, is_turned_away, told
from programs import (
    GREETING,
    HANDSHAKE,
    INETD,
    RELAY,
    SECONDS,
    VERSIONS,
    Version,
    read_all,
    serving,
    socks5,
)
from real_server import ADDRESS, Server, running
from upstream import END, Upstream

LOCAL = "--allow-local"
BIND, RESOLVE, RESOLVE_PTR = 2, 0xF0, 0xF1
EACH_VERSION = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)


@pytest.fixture(scope="module")
def upstreams() -> Iterator[list[Server]]:
    with running("--resolve-commands") as one, running("--bind-timeout=1") as two:
        yield [one, two]


def via(*servers: Server, scheme: str = "socks5h") -> list[str]:
    return ["--via={}://{}:{}".format(scheme, *server.address) for server in servers]


@EACH_VERSION
@pytest.mark.parametrize("scheme", ["socks4", "socks4a", "socks5", "socks5h"])
@pytest.mark.parametrize("program", [[INETD], [HANDSHAKE, RELAY]], ids=["alone", "in two parts"])
def test_a_peer(upstreams: list[Server], program: list[str], scheme: str, version: Version) -> None:
    """The proxy listens and says where, and knows who may come."""
    with serving(*program, LOCAL, *via(upstreams[0], scheme=scheme), over="tcp") as served:
        client = served.client
        client.send(version.greeting + version.request(HERE, 21, command=BIND) + b"early")
        assert client.read(len(version.chosen)) == version.chosen
        where = told(client, version)
        assert is_turned_away(where, "127.0.0.9")
        with come(where, HERE) as peer:
            assert told(client, version) == peer.getsockname()
            assert peer.recv(5) == b"early"
            exchange(client, peer)
        assert served.status == 0
    bound, connected, closed = served.log.splitlines()
    shown = f'via="{scheme}://{upstreams[0].address[0]}:{upstreams[0].address[1]}"'
    assert f" listen={where[0]}:{where[1]} {shown}" in bound
    assert f" address={HERE}:" in connected
    assert " end=closed" in closed


def test_the_last_of_two_listens(upstreams: list[Server]) -> None:
    with serving(INETD, LOCAL, *via(*upstreams), over="tcp") as served:
        client, version = served.client, VERSIONS["5"]
        client.send(GREETING + socks5(HERE, 21, command=BIND))
        assert client.read(2) == version.chosen
        with come(told(client, version), HERE) as peer:
            told(client, version)
            exchange(client, peer)
        assert served.status == 0


def replies(reply: bytes, *more: bytes | str) -> list[int | bytes | str]:
    return [3, b"\5\0", 10, reply, *more]


BOUND = b"\5\0\0\1\x7f\0\0\1\x12\x34"
STRANGER = b"\5\0\0\1\xc6\x33\x64\x09\x12\x34"  # 198.51.100.9
FAILED = {
    "the proxy has no BIND": (replies(b"\5\7\0\1" + bytes(6)), [7], "bind-failed"),
    "it refuses": (replies(b"\5\2\0\1" + bytes(6)), [2], "bind-failed"),
    "it hangs up": (replies(END), [1], "via-failed"),
    "nobody comes to it": (replies(BOUND, b"\5\6\0\1" + bytes(6)), [0, 6], "bind-timeout"),
    "it lets nobody in": (replies(BOUND, b"\5\2\0\1" + bytes(6)), [0, 2], "bind-failed"),
    "it hangs up later": (replies(BOUND, END), [0, 1], "via-failed"),
    "it says nothing more": (replies(BOUND), [0, 6], "bind-timeout"),
    "somebody else comes to it": (replies(BOUND, STRANGER), [0, 2], "refused-by-rule"),
    "it speaks something else": (replies(BOUND, b"HTTP/1.1 200"), [0, 1], "via-failed"),
}


@pytest.mark.parametrize("what", FAILED)
def test_failures(what: str) -> None:
    script, codes, end = FAILED[what]
    with Upstream(script) as upstream:
        options = [LOCAL, f"--via={upstream.url('socks5')}", "--bind-timeout=0.3"]
        with serving(INETD, *options, over="tcp") as served:
            served.client.send(GREETING + socks5("192.0.2.1", 21, command=BIND))
            assert served.client.read(2) == b"\5\0"
            for code in codes:
                assert served.client.read(10)[1] == code
            served.client.close()
            assert served.status == (end == "refused-by-rule")
    assert served.end == end


def test_the_relay_of_a_proxy_that_says_zeros() -> None:
    """Then it is where the proxy is."""
    with (
        Upstream(replies(b"\5\0\0\1\0\0\0\0\x12\x34", END)) as upstream,
        serving(INETD, LOCAL, f"--via={upstream.url('socks5')}", over="tcp") as served,
    ):
        served.client.send(GREETING + socks5("192.0.2.1", 21, command=BIND))
        assert served.client.read(12) == b"\5\0" + BOUND
        served.client.close()
        assert served.status == 0


def test_an_address_that_socks4_cannot_say() -> None:
    bound = b"\5\0\0\4" + bytes(15) + b"\1\x12\x34"
    with (
        Upstream(replies(bound)) as upstream,
        serving(INETD, LOCAL, f"--via={upstream.url('socks5')}", over="tcp") as served,
    ):
        served.client.send(VERSIONS["4"].request("192.0.2.1", 21, command=BIND))
        assert served.client.read(8) == VERSIONS["4"].failure(8)
        served.client.close()
        assert served.status == 0


def test_the_client_leaves_while_a_proxy_waits(upstreams: list[Server]) -> None:
    with serving(INETD, LOCAL, *via(upstreams[0]), over="tcp") as served:
        served.client.send(GREETING + socks5(HERE, 21, command=BIND))
        assert served.client.read(2) == b"\5\0"
        where = told(served.client, VERSIONS["5"])
        served.client.reset()
        assert served.status == 0
    assert served.end == "client-lost"
    with pytest.raises(ConnectionRefusedError):
        while True:  # the proxy is told, too
            with contextlib.suppress(ConnectionResetError):  # of who comes while it is closed
                come(where, HERE).close()


def test_a_look_up(upstreams: list[Server]) -> None:
    options = [LOCAL, "--resolve-commands", *via(upstreams[0])]
    for host, command, answer in (
        ("localhost", RESOLVE, VERSIONS["5"].success(HERE, 0)),
        (HERE, RESOLVE, VERSIONS["5"].success(HERE, 0)),
        (HERE, RESOLVE_PTR, VERSIONS["5"].success("localhost", 0)),
    ):
        with serving(INETD, *options, over="tcp") as served:
            served.client.send(GREETING + socks5(host, 0, command=command))
            assert served.client.read(2) == b"\5\0"
            assert served.client.rest() == answer
            served.client.close()
            assert served.status == 0
        assert served.end == "resolved"


def test_a_proxy_without_look_ups(upstreams: list[Server]) -> None:
    options = [LOCAL, "--resolve-commands", *via(upstreams[1])]
    with serving(INETD, *options, over="tcp") as served:
        served.client.send(GREETING + socks5("localhost", 0, command=RESOLVE))
        assert served.client.read(12)[2:4] == b"\5\7"
        served.client.close()
        assert served.status == 0


def test_rules_lead_some_that_way(upstreams: list[Server], tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text(f"{via(upstreams[0])[0].removeprefix('--').replace('=', ' ')} bind {HERE}\n")
    before = upstreams[0].count("bound client=")
    for host, more in (("127.0.0.2", 0), (HERE, 1)):
        with serving(INETD, LOCAL, f"--rules={rules}", over="tcp") as served:
            served.client.send(GREETING + socks5(host, 21, command=BIND))
            assert served.client.read(4)[2:] == b"\5\0"
            if more:
                upstreams[0].await_log("bound client=", before + more)
            served.client.close()
            assert served.status == 0
        assert upstreams[0].count("bound client=") == before + more


def test_a_rule_leads_all_that_way(tmp_path: Path) -> None:
    """And so whoever comes to who has named nobody."""
    with running("--bind-any") as upstream:
        rules = tmp_path / "rules"
        rules.write_text("via socks5://{}:{} bind\n".format(*upstream.address))
        with serving(INETD, LOCAL, "--bind-any", f"--rules={rules}", over="tcp") as served:
            served.client.send(GREETING + socks5("0.0.0.0", 0, command=BIND))
            assert served.client.read(4)[2:] == b"\5\0"
            upstream.await_log("bound client=")
            served.client.close()
            assert served.status == 0


@pytest.mark.parametrize("comes", ["198.51.100.9", "198.51.100.10"])
def test_rules_lead_anybody_that_way(tmp_path: Path, comes: str) -> None:
    """Nobody is named, and none the less nobody comes directly; rules hold for who comes there."""
    rules = tmp_path / "rules"
    second = b"\5\0\0\1" + socket.inet_aton(comes) + b"\x12\x34"
    with Upstream(replies(BOUND, second, END)) as upstream:
        rules.write_text(f"deny bind 198.51.100.10\nvia {upstream.url('socks5')} bind\n")
        with serving(INETD, LOCAL, "--bind-any", f"--rules={rules}", over="tcp") as served:
            served.client.send(GREETING + socks5("0.0.0.0", 0, command=BIND))
            assert served.client.read(12) == b"\5\0" + BOUND
            is_denied = comes.endswith("10")
            assert served.client.read(10)[1] == (2 if is_denied else 0)
            served.client.close()
            assert served.status == is_denied
    assert f'via="{upstream.url("socks5")}"' in served.log


def test_anybody_who_is_to_come_another_way(tmp_path: Path) -> None:
    """Where the way depends on who it is, nobody comes here that is to come through a proxy."""
    rules = tmp_path / "rules"
    rules.write_text("via socks5://127.0.0.1:9 bind 127.0.0.2\n")
    with serving(INETD, LOCAL, "--bind-any", f"--rules={rules}", over="tcp") as served:
        served.client.send(GREETING + socks5("0.0.0.0", 0, command=BIND))
        assert served.client.read(2) == b"\5\0"
        where = told(served.client, VERSIONS["5"])
        assert is_turned_away(where, "127.0.0.2")
        with come(where, HERE) as peer:
            assert told(served.client, VERSIONS["5"]) == peer.getsockname()
            exchange(served.client, peer)
        assert served.status == 0


def test_the_resident_server(upstreams: list[Server]) -> None:
    with running(*via(upstreams[0])) as server, server.connect() as client:
        client.sendall(GREETING + socks5(ADDRESS, 21, command=BIND))
        reply = read_all(client, 12)
        where = (socket.inet_ntoa(reply[6:10]), int.from_bytes(reply[10:]))
        with socket.create_connection(where, SECONDS, (ADDRESS, 0)) as peer:
            assert read_all(client, 10)[:2] == b"\5\0"
            peer.sendall(b"hello")
            assert read_all(client, 5) == b"hello"
