"""socketbox with the configuration of python-socketbox: receivers that register, and networks."""

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from box import SOCKETBOX, Receiver, receiver, served_by, status_of
from ends import descriptors
from places import in_own_network, root_only, sh
from programs import SECONDS, environment
from real_server import children, ended, free_port, is_alive, until

ACCEPTED, FRAME = b"\x80\0\0\0", b"\3\0\0\0"
TO_SLOT_0 = {"_start": {"type": "rule", "rules": [{"jump": "o:0"}]}}
ME = os.getuid()


def request(group: int) -> bytes:
    return struct.pack("!BxxxI", 1, group)


def control(path: Path) -> socket.socket:
    """Connect to a control path."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(SECONDS)
    sock.connect(str(path))
    return sock


@contextlib.contextmanager
def registered(path: Path, group: int = 0) -> Iterator[Receiver]:
    with control(path) as sock:
        sock.send(request(group))
        assert sock.recv(100) == ACCEPTED
        yield Receiver(sock)


class Document:
    """A configuration: one listener, and slot 0 for us at the path `ctl`."""

    def __init__(self, place: Path) -> None:
        self.path = place / "box.json"
        self.control = place / "ctl"
        self.port = free_port("127.0.0.1")
        self.content: dict[str, Any] = {
            "socketbox-version": 1,
            "incoming": [{"address": "127.0.0.1", "port": self.port}],
            "paths": [{"socket": str(self.control)}],
            "outgoing": [{"uid": ME, "path_nr": 0}],
            "rules": TO_SLOT_0,
        }

    def write(self, **changes: Any) -> "Document":
        self.path.write_text(json.dumps(self.content | changes))
        return self

    def served(self, **changes: Any) -> Any:
        self.write(**changes)
        return served_by("--json", str(self.path))

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), SECONDS)


@pytest.fixture
def document(tmp_path: Path) -> Document:
    return Document(tmp_path)


@pytest.mark.parametrize("control", ["second", "relative"])
def test_no_file_is_left(document: Document, tmp_path: Path, control: str) -> None:
    """When another one cannot be had, or its place is no longer where the program is."""
    paths = [{"socket": "ctl"}, {"socket": "/no/such/directory"}]
    document.write(paths=paths[: 1 + (control == "second")])
    with tempfile.TemporaryFile() as log:
        command = [SOCKETBOX, "-d", "--json", "box.json"]
        status = subprocess.run(command, cwd=tmp_path, stderr=log, env=environment()).returncode
        log.seek(0)
        lines = log.read().decode().splitlines()
    if control == "relative":
        [pid] = [int(line.split("[")[1].split("]")[0]) for line in lines if "listening" in line]
        assert (tmp_path / "ctl").exists()
        os.kill(pid, signal.SIGTERM)
        until("it ends", lambda: not is_alive(pid))
    assert status == (111 if control == "second" else 0)
    assert os.listdir(tmp_path) == ["box.json"]


def test_the_wire(document: Document) -> None:
    """Byte for byte: the request, the answer, and a frame with each connection."""
    with document.served():
        assert document.control.stat().st_mode & 0o7777 == 0o700
        with control(document.control) as sock:
            assert sock.send(bytes.fromhex("0100000000000000")) == 8
            assert sock.recv(100) == bytes.fromhex("80000000")
            for _ in range(3):
                with document.connect() as client:
                    got = Receiver(sock).message()
                    with got.socket as served:
                        assert (got.data, got.count, got.flags) == (FRAME, 1, 0)
                        assert got.blocking
                        assert served.getpeername() == client.getsockname()
    assert not document.control.exists()


REFUSED = {
    "a group that there is not": request(7),
    "four bytes": b"\1\0\0\0",
    "nine bytes": request(0) + b"\0",
    "another word": b"\2\0\0\0\0\0\0\0",
    "something in the gap": b"\1\0\0\1\0\0\0\0",
    "a slot of somebody else": request(1),
    "a slot of another path": request(2),
    "nothing": b"",
}


@pytest.mark.parametrize("what", REFUSED)
def test_who_is_refused(document: Document, what: str) -> None:
    """Finds the connection closed; and who has a slot keeps it."""
    slots = [{"uid": uid, "path_nr": path} for uid, path in ((ME, 0), (ME + 1, 0), (ME, 1))]
    paths = [{"socket": str(document.control)}, {"socket": f"{document.control}2"}]
    with document.served(outgoing=slots, paths=paths), registered(document.control) as there:
        with control(document.control) as sock:
            if REFUSED[what]:
                sock.send(REFUSED[what])
            else:
                sock.shutdown(socket.SHUT_WR)
            assert sock.recv(100) == b""
        with document.connect(), there.take():
            pass


def test_a_slot_that_is_taken(document: Document) -> None:
    """Until who has it lets go."""
    with document.served() as process:
        with registered(document.control) as there:
            with control(document.control) as sock:
                sock.send(request(0))
                assert sock.recv(100) == b""
            with document.connect(), there.take():
                pass
        worker = children(process.pid)[0]
        until("it is free", lambda: is_free(document.control))
        with registered(document.control) as there, document.connect(), there.take():
            pass
        before = len(descriptors(worker))
        for _ in range(20):
            until("it is free", lambda: is_free(document.control))
        until("nothing is left open", lambda: len(descriptors(worker)) <= before)


def is_free(path: Path) -> bool:
    with control(path) as sock:
        sock.send(request(0))
        return sock.recv(100) == ACCEPTED


def test_who_says_more_than_a_request(document: Document) -> None:
    """Loses its slot: nothing else can be meant, and nobody is to fill our memory."""
    with document.served(), registered(document.control) as there:
        there.socket.send(b"more")
        assert there.socket.recv(100) == b""
        until("it is free", lambda: is_free(document.control))


def test_a_user_has_five_connections(document: Document) -> None:
    with document.served(), contextlib.ExitStack() as stack:
        silent = [stack.enter_context(control(document.control)) for _ in range(5)]
        with control(document.control) as sock:
            assert sock.recv(1) == b""
        silent.pop().close()
        until("there is room", lambda: is_free_or_closed(document.control))


def is_free_or_closed(path: Path) -> bool:
    try:
        return is_free(path)
    except (ConnectionResetError, BrokenPipeError):
        return False


def test_a_receiver_that_is_full(document: Document) -> None:
    """What has no room in its socket waits, and comes in its turn."""
    count = 400
    with (
        document.served() as process,
        registered(document.control) as there,
        contextlib.ExitStack() as stack,
    ):
        clients = [stack.enter_context(document.connect()) for _ in range(count)]
        until("some wait", lambda: len(descriptors(children(process.pid)[0])) > 100)
        for client in clients:
            with there.take() as served:
                assert served.getpeername() == client.getsockname()


def test_a_receiver_that_goes_while_others_wait(document: Document) -> None:
    """They wait for the next one, as do those that come when nobody has registered."""
    count = 100
    with document.served(), contextlib.ExitStack() as stack:
        with registered(document.control) as there:
            clients = [stack.enter_context(document.connect()) for _ in range(count)]
            for _ in range(count // 2):
                there.take().close()
        clients += [stack.enter_context(document.connect()) for _ in range(count)]
        with registered(document.control) as there:
            expected = [client.getsockname() for client in clients]
            found = []
            for _ in range(count + count // 2 - 12):
                with there.take() as served:
                    found.append(served.getpeername())
        lost = expected.index(found[0]) - count // 2  # in the queue of the first one
        assert 0 <= lost <= 12
        assert found == expected[count // 2 + lost :][: len(found)]


@root_only()
def test_who_registers_is_who_it_says(document: Document) -> None:
    """SO_PEERCRED says that, and not the one that could be written into a message."""
    place = Path(tempfile.mkdtemp())  # where others may go
    place.chmod(0o755)
    document.control = place / "ctl"
    paths = [{"socket": str(document.control), "mode": "666", "uid": 4321, "gid": 1234}]
    with document.served(paths=paths):
        status = document.control.stat()
        assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o666, 4321, 1234)
        child = os.fork()
        if child == 0:
            answer = b"?"
            try:
                os.setresuid(4321, 4321, 4321)
                with control(document.control) as sock:
                    sock.send(request(0))
                    answer = sock.recv(100)
            finally:
                os._exit(len(answer))
        assert os.waitpid(child, 0)[1] == 0  # of length
        assert is_free(document.control)
    place.rmdir()


@root_only()
def test_the_daemon(document: Document, tmp_path: Path) -> None:
    daemon = {"uid": 4321, "gid": 1234, "groups": [5, 6], "chroot": str(tmp_path)}
    with document.served(daemon=daemon) as process:
        [worker] = children(process.pid)
        assert status_of(worker, "Uid", "Gid", "Groups") == [
            "4321 4321 4321 4321",
            "1234 1234 1234 1234",
            "5 6",
        ]
        assert os.readlink(f"/proc/{worker}/root") == str(tmp_path)
        with registered(document.control) as there, document.connect(), there.take():
            pass


@root_only()
def test_a_relative_root_directory_in_the_background(document: Document, tmp_path: Path) -> None:
    """It is the one where the program was started, and not one in /, where it goes."""
    (tmp_path / "root").mkdir()
    document.write(daemon={"uid": 4321, "gid": 1234, "chroot": "root"})
    with tempfile.TemporaryFile() as log:
        command = [SOCKETBOX, "-d", "--json", "box.json"]
        status = subprocess.run(command, cwd=tmp_path, stderr=log, env=environment()).returncode
        log.seek(0)
        said = log.read().decode()
    assert status == 0, said
    pid = int(said.split("[")[1].split("]")[0])
    try:
        assert os.readlink(f"/proc/{children(pid)[0]}/root") == str(tmp_path / "root")
    finally:
        os.kill(pid, signal.SIGTERM)
        until("it ends", lambda: not is_alive(pid))


@root_only()
def test_networks(document: Document) -> None:
    """Each listener is in a network of its own, and the program at last in a third one."""

    def check() -> None:
        sh("mkdir -p /run/netns", "mount -t tmpfs tmpfs /run/netns")
        for name in ("one", "two", "last"):
            sh(f"ip netns add {name}", f"ip -n {name} link set lo up")
        incoming = [
            {"address": "::1", "port": 80, "netns": "/run/netns/one"},
            {"address": "127.0.0.1", "port": 80, "netns": "/run/netns/two"},
            {"address": "127.0.0.1", "port": 81},
        ]
        rules = [
            {"incoming_socket": 0, "jump": "o:0"},
            {"incoming_socket": 2, "jump": "o:0"},
        ]
        networks = {
            "incoming": incoming,
            "final_netns": "/run/netns/last",
            "rules": {"_start": {"type": "rule", "rules": rules}},
        }
        with document.served(**networks) as process, registered(document.control) as there:
            last = os.stat("/run/netns/last")
            for pid in (process.pid, *children(process.pid)):
                here = os.stat(f"/proc/{pid}/ns/net")
                assert (here.st_dev, here.st_ino) == (last.st_dev, last.st_ino)
            for name, where, is_passed in (
                ("one", "::1 80", True),
                ("two", "127.0.0.1 80", False),
                ("two", "127.0.0.1 81", True),
            ):
                code = "import socket, sys; a = sys.argv; c = socket.create_connection(a[1:]);"
                code += "c.settimeout(20); sys.exit(c.recv(5) != b'hello')"
                command = f'ip netns exec {name} /usr/bin/python3 -c "{code}" {where}'
                child = os.fork()
                if child == 0:
                    os._exit(os.waitstatus_to_exitcode(os.system(command)))
                if is_passed:
                    there.serve()
                assert bool(os.waitpid(child, 0)[1]) is not is_passed

    in_own_network(check)


def test_an_inherited_socket(document: Document) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", document.port))
        number = sock.fileno()
        document.write(incoming=[{"fd": number, "listen": True}])
        with (
            served_by("--json", str(document.path), pass_fds=(number,)),
            registered(document.control) as there,
            document.connect(),
            there.take(),
        ):
            pass
        document.write(incoming=[{"fd": number}])
        sock2 = socket.socket()
        sock2.bind(("127.0.0.1", 0))
        document.write(incoming=[{"fd": sock2.fileno()}])
        status, lines = ended(
            "--json", str(document.path), program=(SOCKETBOX,), pass_fds=(sock2.fileno(),)
        )
        expected = f'socketbox: descriptor {sock2.fileno()} does not listen; add "listen": true'
        assert (status, lines) == (100, [expected])
        sock2.close()


def test_rules_are_read_again(document: Document, tmp_path: Path) -> None:
    """And nothing else is: what would take a restart is said."""
    log = tmp_path / "log"
    with log.open("wb") as file:
        document.write()
        with (
            served_by("--json", str(document.path), stderr=file) as process,
            registered(document.control) as there,
        ):
            with document.connect(), there.take():
                pass
            document.path.write_text("1" * 5000)
            process.send_signal(1)
            what = f"not reloaded, all stays as it was: {document.path}: a number has more digits"
            until("it says so", lambda: what in log.read_text())
            with document.connect(), there.take():
                pass
            document.write(outgoing=[])
            process.send_signal(1)
            until("it says so", lambda: "there is no slot 0" in log.read_text())
            document.write(paths=[], outgoing=[{"uid": ME, "path_nr": 0}])
            process.send_signal(1)
            what = f"{document.path}: paths has changed, and is read at the start only; restart"
            until("it says so", lambda: what in log.read_text())
            with document.connect(), there.take():
                pass
            nothing = {"_start": {"type": "rule", "rules": []}}
            document.write(rules=nothing)
            process.send_signal(1)
            until("it is reloaded", lambda: ": reloaded\n" in log.read_text())
            until("nobody is passed on", lambda: is_closed(document))


def is_closed(document: Document) -> bool:
    with document.connect() as client:
        client.settimeout(0.5)
        try:
            return client.recv(1) == b""
        except TimeoutError:
            return False


def test_explain(document: Document) -> None:
    """Which listener it comes in at is found by its address."""
    start = [{"incoming_socket": number, "jump": f"o:{number}"} for number in (1, 0)]
    document.write(
        rules={"_start": {"type": "rule", "rules": start}},
        incoming=[{"address": "::", "port": 80}, {"address": "::1", "port": 80}],
        outgoing=[{"uid": ME, "path_nr": 0}] * 2,
    )
    for address, number in (("[::1]:80", 1), ("[::2]:80", 0), ("1.2.3.4:80", 0)):
        _, lines = ended(
            *("--json", str(document.path), "--explain", address, "[::9]:1"), program=(SOCKETBOX,)
        )
        assert lines[1] == f"listener {number}, as its address and port have it"
        assert any(line.startswith(f"decision: o:{number} ") for line in lines)


WRONG = {
    "{": r"FILE:1:2: no JSON: Expecting property name enclosed in double quotes",
    "[]": "FILE: an object is expected, and this is a list",
    "\udcff": "FILE is not UTF-8 text; write it so",
    "[" * 100000: "FILE: there is too much inside of each other",
    '{"socketbox-version": ' + "1" * 5000 + "}": "FILE: a number has more digits than can be read; "
    "no number here has more than ten",
    '{"socketbox-version": 2, "incoming": [], "rules": {}}': "FILE: socketbox-version: "
    "this version is not known; write 1",
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: repr(text[:20]))
def test_wrong_documents(tmp_path: Path, text: str) -> None:
    path = tmp_path / "box.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    line = f"socketbox: {WRONG[text].replace('FILE', str(path))}"
    for option in ((), ("--check",)):
        assert ended("--json", str(path), *option, program=(SOCKETBOX,)) == (100, [line])


def test_workers(document: Document) -> None:
    document.write()
    expected = "socketbox: who registers does so with one process; leave --workers out"
    options = ("--json", str(document.path), "--workers=2")
    assert ended(*options, program=(SOCKETBOX,)) == (100, [expected])


# One socketbox behind another


def test_registered_with_another(document: Document, tmp_path: Path) -> None:
    """What comes is passed on, and when the other one ends, so does this one, in order."""
    path = tmp_path / "r"
    rules = tmp_path / "rules"
    rules.write_text(f"rule-set:0\nip:127.0.0.1 port:{document.port} jump-unix:{path}\n")
    with (
        receiver(path) as there,
        document.served() as other,
        served_by("-P", f"0:{document.control}", "-f", str(rules)) as process,
    ):
        for _ in range(3):
            with document.connect() as client, there.take() as served:
                assert served.getpeername() == client.getsockname()
                assert served.getblocking()
        status, lines = ended("-P", f"0:{document.control}", "-S", "x", program=(SOCKETBOX,))
        assert status == 111
        assert "the server does not take us as group 0" in lines[0]
        other.terminate()
        assert process.wait(SECONDS) == 0


@pytest.mark.parametrize("level", ["0", "2"])
def test_how_strict_it_is(tmp_path: Path, level: str) -> None:
    """With what another one passes: by the environment, as all receivers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "ctl"))
        listener.listen()
        listener.settimeout(SECONDS)
        agreed: list[socket.socket] = []

        def agree() -> None:
            conn = listener.accept()[0]
            assert conn.recv(100) == request(7)
            conn.send(ACCEPTED)
            agreed.append(conn)

        thread = threading.Thread(target=agree)
        thread.start()
        options = ("-P", f"7:{tmp_path}/ctl", "-S", str(tmp_path / "r"))
        environ = environment(SKBOX_STRICT_STREAM_MODE=level)
        with receiver(tmp_path / "r") as there, served_by(*options, env=environ) as process:
            thread.join()
            [conn] = agreed
            ours, theirs = socket.socketpair()
            with conn, open("/dev/null") as file, ours, theirs:
                for fd in (file.fileno(), theirs.fileno()):
                    socket.send_fds(conn, [FRAME], [fd])
                kinds = []
                while "socket" not in kinds:
                    [fd] = socket.recv_fds(there.socket, 100, 1)[1]
                    kinds.append(os.readlink(f"/proc/self/fd/{fd}").partition(":")[0])
                    os.close(fd)
            assert kinds == (["/dev/null", "socket"] if level == "0" else ["socket"])
            assert process.wait(SECONDS) == 0


WRONG_REGISTRATION = {
    "x": "-P: 'x' has no path; give NUMBER:PATH",
    "1x:/y": "-P: '1x' is no group; give 0 to 4294967295",
    "1:": "-P: '' is no path of a socket; a path or @NAME of 107 bytes at most fits",
}


@pytest.mark.parametrize("text", WRONG_REGISTRATION)
def test_wrong_registrations(text: str) -> None:
    expected = [f"socketbox: {WRONG_REGISTRATION[text]}"]
    assert ended("-P", text, "-S", "x", program=(SOCKETBOX,)) == (100, expected)
    assert ended("-P", "0:/no/such", "-S", "x", program=(SOCKETBOX,)) == (
        111,
        ["socketbox: /no/such: No such file or directory"],
    )
