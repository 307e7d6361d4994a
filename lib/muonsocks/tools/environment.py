"""A request in the environment: how socks-handshake hands it on and socks-relay finds it.

muonsocks(7) describes the variables.
"""

from __future__ import annotations

import os

from muonsocks.address import Endpoint, is_name
from muonsocks.errors import UsageError
from muonsocks.socks.negotiation import Server, server_owing_reply
from muonsocks.socks.request import COMMAND_NAMES, Request
from muonsocks.tools.command_line import port_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from muonsocks.net.inherit import Peer

_OF_UCSPI = (b"REMOTEIP", b"REMOTEPORT", b"REMOTEHOST", b"REMOTEINFO")


def request_environment(version: str, request: Request, user: bytes) -> dict[bytes, bytes]:
    """Give this process's environment with the request in it, and without an earlier one."""
    environ = dict(os.environb)
    environ[b"SOCKS_VERSION"] = version.encode()
    environ[b"SOCKS_COMMAND"] = COMMAND_NAMES[request.command].encode()
    environ[b"SOCKS_HOST"] = request.destination.host.encode()
    environ[b"SOCKS_PORT"] = b"%d" % request.destination.port
    environ.pop(b"SOCKS_USER", None)
    if user:
        environ[b"SOCKS_USER"] = user
    return environ


def rename_client(environ: dict[bytes, bytes], peer: Peer) -> None:
    """Let an environment say that this is the client: as systemd does, and nobody otherwise."""
    for name in _OF_UCSPI:
        environ.pop(environ.get(b"PROTO", b"") + name, None)
    endpoint = peer.endpoint()
    if endpoint is None:
        environ[b"REMOTE_ADDR"] = b"@"  # a unix socket, and without a port
        environ.pop(b"REMOTE_PORT", None)
    else:
        environ[b"REMOTE_ADDR"] = endpoint.host.encode()
        environ[b"REMOTE_PORT"] = b"%d" % endpoint.port


def command_from(environ: Mapping[str, str]) -> int | None:
    """Read the number of the command; None if it is none."""
    text = environ.get("SOCKS_COMMAND")
    return next((number for number, name in COMMAND_NAMES.items() if name == text), None)


def owed_server(environ: Mapping[str, str]) -> Server | None:
    """Give the machine that owes the client a reply; None if there is no request."""
    version = environ.get("SOCKS_VERSION")
    if version is None:
        return None
    server = server_owing_reply(version, command_from(environ))
    if server is None:
        raise UsageError(f"SOCKS_VERSION is {version!r}", "it must be 4, 4a or 5")
    return server


def request_from(environ: Mapping[str, str]) -> tuple[Request, bytes]:
    """Read the request and its user. UsageError if a variable is missing or makes no sense."""
    command = command_from(environ)
    if command is None:
        what = f"SOCKS_COMMAND is {environ.get('SOCKS_COMMAND', '')!r}"
        raise UsageError(what, f"it must be one of {', '.join(COMMAND_NAMES.values())}")
    host = environ.get("SOCKS_HOST", "")
    if not host.isascii() or not is_name(host.encode()):
        raise UsageError(f"SOCKS_HOST is {host!r}", "it must be a name or an address")
    destination = Endpoint(host, port_number(environ.get("SOCKS_PORT", ""), "SOCKS_PORT"))
    return Request(command, destination), os.fsencode(environ.get("SOCKS_USER", ""))
