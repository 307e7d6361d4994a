"""Where a port is to be found, as a command line names it, and how it is opened."""

from __future__ import annotations

import errno
import os
import termios
from _socket import SO_SNDBUF, SOL_SOCKET
from stat import S_ISCHR, S_ISSOCK

from muonsocks.errors import UsageError
from muonsocks.mux.port import Port
from muonsocks.net.borrowed import Pair
from muonsocks.net.dial import dial_unix
from muonsocks.net.inherit import Stdio, stdio_status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import Any

    from muonsocks.net.loop import Loop

_SO_SNDBUFFORCE = 32  # socket(7)
_CONNECTING = 1.0  # s for a unix socket whose backlog is full
_FOR_GOOD = (errno.EACCES, errno.EPERM, errno.EPROTOTYPE)
_SENDING = 1 << 20  # bytes a socket may have on its way: more delays those who wait for their turn


class _Place:
    """What a place says of itself."""

    __slots__ = ()

    again = True  # it can be opened again
    deaf_for = 0.0  # s that a host stays without a byte from there, the first time; 0: for ever
    has_come_again = False  # to a place that was deaf before

    async def hang_up(self, loop: Loop) -> None:
        """Do what it takes, once the port is closed, to come again to one that is deaf. OSError."""


class StandardStreams(_Place):
    """Standard input and output: they lead to one peer, and when it has gone that was all."""

    name = "standard input"
    again = False

    __slots__ = ()

    def __init__(self) -> None:
        """To be called before anything is opened. OSError if one of them is not open."""
        stdio_status()

    def may_come(self, error: OSError) -> bool:
        """Say whether one that could not be opened may well be there later."""
        return False

    async def open(self, loop: Loop) -> Port:
        """Take them over. OSError."""
        if _is_virtio(0) and os.path.samestat(os.fstat(0), os.fstat(1)):
            # One is enough, and of two there would be twice as many events.
            borrowed = (0,) if os.get_blocking(0) else ()
            os.set_blocking(0, False)
            return Port(Pair(loop, 0, 0, borrowed), True)
        stdio = Stdio(loop)
        try:
            if stdio.socket is not None:
                _enlarge(stdio.socket)
            return Port(stdio.stream, _is_virtio(0), _make_raw(0))
        except BaseException:
            stdio.stream.close()
            raise


class Device(_Place):
    """A device: a virtio port, a serial port, a terminal."""

    __slots__ = ("_was_there", "name")

    def __init__(self, path: str) -> None:
        self.name = path
        self._was_there = False

    def may_come(self, error: OSError) -> bool:
        """Say whether one that could not be opened may well be there later."""
        return self._was_there

    async def open(self, loop: Loop) -> Port:
        """Open it. OSError, EBUSY if somebody has it already."""
        fd = os.open(self.name, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            stream = Pair(loop, fd, fd, ())
        except BaseException:
            os.close(fd)
            raise
        try:
            if stream.always_ready:  # /dev/null, say: it would come to its end again and again
                raise OSError(errno.ENOTTY, "nobody can be at the other side of this device")
            port = Port(stream, _is_virtio(fd), _make_raw(fd))
        except BaseException:
            stream.close()
            raise
        self._was_there = True
        return port


class UnixSocket(_Place):
    """A unix socket that somebody listens at, as QEMU does for a guest; or will, in a while."""

    deaf_for = 1.0

    __slots__ = ("name",)

    def __init__(self, path: str) -> None:
        self.name = path

    def may_come(self, error: OSError) -> bool:
        """Say whether one that could not be opened may well be there later."""
        return error.errno not in _FOR_GOOD

    async def open(self, loop: Loop) -> Port:
        """Connect to it. OSError."""
        stream = await dial_unix(loop, self.name, _CONNECTING)
        _enlarge(stream.socket)
        return Port(stream)


Place = StandardStreams | Device | UnixSocket


def place_of(text: str) -> Place:
    """Say what a command line means by PORT. UsageError if that can be no port, and OSError if
    standard input or output is not open.
    """
    if text == "-":
        return StandardStreams()
    try:
        mode = os.stat(text).st_mode
    except OSError:
        return Device(text) if text.startswith("/dev/") else UnixSocket(text)
    if S_ISCHR(mode):
        return Device(text)
    if S_ISSOCK(mode):
        return UnixSocket(text)
    raise UsageError(f"{text} is neither a device nor a socket", "see --help")


def _make_raw(fd: int) -> list[Any] | None:
    """Let a terminal pass all bytes on as they are; give its mode before that. OSError."""
    if not os.isatty(fd):
        return None
    try:
        return _made_raw(fd)
    except termios.error as error:  # which is no OSError
        number, reason = error.args
        hint = "see that it is connected, and that nobody else uses it"
        raise OSError(number, f"the terminal cannot be made raw: {reason}; {hint}") from None


def _made_raw(fd: int) -> list[Any]:
    before = termios.tcgetattr(fd)
    iflag, oflag, cflag, lflag, *rest = termios.tcgetattr(fd)
    # cfmakeraw(3)
    iflag &= ~(
        termios.IGNBRK
        | termios.BRKINT
        | termios.PARMRK
        | termios.ISTRIP
        | termios.INLCR
        | termios.IGNCR
        | termios.ICRNL
        | termios.IXON
    )
    oflag &= ~termios.OPOST
    lflag &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    cflag = cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    termios.tcsetattr(fd, termios.TCSANOW, [iflag, oflag, cflag, lflag, *rest])
    return before


def _is_virtio(fd: int) -> bool:
    """Say whether a descriptor is a virtio port: its other side may leave and come back."""
    status = os.fstat(fd)
    if not S_ISCHR(status.st_mode):
        return False
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    subsystem = os.path.realpath(f"/sys/dev/char/{number}/subsystem")
    return os.path.basename(subsystem) == "virtio-ports"


def _enlarge(sock: socket) -> None:
    """Let a socket take more at a time than it would; as much as this process may have."""
    try:
        sock.setsockopt(SOL_SOCKET, _SO_SNDBUFFORCE, _SENDING)
    except OSError:
        sock.setsockopt(SOL_SOCKET, SO_SNDBUF, _SENDING)
