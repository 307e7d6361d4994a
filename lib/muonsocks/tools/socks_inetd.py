"""
Serve one SOCKS client on standard input and output.

Usage:
  socks-inetd [options] [--via=URL]...

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

Where a client may go:
  --rules=FILE                allow, deny and via lines, see muonsocks.rules(5)
  --allow-local               this host's own side too: loopback, link-local
  --bind-any                  BIND for whoever connects, if it names no host
  --udp-filter=WHICH          datagrams from where the client has sent some (strict) or
                              from anywhere (open) [default: strict]
  --resolve-commands          Tor's RESOLVE and RESOLVE_PTR, which only look names up

How the far end is reached:
  -4                          over IPv4 only
  -6                          over IPv6 only
  -b, --bind-address=ADDR     from this address
  -B, --bind-interface=NAME   over this network interface
  -m, --mark=NUMBER           with this firewall mark
  --via=URL                   through this proxy, socks5h://HOST:PORT say; one through
                              the other if it is repeated
  --send-proxy                tell it who the client is, by the PROXY protocol

Who relays:
  --relay=SOCKET              a resident relay, if there is one at this unix socket
                              and it has room (without it: $SOCKS_RELAY)

How long it may take, in seconds:
  --handshake-timeout=SECS    up to the client's request [default: 30]
  --connect-timeout=SECS      for each address [default: 10]
  --dial-timeout=SECS         for look-up and all addresses [default: 30]
  --bind-timeout=SECS         for BIND's peer to connect [default: 120]
  --idle-timeout=SECS         while nothing moves [default: 900]
  --half-close-timeout=SECS   the same once one side has ended [default: 120]

Other:
  -v, --verbose               log each failed address too
  -q, --quiet                 log no connections
  --help                      show this and exit
  --version                   show the version and exit
"""

from __future__ import annotations

import os

from muonsocks.log import Log
from muonsocks.net.inherit import Stdio, peer_of
from muonsocks.socks.session import Session
from muonsocks.tools import DONE, REFUSED_BY_RULE, options


def main(arguments: list[str], log: Log) -> int:
    """Serve the client and say how that went."""
    given = options.parse(__doc__, arguments, log)
    if given is None:
        return DONE
    options.expect_no_arguments(given)
    policy = options.policy(given, options.access(given), options.resident(given))
    stdio = Stdio()
    try:
        peer = peer_of(stdio.socket, os.environ)
        session = Session(stdio.stream, peer, policy, log)
        stdio.loop.run(session.run())
    finally:
        stdio.restore()
    return REFUSED_BY_RULE if session.refused_by_rule else DONE
