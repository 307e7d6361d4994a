"""What Hypothesis draws: endpoints, and whole conversations, well made or damaged."""

from collections.abc import Callable
from typing import NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from playbook import Script

from muonsocks.address import Endpoint
from muonsocks.socks import http_connect, socks4, socks5
from muonsocks.socks.machine import Machine
from muonsocks.socks.request import (
    Command,
    Credentials,
    CredentialsVerdict,
    Method,
    MethodChoice,
    MethodOffer,
    Reply,
    ReplyCode,
    Request,
)

# Decorators: `few` is for tests that are slow, `many` where a machine may be led astray.
few, some, many = (
    settings(deadline=None, max_examples=count, suppress_health_check=[HealthCheck.too_slow])
    for count in (25, 80, 200)
)

octets = st.integers(0, 255)
ports = st.integers(0, 65535)
ipv4_packed = st.binary(min_size=4, max_size=4)
ipv6_packed = st.binary(min_size=16, max_size=16)
graphic = st.characters(min_codepoint=0x21, max_codepoint=0x7E, blacklist_characters="\\")
words = st.text(graphic, min_size=1, max_size=255).filter(lambda word: word[0] != "-")
names = words | st.integers(1, 255).map(lambda n: "n" * n)
ipv4_endpoints = st.builds(Endpoint.at, ipv4_packed, ports)
ipv6_endpoints = st.builds(Endpoint.at, ipv6_packed, ports)
endpoints = ipv4_endpoints | ipv6_endpoints | st.builds(Endpoint, names, ports)

texts = st.binary(max_size=255) | octets.map(lambda n: b"t" * n)  # a user, a password
user_ids = texts.map(lambda text: text.replace(b"\0", b"n"))  # SOCKS4 ends them with NUL
commands = st.sampled_from((Command.CONNECT, Command.BIND, Command.ASSOCIATE)) | octets
# IDENTITY_REFUSED is for SOCKS4 only: a SOCKS5 server says NOT_ALLOWED instead.
codes = st.just(ReplyCode.SUCCEEDED) | octets.filter(lambda code: code != 0x5D)
replies = st.builds(Reply, codes, endpoints)
trailings = st.binary(max_size=30)


class Talk(NamedTuple):
    """A machine, what its peer sends, and what our side says."""

    make: Callable[[], Machine]
    data: bytes
    script: Script


def joined(*parts: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.tuples(*parts).map(b"".join)


def counted(text: bytes) -> bytes:
    return bytes((len(text),)) + text


def byte(*likely: int) -> st.SearchStrategy[bytes]:
    """One of the likely bytes, mostly."""
    unlikely = (0, 1, 2, 3, 4, 5, 0x5A, 0xFF)
    return st.sampled_from([bytes((one,)) for one in likely * 15 + unlikely])


raw_names = st.one_of([names.map(str.encode)] * 3 + [st.binary(max_size=255)])
raw_ports = st.binary(min_size=2, max_size=2)

socks4_requests = joined(
    st.just(b"\4"),
    byte(1, 2),
    raw_ports,
    ipv4_packed | st.just(b"\0\0\0\1"),
    user_ids,
    st.just(b"\0"),
    raw_names,
    st.just(b"\0"),
)
socks4_replies = joined(
    st.just(b"\0"), byte(0x5A, 0x5A, 0x5A, 0x5B, 0x5C, 0x5D), raw_ports, ipv4_packed
)
socks5_messages = joined(  # a request and a reply look alike
    st.just(b"\5"),
    byte(0, 0, 0, 1, 2),
    byte(0),
    joined(st.just(b"\1"), ipv4_packed)
    | joined(st.just(b"\4"), ipv6_packed)
    | joined(st.just(b"\3"), raw_names.map(counted))
    | st.binary(min_size=1, max_size=20),
    raw_ports,
)
http_lines = st.sampled_from((b"\r\n", b"\n", b"Via: \r", b"a: b\r\n")) | st.binary(max_size=40)
http_answers = joined(
    st.sampled_from((b"HTTP/1.1 ", b"HTTP/1.0 ")),
    st.sampled_from((b"200", b"200", b"204", b"100", b"101", b"403", b"407", b"503", b"999")),
    st.sampled_from((b"\r\n", b" OK\r\n", b"\n")),
    st.lists(http_lines, max_size=5).map(b"".join),
    st.sampled_from((b"\r\n", b"\n", b"\r\n\r\n")),
)
offered_methods = st.binary(min_size=1, max_size=255)
offers = joined(st.just(b"\5"), st.binary(max_size=255).map(counted))
credentials = joined(st.just(b"\1"), texts.map(counted), texts.map(counted))


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Bytes with some trailing ones; or cut off, or with one changed; or others altogether."""
    data = draw(whole)
    kind = draw(st.sampled_from((*["whole"] * 6, "cut", "changed", "other")))
    if kind == "cut":
        return data[: draw(st.integers(0, len(data)))]
    if kind == "changed" and data:
        place = draw(st.integers(0, len(data) - 1))
        data = data[:place] + bytes((draw(octets),)) + data[place + 1 :]
    elif kind == "other":
        data = data[: draw(st.integers(0, 10))] + draw(st.binary(max_size=600))
    return data + draw(trailings)


@st.composite
def server_talks(draw: st.DrawFn) -> Talk:
    """A server that gives any answer its protocol has, and a client."""
    script = {
        "choose": MethodChoice(draw(st.sampled_from((0, 2)) | octets)),
        "judge": CredentialsVerdict(draw(st.sampled_from((True, True, False)))),
        "answer": draw(replies),
    }
    if draw(st.booleans()):
        return Talk(socks4.Server, draw(damaged(socks4_requests)), script)
    with_password = script["choose"] == MethodChoice(Method.PASSWORD)
    parts = (offers, credentials, socks5_messages) if with_password else (offers, socks5_messages)
    return Talk(socks5.Server, draw(damaged(joined(*parts))), script)


@st.composite
def client_talks(draw: st.DrawFn) -> Talk:
    """A client that asks anything its protocol can say, and a server."""
    kind = draw(st.sampled_from((4, 5, 1)))
    if kind == 1:
        request = Request(Command.CONNECT, draw(ipv4_endpoints | ipv6_endpoints))
        data = draw(damaged(joined(http_answers, http_answers)))
        return Talk(http_connect.Client, data, {"request": request})
    if kind == 4:
        by_name = st.builds(Endpoint, st.just("name.test"), ports)
        by_address = ipv4_endpoints.filter(lambda end: not end.host.startswith("0.0.0."))
        request = Request(draw(commands), draw(by_address | by_name), draw(user_ids))
        data = draw(damaged(joined(socks4_replies, socks4_replies)))
        return Talk(socks4.Client, data, {"request": request})
    offered = draw(st.sampled_from((b"\0", b"\2", b"\2\0")) | offered_methods)
    script = {
        "offer": MethodOffer(offered),
        "credentials": Credentials(draw(texts), draw(texts)),
        "request": Request(draw(commands), draw(endpoints)),
    }
    parts = [joined(st.just(b"\5"), byte(*offered[:2]))]
    if offered[:1] == b"\2":
        parts.append(joined(st.just(b"\1"), byte(0, 0, 0, 1)))
    return Talk(
        socks5.Client, draw(damaged(joined(*parts, socks5_messages, socks5_messages))), script
    )


talks = server_talks() | client_talks()


@st.composite
def pieces(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """The data cut at up to six places, some pieces perhaps empty."""
    places = sorted(draw(st.lists(st.integers(0, len(data)), max_size=6)))
    bounds = zip([0, *places], [*places, len(data)], strict=True)
    return [data[start:end] for start, end in bounds]
