"""connect(2) of programs by way of proxies: what the program sees, and what the proxy does."""

import errno
import os
import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filtered import LIBRARY, child, next_call
from nameserver import own_files
from places import in_own_network, sh
from programs import PYTHON, SECONDS, closed_port
from real_server import running
from scripted_proxy import welcoming as proxy
from socksified import AS_NOBODY, run, started

from muonsocks.intercept.bpf import NOTIFY, Rule
from muonsocks.intercept.outgoing import Outgoing
from muonsocks.intercept.peers import Peers
from muonsocks.intercept.ways import Ways
from muonsocks.net.loop import Loop
from muonsocks.socks.proxy_address import ProxyAddress

TRY = """
import ctypes, errno, fcntl, os, select, socket, struct, sys
lib = ctypes.CDLL(None, use_errno=True)

def v4(host="192.0.2.1", port=80):
    return struct.pack("=H", 2) + struct.pack("!H", port) + socket.inet_aton(host) + bytes(8)

def v6(host="2001:db8::1", port=80):
    packed = socket.inet_pton(socket.AF_INET6, host)
    return struct.pack("=H", 10) + struct.pack("!HI", port, 0) + packed + bytes(4)

def connect(sock, address, length=None):
    result = lib.connect(sock.fileno(), address, len(address) if length is None else length)
    return ctypes.get_errno() if result else 0

def say(*words):
    print(*words, flush=True)

sock = socket.socket()
"""


MODES = ("hold", "async", "isolate")
_mode = ["hold"]


@pytest.fixture(autouse=True, params=MODES)
def mode(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each test is made in each mode that can be had here."""
    if request.param == "isolate":
        done = run("true", mode=request.param)
        if done.status:
            pytest.skip(f"there is no network of one's own here: {done.log.strip()}")
    _mode[0] = request.param
    yield request.param
    _mode[0] = "hold"


def said_by(code: str, *urls: str, options: tuple[str, ...] = (), **popen: Any) -> list[str]:
    """What a program says that tries things."""
    words = (*(f"--proxy={url}" for url in urls[1:]), *options)
    done = run(PYTHON, "-c", TRY + code, proxy=urls[0], mode=_mode[0], options=words, **popen)
    assert done.status == 0, done.log
    return done.output.splitlines()


# What is asked for


def test_addresses_of_each_kind() -> None:
    code = """
for family, address in (
    (socket.AF_INET, v4()), (socket.AF_INET6, v6()), (socket.AF_INET6, v6("::ffff:192.0.2.7"))
):
    sock = socket.socket(family)
    say(connect(sock, address), sock.recv(7).decode())
"""
    with proxy() as one:
        assert said_by(code, one.url) == ["0 welcome"] * 3
        assert one.asked == [("192.0.2.1", 80), ("2001:db8::1", 80), ("192.0.2.7", 80)]


def test_mptcp_is_tcp() -> None:
    """A program may not make such a socket, but have been given one."""
    try:
        given = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
    except OSError:
        pytest.skip("this kernel has no MPTCP")
    code = f"""
sock = socket.socket(fileno={given.fileno()})
say(connect(sock, v4()), sock.recv(7).decode(), connect(sock, v4()))
"""
    with given, proxy() as one:
        said = said_by(code, one.url, pass_fds=[given.fileno()])
        assert said == [f"0 welcome {errno.EISCONN}"]


def test_through_several_proxies_with_a_user(tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text("me:secret\n")
    users.chmod(0o600)
    with running(f"--users={users}") as first, proxy() as last:
        url = first.url.replace("//", "//me:secret@")
        assert said_by("say(connect(sock, v4()), sock.recv(7))", url, last.url) == ["0 b'welcome'"]
        assert last.asked == [("192.0.2.1", 80)]
        assert first.count(" connected client=.* user=me target=127.0.0.1:") == 1


def test_nothing_behind_the_reply_is_swallowed_or_added() -> None:
    code = """
say(connect(sock, v4()))
sock.sendall(b"question")
sock.shutdown(socket.SHUT_WR)
say(sock.makefile("rb").read())
"""
    with proxy() as one:
        one.greeting = bytes(range(256)) * 10
        program = started(PYTHON, "-c", TRY + code, proxy=one.url, mode=_mode[0])
        with program as launched:
            assert launched.line() == "0"
            one.wait_for(received=1)
        assert one.received == [b"question"]


# What the socket is


def test_a_socket_is_as_it_was() -> None:
    code = """
for blocks in (True, False):
    sock = socket.socket()
    sock.setblocking(blocks)
    before = fcntl.fcntl(sock, fcntl.F_GETFL), os.fstat(sock.fileno()).st_ino
    result = connect(sock, v4())
    say(result, before == (fcntl.fcntl(sock, fcntl.F_GETFL), os.fstat(sock.fileno()).st_ino))
"""
    with proxy() as one:
        assert said_by(code, one.url)[:1] == ["0 True"]
        one.code = 5
        assert said_by(code, one.url)[:1] == [f"{errno.ECONNREFUSED} True"]


def test_a_connected_socket_is_left_alone() -> None:
    """Not a byte goes into it; it is another connection, which somebody else has made."""
    with proxy() as one, socket.create_server(("127.0.0.1", 0)) as far:
        with socket.create_connection(far.getsockname()) as made, far.accept()[0] as end:
            code = f"s = socket.socket(fileno={made.fileno()}); say(connect(s, v4()))"
            assert said_by(code, one.url, pass_fds=[made.fileno()]) == [str(errno.EISCONN)]
            end.setblocking(False)
            with pytest.raises(BlockingIOError):
                end.recv(1)
        assert one.begun == 0


def test_a_socket_that_somebody_else_connects_is_left_alone() -> None:
    """It is under way, to a place that does not answer (as its queue is full)."""
    with proxy() as one, socket.create_server(("127.0.0.1", 0), backlog=0) as far:
        others = []
        for _ in range(3):
            other = socket.socket()
            other.setblocking(False)
            other.connect_ex(far.getsockname())
            others.append(other)
        made = others[-1]
        code = f"s = socket.socket(fileno={made.fileno()}); say(connect(s, v4()))"
        assert said_by(code, one.url, pass_fds=[made.fileno()]) == [str(errno.EALREADY)]
        assert one.begun == 0
        for other in others:
            other.close()


def test_what_cannot_be_connected() -> None:
    code = """
server = socket.create_server(("127.0.0.1", 0))
say(connect(server, v4()))
say(connect(sock, v4()[:15]), connect(sock, v6()), connect(sock, b"\\1\\0/x" + bytes(20)))
say(connect(sock, v4()), connect(sock, v4()), connect(sock, bytes(16)), connect(sock, v4()))
sock6 = socket.socket(socket.AF_INET6)
say(connect(sock6, v4() + bytes(8)), connect(sock6, v4()), connect(sock6, v6()[:20]))
lib.connect(sock.fileno(), ctypes.c_void_p(8), 16)
say(ctypes.get_errno())
lib.connect(99, v4(), 16)
say(ctypes.get_errno())
reader, writer = os.pipe()
lib.connect(reader, v4(), 16)
say(ctypes.get_errno())
"""
    e = errno
    with proxy() as one:
        assert said_by(code, one.url) == [
            f"{e.EISCONN}",
            f"{e.EINVAL} {e.EAFNOSUPPORT} {e.EAFNOSUPPORT}",
            f"0 {e.EISCONN} 0 0",
            f"{e.EAFNOSUPPORT} {e.EINVAL} {e.EINVAL}",
            f"{e.EFAULT}",
            f"{e.EBADF}",
            f"{e.ENOTSOCK}",
        ]


def test_a_bound_socket_keeps_its_port() -> None:
    code = """
sock.bind(("127.0.0.1", 0))
name = sock.getsockname()
say(connect(sock, v4()), sock.getsockname() == name)
"""
    with proxy() as one:
        assert said_by(code, one.url) == ["0 True"]


def test_after_a_failure_it_may_be_tried_again() -> None:
    code = """
say(connect(sock, v4()))
sys.stdin.readline()
say(connect(sock, v4()), sock.recv(7), sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
"""
    with proxy() as one:
        one.code = 4
        words = (PYTHON, "-c", TRY + code)
        with started(*words, proxy=one.url, mode=_mode[0]) as launched:
            assert launched.line() == str(errno.EHOSTUNREACH)
            one.code = 0
            launched.tell("")
            assert launched.line() == "0 b'welcome' 0"


def test_unix_sockets_go_where_they_go(place: str) -> None:
    path = f"{place}/far"
    with proxy() as one, socket.socket(socket.AF_UNIX) as far:
        far.bind(path)
        far.listen()
        os.chmod(path, 0o666)
        code = f"s = socket.socket(socket.AF_UNIX); s.connect({path!r}); say('there')"
        assert said_by(code, one.url) == ["there"]


# Proxies that the socket cannot reach

STAND_IN = """
flags = int(sys.argv[1])
sock = socket.socket(type=socket.SOCK_STREAM | flags)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 7, 0))
number, cloexec = sock.fileno(), fcntl.fcntl(sock, fcntl.F_GETFD)
status = fcntl.fcntl(sock, fcntl.F_GETFL)
result = connect(sock, v4())
say(result, sock.recv(7))
say(sock.getsockopt(socket.SOL_SOCKET, 39), cloexec == fcntl.fcntl(sock, fcntl.F_GETFD),
    status == fcntl.fcntl(sock, fcntl.F_GETFL),
    sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    struct.unpack("ll", sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16)))
"""


@pytest.mark.parametrize("flags", [0, socket.SOCK_CLOEXEC])
@pytest.mark.parametrize("kind", ["ipv6", "unix"])
def test_another_socket_stands_in_where_it_must(kind: str, flags: int, place: str) -> None:
    if kind == "ipv6":
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    else:
        server = socket.socket(socket.AF_UNIX)
        server.bind(f"{place}/proxy")
        server.listen()
        os.chmod(f"{place}/proxy", 0o666)
    with proxy(server) as one:
        done = run(PYTHON, "-c", TRY + STAND_IN, str(flags), proxy=one.url, mode=_mode[0])
    domain = socket.AF_INET6 if kind == "ipv6" else socket.AF_UNIX
    assert done.output.splitlines() == ["0 b'welcome'", f"{domain:d} True True 1 (7, 0)"]


def test_the_second_address_of_a_proxy_is_tried(tmp_path: Path) -> None:
    """localhost is ::1 and 127.0.0.1; one of them does not answer."""

    def there() -> None:
        # Without an address of a family that can be seen there are no names of it (AI_ADDRCONFIG).
        sh("ip addr add 198.51.100.1/32 dev lo", "ip addr add 2001:db8::1/128 dev lo")
        own_files(tmp_path, "127.0.0.1 localhost\n::1 localhost\n")
        for family in (socket.AF_INET, socket.AF_INET6):
            host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
            with proxy(socket.create_server((host, 0), family=family)) as one:
                url = re.sub(r"//.*:", "//localhost:", one.url)
                for code in (
                    "s = sock; to = v4()",
                    "s = socket.socket(socket.AF_INET6); to = v6()",
                ):
                    said = said_by(code + "\nsay(connect(s, to), s.recv(7))", url)
                    assert said == ["0 b'welcome'"]

    in_own_network(there)


# Proxies that do not do it


@pytest.mark.parametrize(
    ("code", "number"),
    [(1, errno.ECONNABORTED), (2, errno.EACCES), (3, errno.ENETUNREACH), (5, errno.ECONNREFUSED)],
)
def test_a_refusal_of_the_proxy(code: int, number: int) -> None:
    with proxy() as one:
        one.code = code
        assert said_by("say(connect(sock, v4()))", one.url) == [str(number)]


def test_a_proxy_that_is_not_there() -> None:
    url = f"socks5h://127.0.0.1:{closed_port()}"
    assert said_by("say(connect(sock, v4()))", url) == [str(errno.ECONNREFUSED)]


def test_a_proxy_that_does_not_answer() -> None:
    with proxy() as one:
        one.may_answer.clear()
        options = ("--connect-timeout=0.3",)
        said = said_by("say(connect(sock, v4()))", one.url, options=options)
        assert said == [str(errno.ETIMEDOUT)]


# What is said


@pytest.mark.parametrize("blocks", [True, False])
def test_what_is_logged(blocks: bool) -> None:
    code = f"sock.setblocking({blocks})\nconnect(sock, v4())\n"
    code += "select.select([], [sock], [])\nsock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)"
    with proxy() as one:
        words = (PYTHON, "-c", TRY + code)
        up = rf" connected target=192\.0\.2\.1:80 via={one.url} program=python3\[\d+\]\n"
        down = r" failed target=.*:80 via=.* program=.* reason=connection refused, says "
        for options, number, said in (
            (("-v",), 0, up),
            (("-v",), 5, down),
            ((), 0, ""),
            ((), 5, ""),
            (("-q",), 5, ""),
        ):
            one.code = number
            done = run(*words, proxy=one.url, mode=_mode[0], options=options)
            if said:
                lines = [line for line in done.log.splitlines() if " mode=" not in line]
                assert len(lines) == 1 and re.search(said, lines[0] + "\n")
            else:
                assert done.log == ""


def test_who_ends_when_it_is_up_is_there_to_be_named() -> None:
    """It is told after what is said of it."""
    reports = []

    def program(_: object) -> None:
        one = socket.socket()
        address = struct.pack("=H6B8x", socket.AF_INET, 0, 80, 192, 0, 2, 1)
        LIBRARY.connect(one.fileno(), address, len(address))

    with proxy() as upstream, child({"connect": [Rule(NOTIFY)]}, program) as (listener, one):
        loop = Loop()

        def report(tid: int, _: object, __: object, error: OSError | int) -> None:
            reports.append((tid, error, call.is_waiting()))

        ways = Ways((ProxyAddress.parse(upstream.url),))
        outgoing = Outgoing(loop, ways, SECONDS, report, Peers())
        call = next_call(listener)

        async def run() -> None:
            with loop.deadline(SECONDS):
                await outgoing.connect(call)

        try:
            loop.run(run())
        finally:
            loop.close()
        assert reports == [(one.pid, 0, True)]


@pytest.mark.parametrize("options", [(), ("-q",)])
def test_a_program_that_may_not_be_looked_at(options: tuple[str, ...], mode: str) -> None:
    """It cannot connect, and that is said once. Root may look at it, and whoever has made the
    namespace that it is in.
    """
    if mode == "isolate":
        with proxy() as one:
            code = "assert not lib.prctl(4, 0, 0, 0, 0); say(connect(sock, v4()))"
            assert said_by(code, one.url) == ["0"]
        return
    if not AS_NOBODY and not os.geteuid():
        pytest.skip("there is no setpriv(1) to become an ordinary user")
    code = """
assert not lib.prctl(4, 0, 0, 0, 0)
say(*(connect(socket.socket(), v4()) for _ in range(5)))
"""
    with proxy() as one:
        done = run(PYTHON, "-c", TRY + code, proxy=one.url, mode=_mode[0], options=options)
        assert done.output.split() == [str(errno.ENETUNREACH)] * 5
        if options:
            assert done.log == ""
        else:
            assert done.log.count("\n") == 1
            assert re.search(r" python3\[\d+\] cannot connect: its memory and", done.log)
        assert one.begun == 0


# Other ways to connect


def test_other_ways_are_closed() -> None:
    code = """
def number(result):
    return ctypes.get_errno() if result < 0 else result
fast = 0x20000000
lib.syscall.restype = ctypes.c_long
say(number(lib.sendto(sock.fileno(), b"x", 1, fast, v4(), 16)))
say(number(lib.sendto(sock.fileno(), b"x", 1, fast, None, 0)))
say(number(lib.sendmsg(sock.fileno(), bytes(56), fast)))
say(number(lib.sendmmsg(sock.fileno(), bytes(64), 1, fast)))
say(number(lib.syscall(425, 1, bytes(120))))
if os.uname().machine == "x86_64":
    say(number(lib.syscall(0x40000000 + 42, sock.fileno(), v4(), 16)))
"""
    with proxy() as one:
        x32 = [str(errno.ENOSYS)] if os.uname().machine == "x86_64" else []
        expected = [str(errno.EOPNOTSUPP)] * 4 + [str(errno.ENOSYS)] + x32
        assert said_by(code, one.url) == expected


I386 = r"""
    .globl _start
_start:
    movl $359, %eax             # socket
    movl $2, %ebx
    movl $1, %ecx
    xorl %edx, %edx
    int $0x80
    movl %eax, fd
    .if DIRECT
    movl $362, %eax             # connect
    movl fd, %ebx
    movl $address, %ecx
    movl $16, %edx
    .else
    movl $102, %eax             # socketcall
    movl $3, %ebx
    movl $fd, %ecx
    .endif
    int $0x80
    negl %eax
    movl %eax, result
    cmpl $0, %eax
    jne end
    .if DIRECT == 0
    movl fd, %eax
    movl %eax, message
    movl $102, %eax             # socketcall: sendto without an address, which the kernel does
    movl $11, %ebx
    movl $message, %ecx
    int $0x80
    orl $0x20000000, flags      # MSG_FASTOPEN
    movl $102, %eax
    movl $11, %ebx
    movl $message, %ecx
    int $0x80
    negl %eax
    cmpl $95, %eax              # EOPNOTSUPP
    je end
    movl $99, result
    .endif
end:
    movl $1, %eax
    movl result, %ebx
    int $0x80
    .data
fd: .long 0
    .long address
    .long 16
message: .long 0
    .long address
    .long 8
flags: .long 0
    .long 0
    .long 0
result: .long 0
address: .byte 2, 0, 0, 80, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0
"""


@pytest.mark.parametrize("is_direct", [True, False])
def test_a_program_of_32_bits(is_direct: bool, tmp_path: Path) -> None:
    """It calls connect, or socketcall with connect in memory; there is no library in it."""
    if os.uname().machine != "x86_64":
        pytest.skip("this machine has no programs for i386")
    if not shutil.which("as") or not shutil.which("ld"):
        pytest.skip("there are no as(1) and ld(1) to build it")
    built = tmp_path / "program"
    text = f".set DIRECT, {int(is_direct)}\n{I386}"
    subprocess.run(
        ["as", "--32", "-o", f"{built}.o", "-"], input=text, text=True, check=True, timeout=20
    )
    subprocess.run(["ld", "-m", "elf_i386", "-o", built, f"{built}.o"], check=True, timeout=20)
    try:
        subprocess.run([built], timeout=20)
    except OSError as error:
        pytest.skip(f"this kernel runs no program for i386: {error.strerror}")
    for number, expected in ((0, 0), (5, errno.ECONNREFUSED)):
        with proxy() as one:
            one.code = number
            done = run(str(built), proxy=one.url, mode=_mode[0], before=())
            assert done.status == expected, done.log
            assert one.asked == [("192.0.2.1", 80)]


def test_a_refusal_leaves_no_error_behind() -> None:
    """As with connect(2): the end of the connection to the proxy is no concern of the program's."""
    code = "say(connect(sock, v4()), sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))"
    with proxy() as one:
        one.code = 5
        assert said_by(code, one.url) == [f"{errno.ECONNREFUSED} 0"]


def test_an_address_that_is_longer_than_any() -> None:
    code = """
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    sock = socket.socket(socket.AF_INET, kind)
    say(*(connect(sock, v4() + bytes(200), length) for length in (129, 1 << 31, (1 << 32) - 1)))
"""
    with proxy() as one:
        assert said_by(code, one.url) == [" ".join([str(errno.EINVAL)] * 3)] * 2
        assert one.asked == []


def test_who_is_killed_leaves_others_a_socket_that_is_not_connected() -> None:
    """And not one that leads into the middle of what is said to a proxy."""
    code = """
import time
pid = os.fork()
if not pid:
    connect(sock, v4())
    os._exit(1)
sys.stdin.readline()
sock.getpeername()
os.kill(pid, 9)
os.waitpid(pid, 0)
end = time.monotonic() + 5
while time.monotonic() < end:
    try:
        sock.getpeername()
    except OSError as error:
        say(error.errno)
        break
sys.stdin.readline()
say(connect(sock, v4()), sock.recv(7).decode())
"""
    with proxy() as one:
        one.may_answer.clear()
        program = started(PYTHON, "-c", TRY + code, proxy=one.url, mode=_mode[0])
        with program as launched:
            one.wait_for(asked=1)
            launched.tell("")
            assert launched.line() == str(errno.ENOTCONN)
            one.may_answer.set()
            launched.tell("")
            assert launched.line() == "0 welcome"
