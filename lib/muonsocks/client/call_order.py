"""In which order a program calls the functions of `rsocks`: what the old library's documentation
has as rules, and left to the programs.

    first                  Rconnect or Rrcmd; SOCKSinit, if at all, before that
    fresh                  Rconnect, or Rbind for a host that an Rconnect has reached
    connecting, binding    the same call again, with the same arguments, until it is over
    connected              input and output
    bound                  Rgetsockname
    named                  Rlisten
    listening              Raccept, which gives a socket for input and output
    used                   no more than close()

Rgetsockname may be repeated, and Rselect is for any sockets at any time.
"""

from __future__ import annotations

import errno
from _thread import allocate_lock

from muonsocks.client.errand import endpoint_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from muonsocks.client.proxies import Proxies

FRESH, CONNECTING, CONNECTED = "fresh", "connecting", "connected"
BINDING, BOUND, NAMED, LISTENING, USED = "binding", "bound", "named", "listening", "used"

_DUE = {
    CONNECTING: "Rconnect, with the same arguments,",
    BINDING: "Rbind, with the same arguments,",
    BOUND: "Rgetsockname",
    NAMED: "Rlisten",
    LISTENING: "Raccept",
}
_MOST_HOSTS = 1024  # that are remembered; a program that goes to more Rbinds soon, or not at all


class OutOfOrder(OSError):
    """A call is not the one that is due, which the message says, and `due` (EINVAL)."""

    side = "here"

    def __init__(self, who: str, due: str, call: str) -> None:
        super().__init__(errno.EINVAL, f"{who}: {due} is due before {call}")
        self.due = due


class Reached:
    """A host that an Rconnect has reached: at which `port`, and from what address of `ours`."""

    __slots__ = ("ours", "port")

    def __init__(self, port: int, ours: tuple[Any, ...]) -> None:
        self.port = port
        self.ours = ours


class Program:
    """What is one for all sockets: the program's `name`, its `proxies`, whom it has reached."""

    __slots__ = ("_has_begun", "_lock", "_reached", "name", "proxies")

    def __init__(self) -> None:
        self.name = "SOCKSclient"
        self.proxies: Proxies = None
        self._has_begun = False
        self._reached: dict[str, Reached] = {}
        self._lock = allocate_lock()

    def unlock(self) -> None:
        """Go on in a child process, where nobody is left who could have the lock."""
        self._lock = allocate_lock()

    def init(self, name: str, proxies: Proxies) -> None:
        """Take what SOCKSinit says. OutOfOrder if it is late."""
        if self._has_begun:
            raise OSError(errno.EINVAL, f"{self.name}: SOCKSinit comes before all other calls")
        self.name, self.proxies = name, proxies

    def expect(self, call: str, step: str, *steps: str) -> None:
        """Hold that a call is due for a socket that has come to a step: one of `steps`."""
        self._has_begun = True
        if step not in steps:
            raise OutOfOrder(self.name, self._due(step, call), call)

    def has_reached(self, reached: Reached, *hosts: str) -> None:
        """Remember a host, by all that it may be called."""
        with self._lock:
            for host in hosts:
                name = _same(host)
                self._reached.pop(name, None)
                self._reached[name] = reached
            while len(self._reached) > _MOST_HOSTS:
                del self._reached[next(iter(self._reached))]

    def reached(self, host: str) -> Reached:
        """Give what is known of a host. OutOfOrder if it has not been reached."""
        with self._lock:
            reached = self._reached.get(_same(host))
        if reached is None:
            raise OutOfOrder(self.name, f"a successful Rconnect to {host}", f"Rbind for {host}")
        return reached

    def _due(self, step: str, call: str) -> str:
        if step in _DUE:
            return _DUE[step]
        if step != FRESH:
            return "another socket" if call in ("Rconnect", "Rbind") else "Rbind of another socket"
        if call == "Rgetsockname":
            return "Rconnect or Rbind"
        return "Rbind" if self._reached else "Rconnect"


def _same(host: str) -> str:
    """Have one name for all spellings of a host."""
    return endpoint_of(host, 0).host.lower().rstrip(".")
