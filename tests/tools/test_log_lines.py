"""What the programs log of a connection, and that no client can write into that."""

import contextlib
import re
from pathlib import Path

import pytest
from programs import (
    GREETING,
    HANDSHAKE,
    INETD,
    REJECTED,
    accept,
    closed_port,
    environment,
    listener,
    read_all,
    serving,
    socks4,
    socks5,
)

LOCAL = [INETD, "--allow-local"]

# The log

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


def test_log_lines_are_exact() -> None:
    with listener() as far, serving(*LOCAL, over="tcp") as program:
        assert program.client.socket
        own = ":".join(map(str, program.client.socket.getsockname()))
        target = ":".join(map(str, far.getsockname()))
        program.client.send(socks4(*far.getsockname()) + b"12345")
        program.client.end()
        with accept(far) as conn:
            assert read_all(conn) == b"12345"
            conn.sendall(b"123")
        assert len(program.client.rest()) == 8 + 3
        assert program.status == 0
    head = rf"{TIME} socks-inetd\[{program.process.pid}\]: "
    facts = rf"client={own} user=me target={target}"
    lines = [
        rf"{head}connected {facts} address={target}",
        rf"{head}closed {facts} reply=0 in=5 out=3 secs=\d+\.\d{{3}} end=closed",
    ]
    assert re.fullmatch("\n".join(lines) + "\n", program.log)


def test_log_lines_for_the_journal() -> None:
    environ = environment(JOURNAL_STREAM="log")
    with listener() as far, serving(*LOCAL, environ=environ) as program:
        program.client.send(GREETING + socks5("localhost", far.getsockname()[1]))
        assert program.client.read(4) == b"\5\0\5\0"
        accept(far).close()
        program.client.end()
        program.client.rest()
        assert program.status == 0
    first, last = program.log.splitlines()
    target = f"client=unix user=- target=localhost:{far_port(first)}"
    assert first == f"<6>connected {target} address=127.0.0.1:{far_port(first)}"
    assert re.fullmatch(rf"<6>closed {target} reply=0 in=0 out=0 secs=\d\.\d+ end=closed", last)


def far_port(line: str) -> str:
    return line.rpartition(":")[2]


@pytest.mark.parametrize(("option", "lines"), [("-q", 0), ("--quiet", 0), ("-v", 2), ("-4", 1)])
def test_how_much_is_logged(option: str, lines: int) -> None:
    with serving(*LOCAL, option) as program:
        program.client.send(socks4("127.0.0.1", port := closed_port()))
        program.client.end()
        assert program.client.rest() == REJECTED
        assert program.status == 0
    assert len(program.log.splitlines()) == lines
    if lines == 2:
        what = f'target=127.0.0.1:{port} tried=127.0.0.1 error="Connection refused"'
        assert program.log.splitlines()[0].endswith(what)


PEERS = {
    "systemd": ({"REMOTE_ADDR": "192.0.2.7", "REMOTE_PORT": "99"}, "192.0.2.7:99"),
    "systemd, IPv6": ({"REMOTE_ADDR": "2001:db8::7", "REMOTE_PORT": "99"}, "[2001:db8::7]:99"),
    "systemd, mapped": ({"REMOTE_ADDR": "::ffff:192.0.2.7", "REMOTE_PORT": "9"}, "192.0.2.7:9"),
    "systemd, scope": ({"REMOTE_ADDR": "fe80::1%2", "REMOTE_PORT": "9"}, "[fe80::1]:9"),
    "UCSPI": (
        {"PROTO": "TCP", "TCPREMOTEIP": "192.0.2.8", "TCPREMOTEPORT": "98"},
        "192.0.2.8:98",
    ),
    "UCSPI, TLS": (
        {"PROTO": "SSL", "SSLREMOTEIP": "192.0.2.8", "SSLREMOTEPORT": "98", "TCPREMOTEIP": "x"},
        "192.0.2.8:98",
    ),
    "both": (
        {"PROTO": "TCP", "TCPREMOTEIP": "192.0.2.8", "REMOTE_ADDR": "192.0.2.7"},
        "192.0.2.7:0",
    ),
    "the socket": ({"TCPREMOTEIP": "192.0.2.8"}, "OWN"),
}


@pytest.mark.parametrize("who", PEERS)
def test_who_the_client_is(who: str) -> None:
    variables, expected = PEERS[who]
    with serving(INETD, over="tcp", environ=environment(**variables)) as program:
        assert program.client.socket
        if expected == "OWN":
            expected = ":".join(map(str, program.client.socket.getsockname()))
        program.client.end()
        assert program.status == 0
    assert f" client={expected} user=- target=- reply=- in=0 out=0 " in program.log


@pytest.mark.parametrize(
    ("over", "name"),
    [
        ("unix", "unix"),
        ("pipes", "stdin"),
        ("pty", "stdin"),
        ("mapped", r"127\.0\.0\.1:\d+"),
        ("tcp6", r"\[::1\]:\d+"),
    ],
)
def test_a_client_without_variables(over: str, name: str) -> None:
    with serving(INETD, over=over) as program:
        program.client.send(b"?")
        program.await_log(f" client={name} user=- ")


HOSTILE = {
    "a line": b"x\n2000-01-01T00:00:00Z socks-inetd[1]: closed client=1.2.3.4 end=closed",
    "control characters": bytes(range(1, 32)) + b"\x7f\x1b[2J",
    "quotes": b'"\' end=closed detail="',
    "a backslash": rb"\n\x41",
    "high bytes": bytes(range(128, 256)),
    "long": b"\xff" * 255,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_client_cannot_forge_a_log_line(what: str) -> None:
    """A user id, and a name of the target, are one word each."""
    user = HOSTILE[what]
    with serving(INETD) as program:
        program.client.send(socks4("127.0.0.1", 25, user=user))
        program.client.end()
        assert program.client.rest() == REJECTED
    assert len(program.log.splitlines()) == 1
    words = program.log.split()
    assert words[2:3] + words[3:4] == ["closed", "client=unix"]
    assert [word for word in words if word.startswith("end=")] == ["end=refused-by-rule"]
    escaped = words[4].removeprefix("user=")
    assert escaped.isprintable() and '"' not in escaped
    assert re.sub(r"\\x(..)", lambda m: chr(int(m[1], 16)), escaped).encode("latin-1") == user


@pytest.mark.parametrize("name", ['a"b', "a'b", 'x"end="closed', "a\\b", "a=b", "client=1"])
def test_a_name_cannot_forge_a_log_line(tmp_path: Path, name: str) -> None:
    """Whoever reads `word` and `word="..."` finds the fields that are meant, and no other."""
    rules = tmp_path / "rules"
    rules.write_text("allow 192.0.2.1\n")
    with serving(INETD, f"--rules={rules}", "-v") as program:
        program.client.send(GREETING + socks5(name, 80))
        program.client.end()
        program.client.rest()
    for line in program.log.splitlines():
        names = re.findall(r'(?:^| )(\w+)=(?:"(?:[^"\\]|\\.)*"(?= |$)|[^ "]\S*)', line)
        assert names == ["client", "user", "target", "reply", "in", "out", "secs", "end", "detail"]


def _closed(command: list[str]) -> list[str]:
    return ["/bin/sh", "-c", 'exec "$@" 2>&-', "sh", *command]


@pytest.mark.parametrize("stderr", ["closed", "full"])
def test_a_connection_does_not_need_its_log(stderr: str) -> None:
    with contextlib.ExitStack() as stack:
        far = stack.enter_context(listener())
        full = stack.enter_context(open("/dev/full", "wb"))
        command = _closed(LOCAL) if stderr == "closed" else LOCAL
        options = {} if stderr == "closed" else {"stderr": full}
        program = stack.enter_context(serving(*command, over="tcp", **options))
        program.client.send(GREETING + socks5(*far.getsockname()) + b"data")
        program.client.end()
        with accept(far) as conn:
            assert read_all(conn) == b"data"
            conn.sendall(b"answer")
        assert program.client.rest()[12:] == b"answer"
        assert program.status == 0


# When it is the client that fd 2 leads to, as under inetd


def test_nor_does_the_program_behind_socks_handshake() -> None:
    with serving(HANDSHAKE, "sh", "-c", "echo to the log >&2", log_to_client=True) as program:
        program.client.send(socks4("192.0.2.1", 80))
        assert program.client.rest() == b""
        assert program.status == 0


ANNOYING: dict[str, tuple[list[str | bytes], bytes, int]] = {
    "a connection": ([], b"GET / HTTP/1.0\r\n\r\n", 0),
    "wrong usage": (["--bogus"], b"", 100),
    "a bad rules file": (["--rules=/dev/fd/9/no"], b"", 111),
    "a file name that is not UTF-8": ([b"--rules=/\xff"], b"", 111),
    "wrong usage that is not UTF-8": ([b"--bind-address=\xff"], b"", 100),
}


@pytest.mark.parametrize("over", ["tcp", "unix", "pipes"])
@pytest.mark.parametrize("what", ANNOYING)
def test_nothing_is_logged_to_the_client(what: str, over: str) -> None:
    options, sent, status = ANNOYING[what]
    with serving(INETD, *options, over=over, log_to_client=True) as program:
        with contextlib.suppress(BrokenPipeError):
            program.client.send(sent)
            program.client.end()
        assert program.client.rest() == b""
        assert program.status == status
