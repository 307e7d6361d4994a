"""muonsocks as another user, in another root directory; and addresses that have authenticated."""

import os
import pwd
import re
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
from associated import associated, far_end
from places import in_own_network, root_only
from programs import (
    GREETING,
    INETD,
    PASSWORD_GREETING,
    SECONDS,
    accept,
    credentials,
    listener,
    read_all,
    serving,
    socks5,
    tcp_from,
)
from real_server import ADDRESS, Server, children, ended, running, until, works

NOBODY = pwd.getpwnam("nobody")
HASHED = b"alice:$scrypt$ln=1,r=1,p=1$c2FsdA$GtU/iZI/Jr0SqMXsDzrJ9eTIZcSt0Qp1G8Q9iTqNCVE\n"
ALICE = ("-U", "alice", "-P", "secret")


def status(pid: int, *names: str) -> list[str]:
    """Fields of /proc/PID/status."""
    text = Path(f"/proc/{pid}/status").read_text()
    return [" ".join(re.findall(rf"^{name}:(.*)", text, re.M)[0].split()) for name in names]


def helpers(server: Server) -> list[int]:
    return [pid for worker in server.worker_pids() for pid in children(worker)]


# Privileges


@root_only()
@pytest.mark.parametrize("root", ["", "chroot"])
@pytest.mark.parametrize("user", ["nobody", str(NOBODY.pw_uid)])
def test_workers_give_up_all(tmp_path: Path, root: str, user: str) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    options = ["--user", user, *(["--chroot", str(empty)] if root else [])]
    with listener() as far, running(*options, workers=2) as server:
        confined = server.worker_pids()
        assert [os.readlink(f"/proc/{pid}/root") for pid in confined] == (
            [str(empty) if root else "/"] * 2
        )
        assert len(helpers(server)) == (2 if root else 0)
        for pid in confined + helpers(server):
            assert status(pid, "Uid", "Gid") == [" ".join([str(NOBODY.pw_uid)] * 4)] + [
                " ".join([str(NOBODY.pw_gid)] * 4)
            ]
            assert status(pid, "Groups", "NoNewPrivs") == ["", "1"]
            sets = status(pid, "CapInh", "CapPrm", "CapEff", "CapAmb")
            assert {int(one, 16) for one in sets} == {0}
        assert status(server.pid, "Uid") == ["0 0 0 0"]
        assert works(*server.joined(far))


@root_only()
def test_who_the_client_is_in_a_root_directory(tmp_path: Path) -> None:
    """It is said to the workers there, and by them."""
    (tmp_path / "empty").mkdir()
    options = ["-u", "nobody", "-C", str(tmp_path / "empty")]
    header = b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 1080\r\n"
    with listener() as far, running(*options, "--proxy-protocol=required") as server:
        with server.connect() as client:
            client.sendall(header + GREETING + socks5(*far.getsockname()))
            assert read_all(client, 12)[:4] == b"\5\0\5\0"
        server.await_log("connected client=203.0.113.7:4711 ")
        accept(far).close()
    with listener() as far, running(*options, "--send-proxy") as server:
        _, conn = server.joined(far)
        assert read_all(conn, 12) == bytes.fromhex("0d0a0d0a000d0a515549540a")


@root_only()
@pytest.mark.parametrize("scheme", ["", "socks5h", "socks4a"])
def test_what_is_loaded_on_demand_in_a_root_directory(tmp_path: Path, scheme: str) -> None:
    """There is nothing to load there: each command, and each way, is there already."""
    (tmp_path / "empty").mkdir()
    options = ["-u", "nobody", "-C", str(tmp_path / "empty"), "--resolve-commands"]
    with running("--resolve-commands") as upstream, listener() as far, far_end() as outside:
        if scheme:
            options.append("--via={}://{}:{}".format(scheme, *upstream.address))
        with running(*options) as server:
            assert works(*server.joined(far))
            with server.connect() as client:
                client.sendall(GREETING + socks5("127.0.0.1", 21, command=2))
                reply = read_all(client, 12)[2:]
                assert reply[:4] == b"\5\0\0\1"
                where = ("127.0.0.1", int.from_bytes(reply[-2:]))
                assert scheme or socket.inet_ntoa(reply[4:8]) == where[0]
                with socket.create_connection((socket.inet_ntoa(reply[4:8]), where[1])):
                    assert read_all(client, 10)[:4] == b"\5\0\0\1"
            with server.connect() as client:
                client.sendall(GREETING + socks5("localhost", 0, command=0xF0))
                assert read_all(client, 4)[2:] == b"\5\0"
            if scheme != "socks4a":
                with (
                    server.connect() as client,
                    associated(client.sendall, lambda n: read_all(client, n)) as association,
                ):
                    association.exchange(outside)


@root_only()
def test_names_are_found_outside_of_the_root_directory(tmp_path: Path) -> None:
    def in_network() -> None:
        names = tmp_path / "hosts"
        names.write_text(f"{ADDRESS} only-here.example\n")
        os.system(f"mount --bind {names} /etc/hosts")
        (tmp_path / "empty").mkdir()
        options = ["-u", "nobody", "-C", str(tmp_path / "empty")]
        with listener(ADDRESS) as far, running(*options, workers=1) as server:
            port = far.getsockname()[1]
            for name, code in (("only-here.example", 0), ("nowhere.example", 4)):
                with server.connect() as client:
                    client.sendall(GREETING + socks5(name, port))
                    assert read_all(client, 4)[3] == code
            # Without the process that looks names up a worker is of no use, and is replaced.
            worker = server.worker_pids()[0]
            with server.connect() as client:
                client.sendall(GREETING + socks5("only-here.example", port))
                assert read_all(client, 4)[3] == 0
                os.kill(helpers(server)[0], signal.SIGKILL)
                server.await_log("no names can be looked up any more")
            until("it is replaced", lambda: server.worker_pids() != [worker])
            until("it has its helper", lambda: len(helpers(server)) == 1)
            with server.connect() as client:
                client.sendall(GREETING + socks5("only-here.example", port))
                assert read_all(client, 4)[3] == 0

    in_own_network(in_network)


@root_only()
def test_what_is_read_again_is_read_as_root_and_outside(tmp_path: Path) -> None:
    rules, empty = tmp_path / "rules", tmp_path / "empty"
    rules.write_text("deny *\n")
    rules.chmod(0o600)
    empty.mkdir()
    options = ["-u", "nobody", "-C", str(empty), f"--rules={rules}"]
    with listener() as far, running(*options, workers=2) as server:
        with server.connect() as client:
            client.sendall(GREETING + socks5(*far.getsockname()))
            assert read_all(client, 4)[3] == 2
        rules.write_text("allow *\n")
        server.signal(signal.SIGHUP)
        server.await_log("reloaded")
        for _ in range(4):
            until("they go by it", lambda: works(*server.joined(far)))


@root_only()
def test_hashed_passwords_in_a_root_directory(tmp_path: Path) -> None:
    """hashlib's libraries are not there any more."""
    users, empty = tmp_path / "users", tmp_path / "empty"
    users.write_bytes(HASHED)
    empty.mkdir()
    options = ["-u", "nobody", "-C", str(empty), f"--users={users}"]
    with running(*options) as server, server.connect() as client:
        client.sendall(PASSWORD_GREETING + credentials(b"alice", b"wrong"))
        assert read_all(client, 4) == b"\5\2\1\1"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["-u", "no-such-user"], "there is no user 'no-such-user'"),
        (["-u", "root"], "the user 'root' has root's number"),
        (["-u", "nobody", "-m", "1"], "-m takes a privilege that -u gives up"),
    ],
)
def test_users_that_cannot_be(options: list[str], complaint: str) -> None:
    code, lines = ended("-i", ADDRESS, *options)
    assert code == 100
    assert len(lines) == 1 and complaint in lines[0]


@root_only()
def test_a_root_directory_that_cannot_be(tmp_path: Path) -> None:
    for options, complaint in (
        (["-C", str(tmp_path)], "-C alone does not hold root"),
        (["-u", "nobody", "-C", str(tmp_path / "missing")], "missing: No such file or directory"),
        (["-u", "nobody", "-C", ""], "-C is empty"),
    ):
        code, lines = ended("-i", ADDRESS, "-p", "0", *options)
        assert code in (100, 111)
        assert len(lines) == 1 and complaint in lines[0], lines


# Addresses that have authenticated


def shows_password(server: Server, source: str) -> None:
    with socket.create_connection(server.address, SECONDS, (source, 0)) as client:
        client.sendall(PASSWORD_GREETING + credentials(b"alice", b"secret"))
        assert read_all(client, 4) == b"\5\2\1\0"


def comes_in(server: Server, source: str) -> bool:
    """Whether a client at `source` needs no password."""
    with socket.create_connection(server.address, SECONDS, (source, 0)) as client:
        client.sendall(GREETING)
        return read_all(client, 2) == b"\5\0"


@pytest.mark.parametrize("user", ["", pytest.param("nobody", marks=root_only())])
def test_all_workers_know_who_has_authenticated(tmp_path: Path, user: str) -> None:
    """And those of the next server, and socks-inetd, which says so to the server as well."""
    state = tmp_path / "state"
    options = [*ALICE, "-1", f"--state={state}"]
    as_user = ["-u", user, "-C", str(tmp_path)] if user else []
    with running(*options, *as_user, workers=3) as server:
        assert not comes_in(server, "127.0.0.7")
        shows_password(server, "127.0.0.7")
        # More at a time than one worker takes: all of them are asked.
        with ExitStack() as stack:
            clients = [
                stack.enter_context(
                    socket.create_connection(server.address, SECONDS, ("127.0.0.7", 0))
                )
                for _ in range(24)
            ]
            for client in clients:
                client.sendall(GREETING)
            assert {read_all(client, 2) for client in clients} == {b"\5\0"}
        assert not comes_in(server, "127.0.0.8")
    with running(*options, *as_user, workers=1) as server:
        assert comes_in(server, "127.0.0.7")
        if user:
            return  # what belongs to that user is not for root's socks-inetd
        with serving(INETD, *options, over=tcp_from("127.0.0.7")) as program:
            program.client.send(GREETING)
            assert program.client.read(2) == b"\5\0"
        with serving(INETD, *options, over=tcp_from("127.0.0.9")) as program:
            program.client.send(PASSWORD_GREETING + credentials(b"alice", b"secret"))
            assert program.client.read(4) == b"\5\2\1\0"
        assert comes_in(server, "127.0.0.9")


def test_it_expires(tmp_path: Path) -> None:
    options = [*ALICE, "-1", f"--state={tmp_path / 'state'}", "--auth-once-ttl=0.5"]
    with running(*options) as server:
        shows_password(server, "127.0.0.7")
        assert comes_in(server, "127.0.0.7")
        until("it has expired", lambda: not comes_in(server, "127.0.0.7"))
