"""Proxies that do what they should not, and each kind of client that comes to them.

    for case in CASES:
        for client in CLIENTS:
            told, seconds, proxy = meet(client, case, 0.3)
            assert agrees(told, expected(client, case))

The test and the table for people (hostile_table.py) share this.
"""

import errno
import socket
import time
from typing import Any, NamedTuple

from each_client import (
    CLIENTS,
    PATIENCE,
    PENDING,
    Client,
    Destination,
    Told,
    failing,
    met,
    read,
)
from upstream import BYTE_BY_BYTE, DEAF, END, RESET, Endless, Script, Upstream

from muonsocks.address import Endpoint
from muonsocks.client import (
    DestinationRefused,
    DestinationTimedOut,
    DestinationUnreachable,
    LoginRefused,
    ProxyAddress,
    ProxyError,
    ProxyMisbehaved,
    ProxyTimedOut,
    RequestRefused,
)
from muonsocks.client.blocking import run
from muonsocks.client.errand import Errand
from muonsocks.socks.request import Command

DESTINATION = ("192.0.2.7", 80)
SECRET = "s3cret"
CARRIED = b"220 welcome\r\n"


def breaks(words: str) -> Told:
    return failing(ProxyMisbehaved, errno.EPROTO, words)


ARRIVES = Told("connected", carried=CARRIED)
GONE = failing(ProxyMisbehaved, errno.ECONNRESET)
LATE = failing(ProxyTimedOut, errno.ETIMEDOUT, "the time limit has passed")


class Case(NamedTuple):
    """What a proxy of a scheme does, and what that is for a client."""

    scheme: str
    script: Script
    told: Told
    login: str = ""


# The dialogues as they should be: what is heard, and what is said

GREETING5, LOGIN5, ASKED5 = 3, 3 + 2 + len(SECRET), 10
GRANTED5 = bytes.fromhex("05 00 00 01 c0000209 1000")
GRANTED4 = bytes.fromhex("00 5a 1000 c0000209")
OK = b"HTTP/1.1 200 OK\r\nVia: us\r\n\r\n"
ASKED4 = 9
ASKED_HTTP = len(b"CONNECT 192.0.2.7:80 HTTP/1.1\r\nHost: 192.0.2.7:80\r\n\r\n")
WAIT = b"HTTP/1.1 100 Continue\r\n\r\n"
ME = f"me:{SECRET}@"


def named(name: bytes, code: int = 0) -> bytes:
    return bytes((5, code, 0, 3, len(name))) + name + b"\x10\0"


def reply5(code: int) -> bytes:
    return bytes((5, code, 0, 1)) + bytes(6)


def asked5(*script: int | float | bytes | str) -> list[int | float | bytes | str]:
    return [GREETING5, b"\5\0", ASKED5, *script]


def asked4(*script: int | float | bytes | str) -> list[int | float | bytes | str]:
    return [ASKED4, *script]


def http(*script: int | float | bytes | str) -> list[int | float | bytes | str]:
    return [ASKED_HTTP, *script]


def status(number: int, more: bytes = b"") -> list[int | float | bytes | str]:
    return http(b"HTTP/1.1 %03d Some reason\r\n%s\r\n<html>" % (number, more))


_CODES: dict[int, tuple[type[ProxyError], int]] = {
    1: (RequestRefused, errno.ECONNABORTED),
    2: (RequestRefused, errno.EACCES),
    3: (DestinationUnreachable, errno.ENETUNREACH),
    4: (DestinationUnreachable, errno.EHOSTUNREACH),
    5: (DestinationRefused, errno.ECONNREFUSED),
    6: (DestinationTimedOut, errno.ETIMEDOUT),
    7: (RequestRefused, errno.EOPNOTSUPP),
    8: (RequestRefused, errno.EAFNOSUPPORT),
    9: (RequestRefused, errno.ECONNABORTED),
    93: (RequestRefused, errno.ECONNABORTED),
    255: (RequestRefused, errno.ECONNABORTED),
}


def refuses(code: int, words: str) -> Told:
    kind, number = _CODES[code]
    return failing(kind, number, words, code)


_LETTERS = (b"x" * 63 + b".") * 3 + b"x" * 63
_WORDS5 = {
    1: "general failure",
    2: "not allowed",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "ttl expired",
    7: "command not supported",
    8: "address type not supported",
}

SOCKS5: dict[str, Case] = {
    "a right answer": Case("socks5", asked5(GRANTED5 + CARRIED), ARRIVES),
    "one byte at a time": Case("socks5", [BYTE_BY_BYTE, *asked5(GRANTED5, CARRIED)], ARRIVES),
    "a byte now and then": Case(
        "socks5",
        [GREETING5, b"\5", 0.02, b"\0", ASKED5, GRANTED5[:4], 0.02, GRANTED5[4:], CARRIED],
        ARRIVES,
    ),
    "answers before it is asked": Case("socks5", [b"\5\0" + GRANTED5 + CARRIED], ARRIVES),
    "answers before it is asked, with a password": Case(
        "socks5", [b"\5\2\1\0" + GRANTED5 + CARRIED], ARRIVES, ME
    ),
    "success, data, and the end": Case("socks5", asked5(GRANTED5 + CARRIED, END), ARRIVES),
    "a bound name of 255 bytes": Case("socks5", asked5(named(_LETTERS) + CARRIED), ARRIVES),
    "a bound IPv6 address": Case("socks5", asked5(b"\5\0\0\4" + bytes(18) + CARRIED), ARRIVES),
    "closes at once": Case("socks5", [END], GONE),
    "resets at the first byte": Case("socks5", [1, RESET], GONE),
    "closes after the greeting": Case("socks5", [GREETING5, END], GONE),
    "closes after the password": Case("socks5", [4, b"\5\2", LOGIN5, END], GONE, ME),
    "closes after the request": Case("socks5", asked5(END), GONE),
    "resets after the request": Case("socks5", asked5(RESET), GONE),
    "half a reply, then the end": Case("socks5", asked5(GRANTED5[:7], END), GONE),
    "half a reply, then a reset": Case("socks5", asked5(GRANTED5[:7], RESET), GONE),
    "never answers": Case("socks5", [], LATE),
    "never reads": Case("socks5", [DEAF], LATE),
    "half a choice of method, then silence": Case("socks5", [GREETING5, b"\5"], LATE),
    "silent about the password": Case("socks5", [4, b"\5\2", LOGIN5], LATE, ME),
    "silent about the request": Case("socks5", asked5(), LATE),
    "half a reply, then silence": Case("socks5", asked5(GRANTED5[:9]), LATE),
    "a reply that drips": Case("socks5", asked5(*[b"\5\0\0\3\xff", *[0.05, b"x"] * 257]), LATE),
    "version 4 where 5 is due": Case("socks5", [GREETING5, b"\4\0"], breaks("version 4, not 5")),
    "version 0 in the reply": Case("socks5", asked5(b"\0\x5a" + bytes(6)), breaks("version 0")),
    "version 5 of the password's verdict": Case(
        "socks5", [4, b"\5\2", LOGIN5, b"\5\0"], breaks("version 5, not 1"), ME
    ),
    "is a web server": Case("socks5", [GREETING5, b"HTTP/1.1 400 Bad\r\n\r\n", END], breaks("72")),
    "is an sshd": Case("socks5", [b"SSH-2.0-OpenSSH_9.2\r\n"], breaks("version 83, not 5")),
    "speaks TLS": Case("socks5", [GREETING5, b"\x15\3\1\0\2\2\x28", END], breaks("version 21")),
    "says nothing but zeros": Case("socks5", Endless([bytes(4096)]), breaks("version 0")),
    "a method that was not offered": Case(
        "socks5", [GREETING5, b"\5\2"], breaks("method 2, which was not offered")
    ),
    "wants a password": Case(
        "socks5",
        [GREETING5, b"\5\xff"],
        failing(LoginRefused, errno.EACCES, "it wants a password"),
    ),
    "wants neither a password nor none": Case(
        "socks5",
        [4, b"\5\xff"],
        failing(LoginRefused, errno.EACCES, "it wants neither a password nor none"),
        ME,
    ),
    "refuses the password": Case(
        "socks5",
        [4, b"\5\2", LOGIN5, b"\1\1"],
        failing(LoginRefused, errno.EACCES, "it refuses the password"),
        ME,
    ),
    "address type 2": Case("socks5", asked5(b"\5\0\0\2" + bytes(6)), breaks("address type 2")),
    "address type 255": Case("socks5", asked5(b"\5\5\0\xff"), breaks("address type 255")),
    "a bound name of no bytes": Case("socks5", asked5(named(b"")), breaks("no valid bound")),
    "a bound name of control characters": Case(
        "socks5", asked5(named(b"a\n\0\x1b[2J")), breaks("no valid bound")
    ),
    "refuses with a name of no bytes": Case(
        "socks5", asked5(named(b"", 5)), refuses(5, "connection refused, says ")
    ),
    "refuses, and goes on talking": Case(
        "socks5", asked5(reply5(5) + bytes(1 << 16), END), refuses(5, "connection refused, says ")
    ),
    **{
        f"refuses by {code}": Case(
            "socks5", asked5(reply5(code)), refuses(code, f"{_WORDS5.get(code, f'reply {code}')}, ")
        )
        for code in _CODES
    },
}

SOCKS4: dict[str, Case] = {
    "a right answer": Case("socks4", asked4(GRANTED4 + CARRIED), ARRIVES),
    "one byte at a time": Case("socks4", [BYTE_BY_BYTE, *asked4(GRANTED4, CARRIED)], ARRIVES),
    "answers before it is asked": Case("socks4", [GRANTED4 + CARRIED], ARRIVES),
    "closes at once": Case("socks4", [END], GONE),
    "half a reply, then the end": Case("socks4", asked4(GRANTED4[:4], END), GONE),
    "half a reply, then a reset": Case("socks4", asked4(GRANTED4[:4], RESET), GONE),
    "half a reply, then silence": Case("socks4", asked4(GRANTED4[:7]), LATE),
    "never answers": Case("socks4", [], LATE),
    "never reads": Case("socks4", [DEAF], LATE),
    "version 4 in the reply": Case("socks4", asked4(b"\4\x5a"), breaks("version 4, not 0")),
    "a reply of SOCKS5": Case("socks4", asked4(b"\5\xff"), breaks("version 5, not 0")),
    "refuses by 91": Case("socks4", asked4(b"\0\x5b" + bytes(6)), refuses(1, "general failure, ")),
    "refuses by 92": Case("socks4", asked4(b"\0\x5c" + bytes(6)), refuses(2, "not allowed, says ")),
    "refuses by 93": Case("socks4", asked4(b"\0\x5d" + bytes(6)), refuses(2, "not allowed, says ")),
    "refuses by 0": Case("socks4", asked4(bytes(8)), refuses(1, "general failure, says ")),
}


def _unauthorized(words: str) -> Told:
    return failing(LoginRefused, errno.EACCES, words)


HTTP: dict[str, Case] = {
    "a right answer": Case("http", http(OK + CARRIED), ARRIVES),
    "one byte at a time": Case("http", [BYTE_BY_BYTE, *http(OK, CARRIED)], ARRIVES),
    "answers before it is asked": Case("http", [OK + CARRIED], ARRIVES),
    "lines without CR": Case("http", http(b"HTTP/1.0 200\nA: b\n\n" + CARRIED), ARRIVES),
    "success with a length": Case(
        "http", http(b"HTTP/1.1 299 OK\r\nContent-Length: 5\r\n\r\n" + CARRIED), ARRIVES
    ),
    "says wait, then success": Case("http", http(WAIT * 3, 0.02, WAIT + OK + CARRIED), ARRIVES),
    "says wait for ever": Case("http", Endless([WAIT]), breaks("longer than 16384 bytes")),
    "says wait for ever, slowly": Case("http", Endless([WAIT, 0.05]), LATE),
    "an endless head": Case(
        "http", http(b"HTTP/1.1 200 OK\r\n", *[b"A: b\r\n" * 512] * 9), breaks("longer than 16384")
    ),
    "an endless line": Case(
        "http", http(b"HTTP/1.1 200 " + b"x" * 20000), breaks("longer than 16384")
    ),
    "a head that drips": Case("http", http(b"HTTP/1.1 200 ", *[0.05, b"x"] * 99), LATE),
    "is no web server": Case("http", http(b"SSH-2.0-OpenSSH\r\n"), breaks("not one of HTTP/1")),
    "is a SOCKS5 proxy": Case("http", [3, b"\5\xff", END], breaks("not one of HTTP/1")),
    "HTTP/2": Case("http", http(b"HTTP/2 200\r\n\r\n"), breaks("not one of HTTP/1")),
    "status 099": Case("http", status(99), breaks("status 099")),
    "status 101": Case("http", status(101), breaks("status 101")),
    "status 600": Case("http", status(600), breaks("status 600")),
    "closes at once": Case("http", [END], GONE),
    "half a head, then the end": Case("http", http(OK[:20], END), GONE),
    "half a head, then a reset": Case("http", http(OK[:20], RESET), GONE),
    "half a head, then silence": Case("http", http(OK[:20]), LATE),
    "never answers": Case("http", [], LATE),
    "wants a password": Case(
        "http", status(407, b"Proxy-Authenticate: Basic\r\n"), _unauthorized("it wants a password")
    ),
    "wants a password, by 401": Case("http", status(401), _unauthorized("it wants a password")),
    "refuses the password": Case("http", status(407), _unauthorized("it refuses the password"), ME),
    **{
        f"refuses by {number}": Case(
            "http", status(number), refuses(code, f"status {number}, says")
        )
        for number, code in {
            302: 1,
            400: 1,
            403: 2,
            404: 4,
            405: 1,
            451: 2,
            500: 1,
            501: 1,
            502: 4,
            503: 1,
            504: 6,
        }.items()
    },
}

CASES: dict[str, Case] = {
    f"{scheme}: {what}": case
    for scheme, cases in (("socks5", SOCKS5), ("socks4", SOCKS4), ("http", HTTP))
    for what, case in cases.items()
}


# What comes of it


def warm_up() -> None:
    """Have what stays for as long as the process does: a thread, and its loop."""
    with Upstream([END]) as upstream:
        come(CLIENTS["non-blocking"], upstream.url("socks5"), PATIENCE)


def come(client: Client, proxy: Any, seconds: float | None) -> Told:
    """Come to a proxy for DESTINATION, and say what a program is told."""
    told = met(client, DESTINATION, proxy, seconds, lambda sock: read(sock, len(CARRIED)))
    assert SECRET not in told.words
    return told


def expected(client: str, case: Case) -> Told:
    return PENDING if client == "non-blocking" and case.told is LATE else case.told


def meet(client: str, case: Case, seconds: float) -> tuple[Told, float, str]:
    """Have a client meet a case: what it is told, in how many seconds, and who the proxy was."""
    with Upstream(case.script) as upstream:
        proxy = upstream.url(case.scheme, case.login)
        since = time.monotonic()
        return come(CLIENTS[client], proxy, seconds), time.monotonic() - since, str(proxy)


def associate(_: Destination, proxy: Any, seconds: float | None) -> socket.socket:
    """The beginning of UDP ASSOCIATE."""
    errand = Errand(Command.ASSOCIATE, Endpoint("0.0.0.0", 0), (proxy,))
    granted = run(lambda loop: errand.run(loop, seconds))
    return socket.socket(fileno=granted.sock.detach())


proxy_of = ProxyAddress.parse
