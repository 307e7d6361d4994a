"""Which addresses mean a unix socket: what --listen says, and the addresses and variables of
socketbox-preload. No I/O.

    bound or connected to           becomes                                    where the port is in
    fe8f::2:D:O, fe8f::3:D:O        ROOT2/DDDDD/OOOOO_PPPPP                    _IPV6
    fe8f::D:O, fe8f::1:D:O          what is at O in the file ROOT/skbox_dir_D  _IPV6
    127.180.A.B, 127.181.A.B        ROOT2/X4AAA/BBBBB_PPPPP, 4AAA is 4000 + A  _IPV4
    ::                              ROOT2/X0000/00000_PPPPP                    _IPV6_WILDCARD
    0.0.0.0                         ROOT2/X0004/00000_PPPPP                    _IPV4_WILDCARD
    fe8f:1:SSSS:SSSS:...            fe80:: and the last 64 bits, at interface SSSSSSSS

D, O, A, B and the port P are decimal and have leading zeros. Connections are passed to the first of
two such addresses; the other is a stream, which is connected to. An IPv4 address may be mapped.
"""

from __future__ import annotations

from muonsocks.address import LONGEST_UNIX_PATH, Endpoint, expect_unix_path, parse_address
from muonsocks.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_ROOT, _ROOT2 = "SKBOX_DIRECTORY_ROOT", "SKBOX_DIRECTORY_ROOT2"
_LONGEST_ROOT = 255  # bytes
_FILTERS = {  # limits of odd and of even ports, where the variable does not say more
    "SKBOX_PORT_FILTER_IPV6": (1024, 1024),
    "SKBOX_PORT_FILTER_IPV4": (0, 0),
    "SKBOX_PORT_FILTER_IPV6_WILDCARD": (0, 0),
    "SKBOX_PORT_FILTER_IPV4_WILDCARD": (0, 0),
}
_MOST_NUMBERS = 32  # in a filter
_PORT_HERE = b"_@SB_"
_FE8F, _FE8F_1 = b"\xfe\x8f" + bytes(8), b"\xfe\x8f\0\1"
_LINK_LOCAL = b"\xfe\x80" + bytes(6)
_180, _181 = b"\x7f\xb4", b"\x7f\xb5"


class UnixPlace:
    """A unix socket: connections are passed to it, or else it `is_stream`. Who is bound there
    replaces a dead one or, if it `takes_over`, any.
    """

    __slots__ = ("is_stream", "path", "takes_over")

    def __init__(self, path: str, is_stream: bool = False, takes_over: bool = True) -> None:
        self.path = path
        self.is_stream = is_stream
        self.takes_over = takes_over


class PlaceInFile:
    """A unix socket whose path is in a file, `file`, of which `SIZE` bytes at `offset` have it."""

    SIZE = 108

    __slots__ = ("_port", "file", "is_stream", "offset")

    def __init__(self, file: str, offset: int, port: int, is_stream: bool) -> None:
        self.file = file
        self.offset = offset
        self._port = port
        self.is_stream = is_stream

    def place(self, data: bytes) -> UnixPlace:
        """Give the unix socket that these bytes name. ValueError if they name none."""
        raw = data.partition(b"\0")[0].replace(_PORT_HERE, b"%05d" % self._port, 1)
        if not 0 < len(raw) <= LONGEST_UNIX_PATH:
            raise ValueError("no path of a unix socket")
        return UnixPlace(raw.decode("utf-8", "surrogateescape"), self.is_stream)


class LinkLocal:
    """The endpoint of a link that is meant, with the number of its interface."""

    __slots__ = ("endpoint",)

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint


if TYPE_CHECKING:
    # What an address becomes; None: it stays what it is.
    Meaning = UnixPlace | PlaceInFile | LinkLocal | None


class Ports:
    """Ports that are odd and below a limit, or even and below another, or are named; never 0."""

    __slots__ = ("_even", "_named", "_odd")

    def __init__(self, odd: int, even: int, named: Iterable[int] = ()) -> None:
        self._odd = odd
        self._even = even
        self._named = frozenset(named)

    @classmethod
    def parse(cls, text: str, name: str) -> Ports:
        """Read ODD[,EVEN[,PORT...]]; one limit is for both. UsageError, by the variable's name."""
        words = text.split(",")
        try:
            numbers = [_number(word) for word in words]
        except ValueError:
            numbers = []
        if not 0 < len(numbers) <= _MOST_NUMBERS:
            hint = f"give ODD[,EVEN[,PORT...]], {_MOST_NUMBERS} numbers at most"
            raise UsageError(f"{name} is {text[:60]!r}", hint)
        odd, even = numbers[0], numbers[min(1, len(numbers) - 1)]
        return cls(odd, even, numbers[2:])

    def __contains__(self, port: int) -> bool:
        if not port:
            return False
        return port < (self._odd if port % 2 else self._even) or port in self._named


def _number(word: str) -> int:
    """Read a number as strtoul(3) with base 0 does: 0x is hexadecimal, and 0 in front octal."""
    word = word.strip(" \t")
    if not word.isascii() or "_" in word or len(word) > 20:
        raise ValueError
    is_octal = len(word) > 1 and word.isdecimal() and word[0] == "0"
    number = int(word, 8 if is_octal else 0)
    if number < 0:
        raise ValueError
    return number


class Conventions:
    """What the variables of socketbox-preload say."""

    __slots__ = (
        "_clears_scope",
        "_filters",
        "_root",
        "_root2",
        "accepts_of_streams",
        "blocks_empty_listen",
        "connects",
        "connects_ipv4",
    )

    def __init__(self, environ: Mapping[str, str], directory: str = ".") -> None:
        """Paths begin at `directory`. UsageError for a value that makes no sense."""
        self._root = _directory(environ, _ROOT, directory)
        self._root2 = _directory(environ, _ROOT2, directory)
        self._filters = {
            name: Ports.parse(environ[name], name) if environ.get(name) else Ports(*limits)
            for name, limits in _FILTERS.items()
        }
        self._clears_scope = _digit(environ, "SKBOX_CLEAR_SCOPE_ID") > 0
        self.accepts_of_streams = _digit(environ, "SKBOX_ACCEPT_STREAM") > 0
        blocks = _digit(environ, "SKBOX_BLOCK_LISTEN_EMPTY_ADDR", 1) > 0
        self.blocks_empty_listen = blocks and bool(self._root or self._root2)
        text = environ.get("SKBOX_ENABLE_CONNECT", "")
        self.connects_ipv4 = text.startswith("b")
        rest = {"SKBOX_ENABLE_CONNECT": text.removeprefix("b")}
        # 1: to streams; 2: also by passing one end of a pair.
        self.connects = _digit(rest, "SKBOX_ENABLE_CONNECT")

    def bound(self, endpoint: Endpoint) -> Meaning:
        """Say what an address means that a socket is bound to; None for itself."""
        address, port = endpoint.packed or b"", endpoint.port
        if not any(address):
            if not self._root2 or not address:
                return None
            if len(address) == 16:
                return self._wildcard("SKBOX_PORT_FILTER_IPV6_WILDCARD", "X0000", port)
            return self._wildcard("SKBOX_PORT_FILTER_IPV4_WILDCARD", "X0004", port)
        if len(address) == 4:
            if port not in self._filters["SKBOX_PORT_FILTER_IPV4"]:
                return None
        elif (
            not address.startswith(_FE8F_1) and port not in self._filters["SKBOX_PORT_FILTER_IPV6"]
        ):
            return None
        return self._named(address, port, endpoint.scope)

    def connected(self, endpoint: Endpoint) -> Meaning:
        """Say what an address means that a socket is connected to; None for itself."""
        address = endpoint.packed or b""
        if not self.connects or not any(address) or (len(address) == 4 and not self.connects_ipv4):
            return None
        return self._named(address, endpoint.port, endpoint.scope)

    def _wildcard(self, filter_name: str, directory: str, port: int) -> UnixPlace | None:
        if port not in self._filters[filter_name]:
            return None
        return UnixPlace(f"{self._root2}/{directory}/00000_{port:05}")

    def _named(self, address: bytes, port: int, scope: int) -> Meaning:
        if address.startswith(_FE8F_1) and len(address) == 16:
            interface = int.from_bytes(address[4:8], "big")
            return LinkLocal(Endpoint.at(_LINK_LOCAL + address[8:], port, interface))
        if len(address) == 4:
            if not self._root2 or not address.startswith((_180, _181)):
                return None
            name = f"X{4000 + address[2]}/{address[3]:05}_{port:05}"
            return UnixPlace(f"{self._root2}/{name}", address.startswith(_181))
        form = int.from_bytes(address[10:12], "big")
        if not address.startswith(_FE8F) or form > 3 or not port:
            return None
        if scope and not self._clears_scope:
            return None
        directory, number = (int.from_bytes(address[at : at + 2], "big") for at in (12, 14))
        is_stream = form % 2 == 1
        if form >= 2:
            if not self._root2:
                return None
            name = f"{directory:05}/{number:05}_{port:05}"
            return UnixPlace(f"{self._root2}/{name}", is_stream)
        if not self._root:
            return None
        file = f"{self._root}/skbox_dir_{directory:05}"
        return PlaceInFile(file, number * 128, port, is_stream)


def _directory(environ: Mapping[str, str], name: str, directory: str) -> str:
    text = environ.get(name, "")
    if len(text.encode("utf-8", "surrogateescape")) > _LONGEST_ROOT:
        raise UsageError(f"{name} is too long", f"{_LONGEST_ROOT} bytes at most are a directory")
    return _absolute(text, directory) if text else ""


def _absolute(path: str, directory: str) -> str:
    return path if path[0] in "/@" or directory == "." else f"{directory}/{path}"


def _digit(environ: Mapping[str, str], name: str, default: int = 0) -> int:
    text = environ.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdecimal()) or len(text) > 1:
        raise UsageError(f"{name} is {text[:60]!r}", "it must be one digit")
    return int(text)


# What --listen says


class Places:
    """What was asked for by ADDR:PORT=PATH, each time for one address or, with *, for all."""

    __slots__ = ("_places",)

    def __init__(self, texts: Iterable[str] = (), directory: str = ".") -> None:
        """Paths begin at `directory`. UsageError if one makes no sense, or is there twice."""
        self._places: dict[tuple[bytes | None, int], UnixPlace] = {}
        for text in texts:
            where, place = _place(text, directory)
            if where in self._places:
                raise UsageError(f"--listen: {text[:60]!r} is the second of its address")
            self._places[where] = place

    def bound(self, endpoint: Endpoint) -> UnixPlace | None:
        """Say what an address means that a socket is bound to; None for itself."""
        port = endpoint.port
        return self._places.get((endpoint.packed, port)) or self._places.get((None, port))


def _place(text: str, directory: str) -> tuple[tuple[bytes | None, int], UnixPlace]:
    where, _, path = text.partition("=")
    host, _, digits = where.rpartition(":")
    port = int(digits) if digits.isascii() and digits.isdecimal() and len(digits) <= 5 else 0
    if not path or not 0 < port < 65536:
        raise UsageError(f"--listen: {text[:60]!r} cannot be", "write ADDR:PORT=PATH")
    path = _absolute(path, directory)
    expect_unix_path(path)
    if host in ("", "*"):
        return (None, port), UnixPlace(path, takes_over=False)
    is_bracketed = host.startswith("[") and host.endswith("]")
    packed = parse_address(host[1:-1] if is_bracketed else host)
    if packed is None or (":" in host) != is_bracketed:
        hint = "write ADDR:PORT=PATH, with [] around an IPv6 address"
        raise UsageError(f"--listen: {host[:60]!r} is not an address", hint)
    return (packed, port), UnixPlace(path, takes_over=False)
