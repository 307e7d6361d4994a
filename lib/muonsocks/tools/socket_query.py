"""
Print the addresses of a socket: the local and the remote one, in one line.

Usage:
  socket-query [options]
  socket-query (--help | --version)

Which end:
  -l, --local    only the local one
  -r, --remote   only the remote one

How, where it is only one:
  -a, --address  without the port
  -p, --port     only the port

Other:
  -R, --raw      IPv4 and IPv6 alike, as 32 hexadecimal digits, a colon and 4 more
  -f, --fd=FD    of this descriptor, and not of standard input
  --help         show this and exit
  --version      show the version and exit
"""

from __future__ import annotations

import os
from _socket import AF_INET, AF_INET6, AF_UNIX, inet_pton, socket

from muonsocks.address import mapped
from muonsocks.errors import UsageError
from muonsocks.log import quoted
from muonsocks.tools import DONE
from muonsocks.tools.command_line import Options, descriptor, expect_no_arguments, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from muonsocks.log import Log

_FLAGS = {"l": "--local", "r": "--remote", "a": "--address", "p": "--port", "R": "--raw"}


def main(arguments: list[str], log: Log) -> int:
    """Print what is asked for."""
    given = _read(arguments) or parse(__doc__, arguments, log)
    if given is None:
        return DONE
    expect_no_arguments(given)
    form = _Form(given)
    sock = _socket_of(given)
    ends = []
    if not given.flag("--remote"):
        ends.append(form.text(sock.family, sock.getsockname()))
    if not given.flag("--local"):
        ends.append(form.text(sock.family, _name_of_peer(sock)))
    _print(" ".join(ends))
    return DONE


def _read(arguments: list[str]) -> Options | None:
    """Read short options, which is what scripts give: docopt takes as long as all the rest. None if
    there is anything else.
    """
    values: dict[str, str | bool] = {}
    words = iter(arguments)
    for word in words:
        if word == "-f":
            values["--fd"] = next(words, "")
        elif word[:1] == "-" and word[1:] and all(letter in _FLAGS for letter in word[1:]):
            values |= {_FLAGS[letter]: True for letter in word[1:]}
        else:
            return None
    return Options(values, [])


def _socket_of(given: Options) -> socket:
    """Make a socket of -f, or of standard input. UsageError if it is none."""
    text = given.text("--fd")
    fd = descriptor("0" if text is None else text, "-f" if text is not None else "standard input")
    try:
        return socket(fileno=fd)
    except OSError:
        raise UsageError(f"descriptor {fd} is no socket", "name one with -f") from None


def _name_of_peer(sock: socket) -> Any:
    try:
        return sock.getpeername()
    except OSError as error:
        problem = f"descriptor {sock.fileno()} has no remote address: {error.strerror}"
        raise OSError(error.errno, problem) from None


class _Form:
    """How an address is to be written."""

    __slots__ = ("_address_only", "_port_only", "_raw")

    def __init__(self, given: Options) -> None:
        self._address_only = given.flag("--address")
        self._port_only = given.flag("--port")
        self._raw = given.flag("--raw")
        is_one = given.flag("--local") or given.flag("--remote")
        if given.flag("--local") and given.flag("--remote"):
            raise UsageError("-l and -r exclude each other", "give neither for both ends")
        if self._address_only and self._port_only:
            raise UsageError("-a and -p exclude each other", "give neither for both")
        if (self._address_only or self._port_only) and not is_one:
            raise UsageError("-a and -p are for one end", "give -l or -r too")

    def text(self, family: int, name: Any) -> str:
        """Write what getsockname(2) and the like give. UsageError if it is not of that kind."""
        if family == AF_UNIX:
            if self._port_only or self._raw:
                raise UsageError(
                    "a unix socket has neither port nor raw form", "leave -p and -R out"
                )
            return "unix:" + _path(name)
        if family not in (AF_INET, AF_INET6):
            raise UsageError(f"a socket of address family {family} is neither IP nor unix")
        host, port = name[:2]
        packed = mapped(inet_pton(family, host))
        if self._raw:
            address, port_text, both = packed.hex().upper(), f"{port:04X}", "{}:{}"
        elif family == AF_INET6:
            address, port_text, both = packed.hex(":", 2), str(port), "[{}]:{}"
        else:
            address, port_text, both = host, str(port), "{}:{}"
        if self._address_only:
            return address
        return port_text if self._port_only else both.format(address, port_text)


def _path(name: str | bytes) -> str:
    """Write the name of a unix socket as one word; empty if it has none, @ for an abstract one."""
    if not name:
        return ""
    if isinstance(name, bytes):
        return "@" + (quoted(name[1:]) if name[1:] else "")
    return quoted(name)


def _print(line: str) -> None:
    try:
        os.write(1, line.encode() + b"\n")
    except OSError as error:
        raise OSError(error.errno, f"standard output: {error.strerror}") from None
