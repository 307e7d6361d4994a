"""Which way sessions go, what their clients are told, and what the log says of it (play.py)."""

import pytest
from play import SECONDS, Play

from muonsocks.address import Endpoint, parse_address
from muonsocks.errors import NameNotResolved
from muonsocks.log import INFO
from muonsocks.net.stream import Stream
from muonsocks.socks import ways
from muonsocks.socks.proxy_address import ProxyAddress
from muonsocks.socks.rules import Rules, parse_rules

ADDRESSES = {
    "one": ["192.0.2.1"],
    "two": ["192.0.2.1", "198.51.100.1"],
    "three": ["192.0.2.1", "198.51.100.1", "192.0.2.2"],
    "six": ["2001:db8::1"],
    "local": ["127.0.0.1"],
}


async def look_up(host: str) -> list[tuple[bytes, int]]:
    if host not in ADDRESSES:
        raise NameNotResolved(f"{host}: no such name")
    return [(parse_address(address) or b"", 0) for address in ADDRESSES[host]]


def chain(*urls: str) -> tuple[ProxyAddress, ...]:
    return tuple(map(ProxyAddress.parse, urls))


def play(rules: str = "", *via: str, level: int = INFO) -> Play:
    made = Play(rules=Rules(parse_rules(rules, "rules"), via=chain(*via)), level=level)
    made.dialler.lookup = look_up
    return made


def asks(host: str) -> str:
    """Lines of a client that asks for a port 80."""
    packed = Endpoint(host, 80).packed
    place = f"03 {len(host):02x} '{host}'" if packed is None else ""
    if packed is not None:
        place = f"{'01' if len(packed) == 4 else '04'} {packed.hex()}"
    return f">> 05 01 00 05 01 00 {place} 0050\n<< 05 00\n"


def far_hears(host: str) -> str:
    """Lines of a SOCKS5 upstream up to its reply."""
    return (
        asks(host)
        .replace(">> 05 01 00 ", "far >> 05 01 00\nfar << 05 00\nfar >> ")
        .replace("\n<< 05 00\n", "\n")
    )


GRANTED_BYTES = "05 00 00 01 c0000209 1000"
GRANTED = f"""
    far << {GRANTED_BYTES} 'early'
    << {GRANTED_BYTES}
    << 'early'
    >> 'question'
    far >> 'question'
    >> end
    far >> end
    far << 'answer'
    far << end
    << 'answer'
    << end
"""
CLOSED = "log reply=0 in=8 out=11 end=closed\n"

BY = {
    # who looks a name up, by the last proxy; what is asked of it for which destination
    ("socks5h://proxy", "host"): "host",
    ("socks5h://proxy", "192.0.2.7"): "192.0.2.7",
    ("socks5h://proxy", "2001:db8::7"): "2001:db8::7",
    ("socks5://proxy", "192.0.2.7"): "192.0.2.7",
    ("socks5://proxy", "2001:db8::7"): "2001:db8::7",
    ("socks5://proxy", "one"): "192.0.2.1",
    ("socks5://proxy", "six"): "2001:db8::1",
}


@pytest.mark.parametrize(("url", "host"), BY)
def test_via(url: str, host: str) -> None:
    asked = BY[url, host]
    one = play("", url)
    one.perform(asks(host) + "dial proxy:1080\n" + far_hears(asked) + GRANTED + CLOSED)
    assert (
        one.log.lines[0] == f"connected client=192.0.2.9:999 user=- target={Endpoint(host, 80)} "
        f'address={Endpoint(asked, 80)} via="{url}:1080"'
    )
    fields = one.log.fields[0]
    assert fields is not None and fields["via"] == f"{url}:1080"


def test_a_chain_is_named_and_nobodys_password() -> None:
    one = play("", "socks5h://me:secret@proxy", "socks5h://you:secret@other:1")
    one.perform(
        asks("host")
        + """
        dial proxy:1080
        far >> 05 02 00 02
        far << 05 02
        far >> 01 02 'me' 06 'secret'
        far << 01 00
        far >> 05 01 00 03 05 'other' 0001
        far << 05 00 00 01 c0000209 1000
        far >> 05 02 00 02
        far << 05 02
        far >> 01 03 'you' 06 'secret'
        far << 01 00
        far >> 05 01 00 03 04 'host' 0050
        """
        + GRANTED
        + CLOSED
    )
    assert 'via="socks5h://proxy:1080,socks5h://other:1"' in one.log.lines[0]
    assert "secret" not in "".join(one.log.lines)


RULES = """\
deny .denied
deny 203.0.113.0/24
via direct .direct
via socks5h://first .first
via socks5://second .second
via socks5h://other 198.51.100.0/24
"""


@pytest.mark.parametrize("usual", [(), ("socks5h://usual",)])
def test_rules_say_which_way(usual: tuple[str, ...]) -> None:
    def goes(host: str, what: str) -> None:
        play(RULES, *usual).perform(asks(host) + what)

    goes("a.denied", "<< 05 02 00 01 00000000 0000\n<< end\n>> end\nlog end=refused-by-rule")
    goes("203.0.113.1", "<< 05 02 00 01 00000000 0000\n<< end\n>> end\nlog end=refused-by-rule")
    goes("a.first", f"dial first:1080\n{far_hears('a.first')}{GRANTED}{CLOSED}")
    goes("198.51.100.7", f"dial other:1080\n{far_hears('198.51.100.7')}{GRANTED}{CLOSED}")
    if usual:
        goes("host", f"dial usual:1080\n{far_hears('host')}{GRANTED}{CLOSED}")
        goes("192.0.2.7", f"dial usual:1080\n{far_hears('192.0.2.7')}{GRANTED}{CLOSED}")
    else:
        direct = "<< 05 00 00 01 00000000 0000\n>> end\nfar << end\nlog reply=0 end=closed"
        goes("192.0.2.7", f"dial 192.0.2.7:80\n{direct}")
        goes("one", f"dial 192.0.2.1:80\n{direct}")


def test_the_direct_way_leaves_no_trace() -> None:
    one = play("via socks5h://proxy .onion")
    one.perform(
        asks("192.0.2.7")
        + "dial 192.0.2.7:80\n<< 05 00 00 01 00000000 0000\n>> end\nfar << end\nlog end=closed"
    )
    assert one.log.lines[0].endswith(" address=-"), "the playbook's far end has no name"


def test_this_host_s_own_side_is_refused_by_either_way() -> None:
    for host in ("127.0.0.1", "local"):
        play("via socks5://proxy *").perform(
            asks(host) + "<< 05 02 00 01 00000000 0000\n<< end\n>> end\nlog end=refused-by-rule"
        )


# A name that is looked up here


REFUSED = "far << 05 05 00 01 00000000 0000\nfar >> end\n"


def test_every_address_is_tried_on_a_connection_of_its_own() -> None:
    play("", "socks5://proxy").perform(
        asks("two")
        + f"dial proxy:1080\n{far_hears('192.0.2.1')}{REFUSED}"
        + f"dial proxy:1080\n{far_hears('198.51.100.1')}{GRANTED}{CLOSED}"
    )


def test_the_first_address_that_is_permitted_decides_the_way() -> None:
    rules = "via socks5://proxy 192.0.2.0/24\nallow *"
    play(rules).perform(
        asks("three")
        + f"dial proxy:1080\n{far_hears('192.0.2.1')}{REFUSED}"
        + f"dial proxy:1080\n{far_hears('192.0.2.2')}{REFUSED}"
        + "<< 05 05 00 01 00000000 0000\n<< end\n>> end\n"
        + "log reply=5 end=dial-failed "
        + "'detail=connection refused, says socks5://proxy:1080'"
    )
    play("deny 192.0.2.1\n" + rules).perform(
        asks("two")
        + "dial 198.51.100.1:80\n<< 05 00 00 01 00000000 0000\n>> end\nfar << end\n"
        + "log end=closed"
    )
    play("via direct 192.0.2.1\nvia socks5://proxy *").perform(
        asks("three")
        + "dial 192.0.2.1:80\n<< 05 00 00 01 00000000 0000\n>> end\nfar << end\n"
        + "log end=closed"
    )


def test_a_name_that_is_not_known_here() -> None:
    play("", "socks5://proxy").perform(
        asks("unknown")
        + "<< 05 04 00 01 00000000 0000\n<< end\n>> end\nlog reply=4 end=name-not-found"
    )


@pytest.mark.parametrize("rules", ["", "via socks5://other 10.0.0.0/8"])
def test_a_look_up_that_takes_too_long(rules: str) -> None:
    one = play(rules, "socks5://proxy")

    async def look_up_for_ever(host: str) -> list[tuple[bytes, int]]:
        await one.loop.sleep(60)
        return []

    one.dialler.lookup = look_up_for_ever
    one.dialler.dial_timeout = 0.1
    one.perform(
        asks("host")
        + "<< 05 04 00 01 00000000 0000\n<< end\n>> end\n"
        + "log reply=4 end=name-not-found 'detail=host: no answer in time'"
    )


def test_all_of_it_has_one_limit() -> None:
    """The look-up takes a part of it, and the proxy does not answer in the rest."""
    one = play("", "socks5://proxy")
    one.dialler.dial_timeout = 0.2
    one.perform(
        asks("one")
        + "dial proxy:1080\nfar >> 05 01 00\nfar >> end\n"
        + "<< 05 01 00 01 00000000 0000\n<< end\n>> end\n"
        + "log reply=1 end=via-failed "
        + "'detail=socks5://proxy:1080: the time limit has passed'"
    )


# What clients are told


FAILED = "<< 05 01 00 01 00000000 0000\n<< end\n>> end\nlog reply=1 end=via-failed "


@pytest.mark.parametrize("number", ["ECONNREFUSED", "EHOSTUNREACH", "ETIMEDOUT", "no-such-name"])
def test_a_proxy_that_cannot_be_reached_is_a_general_failure(number: str) -> None:
    """And not "connection refused", say, which would be about the destination."""
    play("", "socks5h://proxy").perform(asks("host") + f"dial proxy:1080 {number}\n" + FAILED)


def test_the_addresses_of_a_proxy_that_were_tried_are_logged_with_v() -> None:
    one = Play(rules=Rules(via=chain("socks5h://proxy")))
    one.perform(asks("host") + "dial proxy:1080 ECONNREFUSED\n" + FAILED)
    assert 'tried=192.0.2.1 error="Connection refused"' in one.log.lines[0]


def test_a_proxy_that_breaks_the_protocol() -> None:
    play("", "socks5h://u:secret@proxy").perform(
        asks("host")
        + "dial proxy:1080\nfar >> 05 02 00 02\nfar << 48 54\nfar >> end\n"
        + FAILED
        + '"detail=socks5h://proxy:1080: the server\'s choice of method has version 72, not 5"'
    )


def test_a_proxy_that_goes() -> None:
    play("", "socks5h://proxy").perform(
        asks("host")
        + "dial proxy:1080\nfar >> 05 01 00\nfar << end\n"
        + FAILED
        + "'detail=socks5h://proxy:1080: it has closed the connection without an answer'"
    )


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 6, 7, 8])
def test_the_answer_to_the_client_s_own_request_is_passed_on(code: int) -> None:
    play("", "socks5h://proxy").perform(
        asks("host")
        + f"dial proxy:1080\n{far_hears('host')}far << 05 {code:02x} 00 01 00000000 0000\n"
        + f"far >> end\n<< 05 {code:02x} 00 01 00000000 0000\n<< end\n>> end\n"
        + f"log reply={code} end=dial-failed"
    )


def test_socks4_has_no_ipv6() -> None:
    play("", "socks4://proxy").perform(
        asks("2001:db8::7")
        + "<< 05 08 00 01 00000000 0000\n<< end\n>> end\n"
        + "log reply=8 end=dial-failed "
        + "'detail=socks4 has no way to say [2001:db8::7]:80'"
    )


def test_a_client_that_goes_meanwhile() -> None:
    one = play("", "socks5h://proxy")

    book = asks("host") + "dial proxy:1080\nfar >> 05 01 00\n"
    one.loop.run(story(one, book))
    assert one.session.client.reader == -1
    assert "end=client-lost" in one.log.lines[-1]


async def story(one: Play, book: str) -> None:
    one.loop.spawn(one.session.run(), one.over.post, lambda _: one.over.post(None))
    for line in filter(None, (line.strip() for line in book.splitlines())):
        await one._perform_line(line)
    one.client.close()
    with one.loop.deadline(SECONDS):
        assert await one.over.take() is None
        assert one.far is not None
        assert await one.far.receive(1) == b"", "the proxy is not told"


# Where rules have no say

THROUGH = {
    ("socks5h://proxy", "one"): "one",
    ("socks5://proxy", "one"): "192.0.2.1",
    ("socks5://proxy", "127.0.0.1"): "127.0.0.1",
}


@pytest.mark.parametrize(("url", "host"), THROUGH)
def test_through(url: str, host: str) -> None:
    """The way of socks-relay with HOST PORT."""
    asked = THROUGH[url, host]
    one = play("deny *")

    async def story() -> Stream:
        going = ways.through(one.session, chain(url), Endpoint(host, 80))
        one.loop.spawn(going, one.over.post, one.over.post)
        for line in f"dial proxy:1080\n{far_hears(asked)}far << {GRANTED_BYTES}".splitlines():
            await one._perform_line(line)
        with one.loop.deadline(SECONDS):
            reached: Stream = await one.over.take()
        return reached

    far = one.loop.run(story())
    assert far.name == str(Endpoint(asked, 80))
    assert one.session.via == ("via", f"{url}:1080")
    assert one.session.bound == Endpoint("192.0.2.9", 4096)
    one.loop.close()
