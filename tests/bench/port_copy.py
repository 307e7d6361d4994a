"""A plain copy between a virtio-serial port and one TCP connection, for port.py.

port_copy.py guest PORT            accept on 127.0.0.1; /dev/virtio-ports/org.muonsocks.0
port_copy.py host SOCKET PORT      the unix socket of QEMU's; connect to 127.0.0.1
"""

import os
import select
import socket
import sys

DEVICE = "/dev/virtio-ports/org.muonsocks.0"
SIZE = 1 << 16


def copy(connection: int, port: int) -> None:
    """Copy both ways, until the connection ends."""
    poller = select.poll()
    poller.register(connection, select.POLLIN)
    poller.register(port, select.POLLIN)
    while True:
        for fd, _ in poller.poll():
            data = os.read(fd, SIZE)
            if fd == connection and not data:
                return
            sink = port if fd == connection else connection
            while data:
                data = data[os.write(sink, data) :]


def main(side: str, *where: str) -> None:
    if side == "guest":
        port = os.open(DEVICE, os.O_RDWR)
        with socket.create_server(("127.0.0.1", int(where[0]))) as listener:
            print("ready", flush=True)
            connection, _ = listener.accept()
    else:
        stream = socket.socket(socket.AF_UNIX)
        stream.connect(where[0])
        port = stream.detach()
        select.select([port], [], [])
        connection = socket.create_connection(("127.0.0.1", int(where[1])))
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        copy(connection.fileno(), port)


if __name__ == "__main__":
    main(*sys.argv[1:])
