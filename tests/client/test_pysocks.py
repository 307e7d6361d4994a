"""PySocks' interface: tests are run over ours and over PySocks itself, with the same results."""

import errno
import inspect
import socket
import types
from collections.abc import Iterator
from typing import Any

import pytest
from programs import accept, listener, read_all
from real_server import running
from upstream import BYTE_BY_BYTE, END, RESET, Script, Upstream

from muonsocks.client import pysocks

OURS, THEIRS = "muonsocks.client.pysocks", "socks"
NOT_INTERFACE = {*vars(errno), "SEEK_CUR", "log", "name", "method", "set_self_blocking"}
SECONDS = 20
NAME = "name.example"
GREETING, LOGIN = b"\5\1\0", b"\5\2\0\2"
NO_LOGIN, BOUND = b"\5\0", b"\1\1\2\3\4\0\7"
GRANTED = b"\5\0\0" + BOUND
GRANTED4 = b"\0\x5a\0\7\1\2\3\4"
BY_NAME = b"\5\1\0\3\x0cname.example\0\x50"
BY_NAME4 = b"\4\1\0\x50\0\0\0\1\0name.example\0"


def the(name: str) -> Any:
    return pytest.importorskip(name, reason=f"no {name} here: tests/run installs it")


@pytest.fixture(params=[OURS, THEIRS])
def socks(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The module."""
    module = the(request.param)
    yield module
    module.socksocket.default_proxy = None


def proxied(socks: Any, upstream: Upstream, kind: str = "SOCKS5", **named: Any) -> Any:
    """A socket that has a proxy set."""
    sock = socks.socksocket()
    sock.settimeout(SECONDS)
    host, _, port = upstream.place.partition(":")
    sock.set_proxy(socks.PROXY_TYPES[kind], host, int(port), **named)
    return sock


def test_the_names_are_the_same() -> None:
    theirs = the(THEIRS)
    for name, value in vars(theirs).items():
        if name.startswith("_") or isinstance(value, types.ModuleType):
            continue
        if getattr(value, "__module__", THEIRS) != THEIRS or name in NOT_INTERFACE:
            continue
        assert hasattr(pysocks, name), name
        ours = getattr(pysocks, name)
        if inspect.isclass(value):
            names = {one.__name__ for one in value.__mro__ if one.__module__ == THEIRS}
            assert names - {"_BaseSocket"} <= {one.__name__ for one in ours.__mro__}
        elif callable(value):
            assert parameters(ours) == parameters(value), name
        else:
            assert ours == value, name
    for name in vars(theirs.socksocket):
        assert name.startswith("_") or hasattr(pysocks.socksocket, name), name
    for name in ("set_proxy", "connect", "connect_ex"):
        ours, value = getattr(pysocks.socksocket, name), getattr(theirs.socksocket, name)
        assert parameters(ours) == parameters(value), name


def parameters(function: Any) -> list[tuple[str, Any]]:
    names = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [(one.name, one.default) for one in names if one.kind not in kinds]


# What is said to a proxy

WAYS: dict[str, tuple[str, dict[str, Any], Script, bytes]] = {
    "SOCKS5": ("SOCKS5", {}, [3, NO_LOGIN, 19, GRANTED], GREETING + BY_NAME),
    "SOCKS5 without a password": (
        *("SOCKS5", {"username": "alice"}, [3, NO_LOGIN, 19, GRANTED]),
        GREETING + BY_NAME,
    ),
    "SOCKS5 with a password": (
        *("SOCKS5", {"username": "alice", "password": "pw"}),
        [4, b"\5\2", 10, b"\1\0", 19, GRANTED],
        LOGIN + b"\1\5alice\2pw" + BY_NAME,
    ),
    "SOCKS4A": ("SOCKS4", {}, [22, GRANTED4], BY_NAME4),
    "SOCKS4A with a user": (
        *("SOCKS4", {"username": "alice"}, [27, GRANTED4]),
        b"\4\1\0\x50\0\0\0\1alice\0name.example\0",
    ),
}


@pytest.mark.parametrize("case", WAYS)
def test_by_name(socks: Any, case: str) -> None:
    kind, named, script, expected = WAYS[case]
    with Upstream([BYTE_BY_BYTE, *script, b"carried"]) as upstream:
        with proxied(socks, upstream, kind, **named) as sock:
            assert sock.get_peername() is None
            assert sock.get_proxy_sockname() is None
            sock.connect((NAME, 80))
            assert read_all(sock, 7) == b"carried"
            assert sock.gettimeout() == SECONDS
            assert sock.get_proxy_sockname() == ("1.2.3.4", 7)
            assert sock.getsockname()[0] == "127.0.0.1"
            if kind == "SOCKS5" or socks is pysocks:
                assert sock.get_peername() == sock.getpeername() == (NAME, 80)
        assert upstream.heard == [expected]


def test_where_the_proxy_is() -> None:
    with Upstream([3, NO_LOGIN, 19, GRANTED]) as upstream, proxied(pysocks, upstream) as sock:
        sock.connect((NAME, 80))
        host, port = sock.get_proxy_peername()
        assert f"{host}:{port}" == upstream.place


@pytest.mark.parametrize(("kind", "length"), [("SOCKS5", 10), ("SOCKS4", 9)])
def test_by_an_address(socks: Any, kind: str, length: int) -> None:
    script: Script = [3, NO_LOGIN, 10, GRANTED] if kind == "SOCKS5" else [9, GRANTED4]
    with Upstream(script) as upstream:
        with proxied(socks, upstream, kind) as sock:
            sock.connect(("127.0.0.9", 80))
        assert upstream.heard[0][-length:].count(b"\x7f\0\0\x09") == 1


def test_by_a_name_that_is_looked_up_here(socks: Any) -> None:
    with Upstream([9, GRANTED4]) as upstream:
        with proxied(socks, upstream, "SOCKS4", rdns=False) as sock:
            sock.connect(("localhost", 80))
        assert upstream.heard == [b"\4\1\0\x50\x7f\0\0\1\0"]
    with Upstream([3, NO_LOGIN, 10, GRANTED]) as upstream:
        with proxied(socks, upstream, "SOCKS5", rdns=False) as sock:
            sock.connect(("localhost", 80))
        assert upstream.heard[0][6:7] in (b"\1", b"\4")  # an address
        assert b"localhost" not in upstream.heard[0]


@pytest.mark.parametrize(
    ("host", "rdns", "asked"), [(NAME, True, NAME), ("localhost", False, "127.0.0.1")]
)
def test_an_http_proxy(socks: Any, host: str, rdns: bool, asked: str) -> None:
    line = f"CONNECT {asked}:80 HTTP/1.1\r\n".encode()
    with Upstream([len(line), b"HTTP/1.1 200 Fine\r\n\r\n"]) as upstream:
        with proxied(socks, upstream, "HTTP", rdns=rdns) as sock:
            sock.connect((host, 80))
            assert sock.get_peername()[1] == 80
        assert upstream.heard[0].startswith(line)


def test_ipv6() -> None:
    expected = b"\5\1\0\4" + bytes(15) + b"\x09\0\x50"
    for host in ("::9", "[::9]"):
        with Upstream([3, NO_LOGIN, 22, GRANTED]) as upstream:
            with proxied(pysocks, upstream) as sock:
                sock.connect((host, 80))
            assert upstream.heard[0] == GREETING + expected


# What goes wrong: the error, what is behind it, and the words of that if they are always the same

ASKED: Script = [3, NO_LOGIN, 19]
FAILURES: dict[str, tuple[str, Script, str, str | None]] = {
    f"SOCKS5 {code}": ("SOCKS5", [*ASKED, bytes((5, code, 0)) + BOUND], "SOCKS5Error", words)
    for code, words in {
        1: "0x01: General SOCKS server failure",
        2: "0x02: Connection not allowed by ruleset",
        3: "0x03: Network unreachable",
        4: "0x04: Host unreachable",
        5: "0x05: Connection refused",
        6: "0x06: TTL expired",
        7: "0x07: Command not supported, or protocol error",
        8: "0x08: Address type not supported",
        9: "0x09: Unknown error",
    }.items()
} | {
    "SOCKS4 0x5b": (
        *("SOCKS4", [22, b"\0\x5b" + bytes(6)]),
        *("SOCKS4Error", "0x5b: Request rejected or failed"),
    ),
    "SOCKS4 0x5c": (
        *("SOCKS4", [22, b"\0\x5c" + bytes(6)], "SOCKS4Error"),
        "0x5c: Request rejected because SOCKS server cannot connect to identd on the client",
    ),
    "wants a password": ("SOCKS5", [3, b"\5\xff"], "SOCKS5AuthError", None),
    "another version": ("SOCKS5", [3, b"\4\0"], "GeneralProxyError", None),
    "a method that was not offered": ("SOCKS5", [3, b"\5\7"], "GeneralProxyError", None),
    "another version of SOCKS4": ("SOCKS4", [22, b"\5" + bytes(7)], "GeneralProxyError", None),
    "gone": ("SOCKS5", [3, END], "GeneralProxyError", None),
    "gone after the request": ("SOCKS5", [*ASKED, END], "GeneralProxyError", None),
    "reset": ("SOCKS5", [3, RESET], "ConnectionResetError", None),
    "HTTP 403": ("HTTP", [38, b"HTTP/1.1 403 No\r\n\r\n"], "HTTPError", None),
    "HTTP 407": ("HTTP", [38, b"HTTP/1.1 407 Who\r\n\r\n"], "HTTPError", None),
    "no HTTP": ("HTTP", [38, b"SSH-2.0-OpenSSH 1 2\r\n\r\n"], "GeneralProxyError", None),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failures(socks: Any, case: str) -> None:
    kind, script, behind, words = FAILURES[case]
    with Upstream(script) as upstream, proxied(socks, upstream, kind) as sock:
        with pytest.raises(OSError) as caught:
            sock.connect((NAME, 80))
        error: Any = caught.value
        assert type(error).__name__ == "GeneralProxyError"
        assert isinstance(error, socks.ProxyError)
        assert type(error.socket_err).__name__ == behind
        assert str(error) == error.msg == f"Socket error: {error.socket_err}"
        assert not isinstance(error, TimeoutError | ConnectionError)
        if words:
            assert str(error.socket_err) == words
        assert sock.fileno() == -1


def test_a_wrong_password(socks: Any) -> None:
    login = {"username": "alice", "password": "pw"}
    with Upstream([4, b"\5\2", 10, b"\1\1"]) as upstream, proxied(socks, upstream, **login) as sock:
        with pytest.raises(socks.GeneralProxyError) as caught:
            sock.connect((NAME, 80))
        assert isinstance(caught.value.socket_err, socks.SOCKS5AuthError)


def test_no_proxy_there(socks: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        port = taken.getsockname()[1]
        with socks.socksocket() as sock:
            sock.set_proxy(socks.HTTP, "127.0.0.1", port)
            with pytest.raises(socks.ProxyConnectionError) as caught:
                sock.connect((NAME, 80))
    assert isinstance(caught.value.socket_err, ConnectionRefusedError)
    assert caught.value.msg.startswith(f"Error connecting to HTTP proxy 127.0.0.1:{port}: ")


@pytest.mark.parametrize("script", [[], [3], [3, NO_LOGIN, 19, GRANTED[:-1]]])
def test_a_timeout(socks: Any, script: Script) -> None:
    with Upstream(script) as upstream, proxied(socks, upstream) as sock:
        sock.settimeout(0.1)
        with pytest.raises(socks.GeneralProxyError) as caught:
            sock.connect((NAME, 80))
        assert isinstance(caught.value.socket_err, socket.timeout)
        assert str(caught.value.socket_err) == "timed out"
        assert sock.fileno() == -1


def test_a_name_that_is_not_found_here(socks: Any) -> None:
    with Upstream([3, NO_LOGIN]) as upstream, proxied(socks, upstream, rdns=False) as sock:
        with pytest.raises(socks.GeneralProxyError) as caught:
            sock.connect(("no.name.invalid", 80))
        assert isinstance(caught.value.socket_err, socket.gaierror)


@pytest.mark.parametrize("destination", [("", 80), (None, 80), (NAME, "80")])
def test_no_destination(destination: tuple[Any, Any]) -> None:
    with pysocks.socksocket() as sock, pytest.raises(pysocks.GeneralProxyError, match="Invalid"):
        sock.connect(destination)


def test_connect_ex(socks: Any) -> None:
    with Upstream([3, NO_LOGIN, 19, GRANTED], [3, RESET]) as upstream:
        with proxied(socks, upstream) as sock:
            assert sock.connect_ex((NAME, 80)) == 0
        with proxied(socks, upstream) as sock:
            assert sock.connect_ex((NAME, 80)) == 104  # ECONNRESET
    with Upstream([*ASKED, b"\5\5\0" + BOUND]) as upstream, proxied(socks, upstream) as sock:
        with pytest.raises(socks.SOCKS5Error, match="0x05"):
            sock.connect_ex((NAME, 80))
        assert sock.fileno() >= 0


def test_what_is_no_proxy(socks: Any) -> None:
    with socks.socksocket() as sock, pytest.raises(socks.GeneralProxyError, match="Invalid proxy"):
        sock.set_proxy(9, "127.0.0.1")
        sock.connect((NAME, 80))
    with pytest.raises(ValueError, match="Socket type must be stream or datagram"):
        socks.socksocket(socket.AF_INET, socket.SOCK_RAW)


@pytest.mark.parametrize(
    "login", [{"username": 256 * "u"}, {"username": "u", "password": 256 * "p"}]
)
def test_a_login_that_is_too_long(login: dict[str, str]) -> None:
    with pysocks.socksocket() as sock, pytest.raises(pysocks.GeneralProxyError, match="255"):
        sock.set_proxy(pysocks.SOCKS4 if len(login) == 1 else pysocks.SOCKS5, "localhost", **login)


# Without a proxy, and with one for all


def test_without_a_proxy(socks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5h://127.0.0.1:9")
    with listener() as far, socks.socksocket() as sock:
        assert sock.proxy == (None,) * 6
        sock.settimeout(SECONDS)
        sock.connect(far.getsockname())
        accept(far).close()
        assert sock.getpeername() == far.getsockname()
    with listener() as far, socks.socksocket() as sock:
        far.close()
        with pytest.raises(ConnectionRefusedError):
            sock.connect(("127.0.0.1", 9))


def test_a_socket_that_does_not_block_is_waited_for(socks: Any) -> None:
    script: Script = [BYTE_BY_BYTE, 3, NO_LOGIN, 19, GRANTED]
    with Upstream(script) as upstream, proxied(socks, upstream) as sock:
        sock.setblocking(False)
        sock.connect((NAME, 80))
        assert sock.gettimeout() == 0
        with pytest.raises(BlockingIOError):
            sock.recv(1)


def test_a_proxy_for_all(socks: Any) -> None:
    with pytest.raises(socks.GeneralProxyError, match="No default proxy specified"):
        socks.socksocket.default_proxy = None
        socks.wrap_module(types.SimpleNamespace(socket=types.SimpleNamespace(socket=socket.socket)))
    with Upstream([3, NO_LOGIN, 19, GRANTED]) as upstream:
        host, _, port = upstream.place.partition(":")
        socks.setdefaultproxy(proxytype=socks.SOCKS5, addr=host, port=int(port), username="u")
        expected = (socks.SOCKS5, host, int(port), True, b"u", None)
        assert socks.get_default_proxy() == socks.getdefaultproxy() == expected
        module = types.SimpleNamespace(socket=types.SimpleNamespace(socket=socket.socket))
        socks.wrapmodule(module)
        assert module.socket.socket is socks.socksocket
        with module.socket.socket() as sock:
            assert sock.proxy == expected
            sock.connect((NAME, 80))
        assert upstream.heard == [GREETING + BY_NAME]


def test_accept(socks: Any) -> None:
    with socks.socksocket() as far:
        far.setproxy(proxytype=socks.SOCKS5, addr="127.0.0.1", port=9)
        far.bind(("127.0.0.1", 0))
        far.listen()
        far.settimeout(SECONDS)
        with socket.create_connection(far.getsockname()) as client:
            conn, peer = far.accept()
            assert peer == client.getsockname()
            conn.close()


def test_datagrams(socks: Any) -> None:
    with running() as server, socket.socket(type=socket.SOCK_DGRAM) as far:
        far.bind(("127.0.0.1", 0))
        far.settimeout(SECONDS)
        for is_connected in (False, True):
            with socks.socksocket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.set_proxy(socks.SOCKS5, *server.address)
                sock.settimeout(SECONDS)
                if is_connected:
                    sock.connect(far.getsockname())
                    assert sock.send(b"question") == 8
                    assert sock.get_peername() == far.getsockname()
                else:
                    assert sock.sendto(b"question", far.getsockname()) == 8
                data, relay = far.recvfrom(100)
                assert data == b"question"
                far.sendto(b"answer", relay)
                assert sock.recvfrom(100) == (b"answer", far.getsockname())


def test_datagrams_to_a_proxy_that_takes_none(socks: Any) -> None:
    with socks.socksocket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.set_proxy(socks.SOCKS4, "127.0.0.1", 9)
        with pytest.raises(OSError) as caught:
            sock.sendto(b"lost", ("127.0.0.1", 9))
        assert caught.value.errno == errno.EOPNOTSUPP


# create_connection()


def test_create_connection(socks: Any) -> None:
    with Upstream([3, NO_LOGIN, 19, GRANTED, b"carried"]) as upstream:
        host, _, port = upstream.place.partition(":")
        with socks.create_connection(
            (NAME, 80),
            timeout=SECONDS,
            source_address=("127.0.0.5", 0),
            proxy_type=socks.PROXY_TYPE_SOCKS5,
            proxy_addr=host,
            proxy_port=int(port),
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 7)],
        ) as sock:
            assert isinstance(sock, socks.socksocket)
            assert read_all(sock, 7) == b"carried"
            assert sock.gettimeout() == SECONDS
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 7
            assert sock.getsockname()[0] == "127.0.0.5"
        assert upstream.heard == [GREETING + BY_NAME]


def test_create_connection_that_fails(socks: Any) -> None:
    with Upstream([*ASKED, b"\5\5\0" + BOUND]) as upstream:
        host, _, port = upstream.place.partition(":")
        with pytest.raises(socks.GeneralProxyError) as caught:
            socks.create_connection((NAME, 80), 5, None, socks.SOCKS5, f"[{host}]", int(port))
        assert isinstance(caught.value.socket_err, socks.SOCKS5Error)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_create_connection_without_a_proxy(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as far:
        sock = pysocks.create_connection((host, far.getsockname()[1]), SECONDS)
        assert sock.getpeername() == far.getsockname()
        sock.close()


def test_create_connection_through_the_proxy_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pysocks.socksocket, "default_proxy", None)
    with Upstream([3, NO_LOGIN, 19, GRANTED]) as upstream:
        host, _, port = upstream.place.partition(":")
        pysocks.set_default_proxy(pysocks.SOCKS5, host, int(port))
        pysocks.create_connection((NAME, 80), SECONDS).close()
        assert upstream.heard == [GREETING + BY_NAME]
