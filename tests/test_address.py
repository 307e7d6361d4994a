"""Addresses, networks and own side, held against `ipaddress`, which the library does without."""

import socket
import string
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from muonsocks.address import (
    Endpoint,
    Network,
    expect_unix_path,
    format_address,
    is_name,
    is_own_side,
    mapped,
    parse_address,
    parse_networks,
    unmapped,
)
from muonsocks.errors import UsageError

some = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
ipv4_addresses = st.integers(0, 2**32 - 1).map(IPv4Address)
ipv6_addresses = (
    st.integers(0, 2**128 - 1)
    | st.lists(st.sampled_from((0, 1, 0xFFFF)), min_size=8, max_size=8).map(
        lambda words: sum(word << 16 * place for place, word in enumerate(words))
    )
).map(IPv6Address)
addresses = ipv4_addresses | ipv6_addresses
Address = IPv4Address | IPv6Address


def meant(address: Address) -> Address:
    """An IPv4-mapped address means the IPv4 one."""
    return getattr(address, "ipv4_mapped", None) or address


# Text


def test_mapped() -> None:
    assert mapped(b"\1\2\3\4") == bytes(10) + b"\xff\xff\1\2\3\4"
    assert unmapped(mapped(b"\1\2\3\4")) == b"\1\2\3\4"
    assert mapped(bytes(16)) == bytes(16)


@some
@given(addresses)
def test_text_and_back(address: Address) -> None:
    for text in (str(address), address.exploded, str(address).upper()):
        assert parse_address(text) == meant(address).packed
    text = format_address(address.packed)
    assert ip_address(text) == address
    assert parse_address(text) == unmapped(address.packed) == meant(address).packed
    if not text.startswith("::") or "." not in text:  # glibc shows an IPv4 address at the end
        assert text == str(address)


@some
@given(st.text("0123456789abcDEF:./x% ", max_size=20) | addresses.map(str), st.data())
def test_what_is_no_address(text: str, data: st.DataObject) -> None:
    """Nearly an address is none."""
    place = data.draw(st.integers(0, len(text)))
    text = text[:place] + data.draw(st.text(string.printable, max_size=1)) + text[place:]
    assume("%" not in text)  # `ipaddress` takes a scope, which we do not
    try:
        expected: bytes | None = meant(ip_address(text)).packed
    except ValueError:
        expected = None
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "1", "1.2.3", "1.2.3.4.5", "127.1", "0x7f.1", "01.2.3.4", "1.2.3.256", "a"),
        *("1.2.3.4 ", "1.2.3.4.", "1.2.3.4/8", "1.2.3.4:80", "1.2.3.4\0", "[::1]", "::1%lo"),
        *(":", ":::", "1::2::3", "::g", "12345::", "::1.2.3", "::1\0", "1:2:3:4:5:6:7"),
        *("1:2:3:4:5:6:7:8:9", "\u0661.2.3.4", "\uff11.2.3.4", "\udc80", "::\udc80"),
    ],
)
def test_no_address(text: str) -> None:
    assert parse_address(text) is None


@pytest.mark.parametrize(
    ("raw", "verdict"),
    [
        (b"a", True),
        (b"a" * 255, True),
        (b"!\"#$%&'()*+,-./0:;<=>?@A[]^_`a{|}~", True),
        (b"", False),
        (b"a" * 256, False),
        *((b"a" + bytes((byte,)), 0x21 <= byte <= 0x7E) for byte in (0, 9, 10, 0x1F, 0x20, 0x21)),
        *((bytes((byte,)) + b"a", byte == 0x7E) for byte in (0x7E, 0x7F, 0x80, 0xFF)),
    ],
)
def test_is_name(raw: bytes, verdict: bool) -> None:
    assert is_name(raw) is verdict


@pytest.mark.parametrize("raw", [b"\\", rb"a\b", rb"a\098"])
def test_is_no_name_with_an_escape(raw: bytes) -> None:
    assert not is_name(raw)


# Endpoints


@pytest.mark.parametrize(
    ("host", "port", "text", "packed"),
    [
        ("192.0.2.1", 80, "192.0.2.1:80", "c0000201"),
        ("2001:DB8:0::1", 0, "[2001:db8::1]:0", "20010db8000000000000000000000001"),
        ("::ffff:192.0.2.1", 65535, "192.0.2.1:65535", "c0000201"),
        ("::FFFF:c000:0201", 1, "192.0.2.1:1", "c0000201"),
        ("Example.test.", 443, "Example.test.:443", None),
        ("127.1", 80, "127.1:80", None),
        ("fe80::1%lo", 80, "[fe80::1%lo]:80", None),
        ("1:2:3:4:5:6:7:8", 80, "[1:2:3:4:5:6:7:8]:80", "00010002000300040005000600070008"),
    ],
)
def test_endpoint(host: str, port: int, text: str, packed: str | None) -> None:
    end = Endpoint(host, port)
    assert str(end) == text
    assert end.port == port
    assert end.packed == (None if packed is None else bytes.fromhex(packed))
    assert repr(end) == f"Endpoint({end.host!r}, {port})"
    if end.packed is not None:
        assert end == Endpoint.at(end.packed, port)


@some
@given(addresses, st.integers(0, 65535))
def test_endpoint_of_any_address(address: Address, port: int) -> None:
    end, at = Endpoint(str(address), port), Endpoint.at(address.packed, port)
    assert end == at
    assert hash(end) == hash(at)
    assert (end.host, end.packed, end.port) == (at.host, at.packed, at.port)
    assert at.packed == meant(address).packed
    assert ip_address(at.host) == meant(address)


def test_endpoints_compare() -> None:
    ends = [Endpoint("a", 1), Endpoint("a", 2), Endpoint("b", 1), Endpoint("::1", 1)]
    for end in ends:
        assert [other for other in ends if other == end] == [end]
    assert Endpoint("a", 1) != "a:1"
    assert Endpoint("a", 1) != ("a", 1)


# Networks


@st.composite
def networks(draw: st.DrawFn) -> tuple[Address, int]:
    """The first address of a network, and how many bits it has."""
    address = draw(addresses)
    assume(meant(address) is address)
    bits = draw(st.integers(0, address.max_prefixlen))
    return ip_network((address, bits), strict=False).network_address, bits


@some
@given(networks(), addresses, st.data())
def test_network(parts: tuple[Address, int], stranger: Address, data: st.DataObject) -> None:
    first, bits = parts
    assume(meant(first) is first)
    expected = ip_network(parts)
    network = Network.parse(f"{first}/{bits}")
    assert network.text == f"{format_address(first.packed)}/{bits}"
    assert repr(network) == f"Network({network.text!r})"
    beside = [int(first) - 1, int(first), int(expected.broadcast_address)]
    beside += [int(expected.broadcast_address) + 1, data.draw(st.integers(0, 2**128 - 1))]
    for number in beside:
        address = type(first)(number % 2**first.max_prefixlen)
        if meant(address) is address:
            assert (address.packed in network) is (address in expected)
    assert (stranger.packed in network) is (meant(stranger) in expected)


@some
@given(ipv4_addresses, st.integers(0, 32))
def test_network_of_an_ipv4_mapped_address(address: IPv4Address, bits: int) -> None:
    """It is in networks of the IPv4 address that it means, and in none of IPv6."""
    network = Network.parse(str(ip_network((address, bits), strict=False)))
    assert b"\0" * 10 + b"\xff\xff" + address.packed in network
    assert b"\0" * 10 + b"\xff\xff" + address.packed not in Network.parse("::/0")


@some
@given(networks(), st.data())
def test_network_with_host_bits(parts: tuple[Address, int], data: st.DataObject) -> None:
    first, bits = parts
    free = first.max_prefixlen - bits
    assume(free)
    address = first + data.draw(st.integers(1, 2**free - 1))
    assume(meant(address) is address)
    hint = f"did you mean {format_address(first.packed)}/{bits}"
    with pytest.raises(UsageError, match="has host bits set") as caught:
        Network.parse(f"{address}/{bits}")
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "'' is not a network; write ADDRESS or ADDRESS/BITS"),
        ("a.test", "'a.test' is not a network"),
        ("10.0.0/8", "'10.0.0/8' is not a network"),
        ("/8", "'/8' is not a network"),
        ("10.0.0.0/", "'10.0.0.0/' has no valid prefix length; write 0 to 32"),
        ("10.0.0.0/33", "'10.0.0.0/33' has no valid prefix length"),
        ("10.0.0.0/-1", "'10.0.0.0/-1' has no valid prefix length"),
        ("10.0.0.0/+8", "'10.0.0.0/+8' has no valid prefix length"),
        ("10.0.0.0/٨", "'10.0.0.0/٨' has no valid prefix length"),
        ("10.0.0.0/²", "'10.0.0.0/²' has no valid prefix length"),
        ("10.0.0.0/8/8", "'10.0.0.0/8/8' has no valid prefix length"),
        ("10.0.0.0/255.0.0.0", "has no valid prefix length"),
        ("::/129", "'::/129' has no valid prefix length; write 0 to 128"),
    ],
)
def test_no_network(text: str, problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        Network.parse(text)
    assert problem in str(caught.value)


def test_no_network_of_ipv4_mapped_addresses() -> None:
    with pytest.raises(UsageError):
        Network.parse("::ffff:10.0.0.0/8")


@pytest.mark.parametrize("text", ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1"])
def test_a_single_address(text: str) -> None:
    network = Network.parse(text)
    packed = parse_address(text)
    assert packed is not None
    assert network.text == f"{format_address(packed)}/{8 * len(packed)}"
    assert packed in network
    assert packed[:-1] + b"\0" not in network


@pytest.mark.parametrize("text", ["10.0.0.0/8,::1", " 10.0.0.0/8 \n ::1,", "10.0.0.0/8, ::1"])
def test_parse_networks(text: str) -> None:
    assert [network.text for network in parse_networks(text)] == ["10.0.0.0/8", "::1/128"]
    assert parse_networks("") == parse_networks(" , ") == ()
    with pytest.raises(UsageError, match="'b' is not a network"):
        parse_networks(text + " b")


# This host's own side

OWN_SIDE = [
    ip_network(text)
    for text in (
        *("127.0.0.0/8", "0.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32"),
        *("::/128", "::1/128", "fe80::/10", "ff00::/8"),
    )
]
EMBEDDING = {  # where in IPv6 an IPv4 address may be, by the number it is shifted by
    "IPv4-compatible": ("::/96", 0),
    "IPv4-mapped": ("::ffff:0:0/96", 0),
    "IPv4-translated": ("::ffff:0:0:0/96", 0),
    "NAT64": ("64:ff9b::/96", 0),
    "NAT64, local use": ("64:ff9b:1::/48", 0),
    "6to4": ("2002::/16", 80),
}


def embedded(address: IPv6Address) -> IPv4Address | None:
    for text, shift in EMBEDDING.values():
        if address in ip_network(text):
            return IPv4Address(int(address) >> shift & 0xFFFFFFFF)
    return None


LOCAL_NAT64 = ip_network("64:ff9b:1::/48")


def laid_out(address: IPv6Address) -> list[IPv4Address]:
    """What RFC 6052 section 2.2 may mean by an address in a prefix of 48, 56 or 64 bits."""
    raw = address.packed[:8] + address.packed[9:]
    return [IPv4Address(raw[start : start + 4]) for start in (6, 7, 8)]


def is_own(address: Address) -> bool:
    """The definition, by networks."""
    if address in LOCAL_NAT64 and any(
        is_own(inner) for inner in laid_out(address) if inner.packed[0]
    ):
        return True
    if any(address in network for network in OWN_SIDE):
        return True
    inner = embedded(address) if isinstance(address, IPv6Address) else None
    return inner is not None and is_own(inner)


edges = st.sampled_from(
    [network[place] for network in OWN_SIDE for place in (0, -1) if network.version == 4]
).flatmap(lambda edge: st.integers(-1, 1).map(lambda step: (int(edge) + step) % 2**32))
ipv4_at_edges = edges.map(IPv4Address) | ipv4_addresses


@some
@given(ipv4_at_edges)
def test_own_side_of_ipv4(address: IPv4Address) -> None:
    assert is_own_side(address.packed) is is_own(address)


@pytest.mark.parametrize("form", EMBEDDING)
@some
@given(ipv4_at_edges, st.integers(0, 2**80 - 1))
def test_own_side_of_embedded_ipv4(form: str, address: IPv4Address, rest: int) -> None:
    """The rest, where the form leaves any bits free, changes nothing."""
    prefix, shift = EMBEDDING[form]
    network = ip_network(prefix)
    if network == LOCAL_NAT64:
        rest = 0  # here it could be an address of its own
    free = rest % 2 ** (128 - network.prefixlen) & ~(0xFFFFFFFF << shift)
    made = IPv6Address(int(network.network_address) | free | int(address) << shift)
    assert is_own_side(made.packed) is is_own(made) is is_own(address)


@pytest.mark.parametrize("inner", ["127.0.0.1", "169.254.169.254", "224.0.0.1", "8.8.8.8"])
@pytest.mark.parametrize("bits", [48, 56, 64, 96])
def test_own_side_behind_nat64_for_local_use(inner: str, bits: int) -> None:
    raw = bytearray(ip_network("64:ff9b:1::/48").network_address.packed[: bits // 8])
    for byte in IPv4Address(inner).packed:
        raw += bytes([0, byte] if len(raw) == 8 else [byte])
    raw += bytes([0] if len(raw) == 8 else []) + bytes([9] * 16)
    assert is_own_side(bytes(raw[:16])) is (inner != "8.8.8.8")


@some
@given(
    ipv6_addresses,
    st.sampled_from([*(str(net) for net in OWN_SIDE), *(net for net, _ in EMBEDDING.values())]),
    st.integers(-1, 1),
)
def test_own_side_of_ipv6(address: IPv6Address, text: str, step: int) -> None:
    """Anywhere, and on both sides of every border."""
    assert is_own_side(address.packed) is is_own(address)
    network = ip_network(text)
    for edge in (network[0], network[-1]):
        if isinstance(edge, IPv6Address):
            near = IPv6Address((int(edge) + step) % 2**128)
            assert is_own_side(near.packed) is is_own(near)


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("127.0.0.1", True),
        ("127.255.255.255", True),
        ("126.255.255.255", False),
        ("128.0.0.0", False),
        ("0.0.0.0", True),
        ("0.1.2.3", True),
        ("169.254.169.254", True),
        ("169.253.1.1", False),
        ("224.0.0.1", True),
        ("239.255.255.255", True),
        ("240.0.0.1", False),
        ("255.255.255.255", True),
        ("255.255.255.254", False),
        ("10.0.0.1", False),
        ("192.168.1.1", False),
        ("::", True),
        ("::1", True),
        ("::127.0.0.1", True),
        ("::10.0.0.1", False),
        ("::ffff:127.0.0.1", True),
        ("::ffff:0:127.0.0.1", True),
        ("64:ff9b::127.0.0.1", True),
        ("64:ff9b::8.8.8.8", False),
        ("64:ff9b:1::127.0.0.1", True),
        ("64:ff9b:1:2:3:4:127.0.0.1", True),
        ("64:ff9b:2::127.0.0.1", False),
        ("2002:7f00:1::1", True),
        ("2002:808:808::1", False),
        ("2001:7f00:1::1", False),
        ("fe80::1", True),
        ("febf:ffff::1", True),
        ("fec0::1", False),
        ("fe7f::1", False),
        ("fc00::1", False),
        ("ff02::1", True),
        ("2001:db8::127.0.0.1", False),
    ],
)
def test_own_side(text: str, own: bool) -> None:
    packed = ip_address(text).packed
    assert is_own_side(packed) is own
    assert is_own(ip_address(text)) is own


# Unix sockets


@pytest.mark.parametrize("path", ["/run/x", "@x", "@@", "x" * 107, "\xe4" * 53, "\udcff" * 107])
def test_a_path_of_a_unix_socket(path: str) -> None:
    expect_unix_path(path)


@pytest.mark.parametrize("path", ["", "@", "a\0b", "x" * 108, "@" + "x" * 107, "\xe4" * 54])
def test_no_path_of_a_unix_socket(path: str) -> None:
    with pytest.raises(UsageError) as raised:
        expect_unix_path(path)
    hint = "a path or @NAME of 107 bytes at most fits"
    assert str(raised.value) == f"{path[:60]!r} is no path of a socket; {hint}"


@pytest.mark.parametrize(
    ("endpoint", "family", "sockaddr"),
    [
        (Endpoint("192.0.2.1", 80), socket.AF_INET, ("192.0.2.1", 80)),
        (Endpoint("2001:db8::1", 80), socket.AF_INET6, ("2001:db8::1", 80, 0, 0)),
        (Endpoint("::ffff:192.0.2.1", 80), socket.AF_INET, ("192.0.2.1", 80)),
        (
            Endpoint.at(bytes.fromhex("fe80") + bytes(14), 7, 3),
            socket.AF_INET6,
            ("fe80::", 7, 0, 3),
        ),
    ],
)
def test_what_connect_is_given(
    endpoint: Endpoint, family: int, sockaddr: tuple[str | int, ...]
) -> None:
    assert (endpoint.family, endpoint.sockaddr) == (family, sockaddr)
