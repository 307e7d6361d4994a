"""Names looked up under the rules: the order, what is left out, and which way it goes."""

import pytest
from ends import nothing_left_behind
from play import Play, close_all

from muonsocks.address import Endpoint, parse_address
from muonsocks.errors import NameNotResolved, RefusedByRule
from muonsocks.socks.lookup import places
from muonsocks.socks.request import Command
from muonsocks.socks.rules import Rules, parse_rules

ADDRESSES = ["192.0.2.1", "2001:db8::1", "198.51.100.1", "127.0.0.1"]


async def lookup(host: str) -> list[tuple[bytes, int]]:
    found = ADDRESSES if host == "host" else ["2001:db8::1"]
    return [(parse_address(one) or b"", 0) for one in found]


def found(rules: str, host: str = "host", ipv4_only: bool = False) -> tuple[list[str], list[str]]:
    """The places, and the proxies on the way to them."""
    with nothing_left_behind():
        play = Play(rules=Rules(parse_rules(rules, "rules")))
        play.dialler.lookup = lookup
        looked_up = places(play.session, Command.BIND, Endpoint(host, 21), ipv4_only)
        try:
            addresses, via = play.loop.run(looked_up)
        finally:
            close_all()
    return [one.host for one in addresses], [str(one) for one in via]


def test_what_is_permitted() -> None:
    assert found("") == (ADDRESSES[:3], [])
    assert found("", ipv4_only=True) == (["192.0.2.1", "198.51.100.1"], [])
    assert found("deny bind 192.0.2.0/24\ndeny connect *") == (ADDRESSES[1:3], [])
    assert found("", "192.0.2.7") == (["192.0.2.7"], [])


def test_those_that_are_on_the_first_one_s_way() -> None:
    ways = "via socks5://10.0.0.1 192.0.2.0/24\nvia socks5://10.0.0.1 198.51.100.0/24"
    assert found(ways) == (["192.0.2.1"], ["socks5://10.0.0.1:1080"])
    assert found("via socks5://10.0.0.1 *") == (ADDRESSES[:3], ["socks5://10.0.0.1:1080"])
    assert found("via socks5://10.0.0.1 2001:db8::/32") == (["192.0.2.1", "198.51.100.1"], [])


def test_a_proxy_that_looks_it_up() -> None:
    assert found("via socks5h://10.0.0.1 *") == ([], ["socks5h://10.0.0.1:1080"])


def test_nothing_is_left() -> None:
    for rules in ("deny *", "deny host", "deny 0.0.0.0/0\ndeny ::/0"):
        with pytest.raises(RefusedByRule):
            found(rules)
    with pytest.raises(RefusedByRule):
        found("", "127.0.0.1")
    with pytest.raises(NameNotResolved):
        found("", "six", ipv4_only=True)
