"""ASSOCIATE through the programs: socks-inetd, socks-handshake and socks-relay, muonsocks."""

import contextlib
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from associated import ASSOCIATE, Associated, ask, associated, far_end, header
from ends import descriptors
from nameserver import nameserver, own_files
from places import another_network, in_own_network, join_networks, root_only, sh
from programs import (
    GREETING,
    HANDSHAKE,
    INETD,
    REJECTED,
    RELAY,
    SECONDS,
    Program,
    environment,
    failure,
    read_all,
    serving,
    socks4,
    socks5,
    tcp_from,
)
from real_server import ADDRESS, Server, kinds_of_descriptors, resident_memory, running, until

LOCAL = "--allow-local"
CHAINS = {
    "socks-inetd": [INETD, LOCAL],
    "socks-handshake and socks-relay": [HANDSHAKE, RELAY, LOCAL],
}
FAMILIES = {"tcp": "127.0.0.1", "tcp6": "::1", "mapped": "127.0.0.1"}


def of(program: Program, *arguments: Any, **named: Any) -> Any:
    return associated(program.client.send, program.client.read, *arguments, **named)


def of_socket(client: socket.socket, *arguments: Any, **named: Any) -> Any:
    return associated(client.sendall, lambda n: read_all(client, n), *arguments, **named)


def figures(line: str) -> dict[str, int]:
    """The numbers in a line of the log."""
    return {name: int(text) for name, text in re.findall(r"([a-z-]+)=(\d+)(?= )", line)}


# The whole of it, through each program


@pytest.mark.parametrize("far_host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("over", FAMILIES)
@pytest.mark.parametrize("chain", CHAINS)
def test_an_association(chain: str, over: str, far_host: str) -> None:
    with far_end(far_host) as far, serving(*CHAINS[chain], over=over) as program:
        with of(program) as association:
            assert association.relay[0] == FAMILIES[over], "where the client has connected to"
            association.exchange(far)
            association.exchange(far, b"")
            association.exchange(far, bytes(range(256)) * 5)
            relay = "{0[0]}:{0[1]}" if over != "tcp6" else "[{0[0]}]:{0[1]}"
            line = program.await_log("associated ")
            assert line.endswith(f" relay={relay.format(association.relay)}")
            assert " target=0.0.0.0:0 " in line
        program.client.close()
        assert program.status == 0
    assert program.end == "closed"
    closed = program.log.splitlines()[-1]
    assert figures(closed) | {"reply": 0, "in": 8 + 0 + 1280, "out": 18 + 10 + 20} == figures(
        closed
    )
    assert " datagrams-in=3 datagrams-out=3 dropped=0 " in closed


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("far_host", ["127.0.0.1", "::1"])
def test_the_resident_server(workers: int, far_host: str) -> None:
    with running(workers=workers) as server, contextlib.ExitStack() as stack:
        far = stack.enter_context(far_end(far_host))
        for _ in range(20):
            client = stack.enter_context(server.connect())
            association = stack.enter_context(of_socket(client))
            assert association.relay[0] == ADDRESS
            association.exchange(far)
        stack.close()
        server.await_log(" datagrams-in=1 datagrams-out=1 dropped=0 .* end=closed", 20)


# Sizes, and what is no datagram for us


@pytest.mark.parametrize(("over", "largest"), [("tcp", 65507 - 10), ("tcp6", 65507)])
def test_the_largest(over: str, largest: int) -> None:
    """With the header it is not to be longer than what a datagram can be."""
    with far_end() as far, serving(INETD, LOCAL, over=over) as program:
        with of(program) as association:
            association.exchange(far, bytes(65507 - 10))
            far_host, far_port = far.getsockname()
            association.send(far_host, far_port, b"")
            _, source = far.recvfrom(1)
            if largest < 65507:
                far.sendto(bytes(largest + 1), source)
            far.sendto(b"x" * largest, source)
            assert association.receive() == ((far_host, far_port), b"x" * largest)
            if largest == 65507:
                association.exchange(far, bytes(65507))
        program.client.close()
        assert program.status == 0
    assert figures(program.log.splitlines()[-1])["dropped"] == (largest < 65507)


def test_what_is_no_datagram_for_us() -> None:
    with far_end() as far, serving(INETD, LOCAL, over="tcp") as program:
        with of(program) as association:
            right = header(*far.getsockname()) + b"data"
            wrong = [
                b"",
                b"\0",
                right[:9],
                *(right[:2] + bytes([frag]) + right[3:] for frag in (1, 2, 127, 128, 255)),
                b"\0\0\0\2" + right[4:],
                b"\0\0\0\0" + right[4:],
                b"\0\0\0\3\0\0\1",
                b"\0\0\0\3\xffabc\0\1",
                b"\0\0\0\3\1 \0\1",
                b"\0\0\0\4" + bytes(17),
            ]
            for datagram in wrong:
                association.socket.sendto(datagram, association.relay)
            association.exchange(far)
        program.client.close()
        assert program.status == 0
    found = figures(program.log.splitlines()[-1])
    assert (found["datagrams-in"], found["dropped"]) == (1, len(wrong))


# Who may send


def test_only_the_client_s_host_and_its_first_port() -> None:
    with far_end() as far, serving(INETD, LOCAL, over=tcp_from("127.0.0.9")) as program:
        with of(program, source="127.0.0.9") as association:
            for source in ("127.0.0.8", "127.0.0.1"):
                with contextlib.closing(Associated(association.relay, source)) as other:
                    other.send(*far.getsockname(), b"spoofed")
            association.exchange(far)
            for source in ("127.0.0.8", "127.0.0.9"):
                with contextlib.closing(Associated(association.relay, source)) as other:
                    # The kernel tells who is not the client that nobody is there
                    other.socket.connect(association.relay)
                    other.socket.send(header(*far.getsockname()) + b"spoofed")
                    with pytest.raises(ConnectionRefusedError):
                        other.socket.recv(1)
            association.exchange(far)
        program.client.close()
        assert program.status == 0
    found = figures(program.log.splitlines()[-1])
    assert (found["datagrams-in"], found["dropped"]) == (2, 2)


def test_the_port_that_the_request_says() -> None:
    with (
        far_end() as far,
        far_end("127.0.0.9") as ours,
        serving(INETD, LOCAL, over=tcp_from("127.0.0.9")) as program,
    ):
        with of(program, *ours.getsockname(), source="127.0.0.9") as association:
            association.send(*far.getsockname(), b"from another port")
            ours.sendto(header(*far.getsockname()) + b"right", association.relay)
            assert far.recv(99) == b"right"
        program.client.close()
        assert program.status == 0
    assert figures(program.log.splitlines()[-1])["dropped"] == 1


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "some.name"])
def test_a_request_that_says_a_port_alone(host: str) -> None:
    with (
        far_end() as far,
        far_end() as ours,
        serving(INETD, LOCAL, over="tcp") as program,
        of(program, host, ours.getsockname()[1]) as association,
    ):
        association.send(*far.getsockname(), b"from another port")
        ours.sendto(header(*far.getsockname()) + b"right", association.relay)
        assert far.recv(99) == b"right"


def test_a_request_for_somebody_else() -> None:
    with serving(INETD, LOCAL, over="tcp") as program:
        assert ask(program.client.send, program.client.read, "192.0.2.7", 99) == b"\5\2\0\1"
        program.client.close()
        assert program.status == 0
    assert program.end == "client-refused"
    assert 'detail="it would send from 192.0.2.7, and may from 127.0.0.1"' in program.log


@root_only()
def test_spoofed_from_another_network() -> None:
    """Neither another host's datagrams, nor answers of who was not asked, or from another port."""

    def check() -> None:
        with another_network() as there:
            join_networks(there)
            sh("ip addr add 192.0.2.1/24 dev near")
            for host in ("192.0.2.2/24", "192.0.2.3/24", "192.0.2.4/24"):
                there(sh, f"ip addr add {host} dev far")
            with contextlib.ExitStack() as stack:
                port = 1080
                command = [str(Path(INETD).with_name("muonsocks")), "--workers=1", "-i192.0.2.1"]
                log = stack.enter_context(open("/dev/null", "w"))
                process = subprocess.Popen(
                    [*command, "--notify-fd=1"], env=environment(), stdout=-1, stderr=log
                )
                stack.callback(process.wait)
                stack.callback(process.terminate)
                assert process.stdout and process.stdout.readline() == b"\n"
                stack.enter_context(process.stdout)
                client = stack.enter_context(
                    there(socket.create_connection, ("192.0.2.1", port), SECONDS, ("192.0.2.2", 0))
                )
                association = stack.enter_context(there(of_enter, client))
                others = [there(bound, host) for host in ("192.0.2.2", "192.0.2.3", "192.0.2.4")]
                same_host, target, stranger = (stack.enter_context(one) for one in others)
                for other in (target, stranger):
                    other.sendto(header(*target.getsockname()) + b"spoofed", association.relay)
                association.send(*target.getsockname(), b"first")
                data, outside = target.recvfrom(99)
                assert data == b"first"
                for other in (same_host, stranger):
                    other.sendto(header(*target.getsockname()) + b"spoofed", association.relay)
                    other.sendto(b"not asked", outside)
                with there(bound, "192.0.2.3") as another_port:
                    another_port.sendto(b"not asked", outside)
                association.exchange(target)
                # The same port of ours is what everybody sees
                association.exchange(stranger)
                association.send(*stranger.getsockname(), b"again")
                assert stranger.recvfrom(99) == (b"again", outside)
                stranger.sendto(b"asked by now", outside)
                assert association.receive() == (stranger.getsockname(), b"asked by now")

    in_own_network(check)


def bound(host: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, 0))
    sock.settimeout(SECONDS)
    return sock


def of_enter(client: socket.socket) -> Any:
    """An association whose socket is of the network of the calling thread."""
    manager = of_socket(client, source=client.getsockname()[0])
    association = manager.__enter__()

    @contextlib.contextmanager
    def held() -> Iterator[Associated]:
        try:
            yield association
        finally:
            manager.__exit__(None, None, None)

    return held()


# What passes back


@pytest.mark.parametrize("how", ["strict", "open"])
def test_answers_of_who_was_not_asked(how: str) -> None:
    with (
        far_end() as far,
        far_end() as stranger,
        serving(INETD, LOCAL, f"--udp-filter={how}", over="tcp") as program,
    ):
        with of(program) as association:
            association.send(*far.getsockname(), b"question")
            _, outside = far.recvfrom(99)
            stranger.sendto(b"nobody has asked", outside)
            far.sendto(b"answer", outside)
            if how == "open":
                assert association.receive() == (stranger.getsockname(), b"nobody has asked")
            assert association.receive() == (far.getsockname(), b"answer")
        program.client.close()
        assert program.status == 0
    assert figures(program.log.splitlines()[-1])["dropped"] == (how == "strict")


def test_a_client_that_does_not_listen_is_told_no_end() -> None:
    """ICMP errors of either side end nothing."""
    with (
        far_end() as far,
        serving(INETD, LOCAL, over="tcp") as program,
        of(program) as association,
    ):
        association.exchange(far)
        association.send(*far.getsockname(), b"question")
        _, outside = far.recvfrom(99)
        mine = association.socket.getsockname()
        association.socket.close()
        for _ in range(3):
            far.sendto(b"is anybody there?", outside)
        association.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        association.socket.settimeout(SECONDS)
        association.socket.bind(mine)
        with far_end() as gone:
            closed = gone.getsockname()
        association.send(*closed, b"is anybody there?")
        association.send(*far.getsockname(), b"question")
        assert far.recv(99) == b"question"


# Where it may go


def test_rules(tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    with far_end() as far, far_end() as denied, far_end() as other:
        rules.write_text(
            f"deny associate 127.0.0.1 {denied.getsockname()[1]}\n"
            f"deny connect *\n"
            f"via socks5://127.0.0.1:1 associate 127.0.0.1 {other.getsockname()[1]}\n"
        )
        with serving(INETD, LOCAL, f"--rules={rules}", "-v", over="tcp") as program:
            with of(program) as association:
                for _ in range(3):
                    association.send(*denied.getsockname(), b"no")
                    association.send(*other.getsockname(), b"no")
                association.exchange(far)
            program.client.close()
            assert program.status == 0
    assert program.log.count(f"dropped=127.0.0.1:{denied.getsockname()[1] if 0 else ''}") == 2
    assert f'error="denied by {rules}:1"' in program.log
    assert figures(program.log.splitlines()[-1])["dropped"] == 6


def test_this_host_s_own_side() -> None:
    with (
        far_end() as far,
        serving(INETD, "-v", over="tcp") as program,
        of(program) as association,
    ):
        association.send(*far.getsockname(), b"no")
        program.await_log("dropped=127.0.0.1:.*own side, see --allow-local")


def test_the_command_is_denied(tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text("deny associate\n")
    with serving(INETD, f"--rules={rules}", over="tcp") as program:
        assert ask(program.client.send, program.client.read) == b"\5\2\0\1"
        program.client.close()
        assert program.status == 1
    assert program.end == "refused-by-rule"
    assert f'detail="denied by {rules}:1"' in program.log


@pytest.mark.parametrize("over", ["unix", "pipes", "pty"])
def test_a_client_that_is_not_over_tcp(over: str) -> None:
    with serving(INETD, over=over) as program:
        assert ask(program.client.send, program.client.read) == b"\5\7\0\1"
        program.client.close()
        assert program.status == 0
    assert program.end == "command-not-supported"
    assert 'detail="associate: the client does not come over TCP"' in program.log


def test_socks4_has_none() -> None:
    with serving(INETD, over="tcp") as program:
        program.client.send(socks4("192.0.2.1", 1, command=ASSOCIATE))
        assert program.client.read(8) == REJECTED
        program.client.close()
        assert program.status == 0
    assert 'detail="associate: SOCKS4 has no such command"' in program.log


def test_another_family_than_the_client_s() -> None:
    environ = environment(REMOTE_ADDR="2001:db8::7", REMOTE_PORT="7")
    with serving(INETD, over="tcp", environ=environ) as program:
        assert ask(program.client.send, program.client.read) == b"\5\7\0\1"
        program.client.close()
        assert program.status == 0
    assert "is not of the family that it comes over" in program.log


def test_the_client_is_who_the_environment_says() -> None:
    environ = environment(REMOTE_ADDR="127.0.0.9", REMOTE_PORT="7")
    with (
        far_end() as far,
        serving(INETD, LOCAL, over="tcp", environ=environ) as program,
        of(program, source="127.0.0.9") as association,
    ):
        association.exchange(far)


# Names


NAMES = {"far.example": "127.0.0.1", "slow.example": "127.0.0.1", "bad.example": "192.0.2.66"}


@root_only()
def test_names(tmp_path: Path) -> None:
    """They are looked up once for a while; one that takes long is in no other one's way."""

    def check() -> None:
        own_files(tmp_path, "127.0.0.1 localhost\n")
        with (
            nameserver("127.0.0.1", NAMES, frozenset({"slow.example"})) as names,
            far_end() as far,
            serving(INETD, LOCAL, "-v", over="tcp") as program,
            of(program) as association,
        ):
            port = far.getsockname()[1]
            association.send("slow.example", port, b"slow")
            for number in range(5):
                association.send("far.example", port, b"%d" % number)
            for number in range(5):
                data, source = far.recvfrom(99)
                assert data == b"%d" % number
            far.sendto(b"answer", source)
            assert association.receive() == (("127.0.0.1", port), b"answer")
            association.send("none.example", port, b"x")
            program.await_log("dropped=none.example:.*Name or service not known")
            names.release()
            assert far.recv(99) == b"slow"
            assert sorted({*names.asked}) == ["far.example", "none.example", "slow.example"]
            assert len(names.asked) <= 2 * 3  # A and AAAA

    in_own_network(check)


# Ends


def test_the_client_says_something_where_nobody_listens() -> None:
    with far_end() as far, serving(INETD, LOCAL, over="tcp") as program:
        with of(program) as association:
            program.client.send(bytes(300_000))
            association.exchange(far)
        program.client.end()
        assert program.client.rest() == b""
        assert program.status == 0
    assert program.end == "closed"


def test_the_client_is_gone_at_once() -> None:
    with serving(INETD, LOCAL, over="tcp") as program:
        program.client.send(GREETING + socks5("0.0.0.0", 0, command=ASSOCIATE))
        program.client.end()
        assert program.client.rest()[:4] == b"\5\0\5\0"
        assert program.status == 0
    assert program.end == "closed"


def test_the_client_resets() -> None:
    with far_end() as far, serving(INETD, LOCAL, over="tcp") as program:
        with of(program) as association:
            association.exchange(far)
        program.client.reset()
        assert program.status == 0
    assert program.end == "reset"


def test_idle() -> None:
    with far_end() as far, serving(INETD, LOCAL, "--idle-timeout=0.5", over="tcp") as program:
        with of(program) as association:
            association.exchange(far)
            assert program.client.rest() == b""
        assert program.status == 0
    assert program.end == "idle-timeout"


def test_interrupted() -> None:
    with serving(INETD, LOCAL, over="tcp") as program, of(program):
        program.await_log("associated ")
        program.process.send_signal(signal.SIGTERM)
        assert program.client.rest() == b""
        program.status  # noqa: B018
    assert program.end == "terminated"


@pytest.mark.parametrize("drain", [0.3, 20])
def test_the_server_stops_with_associations_up(drain: float) -> None:
    """They are given the time to end, and then ended."""
    with running(drain=drain, workers=2) as server, far_end() as far:
        with server.connect() as client, of_socket(client) as association:
            association.exchange(far)
            server.terminate()
            if drain == 20:
                until("nobody else may come in", lambda: not listens(server))
                association.exchange(far)
                client.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
        assert server.status == 0
        server.await_log(f"end={'closed' if drain == 20 else 'terminated'}")


def listens(server: Server) -> bool:
    try:
        server.connect().close()
    except ConnectionRefusedError:
        return False
    return True


# Many


def test_nothing_stays_open() -> None:
    with running(workers=1) as server, far_end() as far, far_end("::1") as far6:
        [worker] = server.worker_pids()

        def use() -> None:
            with server.connect() as client, of_socket(client) as association:
                association.exchange(far)
                association.exchange(far6)
                for number in range(100):
                    association.send("127.0.0.1", 1 + number, b"x")
                association.send("localhost", far.getsockname()[1], b"name")
                assert far.recv(99) == b"name"

        for _ in range(5):
            use()
        server.await_log(" end=closed", 5)
        before = kinds_of_descriptors(worker)
        for _ in range(50):
            use()
        server.await_log(" end=closed", 55)
        until("all are closed", lambda: kinds_of_descriptors(worker) == before)


COUNT = 1000
MOST_MEMORY = 8  # KB of an association that is idle, with its look-up tables


def test_a_thousand_idle_associations() -> None:
    """They are cheap, and all of them still work."""
    with running(workers=1) as server, far_end() as far, contextlib.ExitStack() as stack:
        [worker] = server.worker_pids()
        with server.connect() as client, of_socket(client) as association:
            association.exchange(far)
        before = resident_memory(worker)
        all_of_them = []
        for _ in range(COUNT):
            client = stack.enter_context(server.connect())
            all_of_them.append(stack.enter_context(of_socket(client)))
        open_only = (resident_memory(worker) - before) / COUNT
        for association in all_of_them:
            association.exchange(far)
        used = (resident_memory(worker) - before) / COUNT
        sys.stdout.write(f"KB an association: {open_only:.2f} open, {used:.2f} used\n")
        assert len(descriptors(worker)) > 3 * COUNT
        assert used < MOST_MEMORY


@root_only()
@pytest.mark.parametrize(
    ("option", "code"), [("-m7", 2), ("-Bnothere0", 1)], ids=["no right", "no interface"]
)
def test_datagrams_that_could_not_leave(option: str, code: int) -> None:
    """The client is told at once: each of them would be lost."""
    without = ("setpriv", "--bounding-set=-net_admin,-net_raw")
    with serving(*without, INETD, LOCAL, option, over="tcp") as program:
        assert ask(program.client.send, program.client.read)[1] == code
        program.client.close()
        assert program.status == 0
    assert program.end == "associate-failed"


def test_no_descriptor_for_an_association() -> None:
    """Not even for its modules: that is the end, and it is said. (For it alone: test_associate.py
    in tests/socks.)
    """
    ends = set()
    for limit in (6, 9):
        with serving("prlimit", f"--nofile={limit}", INETD, LOCAL, over="tcp") as program:
            program.client.send(GREETING + socks5("0.0.0.0", 0, command=ASSOCIATE))
            answer = program.client.read(12)[2:4]
            program.client.close()
            ends.add((answer, program.status))
        assert f" end={'closed' if answer else 'system-error'}" in program.log
        assert "Traceback" not in program.log
    assert ends == {(b"", 111), (b"\5\0", 0)}


def test_floods_have_a_bound() -> None:
    """Destinations by the ten thousand, and names that nobody answers for, take no memory."""
    with running(workers=1) as server, far_end() as far:
        [worker] = server.worker_pids()
        with server.connect() as client, of_socket(client) as association:

            def flood() -> None:
                for number in range(30_000):
                    host = f"127.{number % 200}.{number // 200}.1"
                    association.send(host, 9, bytes(10))
                    if number % 100 == 0:
                        association.send(f"n{number}.invalid", 9, bytes(1000))
                    if number % 50 == 0:  # as many as a socket holds, and not more
                        association.exchange(far)

            flood()
            before = resident_memory(worker)
            flood()
            assert resident_memory(worker) - before < 1000
        server.await_log("end=closed")


def test_reply_of_the_failure_is_a_whole_one() -> None:
    with serving(INETD, over="unix") as program:
        program.client.send(GREETING + socks5("0.0.0.0", 0, command=ASSOCIATE))
        assert program.client.read(12) == b"\5\0" + failure(7)
