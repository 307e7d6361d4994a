"""Programs under socketbox-preload that go by its variables and addresses."""

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from attended import directory
from preloaded import PRELOAD, START, Preloaded, preloaded
from programs import PYTHON, SECONDS, run
from senders import Front

SERVER = """
s = listener(sys.argv[1] if len(sys.argv) > 1 else HOST, 80)
say(s.getsockname()[:2]); c, a = s.accept()
say(a[0], c.getpeername() == a); c.sendall(b"hello")
"""
CLIENT = """
s = socket(AF_INET6 if ":" in HOST else AF_INET); s.settimeout(TIMEOUT)
say(failure(s.connect, (HOST, 80)))
if not failure(s.getpeername): say(s.getpeername()[:2], s.recv(5), s.getsockopt(SOL_SOCKET, 39))
"""
PORTS = ("IPV6", "IPV4", "IPV6_WILDCARD", "IPV4_WILDCARD")


@pytest.fixture
def root() -> Iterator[str]:
    with directory() as place:
        for name in ("X0000", "X0004", "X4001", "00001"):
            os.mkdir(f"{place}/{name}")
            os.chown(f"{place}/{name}", os.stat(place).st_uid, -1)
        yield place


def variables(root: str, **more: str) -> dict[str, str]:
    both = {"SKBOX_DIRECTORY_ROOT": root, "SKBOX_DIRECTORY_ROOT2": root}
    return both | {f"SKBOX_PORT_FILTER_{name}": "1024" for name in PORTS} | more


@contextlib.contextmanager
def server(root: str, code: str, host: str = "", **more: str) -> Iterator[Preloaded]:
    timeout = f"TIMEOUT = {SECONDS}\n"
    with preloaded(
        code=f"HOST = {host!r}\n{timeout}{code}", variables=variables(root, **more)
    ) as one:
        yield one


def hears(client: socket.socket) -> bool:
    client.settimeout(SECONDS)
    return client.recv(5, socket.MSG_WAITALL) == b"hello"


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("::", "X0000/00000_00080"),
        ("0.0.0.0", "X0004/00000_00080"),
        ("127.180.1.2", "X4001/00002_00080"),
        ("::ffff:127.180.1.2", "X4001/00002_00080"),
        ("fe8f::2:1:2", "00001/00002_00080"),
        ("fe8f::1:2", "in-file-00080"),
    ],
)
def test_connections_are_passed(root: str, host: str, name: str) -> None:
    entries = bytes(256) + f"{root}/in-file-_@SB_".encode().ljust(108, b"\0")
    Path(root, "skbox_dir_00001").write_bytes(entries)
    with server(root, SERVER, host) as there, Front(f"{root}/{name}") as front:
        assert there.line() == str((host, 80))
        assert stat.S_IMODE(os.stat(f"{root}/{name}").st_mode) == 0o660
        with front.client() as client:
            assert hears(client)
            peer = "::ffff:127.0.0.1" if ":" in host else "127.0.0.1"
            assert there.line() == f"{peer} True"


@pytest.mark.parametrize(
    ("host", "name"),
    [("127.181.1.2", "X4001/00002_00080"), ("fe8f::3:1:2", "00001/00002_00080")],
)
def test_streams_are_listened_at(root: str, host: str, name: str) -> None:
    with server(root, SERVER, host) as there:
        assert there.line() == str((host, 80))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{root}/{name}")
            assert hears(client)
        assert there.line() == f"{'::1' if ':' in host else '127.0.0.1'} True"


@pytest.mark.parametrize("case", ["missing", "short", "empty"])
def test_files_that_do_not_help(root: str, case: str) -> None:
    if case != "missing":
        Path(root, "skbox_dir_00001").write_bytes(bytes(107 if case == "short" else 108))
    with server(root, 'say(failure(listener, "fe8f::1:0", 80))') as there:
        assert there.line() == {"short": "ERANGE"}.get(case, "ENOENT")


def test_who_comes_later_takes_over(root: str) -> None:
    path = f"{root}/00001/00002_00080"
    with server(root, SERVER, "fe8f::2:1:2") as first:
        first.line()
        with server(root, SERVER, "fe8f::2:1:2") as second, Front(path) as front:
            second.line()
            with front.client() as client:
                assert hears(client)
                assert second.line()
    assert Path(root, "00001").is_dir()


@pytest.mark.parametrize(
    ("more", "said"),
    [({}, "EINVAL EINVAL None"), ({"SKBOX_BLOCK_LISTEN_EMPTY_ADDR": "0"}, "None None None")],
)
def test_listening_at_a_port_of_the_kernels_choice(
    root: str, more: dict[str, str], said: str
) -> None:
    code = 's = socket(); s.bind(("127.0.0.1", 0))\n'
    code += "say(failure(socket().listen), failure(socket(AF_INET6).listen), failure(s.listen))"
    with server(root, code, **more) as there:
        assert there.line() == said


@pytest.mark.parametrize("kind", ["datagrams", "stream", "messages"])
def test_a_socket_that_was_there_before(root: str, kind: str) -> None:
    # As systemd passes it, or another program.
    make = {
        "datagrams": f"u = socket(AF_UNIX, SOCK_DGRAM); u.bind('{root}/u')",
        "stream": "u, w = socketpair()",
        "messages": "u, w = socketpair(AF_UNIX, SOCK_SEQPACKET)",
    }[kind]
    code = f"""
{make}
if {kind != "datagrams"}: send_fds(w, [b"x"], [sys.stdin.fileno()]); send_fds(w, [b"x"], [t])
"""
    code = "l = create_server(('127.0.0.1', 0)); k = create_connection(l.getsockname())\n" + (
        f"n, _ = l.accept(); t = n.fileno()\n{code}"
        f"""
if {kind == "datagrams"}:
    w = socket(AF_UNIX, SOCK_DGRAM); w.connect('{root}/u'); send_fds(w, [b"x"], [t])
fd, a = u._accept(); say(a == k.getsockname()); n.close()
if {kind != "datagrams"}: w.close()
else: u.shutdown(SHUT_RDWR)
say(failure(u._accept))
"""
    )
    with server(root, code, SKBOX_ACCEPT_STREAM="1") as there:
        assert [there.line(), there.line()] == ["True", "EINVAL"]


def test_one_that_was_there_in_another_network_namespace(root: str) -> None:
    """The list of sockets that we see does not have it."""
    code = """
import ctypes
say(ctypes.CDLL(None).unshare(0x50000000))  # CLONE_NEWUSER, CLONE_NEWNET
u, w = socketpair(AF_UNIX, SOCK_DGRAM); c, d = socketpair()
t = threading.Thread(target=lambda: say(len(u._accept()))); t.start()
while open(f"/proc/self/task/{t.native_id}/syscall").read().split()[0] == "running": pass
say(failure(listener, "127.180.1.2"))
send_fds(w, [b"x"], [d.fileno()])
"""
    with server(root, code, SKBOX_PORT_FILTER_IPV4="9000") as there:
        if there.line() != "0":
            pytest.skip("no user namespace can be had here")
        assert [there.line(), there.line()] == ["None", "2"]


# connect(2)


@pytest.mark.parametrize("blocks", [True, False])
@pytest.mark.parametrize("host", ["127.181.1.2", "fe8f::3:1:2"])
def test_connecting_to_a_stream(root: str, host: str, blocks: bool) -> None:
    path = f"{root}/{'00001' if ':' in host else 'X4001'}/00002_00080"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(SECONDS)
        listener.bind(path)
        os.chmod(path, 0o666)
        listener.listen()
        code = CLIENT if blocks else CLIENT.replace("TIMEOUT", "None")
        with server(root, code, host, SKBOX_ENABLE_CONNECT="b1") as there:
            assert there.line() == "None"
            with listener.accept()[0] as conn:
                conn.sendall(b"hello")
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                assert there.line() == f"{(host, 80)} b'hello' {int(family)}"


def test_connecting_by_passing(root: str) -> None:
    with server(root, SERVER, "fe8f::2:1:2") as there:
        there.line()
        with server(root, CLIENT, "fe8f::2:1:2", SKBOX_ENABLE_CONNECT="2") as client:
            assert client.line() == "None"
            assert client.line() == "('fe8f::2:1:2', 80) b'hello' 10"
        assert there.line() == "::1 True"


@pytest.mark.parametrize(
    ("host", "connects", "said"),
    [
        ("fe8f::2:1:2", "1", "EINVAL"),
        ("fe8f::2:1:2", "2", "ECONNREFUSED"),
        ("fe8f::3:1:2", "1", "ECONNREFUSED"),
        ("127.181.1.2", "b1", "ECONNREFUSED"),
        ("127.0.0.1", "b2", "ECONNREFUSED"),
    ],
)
def test_nobody_is_there(root: str, host: str, connects: str, said: str) -> None:
    with server(root, CLIENT, host, SKBOX_ENABLE_CONNECT=connects) as there:
        assert there.line() == said


def test_addresses_of_links(root: str) -> None:
    # In a network of its own, where an interface has the address and a known number.
    if os.geteuid():
        pytest.skip("networks need root")
    up = "ip link set lo up; ip addr add fe80::1:2/64 dev lo nodad;"
    code = """
number = if_nametoindex("lo"); host = f"fe8f:1:0:{number:x}::1:2"
s = socket(AF_INET6); s.bind((host, 80)); s.listen(); say(s.getsockname())
for timeout in (None, 5): c = socket(AF_INET6); c.settimeout(timeout); c.connect((host, 80))
say(c.getpeername()[3] == number, s.accept()[1][0])
"""
    made = ("unshare", "-n", "sh", "-c", f'{up} exec "$@"', "sh")
    with preloaded(
        program=(PYTHON, "-c", START + code), before=made, variables={"SKBOX_ENABLE_CONNECT": "1"}
    ) as there:
        assert there.line() == "('fe80::1:2', 80, 0, 1)"
        assert there.line() == "True fe80::1:2"


# The program itself


def test_it_cannot_be_run_in_itself() -> None:
    with preloaded(program=(PRELOAD, "true")) as there:
        assert there.status == 111
        assert "it cannot be run in itself" in there.log


def test_standard_error_is_the_programs(root: str) -> None:
    # Also where it is where standard output is.
    with preloaded(program=("sh", "-c", "exec 2>&1; echo one >&2; echo two")) as there:
        assert [there.line(), there.line()] == ["one", "two"]
    done = run("sh", "-c", f"{PRELOAD} sh -c 'echo one >&2' 2>&1")
    assert done.output == b"one\n"
