"""A program that knows nothing of proxies: python3 unaware_program.py WHAT HOST PORT [MORE]

What it does is one of the functions below, which print what came of it.
"""

import asyncio
import contextlib
import ftplib
import hashlib
import http.client
import multiprocessing
import selectors
import smtplib
import socket
import ssl
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor

what, host, port, *more = sys.argv[1:]
SIZE = 50_000
SECONDS = 30


def digest(data: bytes) -> str:
    return f"{len(data)} {hashlib.sha256(data).hexdigest()[:16]}"


def get(scheme: str = "http", **named: object) -> str:
    url = f"{scheme}://{host}:{port}/{SIZE}"
    with urllib.request.urlopen(url, timeout=SECONDS, **named) as answer:  # type: ignore[arg-type]
        return digest(answer.read())


def http_by_urllib() -> None:
    print(get())


def https_by_urllib() -> None:
    print(get("https", context=ssl.create_default_context(cafile=more[0])))


def http_by_client() -> None:
    by_client(http.client.HTTPConnection(host, int(port), timeout=SECONDS))


def https_by_client() -> None:
    context = ssl.create_default_context(cafile=more[0])
    by_client(http.client.HTTPSConnection(host, int(port), timeout=SECONDS, context=context))


def by_client(connection: http.client.HTTPConnection) -> None:
    connection.connect()
    peer = connection.sock.getpeername()
    name, _ = socket.getnameinfo(peer, socket.NI_NAMEREQD)
    print(name == host, peer[1] == int(port), socket.gethostbyaddr(peer[0])[0] == host)
    connection.request("GET", f"/{SIZE}")
    print(digest(connection.getresponse().read()))
    connection.close()


def tls_that_connects_itself() -> None:
    context = ssl.create_default_context(cafile=more[0])
    with context.wrap_socket(socket.socket(), server_hostname=host) as sock:
        assert sock.connect_ex((socket.gethostbyname(host), int(port))) == 0
        name, _ = socket.getnameinfo(sock.getpeername(), socket.NI_NAMEREQD)
        assert name == host
        sock.sendall(f"GET /{SIZE} HTTP/1.0\r\n\r\n".encode())
        print(digest(sock.makefile("rb").read().partition(b"\r\n\r\n")[2]))


def by_requests() -> None:
    import requests  # type: ignore[import-untyped]

    print(digest(requests.get(f"http://{host}:{port}/{SIZE}", timeout=SECONDS).content))


def threads() -> None:
    with ThreadPoolExecutor(8) as pool:
        print(set(pool.map(lambda _: get(), range(30))))


def in_asyncio() -> None:
    async def one(**named: object) -> str:
        reader, writer = await asyncio.open_connection(host, int(port), **named)
        assert socket.getnameinfo(writer.get_extra_info("peername"), 0)[0] == host
        writer.write(f"GET /{SIZE} HTTP/1.0\r\n\r\n".encode())
        data = await reader.read()
        writer.close()
        return digest(data.partition(b"\r\n\r\n")[2])

    async def several() -> None:
        context = ssl.create_default_context(cafile=more[0]) if more else None
        print(set(await asyncio.gather(*(one(ssl=context) for _ in range(20)))))

    asyncio.run(several())


def with_selectors() -> None:
    with socket.socket() as sock, selectors.DefaultSelector() as selector:
        sock.setblocking(False)
        assert sock.connect_ex((host, int(port))) == 115  # EINPROGRESS
        selector.register(sock, selectors.EVENT_WRITE)
        assert selector.select(SECONDS)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        sock.sendall(f"GET /{SIZE} HTTP/1.0\r\n\r\n".encode())
        sock.setblocking(True)
        print(digest(sock.makefile("rb").read().partition(b"\r\n\r\n")[2]))


def processes() -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print(set(pool.map(_get, range(4))))


def _get(_: int) -> str:
    return get()


def child() -> None:
    command = ["curl", "-sS", f"http://{host}:{port}/{SIZE}"]
    print(digest(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))


def passive_ftp() -> None:
    with ftplib.FTP(timeout=SECONDS) as ftp:
        ftp.connect(host, int(port))
        ftp.login()
        pieces: list[bytes] = []
        ftp.retrbinary("RETR file", pieces.append)
        print(digest(b"".join(pieces)), ftp.nlst())


def mail() -> None:
    with smtplib.SMTP(host, int(port), timeout=SECONDS) as smtp:
        print(smtp.noop())


def datagrams() -> None:
    address = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)[0][4]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(SECONDS)
        sock.sendto(b"to an address", address)
        print(sock.recvfrom(100)[0])
        sock.sendto(b"to a name", (host, int(port)))
        print(sock.recvfrom(100)[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(SECONDS)
        sock.connect(address)
        sock.send(b"connected")
        print(sock.recv(100))

    class Client(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, _: object) -> None:
            received.set_result(data)

    async def run() -> None:
        global received
        loop = asyncio.get_running_loop()
        received = loop.create_future()
        transport, _ = await loop.create_datagram_endpoint(Client, remote_addr=(host, int(port)))
        transport.sendto(b"in asyncio")
        print(await asyncio.wait_for(received, SECONDS))
        transport.close()

    asyncio.run(run())


received: "asyncio.Future[bytes]"


def own_host() -> None:
    with socket.create_server(("", 0)) as server:
        at = server.getsockname()[1]

        def serve() -> None:
            conn, _ = server.accept()
            conn.sendall(b"hello")
            conn.close()

        for name in ("127.0.0.1", "localhost", "0.0.0.0"):
            thread = threading.Thread(target=serve)
            thread.start()
            with socket.create_connection((name, at), SECONDS) as sock:
                print(sock.recv(5, socket.MSG_WAITALL))
            thread.join()
    a, b = socket.socketpair()
    with a, b:
        a.send(b"pair")
        print(b.recv(4), [a.getsockname()])


def ways_around() -> None:
    """Try what must not work, and ask what nobody may be asked."""
    attempts = [
        lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP),
        lambda: socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_UDP),
        lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM),
        lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6),
        lambda: sock.sendto(b"x", socket.MSG_FASTOPEN, ("192.0.2.2", 80)),
        lambda: sock.sendmsg([b"x"], [], socket.MSG_FASTOPEN, ("192.0.2.2", 80)),
        lambda: sock.connect(("198.18.77.77", 80)),
        lambda: socket.gethostbyaddr("192.0.2.2"),
        lambda: socket.getnameinfo(("192.0.2.2", 80), socket.NI_NAMEREQD),
        lambda: socket.create_connection(("fe80::1", 80), SECONDS),
        lambda: socket.create_connection((f"absent.{host}", 80), SECONDS),
    ]
    sock = socket.socket()
    for attempt in attempts:
        try:
            print("IT HAS WORKED", attempt())  # type: ignore[no-untyped-call]
        except OSError as error:
            print(type(error).__name__)
    sock.close()
    print(socket.getfqdn("short"), socket.getfqdn("192.0.2.2"), bool(socket.getfqdn()))
    with contextlib.suppress(OSError):
        socket.gethostbyname(socket.gethostname())


globals()[what]()
