"""Connections of sockets that do not block, in real programs, through a proxy that is slow."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import socksified
from attended import directory
from compiled import GO, compiled
from ends import descriptors
from parked_program import LONG, python, run
from programs import closed_port
from real_server import until
from scripted_proxy import Proxy, proxy
from socksified import Started, as_user, started

from muonsocks.intercept.kernel import ARCHITECTURES

CONNECT = ARCHITECTURES[0].numbers["connect"]


def left_of(pid: int) -> list[str]:
    """What the supervisor has open that goes with connections."""
    return sorted(one for one in descriptors(pid).values() if one.startswith("socket:"))


@contextmanager
def waiting(one: Proxy, *words: str, status: int = 0) -> Iterator[Started]:
    """Run a program that waits for the end of its input, which is at the end of the block."""
    with started(*words, proxy=one.url, mode="async") as program:
        yield program
        assert program.end() == status


# It goes on, is told when it is up, and has its connection


@pytest.mark.parametrize("delay", [0.0, LONG])
def test_poll(delay: float) -> None:
    program = """
sock = socket.socket()
sock.setblocking(False)
number = sock.connect_ex(TARGET)
assert number in (0, errno.EINPROGRESS), number
assert wait(sock) == select.POLLOUT
assert error_of(sock) == 0
name = f"socket:[{os.fstat(sock.fileno()).st_ino}]"
is_through(sock)
"""
    with proxy(delay=delay) as one:
        run(one, *python(program))
        assert one.received == [b"hello"]


def test_nothing_happens_before_it_is_up() -> None:
    program = """
sock = begin()
assert wait(sock, select.POLLIN | select.POLLOUT | select.POLLRDHUP, 0.2) == 0
assert error_of(sock) == 0
for call in (lambda: sock.send(b"early"), lambda: sock.recv(1)):
    try:
        call()
    except BlockingIOError:
        pass
    else:
        raise AssertionError
try:
    sock.getpeername()
except OSError as error:
    assert error.errno == errno.ENOTCONN
else:
    raise AssertionError
assert sock.connect_ex(TARGET) == errno.EALREADY
print("now", flush=True)
sys.stdin.read()
assert wait(sock) & select.POLLOUT
assert error_of(sock) == 0
is_through(sock)
"""
    with proxy() as one:
        one.may_answer.clear()
        with waiting(one, *python(program)):
            one.wait_for(asked=1)
            time.sleep(0.5)
            one.may_answer.set()
        assert one.received == [b"hello"]


def test_select() -> None:
    program = """
sock = begin()
assert select.select([sock], [sock], [sock], 0) == ([], [], [])
assert select.select([], [sock], [sock], SECONDS) == ([], [sock], [])
assert error_of(sock) == 0
is_through(sock)
"""
    with proxy(delay=LONG) as one:
        run(one, *python(program))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("how", ["0", "select.EPOLLET", "select.EPOLLONESHOT"])
def test_epoll(when: str, how: str) -> None:
    """It is in the epoll under its number and data, before and after; and is told of input then."""
    program = f"""
how = {how}
poll = select.epoll()
other = select.epoll()
sock = socket.socket()
sock.setblocking(False)
if {when == "before"}:
    poll.register(sock, select.EPOLLOUT | select.EPOLLIN | how)
    other.register(sock, select.EPOLLIN)
    while poll.poll(0):
        if not how:
            break
    if how == select.EPOLLONESHOT:
        poll.modify(sock, select.EPOLLOUT | select.EPOLLIN | how)
assert sock.connect_ex(TARGET) == errno.EINPROGRESS
if {when == "after"}:
    poll.register(sock, select.EPOLLOUT | select.EPOLLIN | how)
    other.register(sock, select.EPOLLIN)
assert poll.poll(0.1) == []
assert poll.poll(SECONDS) == [(sock.fileno(), select.EPOLLOUT)]
if how == select.EPOLLONESHOT:
    assert poll.poll(0) == []
assert error_of(sock) == 0
if how == select.EPOLLONESHOT:
    assert poll.poll(0) == [], "it is disarmed"
poll.modify(sock, select.EPOLLIN | how)
assert poll.poll(0) == []
sock.send(b"there and back")
assert poll.poll(SECONDS) == [(sock.fileno(), select.EPOLLIN)]
assert other.poll(0) == [(sock.fileno(), select.EPOLLIN)]
assert sock.recv(100) == b"there and back"
poll.unregister(sock)
other.unregister(sock)
for one in (poll, other):
    with open(f"/proc/self/fdinfo/{{one.fileno()}}") as file:
        assert "tfd" not in file.read()
is_through(sock)
"""
    with proxy(delay=LONG) as one:
        run(one, *python(program))


def test_data_of_an_epoll_that_are_no_number() -> None:
    program = """
import ctypes
class Event(ctypes.Structure):
    _pack_ = 1 if os.uname().machine == "x86_64" else 8
    _fields_ = [("events", ctypes.c_uint32), ("data", ctypes.c_uint64)]
library = ctypes.CDLL(None, use_errno=True)
EXCLUSIVE = 1 << 28
for events in (select.EPOLLOUT, select.EPOLLOUT | EXCLUSIVE):
    poll = select.epoll()
    sock = begin()
    event = Event(events, 0xfedcba9876543210)
    assert library.epoll_ctl(poll.fileno(), 1, sock.fileno(), ctypes.byref(event)) == 0
    assert wait(sock) and error_of(sock) == 0
    got = Event()
    assert library.epoll_wait(poll.fileno(), ctypes.byref(got), 1, 1000) == 1
    assert (got.events, got.data) == (select.EPOLLOUT, 0xfedcba9876543210), hex(got.data)
    is_through(sock)
"""
    with proxy(delay=LONG) as one:
        run(one, *python(program))


def test_numbers_that_the_supervisor_uses_itself() -> None:
    """Under the number that the program has it, the supervisor has another thing."""
    program = """
socks = []
poll = select.epoll()
for number in range(3, 40):
    if number == poll.fileno():
        continue
    sock = socket.socket()
    if sock.fileno() != number:
        os.dup2(sock.fileno(), number)
        sock.close()
        sock = socket.socket(fileno=number)
    sock.setblocking(False)
    poll.register(sock, select.EPOLLOUT)
    assert sock.connect_ex(TARGET) == errno.EINPROGRESS
    socks.append(sock)
for sock in socks:
    assert wait(sock) and error_of(sock) == 0
ready = {fd for fd, events in poll.poll(0) if events == select.EPOLLOUT}
assert ready == {sock.fileno() for sock in socks}
for sock in socks:
    is_through(sock)
"""
    with proxy(delay=LONG) as one:
        run(one, *python(program))
        assert len(one.received) == 36


def test_connect_asks_again() -> None:
    program = """
sock = begin()
assert wait(sock)
assert sock.connect_ex(TARGET) == 0
assert sock.connect_ex(TARGET) == errno.EISCONN
is_through(sock)
"""
    with proxy(delay=LONG) as one:
        run(one, *python(program))


def test_connect_waits_where_it_blocks_by_now() -> None:
    program = """
sock = begin()
sock.setblocking(True)
sock.connect(TARGET)
assert os.get_blocking(sock.fileno())
is_through(sock)
"""
    with proxy(delay=LONG) as one:
        run(one, *python(program))


def test_getpeername_asks() -> None:
    program = """
sock = begin()
assert wait(sock)
sock.getpeername()
name = sock.getsockname()
is_through(sock)
print(name[0])
"""
    with proxy(delay=LONG) as one:
        run(one, *python(program))


@pytest.mark.parametrize("delay", [0.0, LONG])
def test_options_and_flags_stay(delay: float) -> None:
    program = """
sock = socket.socket(socket.AF_INET6)
sock.setblocking(False)
wanted = {
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
    (socket.IPPROTO_TCP, socket.TCP_NODELAY): 1,
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 33,
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT): 12345,
    (socket.IPPROTO_IPV6, socket.IPV6_TCLASS): 32,
    (socket.SOL_SOCKET, socket.SO_RCVBUF): 40000,
    (socket.SOL_SOCKET, socket.SO_PRIORITY): 3,
}
for option, value in wanted.items():
    sock.setsockopt(*option, value)
linger = struct.pack("ii", 1, 7)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
os.set_inheritable(sock.fileno(), True)
number = sock.connect_ex(("::ffff:192.0.2.1", 80))
sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 44)
assert number in (0, errno.EINPROGRESS)
assert wait(sock) and error_of(sock) == 0
for option, value in wanted.items():
    got = sock.getsockopt(*option)
    assert got == value or got == 2 * value, (option, got)
assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 44
assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == linger
locks = sock.getsockopt(socket.SOL_SOCKET, 72)
assert locks == 2, locks
assert os.get_inheritable(sock.fileno()) and not sock.getblocking()
assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == socket.AF_INET6
assert len(sock.getsockname()) == 4
other = socket.socket()
other.setblocking(False)
other.connect_ex(TARGET)
assert wait(other) and error_of(other) == 0 and not os.get_inheritable(other.fileno())
assert other.getsockopt(socket.SOL_SOCKET, 72) == 0
is_through(other)
is_through(sock)
"""
    with proxy(delay=delay) as one:
        run(one, *python(program))


# It fails


def test_failure_is_told_once() -> None:
    program = """
sock = begin()
events = wait(sock, select.POLLIN | select.POLLOUT)
assert events & select.POLLERR and events & select.POLLOUT, events
assert error_of(sock) == errno.ECONNREFUSED
assert error_of(sock) == 0
again = sock.connect_ex(TARGET)
assert again == errno.EINPROGRESS, again
assert wait(sock) & select.POLLERR
assert sock.connect_ex(TARGET) == errno.ECONNREFUSED
assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == bytes(8)
assert sock.getsockopt(socket.SOL_SOCKET, 72) == 0
"""
    with proxy(delay=LONG, code=5) as one:
        run(one, *python(program))
        assert len(one.asked) == 2


def test_failure_at_once() -> None:
    program = """
sock = socket.socket()
sock.setblocking(False)
assert sock.connect_ex(TARGET) in (errno.EHOSTUNREACH, errno.EINPROGRESS)
if wait(sock) & select.POLLERR:
    assert error_of(sock) == errno.EHOSTUNREACH
"""
    with proxy(code=4) as one:
        run(one, *python(program))


def test_time_is_up() -> None:
    program = """
sock = begin()
assert wait(sock) & select.POLLERR
assert error_of(sock) == errno.ETIMEDOUT
"""
    with proxy(delay=2 * LONG) as one:
        run(one, *python(program), options=(f"--connect-timeout={LONG}",))


def test_proxy_is_down() -> None:
    program = """
sock = socket.socket()
sock.setblocking(False)
number = sock.connect_ex(TARGET)
if number == errno.EINPROGRESS:
    assert wait(sock)
    number = error_of(sock)
assert number == errno.ECONNREFUSED, number
"""
    url = f"socks5h://127.0.0.1:{closed_port()}"
    assert socksified.run(*python(program), proxy=url, mode="async").status == 0


# It does not ask


def test_who_writes_without_asking() -> None:
    """More than any buffer has room for, both ways."""
    program = """
sock = begin()
assert wait(sock) == select.POLLOUT
data = os.urandom(1 << 22)
def write():
    sock.setblocking(True)
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
sock.send(b"first")
assert wait(sock, select.POLLIN) and sock.recv(5) == b"first"
assert sock.getpeername() == TARGET
assert error_of(sock) == 0
thread = threading.Thread(target=write)
thread.start()
got = b""
while len(got) < len(data):
    wait(sock, select.POLLIN)
    piece = sock.recv(1 << 20)
    assert piece
    got += piece
assert sock.recv(1) == b""
assert got == data
thread.join()
"""
    with proxy(delay=LONG) as one:
        run(one, *python(program))


@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
def test_who_writes_and_ends_without_asking(size: int) -> None:
    """What has been written arrives, after the program has ended."""
    program = f"""
sock = begin()
assert wait(sock) == select.POLLOUT
sock.setblocking(True)
sock.sendall(bytes({size}))
"""
    with proxy(delay=LONG) as one:
        one.echoes = False
        run(one, *python(program))
        one.wait_for(received=1)
        assert one.received == [bytes(size)]


def test_far_end_speaks_first_and_nobody_asks() -> None:
    program = """
sock = begin()
assert wait(sock, select.POLLIN) == select.POLLIN
assert sock.recv(100) == b"220 hello"
sock.setblocking(True)
sock.sendall(b"HELO")
assert sock.recv(100) == b"HELO"
is_through(sock, b"bye")
"""
    with proxy(delay=LONG, greeting=b"220 hello") as one:
        run(one, *python(program))


def test_far_end_speaks_first_and_who_asks_has_it() -> None:
    program = """
sock = begin()
assert wait(sock) & select.POLLOUT
assert error_of(sock) == 0
assert wait(sock, select.POLLIN)
assert sock.recv(100) == b"220 hello"
assert sock.getpeername() != TARGET, "it is relayed"
is_through(sock)
"""
    with proxy(delay=LONG, greeting=b"220 hello") as one:
        run(one, *python(program))


# It does not wait


def test_who_waits_for_what_is_disconnected_is_told() -> None:
    """It is a connection of the socket no more, and the next one of it is another."""
    program = f"""
import ctypes, threading
sock = begin()
sock.setblocking(True)
results = []
def wait_for_it():
    lib = ctypes.CDLL(None, use_errno=True)
    packed = b"\\2\\0\\0\\x50" + socket.inet_aton(TARGET[0]) + bytes(8)
    results.append(ctypes.get_errno() if lib.connect(sock.fileno(), packed, 16) else 0)
waiting = threading.Thread(target=wait_for_it)
waiting.start()
place = f"/proc/self/task/{{waiting.native_id}}/syscall"
while open(place).read().split()[0] != "{CONNECT}":
    pass
assert not ctypes.CDLL(None).connect(sock.fileno(), bytes(16), 16)
waiting.join()
assert results == [errno.ECANCELED], results
print("left", flush=True)
sys.stdin.read()
sock.connect(TARGET)
is_through(sock)
"""
    with proxy() as one:
        one.may_answer.clear()
        with waiting(one, *python(program)):
            one.wait_for(left=1)
            one.may_answer.set()
        assert one.received == [b"hello"]


def test_closed_while_parked() -> None:
    """The proxy is left, and nothing is left with us but where they are parked, of two families."""
    program = """
print("up", flush=True)
os.read(0, 1)
for number in range(20):
    begin().close()
socks = [begin() for number in range(20)]
print("parked", flush=True)
os.read(0, 1)
for sock in socks:
    sock.close()
os.read(0, 1)
"""
    with proxy() as one:
        one.may_answer.clear()
        with waiting(one, *python(program)) as done:
            assert done.line() == "up"
            before = len(left_of(done.supervisor))
            done.tell()
            assert done.line() == "parked"
            until("they are there", lambda: len(left_of(done.supervisor)) >= before + 40)
            done.tell()
            one.wait_for(left=20)
            until("they are gone", lambda: len(left_of(done.supervisor)) <= before + 2)


@pytest.mark.parametrize("how", ["os._exit(0)", "os.kill(os.getpid(), 9)", "exec"])
def test_ended_while_parked(how: str) -> None:
    if how == "exec":
        how = "os.execv('/bin/true', ['true'])"
    program = f"""
sock = begin()
os.read(0, 1)
{how}
"""
    with proxy() as one:
        one.may_answer.clear()
        with waiting(one, *python(program), status=-9 if "kill" in how else 0):
            one.wait_for(asked=1)
        one.wait_for(left=1)


def test_disconnected_while_parked() -> None:
    program = """
import ctypes
sock = begin()
assert ctypes.CDLL(None).connect(sock.fileno(), bytes(16), 16) == 0
assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == bytes(8)
os.read(0, 1)
assert sock.connect_ex(TARGET) == errno.EINPROGRESS
assert wait(sock) and error_of(sock) == 0
is_through(sock)
"""
    with proxy(delay=LONG) as one, waiting(one, *python(program)):
        one.wait_for(left=1)


def test_nothing_is_left_of_what_has_been() -> None:
    """Neither of who asks, nor of who does not, nor of failures."""
    program = """
for number in range(60):
    sock = begin()
    assert wait(sock)
    if number % 3 == 0:
        assert error_of(sock) == 0
    is_through(sock)
    sock.close()
print("done", flush=True)
os.read(0, 1)
"""
    with proxy(delay=0.02) as one, waiting(one, *python(program)) as done:
        one.wait_for(asked=1)
        before = left_of(done.supervisor)
        one.wait_for(received=60)
        until("nothing is left", lambda: len(left_of(done.supervisor)) <= len(before))


# Several that have it


MANY = """
def inode(sock):
    return os.fstat(sock.fileno()).st_ino

poll = select.epoll()
socks = [begin() for _ in range(40)]
other = socket.socket()
before = [inode(sock) for sock in socks]
for sock in socks:
    poll.register(sock, select.EPOLLIN | select.EPOLLET)
for sock in socks:
    assert wait(sock) == select.POLLOUT
"""


def test_many_that_are_up_are_put_in_their_places_together() -> None:
    """All are where they were, but one that the program has put elsewhere: it will ask for it."""
    program = (
        MANY
        + """
os.set_inheritable(socks[7].fileno(), True)
poll.unregister(socks[5])
kept = socks[5].dup()
os.dup2(other.fileno(), socks[5].fileno())
assert error_of(socks[0]) == 0
after = [inode(sock) for sock in socks]
assert (after[5], inode(kept)) == (inode(other), before[5])
assert [a == b for a, b in zip(after, before)] == [False] * 40
assert [sock.get_inheritable() for sock in socks].index(True) == 5
os.close(socks.pop(5).detach())
assert [sock.get_inheritable() for sock in socks].count(True) == 1
for sock in socks:
    assert sock.getblocking() is False and error_of(sock) == 0
    assert poll.poll(0) == []
    sock.send(b"there and back")
    assert poll.poll(SECONDS) == [(sock.fileno(), select.EPOLLIN)]
    assert sock.recv(100) == b"there and back"
    poll.unregister(sock)
    is_through(sock)
assert error_of(kept) == 0
is_through(kept)
"""
    )
    with proxy(delay=LONG) as one:
        run(one, *python(program))
        one.wait_for(received=40)


def test_not_together_where_another_thread_could_close_them() -> None:
    program = (
        MANY
        + """
threading.Thread(target=os.read, args=(0, 1), daemon=True).start()
assert error_of(socks[0]) == 0
after = [inode(sock) for sock in socks]
assert [a == b for a, b in zip(after, before)] == [False] + [True] * 39
for sock in socks:
    is_through(sock)
os._exit(0)
"""
    )
    with proxy(delay=LONG) as one, waiting(one, *python(program)):
        one.wait_for(received=40)


def test_duplicates_of_it() -> None:
    program = """
sock = begin()
other = sock.dup()
poll = select.epoll()
poll.register(other, select.EPOLLIN)
assert wait(other) and error_of(other) == 0
assert poll.poll(0) == []
other.sendall(b"by one")
assert poll.poll(SECONDS) == [(other.fileno(), select.EPOLLIN)]
assert sock.recv(100) == b"by one"
other.close()
is_through(sock)
"""
    with proxy(delay=LONG) as one:
        run(one, *python(program))


@pytest.mark.parametrize("who", ["parent", "child"])
def test_fork(who: str) -> None:
    """One of the two goes on with it."""
    program = f"""
sock = begin()
pid = os.fork()
if (pid == 0) == ({who!r} == "child"):
    assert wait(sock) and error_of(sock) == 0
    is_through(sock)
    if not pid:
        os._exit(0)
else:
    sock.close()
    if not pid:
        os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
"""
    with proxy(delay=LONG) as one:
        run(one, *python(program))
        assert one.received == [b"hello"]


def test_threads() -> None:
    program = """
def one():
    sock = begin()
    assert wait(sock) and error_of(sock) == 0
    is_through(sock, os.urandom(100))
threads = [threading.Thread(target=one) for _ in range(20)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("ok")
"""
    with proxy(delay=LONG) as one:
        assert run(one, *python(program)).output == "ok\n"
        assert len(one.received) == 20


# What is held


@pytest.mark.parametrize(
    "prepare",
    [
        "sock.bind(('127.0.0.1', 0))",
        "sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'lo')",
    ],
)
def test_a_socket_that_is_bound_is_held(prepare: str) -> None:
    program = f"""
sock = socket.socket()
sock.setblocking(False)
{prepare}
name = sock.getsockname()
assert sock.connect_ex(TARGET) == 0
assert not name[1] or sock.getsockname() == name
is_through(sock)
"""
    with proxy(delay=LONG) as one:
        run(one, *python(program))


def test_multipath_is_held() -> None:
    program = """
try:
    sock = socket.socket(proto=262)
except OSError:
    print("none")
    sys.exit()
sock.setblocking(False)
assert sock.connect_ex(TARGET) == 0
is_through(sock)
"""
    with proxy(delay=LONG) as one:
        if run(one, *python(program)).output == "none\n":
            pytest.skip("no MPTCP here")


def test_a_program_in_another_network_is_not_parked_there() -> None:
    """Its loopback is another one: nothing of it is connected to."""
    program = """
sock = socket.socket()
sock.setblocking(False)
print(errno.errorcode[sock.connect_ex(TARGET)])
"""
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces")
    with proxy(delay=LONG) as one:
        done = run(one, "unshare", "-rn", *python(program))
    assert done.output in ("ENETUNREACH\n", "EHOSTUNREACH\n"), done.output


# What needs no proxy


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6"])
def test_directly(family: str) -> None:
    """It is the kernel that connects, and the program's own socket."""
    program = f"""
family = socket.{family}
listener = socket.create_server(("127.0.0.1", 0))
port = listener.getsockname()[1]
host = "127.0.0.1" if family == socket.AF_INET else "::ffff:127.0.0.1"
sock = begin(family, (host, port))
inode = os.fstat(sock.fileno()).st_ino
far = listener.accept()[0]
assert wait(sock) == select.POLLOUT and error_of(sock) == 0
assert sock.getpeername()[:2] == (host, port)
assert os.fstat(sock.fileno()).st_ino == inode
listener.close()
refused = socket.socket(family)
refused.setblocking(False)
number = refused.connect_ex((host, port))
if number == errno.EINPROGRESS:
    assert wait(refused)
    number = error_of(refused)
assert number == errno.ECONNREFUSED
"""
    with proxy() as one:
        run(one, *python(program))
        assert one.asked == []


def test_as_many_as_there_are_descriptors_for() -> None:
    """The supervisor has two for each that is parked, and the program one: the others are held."""
    program = """
socks = [socket.socket() for _ in range(80)]
numbers = []
for sock in socks:
    sock.setblocking(False)
    numbers.append(sock.connect_ex(TARGET))
assert 0 < numbers.count(errno.EINPROGRESS) < 80, numbers
assert set(numbers) == {0, errno.EINPROGRESS}, numbers
for sock in socks:
    assert wait(sock) and error_of(sock) == 0
    is_through(sock)
"""
    limit = ("prlimit", "--nofile=110:110")
    with proxy(delay=0.05) as one:
        run(one, *python(program), before=(*limit, *as_user()))


# Real programs


def test_two_hundred_of_asyncio() -> None:
    program = """
import asyncio
async def one(number):
    reader, writer = await asyncio.open_connection(*TARGET)
    data = str(number).encode()
    writer.write(data)
    writer.write_eof()
    assert await reader.read() == data
    writer.close()
    await writer.wait_closed()
async def main():
    await asyncio.gather(*(one(number) for number in range(200)))
asyncio.run(main())
"""
    with proxy() as one:
        one.may_answer.clear()
        with waiting(one, *python(program)):
            one.wait_for(asked=200)  # which they only are if nobody waits for another one
            one.may_answer.set()
        assert len(one.received) == 200


def test_node() -> None:
    if not shutil.which("node"):
        pytest.skip("no node here")
    program = """
let left = 20
for (let i = 0; i < 20; i++) {
  const sock = require("net").connect(80, "192.0.2.1", () => sock.end("from " + i))
  let got = ""
  sock.on("data", data => got += data)
  sock.on("end", () => { if (got != "from " + i) process.exit(3); if (!--left) console.log("ok") })
}
"""
    with proxy(delay=LONG) as one:
        assert run(one, "node", "-e", program).output == "ok\n"
        assert len(one.received) == 20


def test_curl() -> None:
    if not shutil.which("curl"):
        pytest.skip("no curl here")
    with proxy(delay=LONG, greeting=b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok") as one:
        assert run(one, "curl", "-sS", "http://192.0.2.1/").output == "ok"


def test_go() -> None:
    with directory() as place:
        binary = compiled(place, Path(__file__).with_name("dials.go"), *GO)
        with proxy(delay=LONG) as one:
            assert run(one, binary).output == "ok\n"
            assert len(one.received) == 50
