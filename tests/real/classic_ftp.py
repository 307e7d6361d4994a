"""Fetch a file by FTP in active mode, as the classic library has it: classic_ftp.py HOST PATH"""

import socket
import sys

from muonsocks.client.rsocks import Raccept, Rbind, Rconnect, Rgetsockname, Rlisten


def say(command: str, expected: str) -> None:
    control.sendall(command.encode() + b"\r\n" if command else b"")
    if not (reply := replies.readline()).startswith(expected):
        sys.exit(reply)


host, path = sys.argv[1:]
control, listener = socket.socket(), socket.socket()
Rconnect(control, (host, 21))
replies = control.makefile()
say("", "220")
say("USER anonymous", "230")
Rbind(listener, ("", 0), host)
address, port = Rgetsockname(listener)
Rlisten(listener, 1)
say(f"PORT {address.replace('.', ',')},{port >> 8},{port & 255}", "200")
say(f"RETR {path}", "150")
data, server = Raccept(listener)
while piece := data.recv(65536):
    sys.stdout.buffer.write(piece)
say("", "226")
