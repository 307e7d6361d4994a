"""The classic library: a program becomes a client of SOCKS when it calls Rconnect() instead of
connect(), and so on. Its sockets stay what they are.

    SOCKSinit("ftp")                              optional
    Rconnect(control, ("ftp.example.com", 21))
    Rbind(data, ("", 0), "ftp.example.com")       at the proxy, for that host alone
    host, port = Rgetsockname(data)               to be told to the server
    Rlisten(data, 1)
    conn, peer = Raccept(data)

The order is checked, see `call_order`: OutOfOrder is for a call that is not the one that is due.
Other errors are OSErrors, see `errors`; UsageError (a ValueError) is for what cannot be.
"""

from __future__ import annotations

import errno
import select
import socket
import time

from muonsocks.client import call_order
from muonsocks.client.call_order import (
    BINDING,
    BOUND,
    CONNECTED,
    CONNECTING,
    FRESH,
    LISTENING,
    NAMED,
    USED,
    Reached,
)
from muonsocks.client.classic_socket import is_connected, known, known_tcp, program
from muonsocks.client.errand import endpoint_of, way_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from muonsocks.client.proxies import Proxies

OutOfOrder = call_order.OutOfOrder


def SOCKSinit(name: str = "SOCKSclient", proxy: Proxies = None) -> None:
    """Say what the program is called, which is for the messages of OutOfOrder, and which proxies to
    go through, as for `create_connection`: without them the environment says.

    It may be left out; else it comes first. OSError (EINVAL) if it is late.
    """
    program.init(name, proxy)


def Rconnect(sock: socket.socket, address: tuple[Any, ...]) -> None:
    """Connect to (host, port). A SocksSocket goes through the proxies that it has, if any.

    A socket that is bound to a port connects to the first proxy from there. Which port the last one
    connects to the host from is that proxy's to choose: SOCKS has no way to claim one.

    On a socket that does not block it is EINPROGRESS, and the same call is to be repeated before
    any input or output: EALREADY while it is under way, then EISCONN, or the error that it has
    ended with. There is room for output when it is over; SO_ERROR does not tell.
    """
    state = known_tcp(sock)
    if state.step == CONNECTED:
        raise is_connected()
    program.expect("Rconnect", state.step, FRESH, CONNECTING)
    state.expect_same("Rconnect", address)
    was_under_way = state.step == CONNECTING
    carrier = state.carrier(sock)
    state.carry_out(CONNECTING, address, lambda: carrier.connect(address))
    state.step = CONNECTED
    program.has_reached(Reached(int(address[1]), carrier.getsockname()), address[0])
    if was_under_way:
        raise is_connected()


def Rbind(sock: socket.socket, address: tuple[Any, ...], host: str) -> None:
    """Have the last proxy listen for one connection from a host, which an Rconnect has reached by
    the same name.

    A proxy chooses the port itself, so that the one of `address` is 0: EADDRNOTAVAIL if not.
    Without proxies this is bind(2); "" is the address of ours that the host has been reached from,
    and whoever comes is for the program to check.

    On a socket that does not block it is EINPROGRESS, then EALREADY with the same arguments, up to
    when there is room for output; then it gives None, or raises why nobody listens.
    """
    state = known_tcp(sock)
    program.expect("Rbind", state.step, FRESH, BINDING)
    arguments = (address, host)
    state.expect_same("Rbind", arguments)
    carrier = state.carrier(sock)
    if state.step == FRESH:
        reached = program.reached(host)
        state.peer = (host, reached.port)
        state.is_proxied = bool(way_to(endpoint_of(*state.peer), carrier._proxies))
        if not state.is_proxied:
            address = _near(reached, sock, address)
        elif int(address[1]):
            reason = "a proxy chooses the port: Rbind to 0, and ask Rgetsockname"
            raise OSError(errno.EADDRNOTAVAIL, reason)

    def bind() -> None:
        if state.is_proxied:
            carrier.listen(1, peer=state.peer)
        else:
            sock.bind(address)

    state.carry_out(BINDING, arguments, bind)
    state.step = BOUND


def Rgetsockname(sock: socket.socket) -> Any:
    """Give the address where the host is to connect to after Rbind, for it to be told; or that the
    proxy's connection to the host comes from after Rconnect, if the proxy says.
    """
    state = known_tcp(sock)
    program.expect("Rgetsockname", state.step, CONNECTED, BOUND, NAMED, LISTENING)
    if state.step == BOUND:
        state.step = NAMED
    return state.carrier(sock).getsockname()


def Rlisten(sock: socket.socket, backlog: int = 1) -> None:
    """Listen. A proxy has done so since Rbind, and takes one connection whatever the backlog is."""
    state = known_tcp(sock)
    program.expect("Rlisten", state.step, NAMED)
    if not state.is_proxied:
        socket.socket.listen(sock, backlog)
    state.step = LISTENING


def Raccept(sock: socket.socket) -> tuple[socket.socket, Any]:
    """Wait for the connection, and give its socket and the host's address. There is one only: for
    another there has to be another socket.

    On a socket that does not block it is EAGAIN up to then. After any error but that, or a timeout,
    nobody can come any more.
    """
    state = known_tcp(sock)
    program.expect("Raccept", state.step, LISTENING)
    if not state.is_proxied:
        accepted = sock.accept()
        state.step = USED
        return accepted
    if state.waiting is None:
        state.accept(sock)
    state.step = USED
    waiting, state.waiting = state.waiting, None
    assert waiting is not None
    if isinstance(waiting, OSError):
        try:
            raise waiting
        finally:
            del waiting  # or the error would keep itself alive, through this frame
    return waiting


def Rselect(
    rlist: Sequence[Any], wlist: Sequence[Any], xlist: Sequence[Any], timeout: float | None = None
) -> tuple[list[Any], list[Any], list[Any]]:
    """Wait as select.select does, for any sockets and descriptors, for so many seconds at most. It
    may be called at any time.

    A socket is ready for input when Raccept would give a connection, or fail; for output when its
    Rconnect or Rbind is over.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        patience = None if deadline is None else max(deadline - time.monotonic(), 0)
        come = {id(one) for one in rlist if (state := known(one)) and state.waiting}
        others = [one for one in rlist if id(one) not in come]
        found = select.select(others, wlist, xlist, 0 if come else patience)
        come |= {id(one) for one in found[0] if _has_come(one)}
        if come or found[1] or found[2] or patience == 0:
            return [one for one in rlist if id(one) in come], found[1], found[2]
        # What a proxy says comes in pieces, and each of them is input.


def Rrcmd(
    host: str,
    port: int,
    local_user: str,
    remote_user: str,
    command: str,
    with_stderr: bool = False,
    *,
    timeout: float | None = None,
) -> tuple[socket.socket, socket.socket | None]:
    """Have a host run a command, by the protocol of rsh, see `rcmd`; its port is 514.

    Gives the socket that is the command's standard input and output, and with `with_stderr` that of
    its standard error; a byte that is sent there is the number of a signal for the command. The
    `timeout`, in seconds, is for all up to the start of the command; both sockets have it then.

    CommandRefused if the host will not, with its words. Without proxies it has to come from a port
    below 1024: PermissionError if those are not for this user.
    """
    from muonsocks.client.rcmd import rcmd

    return rcmd(host, port, (local_user, remote_user, command), with_stderr, timeout)


def _near(reached: Reached, sock: socket.socket, address: tuple[Any, ...]) -> tuple[Any, ...]:
    """Give what to bind without proxies: if the program does not say, an address the host knows."""
    ours = reached.ours
    says_where = any(endpoint_of(*address[:2]).packed or b"a name")
    if says_where or (":" in ours[0]) != (sock.family == socket.AF_INET6):
        return address
    return ours[0], int(address[1]), *ours[2:]


def _has_come(one: Any) -> bool:
    """Say whether what has input has it for the program."""
    state = known(one)
    if state is None or state.step != LISTENING or not state.is_proxied:
        return True
    timeout = one.gettimeout()
    one.settimeout(0)
    try:
        state.accept(one)
    except BlockingIOError:
        return False
    finally:
        one.settimeout(timeout)
    return True
