"""socks-relay --listen: the resident relay that other programs hand their connections over to."""

from __future__ import annotations

import os
from _socket import SOCK_SEQPACKET, socket

from muonsocks.errors import UsageError
from muonsocks.net.entrance import Listener
from muonsocks.net.listen import inherited, listen_at
from muonsocks.resident.notify import Notifier
from muonsocks.resident.plan import Capacity, Plan, Service
from muonsocks.resident.supervisor import Supervisor
from muonsocks.socks.handover import serve
from muonsocks.tools import DONE, SYSTEM_FAILED, options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine

    from muonsocks.log import Log
    from muonsocks.net.inherit import Peer
    from muonsocks.net.loop import Loop
    from muonsocks.net.task import Pause, Waitable

_NOT_FOR_RESIDENTS = {  # and what docopt gives for those that are not given
    **dict.fromkeys(("-4", "-6", "--bind-address", "--bind-interface", "--mark"), ""),
    **dict.fromkeys(("--rules", "--allow-local", "--relay", "--via", "--send-proxy"), ""),
    **dict.fromkeys(("--bind-any", "--resolve-commands"), ""),
    "--udp-filter": "strict",
    "--bind-timeout": "120",
    "--connect-timeout": "10",
    "--dial-timeout": "30",
    "--idle-timeout": "900",
    "--half-close-timeout": "120",
}
_DESCRIPTORS = 3  # of a connection: both ends, and the way it comes by


def reside(address: str, given: options.Options, log: Log) -> int:
    """Relay for all that connect, until told to stop."""
    for name, default in _NOT_FOR_RESIDENTS.items():
        if given.flag(name) and given.text(name) != default:
            hint = "give that to who hands over; here go --workers, --drain-timeout, -v and -q"
            raise UsageError(f"--listen does not go with {name}", hint)
    log.use_journal_fields()
    adopter = _Adopter(log)
    plan = Plan(
        given.number("--workers", 1024) or len(os.sched_getaffinity(0)),
        Capacity(0, each=_DESCRIPTORS, doorman=adopter),
        given.seconds("--drain-timeout", 30),
    )
    notifier = Notifier()
    if address != "systemd":
        sockets = [listen_at(options.unix_path(address, "--listen"))]
    elif not (sockets := inherited(SOCK_SEQPACKET)):
        raise UsageError("systemd has passed no socket", "start it by its socket unit")
    entrances = [Listener(sock) for sock in sockets]
    return DONE if Supervisor(adopter, entrances, plan, notifier, log).run() else SYSTEM_FAILED


class _Adopter(Service):
    """Serves the tools that hand connections over to a resident relay."""

    __slots__ = ("_log",)

    def __init__(self, log: Log) -> None:
        self._log = log

    def serve(self, loop: Loop, sock: socket, peer: Peer) -> Coroutine[Waitable, None, int | Pause]:
        """Take one connection over, and relay it."""
        return serve(loop, sock, self._log)

    def turn_away(self, loop: Loop, sock: socket) -> Coroutine[Waitable, None, int | Pause]:
        """Leave one connection to its tool, which can go on at once."""
        return serve(loop, sock, self._log, has_room=False)
