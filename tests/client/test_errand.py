"""Errands: who is to blame when one fails, in which time, and that nothing is left of it."""

import _thread
import asyncio
import contextlib
import errno
import os
import select
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ends import PATIENCE, no_garbage, nothing_left_behind
from nameserver import nameserver, own_files
from places import descriptor_limit, in_own_network
from real_server import free_port, until
from upstream import END, RESET, Script, Upstream

from muonsocks.address import Endpoint, parse_address
from muonsocks.client import (
    DIRECT,
    DestinationRefused,
    NameNotFound,
    NameTimedOut,
    ProxyAddress,
    ProxyError,
    ProxyMisbehaved,
    ProxyTimedOut,
    ProxyUnreachable,
    RequestRefused,
    SocksSocket,
    create_connection,
    open_connection,
)
from muonsocks.client.background import Thread
from muonsocks.client.blocking import run
from muonsocks.client.errand import Errand, Granted, endpoint_of, second_reply, way_to
from muonsocks.errors import NameNotResolved, UsageError
from muonsocks.net.loop import Loop
from muonsocks.net.task import Mailbox, Waitable
from muonsocks.socks import ways
from muonsocks.socks.request import Command

SHORT = 0.25  # s, for what never comes
GRANTED5 = bytes.fromhex("05 00 00 01 c0000209 1000")
ASKED5: Script = [3, b"\5\0", 10]
Lookup = Callable[[str], Awaitable[list[tuple[bytes, int]]]]


@pytest.fixture(autouse=True)
def leaks_nothing() -> Iterator[None]:
    Thread.of_this_process()  # which has some, for good
    with nothing_left_behind():
        yield


def proxy(url: str) -> ProxyAddress:
    return ProxyAddress.parse(url)


def names(**table: str) -> Lookup:
    """A look-up: addresses by name. One without any is looked up for ever."""

    async def look_up(host: str) -> list[tuple[bytes, int]]:
        if host not in table:
            raise NameNotResolved(f"{host}: no such name")
        if not table[host]:
            await Waitable()
        return [(parse_address(one) or b"", 0) for one in table[host].split()]

    return look_up


def errand_to(
    host: str,
    port: int,
    *chain: ProxyAddress,
    command: int = Command.CONNECT,
    lookup: Lookup | None = None,
    **more: Any,
) -> Errand:
    errand = Errand(command, Endpoint(host, port), chain, **more)
    errand.dialler.lookup = lookup or names()
    return errand


def carried_out(errand: Errand, seconds: float | None = PATIENCE) -> Granted:
    return run(lambda loop: errand.run(loop, seconds))


def failure(errand: Errand, seconds: float = PATIENCE) -> tuple[type[OSError], int, str, str]:
    with pytest.raises(OSError) as caught:
        carried_out(errand, seconds)
    error = caught.value
    assert "\n" not in str(error)
    side = getattr(error, "side", "")
    return type(error), error.errno or 0, side, error.strerror or ""


@contextlib.contextmanager
def mute() -> Iterator[tuple[str, int]]:
    """An address that answers no SYN any more: its backlog is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = listener.getsockname()
        while True:
            client = stack.enter_context(socket.socket())
            client.settimeout(0.1)
            try:
                client.connect(address)
            except TimeoutError:
                break
        yield address


# Without proxies


def test_direct() -> None:
    with Upstream([b"hello"]) as upstream:
        port = int(upstream.place.rpartition(":")[2])
        for host in ("127.0.0.1", "name"):
            granted = carried_out(errand_to(host, port, lookup=names(name="127.0.0.1")))
            assert granted.bound is None
            with contextlib.closing(granted.sock) as sock:
                assert not os.get_blocking(sock.fileno())
                os.set_blocking(sock.fileno(), True)
                assert sock.recv(5) == b"hello"


def test_direct_failures() -> None:
    refused = (ConnectionRefusedError, errno.ECONNREFUSED, "", "Connection refused")
    port = free_port("127.0.0.1")
    assert failure(errand_to("127.0.0.1", port)) == refused
    assert failure(errand_to("name", port, lookup=names(name="127.0.0.1"))) == refused
    kind, number, side, _ = failure(errand_to("unknown", 80))
    assert (kind, number, side) == (NameNotFound, socket.EAI_NONAME, "here")


def test_direct_and_late() -> None:
    """Whatever it waits for, and whatever has failed before."""
    slow = errand_to("slow", 80, lookup=names(slow=""))
    assert failure(slow, SHORT)[:3] == (NameTimedOut, errno.ETIMEDOUT, "here")
    with mute() as (host, port):
        assert failure(errand_to(host, port), SHORT)[:2] == (TimeoutError, errno.ETIMEDOUT)
        one = errand_to("one", port, lookup=names(one=host))
        assert failure(one, SHORT)[:2] == (TimeoutError, errno.ETIMEDOUT)
        two = errand_to("two", port, lookup=names(two=f"127.0.0.2 {host}"))
        kind, number, _, said = failure(two, SHORT)
        assert (kind, number) == (TimeoutError, errno.ETIMEDOUT)
        assert said == "Connection refused, and then the time limit has passed"


SOURCES = {
    "an address": ("127.0.0.9", 0),
    "an address and a port": ("127.0.0.9", 1),
    "a port": ("", 1),
    "zeros and a port": ("0.0.0.0", 1),
    "zeros of IPv6 and a port": ("::", 1),
    "nothing": ("", 0),
}


@pytest.mark.parametrize("what", SOURCES)
def test_where_it_comes_from(what: str) -> None:
    host, has_port = SOURCES[what]
    port = free_port("127.0.0.1") if has_port else 0
    with socket.create_server(("127.0.0.1", 0)) as listener:
        errand = errand_to(*listener.getsockname(), source=Endpoint(host, port))
        granted = carried_out(errand)
        peer = listener.accept()[0].getpeername()
        granted.sock.close()
    assert peer[0] == (host if host.startswith("127") else "127.0.0.1")
    assert peer[1] == port or not port


def test_a_source_that_is_a_name() -> None:
    with pytest.raises(UsageError, match="'localhost' is no address"):
        errand_to("192.0.2.7", 80, source=Endpoint("localhost", 0))


# The first proxy


def test_a_name_of_several_addresses_one_of_which_answers() -> None:
    with Upstream([*ASKED5, GRANTED5]) as upstream:
        port = upstream.place.rpartition(":")[2]
        lookup = names(several="127.0.0.2 127.0.0.3 127.0.0.1")
        errand = errand_to("192.0.2.7", 80, proxy(f"socks5://several:{port}"), lookup=lookup)
        granted = carried_out(errand)
        assert granted.bound == Endpoint("192.0.2.9", 4096)
        granted.sock.close()


def test_no_way_to_a_proxy() -> None:
    port = free_port("127.0.0.1")
    lookup = names(several="127.0.0.2 127.0.0.3")
    for host in ("127.0.0.1", "several"):
        errand = errand_to("192.0.2.7", 80, proxy(f"http://{host}:{port}"), lookup=lookup)
        assert failure(errand) == (
            *(ProxyUnreachable, errno.ECONNREFUSED, "proxy"),
            f"http://{host}:{port}: Connection refused",
        )
    errand = errand_to("192.0.2.7", 80, proxy("socks4://unknown"))
    said = "socks4://unknown:1080: unknown: no such name"
    assert failure(errand) == (ProxyUnreachable, errno.EHOSTUNREACH, "proxy", said)
    errand = errand_to("192.0.2.7", 80, proxy("socks4://unix:/nonexistent/proxy"))
    assert failure(errand)[:3] == (ProxyUnreachable, errno.ENOENT, "proxy")


def test_a_proxy_that_is_late() -> None:
    slow = errand_to("192.0.2.7", 80, proxy("socks5://slow"), lookup=names(slow=""))
    late = (ProxyTimedOut, errno.ETIMEDOUT, "proxy")
    assert failure(slow, SHORT) == (*late, "socks5://slow:1080: slow: no answer in time")
    with mute() as (host, port):
        one = proxy(f"socks5://{host}:{port}")
        said = failure(errand_to("192.0.2.7", 80, one), SHORT)
        assert said == (*late, f"{one}: the time limit has passed")
        # One address refuses, and the other is silent until time is up.
        two, lookup = proxy(f"socks5://two:{port}"), names(two=f"127.0.0.2 {host}")
        said = failure(errand_to("192.0.2.7", 80, two, lookup=lookup), SHORT)
        words = f"{two}: Connection refused, and then the time limit has passed"
        assert said == (*late, words)


def test_a_unix_socket_whose_backlog_is_full(tmp_path: Any) -> None:
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as stack:
        listener.bind(f"{tmp_path}/proxy")
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(f"{tmp_path}/proxy")
        errand = errand_to("192.0.2.7", 80, proxy(f"socks5://unix:{tmp_path}/proxy"))
        assert failure(errand, SHORT)[:3] == (ProxyTimedOut, errno.ETIMEDOUT, "proxy")


def test_what_is_our_own_fault() -> None:
    with Upstream([*ASKED5, GRANTED5]) as upstream:
        way = upstream.url("socks5")
        stranger = errand_to("192.0.2.7", 80, way, source=Endpoint("192.0.2.1", 0))
        got = failure(stranger)
        assert got[:3] == (ProxyUnreachable, errno.EADDRNOTAVAIL, "here")
        six = errand_to("192.0.2.7", 80, way, source=Endpoint("::1", 0))
        assert failure(six)[:3] == (ProxyUnreachable, errno.EAFNOSUPPORT, "here")
        loop = Loop()
        try:
            with descriptor_limit(0), pytest.raises(ProxyUnreachable) as caught:
                loop.run(errand_to("192.0.2.7", 80, way).run(loop))
        finally:
            loop.close()
        assert (caught.value.errno, caught.value.side) == (errno.EMFILE, "here")
        assert upstream.heard == []


# Names


def test_the_destination_s_name() -> None:
    """It is looked up here, or it is not, and then nobody here has asked for it."""
    lookup = names(slow="", several="192.0.2.6 192.0.2.7")
    script: Script = [3, b"\5\0", 11, GRANTED5]
    with Upstream(script) as upstream:
        resolves, does_not = upstream.url("socks5h"), upstream.url("socks5")
        carried_out(errand_to("slow", 80, resolves, lookup=lookup)).sock.close()
        assert upstream.heard[0].endswith(b"\5\1\0\3\4slow\0\x50")
        slow = errand_to("slow", 80, does_not, lookup=lookup)
        said = (NameTimedOut, errno.ETIMEDOUT, "here", "slow: no answer in time")
        assert failure(slow, SHORT) == said
        unknown = errand_to("unknown", 80, does_not, lookup=lookup)
        said = (NameNotFound, socket.EAI_NONAME, "here", "unknown: no such name")
        assert failure(unknown) == said
        assert len(upstream.heard) == 1, "a proxy is asked for nothing"


def test_a_name_that_has_only_what_socks4_cannot_say() -> None:
    lookup = names(six="2001:db8::7", both="2001:db8::7 192.0.2.7")
    with Upstream([9, END]) as upstream:
        way = upstream.url("socks4")
        said = failure(errand_to("six", 80, way, lookup=lookup))
        words = "socks4 has no way to say [2001:db8::7]:80"
        assert said == (RequestRefused, errno.EAFNOSUPPORT, "here", words)
        assert upstream.heard == []
        # The one it can be asked for is the one to speak of.
        said = failure(errand_to("both", 80, way, lookup=lookup))
        assert said[:3] == (ProxyMisbehaved, errno.ECONNRESET, "proxy")


def test_the_address_that_says_most() -> None:
    refuses = bytes.fromhex("00 5b 0000 00000000")
    lookup = names(both="2001:db8::7 192.0.2.7")
    with Upstream([9, refuses]) as upstream:
        errand = errand_to("both", 80, upstream.url("socks4"), lookup=lookup)
        assert failure(errand)[:3] == (RequestRefused, errno.ECONNABORTED, "proxy")


@pytest.mark.parametrize("command", [Command.BIND, Command.ASSOCIATE, Command.RESOLVE])
def test_what_http_cannot_be_asked_for(command: int) -> None:
    errand = errand_to("192.0.2.7", 80, proxy("http://192.0.2.1"), command=command)
    with pytest.raises(RequestRefused) as caught:
        carried_out(errand)
    assert (caught.value.errno, caught.value.code) == (errno.EOPNOTSUPP, None)
    assert caught.value.side == "here"


def test_a_name_server_that_is_silent(tmp_path: Path) -> None:
    """It is nobody's thread that waits for it."""
    withheld = frozenset(("slow.test", "proxy.test"))

    def story() -> None:
        own_files(tmp_path, "127.0.0.1 localhost\n")
        with nameserver("127.0.0.1", {}, withheld) as server:
            threads = _thread._count()
            for host, url, kind in (
                ("slow.test", "socks5://127.0.0.1", NameTimedOut),
                ("slow.test", "socks5h://proxy.test", ProxyTimedOut),
            ):
                errand = Errand(Command.CONNECT, Endpoint(host, 80), (proxy(url),))
                assert failure(errand, SHORT)[:2] == (kind, errno.ETIMEDOUT)
            assert set(server.asked) == withheld
            server.release()
            until("the look-ups are over", lambda: _thread._count() == threads)

    in_own_network(story)


# Several


def test_a_second_proxy_that_the_first_cannot_reach() -> None:
    refused = bytes.fromhex("05 05 00 01 00000000 0000")
    with Upstream([*ASKED5, refused]) as upstream:
        first, second = upstream.url("socks5"), proxy("socks5://192.0.2.99:99")
        said = failure(errand_to("192.0.2.7", 80, first, second))
    words = f"{second}: connection refused, says {first}"
    assert said == (ProxyUnreachable, errno.EHOSTUNREACH, "proxy", words)


def test_a_second_proxy_whose_name_is_slow() -> None:
    with Upstream([]) as upstream:
        way = upstream.url("socks5"), proxy("socks5://slow")
        said = failure(errand_to("192.0.2.7", 80, *way, lookup=names(slow="")), SHORT)
    words = "socks5://slow:1080: slow: no answer in time"
    assert said == (ProxyTimedOut, errno.ETIMEDOUT, "proxy", words)


def test_one_limit_for_all() -> None:
    """Each step is within it, and all together are not."""
    answers = [step for _ in range(20) for step in (3, b"\5\0", 10, SHORT / 2, GRANTED5)]
    chain = [proxy(f"socks5://192.0.2.{n}") for n in range(1, 19)]
    with Upstream(answers) as upstream:
        said = failure(errand_to("192.0.2.7", 80, upstream.url("socks5"), *chain), 2 * SHORT)
    assert said[:3] == (ProxyTimedOut, errno.ETIMEDOUT, "proxy")


# BIND and ASSOCIATE


@pytest.mark.parametrize("command", [Command.BIND, Command.ASSOCIATE])
def test_an_address_of_zeros_is_the_proxy_s(command: int) -> None:
    granted = bytes.fromhex("05 00 00 01 00000000 1000")
    with Upstream([*ASKED5, granted]) as upstream:
        errand = errand_to("192.0.2.7", 80, upstream.url("socks5"), command=command)
        got = carried_out(errand)
        got.sock.close()
    assert got.bound == Endpoint("127.0.0.1", 4096)
    assert (got.asking is None) == (command == Command.ASSOCIATE)


def test_a_proxy_that_has_gone_behind_its_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    monkeypatch.setattr(ways, "bound_by_proxy", gone)
    with Upstream([*ASKED5, GRANTED5]) as upstream:
        way = upstream.url("socks5")
        said = failure(errand_to("192.0.2.7", 80, way, command=Command.BIND))
    assert said[:3] == (ProxyMisbehaved, errno.ECONNRESET, "proxy")


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ([GRANTED5], None),
        ([END], ProxyMisbehaved),
        ([RESET], ProxyMisbehaved),
        ([bytes.fromhex("05 05 00 01 00000000 0000")], DestinationRefused),
        ([], TimeoutError),
    ],
)
def test_the_second_reply(script: Script, kind: type[OSError] | None) -> None:
    """The socket stays open, whatever comes."""
    with Upstream([*ASKED5, GRANTED5, 0.01, *script]) as upstream:
        errand = errand_to("192.0.2.7", 80, upstream.url("socks5"), command=Command.BIND)
        granted = carried_out(errand)
        asking = granted.asking
        assert asking is not None
        seconds = SHORT if kind is TimeoutError else PATIENCE
        with contextlib.closing(granted.sock) as sock:
            if kind is None:
                got = run(lambda loop: second_reply(loop, sock, asking, seconds))
                assert got == Endpoint("192.0.2.9", 4096)
            else:
                with pytest.raises(kind) as caught:
                    run(lambda loop: second_reply(loop, sock, asking, seconds))
                assert type(caught.value) is kind
            assert sock.fileno() >= 0 and os.fstat(sock.fileno())


# Whoever goes meanwhile


@pytest.mark.parametrize("script", [[], [3, b"\5\0"], [*ASKED5, GRANTED5[:5]]])
def test_an_interruption(script: Script) -> None:
    loop, over = Loop(), Mailbox()

    async def story() -> None:
        with Upstream([*script, 0.01]) as upstream, loop.deadline(PATIENCE):
            errand = errand_to("192.0.2.7", 80, upstream.url("socks5"))
            task = loop.spawn(errand.run(loop), over.post)
            while not upstream.heard:
                await loop.sleep(0.001)
            task.interrupt(KeyboardInterrupt())
            assert isinstance(await over.take(), KeyboardInterrupt)

    loop.run(story())
    assert not loop.handlers
    loop.close()


def test_nothing_is_garbage() -> None:
    scripts: list[Script] = [[3, END], [3, b"\5\xff"], [*ASKED5, b"\5\5\0\1" + bytes(6)]]
    for script in scripts:
        with Upstream(script) as upstream, no_garbage():
            errand = errand_to("192.0.2.7", 80, upstream.url("socks5"))
            with contextlib.suppress(ProxyError):
                carried_out(errand)


# What programs say

ENDPOINTS: dict[str, tuple[Any, Any, str]] = {
    "a name": ("www.example.com", 80, "www.example.com:80"),
    "a name in bytes": (b"www.example.com", 80, "www.example.com:80"),
    "a port as text": ("host", "80", "host:80"),
    "no host": (None, 0, "0.0.0.0:0"),
    "an empty host": ("", 1, "0.0.0.0:1"),
    "IPv4": ("192.0.2.7", 65535, "192.0.2.7:65535"),
    "IPv6": ("2001:DB8:0::7", 80, "[2001:db8::7]:80"),
    "IPv6 of IPv4": ("::ffff:192.0.2.7", 80, "192.0.2.7:80"),
    "IPv6 with an interface": ("fe80::7%lo", 80, "[fe80::7]:80"),
    "IPv6 with an interface's number": ("fe80::7%1", 80, "[fe80::7]:80"),
    "a name that is not ASCII": ("bücher.example", 80, "xn--bcher-kva.example:80"),
    "a name of 255 bytes": ("x" * 255, 80, "x" * 255 + ":80"),
}


@pytest.mark.parametrize("what", ENDPOINTS)
def test_endpoints(what: str) -> None:
    host, port, shown = ENDPOINTS[what]
    endpoint = endpoint_of(host, port)
    assert str(endpoint) == shown
    assert endpoint.scope == (1 if "interface" in what else 0)


@pytest.mark.parametrize("host", ["x" * 256, "a b", "a\nb", "-option", "ü" * 70, "fe80::1%nosuch0"])
def test_what_is_no_host(host: str) -> None:
    with pytest.raises(UsageError) as caught:
        endpoint_of(host, 80)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("port", [-1, 65536, "65536"])
def test_what_is_no_port(port: int | str) -> None:
    with pytest.raises(OverflowError):
        endpoint_of("host", port)


def test_services_are_not_looked_up() -> None:
    with pytest.raises(UsageError, match="'http' is not a port; give its number"):
        endpoint_of("host", "http")


def test_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the program says; or else the environment."""
    monkeypatch.setenv("all_proxy", "socks5h://from.environment")
    monkeypatch.setenv("no_proxy", "excepted")
    host = Endpoint("host", 80)
    assert [str(one) for one in way_to(host, None)] == ["socks5h://from.environment:1080"]
    assert [str(one) for one in way_to(host, "http://one http://two")] == [
        *("http://one:1080", "http://two:1080")
    ]
    assert way_to(host, DIRECT) == way_to(host, "direct") == ()
    assert way_to(Endpoint("excepted", 80), None) == ()
    assert len(way_to(Endpoint("excepted", 80), "http://one")) == 1, "it is the program that says"


# No limit of the program's


def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that never answers, and a program that has set no time limit."""
    monkeypatch.setattr("muonsocks.client.errand.LONGEST", SHORT)
    with Upstream([3]) as upstream:
        url = str(upstream.url("socks5h"))
        with pytest.raises(ProxyTimedOut):
            create_connection(("name.example", 80), None, proxy=url)
        with SocksSocket(proxy=url) as sock:
            sock.setblocking(False)
            assert sock.connect_ex(("name.example", 80)) == errno.EINPROGRESS
            assert select.select([], [sock], [], PATIENCE)[1]
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ETIMEDOUT
            assert isinstance(sock.failure, ProxyTimedOut)
        with pytest.raises(ProxyTimedOut):
            asyncio.run(open_connection("name.example", 80, proxy=url))
