"""Through proxies as people have them: each protocol, each kind of destination, chains of several,
passwords, and what clients are told when it does not work.
"""

import contextlib
import hashlib
from collections.abc import Iterator

import clients
import pytest
import upstreams
from clients import NAME, SOCKS_INETD, TARGET, TARGET6, Network, body
from programs import GREETING, Program, serving, socks5
from upstreams import DANTE_LOGIN, HAVE_PASSWORDS, HOST, LOGIN, TOR, UPSTREAMS, at, url

from muonsocks.socks.request import REPLY_NAMES

pytestmark = pytest.mark.xdist_group("upstreams")  # one network

MUCH = 1 << 20  # bytes


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    if reason := clients.missing("unshare", "nsenter", "ip"):
        pytest.skip(reason)
    work = tmp_path_factory.mktemp("upstreams")
    with clients.network(work) as net, contextlib.ExitStack() as stack:
        for name in UPSTREAMS:
            if not upstreams.missing(name):
                upstreams.start(net, stack, name)
                if name in HAVE_PASSWORDS:
                    upstreams.start(net, stack, name, with_password=True)
        yield net


def need(*names: str) -> None:
    for name in names:
        if reason := upstreams.missing(name):
            pytest.skip(reason)


@contextlib.contextmanager
def through(net: Network, *urls: str) -> Iterator[Program]:
    with serving(*net.command([SOCKS_INETD, *[f"--via={one}" for one in urls]])) as program:
        yield program


def ask(program: Program, host: str, port: int) -> int:
    """Give the reply code."""
    program.client.send(GREETING + socks5(host, port))
    assert program.client.read(2) == b"\5\0"
    head = program.client.read(4)
    assert len(program.client.read(18 if head[3] == 4 else 6)) in (6, 18)
    return head[1]


def refusal(net: Network, host: str, port: int, *urls: str) -> tuple[int, str]:
    """The reply code and the word in the log, of what does not work."""
    with through(net, *urls) as program:
        code = ask(program, host, port)
        program.client.end()
        assert program.client.rest() == b""
        assert program.status == 0
    return code, program.end


def port_of(net: Network, host: str) -> int:
    return net.web[TARGET6 if ":" in host else TARGET]


def fetch(net: Network, program: Program, host: str, size: int) -> None:
    assert ask(program, host, port_of(net, host)) == 0
    program.client.send(b"GET /%d HTTP/1.0\r\n\r\n" % size)
    head, _, data = program.client.rest().partition(b"\r\n\r\n")
    assert b" 200 " in head
    assert data == body(size)


EACH = [(name, scheme) for name, schemes in UPSTREAMS.items() for scheme in schemes]
RESOLVE = ("socks4a", "socks5h", "http")


@pytest.mark.parametrize("host", [TARGET, TARGET6, NAME])
@pytest.mark.parametrize(("name", "scheme"), EACH)
def test_every_scheme_and_destination(net: Network, name: str, scheme: str, host: str) -> None:
    need(name)
    proxy = url(name, scheme)
    if scheme in ("socks4", "socks4a") and host == TARGET6:
        assert refusal(net, host, port_of(net, host), proxy) == (8, "dial-failed")
        return
    with through(net, proxy) as program:
        fetch(net, program, host, 1000)
    asked = TARGET if host == NAME and scheme not in RESOLVE else host
    shown = f"[{asked}]" if ":" in asked else asked
    assert f'address={shown}:{port_of(net, host)} via="{proxy}"' in program.log


# What they say of a port that is closed, and of a name that nobody knows. SOCKS4 has one word for
# all, and ssh, which knows why it has failed, only hangs up.
CLOSED = {"muonsocks": 5, "microsocks": 5, "dante": 5}
UNKNOWN = {"muonsocks": 4, "dante": 4}


@pytest.mark.parametrize(("name", "scheme"), EACH)
def test_what_they_refuse(net: Network, name: str, scheme: str) -> None:
    need(name)
    word = "via-failed" if name == "ssh" else "dial-failed"
    is_told = scheme in ("socks5", "socks5h")
    code = CLOSED.get(name, 1) if is_told else 1
    assert refusal(net, TARGET, 1, url(name, scheme)) == (code, word)
    code = UNKNOWN.get(name, 1) if is_told else 1
    expected = (code, word) if scheme in RESOLVE else (4, "name-not-found")
    assert refusal(net, "nowhere.test", 80, url(name, scheme)) == expected


@pytest.mark.parametrize("name", HAVE_PASSWORDS)
def test_passwords(net: Network, name: str) -> None:
    need(name)
    scheme = UPSTREAMS[name][-1]
    login = DANTE_LOGIN if name == "dante" else LOGIN
    with through(net, url(name, scheme, login)) as program:
        fetch(net, program, NAME, 1000)
    assert login not in program.log
    place = f"{scheme}://{at(name, True)}"
    for wrong in (login.replace("secret", "guess"), "mallory:secret"):
        proxy = url(name, scheme, wrong)
        with through(net, proxy) as program:
            assert ask(program, NAME, 80) == 1
            program.client.end()
            assert program.status == 0
        assert f'end=via-failed detail="{place}: it refuses the password"' in program.log
        assert "guess" not in program.log
    assert refusal(net, NAME, 80, place) == (1, "via-failed")


CHAINS = {
    "two": ["muonsocks socks5", "dante socks5h"],
    "two, by HTTP": ["tinyproxy http", "microsocks socks5h"],
    "two, through ssh": ["ssh socks4a", "tinyproxy http"],
    "three": ["muonsocks socks5h", "dante socks5", "muonsocks socks5"],
    "three of others": ["dante socks4", "ssh socks5h", "microsocks socks5h"],
    "five": [
        *["microsocks socks5", "tinyproxy http", "ssh socks5"],
        *["dante socks4", "muonsocks socks4a"],
    ],
}


def chain(words: list[str]) -> list[str]:
    need(*[one.split()[0] for one in words])
    return [url(*one.split()) for one in words]


@pytest.mark.parametrize("what", CHAINS)
def test_chains(net: Network, what: str) -> None:
    """A lot comes, a lot goes."""
    urls = chain(CHAINS[what])
    with through(net, *urls) as program:
        fetch(net, program, NAME, MUCH)
    assert f'via="{",".join(urls)}"' in program.log
    with through(net, *urls) as program:
        assert ask(program, TARGET, port_of(net, TARGET)) == 0
        head = f"PUT / HTTP/1.0\r\nContent-Length: {MUCH}\r\n\r\n"
        program.client.send(head.encode() + body(MUCH))
        said = f"{MUCH} {hashlib.sha256(body(MUCH)).hexdigest()}"
        assert program.client.rest().endswith(said.encode())


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_chain_with_a_gap(net: Network, gone: int) -> None:
    urls = chain(CHAINS["three"])
    scheme = urls[gone].partition(":")[0]
    urls[gone] = f"{scheme}://{HOST}:1"
    assert refusal(net, TARGET, port_of(net, TARGET), *urls) == (1, "via-failed")


def test_the_last_one_speaks_of_the_destination(net: Network) -> None:
    assert refusal(net, TARGET, 1, *chain(CHAINS["three"])) == (5, "dial-failed")


# Tor, as far as it goes without a network: it refuses


@pytest.fixture(scope="module")
def tor(net: Network) -> Iterator[str]:
    """The path of its unix socket."""
    if reason := clients.missing("tor"):
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        yield upstreams.start_tor(net, stack)


@pytest.mark.parametrize("host", [TARGET, NAME, "example.onion"])
@pytest.mark.parametrize("scheme", ["socks4a", "socks5h"])
def test_tor(net: Network, tor: str, scheme: str, host: str) -> None:
    """It refuses everything, having no network: by 1, or by 6 where it has waited for one. What it
    says the client hears, and the log has it.
    """
    for place in (f"{HOST}:{TOR[1]}", f"unix:{tor}"):
        with through(net, f"{scheme}://{place}") as program:
            code = ask(program, host, 80)
            program.client.end()
            assert program.client.rest() == b""
            assert program.status == 0
        assert code in ((1, 6) if scheme == "socks5h" else (1,))
        assert (
            f'end=dial-failed detail="{REPLY_NAMES[code]}, says {scheme}://{place}"' in program.log
        )


def test_tor_is_no_http_proxy(net: Network, tor: str) -> None:
    with through(net, f"http://{HOST}:{TOR[1]}") as program:
        assert ask(program, NAME, 80) == 1
        program.client.end()
        assert program.status == 0
    assert 'detail="status 501, says http://' in program.log
