"""Proxies as URLs name them, with curl's meaning: how one is spoken to, where it is, as whom.

    socks4://USER@HOST:PORT     SOCKS4; names are looked up here, and only IPv4 can be asked for
    socks4a://USER@HOST:PORT    SOCKS4A; the proxy looks names up
    socks5://USER:PASSWORD@HOST:PORT    SOCKS5; names are looked up here
    socks5h://...               SOCKS5; the proxy looks names up
    http://...                  HTTP's CONNECT; the proxy looks names up

User and password are percent-encoded, and may be missing; so may the port, which is 1080 then. A
unix socket is localhost with a path, socks5h://localhost/run/proxy, or socks5h://unix:/run/proxy.

Where curl would go on with what cannot be meant, these are errors: a % that no two digits follow,
a password where the protocol has none, a path behind a host, no scheme. socks:// is one of them,
which curl takes for SOCKS4 and desktops, which set it, for SOCKS5.
"""

from __future__ import annotations

from muonsocks.address import Endpoint, expect_unix_path, is_name
from muonsocks.errors import UsageError

DEFAULT_PORT = 1080
SCHEMES = ("socks4", "socks4a", "socks5", "socks5h", "http")
_RESOLVING = ("socks4a", "socks5h", "http")
_WITHOUT_PASSWORD = ("socks4", "socks4a")
_LONGEST = 255  # bytes of a user, and of a password (RFC 1929)
_HINT = "write socks5h://HOST:PORT, say"


class ProxyAddress:
    """One proxy. It is at `endpoint`, or at the unix socket `path`, which is empty then.

    `resolves` says that it is given names, rather than their addresses.
    """

    __slots__ = ("endpoint", "password", "path", "resolves", "scheme", "user")

    def __init__(
        self,
        scheme: str,
        endpoint: Endpoint,
        user: bytes = b"",
        password: bytes = b"",
        path: str = "",
    ) -> None:
        self.scheme = scheme
        self.endpoint = endpoint
        self.path = path
        self.user = user
        self.password = password
        self.resolves = scheme in _RESOLVING

    @classmethod
    def parse(cls, url: str) -> ProxyAddress:
        """Read a URL. UsageError, which quotes no password."""
        scheme, slashes, rest = url.partition("://")
        scheme = scheme.lower()
        if not slashes or scheme not in SCHEMES:
            is_scheme = slashes and scheme.isalnum()  # and no login in the wrong place
            if not is_scheme:
                raise UsageError("what has no scheme is no kind of proxy", _HINT)
            problem = f"{scheme[:20]!r} is no kind of proxy"
            raise UsageError(problem, f"there are {', '.join(SCHEMES)}")
        if rest.startswith("unix:"):
            login, at, place = "", "", rest
        elif "@unix:" in rest:
            login, at, place = rest.partition("@unix:")
            place = f"unix:{place}"
        else:
            login, at, place = rest.rpartition("@")
        user, password = _login(scheme, login) if at else (b"", b"")
        if place.startswith("unix:"):
            path = place.removeprefix("unix:")
        elif place.startswith("localhost/") and place != "localhost/":
            path = place.removeprefix("localhost")
        else:
            return cls(scheme, _endpoint(place.removesuffix("/"), bool(at)), user, password)
        path = _decoded(path, "path").decode("utf-8", "surrogateescape")
        expect_unix_path(path)
        return cls(scheme, Endpoint("localhost", DEFAULT_PORT), user, password, path)

    def __str__(self) -> str:
        """Name it for a log line: without who we are there."""
        return f"{self.scheme}://{f'unix:{self.path}' if self.path else self.endpoint}"

    def __repr__(self) -> str:
        return f"ProxyAddress({str(self)!r})"


def _login(scheme: str, login: str) -> tuple[bytes, bytes]:
    name, colon, secret = login.partition(":")
    user, password = _decoded(name, "user"), _decoded(secret, "password")
    if len(user) > _LONGEST or len(password) > _LONGEST:
        raise UsageError("user and password of a proxy have at most 255 bytes each")
    if scheme in _WITHOUT_PASSWORD and (colon or b"\0" in user):
        raise UsageError(f"{scheme} has no passwords", f"write {scheme}://USER@HOST:PORT")
    if scheme == "http" and b":" in user:
        raise UsageError("HTTP has no users with a colon in their name")
    return user, password


def _endpoint(place: str, has_login: bool) -> Endpoint:
    # Without a login, a HOST:PORT that is none may be a USER:PASSWORD: that is not repeated.
    shown = f"{place[:60]!r}" if has_login or ":" not in place else "that"
    host, port = place, ""
    if place.startswith("["):
        host, bracket, after = place[1:].partition("]")
        is_sound = bracket and ":" in host and after[:1] in ("", ":")
        host, port = (host, after[1:]) if is_sound else ("", "")
    elif ":" in place:
        host, _, port = place.rpartition(":")
    is_host = host.isascii() and is_name(host.encode())
    if not is_host or any(one in host for one in "/[,"):
        raise UsageError(f"{shown} is not where a proxy can be", _HINT)
    if port and (not (port.isascii() and port.isdecimal()) or len(port) > 5):
        raise UsageError(f"{shown} has not the port of a proxy", _HINT)
    number = int(port or DEFAULT_PORT)
    endpoint = Endpoint(host, number)
    if not 0 < number < 65536 or (endpoint.packed is None and ":" in host):
        raise UsageError(f"{shown} is not where a proxy can be", _HINT)
    return endpoint


def _decoded(text: str, what: str) -> bytes:
    """Undo percent-encoding, RFC 3986 section 2.1. UsageError."""
    decoded, *others = text.encode("utf-8", "surrogateescape").split(b"%")
    for part in others:
        digits = part[:2]
        if len(digits) < 2 or digits.strip(b"0123456789abcdefABCDEF"):
            problem = f"the {what} of a proxy has a % that no two digits follow"
            raise UsageError(problem, "write % as %25")
        decoded += bytes((int(digits, 16),)) + part[2:]
    return decoded
