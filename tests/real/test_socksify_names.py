"""How real programs under socksify come by names: by glibc, musl, Go, c-ares, and by themselves.

In a network with nothing but loopback, whose name server knows one name. The proxy asks it; nobody
else does, as it notes.
"""

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from attended import directory
from clients import which
from compiled import GO, compiled
from nameserver import Nameserver, nameserver, own_files
from places import in_own_network, sh
from programs import PYTHON, environment
from real_server import Server, running
from socksified import run

Told = Callable[..., None]  # has a story happen

HERE = Path(__file__).parent
NAME, ADDRESS = "server.example", "127.0.0.1"
FAKE, FAKE6 = "198.18.0.1", "fd6d:756f:6e73:6f63::1"


def needs(program: str) -> None:
    if not which(program):
        pytest.skip(f"no {program} here: tests/run installs it")


class World:
    """The proxy, the name server, and a server at NAME that says hello to all who come."""

    def __init__(self, mode: str, proxy: Server, names: Nameserver, port: int) -> None:
        self.mode = mode
        self.proxy = proxy
        self.names = names
        self.port = str(port)

    def run(self, *command: str, proxy: str | None = None, **environ: str) -> str:
        proxy = self.proxy.url if proxy is None else proxy
        return run(*command, proxy=proxy, mode=self.mode, cwd="/", env=environment(**environ)).said

    def expect_by_name(self, times: int = 1) -> None:
        """The proxy has been told the name, and nobody but the proxy has asked for it."""
        self.proxy.await_log(f"target={NAME}:{self.port} ", times)
        asked, self.names.asked = set(self.names.asked), []
        assert asked == {NAME}


@contextmanager
def greeting() -> Iterator[int]:
    with socket.create_server((ADDRESS, 0)) as server:

        def serve() -> None:
            while True:
                try:
                    client = server.accept()[0]
                except OSError:
                    return
                with client:
                    client.sendall(b"HTTP/1.0 200 OK\r\n\r\nhello\n")
                    client.shutdown(socket.SHUT_WR)
                    while client.recv(999):
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture(params=["isolate", "async", "hold"])
def in_world(request: pytest.FixtureRequest, tmp_path: Path) -> Told:
    def run(story: Callable[[World], None], more: str = "") -> None:
        in_own_network(lambda: tell(story, request.param, tmp_path, more))

    return run


def tell(story: Callable[[World], None], mode: str, place: Path, more: str) -> None:
    # Without an address of a family that can be seen there are no names of it (AI_ADDRCONFIG).
    sh("ip addr add 198.51.100.1/32 dev lo", "ip addr add 2001:db8::1/128 dev lo")
    own_files(place, "127.0.0.1 localhost\n::1 localhost\n")
    with open(place / "resolv.conf", "a") as file:
        file.write(more)
    with (
        nameserver("127.0.0.1", {NAME: ADDRESS}) as names,
        greeting() as port,
        running() as proxy,
    ):
        story(World(mode, proxy, names, port))


@pytest.fixture(scope="module")
def binary() -> Iterator[Callable[..., str]]:
    """Compiles programs, each once, to where any user can run them."""
    with directory() as place:
        yield cache(lambda source, *words, **named: compiled(place, HERE / source, *words, **named))


# The C library


def test_glibc_is_told_addresses_in_a_sane_order(in_world: Told) -> None:
    def story(world: World) -> None:
        lines = world.run("getent", "ahosts", NAME).splitlines()
        assert [line.split()[0] for line in lines] == [FAKE6] * 3 + [FAKE] * 3
        assert world.run("getent", "ahostsv4", NAME).split()[0] == FAKE
        code = (
            "import socket\n"
            f"a = socket.getaddrinfo('{NAME}', 443, type=1)\n"
            f"b = socket.getaddrinfo('{NAME}', 0, 2)\n"
            "print([one[4][:2] for one in a], {one[4] for one in b})\n"
            "print(socket.gethostbyname('localhost'), socket.getfqdn('198.18.0.1'))\n"
        )
        assert world.run(PYTHON, "-c", code).splitlines() == [
            f"[('{FAKE6}', 443), ('{FAKE}', 443)] {{('{FAKE}', 0)}}",
            f"127.0.0.1 {NAME}",
        ]
        assert world.names.asked == []

    in_world(story)


def test_curl(in_world: Told) -> None:
    needs("curl")

    def story(world: World) -> None:
        url = f"http://{NAME}:{world.port}/"
        assert world.run("curl", "-sS", url) == "hello\n"
        world.expect_by_name()
        for family in ("-4", "-6"):
            assert world.run("curl", "-sS", family, url) == "hello\n"
        world.expect_by_name(3)

    in_world(story)


def test_python(in_world: Told) -> None:
    def story(world: World) -> None:
        code = (
            "import sys, urllib.request\n"
            "print(urllib.request.urlopen(sys.argv[1]).read())\n"
            "import asyncio\n"
            "async def ask():\n"
            f"    reader, writer = await asyncio.open_connection('{NAME}', {world.port})\n"
            "    print((await reader.read())[-6:])\n"
            "asyncio.run(ask())\n"
        )
        said = world.run(PYTHON, "-c", code, f"http://{NAME}:{world.port}/")
        assert said.splitlines() == ["b'hello\\n'"] * 2
        world.expect_by_name(2)

    in_world(story)


def test_a_static_program_of_musl(in_world: Told, binary: Callable[..., str]) -> None:
    program = binary("musl_names.c", "musl-gcc", "-static")

    def story(world: World) -> None:
        said = world.run(program, NAME, world.port)
        assert sorted(said.splitlines()[:2]) == [FAKE, FAKE6] and said.endswith("hello\n")
        world.expect_by_name()

    in_world(story)


def test_several_name_servers_of_musl(in_world: Told, binary: Callable[..., str]) -> None:
    """With one of IPv6 its socket is one of IPv6, for all of them."""
    program = binary("musl_names.c", "musl-gcc", "-static")

    def story(world: World) -> None:
        said = world.run(program, NAME, world.port)
        assert sorted(said.splitlines()[:2]) == [FAKE, FAKE6] and said.endswith("hello\n")

    in_world(story, more="nameserver 2001:db8::53\nnameserver 192.0.2.53\n")


def test_a_static_program_of_go(in_world: Told, binary: Callable[..., str]) -> None:
    program = binary("go_names.go", *GO)

    def story(world: World) -> None:
        said = world.run(program, NAME, world.port)
        assert said.splitlines()[:2] == [FAKE, FAKE6] and said.endswith("hello\n")
        world.expect_by_name()

    in_world(story)


def test_c_ares(in_world: Told, binary: Callable[..., str]) -> None:
    program = binary("cares_names.c", "gcc", libraries=("-lcares",))

    def story(world: World) -> None:
        assert world.run(program, NAME) == f"{FAKE}\n"
        assert world.run(program, NAME, "6") == f"{FAKE6}\n"
        assert world.names.asked == []

    in_world(story)


def test_dig(in_world: Told) -> None:
    needs("dig")

    def story(world: World) -> None:
        said = world.run("dig", "+time=2", "+tries=1", NAME, "@192.0.2.53")
        assert re.search(rf"{NAME}\.\s+1\s+IN\s+A\s+{FAKE}\n", said)
        assert "SERVER: 192.0.2.53#53" in said and "NOERROR" in said and "udp: 1232" in said
        script = f"dig +short {NAME} AAAA; dig +short -x {FAKE}; dig +short {NAME} MX; "
        script += f"dig {NAME} +noedns CH TXT | grep -o NOTIMP; dig -x 192.0.2.1 | grep -o NXDOMAIN"
        # Of one process all: for another one the addresses stand for nothing.
        assert world.run("sh", "-c", script.replace(f"-x {FAKE}", f"-x {FAKE6}")).splitlines() == [
            FAKE6,
            f"{NAME}.",
            "NOTIMP",
            "NXDOMAIN",
        ]
        assert world.names.asked == []

    in_world(story)


# Rules


def test_a_proxy_that_is_told_addresses(in_world: Told) -> None:
    """The names are looked up here, and what is asked leaves for the name server."""
    needs("curl")

    def story(world: World) -> None:
        proxy = world.proxy.url.replace("socks5h", "socks5")
        url = f"http://{NAME}:{world.port}/"
        # It is an address of this host, which is gone to directly.
        assert world.run("curl", "-sS", url, proxy=proxy) == "hello\n"
        assert world.run("getent", "ahostsv4", NAME, proxy=proxy).split()[0] == ADDRESS
        assert set(world.names.asked) == {NAME}
        unknown = "getent ahosts other.example; echo $?"
        assert world.run("sh", "-c", unknown, proxy=proxy) == "2\n"
        assert not world.proxy.count("target=")

    in_world(story)


def test_proxies_and_exceptions_of_the_environment(in_world: Told) -> None:
    needs("getent")

    def story(world: World) -> None:
        url = world.proxy.url
        code = (
            "import socket, sys\n"
            "for name in sys.argv[2:]:\n"
            "    print(socket.create_connection((name, int(sys.argv[1]))).recv(99)[-6:])\n"
        )
        words = (PYTHON, "-c", code, world.port, NAME)
        hello = "b'hello\\n'\n"
        assert world.run(*words, proxy="", ALL_PROXY=url) == hello
        world.expect_by_name()
        assert world.run(*words, proxy="", ALL_PROXY=url, no_proxy="example") == hello
        assert world.run(*words, "localhost", proxy="", all_proxy=url, NO_PROXY="*") == hello * 2
        assert world.proxy.count("closed .*target=") <= 1
        # --proxy is for everything.
        assert world.run(*words, no_proxy="*") == hello
        world.proxy.await_log(f"closed .*target={NAME}:", 2)

    in_world(story)


def test_the_proxy_may_be_named(in_world: Told) -> None:
    """Then its name is looked up here, and a program that goes there by itself gets there."""

    def story(world: World) -> None:
        host, port = world.proxy.address
        world.names._table[NAME] = host
        proxy = f"socks5h://{NAME}:{port}"
        code = (
            "import socket, sys\n"
            f"one = socket.create_connection(('{NAME}', {port})); one.sendall(b'\\5\\1\\0')\n"
            "print(one.recv(9))\n"
            f"print(socket.create_connection(('other.example', 80)))\n"
        )
        said = world.run("sh", "-c", f'{PYTHON} -c "$0" 2>&1 | grep -v "^ "', code, proxy=proxy)
        assert "b'\\x05\\x00'" in said.splitlines()
        world.proxy.await_log("target=other.example:80 ")

    in_world(story)


def test_domains_that_are_searched(in_world: Told) -> None:
    def story(world: World) -> None:
        code = (
            "import socket, sys\n"
            "print(socket.create_connection((sys.argv[1], int(sys.argv[2]))).recv(99)[-6:])\n"
        )
        assert world.run(PYTHON, "-c", code, NAME, world.port) == "b'hello\\n'\n"
        world.proxy.await_log(f"closed .*target={NAME}:")
        assert world.proxy.count("target=") == world.proxy.count(f"target={NAME}:")

    in_world(story, more="search office.example cluster.local\noptions ndots:5\n")
