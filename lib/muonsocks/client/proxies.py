"""Which proxies a connection goes through: as a program or its environment says it.

    all_proxy, ALL_PROXY        URLs of proxies; several are gone through one after the other
    SOCKS5_SERVER, SOCKS_SERVER, SOCKS4_SERVER      HOST or HOST:PORT, without a URL's scheme
    no_proxy, NO_PROXY          where nothing goes through them: names, which stand for all below
                                them, addresses and networks, or * for everywhere

The first that is there counts, and what is empty is not there. Elsewhere URLs are separated by
commas or blanks, too.

This is what curl has, with these differences. Several URLs are one way. What is not a URL of a
kind of proxy that there is here is an error, so that nothing goes another way than it should; what
has no scheme at all is HTTP's, as in curl. Among exceptions * counts in any place, and may stand in
front of a name, as other programs have it; an IPv6 address or network may have brackets; a network
of 0 bits is all addresses, and host bits in a network do no harm. An exception with a port is about
nothing, as in curl.
"""

from __future__ import annotations

import os

from muonsocks.address import Endpoint, Network, parse_address
from muonsocks.errors import UsageError
from muonsocks.socks.proxy_address import SCHEMES, ProxyAddress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from muonsocks.socks.rules import Chain

    # What a program says: URLs, or what has been made of them; None is "see the environment".
    Proxies = str | ProxyAddress | Iterable[str | ProxyAddress] | None

DIRECT: Chain = ()  # through no proxies, whatever the environment says
_VARIABLES = ("all_proxy", "ALL_PROXY", "SOCKS5_SERVER", "SOCKS_SERVER", "SOCKS4_SERVER")
# What these are without a scheme. The servers are told names.
_SCHEME = {
    "all_proxy": "http",
    "ALL_PROXY": "http",
    "SOCKS5_SERVER": "socks5h",
    "SOCKS_SERVER": "socks5h",
    "SOCKS4_SERVER": "socks4a",
}


def chain_of(proxies: Proxies) -> Chain | None:
    """Read what a program says; None if that is nothing. UsageError."""
    if proxies is None:
        return None
    if isinstance(proxies, ProxyAddress):
        return (proxies,)
    if isinstance(proxies, str):
        proxies = _urls(proxies)
        if proxies == ["direct"]:
            return DIRECT
        if not proxies:  # a setting that is missing must not lead past the proxy
            raise UsageError("there is no proxy in an empty text", "write direct if none is meant")
    chain = [_address_of(one) for one in proxies]
    if len(chain) > 1:
        from muonsocks.socks.rules import expect_chain

        expect_chain(chain)
    return tuple(chain)


def _address_of(proxy: object) -> ProxyAddress:
    if isinstance(proxy, ProxyAddress):
        return proxy
    if not isinstance(proxy, str):
        raise TypeError(f"a proxy is a URL or a ProxyAddress, not {type(proxy).__name__}")
    if proxy == "direct":
        raise UsageError("direct is for no proxies at all", "let it stand alone")
    return ProxyAddress.parse(proxy)


def _urls(text: str) -> list[str]:
    """Separate URLs. A comma that none follows is one in a password, or in a path."""
    urls: list[str] = []
    for word in text.split():
        found: list[str] = []
        for piece in word.strip(",").split(","):
            if not found or piece.partition("://")[0].lower() in SCHEMES:
                found.append(piece)
            else:
                found[-1] += f",{piece}"
        urls += [one.rstrip(",") for one in found if one]
    return urls


def from_environment(destination: Endpoint, environ: Mapping[str, str] | None = None) -> Chain:
    """Give the proxies that the environment has for a destination. UsageError."""
    if environ is None:
        environ = os.environ
    for name in _VARIABLES:
        text = environ.get(name, "").strip()
        if not text:
            continue
        if is_excepted(destination, exceptions_in(environ)):
            return DIRECT
        if "://" not in text and text != "direct":
            text = f"{_SCHEME[name]}://{text}"
        try:
            return chain_of(text) or DIRECT
        except UsageError as error:
            raise UsageError(f"${name}: {error}") from None
    return DIRECT


def exceptions_in(environ: Mapping[str, str]) -> str:
    """Give what the environment has of where no proxies lead."""
    return environ.get("no_proxy") or environ.get("NO_PROXY", "")


def is_excepted(destination: Endpoint, exceptions: str) -> bool:
    """Say whether one of the exceptions is about a destination: by its name, or by its address if
    it has no name. What makes no sense is about none.
    """
    return any(_is_about(word, destination) for word in exceptions.replace(",", " ").split())


def _is_about(word: str, destination: Endpoint) -> bool:
    if word == "*":
        return True
    packed = destination.packed
    if packed is None:
        name = destination.host.lower().rstrip(".")
        suffix = word.lower().removeprefix("*").strip(".")
        return bool(suffix) and (name == suffix or name.endswith(f".{suffix}"))
    network = _network(word)
    return network is not None and packed in network


def _network(word: str) -> Network | None:
    """Read an address or a network, which may have host bits set; None if it is neither."""
    address, slash, length = word.partition("/")
    has_brackets = address.startswith("[") and address.endswith("]")
    packed = parse_address(address[1:-1] if has_brackets else address)
    if packed is None:
        return None
    width = 8 * len(packed)
    if not slash:
        return Network(packed, width)
    if not (length.isascii() and length.isdecimal()) or len(length) > 3 or int(length) > width:
        return None
    spare = width - int(length)
    first = int.from_bytes(packed, "big") >> spare << spare
    return Network(first.to_bytes(len(packed), "big"), width - spare)
