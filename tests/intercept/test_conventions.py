"""Which addresses mean which unix sockets: the table of socketbox-preload, and --listen."""

from typing import Any

import pytest

from muonsocks.address import Endpoint
from muonsocks.errors import UsageError
from muonsocks.intercept.conventions import (
    Conventions,
    LinkLocal,
    PlaceInFile,
    Places,
    Ports,
    UnixPlace,
)

ROOTS = {"SKBOX_DIRECTORY_ROOT": "/root1", "SKBOX_DIRECTORY_ROOT2": "/r"}
ALL = {f"SKBOX_PORT_FILTER_{name}": "65535" for name in ("IPV4", "IPV6_WILDCARD", "IPV4_WILDCARD")}
CONNECTS = {"SKBOX_ENABLE_CONNECT": "b2"}


def at(text: str, scope: int = 0) -> Endpoint:
    host, _, port = text.rpartition(":")
    endpoint = Endpoint(host.strip("[]"), int(port))
    assert endpoint.packed is not None
    endpoint.scope = scope
    return endpoint


def shown(meaning: Any) -> Any:
    match meaning:
        case UnixPlace():
            return meaning.path, "stream" if meaning.is_stream else "dgram"
        case PlaceInFile():
            return meaning.file, meaning.offset, "stream" if meaning.is_stream else "dgram"
        case LinkLocal():
            return str(meaning.endpoint), meaning.endpoint.scope
    return meaning


@pytest.mark.parametrize(
    ("address", "meaning"),
    [
        ("[::]:80", ("/r/X0000/00000_00080", "dgram")),
        ("0.0.0.0:80", ("/r/X0004/00000_00080", "dgram")),
        ("[::ffff:0.0.0.0]:80", ("/r/X0004/00000_00080", "dgram")),
        ("127.180.3.4:80", ("/r/X4003/00004_00080", "dgram")),
        ("127.181.255.254:80", ("/r/X4255/00254_00080", "stream")),
        ("[::ffff:127.180.3.4]:80", ("/r/X4003/00004_00080", "dgram")),
        ("[fe8f::2:10:ffff]:80", ("/r/00016/65535_00080", "dgram")),
        ("[fe8f::3:10:ffff]:80", ("/r/00016/65535_00080", "stream")),
        ("[fe8f::10:3]:80", ("/root1/skbox_dir_00016", 384, "dgram")),
        ("[fe8f::1:10:3]:80", ("/root1/skbox_dir_00016", 384, "stream")),
        ("[fe8f:1:0:7::1:2]:80", ("[fe80::1:2]:80", 7)),
        ("[fe8f:1:0:7::1:2]:0", ("[fe80::1:2]:0", 7)),
        ("[fe8f::2:10:ffff]:0", None),
        ("127.180.3.4:0", None),
        ("127.182.3.4:80", None),
        ("127.0.0.1:80", None),
        ("[fe8f::4:10:1]:80", None),
        ("[fe8f:2::2:10:1]:80", None),
        ("[::1]:80", None),
    ],
)
def test_bound(address: str, meaning: object) -> None:
    assert shown(Conventions(ROOTS | ALL).bound(at(address))) == meaning


@pytest.mark.parametrize("address", ["[::]:80", "0.0.0.0:80", "127.180.3.4:80"])
def test_ports_that_are_off_by_default(address: str) -> None:
    assert Conventions(ROOTS).bound(at(address)) is None


def test_ports_that_are_on_by_default() -> None:
    assert Conventions(ROOTS).bound(at("[fe8f::2:1:1]:1023")) is not None
    assert Conventions(ROOTS).bound(at("[fe8f::2:1:1]:1024")) is None


@pytest.mark.parametrize("address", ["[::]:80", "0.0.0.0:80", "127.180.3.4:80", "[fe8f::2:1:1]:80"])
def test_without_the_second_root(address: str) -> None:
    assert Conventions(ALL | {"SKBOX_DIRECTORY_ROOT": "/r"}).bound(at(address)) is None


def test_without_the_first_root() -> None:
    assert Conventions({"SKBOX_DIRECTORY_ROOT2": "/r"}).bound(at("[fe8f::1:1]:80")) is None
    assert Conventions({}).bound(at("[fe8f:1:0:7::1:2]:80")) is not None  # needs none


def test_scopes() -> None:
    scoped = at("[fe8f::2:1:1]:80", scope=3)
    assert Conventions(ROOTS).bound(scoped) is None
    assert Conventions(ROOTS | {"SKBOX_CLEAR_SCOPE_ID": "1"}).bound(scoped) is not None


@pytest.mark.parametrize(
    ("address", "meaning"),
    [
        ("127.181.3.4:8000", ("/r/X4003/00004_08000", "stream")),
        ("127.180.3.4:8000", ("/r/X4003/00004_08000", "dgram")),
        ("[fe8f::3:1:2]:8000", ("/r/00001/00002_08000", "stream")),
        ("[fe8f::1:2]:8000", ("/root1/skbox_dir_00001", 256, "dgram")),
        ("[fe8f:1:0:7::1:2]:8000", ("[fe80::1:2]:8000", 7)),
        ("[::]:80", None),
        ("0.0.0.0:80", None),
        ("[fe8f::3:1:2]:0", None),
    ],
)
def test_connected(address: str, meaning: object) -> None:
    assert shown(Conventions(ROOTS | CONNECTS).connected(at(address))) == meaning


def test_connecting_has_to_be_asked_for() -> None:
    assert Conventions(ROOTS).connected(at("[fe8f::3:1:2]:80")) is None
    only_ipv6 = Conventions(ROOTS | {"SKBOX_ENABLE_CONNECT": "1"})
    assert only_ipv6.connected(at("[fe8f::3:1:2]:80")) is not None
    assert only_ipv6.connected(at("127.181.3.4:80")) is None
    assert only_ipv6.connects == 1


@pytest.mark.parametrize(
    ("text", "has", "has_not"),
    [
        ("1024", (1, 2, 1023), (0, 1024, 1025)),
        ("1024,0", (1, 1023), (2, 1022)),
        ("0,100,7,65535", (2, 98, 7, 65535), (0, 1, 100, 9)),
        ("0x400", (1023,), (1024,)),
        ("010,0,0", (7,), (0, 9)),
        (" 4, 4", (3,), (5,)),
    ],
)
def test_port_filters(text: str, has: tuple[int, ...], has_not: tuple[int, ...]) -> None:
    ports = Ports.parse(text, "X")
    assert [port in ports for port in has] == [True] * len(has)
    assert not any(port in ports for port in has_not)


@pytest.mark.parametrize("text", ["", "x", "1,", "-1", "1_0", "1;2", "9" * 40, ",".join("1" * 33)])
def test_bad_port_filters(text: str) -> None:
    with pytest.raises(UsageError, match=r"SKBOX_PORT_FILTER_IPV4 is .*; give ODD"):
        Ports.parse(text, "SKBOX_PORT_FILTER_IPV4")


@pytest.mark.parametrize(
    "variables",
    [
        {"SKBOX_DIRECTORY_ROOT2": "/" * 256},
        {"SKBOX_CLEAR_SCOPE_ID": "x"},
        {"SKBOX_ENABLE_CONNECT": "bb"},
        {"SKBOX_ACCEPT_STREAM": "10"},
        {"SKBOX_PORT_FILTER_IPV6": "much"},
    ],
)
def test_bad_values(variables: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=next(iter(variables))):
        Conventions(variables)


def test_listening_at_a_port_of_the_kernels_choice() -> None:
    assert not Conventions({}).blocks_empty_listen
    assert Conventions(ROOTS).blocks_empty_listen
    assert not Conventions(ROOTS | {"SKBOX_BLOCK_LISTEN_EMPTY_ADDR": "0"}).blocks_empty_listen


def test_a_path_in_a_file() -> None:
    place = Conventions(ROOTS).bound(at("[fe8f::1:1]:80"))
    assert isinstance(place, PlaceInFile)
    assert place.place(b"/run/a_@SB__@SB_".ljust(108, b"\0")).path == "/run/a00080_@SB_"
    for data in (bytes(108), b"x" * 108):
        with pytest.raises(ValueError, match="no path"):
            place.place(data)


# --listen


@pytest.mark.parametrize(
    ("text", "matches", "others"),
    [
        ("*:80=/a", ("127.0.0.1:80", "[::]:80", "[fe8f::2:1:1]:80"), ("127.0.0.1:81",)),
        (":80=/a", ("127.0.0.1:80", "[::]:80"), ()),
        ("0.0.0.0:80=/a", ("0.0.0.0:80", "[::ffff:0.0.0.0]:80"), ("[::]:80", "127.0.0.1:80")),
        ("[::]:80=/a", ("[::]:80",), ("0.0.0.0:80",)),
        ("[::1]:65535=/a", ("[::1]:65535",), ("[::2]:65535",)),
        ("127.0.0.1:1=/a", ("127.0.0.1:1", "[::ffff:127.0.0.1]:1"), ()),
    ],
)
def test_places(text: str, matches: tuple[str, ...], others: tuple[str, ...]) -> None:
    places = Places([text])
    for address in matches:
        assert shown(places.bound(at(address))) == ("/a", "dgram")
    for address in others:
        assert places.bound(at(address)) is None


def test_the_address_itself_goes_before_any() -> None:
    places = Places(["*:80=/any", "127.0.0.1:80=/one", "*:81=@name"], "/here")
    assert shown(places.bound(at("127.0.0.1:80"))) == ("/one", "dgram")
    assert shown(places.bound(at("127.0.0.2:80"))) == ("/any", "dgram")
    assert shown(places.bound(at("127.0.0.2:81"))) == ("@name", "dgram")


def test_paths_begin_where_we_were_started() -> None:
    found = Places(["*:80=a=b:c"], "/here").bound(at("0.0.0.0:80"))
    assert shown(found) == ("/here/a=b:c", "dgram")
    roots = {"SKBOX_DIRECTORY_ROOT2": "d"}
    assert shown(Conventions(roots, "/here").bound(at("[fe8f::2:1:1]:80"))) == (
        "/here/d/00001/00001_00080",
        "dgram",
    )


@pytest.mark.parametrize(
    "text",
    [
        *("", "80", ":80", "*:80", "*:80=", "*:0=/a", "*:65536=/a", "*:x=/a", "*:-1=/a"),
        *("::1:80=/a", "[127.0.0.1]:80=/a", "name:80=/a", "[::1:80=/a", "*:80=/" + "x" * 107),
        *("*:²=/a", "*:80=@"),
    ],
)
def test_bad_places(text: str) -> None:
    with pytest.raises(UsageError):
        Places([text])


def test_one_place_for_an_address() -> None:
    with pytest.raises(UsageError, match="second"):
        Places(["127.0.0.1:80=/a", "[::ffff:127.0.0.1]:80=/b"])
