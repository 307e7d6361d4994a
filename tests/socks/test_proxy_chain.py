"""Through proxies that do what they should, and through those that do not."""

import contextlib
import errno
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ends import no_garbage, nothing_left_behind
from places import descriptor_limit
from upstream import BYTE_BY_BYTE, END, RESET, Script, Upstream

from muonsocks.address import Endpoint, parse_address
from muonsocks.errors import DialError, NameNotResolved, ProxyFailed, RequestFailed
from muonsocks.net.dial import Dialler
from muonsocks.net.loop import Loop
from muonsocks.net.stream import Stream
from muonsocks.net.task import Mailbox
from muonsocks.socks import proxy_chain, socks5
from muonsocks.socks.proxy_address import ProxyAddress
from muonsocks.socks.request import REPLY_NAMES, UNSPECIFIED, Command, Reply, Request

PATIENCE = 20.0
V4, V6, NAME = (
    Request(Command.CONNECT, Endpoint(host, 80)) for host in ("192.0.2.7", "2001:db8::7", "host")
)
BOUND = Endpoint("192.0.2.9", 4096)
CARRIED = b"220 welcome\r\n"

GRANTED5 = bytes.fromhex("05 00 00 01 c0000209 1000")
GRANTED4 = bytes.fromhex("00 5a 1000 c0000209")
GRANTED_HTTP = b"HTTP/1.1 200 OK\r\nVia: us\r\n\r\n"
ASKED5, ASKED5_NAME, ASKED5_V6 = (
    bytes.fromhex("05 01 00") + rest
    for rest in (
        bytes.fromhex("01 c0000207 0050"),
        b"\3\4host\0\x50",
        bytes.fromhex("04 20010db8 00000000 00000000 00000007 0050"),
    )
)
ASKED4, ASKED4A = (bytes.fromhex("04 01 0050 c0000207 00"), b"\4\1\0\x50\0\0\0\1\0host\0")
ASKED_HTTP = b"CONNECT 192.0.2.7:80 HTTP/1.1\r\nHost: 192.0.2.7:80\r\n\r\n"


@pytest.fixture(autouse=True)
def leaks_nothing() -> Iterator[None]:
    with nothing_left_behind():
        yield


async def addresses(host: str) -> list[tuple[bytes, int]]:
    """Stands in for a look-up: `a-b` is at the addresses 192.0.2.a and 192.0.2.b."""
    if not host[0].isdigit():
        raise NameNotResolved(f"{host}: no such name")
    return [(parse_address(f"192.0.2.{one}") or b"", 0) for one in host.split("-")]


def ask(
    *proxies: ProxyAddress, requests: tuple[Request, ...] = (V4,), seconds: float = PATIENCE
) -> tuple[Reply, bytes]:
    """Ask through proxies; give the reply, and what comes behind it."""
    loop = Loop()
    try:
        return ask_in(loop, *proxies, requests=requests, seconds=seconds)
    finally:
        assert not loop.handlers
        assert not any(timer.callback for _, _, timer in loop.timers)
        loop.close()


def ask_in(
    loop: Loop, *proxies: ProxyAddress, requests: tuple[Request, ...], seconds: float = PATIENCE
) -> tuple[Reply, bytes]:
    async def story() -> tuple[Reply, bytes]:
        dialler = Dialler(dial_timeout=seconds, lookup=addresses)
        stream, asking, reply = await proxy_chain.ask(loop, dialler, proxies, requests)
        assert asking.trailing == b"", "something is swallowed"
        with loop.deadline(PATIENCE):
            carried = await stream.receive(1000)
        stream.close()
        return reply, carried

    return loop.run(story())


def failure(*proxies: ProxyAddress, **options: Any) -> str:
    with pytest.raises(ProxyFailed) as caught:
        ask(*proxies, **options)
    return caught.value.strerror or ""


G5 = GRANTED5 + CARRIED
# What it is asked by, and how: what it hears, and what it does.
WAYS: dict[str, tuple[str, Request, bytes, Script]] = {
    "socks5, IPv4": ("socks5", V4, b"\5\1\0" + ASKED5, [3, b"\5\0", 10, G5]),
    "socks5, IPv6": ("socks5", V6, b"\5\1\0" + ASKED5_V6, [3, b"\5\0", 22, G5]),
    "socks5h": ("socks5h", NAME, b"\5\1\0" + ASKED5_NAME, [3, b"\5\0", 11, G5]),
    "socks4": ("socks4", V4, ASKED4, [9, GRANTED4 + CARRIED]),
    "socks4a": ("socks4a", NAME, ASKED4A, [14, GRANTED4 + CARRIED]),
    "http": ("http", V4, ASKED_HTTP, [len(ASKED_HTTP), GRANTED_HTTP + CARRIED]),
}


@pytest.mark.parametrize("slowly", [False, True], ids=["at once", "byte by byte"])
@pytest.mark.parametrize("way", WAYS)
def test_one_proxy(way: str, slowly: bool) -> None:
    """Not a byte of what is carried is read."""
    scheme, request, heard, script = WAYS[way]
    with Upstream([BYTE_BY_BYTE, *script] if slowly else script) as upstream:
        reply, carried = ask(upstream.url(scheme), requests=(request,))
    assert reply == Reply(0, UNSPECIFIED if scheme == "http" else BOUND)
    assert carried and CARRIED.startswith(carried) and (slowly or carried == CARRIED)
    assert upstream.heard == [heard]


@pytest.mark.parametrize("way", WAYS)
def test_at_a_unix_socket(way: str, tmp_path: Path) -> None:
    scheme, request, heard, script = WAYS[way]
    with Upstream(script, path=str(tmp_path / "proxy")) as upstream:
        assert ask(upstream.url(scheme), requests=(request,))[1] == CARRIED
    assert upstream.heard == [heard]


def test_passwords() -> None:
    login = [b"\5\2", 11, b"\1\0"]
    with Upstream([4, *login, 10, GRANTED5 + CARRIED]) as upstream:
        assert ask(upstream.url("socks5", "me:secret@"))[1] == CARRIED
    assert upstream.heard == [b"\5\2\0\2" + b"\1\2me\6secret" + ASKED5]
    with Upstream([9 + 2, GRANTED4 + CARRIED]) as upstream:
        assert ask(upstream.url("socks4", "me@"))[1] == CARRIED
    assert upstream.heard == [ASKED4[:-1] + b"me\0"]


# One through the other: one connection, on which one plays all of them


def proxy(url: str) -> ProxyAddress:
    return ProxyAddress.parse(url)


def test_a_chain_of_three() -> None:
    """Each is asked by its own protocol, for the next, and names are for those that resolve."""
    to_second = b"CONNECT second:3128 HTTP/1.1\r\nHost: second:3128\r\n\r\n"
    to_third = b"\5\1\0" + b"\5\1\0\3\5third" + (1080).to_bytes(2, "big")
    script: Script = [
        *[len(to_second), GRANTED_HTTP],
        *[3, b"\5\0", 4 + 1 + 5 + 2, GRANTED5],
        *[9, GRANTED4 + CARRIED],
    ]
    with Upstream(script) as upstream:
        ways = (upstream.url("http"), proxy("socks5h://second:3128"), proxy("socks4://third"))
        assert ask(*ways) == (Reply(0, BOUND), CARRIED)
    assert upstream.heard == [to_second + to_third + ASKED4]


def asked_for(place: str) -> bytes:
    return b"\5\1\0" + socks5.encode_endpoint(Endpoint(place, 1080))


def test_the_addresses_of_a_hop_are_tried() -> None:
    """What is found once is not looked for again."""
    refused, granted = GRANTED5.replace(b"\5\0", b"\5\5", 1), GRANTED5
    greeting: Script = [3, b"\5\0", 10]
    hop: Script = [3, b"\5\0", 10]
    with Upstream(
        [*greeting, refused],
        [*greeting, granted, *hop, refused],
        [*greeting, granted, *hop, granted + CARRIED],
    ) as upstream:
        other = Request(Command.CONNECT, Endpoint("192.0.2.8", 80))
        ways = (upstream.url("socks5"), proxy("socks5://1-2-3"))
        assert ask(*ways, requests=(other, V4))[1] == CARRIED
    start = b"\5\1\0"
    asked_other = ASKED5.replace(b"\x07\0", b"\x08\0")
    assert upstream.heard == [
        start + asked_for("192.0.2.1"),
        start + asked_for("192.0.2.2") + start + asked_other,
        start + asked_for("192.0.2.2") + start + ASKED5,
    ]


def test_a_hop_that_cannot_be_reached() -> None:
    with Upstream([3, b"\5\0", 10, bytes.fromhex("05 05 00 01 00000000 0000")]) as upstream:
        first = upstream.url("socks5")
        for second in ("socks5://192.0.2.1", "http://1-2"):
            said = failure(first, proxy(second), proxy("socks5://192.0.2.3"))
            assert said == f"{second}:1080: connection refused, says {first}"
    assert len(upstream.heard) == 3


def test_a_hop_whose_name_is_not_known() -> None:
    with Upstream([]) as upstream:
        said = failure(upstream.url("socks5"), proxy("socks5://unknown"))
    assert said == "socks5://unknown:1080: unknown: no such name"
    assert failure(proxy("socks5://unknown")) == "socks5://unknown:1080: unknown: no such name"


# Refusals


def refusing(code: int) -> Script:
    return [3, b"\5\0", 10, bytes((5, code, 0, 1)) + bytes(6)]


def refusal(upstream: Upstream, *requests: Request, scheme: str = "socks5") -> tuple[int, str]:
    with pytest.raises(RequestFailed) as caught:
        ask(upstream.url(scheme), requests=requests or (V4,))
    return caught.value.code, caught.value.strerror or ""


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 6, 7, 8, 9, 255])
def test_the_last_answer_is_passed_on(code: int) -> None:
    with Upstream(refusing(code)) as upstream:
        got, said = refusal(upstream)
    assert got == code
    assert said == f"{REPLY_NAMES.get(code, f'reply {code}')}, says {upstream.url('socks5')}"


def test_of_several_the_most_telling_one_is_passed_on() -> None:
    with Upstream(refusing(1), refusing(5), refusing(3)) as upstream:
        assert refusal(upstream, V4, V4, V4)[0] == 5
    assert len(upstream.heard) == 3


def test_what_cannot_be_said_is_not_asked() -> None:
    with Upstream([9, GRANTED4 + CARRIED]) as upstream:
        code, said = refusal(upstream, V6, scheme="socks4")
        assert (code, said) == (8, "socks4 has no way to say [2001:db8::7]:80")
        assert upstream.heard == []
        assert ask(upstream.url("socks4"), requests=(V6, V4))[1] == CARRIED


# Faults

FAULTS: dict[str, tuple[str, Script, str]] = {
    "closes at once": ("socks5", [END], "without an answer|reset by peer"),
    "closes after the greeting": ("socks5", [3, END], "closed the connection without an answer"),
    "closes in the reply": ("socks5", [3, b"\5\0", 10, GRANTED5[:7], END], "without an answer"),
    "resets": ("socks5", [3, RESET], "Connection reset by peer"),
    "another version": ("socks5", [3, b"\4\0"], "has version 4, not 5"),
    "a web server": ("socks5", [3, b"HTTP/1.1 400 Bad\r\n\r\n"], "has version 72, not 5"),
    "a method not offered": ("socks5", [3, b"\5\2"], "chose method 2, which was not offered"),
    "no method": ("socks5", [3, b"\5\xff"], "it wants a password"),
    "an unknown address type": ("socks5", [3, b"\5\0", 10, b"\5\0\0\2"], "address type 2"),
    "a bad name": ("socks5", [3, b"\5\0", 10, b"\5\0\0\3\0\0\0"], "no valid bound address"),
    "socks4 of another version": ("socks4", [9, b"\5\0"], "has version 5, not 0"),
    "socks4 that closes": ("socks4", [9, b"\0\x5a", END], "without an answer"),
    "http that is none": ("http", [10, b"SSH-2.0-x\r\n"], "not one of HTTP/1"),
    "http without an end": ("http", [10, b"HTTP/1.1 200 " + bytes(20000)], "longer than 16384"),
    "http that wants a password": ("http", [10, b"HTTP/1.1 407 \r\n\r\n"], "wants a password"),
    "http that closes": ("http", [len(ASKED_HTTP), b"HTTP/1.1 200 OK\r\n", END], "an answer"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_faults(what: str) -> None:
    scheme, script, pattern = FAULTS[what]
    with Upstream(script) as upstream:
        said = failure(upstream.url(scheme))
        assert said.startswith(f"{upstream.url(scheme)}: ")
        assert re.search(pattern, said)


def test_a_fault_further_down_the_chain_is_named() -> None:
    with Upstream([3, b"\5\0", 10, GRANTED5, 3, b"\5\xff"]) as upstream:
        said = failure(upstream.url("socks5"), proxy("socks5://u:secret@192.0.2.1"))
    assert said == "socks5://192.0.2.1:1080: it wants neither a password nor none"


@pytest.mark.parametrize("said", [b"", b"\5", b"\5\0", b"\5\0" + GRANTED5[:9]])
def test_silence(said: bytes) -> None:
    with Upstream([said] if said else []) as upstream:
        what = failure(upstream.url("socks5"), seconds=0.2)
        assert what == f"{upstream.url('socks5')}: the time limit has passed"


@pytest.mark.parametrize("end", [END, RESET])
def test_one_who_hangs_up_has_not_refused_other_addresses(end: str) -> None:
    """As ssh -D does when it cannot reach a destination."""
    hangs_up: Script = [3, b"\5\0", 22, end]
    with Upstream(hangs_up, [3, b"\5\0", 10, GRANTED5 + CARRIED]) as upstream:
        assert ask(upstream.url("socks5"), requests=(V6, V4))[1] == CARRIED
    with Upstream(hangs_up, refusing(3), hangs_up) as upstream:
        assert refusal(upstream, V6, V4, V6)[0] == 3
    with Upstream(hangs_up) as upstream:
        said = failure(upstream.url("socks5"), requests=(V6, V6))
    assert said == f"{upstream.url('socks5')}: it has closed the connection without an answer"
    assert len(upstream.heard) == 2


def test_one_who_hangs_up_before_is_not_asked_again() -> None:
    with Upstream([3, END]) as upstream:
        failure(upstream.url("socks5"), requests=(V6, V4))
    assert len(upstream.heard) == 1


def test_nobody_there() -> None:
    with Upstream([]) as upstream:
        url = upstream.url("http")
    with pytest.raises(ProxyFailed) as caught:
        ask(url)
    assert caught.value.strerror == f"{url}: Connection refused"
    assert caught.value.errno == errno.ECONNREFUSED
    assert caught.value.failures == [("127.0.0.1", errno.ECONNREFUSED)]
    assert isinstance(caught.value, DialError)
    said = failure(proxy("socks5://unix:/nonexistent/proxy"))
    assert said == "socks5://unix:/nonexistent/proxy: No such file or directory"


def test_out_of_descriptors() -> None:
    """Which is a matter for who accepts connections, as it is without a proxy."""
    with Upstream([]) as upstream:
        loop = Loop()
        try:
            with descriptor_limit(0), pytest.raises(ProxyFailed) as caught:
                loop.run(proxy_chain.ask(loop, Dialler(), (upstream.url("socks5"),), [V4]))
        finally:
            loop.close()
    assert caught.value.errno == errno.EMFILE


# Interruptions


@pytest.mark.parametrize("hears", [0, 3, 10])
def test_a_client_that_goes_meanwhile(hears: int) -> None:
    """At each step, nothing is left of it."""
    script: Script = [[], [3, b"\5\0"], [3, b"\5\0", 10]][[0, 3, 10].index(hears)]
    loop = Loop()
    over = Mailbox()

    async def story() -> None:
        with Upstream(script) as upstream, loop.deadline(PATIENCE):
            asked = proxy_chain.ask(loop, Dialler(), (upstream.url("socks5"),), [V4])
            task = loop.spawn(asked, over.post)
            while len(b"".join(upstream.heard)) < min(hears, 1):
                await loop.sleep(0.001)
            await loop.sleep(0.01)
            task.interrupt(KeyboardInterrupt())
            assert isinstance(await over.take(), KeyboardInterrupt)

    loop.run(story())
    assert not loop.handlers
    loop.close()


def test_the_first_word_is_ours() -> None:
    """What is said of the client comes before all else, once for each connection."""

    async def greet(stream: Stream) -> None:
        await stream.send(b"PROXY\r\n")

    async def fail(_: Stream) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    loop = Loop()
    with Upstream([7, *refusing(5)], [7, 3, b"\5\0", 10, GRANTED5 + CARRIED]) as upstream:
        way = (upstream.url("socks5"),)
        stream, asking, reply = loop.run(proxy_chain.ask(loop, Dialler(), way, [V6, V4], greet))
        assert (reply.code, asking.request) == (0, V4)
        stream.close()
        with pytest.raises(ProxyFailed, match="Broken pipe"):
            loop.run(proxy_chain.ask(loop, Dialler(), way, [V4], fail))
    assert not loop.handlers
    loop.close()
    assert upstream.heard[1] == b"PROXY\r\n\5\1\0" + ASKED5


def test_nothing_is_garbage() -> None:
    """Workers have no collector: what refers to itself would stay."""
    ends: list[Script] = [
        [3, END],
        refusing(5),
        [3, b"\5\xff"],
        [3, b"\4\0"],
        [3, b"\5\0", 10, GRANTED5 + CARRIED],
    ]
    loop = Loop()  # which refers to itself while it has timers that are cancelled
    for script in ends:
        with Upstream(script) as upstream, no_garbage():
            ways = (upstream.url("socks5"), proxy("socks5://1-2"))
            for way in (ways[:1], ways):
                with contextlib.suppress(OSError):
                    ask_in(loop, *way, requests=(V4, V6), seconds=1)
    loop.close()
