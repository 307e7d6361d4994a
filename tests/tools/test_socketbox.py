"""socketbox as a real process: what it passes on, to whom, and what becomes of those that wait."""

import contextlib
import itertools
import os
import re
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest
from box import (
    SOCKETBOX,
    Receiver,
    boxed,
    is_served,
    new_receiver,
    queue_length,
    receiver,
    served_by,
    status_of,
)
from ends import descriptors
from places import in_own_network, root_only, sh
from programs import SECONDS, environment
from real_server import ADDRESS, MUONSOCKS, Server, ended, free_port, resident_memory, until

# The wire, byte for byte


def test_a_connection_over_ipv4(tmp_path: Path) -> None:
    path = tmp_path / "r"
    with receiver(path) as there, boxed("-S", str(path)) as box, box.connect() as client:
        got = there.message()
        with got.socket as served:
            assert (got.data, got.count, got.flags, got.sender) == (b"\0", 1, 0, None)
            assert got.blocking
            assert served.family == socket.AF_INET
            assert served.getsockname() == box.address
            assert served.getpeername() == client.getsockname()
            assert not served.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            client.sendall(b"you said")
            assert served.recv(8) == b"you said"
            served.sendall(b"hello")
            assert client.recv(5) == b"hello"
        assert client.recv(1) == b""  # nobody else has it open
        line = box.await_log("passed ")
    name = "{}:{}".format(*client_name(line))
    expected = rf"passed client={name} local={box.address[0]}:{box.address[1]} to={path} waited=0"
    assert re.search(expected, line), line


def client_name(line: str) -> tuple[str, str]:
    found = re.search(r"client=(\S+):(\d+) ", line)
    assert found
    return found[1], found[2]


def test_a_connection_over_ipv6(tmp_path: Path) -> None:
    path = tmp_path / "r"
    rules = tmp_path / "rules"
    rules.write_text(f"rule-set:0\nip:::1 rip:::1 jump-unix:{path}\n")
    with receiver(path) as there, boxed("-f", str(rules), host="::1") as box:
        with box.connect() as client, there.take() as served:
            assert served.family == socket.AF_INET6
            assert served.getpeername() == client.getsockname()
        box.await_log(rf"passed client=\[::1\]:\d+ local=\[::1\]:{box.address[1]} to={path} ")


def test_everything_on_one_socket() -> None:
    """As with the C program: `::` is for IPv4 as well, whose addresses the rules know."""
    path = f"@box-test-{os.getpid()}"
    port = free_port("127.0.0.1")
    with receiver(path) as there, served_by("-S", path, "-p", str(port)):
        for host, family in (("127.0.0.1", socket.AF_INET6), ("::1", socket.AF_INET6)):
            with socket.create_connection((host, port), SECONDS), there.take() as served:
                assert served.family == family


def test_ipv4_and_ipv6_apart(tmp_path: Path) -> None:
    path = str(tmp_path / "r")
    port = str(free_port("127.0.0.1"))
    with (
        receiver(path) as there,
        served_by("-S", path, "-p", port, "-l", "::", "-l", "0.0.0.0"),
        socket.create_connection(("127.0.0.1", int(port)), SECONDS),
        there.take() as served,
    ):
        assert served.family == socket.AF_INET


def test_ipv4_over_an_ipv6_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "r")
    port = str(free_port("127.0.0.1"))
    with (
        receiver(path) as there,
        served_by("-S", path, "-p", port, "-l", "::ffff:127.0.0.1"),
        socket.create_connection(("127.0.0.1", int(port)), SECONDS),
        there.take() as served,
    ):
        assert served.getsockname()[0] == "::ffff:127.0.0.1"


def test_rules_that_are_not_read(tmp_path: Path) -> None:
    """As with the C program, which does not even open them; here it is said."""
    path = tmp_path / "r"
    with receiver(path) as there, boxed("-S", str(path), "-f", "/no/such") as box:
        box.await_log("the rules of -f are not read: --send-to is for all")
        with box.connect(), there.take():
            pass


def test_several_addresses_and_ports(tmp_path: Path) -> None:
    path = str(tmp_path / "r")
    ports = [str(free_port("127.0.0.1")) for _ in range(2)]
    where = ["-l", "127.0.0.1", "-l", "127.0.0.2", *(f"--port={port}" for port in ports)]
    with receiver(path) as there, served_by("-S", path, *where):
        for host, port in itertools.product(("127.0.0.1", "127.0.0.2"), ports):
            with socket.create_connection((host, int(port)), SECONDS), there.take() as served:
                assert served.getsockname() == (host, int(port))


@pytest.mark.parametrize("fd", [0, 1])
@pytest.mark.parametrize("by", ["-i", "-f"])
def test_over_a_standard_stream(tmp_path: Path, fd: int, by: str) -> None:
    """If it is a socket, as a launcher may have made it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    rules = tmp_path / "rules"
    rules.write_text(f"rule-set:0\njump-fd:{fd}\n")
    before = ("bash", "-c", f'exec "$@" {fd}<&{theirs.fileno()}', "bash")
    options = ("-i", str(fd)) if by == "-i" else ("-f", str(rules))
    keep = (theirs.fileno(),)
    with (
        ours,
        theirs,
        boxed(*options, before=before, keep=keep) as box,
        box.connect(),
        Receiver(ours).take(),
    ):
        pass


def test_never_over_the_log() -> None:
    ours, theirs = socket.socketpair()
    command = ("bash", "-c", f'exec "$@" 2<&{theirs.fileno()}', "bash", SOCKETBOX)
    with ours, theirs:
        status, _ = ended("-i", "2", program=command, pass_fds=(theirs.fileno(),))
        assert status == 100
        assert b"-i: descriptor 2 is for the log; give another one" in ours.recv(1000)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_STREAM])
def test_over_a_descriptor(kind: int) -> None:
    """And when the other end is closed, that is the end, with a status of its own."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    there = Receiver(ours)
    number = str(theirs.fileno())
    port = free_port("127.0.0.1")
    with (
        theirs,
        served_by("-i", f"0{number}", "-p", f"00{port}", pass_fds=(theirs.fileno(),)) as process,
    ):
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", port), SECONDS) as client:
                got = there.message()
                assert (got.data, got.count) == (b"\0", 1)
                got.socket.close()
                assert client.recv(1) == b""
        theirs.close()
        ours.close()
        with socket.create_connection(("127.0.0.1", port), SECONDS) as client:
            assert client.recv(1) == b""
        assert process.wait(SECONDS) == 11
        assert f"descriptor {number} leads nowhere any more".encode() in process.stderr.read()


def test_over_what_leads_nowhere() -> None:
    """It is found before anybody comes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as alone, socket.socket() as tcp:
        for sock, what in ((alone, "not connected"), (tcp, "no unix socket")):
            fd = sock.fileno()
            status, lines = ended("-i", str(fd), program=(SOCKETBOX,), pass_fds=(fd,))
            problem = f"-i: descriptor {fd} is {what}; give one end of a unix socket"
            assert (status, lines) == (100, [f"socketbox: {problem}"])


def test_a_rule_that_names_the_descriptor_of_readiness(tmp_path: Path) -> None:
    """It is closed once it was written to, and its number another one's."""
    rules = tmp_path / "rules"
    rules.write_text("rule-set:0\n")
    with boxed("-f", str(rules)) as box:
        words = Path(f"/proc/{box.pid}/cmdline").read_text()
        [number] = re.findall("--notify-fd=([0-9]+)", words)
        rules.write_text(f"rule-set:0\njump-fd:{number}\n")
        box.signal(signal.SIGHUP)
        box.await_log("reloaded")
        with box.connect() as client:
            assert not is_served(client)
        box.await_log(f"jump-fd:{number}: no such descriptor was open at the start")


def test_a_rule_that_names_a_descriptor(tmp_path: Path) -> None:
    """If it goes away, others are served; and one that was not inherited is nobody's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    there = Receiver(ours)
    spare = tmp_path / "spare"
    rules = tmp_path / "rules"
    rules.write_text(
        f"rule-set:0\njump-fd:{theirs.fileno()} else jump-fd:4000 else jump-unix:{spare}\n"
    )
    with (
        receiver(spare) as other,
        theirs,
        boxed("-f", str(rules), keep=(theirs.fileno(),)) as box,
    ):
        with box.connect(), there.take():
            pass
        theirs.close()
        ours.close()
        with box.connect(), other.take():
            pass
        line = box.await_log(f"to={spare}")
        assert "it has gone; jump-fd:4000: no such descriptor was open at the start" in line


def test_a_rule_that_names_no_receiver(tmp_path: Path) -> None:
    """Such a descriptor gets nothing, not even a byte, and others have their turn."""
    rules = tmp_path / "rules"
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname(), SECONDS) as client,
        socket.socket(socket.AF_UNIX) as listening,
        open("/dev/null") as file,
        receiver(tmp_path / "spare") as other,
    ):
        conn, _ = listener.accept()
        listening.bind(str(tmp_path / "listening"))
        listening.listen()
        fds = [one.fileno() for one in (conn, listener, listening, file)]
        names = " else ".join(f"jump-fd:{fd}" for fd in fds)
        rules.write_text(f"rule-set:0\n{names} else jump-unix:{tmp_path}/spare\n")
        with conn, boxed("-f", str(rules), keep=tuple(fds)) as box:
            for _ in range(2):
                with box.connect(), other.take():
                    pass
            line = box.await_log("to=.*spare", 2)
            assert line.count("it is no unix socket to send over") == 3
            assert line.count("it is no socket: ") == 1
        assert client.recv(1) == b""


def test_paths_with_the_address_in_them(tmp_path: Path) -> None:
    pattern = f"{tmp_path}/g#//7_-p#//P_-a#//0_.s"  # which a Path would shorten
    port = free_port("::1")
    with (
        receiver(tmp_path / f"g00001-p{port:05}-a00000.s") as there,
        served_by("-U", "-S", pattern, "-l", "::1", "-p", str(port)),
        socket.create_connection(("::1", port), SECONDS),
        there.take(),
    ):
        pass


def test_paths_that_only_look_as_if() -> None:
    """Without -U they are what they are."""
    name = f"@box-#//7_-{os.getpid()}"
    with receiver(name) as there, boxed("-S", name) as box, box.connect(), there.take():
        pass


# Those that wait


@pytest.mark.parametrize("workers", [1, 3])
def test_more_than_the_queue_takes(tmp_path: Path, workers: int) -> None:
    """The C program serves eleven of them. All are, and in their turn if there is one worker."""
    path = tmp_path / "r"
    count = 200
    with receiver(path) as there, boxed("-S", str(path), workers=workers) as box:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(box.connect()) for _ in range(count)]
            box.await_log("passed", queue_length())
            names = []
            for _ in range(count):
                with there.take() as served:
                    names.append(served.getpeername())
                    served.sendall(b"hello")
            expected = [client.getsockname() for client in clients]
            assert (names if workers == 1 else sorted(names)) == (
                expected if workers == 1 else sorted(expected)
            )
            assert all(map(is_served, clients))
        box.await_log("passed", count)
        assert box.count("closed ") == 0


def test_a_receiver_that_is_away_for_a_moment(tmp_path: Path) -> None:
    path = tmp_path / "r"
    with boxed("-S", str(path)) as box, box.connect() as client:
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(SECONDS)
        with receiver(path) as there:
            there.serve()
            assert is_served(client)
        found = re.search(r"waited=(\S+)", box.await_log("passed"))
        assert found and float(found[1]) > 0.2


def test_time_is_up(tmp_path: Path) -> None:
    path = tmp_path / "r"
    with boxed("-S", str(path), "--queue-timeout=0.2") as box:
        with box.connect() as client:
            started = time.monotonic()
            assert client.recv(1) == b""
            assert time.monotonic() - started > 0.15
        line = box.await_log("closed ")
        assert f'reason="jump-unix:{path}: it is not there after 0.2 s; ' in line


def test_the_bound_on_those_that_wait(tmp_path: Path) -> None:
    """In all workers together."""
    path = tmp_path / "r"
    with boxed("-S", str(path), "--max-waiting=3", workers=2) as box:
        with contextlib.ExitStack() as stack:
            waiting = [stack.enter_context(box.connect()) for _ in range(6)]
            box.await_log("closed ", 3)
            with receiver(path) as there:
                for _ in range(3):
                    there.serve()
                assert sum(map(is_served, waiting)) == 3
        assert "connections wait already" in box.await_log("closed ")


def test_no_connection_waits(tmp_path: Path) -> None:
    with boxed("-S", str(tmp_path / "r"), "--max-waiting=0") as box, box.connect() as client:
        assert client.recv(1) == b""


def test_what_comes_after_else(tmp_path: Path) -> None:
    """The receiver is full for as long as it may be; then others have their turn."""
    first, second, spare = (tmp_path / name for name in ("first", "second", "spare"))
    rules = tmp_path / "rules"
    rules.write_text(
        f"rule-set:0\njump-rule:1 else jump-unix:{spare}\n"
        f"rule-set:1\njump-unix:{first} else jump-unix:{second}\n"
    )
    with receiver(spare) as there, boxed("-f", str(rules), "--queue-timeout=0.1") as box:
        with box.connect() as client:
            there.serve()
            assert is_served(client)
        line = box.await_log(f"to={spare} ")
        assert f"jump-unix:{first}: it is not there after 0.1 s; jump-unix:{second}" in line
        with receiver(second) as other, box.connect() as client:
            other.serve()
            assert is_served(client)


def test_receivers_that_are_killed_and_restarted(tmp_path: Path) -> None:
    """What a receiver has taken is its own; all others are served by the next one."""
    path = tmp_path / "r"
    count, taken = 600, []
    ends = threading.Event()

    def receive() -> None:
        """Take some, go away with all that is in the queue, come back after a moment."""
        while not ends.is_set():
            there = new_receiver(path)
            there.socket.settimeout(0.05)
            with there.socket:
                for _ in range(30):
                    try:
                        conn = there.take()
                    except TimeoutError:
                        if ends.is_set():
                            return
                        continue
                    with conn:
                        taken.append(conn.getpeername())
                        conn.sendall(b"hello")
            ends.wait(0.02)

    thread = threading.Thread(target=receive)
    thread.start()
    try:
        with boxed("-S", str(path), workers=2) as box:
            served = 0
            for _ in range(count // 20):
                clients = [box.connect() for _ in range(20)]
                for client in clients:
                    served += is_served(client)
                    client.close()
            box.await_log("passed ", count)
            assert box.count("closed ") == 0
    finally:
        ends.set()
        thread.join()
    assert served == len(taken)  # the others were in the queue of a receiver that went away
    assert served >= count * 3 // 5


def test_it_stops_while_some_wait(tmp_path: Path) -> None:
    """They have the time of a drain, and no longer."""
    path = tmp_path / "r"
    with boxed("-S", str(path), drain=SECONDS) as box, box.connect() as client:
        until("it waits", lambda: waits(box))
        box.terminate()
        with receiver(path) as there:
            there.serve()
            assert is_served(client)
        assert box.status == 0
    with boxed("-S", str(path), "--queue-timeout=60", drain=0.1) as box, box.connect() as client:
        until("it waits", lambda: waits(box))
        box.terminate()
        assert box.status == 0
        assert client.recv(1) == b""
    assert "connections that were cut: 1" in box.log


def waits(box: Server) -> bool:
    """Whether a worker has an accepted connection open."""
    port = f":{box.address[1]:04X} "
    lines = Path(f"/proc/{box.worker_pids()[0]}/net/tcp").read_text().splitlines()
    inodes = {line.split()[9] for line in lines if port in line and line.split()[3] == "01"}
    held = set(descriptors(box.worker_pids()[0]).values())
    return any(f"socket:[{inode}]" in held for inode in inodes)


# Rules that are read again


def test_rules_are_read_again(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    rules = tmp_path / "rules"
    rules.write_text(f"rule-set:0\njump-unix:{first}\n")
    with (
        receiver(first) as one,
        receiver(second) as other,
        boxed("-f", str(rules), workers=2) as box,
    ):
        with box.connect(), one.take():
            pass
        rules.write_text("rule-set:0\njump-unix:\n")
        box.signal(signal.SIGHUP)
        line = box.await_log("not reloaded")
        assert line.endswith(
            f"not reloaded, all stays as it was: {rules}:2: near 'jump-unix:': "
            "a value is missing; write jump-unix:PATH"
        )
        for _ in range(4):
            with box.connect(), one.take():
                pass
        rules.write_text(f"rule-set:0\njump-unix:{second}\njump-rule:7\n")
        box.signal(signal.SIGHUP)
        box.await_log("reloaded$")
        box.await_log(f"{rules}:3: jump-rule:7: there is no rule-set:7")
        until("the rules are others", lambda: goes_to(box, other, one))
        rules.unlink()
        box.signal(signal.SIGHUP)
        box.await_log(f"not reloaded, all stays as it was: {rules}: No such file")
        with box.connect(), other.take():
            pass


def goes_to(box: Server, there: Receiver, before: Receiver) -> bool:
    """Whether two connections in a row, which are likely to be of two workers, go there."""
    found = []
    for _ in range(2):
        with box.connect() as client:
            line = box.await_log("client={}:{} ".format(*client.getsockname()))
            is_there = "second" in line
            (there if is_there else before).take().close()
            found.append(is_there)
    return all(found)


# Sockets that others have made


def test_an_inherited_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "r")
    with socket.socket() as sock, receiver(path) as there:
        sock.bind(("127.0.0.1", 0))
        number = str(sock.fileno())
        with (
            served_by("-s", number, "-S", path, pass_fds=(sock.fileno(),)),
            socket.create_connection(sock.getsockname(), SECONDS),
            there.take() as served,
        ):
            assert served.getsockname() == sock.getsockname()
            assert not os.get_blocking(sock.fileno())
        assert os.get_blocking(sock.fileno())


def test_a_unix_socket(tmp_path: Path) -> None:
    """Its clients have no address; a file that nobody serves is replaced, and removed at last."""
    path, front = tmp_path / "r", tmp_path / "front"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(front))
    rules = tmp_path / "rules"
    rules.write_text(f"rule-set:0\nip::: rip::: port:0 rport:0 jump-unix:{path}\n")
    with receiver(path) as there, served_by("-l", str(front), "-f", str(rules)):
        for _ in range(2):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(front))
                with there.take() as served:
                    assert served.family == socket.AF_UNIX
        status, lines = ended("-l", str(front), "-S", "x", program=(SOCKETBOX,))
        assert (status, lines) == (111, [f"socketbox: {front}: Address already in use"])
    assert not front.exists()


def test_its_file_is_gone_before_it_is_closed(tmp_path: Path) -> None:
    """While some wait to the end, another one may be there: its file may have the same number."""
    front = tmp_path / "front"
    with boxed("-l", str(front), "-S", str(tmp_path / "r"), drain=0.5) as box, box.connect():
        until("it waits", lambda: waits(box))
        box.terminate()
        until("nobody finds it", lambda: not front.exists() or box.process.poll() is not None)
        assert box.process.poll() is None
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(front))
            assert box.status == 0
    assert front.exists()


@pytest.mark.parametrize(
    ("options", "status"),
    [
        (("-l", "192.0.2.99", "-S", "x"), 111),
        (("-l", "/no/such/directory", "-S", "x"), 111),
        (("-S", "x", "--workers=x"), 100),
        (("-S", "x", "--drain-timeout=x"), 100),
        (("-e", "-u", "root", "true"), 100),
        (("-e", "/no/such/program"), 127),
        (("-e", "-d", "/no/such/program"), 127),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_no_file_is_left_when_it_cannot_start(
    tmp_path: Path, options: tuple[str, ...], status: int
) -> None:
    front = tmp_path / "front"
    assert ended("-l", str(front), *options, program=(SOCKETBOX,))[0] == status
    assert list(tmp_path.iterdir()) == []


@root_only()
def test_the_status_of_who_may_not_remove_a_file() -> None:
    """It is the one that there would be without any."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        options = ("-l", f"{place}/front", "-u", "nobody", "-e", "/no/such/program")
        status, lines = ended(*options, program=(SOCKETBOX,))
    assert (status, len(lines), "cannot be executed: " in lines[0]) == (127, 1, True)


def test_sockets_of_systemd(tmp_path: Path) -> None:
    path = str(tmp_path / "r")
    port = free_port()
    command = ["systemd-socket-activate", f"--listen={ADDRESS}:{port}", SOCKETBOX, "-S", path]
    command.append("--backlog=7")  # that of systemd stays
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment())
    assert process.stderr
    process.stderr.readline()  # it listens
    try:
        with receiver(path) as there:
            for _ in range(2):
                with socket.create_connection((ADDRESS, port), SECONDS), there.take() as served:
                    assert not served.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            shown = subprocess.run(["ss", "-Hltn", f"sport = :{port}"], capture_output=True)
            assert int(shown.stdout.split()[2]) > 7
    finally:
        process.terminate()
        process.communicate(timeout=SECONDS)
    assert process.returncode == 0


@root_only()
def test_transparent_and_free() -> None:
    """With -z what is passed on is transparent no more."""

    def check() -> None:
        path = f"@box-test-{os.getpid()}"
        sh("ip -6 route add local 2001:db8:1::/64 dev lo")
        with receiver(path) as there:
            for option, left in (((), 1), (("-z",), 0)):
                where = ["-l", "2001:db8:1::7", "-l", "192.0.2.1", "-p", "81", "-t", "-F"]
                sh("ip addr replace 192.0.2.1/32 dev lo")
                with served_by("-S", path, *where, *option):
                    with (
                        socket.create_connection(("2001:db8:1::7", 81), SECONDS),
                        there.take() as served,
                    ):
                        assert served.getsockname()[0] == "2001:db8:1::7"
                        assert served.getsockopt(socket.IPPROTO_IPV6, 75) == left
                        assert served.getsockopt(socket.IPPROTO_IPV6, 78) == 1
                    with (
                        socket.create_connection(("192.0.2.1", 81), SECONDS),
                        there.take() as served,
                    ):
                        assert served.getsockopt(socket.IPPROTO_IP, 19) == left

    in_own_network(check)


@root_only()
def test_many_addresses_of_a_network() -> None:
    """AnyIP: every address of a /64 is ours, and each has its receiver."""

    def check() -> None:
        sh("ip -6 route add local 2001:db8:1::/64 dev lo")
        names = [f"@box-{number:05}-{os.getpid()}" for number in (1, 2, 0xFFFF)]
        pattern = f"@box-#//7_-{os.getpid()}"
        with contextlib.ExitStack() as stack:
            receivers = [stack.enter_context(receiver(name)) for name in names]
            stack.enter_context(served_by("-U", "-S", pattern, "-p", "80"))
            for number, there in zip((1, 2, 0xFFFF), receivers, strict=True):
                host = f"2001:db8:1::{number:x}"
                with socket.create_connection((host, 80), SECONDS), there.take() as served:
                    assert served.getsockname()[0] == host

    in_own_network(check)


def test_options_of_the_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "r")
    port = str(free_port("127.0.0.1"))
    where = ["-l", "127.0.0.1", "-p", port, "-S", path]
    with served_by(*where, "-r", "-R", "-b", "7"), served_by(*where, "-r", "-R"):
        shown = subprocess.run(["ss", "-Hltn", f"sport = :{port}"], capture_output=True, text=True)
        assert sorted(line.split()[2] for line in shown.stdout.splitlines()) == ["4096", "7"]
        status, lines = ended(*where, program=(SOCKETBOX,))
        assert status == 111
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in lines[-1]


# Another program


def test_a_program_that_gets_the_socket() -> None:
    """It does not listen yet, and nothing keeps the program from more privileges."""
    code = (
        "import os, socket; s = socket.socket(fileno=int(os.environ['SKBOX_LISTEN_FD']));"
        "print(s.getsockname(), s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN),"
        "s.getblocking(), [l for l in open('/proc/self/status') if l.startswith('NoNew')])"
    )
    port = free_port("127.0.0.1")
    where = ["-l", "127.0.0.1", "-p", str(port)]
    status, lines = ended(*where, "-e", "python3", "-c", code, program=(SOCKETBOX,))
    assert (status, lines) == (0, [f"('127.0.0.1', {port}) 0 True ['NoNewPrivs:\\t0\\n']"])
    for arguments in (["--check"], ["--explain", "-x"], ["-z", "--check"]):
        status, lines = ended(*where, "-te", "echo", *arguments, program=(SOCKETBOX,))
        assert (status, lines) == (0, [" ".join(arguments)])
    for program, expected in (("/no/such", 127), ("/etc/passwd", 126)):
        status, lines = ended("-e", *where, program, program=(SOCKETBOX,))
        assert status == expected
        assert f"{program} cannot be executed: " in lines[0]


def test_a_program_that_gets_an_inherited_socket() -> None:
    """Which blocks, as that of the C program does."""
    code = (
        "import os, socket; s = socket.socket(fileno=int(os.environ['SKBOX_LISTEN_FD']));"
        "print(s.getsockname()[1], os.get_blocking(s.fileno()))"
    )
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        number = sock.fileno()
        options = ("-s", str(number), "-e", "python3", "-c", code)
        expected = (0, [f"{sock.getsockname()[1]} True"])
        assert ended(*options, program=(SOCKETBOX,), pass_fds=(number,)) == expected


@root_only()
def test_a_program_that_is_somebody_else() -> None:
    where = ["-l", "127.0.0.1", "-p", str(free_port("127.0.0.1"))]
    options = ["-u", "nobody", "-g", "1234", "-G", "5,6", "-e", *where]
    status, lines = ended(*options, "id", program=(SOCKETBOX,))
    assert (status, lines) == (0, ["uid=65534(nobody) gid=1234 groups=1234,5(tty),6(disk)"])


# Looked at only


def test_check(tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text("rule-set:0\nport:80 jump-rule:1\n")
    bad.write_text("rule-set:0\n\nport:80x fail\n")
    warning = (
        f"{good}:2: jump-rule:1: there is no rule-set:1: connections that get there are closed"
    )
    program = (SOCKETBOX,)
    expected = (0, [warning, "good: 1 set, 1 entry, 1 warning"])
    assert ended("--check", str(good), program=program) == expected
    assert ended("--check", "-f", str(good), program=program) == expected
    assert ended("--check", "-q", str(good), program=program) == (0, [warning])
    rules = ["rule-set:0", "port:80 jump-rule:1"]
    assert ended("--check", "-v", str(good), program=program) == (0, [*rules, *expected[1]])
    status, [line] = ended("--check", str(bad), program=program)
    assert status == 100
    assert line.startswith(f"socketbox: {bad}:3: near 'port:80x': ")
    status, lines = ended("--check", "/no/such", program=program)
    assert (status, lines) == (111, ["socketbox: /no/such: No such file or directory"])


def test_what_a_terminal_would_obey(tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_bytes(b"rule-set:0\njump-unix:/a\x1b[2J\xff\xc3\xa4 port:1\njump-rule:1\n")
    status, lines = ended("--explain", "-f", str(rules), "1.2.3.4:1", "unix", program=(SOCKETBOX,))
    assert (status, lines[2]) == (
        0,
        f"  {rules}:2: port:1 jump-unix:/a\\x1b[2J\\udcff\u00e4: matches",
    )


def test_explain(tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text("rule-set:0\nip:192.0.2.0/24 jump-unix:/run/p#//P_\ndefault fail\n")
    command = ["--explain", "-U", "-f", str(rules), "192.0.2.1:80", "198.51.100.7:40000"]
    for arguments in (command, ["-f", str(rules), *command[:2], *command[4:]]):
        assert ended(*arguments, program=(SOCKETBOX,)) == (
            0,
            [
                "connection from 198.51.100.7:40000 to 192.0.2.1:80",
                "hop 1: rule-set:0, 1 entry",
                f"  {rules}:2: ip:192.0.2.0/24 jump-unix:/run/p#//P_: matches",
                f"decision: jump-unix:/run/p00080 ({rules}:2)",
                "if that is full or not there:",
                "then: fail (there is no other receiver)",
            ],
        )


WRONG = {
    ("x",): "'x' is not an option; -e has a program follow",
    ("-S", ""): "-S: '' is no path of a socket; a path or @NAME of 107 bytes at most fits",
    (
        "-S",
        "x" * 108,
    ): f"-S: '{'x' * 60}' is no path of a socket; a path or @NAME of 107 bytes at most fits",
    ("-i", "99"): "-i: descriptor 99 is not open; leave it open for this program, "
    "as a shell does with 99<&0",
    ("-i", "0"): "-i: descriptor 0 is no unix socket; give one end of a unix socket",
    ("-S", "x", "-i", "0"): "-S and -i exclude each other; leave one of them out",
    ("-S", "", "-i", "0"): "-S and -i exclude each other; leave one of them out",
    ("-f", ""): "a file name is empty; name a file, or leave the option out",
    ("--check", ""): "a file name is empty; name a file, or leave the option out",
    ("--check", "-f", "", "x"): "there are two files to check; name one",
    ("--json", "", "--check"): "a file name is empty; name a file, or leave the option out",
    ("--json", "", "-f", "x"): "--rules does not go with --json; write it into that file",
    ("--json", "x", "-u", ""): "--user does not go with --json; write it into that file",
    ("-S", "x", "-l", "localhost"): "-l: 'localhost' is not an address; "
    "give IPv4 or IPv6 in full, a path or @NAME",
    ("-S", "x", "-l", "[::1"): "-l: '[::1' is not an address; "
    "give IPv4 or IPv6 in full, a path or @NAME",
    ("-S", "x", "-p", "80x"): "-p is '80x'; it must be a port, 0 to 65535",
    ("-S", "x", "-b", "x"): "--backlog: 'x' is not a number; give 0 to 2147483647",
    ("-S", "x", "-s", "0", "-p", "1"): "connections come from somewhere already; "
    "leave -l and -p out, and under systemd -s and -P",
    ("-S", "x", "-s", "0"): "-s: descriptor 0: Socket operation on non-socket; "
    "leave a socket open for this program, as 0",
    (
        "-S",
        "x",
        "-l",
        "/x",
        "-p",
        "1",
    ): "a unix socket has no port; leave -p out, or add an address",
    ("-S", "x", "-u", "no-such"): "there is no user 'no-such'; name one, or a number",
    ("-S", "x", "--notify-fd=77"): "--notify-fd: descriptor 77: Bad file descriptor; see --help",
    ("-S", "x", "-u", "root"): "the user 'root' is root; name one with less power",
    ("-S", "x", "-u", "0"): "the user '0' is root; name one with less power",
    ("-S", "x", "-g", "no-such"): "there is no group 'no-such'",
    ("-S", "x", "-G", "5,no-such"): "there is no group 'no-such'",
    ("-S", "x", "-x", ""): "-x is empty; name a directory, or leave it out",
    (
        "-S",
        "x",
        "--queue-timeout=0",
    ): "--queue-timeout: '0' is not a time; give seconds, more than 0",
    ("-d", "--notify-fd=1", "-S", "x"): "-d and --notify-fd exclude each other; "
    "-d ends once it serves",
    ("--json", "x", "-u", "nobody"): "--user does not go with --json; write it into that file",
    ("-e", "-l", "::1", "-l", "127.0.0.1", "-p", "0", "true"): "-e has one socket; "
    "give one address and one port",
    ("--check", "x", "y"): "the arguments do not fit; see --help",
    ("--check", "-f", "x", "y"): "there are two files to check; name one",
    ("--explain", "x"): "the arguments do not fit; see --help",
    ("--explain", "x", "y"): "'x' is not an address and a port; "
    "write 192.0.2.1:80, [2001:db8::1]:80 or unix",
}


@pytest.mark.parametrize("options", WRONG, ids=" ".join)
def test_wrong_usage(options: tuple[str, ...]) -> None:
    assert ended(*options, program=(SOCKETBOX,)) == (100, [f"socketbox: {WRONG[options]}"])


# As whom


@root_only()
@pytest.mark.parametrize(
    ("options", "uid", "gid", "groups"),
    [
        (("-u", "nobody"), 65534, 65534, ""),
        (("-u", "nobody", "-g", "1234"), 65534, 1234, ""),
        (("-g", "1234", "-u", "nobody"), 65534, 1234, ""),
        (("-u", "4321", "-g", "1234"), 4321, 1234, ""),
        (("-u", "4321", "-g", "tty", "-G", "6,1234"), 4321, 5, "6 1234"),
        (("-u", "4321", "-g", "1234", "-k"), 4321, 1234, "7 8"),
        (("-u", "4321"), 4321, 0, "7 8"),
        (("-u", "4321", "-g", "0"), 4321, 0, ""),
        (("-u", "4321", "-G", "0,6", "-g", "1234"), 4321, 1234, "0 6"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_privileges(
    tmp_path: Path, options: tuple[str, ...], uid: int, gid: int, groups: str
) -> None:
    """Those that pass connections on have none; and the connections do get through."""
    path = f"@box-test-{os.getpid()}"
    before = ("setpriv", "--groups=7,8")
    with receiver(path) as there, boxed("-S", path, *options, before=before, workers=2) as box:
        for pid in box.worker_pids():
            expected = [" ".join([str(uid)] * 4), " ".join([str(gid)] * 4), groups, "1"]
            assert status_of(pid, "Uid", "Gid", "Groups", "NoNewPrivs") == expected
            sets = status_of(pid, "CapInh", "CapPrm", "CapEff", "CapAmb")
            assert {int(one, 16) for one in sets} == {0}
        assert status_of(box.pid, "Uid", "NoNewPrivs") == ["0 0 0 0", "0"]
        of_root = gid == 0 or groups.startswith("0")
        assert box.count("a group is root's still; -g and -G name others") == of_root
        with box.connect(), there.take():
            pass


def test_privileges_that_are_not_given_up() -> None:
    path = f"@box-test-{os.getpid()}"
    with boxed("-S", path) as box:
        assert status_of(box.worker_pids()[0], "NoNewPrivs") == ["1"]


@root_only()
def test_another_root_directory(tmp_path: Path) -> None:
    """Receivers are inside of it; the rules are outside, and read again from there."""
    root, rules = tmp_path / "root", tmp_path / "rules"
    root.mkdir()
    for directory in (tmp_path, root):
        directory.chmod(0o755)
    rules.write_text("rule-set:0\njump-unix:/r\n")
    rules.chmod(0o600)
    with (
        receiver(root / "r") as there,
        boxed("-f", "rules", "-x", str(root), "-u", "nobody", before=in_directory(tmp_path)) as box,
    ):
        assert os.readlink(f"/proc/{box.worker_pids()[0]}/root") == str(root)
        with box.connect(), there.take():
            pass
        box.signal(signal.SIGHUP)
        box.await_log("reloaded$")
        with box.connect(), there.take():
            pass


@root_only()
@pytest.mark.parametrize(
    ("options", "user", "reason"),
    [
        (
            ("-x", "/"),
            0,
            "-x alone does not hold root, who can leave any directory; add a user that is not root",
        ),
        (
            ("-x", "/etc/passwd", "-u", "nobody"),
            0,
            "-x: '/etc/passwd' is not a directory; name one",
        ),
        (
            ("-x", "/", "-u", "nobody"),
            65534,
            "-x takes root's privileges; start it as root, or leave that out",
        ),
        (
            ("-u", "4321"),
            65534,
            "to become another user or group takes root's privileges; "
            "start it as root, or leave that out",
        ),
    ],
)
def test_rights_are_looked_at_first(options: tuple[str, ...], user: int, reason: str) -> None:
    """Before anybody can come."""
    wrong = ended("-S", "x", "-p", "0", *options, program=(SOCKETBOX,), user=user)
    assert wrong == (100, [f"socketbox: {reason}"])


@root_only()
@pytest.mark.parametrize(
    "program", [(SOCKETBOX, "-S", "x", "-x"), (MUONSOCKS, "-i", ADDRESS, "-C")]
)
def test_a_way_out_is_looked_for_first(tmp_path: Path, program: tuple[str, ...]) -> None:
    fd = os.open("/", os.O_PATH)
    try:
        options = (str(tmp_path), "-u", "nobody", "-p", "0")
        wrong = ended(*options, program=program, pass_fds=(fd,))
    finally:
        os.close(fd)
    problem = f"descriptor {fd} is a directory, and would be a way out of {program[-1]}"
    name = Path(program[0]).name
    assert wrong == (100, [f"{name}: {problem}; close it where this is started: {fd}<&-"])


def in_directory(path: Path) -> tuple[str, ...]:
    return ("env", "-C", str(path))


def test_in_the_background(tmp_path: Path) -> None:
    """The program ends once its child serves; a relative file is found, and found again."""
    path, rules, log = tmp_path / "r", tmp_path / "rules", tmp_path / "log"
    rules.write_text(f"rule-set:0\njump-unix:{path}\n")
    port = free_port("127.0.0.1")
    command = [SOCKETBOX, "-d", "-f", "rules", "-l", "127.0.0.1", "-p", str(port), "--workers=1"]
    with log.open("wb") as file:
        done = subprocess.run(
            command, cwd=tmp_path, stdin=subprocess.DEVNULL, stderr=file, env=environment()
        )
    assert done.returncode == 0
    found = re.search(r"socketbox\[(\d+)\]: listening", log.read_text())
    assert found
    pid = int(found[1])
    try:
        assert os.getsid(pid) == pid
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
        with receiver(path) as there:
            with socket.create_connection(("127.0.0.1", port), SECONDS), there.take():
                pass
            os.kill(pid, signal.SIGHUP)
            until("it is reloaded", lambda: "reloaded\n" in log.read_text())
    finally:
        os.kill(pid, signal.SIGTERM)
        until("it ends", lambda: "stopped" in log.read_text())
    assert ended("-d", "-f", "/no/such", "-p", "0", program=(SOCKETBOX,))[0] == 111


def test_a_socket_is_its_standard_input(tmp_path: Path) -> None:
    """Also in the background, where else nothing is to be read."""
    path, log = tmp_path / "r", tmp_path / "log"
    with socket.socket() as sock, log.open("wb") as file, receiver(path) as there:
        sock.bind(("127.0.0.1", 0))
        command = [SOCKETBOX, "-d", "-s", "0", "-S", str(path), "--workers=1"]
        done = subprocess.run(command, stdin=sock, stderr=file, env=environment())
        assert (done.returncode, "listening on 127." in log.read_text()) == (0, True)
        found = re.search(r"socketbox\[(\d+)\]", log.read_text())
        assert found
        try:
            with socket.create_connection(sock.getsockname(), SECONDS), there.take():
                pass
        finally:
            os.kill(int(found[1]), signal.SIGTERM)
            until("it ends", lambda: "stopped" in log.read_text())


def test_a_program_in_the_background(tmp_path: Path) -> None:
    """Whether it could be executed is known before the end."""
    port = free_port("127.0.0.1")
    where, said = ["-l", "127.0.0.1", "-p", str(port)], tmp_path / "said"
    assert ended("-e", "-d", *where, "touch", str(said), program=(SOCKETBOX,)) == (0, [])
    until("it has run", said.exists)
    status, lines = ended("-e", "-d", *where, "/no/such", program=(SOCKETBOX,))
    assert status == 127 and "/no/such cannot be executed: " in lines[0]
    status, lines = ended("-e", "-d", *where, "-u", "x", "true", program=(SOCKETBOX,))
    assert status == 100 and "there is no user 'x'" in lines[0]


@root_only()
def test_a_program_in_the_background_and_in_another_root_directory(tmp_path: Path) -> None:
    """Which is found where it was started. This one has no programs."""
    (tmp_path / "root").mkdir()
    options = ("-u", "nobody", "-x", "root", "-l", "127.0.0.1", "-p", "0", "-ed", "/bin/true")
    status, lines = ended(*options, program=(SOCKETBOX,), cwd=tmp_path)
    assert (status, "/bin/true cannot be executed: " in lines[0]) == (127, True)


@root_only()
def test_in_the_background_it_fails(tmp_path: Path) -> None:
    """When it has a child already, which cannot serve."""
    options = ("-d", "-S", "x", "-p", "0", "-u", "nobody", "-x", str(tmp_path / "none"))
    status, lines = ended(*options, program=(SOCKETBOX,))
    assert status == 111
    assert "No such file or directory" in lines[-1]


# What goes wrong


def test_too_few_descriptors(tmp_path: Path) -> None:
    """Connections wait to be accepted, and all are served in the end."""
    path = tmp_path / "r"
    count = 100
    with receiver(path) as there, boxed("-S", str(path), before=("prlimit", "--nofile=40")) as box:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(box.connect()) for _ in range(count)]
            box.await_log("allows no more connections")
            for _ in range(count):
                there.serve()
            assert all(map(is_served, clients))
        assert box.count("closed ") == 0


def test_too_few_descriptors_for_those_that_wait(tmp_path: Path) -> None:
    """One receiver is down: it takes nothing from the other one."""
    down, path, rules = tmp_path / "down", tmp_path / "r", tmp_path / "rules"
    rules.write_text(
        f"rule-set:0\nip:127.0.0.0/8 rip:127.0.0.2 jump-unix:{path}\njump-unix:{down}\n"
    )
    few = ("prlimit", "--nofile=48")
    with (
        receiver(path) as there,
        boxed("-f", str(rules), "--queue-timeout=60", before=few, drain=0.1) as box,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(100):
            stack.enter_context(box.connect())
        with socket.socket() as client:
            client.bind(("127.0.0.2", 0))
            client.settimeout(SECONDS)
            client.connect(box.address)
            there.serve()
            assert is_served(client)
        assert "no descriptors for more that wait" in box.await_log("closed ")


@pytest.mark.parametrize("error", ["ECONNABORTED", "EPERM", "EMFILE", "ENOBUFS", "EPROTO", "EINTR"])
def test_errors_of_accept(tmp_path: Path, error: str) -> None:
    """Told by strace. The C program ends for some of them."""
    path = tmp_path / "r"
    inject = f"inject=accept4:error={error}:when=1..3"
    strace = ("strace", "-D", "-f", "-o", "/dev/null", "-e", "trace=accept4", "-e", inject)
    with receiver(path) as there, boxed("-S", str(path), before=strace) as box, box.connect():
        there.take().close()


def test_errors_of_sendmsg(tmp_path: Path) -> None:
    """Those that may pass are waited for, and others are not."""
    path = tmp_path / "r"
    ways = {"ENOBUFS": "passed", "ETOOMANYREFS": "passed", "EACCES": "passed", "EPERM": "closed"}
    for error, way in ways.items():
        inject = f"inject=sendmsg:error={error}:when=1"
        strace = ("strace", "-D", "-f", "-o", "/dev/null", "-e", "trace=sendmsg", "-e", inject)
        with receiver(path), boxed("-S", str(path), before=strace) as box, box.connect():
            box.await_log(f"{way} client")


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full", "<&- >&- 2>&-"])
def test_a_log_that_goes_nowhere(tmp_path: Path, closed: str) -> None:
    """And no line of it is in a connection, or in a message."""
    path = tmp_path / "r"
    shell = ("/bin/sh", "-c", f'exec "$@" {closed}', "sh")
    with receiver(path) as there, boxed("-S", str(path), before=shell) as box:
        for _ in range(3):
            with box.connect() as client, there.take() as served:
                served.sendall(b"hello")
                assert is_served(client)


def test_a_worker_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "r"
    with receiver(path) as there, boxed("-S", str(path)) as box:
        first = box.worker_pids()[0]
        os.kill(first, signal.SIGKILL)
        until("there is another", lambda: box.worker_pids() and box.worker_pids()[0] != first)
        with box.connect() as client:
            there.serve()
            assert is_served(client)


def test_nothing_is_left_open(tmp_path: Path) -> None:
    """After 5000 connections, with some that waited and some that were closed."""
    path, away, rules = tmp_path / "r", tmp_path / "away", tmp_path / "rules"
    rules.write_text(
        f"rule-set:0\nrip:127.0.0.2 fail\nrip:127.0.0.3 jump-unix:{away}\njump-unix:{path}\n"
    )
    count = 5000
    ends = threading.Event()
    served = []

    def serve() -> None:
        there.socket.settimeout(0.2)
        while not ends.is_set():
            with contextlib.suppress(TimeoutError):
                there.take().close()
                served.append(1)

    def come(source: str, times: int) -> None:
        for _ in range(times):
            with socket.create_connection(box.address, SECONDS, (source, 0)) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                with contextlib.suppress(ConnectionError):
                    client.recv(1)

    with receiver(path) as there:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with boxed("-f", str(rules), "-q", "--queue-timeout=0.01", workers=2) as box:
                come("127.0.0.1", 20)
                before = [len(descriptors(pid)) for pid in [box.pid, *box.worker_pids()]]
                memory = [resident_memory(pid) for pid in box.worker_pids()]
                crowd = [
                    threading.Thread(target=come, args=("127.0.0.1", count // 4)) for _ in range(4)
                ]
                crowd += [threading.Thread(target=come, args=("127.0.0.2", 200))]
                crowd += [threading.Thread(target=come, args=("127.0.0.3", 50))]
                for one in crowd:
                    one.start()
                for one in crowd:
                    one.join()
                until(
                    "all is closed",
                    lambda: (
                        [len(descriptors(pid)) for pid in [box.pid, *box.worker_pids()]] == before
                    ),
                )
                for pid, there_before in zip(box.worker_pids(), memory, strict=True):
                    assert resident_memory(pid) < there_before + 1500
        finally:
            ends.set()
            thread.join()
    assert len(served) >= count
