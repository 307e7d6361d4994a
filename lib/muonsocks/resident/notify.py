"""What a resident program tells who has started it: systemd (sd_notify(3)), s6, both or nobody."""

from __future__ import annotations

import os
from select import POLLOUT, poll
from time import monotonic_ns

from muonsocks.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

STATUS_PERIOD = 5.0  # s from a status line to the next


class Notifier:
    """Tells systemd, if $NOTIFY_SOCKET is set, and a descriptor, as s6's notification-fd."""

    __slots__ = ("_fd", "_notify", "_status", "watchdog")

    def __init__(self, fd: int | None = None) -> None:
        self._fd = fd
        self._status = ""
        self._notify: Callable[[str], object] | None = None
        self.watchdog = 0.0  # s between two signs of life that systemd waits for at most; 0: none
        if os.environ.get("NOTIFY_SOCKET"):
            try:
                from systemd.daemon import notify
            except ImportError:
                hint = "install the package python3-systemd"
                raise UsageError("$NOTIFY_SOCKET needs systemd-python", hint) from None
            self._notify = notify
            # As sd_watchdog_enabled(3), which systemd-python does not have.
            interval = os.environ.get("WATCHDOG_USEC", "")
            if interval.isdecimal() and os.environ.get("WATCHDOG_PID") in (None, str(os.getpid())):
                self.watchdog = int(interval) / 1e6

    @property
    def to_systemd(self) -> bool:
        """Whether systemd listens."""
        return self._notify is not None

    def _tell(self, state: str) -> None:
        if self._notify is None:
            return
        try:
            self._notify(state)
        except OSError:
            return  # as sd_notify(3) wants it: a service goes on when nobody listens

    def close(self) -> None:
        """Let a child have no part in this: who reads the descriptor waits for its last holder."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        self._notify = None

    def ready(self) -> None:
        """Say that clients can come now."""
        self._tell("READY=1")
        if self._fd is not None:
            # The mode of a descriptor is its other holders' too, so it is not made non-blocking.
            room = poll()
            room.register(self._fd, POLLOUT)
            if room.poll(0):  # nobody reads from a pipe that is full
                try:
                    os.write(self._fd, b"\n")
                except OSError:
                    pass  # EPIPE: nobody waits for it any more
            os.close(self._fd)
            self._fd = None

    def status(self, text: str) -> None:
        """Say how it goes, in a line for systemctl status."""
        if text != self._status:
            self._status = text
            self._tell(f"STATUS={text}")

    def alive(self) -> None:
        """Give systemd the sign of life that its watchdog waits for."""
        self._tell("WATCHDOG=1")

    def reloading(self) -> None:
        """Say that configuration is being read again; `ready` says that it has been."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={monotonic_ns() // 1000}")

    def stopping(self, seconds: float) -> None:
        """Say that no more clients are taken, and how long it may take to finish with the others.

        systemd waits for that long even if its TimeoutStopSec= is shorter.
        """
        self._tell(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}")
