"""The unix sockets that addresses mean: where they are, and how they are made."""

from __future__ import annotations

import errno
import os
from _socket import SOCK_STREAM, SOL_SOCKET, socket
from stat import S_ISSOCK

from muonsocks.intercept.conventions import PlaceInFile, UnixPlace
from muonsocks.net.listen import listen_at, receive_at

_SO_RCVTIMEO = 20


def read_place(meaning: UnixPlace | PlaceInFile) -> UnixPlace:
    """Give the unix socket, of which the path may be in a file. OSError, ERANGE if that is too
    short.
    """
    if isinstance(meaning, UnixPlace):
        return meaning
    with open(meaning.file, "rb", buffering=0) as file:
        data = os.pread(file.fileno(), meaning.SIZE, meaning.offset)
    if len(data) < meaning.SIZE:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE), meaning.file)
    try:
        return meaning.place(data)
    except ValueError:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), meaning.file) from None


def make_receiver(place: UnixPlace) -> socket:
    """Make the unix socket, which does not block. OSError as bind(2)."""
    if place.takes_over:
        try:
            if S_ISSOCK(os.lstat(place.path).st_mode):
                os.unlink(place.path)
        except FileNotFoundError:
            pass
    if place.is_stream:
        return listen_at(place.path, SOCK_STREAM, mode=0o660)
    return receive_at(place.path)


def take_after(receiver: socket, sock: socket) -> None:
    """Have a receiver block as the socket does that it stands for."""
    receiver.setblocking(os.get_blocking(sock.fileno()))
    time = sock.getsockopt(SOL_SOCKET, _SO_RCVTIMEO, 16)
    receiver.setsockopt(SOL_SOCKET, _SO_RCVTIMEO, time)
