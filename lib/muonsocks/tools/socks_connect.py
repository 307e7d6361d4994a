"""
Connect to HOST and PORT through proxies, and copy standard input there and what comes from
there to standard output; or run PROG, which has the connection on descriptors 6 and 7.

The proxies are those of --proxy, or else of the environment: all_proxy, ALL_PROXY,
SOCKS5_SERVER, SOCKS_SERVER or SOCKS4_SERVER, unless no_proxy has HOST. Without any the
connection is direct.

Usage:
  socks-connect [options] [--proxy=URL]... [--] HOST [PORT [PROG [ARG...]]]
  socks-connect (--help | --version)

Which way:
  --proxy=URL                 through this proxy, socks5h://HOST:PORT say; one through
                              the other if it is repeated; "direct" for none
  -4                          over IPv4 only
  -6                          over IPv6 only
  -b, --bind-address=ADDR     from this address

What else to do than to connect:
  --bind                      have the proxy wait for a connection from HOST, and print
                              where that is, as a line "ADDRESS PORT", first
  --resolve                   have it look HOST up, a name or an address, and print what
                              it finds; there is no PORT then

How long it may take, in seconds:
  --connect-timeout=SECS      up to the connection [default: 120]
  --bind-timeout=SECS         with --bind, for HOST to come; by default for ever
  --idle-timeout=SECS         while nothing moves; by default for ever
  --half-close-timeout=SECS   the same once one side has ended; by default for ever

Other:
  -v, --verbose               say when the connection is up, and which way it goes
  -q, --quiet                 do not say why there is none, or why it has ended
  --help                      show this and exit
  --version                   show the version and exit
"""

from __future__ import annotations

import os

from muonsocks.address import Endpoint
from muonsocks.client.errand import Errand, Granted, endpoint_of, second_reply, way_to
from muonsocks.client.proxies import DIRECT
from muonsocks.errors import UsageError, in_one_line
from muonsocks.log import WARNING, Log
from muonsocks.net.inherit import output_status, stdio_status
from muonsocks.net.loop import Loop
from muonsocks.net.signals import Signals
from muonsocks.socks.request import Command
from muonsocks.tools import DONE, REFUSED_BY_PROXY, SYSTEM_FAILED, Terminated
from muonsocks.tools.command_line import Options, family, packed_address, parse, port_number
from muonsocks.tools.copying import OUTPUT, copy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.client.proxies import Proxies

_FOREVER = 1e9  # s
_RESOLVE = (Command.RESOLVE, Command.RESOLVE_PTR)


def main(arguments: list[str], log: Log) -> int:
    """Connect, and say how that went."""
    given = _read(arguments) or parse(__doc__, arguments, log, program_follows=True)
    if given is None:
        return DONE
    work = _Work(given)
    try:
        return work.run(log)
    except Terminated as ended:
        os.kill(os.getpid(), ended.number)  # with 0 it would seem to be done
        raise
    except OSError as error:
        is_left = isinstance(error, BrokenPipeError) and error.filename == OUTPUT
        if log.level > WARNING and not is_left:  # who has left will not miss it
            log.fatal(work.reason(error))
        return _status(error)


def _read(arguments: list[str]) -> Options | None:
    """Read --proxy=URL HOST PORT [PROG...], which is what scripts give: docopt takes as long as all
    the rest. None if there is anything else.
    """
    words = arguments.copy()
    urls: list[str] = []
    while words and words[0].partition("=")[0] == "--proxy":
        _, equals, url = words.pop(0).partition("=")
        if not equals:
            if not words:
                return None
            url = words.pop(0)
        urls.append(url)
    if words[:1] == ["--"]:
        del words[0]
    elif words[:1] and words[0].startswith("-"):
        return None
    return Options({"--proxy": urls}, words) if len(words) > 1 else None


class _Work:
    """What the command line and the environment ask for."""

    __slots__ = ("_bind_limit", "_errand", "_limit", "_limits", "_program", "_target")

    def __init__(self, given: Options) -> None:
        """Read it. UsageError; OSError if there is no standard input or output, but need of it."""
        command, words = Command.CONNECT, given.arguments
        if given.flag("--bind"):
            command = Command.BIND
        if given.flag("--resolve"):
            if command == Command.BIND:
                raise UsageError("--bind and --resolve exclude each other", "see --help")
            if len(words) > 1:
                raise UsageError("--resolve is for HOST alone", "leave the rest out")
            command, words = Command.RESOLVE, [*words, "0"]
        if len(words) < 2:
            raise UsageError("HOST or PORT is missing", "see --help")
        host, port, *self._program = words
        destination = _destination(host, port_number(port, "PORT"))
        if command == Command.RESOLVE and destination.packed is not None:
            command = Command.RESOLVE_PTR
        self._target = destination.host if command in _RESOLVE else str(destination)
        chain = way_to(destination, _proxies(given.texts("--proxy")))
        if not chain and command != Command.CONNECT:
            raise UsageError("only a proxy does that, and there is none", "name it by --proxy")
        text = given.text("--bind-address")
        source = None if text is None else Endpoint.at(packed_address(text, "-b"), 0)
        self._errand = Errand(command, destination, chain, source)
        self._errand.dialler.family = family(given)
        self._errand.dialler.for_relay = not self._program
        self._limit = given.seconds("--connect-timeout", 120)
        self._bind_limit = given.seconds("--bind-timeout", _FOREVER)
        self._limits = (
            given.seconds("--idle-timeout", _FOREVER),
            given.seconds("--half-close-timeout", _FOREVER),
        )
        # What is opened from here on would get the number of one that is not open.
        if command == Command.RESOLVE or (command == Command.BIND and self._program):
            output_status()
        elif not self._program:
            stdio_status()

    def run(self, log: Log) -> int:
        """Do it, and give the exit status. OSError."""
        errand = self._errand
        loop = Loop()
        Signals(loop)
        granted = loop.run(errand.run(loop, self._limit))
        peer = errand.destination
        if errand.command != Command.CONNECT:
            assert granted.bound is not None
            if errand.command in _RESOLVE:
                _print(granted.bound.host)
                return DONE
            assert granted.asking is not None
            _print(f"{granted.bound.host} {granted.bound.port}")
            peer = loop.run(second_reply(loop, granted.sock, granted.asking, self._bind_limit))
        log.debug(f"connected {self._fields(granted, peer)}")
        if self._program:
            from muonsocks.tools.ucspi import become

            return become(self._program, granted, peer, log)
        copy(loop, granted.sock, str(peer), *self._limits)
        return DONE

    def _fields(self, granted: Granted, peer: Endpoint) -> str:
        fields = [f"target={self._target}"]
        if peer is not self._errand.destination:
            fields.append(f"peer={peer}")
        if self._errand.chain:
            fields.append(f"via={','.join(map(str, self._errand.chain))}")
            if granted.bound is not None and granted.bound.port:
                fields.append(f"bound={granted.bound}")
        else:
            fields.append(f"address={Endpoint.of_socket(granted.sock.getpeername())}")
        return " ".join(fields)

    def reason(self, error: OSError) -> str:
        """Say in a line what has gone wrong, and whose fault it is."""
        if error.filename or _names_its_side(error):
            return in_one_line(error)
        return f"{self._target}: {in_one_line(error)}"


def _destination(host: str, port: int) -> Endpoint:
    if host.startswith("[") and host.endswith("]") and ":" in host:
        host = host[1:-1]
    if not host:
        raise UsageError("HOST is empty", "name a host")
    return endpoint_of(host, port)


def _proxies(urls: list[str]) -> Proxies:
    """Read --proxy; None without it."""
    if urls == ["direct"]:
        return DIRECT
    if not urls:
        return None
    from muonsocks.tools.proxies import named_by

    return named_by("--proxy", urls)


def _print(line: str) -> None:
    try:
        os.write(1, line.encode() + b"\n")
    except OSError as error:
        raise OSError(error.errno, error.strerror, OUTPUT) from None


def _names_its_side(error: OSError) -> bool:
    """Say whether the words of an error begin with who is at fault, and not with what a proxy has
    said of the destination.
    """
    from muonsocks.client.errors import ProxyError

    return isinstance(error, ProxyError) and error.code is None


def _status(error: OSError) -> int:
    """Give the exit status for an error: a proxy that was there but has not done it, or another."""
    from muonsocks.client.errors import (
        DestinationUnreachable,
        LoginRefused,
        ProxyMisbehaved,
        RequestRefused,
    )

    answered = (DestinationUnreachable, LoginRefused, ProxyMisbehaved, RequestRefused)
    return REFUSED_BY_PROXY if isinstance(error, answered) else SYSTEM_FAILED
