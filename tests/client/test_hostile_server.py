"""Proxies that do what they should not: nothing hangs, nothing leaks, nothing is taken for what it
is not, and who is to blame is named.
"""

import asyncio
import contextlib
import errno
import select
import socket
from collections.abc import Iterator

import hostile
import pytest
from each_client import CLIENTS, PATIENCE, PENDING, Told, agrees, read, told
from ends import nothing_left_behind
from hostile import (
    ARRIVES,
    ASKED5,
    CARRIED,
    CASES,
    DESTINATION,
    GONE,
    GRANTED4,
    GRANTED5,
    GREETING5,
    LATE,
    LOGIN5,
    ME,
    OK,
    Case,
    breaks,
    come,
    expected,
    named,
    refuses,
    reply5,
)
from upstream import BYTE_BY_BYTE, END, RESET, Script, Upstream

from muonsocks.client import SocksSocket, open_socket

SHORT = 0.25  # s, for what never comes


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    hostile.warm_up()


@pytest.fixture(autouse=True)
def leaks_nothing(warm: None) -> Iterator[None]:
    with nothing_left_behind():
        yield


@pytest.mark.parametrize("what", CASES)
def test_each_client_is_told(what: str) -> None:
    case = CASES[what]
    seconds = SHORT if case.told is LATE else PATIENCE
    for client in CLIENTS:
        got, took, proxy = hostile.meet(client, case, seconds)
        assert agrees(got, expected(client, case)), (client, got)
        if got.kind not in ("connected", PENDING.kind):
            assert proxy in got.words, client
        assert took < PATIENCE
        assert took > 0.9 * seconds or case.told is not LATE, f"{client} gives up too early"


def test_without_a_time_limit() -> None:
    for what in ("socks5: a right answer", "socks5: closes at once", "http: refuses by 502"):
        for client in CLIENTS.values():
            with Upstream(CASES[what].script) as upstream:
                got = come(client, upstream.url(CASES[what].scheme), None)
            assert agrees(got, CASES[what].told)


# Cut off at each byte

DIALOGUES: dict[str, tuple[str, str, list[int | bytes]]] = {
    "socks5": ("socks5", "", [GREETING5, b"\5\0", ASKED5, GRANTED5]),
    "socks5, password": ("socks5", ME, [4, b"\5\2", LOGIN5, b"\1\0", ASKED5, GRANTED5]),
    "socks5, name": ("socks5", "", [GREETING5, b"\5\0", ASKED5, named(b"a.b")]),
    "socks4": ("socks4", "", [hostile.ASKED4, GRANTED4]),
    "http": ("http", "", [hostile.ASKED_HTTP, hostile.WAIT + OK]),
}


def cut_off(dialogue: list[int | bytes]) -> Iterator[list[int | bytes | str]]:
    """The dialogue up to each byte that is said, before the last one."""
    done: list[int | bytes | str] = []
    for step in dialogue:
        if isinstance(step, bytes):
            for place in range(len(step)):
                yield [*done, step[:place]] if place else list(done)
        done.append(step)


@pytest.mark.parametrize("end", [END, RESET])
@pytest.mark.parametrize("what", DIALOGUES)
def test_cut_off_at_each_byte(what: str, end: str) -> None:
    scheme, login, dialogue = DIALOGUES[what]
    scripts = [[*script, end] for script in cut_off(dialogue)]
    for client in CLIENTS:
        with Upstream(*scripts) as upstream:
            for script in scripts:
                got = come(CLIENTS[client], upstream.url(scheme, login), PATIENCE)
                assert agrees(got, GONE), (client, script, got)


@pytest.mark.parametrize("what", DIALOGUES)
def test_silent_at_each_byte(what: str) -> None:
    """All at once: silence takes its time."""
    scheme, login, dialogue = DIALOGUES[what]

    async def story(upstreams: list[Upstream]) -> list[Told]:
        async def one(upstream: Upstream) -> Told:
            try:
                proxy = upstream.url(scheme, login)
                await open_socket(*DESTINATION, proxy=proxy, timeout=4 * SHORT)
            except OSError as error:
                return told(error)
            return ARRIVES

        return await asyncio.gather(*map(one, upstreams))

    with contextlib.ExitStack() as stack:
        scripts = list(cut_off(dialogue))
        upstreams = [stack.enter_context(Upstream(script)) for script in scripts]
        for script, got in zip(scripts, asyncio.run(story(upstreams)), strict=True):
            assert agrees(got, LATE), (script, got)


# Several in a row, and other places

FIRST: list[int | bytes] = [GREETING5, b"\5\0", ASKED5, GRANTED5]
BEHIND: dict[str, tuple[str, list[int | bytes | str], Told]] = {
    "arrives": ("socks4", [9, GRANTED4 + CARRIED], ARRIVES),
    "is none": ("socks5", [3, b"HTTP/1.1 200\r\n\r\n"], breaks("version 72")),
    "refuses": ("socks5", [3, b"\5\0", 10, reply5(3)], refuses(3, "network unreachable")),
    "closes": ("http", [5, END], GONE),
    "is silent": ("http", [], LATE),
}


@pytest.mark.parametrize("what", BEHIND)
def test_the_second_of_two(what: str) -> None:
    """It is the one who is named."""
    scheme, script, wanted = BEHIND[what]
    second = f"{scheme}://192.0.2.99:99"
    for name, client in CLIENTS.items():
        with Upstream([*FIRST, *script]) as upstream:
            way = (upstream.url("socks5"), hostile.proxy_of(second))
            got = come(client, way, SHORT if wanted is LATE else PATIENCE)
        assert agrees(got, expected(name, Case(scheme, [], wanted))), (name, got)
        if got.words:
            assert second in got.words and str(way[0]) not in got.words


@pytest.mark.parametrize("code", [1, 2, 5])
def test_no_way_from_the_first_to_the_second(code: int) -> None:
    """What the destination would have said is unknown: no code, and no refusal of its."""
    second = hostile.proxy_of("socks5://192.0.2.99:99")
    for client in CLIENTS.values():
        with Upstream([*FIRST[:3], reply5(code)]) as upstream:
            first = upstream.url("socks5")
            got = come(client, (first, second), PATIENCE)
        assert got[:4] == ("ProxyUnreachable", errno.EHOSTUNREACH, None, "proxy")
        assert got.words.startswith(f"{second}: ") and got.words.endswith(f"says {first}")


def test_at_a_unix_socket(tmp_path: object) -> None:
    for number, (what, client) in enumerate(
        (what, client) for what in ("a right answer", "closes at once") for client in CLIENTS
    ):
        case = hostile.SOCKS5[what]
        with Upstream(case.script, path=f"{tmp_path}/{number}") as upstream:
            got = come(CLIENTS[client], upstream.url("socks5"), PATIENCE)
        assert agrees(got, case.told), (client, got)


# UDP ASSOCIATE begins with the same dialogue


@pytest.mark.parametrize("what", hostile.SOCKS5)
def test_associate(what: str) -> None:
    case = hostile.SOCKS5[what]
    with Upstream(case.script) as upstream:
        proxy = upstream.url("socks5", case.login)
        got = come(hostile.associate, proxy, SHORT if case.told is LATE else PATIENCE)
    assert agrees(got, case.told), got


# BIND has a second reply

BOUND = [3, b"\5\0", 10, GRANTED5]
CALLER = bytes.fromhex("05 00 00 01 c0000263 0102")
SECOND: dict[str, tuple[list[int | bytes | str | float], Told]] = {
    "somebody comes": ([CALLER + CARRIED], ARRIVES),
    "both replies at once": ([], ARRIVES),
    "byte by byte": ([BYTE_BY_BYTE, CALLER, CARRIED], ARRIVES),
    "nobody comes": ([0.05, reply5(6)], refuses(6, "ttl expired, says ")),
    "another one comes": ([reply5(1)], refuses(1, "general failure, says ")),
    "closes": ([0.05, END], GONE),
    "resets": ([0.05, RESET], GONE),
    "half a reply, then the end": ([CALLER[:5], END], GONE),
    "version 0": ([bytes(8)], breaks("version 0")),
    "address type 9": ([b"\5\0\0\x09"], breaks("address type 9")),
}


def bind_script(what: str) -> Script:
    script, _ = SECOND[what]
    if what == "both replies at once":
        return [3, b"\5\0", 10, GRANTED5 + CALLER + CARRIED]
    return [*BOUND, *script]


def accept(sock: SocksSocket) -> Told:
    try:
        conn, peer = sock.accept()
    except OSError as error:
        return told(error)
    with conn:
        conn.settimeout(PATIENCE)
        assert peer == conn.getpeername() == ("192.0.2.99", 0x0102)
        return Told("connected", carried=read(conn, len(CARRIED)))


@pytest.mark.parametrize("what", SECOND)
def test_bind(what: str) -> None:
    wanted = SECOND[what][1]
    with Upstream(bind_script(what)) as upstream, SocksSocket(proxy=upstream.url("socks5")) as sock:
        sock.settimeout(PATIENCE)
        sock.listen()
        assert sock.getsockname() == ("192.0.2.9", 0x1000)
        got = accept(sock)
        assert agrees(got, wanted), got


@pytest.mark.parametrize("what", SECOND)
def test_bind_that_does_not_block(what: str) -> None:
    wanted = SECOND[what][1]
    with Upstream(bind_script(what)) as upstream, SocksSocket(proxy=upstream.url("socks5")) as sock:
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.listen()
        assert select.select([], [sock], [], PATIENCE)[1]
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        while (got := accept(sock)).number == errno.EAGAIN:
            assert select.select([sock], [], [], PATIENCE)[0], "it does not come"
        assert agrees(got, wanted), got


@pytest.mark.parametrize("said", range(len(CALLER)))
def test_who_is_awaited_is_awaited_again(said: int) -> None:
    """A time limit loses nothing of what has been said."""
    script: Script = [*BOUND, CALLER[:said], 3 * SHORT, CALLER[said:] + CARRIED]
    with Upstream(script) as upstream, SocksSocket(proxy=upstream.url("socks5")) as sock:
        sock.settimeout(PATIENCE)
        sock.listen()
        sock.settimeout(SHORT)
        with pytest.raises(TimeoutError):
            sock.accept()
        sock.settimeout(PATIENCE)
        assert accept(sock) == ARRIVES


def test_the_first_reply_of_bind_fails_as_any() -> None:
    for what in ("closes after the request", "refuses by 7", "address type 2", "wants a password"):
        case = hostile.SOCKS5[what]
        with Upstream(case.script) as upstream, SocksSocket(proxy=upstream.url("socks5")) as sock:
            sock.settimeout(PATIENCE)
            with pytest.raises(OSError) as caught:
                sock.listen()
            assert agrees(told(caught.value), case.told)


def test_one_that_resets_behind_its_reply_to_bind() -> None:
    """Its address is nowhere to be had, and it is to blame; or else who waits is told."""
    granted = bytes.fromhex("05 00 00 01 00000000 1000")
    script: Script = [3, b"\5\0", 10, granted, RESET]
    with Upstream(script) as upstream, SocksSocket(proxy=upstream.url("socks5")) as sock:
        sock.settimeout(PATIENCE)
        with pytest.raises(OSError) as caught:
            sock.listen()
            sock.accept()
    assert agrees(told(caught.value), GONE)
