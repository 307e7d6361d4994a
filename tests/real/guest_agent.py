"""What runs in the virtual machine: starts programs for the host, and names the virtio ports.

The host speaks to it over a virtio port of its own, in lines of JSON. Numbers are the host's names
for the programs it starts, data is in base64:

    host                                     guest
                                             {"ready": true}              when it has booted
    {"hello": word}                          {"hello": word}
                                             {"ports": {NAME: DEVICE}}    now, and when they change
    {"start": 1, "command": ["cat"]}
    {"input": 1, "data": "aGk="}             {"output": 1, "stream": 1, "data": "aGk="}
    {"input": 1, "data": null}   (the end)
    {"signal": 1, "number": 15, "group": false}
                                             {"ended": 1, "status": -15}

A port knows nothing of connections: what a machine before a reset was sent, or had begun to say,
may be read after it. So either side takes no line before the hello that it knows to be new, and
each begins with an empty line, which ends any line that was torn.

Without udev, the links in /dev/virtio-ports are made as the kernel tells of the ports.
"""

import base64
import errno
import functools
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable

CONTROL = "org.muonsocks.control"
LINKS = "/dev/virtio-ports"
UDEV = "/usr/lib/systemd/systemd-udevd"
CLASS = "/sys/class/virtio-ports"
KERNEL_EVENTS = 15  # NETLINK_KOBJECT_UEVENT
MOST_WRITTEN = 32768  # bytes; the port takes no more at once
EDGES = select.EPOLLIN | select.EPOLLOUT | select.EPOLLET


class Agent:
    """One loop over the control port, the kernel's events, and the programs' pipes and ends."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._port = -1
        self._port_edges = select.epoll()  # for who waits to write
        self._greeted = False
        self._received = bytearray()
        self._programs: dict[int, int] = {}  # the host's number: process
        self._inputs: dict[int, int] = {}  # the host's number: descriptor
        self._unwritten: dict[int, list[bytes]] = {}  # by descriptor; b"" is the end
        self._outputs: dict[int, tuple[int, int]] = {}  # pipe: the host's number, 1 or 2
        self._ports: dict[str, str] = {}  # name: device

    def run(self) -> None:
        events = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, KERNEL_EVENTS)
        events.setblocking(False)
        events.bind((0, 1))  # before looking, so that no port comes in between
        self._link_ports()
        self._watch(events.fileno(), lambda: self._on_kernel_event(events))
        while True:
            for descriptor, _ in self._epoll.poll():
                # it may have been closed for one before it, or even be another by now
                if descriptor in self._handlers:
                    self._handlers[descriptor]()

    def _watch(
        self, descriptor: int, ready: Callable[[], None], events: int = select.EPOLLIN
    ) -> None:
        self._handlers[descriptor] = ready
        self._epoll.register(descriptor, events)

    def _unwatch(self, descriptor: int) -> None:
        del self._handlers[descriptor]
        self._epoll.unregister(descriptor)

    # -- ports

    def _on_kernel_event(self, events: socket.socket) -> None:
        try:
            while True:
                events.recv(65536)
        except BlockingIOError:
            pass
        except OSError as error:  # ENOBUFS: some were lost, which is as good as one
            say(f"kernel events: {error}")
        self._link_ports()

    def _link_ports(self) -> None:
        """Have /dev/virtio-ports as the kernel has it; a port gets its name after it appears."""
        ports = {}
        for device in os.listdir(CLASS) if os.path.isdir(CLASS) else ():
            try:
                with open(f"{CLASS}/{device}/name") as file:
                    ports[file.read().strip()] = device
            except OSError as error:  # ENODEV: it went between the opening and the reading
                if error.errno not in (errno.ENOENT, errno.ENODEV):
                    raise
        if ports == self._ports:
            return
        if not os.path.exists(UDEV):
            for name in self._ports.keys() - ports.keys():
                os.unlink(f"{LINKS}/{name}")
            for name, device in ports.items() - self._ports.items():
                os.symlink(f"../{device}", f"{LINKS}/new")
                os.rename(f"{LINKS}/new", f"{LINKS}/{name}")
        self._ports = ports
        if CONTROL in ports and self._port < 0:
            self._port = os.open(f"/dev/{ports[CONTROL]}", os.O_RDWR | os.O_NONBLOCK)
            self._watch(self._port, self._on_port, EDGES)
            self._port_edges.register(self._port, EDGES)
            self._send({"ready": True}, b"\n")
        if self._greeted:
            self._send({"ports": ports})

    # -- the host

    def _on_port(self) -> None:
        try:
            while data := os.read(self._port, 65536):  # b"" is a host that is away for now
                self._received += data
        except BlockingIOError:
            pass
        *lines, rest = self._received.split(b"\n")
        self._received = bytearray(rest)
        for line in lines:
            self._take(bytes(line))

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            if self._greeted:
                raise
            return  # the end of what was for the machine before the reset
        if "hello" in message:
            self._greeted = True
            self._send(message, b"\n")
            self._send({"ports": self._ports})
        elif not self._greeted:
            return
        elif "start" in message:
            self._start(message["start"], message["command"])
        elif "input" in message:
            self._input(message["input"], message["data"])
        elif "signal" in message and message["signal"] in self._programs:
            process = self._programs[message["signal"]]
            try:
                (os.killpg if message["group"] else os.kill)(process, message["number"])
            except ProcessLookupError:
                pass  # it has ended, and the host is about to hear of it

    def _send(self, message: object, before: bytes = b"") -> None:
        """Send a line. Nothing else is done until it has gone; the host reads, whatever it does."""
        line = before + json.dumps(message).encode() + b"\n"
        while line:
            try:
                line = line[os.write(self._port, line[:MOST_WRITTEN]) :]
            except BlockingIOError:
                self._port_edges.poll()

    # -- programs

    def _start(self, number: int, command: list[str]) -> None:
        pipes = [os.pipe() for _ in range(3)]
        theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
        ours = [pipes[0][1], pipes[1][0], pipes[2][0]]
        try:
            process = os.posix_spawnp(
                command[0],
                command,
                os.environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, end, fd) for fd, end in enumerate(theirs)],
                setsid=True,
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # Python ignores them
            )
        except OSError as error:
            for end in ours:
                os.close(end)
            self._send_output(number, 2, f"{error}\n".encode())
            self._send({"ended": number, "status": 127})
            return
        finally:
            for end in theirs:
                os.close(end)
        for end in ours:
            os.set_blocking(end, False)
        self._programs[number] = process
        self._inputs[number] = ours[0]
        self._unwritten[ours[0]] = []
        for stream in (1, 2):
            self._outputs[ours[stream]] = number, stream
            self._watch(ours[stream], functools.partial(self._on_output, ours[stream]))
        ended = os.pidfd_open(process)
        self._watch(ended, lambda: self._on_end(number, ended))

    def _on_output(self, pipe: int) -> None:
        try:
            data = os.read(pipe, 65536)
        except BlockingIOError:
            return
        if data:
            self._send_output(*self._outputs[pipe], data)
        else:
            self._unwatch(pipe)
            del self._outputs[pipe]
            os.close(pipe)

    def _send_output(self, number: int, stream: int, data: bytes) -> None:
        said = base64.b64encode(data).decode()
        self._send({"output": number, "stream": stream, "data": said})

    def _on_end(self, number: int, ended: int) -> None:
        process, status = os.waitpid(self._programs[number], os.WNOHANG)
        if not process:
            return
        del self._programs[number]
        for pipe, (owner, _) in list(self._outputs.items()):
            if owner == number:
                self._on_output(pipe)  # all that a pipe holds; its children may yet say more
        self._unwatch(ended)
        os.close(ended)
        if number in self._inputs:
            self._close_input(number)
        self._send({"ended": number, "status": os.waitstatus_to_exitcode(status)})

    def _input(self, number: int, data: str | None) -> None:
        if number not in self._inputs:
            return  # it has ended, or does not read
        pipe = self._inputs[number]
        self._unwritten[pipe].append(base64.b64decode(data) if data else b"")
        if pipe not in self._handlers:
            self._watch(pipe, lambda: self._on_input(number, pipe), select.EPOLLOUT)

    def _on_input(self, number: int, pipe: int) -> None:
        first, *rest = self._unwritten[pipe]
        try:
            written = os.write(pipe, first) if first else 0
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._close_input(number)
            return
        if not first:
            self._close_input(number)
        elif written < len(first):
            self._unwritten[pipe][0] = first[written:]
        else:
            self._unwritten[pipe] = rest
            if not rest:
                self._unwatch(pipe)

    def _close_input(self, number: int) -> None:
        pipe = self._inputs.pop(number)
        del self._unwritten[pipe]
        if pipe in self._handlers:
            self._unwatch(pipe)
        os.close(pipe)


def say(text: str) -> None:
    print(f"agent: {text}", file=sys.stderr)


if __name__ == "__main__":
    Agent().run()
