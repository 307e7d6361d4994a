"""Which proxies a connection goes through: as a program or its environment says it.

    all_proxy, ALL_PROXY        URLs of proxies; several are gone through one after the other
    SOCKS5_SERVER, SOCKS_SERVER, SOCKS4_SERVER      HOST or HOST:PORT, without a URL's scheme
    no_proxy, NO_PROXY          where nothing goes through them: names, which stand for all below
                                them, addresses and networks, or * for everywhere

The first that is there counts. Elsewhere URLs are separated by commas or blanks, too.
"""

from __future__ import annotations

import os

from muonsocks.address import Endpoint, Network, parse_address
from muonsocks.errors import UsageError
from muonsocks.socks.proxy_address import ProxyAddress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from muonsocks.socks.rules import Chain

    # What a program says: URLs, or what has been made of them; None is "see the environment".
    Proxies = str | ProxyAddress | Iterable[str | ProxyAddress] | None

DIRECT: Chain = ()  # through no proxies, whatever the environment says
_VARIABLES = ("all_proxy", "ALL_PROXY", "SOCKS5_SERVER", "SOCKS_SERVER", "SOCKS4_SERVER")
# What these servers are, which have no scheme: they are told names, as a URL would say it.
_SCHEME = {"SOCKS5_SERVER": "socks5h", "SOCKS_SERVER": "socks5h", "SOCKS4_SERVER": "socks4a"}


def chain_of(proxies: Proxies) -> Chain | None:
    """Read what a program says; None if that is nothing. UsageError."""
    if proxies is None:
        return None
    if isinstance(proxies, ProxyAddress):
        return (proxies,)
    if isinstance(proxies, str):
        proxies = proxies.replace(",", " ").split()
        if proxies == ["direct"]:
            return DIRECT
    chain = [one if isinstance(one, ProxyAddress) else ProxyAddress.parse(one) for one in proxies]
    if len(chain) > 1:
        from muonsocks.socks.rules import expect_chain

        expect_chain(chain)
    return tuple(chain)


def from_environment(destination: Endpoint, environ: Mapping[str, str] | None = None) -> Chain:
    """Give the proxies that the environment has for a destination. UsageError."""
    if environ is None:
        environ = os.environ
    for name in _VARIABLES:
        text = environ.get(name, "").strip()
        if not text:
            continue
        exceptions = environ.get("no_proxy") or environ.get("NO_PROXY", "")
        if _is_excepted(destination, exceptions):
            return DIRECT
        scheme = _SCHEME.get(name)
        if scheme and "://" not in text:
            text = f"{scheme}://{text}"
        try:
            return chain_of(text) or DIRECT
        except UsageError as error:
            raise UsageError(f"${name}: {error}") from None
    return DIRECT


def _is_excepted(destination: Endpoint, exceptions: str) -> bool:
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
    network = _network(word.strip("[]"))
    return network is not None and packed in network


def _network(word: str) -> Network | None:
    """Read an address or a network, which may have host bits set; None if it is neither."""
    address, slash, length = word.partition("/")
    packed = parse_address(address)
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
