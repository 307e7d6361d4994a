"""Datagrams of programs in a network of their own, through real proxies: --udp allow."""

import contextlib
import json
import os
import shutil
import socket
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from places import in_own_network, sh
from programs import listener
from real_server import running, until
from socksified import NOWHERE, NUMBER, expect_isolation, python, run

from muonsocks.address import Endpoint
from muonsocks.intercept import tunnel
from muonsocks.intercept.packets import Datagram, datagram_in
from muonsocks.intercept.tunnel import Tunnel
from muonsocks.intercept.ways import Ways
from muonsocks.net.dial import Dialler
from muonsocks.net.loop import Loop
from muonsocks.socks.proxy_address import ProxyAddress

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make networks")

HOST, HOST6, OTHER = "198.51.100.1", "2001:db8:5::1", "198.51.100.2"
ALLOW = ("--udp=allow",)
HEAD = f"""{NUMBER}
import json, socket, struct, sys
def udp(host, port):
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(10)
    sock.connect((host, port))
    return sock
"""


def in_place(function: Callable[[], None], mode: int = 0o666) -> None:
    """Call a function in a network with some addresses, and with the device for everybody."""
    if not Path("/dev/net/tun").exists():
        pytest.skip("there is no /dev/net/tun")

    def enter() -> None:
        sh(
            "mount -t tmpfs tmpfs /dev/net",
            f"mknod /dev/net/tun c 10 200 && chmod {mode:o} /dev/net/tun",
            f"ip addr add {HOST}/24 dev lo; ip addr add {OTHER}/24 dev lo",
            f"ip -6 addr add {HOST6}/64 dev lo nodad",
        )
        function()

    in_own_network(enter)


@contextlib.contextmanager
def echo(host: str, mark: bytes = b"", port: int = 0) -> Iterator[socket.socket]:
    """A server that says what it is told, with a mark in front."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind((host, port))

    def serve() -> None:
        while True:
            data, source = sock.recvfrom(65536)
            if data == b"the end":
                return
            sock.sendto(mark + data, source)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield sock
    finally:
        with socket.socket(family, socket.SOCK_DGRAM) as last:
            last.sendto(b"the end", sock.getsockname())
        thread.join()
        sock.close()


def inside(
    program: str, *arguments: str, proxy: str, before: tuple[str, ...] = (), options: Any = ALLOW
) -> Any:
    """Run a program of Python's, and give what it prints, which is JSON."""
    words = python(HEAD + textwrap.dedent(program), *arguments)
    done = run(*words, proxy=proxy, options=options, before=before)
    assert done.status == 0, done.log
    assert done.log == "", done.log
    return json.loads(done.output)


def test_datagrams_are_answered(before):
    def there() -> None:
        with running() as proxy, echo(HOST) as far, echo(HOST6) as far6:
            found = inside(
                """
                here = []
                for host, port in ((sys.argv[1], sys.argv[2]), (sys.argv[3], sys.argv[4])):
                    sock = udp(host, int(port))
                    for size in (0, 1, 1200, 9001, 60000):
                        data = bytes(range(256)) * (size // 256) + bytes(size % 256)
                        sock.send(data)
                        here.append(sock.recv(65536) == data)
                print(json.dumps(here))
                """,
                *map(str, (*far.getsockname()[:2], *far6.getsockname()[:2])),
                proxy=proxy.url,
                before=before,
            )
            assert found == [True] * 10
            assert proxy.count(r"\bassociated ") == 2

    in_place(there)


def test_one_socket_has_one_association_and_answers_come_from_who_was_asked():
    def there() -> None:
        with running() as proxy, echo(HOST, b"one ") as one, echo(OTHER, b"other ") as other:
            found = inside(
                """
                sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                sock.settimeout(10)
                here = []
                for host, port in zip(sys.argv[1::2], sys.argv[2::2]):
                    sock.sendto(b"?", (host, int(port)))
                    data, source = sock.recvfrom(100)
                    here.append([data.decode(), source == (host, int(port))])
                print(json.dumps(here))
                """,
                *map(str, (*one.getsockname(), *other.getsockname())),
                proxy=proxy.url,
            )
            assert found == [["one ?", True], ["other ?", True]]
            assert proxy.count(r"\bassociated ") == 1

    in_place(there)


def test_answers_of_names_come_from_what_stands_for_them(before, tmp_path):
    def there() -> None:
        hosts = tmp_path / "hosts"
        hosts.write_text(f"{HOST} one.test\n{OTHER} other.test\n")
        script = f'mount --bind {hosts} /etc/hosts && exec "$@"'
        only_there = ("unshare", "--mount", "sh", "-c", script, "sh")
        with (
            running(before=only_there) as proxy,
            echo(HOST, b"one ") as one,
            echo(OTHER, b"other ", one.getsockname()[1]),
        ):
            found = inside(
                """
                sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                sock.settimeout(10)
                places = []
                for name in ("one.test", "other.test"):
                    ((*_, place),) = socket.getaddrinfo(
                        name, int(sys.argv[1]), socket.AF_INET, socket.SOCK_DGRAM)
                    places.append(place)
                here = [place[0].startswith("198.18.") for place in places]
                for place in places + places[::-1]:  # all with the same port
                    sock.sendto(b"?", place)
                    data, source = sock.recvfrom(100)
                    here.append([data.decode(), places.index(source)])
                print(json.dumps(here))
                """,
                str(one.getsockname()[1]),
                proxy=proxy.url,
                before=before,
            )
            assert found[:2] == [True, True]
            assert found[2:] == [["one ?", 0], ["other ?", 1], ["other ?", 1], ["one ?", 0]]

    in_place(there)


def test_through_two_proxies():
    def there() -> None:
        with running() as first, running() as second, echo(HOST) as far:
            options = (f"--proxy={second.url}", "--udp=allow")
            found = inside(
                """
                sock = udp(sys.argv[1], int(sys.argv[2]))
                sock.send(b"hello")
                print(json.dumps(sock.recv(100).decode()))
                """,
                *map(str, far.getsockname()),
                proxy=first.url,
                options=options,
            )
            assert found == "hello"
            assert first.count(r"\bassociated ") == second.count(r"\bassociated ") == 1

    in_place(there)


def test_nobody_is_there_where_no_proxy_carries_it(before):
    def there() -> None:
        with running() as proxy:
            socks4 = proxy.url.replace("socks5h:", "socks4a:")
            for url in (NOWHERE, socks4):
                found = inside(
                    """
                    here = []
                    for host in ("203.0.113.9", "2001:db8:9::9"):
                        sock = udp(host, 443)
                        for _ in range(3):  # and so on, while the proxies are not asked again
                            sock.send(b"hello")
                            here.append(number(sock.recv, 100))
                    print(json.dumps(here))
                    """,
                    proxy=url,
                    before=before,
                )
                assert found == ["ECONNREFUSED"] * 6

    in_place(there)


def test_what_does_not_stand_for_a_name_leads_nowhere():
    def there() -> None:
        with running() as proxy:
            found = inside(
                """
                sock = udp("198.18.77.77", 443)
                sock.send(b"hello")
                print(json.dumps(number(sock.recv, 100)))
                """,
                proxy=proxy.url,
            )
            assert found == "ECONNREFUSED"
            assert not proxy.count(r"\bassociated ")

    in_place(there)


def test_nothing_comes_from_where_nothing_was_sent_to():
    """Though the proxy lets it through."""

    def there() -> None:
        far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        far.bind((HOST, 0))
        stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        stranger.bind((OTHER, far.getsockname()[1]))

        def serve() -> None:
            _, proxys = far.recvfrom(100)
            stranger.sendto(b"from a stranger", proxys)
            far.sendto(b"as it was asked", proxys)

        thread = threading.Thread(target=serve)
        thread.start()
        with far, stranger, running("--udp-filter=open") as proxy:
            found = inside(
                """
                sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                sock.settimeout(10)
                sock.sendto(b"hello", (sys.argv[1], int(sys.argv[2])))
                print(json.dumps(sock.recv(100).decode()))
                """,
                *map(str, far.getsockname()),
                proxy=proxy.url,
            )
            thread.join()
            assert found == "as it was asked"
            proxy.await_log(r"\bclosed .*datagrams-out=2\b")

    in_place(there)


def test_nameservers_are_answered_here_and_multicast_goes_nowhere(before):
    def there() -> None:
        with running() as proxy:
            found = inside(
                """
                query = b"\\0\\7\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\5where\\4test\\0\\0\\1\\0\\1"
                here = []
                for host in ("192.0.2.53", "2001:db8::53", "127.0.0.53", "::1"):
                    sock = udp(host, 53)
                    sock.send(query)
                    here.append(sock.recv(512)[:2] == query[:2])
                sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                sock.sendto(b"x", ("224.0.0.251", 5353))
                sock.sendto(b"x", ("239.255.255.250", 1900))
                print(json.dumps(here))
                """,
                proxy=proxy.url,
                before=before,
            )
            assert found == [True] * 4
            assert not proxy.count(r"\bassociated ")
            if shutil.which("dig"):
                words = ("dig", "+short", "@192.0.2.53", "some.test")
                done = run(*words, proxy=proxy.url, options=ALLOW, before=before)
                assert done.output.startswith("198.18.")

    in_place(there)


def test_a_program_cannot_make_us_have_more_than_so_many_associations():
    def there() -> None:
        with running() as proxy, echo(HOST) as far:
            found = inside(
                """
                socks = []
                for _ in range(300):
                    socks.append(udp(sys.argv[1], int(sys.argv[2])))
                    socks[-1].send(b"hello")
                    socks[-1].recv(100)
                socks[0].send(b"once more")
                print(json.dumps(socks[0].recv(100).decode()))
                """,
                *map(str, far.getsockname()),
                proxy=proxy.url,
            )
            assert found == "once more"
            assert proxy.count(r"\bassociated ") == 301
            until("all are over", lambda: proxy.count(r"\bclosed .*client=") == 301)

    in_place(there)


def test_tcp_and_loopback_are_as_without_it(before):
    def there() -> None:
        with running() as proxy, listener(HOST) as far, echo("127.0.0.1") as beside:
            found = inside(
                """
                socket.create_connection((sys.argv[1], int(sys.argv[2])), 10).close()
                sock = udp("127.0.0.1", int(sys.argv[3]))
                sock.send(b"x")
                print(json.dumps(number(sock.recv, 1)))
                """,
                *map(str, (*far.getsockname(), beside.getsockname()[1])),
                proxy=proxy.url,
                before=before,
            )
            assert found == "ECONNREFUSED"  # this is the loopback of its own network
            proxy.await_log(f"connected .*target={HOST}:")

    in_place(there)


# Where it cannot be


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--udp=allow", "--mode=async"), "it takes --mode isolate"),
        (("--udp=allow", "--mode=hold"), "it takes --mode isolate"),
        (("--udp=some",), "'some'"),
    ],
)
def test_a_wrong_option(words: tuple[str, ...], problem: str):
    done = run("true", options=words)
    assert done.status == 100 and problem in done.log


@pytest.mark.parametrize("mode", ["auto", "isolate"])
def test_without_the_device_it_says_so(mode: str):
    def there() -> None:
        expect_isolation()
        done = run("true", mode=mode, options=ALLOW)
        assert done.status == 111 and done.log.count("\n") == 1
        assert "/dev/net/tun: Permission denied" in done.log
        assert "--udp refuse" in done.log

    in_place(there, mode=0o600)


# The life of an association


def test_what_is_not_used_is_forgotten(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tunnel, "_IDLE", 0.2)
    monkeypatch.setattr(tunnel, "_LOOK", 0.05)
    kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    kernel.settimeout(10)
    kernel.setblocking(False)
    ours.setblocking(False)
    failures: list[BaseException] = []
    said: list[str] = []

    def there() -> None:
        with running() as proxy, echo(HOST, b"> ") as far:
            loop = Loop()
            ways = Ways((ProxyAddress.parse(proxy.url),))

            async def answer(_: bytes) -> bytes:
                raise AssertionError("nobody has asked")

            one = Tunnel(loop, ours.detach(), ways, answer, Dialler(), said.append, failures.append)
            end = Endpoint(*far.getsockname())
            assert end.packed is not None
            sent = Datagram(bytes((192, 0, 0, 2)), 1000, end.packed, end.port, b"hello")

            async def exchange() -> bytes:
                kernel.send(sent.packet())
                for _ in range(1000):
                    await loop.sleep(0.01)
                    with contextlib.suppress(BlockingIOError):
                        return kernel.recv(65536)
                raise AssertionError("no answer")

            async def story() -> None:
                for times in (1, 2):
                    found = datagram_in(memoryview(await exchange()))
                    assert found is not None and bytes(found.data) == b"> hello"
                    assert (found.source, found.source_port) == (end.packed, end.port)
                    assert (found.destination, found.destination_port) == (sent.source, 1000)
                    for _ in range(1000):
                        if proxy.count(r"\bclosed .*client=") == times:
                            break
                        await loop.sleep(0.01)
                    assert proxy.count(r"\bclosed .*client=") == times
                one.close()
                one.close()

            loop.run(story())
            loop.close()
            assert failures == [] and len(said) == 2

    with kernel:
        in_place(there)


def test_an_association_ends_with_the_program():
    def there() -> None:
        with echo(HOST) as far, running() as proxy:
            words = python(
                HEAD
                + textwrap.dedent(
                    """
                        sock = udp(sys.argv[1], int(sys.argv[2]))
                        sock.send(b"hello")
                        print(sock.recv(100).decode())
                        """
                )
            )
            words += tuple(map(str, far.getsockname()))
            done = run(*words, proxy=proxy.url, options=ALLOW, before=())
            assert (done.status, done.output) == (0, "hello\n")
            proxy.await_log(r"\bclosed .*datagrams-in=1 datagrams-out=1\b.* end=closed")

    in_place(there)
