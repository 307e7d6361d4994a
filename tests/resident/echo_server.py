#!/usr/bin/python3 -IS
"""A resident program that sends back what it gets; $HOW says what goes wrong with it.

It takes the options that `running` gives, as --NAME=VALUE, and nothing else.
"""

# ruff: noqa: E402

import errno
import os
import signal
import sys
import types
from _socket import socket
from collections.abc import Callable

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "../../lib"))
import site

site.main()

from muonsocks import tools
from muonsocks.address import parse_address
from muonsocks.errors import UsageError
from muonsocks.log import Log
from muonsocks.net.entrance import Listener
from muonsocks.net.inherit import Peer
from muonsocks.net.listen import listen_on
from muonsocks.net.loop import Loop
from muonsocks.net.stream import Stream
from muonsocks.resident.notify import Notifier
from muonsocks.resident.plan import Capacity, Plan, Service
from muonsocks.resident.supervisor import Supervisor

HOW = os.environ.get("HOW", "")


class Echo(Service):
    def __init__(self, log: Log) -> None:
        self.log = log
        self.answer = b""

    def reread(self) -> bytes:
        if HOW == "reread fails":
            raise UsageError("FILE:1: no good", "do better")
        if HOW == "reread takes memory":
            raise MemoryError
        if HOW.startswith("reads "):
            with open(HOW.removeprefix("reads "), "rb") as file:
                return file.read()  # a FIFO
        return os.urandom(4 << 20) if HOW == "reread much" else b"again"

    def take(self, configuration: bytes) -> None:
        self.answer = configuration

    def settle(self, loop: Loop, retire: Callable[..., None]) -> None:
        if HOW == "no user":
            raise UsageError("there is no such user", "name another one")
        if HOW == "no capability":
            raise OSError(errno.EPERM, "Operation not permitted")
        if HOW == "bug":
            raise ValueError("wrong")
        if HOW == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if HOW.startswith("waits for "):
            with open(HOW.removeprefix("waits for "), "rb") as file:
                file.read()  # a FIFO
        if HOW == "dies soon":
            loop.call_later(0.02, lambda: os._exit(3))

    async def serve(self, loop: Loop, sock: socket, peer: Peer) -> int:
        stream = Stream(loop, sock)
        try:
            while data := await stream.receive(100):
                while data == b"spin":
                    pass
                await stream.send(data + self.answer[:100])
        finally:
            stream.close()
        return 0


def main(arguments: list[str], log: Log) -> int:
    given = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
    address = parse_address(given["listen"])
    assert address
    plan = Plan(int(given["workers"]), Capacity(0), float(given["drain-timeout"]))
    entrances = [Listener(listen_on(address, int(given["port"])))]
    notifier = Notifier(int(given["notify-fd"]))
    return 0 if Supervisor(Echo(log), entrances, plan, notifier, log).run() else 111


tool = types.ModuleType("muonsocks.tools.echo_server")
tool.main = main  # type: ignore[attr-defined]
sys.modules[tool.__name__] = tool
tools.run("echo_server", has_peer=False)
