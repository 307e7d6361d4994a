"""A program that gets its connection on descriptors 6 and 7, and what it is told of it."""

import os
import socket
from pathlib import Path

import pytest
from programs import (
    KINDS,
    PYTHON,
    ROOT,
    Outcome,
    accept,
    environment,
    listener,
    read_all,
    run,
    serving,
)
from upstream import END, Script, Upstream

from muonsocks.address import Endpoint
from muonsocks.client.errand import Granted
from muonsocks.tools.ucspi import connection_environment

CONNECT = str(ROOT / "bin" / "socks-connect")
# Says what it has been given: variables, and whether 6 and 7 are one socket, which blocks.
TELL = """
import os
for name in sorted(os.environ):
    if name.startswith(("TCP", "PROTO", "SOCKS_")):
        print(name, os.environ[name])
print(os.path.sameopenfile(6, 7), os.get_blocking(6), os.get_blocking(7))
print(sorted(map(int, os.listdir("/proc/self/fd")))[:5])
"""
TELLING = [PYTHON, "-c", TELL]
BOUND = b"\x05\0\0\x01\xc0\0\2\x07\x12\x34"  # 192.0.2.7:4660
GRANTED: Script = [3, b"\5\0", 10, BOUND]
OF_NAME: Script = [3, b"\5\0", 7 + len("WWW.Example.com"), BOUND]
UNTOLD: Script = [3, b"\5\0", 10, b"\5\0\0\1" + bytes(6)]


def told(*command: str, **variables: str) -> dict[str, str]:
    """What the program says of its variables."""
    done = run(*command, *TELLING, env=environment(**variables))
    assert (done.status, done.log) == (0, "")
    *lines, descriptors, numbers = done.output.decode().splitlines()
    assert descriptors == "True True True"
    assert numbers == "[0, 1, 2, 3, 6]"  # 3 is the directory's
    return dict(line.split(" ") for line in lines)


OLD = {"TCPREMOTEINFO": "me", "TCPLOCALHOST": "here", "TCPREMOTEHOST": "x", "TCPLOCALIP": "y"}


def test_direct() -> None:
    with listener() as far:
        host, port = far.getsockname()
        found = told(CONNECT, host, str(port), **OLD)
        with accept(far) as conn:
            local = conn.getpeername()
    assert found == {
        "PROTO": "TCP",
        "TCPREMOTEIP": host,
        "TCPREMOTEPORT": str(port),
        "TCPLOCALIP": local[0],
        "TCPLOCALPORT": str(local[1]),
    }


@pytest.mark.parametrize(
    ("script", "host", "names", "known"),
    [
        (GRANTED, "192.0.2.1", "TCPREMOTEIP 192.0.2.1", True),
        (UNTOLD, "192.0.2.1", "TCPREMOTEIP 192.0.2.1", False),
        (OF_NAME, "WWW.Example.com", "TCPREMOTEHOST www.example.com", True),
    ],
    ids=["an address", "nothing bound", "a name"],
)
def test_through_a_proxy(script: Script, host: str, names: str, known: bool) -> None:
    """What is not known is not set."""
    name, value = names.split()
    expected = {"PROTO": "TCP", "TCPREMOTEPORT": "80", name: value}
    if known:
        expected |= {"TCPLOCALIP": "192.0.2.7", "TCPLOCALPORT": "4660"}
    with Upstream(script) as upstream:
        url = f"--proxy={upstream.url('socks5h')}"
        assert told(CONNECT, url, host, "80", **OLD) == expected


def test_a_peer_that_has_come() -> None:
    script: Script = [3, b"\5\0", 10, BOUND, b"\5\0\0\1\xc0\0\2\x09\0\x50"]
    with Upstream(script) as upstream:
        command = [CONNECT, f"--proxy={upstream.url('socks5')}", "--bind", "192.0.2.9", "0"]
        done = run(*command, *TELLING)
    line, *rest = done.output.decode().splitlines()
    assert line == "192.0.2.7 4660"
    assert rest[:5] == [
        "PROTO TCP",
        "TCPLOCALIP 192.0.2.7",
        "TCPLOCALPORT 4660",
        "TCPREMOTEIP 192.0.2.9",
        "TCPREMOTEPORT 80",
    ]


def test_zeros_are_no_address() -> None:
    with listener() as far, socket.create_connection(far.getsockname()) as sock:
        granted = Granted(sock, Endpoint("::", 0))
        environ = connection_environment(granted, Endpoint("2001:db8::1", 7))
    assert b"TCPLOCALIP" not in environ and b"TCPLOCALPORT" not in environ
    assert environ[b"TCPREMOTEIP"] == b"2001:db8::1"


def test_what_it_does_with_it() -> None:
    """Both ways, with a half-close; its standard input and output are its own."""
    script = "cat >&7; cat <&6"
    shut = (
        "import socket, sys\nsock = socket.socket(fileno=7)\n"
        "sock.sendall(sys.stdin.buffer.read())\nsock.shutdown(socket.SHUT_WR)\n"
        "while data := sock.recv(99): sys.stdout.buffer.write(data)"
    )
    with listener() as far:
        where = ["127.0.0.1", str(far.getsockname()[1])]
        command = [CONNECT, *where, PYTHON, "-c", shut]
        with serving(*command, over="pipes") as program, accept(far) as conn:
            program.client.send(b"question")
            program.client.end()
            assert read_all(conn) == b"question"
            conn.sendall(b"answer")
            conn.shutdown(socket.SHUT_WR)
            assert program.client.rest() == b"answer"
            assert program.status == 0
        with serving(CONNECT, *where, "sh", "-c", script) as program, accept(far) as conn:
            program.client.send(b"question")
            program.client.end()
            assert read_all(conn, 8) == b"question"
            conn.sendall(b"answer")
            conn.close()
            assert program.client.rest() == b"answer"


@pytest.mark.parametrize("taken", [(6,), (7,), (6, 7), (3, 4, 5)])
def test_descriptors_that_are_taken(taken: tuple[int, ...]) -> None:
    """Or that are the connection's own before."""

    def take() -> None:
        for number in taken:
            os.dup2(0, number)

    with listener() as far:
        host, port = far.getsockname()
        tell = "import os; print(os.readlink('/proc/self/fd/6') == os.readlink('/proc/self/fd/7'))"
        command = [CONNECT, host, str(port), PYTHON, "-c", tell]
        done = run(*command, preexec_fn=take, close_fds=False)
        assert (done.status, done.output) == (0, b"True\n"), done.log


def started(*words: str) -> Outcome:
    with listener() as far:
        host, port = far.getsockname()
        return run(CONNECT, "--", host, str(port), *words)


def test_its_status() -> None:
    assert started("sh", "-c", "exit 7").status == 7


def test_no_such_program(tmp_path: Path) -> None:
    done = started("no-such-program")
    assert done.status == 127
    assert "no-such-program cannot be executed: No such file" in done.log
    file = tmp_path / "file"
    file.write_text("")
    done = started(str(file))
    assert done.status == 126
    assert "cannot be executed: Permission denied" in done.log


def test_its_options_are_its_own() -> None:
    assert started("echo", "--help", "-v").output == b"--help -v\n"


def test_a_closed_standard_input_is_nothing_to_it() -> None:
    with listener() as far:
        host, port = far.getsockname()
        command = [CONNECT, host, str(port), "sh", "-c", "test ! -e /proc/$$/fd/0"]
        assert run(*command, preexec_fn=lambda: os.close(0)).status == 0


def test_standard_error_that_is_the_peer() -> None:
    """As under inetd: the program is told."""
    with listener() as far:
        host, port = far.getsockname()
        client, stdin, stdout = KINDS["unix"]()
        command = [CONNECT, host, str(port), "sh", "-c", "echo $SOCKS_LOG"]
        with serving(*command, over=lambda: (client, stdin, stdout), stderr=stdout) as program:
            assert program.client.rest() == b"syslog\n"
            assert program.status == 0


def test_nobody_comes_any_more() -> None:
    """The proxy hangs up in place of the second reply."""
    with Upstream([3, b"\5\0", 10, BOUND, END]) as upstream:
        command = [CONNECT, f"--proxy={upstream.url('socks5')}", "--bind", "192.0.2.9", "0"]
        done = run(*command, *TELLING)
    assert done.status == 97
    assert done.output == b"192.0.2.7 4660\n"
    assert "closed the connection" in done.log
