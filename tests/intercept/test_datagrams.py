"""UDP of programs under socksify: to name servers, which is ours, and else nowhere.

A test has a program of its own, which is run by a user without any rights.
"""

import errno
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ends import descriptors
from places import in_own_network, sh
from real_server import until
from socksified import python, started
from socksified import run as run_socksified
from udp_calls import CODE

FAKE, FAKE6 = "198.18.0.1", "fd6d:756f:6e73:6f63::1"
_OURS = Path("/proc/net/if_inet6")
has_ipv6 = _OURS.exists() and "0" * 31 + "1 " in _OURS.read_text()
needs_ipv6 = pytest.mark.skipif(not has_ipv6, reason="loopback has no IPv6 here")
SERVERS = [
    ("S4", "192.0.2.53"),
    ("S4", "127.0.0.53"),
    pytest.param("S6", "2001:db8::53", marks=needs_ipv6),
    pytest.param("S6", "::ffff:192.0.2.53", marks=needs_ipv6),
]


def run(code: str, *arguments: str, **named: Any) -> str:
    named.setdefault("mode", "async")
    return run_socksified(*python(CODE + code, *arguments), **named).said


# Name servers


@pytest.mark.parametrize(("family", "server"), SERVERS)
def test_a_socket_for_a_name_server_is_one_for_ours(family: str, server: str) -> None:
    said = run(
        f"s = socket.socket({family}, U); s.connect(('{server}', 53))\n"
        "s.send(query('www.example'))\n"
        "print(s.getpeername()[:2])\n"
        "data, source = s.recvfrom(600)\n"
        "print(address(data), source[:2])\n"
        "s.send(query('www.example', 28)); print(address(s.recv(600)))\n"
    )
    told = (server, 53)
    assert said.splitlines() == [f"{told}", f"{FAKE} {told}", FAKE6]


@pytest.mark.parametrize(("family", "server"), SERVERS)
@pytest.mark.parametrize("call", ["send_to", "send_message"])
def test_what_is_sent_to_one_is_sent_to_ours(call: str, family: str, server: str) -> None:
    """What the program has as its address is where the answer comes from: musl compares them."""
    said = run(
        f"s = socket.socket({family}, U); s.settimeout(10)\n"
        "asked = query('www.example')\n"
        f"sent, name = {call}(s, asked, raw('{server}', 53))\n"
        "data, source = s.recvfrom(600)\n"
        f"assert sent == len(asked) and name[2:] != raw('{server}', 53)[2:]\n"
        "print(address(data), name == raw(*source[:2]), source[1] != 53)\n"
        f"{call}(s, asked, name); print(address(s.recv(600)))\n"  # once more, as it is now
    )
    assert said.splitlines() == [f"{FAKE} True True", FAKE]


def test_several_messages_are_sent_at_once() -> None:
    said = run(
        "s = socket.socket(S4, U); s.settimeout(10); s.connect(('192.0.2.53', 53))\n"
        "asked = [query('a.example'), query('bc.example', 28)]\n"
        "print(send_messages(s, asked)[:2], list(map(len, asked)))\n"
        "print(sorted(address(s.recv(600)) for _ in asked))\n"
        "s = socket.socket(S4, U); s.settimeout(10)\n"
        "count, sent, names = send_messages(s, asked, raw('192.0.2.53', 53))\n"
        "print(count, sent, sorted(address(s.recv(600)) for _ in asked))\n"
        "assert all(one == raw('127.0.0.1', s.recvfrom(600)[1][1]) for one in names\n"
        "           if send_to(s, asked[0], one))\n"
        "print(send_messages(s, [b'x' * 9] * 300, raw('127.0.0.1', 9))[0])\n"
    )
    both = ["198.18.0.1", "fd6d:756f:6e73:6f63::2"]
    lengths = [27, 28]
    assert said.splitlines() == [
        f"(2, {lengths}) {lengths}",
        f"{both}",
        f"2 {lengths} {both}",
        "64",
    ]


def test_a_message_that_cannot_be_sent_ends_the_others() -> None:
    said = run(
        "s = socket.socket(S4, U)\n"
        "good, bad = header(b'x', raw('127.0.0.1', 9)), header(b'x', raw('192.0.2.1', 9))\n"
        "def send(*all):\n"
        "    many = (Many * len(all))(*[Many(one, 77) for one, _ in all])\n"
        "    count = done(libc.sendmmsg(s.fileno(), many, len(all), 0))\n"
        "    return count, [one.sent for one in many]\n"
        "print(send(good, bad, good), failing(send, bad, good))\n"
    )
    assert said == "(1, [1, 77, 77]) ENETUNREACH\n"


def test_a_constant_address_does_no_harm() -> None:
    said = run(
        "import mmap\n"
        "memory = mmap.mmap(-1, 4096); memory[:16] = raw('192.0.2.53', 53)\n"
        "place = ctypes.addressof(ctypes.c_char.from_buffer(memory))\n"
        "assert not libc.mprotect(ctypes.c_void_p(place), 4096, 1)\n"
        "s = socket.socket(S4, U); s.settimeout(10); asked = query('www.example')\n"
        "done(libc.sendto(s.fileno(), asked, len(asked), 0, ctypes.c_void_p(place), 16))\n"
        "print(address(s.recv(600)))\n"
    )
    assert said == f"{FAKE}\n"


def test_a_socket_can_be_connected_elsewhere_and_nowhere() -> None:
    said = run(
        "s = socket.socket(S4, U); s.connect(('192.0.2.53', 53))\n"
        "s.connect(('192.0.2.54', 53)); print(s.getpeername())\n"
        "done(libc.connect(s.fileno(), bytes(16), 16)); print(failing(s.getpeername))\n"
        "s.connect(('127.0.0.1', 9)); print(s.getpeername())\n"
        "s.connect(('192.0.2.53', 53)); print(failing(s.connect, ('192.0.2.1', 9)))\n"
        "print(failing(lambda: done(libc.connect(s.fileno(), b'x', 1))))\n"
    )
    assert said.splitlines() == [
        "('192.0.2.54', 53)",
        "ENOTCONN",
        "('127.0.0.1', 9)",
        "ENETUNREACH",
        "EINVAL",
    ]


def test_receiving_is_as_it_always_is() -> None:
    said = run(
        "s = socket.socket(S4, U); s.connect(('192.0.2.53', 53)); asked = query('www.example')\n"
        "print(failing(s.recvfrom, 600, socket.MSG_DONTWAIT))\n"
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack('qq', 0, 50000))\n"
        "print(failing(s.recvfrom, 600))\n"
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, bytes(16))\n"
        "if not os.fork():\n"
        "    select.select([], [], [], 0.3); s.send(asked); os._exit(0)\n"
        "data, source = s.recvfrom(600, socket.MSG_PEEK)\n"  # blocks
        "print(source, s.recvfrom(600) == (data, source))\n"
        "s.send(asked); select.select([s], [], [])\n"
        "buffer = bytearray(20)\n"
        "whole = s.recvfrom_into(buffer, 20, socket.MSG_TRUNC)[0]\n"
        "print(whole == len(data), buffer == data[:20])\n"
        "s.setblocking(False); print(failing(s.recvfrom, 600))\n"
        "small = ctypes.create_string_buffer(8); length = ctypes.c_uint(4)\n"
        "s.setblocking(True); s.send(asked)\n"
        "room = ctypes.create_string_buffer(600)\n"
        "libc.recvfrom(s.fileno(), room, 600, 0, small, ctypes.byref(length))\n"
        "print(length.value, small.raw == raw('192.0.2.53', 53)[:4] + bytes(4))\n"
    )
    assert said.splitlines() == [
        "EAGAIN",
        "EAGAIN",
        "('192.0.2.53', 53) True",
        "True True",
        "EAGAIN",
        "16 True",
    ]


def test_who_waits_for_an_answer_can_be_killed() -> None:
    """And then nobody waits for it any more: the duplicate of the socket is closed."""
    code = (
        "s = socket.socket(S4, U); s.connect(('192.0.2.53', 53))\n"
        "print(os.fstat(s.fileno()).st_ino, flush=True)\n"
        "sys.stdin.readline()\n"
        "if not (pid := os.fork()):\n"
        "    s.recvfrom(600)\n"
        "print(pid, flush=True); print(os.waitpid(pid, 0)[1], flush=True); sys.stdin.readline()\n"
    )
    with started(*python(CODE + code), mode="async") as program:
        name = f"socket:[{program.line()}]"

        def is_held() -> bool:
            return name in descriptors(program.supervisor).values()

        until("it has been connected", lambda: not is_held())
        program.tell()
        pid = int(program.line())
        until("it waits", is_held)
        os.kill(pid, 9)
        assert program.line() == "9"
        until("nobody waits", lambda: not is_held())


# Everywhere else


@contextmanager
def receiver(host: str) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        until("the address is there", lambda: _binds(sock, host))
        sock.settimeout(10)
        yield sock


def _binds(sock: socket.socket, host: str) -> bool:
    try:
        sock.bind((host, 0))
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        return False  # the kernel adds its route later
    return True


WAYS_TO_SEND = (
    "def sends(s, name):\n"
    "    host, port = name\n"
    "    return [failing(s.connect, name), failing(s.sendto, b'x', name),\n"
    "            failing(send_to, s, b'x', raw(host, port)),\n"
    "            failing(send_message, s, b'x', raw(host, port)),\n"
    "            failing(send_messages, s, [b'x'], raw(host, port))]\n"
    "host, port = sys.argv[1], int(sys.argv[2])\n"
    "s = socket.socket(S6 if ':' in host else S4, U)\n"
)


@pytest.mark.parametrize("host", ["192.0.2.1", pytest.param("2001:db8::1", marks=needs_ipv6)])
def test_nothing_is_sent_elsewhere(host: str) -> None:
    """There is a way, by which a program goes that is not run by socksify."""

    def there() -> None:
        sh(f"ip addr add {host}/{128 if ':' in host else 32} dev lo")
        with receiver(host) as far:
            address = far.getsockname()[:2]
            code = WAYS_TO_SEND + "print(sends(s, (host, port)))\n"
            words = (address[0], str(address[1]))
            assert run(code, *words) == f"{['ENETUNREACH'] * 5}\n"
            far.setblocking(False)
            with pytest.raises(BlockingIOError):
                far.recv(9)
            far.settimeout(10)
            # By which one goes that has been told to go there directly.
            options = (f"--direct={host}",)
            assert run(code, *words, options=options) == f"{['nothing'] * 5}\n"
            assert [far.recv(9) for _ in range(4)] == [b"x"] * 4

    in_own_network(there)


def test_an_address_that_stands_for_a_name_takes_no_datagrams() -> None:
    said = run(
        "name = socket.getaddrinfo('www.example', 443, S4, U)[0][4]\n"
        "s = socket.socket(S4, U)\n"
        "print(failing(s.connect, name), failing(s.sendto, b'x', name))\n"
        "print(failing(s.sendto, b'x', ('198.19.0.9', 443)))\n"
    )
    assert said.split() == ["ENETUNREACH", "ENETUNREACH", "EHOSTUNREACH"]


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
def test_this_host_is_reached(host: str) -> None:
    with receiver(host) as far:
        code = WAYS_TO_SEND + "print(sends(s, (host, port)), s.getpeername()[0])\n"
        said = run(code, host, str(far.getsockname()[1]))
        assert said == f"{['nothing'] * 5} {host}\n"
        assert [far.recv(9) for _ in range(4)] == [b"x"] * 4


@needs_ipv6
def test_ipv4_is_reached_from_ipv6_as_far_as_the_socket_lets() -> None:
    with receiver("127.0.0.1") as far:
        said = run(
            "s = socket.socket(S6, U); name = ('::ffff:127.0.0.1', int(sys.argv[1]))\n"
            "print(s.sendto(b'x', name))\n"
            "print(send_to(s, b'y', raw('127.0.0.1', name[1]))[0])\n"
            "s = socket.socket(S6, U); s.setsockopt(41, 26, 1)\n"
            "print(failing(s.sendto, b'x', name))\n"
            "print(failing(send_to, socket.socket(S4, U), b'x', raw('::1', 9)))\n"
            "s.connect(('2001:db8::53', 53)); s.send(query('www.example'))\n"
            "print(s.recvfrom(600)[1][:2])\n",
            str(far.getsockname()[1]),
        )
        assert said.splitlines() == [
            "1",
            "1",
            "ENETUNREACH",
            "EAFNOSUPPORT",
            "('2001:db8::53', 53)",
        ]
        assert [far.recv(9), far.recv(9)] == [b"x", b"y"]


def test_what_is_too_large_is_told_so() -> None:
    said = run(
        "s = socket.socket(S4, U); name = raw('127.0.0.1', 9)\n"
        "big = bytes(70000)\n"
        "print(failing(send_to, s, big, name), failing(send_message, s, big, name))\n"
        "one, kept = header(b'x', name); one.count = 2000\n"
        "print(failing(lambda: done(libc.sendmsg(s.fileno(), ctypes.byref(one), 0))))\n"
        "one.count = 3; one.control, one.controls = one.name, 1 << 40\n"
        "print(failing(lambda: done(libc.sendmsg(s.fileno(), ctypes.byref(one), 0))))\n"
        "print(failing(lambda: done(libc.sendmsg(s.fileno(), ctypes.c_void_p(8), 0))))\n"
        "print(failing(lambda: done(libc.sendto(s.fileno(), b'x', 1, 0, name, -1))))\n"
        "name += bytes(113)\n"
        "print(failing(lambda: done(libc.sendto(s.fileno(), b'x', 1, 0, name, 129))))\n"
    )
    assert said.split() == [
        "EMSGSIZE",
        "EMSGSIZE",
        "EMSGSIZE",
        "ENOBUFS",
        "EFAULT",
        "EINVAL",
        "EINVAL",
    ]


def test_segments_are_sent_as_such() -> None:
    with receiver("127.0.0.1") as far:
        run(
            "s = socket.socket(S4, U)\n"
            "ttl = (0, 2, struct.pack('i', 9))\n"
            "s.sendmsg([b'abc', b'def'], [ttl, (17, 103, struct.pack('H', 2))], 0,\n"
            "          ('127.0.0.1', int(sys.argv[1])))\n",
            str(far.getsockname()[1]),
        )
        assert [far.recv(9) for _ in range(3)] == [b"ab", b"cd", b"ef"]


# What is not UDP


def test_other_sockets_send_as_they_always_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        got: list[bytes] = []

        def serve() -> None:
            with server.accept()[0] as client:
                while data := client.recv(99):
                    got.append(data)

        thread = threading.Thread(target=serve)
        thread.start()
        said = run(
            "left, right = socket.socketpair()\n"
            "reader, writer = os.pipe()\n"
            "socket.send_fds(left, [b'hello'], [writer])\n"
            "data, (fd,), _, _ = socket.recv_fds(right, 9, 1)\n"
            "os.write(fd, b'passed'); print(data, os.read(reader, 9))\n"
            "print(send_messages(left, [b'one', b'two'])[0], right.recv(9))\n"
            "here, there = socket.socket(socket.AF_UNIX, U), socket.socket(socket.AF_UNIX, U)\n"
            "here.bind('\\0muonsocks' + str(os.getpid()))\n"
            "there.sendto(b'x', here.getsockname()); print(here.recv(9))\n"
            "netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)\n"
            "netlink.sendto(struct.pack('IHHII', 17, 18, 0x301, 1, 0) + bytes(1), (0, 0))\n"
            "print(len(netlink.recv(9999)) > 16)\n"
            "tcp = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
            "print(tcp.sendmsg([b'ab', b'c']), send_to(tcp, b'd', raw('192.0.2.1', 9))[0])\n"
            "name = raw('192.0.2.1', 9)\n"
            "print(failing(lambda: done(libc.sendto(reader, b'x', 1, 0, name, 16))))\n"
            "one = ctypes.byref(header(b'x', b'')[0])\n"
            "print(failing(lambda: done(libc.sendmsg(999, one, 0))))\n",
            str(server.getsockname()[1]),
        )
        thread.join()
    assert said.splitlines() == [
        "b'hello' b'passed'",
        "2 b'onetwo'",
        "b'x'",
        "True",
        "3 1",
        "ENOTSOCK",
        "EBADF",
    ]
    assert b"".join(got) == b"abcd"


def test_tcp_without_a_handshake_is_refused() -> None:
    said = run(
        "s = socket.socket(); fast = 0x20000000\n"
        "print(failing(s.sendto, b'x', fast, ('127.0.0.1', 9)))\n"
        "print(failing(s.sendmsg, [b'x'], [], fast, ('127.0.0.1', 9)))\n"
    )
    assert said.split() == ["ENOTSUP", "ENOTSUP"]
