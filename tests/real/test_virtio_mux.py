"""virtio-mux through a real virtio port: a guest without a network, and everything that can happen.

The host is in a private network with a web server and sshd (clients.py), the guest in a virtual
machine (qemu.py). QEMU listens at the port, or calls.
"""

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import clients
import pytest
import qemu
from clients import NAME, TARGET, Network, body, network
from guest_link import Process
from qemu import Guest
from real_server import until

pytestmark = [pytest.mark.qemu, pytest.mark.xdist_group("qemu")]

ROOT = Path(__file__).resolve().parents[2]
VIRTIO_MUX = str(ROOT / "bin" / "virtio-mux")
SECONDS = 60
MUCH = 100_000_000  # bytes
DIGESTS = 7000  # the port of a server that answers with the digest of what it got
PROXY = "127.0.0.1:1080"
CURL = f"curl -sS --socks5-hostname {PROXY} --max-time 90"


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    if reason := clients.missing("sshd", "ssh", "ssh-keygen", "curl", "systemd-socket-activate"):
        pytest.skip(reason)
    with network(tmp_path_factory.mktemp("net")) as net, digests(net), clients.sshd(net):
        yield net


@contextlib.contextmanager
def digests(net: Network) -> Iterator[None]:
    """A server at TARGET that says how much it got, and its digest, once that has ended."""
    listener = net.socket((TARGET, DIGESTS))

    def answer(conn: socket.socket) -> None:
        digest, size = hashlib.sha256(), 0
        with conn, contextlib.suppress(ConnectionError):
            while data := conn.recv(1 << 18):
                digest.update(data)
                size += len(data)
            conn.sendall(f"{size} {digest.hexdigest()}\n".encode())

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],)).start()

    thread = threading.Thread(target=serve)
    thread.start()
    yield
    listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    listener.close()


class Host:
    """`virtio-mux host` at a guest's port, or for the port that calls."""

    def __init__(self, net: Network, port: Path, calls: bool) -> None:
        self._log = net.work / "host.log"
        self._log.write_bytes(b"")
        words = [VIRTIO_MUX, "host", "--ping-timeout=6"]
        if calls:
            activate = ["systemd-socket-activate", "--accept", "--inetd", "-l", str(port)]
            words = [*activate, *words, "--peer-reconnects"]
        else:
            words.append(str(port))
        self._command = net.command(["setpriv", "--pdeathsig", "KILL", *words])
        self.calls = calls
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def pids(self) -> list[int]:
        """Of the processes that serve the port."""
        if not self.calls:
            return [self._process.pid]
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in children]

    @property
    def log(self) -> str:
        return self._log.read_text()

    def sessions(self) -> int:
        return self.log.count("the guest is there")

    def await_session(self, number: int, seconds: float = SECONDS) -> None:
        until(f"there is session {number}", lambda: self.sessions() >= number, seconds)

    def kill(self) -> None:
        """As a crash would; what is started for each call is started again by the next one."""
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)
        if not self.calls:
            self._process.wait()

    def restart(self) -> float:
        """Kill it and have another one: when that was, monotonic."""
        self.kill()
        if not self.calls:
            self.start()
        return time.monotonic()

    def close(self) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if self.calls:
            self._process.terminate()
        self._process.wait(SECONDS)
        print(self.log)
        assert "Traceback" not in self.log
        assert "this is a bug" not in self.log


@pytest.fixture(params=[False, True], ids=["qemu-listens", "qemu-calls"])
def host(net: Network, guest: Guest, request: pytest.FixtureRequest) -> Iterator[Host]:
    calls = request.param
    if calls:
        guest.replug(calls=True)
    made = Host(net, guest.port, calls)
    yield made
    made.close()


@pytest.fixture
def proxy(guest: Guest, host: Host) -> Iterator[Process]:
    """`virtio-mux guest` in the virtual machine, which has met the host."""
    process = start_guest(guest)
    host.await_session(1)
    yield process
    print(process)
    assert b"Traceback" not in process.stderr
    assert b"this is a bug" not in process.stderr


def start_guest(guest: Guest) -> Process:
    process = guest.start("virtio-mux", "guest", "--ping-timeout=6")
    process.wait_for(b"listening on")
    return process


def works(guest: Guest, net: Network) -> None:
    """Fetch something, all of it and nothing else."""
    url = f"http://{NAME}:{net.web[TARGET]}/100000"
    digest = hashlib.sha256(body(100000)).hexdigest()
    assert guest.run(f"{CURL} {url} | sha256sum").stdout.split()[0] == digest


def download(guest: Guest, net: Network, size: int = MUCH) -> Process:
    """Begin to fetch much; what comes is hashed, and curl's status follows."""
    url = f"http://{NAME}:{net.web[TARGET]}/{size}"
    script = f"{{ {CURL} {url}; echo status $? >&2; }} | sha256sum"
    return guest.start("/bin/sh", "-c", script)


def upload(guest: Guest, size: int = MUCH) -> Process:
    """Begin to send much to the server of digests; its answer is the output."""
    sender = f"yes 0123456789abcde | head -c {size}"
    script = f"{sender} | nc.openbsd -N -X 5 -x {PROXY} {TARGET} {DIGESTS}; echo status $? >&2"
    return guest.start("/bin/sh", "-c", script)


def sent(size: int) -> str:
    """What the server of digests says to an upload that was whole."""
    data = (b"0123456789abcde\n" * (size // 16 + 1))[:size]
    return f"{size} {hashlib.sha256(data).hexdigest()}\n"


def both_under_way(guest: Guest, host: Host, net: Network) -> tuple[Process, Process]:
    """A download and an upload that are in the middle."""
    before = len(host.log)
    down, up = download(guest, net), upload(guest)

    def connected() -> bool:
        return host.log[before:].count("connected client=mux:") >= 2

    until("both are connected", connected, SECONDS)
    time.sleep(0.3)  # so that there is much on its way; there is no event for that
    return down, up


def assert_both_failed(down: Process, up: Process) -> None:
    """The clients of both transfers have ended, and know that these were not whole."""
    assert down.wait(SECONDS) == 0 and up.wait(SECONDS) == 0
    assert b"status 0" not in down.stderr, down
    assert up.stdout == b"", up  # netcat does not tell a reset by its status


# What it is for


def test_curl_and_ssh(guest: Guest, host: Host, proxy: Process, net: Network) -> None:
    works(guest, net)
    refused = guest.run(f"{CURL} http://{TARGET}:9/", check=False)
    assert refused.returncode == 97 and "(5)" in refused.stderr, refused
    forbidden = guest.run(f"{CURL} http://127.0.0.1/", check=False)
    assert forbidden.returncode == 97 and "(2)" in forbidden.stderr, forbidden
    unknown = guest.run(f"{CURL} http://no-such-name.example/", check=False)
    assert unknown.returncode == 97 and "(4)" in unknown.stderr, unknown
    key = (net.work / "ssh" / "client").read_bytes()
    guest.put("/tmp/key", key, 0o600)
    ssh = clients.ssh(f"nc.openbsd -X 5 -x {PROXY} %h %p", Path("/tmp/key"))
    process = guest.start(*ssh, "sha256sum; exit 42")
    process.write(b"x" * 100000)
    process.close_input()
    assert process.wait(SECONDS) == 42
    assert process.stdout.split()[0].decode() == hashlib.sha256(b"x" * 100000).hexdigest()


def test_much_each_way(guest: Guest, host: Host, proxy: Process, net: Network) -> None:
    """100 MB down and up at once; the emulated processor takes most of the time for digests."""
    size = MUCH // 10 if host.calls else MUCH  # to the port that calls it is all the same
    down, up = download(guest, net, size), upload(guest, size)
    assert up.wait(100) == 0
    assert up.stdout.decode() == sent(size)
    assert down.wait(100) == 0
    assert down.stdout.split()[0].decode() == hashlib.sha256(body(size)).hexdigest()


# What can happen


def test_the_host_is_killed(guest: Guest, host: Host, proxy: Process, net: Network) -> None:
    """In the middle of transfers: clients see an error, and the next ones are served."""
    for number in (2, 3):
        down, up = both_under_way(guest, host, net)
        began = host.restart()
        host.await_session(number)
        assert time.monotonic() - began < 3
        works(guest, net)
        assert_both_failed(down, up)


# Writes for as long as it runs, and reads nothing.
WRITER = f"""
import os, time
port = os.open("/dev/virtio-ports/{qemu.PORT}", os.O_RDWR | os.O_NONBLOCK)
print("ready", flush=True)
while True:
    try:
        os.write(port, bytes(32768))
    except BlockingIOError:
        time.sleep(0.001)
"""


@contextlib.contextmanager
def host_side(guest: Guest, calls: bool) -> Iterator[socket.socket]:
    """The host's end of the port."""
    if not calls:
        with guest.connect() as host:
            yield host
        return
    with socket.socket(socket.AF_UNIX) as listener:
        guest.port.unlink(missing_ok=True)
        listener.bind(str(guest.port))
        listener.listen()
        listener.settimeout(SECONDS)
        with listener.accept()[0] as host:
            yield host
    guest.port.unlink()


def go_while_both_talk(guest: Guest, calls: bool) -> None:
    """Be a host that goes while both sides have much to say."""
    with host_side(guest, calls) as host:
        host.setblocking(False)
        until = time.monotonic() + 0.1
        while time.monotonic() < until:
            with contextlib.suppress(BlockingIOError):
                host.send(bytes(65536))
            with contextlib.suppress(BlockingIOError):
                host.recv(1 << 20)


@pytest.mark.parametrize("calls", [False, True], ids=["qemu-listens", "qemu-calls"])
def test_a_port_that_lets_nothing_out_of_the_guest(guest: Guest, net: Network, calls: bool) -> None:
    """QEMU may leave it so when a host goes, one time in four here, until the next one goes too."""
    if calls:
        guest.replug(calls=True)
    for _ in range(12):
        writer = guest.start("python3", "-c", WRITER)
        assert writer.read_line(SECONDS) == "ready"
        go_while_both_talk(guest, calls)
        writer.kill()
        writer.wait()
        process = start_guest(guest)
        host = Host(net, guest.port, calls)
        host.await_session(1, 5)
        host.close()
        process.kill(signal.SIGTERM)
        assert process.wait(SECONDS) == 0


def test_the_guest_is_killed(guest: Guest, host: Host, proxy: Process, net: Network) -> None:
    process = proxy
    for number in (2, 3):
        down, up = both_under_way(guest, host, net)
        process.kill(group=True)
        process.wait()
        assert_both_failed(down, up)
        process = start_guest(guest)
        began = time.monotonic()
        host.await_session(number)
        assert time.monotonic() - began < 3
        works(guest, net)
    process.kill(signal.SIGTERM)
    assert process.wait(SECONDS) == 0
    until("the host knows", lambda: "the guest is told to stop" in host.log)


def test_the_machine_is_reset(guest: Guest, host: Host, proxy: Process, net: Network) -> None:
    both_under_way(guest, host, net)
    guest.reset()
    start_guest(guest)
    host.await_session(2, 3)
    works(guest, net)
    until("both ended", lambda: host.log.count("end=") >= 3)


def test_the_machine_is_paused(guest: Guest, host: Host, proxy: Process, net: Network) -> None:
    """For a while, and for longer than the host waits: then all is over on both sides."""
    down, up = both_under_way(guest, host, net)
    guest.pause()
    time.sleep(1)
    guest.resume()
    assert host.sessions() == 1
    guest.pause()
    until("the host gives up", lambda: "no sign of life" in host.log)
    guest.resume()
    host.await_session(2, 3)
    works(guest, net)
    assert_both_failed(down, up)


def test_a_pause_breaks_nothing(guest: Guest, host: Host, proxy: Process, net: Network) -> None:
    size = 5_000_000
    down, up = download(guest, net, size), upload(guest, size)
    for _ in range(3):
        guest.pause()
        time.sleep(0.5)
        guest.resume()
        time.sleep(0.5)
    assert down.wait(SECONDS) == 0 and up.wait(SECONDS) == 0
    assert down.stdout.split()[0].decode() == hashlib.sha256(body(size)).hexdigest()
    assert up.stdout.decode() == sent(size)
    assert host.sessions() == 1


def test_clients_while_the_host_is_away(guest: Guest, net: Network) -> None:
    guest.start("virtio-mux", "guest", "--open-timeout=0.5").wait_for(b"listening on")
    url = f"http://{NAME}:{net.web[TARGET]}/1000"
    away = guest.run(f"{CURL} {url}", check=False)
    assert away.returncode == 97 and "(1)" in away.stderr, away
    made = Host(net, guest.port, False)
    try:
        made.await_session(1, 3)
        works(guest, net)
    finally:
        made.close()


def test_a_second_guest_is_told_that_the_port_is_taken(
    guest: Guest, host: Host, proxy: Process
) -> None:
    second = guest.run("virtio-mux guest -p 1081", check=False)
    assert second.returncode == 111
    assert "/dev/virtio-ports/org.muonsocks.0: Device or resource busy" in second.stderr
