"""send-receive-fd as a process: descriptors that go out, and those that come in and are PROG's."""

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ends import descriptors
from hypothesis import example, given
from hypothesis import strategies as st
from programs import PYTHON, ROOT, SECONDS, Outcome, environment, run

from muonsocks.errors import UsageError
from muonsocks.log import Log
from muonsocks.tools import command_line, send_receive_fd

TOOL = str(ROOT / "bin/send-receive-fd")
KINDS = [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_STREAM]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
SHOW = ["sh", "-c", 'echo "$SKBOX_RECEIVED_FD"; cat <&"$SKBOX_RECEIVED_FD"']

Ways = tuple[socket.socket, socket.socket]


@contextlib.contextmanager
def joined(kind: socket.SocketKind = socket.SOCK_SEQPACKET) -> Iterator[Ways]:
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    with one, other:
        one.settimeout(SECONDS)  # the other one is the program's, and blocks
        yield one, other


def tool(*arguments: str | int, keep: tuple[int, ...] = (), **more: Any) -> Outcome:
    """Run it to its end with descriptors left open."""
    return run(TOOL, *map(str, arguments), pass_fds=keep, **more)


def text_file(text: str = "what is passed") -> int:
    """A descriptor with a text to read, which no other one has."""
    reader, writer = os.pipe()
    os.write(writer, text.encode())
    os.close(writer)
    return reader


@pytest.fixture
def file() -> Iterator[int]:
    fd = text_file()
    yield fd
    os.close(fd)


@contextlib.contextmanager
def started(*command: str | int, keep: tuple[int, ...] = (), **more: Any) -> Iterator[Any]:
    """A process that is ended with the test, if it does not end before."""
    process = subprocess.Popen(
        [*map(str, command)],
        pass_fds=keep,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **more,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def one_line(ended: Outcome, message: str, status: int = 111) -> None:
    assert (ended.status, ended.output) == (status, b""), ended.log
    [line] = ended.log.splitlines()
    assert line.startswith("send-receive-fd: ") and message in line


# What comes in


@each_kind
@pytest.mark.parametrize(
    "words",
    [
        "-r {} ",
        "-r {} -- ",
        "-r -- {} ",
        "-r -- {} -- ",
        "--receive {} ",
        "--receive {} -- ",
        "-rv {} ",
        "--timeout=9 -r {} ",
        "-r --timeout 9 {} -- ",
        "-r --timeout 9 -- {} ",
    ],
)
def test_what_is_received_is_open_in_the_program(
    kind: socket.SocketKind, words: str, file: int
) -> None:
    with joined(kind) as (one, other):
        socket.send_fds(one, [b"\0"], [file])
        inherited = other.fileno()
        ended = tool(*words.format(inherited).split(), *SHOW, keep=(inherited,))
    assert (ended.status, ended.log) == (0, "")
    number, text = ended.output.decode().splitlines()
    assert text == "what is passed"
    assert number.isdecimal() and int(number) > 2


def test_options_of_the_program_are_its_own(file: int) -> None:
    with joined() as (one, other):
        for arguments in (["-r", "--help"], ["--", "-s", "1"]):
            socket.send_fds(one, [b"\0"], [file])
            ended = tool("-r", other.fileno(), "echo", *arguments, keep=(other.fileno(),))
            assert ended.output.decode().split() == arguments


PAYLOADS = [(kind, data) for kind in KINDS for data in (b"\0", b"\3\0\0\0", bytes(1000))]
PAYLOADS += [(kind, b"") for kind in KINDS[:2]]  # over a stream nothing goes without a byte


@pytest.mark.parametrize("count", [1, 2, 50])
@pytest.mark.parametrize(("kind", "data"), PAYLOADS)
def test_only_the_first_is_received(
    kind: socket.SocketKind, data: bytes, count: int, file: int
) -> None:
    """Whatever comes with it. What the process was left, PROG is left too."""
    with joined(kind) as (one, other):
        socket.send_fds(one, [data], [file] + [one.fileno()] * (count - 1))
        show = 'echo "$SKBOX_RECEIVED_FD"; read line'
        command = (TOOL, "-r", other.fileno(), "sh", "-c", show)
        with started(*command, keep=(other.fileno(),)) as process:
            number = int(process.stdout.readline())
            opened = descriptors(process.pid)
            assert opened.keys() == {0, 1, 2, other.fileno(), number}
            assert opened[number] == os.readlink(f"/proc/self/fd/{file}")
            assert opened[other.fileno()] == os.readlink(f"/proc/self/fd/{other.fileno()}")
        assert os.get_blocking(other.fileno())


def a_listener() -> int:
    return socket.create_server(("127.0.0.1", 0)).detach()


ANYTHING: dict[str, Callable[[], int]] = {
    "a file": lambda: os.open(__file__, os.O_RDONLY),
    "a directory": lambda: os.open("/", os.O_PATH),
    "a counter": lambda: os.eventfd(0),
    "a listener": a_listener,
    "a UDP socket": lambda: socket.socket(type=socket.SOCK_DGRAM).detach(),
    "a connection": lambda: socket.socketpair()[0].detach(),
}


@pytest.mark.parametrize("what", ANYTHING)
def test_anything_is_received(what: str) -> None:
    fd = ANYTHING[what]()
    try:
        with joined() as (one, other):
            socket.send_fds(one, [b"\0"], [fd])
            show = 'readlink "/proc/$$/fd/$SKBOX_RECEIVED_FD"'
            ended = tool("-r", other.fileno(), "sh", "-c", show, keep=(other.fileno(),))
        assert ended.output.decode().strip() == os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


@each_kind
def test_it_waits(kind: socket.SocketKind, file: int) -> None:
    """For a descriptor: a message that brings none is none."""
    with joined(kind) as (one, other):
        command = (TOOL, "-rv", other.fileno(), *SHOW)
        with started(*command, keep=(other.fileno(),)) as process:
            one.send(b"no descriptor")
            said = process.stderr.readline()
            number = other.fileno()
            assert f"descriptor {number}: a message without a descriptor".encode() in said
            assert process.poll() is None
            socket.send_fds(one, [b"\0"], [file])
            output, log = process.communicate(timeout=SECONDS)
    assert (process.returncode, log) == (0, b"")
    assert output.endswith(b"what is passed")


def test_what_brings_none_is_not_worth_a_word(file: int) -> None:
    with joined() as (one, other):
        one.send(b"no descriptor")
        one.send(b"")
        socket.send_fds(one, [b"\0"], [file])
        ended = tool("-r", other.fileno(), *SHOW, keep=(other.fileno(),))
    assert (ended.status, ended.log) == (0, "")


@pytest.mark.parametrize("kind", KINDS[1:], ids=lambda kind: kind.name)
@pytest.mark.parametrize("how", ["closed", "shut", "reset"])
def test_the_end(kind: socket.SocketKind, how: str) -> None:
    """Of which nobody else in the process group hears. The C program ended them all."""
    with joined(kind) as (one, other):
        if how == "shut":
            one.shutdown(socket.SHUT_WR)
        else:
            if how == "reset":
                other.send(b"unread")
            one.close()
        script = f"sleep 60 & {TOOL} -r {other.fileno()} echo; echo $?; kill -0 $! && kill $!"
        with started("sh", "-c", script, keep=(other.fileno(),), process_group=0) as process:
            output, log = process.communicate(timeout=SECONDS)
    assert (process.returncode, output) == (0, b"111\n")
    [line] = log.decode().splitlines()
    assert re.fullmatch(
        r"send-receive-fd: descriptor \d+: it has ended, and no descriptor has come", line
    )


@each_kind
def test_what_came_before_the_end(kind: socket.SocketKind, file: int) -> None:
    with joined(kind) as (one, other):
        socket.send_fds(one, [b"\0"], [file])
        one.close()
        ended = tool("-r", other.fileno(), *SHOW, keep=(other.fileno(),))
        assert (ended.status, ended.log) == (0, "")


def test_a_time_limit() -> None:
    with joined() as (_, other):
        ended = tool("-r", "--timeout=.05", other.fileno(), "echo", keep=(other.fileno(),))
    one_line(ended, "no descriptor has come for 0.05 s")


def test_no_room_for_a_descriptor(file: int) -> None:
    """Whatever the limit is, it arrives, or is still there for who comes next."""
    log = ""
    with joined() as (one, other):
        socket.send_fds(one, [b"\0"], [file])
        script = f'ulimit -n "$0"; exec {TOOL} -r {other.fileno()} /usr/bin/env'
        for limit in range(4, 32):
            command = ["sh", "-c", script, str(limit)]
            ended = run(*command, pass_fds=(other.fileno(),), env=environment())
            if not ended.status:
                break
            one_line(ended, "")
            log += ended.log
            assert other.recv(1, socket.MSG_PEEK)
    assert b"\nSKBOX_RECEIVED_FD=" in ended.output
    assert "what has come is left there" in log


@pytest.mark.parametrize("closed", ["0", "01", "02", "012"])
def test_standard_streams_that_are_not_open(closed: str, file: int) -> None:
    """What is received is not to become one of them."""
    reader, writer = os.pipe()
    with joined() as (one, other), open(reader, "rb", 0) as answer:
        socket.send_fds(one, [b"\0"], [file])
        # Not a shell, which opens descriptors of its own.
        show = f'import os, time; os.write({writer}, os.environb[b"SKBOX_RECEIVED_FD"])'
        show += "; time.sleep(60)"
        command = f"exec {TOOL} -r {other.fileno()} {PYTHON} -IS -c '{show}'"
        redirected = command + "".join(f" {fd}<&-" for fd in closed)
        with started("sh", "-c", redirected, keep=(other.fileno(), writer)) as process:
            os.close(writer)
            number = int(answer.read(1))
            opened = descriptors(process.pid)
        assert number > 2
        assert opened[number] == os.readlink(f"/proc/self/fd/{file}")
        inherited = {other.fileno(), writer, *{0, 1, 2} - {int(fd) for fd in closed}}
        assert opened.keys() == {2, number, *inherited}  # 2 is the log, or nothing
        assert "2" not in closed or opened[2] == "/dev/null"


def test_not_executable(tmp_path: Path, file: int) -> None:
    for program, status in (("no-such-program", 127), (tmp_path, 126)):
        with joined() as (one, other):
            socket.send_fds(one, [b"\0"], [file])
            ended = tool("-r", other.fileno(), str(program), keep=(other.fileno(),))
            assert ended.status == status
            assert f"{program} cannot be executed: " in ended.log


def test_signals_are_what_they_were(file: int) -> None:
    """What Python ignores for itself, and what this program is told by."""
    with joined() as (one, other):
        for ignored in ("", "trap '' TERM; "):
            socket.send_fds(one, [b"\0"], [file])
            command = f"{ignored}exec {TOOL} -r {other.fileno()} grep SigIgn: /proc/self/status"
            shell = ["sh", "-c", command]
            ended = run(*shell, pass_fds=(other.fileno(),), env=environment())
            mask = int(ended.output.split()[1], 16)
            assert mask == (1 << signal.SIGTERM - 1 if ignored else 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it(number: signal.Signals, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with started(TOOL, "-r", path, "echo") as process:
        await_socket(path)
        process.send_signal(number)
        output, log = process.communicate(timeout=SECONDS)
    assert (process.returncode, output, log) == (0, b"", b"")
    assert not path.exists()


# What comes in at a path


def await_socket(path: Path | str) -> None:
    """Wait until somebody receives there: there is no event for that."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        deadline = SECONDS * 1000
        while probe.connect_ex(str(path).replace("@", "\0")):
            assert deadline
            deadline -= select.poll().poll(1) == []


def test_received_at_a_path(tmp_path: Path, file: int) -> None:
    """From a sender as socketbox is one: unbound, a zero byte, the descriptor."""
    path = tmp_path / "socket"
    for _ in range(2):
        with started(TOOL, "-r", path, *SHOW) as process:
            await_socket(path)
            assert path.lstat().st_mode & 0o7777 == 0o660
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [file]))
                sender.sendmsg([b"\0"], [rights], 0, str(path))
            output, log = process.communicate(timeout=SECONDS)
        assert (process.returncode, log) == (0, b"")
        assert output.split()[1:] in (b"what is passed".split(), [])
        assert not path.exists()


def test_a_path_that_was_left_behind(tmp_path: Path, file: int) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        one_line(tool("-r", "--timeout=9", path, "echo"), f"{path}: somebody receives there")
        assert path.is_socket()
    with started(TOOL, "-r", path, *SHOW) as process:
        await_socket(path)
        assert tool("-s", file, path, keep=(file,)).status == 0
        assert process.communicate(timeout=SECONDS)[0].endswith(b"what is passed")


def test_a_path_that_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    one_line(tool("-r", path, "echo"), "or it is no socket")
    assert path.read_text() == "precious"


def test_a_path_after_a_time_limit(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    one_line(tool("--timeout=.05", "-r", path, "echo"), f"{path}: no descriptor has come")
    assert not path.exists()
    one_line(tool("-r", tmp_path / "no" / "socket", "echo"), "No such file or directory")


def test_an_abstract_name(file: int) -> None:
    name = f"@muonsocks-test-{os.getpid()}"
    with started(TOOL, "-r", name, *SHOW) as process:
        await_socket(name)
        ended = tool("-s", file, name, keep=(file,))
        assert (ended.status, ended.output, ended.log) == (0, b"", "")
        assert process.communicate(timeout=SECONDS)[0].endswith(b"what is passed")


# What goes out


def arrived(sock: socket.socket) -> tuple[bytes, list[int], object]:
    """One message: its data, its descriptors, who sent it."""
    data, fds, flags, sender = socket.recv_fds(sock, 100, 100)
    assert not flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC)
    return data, fds, sender


def is_passed(fds: list[int], file: int) -> bool:
    [fd] = fds
    try:
        return os.path.samestat(os.fstat(fd), os.fstat(file))
    finally:
        os.close(fd)


@each_kind
@pytest.mark.parametrize(
    "words", ["-s {} {}", "-s{} {}", "-s {} -- {}", "--send={} {}", "-v --timeout 9 -s {} {}"]
)
def test_a_descriptor_is_sent(kind: socket.SocketKind, words: str, file: int) -> None:
    with joined(kind) as (one, other):
        keep = (file, other.fileno())
        for _ in range(2):
            ended = tool(*words.format(*keep).split(), keep=keep)
            assert (ended.status, ended.output, ended.log) == (0, b"", "")
        for _ in range(2):
            data, fds, _ = arrived(one)
            assert data == b"\0"
            assert is_passed(fds, file)
        assert os.get_blocking(other.fileno())


def test_sent_to_a_path(tmp_path: Path, file: int) -> None:
    """As socketbox does it: from a socket without a name."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        assert tool("-s", file, path, keep=(file,)).status == 0
        data, fds, sender = arrived(receiver)
        assert (data, sender) == (b"\0", None)
        assert is_passed(fds, file)
    assert path.is_socket()


def test_a_path_that_looks_like_a_number(tmp_path: Path, file: int) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "9"))
        assert tool("-s", file, "./9", keep=(file,), cwd=tmp_path).status == 0
        assert is_passed(arrived(receiver)[1], file)


def test_there_and_back(tmp_path: Path) -> None:
    """A client of TCP that one process accepts is served by another."""
    path = tmp_path / "socket"
    script = 'read line <&"$SKBOX_RECEIVED_FD"; echo "you said $line" >&"$SKBOX_RECEIVED_FD"'
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        started(TOOL, "-r", path, "sh", "-c", script),
        socket.create_connection(listener.getsockname()) as client,
    ):
        client.settimeout(SECONDS)
        await_socket(path)
        with listener.accept()[0] as accepted:
            assert tool("-s", 0, path, stdin=accepted.fileno()).status == 0
        client.sendall(b"hello\n")
        assert client.makefile().read() == "you said hello\n"


def fill(receiver: socket.socket, path: Path) -> None:
    """Send until the queue is full."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                sender.sendto(b"filling", str(path))


def test_a_receiver_that_is_full(tmp_path: Path, file: int) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        receiver.settimeout(SECONDS)
        fill(receiver, path)
        ended = tool("--timeout=.05", "-s", file, path, keep=(file,))
        one_line(ended, f"{path}: there has been no room for 0.05 s")
        with started(TOOL, "-s", file, path, keep=(file,)) as process:
            poll = select.poll()
            poll.register(process.stderr, select.POLLIN)
            assert not poll.poll(200)  # it waits
            assert process.poll() is None
            while (message := arrived(receiver))[0] == b"filling":
                pass
            assert is_passed(message[1], file)
            assert process.wait(SECONDS) == 0


@each_kind
def test_a_peer_that_does_not_read(kind: socket.SocketKind, file: int) -> None:
    with joined(kind) as (_one, other):
        other.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                other.send(b"filling")
        keep = (file, other.fileno())
        ended = tool("-s", file, "--timeout=.05", other.fileno(), keep=keep)
        one_line(ended, f"descriptor {other.fileno()}: there has been no room for 0.05 s")
        assert not os.get_blocking(other.fileno())


def test_nobody_receives(tmp_path: Path, file: int) -> None:
    path = tmp_path / "socket"
    one_line(tool("-s", file, path, keep=(file,)), f"{path}: No such file or directory")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
    one_line(tool("-s", file, path, keep=(file,)), f"{path}: nobody receives there")
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        ended = tool("-s", file, path, keep=(file,))
        one_line(ended, f"{path}: the socket there is none of datagrams")


@pytest.mark.parametrize(
    ("kind", "message", "status"),
    [
        (socket.SOCK_DGRAM, "nobody receives there", 111),
        (socket.SOCK_SEQPACKET, "the other side has closed", 111),
        (socket.SOCK_STREAM, "the other side has closed", 111),
    ],
    ids=lambda kind: getattr(kind, "name", ""),
)
def test_a_peer_that_has_gone(
    kind: socket.SocketKind, message: str, status: int, file: int
) -> None:
    with joined(kind) as (one, other):
        one.close()
        ended = tool("-s", file, other.fileno(), keep=(file, other.fileno()))
        one_line(ended, message, status)


# What cannot be


def test_a_socket_that_passes_no_descriptors(file: int) -> None:
    """The byte that goes with it would arrive, over TCP, alone."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
        listener.accept()[0] as accepted,
    ):
        ended = tool("-s", file, client.fileno(), keep=(file, client.fileno()))
        one_line(ended, "is no unix socket; only those pass descriptors", 100)
        ended = tool("-r", client.fileno(), "echo", keep=(client.fileno(),))
        one_line(ended, "is no unix socket; only those pass descriptors", 100)
        client.close()
        assert accepted.recv(10) == b""


def test_a_socket_that_is_not_connected(file: int) -> None:
    for kind in KINDS:
        with socket.socket(socket.AF_UNIX, kind) as sock:
            ended = tool("-s", file, sock.fileno(), keep=(file, sock.fileno()))
            one_line(ended, f"descriptor {sock.fileno()} is not connected", 100)
            if kind != socket.SOCK_DGRAM:
                ended = tool("-r", sock.fileno(), "echo", keep=(sock.fileno(),))
                one_line(ended, f"descriptor {sock.fileno()} is not connected", 100)
                sock.bind("")
                sock.listen()
                ended = tool("-r", sock.fileno(), "echo", keep=(sock.fileno(),))
                one_line(ended, "is a listener; give a connection", 100)


USAGE: dict[str, tuple[str, str]] = {
    "nothing": ("", "neither -s nor -r; give"),
    "no socket": ("-s 0", "see --help"),
    "no descriptor": ("-s", "-s requires argument"),
    "no program": ("-r 0", "see --help"),
    "both": ("-r -s 0 1", "see --help"),
    "neither": ("0 1", "neither -s nor -r; give"),
    "a program to send to": ("-s 0 1 echo", "see --help"),
    "unknown option": ("-x -r 0 echo", "there is no option -x"),
    "a file": ("-r 0 echo", "descriptor 0 is no socket"),
    "not open": ("-r 77 echo", "SOCKET: descriptor 77 is not open"),
    "not open to send": ("-s 77 @x", "-s: descriptor 77 is not open"),
    "not open, and the next one": ("-s 3 @x", "-s: descriptor 3 is not open"),
    "no number": ("-s x @x", "-s: 'x' is no descriptor"),
    "a negative number": ("-s -1 @x", "-s: '-1' is no descriptor"),
    "a large number": (f"-s {'9' * 5000} @x", "is no descriptor"),
    "a large socket": (f"-r {'9' * 5000} echo", "is no descriptor"),
    "a long path": (
        f"-r {'/p' * 54} echo",
        "is no path of a socket; a path or @NAME of",
    ),
    "no time": ("--timeout=0 -r @x echo", "--timeout: '0' is not a time"),
    "no time at all": ("--timeout=x -s 0 @x", "--timeout: 'x' is not a time"),
}


@pytest.mark.parametrize("what", USAGE)
def test_wrong_usage(what: str) -> None:
    arguments, message = USAGE[what]
    one_line(tool(*arguments.split()), message, 100)


def test_an_empty_path() -> None:
    for arguments in (["-r", "", "echo"], ["-s", "0", ""]):
        one_line(tool(*arguments), "is no path of a socket", 100)


@given(
    st.lists(
        st.sampled_from(
            ["-s", "-r", "--", "3", "4", "/p", "@n", "-v", "x", "-s3", "-", "--timeout=1"]
        ),
        max_size=6,
    )
)
@example(["-s", "-s", "--", "--"])
@example(["-r", "--", "--", "x"])
@example(["-r", "--", "-s", "--", "-s"])
def test_what_scripts_give_means_what_docopt_says(arguments: list[str]) -> None:
    quick = send_receive_fd._read(arguments)
    try:
        full = command_line.parse(send_receive_fd.__doc__ or "", arguments, Log("test"), True)
    except UsageError:
        assert quick is None
        return
    assert full is not None
    if quick is not None:
        assert quick.arguments == full.arguments
        for name in ("--send", "--receive", "--timeout"):
            assert quick.flag(name) == full.flag(name)
        assert quick.text("--send") == full.text("--send")


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version(option: str) -> None:
    ended = tool(option)
    assert (ended.status, ended.log) == (0, "")
    first = {"--help": b"Send a descriptor", "--version": b"send-receive-fd "}[option]
    assert ended.output.startswith(first)


def test_the_log_is_not_for_the_peer() -> None:
    """Where standard error is the socket, as under inetd, nothing is written to it."""
    with joined(socket.SOCK_STREAM) as (one, other):
        one.shutdown(socket.SHUT_WR)
        process = subprocess.Popen(
            [TOOL, "-r", "0", "echo"], stdin=other, stderr=other, env=environment()
        )
        assert process.wait(SECONDS) == 111
        other.close()
        assert one.recv(100) == b""


def test_the_program_is_told_that_the_log_is_the_peer(file: int) -> None:
    """It could not see that: its standard error is nowhere."""
    with joined(socket.SOCK_STREAM) as (one, other):
        show = 'echo "$SOCKS_LOG"; readlink /proc/$$/fd/2'
        for stderr, shown in (
            (other.fileno(), "syslog /dev/null"),
            (subprocess.DEVNULL, "/dev/null"),
        ):
            socket.send_fds(one, [b"\0"], [file])
            ended = tool("-r", 0, "sh", "-c", show, stdin=other.fileno(), stderr=stderr)
            assert ended.output.decode().split() == shown.split()


def test_the_log_where_the_output_is() -> None:
    """As for whoever looks at both, or at neither."""
    ended = run("sh", "-c", f"{TOOL} -r 0 echo 2>&1")
    assert ended.output == b"send-receive-fd: descriptor 0 is no socket; give a unix socket\n"
