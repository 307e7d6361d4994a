"""socks-inetd as a process: one client on whatever may be its stdin and stdout, start to end."""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path

import pytest
from programs import (
    GREETING,
    INETD,
    KINDS,
    PASSWORD_GREETING,
    REJECTED,
    SECONDS,
    VERSIONS,
    Version,
    accept,
    closed_port,
    environment,
    failure,
    listener,
    read_all,
    serving,
    socks4,
    socks4a,
    socks5,
    wait_for_syn_sent,
)

LOCAL = [INETD, "--allow-local"]
RAW = [kind for kind in KINDS if kind != "canonical pty"]

# A whole connection, over everything


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
@pytest.mark.parametrize("over", RAW)
def test_a_connection(over: str, version: Version) -> None:
    with listener() as far, serving(*LOCAL, over=over) as program:
        client = program.client
        client.send(version.greeting)
        assert client.read(len(version.chosen)) == version.chosen
        host, port = far.getsockname()
        client.send(version.request(host, port))
        with accept(far) as conn:
            reply = version.success(*conn.getpeername())
            assert client.read(len(reply)) == reply
            client.send(b"question")
            assert read_all(conn, 8) == b"question"
            conn.sendall(b"answer")
            assert client.read(6) == b"answer"
        if over != "pty":  # where only hanging up is an end
            assert client.rest() == b""
        client.close()
        assert program.status == 0
    assert program.end in ("closed", "reset", "broken-pipe")
    assert f"target={'[::1]' if ':' in host else host}:{port} " in program.log


def test_a_terminal_that_gives_lines() -> None:
    """Every byte is quoted with VLNEXT, and VEOF hands on what has no end of line."""
    literally, go = b"\x16", b"\x04"
    with listener() as far, serving(*LOCAL, over="canonical pty") as program:
        request = GREETING + socks5(*far.getsockname()) + b"early"
        program.client.send(b"".join(literally + bytes([byte]) for byte in request) + go)
        with accept(far) as conn:
            reply = b"\5\0" + VERSIONS["5"].success(*conn.getpeername())
            assert program.client.read(len(reply)) == reply
            assert read_all(conn, 5) == b"early"
            program.client.send(b"line\n" + go)  # which is an end of file at the start of a line
            assert read_all(conn) == b"line\n"
            conn.sendall(b"answer\n")
            assert program.client.read(7) == b"answer\n"
        assert program.status == 0
    assert program.end == "closed"


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
@pytest.mark.parametrize("in_bytes", [False, True], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("over", ["tcp", "pipes"])
def test_half_close_both_ways(over: str, in_bytes: bool, version: Version) -> None:
    """Greeting, request, data and an end at once: all of it arrives, and so does the answer."""
    with listener() as far, serving(*LOCAL, over=over) as program:
        everything = version.greeting + version.request(*far.getsockname()) + b"early data"
        if program.client.socket is not None and in_bytes:
            program.client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in [bytes([byte]) for byte in everything] if in_bytes else [everything]:
            program.client.send(piece)
        program.client.end()
        with accept(far) as conn:
            assert read_all(conn) == b"early data"
            conn.sendall(b"late answer")
            reply = version.chosen + version.success(*conn.getpeername())
        assert program.client.rest() == reply + b"late answer"
        assert program.status == 0
    assert "in=10 out=11 " in program.log
    assert program.end == "closed"


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
@pytest.mark.parametrize("to_file", [False, True], ids=["to a pipe", "to a file"])
def test_a_recorded_client(tmp_path: Path, to_file: bool, version: Version) -> None:
    """Standard input may be a file, which epoll cannot wait for."""
    data = bytes(range(256)) * 2000
    answer = tmp_path / "answer"
    with listener() as far, answer.open("wb") as out, (tmp_path / "log").open("wb") as log:
        record = tmp_path / "record"
        record.write_bytes(version.greeting + version.request(*far.getsockname()) + data)
        with (
            record.open("rb") as stdin,
            subprocess.Popen(
                LOCAL,
                stdin=stdin,
                stdout=out if to_file else subprocess.PIPE,
                stderr=log,
                env=environment(),
            ) as process,
        ):
            with accept(far) as conn:
                assert read_all(conn) == data
                conn.sendall(data[::-1])
                expected = version.chosen + version.success(*conn.getpeername()) + data[::-1]
            got = process.stdout.read() if process.stdout else b""
            assert process.wait(SECONDS) == 0
    assert (answer.read_bytes() if to_file else got) == expected
    assert f"in={len(data)} out={len(data)} " in (tmp_path / "log").read_text()


def test_an_ipv6_target_and_its_bound_address() -> None:
    with listener("::1") as far, serving(*LOCAL) as program:
        program.client.send(GREETING + socks5(*far.getsockname()))
        with accept(far) as conn:
            reply = b"\5\0" + VERSIONS["5"].success(*conn.getpeername()[:2])
            assert program.client.read(len(reply)) == reply
        program.client.close()
    with listener("::1") as far, serving(*LOCAL) as program:
        program.client.send(socks4a(*far.getsockname()))
        assert program.client.read(8) == b"\0\x5a" + bytes(6)  # SOCKS4 has no place for it
        accept(far).close()


def test_much_both_ways() -> None:
    data = os.urandom(8 << 20)
    received = []
    with listener() as far, serving(*LOCAL, over="tcp") as program:
        program.client.send(GREETING + socks5(*far.getsockname()))
        assert program.client.read(4) == b"\5\0\5\0"
        assert len(program.client.read(8)) == 8
        with accept(far) as conn:

            def reply_with_the_same() -> None:
                received.append(read_all(conn))
                conn.sendall(received[0])
                conn.shutdown(socket.SHUT_WR)

            thread = threading.Thread(target=reply_with_the_same)
            thread.start()
            program.client.send(data)
            program.client.end()
            assert program.client.rest() == data
            thread.join()
        assert received == [data]
        assert program.status == 0
    assert f"in={len(data)} out={len(data)} " in program.log


def test_a_slow_far_end_gets_everything() -> None:
    """It reads only when the client has long sent all it could."""
    with listener() as far, serving(*LOCAL, over="unix") as program:
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        program.client.send(socks4(*far.getsockname()))
        assert program.client.read(8)[1] == 0x5A
        sock = program.client.socket
        assert sock is not None
        sock.setblocking(False)
        sent = 0
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            try:
                sent += sock.send(bytes(65536))
            except BlockingIOError:
                if sent > 1 << 20:
                    break
                time.sleep(0.01)
        sock.setblocking(True)
        program.client.end()
        with accept(far) as conn:
            assert len(read_all(conn)) == sent
    assert f"in={sent} " in program.log


# What the protocol says about faults; the program does not fail by them

FAULTS: dict[str, tuple[bytes, bytes, str]] = {
    "nothing": (b"", b"", "client-left"),
    "half a greeting": (b"\5\2\0", b"", "client-left"),
    "half a request": (GREETING + b"\5\1\0\1\1", b"\5\0", "client-left"),
    "half a SOCKS4 request": (b"\4\1\0\x50\1\2\3\4me", b"", "client-left"),
    "http": (b"GET / HTTP/1.0\r\n\r\n", b"", "protocol-error"),
    "no method": (b"\5\0", b"\5\xff", "no-acceptable-method"),
    "only unknown methods": (b"\5\2\1\x80", b"\5\xff", "no-acceptable-method"),
    "only a password": (PASSWORD_GREETING, b"\5\xff", "no-acceptable-method"),
    "version of the request": (GREETING + b"\4\1\0\1", b"\5\0" + failure(1), "protocol-error"),
    "address type": (GREETING + b"\5\1\0\2", b"\5\0" + failure(8), "protocol-error"),
    "empty name": (GREETING + b"\5\1\0\3\0\0\x50", b"\5\0" + failure(4), "protocol-error"),
    "name that is none": (
        GREETING + b"\5\1\0\3\2\xc3\xbc\0\x50",
        b"\5\0" + failure(4),
        "protocol-error",
    ),
    "resolve": (GREETING + socks5("1.2.3.4", 80, command=0xF0), b"\5\0" + failure(7), ""),
    "command 9": (GREETING + socks5("1.2.3.4", 80, command=9), b"\5\0" + failure(7), ""),
    "SOCKS4 command": (socks4("1.2.3.4", 80, command=3), REJECTED, "command-not-supported"),
    "SOCKS4 user id": (b"\4\1\0\x50\1\2\3\4" + b"u" * 256 + b"\0", REJECTED, "protocol-error"),
    "SOCKS4a without name": (b"\4\1\0\x50\0\0\0\1\0\0", REJECTED, "protocol-error"),
    "no such name": (socks4a("no-such-name.invalid", 80), REJECTED, "name-not-found"),
}


@pytest.mark.parametrize("over", ["tcp", "pipes"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_answered(fault: str, over: str) -> None:
    sent, answer, end = FAULTS[fault]
    with serving(INETD, over=over) as program:
        program.client.send(sent)
        program.client.end()
        assert program.client.rest() == answer
        assert program.status == 0
    assert program.end == (end or "command-not-supported")
    assert len(program.log.splitlines()) == 1


def test_a_target_that_refuses() -> None:
    with serving(*LOCAL) as program:
        program.client.send(GREETING + socks5("127.0.0.1", port := closed_port()))
        program.client.end()
        assert program.client.rest() == b"\5\0" + failure(5)
        assert program.status == 0
    assert f"target=127.0.0.1:{port} reply=5 in=0 out=0 " in program.log
    assert program.end == "dial-failed"


@pytest.mark.parametrize("sent", [0, 1000, 1 << 16, 1 << 18], ids=str)
def test_the_last_reply_can_be_read(sent: int) -> None:
    """By a client that has sent more than was wanted: no reset gets in front of the reply."""
    with serving(INETD, over="tcp") as program:
        request = GREETING + socks5("127.0.0.1", 80)
        with contextlib.suppress(ConnectionError, BrokenPipeError):
            program.client.send(request + bytes(sent))
            program.client.end()
        assert program.client.read(12) == b"\5\0" + failure(2)
        assert program.status == 1


# Leaving

STAGES: dict[str, bytes] = {
    "before anything": b"",
    "in the greeting": b"\5",
    "before the request": GREETING,
    "in the request": GREETING + b"\5\1\0\1\1\2",
    "in a SOCKS4 user id": b"\4\1\0\x50\1\2\3\4me",
}


@pytest.mark.parametrize("leave", ["reset", "close"])
@pytest.mark.parametrize("stage", STAGES)
def test_the_client_leaves_early(stage: str, leave: str) -> None:
    with serving(INETD, over="tcp") as program:
        program.client.send(STAGES[stage])
        if STAGES[stage].startswith(GREETING):
            assert program.client.read(2) == b"\5\0"
        getattr(program.client, leave)()
        assert program.status == 0
    assert program.end in ("client-left", "client-lost")


def test_the_client_hangs_up_a_terminal() -> None:
    kept: list[int] = []
    with serving(INETD, over="pty", keep=kept) as program:
        program.client.send(GREETING)
        assert program.client.read(2) == b"\5\0"
        for fd in kept:
            os.close(fd)
        program.client.close()
        assert program.status == 0
    assert program.end in ("client-left", "client-lost")


@pytest.mark.parametrize("over", ["tcp", "unix"])
def test_the_client_asks_and_goes(over: str) -> None:
    with listener() as far, serving(*LOCAL, over=over) as program:
        program.client.send(GREETING + socks5(*far.getsockname()) + b"data")
        program.client.close()
        assert program.status == 0
    assert "end=" in program.log


def test_the_client_is_reset_while_it_relays() -> None:
    """The far end learns that it has not got the whole."""
    with listener() as far, serving(*LOCAL, over="tcp") as program:
        program.client.send(GREETING + socks5(*far.getsockname()) + b"part")
        with accept(far) as conn:
            assert program.client.read(12)[:4] == b"\5\0\5\0"
            assert read_all(conn, 4) == b"part"
            program.client.reset()
            with pytest.raises(ConnectionResetError):
                conn.recv(1)
        assert program.status == 0
    assert program.end == "reset"


def test_the_far_end_is_reset_while_it_relays() -> None:
    with listener() as far, serving(*LOCAL, over="tcp") as program:
        program.client.send(GREETING + socks5(*far.getsockname()))
        conn = accept(far)
        assert program.client.read(12)[:4] == b"\5\0\5\0"
        conn.sendall(b"part")
        assert program.client.read(4) == b"part"
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        conn.close()
        with pytest.raises(ConnectionResetError):
            program.client.read(1)
        assert program.status == 0
    assert program.end == "reset"


def test_the_far_end_closes_without_reading() -> None:
    """What it sent still arrives; what the client sends on is no harm."""
    with listener() as far, serving(*LOCAL, over="tcp") as program:
        program.client.send(GREETING + socks5(*far.getsockname()))
        with accept(far) as conn:
            assert program.client.read(12)[:4] == b"\5\0\5\0"
            conn.sendall(b"bye")
            conn.shutdown(socket.SHUT_WR)
            assert program.client.read(4) == b"bye"
        with contextlib.suppress(ConnectionError, BrokenPipeError):
            for _ in range(100):
                program.client.send(bytes(10000))
            program.client.end()
        assert program.status == 0
    assert " out=3 " in program.log


def test_a_relay_that_is_terminated_is_no_end() -> None:
    """What both sides have got is not the whole, and must not look as if it were."""
    with listener() as far, serving(*LOCAL, over="tcp") as program:
        program.client.send(socks4(*far.getsockname()))
        assert program.client.read(8)[1] == 0x5A
        with accept(far) as conn:
            conn.sendall(b"the first half")
            assert program.client.read(14) == b"the first half"
            program.process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionResetError):
                conn.recv(1)
            with pytest.raises(ConnectionResetError):
                program.client.read(1)
        assert program.status == 0
    assert program.end == "terminated"


def test_a_client_that_resets_while_we_dial(tmp_path: Path) -> None:
    """Nobody is left to connect for: no need to wait until the far end answers, or does not."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        with contextlib.ExitStack() as stack:
            for _ in range(2):  # fill the backlog: the next connection is not answered
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(full.getsockname())
            program = stack.enter_context(serving(*LOCAL, "--connect-timeout=60", over="tcp"))
            program.client.send(socks4(*full.getsockname()))
            wait_for_syn_sent(program.process.pid)
            program.client.reset()
            assert program.status == 0
        assert program.end == "client-lost"


@pytest.mark.parametrize("name", ["handshake", "idle"])
def test_a_very_long_time_limit(name: str) -> None:
    options = [f"--{name}-timeout=1e9", "--half-close-timeout=1e9", "--dial-timeout=1e9"]
    with listener() as far, serving(*LOCAL, *options, over="tcp") as program:
        program.client.send(b"\x04")
        program.client.send(socks4(*far.getsockname())[1:])
        assert program.client.read(8)[1] == 0x5A
        with accept(far) as conn:
            conn.sendall(b"answer")
            assert program.client.read(6) == b"answer"
        program.client.end()
        assert program.client.rest() == b""
        assert program.status == 0
    assert program.end == "closed"


def test_a_log_that_nobody_reads() -> None:
    """A line is lost, and the connection goes on."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    ours, theirs = socket.socketpair()
    with listener() as far, ours:
        with theirs:
            process = subprocess.Popen(LOCAL, stdin=theirs, stdout=theirs, stderr=writer)
        ours.settimeout(SECONDS)
        ours.sendall(socks4(*far.getsockname()))
        assert read_all(ours, 8)[1] == 0x5A
        with accept(far) as conn:
            conn.sendall(b"answer")
            assert read_all(ours, 6) == b"answer"
        ours.shutdown(socket.SHUT_WR)
        assert process.wait(SECONDS) == 0
    os.close(reader)
    os.close(writer)


def test_mptcp() -> None:
    """It has no urgent data, and needs none."""
    try:
        server = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
    except OSError as error:
        pytest.skip(f"no MPTCP here: {error.strerror}")
    client = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
    with server, client, listener() as far:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.settimeout(SECONDS)
        client.connect(server.getsockname())
        served, _ = server.accept()
        with served:
            process = subprocess.Popen(LOCAL, stdin=served, stdout=served)
        client.sendall(socks4(*far.getsockname()) + b"early")
        assert read_all(client, 8)[1] == 0x5A
        with accept(far) as conn:
            assert read_all(conn, 5) == b"early"
        client.shutdown(socket.SHUT_WR)
        assert process.wait(SECONDS) == 0
