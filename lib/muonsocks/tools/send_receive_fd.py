"""
Send a descriptor to another process, or receive one and run PROG with it.

SOCKET is the number of a unix socket that is open here, or the path of one of datagrams
(with @ in front, a name in the abstract namespace): who sends finds it there, who receives
makes it, and removes it again.

Usage:
  send-receive-fd [options] -s FD [--] SOCKET
  send-receive-fd [options] -r SOCKET [--] PROG [ARG...]
  send-receive-fd (--help | --version)

What to do:
  -s, --send=FD    send the descriptor of this number
  -r, --receive    receive one, and run PROG, which has it under the number that is in
                   SKBOX_RECEIVED_FD

Other:
  --timeout=SECS   how long to wait at most, in seconds: for a descriptor to come, by
                   default for ever; for room to send one, by default 5
  -v, --verbose    log messages that bring none
  --help           show this and exit
  --version        show the version and exit
"""

from __future__ import annotations

import errno
import os
from _socket import AF_UNIX, SO_ACCEPTCONN, SOCK_DGRAM, SOCK_NONBLOCK, SOL_SOCKET, socket

from muonsocks.errors import RemoteProtocolError, UsageError
from muonsocks.net.loop import Loop
from muonsocks.net.passing import WORD, Passage
from muonsocks.net.signals import Signals
from muonsocks.net.stream import unix_address
from muonsocks.tools import DONE, execute
from muonsocks.tools.command_line import Options, descriptor, parse, unix_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine

    from muonsocks.log import Log
    from muonsocks.net.task import Waitable

_FOR_ROOM = 5.0  # s
_REASONS = {
    errno.ECONNREFUSED: "nobody receives there",
    errno.EPROTOTYPE: "the socket there is none of datagrams",
    errno.EPIPE: "the other side has closed",
    errno.EADDRINUSE: "somebody receives there already, or it is no socket",
    errno.EMFILE: "what has come is left there: there is no room for it, see ulimit -n",
}


def main(arguments: list[str], log: Log) -> int:
    """Send, or receive and become PROG."""
    given = _read(arguments) or parse(__doc__, arguments, log, program_follows=True)
    if given is None:
        return DONE
    if not (given.flag("--send") or given.flag("--receive")):
        raise UsageError("there is neither -s nor -r", "give -s FD SOCKET, or -r SOCKET PROG")
    where, *program = given.arguments
    number = given.text("--send")
    if number is not None:
        fd = descriptor(number, "-s")
        seconds = given.seconds("--timeout", _FOR_ROOM)
        work = _Work(where)
        work.run(work.send(fd), seconds, f"there has been no room for {seconds:g} s")
        return DONE
    seconds = given.seconds("--timeout", 0)
    work = _Work(where)
    fd = work.run(work.receive(log), seconds, f"no descriptor has come for {seconds:g} s")
    # It is no standard stream of PROG's, even if those are closed: what the loop has open is lower.
    os.set_inheritable(fd, True)
    environ = dict(os.environb)
    environ[b"SKBOX_RECEIVED_FD"] = b"%d" % fd
    if log.to_syslog:
        environ[b"SOCKS_LOG"] = b"syslog"  # PROG cannot see that fd 2 was the peer
    return execute(program, environ, log)


def _read(arguments: list[str]) -> Options | None:
    """Read -s FD SOCKET or -r SOCKET PROG, which is what scripts give: docopt takes as long as all
    the rest. None if there is anything else.
    """
    option, words = arguments[:1], arguments[1:]
    values: dict[str, str | bool] = {"--receive": True}
    if option == ["-s"] and len(words) > 1:
        values = {"--send": words.pop(0)}
    elif option != ["-r"]:
        return None
    if words[:1] == ["--"]:
        del words[0]
    if words and words[0].startswith("-"):
        return None
    if option == ["-s"]:
        return Options(values, words) if len(words) == 1 else None
    if words[1:2] == ["--"]:
        del words[1]
    return Options(values, words) if len(words) > 1 else None


class _Work:
    """What is done over one socket, which is `where`: a descriptor's number, or a path."""

    __slots__ = ("_inherited", "_loop", "_name", "_where")

    def __init__(self, where: str) -> None:
        """Find the socket, or make sure that there can be one. UsageError."""
        self._where = self._name = where
        self._inherited: socket | None = None
        if where.isascii() and where.isdecimal():
            self._name = f"descriptor {where}"
            self._inherited = _unix_socket(descriptor(where, "SOCKET"))
        else:
            unix_path(where, "SOCKET")
        self._loop = Loop()
        Signals(self._loop)

    def run(self, work: Coroutine[Waitable, None, int], seconds: float, too_late: str) -> int:
        """Do it, within so many seconds if they are not 0. OSError that says where it failed."""

        async def in_time() -> int:
            if not seconds:
                return await work
            with self._loop.deadline(seconds):
                return await work

        try:
            return self._loop.run(in_time())
        except TimeoutError:
            raise OSError(errno.ETIMEDOUT, too_late, self._name) from None
        except OSError as error:
            reason = _REASONS.get(error.errno or 0) or error.strerror
            raise OSError(error.errno, reason, self._name) from None

    async def send(self, fd: int) -> int:
        """Send a descriptor, when there is room for it."""
        sock = self._inherited
        if sock is None:
            sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK)
            sock.connect(unix_address(self._where))  # without that nobody tells of room
        elif not _is_connected(sock):
            raise UsageError(f"descriptor {sock.fileno()} is not connected", "it cannot send")
        await Passage(self._loop, sock).send_message(WORD, (fd,))
        return fd

    async def receive(self, log: Log) -> int:
        """Receive a descriptor, when one comes. What is inherited stays open for PROG."""
        if self._inherited is not None:
            return await self._first(self._inherited, log)
        from muonsocks.net.listen import SocketFile, receive_at

        sock = receive_at(self._where)
        file = SocketFile(self._where)
        try:
            return await self._first(sock, log)
        finally:
            file.remove()
            sock.close()

    async def _first(self, sock: socket, log: Log) -> int:
        passage = Passage(self._loop, sock)
        while True:
            try:
                fd = await passage.receive_first()
            except RemoteProtocolError as error:
                log.debug(f"{self._name}: {error}")
                continue
            if fd is None:
                raise OSError(errno.ENOLINK, "it has ended, and no descriptor has come")
            return fd


def _unix_socket(fd: int) -> socket:
    """Make a socket of a descriptor, which must be one that can pass others. UsageError."""
    try:
        sock = socket(fileno=fd)
    except OSError:
        raise UsageError(f"descriptor {fd} is no socket", "give a unix socket") from None
    if sock.family != AF_UNIX:
        raise UsageError(f"descriptor {fd} is no unix socket", "only those pass descriptors")
    if sock.getsockopt(SOL_SOCKET, SO_ACCEPTCONN):
        raise UsageError(f"descriptor {fd} is a listener", "give a connection that it accepted")
    if sock.type != SOCK_DGRAM and not _is_connected(sock):
        raise UsageError(f"descriptor {fd} is not connected", "connect it first")
    return sock


def _is_connected(sock: socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
