"""accept(2) of programs that get connections that are passed: who waits, and what is dropped."""

import contextlib
import os
import re
import signal
import socket
from pathlib import Path

import pytest
from preloaded import LOOP, by_variables, hears, server
from programs import SECONDS
from real_server import until
from senders import Front, accepted, pass_on

from muonsocks.intercept.kernel import ARCHITECTURES

ACCEPT = ARCHITECTURES[0].numbers["accept"]

# Waiting


def test_accept_is_interrupted_by_signals_and_nothing_is_lost(path: str) -> None:
    code = """
class Alarm(Exception): pass
def alarm(*_): raise Alarm
signal.signal(signal.SIGALRM, alarm)
s = listener()
for _ in range(3):
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try: s.accept(); say("accepted")
    except Alarm: say("interrupted")
sys.stdin.readline()
c, a = s.accept(); c.sendall(b"hello"); say("accepted")
"""
    with server(path, code) as there, Front(path) as front:
        assert [there.line() for _ in range(3)] == ["interrupted"] * 3
        with front.client() as client:
            there.tell()
            assert there.line() == "accepted"
            assert hears(client)


def test_a_waiting_call_that_has_been_interrupted_is_passed_over(path: str) -> None:
    # Of two threads that wait one is taken out of its call: the other one gets what comes.
    code = """
s = listener(); r, w = os.pipe()
signal.signal(signal.SIGUSR1, lambda *_: 1/0)
def second(): os.read(r, 1); c, a = s.accept(); c.sendall(b"hello"); say("second")
threading.Thread(target=second).start()
say(os.getpid())
try: s.accept()
except ZeroDivisionError: say("interrupted")
os.write(w, b"x"); sys.stdin.readline()
"""
    with server(path, code) as there, Front(path) as front:
        pid = int(there.line())
        until("it accepts", lambda: accepts(pid) == [True, False])
        os.kill(pid, signal.SIGUSR1)
        assert there.line() == "interrupted"
        until("the other one accepts", lambda: accepts(pid) == [False, True])
        with front.client() as client:
            assert there.line() == "second"
            assert hears(client)
        there.tell()
        assert there.status == 0


def accepts(pid: int) -> list[bool]:
    """Say of each thread, the oldest first, whether it is in accept4(2)."""
    tasks = Path(f"/proc/{pid}/task")
    calls = [(tasks / tid / "syscall").read_text() for tid in sorted(os.listdir(tasks), key=int)]
    return [call.startswith(("288 ", "242 ")) for call in calls]  # x86_64, the generic number


@pytest.mark.parametrize("kind", ["poll", "select", "epoll", "edge", "asyncio"])
def test_whoever_polls_is_told(path: str, kind: str) -> None:
    waits = {
        "poll": "p = select.poll(); p.register(s, select.POLLIN); wait = lambda: p.poll()",
        "select": "wait = lambda: select.select([s], [], [])",
        "epoll": "p = select.epoll(); p.register(s, select.EPOLLIN); wait = lambda: p.poll()",
        "edge": "p = select.epoll(); p.register(s, select.EPOLLIN | select.EPOLLET);"
        "wait = lambda: p.poll()",
        "asyncio": "import asyncio; n = asyncio.new_event_loop(); e = asyncio.Event();"
        "n.add_reader(s, e.set); wait = lambda: (e.clear(), n.run_until_complete(e.wait()))",
    }
    code = f"""
s = listener(); s.setblocking(False); {waits[kind]}
say(failure(s.accept))
for _ in range(3):
    wait(); c, a = s.accept(); say(a[1], c.getblocking()); c.setblocking(True); c.sendall(b"hello")
say(failure(s.accept))
"""
    with server(path, code) as there, Front(path) as front:
        assert there.line() == "EAGAIN"
        for _ in range(3):
            with front.client() as client:
                assert there.line().split()[0] == f"{client.getsockname()[1]}"
                assert hears(client)
        assert there.line() == "EAGAIN"


def test_flags_of_accept4(path: str) -> None:
    code = """
import ctypes, fcntl
libc = ctypes.CDLL(None, use_errno=True)
s = listener(); say()
for flags in (0, SOCK_NONBLOCK, SOCK_CLOEXEC, SOCK_NONBLOCK | SOCK_CLOEXEC):
    fd = libc.accept4(s.fileno(), None, None, flags)
    say(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK != 0, fcntl.fcntl(fd, fcntl.F_GETFD))
say(libc.accept4(s.fileno(), None, None, 1), errno.errorcode[ctypes.get_errno()])
"""
    with server(path, code) as there, Front(path) as front:
        there.line()
        for said in ("False 0", "True 0", "False 1", "True 1"):
            with front.client():
                assert there.line() == said
        assert there.line() == "-1 EINVAL"


def test_the_time_that_accept_may_take(path: str) -> None:
    code = """
from time import monotonic
s = socket(); time = struct.pack("ll", 0, 30000); s.setsockopt(SOL_SOCKET, SO_RCVTIMEO, time)
s.bind(("127.0.0.1", 8000)); s.listen(); since = monotonic(); say(failure(s.accept))
say(monotonic() - since >= 0.03)
sys.stdin.readline(); c, a = s.accept(); c.sendall(b"hello"); say("accepted")
"""
    with server(path, code) as there, Front(path) as front:
        assert [there.line(), there.line()] == ["EAGAIN", "True"]
        with front.client() as client:
            there.tell()
            assert there.line() == "accepted"
            assert hears(client)


def test_accept_after_shutdown(path: str) -> None:
    code = """
s = socket(); s.bind(("127.0.0.1", 8000)); say(failure(s.accept)); s.listen()
threading.Timer(0.1, s.shutdown, [SHUT_RDWR]).start(); say(failure(s.accept), failure(s.accept))
"""
    with server(path, code) as there:
        assert [there.line(), there.line()] == ["EINVAL", "EINVAL EINVAL"]


# Several who accept


def test_threads_and_processes_share_a_listener(path: str) -> None:
    code = """
s = listener()
def serve():
    while True: c, a = s.accept(); c.sendall(b"hello"); c.close()
for _ in range(3):
    if not os.fork():
        for _ in range(3): threading.Thread(target=serve, daemon=True).start()
        say("ready"); signal.pause()
sys.stdin.readline(); os.killpg(0, signal.SIGKILL)
"""
    with server(path, "os.setpgid(0, 0)" + code) as there, Front(path) as front:
        assert [there.line() for _ in range(3)] == ["ready"] * 3
        for _ in range(60):
            with contextlib.ExitStack() as stack:
                clients = [stack.enter_context(front.client()) for _ in range(4)]
                assert all(map(hears, clients))
        there.tell()
        assert there.status == -signal.SIGKILL  # and so do the others end


def test_a_duplicate_and_one_that_is_inherited(path: str) -> None:
    code = """
if len(sys.argv) > 1:
    s = socket(fileno=int(sys.argv[1])); say(s.family, s.type, s.getsockname())
else:
    s = listener(); d = os.dup(s.fileno()); os.set_inheritable(d, True); s.close(); say("bound")
    import pathlib
    code = pathlib.Path("/proc/self/cmdline").read_text().split(chr(0))[2]
    os.execv(sys.executable, [sys.executable, "-c", code, str(d)])
c, a = s.accept(); c.sendall(b"hello"); say(a[1])
"""
    with server(path, code) as there, Front(path) as front:
        assert there.line() == "bound"
        there.line()
        with front.client() as client:
            assert hears(client)
            assert there.line() == f"{client.getsockname()[1]}"


@pytest.mark.parametrize("how", ["0", "select.EPOLLET"])
def test_a_duplicate_and_an_epoll_from_before(path: str, how: str) -> None:
    code = f"""
s = socket(); d = s.dup(); e = select.epoll(); e.register(s, select.EPOLLIN | {how})
s.bind(("127.0.0.1", 8000)); d.listen(); s.setblocking(False); e.poll(0); say(e.poll(0))
say(e.poll({SECONDS}) == [(s.fileno(), select.EPOLLIN)])
c, a = d.accept(); c.sendall(b"hello"); e.modify(s, 0)
"""
    with server(path, code) as there, Front(path) as front:
        assert there.line() == "[]"
        with front.client() as client:
            assert hears(client)
            assert there.line() == "True"
        assert there.status == 0


@pytest.mark.parametrize("one", ["reuseport", "another address", "another process"])
def test_two_listeners_share_a_queue(path: str, one: str) -> None:
    hosts = ("127.0.0.1", "127.0.0.2" if one == "another address" else "127.0.0.1")
    code = f"""
def bound(host):
    s = socket(AF_INET6 if ":" in host else AF_INET)
    if {one != "another address"}: s.setsockopt(SOL_SOCKET, SO_REUSEPORT, 1)
    s.bind((host, 8000)); s.listen(); return s
first = bound({hosts[0]!r})
if {one == "another process"} and not os.fork():
    first.close(); first = bound({hosts[0]!r}); say("child"); sys.stdin.readline(); sys.exit()
second = bound({hosts[1]!r}); say("bound")
for s in (first, second) * 2: c, a = s.accept(); c.sendall(b"hello"); say(a[0])
"""
    with server(path, code) as there, Front(path) as front:
        until("they are there", lambda: there.line() == "bound")
        for _ in range(4):
            with front.client() as client:
                assert hears(client)


# What is passed


def test_what_is_no_connection_is_dropped(path: str) -> None:
    with server(path, LOOP) as there, Front(path) as front:
        there.line()
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
            socket.create_server(("127.0.0.1", 0)) as listener,
            open("/dev/null", "rb") as null,
        ):
            for fd in (udp.fileno(), listener.fileno(), null.fileno()):
                pass_on(path, fd)
            pass_on(path)
        with front.client() as client:
            assert hears(client)
        for fault in ("no stream", "a listener", "no socket", "without a descriptor"):
            assert len(re.findall(fault, there.log)) == 1


def test_a_flood_of_it_does_not_fill_the_log(path: str) -> None:
    with server(path, LOOP) as there, accepted() as (client, conn):
        there.line()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect(path)
            for _ in range(1000):
                sender.send(b"x")
            socket.send_fds(sender, [b"x"], [conn.fileno()])
        assert hears(client)
        # It took a second or two, or a few on a machine that is busy.
        assert 1 <= there.log.count("a message without a descriptor") < 100


def test_more_than_one_descriptor(path: str) -> None:
    with (
        server(path, LOOP) as there,
        accepted() as (client, conn),
        accepted() as (other, more),
    ):
        there.line()
        pass_on(path, conn.fileno(), more.fileno(), word=b"x" * 5000)
        conn.close()
        more.close()
        assert hears(client)
        other.settimeout(SECONDS)
        assert other.recv(1) == b""


def is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def test_a_client_that_has_gone_is_passed_over(path: str) -> None:
    with server(path, f"sys.stdin.readline\n{LOOP}") as there, Front(path) as front:
        there.line()
        with accepted() as (client, conn):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
            until("it is reset", lambda: not is_connected(conn))
            pass_on(path, conn.fileno())
        with front.client() as client:
            assert there.line() == f"{client.getsockname()[1]}"
            assert hears(client)


def test_a_program_with_no_room_for_descriptors(path: str) -> None:
    code = """
from resource import *
s = listener(); say()
sys.stdin.readline()
top = os.open("/dev/null", 0); setrlimit(RLIMIT_NOFILE, (top + 1,) * 2)
say(failure(s.accept)); say(failure(s.accept)); os.close(top)
c, a = s.accept(); c.sendall(b"hello"); say("accepted")
"""
    with server(path, code) as there, Front(path) as front:
        there.line()
        with front.client() as client:
            there.tell()
            assert [there.line() for _ in range(3)] == ["EMFILE", "EMFILE", "accepted"]
            assert hears(client)


def test_what_has_been_accepted_of_a_stream_is_there_for_the_next(root: str) -> None:
    """It is in no queue any more when the program has no room for it; who does not wait has it."""
    code = """
from resource import *
s = listener("127.181.1.2", 80); s.setblocking(False); say()
sys.stdin.readline()
top = os.open("/dev/null", 0); most = getrlimit(RLIMIT_NOFILE)
setrlimit(RLIMIT_NOFILE, (top + 1, most[1])); say(failure(s.accept), failure(s.accept))
setrlimit(RLIMIT_NOFILE, most); c, a = s.accept(); c.sendall(b"hello"); say(failure(s.accept))
"""
    with by_variables(root, code) as there, socket.socket(socket.AF_UNIX) as client:
        there.line()
        client.connect(f"{root}/X4001/00002_00080")
        there.tell()
        assert there.line() == "EMFILE EMFILE"
        assert there.line() == "EAGAIN"
        assert hears(client)


def test_accept_has_no_flags(path: str) -> None:
    """What is in the place of those of accept4(2) is of the past."""
    code = f"""
import ctypes
s = listener(); say(); number = ctypes.CDLL(None).syscall({ACCEPT}, s.fileno(), None, None, -1)
say(os.get_inheritable(number), os.get_blocking(number)); os.write(number, b"hello")
"""
    with server(path, code) as there, Front(path) as front:
        there.line()
        with front.client() as client:
            assert there.line() == "True True"
            assert hears(client)
