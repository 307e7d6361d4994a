"""ASSOCIATE through other proxies, one through the other, by the real programs."""

import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from associated import Associated, ask, associated, far_end
from programs import HANDSHAKE, INETD, RELAY, Program, serving
from real_server import Server, kinds_of_descriptors, running, until
from upstream import Upstream

LOCAL = "--allow-local"
PROGRAMS = {"socks-inetd": [INETD], "socks-handshake and socks-relay": [HANDSHAKE, RELAY]}
CHAINS = {"one": 1, "two": 2, "three": 3}
EACH_CHAIN = pytest.mark.parametrize("chain", CHAINS)


@pytest.fixture(scope="module")
def upstreams() -> Iterator[list[Server]]:
    """Three proxies, of which the second wants a password."""
    with running() as one, running("-U", "alice", "-P", "secret") as two, running() as three:
        yield [one, two, three]


def via(upstreams: list[Server], count: int, scheme: str = "socks5h") -> list[str]:
    logins = ("", "alice:secret@", "")
    return [
        "--via={}://{}{}:{}".format(scheme, login, *server.address)
        for login, server in zip(logins[:count], upstreams, strict=False)
    ]


def of(program: Program) -> AbstractContextManager[Associated]:
    return associated(program.client.send, program.client.read)


@EACH_CHAIN
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_to_an_address(upstreams: list[Server], program: str, chain: str, host: str) -> None:
    ways = via(upstreams, CHAINS[chain])
    with far_end(host) as far, serving(*PROGRAMS[program], LOCAL, *ways, over="tcp") as served:
        with of(served) as association:
            for data in (b"question", b"", bytes(range(256)) * 5):
                association.exchange(far, data)
        served.client.close()
        assert served.status == 0
    shown = ",".join(re.sub("//.*@", "//", way.removeprefix("--via=")) for way in ways)
    assert f'via="{shown}"' in served.log
    assert " datagrams-in=3 datagrams-out=3 dropped=0 " in served.log.splitlines()[-1]


@EACH_CHAIN
@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_to_a_name(upstreams: list[Server], chain: str, scheme: str) -> None:
    """The last proxy looks it up, or this one; what answers has an address."""
    ways = via(upstreams, CHAINS[chain], scheme)
    with far_end() as far, serving(INETD, LOCAL, *ways, over="tcp") as program:
        with of(program) as association:
            port = far.getsockname()[1]
            association.send("localhost", port, b"question")
            data, source = far.recvfrom(99)
            assert data == b"question"
            far.sendto(b"answer", source)
            assert association.receive() == (far.getsockname(), b"answer")
        program.client.close()


def test_only_who_was_sent_to_answers(upstreams: list[Server]) -> None:
    """The proxy's own filter is open: ours is not."""
    with running("--udp-filter=open") as careless, far_end() as far, far_end() as stranger:
        way = "--via=socks5h://{}:{}".format(*careless.address)
        with serving(INETD, LOCAL, way, over="tcp") as program:
            with of(program) as association:
                association.send(*far.getsockname(), b"question")
                _, source = far.recvfrom(99)
                stranger.sendto(b"intrusion", source)
                far.sendto(b"answer", source)
                assert association.receive() == (far.getsockname(), b"answer")
            program.client.close()
        assert " dropped=1 " in program.log.splitlines()[-1]


def test_rules_lead_some_that_way(upstreams: list[Server], tmp_path: Path) -> None:
    """One that is used for some destinations only is asked when there is something for it."""
    (way,) = via(upstreams, 1)
    rules = tmp_path / "rules"
    with far_end() as near, far_end() as far:
        port = far.getsockname()[1]
        rules.write_text(f"via {way.removeprefix('--via=')} associate 127.0.0.1 {port}\n")
        before = upstreams[0].count("associated ")
        with serving(INETD, LOCAL, f"--rules={rules}", over="tcp") as program:
            with of(program) as association:
                association.exchange(near)
                assert upstreams[0].count("associated ") == before
                association.exchange(far)
                association.exchange(near)
            program.client.close()
        assert upstreams[0].count("associated ") == before + 1


def refusal(program: Program) -> int:
    reply = ask(program.client.send, program.client.read)
    return reply[1]


@pytest.mark.parametrize(
    ("script", "code", "end"),
    [
        ([3, b"\5\0", 10, b"\5\7\0\1" + bytes(6)], 7, "associate-failed"),
        ([3, b"\5\0", 10, b"\5\2\0\1" + bytes(6)], 2, "associate-failed"),
        ([3, b"\5\xff"], 1, "via-failed"),
        ([3, b"\5\0", 10, b"\5\0\0\3\1x\0\7"], 1, "via-failed"),
        ([3, b"\5\0", 10, b"\5\0\0\1\300\0\2\1\0\7"], 1, "via-failed"),
        ([3, b"\5\0", 10, b"\5\0\0\4" + bytes(15) + b"\1\0\7"], 1, "via-failed"),
        ([3, b"\5\0", 10, b"\5\0\0\1\x7f\0\0\2\0\7"], 1, "via-failed"),
        ([3, b"\5\0", 10, b"\5\0\0\1\xe0\0\0\1\0\7"], 1, "via-failed"),
    ],
    ids=[
        "not supported",
        "not allowed",
        "no method",
        "a name for its relay",
        "no way there",
        "a relay of another family",
        "a relay that is here, where it is not",
        "a relay that is many",
    ],
)
def test_a_proxy_that_has_none(script: list[int | bytes | str], code: int, end: str) -> None:
    """The client is told at once, as all that it could send would go there."""
    with Upstream(script) as upstream:
        way = f"--via={upstream.url('socks5')}"
        with serving(INETD, LOCAL, way, over="tcp") as program:
            assert refusal(program) == code
            program.client.close()
            assert program.status == 0
    assert program.end == end


@pytest.mark.parametrize("scheme", ["http", "socks4a"])
def test_a_protocol_that_has_none(scheme: str) -> None:
    with serving(INETD, LOCAL, f"--via={scheme}://127.0.0.1:9", over="tcp") as program:
        assert refusal(program) == 7
        program.client.close()
        assert program.status == 0


def test_a_proxy_that_goes_and_comes_back(upstreams: list[Server]) -> None:
    with running() as middle, far_end() as far:
        way = "--via=socks5h://{}:{}".format(*middle.address)
        with running(way, workers=1) as server, server.connect() as client:
            with associated(client.sendall, client.recv) as association:
                association.exchange(far)
                [worker] = server.worker_pids()
                before = kinds_of_descriptors(worker)
                for pid in middle.worker_pids():
                    os.kill(pid, signal.SIGKILL)

                def is_there_again() -> bool:
                    association.send(*far.getsockname(), b"again")
                    far.settimeout(0.2)
                    try:
                        return far.recvfrom(99)[0] == b"again"
                    except TimeoutError:
                        return False

                until("datagrams go there again", is_there_again)
                until("all else is closed", lambda: kinds_of_descriptors(worker) == before)
            client.close()
            server.await_log("closed .* end=closed")


def test_many_that_are_for_nobody(tmp_path: Path) -> None:
    """A proxy that does not answer: what waits for it has a bound."""
    with socket.create_server(("127.0.0.1", 0)) as silent, far_end() as far:
        rules = tmp_path / "rules"
        rules.write_text(f"via socks5://127.0.0.1:{silent.getsockname()[1]} 127.0.0.1\n")
        options = (LOCAL, "-v", f"--rules={rules}", "--dial-timeout=2")
        with serving(INETD, *options, over="tcp") as program:
            with of(program) as association:
                for _ in range(200):
                    association.send(*far.getsockname(), b"x" * 100)
                program.await_log("the time limit has passed")
            program.client.close()
            assert program.status == 0
        assert " datagrams-in=0 datagrams-out=0 dropped=200 " in program.log.splitlines()[-1]
