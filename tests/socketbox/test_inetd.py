"""What a program that is started for a connection is told, and when there is no room for it."""

import errno
import os
import re
import resource
import socket

import pytest
from ends import PATIENCE, Lines, nothing_left_behind
from places import in_child
from senders import accepted

from muonsocks.net.inherit import peer_of
from muonsocks.net.loop import Loop
from muonsocks.resident.board import REFUSED, Board
from muonsocks.socketbox import inetd
from muonsocks.socketbox.inetd import Starter, environment_of, environment_without_us


def test_who_is_connected_with_whom() -> None:
    with accepted("::1") as (client, conn):
        [port, local] = [b"%d" % name()[1] for name in (client.getsockname, conn.getsockname)]
        assert environment_of(conn) == {
            b"REMOTE_ADDR": b"::1",
            b"REMOTE_PORT": port,
            b"PROTO": b"TCP",
            b"TCPREMOTEIP": b"::1",
            b"TCPREMOTEPORT": port,
            b"TCPLOCALIP": b"::1",
            b"TCPLOCALPORT": local,
        }


def test_a_peer_who_has_gone() -> None:
    with socket.socket() as sock, pytest.raises(OSError) as caught:
        environment_of(sock)
    assert caught.value.errno == errno.ENOTCONN


def test_what_is_about_another_connection_is_left_out() -> None:
    with accepted() as (_, conn):
        stale = dict.fromkeys(environment_of(conn), b"stale")
    client, conn = socket.socketpair()
    with client, conn:
        stale |= dict.fromkeys(environment_of(conn), b"stale")
    for names in (
        b"UNIXLOCALPATH IPCREMOTEEUID IPCREMOTEPATH IPCCONNNUM TCPCONNNUM TCPREMOTEHOST",
        b"TCP6REMOTEIP SSLLOCALIP REMOTE_HOST LISTEN_PIDFDID MAINPID NOTIFY_SOCKET",
        b"SOCKETBOX_INETD_PROGRAM SOCKETBOX_INETD_OPTIONS",
    ):
        stale |= dict.fromkeys(names.split(), b"stale")
    kept = dict.fromkeys((b"HOME", b"SSL_CERT_FILE", b"TCP", b"IPC_LOCK", b"UNIX95"), b"x")
    assert environment_without_us(stale | kept) == kept


def test_who_is_at_the_other_end_of_a_unix_socket() -> None:
    client, conn = socket.socketpair()
    with client, conn:
        assert environment_of(conn) == {
            b"PROTO": b"UNIX",
            b"UNIXREMOTEPID": b"%d" % os.getpid(),
            b"UNIXREMOTEEUID": b"%d" % os.geteuid(),
            b"UNIXREMOTEEGID": b"%d" % os.getegid(),
        }
    with socket.socket(socket.AF_UNIX) as alone:
        assert environment_of(alone) == {b"PROTO": b"UNIX"}


class Crowded(Starter):
    """Starts programs where there is no room for a process, so many times."""

    __slots__ = ("times",)
    number = errno.EAGAIN

    def _spawn(self, fd: int, environ: dict[bytes, bytes]) -> int:
        self.times -= 1
        if self.times >= 0:
            raise OSError(self.number, os.strerror(self.number))
        return super()._spawn(fd, environ)


def serve(starter: Starter, loop: Loop) -> bytes:
    """Have a client served, and give what it reads."""
    with accepted() as (client, conn):
        peer = peer_of(conn, {})
        taken = conn.dup()
        conn.close()

        async def story() -> None:
            with loop.deadline(PATIENCE):
                assert await starter.serve(loop, taken, peer) == 0

        try:
            loop.run(story())
        finally:
            assert taken.fileno() == -1
            assert not loop.handlers
            said = client.recv(100)
        return said


def crowded(times: int, log: Lines) -> Crowded:
    starter = Crowded(["echo", "hello"], os.environb, 1024, log)
    starter.times = times
    return starter


def test_a_moment_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs nobody the connection."""
    monkeypatch.setattr(inetd, "_AGAIN", 0.01)
    with nothing_left_behind():
        log, loop = Lines(), Loop()
        assert serve(crowded(3, log), loop) == b"hello\n"
        assert [line.split()[0] for line in log.lines] == ["started", "ended"]
        loop.close()


def test_no_room_for_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker says what there is too little of, and we for whom that was too long."""
    monkeypatch.setattr(inetd, "_AGAIN", 0.01)
    monkeypatch.setattr(inetd, "_PATIENCE", 0.05)
    with nothing_left_behind():
        log, loop = Lines(), Loop()
        starter = crowded(1 << 30, log)
        starter.board = Board(1)
        with pytest.raises(OSError) as caught:
            serve(starter, loop)
        assert caught.value.errno == errno.EAGAIN
        [line] = log.lines
        assert re.match(
            r"ended client=127.0.0.1:\d+ pid=- status=no-process secs=0.[01]\d\d$", line
        )
        assert starter.board.total(REFUSED) == 1
        loop.close()


def test_no_descriptor_to_wait_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program is waited for all the same, once there is one."""
    monkeypatch.setattr(inetd, "_AGAIN", 0.01)
    failures, real = [errno.ENFILE] * 3, os.pidfd_open

    def pidfd_open(pid: int) -> int:
        if failures:
            raise OSError(failures.pop(), "no room")
        return real(pid)

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    with nothing_left_behind():
        log, loop = Lines(), Loop()
        assert serve(crowded(0, log), loop) == b"hello\n"
        assert log.lines[-1].split()[3] == "status=0"
        loop.close()
    assert not failures


def test_a_number_that_is_another_process_s_now() -> None:
    """Is not waited for: the program that had it has ended."""
    with nothing_left_behind():
        log, loop = Lines(), Loop()
        starter = crowded(0, log)

        async def story() -> None:
            with loop.deadline(PATIENCE):
                assert await starter.go_on_with(loop, os.getpid()) == 0

        loop.run(story())
        [line] = log.lines
        assert line.startswith(f"ended client=- pid={os.getpid()} status=- ")
        assert not loop.handlers
        loop.close()


@pytest.mark.parametrize("number", [0, 100])
def test_descriptors_of_programs(number: int) -> None:
    """As many as is said, or more where the connection's number is beyond that; we have ours."""

    def check() -> None:
        os.closerange(3, 64)  # which other tests may have left, and the connection's is to be low
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        log, loop = Lines(), Loop()
        with open("/dev/null") as file:
            held = [os.dup(file.fileno()) for _ in range(number)]
        script = "ulimit -Sn; ulimit -Hn"
        said = serve(Starter(["sh", "-c", script], os.environb, 64, log), loop).decode()
        soft, its_hard = map(int, said.split())
        assert soft == 64 if not held else held[-1] < soft < held[-1] + 20
        assert its_hard == hard
        assert serve(Starter(["no-such-program"], os.environb, 64, log), loop) == b""
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)

    in_child(check)
