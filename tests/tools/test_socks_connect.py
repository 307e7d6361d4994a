"""socks-connect through real proxies, and through scripted ones that do what they should not."""

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from bound import HERE, come, is_turned_away
from ends import at_once, noise
from programs import (
    ROOT,
    Outcome,
    Program,
    accept,
    closed_port,
    environment,
    failure,
    listener,
    read_all,
    run,
    serving,
)
from real_server import Server, running, until
from upstream import BYTE_BY_BYTE, END, RESET, Script, Upstream

from muonsocks.log import Log
from muonsocks.tools import command_line, socks_connect

CONNECT = str(ROOT / "bin" / "socks-connect")
MUCH = 2 << 20  # bytes
LOGIN = ("-U", "alice", "-P", "se:cr@t")
PASSWORD = "se%3acr%40t"
SCHEMES = ("socks4", "socks4a", "socks5", "socks5h")


@pytest.fixture(scope="module")
def proxies() -> Iterator[list[Server]]:
    """Two proxies, of which the second wants a password."""
    with running("--resolve-commands") as one, running(*LOGIN) as two:
        yield [one, two]


def url(server: Server, scheme: str = "socks5h", login: str = "") -> str:
    return "{}://{}{}:{}".format(scheme, f"{login}@" if login else "", *server.address)


def connect(*words: str, **variables: str) -> Outcome:
    """Run it with nothing on standard input."""
    return run(CONNECT, *words, env=environment(**variables))


def line(done: Outcome) -> str:
    """The one line on standard error."""
    assert done.log.startswith("socks-connect: ") and done.log.count("\n") == 1, done.log
    return done.log.removeprefix("socks-connect: ").rstrip("\n")


def exchange(program: Program, conn: socket.socket) -> None:
    """Pass much both ways at once, each side ended by who sends."""
    up, down = noise(MUCH, 1), noise(MUCH, 2)

    def ask() -> None:
        program.client.send(up)
        program.client.end()

    def answer() -> None:
        conn.sendall(down)
        conn.shutdown(socket.SHUT_WR)

    results = at_once(ask, answer, program.client.rest, lambda: read_all(conn))
    assert (results[2], results[3]) == (down, up)


def is_through(far: socket.socket, *words: str, **variables: str) -> None:
    """A connection works both ways."""
    port = str(far.getsockname()[1])
    command = [CONNECT, *words, port]
    with serving(*command, over="pipes", environ=environment(**variables)) as program:
        with accept(far) as conn:
            exchange(program, conn)
        assert program.status == 0
    assert program.log == ""


# The way


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_each_protocol(proxies: list[Server], scheme: str, host: str) -> None:
    with listener() as far:
        is_through(far, f"--proxy={url(proxies[0], scheme)}", host)


def test_ipv6(proxies: list[Server]) -> None:
    for host in ("::1", "[::1]"):
        with listener("::1") as far:
            is_through(far, f"--proxy={url(proxies[0])}", host)


def test_a_chain_with_a_password(proxies: list[Server]) -> None:
    urls = [url(proxies[0]), url(proxies[1], login=f"alice:{PASSWORD}")]
    with listener() as far:
        is_through(far, "--proxy", urls[0], f"--proxy={urls[1]}", "127.0.0.1")
        is_through(far, "127.0.0.1", ALL_PROXY=",".join(urls))


def test_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    granted = b"\5\0\0\1" + bytes(6)
    with Upstream([3, b"\5\0", 10, granted + b"answer", END], path=path) as upstream:
        for place in (f"unix:{path}", f"localhost{path}"):
            done = connect(f"--proxy=socks5://{place}", "192.0.2.1", "80")
            assert (done.status, done.output, done.log) == (0, b"answer", "")
        assert upstream.heard[0].endswith(b"\5\1\0\1\xc0\0\2\1\0\x50")


def test_direct(proxies: list[Server]) -> None:
    """Because there is no proxy, or none for this, or none is wanted."""
    nowhere = f"socks5://127.0.0.1:{closed_port()}"
    with listener() as far:
        is_through(far, "127.0.0.1")
        is_through(far, "localhost", all_proxy=nowhere, no_proxy="localhost")
        is_through(far, "--proxy=direct", "127.0.0.1", ALL_PROXY=nowhere)


def test_the_environment(proxies: list[Server]) -> None:
    where = "{}:{}".format(*proxies[0].address)
    nowhere = f"socks5://127.0.0.1:{closed_port()}"
    with listener() as far:
        is_through(far, "127.0.0.1", all_proxy=url(proxies[0]), ALL_PROXY=nowhere)
        is_through(far, "127.0.0.1", SOCKS_SERVER=where)
        is_through(far, f"--proxy={url(proxies[0])}", "127.0.0.1", ALL_PROXY=nowhere)


def test_families() -> None:
    """Of a name that is looked up here."""
    with listener() as far, listener("::1") as far6:
        port, port6 = str(far.getsockname()[1]), str(far6.getsockname()[1])
        assert connect("-4", "localhost", port, "true").status == 0
        assert connect("-6", "::1", port6, "true").status == 0
        assert line(connect("-6", "127.0.0.1", port)).startswith(f"127.0.0.1:{port}: this way out")
        assert line(connect("-4", "::1", port6)).startswith(f"[::1]:{port6}: this way out")


def test_an_address_to_come_from() -> None:
    with listener() as far:
        command = [CONNECT, "-b", "127.0.0.9", "127.0.0.1", str(far.getsockname()[1])]
        with serving(*command, over="pipes"), accept(far) as conn:
            assert conn.getpeername()[0] == "127.0.0.9"


def test_it_says_which_way(proxies: list[Server]) -> None:
    """Only if asked."""
    with listener() as far:
        where = "{}:{}".format(*far.getsockname())
        words = ["127.0.0.1", str(far.getsockname()[1]), "true"]
        through = f"--proxy={url(proxies[0])}"
        assert connect(*words).log == connect("-q", through, *words).log == ""
        said = connect("-v", *words).log
        assert said.endswith(f": connected target={where} address={where}\n")
        said = connect("-v", through, *words).log
        assert f": connected target={where} via={url(proxies[0])} bound=" in said


# What goes wrong, and whose fault it is

NOWHERE = "192.0.2.1"
HELLO: Script = [3, b"\5\0"]
REFUSALS = {
    2: "not allowed",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "ttl expired",
    7: "command not supported",
    99: "reply 99",
}


@pytest.mark.parametrize("code", REFUSALS)
def test_a_refusal(code: int) -> None:
    with Upstream([*HELLO, 10, failure(code)]) as upstream:
        done = connect(f"--proxy={upstream.url('socks5')}", NOWHERE, "80")
        assert (done.status, done.output) == (97, b"")
        assert line(done) == f"{NOWHERE}:80: {REFUSALS[code]}, says {upstream.url('socks5')}"


MISBEHAVED: dict[str, Script] = {
    "another version": [3, b"\4\0"],
    "another protocol": [3, b"HTTP/1.0 400 Bad Request\r\n\r\n"],
    "an end at once": [END],
    "an end in the middle": [*HELLO, 10, b"\5\0\0\1", END],
    "an end in place of an answer": [*HELLO, 10, END],
    "a reset": [3, RESET],
    "a method that was not offered": [3, b"\5\2"],
    "a reply of no type": [*HELLO, 10, b"\5\0\0\7" + bytes(6)],
    "a reply of another version": [*HELLO, 10, b"\4\0\0\1" + bytes(6)],
    "slowly": [BYTE_BY_BYTE, 3, b"\5\0", 10, b"\4\0\0\1" + bytes(6)],
}


@pytest.mark.parametrize("what", MISBEHAVED)
def test_a_proxy_that_misbehaves(what: str) -> None:
    with Upstream(MISBEHAVED[what]) as upstream:
        done = connect(f"--proxy={upstream.url('socks5')}", NOWHERE, "80")
        assert (done.status, done.output) == (97, b"")
        assert line(done).startswith(f"{upstream.url('socks5')}: ")


def test_passwords(proxies: list[Server]) -> None:
    for login, problem in (("", "it wants a password"), ("alice:x", "it refuses the password")):
        done = connect(f"--proxy={url(proxies[1], login=login)}", NOWHERE, "80")
        assert done.status == 97
        assert line(done) == f"{url(proxies[1])}: {problem}"


def test_what_http_says() -> None:
    for status, problem in (("403 No", "status 403"), ("502 No", "status 502")):
        script: Script = [b"HTTP/1.1 %s\r\n\r\n" % status.encode(), END]
        with Upstream(script) as upstream:
            done = connect(f"--proxy={upstream.url('http')}", "www.example.com", "80")
            assert done.status == 97
            assert line(done) == f"www.example.com:80: {problem}, says {upstream.url('http')}"


def test_a_proxy_that_is_not_there(proxies: list[Server]) -> None:
    nobody = f"socks5h://127.0.0.1:{closed_port()}"
    for words in ([nobody], [url(proxies[0]), nobody]):
        done = connect(*[f"--proxy={one}" for one in words], NOWHERE, "80")
        assert done.status == 111
        assert line(done).startswith(f"{nobody}: ")
        assert "onnection refused" in line(done)


def test_no_such_name(proxies: list[Server]) -> None:
    """Looked up by the proxy, or here."""
    name = "nobody.invalid"
    done = connect(f"--proxy={url(proxies[0])}", name, "80")
    assert (done.status, line(done)) == (97, f"{name}:80: host unreachable, says {url(proxies[0])}")
    done = connect(f"--proxy={url(proxies[0], 'socks5')}", name, "80")
    assert done.status == 111 and line(done).startswith(f"{name}: ")
    done = connect(f"--proxy=socks5h://{name}", NOWHERE, "80")
    assert done.status == 111 and line(done).startswith(f"socks5h://{name}:1080: {name}: ")


def test_nobody_listens() -> None:
    port = closed_port()
    done = connect("127.0.0.1", str(port))
    assert (done.status, line(done)) == (111, f"127.0.0.1:{port}: Connection refused")


@pytest.mark.parametrize("script", [[], HELLO], ids=["at once", "after the greeting"])
def test_a_proxy_that_is_silent(script: Script) -> None:
    with Upstream(script) as upstream:
        words = [f"--proxy={upstream.url('socks5')}", "--connect-timeout=0.2", NOWHERE, "80"]
        done = connect(*words)
        assert done.status == 111
        assert line(done).startswith(f"{upstream.url('socks5')}: ")
        assert "time" in line(done)


def test_a_proxy_that_dies() -> None:
    """In the middle of a connection."""
    granted = b"\5\0\0\1" + bytes(6)
    with Upstream([*HELLO, 10, granted + b"answer", 8, RESET]) as upstream:
        command = [CONNECT, f"--proxy={upstream.url('socks5')}", NOWHERE, "80"]
        with serving(*command, over="pipes") as program:
            assert program.client.read(6) == b"answer"
            program.client.send(b"question")
            assert program.client.rest() == b""
            assert program.status == 111
    assert program.log == f"socks-connect: {NOWHERE}:80: Connection reset by peer\n"


def test_quiet() -> None:
    done = connect("-q", "127.0.0.1", str(closed_port()))
    assert (done.status, done.log) == (111, "")
    done = connect("-q", "127.0.0.1", "http")
    assert (done.status, line(done)[:4]) == (100, "PORT")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "HOST or PORT is missing; see --help"),
        (["-v"], "HOST is missing; see --help"),
        (["host"], "HOST or PORT is missing; see --help"),
        (["host", "http"], "PORT is 'http'; it must be a port, 0 to 65535"),
        (["host", "65536"], "PORT is '65536'; it must be a port, 0 to 65535"),
        (["", "80"], "HOST is empty; name a host"),
        (["a b", "80"], "'a b' cannot be the name of a host"),
        (["\xe9" * 99, "80"], f"{chr(0xE9) * 60!r} cannot be the name of a host"),
        (["--proxy", "host", "80"], "HOST or PORT is missing; see --help"),
        (["--proxy=ftp://x", "host", "80"], "--proxy: 'ftp' is no kind of proxy; there are socks4"),
        (["--proxy=socks5://x:0", "host", "80"], "--proxy: that is not where a proxy can be"),
        (["--proxy=direct", "--proxy=direct", "host", "80"], "--proxy: what has no scheme"),
        (["--proxy=socks4://u:secret@x", "h", "80"], "--proxy: socks4 has no passwords"),
        (["--proxy"], "--proxy requires argument; see --help"),
        (["--proxy=socks5://x"] * 9 + ["host", "80"], "there are more than 8 proxies in one chain"),
        (["--resolve"], "HOST is missing; see --help"),
        (["--resolve", "host", "80"], "--resolve is for HOST alone; leave the rest out"),
        (["--resolve", "host"], "only a proxy does that, and there is none; name it by --proxy"),
        (["--bind", "host", "0"], "only a proxy does that, and there is none; name it by --proxy"),
        (["--bind", "--resolve", "host"], "--bind and --resolve exclude each other"),
        (["-4", "-6", "host", "80"], "-4 and -6 exclude each other"),
        (["-b", "host", "host", "80"], "-b: 'host' is not an address"),
        (["--connect-timeout=0", "host", "80"], "--connect-timeout: '0' is not a time"),
        (["--idle-timeout=x", "host", "80"], "--idle-timeout: 'x' is not a time"),
        (["--nothing", "host", "80"], "there is no option --nothing; see --help"),
    ],
)
def test_wrong_usage(words: list[str], problem: str) -> None:
    done = connect(*words)
    assert (done.status, done.output) == (100, b"")
    assert line(done).startswith(problem)
    assert "secret" not in done.log


def test_a_wrong_environment() -> None:
    done = connect("host", "80", ALL_PROXY="socks6://secret@host")
    assert (done.status, line(done)[:11]) == (100, "$ALL_PROXY:")


def test_bytes_that_are_no_text() -> None:
    done = run(CONNECT, b"\xff", "80")
    assert (done.status, done.output) == (100, b"")
    assert "cannot be the name of a host" in done.log


# A peer that comes


def test_a_peer(proxies: list[Server]) -> None:
    """Where it is waited for is the first line, and who else comes is turned away."""
    command = [CONNECT, f"--proxy={url(proxies[0])}", "--bind", HERE, "0"]
    with serving(*command, over="pipes") as program:
        program.client.send(b"early ")
        told = b""
        while not told.endswith(b"\n"):
            told += program.client.read(1)
        address, port = told.decode().split()
        assert is_turned_away((address, int(port)), "127.0.0.9")
        with come((address, int(port)), HERE) as peer:
            assert peer.recv(6, socket.MSG_WAITALL) == b"early "
            exchange(program, peer)
        assert program.status == 0
    assert program.log == ""


def test_a_peer_that_does_not_come(proxies: list[Server]) -> None:
    words = [f"--proxy={url(proxies[0])}", "--bind", "--bind-timeout=0.2", HERE, "0"]
    done = connect(*words)
    assert re.fullmatch(rb"[\d.]+ \d+\n", done.output)
    assert (done.status, line(done)) == (111, f"{HERE}:0: nobody has come in time")


def test_a_bind_that_is_refused(proxies: list[Server]) -> None:
    done = connect(f"--proxy={url(proxies[0], 'http')}", "--bind", HERE, "0")
    assert done.status == 97
    assert line(done) == "http has no way to ask for bind"


@pytest.mark.parametrize("words", [[], ["true"]], ids=["to copy", "for a program"])
def test_no_standard_output_for_the_line(proxies: list[Server], words: list[str]) -> None:
    command = [CONNECT, f"--proxy={url(proxies[0])}", "--bind", HERE, "0", *words]
    done = run(*command, preexec_fn=lambda: os.close(1))
    assert (done.status, line(done)) == (111, "standard output is not open")
    with open("/dev/full", "wb") as full:
        process = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment())
    assert process.returncode == 111
    assert process.stderr == b"socks-connect: standard output: No space left on device\n"


# Look-ups


@pytest.mark.parametrize("scheme", ["socks4a", "socks5", "socks5h"])
def test_look_ups(proxies: list[Server], scheme: str) -> None:
    done = connect(f"--proxy={url(proxies[0], scheme)}", "--resolve", "localhost")
    expected = (b"127.0.0.1\n",) if scheme == "socks4a" else (b"127.0.0.1\n", b"::1\n")
    assert done.status == 0 and done.output in expected and done.log == ""


def test_the_name_of_an_address(proxies: list[Server]) -> None:
    done = connect(f"--proxy={url(proxies[0])}", "--resolve", "127.0.0.1")
    assert (done.status, done.output, done.log) == (0, b"localhost\n", "")


def test_a_look_up_that_fails(proxies: list[Server]) -> None:
    done = connect(f"--proxy={url(proxies[0])}", "--resolve", "nobody.invalid")
    assert (done.status, done.output) == (97, b"")
    assert line(done) == f"nobody.invalid: host unreachable, says {url(proxies[0])}"
    done = connect(
        f"--proxy={url(proxies[1], login=f'alice:{PASSWORD}')}", "--resolve", "localhost"
    )
    assert done.status == 97
    assert line(done).startswith("localhost: command not supported, says ")


# The rest


@pytest.mark.parametrize("form", [["--proxy={}"], ["--proxy", "{}"], ["-v", "--proxy={}"]])
def test_a_password_is_hidden_from_the_process_list(proxies: list[Server], form: list[str]) -> None:
    words = [word.format(url(proxies[1], login=f"alice:{PASSWORD}")) for word in form]
    with listener() as far:
        command = [CONNECT, *words, "127.0.0.1", str(far.getsockname()[1])]
        with serving(*command, over="pipes") as program, accept(far):
            shown = Path(f"/proc/{program.process.pid}/cmdline").read_bytes().decode()
            assert PASSWORD not in shown
            assert f"socks5h://alice:{'*' * len(PASSWORD)}@" in shown


@pytest.mark.parametrize(
    "words",
    [
        ["host", "80"],
        ["host", "80", "prog", "-v", "--", "x"],
        ["--", "host", "80"],
        ["--proxy=a", "host", "80"],
        ["--proxy=", "host", "80"],
        ["--proxy", "a", "host", "80"],
        ["--proxy", "-v", "host", "80"],
        ["--proxy", "--", "--", "host", "80"],
        ["--proxy=a=b", "--proxy", "b", "--", "host", "80", "--", "prog"],
    ],
    ids=" ".join,
)
def test_a_short_cut_reads_what_docopt_does(words: list[str]) -> None:
    """What is read without it means the same."""
    doc = socks_connect.__doc__ or ""
    read = socks_connect._read(words)
    parsed = command_line.parse(doc, ["--connect-timeout=120", *words], Log("test"), True)
    assert read is not None and parsed is not None
    assert read.arguments == parsed.arguments
    assert read.texts("--proxy") == parsed.texts("--proxy")


@pytest.mark.parametrize(
    "words",
    [[], ["host"], ["-v", "host", "80"], ["--proxy=a", "-v", "host", "80"], ["--prox=a", "h", "1"]],
)
def test_a_short_cut_leaves_the_rest_to_docopt(words: list[str]) -> None:
    assert socks_connect._read(words) is None


def test_a_signal_before_the_connection() -> None:
    """It has not done what it was to do, and does not say that it has."""
    with (
        Upstream([]) as upstream,
        subprocess.Popen(
            [CONNECT, f"--proxy={upstream.url('socks5')}", NOWHERE, "80"],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        ) as process,
    ):
        until("the proxy hears of it", lambda: upstream.heard and upstream.heard[0])
        process.terminate()
        assert process.communicate(timeout=20)[1] == b""
        assert process.returncode == -signal.SIGTERM
