"""Which proxies the environment says: the real curl, and ours, in the same environments.

Where ours is to do something else, which `proxies` and `proxy_address` say, the case has what.
"""

import concurrent.futures
import os
import subprocess
from collections.abc import Callable
from typing import Any, NamedTuple

import clients
import pytest
from places import in_own_network
from upstream import Script, Upstream

from muonsocks.client.errand import endpoint_of
from muonsocks.client.proxies import from_environment
from muonsocks.errors import UsageError
from muonsocks.socks.proxy_address import ProxyAddress

PORT = 81  # of what is asked for, where nobody listens
PROXY = "proxy"  # stands for where the proxy is
CURL = 20  # s, for what takes milliseconds
OUT_OF_TIME = 28  # curl's exit status


class Met(NamedTuple):
    """Whether the proxy is gone to, and by which protocol; as whom."""

    scheme: str
    login: bytes = b""


DIRECT = Met("")


class Case(NamedTuple):
    """An environment, what is asked for, and what ours is to do: as curl, or else "error", to go
    "direct", or to the "proxy".
    """

    environment: dict[str, str]
    host: str = "www.example.com"
    ours: str = "as curl"


def excepted(exceptions: str, host: str, ours: str = "as curl", name: str = "no_proxy") -> Case:
    return Case({"all_proxy": f"socks5h://{PROXY}", name: exceptions}, host, ours)


V6, V6_URL = "2001:db8::7", "[2001:db8::7]"
CASES = [
    # Which variable
    Case({}),
    Case({"all_proxy": f"socks5h://{PROXY}"}),
    Case({"ALL_PROXY": f"socks5h://{PROXY}"}),
    Case({"all_proxy": f"socks5h://{PROXY}", "ALL_PROXY": f"socks4a://{PROXY}"}),
    Case({"all_proxy": "", "ALL_PROXY": f"socks4a://{PROXY}"}),
    # Which protocol
    Case({"all_proxy": f"socks4a://{PROXY}"}),
    Case({"all_proxy": f"SOCKS4A://{PROXY}"}),
    Case({"all_proxy": f"socks5h://{PROXY}/"}),
    Case({"all_proxy": f"http://{PROXY}"}),
    Case({"all_proxy": PROXY}),
    Case({"all_proxy": f"socks://{PROXY}"}, ours="error"),
    Case({"all_proxy": f"nonsense://{PROXY}"}, ours="error"),
    Case({"all_proxy": f"socks5h://{PROXY}/path"}, ours="error"),
    # As whom
    Case({"all_proxy": f"socks5h://me:secret@{PROXY}"}),
    Case({"all_proxy": f"socks5h://Me:SeCret@{PROXY}"}),
    Case({"all_proxy": f"socks5h://me@{PROXY}"}),
    Case({"all_proxy": f"socks5h://m%65:p%3a%40%2F%25@{PROXY}"}),
    Case({"all_proxy": f"socks5h://me:a,b@{PROXY}"}),
    Case({"all_proxy": f"socks5h://me:a:b@{PROXY}"}),
    Case({"all_proxy": f"socks5h://me:%zz@{PROXY}"}, ours="error"),
    Case({"all_proxy": f"socks4a://me@{PROXY}"}),
    Case({"all_proxy": f"socks4a://me:secret@{PROXY}"}, ours="error"),
    # Where not
    excepted("www.example.com", "www.example.com"),
    excepted("example.com", "www.example.com"),
    excepted("example.com", "example.com"),
    excepted("example.com", "nonexample.com"),
    excepted("www.example.com", "example.com"),
    excepted("com", "www.example.com"),
    excepted(".example.com", "www.example.com"),
    excepted(".example.com", "example.com"),
    excepted("example.com.", "www.example.com"),
    excepted("example.com", "www.example.com."),
    excepted("EXAMPLE.com", "www.example.COM"),
    excepted("*", "www.example.com"),
    excepted("*", "192.0.2.7"),
    excepted("*", V6_URL),
    excepted("other, *", "www.example.com", "direct"),
    excepted("*.example.com", "www.example.com", "direct"),
    excepted("*.example.com", "example.com", "direct"),
    excepted("www.*.com", "www.example.com"),
    excepted("other,example.com", "www.example.com"),
    excepted("other example.com", "www.example.com"),
    excepted(" other ,\texample.com ,", "www.example.com"),
    excepted(",,example.com", "www.example.com"),
    excepted("other", "www.example.com"),
    excepted(".", "www.example.com"),
    excepted("example.com:81", "www.example.com"),
    excepted("example.com:80", "www.example.com"),
    excepted("192.0.2.7", "192.0.2.7"),
    excepted("192.0.2.7", "192.0.2.70"),
    excepted("192.0.2", "192.0.2.7"),
    excepted("192.0.2.0/24", "192.0.2.7"),
    excepted("192.0.2.0/29", "192.0.2.7"),
    excepted("192.0.2.0/30", "192.0.2.7"),
    excepted("192.0.2.9/24", "192.0.2.7"),
    excepted("192.0.2.7/32", "192.0.2.7"),
    excepted("192.0.2.7/33", "192.0.2.7"),
    excepted("192.0.2.7/-1", "192.0.2.7"),
    excepted("192.0.2.7/", "192.0.2.7", "proxy"),
    excepted("0.0.0.0/0", "192.0.2.7", "direct"),
    excepted("0.0.0.0/0", "www.example.com"),
    excepted("192.0.2.0/24", V6_URL),
    excepted("192.0.2.7:81", "192.0.2.7"),
    excepted(V6, V6_URL),
    # Some versions of curl compare these as text.
    excepted("2001:DB8:0::7", V6_URL, "direct"),
    excepted(V6_URL, V6_URL, "direct"),
    excepted("2001:db8::/32", V6_URL, "direct"),
    excepted("2001:db8::/125", V6_URL, "direct"),
    excepted("2001:db8::8/125", V6_URL),
    excepted("[2001:db8::]/32", V6_URL, "direct"),
    excepted("2001:db8::/129", V6_URL),
    excepted("::/0", V6_URL, "direct"),
    excepted("example.com", "www.example.com", name="NO_PROXY"),
    Case({"all_proxy": f"http://{PROXY}", "no_proxy": "", "NO_PROXY": "example.com"}),
    Case({"all_proxy": f"http://{PROXY}", "no_proxy": "other", "NO_PROXY": "example.com"}),
]


def place_of(case: Case, place: str) -> dict[str, str]:
    return {name: text.replace(PROXY, place) for name, text in case.environment.items()}


def by_ours(case: Case) -> Met | str:
    try:
        chain = from_environment(endpoint_of(case.host.strip("[]"), PORT), place_of(case, "proxy"))
    except UsageError:
        return "error"
    if not chain:
        return DIRECT
    [proxy] = chain
    return Met(proxy.scheme, login_of(proxy))


def login_of(proxy: ProxyAddress) -> bytes:
    """What a proxy hears of who we are, without a clue of what has been."""
    if proxy.scheme.startswith("socks4"):
        return proxy.user
    if not proxy.user and not proxy.password:
        return b""
    user = b"\1%c%s" % (len(proxy.user), proxy.user)
    return user + b"%c%s" % (len(proxy.password), proxy.password)


def answer(ours: Met | str) -> Script:
    """What a proxy does that ours would go to: it hears all, and refuses."""
    if not isinstance(ours, Met) or (ours.scheme in ("", "socks5h") and not ours.login):
        return [3, b"\5\xff" + bytes(6)]  # which is no answer in SOCKS4 either
    if ours.scheme == "socks5h":
        return [4, b"\5\2", len(ours.login), b"\1\1"]
    if ours.scheme == "socks4a":
        return [10 + len(ours.login), b"\0\x5b" + bytes(6)]
    return [4, b"HTTP/1.1 502 no\r\n\r\n"]


def by_curl(case: Case) -> Met:
    with Upstream(answer(by_ours(case))) as upstream:
        done = subprocess.run(
            ["curl", "-fsS", "--socks5-basic", f"-m{CURL}", f"http://{case.host}:{PORT}/"],
            env={"PATH": os.environ["PATH"], **place_of(case, upstream.place)},
            capture_output=True,
            timeout=2 * CURL,
        )
    heard = b"".join(upstream.heard)
    assert done.returncode not in (0, OUT_OF_TIME), done
    if not heard:
        return DIRECT
    if heard[0] == 5:
        return Met("socks5h", heard[2 + heard[1] :])
    if heard[0] == 4:
        return Met("socks4a", heard[8 : heard.index(b"\0", 8)])
    return Met("http")


def at_once(function: Callable[[Any], Any], things: list[Any]) -> list[Any]:
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        return list(threads.map(function, things))


def test_as_curl_does() -> None:
    if reason := clients.missing("curl"):
        pytest.skip(reason)
    found: list[Met] = []
    in_own_network(lambda: found.extend(at_once(by_curl, CASES)))
    wrong = []
    for case, met in zip(CASES, found, strict=True):
        wanted = {"as curl": met, "direct": DIRECT, "proxy": Met("socks5h")}
        if by_ours(case) != wanted.get(case.ours, case.ours):
            wrong.append(f"{case}: curl {met}, ours {by_ours(case)}")
    assert wrong == []
