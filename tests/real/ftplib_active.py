"""Fetch a file by FTP in active mode, with ftplib: ftplib_active.py HOST PATH"""

import ftplib
import sys
from typing import Any

from muonsocks.client import SocksSocket, create_connection


class ActiveFTP(ftplib.FTP):
    """Goes through the proxies that the environment has, and so do the servers, back to us."""

    def connect(self, host: str = "", port: int = 21, timeout: Any = None, _: Any = None) -> str:
        self.host, self.port, self.passiveserver = host, port, False
        self.sock = create_connection((host, port), timeout)
        self.af, self.file = self.sock.family, self.sock.makefile("r", encoding=self.encoding)
        self.welcome = self.getresp()
        return self.welcome

    def makeport(self) -> SocksSocket:
        listener = SocksSocket(self.af)
        listener.listen(peer=(self.host, self.port))
        self.sendport(*listener.getsockname())
        return listener


with ActiveFTP(sys.argv[1]) as ftp:
    ftp.login()
    ftp.retrbinary(f"RETR {sys.argv[2]}", sys.stdout.buffer.write)
