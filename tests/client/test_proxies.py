"""Which proxies a connection goes through, as a program or its environment says it; what the real
curl makes of the same environments is for tests/real.
"""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import ipv4_packed, ipv6_packed, many, some

from muonsocks.address import Endpoint, format_address
from muonsocks.client.proxies import DIRECT, chain_of, from_environment
from muonsocks.errors import UsageError
from muonsocks.socks.proxy_address import ProxyAddress

SECRET = "h0rse"
HERE = Endpoint("www.example.com", 80)


def shown(chain: object) -> str:
    assert isinstance(chain, tuple)
    return " ".join(map(str, chain))


# What a program says

SAID = {
    "socks5h://a": "socks5h://a:1080",
    "socks5h://a socks4://b": "socks5h://a:1080 socks4://b:1080",
    "socks5h://a,socks4://b": "socks5h://a:1080 socks4://b:1080",
    " socks5h://a,, \tsocks4://b, ": "socks5h://a:1080 socks4://b:1080",
    "socks5h://a,,HTTP://b:3128": "socks5h://a:1080 http://b:3128",
    "socks5h://u:a,b@c,socks4://d": "socks5h://c:1080 socks4://d:1080",
    "socks5h://unix:/a,b": "socks5h://unix:/a,b",
    "direct": "",
    " direct,": "",
}


@pytest.mark.parametrize("text", SAID)
def test_as_text(text: str) -> None:
    assert shown(chain_of(text)) == SAID[text]


def test_as_other_things() -> None:
    one = ProxyAddress.parse("http://a")
    assert chain_of(None) is None
    assert chain_of(one) == (one,)
    assert chain_of([one, "socks4://b"])[0] is one  # type: ignore[index]
    assert shown(chain_of(iter(["socks5://a", "http://b"]))) == "socks5://a:1080 http://b:1080"
    assert chain_of(()) == chain_of(DIRECT) == DIRECT


@pytest.mark.parametrize("text", ["a:1080", "socks5h://a b", "socks5h://a,b", "socks5h://a direct"])
def test_what_is_no_proxy(text: str) -> None:
    with pytest.raises(UsageError):
        chain_of(text)


def test_a_password_with_a_comma() -> None:
    [proxy] = chain_of("socks5h://me:a,b@c") or ()
    assert (proxy.user, proxy.password) == (b"me", b"a,b")


@pytest.mark.parametrize("text", ["", " ", ","])
def test_an_empty_text_leads_nowhere(text: str) -> None:
    """It is a setting that is missing, and must not lead past the proxy."""
    with pytest.raises(UsageError, match="write direct if none is meant"):
        chain_of(text)
    if text == ",":
        with pytest.raises(UsageError, match="ALL_PROXY"):
            from_environment(HERE, {"ALL_PROXY": text})


@pytest.mark.parametrize("said", ["direct http://a", "http://a direct", ("direct", "http://a")])
def test_direct_is_no_part_of_a_way(said: str | tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="let it stand alone"):
        chain_of(said)


@pytest.mark.parametrize("said", [b"http://a", 5, [b"http://a"], [None]])
def test_what_is_no_text(said: Any) -> None:
    with pytest.raises(TypeError):
        chain_of(said)


# What its environment says

ENVIRONMENTS: list[tuple[dict[str, str], str]] = [
    ({}, ""),
    ({"all_proxy": " "}, ""),
    ({"all_proxy": "direct"}, ""),
    ({"all_proxy": "direct", "ALL_PROXY": "http://b"}, ""),
    ({"all_proxy": "socks5://a", "ALL_PROXY": "http://b"}, "socks5://a:1080"),
    ({"all_proxy": "socks5://a http://b"}, "socks5://a:1080 http://b:1080"),
    ({"all_proxy": "a:3128"}, "http://a:3128"),
    ({"ALL_PROXY": "http://b", "SOCKS_SERVER": "c"}, "http://b:1080"),
    ({"SOCKS_SERVER": "c"}, "socks5h://c:1080"),
    ({"SOCKS_SERVER": "c:99"}, "socks5h://c:99"),
    ({"SOCKS_SERVER": "[2001:db8::1]:99"}, "socks5h://[2001:db8::1]:99"),
    ({"SOCKS_SERVER": "socks4://c:99"}, "socks4://c:99"),
    ({"SOCKS_SERVER": "c", "SOCKS5_SERVER": "d"}, "socks5h://d:1080"),
    ({"SOCKS_SERVER": "c", "SOCKS4_SERVER": "e"}, "socks5h://c:1080"),
    ({"SOCKS4_SERVER": "e"}, "socks4a://e:1080"),
    ({"SOCKS4_SERVER": "e", "NO_PROXY": "example.com"}, ""),
    ({"http_proxy": "http://f", "HTTPS_PROXY": "http://f"}, ""),
]


@pytest.mark.parametrize(("environment", "proxies"), ENVIRONMENTS)
def test_environments(environment: dict[str, str], proxies: str) -> None:
    assert shown(from_environment(HERE, environment)) == proxies


def test_the_environment_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5://a")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert shown(from_environment(HERE)) == "socks5://a:1080"


def test_the_variable_is_named() -> None:
    with pytest.raises(UsageError) as caught:
        from_environment(HERE, {"SOCKS_SERVER": "a b"})
    assert str(caught.value).startswith("$SOCKS_SERVER: what has no scheme is no kind of proxy")


def is_excepted(exceptions: str, host: str) -> bool:
    environment = {"all_proxy": "socks5h://a", "no_proxy": exceptions}
    return not from_environment(Endpoint(host, 80), environment)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_nothing_is_excepted_by_itself(host: str) -> None:
    """As in curl: a proxy may be asked for what it has itself."""
    assert not is_excepted("", host)


@pytest.mark.parametrize(
    ("exceptions", "host", "is_one"),
    [
        ("fe80::/10", "fe80::1", True),
        ("192.0.2.0/24", "::ffff:192.0.2.7", True),
        ("::ffff:192.0.2.7", "192.0.2.7", True),
        ("192.0.2.0/24,example.com", "example.com", True),
        ("[fe80::1", "fe80::1", False),
        ("fe80::1]", "fe80::1", False),
        ("192.0.2.0/٣", "192.0.2.7", False),
        ("192.0.2.0/0024", "192.0.2.7", False),
        ("*", "x" * 255, True),
        ("**", "a.example", False),
        (".", "a.example", False),
        ("xn--bcher-kva.example", "www.xn--bcher-kva.example", True),
    ],
)
def test_exceptions(exceptions: str, host: str, is_one: bool) -> None:
    assert is_excepted(exceptions, host) is is_one


@some
@given(ipv4_packed | ipv6_packed, st.integers(0, 128), st.integers(0, 2**128 - 1))
def test_any_network(packed: bytes, length: int, other: int) -> None:
    """What has the same first bits is in it, whatever the others are, and nothing else is."""
    width = 8 * len(packed)
    length = min(length, width)
    host, shift = format_address(packed), width - length

    def address(number: int) -> str:
        return format_address(number.to_bytes(len(packed), "big"))

    inside = int.from_bytes(packed, "big") >> shift << shift | other % (1 << shift)
    hosts = {host, address(inside)}
    if any(Endpoint(one, 80).host != one for one in hosts):
        return  # IPv4 in the form of IPv6
    assert all(is_excepted(f"{host}/{length}", one) for one in hosts)
    if length:
        outside = address(inside ^ 1 << shift)
        assert not is_excepted(f"{host}/{length}", outside)


labels = st.text("abcz019-", min_size=1, max_size=5).map(lambda text: f"a{text}")


@some
@given(st.lists(labels, min_size=1, max_size=4), st.integers(0, 3), st.sampled_from(["", "."]))
def test_any_suffix(name: list[str], place: int, dot: str) -> None:
    """A name stands for itself and for all below it, and for nothing else."""
    host = ".".join(name)
    suffix = ".".join(name[min(place, len(name) - 1) :])
    for exception in (suffix, suffix.upper(), f".{suffix}", f"*.{suffix}", f"{suffix}."):
        assert is_excepted(exception, host + dot)
        assert not is_excepted(f"b{exception.lstrip('.*')}", host + dot)
        assert not is_excepted(f"b.{exception.lstrip('.*')}", host + dot)


@many
@given(st.text(max_size=30), st.sampled_from(["name.example", "192.0.2.7", "2001:db8::7"]))
def test_any_text_excepts_something_or_nothing(exceptions: str, host: str) -> None:
    assert is_excepted(exceptions, host) in (True, False)


# Secrets


LOGINS = [
    *[f"socks5h://me:{SECRET}@{place}" for place in ("", "a:x", "a:0", "a b", "[::1", "a/b")],
    *[f"socks5h://me:{SECRET}", f"socks5h://me:{SECRET}/x", f"socks5h://me:{SECRET}%@a"],
    *[f"socks4://me:{SECRET}@a", f"http://m%3ae:{SECRET}@a", f"https://me:{SECRET}@a"],
    *[f"me:{SECRET}@http://a", f"me:{SECRET}@a:1", f"socks5h://me:x,{SECRET}", f"://{SECRET}@a"],
    *[f"socks5h://me:x {SECRET}@a", f"socks5h://me:x,{SECRET}://@a/b", f"{SECRET}:x://a"],
    *[f"socks5h://me:{SECRET}@unix:", f"socks5h://me:{SECRET * 60}@a"],
    *[f"socks5h://me:{SECRET}@a,b", f"socks5h://a socks5h://me:{SECRET}@:"],
]


@pytest.mark.parametrize("url", LOGINS)
def test_no_error_repeats_a_password(url: str) -> None:
    for environment in ({"all_proxy": url}, {"SOCKS_SERVER": url}):
        with contextlib.suppress(UsageError):
            chain = from_environment(HERE, environment)
            assert SECRET not in shown(chain) and SECRET not in repr(chain)
        try:
            from_environment(HERE, environment)
        except UsageError as error:
            assert SECRET not in str(error) and SECRET not in repr(error)
            assert error.__cause__ is None and "\n" not in str(error)
    with contextlib.suppress(UsageError):
        chain_of(url)


@many
@given(st.text(max_size=12), st.text(max_size=12))
def test_no_error_repeats_any_password(before: str, after: str) -> None:
    """Whatever is before and behind, as long as it is in the place of one."""
    try:
        chain = chain_of(f"socks5h://u:{SECRET}{before}@{after}")
    except UsageError as error:
        assert SECRET not in str(error)
    else:
        assert SECRET not in str(chain)
