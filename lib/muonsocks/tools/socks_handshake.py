"""
Bring a SOCKS client on standard input and output to its request, then run PROG.

PROG finds the request in SOCKS_VERSION, SOCKS_COMMAND, SOCKS_HOST, SOCKS_PORT and
SOCKS_USER, and owes the client the reply: it ends by running socks-relay.

Usage:
  socks-handshake [options] PROG [ARG...]
  socks-handshake (--help | --version)

Who may come in:
  -U, --auth-user=NAME        the only user; needs -P
  -P, --auth-password=TEXT    its password (better: --users)
  --users=FILE                users, a line NAME:PASSWORD each
  -w, --trust=NETS            networks that need no password, a comma between;
                              without users, the only ones that may come in
  -1, --auth-once             no password from an address that has shown one
  --auth-once-ttl=SECS        for how long, in seconds [default: 86400]
  --state=DIR                 where such addresses are kept
  --proxy-protocol=WHETHER    a PROXY header says who the client is: off, optional or
                              required [default: off]
  --proxy-from=NETS           if it comes from these networks; else from anybody

How long it may take, in seconds:
  --handshake-timeout=SECS    up to the client's request [default: 30]

Other:
  -v, --verbose               log more
  -q, --quiet                 log no connections
  --help                      show this and exit
  --version                   show the version and exit
"""

from __future__ import annotations

import os

from muonsocks.errors import UsageError
from muonsocks.log import Log
from muonsocks.net.dial import Dialler
from muonsocks.net.inherit import Stdio, peer_of
from muonsocks.socks.admission import Finished
from muonsocks.socks.negotiation import Server
from muonsocks.socks.policy import Policy
from muonsocks.socks.request import COMMAND_NAMES, ReplyCode, Request
from muonsocks.socks.rules import Rules
from muonsocks.socks.session import Session
from muonsocks.tools import DONE, execute, options
from muonsocks.tools.environment import rename_client, request_environment


def main(arguments: list[str], log: Log) -> int:
    """Negotiate, and become PROG; returns only if there is nothing to hand on."""
    given = options.parse(__doc__, arguments, log, program_follows=True)
    if given is None:
        return DONE
    program = given.arguments
    if not program:
        raise UsageError("no PROG is given", "say what is to be run, socks-relay for instance")
    access, front = options.access(given), options.front(given)
    policy = Policy(access, Rules(), Dialler(), options.limits(given), front=front)
    stdio = Stdio()
    result: list[tuple[Server, Request]] = []
    peer = peer_of(stdio.socket, os.environ)
    session = Session(stdio.stream, peer, policy, log)

    async def negotiate() -> None:
        server, request = await session.negotiate(exact=True)
        if request.command not in COMMAND_NAMES:
            await session.refuse(server, ReplyCode.COMMAND_NOT_SUPPORTED)
            raise Finished("command-not-supported", f"command {request.command}")
        result.append((server, request))

    async def fail() -> None:
        await session.refuse(server, ReplyCode.GENERAL_FAILURE)
        raise Finished("system-error", "PROG cannot be executed")

    try:
        stdio.loop.run(session.logged(negotiate))
        if not result:
            return DONE
        server, request = result[0]
        environ = request_environment(server.version, request, session.user)
        if session.peer is not peer:
            rename_client(environ, session.peer)
        if log.to_syslog:
            environ[b"SOCKS_LOG"] = b"syslog"  # PROG cannot see that fd 2 was the client
        stdio.restore()
        status = execute(program, environ, log)
        stdio.borrow()
        stdio.loop.run(session.logged(fail))
        return status
    finally:
        stdio.restore()
