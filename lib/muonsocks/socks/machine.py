"""What the protocol machines share (socks4.py, socks5.py, http_connect.py, proxy_header.py): the
way they are driven.

A machine never reads or writes. Its driver gives it bytes with `receive`, asks for what they mean
with `next_event` until that is None, and puts `send(event)` on the wire itself. `wants` is the
number of bytes that may be read without reading past the handshake; it is 0 when it is not
the peer's turn.
"""

from __future__ import annotations

from muonsocks.address import Endpoint, is_name
from muonsocks.errors import LocalProtocolError
from muonsocks.socks.request import Event


class Machine:
    """One side of one handshake. `state` names a line of the table at the top of the module."""

    __slots__ = ("_buffer", "state")

    def __init__(self, state: str) -> None:
        self._buffer = b""
        self.state = state

    def receive(self, data: bytes) -> None:
        """Take bytes from the peer, as they came."""
        self._buffer += data

    @property
    def wants(self) -> int:
        """How many bytes more the peer is sure to send before this handshake is over."""
        raise NotImplementedError

    def next_event(self) -> Event | None:
        """Give what the peer has said; None when bytes are missing, or our own side must speak.

        Raises RemoteProtocolError when the peer broke the protocol; the machine is then closed.
        """
        raise NotImplementedError

    def send(self, event: Event) -> bytes:
        """Give the bytes that say `event`, and go on. LocalProtocolError if it is not its turn."""
        raise NotImplementedError

    @property
    def trailing(self) -> bytes:
        """What came behind the handshake: the first bytes of what is carried."""
        return self._buffer

    def _take(self, count: int) -> bytes:
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def _out_of_turn(self, event: Event) -> LocalProtocolError:
        return LocalProtocolError(f"{event!r} cannot be sent in state {self.state}")


def port_bytes(endpoint: Endpoint) -> bytes:
    """Write a port in network order."""
    return endpoint.port.to_bytes(2, "big")


def name_bytes(endpoint: Endpoint) -> bytes:
    """Write a host name as the protocol carries it; LocalProtocolError if it cannot."""
    name = endpoint.host.encode("ascii", "backslashreplace")
    if not endpoint.host.isascii() or not is_name(name):
        raise LocalProtocolError(f"{endpoint.host!r} cannot be sent as a name")
    return name
