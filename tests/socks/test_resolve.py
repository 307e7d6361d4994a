"""RESOLVE and RESOLVE_PTR: what is told, what is not, and in which version."""

from collections.abc import Callable, Iterator

import pytest
from ends import no_garbage, nothing_left_behind
from play import Play, close_all

from muonsocks.address import parse_address
from muonsocks.errors import NameNotResolved
from muonsocks.net.task import Waitable
from muonsocks.socks.policy import Commands
from muonsocks.socks.rules import Rules, parse_rules

GREETING = ">> 05 01 00\n<< 05 00\n"
NAMES = {
    "host": ["192.0.2.1", "192.0.2.2"],
    "mixed": ["2001:db8::1", "192.0.2.1"],
    "six": ["2001:db8::1"],
    "mine": ["127.0.0.1"],
}
TEN, SIX = "c0000201", "20010db8000000000000000000000001"


@pytest.fixture(autouse=True)
def leaks_nothing() -> Iterator[None]:
    with nothing_left_behind():
        yield


async def lookup(host: str) -> list[tuple[bytes, int]]:
    if host == "slow":
        await Waitable()
    if host not in NAMES:
        raise NameNotResolved(f"{host}: unknown")
    return [(parse_address(one) or b"", 0) for one in NAMES[host]]


async def name_lookup(address: bytes) -> str:
    if address == parse_address("192.0.2.1"):
        return "host.example"
    raise NameNotResolved("no name")


def play(
    book: str,
    rules: str = "",
    is_on: bool = True,
    prepare: Callable[[Play], None] = lambda _: None,
) -> Play:
    """Perform a look-up, of what is above."""
    made = Play(
        rules=Rules(parse_rules(rules, "rules")),
        commands=Commands(resolve=is_on),
    )
    made.dialler.lookup, made.dialler.name_lookup = lookup, name_lookup
    prepare(made)
    made.perform(book)
    close_all()
    return made


def name(text: str, command: str = "f0") -> str:
    return f"{GREETING}>> 05 {command} 00 03 {len(text):02x} '{text}' 0000"


def address(packed: str, command: str = "f0") -> str:
    kind = "01" if len(packed) == 8 else "04"
    return f"{GREETING}>> 05 {command} 00 {kind} {packed} 0000"


def socks4(text: str, command: str = "f0") -> str:
    return f">> 04 {command} 0000 00000001 00 '{text}' 00"


FOUND = {
    "a name": (name("host"), f"<< 05 00 00 01 {TEN} 0000", "192.0.2.1"),
    "IPv6 comes first": (name("mixed"), f"<< 05 00 00 04 {SIX} 0000", "2001:db8::1"),
    "SOCKS4a": (socks4("host"), f"<< 00 5a 0000 {TEN}", "192.0.2.1"),
    "SOCKS4a, which has IPv4 only": (socks4("mixed"), f"<< 00 5a 0000 {TEN}", "192.0.2.1"),
    "an address": (address(TEN), f"<< 05 00 00 01 {TEN} 0000", "192.0.2.1"),
    "an IPv6 address": (address(SIX), f"<< 05 00 00 04 {SIX} 0000", "2001:db8::1"),
    "SOCKS4, an address": (
        f">> 04 f0 0000 {TEN} 00",
        f"<< 00 5a 0000 {TEN}",
        "192.0.2.1",
    ),
    "an address's name": (
        address(TEN, "f1"),
        "<< 05 00 00 03 0c 'host.example' 0000",
        "host.example",
    ),
    "an address in words": (
        name("192.0.2.1", "f1"),
        "<< 05 00 00 03 0c 'host.example' 0000",
        "host.example",
    ),
}


@pytest.mark.parametrize("what", FOUND)
def test_found(what: str) -> None:
    asking, answer, detail = FOUND[what]
    done = play(
        f"{asking}\n{answer}\n<< end\n>> end\nlog reply=0 in=0 out=0 end=resolved detail={detail}"
    )
    assert len(done.log.lines) == 1
    assert not done.session.refused_by_rule


REFUSED = {
    "no such name": (name("nobody"), 4, "name-not-found", ""),
    "an address without a name": (address("c0000209", "f1"), 4, "name-not-found", ""),
    "SOCKS4a, IPv6 only": (socks4("six"), 4, "name-not-found", ""),
    "its own side": (name("mine"), 2, "refused-by-rule", ""),
    "its own address": (address("7f000001"), 2, "refused-by-rule", ""),
    "its own address's name": (address("7f000001", "f1"), 2, "refused-by-rule", ""),
    "by a rule": (name("host"), 2, "refused-by-rule", "deny resolve host"),
    "a network": (name("host"), 2, "refused-by-rule", "deny 192.0.2.0/24"),
    "a name's name, by a rule": (address(TEN, "f1"), 2, "refused-by-rule", "deny resolve"),
    "the name of a name": (name("host", "f1"), 8, "resolve-failed", ""),
    "SOCKS4's name of an address": (
        f">> 04 f1 0000 {TEN} 00",
        7,
        "command-not-supported",
        "",
    ),
}


def with_port(asking: str) -> str:
    return f"{asking.removesuffix(' 0000')} 0050"


BY_PORT = {
    "a name": with_port(name("host")),
    "an address": with_port(address(TEN)),
    "an address's name": with_port(address(TEN, "f1")),
}


@pytest.mark.parametrize("what", BY_PORT)
def test_rules_are_asked_for_no_port_but_0(what: str) -> None:
    """Whatever port the client writes there."""
    rules = "deny * 0-79,81-65535"
    refusal = "<< 05 02 00 01 00000000 0000\n<< end\n>> end\nlog reply=2 end=refused-by-rule"
    done = play(f"{BY_PORT[what]}\n{refusal}", rules)
    assert done.session.refused_by_rule


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str) -> None:
    asking, code, end, rules = REFUSED[what]
    is_socks4 = asking.startswith(">> 04")
    refusal = "00 5b 0000 00000000" if is_socks4 else f"05 {code:02x} 00 01 00000000 0000"
    done = play(f"{asking}\n<< {refusal}\n<< end\n>> end\nlog reply={code} end={end}", rules)
    assert done.session.refused_by_rule == (code == 2)


@pytest.mark.parametrize("asking", [name("host"), address(TEN, "f1")])
def test_off_unless_asked_for(asking: str) -> None:
    said = "only with --resolve-commands"
    done = play(
        f"{asking}\n<< 05 07 00 01 00000000 0000\n>> end\nlog reply=7 end=command-not-supported",
        is_on=False,
    )
    assert done.log.lines[-1].endswith(f': {said}"')


def test_the_first_that_is_permitted() -> None:
    play(
        f"{name('host')}\n<< 05 00 00 01 c0000202 0000\n<< end\n>> end\nlog detail=192.0.2.2",
        "deny 192.0.2.1",
    )


def test_a_proxy_that_is_given_addresses_needs_them() -> None:
    play(
        f"{name('host')}\n<< 05 00 00 01 {TEN} 0000\n>> end\nlog end=resolved",
        "via socks5://192.0.2.9 *",
    )


def test_no_answer_in_time() -> None:
    def impatient(made: Play) -> None:
        made.dialler.dial_timeout = 0.05

    done = play(
        f"{name('slow')}\n<< 05 04 00 01 00000000 0000\n>> end\nlog reply=4 end=name-not-found",
        prepare=impatient,
    )
    assert done.log.lines[-1].endswith('detail="slow: no answer in time"')


def test_the_client_leaves() -> None:
    play(f"{name('slow')}\nwait 0.05\nleave\nlog reply=- end=client-lost")


def test_nothing_is_garbage() -> None:
    with no_garbage():
        kept = [
            play(f"{name('host')}\n<< 05 00 00 01 {TEN} 0000\n>> end\nlog end=resolved"),
            play(f"{name('slow')}\nwait 0.05\nleave\nlog reply=- end=client-lost"),
            play(f"{name('none')}\n<< 05 04 00 01 00000000 0000\n>> end\nlog reply=4"),
        ]
    del kept
