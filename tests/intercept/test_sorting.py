"""Listeners of IPv4 and of IPv6 at one path: each gets clients of its own, as they are."""

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from preloaded import hears, server
from programs import SECONDS
from real_server import until
from senders import pass_on

# What all of them begin with: servers as nginx and sshd are, which bind both.
BOTH = """
def both(hosts=("0.0.0.0", "::")):
    for host in hosts:
        s = socket(AF_INET6 if ":" in host else AF_INET)
        if ":" in host: s.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, 1)
        s.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1); s.bind((host, 8000)); yield s
def told(s):
    c, a = s.accept()
    say(s.family.name, a[0], c.getpeername() == a, c.getsockname()[0]); c.sendall(b"hello")
"""
IN_LOOP = (
    BOTH
    + """
e = select.epoll(); made = {}
for s in both(HOSTS):
    s.listen(); s.setblocking(False); e.register(s, select.EPOLLIN); made[s.fileno()] = s
say("ready", *(s.getsockname()[0] for s in made.values()))
while True:
    for fd, _ in e.poll():
        try: told(made[fd])
        except BlockingIOError: pass
"""
)
IN_THREADS = (
    BOTH
    + """
def serve(s):
    while True: told(s)
for s in both(HOSTS): s.listen(); threading.Thread(target=serve, args=(s,), daemon=True).start()
say("ready", *HOSTS); sys.stdin.readline()
"""
)
ORDERS = [("0.0.0.0", "::"), ("::", "0.0.0.0")]


class Way:
    """A port for clients of both families, who are passed on to a path."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._listener = socket.create_server(
            ("::", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512
        )

    def client(self, host: str) -> socket.socket:
        """Come from an address, and be passed on."""
        client = socket.create_connection((host, self._listener.getsockname()[1]), SECONDS)
        with self._listener.accept()[0] as conn:
            until("there is room", lambda: self._is_passed_on(conn))
        return client

    def _is_passed_on(self, conn: socket.socket) -> bool:
        try:
            pass_on(self._path, conn.fileno())
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def way(path: str) -> Iterator[Way]:
    with contextlib.closing(Way(path)) as way:
        yield way


def expected(host: str) -> str:
    family = "AF_INET6" if ":" in host else "AF_INET"
    return f"{family} {host} True {host}"


@pytest.mark.parametrize("hosts", ORDERS, ids=str)
@pytest.mark.parametrize("code", [IN_LOOP, IN_THREADS], ids=["loop", "threads"])
def test_each_gets_its_own(path: str, way: Way, code: str, hosts: tuple[str, str]) -> None:
    with server(path, f"HOSTS = {hosts!r}{code}") as there:
        assert there.line() == f"ready {' '.join(hosts)}"
        for host in ("127.0.0.1", "::1", "::1", "127.0.0.1", "::1"):
            with way.client(host) as client:
                assert there.line() == expected(host)
                assert hears(client)


def test_many_come_at_once(path: str, way: Way) -> None:
    """More than either queue has room for: nobody is lost, and nobody is taken for another."""
    with server(path, f"HOSTS = {ORDERS[0]!r}{IN_LOOP}") as there:
        there.line()
        hosts = [*("::1", "127.0.0.1") * 30, *("::1",) * 30]
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(way.client(host)) for host in hosts]
            assert sorted(there.line() for _ in hosts) == sorted(map(expected, hosts))
            assert all(map(hears, clients))


def test_processes_share_both(path: str, way: Way) -> None:
    end_together = "ctypes.CDLL(None).prctl(1, 9)"  # PR_SET_PDEATHSIG
    fork = f"import ctypes\nfor _ in range(3): os.fork() or {end_together}\n"
    code = IN_LOOP.replace("while True:", f"{fork}while True:", 1)
    with server(path, f"HOSTS = {ORDERS[0]!r}{code}") as there:
        there.line()
        hosts = ("::1", "127.0.0.1") * 10
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(way.client(host)) for host in hosts]
            assert all(map(hears, clients))
        assert sorted(there.line() for _ in hosts) == sorted(map(expected, hosts))
    # The supervisor stays until the last of them has ended.
    until("nobody is left", lambda: subprocess.run(["pgrep", "-f", path]).returncode)


@pytest.mark.parametrize("is_closed", [False, True])
def test_who_does_not_listen_is_not_waited_for(path: str, way: Way, is_closed: bool) -> None:
    """Not yet, or not any more: the other one has them, as a listener for IPv4 alone has."""
    code = f"""{BOTH}
first, second = both(); first.listen(); {"second.listen(); second.close()" if is_closed else ""}
say("ready"); told(first)
if {is_closed}: second = next(both(("::",)))
second.listen(); say("ready"); first.setblocking(False)
sys.stdin.readline(); say(failure(first.accept)); told(second)
"""
    with server(path, code) as there:
        assert there.line() == "ready"
        with way.client("::1") as client:
            assert there.line() == "AF_INET 0.0.0.0 True 0.0.0.0"
            assert hears(client)
        assert there.line() == "ready"
        with way.client("::1") as client:
            there.tell()
            assert there.line() == "EAGAIN"
            assert there.line() == expected("::1")
            assert hears(client)


def test_several_of_each_family(path: str, way: Way) -> None:
    """Which share their queue."""
    hosts = ("127.0.0.1", "::1", "127.0.0.2", "::2")
    with server(path, f"HOSTS = {hosts!r}{IN_LOOP}") as there:
        assert there.line().startswith("ready 127.0.0.1 ::1 ")
        for host in ("::1", "127.0.0.1") * 3:
            with way.client(host) as client:
                assert there.line() == expected(host)
                assert hears(client)


def test_an_address_is_in_use(path: str, way: Way) -> None:
    code = f"""{BOTH}
first, second = both(); s = socket(AF_INET6); say(failure(s.bind, ("::", 8000)))
first.listen(); second.listen(); say("ready")
for s in (second, first): told(s)
"""
    with server(path, code) as there:
        assert there.line() == "EADDRINUSE"
        assert there.line() == "ready"


def test_who_is_readable_has_a_client(path: str, way: Way) -> None:
    """So that who asks select(2) first may wait in accept(2)."""
    code = f"""{BOTH}
all = list(both())
for s in all: s.listen()
say("ready")
while True:
    for s in select.select(all, [], [])[0]: told(s)
"""
    with server(path, code) as there:
        assert there.line() == "ready"
        for host in ("::1", "127.0.0.1", "::1"):
            with way.client(host) as client:
                assert there.line() == expected(host)
                assert hears(client)


def test_who_waits_already_waits_on(path: str, way: Way) -> None:
    """A thread is in accept(2) when the other one is bound."""
    code = f"""{BOTH}
pair = both(HOSTS); first = next(pair); first.listen()
threading.Thread(target=lambda: [told(first) for _ in range(2)]).start()
sys.stdin.readline()
second = next(pair); second.listen(); say("ready"); told(second)
"""
    with server(path, f"HOSTS = {ORDERS[0]!r}{code}") as there:
        until("it waits", lambda: os.path.exists(path))
        with way.client("127.0.0.1") as client:
            assert there.line() == expected("127.0.0.1")
            assert hears(client)
        there.tell()
        assert there.line() == "ready"
        for host in ("::1", "127.0.0.1"):
            with way.client(host) as client:
                assert there.line() == expected(host)
                assert hears(client)


@pytest.mark.parametrize("is_bound_again", [True, False])
@pytest.mark.parametrize("hosts", ORDERS, ids=str)
def test_the_first_is_closed(
    path: str, way: Way, hosts: tuple[str, str], is_bound_again: bool
) -> None:
    """The other one goes on, with the clients of both as long as it is alone."""
    again = "made[0] = next(both(HOSTS[:1])); made[0].listen(); made[0].setblocking(False)"
    code = f"""{BOTH}
made = list(both(HOSTS))
for s in made: s.listen(); s.setblocking(False)
made[0].close(); made[0] = None
{again if is_bound_again else ""}
made = [s for s in made if s]
say("ready")
while True:
    for s in select.select(made, [], [])[0]: told(s)
"""
    with server(path, f"HOSTS = {hosts!r}{code}") as there:
        assert there.line() == "ready"
        for host in ("127.0.0.1", "::1", "127.0.0.1"):
            is_its_own = is_bound_again or (":" in host) == (":" in hosts[1])
            with way.client(host) as client:
                line = there.line()
                assert hears(client)
            if is_its_own:
                assert line == expected(host)
            else:
                shown = "0.0.0.0" if ":" in host else f"::ffff:{host}"
                family = "AF_INET" if ":" in host else "AF_INET6"
                assert line == f"{family} {shown} True {shown}"


@pytest.mark.parametrize("which", ["child", "parent"])
def test_another_process_has_the_first(path: str, way: Way, which: str) -> None:
    """Then they share a queue, and everybody is shown as far as there is room for it."""
    code = f"""{BOTH}
pair = both(HOSTS); r, w = os.pipe()
if {which == "parent"}: first = next(pair)
pid = os.fork()
if pid:
    if {which == "child"}:
        os.read(r, 1); second = list(both(HOSTS[1:]))[0]
        second.listen(); s = second
    else: os.read(r, 1); s = first; s.listen()
else:
    import ctypes; ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG
    if {which == "child"}: first = next(pair); first.listen(); s = first
    else: s = list(both(HOSTS[1:]))[0]; s.listen()
    os.write(w, b"x")
if pid: say("ready")
while True:
    c, a = s.accept(); say(a[0]); c.sendall(b"hello")
"""
    with server(path, f"HOSTS = {ORDERS[0]!r}{code}") as there:
        assert there.line() == "ready"
        for host in ("127.0.0.1", "::1") * 4:
            with way.client(host) as client:
                assert there.line() in (host, "0.0.0.0" if ":" in host else host)
                assert hears(client)


def test_both_are_closed(path: str, way: Way) -> None:
    """Then nobody is there: who passes clients on is told that."""
    code = f"""{BOTH}
pair = list(both()); [s.listen() for s in pair]; [s.close() for s in pair]
say("closed"); sys.stdin.readline()
pair = list(both()); [s.listen() for s in pair]; say("ready")
for s in pair: told(s)
"""
    with server(path, code) as there:
        assert there.line() == "closed"
        with way.client("::1") as client:
            client.settimeout(SECONDS)
            assert not hears(client)
        with pytest.raises(OSError, match=r"refused|No such file"):
            way.client("::1")
        there.tell()
        assert there.line() == "ready"
        for host in ("127.0.0.1", "::1"):
            with way.client(host) as client:
                assert there.line() == expected(host)
                assert hears(client)


def test_one_is_not_accepted_from(path: str, way: Way) -> None:
    """It holds up nobody, and keeps those that have come."""
    code = f"""{BOTH}
first, second = both(); first.listen(); second.listen(); say("ready")
for _ in range(2): told(first)
while True: told(second)
"""
    with server(path, code) as there:
        assert there.line() == "ready"
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(way.client("::1")) for _ in range(60)]
            for _ in range(2):
                with way.client("127.0.0.1") as client:
                    assert there.line() == expected("127.0.0.1")
                    assert hears(client)
            assert {there.line() for _ in clients} == {expected("::1")}
            assert all(map(hears, clients))


def test_nothing_is_left_in_the_end(path: str, way: Way) -> None:
    with server(path, f"HOSTS = {ORDERS[0]!r}\nsay(os.getppid()){IN_LOOP}") as there:
        descriptors = f"/proc/{there.line()}/fd"  # of the supervisor
        there.line()
        before = len(os.listdir(descriptors))
        for host in ("::1", "127.0.0.1") * 20:
            with way.client(host) as client:
                there.line()
                assert hears(client)
        until("nothing more is open", lambda: len(os.listdir(descriptors)) <= before)
    until("its file is gone", lambda: not Path(path).exists())
