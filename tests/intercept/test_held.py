"""connect(2) of a program that waits: signals, time limits, other threads, and those that leave."""

import errno
import os
import resource
import select
import signal

import pytest
from ends import full_queue
from programs import PYTHON, SECONDS
from real_server import state, until
from scripted_proxy import Proxy, welcoming
from socksified import expect_isolation, started

from muonsocks.intercept.held import is_wanted

CONNECT = """
import ctypes, errno, os, signal, socket, struct, sys, threading, time
lib = ctypes.CDLL(None, use_errno=True)
sock = socket.socket()
address = b"\\2\\0\\0\\x50" + bytes([192, 0, 2, 1]) + bytes(8)
handled = 0

def handle(*_):
    global handled
    handled += 1

def connect(fd=None):
    "connect(2) with nothing between: Python's would try again."
    result = lib.connect(sock.fileno() if fd is None else fd, address, 16)
    return ctypes.get_errno() if result else 0

def say(*words):
    print(*words, flush=True)
"""


def connecting(code: str) -> tuple[str, ...]:
    return (PYTHON, "-c", CONNECT + code)


def held_back(one: Proxy) -> str:
    one.may_answer.clear()
    return one.url


def test_a_signal_ends_a_call_that_waits() -> None:
    """As connect(2) does without SA_RESTART; the connection goes on, and is had by the next."""
    code = """
signal.signal(signal.SIGALRM, handle)
signal.siginterrupt(signal.SIGALRM, True)
signal.setitimer(signal.ITIMER_REAL, 0.2)
say(connect(), handled)
sys.stdin.readline()
say(connect(), sock.recv(8).decode().strip(), os.get_blocking(sock.fileno()))
"""
    with welcoming() as one, started(*connecting(code), proxy=held_back(one)) as launched:
        assert launched.line() == f"{errno.EINTR} 1"
        one.may_answer.set()
        launched.tell("")
        assert launched.line() == "0 welcome True"
        assert len(one.asked) == one.begun == 1


def test_a_signal_with_a_handler_that_lets_it_go_on() -> None:
    """SA_RESTART, also of a timer that comes again and again: it is one connection all the time."""
    code = """
signal.signal(signal.SIGALRM, handle)
signal.siginterrupt(signal.SIGALRM, False)
signal.setitimer(signal.ITIMER_REAL, 0.15, 0.15)
said = threading.Timer(0.8, lambda: say("now"))
said.daemon = True
said.start()
result = connect()
say(result, handled >= 1)
"""
    with welcoming() as one, started(*connecting(code), proxy=held_back(one)) as launched:
        assert launched.line() == "now"
        one.may_answer.set()
        assert launched.line() == "0 True"
        assert len(one.asked) == one.begun == 1


def test_a_signal_while_it_goes_there_without_a_proxy() -> None:
    """Whoever comes back has not become one that does not block."""
    code = """
signal.signal(signal.SIGALRM, handle)
signal.siginterrupt(signal.SIGALRM, True)
signal.setitimer(signal.ITIMER_REAL, 0.2)
address = b"\\2\\0" + struct.pack("!H", int(sys.argv[1])) + bytes([127, 0, 0, 1]) + bytes(8)
say(connect(), handled)
say("again")
say(connect(), os.get_blocking(sock.fileno()))
"""
    with full_queue() as (server, there):
        words = (*connecting(code), str(server.getsockname()[1]))
        with started(*words, options=("--direct=127.0.0.0/8",)) as launched:
            assert launched.line() == f"{errno.EINTR} 1"
            assert launched.line() == "again"
            for one in there:
                one.close()
            server.settimeout(SECONDS)
            conns = [server.accept()[0]]
            while not select.select([launched.process.stdout], [], [], 0)[0]:
                conns += [server.accept()[0]] if select.select([server], [], [], 0.1)[0] else []
            assert launched.line() == "0 True"
            for conn in conns:
                conn.close()


@pytest.mark.parametrize("mode", ["hold", "async"])
def test_who_gives_up_can_begin_anew(mode: str) -> None:
    """By connect(2) with AF_UNSPEC: nothing of the first one is left, and the next is another."""
    code = """
signal.signal(signal.SIGALRM, handle)
signal.siginterrupt(signal.SIGALRM, True)
signal.setitimer(signal.ITIMER_REAL, 0.2)
first, nowhere = address, bytes(16)
say(connect(), handled)
address = nowhere
say(connect(), os.get_blocking(sock.fileno()))
sys.stdin.readline()
address = first
say(connect(), sock.recv(8).decode().strip())
"""
    with (
        welcoming() as one,
        started(*connecting(code), proxy=held_back(one), mode=mode) as launched,
    ):
        assert launched.line() == f"{errno.EINTR} 1"
        assert launched.line() == "0 True"
        one.wait_for(ended=1)
        one.may_answer.set()
        launched.tell("")
        assert launched.line() == "0 welcome"
        assert one.begun == 2


def test_another_thread_disconnects_the_socket() -> None:
    """Who waits for it is told, and is not left waiting."""
    code = """
other = threading.Thread(target=lambda: say("first", connect()))
other.start()
sys.stdin.readline()
address = bytes(16)
say("second", connect())
other.join()
"""
    with welcoming() as one, started(*connecting(code), proxy=held_back(one)) as launched:
        one.wait_for(asked=1)
        launched.tell("")
        said = {launched.line(), launched.line()}
        assert said == {f"first {errno.ECONNABORTED}", "second 0"}
        one.wait_for(ended=1)


def test_a_failure_is_told_to_who_comes_back() -> None:
    code = """
signal.signal(signal.SIGALRM, handle)
signal.siginterrupt(signal.SIGALRM, True)
signal.setitimer(signal.ITIMER_REAL, 0.2)
say(connect())
sys.stdin.readline()
say(connect())
"""
    with welcoming() as one, started(*connecting(code), proxy=held_back(one)) as launched:
        one.code = 5
        assert launched.line() == str(errno.EINTR)
        one.may_answer.set()
        one.wait_for(ended=1)
        launched.tell("")
        assert launched.line() == str(errno.ECONNREFUSED)
        assert one.begun == 1


def test_a_handler_that_leaves_takes_the_connection_with_it() -> None:
    """As wget does it: it jumps out, and closes the socket."""
    code = """
def leave(*_):
    raise TimeoutError
signal.signal(signal.SIGALRM, leave)
signal.setitimer(signal.ITIMER_REAL, 0.2)
try:
    sock.connect(("192.0.2.1", 80))
except TimeoutError:
    sock.close()
    say("left")
sys.stdin.readline()
"""
    with welcoming() as one, started(*connecting(code), proxy=held_back(one)) as launched:
        assert launched.line() == "left"
        one.wait_for(ended=1)


def test_who_is_stopped_stops_at_once() -> None:
    code = "say('up')\nsay(connect())\n"
    # In a group that is orphaned, as that of the tests may be, nobody is stopped.
    alone = {"process_group": 0}
    with welcoming() as one, started(*connecting(code), proxy=held_back(one), **alone) as launched:
        assert launched.line() == "up"
        one.wait_for(asked=1)
        os.kill(launched.program, signal.SIGTSTP)
        until("all have stopped", lambda: state(launched.front) == "T")
        one.may_answer.set()
        os.kill(launched.front, signal.SIGCONT)
        assert launched.line() == "0"
        assert one.begun == 1


def test_who_is_killed_leaves_nothing() -> None:
    with welcoming() as one, started(*connecting("connect()"), proxy=held_back(one)) as launched:
        one.wait_for(asked=1)
        os.kill(launched.program, signal.SIGKILL)
        one.wait_for(ended=1)
        assert launched.status == -signal.SIGKILL


def test_a_thread_of_a_process_that_goes_on_leaves_nothing() -> None:
    """A child that shares nothing is killed while its parent goes on."""
    code = """
pid = os.fork()
if not pid:
    connect()
    os._exit(0)
sys.stdin.readline()
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
sock.close()
say("killed")
sys.stdin.readline()
"""
    with welcoming() as one, started(*connecting(code), proxy=held_back(one)) as launched:
        one.wait_for(asked=1)
        launched.tell("")
        assert launched.line() == "killed"
        one.wait_for(ended=1)


def test_a_time_limit_of_the_program() -> None:
    """SO_SNDTIMEO, socket(7): connect(2) gives EINPROGRESS then, and goes on."""
    code = """
sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 50000))
say(connect())
sys.stdin.readline()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 0))
say(connect())
"""
    with welcoming() as one, started(*connecting(code), proxy=held_back(one)) as launched:
        assert launched.line() == str(errno.EINPROGRESS)
        one.may_answer.set()
        launched.tell("")
        assert launched.line() == "0"
        assert one.begun == 1


def test_two_threads_connect_one_socket() -> None:
    code = """
other = threading.Thread(target=lambda: say("first", connect()))
other.start()
sys.stdin.readline()
say("second", connect())
other.join()
"""
    with welcoming() as one, started(*connecting(code), proxy=held_back(one)) as launched:
        one.wait_for(asked=1)
        launched.tell("")
        assert launched.line() == f"second {errno.EALREADY}"
        one.may_answer.set()
        assert launched.line() == "first 0"
        assert one.begun == 1


def test_a_signal_for_another_thread_is_not_seen_by_who_waits() -> None:
    """Signals that a thread has blocked, or that nobody cares about, end no call."""
    code = """
signal.signal(signal.SIGUSR1, handle)
signal.siginterrupt(signal.SIGUSR1, True)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
say("up")
say(connect())
"""
    with welcoming() as one, started(*connecting(code), proxy=held_back(one)) as launched:
        assert launched.line() == "up"
        one.wait_for(asked=1)
        for number in (signal.SIGUSR1, signal.SIGCHLD, signal.SIGWINCH):
            os.kill(launched.program, number)
        # It is looked at several times meanwhile.
        with started("sh", "-c", "sleep 0.4; echo") as clock:
            clock.line()
        one.may_answer.set()
        assert launched.line() == "0"


def test_a_look_at_who_waits_takes_no_descriptor() -> None:
    """Many programs may have used up all that the supervisor can have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        assert not is_wanted(os.getpid())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("mode", ["isolate", "async"])
def test_who_is_interrupted_can_wait_by_poll(mode: str) -> None:
    """As connect(2) says, and as Python's own does: it is up when the proxy has answered."""
    code = """
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.2)
threading.Thread(target=lambda: (sys.stdin.readline(), say("not yet"))).start()
sock.connect(("192.0.2.1", 80))
say("up", handled, os.get_blocking(sock.fileno()))
sock.sendall(b"hello")
said = b""
while len(said) < 13:
    said += sock.recv(100)
say(said)
"""
    if mode == "isolate":
        expect_isolation()
    with (
        welcoming() as one,
        started(*connecting(code), proxy=held_back(one), mode=mode) as launched,
    ):
        one.wait_for(asked=1)
        with started("sh", "-c", "sleep 0.6; echo") as clock:
            clock.line()
        launched.tell("")
        assert launched.line() == "not yet"
        one.may_answer.set()
        assert launched.line() == "up 1 True"
        assert launched.line() == "b'welcome\\nhello'"
        assert one.begun == 1


@pytest.mark.parametrize("mode", ["isolate", "async"])
def test_who_waits_by_poll_is_told_of_a_failure(mode: str) -> None:
    code = """
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.2)
say(sock.connect_ex(("192.0.2.1", 80)), handled)
say(connect())
"""
    if mode == "isolate":
        expect_isolation()
    with (
        welcoming(code=5) as one,
        started(*connecting(code), proxy=held_back(one), mode=mode) as launched,
    ):
        one.wait_for(asked=1)
        with started("sh", "-c", "sleep 0.6; echo") as clock:
            clock.line()
        one.may_answer.set()
        assert launched.line() == f"{errno.ECONNREFUSED} 1"
        assert launched.line() == str(errno.ECONNREFUSED)
        assert one.begun == 2
