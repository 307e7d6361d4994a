"""Programs that listen, and get connections that are passed: what they see, and what is in the way
of that.
"""

import contextlib
import os
import signal
import socket
import stat
from pathlib import Path

import pytest
from attended import AS_NOBODY
from ends import descriptors
from preloaded import LOOP, hears, preloaded, server
from programs import SECONDS
from real_server import children, until
from senders import Front, pass_on

# One server for one connection: it says what it sees, and says hello.
ONE = """
s = listener(sys.argv[1]); say(s.getsockname()); c, a = s.accept()
say(a == c.getpeername(), c.getsockopt(SOL_SOCKET, 39) == s.family, a); c.sendall(b"hello")
"""
# Addresses


@pytest.mark.parametrize("way", ["4", "mapped", "half-closed"])
def test_an_ipv4_program_has_ipv4_clients(path: str, way: str) -> None:
    with server(path, ONE, words=("127.0.0.1",)) as there:
        assert there.line() == "('127.0.0.1', 8000)"
        family = socket.AF_INET if way == "4" else socket.AF_INET6
        with socket.create_server(
            ("" if way == "4" else "::", 0), family=family, dualstack_ipv6=way != "4"
        ) as front:
            client = socket.create_connection(("127.0.0.1", front.getsockname()[1]), SECONDS)
            if way == "half-closed":
                client.shutdown(socket.SHUT_WR)
            with client, front.accept()[0] as conn:
                if way == "half-closed":
                    assert conn.recv(1) == b""  # in CLOSE_WAIT, in which it cannot be made IPv4
                pass_on(path, conn.fileno())
                conn.close()
                assert hears(client)
                assert there.line() == f"True True {client.getsockname()}"
        assert there.status == 0


@pytest.mark.parametrize(("host", "shown"), [("::1", "::1"), ("127.0.0.1", "::ffff:127.0.0.1")])
def test_an_ipv6_program_has_all(path: str, host: str, shown: str) -> None:
    with server(path, ONE, words=("::",)) as there, Front(path, host) as front:
        assert there.line() == "('::', 8000, 0, 0)"
        with front.client() as client:
            assert hears(client)
            assert there.line() == f"True True {(shown, client.getsockname()[1], 0, 0)}"


def test_what_ipv4_cannot_say_is_zeros(path: str) -> None:
    with server(path, ONE, words=("127.0.0.1",)) as there, Front(path, "::1") as front:
        there.line()
        with front.client() as client:
            assert hears(client)
            assert there.line() == f"True True ('0.0.0.0', {client.getsockname()[1]})"


@pytest.mark.parametrize(
    ("host", "shown"), [("127.0.0.1", "('127.0.0.1', 0)"), ("::", "('::1', 0, 0, 0)")]
)
def test_a_unix_client_is_one_of_this_host(path: str, host: str, shown: str) -> None:
    with server(path, ONE, words=(host,)) as there:
        there.line()
        client, served = socket.socketpair()
        with client, served:
            pass_on(path, served.fileno())
            assert hears(client)
        assert there.line() == f"True True {shown}"


def test_a_unix_client_inherits_what_it_can(path: str) -> None:
    """It has no options of TCP, and is not in the way of who comes after it."""
    code = """
s = listener(); s.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1); say()
say(s.accept()[0].getpeername()[0])
"""
    with server(path, code) as there:
        there.line()
        client, served = socket.socketpair()
        with client, served:
            pass_on(path, served.fileno())
            assert there.line() == "127.0.0.1"


def test_it_seems_to_be_of_tcp(path: str) -> None:
    code = """
s = socket(); s.bind(("127.0.0.1", 8000)); say(s.getsockopt(SOL_SOCKET, SO_ACCEPTCONN)); s.listen()
say(*(s.getsockopt(SOL_SOCKET, n) for n in (SO_TYPE, SO_ACCEPTCONN, SO_PROTOCOL, SO_DOMAIN)))
s.setsockopt(IPPROTO_TCP, TCP_DEFER_ACCEPT, 1); say(s.getsockopt(IPPROTO_TCP, TCP_DEFER_ACCEPT))
s.setsockopt(IPPROTO_IP, IP_TOS, 8); say(s.getsockopt(IPPROTO_IP, IP_TOS))
say(*(len(s.getsockopt(IPPROTO_TCP, TCP_INFO, size)) for size in (90, 7)))
say(failure(s.setsockopt, IPPROTO_TCP, 9999, 1), failure(s.setsockopt, IPPROTO_TCP, 1, b""))
say(failure(s.getpeername), failure(s.bind, ("127.0.0.1", 8000)), socket(fileno=s.fileno()).family)
"""
    code = code.replace("SO_DOMAIN", "39").replace("SO_PROTOCOL", "38")
    with server(path, code) as there:
        said = [there.line() for _ in range(7)]
    assert said == [
        *("0", "1 1 6 2", "1", "8", "90 7", "ENOPROTOOPT EINVAL"),
        "ENOTCONN EINVAL 2",
    ]


def test_an_option_of_no_length(path: str) -> None:
    code = """
import ctypes
call = ctypes.CDLL(None, use_errno=True).getsockopt
s = listener()
for level, name in ((SOL_SOCKET, SO_TYPE), (IPPROTO_TCP, TCP_NODELAY), (IPPROTO_TCP, 9999)):
    n = ctypes.c_int(0); value = ctypes.c_int(7)
    result = call(s.fileno(), level, name, ctypes.byref(value), ctypes.byref(n))
    say(result and errno.errorcode[ctypes.get_errno()], n.value, value.value)
"""
    with server(path, code) as there:
        assert [there.line() for _ in range(3)] == ["0 0 7", "0 0 7", "ENOPROTOOPT 0 7"]


@pytest.mark.parametrize("is_late", [False, True])
def test_options_are_inherited(path: str, is_late: bool) -> None:
    code = f"""
s = socket()
def keep(): s.setsockopt(SOL_SOCKET, SO_KEEPALIVE, 1)
{is_late} or keep(); s.bind(("127.0.0.1", 8000)); {is_late} and keep(); s.listen()
s.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1); say(s.getsockopt(SOL_SOCKET, SO_KEEPALIVE))
c, a = s.accept()
say(c.getsockopt(SOL_SOCKET, SO_KEEPALIVE), c.getsockopt(IPPROTO_TCP, TCP_NODELAY))
"""
    with server(path, code) as there, Front(path) as front:
        assert there.line() == "1"
        with front.client():
            assert there.line() == "1 1"


@pytest.mark.parametrize("is_inheritable", [True, False])
def test_whether_it_is_closed_on_exec_and_blocks_stays(path: str, is_inheritable: bool) -> None:
    code = f"""
s = socket(); s.set_inheritable({is_inheritable}); s.setblocking({is_inheritable})
s.bind(("127.0.0.1", 8000)); say(s.get_inheritable(), os.get_blocking(s.fileno()))
"""
    with server(path, code) as there:
        assert there.line() == f"{is_inheritable} {is_inheritable}"


def test_other_addresses_are_what_they_are(path: str) -> None:
    code = """
s = socket(); s.bind(("127.0.0.1", 0)); s.listen(); say(s.getsockname()[1])
c, a = s.accept(); say(c.getpeername() == a, c.recv(5))
"""
    with server(path, code) as there:
        port = int(there.line())
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"hello")
            assert there.line() == "True b'hello'"
    assert not os.path.exists(path)


# What must not be


@pytest.mark.parametrize("before", ["nothing", "stale", "file", "served", "directory"])
def test_what_is_at_the_path_before(path: str, before: str) -> None:
    with contextlib.ExitStack() as stack:
        if before in ("stale", "served"):
            old = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            old.bind(path)
            os.chown(path, os.stat(os.path.dirname(path)).st_uid, -1)
            os.chmod(path, 0o666)
            if before == "stale":
                old.close()
        elif before == "file":
            Path(path).write_text("precious")
        elif before == "directory":
            os.mkdir(path)
        taken = before not in ("nothing", "stale")
        code = 'say(failure(listener)); say(failure(listener, "127.0.0.2")); sys.stdin.readline()'
        with server(path, "kept = [] if 0 else None\n" + code) as there:
            first, second = there.line(), there.line()
            if taken:
                assert (first, second) == ("EADDRINUSE", "EADDRINUSE")
                assert "127.0.0.1:8000 cannot be bound" in there.log
            else:
                assert (first, second) == ("None", "None")
            there.tell()
            assert there.status == 0
        if before == "file":
            assert Path(path).read_text() == "precious"


def test_bound_twice(path: str) -> None:
    code = """
s = listener(); say(failure(listener)); s.close(); t = listener(); say(t.getsockname()[1])
"""
    with server(path, code) as there:
        assert [there.line(), there.line()] == ["EADDRINUSE", "8000"]


def test_the_file(path: str) -> None:
    with server(path, "s = listener(); say(); sys.stdin.readline()", "-v") as there:
        there.line()
        status = os.stat(path)
        assert stat.S_ISSOCK(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o660
        assert f"127.0.0.1:8000 is {path}" in there.log
        there.tell()
        assert there.status == 0
    until("the file is removed", lambda: os.listdir(os.path.dirname(path)) == [])


def test_a_file_that_is_another_ones_by_then_is_not_removed(path: str) -> None:
    with server(path, "s = listener(); say(); sys.stdin.readline()") as there:
        there.line()
        os.unlink(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.bind(path)
            [supervisor] = children(there.process.pid)
            there.tell()
            assert there.status == 0
            until("all are gone", lambda: not os.path.exists(f"/proc/{supervisor}"))
    assert os.path.exists(path)


def test_quietly(path: str) -> None:
    with server(f"{path}/below", "say(failure(listener))", "-q") as there:
        assert (there.line(), there.status, there.log) == ("ENOENT", 0, "")


def test_a_directory_that_is_gone() -> None:
    gone = ("sh", "-c", 'cd "$(mktemp -d)" && rmdir "$PWD" && exec "$@"', "sh")
    with preloaded(code="say()", before=(*AS_NOBODY, *gone)) as there:
        assert there.status == 111
        assert there.log == "socketbox-preload: the current directory: No such file or directory\n"


def test_bad_memory(path: str) -> None:
    code = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
s = listener(); n = ctypes.c_int(-1); room = ctypes.create_string_buffer(16); say()
def call(*arguments):
    say(libc.accept(s.fileno(), *arguments), errno.errorcode[ctypes.get_errno()])
bad = ctypes.c_void_p(8)
call(room, bad); call(room, ctypes.byref(n)); n.value = 16; call(bad, ctypes.byref(n))
c, a = s.accept(); c.sendall(b"hello"); say("accepted")
"""
    with server(path, code) as there, Front(path) as front:
        there.line()
        with front.client() as client:
            said = [there.line() for _ in range(4)]
            assert said == ["-1 EFAULT", "-1 EINVAL", "-1 EFAULT", "accepted"]
            assert hears(client)


def test_nothing_is_left_of_listeners_that_are_closed(path: str) -> None:
    code = """
for n in range(300): s = listener(); s.close()
s = listener(); say("bound"); sys.stdin.readline()
for n in range(100): c, a = s.accept(); c.close()
say("served"); sys.stdin.readline()
"""
    with server(path, code) as there, Front(path) as front:
        assert there.line() == "bound"
        [supervisor] = children(there.process.pid)
        assert len(descriptors(supervisor)) < 20
        there.tell()
        for _ in range(100):
            with front.client() as client:
                client.recv(1)
        assert there.line() == "served"
        assert len(descriptors(supervisor)) < 20
        # What it has of the listener itself is closed soon, or that could not go.
        until("it is let go", lambda: not any("SOCK" in one for one in kinds(supervisor, path)))


def kinds(pid: int, path: str) -> list[str]:
    """The unix socket at a path, for each time that a process has it open."""
    rows = Path("/proc/net/unix").read_text().splitlines()
    inodes = [row.split()[6] for row in rows if row.endswith(path)]
    return [f"SOCK {one}" for one in descriptors(pid).values() if one[8:-1] in inodes]


def test_without_a_supervisor_nothing_is_accepted(path: str) -> None:
    code = LOOP.replace("s.accept()", "(s.accept if not failure(s.accept) else sys.exit)()")
    with server(path, code) as there:
        there.line()
        [supervisor] = children(there.process.pid)
        os.kill(supervisor, signal.SIGKILL)
        assert there.status == 0
        assert "the supervisor has been killed" in there.log
