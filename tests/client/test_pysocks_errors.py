"""Errors as PySocks has them."""

import errno
import socket

import pytest

from muonsocks.client import errors
from muonsocks.client import pysocks_errors as theirs
from muonsocks.client.pysocks_errors import HTTP, SOCKS4, SOCKS5, as_pysocks

PLACE = "192.0.2.1:1080"


def test_the_text_has_the_error_behind_it() -> None:
    plain, with_cause = theirs.ProxyError("one"), theirs.ProxyError("one", OSError("two"))
    assert (str(plain), plain.socket_err) == ("one", None)
    assert str(with_cause) == with_cause.msg == "one: two"
    assert isinstance(with_cause, OSError)


@pytest.mark.parametrize(("kind", "name"), [(SOCKS4, "SOCKS4"), (SOCKS5, "SOCKS5"), (HTTP, "HTTP")])
def test_there_is_no_connection_to_the_proxy(kind: int, name: str) -> None:
    ours = errors.ProxyUnreachable(errno.ECONNREFUSED, f"{PLACE}: refused")
    error = as_pysocks(ours, kind, PLACE)
    assert type(error) is theirs.ProxyConnectionError
    assert error.msg.startswith(f"Error connecting to {name} proxy {PLACE}: ")
    assert isinstance(error.socket_err, ConnectionRefusedError)
    assert error.socket_err.strerror == "refused"


@pytest.mark.parametrize(
    ("kind", "code", "number", "behind", "text"),
    [
        (SOCKS5, 1, errno.ECONNABORTED, theirs.SOCKS5Error, "0x01: General SOCKS server failure"),
        (SOCKS5, 2, errno.EACCES, theirs.SOCKS5Error, "0x02: Connection not allowed by ruleset"),
        (SOCKS5, 99, errno.EIO, theirs.SOCKS5Error, "0x63: Unknown error"),
        (SOCKS4, 1, errno.EIO, theirs.SOCKS4Error, "0x5b: Request rejected or failed"),
        (SOCKS4, 2, errno.EACCES, theirs.SOCKS4Error, "0x5c: Request rejected because SOCKS "),
        (SOCKS4, 8, errno.EAFNOSUPPORT, theirs.SOCKS4Error, "a reason"),
        (HTTP, 1, errno.EIO, theirs.HTTPError, "a reason"),
    ],
)
def test_a_refusal(kind: int, code: int, number: int, behind: type, text: str) -> None:
    error = as_pysocks(errors.RequestRefused(number, "a reason", code), kind, PLACE)
    assert type(error) is theirs.GeneralProxyError and type(error.socket_err) is behind
    assert str(error.socket_err).startswith(text)
    assert str(error) == f"Socket error: {error.socket_err}"


@pytest.mark.parametrize(
    ("kind", "behind"),
    [
        (SOCKS5, theirs.SOCKS5AuthError),
        (SOCKS4, theirs.SOCKS4Error),
        (HTTP, theirs.HTTPError),
    ],
)
def test_a_login(kind: int, behind: type) -> None:
    error = as_pysocks(errors.LoginRefused(errno.EACCES, "a reason"), kind, PLACE)
    assert type(error.socket_err) is behind and str(error.socket_err) == "a reason"


@pytest.mark.parametrize(
    ("ours", "behind"),
    [
        (errors.ProxyTimedOut(errno.ETIMEDOUT, "late"), TimeoutError),
        (errors.NameNotFound(socket.EAI_NONAME, "no such name"), socket.gaierror),
        (errors.ProxyMisbehaved(errno.ECONNRESET, "it was reset"), ConnectionResetError),
        (errors.ProxyMisbehaved(errno.EPROTO, "nonsense"), theirs.GeneralProxyError),
        (errors.ProxyMisbehaved(errno.ECONNRESET, f"it {theirs.CLOSED}"), theirs.GeneralProxyError),
    ],
)
def test_what_else_there_is(ours: errors.ProxyError, behind: type) -> None:
    assert type(as_pysocks(ours, SOCKS5, PLACE).socket_err) is behind
