"""Paths with the local address in them: one rule for as many receivers as there are addresses."""

from __future__ import annotations

from muonsocks.socketbox.connection import LOCAL_ADDRESS, LOCAL_PORT, Connection

_GROUPS = 8


def substitute(path: str, connection: Connection) -> str:
    """Replace the first `#//0_` to `#//7_` by the eight 16-bit groups of the local address, and the
    first `#//P_` by the local port: five digits each, so that a path is as long as before.

    The groups of an IPv4 address are those of ::ffff:a.b.c.d. Without addresses all are 00000.
    """
    if "#//" not in path:
        return path
    address = LOCAL_ADDRESS.of(connection.key)
    for number in range(_GROUPS):
        group = address >> 16 * (_GROUPS - 1 - number) & 0xFFFF
        path = path.replace(f"#//{number}_", f"{group:05}", 1)
    return path.replace("#//P_", f"{LOCAL_PORT.of(connection.key):05}", 1)
