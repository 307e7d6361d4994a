"""Proxies as URLs name them: what curl would make of them, and what is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import some

from muonsocks.address import Endpoint
from muonsocks.errors import UsageError
from muonsocks.socks.proxy_address import ProxyAddress

GOOD = {
    # URL: scheme, endpoint, user, password, path
    "socks5://proxy": ("socks5", "proxy:1080", b"", b"", ""),
    "socks5h://proxy:9050": ("socks5h", "proxy:9050", b"", b"", ""),
    "SOCKS5H://Proxy:9050/": ("socks5h", "Proxy:9050", b"", b"", ""),
    "socks4://me@192.0.2.1:1": ("socks4", "192.0.2.1:1", b"me", b"", ""),
    "socks4a://proxy:65535": ("socks4a", "proxy:65535", b"", b"", ""),
    "http://proxy": ("http", "proxy:1080", b"", b"", ""),
    "http://a:b:c@proxy:3128": ("http", "proxy:3128", b"a", b"b:c", ""),
    "socks5://[2001:db8::1]:1081": ("socks5", "[2001:db8::1]:1081", b"", b"", ""),
    "socks5://[::1]": ("socks5", "[::1]:1080", b"", b"", ""),
    "socks5://u%40s%3Aer:p%25w%2F@proxy": ("socks5", "proxy:1080", b"u@s:er", b"p%w/", ""),
    "socks5://u@er:p@w@proxy": ("socks5", "proxy:1080", b"u@er", b"p@w", ""),
    "socks5://Me:SeCret@proxy": ("socks5", "proxy:1080", b"Me", b"SeCret", ""),
    "socks5://:secret@proxy": ("socks5", "proxy:1080", b"", b"secret", ""),
    "socks5://user@proxy": ("socks5", "proxy:1080", b"user", b"", ""),
    "socks5h://localhost/run/proxy": ("socks5h", "localhost:1080", b"", b"", "/run/proxy"),
    "socks5h://me:pw@localhost/a%20b": ("socks5h", "localhost:1080", b"me", b"pw", "/a b"),
    "socks5h://me:pw@unix:@n": ("socks5h", "localhost:1080", b"me", b"pw", "@n"),
    "socks5h://unix:/run/proxy": ("socks5h", "localhost:1080", b"", b"", "/run/proxy"),
    "http://unix:@name": ("http", "localhost:1080", b"", b"", "@name"),
    "socks5://localhost": ("socks5", "localhost:1080", b"", b"", ""),
    "socks5://localhost/": ("socks5", "localhost:1080", b"", b"", ""),
}


@pytest.mark.parametrize("url", GOOD)
def test_urls(url: str) -> None:
    proxy = ProxyAddress.parse(url)
    found = (proxy.scheme, str(proxy.endpoint), proxy.user, proxy.password, proxy.path)
    assert found == GOOD[url]


@pytest.mark.parametrize(
    ("scheme", "resolves"),
    [("socks4", False), ("socks4a", True), ("socks5", False), ("socks5h", True), ("http", True)],
)
def test_who_resolves_names(scheme: str, resolves: bool) -> None:
    assert ProxyAddress.parse(f"{scheme}://proxy").resolves is resolves


BAD = {
    "proxy:1080": "what has no scheme is no kind of proxy; write socks5h://HOST:PORT, say",
    "": "what has no scheme",
    "https://proxy": "'https' is no kind of proxy; there are socks4, socks4a, socks5, socks5h",
    "socks://proxy": "'socks' is no kind of proxy",
    "socks5://": "'' is not where a proxy can be",
    "socks5://:1080": "is not where a proxy can be",
    "socks5://proxy:0": "is not where a proxy can be",
    "socks5://proxy:65536": "is not where a proxy can be",
    "socks5://proxy:x": "that has not the port of a proxy",
    "socks5://me@proxy:108000": "'proxy:108000' has not the port of a proxy",
    "socks5://one,two": "is not where a proxy can be",
    "me:word@socks5://proxy": "what has no scheme",
    "socks5://proxy/path": "is not where a proxy can be",
    "socks5://::1": "is not where a proxy can be",
    "socks5://[::1": "is not where a proxy can be",
    "socks5://[proxy]": "is not where a proxy can be",
    "socks5://[::1]1080": "is not where a proxy can be",
    "socks5://pro xy": "is not where a proxy can be",
    "socks5://münchen": "is not where a proxy can be",
    "socks5://a:b%@proxy": "the password of a proxy has a % that no two digits follow",
    "socks5://a%4:b@proxy": "the user of a proxy has a %",
    "socks5://a% 4:b@proxy": "the user of a proxy has a %",
    "socks5://" + "a" * 256 + "@proxy": "at most 255 bytes",
    "socks5://a:" + "b" * 256 + "@proxy": "at most 255 bytes",
    "socks4://a:b@proxy": "socks4 has no passwords; write socks4://USER@HOST:PORT",
    "socks4a://a%00@proxy": "socks4a has no passwords",
    "http://a%3Ab:c@proxy": "HTTP has no users with a colon in their name",
    "socks5://unix:": "is no path of a socket",
    "socks5://unix:/" + "a" * 107: "is no path of a socket",
}


@pytest.mark.parametrize("url", BAD)
def test_what_is_no_proxy(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        ProxyAddress.parse(url)
    assert BAD[url] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", GOOD)
def test_a_name_without_secrets(url: str) -> None:
    proxy = ProxyAddress.parse(url)
    shown = str(proxy)
    for secret in filter(None, (proxy.user, proxy.password)):
        assert secret.decode() not in shown.partition("://")[2]
    assert str(ProxyAddress.parse(shown.replace(" ", "%20"))) == shown


@some
@given(st.binary(max_size=255), st.binary(max_size=255))
def test_any_user_and_password(user: bytes, password: bytes) -> None:
    encoded = [b"".join(b"%%%02x" % byte for byte in text).decode() for text in (user, password)]
    proxy = ProxyAddress.parse(f"socks5h://{':'.join(encoded)}@[2001:db8::7]:99")
    assert (proxy.user, proxy.password) == (user, password)
    assert proxy.endpoint == Endpoint("2001:db8::7", 99)


@some
@given(st.text(max_size=40))
def test_any_text_is_a_proxy_or_a_usage_error(text: str) -> None:
    for url in (text, f"socks5h://{text}", f"http://{text}@proxy"):
        try:
            ProxyAddress.parse(url)
        except UsageError:
            continue
