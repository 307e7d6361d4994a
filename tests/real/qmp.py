"""QEMU's monitor: one request after the other, in JSON (QEMU's documentation, "QMP reference")."""

import collections
import json
import socket

from guest_link import GuestGone

SECONDS = 60  # for an answer
EVENTS = 100  # kept, of those that nobody has waited for


class Monitor:
    """Talks to the monitor at the other end of a connected socket, which the caller closes."""

    def __init__(self, stream: socket.socket) -> None:
        """GuestGone when QEMU has ended, TimeoutError when it says nothing."""
        stream.settimeout(SECONDS)
        self._file = stream.makefile("rwb", buffering=0)
        self._events: collections.deque[dict[str, object]] = collections.deque(maxlen=EVENTS)
        self._next_message()  # its greeting
        self.ask("qmp_capabilities")

    def close(self) -> None:
        self._file.close()

    def ask(self, command: str, **arguments: object) -> object:
        """What QEMU answers; RuntimeError, with its reason, when it does not do it."""
        request = json.dumps({"execute": command, "arguments": arguments})
        try:
            self._file.write(request.encode())
        except BrokenPipeError:
            raise GuestGone("the virtual machine has ended") from None
        while True:
            match self._next_message():
                case {"return": answer}:
                    return answer
                case {"error": {"desc": why}}:
                    raise RuntimeError(f"QEMU does not {command}: {why}")
                case event:
                    self._events.append(event)

    def await_event(self, name: str, **data: object) -> None:
        """Wait for an event with this in its data, unless it has come already."""
        while True:
            event = self._events.popleft() if self._events else self._next_message()
            match event:
                case {"event": str(kind), "data": dict(found)}:
                    if kind == name and data.items() <= found.items():
                        return

    def _next_message(self) -> dict[str, object]:
        try:
            line = self._file.readline()
        except ConnectionResetError:
            line = b""
        if not line:
            raise GuestGone("the virtual machine has ended")
        message: dict[str, object] = json.loads(line)
        return message
