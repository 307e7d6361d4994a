"""Real programs under socksify, in a network whose only cable is looked at: not one packet is for
anything but the proxy.

leak_table.py prints what is found here.
"""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator

import captured
import pytest
from captured import MODES, OUTER, OUTER6, PYTHON, Outcome, World, missing
from clients import MUONSOCKS, NAME, TARGET
from leak_hostile import FIRST_PORT, WAYS
from leak_programs import (
    DECEITS,
    FETCH,
    ISOLATED_DECEITS,
    PROGRAMS,
    TRIES_EVERYTHING,
    Program,
    serve_all,
)

NOT_EVERYWHERE = ("mptcp", "io-uring", "i386", "argument")
SECONDS = 30
SLOW_PORT = 1081  # where another proxy is
SOME = [one for one in PROGRAMS if one.name in ("curl, http by name", "python, threads")]


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """The networks, once for each worker of pytest."""
    if reason := missing():
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        there = stack.enter_context(captured.world())
        serve_all(stack, there)
        yield there


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    mode: str = request.param
    return mode


def expect_only_proxy(outcome: Outcome) -> None:
    assert not outcome.leaks, f"{len(outcome.leaks)} packets: {outcome.leaks[:5]}"
    assert not outcome.asked


def expect_success(outcome: Outcome) -> None:
    expect_only_proxy(outcome)
    assert outcome.status == 0, outcome.output
    assert outcome.to_proxy


def need(program: Program) -> None:
    if reason := missing(*program.needs):
        pytest.skip(reason)


def str_of(program: Program) -> str:
    return program.name


each_program = pytest.mark.parametrize("program", PROGRAMS, ids=str_of)


@each_program
def test_without_socksify_it_is_seen(world: World, program: Program) -> None:
    need(program)
    outcome = world.run(program.words(world))
    assert outcome.status == 0, outcome.output
    assert outcome.leaks
    assert program.connections == 0 or program.by_name == (NAME in outcome.asked)


@each_program
def test_only_the_proxy_is_reached(world: World, program: Program, mode: str) -> None:
    need(program)
    outcome = world.run(program.words(world), mode)
    expect_only_proxy(outcome)
    assert outcome.status == 0, outcome.output
    # Who has both an IPv4 and an IPv6 address of a name may try the other one after a while.
    most = program.connections * (2 if program.by_name else 1)
    assert program.connections <= len(outcome.proxied) <= most
    of_name = [target.startswith(f"{NAME}:") for target in outcome.proxied]
    assert all(of_name) if program.by_name else not any(of_name)


# Who means to get past


def ways_seen(outcome: Outcome) -> set[str]:
    """Give which of WAYS have come through, as far as a port tells; and the protocols of others."""
    found = set()
    for leak in outcome.leaks:
        what = leak.partition(": ")[0]
        kind, port = what.split(" to ")[0], int(what.rsplit(" ", 1)[1])
        number = port - FIRST_PORT
        found.add(WAYS[number].__name__ if 0 <= number < len(WAYS) else kind)
    return found


WITHOUT_RIGHTS = {way.__name__ for way in WAYS} - {
    # UDP-Lite and these have no ports that we read, or no port 700x
    *("light", "ping", "ping_by_ipv6", "join", "join_by_name_of_group", "join_by_ipv6"),
    *("join_by_tcp", "stream_to_link_local"),  # which the kernel, or nobody, answers
    *("dccp", "sctp", "sctp_of_many"),  # which a kernel need not have
    *("raw", "raw_and_connected", "raw_by_ipv6", "frame"),  # for which one has to be root
}


def test_without_socksify_what_is_hostile_is_seen() -> None:
    """In a world of its own, whose kernel may tell of groups when nobody is in them any more."""
    if reason := missing():
        pytest.skip(reason)
    with captured.world() as world:
        words = TRIES_EVERYTHING.words(world)
        assert ways_seen(world.run(words)) >= WITHOUT_RIGHTS | {"ICMP", "ICMPv6", "IGMP"}
        seen = ways_seen(world.run(words, is_root=True))
        assert seen >= WITHOUT_RIGHTS | {"raw", "raw_and_connected", "raw_by_ipv6", "frame"}


@pytest.mark.parametrize("is_root", [False, True], ids=["nobody", "root"])
def test_nothing_hostile_gets_past(world: World, mode: str, is_root: bool) -> None:
    outcome = world.run(TRIES_EVERYTHING.words(world), mode, is_root=is_root)
    assert not ways_seen(outcome)
    expect_only_proxy(outcome)
    assert "stream: ECONNREFUSED" in outcome.output.splitlines()  # by the proxy
    assert f"{TARGET}:{FIRST_PORT + WAYS_BY_NAME['stream']}" in outcome.proxied


WAYS_BY_NAME = {way.__name__: number for number, way in enumerate(WAYS)}


@pytest.mark.parametrize("deceit", DECEITS + ISOLATED_DECEITS, ids=str_of)
def test_without_socksify_deceit_is_seen(world: World, deceit: Program) -> None:
    need(deceit)
    outcome = world.run(deceit.words(world))
    assert outcome.status == 0
    if not outcome.leaks and deceit.name.endswith(NOT_EVERYWHERE):
        pytest.skip("this kernel has no such thing")
    assert outcome.leaks


@pytest.mark.parametrize("deceit", DECEITS, ids=str_of)
def test_nobody_is_deceived(world: World, mode: str, deceit: Program) -> None:
    """Another thread changes what a call is about while it is answered."""
    need(deceit)
    outcome = world.run(deceit.words(world), mode)
    assert outcome.status == 0, outcome.output
    expect_only_proxy(outcome)


@pytest.mark.parametrize("deceit", ISOLATED_DECEITS, ids=str_of)
def test_a_network_of_its_own_knows_no_deceit(world: World, deceit: Program) -> None:
    test_nobody_is_deceived(world, "isolate", deceit)


def test_nobody_answers_any_more(world: World, mode: str) -> None:
    """The supervisor is killed while four threads connect, in both ways, and send datagrams."""
    world.begin()
    port = str(world.outer.web[TARGET])
    process = subprocess.Popen(
        world.command([PYTHON, FETCH, "over_and_over", TARGET, port], mode),
        env=world.environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None and process.stdin is not None
            said = process.stdout.readline()
            while not said.rstrip().isdigit():
                said = process.stdout.readline()
                assert said
            supervisor = int(said)
            world.wait_for_targets(20)
            os.kill(supervisor, signal.SIGKILL)
            process.stdin.close()
            said = process.stdout.read()
            process.wait(SECONDS)
        finally:
            process.kill()
    outcome = world.seen()
    expect_only_proxy(outcome)
    assert "ENOSYS" in (lines := said.splitlines())
    assert len(lines) == 2 and any("the supervisor has been killed" in line for line in lines)
    assert outcome.proxied


# Proxies that do not do what they should

Conduct = Callable[[socket.socket], None]


def silent(conn: socket.socket) -> None:
    conn.recv(1)  # up to the end
    while conn.recv(1024):
        pass


def hangs_up(conn: socket.socket) -> None:
    conn.recv(1024)


def resets(conn: socket.socket) -> None:
    conn.recv(1024)
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def speaks_of_something_else(conn: socket.socket) -> None:
    conn.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
    silent(conn)


def wants_a_password(conn: socket.socket) -> None:
    conn.sendall(b"\x05\xff")
    silent(conn)


def replying(code: int, after: float = 0) -> Conduct:
    def reply(conn: socket.socket) -> None:
        conn.recv(1024)
        conn.sendall(b"\x05\x00")
        conn.recv(1024)
        if after:
            gone.wait(after)
        conn.sendall(bytes([5, code, 0, 1, 0, 0, 0, 0, 0, 0]))
        silent(conn)

    gone = threading.Event()
    return reply


@contextlib.contextmanager
def proxy_that(world: World, conduct: Conduct) -> Iterator[None]:
    """Have another proxy at SLOW_PORT."""

    def serve(conn: socket.socket) -> None:
        with conn, contextlib.suppress(ConnectionError):
            conduct(conn)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                conn, _ = listener.accept()
                thread = threading.Thread(target=serve, args=(conn,))
                thread.start()
                threads.append(thread)

    listener = world.outer.socket((OUTER, SLOW_PORT))
    threads = [threading.Thread(target=accept)]
    threads[0].start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(SECONDS)
        listener.close()


FAULTS: dict[str, tuple[Conduct, str]] = {
    "never answers": (silent, "ETIMEDOUT"),
    "hangs up": (hangs_up, "ECONNRESET"),
    "resets": (resets, "ECONNRESET"),
    "is no proxy": (speaks_of_something_else, "EPROTO"),
    "wants a password": (wants_a_password, "EACCES"),
    "answers late": (replying(0, 1), ""),
    "general failure": (replying(1), "ECONNABORTED"),
    "not allowed": (replying(2), "EACCES"),
    "network unreachable": (replying(3), "ENETUNREACH"),
    "host unreachable": (replying(4), "EHOSTUNREACH"),
    "connection refused": (replying(5), "ECONNREFUSED"),
    "time to live expired": (replying(6), "ETIMEDOUT"),
    "command not supported": (replying(7), "EOPNOTSUPP"),
    "address type not supported": (replying(8), "EAFNOSUPPORT"),
    "code unknown": (replying(99), "ECONNABORTED"),
}
CONNECT = [PYTHON, FETCH, "told", TARGET, "80"]


def told(number: str) -> list[str]:
    """Give what CONNECT tells of an errno."""
    known = {"": "0", "EOPNOTSUPP": "ENOTSUP"}  # which is the same number
    return [known.get(number, number)] * 2


@pytest.mark.parametrize("fault", FAULTS)
def test_a_proxy_that(world: World, mode: str, fault: str) -> None:
    conduct, number = FAULTS[fault]
    at = (OUTER, SLOW_PORT)
    with proxy_that(world, conduct):
        outcome = world.run(CONNECT, mode, proxy=at, options=("--connect-timeout=2",))
    expect_only_proxy(outcome)
    assert outcome.output.split() == told(number)


def test_no_proxy_is_there(world: World, mode: str) -> None:
    outcome = world.run(CONNECT, mode, proxy=(OUTER, SLOW_PORT))
    expect_only_proxy(outcome)
    assert outcome.output.split() == told("ECONNREFUSED")


# Other proxies


@pytest.mark.parametrize("mode", ["async", "isolate"])
def test_a_proxy_by_ipv6(world: World, mode: str) -> None:
    """In these modes a socket that is for IPv4 gets there as well."""
    at = (OUTER6, SLOW_PORT)
    muonsocks = [MUONSOCKS, "--allow-local", f"-i{at[0]}", f"-p{at[1]}", "--workers=1"]
    with contextlib.ExitStack() as stack:
        world.outer.start(stack, muonsocks, at)
        for program in SOME:
            expect_success(world.run(program.words(world), mode, proxy=at))


def test_a_chain(world: World, mode: str) -> None:
    """The second proxy is reached through the first."""
    second = (TARGET, SLOW_PORT)
    muonsocks = [MUONSOCKS, "--allow-local", f"-i{second[0]}", f"-p{second[1]}", "--workers=1"]
    with contextlib.ExitStack() as stack:
        world.outer.start(stack, muonsocks, second)
        for program in SOME:
            options = (f"--proxy=socks4a://{second[0]}:{second[1]}",)
            outcome = world.run(program.words(world), mode, options=options)
            expect_success(outcome)
            assert set(outcome.proxied) == {f"{TARGET}:{SLOW_PORT}"}


@pytest.mark.parametrize("name", ["dante", "microsocks"])
def test_another_proxy(world: World, mode: str, name: str) -> None:
    import upstreams

    if reason := upstreams.missing(name):
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        upstreams.start(world.outer, stack, name)
        at = (upstreams.HOST, upstreams.port(name))
        for program in SOME:
            expect_success(world.run(program.words(world), mode, proxy=at))
