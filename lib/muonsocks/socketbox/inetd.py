"""A program for each connection, with the connection as its standard input and output."""

from __future__ import annotations

import errno
import os
from _signal import valid_signals
from _socket import AF_INET, AF_INET6, AF_UNIX, SO_PEERCRED, SOL_SOCKET, socket
from resource import RLIMIT_NOFILE, getrlimit, setrlimit
from struct import unpack

from muonsocks.address import Endpoint
from muonsocks.log import ERROR, INFO, Form
from muonsocks.net.task import Waitable
from muonsocks.resident.board import REFUSED
from muonsocks.resident.plan import Service
from muonsocks.resident.programs import Programs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from muonsocks.log import Log
    from muonsocks.net.inherit import Peer
    from muonsocks.net.loop import Loop

NOT_EXECUTABLE, NOT_FOUND = 126, 127  # exit statuses of what could not be started, as of a shell

# Lines of the log, socketbox-inetd(1)
_STARTED = Form("started", "client", "pid")
_ENDED = Form("ended", "client", "pid", "status", "secs")

_SHORTAGES = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
_PATIENCE = 5.0  # s that a connection is kept for when no program can be started for it
_AGAIN = 0.1  # s until that is tried again
_NOBODY_AT_ALL = 0xFFFFFFFF  # a user's number, unix(7)

# What is about us.
_OURS_ALONE = (
    *(b"LISTEN_FDNAMES", b"LISTEN_FDS", b"LISTEN_PID", b"LISTEN_PIDFDID", b"MAINPID"),
    *(b"NOTIFY_SOCKET", b"WATCHDOG_PID", b"WATCHDOG_USEC"),
    *(b"SOCKETBOX_INETD_OPTIONS", b"SOCKETBOX_INETD_PROGRAM"),  # of our unit
)
# What is about an earlier connection: of systemd, xinetd, and all that is like UCSPI.
_OF_CONNECTIONS = (b"PROTO", b"REMOTE_ADDR", b"REMOTE_HOST", b"REMOTE_PORT")
_KINDS, _PARTS = (b"TCP", b"TCP6", b"UNIX", b"IPC", b"SSL"), (b"LOCAL", b"REMOTE", b"CONN")
_PREFIXES = tuple(kind + part for kind in _KINDS for part in _PARTS)


def environment_without_us(environ: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Give what all programs have in common of the environment."""
    return {
        name: value
        for name, value in environ.items()
        if not (name in _OURS_ALONE or name in _OF_CONNECTIONS or name.startswith(_PREFIXES))
    }


def environment_of(sock: socket) -> dict[bytes, bytes]:
    """Say in the environment who is connected with whom: as systemd does (REMOTE_ADDR) and as
    UCSPI has it (PROTO, TCPREMOTEIP, or UNIXREMOTEEUID and so on). OSError ENOTCONN if the peer has
    gone.

    An IPv4 connection of an IPv6 socket is one of IPv4.
    """
    if sock.family == AF_UNIX:
        return {b"PROTO": b"UNIX"} | _credentials(sock)
    if sock.family not in (AF_INET, AF_INET6):
        return {}
    remote = Endpoint.of_socket(sock.getpeername())
    local = Endpoint.of_socket(sock.getsockname())
    host, port = remote.host.encode(), b"%d" % remote.port
    return {
        b"REMOTE_ADDR": host,
        b"REMOTE_PORT": port,
        b"PROTO": b"TCP",
        b"TCPREMOTEIP": host,
        b"TCPREMOTEPORT": port,
        b"TCPLOCALIP": local.host.encode(),
        b"TCPLOCALPORT": b"%d" % local.port,
    }


def _credentials(sock: socket) -> dict[bytes, bytes]:
    """Say who has connected to a unix socket, or has made a pair of them, if anybody has."""
    pid, uid, gid = unpack("iII", sock.getsockopt(SOL_SOCKET, SO_PEERCRED, 12))
    if uid == _NOBODY_AT_ALL:
        return {}
    return {
        b"UNIXREMOTEPID": b"%d" % pid,
        b"UNIXREMOTEEUID": b"%d" % uid,
        b"UNIXREMOTEEGID": b"%d" % gid,
    }


class Starter(Service):
    """Starts a program for each client, and sees it to its end."""

    __slots__ = ("_descriptors", "_environ", "_log", "_program", "programs")

    programs: Programs

    def __init__(
        self,
        program: list[str],
        environ: Mapping[bytes, bytes],
        descriptors: int,
        log: Log,
    ) -> None:
        """`descriptors` is how many a program may have open (RLIMIT_NOFILE), as with the limit that
        we need it would be no good for those that use select(2) or close all there could be.
        """
        self._program = program
        self._environ = environment_without_us(environ)
        self._descriptors = descriptors
        self._log = log
        self.programs = Programs()

    def settle(self, loop: Loop, retire: Callable[..., None]) -> None:
        """Let programs have nothing of what was open here but standard error."""
        for name in os.listdir("/proc/self/fd"):
            try:
                if int(name) > 2:
                    os.set_inheritable(int(name), False)
            except OSError:
                continue  # the list was read from it

    async def serve(self, loop: Loop, sock: socket, peer: Peer) -> int:
        """Start a program, and wait for its end. When it is cut short, so is the program: with all
        that it has started and that is in its session still.
        """
        began = loop.now
        try:
            pid = await self._start(loop, sock, peer)
        finally:
            sock.close()
        if not pid:
            return 0
        self._log.fill_in(INFO, _STARTED, (peer.text, f"{pid}"))
        try:
            await self._end_of(loop, pid)
        except BaseException:
            self.programs.tell_to_end(pid)
            raise
        self.programs.remove(pid)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        how = f"{status}" if status >= 0 else f"signal-{-status}"
        self._log.fill_in(INFO, _ENDED, (peer.text, f"{pid}", how, f"{loop.now - began:.3f}"))
        return 0

    async def go_on_with(self, loop: Loop, pid: int) -> int:
        """See a program to its end that another worker has started, and that is the supervisor's
        child now: which has its exit status, and nobody knows its client any more.
        """
        began = loop.now
        try:
            await self._end_of(loop, pid)
        except ProcessLookupError:
            pass  # it has ended already
        except BaseException:
            self.programs.tell_to_end(pid)
            raise
        self._log.fill_in(INFO, _ENDED, ("-", f"{pid}", "-", f"{loop.now - began:.3f}"))
        return 0

    async def _start(self, loop: Loop, sock: socket, peer: Peer) -> int:
        """Start the program, when there is room for it, and give its process. 0 if it cannot be, or
        there is nobody any more to do it for. OSError if there is no room for too long.
        """
        until = loop.now + _PATIENCE
        while True:
            try:
                environ = self._environ | environment_of(sock)
            except OSError:
                self._log.fill_in(INFO, _ENDED, (peer.text, "-", "gone", "0.000"))
                return 0
            try:
                return self._spawn(sock.fileno(), environ)
            except OSError as error:
                if error.errno not in _SHORTAGES:
                    self._cannot_be_executed(peer, error)
                    return 0
                if loop.now >= until:
                    waited = f"{_PATIENCE + loop.now - until:.3f}"
                    self._log.fill_in(ERROR, _ENDED, (peer.text, "-", "no-process", waited))
                    self.board.add(REFUSED, 1)
                    raise
            await loop.sleep(_AGAIN)

    def _spawn(self, fd: int, environ: dict[bytes, bytes]) -> int:
        # A descriptor that has its number already stays open, too: that is what glibc makes of it.
        places = [(os.POSIX_SPAWN_DUP2, fd, 0), (os.POSIX_SPAWN_DUP2, fd, 1)]
        ours = getrlimit(RLIMIT_NOFILE)
        # Less than that, and glibc takes the number of the connection for wrong.
        setrlimit(RLIMIT_NOFILE, (min(max(self._descriptors, fd + 1), ours[1]), ours[1]))
        try:
            pid = os.posix_spawnp(
                self._program[0],
                self._program,
                environ,
                file_actions=places,
                setsid=True,
                setsigmask=(),
                setsigdef=valid_signals(),
            )
        finally:
            setrlimit(RLIMIT_NOFILE, ours)
        self.programs.add(pid)
        return pid

    def _cannot_be_executed(self, peer: Peer, error: OSError) -> None:
        self._log.error(f"{self._program[0]} cannot be executed: {error.strerror}")
        status = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        self._log.fill_in(ERROR, _ENDED, (peer.text, "-", f"{status}", "0.000"))

    async def _end_of(self, loop: Loop, pid: int) -> None:
        """Wait for the end of a program. ProcessLookupError if it has been reaped."""
        ended = Waitable()
        while True:
            try:
                fd = self._watch(loop, pid, ended)
                break
            except ProcessLookupError:
                raise
            except OSError:  # ENFILE, say: it waits to be reaped, and this is looked at again
                await loop.sleep(_AGAIN)
        try:
            await ended
        finally:
            loop.unregister(fd)
            os.close(fd)

    def _watch(self, loop: Loop, pid: int, ended: Waitable) -> int:
        """Open a descriptor of its process, and wait for its end."""
        fd = os.pidfd_open(pid)
        try:
            if pid not in self.programs:  # who has the number now is another one
                raise ProcessLookupError
            loop.register(fd, lambda _: ended.wake())
        except BaseException:
            os.close(fd)
            raise
        return fd
