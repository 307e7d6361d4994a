"""BIND: who may come and who is turned away, what the client is told, and how it ends."""

import errno
import os
import socket
from collections.abc import Callable, Iterator

import pytest
from ends import no_garbage, nothing_left_behind
from play import SECONDS, Play, close_all

from muonsocks.address import parse_address
from muonsocks.errors import NameNotResolved
from muonsocks.log import INFO
from muonsocks.socks.policy import Commands, Limits
from muonsocks.socks.rules import Rules, parse_rules

HERE, ELSEWHERE = "127.0.0.1", "127.0.0.2"
GREETING = ">> 05 01 00\n<< 05 00\n"
ASKING = {
    "5": GREETING + ">> 05 02 00 01 7f000001 0015",
    "4": ">> 04 02 0015 7f000001 'me' 00",
    "4a": ">> 04 02 0015 00000001 'me' 00 'host' 00",
    "5, IPv6": GREETING + f">> 05 02 00 04 {bytes(15).hex()}01 0015",
    "5, a name": GREETING + ">> 05 02 00 03 04 'host' 0015",
}
ADDRESSES = {"5, IPv6": "::1"}
ANYBODY = {
    "5": GREETING + ">> 05 02 00 01 00000000 0000",
    "5, IPv6": GREETING + f">> 05 02 00 04 {bytes(16).hex()} 0000",
    "4": ">> 04 02 0000 00000000 00",
    "5, a name": GREETING + ">> 05 02 00 03 06 'nobody' 0000",
}
EXCHANGE = """
    >> 'question'
    far >> 'question'
    far << 'answer'
    << 'answer'
    >> end
    far >> end
    far << end
    << end
"""
REFUSAL = "<< 05 {:02x} 00 01 00000000 0000\n<< end\n>> end\n"


@pytest.fixture(autouse=True)
def leaks_nothing() -> Iterator[None]:
    with nothing_left_behind():
        yield


NAMES = {
    "host": [HERE],
    "hosts": ["192.0.2.1", HERE, ELSEWHERE],
    "six": ["::1"],
    "mixed": ["::1", HERE],
    "far": ["192.0.2.1"],
}


async def lookup(host: str) -> list[tuple[bytes, int]]:
    if host not in NAMES:
        raise NameNotResolved(f"{host}: unknown")
    return [(parse_address(one) or b"", 0) for one in NAMES[host]]


def play(
    book: str,
    limits: Limits | None = None,
    rules: str = "",
    allow_local: bool = True,
    bind_any: bool = False,
    level: int = 7,
    prepare: Callable[[Play], None] = lambda _: None,
) -> Play:
    """Perform a BIND, on loopback; names are those of NAMES."""
    made = Play(
        limits=limits or Limits(SECONDS, bind=SECONDS),
        rules=Rules(parse_rules(rules, "rules"), allow_local),
        commands=Commands(bind_any=bind_any),
        level=level,
    )
    made.dialler.lookup = lookup
    prepare(made)
    made.perform(book)
    close_all()
    return made


# A connection


@pytest.mark.parametrize("how", ASKING)
def test_a_connection(how: str) -> None:
    version, host = how.partition(",")[0], ADDRESSES.get(how, HERE)
    done = play(
        f"""
        {ASKING[how]}
        listens {version} {host}
        peer {host}
        meets {version}
        {EXCHANGE}
        log reply=0 in=8 out=6 end=closed
        """
    )
    bound, connected, closed = done.log.lines
    who = closed.partition(" reply=")[0].removeprefix("closed ")
    shown = f"[{host}]" if ":" in host else host
    assert bound == f"bound {who} listen={shown}:{done.listening[1]}"
    assert connected.startswith(f"connected {who} address={shown}:")


def test_what_the_client_sends_before_the_peer_is_there() -> None:
    """It goes first to the peer: what came with the request, and what came since."""
    play(
        f"""
        {ASKING["5"]} 'early '
        listens 5 {HERE}
        >> 'later'
        >> end
        wait 0.01
        peer {HERE}
        meets 5
        far >> 'early later'
        far >> end
        far << end
        log in=11 out=0 end=closed
        """
    )


def test_quiet() -> None:
    book = f"{ASKING['5']}\nlistens 5 {HERE}\npeer {HERE}\nmeets 5\n{EXCHANGE}"
    assert play(book, level=3).log.lines == []


def test_nothing_is_garbage() -> None:
    """Not after a relay, a time-out and a client that has left."""
    start = f"{ASKING['5']}\nlistens 5 {HERE}\nstranger {ELSEWHERE}\n"
    with no_garbage():
        kept = [
            play(f"{start}peer {HERE}\nmeets 5\n{EXCHANGE}log end=closed"),
            play(f"{start}<< 05 06 00 01 00000000 0000\n>> end\nlog reply=6", Limits(bind=0.01)),
            play(f"{ASKING['5, a name'].replace('host', 'none')}\n{REFUSAL.format(2)}log reply=2"),
        ]
    del kept


# Who may come


def test_others_are_turned_away() -> None:
    done = play(
        f"""
        {ASKING["5"]}
        listens 5 {HERE}
        stranger {ELSEWHERE}
        stranger {ELSEWHERE}
        peer {HERE}
        meets 5
        {EXCHANGE}
        log end=closed
        """
    )
    dropped = [line for line in done.log.lines if line.startswith("dropped")]
    assert len(dropped) == 2
    assert f" address={ELSEWHERE}:" in dropped[0]
    assert dropped[0].endswith(' detail="it is not who is expected"')


def test_others_are_not_logged_as_a_rule() -> None:
    book = f"{ASKING['5']}\nlistens 5 {HERE}\nstranger {ELSEWHERE}\npeer {HERE}\nmeets 5\n"
    done = play(f"{book}{EXCHANGE}log end=closed", level=INFO)
    assert [line.split()[0] for line in done.log.lines] == ["bound", "connected", "closed"]


def by_name(name: str) -> str:
    return GREETING + f">> 05 02 00 03 {len(name):02x} '{name}' 0015"


def test_all_addresses_of_a_name_may() -> None:
    """Those that rules permit; where to listen is by the first that there is a way to."""
    start = f"{by_name('hosts')}\nlistens 5 {HERE}\n"
    rules = "deny bind 192.0.2.0/24"
    play(f"{start}peer {ELSEWHERE}\nmeets 5\n{EXCHANGE}log end=closed", rules=rules)
    play(
        f"{start}stranger {ELSEWHERE}\npeer {HERE}\nmeets 5\n{EXCHANGE}log end=closed",
        rules=f"{rules}\ndeny bind {ELSEWHERE}",
    )


def test_socks4_looks_for_ipv4() -> None:
    asking = ">> 04 02 0015 00000001 00 '{}' 00\n"
    book = f"listens 4a {HERE}\npeer {HERE}\nmeets 4a\n{EXCHANGE}log end=closed"
    play(asking.format("mixed") + book)
    play(f"{asking.format('six')}<< 00 5b 0000 00000000\n>> end\nlog reply=2 end=refused-by-rule")


@pytest.mark.parametrize("how", ANYBODY)
def test_anybody(how: str) -> None:
    """Where nobody is named, and it is allowed; but rules hold for who comes."""

    def bind_there(made: Play) -> None:
        made.dialler.bind_address = bytes((127, 0, 0, 1))

    version = how.partition(",")[0]
    done = play(
        f"""
        {ANYBODY[how]}
        listens {version} {HERE}
        stranger {ELSEWHERE}
        peer {HERE}
        meets {version}
        {EXCHANGE}
        log end=closed
        """,
        rules=f"deny bind {ELSEWHERE}\ndeny connect *",
        bind_any=True,
        prepare=bind_there,
    )
    assert ' detail="denied by rules:1"' in done.log.lines[1]


def test_anybody_but_this_host_s_own_side() -> None:
    def bind_there(made: Play) -> None:
        made.dialler.bind_address = bytes((127, 0, 0, 1))

    play(
        f"""
        {ANYBODY["5"]}
        listens 5 {HERE}
        stranger {HERE}
        << 05 06 00 01 00000000 0000
        >> end
        log reply=6 end=bind-timeout "detail=1 others have connected"
        """,
        Limits(SECONDS, bind=0.5),
        allow_local=False,
        bind_any=True,
        prepare=bind_there,
    )


def test_a_name_that_leads_nowhere_lets_nobody_in() -> None:
    """Though it may be allowed: that is not about whoever comes."""

    def bind_there(made: Play) -> None:
        made.dialler.bind_address = bytes((127, 0, 0, 1))

    done = play(
        f"""
        {ANYBODY["5, a name"]}
        listens 5 {HERE}
        stranger {HERE}
        << 05 06 00 01 00000000 0000
        >> end
        log reply=6 end=bind-timeout
        """,
        Limits(SECONDS, bind=0.5),
        rules="allow nobody\ndeny *",
        bind_any=True,
        prepare=bind_there,
    )
    assert ' detail="denied by rules:2"' in done.log.lines[1]


# What is refused

REFUSED = {
    "its own side": ("5", ASKING["5"], {"allow_local": False}, 2, "refused-by-rule"),
    "by a rule": ("5", ASKING["5"], {"rules": "deny bind"}, 2, "refused-by-rule"),
    "a port": ("5", ASKING["5"], {"rules": "deny bind * 20-21"}, 2, "refused-by-rule"),
    "a name": ("5", by_name("host"), {"rules": "deny bind host"}, 2, "refused-by-rule"),
    "a name's address": ("5", by_name("host"), {"rules": f"deny {HERE}"}, 2, "refused-by-rule"),
    "anybody": ("5", ANYBODY["5"], {}, 2, "refused-by-rule"),
    "anybody, SOCKS4": ("4", ANYBODY["4"], {}, 2, "refused-by-rule"),
    "no such name": ("5", by_name("nobody"), {}, 2, "refused-by-rule"),
    "anybody, by a rule": (
        "5",
        ANYBODY["5"],
        {"bind_any": True, "rules": "deny bind *"},
        2,
        "refused-by-rule",
    ),
    "a client over no network": ("5", ANYBODY["5"], {"bind_any": True}, 1, "bind-failed"),
}
DETAILS = {
    "anybody": "it names no host, see --bind-any",
    "no such name": "nobody: unknown, see --bind-any",
    "a client over no network": "no address to listen at is known: the client came over no "
    "network, see -b",
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str) -> None:
    version, asking, options, code, end = REFUSED[what]
    refusal = REFUSAL.format(code) if version == "5" else "<< 00 5b 0000 00000000\n>> end\n"
    detail = f'"detail={DETAILS[what]}"' if what in DETAILS else ""
    done = play(f"{asking}\n{refusal}log reply={code} end={end} {detail}", **options)  # type: ignore[arg-type]
    assert done.session.refused_by_rule == (code == 2)
    assert len(done.log.lines) == 1


def test_a_family_that_is_left_out() -> None:
    def ipv6_only(made: Play) -> None:
        made.dialler.family = 6

    refusal = f"{REFUSAL.format(8)}log reply=8 end=bind-failed"
    play(f"{ASKING['5']}\n{refusal}", prepare=ipv6_only)


def test_no_port_is_free() -> None:
    """It is a shortage of this host's, as for what dials."""

    def out_of_ports(made: Play) -> None:
        def open_socket(*_: object) -> socket.socket:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))

        made.dialler.open_socket = open_socket  # type: ignore[assignment, method-assign]

    play(f"{ASKING['5']}\n{REFUSAL.format(1)}log reply=1 end=bind-failed", prepare=out_of_ports)


# What becomes of it while nobody comes


@pytest.mark.parametrize("version", ["5", "4"])
def test_nobody_comes(version: str) -> None:
    refusal = "05 06 00 01 00000000 0000" if version == "5" else "00 5b 0000 00000000"
    done = play(
        f"""
        {ASKING[version]}
        listens {version} {HERE}
        << {refusal}
        << end
        >> end
        log reply=6 in=0 out=0 end=bind-timeout 'detail=nobody has connected'
        """,
        Limits(SECONDS, bind=0.1),
    )
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(done.listening)


def test_the_client_leaves() -> None:
    done = play(f"{ASKING['5']}\nlistens 5 {HERE}\nleave\nlog reply=0 end=client-lost")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(done.listening)
