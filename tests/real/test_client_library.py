"""The client library through proxies as people have them, by each of its kinds of clients."""

import contextlib
import errno
import hashlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import clients
import pytest
import upstreams
from clients import MUONSOCKS, NAME, TARGET, TARGET6, Network, body
from upstreams import DANTE_LOGIN, HAVE_PASSWORDS, HOST, LOGIN, TOR, UPSTREAMS, at, url

from muonsocks.socks.request import Command

pytestmark = pytest.mark.xdist_group("client library")  # one network

PYTHON = "/usr/bin/python3"
DRIVER = str(clients.ROOT / "tests" / "real" / "client_driver.py")
PATIENCE, SHORT = 20, 0.5  # s
SIZE = 100_000  # bytes
NOWHERE = "nowhere.test"
SILENT = "192.0.2.99"  # it answers no SYN
AT_ONCE = 500
IMPATIENT, AT_SIX, AT_PATH = 2060, 2061, 2062  # ports of other muonsocks
CLIENTS = ("create_connection", "SocksSocket", "non-blocking", "asyncio")

_SILENCE = f"""\
table inet silence {{
    chain input {{
        type filter hook input priority 0
        ip daddr {SILENT} tcp flags syn drop
    }}
}}
"""


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    if reason := clients.missing("unshare", "nsenter", "ip", "nft", "systemd-socket-activate"):
        pytest.skip(reason)
    work = tmp_path_factory.mktemp("clients")
    with clients.network(work) as net, contextlib.ExitStack() as stack:
        (work / "silence").write_text(_SILENCE)
        for command in (
            ["ip", "address", "add", f"{SILENT}/32", "dev", "lo"],
            ["nft", "-f", str(work / "silence")],
        ):
            done = net.run(command)
            assert done.returncode == 0, done.stderr
        for name in UPSTREAMS:
            if not upstreams.missing(name):
                upstreams.start(net, stack, name)
                if name in HAVE_PASSWORDS:
                    upstreams.start(net, stack, name, with_password=True)
        mine = [MUONSOCKS, "--workers=1"]
        impatient = [*mine, f"-i{HOST}", f"-p{IMPATIENT}", "--connect-timeout=0.2", "--bind-any"]
        net.start(stack, impatient, (HOST, IMPATIENT))
        net.start(stack, [*mine, f"-i{TARGET6}", f"-p{AT_SIX}"], (TARGET6, AT_SIX))
        places = [f"--listen={work}/proxy", f"--listen={HOST}:{AT_PATH}"]
        net.start(stack, ["systemd-socket-activate", *places, *mine], (HOST, AT_PATH))
        yield net
    assert "Traceback" not in net.log and "this is a bug" not in net.log


@pytest.fixture(scope="module")
def tor(net: Network) -> Iterator[str]:
    if reason := clients.missing("tor"):
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        yield upstreams.start_tor(net, stack)


def need(*names: str) -> None:
    for name in names:
        if reason := upstreams.missing(name):
            pytest.skip(reason)


def drive(net: Network, what: str, *jobs: dict[str, Any]) -> list[Any]:
    done = net.run([PYTHON, DRIVER, what, json.dumps(jobs)])
    assert done.returncode == 0 and not done.stderr, done.stderr.decode()
    results: list[Any] = json.loads(done.stdout)
    assert len(results) == len(jobs)
    return results


def job(proxy: str, host: str, port: int, seconds: float = PATIENCE, size: int = SIZE) -> Any:
    return {"proxy": proxy, "to": [host, port], "seconds": seconds, "size": size}


def fetching(net: Network, proxy: str, host: str, **more: Any) -> Any:
    return job(proxy, host, net.web[TARGET6 if ":" in host else TARGET], **more)


FETCHED = ["connected", 0, None, "", "", hashlib.sha256(body(SIZE)).hexdigest()]


def all_fetched(results: list[Any]) -> None:
    for result in results:
        assert result == dict.fromkeys(CLIENTS, FETCHED)


# What they are told: class, errno, code, side

Told = tuple[str, int, int | None, str]
REFUSED: Told = ("DestinationRefused", errno.ECONNREFUSED, 5, "destination")
UNREACHABLE: Told = ("DestinationUnreachable", errno.EHOSTUNREACH, 4, "destination")
FAILED: Told = ("RequestRefused", errno.ECONNABORTED, 1, "proxy")
HUNG_UP: Told = ("ProxyMisbehaved", errno.ECONNRESET, None, "proxy")
NO_NAME: Told = ("NameNotFound", socket.EAI_NONAME, None, "here")
CANNOT: Told = ("RequestRefused", errno.EAFNOSUPPORT, None, "here")
NOT_LET_IN: Told = ("LoginRefused", errno.EACCES, None, "proxy")
LATE: Told = ("ProxyTimedOut", errno.ETIMEDOUT, None, "proxy")


def tells(result: dict[str, Any], wanted: Told, *words: str, secret: str = "\n") -> None:
    for client in CLIENTS:
        got = result[client]
        if wanted[1] == errno.ETIMEDOUT and wanted[2] is None and client == "non-blocking":
            assert got[0] == "still on its way"
            continue
        assert tuple(got[:4]) == wanted, client
        assert all(word in got[4] for word in words), (client, got[4])
        assert secret not in got[4]


EACH = [(name, scheme) for name, schemes in UPSTREAMS.items() for scheme in schemes]
RESOLVE = ("socks4a", "socks5h", "http")


@pytest.mark.parametrize(("name", "scheme"), EACH)
def test_every_scheme_and_destination(net: Network, name: str, scheme: str) -> None:
    need(name)
    proxy = url(name, scheme)
    jobs = [fetching(net, proxy, host) for host in (TARGET, NAME, TARGET6)]
    *others, six = drive(net, "meet", *jobs)
    all_fetched(others)
    if scheme in ("socks4", "socks4a"):
        tells(six, CANNOT, f"{scheme} has no way to say [{TARGET6}]")
    else:
        all_fetched([six])


# SOCKS4 has one word for all, and ssh, which knows why it has failed, only hangs up.
CLOSED = {"muonsocks": REFUSED, "microsocks": REFUSED, "dante": REFUSED}
UNKNOWN = {"muonsocks": UNREACHABLE, "dante": UNREACHABLE}


@pytest.mark.parametrize(("name", "scheme"), EACH)
def test_what_they_refuse(net: Network, name: str, scheme: str) -> None:
    need(name)
    proxy = url(name, scheme)
    closed, unknown, silent = drive(
        net,
        "meet",
        *[job(proxy, TARGET, 1), job(proxy, NOWHERE, 80), job(proxy, SILENT, 80, SHORT)],
    )
    otherwise = HUNG_UP if name == "ssh" else FAILED
    is_told = scheme in ("socks5", "socks5h")
    tells(closed, CLOSED.get(name, otherwise) if is_told else otherwise, proxy)
    if scheme in RESOLVE:
        tells(unknown, UNKNOWN.get(name, otherwise) if is_told else otherwise, proxy)
    else:
        tells(unknown, NO_NAME, NOWHERE)
    tells(silent, LATE, proxy)


def test_a_proxy_that_waits_no_longer(net: Network) -> None:
    """It says so, and it is the destination that is silent."""
    proxy = f"socks5://{HOST}:{IMPATIENT}"
    [silent] = drive(net, "meet", job(proxy, SILENT, 80))
    tells(silent, ("DestinationTimedOut", errno.ETIMEDOUT, 6, "destination"), proxy)


@pytest.mark.parametrize("name", HAVE_PASSWORDS)
def test_passwords(net: Network, name: str) -> None:
    need(name)
    scheme = UPSTREAMS[name][-1]
    login = DANTE_LOGIN if name == "dante" else LOGIN
    wrong = [login.replace("secret", "guess"), "mallory:secret"]
    place = f"{scheme}://{at(name, True)}"
    right, none, *others = drive(
        net,
        "meet",
        fetching(net, url(name, scheme, login), NAME),
        fetching(net, place, NAME),
        *[fetching(net, url(name, scheme, one), NAME) for one in wrong],
    )
    all_fetched([right])
    tells(none, NOT_LET_IN, place, "it wants a password")
    for other in others:
        tells(other, NOT_LET_IN, place, "it refuses the password", secret="guess")


def test_other_places(net: Network) -> None:
    """At an IPv6 address, at a name, at a unix socket."""
    proxies = [
        *[f"socks5h://[{TARGET6}]:{AT_SIX}", f"socks4a://{NAME}:{AT_PATH}"],
        *[f"socks5h://localhost{net.work}/proxy", f"socks5://unix:{net.work}/proxy"],
    ]
    all_fetched(drive(net, "meet", *[fetching(net, one, TARGET) for one in proxies]))


def test_nobody_there(net: Network) -> None:
    """At a port that is closed, at an address that is silent, behind a name, at a path."""
    places = (f"{HOST}:1", f"[{TARGET6}]:1", f"{NAME}:1", f"unix:{net.work}/none")
    jobs = [job(f"socks5h://{place}", TARGET, 80) for place in places]
    silent = job(f"http://{SILENT}:80", TARGET, 80, SHORT)
    unknown = job(f"socks5://{NOWHERE}", TARGET, 80)
    results = drive(net, "meet", *jobs, unknown, silent)
    for place, result in zip(places, results[:4], strict=True):
        number = errno.ENOENT if "unix" in place else errno.ECONNREFUSED
        tells(result, ("ProxyUnreachable", number, None, "proxy"), f"socks5h://{place}: ")
    tells(results[4], ("ProxyUnreachable", errno.EHOSTUNREACH, None, "proxy"), NOWHERE)
    tells(results[5], LATE, f"http://{SILENT}:80: ")


# Several

CHAINS = {
    "two": ["muonsocks socks5", "dante socks5h"],
    "two, by HTTP": ["tinyproxy http", "microsocks socks5h"],
    "two, through ssh": ["ssh socks4a", "tinyproxy http"],
    "three": ["muonsocks socks5h", "dante socks5", "muonsocks socks5"],
    "three of others": ["dante socks4", "ssh socks5h", "microsocks socks5h"],
}


def chain(what: str) -> list[str]:
    words = [one.split() for one in CHAINS[what]]
    need(*[name for name, _ in words])
    return [url(*one) for one in words]


@pytest.mark.parametrize("what", CHAINS)
def test_chains(net: Network, what: str) -> None:
    """Each one that is missing is named, and by whom it is missed, if that one says so."""
    urls = chain(what)
    jobs = [fetching(net, " ".join(urls), NAME)]
    for place, one in enumerate(urls):
        gone = f"{one.partition(':')[0]}://{HOST}:1"
        jobs.append(job(" ".join([*urls[:place], gone, *urls[place + 1 :]]), TARGET, 80))
    whole, *gaps = drive(net, "meet", *jobs)
    all_fetched([whole])
    for place, gap in enumerate(gaps):
        before = CHAINS[what][place - 1]
        gone = jobs[place + 1]["proxy"].split()[place]
        if place and before.startswith("ssh"):
            tells(gap, HUNG_UP, f"{urls[place - 1]}: ")
        elif place:
            unreachable = ("ProxyUnreachable", errno.EHOSTUNREACH, None, "proxy")
            tells(gap, unreachable, f"{gone}: ", f"says {urls[place - 1]}")
        else:
            tells(gap, ("ProxyUnreachable", errno.ECONNREFUSED, None, "proxy"), f"{gone}: ")


def test_the_last_one_speaks_of_the_destination(net: Network) -> None:
    urls = chain("three")
    closed, silent = drive(
        net,
        "meet",
        job(" ".join(urls), TARGET, 1),
        job(f"{urls[0]} socks5://{SILENT}:80", TARGET, 80, SHORT),
    )
    tells(closed, REFUSED, f"says {urls[2]}")
    tells(silent, LATE, f"{urls[0]}: ")  # who has not answered


# BIND, and where UDP ASSOCIATE leads to

TALKED = {waits: [True, "question", "answer"] for waits in ("True", "False")}


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("muonsocks", "socks5"), ("muonsocks", "socks4"), ("dante", "socks5"), ("dante", "socks4")],
)
def test_bind(net: Network, name: str, scheme: str) -> None:
    need(name)
    [result] = drive(net, "bind", {"proxy": url(name, scheme), "from": TARGET})
    assert result == TALKED


@pytest.mark.parametrize("name", ["microsocks", "ssh"])
def test_who_has_no_bind(net: Network, name: str) -> None:
    need(name)
    [result] = drive(net, "bind", {"proxy": url(name, "socks5"), "from": TARGET})
    refused = ["RequestRefused", errno.EOPNOTSUPP, 7, "proxy"]
    wanted = list(HUNG_UP) if name == "ssh" else refused
    for waits in ("True", "False"):
        assert result[waits][:4] == wanted


def test_a_chain_ends_with_bind(net: Network) -> None:
    need("dante", "microsocks")
    urls = [url("microsocks", "socks5"), url("dante", "socks5")]
    [result] = drive(net, "bind", {"proxy": " ".join(urls), "from": TARGET})
    assert result == TALKED


@pytest.mark.parametrize("name", ["muonsocks", "dante"])
def test_where_datagrams_lead_to(net: Network, name: str) -> None:
    need(name)
    jobs = {"proxy": url(name, "socks5"), "command": Command.ASSOCIATE, "to": ["0.0.0.0", 0]}
    assert drive(net, "bounds", jobs) == [["bound", HOST, True]]


# Tor, as far as it goes without a network


@pytest.mark.parametrize("scheme", ["socks4a", "socks5h"])
def test_tor(net: Network, tor: str, scheme: str) -> None:
    """It refuses everything, by 1, or by 6 where it has waited for a network. Any login is let in,
    and is another way through Tor than all others have.
    """
    login = "" if scheme == "socks4a" else "isolated:secret@"
    proxies = [f"{scheme}://{login}{place}" for place in (f"{HOST}:{TOR[1]}", f"unix:{tor}")]
    hosts = (TARGET, NAME, "example.onion")
    results = drive(net, "meet", *[job(one, host, 80) for one in proxies for host in hosts])
    for result in results:
        for client in CLIENTS:
            kind, number, code, side, words, _ = result[client]
            is_late = ("DestinationTimedOut", errno.ETIMEDOUT, 6, "destination")
            assert (kind, number, code, side) in (FAILED, is_late)
            assert "secret" not in words and f"says {scheme}://" in words


def test_tor_is_no_http_proxy(net: Network, tor: str) -> None:
    [result] = drive(net, "meet", job(f"http://{HOST}:{TOR[1]}", NAME, 80))
    tells(result, FAILED, "status 501, says http://")


# Many


def test_many_at_once(net: Network) -> None:
    proxies = [url("muonsocks", "socks5h"), f"socks5h://localhost{net.work}/proxy"]
    jobs = [{"proxy": one, "count": AT_ONCE, "to": TARGET} for one in proxies]
    assert drive(net, "crowd", *jobs) == [[AT_ONCE, AT_ONCE]] * 2
