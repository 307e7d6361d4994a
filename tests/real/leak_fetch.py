"""A program that knows nothing of proxies: python3 leak_fetch.py HOW HOST PORT

How it fetches something is one of the functions below; it fails if it does not get all of it.
"""

import asyncio
import contextlib
import errno
import os
import select
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

SIZE, SECONDS = 1000, 20
how, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
REQUEST = f"GET /{SIZE} HTTP/1.0\r\n\r\n".encode()


def once(_: int = 0) -> None:
    converse(socket.create_connection((host, port), SECONDS))


def converse(sock: socket.socket) -> None:
    with sock:
        sock.sendall(REQUEST)
        answer = bytearray()
        while data := sock.recv(65536):
            answer += data
    assert len(answer) > SIZE, answer


def blocking() -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.connect((host, port))
        converse(sock)


def threads() -> None:
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(once, range(20)))


def in_asyncio() -> None:
    async def one() -> None:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(REQUEST)
        assert len(await reader.read()) > SIZE
        writer.close()
        await writer.wait_closed()

    async def all() -> None:
        await asyncio.gather(*(one() for _ in range(200)))

    asyncio.run(all())


def by_poll() -> None:
    def wait(sock: socket.socket) -> None:
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        assert poll.poll(SECONDS * 1000)

    non_blocking(wait)


def by_select() -> None:
    non_blocking(lambda sock: select.select([], [sock], [], SECONDS))


def by_epoll() -> None:
    def wait(sock: socket.socket) -> None:
        with select.epoll() as epoll:
            epoll.register(sock, select.EPOLLOUT | select.EPOLLET)
            assert epoll.poll(SECONDS)

    non_blocking(wait)


def by_epoll_level() -> None:
    """Told again and again, until it is asked."""

    def wait(sock: socket.socket) -> None:
        with select.epoll() as epoll:
            epoll.register(sock, select.EPOLLOUT | select.EPOLLIN)
            for _ in range(3):
                assert epoll.poll(SECONDS) == [(sock.fileno(), select.EPOLLOUT)]

    non_blocking(wait)


def non_blocking(wait) -> None:  # type: ignore[no-untyped-def]
    address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(address[0], socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    sock.connect_ex(address[4])
    wait(sock)
    assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    sock.setblocking(True)
    converse(sock)


def fork() -> None:
    children = []
    for _ in range(5):
        if not (pid := os.fork()):
            once()
            os._exit(0)
        children.append(pid)
    for pid in children:
        assert not os.waitpid(pid, 0)[1]


def daemonise() -> None:
    """Connect when nobody of those is there any more who have started it."""
    reader, writer = os.pipe()
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    os.close(writer)
    os.chdir("/")
    while os.read(reader, 1):  # up to the end: the parents are gone
        pass
    time.sleep(0.3)  # and the one who waits for them, too
    once()


def again(*words: str) -> None:
    os.execvp(words[0], [*words, sys.executable, __file__, "once", host, str(port)])


def by_exec() -> None:
    again("sh", "-c", 'exec env A=1 nice "$@"', "sh")


def in_session() -> None:
    again("setsid", "--wait")


def elsewhere() -> None:
    os.chdir("/proc/self")
    again("env", "-i", "PATH=/usr/bin:/bin")


def while_parents_run() -> None:
    command = [sys.executable, __file__, "once", host, str(port)]
    processes = [subprocess.Popen(command) for _ in range(5)]
    once()
    for process in processes:
        assert not process.wait()


def signals() -> None:
    """Be interrupted all the time by a timer, and go on with what has been interrupted."""
    import signal

    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.siginterrupt(signal.SIGALRM, False)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    for _ in range(20):
        once()
    signal.setitimer(signal.ITIMER_REAL, 0)


def told() -> None:
    """Tell what comes of a connection, by a call that blocks, and by one that does not."""
    sock = socket.socket()
    print(errno.errorcode.get(number := sock.connect_ex((host, port)), number), end=" ")
    sock = socket.socket()
    sock.setblocking(False)
    number = sock.connect_ex((host, port))
    if number == errno.EINPROGRESS:
        assert select.select([], [sock], [], SECONDS)[1]
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    print(errno.errorcode.get(number, number))


def over_and_over() -> None:
    """Connect, and send datagrams, for as long as somebody has not closed our input, and a second
    more; tell who our parent is, and what has come of those in that second.
    """
    found = set[str]()

    def repeat(number: int) -> None:
        while time.monotonic() < end:
            counts = end < float("inf")
            try:
                with socket.socket(type=socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
                    sock.sendto(REQUEST, (host, port))
                with socket.socket() as sock:
                    sock.setblocking(bool(number % 2))
                    came = sock.connect_ex((host, port))
            except OSError as error:
                came = error.errno or 0
            if counts:
                found.add(errno.errorcode.get(came, "connected"))

    end = float("inf")
    with ThreadPoolExecutor(4) as pool:
        for number in range(4):
            pool.submit(repeat, number)
        print(os.getppid(), flush=True)
        sys.stdin.read()
        end = time.monotonic() + 1
    print(*sorted(found))


globals()[how]()
