"""Programs that go through proxies: one after the other, at unix sockets, with passwords."""

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from ends import at_once, noise
from programs import (
    GREETING,
    INETD,
    RELAY,
    VERSIONS,
    Program,
    Version,
    accept,
    closed_port,
    environment,
    failure,
    listener,
    read_all,
    run,
    serving,
    socks5,
)
from real_server import MUONSOCKS, Server, kinds_of_descriptors, running, until, works
from sides import guest, host

LOCAL = [INETD, "--allow-local"]
MUCH = 1 << 20  # bytes
LOGIN = ("-U", "alice", "-P", "se:cr@t")
PASSWORD = "se%3acr%40t"


def at(server: Server) -> str:
    """Where it is, for a URL."""
    return ":".join(map(str, server.address))


def via(*urls: str) -> list[str]:
    return [f"--via={url}" for url in urls]


def ask(program: Program, host: str, port: int) -> bytes:
    """Ask by SOCKS5, and give the reply."""
    program.client.send(GREETING + socks5(host, port))
    assert program.client.read(2) == b"\5\0"
    reply = program.client.read(4)
    return reply + program.client.read(18 if reply[3] == 4 else 6)


@pytest.fixture(scope="module")
def upstreams() -> Iterator[list[Server]]:
    """Three proxies, of which the second wants a password."""
    with running() as one, running(*LOGIN) as two, running() as three:
        yield [one, two, three]


def urls(upstreams: list[Server], scheme: str = "socks5h") -> list[str]:
    one, two, three = map(at, upstreams)
    login = f"alice:{PASSWORD}@" if scheme.startswith("socks5") else ""
    return [f"{scheme}://{one}", f"socks5h://{login}{two}", f"{scheme}://{three}"]


CHAINS = {"one": [0], "a password": [1], "two": [0, 1], "three": [0, 1, 2], "in circles": [2, 0, 2]}


@pytest.mark.parametrize("target", ["127.0.0.1", "::1", "localhost"])
@pytest.mark.parametrize("scheme", ["socks4", "socks4a", "socks5", "socks5h"])
def test_every_scheme_and_destination(upstreams: list[Server], scheme: str, target: str) -> None:
    """The bound address is the one that the last proxy has."""
    with (
        listener("::1" if target == "::1" else "127.0.0.1") as far,
        serving(*LOCAL, *via(f"{scheme}://{at(upstreams[0])}")) as program,
    ):
        port = far.getsockname()[1]
        if scheme.startswith("socks4") and target == "::1":
            assert ask(program, target, port) == failure(8)
            program.client.end()
            assert program.client.rest() == b""
            assert program.status == 0
            assert program.end == "dial-failed"
            return
        reply = ask(program, target, port)
        with accept(far) as conn:
            assert reply == VERSIONS["5"].success(*conn.getpeername()[:2])
            conn.sendall(b"welcome")
            assert program.client.read(7) == b"welcome"
    assert f'via="{scheme}://{at(upstreams[0])}"' in program.log


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
@pytest.mark.parametrize("chain", CHAINS)
def test_much_both_ways_and_half_closes(
    upstreams: list[Server], chain: str, version: Version
) -> None:
    data = noise(MUCH)
    ways = [urls(upstreams)[number] for number in CHAINS[chain]]
    with listener() as far, serving(*LOCAL, *via(*ways), over="tcp") as program:
        client = program.client
        client.send(version.greeting + version.request(*far.getsockname()) + b"early")
        with accept(far) as conn:
            reply = version.chosen + version.success(*conn.getpeername())
            assert client.read(len(reply)) == reply

            def up() -> None:
                client.send(data)
                client.end()

            def down() -> None:
                conn.sendall(data[::-1])
                conn.shutdown(socket.SHUT_WR)

            _, got, _, came = at_once(up, lambda: read_all(conn), down, client.rest)
            assert got == b"early" + data
            assert came == data[::-1]
        assert program.status == 0
    assert program.end == "closed"
    assert f"in={MUCH + 5} out={MUCH} " in program.log
    assert "cr@t" not in program.log and PASSWORD not in program.log
    named = ",".join(way.replace(f"alice:{PASSWORD}@", "") for way in ways)
    assert f'via="{named}"' in program.log


def test_a_server_that_goes_through_another(upstreams: list[Server]) -> None:
    """Many clients at once, and no descriptor is left."""
    with running(*via(*urls(upstreams)[:2]), workers=2) as server, listener() as far:
        far.listen(200)
        before = [kinds_of_descriptors(pid)["socket"] for pid in server.worker_pids()]
        for _ in range(3):
            with contextlib.ExitStack() as stack:
                for _ in range(40):
                    client, conn = server.joined(far)
                    stack.enter_context(client)
                    stack.enter_context(conn)
                    assert works(client, conn)
        refused = closed_port()
        for _ in range(20):
            with server.connect() as client:
                client.sendall(GREETING + socks5("127.0.0.1", refused))
                assert read_all(client) == b"\5\0" + failure(5)

        def is_as_before() -> bool:
            return before == [kinds_of_descriptors(pid)["socket"] for pid in server.worker_pids()]

        until("all is closed", is_as_before)
    assert server.count("end=closed") == 120
    assert server.count("reply=5 .* end=dial-failed") == 20


# What goes wrong


def refused(way: list[str], *, target: tuple[str, int] = ("127.0.0.1", 1)) -> tuple[bytes, Program]:
    with serving(*LOCAL, *via(*way)) as program:
        reply = ask(program, *target)
        program.client.end()
        assert program.client.rest() == b""
        assert program.status == 0
    return reply, program


def test_a_wrong_password(upstreams: list[Server]) -> None:
    two = at(upstreams[1])
    for login, why in (
        ("alice:guess@", "it refuses the password"),
        ("", "it wants a password"),
    ):
        reply, program = refused([f"socks5://{login}{two}"])
        assert reply == failure(1)
        assert f'end=via-failed detail="socks5://{two}: {why}"' in program.log
    reply, program = refused([f"socks4://alice@{two}"])
    assert reply == failure(2)  # in SOCKS4 that is the answer to the request
    assert program.end == "dial-failed"


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_proxy_of_the_chain_is_gone(upstreams: list[Server], gone: int) -> None:
    ways = urls(upstreams)
    place = f"socks5h://127.0.0.1:{closed_port()}"
    ways[gone] = place
    reply, program = refused(ways)
    assert reply == failure(1)
    said = f"{place}: " + (
        f"connection refused, says socks5h://{at(upstreams[gone - 1])}"
        if gone
        else "Connection refused"
    )
    assert "reply=1 in=0 out=0 secs=" in program.log
    assert f'end=via-failed detail="{said}"' in program.log


def test_what_the_last_one_says_is_passed_on(upstreams: list[Server]) -> None:
    ways = urls(upstreams)
    with running(program=(MUONSOCKS,)) as strict:
        for way, target, code in (
            (ways, ("127.0.0.1", closed_port()), 5),
            (ways, ("nowhere.test", 80), 4),
            ([*ways[:1], f"socks5h://{at(strict)}"], ("127.0.0.1", 80), 2),
        ):
            reply, program = refused(way, target=target)
            assert reply == failure(code)
            assert program.end == "dial-failed"


def test_rules_say_which_way(upstreams: list[Server], tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    with listener() as far:
        port = far.getsockname()[1]
        rules.write_text(
            f"via {urls(upstreams)[1]} localhost\nvia direct 127.0.0.1 {port}\ndeny *\n"
        )
        for target, way in (("127.0.0.1", ""), ("localhost", f"socks5h://{at(upstreams[1])}")):
            options = [f"--rules={rules}", *via(f"socks5h://127.0.0.1:{closed_port()}")]
            with serving(*LOCAL, *options) as program:
                assert ask(program, target, port)[:2] == b"\5\0"
                accept(far).close()
            assert ("via=" in program.log) == bool(way)
            assert f'via="{way}"' in program.log or not way
            assert "cr@t" not in program.log


@pytest.mark.parametrize("target", ["127.0.0.1", "localhost"])
def test_nobody_answers_where_rules_lead_directly(target: str, tmp_path: Path) -> None:
    """That is told as without such rules: what has been tried, and that it took too long."""
    rules = tmp_path / "rules"
    rules.write_text("via socks5://192.0.2.1 192.0.2.0/24\n")
    with socket.socket() as far, contextlib.ExitStack() as others:
        far.bind(("127.0.0.1", 0))
        far.listen(0)
        for _ in range(3):  # its queue is full then
            other = others.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(far.getsockname())
        options = ["-v", "-4", f"--rules={rules}", "--dial-timeout=0.3"]
        with serving(*LOCAL, *options) as program:
            assert ask(program, target, far.getsockname()[1]) == failure(6)
            program.client.end()
            assert program.status == 0
    assert 'tried=127.0.0.1 error="Connection timed out"' in program.log
    assert 'end=dial-failed detail="Connection timed out"' in program.log


# At a unix socket


@contextlib.contextmanager
def at_unix_socket(path: str) -> Iterator[None]:
    """A proxy there: socks-inetd for each connection."""
    processes: list[subprocess.Popen[bytes]] = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()

        def serve() -> None:
            while True:
                try:
                    one, _ = server.accept()
                except OSError:
                    return
                with one:
                    process = subprocess.Popen(
                        LOCAL,
                        stdin=one,
                        stdout=one,
                        stderr=subprocess.DEVNULL,
                        env=environment(),
                    )
                processes.append(process)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for process in processes:
                process.kill()
                process.wait()


def test_at_a_unix_socket(upstreams: list[Server], tmp_path: Path) -> None:
    path = str(tmp_path / "proxy")
    with at_unix_socket(path), listener() as far:
        for url in (f"socks5h://unix:{path}", f"socks4a://localhost{path}"):
            for more in ([], urls(upstreams)[:1]):
                with serving(*LOCAL, *via(url, *more)) as program:
                    assert ask(program, *far.getsockname())[:2] == b"\5\0"
                    with accept(far) as conn:
                        conn.sendall(b"welcome")
                        assert program.client.read(7) == b"welcome"
                named = ",".join([f"{url.partition(':')[0]}://unix:{path}", *more])
                assert f'via="{named}"' in program.log
    reply, program = refused([f"socks5h://unix:{path}"])
    assert reply == failure(1)
    assert f'detail="socks5h://unix:{path}: Connection refused"' in program.log


# Other programs


def test_a_plain_forwarder(upstreams: list[Server]) -> None:
    with listener() as far:
        port = far.getsockname()[1]
        for target in ("127.0.0.1", "localhost"):
            for url in urls(upstreams)[:2]:
                with serving(RELAY, *via(url), target, str(port)) as program:
                    program.client.send(b"question")
                    with accept(far) as conn:
                        assert read_all(conn, 8) == b"question"
                        conn.sendall(b"answer")
                        assert program.client.read(6) == b"answer"
                assert f"target={target}:{port} address={target}:{port} via=" in program.log


def test_a_request_that_goes_elsewhere(upstreams: list[Server]) -> None:
    environ = environment(
        SOCKS_VERSION="5", SOCKS_COMMAND="connect", SOCKS_HOST="192.0.2.1", SOCKS_PORT="80"
    )
    with (
        listener() as far,
        serving(
            RELAY,
            *via(urls(upstreams)[0]),
            "127.0.0.1",
            str(far.getsockname()[1]),
            environ=environ,
        ) as program,
        accept(far) as conn,
    ):
        reply = VERSIONS["5"].success(*conn.getpeername())
        assert program.client.read(len(reply)) == reply
    assert "target=192.0.2.1:80 " in program.log


def test_a_proxy_leads_to_no_unix_socket(upstreams: list[Server]) -> None:
    outcome = run(RELAY, *via(urls(upstreams)[0]), "unix:/run/there")
    assert outcome.status == 100
    assert outcome.log.count("\n") == 1
    assert "--via has no way to a unix socket; leave one of them out" in outcome.log


def test_a_connection_that_is_handed_over(upstreams: list[Server], tmp_path: Path) -> None:
    """To the resident relay, which is none the wiser."""
    path = str(tmp_path / "relay")
    resident = (RELAY, f"--listen={path}")
    with (
        subprocess.Popen([*resident], stderr=subprocess.DEVNULL, env=environment()) as process,
        listener() as far,
    ):
        try:
            until("the relay listens", lambda: os.path.exists(path))
            options = [f"--relay={path}", *via(*urls(upstreams)[:2])]
            with serving(*LOCAL, *options, over="tcp") as program:
                assert ask(program, *far.getsockname())[:2] == b"\5\0"
                with accept(far) as conn:
                    assert program.status == 0, "it is there no more"
                    program.client.send(b"question")
                    assert read_all(conn, 8) == b"question"
            assert "via=" in program.log
        finally:
            process.terminate()


def test_virtio_mux_host(upstreams: list[Server]) -> None:
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        listener() as far,
        guest((ours.fileno(), ours.fileno())) as g,
        host((theirs.fileno(), theirs.fileno()), *via(*urls(upstreams)[:2])) as h,
    ):
        for target in ("127.0.0.1", "localhost"):
            with g.connect() as client:
                client.sendall(GREETING + socks5(target, far.getsockname()[1]))
                with accept(far) as conn:
                    reply = b"\5\0" + VERSIONS["5"].success(*conn.getpeername())
                    assert read_all(client, len(reply)) == reply
                    assert works(client, conn)
        h.await_log(r'connected client=mux:0 .* via="socks5h://\S+,socks5h://\S+"')
        with g.connect() as client:
            client.sendall(GREETING + socks5("127.0.0.1", closed_port()))
            assert read_all(client) == b"\5\0" + failure(5)


# Secrets


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def test_a_password_is_hidden_from_the_process_list(upstreams: list[Server]) -> None:
    url = urls(upstreams)[1]
    with running("--via", url, f"--via={url}", workers=1) as server:
        for pid in (server.pid, *server.worker_pids()):
            shown = command_line(pid)
            assert PASSWORD not in shown and "cr@t" not in shown
            assert shown.count(f"socks5h://alice:{'*' * len(PASSWORD)}@{at(upstreams[1])}") == 2
    with listener() as far, serving(*LOCAL, *via(url)) as program:
        assert ask(program, *far.getsockname())[:2] == b"\5\0"
        assert PASSWORD not in command_line(program.process.pid)
        accept(far).close()
