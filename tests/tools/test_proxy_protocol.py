"""Programs behind a proxy that says who the client is, and those that say it themselves."""

import random
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from ends import descriptors
from programs import (
    GREETING,
    HANDSHAKE,
    INETD,
    PASSWORD_GREETING,
    RELAY,
    SECONDS,
    VERSIONS,
    accept,
    credentials,
    environment,
    listener,
    read_all,
    serving,
    socks4,
    socks5,
)
from real_server import reset, running, until, works

V1 = b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 1080\r\n"
SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
V2 = SIGNATURE + bytes.fromhex("2111000c cb007107 c0000201 1267 0438")
V2_6 = SIGNATURE + bytes.fromhex("21210024 20010db8") + bytes(11) + b"\7" + bytes(16)
V2_6 += bytes.fromhex("1267 0438")
LOCAL = SIGNATURE + bytes.fromhex("20000000")
UNIX = SIGNATURE + bytes.fromhex("213100d8") + bytes(216)
WHO = {V1: "203.0.113.7:4711", V2: "203.0.113.7:4711", V2_6: "[2001:db8::7]:4711", UNIX: "unix"}
REQUIRED = "--proxy-protocol=required"
OPTIONAL = "--proxy-protocol=optional"
CHAIN = {
    "socks-inetd": [INETD, "--allow-local", REQUIRED],
    "socks-handshake socks-relay": [HANDSHAKE, REQUIRED, "socks-relay", "--allow-local"],
}

# One client on standard input and output


@pytest.mark.parametrize("over", ["tcp", "unix", "pipes"])
@pytest.mark.parametrize("header", WHO, ids=["1", "2", "2, IPv6", "2, unix"])
@pytest.mark.parametrize("programs", CHAIN)
def test_who_the_client_is(programs: str, header: bytes, over: str) -> None:
    """In the log; and not a byte of what follows is lost, where another program goes on."""
    with listener() as far, serving(*CHAIN[programs], over=over) as program:
        program.client.send(header + GREETING + socks5(*far.getsockname()) + b"early")
        with accept(far) as conn:
            assert read_all(conn, 5) == b"early"
            program.client.read(12)
        assert program.client.rest() == b""
        program.client.close()
        assert program.status == 0
        program.await_log(f"connected client={re.escape(WHO[header])} user=- ")
        program.await_log(f"closed client={re.escape(WHO[header])} .* reply=0 in=5 ")


SHOW = "env | grep -E '^(REMOTE|TCP|PROTO)' | sort >&2"


@pytest.mark.parametrize(
    ("header", "lines"),
    [
        (V2, ["PROTO=TCP", "REMOTE_ADDR=203.0.113.7", "REMOTE_PORT=4711", "TCPLOCALIP=192.0.2.1"]),
        (UNIX, ["PROTO=TCP", "REMOTE_ADDR=@", "TCPLOCALIP=192.0.2.1"]),
        (
            LOCAL,
            ["PROTO=TCP", "TCPLOCALIP=192.0.2.1", "TCPREMOTEIP=192.0.2.9", "TCPREMOTEPORT=9"],
        ),
    ],
)
def test_what_a_program_behind_the_handshake_finds(header: bytes, lines: list[str]) -> None:
    """Nothing that says it is somebody else."""
    ucspi = {"PROTO": "TCP", "TCPREMOTEIP": "192.0.2.9", "TCPREMOTEPORT": "9"}
    environ = environment(TCPLOCALIP="192.0.2.1", **ucspi)
    with serving(HANDSHAKE, REQUIRED, "sh", "-c", SHOW, environ=environ) as program:
        program.client.send(header + socks4("192.0.2.1", 80))
        assert program.client.rest() == b""
        assert program.log.splitlines() == lines


def test_who_sends_no_header() -> None:
    for option, answer in ((REQUIRED, b""), (OPTIONAL, b"\5\0")):
        with serving(INETD, option, over="tcp") as program:
            program.client.send(GREETING)
            assert program.client.read(2) == answer
            program.client.end()
            assert program.client.rest() == b""
            assert program.status == 0
            assert program.end == ("client-left" if answer else "protocol-error")


def test_who_may_not_send_one() -> None:
    for networks, answer in (("192.0.2.0/24", b""), ("192.0.2.0/24,127.0.0.0/8", b"\5\0")):
        with serving(INETD, OPTIONAL, f"--proxy-from={networks}", over="tcp") as program:
            program.client.send(V1 + GREETING)
            assert program.client.read(2) == answer
            program.client.end()
            assert program.client.rest() == b""
            assert program.status == 0
            assert program.end == ("client-left" if answer else "client-refused")


def test_trust_and_once_shown_passwords(tmp_path: Path) -> None:
    """They are the client's; who is in front of us has nothing by them."""
    users = tmp_path / "users"
    users.write_text("alice:secret\n")
    options = (f"--users={users}", "-1", f"--state={tmp_path}/state", "-w", "2001:db8::/32")

    def method(header: bytes, *more: str) -> bytes:
        with serving(INETD, *options, *more, over="tcp") as program:
            program.client.send(header + b"\5\2\0\2")
            return program.client.read(2)

    assert method(V2, REQUIRED) == b"\5\2"
    assert method(V2_6, REQUIRED) == b"\5\0"
    with serving(INETD, *options, REQUIRED, over="tcp") as program:
        program.client.send(V2 + PASSWORD_GREETING + credentials(b"alice", b"secret"))
        assert program.client.read(4) == b"\5\2\1\0"
    assert method(V2, REQUIRED) == b"\5\0"
    assert method(LOCAL, REQUIRED) == b"\5\2"
    assert method(b"") == b"\5\2"


WRONG = {
    ("--proxy-protocol=yes",): "--proxy-protocol: 'yes'?; say off, optional or required",
    ("--proxy-protocol=",): "--proxy-protocol: ''?; say off, optional or required",
    ("--proxy-from=::1",): "--proxy-from is for --proxy-protocol; say required, or optional",
    (REQUIRED, "--proxy-from= "): "--proxy-from is empty; name networks, or leave the option out",
    (REQUIRED, "--proxy-from=host"): "'host' is not a network; write ADDRESS or ADDRESS/BITS",
}


@pytest.mark.parametrize("options", WRONG, ids=" ".join)
def test_wrong_usage(options: tuple[str, ...]) -> None:
    with serving(INETD, *options) as program:
        assert program.status == 100
        assert WRONG[options] in program.log


# Many


@pytest.mark.parametrize("header", [V1, V2], ids=["1", "2"])
def test_a_header_that_is_cut_anywhere(header: bytes) -> None:
    with running(REQUIRED) as server, listener() as far:
        data = header + GREETING + socks5(*far.getsockname())
        for place in range(1, len(header) + 2):
            with server.connect() as client:
                client.sendall(data[:place])
                client.settimeout(0.002)  # so that it is read apart, as a rule
                with pytest.raises(TimeoutError):
                    client.recv(1)
                client.settimeout(SECONDS)
                client.sendall(data[place:])
                assert read_all(client, 12)[:4] == b"\5\0\5\0"
                accept(far).close()
        count = len(header) + 1
        server.await_log(r"connected client=203\.0\.113\.7:4711 ", count)
        server.await_log(r"closed client=203\.0\.113\.7:4711 .* end=closed", count)


def test_slow_headers() -> None:
    """None of them takes more than its time, and they keep nobody waiting."""
    with running(REQUIRED, "--handshake-timeout=2") as server, listener() as far:
        slow = [server.connect() for _ in range(20)]
        for number, client in enumerate(slow):
            client.sendall((V1, V2)[number % 2][:number])
        with server.connect() as client:
            client.sendall(V2 + socks4(*far.getsockname()))
            assert read_all(client, 8)[1] == 0x5A
            with accept(far) as conn:
                assert works(client, conn)
        for client in slow:
            assert read_all(client) == b""
            client.close()
        server.await_log("end=handshake-timeout", len(slow))


def test_headers_that_are_damaged() -> None:
    """They are refused without a word, and leave nothing behind; those that are sound are not."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    [*headers] = [V1, V2, V2_6, LOCAL, UNIX]
    with running(REQUIRED, "-w", "203.0.113.0/24") as server, listener() as far:
        [pid] = server.worker_pids()
        with server.connect() as client:
            client.sendall(V2 + socks4(*far.getsockname()))
            read_all(client, 8)
            accept(far).close()
        server.await_log("closed client=")
        before = len(descriptors(pid))  # and perhaps that client's
        for _ in range(300):
            damaged = bytearray(chance.choice(headers))
            for _ in range(chance.randint(1, 3)):
                place = chance.randrange(len(damaged))
                damaged[place : place + chance.randint(0, 2)] = chance.randbytes(
                    chance.randint(0, 2)
                )
            with server.connect() as client:
                client.sendall(bytes(damaged) + chance.randbytes(chance.randint(0, 40)))
                client.shutdown(socket.SHUT_WR)
                try:
                    read_all(client)
                except ConnectionResetError:
                    continue
        with server.connect() as client:
            client.sendall(V2 + socks4(*far.getsockname()))
            assert read_all(client, 8)[1] == 0x5A
            with accept(far) as conn:
                assert works(client, conn)
        until("nothing is open any more", lambda: len(descriptors(pid)) <= before)
        assert server.worker_pids() == [pid]


def test_looks_leave_the_log_alone() -> None:
    with running(REQUIRED) as server:
        for number in range(30):
            with server.connect() as client:
                client.sendall(LOCAL + (GREETING if number % 3 else b""))
                if number % 3:
                    assert read_all(client, 2) == b"\5\0"
                if number % 2:
                    reset(client)
        with server.connect() as client:
            client.sendall(V2)
        server.await_log(r"closed client=203\.0\.113\.7:4711 .* end=client-left")
        assert server.count("client=") == 1


def test_who_comes_for_others_is_not_counted() -> None:
    """Others are, each for itself."""
    options = (OPTIONAL, "--proxy-from=127.0.0.9", "--max-per-source=2")
    with running(*options, workers=2) as server, listener() as far:

        def ask(source: str) -> tuple[socket.socket, bool]:
            client = socket.create_connection(server.address, SECONDS, (source, 0))
            client.sendall((V2 if source == "127.0.0.9" else b"") + socks4(*far.getsockname()))
            try:
                return client, bool(read_all(client, 8))
            except ConnectionResetError:
                return client, False

        others = [ask("127.0.0.8") for _ in range(4)]
        fronts = [ask("127.0.0.9") for _ in range(9)]
        assert [is_in for _, is_in in others] == [True, True, False, False]
        assert all(is_in for _, is_in in fronts)
        server.await_log("refused client=127.0.0.8:.* end=too-many-of-this-source", 2)
        for client, _ in others + fronts:
            client.close()


# What is told


@pytest.mark.parametrize(
    ("version", "host"),
    [("5", "127.0.0.1"), ("5", "::1"), ("4", "127.0.0.1"), ("4a", "127.0.0.1"), ("4a", "::1")],
)
def test_a_destination_that_is_told(host: str, version: str) -> None:
    asked = VERSIONS[version]
    options = ("--allow-local", REQUIRED, "--send-proxy")
    with listener(host) as far, serving(INETD, *options, over="tcp") as program:
        port = far.getsockname()[1]
        program.client.send(V2 + asked.greeting + asked.request(host, port) + b"early")
        with accept(far) as conn:
            told = read_header(conn)
            assert told == ("203.0.113.7", 4711, host, port)
            assert read_all(conn, 5) == b"early"
        program.client.close()


def test_a_program_behind_the_handshake_tells() -> None:
    both = (HANDSHAKE, REQUIRED, RELAY, "--allow-local", "--send-proxy")
    with listener() as far, serving(*both, over="tcp") as program:
        program.client.send(V2_6 + socks4(*far.getsockname()))
        with accept(far) as conn:
            assert read_header(conn) == ("2001:db8::7", 4711, *far.getsockname())
        program.client.close()


def read_header(conn: socket.socket) -> tuple[str, int, str, int] | None:
    """Read a header of version 2: the client's address and port, and the other one."""
    start = read_all(conn, 16)
    assert start[:13] == SIGNATURE + b"\x21"
    block = read_all(conn, int.from_bytes(start[14:], "big"))
    if not start[13]:
        assert not block
        return None
    family, size = {0x11: (socket.AF_INET, 4), 0x21: (socket.AF_INET6, 16)}[start[13]]
    assert len(block) == 2 * size + 4
    one, other = (socket.inet_ntop(family, block[at : at + size]) for at in (0, size))
    ports = [int.from_bytes(block[at : at + 2], "big") for at in (2 * size, 2 * size + 2)]
    return one.removeprefix("::ffff:"), ports[0], other.removeprefix("::ffff:"), ports[1]


def test_a_client_that_cannot_be_told() -> None:
    options = ("--allow-local", "--send-proxy")
    with listener() as far, serving(INETD, *options, over="unix") as program:
        program.client.send(socks4(*far.getsockname()))
        with accept(far) as conn:
            assert read_header(conn) is None
        program.client.close()


def test_a_forwarder_tells(tmp_path: Path) -> None:
    """To an address, and to a unix socket: there, what the client has come to is the other one."""
    with listener() as far:
        host, port = far.getsockname()
        with serving(RELAY, "--send-proxy", host, str(port), over="tcp") as program:
            sock = program.client.socket
            assert sock is not None
            with accept(far) as conn:
                assert read_header(conn) == (*sock.getsockname(), host, port)
            program.client.close()
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        server.settimeout(SECONDS)
        with serving(RELAY, "--send-proxy", f"unix:{path}", over="tcp") as program:
            sock = program.client.socket
            assert sock is not None
            with accept(server) as conn:
                assert read_header(conn) == (*sock.getsockname(), *sock.getpeername())
            program.client.close()


def test_one_of_ours_in_front_of_another() -> None:
    with running(REQUIRED) as server, listener() as far:
        host, port = server.address
        options = ("--send-proxy", host, str(port))
        with serving(RELAY, *options, over="tcp") as program:
            sock = program.client.socket
            assert sock is not None
            program.client.send(socks4(*far.getsockname()))
            assert program.client.read(8)[1] == 0x5A
            accept(far).close()
            name = ":".join(map(str, sock.getsockname()))
            server.await_log(f"connected client={name} user=me ")
            program.client.close()


# A real client


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl here")
def test_curl() -> None:
    """curl sends a header through the proxy to what is behind; in front of SOCKS it sends none."""
    with listener() as far, running(OPTIONAL, "--send-proxy") as server:
        host, port = server.address
        url = f"http://127.0.0.1:{far.getsockname()[1]}/"
        command = ["curl", "-sS", "--haproxy-protocol", "--socks5", f"{host}:{port}", url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as curl:
            with accept(far) as conn:
                told = read_header(conn)
                assert told is not None and told[0] == "127.0.0.1"
                assert conn.makefile("rb").readline().startswith(b"PROXY TCP4 127.0.0.1 ")
                conn.sendall(b"HTTP/1.0 200 OK\r\n\r\nthe page\n")
            assert curl.communicate(timeout=SECONDS)[0] == "the page\n"
