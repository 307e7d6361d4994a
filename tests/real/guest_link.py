"""The host's end of the port by which programs are run in a virtual machine (guest_agent.py).

A thread reads what the guest says. Everybody who waits has a deadline, and is told when the guest
is gone: its programs are lost when it is reset, and nothing more comes when the emulator has ended.
"""

import base64
import itertools
import json
import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable

SECONDS = 60  # for a wait, unless told
SEND_SECONDS = 60  # a guest that is paused takes nothing
PIECE = 48 * 1024  # bytes of input in a line


class GuestGone(Exception):
    """The virtual machine was reset or has ended, and with it what ran there."""


class Process:
    """A program in the guest. `stdout` and `stderr` are what it has said until now."""

    def __init__(self, link: "Link", number: int, command: tuple[str, ...]) -> None:
        self.command = command
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.returncode: int | None = None  # minus the signal, as in subprocess
        self._link = link
        self._number = number
        self._lost = False
        self._taken = 0  # bytes of stdout, as lines

    def wait(self, timeout: float = SECONDS) -> int:
        """The exit status, once there is one; all the output of the process has come by then."""
        self._until(lambda: self.returncode is not None, timeout)
        assert self.returncode is not None
        return self.returncode

    def wait_for(self, text: bytes, timeout: float = SECONDS) -> None:
        """Wait until `text` stands in what it said; AssertionError when it ends without it."""
        self._until(lambda: self.returncode is not None or self._said(text), timeout)
        assert self._said(text), f"{self} ended with {self.returncode} and no {text!r}"

    def read_line(self, timeout: float = SECONDS) -> str:
        """The next line of its standard output; AssertionError when it ends without one."""
        start = self._taken
        self._until(lambda: self.returncode is not None or b"\n" in self.stdout[start:], timeout)
        line, newline, _ = self.stdout[start:].partition(b"\n")
        assert newline, f"{self} ended with {self.returncode} and no line"
        self._taken += len(line) + 1
        return line.decode()

    def kill(self, number: int = signal.SIGKILL, *, group: bool = False) -> None:
        """Send a signal to the process, or also to all that it has started, unless it has ended."""
        self._link.send({"signal": self._number, "number": int(number), "group": group})

    def write(self, data: bytes) -> None:
        for at in range(0, len(data), PIECE):
            piece = base64.b64encode(data[at : at + PIECE]).decode()
            self._link.send({"input": self._number, "data": piece})

    def close_input(self) -> None:
        self._link.send({"input": self._number, "data": None})

    def __repr__(self) -> str:
        said = (self.stdout + self.stderr).decode(errors="replace")
        return f"$ {' '.join(self.command)}\n{said}"

    def _said(self, text: bytes) -> bool:
        return text in self.stdout or text in self.stderr

    def _until(self, condition: Callable[[], bool], timeout: float) -> None:
        if not self._link.until(lambda: self._lost or condition(), timeout):
            said = bytes(self.stdout), bytes(self.stderr)
            raise subprocess.TimeoutExpired(self.command, timeout, *said)
        if not condition():
            raise GuestGone(f"the guest was reset or has ended\n{self}")

    # what the link has read

    def on_output(self, stream: int, data: bytes) -> None:
        (self.stdout if stream == 1 else self.stderr).extend(data)

    def on_end(self, status: int) -> None:
        self.returncode = status

    def on_loss(self) -> None:
        self._lost = True


class Link:
    """The control port. `stream` is connected to it, and is closed with the link."""

    def __init__(self, stream: socket.socket) -> None:
        limit = struct.pack("ll", SEND_SECONDS, 0)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._stream = stream
        self._sending = threading.Lock()
        self._news = threading.Condition()
        self._numbers = itertools.count(1)
        self._processes: dict[int, Process] = {}
        self._word: str | None = None  # of the hello that is to be answered
        self._greeted = False
        self._ended = False
        self.ports: dict[str, str] = {}  # what the guest has in /dev/virtio-ports: name: device
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def close(self) -> None:
        """End the link and its thread; harmless to repeat."""
        if not self._ended:
            self._stream.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._stream.close()

    def start(self, command: tuple[str, ...]) -> Process:
        with self._news:
            if not self._greeted:
                raise GuestGone("no guest answers")
            number = next(self._numbers)
            process = self._processes[number] = Process(self, number, command)
        self.send({"start": number, "command": command})
        return process

    def running(self) -> list[Process]:
        with self._news:
            return [p for p in self._processes.values() if p.returncode is None]

    def forget(self) -> None:
        """The guest is about to be reset: what it says is of no account until it has booted."""
        with self._news:
            self._lose()

    def await_port(self, name: str, not_device: str | None, timeout: float) -> None:
        """Wait until a guest has booted, answers, and has a port; not_device is one before it.

        Raises TimeoutError, and GuestGone when the virtual machine has ended.
        """
        if not self.until(lambda: self.ports.get(name, not_device) != not_device, timeout):
            raise TimeoutError(f"the guest had no port {name} in {timeout:.0f} s")
        if name not in self.ports:
            raise GuestGone("the virtual machine has ended")

    def until(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Wait for a condition or for the end of the link; whether one of the two came to be."""
        with self._news:
            return self._news.wait_for(lambda: self._ended or condition(), timeout)

    def send(self, message: object) -> None:
        line = json.dumps(message).encode() + b"\n"
        try:
            with self._sending:
                self._stream.sendall(line)
        except BlockingIOError:
            raise TimeoutError(f"the guest took nothing in {SEND_SECONDS} s") from None
        except BrokenPipeError:
            raise GuestGone("the virtual machine has ended") from None

    def _read(self) -> None:
        try:
            with self._stream.makefile("rb") as lines:
                for line in lines:
                    self._take(line)
        except (ConnectionResetError, GuestGone):
            pass  # the emulator was killed
        with self._news:
            self._lose()
            self._ended = True
            self._news.notify_all()

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            return  # empty, or torn by a reset: the guest cannot say what it was about to
        with self._news:
            if "ready" in message:
                self._lose()
                self._word = os.urandom(8).hex()
            elif "hello" in message:
                self._greeted = message["hello"] == self._word
            elif self._greeted:
                self._dispatch(message)
            self._news.notify_all()
        if "ready" in message:
            # an empty line first: what the emulator has kept for the guest may be torn, too
            with self._sending:
                self._stream.sendall(b"\n")
            self.send({"hello": self._word})

    def _dispatch(self, message: dict[str, object]) -> None:
        match message:
            case {"output": int(number), "stream": int(stream), "data": str(data)}:
                self._processes[number].on_output(stream, base64.b64decode(data))
            case {"ended": int(number), "status": int(status)}:
                self._processes[number].on_end(status)
            case {"ports": dict(ports)}:
                self.ports = ports

    def _lose(self) -> None:
        self._greeted, self._word = False, None
        self.ports = {}
        for process in self._processes.values():
            process.on_loss()
        self._processes.clear()
