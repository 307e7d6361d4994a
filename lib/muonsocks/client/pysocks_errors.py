"""The kinds of proxies and the errors that PySocks has, and ours as those; see `pysocks`."""

from __future__ import annotations

import errno
import socket

from muonsocks.client import errors
from muonsocks.socks.proxy_request import CLOSED
from muonsocks.socks.request import ReplyCode

PROXY_TYPE_SOCKS4 = SOCKS4 = 1
PROXY_TYPE_SOCKS5 = SOCKS5 = 2
PROXY_TYPE_HTTP = HTTP = 3
PROXY_TYPES = {"SOCKS4": SOCKS4, "SOCKS5": SOCKS5, "HTTP": HTTP}
PRINTABLE_PROXY_TYPES = {number: name for name, number in PROXY_TYPES.items()}
DEFAULT_PORTS = {SOCKS4: 1080, SOCKS5: 1080, HTTP: 8080}

SOCKS4_ERRORS = {
    0x5B: "Request rejected or failed",
    0x5C: "Request rejected because SOCKS server cannot connect to identd on the client",
    0x5D: "Request rejected because the client program and identd report different user-ids",
}
SOCKS5_ERRORS = {
    0x01: "General SOCKS server failure",
    0x02: "Connection not allowed by ruleset",
    0x03: "Network unreachable",
    0x04: "Host unreachable",
    0x05: "Connection refused",
    0x06: "TTL expired",
    0x07: "Command not supported, or protocol error",
    0x08: "Address type not supported",
}


class ProxyError(OSError):
    """What goes wrong with a proxy; `socket_err` is the error behind it, if there is one."""

    def __init__(self, msg: str, socket_err: BaseException | None = None) -> None:
        self.msg = f"{msg}: {socket_err}" if socket_err else msg
        self.socket_err = socket_err

    def __str__(self) -> str:
        return self.msg


class GeneralProxyError(ProxyError):
    """All but the next one."""


class ProxyConnectionError(ProxyError):
    """There is no connection to the proxy."""


class SOCKS5AuthError(ProxyError):
    """It wants a user and a password, or others."""


class SOCKS5Error(ProxyError):
    """A proxy of SOCKS5 refuses."""


class SOCKS4Error(ProxyError):
    """A proxy of SOCKS4 refuses."""


class HTTPError(ProxyError):
    """A proxy of HTTP refuses."""


_REFUSALS = {SOCKS4: SOCKS4Error, SOCKS5: SOCKS5Error, HTTP: HTTPError}


def as_pysocks(error: errors.ProxyError, kind: int, place: str) -> ProxyError:
    """Make what PySocks raises of an error of ours, of a proxy of some kind at host:port."""
    name, reason, number = PRINTABLE_PROXY_TYPES[kind], error.strerror or "", error.errno
    if isinstance(error, errors.ProxyUnreachable):
        words = reason.partition(": ")[2] or reason  # without the proxy, which is named already
        cause = OSError(number, words)  # of the class that has this number
        return ProxyConnectionError(f"Error connecting to {name} proxy {place}", cause)
    behind: OSError
    if isinstance(error, errors.ProxyTimedOut):
        behind = errors.timed_out()
    elif isinstance(error, errors.NameNotFound):
        behind = socket.gaierror(number, reason)
    elif isinstance(error, errors.LoginRefused):
        behind = {SOCKS5: SOCKS5AuthError}.get(kind, _REFUSALS[kind])(reason)
    elif isinstance(error, errors.ProxyMisbehaved):
        is_reset = number != errno.EPROTO and not reason.endswith(CLOSED)
        behind = OSError(number, reason) if is_reset else GeneralProxyError(reason)
    else:
        behind = _REFUSALS[kind](_refusal(kind, error.code, reason))
    return GeneralProxyError("Socket error", behind)


def _refusal(kind: int, code: int | None, reason: str) -> str:
    if kind == HTTP:
        return reason
    if kind == SOCKS4:
        if code == ReplyCode.ADDRESS_TYPE_NOT_SUPPORTED:
            return reason  # it has not been asked
        code = 0x5C if code == ReplyCode.NOT_ALLOWED else 0x5B
    known = SOCKS5_ERRORS if kind == SOCKS5 else SOCKS4_ERRORS
    return f"{code:#04x}: {known.get(code or 0, 'Unknown error')}"
