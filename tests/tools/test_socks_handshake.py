"""socks-handshake as a process: what the program behind it finds, and policies made of the two."""

import contextlib
import os
import re
import signal
import socket
import stat
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import launchers
import pytest
from programs import (
    GREETING,
    HANDSHAKE,
    INETD,
    KINDS,
    PASSWORD_GREETING,
    REJECTED,
    RELAY,
    SECONDS,
    VERSIONS,
    Version,
    accept,
    closed_port,
    credentials,
    environment,
    listener,
    read_all,
    run,
    serving,
    socks4,
    socks4a,
    socks5,
)

BOTH = {
    "socks-inetd": [INETD, "--allow-local"],
    "socks-handshake socks-relay": [HANDSHAKE, "socks-relay", "--allow-local"],
    "through a shell": [HANDSHAKE, "sh", "-c", "exec socks-relay --allow-local"],
}

# The two together are socks-inetd

CONVERSATIONS: dict[str, Callable[[str, int], bytes]] = {
    "SOCKS5": lambda host, port: GREETING + socks5(host, port),
    "SOCKS5, a name": lambda host, port: GREETING + socks5("127.1", port),
    "SOCKS5, many methods": lambda host, port: b"\5\xff" + bytes(255) + socks5(host, port),
    "SOCKS4": socks4,
    "SOCKS4, no user": lambda host, port: socks4(host, port, user=b""),
    "SOCKS4, a long user": lambda host, port: socks4(host, port, user=b"u" * 255),
    "SOCKS4a": socks4a,
    "refused": lambda host, port: GREETING + socks5(host, closed_port()),
    "no such name": lambda host, port: socks4a("no-such-name.invalid", 80),
    "bind": lambda host, port: GREETING + socks5("0.0.0.0", 0, command=2),
    "resolve": lambda host, port: GREETING + socks5(host, port, command=0xF0),
    "associate": lambda host, port: GREETING + socks5(host, port, command=3),
    "command 9": lambda host, port: socks4(host, port, command=9),
    "method": lambda host, port: PASSWORD_GREETING,
    "address type": lambda host, port: GREETING + b"\5\1\0\2\1",
    "garbage": lambda host, port: b"GET / HTTP/1.0\r\n\r\n",
    "half a request": lambda host, port: GREETING + b"\5\1\0\3\xff",
    "nothing": lambda host, port: b"",
}
EARLY = b"sent before there was a reply"


def answer_one(far: socket.socket, arrived: list[bytes], bound: list[int]) -> None:
    """Be the far end of one connection, if it comes."""
    with contextlib.suppress(OSError), far.accept()[0] as conn:
        conn.settimeout(SECONDS)
        bound.append(conn.getpeername()[1])
        arrived.append(read_all(conn))
        conn.sendall(b"answer")


def converse(
    command: list[str], say: Callable[[str, int], bytes], over: str, in_bytes: bool
) -> tuple[object, ...]:
    """Have a whole conversation, and give all that is to be seen of it, but ports."""
    arrived: list[bytes] = []
    bound: list[int] = []
    with listener() as far, serving(*command, over=over) as program:
        far_end = threading.Thread(target=answer_one, args=(far, arrived, bound))
        far_end.start()
        request = say(*far.getsockname())
        for piece in [bytes([byte]) for byte in request] if in_bytes else [request + EARLY]:
            program.client.send(piece)
        if in_bytes:
            program.client.send(EARLY)
        program.client.end()
        answer = program.client.rest()
        status = program.status
        far.shutdown(socket.SHUT_RD)
        far_end.join()
    bound += [int(port) for port in re.findall(r" relay=\S+:(\d+)", program.log)]
    for port in bound:
        answer = answer.replace(struct.pack("!H", port), b"..")
    line = program.log.splitlines()[-1]
    facts = line[line.index("closed ") :]
    return answer, arrived, status, re.sub(r"secs=\S+|(?<=[\d.]):\d+(?= )", "", facts)


@pytest.mark.parametrize("in_bytes", [False, True], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("over", ["unix", "tcp", "pipes"])
@pytest.mark.parametrize("what", CONVERSATIONS)
def test_they_do_the_same(what: str, over: str, in_bytes: bool) -> None:
    """With data right behind the request: not one byte of it is lost on the way."""
    seen = [converse(command, CONVERSATIONS[what], over, in_bytes) for command in BOTH.values()]
    assert seen[0][1] in ([], [EARLY])
    assert seen[1] == seen[0]
    assert seen[2] == seen[0]


@pytest.mark.parametrize("over", ["tcp6", "mapped", "fifos"])
@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_over_anything(over: str, version: Version) -> None:
    with listener() as far, serving(*BOTH["socks-handshake socks-relay"], over=over) as program:
        program.client.send(version.greeting + version.request(*far.getsockname()) + EARLY)
        program.client.end()
        with accept(far) as conn:
            assert read_all(conn) == EARLY
            conn.sendall(b"answer")
            reply = version.chosen + version.success(*conn.getpeername())
        assert program.client.rest() == reply + b"answer"
        assert program.status == 0


def test_much_data_behind_the_request() -> None:
    data = os.urandom(1 << 20)
    with listener() as far, serving(*BOTH["socks-handshake socks-relay"], over="tcp") as program:
        sent = GREETING + socks5(*far.getsockname()) + data
        sender = threading.Thread(target=lambda: (program.client.send(sent), program.client.end()))
        sender.start()
        with accept(far) as conn:
            assert read_all(conn) == data
        sender.join()
        assert program.client.rest()[:4] == b"\5\0\5\0"


# What the program behind it finds

WITNESS = """
cd "$0"
env -0 > env
cat /proc/self/status > status
ls -l /proc/self/fd > fds
cat /proc/$$/fdinfo/0 /proc/$$/fdinfo/1 > fdinfo
cat > rest
"""


class Witness:
    """What a shell behind socks-handshake has seen."""

    def __init__(self, place: Path) -> None:
        entries = (place / "env").read_bytes().split(b"\0")
        self.environ = dict(entry.split(b"=", 1) for entry in entries if entry)
        self.request = {
            name.decode().removeprefix("SOCKS_"): value
            for name, value in self.environ.items()
            if name.startswith(b"SOCKS_")
        }
        self.status = dict(
            line.split(":\t", 1) for line in (place / "status").read_text().splitlines()
        )
        self.fds = sorted(
            int(line.split(" -> ")[0].split()[-1])
            for line in (place / "fds").read_text().splitlines()
            if " -> " in line and "/proc/" not in line  # where ls looks
        )
        flags = re.findall(r"flags:\s+(\d+)", (place / "fdinfo").read_text())
        self.blocking = [not int(text, 8) & os.O_NONBLOCK for text in flags]
        self.rest = (place / "rest").read_bytes()


def witness(
    place: Path,
    sent: bytes,
    *options: str | bytes,
    over: str = "unix",
    environ: dict[bytes, bytes] | None = None,
    answer: bytes | None = None,
) -> Witness:
    """Bring a client to its request, and let the witness look around and read what is left."""
    place.mkdir(exist_ok=True)
    command = [HANDSHAKE, *options, "sh", "-c", WITNESS, str(place)]
    with serving(*command, over=over, environ=environ) as program:
        program.client.send(sent)
        program.client.end()
        got = program.client.rest()
        assert answer is None or got == answer
        assert program.status == 0
    assert program.log == ""
    return Witness(place)


REQUESTS: dict[str, tuple[bytes, dict[str, bytes]]] = {
    "5, IPv4": (
        GREETING + socks5("192.0.2.1", 80),
        {"VERSION": b"5", "COMMAND": b"connect", "HOST": b"192.0.2.1", "PORT": b"80"},
    ),
    "5, IPv6": (
        GREETING + socks5("2001:db8:0:0::1", 65535),
        {"VERSION": b"5", "COMMAND": b"connect", "HOST": b"2001:db8::1", "PORT": b"65535"},
    ),
    "5, mapped": (
        GREETING + socks5("::ffff:192.0.2.1", 0),
        {"VERSION": b"5", "COMMAND": b"connect", "HOST": b"192.0.2.1", "PORT": b"0"},
    ),
    "5, a name": (
        GREETING + socks5("example.org", 443),
        {"VERSION": b"5", "COMMAND": b"connect", "HOST": b"example.org", "PORT": b"443"},
    ),
    "5, a hostile name": (
        GREETING + socks5("$(id)`id`;'\"|&*", 1),
        {"VERSION": b"5", "COMMAND": b"connect", "HOST": b"$(id)`id`;'\"|&*", "PORT": b"1"},
    ),
    "5, a long name": (
        GREETING + socks5("n" * 255, 1),
        {"VERSION": b"5", "COMMAND": b"connect", "HOST": b"n" * 255, "PORT": b"1"},
    ),
    "5, bind": (
        GREETING + socks5("0.0.0.0", 0, command=2),
        {"VERSION": b"5", "COMMAND": b"bind", "HOST": b"0.0.0.0", "PORT": b"0"},
    ),
    "5, associate": (
        GREETING + socks5("::", 0, command=3),
        {"VERSION": b"5", "COMMAND": b"associate", "HOST": b"::", "PORT": b"0"},
    ),
    "4": (
        socks4("192.0.2.1", 80, user=b"me"),
        {
            "VERSION": b"4",
            "COMMAND": b"connect",
            "HOST": b"192.0.2.1",
            "PORT": b"80",
            "USER": b"me",
        },
    ),
    "4, no user": (
        socks4("192.0.2.1", 80, user=b""),
        {"VERSION": b"4", "COMMAND": b"connect", "HOST": b"192.0.2.1", "PORT": b"80"},
    ),
    "4, bind": (
        socks4("192.0.2.1", 80, user=b"", command=2),
        {"VERSION": b"4", "COMMAND": b"bind", "HOST": b"192.0.2.1", "PORT": b"80"},
    ),
    "4a": (
        socks4a("example.org", 80, user=b"me"),
        {"VERSION": b"4a", "COMMAND": b"connect", "HOST": b"example.org", "PORT": b"80"}
        | {"USER": b"me"},
    ),
}
STALE = {
    f"SOCKS_{name}": "stale" for name in ("VERSION", "COMMAND", "HOST", "PORT", "USER")
}  # of a request before this one


@pytest.mark.parametrize("stale", [False, True], ids=["fresh", "stale"])
@pytest.mark.parametrize("what", REQUESTS)
def test_the_request_in_the_environment(tmp_path: Path, what: str, stale: bool) -> None:
    sent, expected = REQUESTS[what]
    environ = environment(OTHER="kept", **(STALE if stale else {}))
    chosen = b"\5\0" if sent.startswith(GREETING) else b""
    seen = witness(tmp_path, sent + EARLY, environ=environ, answer=chosen)
    assert seen.request == expected
    assert seen.environ[b"OTHER"] == b"kept"
    assert seen.rest == EARLY


HOSTILE_USERS = {
    "newline": b"me\nSOCKS_HOST=evil",
    "control": bytes(range(1, 32)) + b"\x7f",
    "quotes": b"'\"`$(id)${IFS};|&<>*?~!#\\",
    "equals": b"a=b",
    "long": b"u" * 255,
    "not UTF-8": b"\xff\xfe\xc3(",
    "high": bytes(range(128, 256)),
    "space": b" ",
}


@pytest.mark.parametrize("who", HOSTILE_USERS)
def test_a_hostile_user_arrives_as_it_is(tmp_path: Path, who: str) -> None:
    """In the environment byte for byte, and in the log as one word."""
    user = HOSTILE_USERS[who]
    seen = witness(tmp_path, socks4("192.0.2.1", 80, user=user))
    assert seen.environ[b"SOCKS_USER"] == user
    assert seen.request["HOST"] == b"192.0.2.1"
    if b"\n" not in user:  # a users file cannot name those
        users = tmp_path / "users"
        users.write_bytes(user.replace(b":", b"") + b":secret\n")
        login = PASSWORD_GREETING + credentials(user.replace(b":", b""), b"secret")
        seen = witness(tmp_path / "5", login + socks5("192.0.2.1", 80), f"--users={users}")
        assert seen.environ[b"SOCKS_USER"] == user.replace(b":", b"")
    with serving(HANDSHAKE, "socks-relay") as program:
        program.client.send(socks4("127.0.0.1", 80, user=user))
        program.client.end()
        assert program.client.rest() == REJECTED
        assert program.status == 1
    [line] = program.log.splitlines()
    word = line.split(" ")[4].removeprefix("user=")
    assert word.isprintable()
    unescaped = re.sub(rb"\\x(..)", lambda match: bytes([int(match[1], 16)]), word.encode())
    assert unescaped == user


def test_a_user_that_no_environment_can_hold(tmp_path: Path) -> None:
    """SOCKS5 could say NUL in a user: a users file must not."""
    users = tmp_path / "users"
    users.write_bytes(b"a\0b:secret\n")
    ended = run(HANDSHAKE, f"--users={users}", "true")
    assert (ended.status, ended.output) == (100, b"")
    assert "NUL" in ended.log


@pytest.mark.parametrize("over", [kind for kind in KINDS if "pty" not in kind])
def test_the_program_is_started_as_any_other(tmp_path: Path, over: str) -> None:
    """Blocking descriptors, none too many, and no signal ignored that was not so before."""
    seen = witness(tmp_path, GREETING + socks5("192.0.2.1", 80) + EARLY, "-q", over=over)
    assert seen.blocking == [True, True]
    assert seen.fds == [0, 1, 2]
    assert seen.rest == EARLY
    ignored = int(seen.status["SigIgn"], 16)
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGHUP):
        assert not ignored & 1 << number - 1, number
    assert int(seen.status["SigBlk"], 16) == 0


def test_no_descriptor_is_left_of_a_password_check(tmp_path: Path) -> None:
    """The hash is computed in a thread, which takes an eventfd."""
    users = tmp_path / "users"
    salt_and_hash = "c2FsdHNhbHRzYWx0c2FsdA$YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXoxMjM0NTY"
    users.write_text(f"me:secret\nother:$scrypt$ln=4,r=8,p=1${salt_and_hash}\n")
    login = PASSWORD_GREETING + credentials(b"me", b"secret")
    seen = witness(tmp_path, login + socks5("192.0.2.1", 80), f"--users={users}")
    assert seen.fds == [0, 1, 2]


def test_a_closed_stderr_stays_out_of_the_way() -> None:
    """What the program behind it opens must not become its standard error."""
    script = f"exec {HANDSHAKE} ls -l /proc/self/fd 2>&-"
    ended = run("sh", "-c", script, stdin=socks4("192.0.2.1", 80))
    assert b" 2 -> /dev/null\n" in ended.output


def test_many_methods_and_no_byte_too_many(tmp_path: Path) -> None:
    """Whatever lengths are in it, it stops right behind the request."""
    for count in (1, 2, 3, 200):
        greeting = bytes([5, count]) + bytes(count)
        for name in ("a", "n" * 200):
            request = greeting + socks5(name, 80)
            assert witness(tmp_path, request + b"\5\1\0rest", over="tcp").rest == b"\5\1\0rest"


# Policies

POLICY = """
case $SOCKS_HOST in *.onion) exec socks-relay {elsewhere};; esac
[ "$SOCKS_PORT" = 25 ] && exec socks-relay --refuse not-allowed
exec socks-relay --allow-local
"""


@pytest.fixture(params=["HOST PORT", "unix:PATH", "unix:@NAME"])
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path) -> socket.socket:
    """A far end that a policy sends clients to; its name there is `elsewhere_is`."""
    if request.param == "HOST PORT":
        return listener("127.0.0.1")
    server = socket.socket(socket.AF_UNIX)
    abstract = f"\0muonsocks-{os.getpid()}-{os.urandom(8).hex()}"
    server.bind(str(tmp_path / "far") if request.param == "unix:PATH" else abstract)
    server.listen()
    server.settimeout(launchers.SECONDS)
    return server


def name_of(server: socket.socket) -> str:
    """What socks-relay is told to go there."""
    name = server.getsockname()
    if isinstance(name, tuple):
        return f"{name[0]} {name[1]}"
    return f"unix:@{name[1:].decode()}" if isinstance(name, bytes) else f"unix:{name}"


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_a_policy_in_shell(elsewhere: socket.socket, version: Version) -> None:
    with listener() as far, elsewhere:
        script = POLICY.format(elsewhere=name_of(elsewhere))
        host, port = far.getsockname()
        goes: dict[tuple[str, int], socket.socket | None] = {(host, port): far, (host, 25): None}
        if version.name != "4":
            goes |= {("hidden.onion", 80): elsewhere, ("hidden.onion", 25): elsewhere}
        for (name, number), server in goes.items():
            with serving(HANDSHAKE, "sh", "-c", script) as program:
                program.client.send(version.greeting + version.request(name, number) + EARLY)
                program.client.end()
                assert program.client.read(len(version.chosen)) == version.chosen
                if server is None:
                    assert program.client.rest() == version.failure(2)
                    assert program.status == 1
                    assert program.end == "refused-by-rule"
                else:
                    with accept(server) as conn:
                        assert read_all(conn) == EARLY
                        conn.sendall(b"answer")
                    reply = program.client.rest()
                    assert reply[:2] == version.success("127.0.0.1", 1)[:2]
                    assert reply[version.reply_length :] == b"answer"
                    assert program.status == 0
                    assert f"target={name}:{number} " in program.log


def test_it_becomes_the_program() -> None:
    """There is one process, and its status is the program's."""
    with serving(HANDSHAKE, "sh", "-c", "echo $$; exit 42") as program:
        program.client.send(socks4("192.0.2.1", 80))
        assert program.client.rest() == b"%d\n" % program.process.pid
        assert program.status == 42


# When there is no program


def _directory(tmp_path: Path) -> str:
    return str(tmp_path)


def _not_executable(tmp_path: Path) -> str:
    (tmp_path / "file").write_text("#!/bin/sh\n")
    return str(tmp_path / "file")


def _no_interpreter(tmp_path: Path) -> str:
    file = tmp_path / "script"
    file.write_text("#!/no/such/interpreter\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return str(file)


def _no_format(tmp_path: Path) -> str:
    file = tmp_path / "data"
    file.write_bytes(b"\0\0\0\0")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return str(file)


UNEXECUTABLE: dict[str, tuple[Callable[[Path], str | bytes], int]] = {
    "no such file": (lambda _: "/no/such/program", 127),
    "not in PATH": (lambda _: "no-such-program", 127),
    "an empty name": (lambda _: "", 126),
    "not UTF-8": (lambda _: b"/\xff", 127),
    "a directory": (_directory, 126),
    "not executable": (_not_executable, 126),
    "no interpreter": (_no_interpreter, 127),
    "no format": (_no_format, 126),
}


@pytest.mark.parametrize("version", ["5", "4"])
@pytest.mark.parametrize("over", ["tcp", "pipes"])
@pytest.mark.parametrize("what", UNEXECUTABLE)
def test_what_cannot_be_executed(tmp_path: Path, what: str, over: str, version: str) -> None:
    """The client learns that it will not be served."""
    make, status = UNEXECUTABLE[what]
    kind = VERSIONS[version]
    with serving(HANDSHAKE, make(tmp_path), "argument", over=over) as program:
        program.client.send(kind.greeting + kind.request("192.0.2.1", 80) + EARLY)
        program.client.end()
        assert program.client.rest() == kind.chosen + kind.failure(1)
        assert program.status == status
    first, last = program.log.splitlines()
    assert " cannot be executed: " in first
    assert "target=192.0.2.1:80 reply=1 in=0 out=0 " in last
    assert program.end == "system-error"


def test_what_cannot_be_executed_for_a_client_that_has_left() -> None:
    with serving(HANDSHAKE, "/no/such/program", over="unix") as program:
        program.client.send(socks4("192.0.2.1", 80))
        program.client.close()
        assert program.status == 127
    assert program.end == "system-error"


def test_what_cannot_be_executed_for_a_client_that_stays() -> None:
    with serving(HANDSHAKE, "/no/such/program", over="tcp") as program:
        program.client.send(socks4("192.0.2.1", 80))
        assert program.client.rest() == REJECTED
        assert program.status == 127


# The rest of its life


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("over", ["tcp", "pipes", "pty"])
def test_a_signal_during_the_handshake(over: str, number: signal.Signals) -> None:
    kept: list[int] = []
    with serving(HANDSHAKE, "true", over=over, keep=kept) as program:
        program.client.send(GREETING)
        assert program.client.read(2) == b"\5\0"
        program.process.send_signal(number)
        assert program.status == 0
        assert [os.get_blocking(fd) for fd in kept] == [True, True]
        for fd in kept:
            os.close(fd)
    assert program.end == "terminated"


def test_its_time_limit_is_not_the_program_s(tmp_path: Path) -> None:
    script = "sleep 0.5; echo done"
    with serving(HANDSHAKE, "--handshake-timeout=0.3", "sh", "-c", script) as program:
        program.client.send(socks4("192.0.2.1", 80))
        assert program.client.rest() == b"done\n"
    with serving(HANDSHAKE, "--handshake-timeout=0.1", "echo", "run") as program:
        assert program.client.rest() == b""
        assert program.status == 0
    assert program.end == "handshake-timeout"


def test_users() -> None:
    """Who may come in is decided before there is a program; it finds the user, not the password."""
    options = ["-U", "me", "-P", "sec:ret"]
    with serving(
        HANDSHAKE, *options, "sh", "-c", "tr '\\0' ' ' < /proc/$$/cmdline; env"
    ) as program:
        login = PASSWORD_GREETING + credentials(b"me", b"sec:ret")
        program.client.send(login + socks5("192.0.2.1", 80))
        answer = program.client.rest()
        assert answer.startswith(b"\5\2\1\0")
        assert b"sec:ret" not in answer and b"SOCKS_USER=me\n" in answer
    for sent, expected in (
        (GREETING, b"\5\xff"),
        (PASSWORD_GREETING + credentials(b"me", b"wrong"), b"\5\2\1\1"),
        (socks4("192.0.2.1", 80), b"\0\x5d" + bytes(6)),
    ):
        with serving(HANDSHAKE, *options, "echo", "run") as program:
            program.client.send(sent)
            program.client.end()
            assert program.client.rest() == expected
            assert program.status == 0


USAGE: dict[str, tuple[list[str], str]] = {
    "no program": ([], "no PROG is given; say what is to be run, socks-relay for instance"),
    "no program behind options": (["-q"], "see --help"),
    "unknown option": (["--bogus", "true"], "there is no option --bogus; see --help"),
    "an option of socks-relay": (["--allow-local", "true"], "there is no option --allow-local"),
    "user only": (["-U", "me", "true"], "-U and -P go together"),
    "time": (["--handshake-timeout=soon", "true"], "is not a time"),
}


@pytest.mark.parametrize("what", USAGE)
def test_wrong_usage(what: str) -> None:
    arguments, message = USAGE[what]
    ended = run(HANDSHAKE, *arguments, stdin=GREETING)
    assert (ended.status, ended.output) == (100, b"")
    [line] = ended.log.splitlines()
    assert line.startswith("socks-handshake: ") and message in line


def test_options_end_where_the_program_begins() -> None:
    """What looks like an option behind it is the program's; `--` may stand between."""
    for arguments in (["echo", "-q", "--help"], ["-q", "echo", "-q", "--help"]):
        with serving(HANDSHAKE, *arguments) as program:
            program.client.send(socks4("192.0.2.1", 80))
            assert program.client.rest() == b"-q --help\n"
            assert program.status == 0


@pytest.mark.parametrize("arguments", [["--", "echo", "-x"], ["-q", "--", "echo", "-x"]])
def test_two_dashes_end_the_options(arguments: list[str]) -> None:
    with serving(HANDSHAKE, *arguments) as program:
        program.client.send(socks4("192.0.2.1", 80))
        assert program.client.rest() == b"-x\n"
        assert program.status == 0


def test_under_inetd_both_log(tmp_path: Path) -> None:
    """Standard error is the client there: the relay's lines too have to go through syslog."""
    if reason := launchers.missing("openbsd-inetd"):
        pytest.skip(reason)
    with listener() as far:
        command = [HANDSHAKE, RELAY, "--allow-local"]
        with launchers.running("openbsd-inetd", command, tmp_path) as server:
            with socket.create_connection(server.address, launchers.SECONDS) as client:
                client.sendall(socks4(*far.getsockname()))
                accept(far).close()
                assert read_all(client)[:2] == b"\0\x5a"
            server.log.await_line(r"closed client=.* end=closed")
