"""A connection for PROG: on descriptors 6 and 7, with what is known of it in the environment, as
tcpclient(1) has it (UCSPI; tcp-environ(5)).
"""

from __future__ import annotations

import os

from muonsocks.address import Endpoint
from muonsocks.tools import execute

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.client.errand import Granted
    from muonsocks.log import Log

_READER, _WRITER = 6, 7
_VARIABLES = (
    *(b"TCPLOCALHOST", b"TCPLOCALIP", b"TCPLOCALPORT", b"TCPINTERFACE"),
    *(b"TCPREMOTEHOST", b"TCPREMOTEIP", b"TCPREMOTEPORT", b"TCPREMOTEINFO"),
)


def become(program: list[str], granted: Granted, peer: Endpoint, log: Log) -> int:
    """Become a program that has a connection to `peer`; returns only if that cannot be."""
    environ = connection_environment(granted, peer)
    if log.to_syslog:
        environ[b"SOCKS_LOG"] = b"syslog"  # PROG cannot see that fd 2 was the peer
    fd = granted.sock.fileno()
    os.set_blocking(fd, True)
    for number in (_READER, _WRITER):
        os.dup2(fd, number)
        os.set_inheritable(number, True)  # which dup2 leaves as it is if it is that number
    return execute(program, environ, log)


def connection_environment(granted: Granted, peer: Endpoint) -> dict[bytes, bytes]:
    """Give this process's environment with a connection to `peer` in it, and no other one.

    What is not known through a proxy is left out: the address of a name that it has looked up, or
    the one that it has gone out from and does not tell.
    """
    remote, local = peer, granted.bound
    if local is None:
        remote = Endpoint.of_socket(granted.sock.getpeername())
        local = Endpoint.of_socket(granted.sock.getsockname())
    environ = dict(os.environb)
    for name in _VARIABLES:
        environ.pop(name, None)
    environ[b"PROTO"] = b"TCP"
    environ[b"TCPREMOTEPORT"] = b"%d" % remote.port
    if peer.packed is None:
        environ[b"TCPREMOTEHOST"] = peer.host.lower().encode()
    if remote.packed is not None:
        environ[b"TCPREMOTEIP"] = remote.host.encode()
    if local.packed is not None and any(local.packed):
        environ[b"TCPLOCALIP"] = local.host.encode()
    if local.port:
        environ[b"TCPLOCALPORT"] = b"%d" % local.port
    return environ
