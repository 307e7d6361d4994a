"""Sockets that listen for others: what is asked for is set, and nothing else."""

import errno
import os
import socket
from contextlib import closing

import pytest
from ends import nothing_left_behind
from places import in_own_network, root_only, sh

from muonsocks.errors import UsageError
from muonsocks.net.front import BindOptions, adopt, bind_front, clear_transparent

LOOPBACK, LOOPBACK_6 = socket.inet_aton("127.0.0.1"), bytes(15) + b"\1"
IPV6_TRANSPARENT, IPV6_FREEBIND, IP_TRANSPARENT, IP_FREEBIND = 75, 78, 19, 15


@pytest.mark.parametrize("address", [LOOPBACK, LOOPBACK_6])
def test_it_is_bound_and_does_not_listen(address: bytes) -> None:
    with closing(bind_front(address, 0, BindOptions())) as sock:
        assert sock.getsockname()[0] == ("127.0.0.1" if len(address) == 4 else "::1")
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
        assert not sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)
        assert os.get_blocking(sock.fileno())


def test_reuse() -> None:
    options = BindOptions(reuse_address=False, reuse_port=True)
    with closing(bind_front(LOOPBACK, 0, options)) as sock:
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
        with closing(bind_front(LOOPBACK, sock.getsockname()[1], options)):
            pass


def test_both_families_or_one() -> None:
    for both in (True, False):
        with closing(bind_front(bytes(16), 0, BindOptions(), both_families=both)) as sock:
            assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) is int(not both)
    mapped = socket.inet_pton(socket.AF_INET6, "::ffff:127.0.0.1")
    with closing(bind_front(mapped, 0, BindOptions())) as sock:
        assert sock.getsockname()[0] == "::ffff:127.0.0.1"


def test_an_address_that_is_taken_or_not_ours() -> None:
    with nothing_left_behind(), closing(bind_front(LOOPBACK, 0, BindOptions())) as sock:
        sock.listen()
        port = sock.getsockname()[1]
        with pytest.raises(OSError) as caught:
            bind_front(LOOPBACK, port, BindOptions())
        assert caught.value.errno == errno.EADDRINUSE
        problem = f"cannot listen on 127.0.0.1:{port}: Address already in use"
        assert caught.value.strerror == problem
        other = socket.inet_pton(socket.AF_INET6, "2001:db8::9")
        with pytest.raises(OSError) as caught:
            bind_front(other, 80, BindOptions())
        problem = "cannot listen on [2001:db8::9]:80: Cannot assign requested address"
        assert caught.value.strerror == problem


def test_freebind() -> None:
    with closing(bind_front(socket.inet_aton("192.0.2.1"), 0, BindOptions(freebind=True))) as sock:
        assert sock.getsockopt(socket.IPPROTO_IP, IP_FREEBIND)
    other = socket.inet_pton(socket.AF_INET6, "2001:db8::9")
    with closing(bind_front(other, 0, BindOptions(freebind=True))) as sock:
        assert sock.getsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND)


@root_only()
def test_transparent() -> None:
    """And an ordinary socket again; of a unix socket there is nothing to clear."""
    for address, level, option in (
        (LOOPBACK, socket.IPPROTO_IP, IP_TRANSPARENT),
        (LOOPBACK_6, socket.IPPROTO_IPV6, IPV6_TRANSPARENT),
    ):
        with closing(bind_front(address, 0, BindOptions(transparent=True))) as sock:
            assert sock.getsockopt(level, option)
            clear_transparent(sock)
            assert not sock.getsockopt(level, option)
    with socket.socket(socket.AF_UNIX) as sock:
        clear_transparent(sock)


@root_only()
def test_link_local() -> None:
    def check() -> None:
        sh("ip addr add fe80::7/64 dev lo nodad")
        address = socket.inet_pton(socket.AF_INET6, "fe80::7")
        for scope in ("lo", "1"):
            with closing(bind_front(address, 0, BindOptions(), scope)) as sock:
                assert sock.getsockname()[3] == 1
        with pytest.raises(OSError, match=r"\[fe80::7%none\]:80: there is no interface none"):
            bind_front(address, 80, BindOptions(), "none")

    in_own_network(check)


def test_a_socket_that_is_inherited() -> None:
    with socket.socket() as sock:
        os.set_inheritable(sock.fileno(), True)
        adopted = adopt(sock.fileno(), "-s")
        assert not os.get_inheritable(sock.fileno())
        adopted.detach()


def test_what_is_no_socket_to_listen_on() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        with pytest.raises(UsageError, match="is no socket to listen on"):
            adopt(sock.fileno(), "-s")
        sock.getsockname()  # it is open
    with open("/dev/null") as file, pytest.raises(UsageError, match="non-socket"):
        adopt(file.fileno(), "-s")
    with pytest.raises(UsageError, match="Bad file descriptor"):
        adopt(4000, "-s")
