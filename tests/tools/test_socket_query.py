"""socket-query as a process: what it prints of real sockets, to the byte."""

import contextlib
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from programs import ROOT, SECONDS, Outcome, environment, run

from muonsocks.errors import UsageError
from muonsocks.log import Log
from muonsocks.tools import command_line, socket_query

TOOL = str(ROOT / "bin/socket-query")


def query(sock: socket.socket | int, *arguments: str, **more: Any) -> Outcome:
    """Ask for a socket on standard input."""
    fd = sock if isinstance(sock, int) else sock.fileno()
    return run(TOOL, *arguments, stdin=fd, **more)


def one_line(ended: Outcome, message: str, status: int) -> None:
    assert (ended.status, ended.output) == (status, b""), ended.log
    [line] = ended.log.splitlines()
    assert line.startswith("socket-query: ") and message in line


@contextlib.contextmanager
def connection(
    family: int, host: str, port: int = 0, kind: int = socket.SOCK_STREAM
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """What has connected, and what is connected to it; IPv6 listens for IPv4 too."""
    with contextlib.ExitStack() as stack:
        there = stack.enter_context(socket.socket(family, kind))
        there.bind((host if family == socket.AF_INET else "::", port))
        if kind == socket.SOCK_STREAM:
            there.listen()
        client_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        client = stack.enter_context(socket.socket(client_family, kind))
        client.connect((host, there.getsockname()[1]))
        if kind == socket.SOCK_STREAM:
            accepted, _ = there.accept()
            yield client, stack.enter_context(accepted)
        else:
            client.send(b"hello")
            there.connect(there.recvfrom(10)[1])
            yield client, there


LOOPBACK = "0000:0000:0000:0000:0000:0000:0000:0001"
MAPPED = "0000:0000:0000:0000:0000:ffff:7f00:0009"
RAW_LOOPBACK, RAW_MAPPED = f"{1:032X}", "00000000000000000000FFFF7F000009"

# What each option gives of an address and port: as the C program has it for IPv6.
FORMS = {
    "": "{both} {far_both}",
    "-l": "{both}",
    "-r": "{far_both}",
    "-l -a": "{address}",
    "-r -a": "{far_address}",
    "-l -p": "{port}",
    "-r -p": "{far_port}",
    "-R": "{raw}:{port:04X} {far_raw}:{far_port:04X}",
    "-R -l": "{raw}:{port:04X}",
    "-R -r": "{far_raw}:{far_port:04X}",
    "-R -l -a": "{raw}",
    "-R -r -a": "{far_raw}",
    "-R -l -p": "{port:04X}",
    "-R -r -p": "{far_port:04X}",
}
PLACES = {  # how it listens, what is connected to; the address of the one who is asked, as text
    "IPv6": (socket.AF_INET6, "::1", LOOPBACK, RAW_LOOPBACK, "[{}]:{}"),
    "IPv4": (socket.AF_INET, "127.0.0.9", "127.0.0.9", RAW_MAPPED, "{}:{}"),
}


@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["TCP", "UDP"])
@pytest.mark.parametrize("place", PLACES)
def test_forms(place: str, kind: socket.SocketKind, options: str) -> None:
    family, host, address, raw, both = PLACES[place]
    with connection(family, host, kind=kind) as (client, accepted):
        near, far = (sock.getsockname()[1] for sock in (accepted, client))
        # A client at 127.0.0.9's place is at 127.0.0.1.
        far_address = "127.0.0.1" if place == "IPv4" else address
        far_raw = raw.replace("7F000009", "7F000001")
        expected = FORMS[options].format(
            both=both.format(address, near),
            far_both=both.format(far_address, far),
            address=address,
            far_address=far_address,
            port=near,
            far_port=far,
            raw=raw,
            far_raw=far_raw,
        )
        ended = query(accepted, *options.split())
        assert (ended.status, ended.log) == (0, "")
        assert ended.output == f"{expected}\n".encode()


def test_ipv4_at_a_socket_of_ipv6() -> None:
    """Is shown as the kernel has it, and raw as IPv4 at one of its own is."""
    with connection(socket.AF_INET6, "127.0.0.9") as (client, accepted):
        port, far = accepted.getsockname()[1], client.getsockname()[1]
        local = query(accepted, "-l")
        assert local.output == f"[{MAPPED}]:{port}\n".encode()
        assert query(accepted, "-la").output == f"{MAPPED}\n".encode()
        assert query(accepted, "-Rl").output == f"{RAW_MAPPED}:{port:04X}\n".encode()
        assert query(client, "-Rr").output == f"{RAW_MAPPED}:{port:04X}\n".encode()
        assert query(client, "-lp").output == f"{far}\n".encode()


def test_every_digit(tmp_path: Path) -> None:
    """Addresses of which no part is like another, in a network of their own."""
    script = """
import socket, subprocess, sys
subprocess.run("ip link set lo up; ip addr add 2001:db8:1:20:300:4000:abcd:ef/128 dev lo nodad",
    shell=True, check=True)
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
    sock.bind(("2001:db8:1:20:300:4000:abcd:ef", 80))
    sock.connect(("2001:db8:1:20:300:4000:abcd:ef", 5))
    for option in "-l", "-r", "-R", "-Rlp", "-Rrp":
        subprocess.run([sys.argv[1], option], stdin=sock, check=True)
"""
    command = ["unshare", "-n", "/usr/bin/python3", "-c", script, TOOL]
    if os.geteuid():
        command.insert(1, "-r")
    done = subprocess.run(command, capture_output=True, timeout=SECONDS, env=environment())
    if b"unshare" in done.stderr:
        pytest.skip(f"no network namespace here: {done.stderr.decode()}")
    assert done.stderr == b""
    assert done.stdout.decode().splitlines() == [
        "[2001:0db8:0001:0020:0300:4000:abcd:00ef]:80",
        "[2001:0db8:0001:0020:0300:4000:abcd:00ef]:5",
        "20010DB80001002003004000ABCD00EF:0050 20010DB80001002003004000ABCD00EF:0005",
        "0050",
        "0005",
    ]


def test_a_link_local_address() -> None:
    """Comes with an interface, which is not shown: nor is it by the C program."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind(("fe80::1", 0, 0, socket.if_nametoindex("lo")))
        except OSError:
            # Nobody has the address here: the kernel takes it for one that may come.
            sock.setsockopt(socket.IPPROTO_IPV6, 78, 1)  # IPV6_FREEBIND
            sock.bind(("fe80::1", 0, 0, socket.if_nametoindex("lo")))
        assert "%" in socket.getnameinfo(sock.getsockname(), socket.NI_NUMERICHOST | 2)[0]
        assert query(sock, "-la").output == b"fe80:0000:0000:0000:0000:0000:0000:0001\n"


def test_options_in_any_order_and_spelling() -> None:
    with connection(socket.AF_INET6, "::1") as (client, accepted):
        expected = f"{client.getsockname()[1]:04X}\n".encode()
        for order in permutations(["-r", "-p", "-R"]):
            assert query(accepted, *order).output == expected
            assert query(accepted, "-" + "".join(order).replace("-", "")).output == expected
        for spelling in ("--remote --port --raw", "--rem -pR", "-f0 -rpR", "-rpRf 0"):
            assert query(accepted, *spelling.split()).output == expected


@given(
    st.lists(
        st.sampled_from(
            ["-l", "-r", "-a", "-p", "-R", "-lp", "-raR", "-f", "0", "-f0", "--", "-", "--raw", "x"]
        ),
        max_size=6,
    )
)
def test_what_scripts_give_means_what_docopt_says(arguments: list[str]) -> None:
    quick = socket_query._read(arguments)
    try:
        full = command_line.parse(socket_query.__doc__ or "", arguments, Log("test"))
    except UsageError:
        return  # an option given twice, say
    assert full is not None
    if quick is not None:
        assert quick.arguments == full.arguments == []
        assert quick.text("--fd") == full.text("--fd")
        for name in socket_query._FLAGS.values():
            assert quick.flag(name) == full.flag(name)


@pytest.mark.parametrize("option", ["-f {}", "-f{}", "--fd={}", "--fd {}", "-rf {}"])
def test_another_descriptor(option: str) -> None:
    with connection(socket.AF_INET, "127.0.0.1") as (client, _):
        fd = client.fileno()
        words = option.format(fd).split()
        remote = [] if "r" in words[0] else ["-r"]
        ended = run(TOOL, *remote, *words, pass_fds=(fd,))
        host, port = client.getpeername()
        assert ended.output == f"{host}:{port}\n".encode()


# Unix sockets


def bound(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(path)
    return sock


def test_a_unix_socket(tmp_path: Path) -> None:
    path, name = str(tmp_path / "socket"), f"\0muonsocks-test-{os.getpid()}"
    with bound(path) as one, bound(name):
        one.connect(name)
        shown = f"unix:{path}", f"unix:{name}".replace("\0", "@")
        assert query(one).output.decode().splitlines() == [" ".join(shown)]
        for option, expected in {"-l": 0, "-r": 1, "-la": 0, "-ra": 1}.items():
            assert query(one, option).output.decode() == f"{shown[expected]}\n"
        for option in ("-lp", "-R", "-rR"):
            one_line(query(one, option), "a unix socket has neither port nor raw form", 100)
    ends = socket.socketpair()
    assert query(ends[0]).output == b"unix: unix:\n"
    for end in ends:
        end.close()


def test_a_name_that_is_no_word(tmp_path: Path) -> None:
    """A unix socket's name may have anything in it: in the output it is one word of one line."""
    with bound("\0a b\n\0\xff@") as sock:
        assert query(sock, "-l").output == rb"unix:@a\x20b\x0a\x00\xc3\xbf@" + b"\n"
    with bound(str(tmp_path / "a b\n")) as sock:
        assert query(sock, "-l").output.endswith(rb"/a\x20b\x0a" + b"\n")


# What cannot be


def test_what_is_no_socket() -> None:
    with open("/dev/null") as null:
        one_line(query(null.fileno()), "descriptor 0 is no socket; name one with -f", 100)
    one_line(run(TOOL, "-f", "1"), "descriptor 1 is no socket", 100)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as netlink:
        one_line(query(netlink, "-l"), "is neither IP nor unix", 100)


def a_listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def one_that_was_reset() -> socket.socket:
    with connection(socket.AF_INET, "127.0.0.1") as (client, accepted):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        with contextlib.suppress(ConnectionResetError):
            accepted.recv(1)
        return socket.socket(fileno=accepted.detach())


UNCONNECTED: dict[str, Callable[[], socket.socket]] = {
    "a listener": a_listener,
    "a UDP socket": lambda: socket.socket(type=socket.SOCK_DGRAM),
    "new": socket.socket,
    "unix": lambda: socket.socket(socket.AF_UNIX),
    "reset": one_that_was_reset,
}


@pytest.mark.parametrize("what", UNCONNECTED)
def test_what_is_not_connected(what: str) -> None:
    """It has one end only; nothing is printed where half is missing."""
    with UNCONNECTED[what]() as sock:
        for options in ([], ["-r"], ["-ra"]):
            ended = query(sock, *options)
            one_line(ended, "descriptor 0 has no remote address: Transport", 111)
        assert query(sock, "-l").status == 0


def test_a_peer_that_has_ended() -> None:
    with connection(socket.AF_INET, "127.0.0.1") as (client, accepted):
        expected = "{}:{}\n".format(*client.getsockname()).encode()
        client.close()
        assert accepted.recv(1) == b""
        assert query(accepted, "-r").output == expected


USAGE: dict[str, tuple[str, str]] = {
    "both ends": ("-l -r", "-l and -r exclude each other"),
    "address and port": ("-r -a -p", "-a and -p exclude each other"),
    "address of both": ("-a", "-a and -p are for one end; give -l or -r too"),
    "port of both": ("-R -p", "-a and -p are for one end; give -l or -r too"),
    "an argument": ("remote", "'remote' is not an option"),
    "an unknown option": ("-x", "there is no option -x"),
    "an unknown option beside another": ("-rx", "see --help"),
    "no descriptor": ("-f", "-f: '' is no descriptor"),
    "a word for a descriptor": ("-f stdin", "-f: 'stdin' is no descriptor"),
    "one that is not open": ("-f 77", "-f: descriptor 77 is not open"),
    "the one after the last": ("-f 3", "-f: descriptor 3 is not open"),
    "a large one": (f"-f {'9' * 5000}", "is no descriptor"),
    "a dash": ("-", "see --help"),
}


@pytest.mark.parametrize("what", USAGE)
def test_wrong_usage(what: str) -> None:
    arguments, message = USAGE[what]
    one_line(run(TOOL, *arguments.split()), message, 100)


def test_standard_streams_that_are_not_open() -> None:
    with connection(socket.AF_INET, "127.0.0.1") as (client, _):
        for redirected, message, status in (
            ("<&-", "standard input: descriptor 0 is not open", 100),
            (">&-", "standard output: Bad file descriptor", 111),
            (">/dev/full", "standard output: No space left on device", 111),
        ):
            ended = query(client, "-c", f"exec {TOOL} {redirected}", executable="/bin/sh")
            one_line(ended, message, status)
        for redirected in ("2>&-", "2>&0"):
            ended = query(client, "-c", f"exec {TOOL} -r {redirected}", executable="/bin/sh")
            assert ended.output == "{}:{}\n".format(*client.getpeername()).encode()


def test_the_log_is_not_for_the_peer() -> None:
    """Where standard error is the client, as under inetd, nothing is written to it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ended = query(theirs, "-p", stderr=theirs)
        assert (ended.status, ended.output) == (100, b"")
        theirs.close()
        assert ours.recv(100) == b""


def test_the_log_where_the_output_is() -> None:
    """As for whoever looks at both, or at neither."""
    ended = run("sh", "-c", f"{TOOL} 2>&1")
    assert ended.output == b"socket-query: descriptor 0 is no socket; name one with -f\n"


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version(option: str) -> None:
    ended = run(TOOL, option)
    assert (ended.status, ended.log) == (0, "")
    first = {"--help": b"Print the addresses", "--version": b"socket-query "}[option]
    assert ended.output.startswith(first)
