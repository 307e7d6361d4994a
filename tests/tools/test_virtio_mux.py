"""virtio-mux as processes: both sides, and what happens when one of them goes."""

import contextlib
import hashlib
import os
import select
import signal
import socket
import subprocess
import termios
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import docopt
import pytest
from ends import noise
from programs import (
    GREETING,
    SECONDS,
    VERSIONS,
    Version,
    accept,
    closed_port,
    credentials,
    environment,
    failure,
    listener,
    read_all,
    run,
    serving,
    socks4,
    socks5,
)
from programs import KINDS as PORTS
from real_server import ADDRESS, children, free_port, kinds_of_descriptors, reset, until, works
from sides import VIRTIO_MUX, both, cable, guest, host

from muonsocks import tools
from muonsocks.mux.frames import (
    MAGIC,
    Hello,
    decode,
)
from muonsocks.tools import virtio_mux

# A connection


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_a_connection(version: Version) -> None:
    with listener() as far, both() as (g, h), g.connect() as client:
        client.sendall(version.greeting)
        assert read_all(client, len(version.chosen)) == version.chosen
        client.sendall(version.request(*far.getsockname()))
        with accept(far) as conn:
            reply = version.success(*conn.getpeername())
            assert read_all(client, len(reply)) == reply
            assert works(client, conn)
            client.shutdown(socket.SHUT_WR)
            assert conn.recv(1) == b""
            conn.sendall(b"still")
        assert read_all(client) == b"still"
        target = ":".join(map(str, far.getsockname()))
        end = rf"target={target} reply=0 in=8 out=11 secs=\S+ end=closed"
        assert g.await_log(end) and h.await_log(end)
        assert g.await_log(r"connected client=127.0.0.1:\d+ .* address=mux:0")
        assert h.await_log(rf"connected client=mux:0 .* address={target}")


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_the_client_is_told_what_went_wrong(version: Version) -> None:
    with both() as (g, _), g.connect() as client:
        client.sendall(version.greeting)
        assert read_all(client, len(version.chosen)) == version.chosen
        client.sendall(version.request("127.0.0.1", closed_port()))
        assert read_all(client) == version.failure(5)
        g.await_log('reply=5 .* end=dial-failed detail="the host has answered 5"')


def test_names_ipv6_and_rules(tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text("deny * 25\n")
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        guest((ours.fileno(), ours.fileno())) as g,
        host((theirs.fileno(), theirs.fileno()), f"--rules={rules}", "-v") as h,
        listener("::1") as far,
    ):

        def ask(request: bytes) -> bytes:
            with g.connect() as client:
                client.sendall(GREETING + request)
                return read_all(client, 6)[2:]

        port = far.getsockname()[1]
        assert ask(b"\5\1\0\4" + bytes(15) + b"\1" + port.to_bytes(2, "big")) == b"\5\0\0\4"
        with listener() as other:
            name = b"\5\1\0\3\x09localhost" + other.getsockname()[1].to_bytes(2, "big")
            assert ask(name) == b"\5\0\0\1"
        assert ask(b"\5\1\0\3\x0cnowhere.test\0\x50")[:2] == b"\5\4"
        assert ask(socks5("127.0.0.1", 25))[:2] == b"\5\2"
        h.await_log("end=refused-by-rule")
        assert ask(b"\5\2\0\1" + bytes(6))[:2] == b"\5\7"
        g.await_log("command-not-supported")


def test_users() -> None:
    with both("-U", "alice", "-P", "secret") as (g, _), listener() as far, g.connect() as client:
        client.sendall(GREETING)
        assert read_all(client) == b"\5\xff"
        with g.connect() as client:
            client.sendall(b"\5\1\2" + credentials(b"alice", b"secret"))
            assert read_all(client, 4) == b"\5\2\1\0"
            client.sendall(socks5(*far.getsockname()))
            with accept(far) as conn:
                assert read_all(client, 10)[:2] == b"\5\0"
                assert works(client, conn)


def test_a_burst_of_connections() -> None:
    """As from a browser with 200 tabs: 500 at once, and each gets what is its own."""
    with both() as (g, h), listener() as far:
        far.listen(600)
        over = threading.Event()

        def serve() -> None:
            with ThreadPoolExecutor(64) as pool:
                for _ in range(500):
                    pool.submit(answer, accept(far))
            over.set()

        def answer(conn: socket.socket) -> None:
            with conn:
                asked = read_all(conn, 8)
                conn.sendall(hashlib.sha256(asked).digest() * 1000)

        def fetch(number: int) -> bool:
            with g.connect() as client:
                client.sendall(GREETING + socks5(*far.getsockname()))
                assert read_all(client, 12)[2:4] == b"\5\0"
                asked = number.to_bytes(8, "big")
                client.sendall(asked)
                return read_all(client) == hashlib.sha256(asked).digest() * 1000

        server = threading.Thread(target=serve)
        server.start()
        with ThreadPoolExecutor(100) as pool:
            assert all(pool.map(fetch, range(500)))
        server.join()
        # Nothing stays of them.
        [worker] = children(g.pid)
        for pid in (worker, h.pid):
            until("all is closed", lambda pid=pid: kinds_of_descriptors(pid)["socket"] <= 6)


# One who is slow


def test_a_blocked_connection_does_not_stop_others() -> None:
    with both() as (g, _), listener() as far, contextlib.ExitStack() as stack:
        blocked = stack.enter_context(g.ask(far))
        stuffed = stack.enter_context(accept(far))
        stuffed.setblocking(False)
        stuffed.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        sent = 0
        poll = select.poll()
        poll.register(stuffed, select.POLLOUT)
        while poll.poll(300):  # nobody reads it, so that this comes to its end
            with contextlib.suppress(BlockingIOError):
                sent += stuffed.send(bytes(1 << 16))
        for _ in range(20):
            client, conn = g.joined(far)
            with client, conn:
                assert works(client, conn)
        got = 0
        stuffed.close()
        while data := blocked.recv(1 << 20):
            got += len(data)
        assert got == sent + 8


# When the other side is not there


def test_without_a_host_clients_are_told_so(tmp_path: Path) -> None:
    with cable(tmp_path) as joint, guest(joint.guest, "--open-timeout=0.3") as g:
        with g.connect() as client:
            started = time.monotonic()
            client.sendall(GREETING + socks5("127.0.0.1", 80))
            assert read_all(client) == b"\5\0" + failure(1)
            assert 0.25 < time.monotonic() - started < SECONDS
        g.await_log('reply=1 .* end=dial-failed detail="the host is not there"')


def test_a_client_may_wait_for_the_host(tmp_path: Path) -> None:
    with (
        cable(tmp_path) as joint,
        guest(joint.guest, "--wait") as g,
        listener() as far,
        g.ask(far) as client,
    ):
        assert not select.select([client], [], [], 0.5)[0]
        with host(joint.host), accept(far) as conn:
            assert read_all(client, 8)[1] == 0x5A
            assert works(client, conn)


def test_a_client_that_waits_may_leave(tmp_path: Path) -> None:
    with cable(tmp_path) as joint, guest(joint.guest, "--wait") as g:
        client = g.connect()
        client.sendall(socks4("127.0.0.1", 80))
        reset(client)
        g.await_log("end=client-lost")


@pytest.mark.parametrize("goes", ["guest", "host"])
@pytest.mark.parametrize("how", ["killed", "told"])
def test_one_side_goes_and_comes_back(tmp_path: Path, goes: str, how: str) -> None:
    """In the middle of transfers: what was open is reset, and new connections work."""
    with cable(tmp_path) as joint, listener() as far, contextlib.ExitStack() as stack:
        sides = {
            name: stack.enter_context(
                {"guest": guest, "host": host}[name](getattr(joint, name), status=None)
            )
            for name in ("guest", "host")
        }
        sides["guest"].await_log("the host is there")
        open_ones = [sides["guest"].joined(far) for _ in range(5)]
        for client, conn in open_ones:
            for end in (client, conn):
                end.setblocking(False)
                stack.enter_context(end)
        for _ in range(20):
            for client, conn in open_ones:
                for end in (client, conn):
                    with contextlib.suppress(BlockingIOError):
                        end.send(b"old" * 20000)
        if how == "killed":
            sides[goes].kill()
        else:
            sides[goes].terminate()
            assert sides[goes].status == 0
        program = {"guest": guest, "host": host}[goes]
        anew = stack.enter_context(program(getattr(joint, goes)))
        sides[goes] = anew
        began = time.monotonic()
        new = [sides["guest"].joined(far) for _ in range(5)]
        assert time.monotonic() - began < 3
        for client, conn in new:
            with client, conn:
                assert works(client, conn)  # and nothing else has come
        for client, conn in open_ones:
            for end in (client, conn):
                end.setblocking(True)
                end.settimeout(SECONDS)
                with contextlib.suppress(ConnectionError):
                    while end.recv(1 << 16):
                        pass
        other = sides["host" if goes == "guest" else "guest"]
        reason = "has started anew" if how == "killed" else "is told to stop"
        other.await_log(f"the {goes} is not there any more: .*{reason}")


def test_a_port_that_is_not_there_yet(tmp_path: Path) -> None:
    path = tmp_path / "port"
    with host(str(path)) as h:
        h.await_log("is not there yet: No such file or directory")
        with cable(tmp_path) as joint, guest(joint.guest) as g, listener() as far:
            os.symlink(joint.host, path)
            client, conn = g.joined(far)
            with client, conn:
                assert works(client, conn)
        h.await_log("is lost: it has gone")


def test_silence_is_noticed(tmp_path: Path) -> None:
    """A host that is stopped, as by a debugger, says nothing: its clients are not to wait."""
    with (
        cable(tmp_path) as joint,
        guest(joint.guest, "--ping-timeout=0.6") as g,
        host(joint.host) as h,
        listener() as far,
    ):
        client, conn = g.joined(far)
        with client, conn:
            h.signal(signal.SIGSTOP)
            try:
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
                g.await_log("the host is not there any more: there was no sign of life for")
            finally:
                h.signal(signal.SIGCONT)
            client, conn = g.joined(far)
            with client, conn:
                assert works(client, conn)


def test_a_session_that_is_idle_stays(tmp_path: Path) -> None:
    with both("--ping-timeout=0.3") as (g, _), listener() as far:
        client, conn = g.joined(far)
        with client, conn:
            assert not select.select([client, conn], [], [], 1.5)[0]
            assert works(client, conn)
        assert g.count("there is|any more") == 0


# Ports of all kinds


@pytest.mark.parametrize("kind", ["unix", "tcp", "pipes", "fifos", "pty"])
def test_ports(kind: str) -> None:
    """A guest on one side of something, and a raw peer on the other: they meet."""
    peer, stdin, stdout = PORTS[kind]()
    with contextlib.closing(peer), guest((stdin, stdout)) as g:
        os.close(stdin)
        os.close(stdout)
        number = bytes(range(8))
        peer.send(Hello(1, 5, number, bytes(8)).encode())
        answer = b""
        while number not in answer:
            answer += peer.read(1)
        hello = decode(peer_hello(answer + peer.read(0)))
        peer.send(Hello(1, 5, number, hello.number).encode())
        g.await_log("the host is there")


@pytest.mark.parametrize("program", [guest, host])
@pytest.mark.parametrize("kind", ["null", "file"])
def test_a_standard_input_without_events(tmp_path: Path, program: Any, kind: str) -> None:
    """It comes to its end at once, and so does the program."""
    (tmp_path / "file").write_bytes(noise(100_000))
    with (
        open("/dev/null" if kind == "null" else tmp_path / "file", "rb") as stdin,
        open("/dev/null" if kind == "null" else tmp_path / "output", "wb") as stdout,
        program((stdin.fileno(), stdout.fileno())) as side,
    ):
        side.await_log("standard input is lost: it has gone")
        assert side.status == 0


@pytest.mark.parametrize("which", ["host", "guest"])
def test_a_device_that_leads_nowhere(which: str) -> None:
    where = ["-p", str(free_port()), "-i", ADDRESS] if which == "guest" else []
    outcome = run(VIRTIO_MUX, which, *where, "/dev/null")
    assert outcome.status == 111
    assert "/dev/null: nobody can be at the other side of this device" in outcome.log


def peer_hello(answer: bytes) -> bytes:
    """The last HELLO among the bytes, without its header."""
    return answer[answer.rindex(MAGIC) :]


def test_a_terminal_is_as_it_was_afterwards() -> None:
    peer, stdin, stdout = PORTS["canonical pty"]()
    before = termios.tcgetattr(stdin)
    with contextlib.closing(peer):
        with guest((stdin, stdout)):
            until("it is raw", lambda: not termios.tcgetattr(stdin)[3] & termios.ICANON)
        assert termios.tcgetattr(stdin) == before
        assert os.get_blocking(stdin) and os.get_blocking(stdout)
    os.close(stdin)
    os.close(stdout)


def test_a_pty_by_its_name() -> None:
    peer, stdin, stdout = PORTS["pty"]()
    with contextlib.closing(peer), host(os.ttyname(stdin)) as h:
        assert peer.read(4) == b"\xff\xff\x34\0"
        os.close(stdin)
        os.close(stdout)
        peer.close()
        h.await_log("is lost: ")


def test_a_terminal_that_it_was_typed_in() -> None:
    """It is no port unless that is said: raw, it would take ^C for data."""
    peer, stdin, stdout = PORTS["canonical pty"]()
    with contextlib.closing(peer):
        before = termios.tcgetattr(stdin)
        outcome = run(VIRTIO_MUX, "host", stdin=stdin)
        assert outcome.status == 100
        assert "standard input is a terminal; name a PORT; it is - if" in outcome.log
        assert termios.tcgetattr(stdin) == before
    os.close(stdin)
    os.close(stdout)


# Limits, signals, the command line


def test_the_host_s_limit_on_connections(tmp_path: Path) -> None:
    with (
        cable(tmp_path) as joint,
        guest(joint.guest) as g,
        host(joint.host, "--max-connections=2"),
        listener() as far,
    ):
        first, second = g.joined(far), g.joined(far)
        with g.connect() as client:
            client.sendall(socks4(*far.getsockname()))
            assert read_all(client, 8)[1] == 0x5B
        g.await_log("the host has no more than 2 connections")
        for end in first:
            end.close()
        until("there is room", lambda: g.count("end=closed"))
        for end in (*g.joined(far), *second):
            end.close()


def test_users_are_read_again(tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text("alice:one\n")
    with both(f"--users={users}") as (g, _):
        users.write_text("alice:two\n")
        g.signal(signal.SIGHUP)
        g.await_log("reloaded")
        for password, verdict in ((b"one", b"\1\1"), (b"two", b"\1\0")):
            with g.connect() as client:
                client.sendall(b"\5\1\2" + credentials(b"alice", password))
                assert read_all(client, 4) == b"\5\2" + verdict


def test_one_client_on_standard_input_and_output(tmp_path: Path) -> None:
    with (
        cable(tmp_path) as joint,
        host(joint.host),
        listener() as far,
        serving(VIRTIO_MUX, "guest", "--inetd", joint.guest, over="tcp") as program,
    ):
        program.client.send(GREETING + socks5(*far.getsockname()))
        with accept(far) as conn:
            assert program.client.read(12)[2:4] == b"\5\0"
            program.client.send(b"question")
            assert read_all(conn, 8) == b"question"
            conn.sendall(b"answer")
        assert program.client.rest() == b"answer"
        program.client.close()
        assert program.status == 0
    assert program.end == "closed"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "which side is it?"),
        (["both"], "which side is it?"),
        (["host", "a", "b"], "which side is it?"),
        (["host", "--users=/x", "-"], "--users is not for a host; see --help"),
        (["host", "--inetd"], "--inetd is not for a host"),
        (["guest", "--rules=/x"], "--rules is not for a guest; see --help"),
        (["guest", "-4"], "-4 is not for a guest"),
        (["guest", "--inetd", "-"], "with --inetd they are the client's; give another PORT"),
        (["guest", "--inetd", "-p1", "/x"], "--port does not go with --inetd"),
        (["host", "--max-connections=0"], "--max-connections: '0' is too small; give 1 to 32768"),
        (["host", "--max-connections=40000"], "'40000' is too large; give 1 to 32768"),
        (["host", "--memory=0"], "--memory: '0' is too small; give 1 to 1048576"),
        (["guest", "--wait", "--open-timeout=9"], "--wait and --open-timeout exclude each other"),
        (["host", "--memory=x"], "--memory: 'x' is not a number"),
        (["host", ""], "PORT is empty"),
        (["host", "/" + "p" * 107], f"PORT: '/{'p' * 59}' is no path of a socket; a path or"),
        (
            ["guest", "@" + "p" * 300],
            "is no path of a socket; a path or @NAME of",
        ),
        (["host", "--frobnicate"], "there is no option --frobnicate"),
        (["guest", "-w", "192.0.2.1/24", "/x"], "host bits set"),
    ],
)
def test_wrong_usage(words: list[str], problem: str) -> None:
    outcome = run(VIRTIO_MUX, *words)
    assert outcome.status == 100
    [line] = outcome.log.splitlines()
    assert problem in line


# Where the log may be


# The words, and whether standard output is the port, and so no place for the log.
IS_PORT = {
    "host": True,
    "host -": True,
    "-v host": True,
    "--memory 32 host": True,
    "host --memory 32": True,
    "host --mem 32": True,
    "host --memory=32 -": True,
    "host -m 1 -": True,
    "host -vm 1": True,
    "host -4vm 1": True,
    "host @NAME": False,
    "host @NAME -v": False,
    "host --allow-local @NAME": False,
    "host --allow @NAME": False,
    "-v host @NAME": False,
    "host -m1 @NAME": False,
    "host -4m1 @NAME": False,
    "host --memory 32 @NAME": False,
    "host --memory=32 @NAME": False,
}


@pytest.mark.parametrize("words", IS_PORT)
def test_the_log_is_not_in_the_port(words: str) -> None:
    """Where standard error is the same as standard output. That is no port if there is another."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("")
        name = listening.getsockname().decode().replace("\0", "@")
        listening.listen()
        listening.settimeout(SECONDS)
        ours, theirs = os.pipe(), os.pipe()
        process = subprocess.Popen(
            [VIRTIO_MUX, *words.replace("@NAME", name).split()],
            stdin=ours[0],
            stdout=theirs[1],
            stderr=theirs[1],
            env=environment(),
        )
        os.close(theirs[1])
        try:
            if IS_PORT[words]:
                assert os.read(theirs[0], 4) == b"\xff\xff\x34\0"
                os.close(ours[1])
            else:
                conn = listening.accept()[0]
                assert conn.recv(4) == b"\xff\xff\x34\0"
                conn.close()
                assert b" is lost: " in os.read(theirs[0], 1 << 16)
                os.close(ours[1])
                process.terminate()
            assert process.wait(SECONDS) == 0
            rest = b""
            while data := os.read(theirs[0], 1 << 16):
                rest += data
            assert b"standard input is lost" not in rest
        finally:
            process.kill()
            process.wait()
            for fd in (ours[0], theirs[0]):
                os.close(fd)


def test_which_options_have_a_value() -> None:
    """As docopt has it, of every option there is."""
    for option in docopt.parse_defaults(virtio_mux.__doc__):
        for name in filter(None, (option.short, option.long)):
            assert (name in tools.FLAGS) is (option.argcount == 0), name


@pytest.mark.parametrize("which", ["host", "guest"])
def test_a_device_that_cannot_be_opened(which: str) -> None:
    where = ["-p", str(free_port()), "-i", ADDRESS] if which == "guest" else []
    outcome = run(VIRTIO_MUX, which, *where, "/dev/nothing")
    assert outcome.status == 111
    assert "/dev/nothing: No such file or directory" in outcome.log


def is_refused(address: tuple[str, int]) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(address) != 0


@pytest.mark.parametrize("kind", ["one client", "drained"])
def test_what_was_said_last_is_not_lost_with_the_guest(tmp_path: Path, kind: str) -> None:
    """The far end ends first, then the client, and at once the guest."""
    with contextlib.ExitStack() as stack:
        joint = stack.enter_context(cable(tmp_path))
        h, far = stack.enter_context(host(joint.host)), stack.enter_context(listener())
        if kind == "one client":
            command = (VIRTIO_MUX, "guest", "--inetd", joint.guest)
            program = stack.enter_context(serving(*command, over="tcp"))
            client = program.client.socket
        else:
            g = stack.enter_context(guest(joint.guest, "--drain-timeout=20"))
            client = stack.enter_context(g.connect())
        client.sendall(GREETING + socks5(*far.getsockname()))
        assert read_all(client, 12)[2:4] == b"\5\0"
        with accept(far) as conn:
            conn.sendall(b"answer")
            conn.shutdown(socket.SHUT_WR)
            assert read_all(client) == b"answer"
            if kind == "drained":
                g.signal(signal.SIGTERM)
                until("it drains", lambda: is_refused(g.address))
            client.sendall(b"x" * 1000)
            assert read_all(conn, 1000) == b"x" * 1000
            client.close()
            assert conn.recv(1) == b"", "and no reset"
        h.await_log("in=1000 out=6 .* end=closed")


def test_a_port_that_cannot_be_had_any_more(tmp_path: Path) -> None:
    """What is wrong is said, and told by the status: something has to be done about it."""
    path = str(tmp_path / "port")
    with guest(path, status=111) as g, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        g.await_log("is not there yet")
        sock.bind(path)
        g.await_log(f"{path}: Protocol wrong type for socket")
        assert g.status == 111


def test_one_client_and_a_port_that_cannot_be_had_any_more(tmp_path: Path) -> None:
    path = str(tmp_path / "port")
    with (
        serving(VIRTIO_MUX, "guest", "--inetd", "--wait", path, over="tcp") as program,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
    ):
        program.await_log("is not there yet")
        program.client.send(socks4("127.0.0.1", 80))
        sock.bind(path)
        assert program.client.read(8)[1] == 0x5B
        assert program.status == 111
    assert f"{path}: Protocol wrong type for socket" in program.log


def test_a_guest_whose_port_has_gone_ends_soon() -> None:
    """However long it would drain, and though a client says nothing."""
    ours, theirs = socket.socketpair()
    port = theirs.fileno(), theirs.fileno()
    with ours, guest(port, "--drain-timeout=60") as g, g.connect() as client:
        theirs.close()
        client.sendall(GREETING)
        assert read_all(client, 2) == b"\5\0"
        began = time.monotonic()
        ours.close()
        assert g.status == 0
        assert time.monotonic() - began < 3
        assert g.count("stopped, connections that were cut: 1")


@pytest.mark.parametrize(("closed", "name"), [("<&-", "input"), (">&-", "output")])
@pytest.mark.parametrize("side", ["host", "guest"])
def test_a_standard_stream_that_is_not_open(side: str, closed: str, name: str) -> None:
    outcome = run("sh", "-c", f'exec "$@" {closed}', "sh", VIRTIO_MUX, side, "-")
    assert outcome.status == 111
    [line] = outcome.log.splitlines()
    assert line.endswith(f": standard {name} is not open")


def test_a_port_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    outcome = run(VIRTIO_MUX, "host", str(tmp_path / "file"))
    assert outcome.status == 100
    assert "is neither a device nor a socket" in outcome.log


def test_a_socket_that_must_not_be_connected_to(tmp_path: Path) -> None:
    """Root may do so, and other users are told that they must not."""
    with cable(tmp_path) as joint:
        os.chmod(joint.host, 0o600)
        os.chmod(tmp_path, 0o755)
        as_nobody = {"user": 65534, "group": 65534, "extra_groups": []} if not os.getuid() else {}
        if not as_nobody:
            pytest.skip("only root can become somebody else")
        outcome = run(VIRTIO_MUX, "host", joint.host, **as_nobody)
    assert outcome.status == 111
    assert f"{joint.host}: Permission denied" in outcome.log


def test_systemd_is_told_whether_the_other_side_is_there(tmp_path: Path) -> None:
    """By both, within some seconds."""
    notify = str(tmp_path / "notify")
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(notify)
        told.settimeout(SECONDS)

        def await_status(*wanted: str) -> None:
            left = set(wanted)
            while left:
                message = told.recv(4096).decode()
                left = {one for one in left if not message.startswith(f"STATUS={one}")}

        with guest((ours.fileno(), ours.fileno()), NOTIFY_SOCKET=notify):
            ours.close()
            await_status("host: away; connections: 0 open, 0 served")
            with host((theirs.fileno(), theirs.fileno()), NOTIFY_SOCKET=notify):
                await_status(
                    "host: there; connections: 0 open", "guest: there; connections: 0 open"
                )
            await_status("host: away; connections: 0 open")
