"""Who may come in: networks, users, what is remembered of them; as playbooks (play.py)."""

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from play import ANYONE, SECONDS, Lines, Play, Script, as_bytes, stream_pair

from muonsocks.address import parse_networks
from muonsocks.log import WARNING
from muonsocks.net.inherit import Peer
from muonsocks.net.loop import Loop
from muonsocks.net.stream import Stream
from muonsocks.net.task import Mailbox
from muonsocks.socks import admission
from muonsocks.socks.admission import Finished
from muonsocks.socks.auth_once import AuthOnce
from muonsocks.socks.policy import Access, Limits, Policy
from muonsocks.socks.request import Credentials
from muonsocks.socks.rules import Rules
from muonsocks.socks.session import Session
from muonsocks.socks.users import ScryptHash, Users, parse_users

GUARDED = {
    "right password": """
        >> 05 01 02
        << 05 02
        >> 01 05 'alice' 06 'secret'
        << 01 00
        >> 05 01 00 03 04 'host' 0050
        dial host:80
        << 05 00 00 01 00000000 0000
        >> end
        far << end
        log user=alice target=host:80 reply=0 end=closed
    """,
    "all at once": """
        >> 05 02 00 02 01 05 'alice' 06 'secret' 05 01 00 03 04 'host' 0050 'early'
        << 05 02
        << 01 00
        dial host:80
        << 05 00 00 01 00000000 0000
        far >> 'early'
        >> end
        far << end
        log user=alice end=closed
    """,
    "wrong password": """
        >> 05 01 02
        << 05 02
        >> 01 05 'alice' 05 'guess'
        << 01 01
        << end
        >> end
        log user=alice reply=- end=authentication-failed
    """,
    "unknown user": """
        >> 05 01 02 01 07 'mallory' 06 'secret'
        << 05 02
        << 01 01
        << end
        >> end
        log user=mallory end=authentication-failed
    """,
    "no password offered": """
        >> 05 01 00
        << 05 ff
        << end
        >> end
        log end=no-acceptable-method
    """,
    "a fault in between": """
        >> 05 01 02
        << 05 02
        >> 05 01 00
        << 01 01
        << end
        >> end
        log end=protocol-error
    """,
    "SOCKS4 with a user id": """
        >> 04 01 0050 c0000201 'alice' 00
        << 00 5d 0000 00000000
        << end
        >> end
        log user=alice target=192.0.2.1:80 end=authentication-failed
    """,
    "SOCKS4 without one": """
        >> 04 01 0050 c0000201 00
        << 00 5b 0000 00000000
        << end
        >> end
        log user=- end=authentication-failed
    """,
}
HASHED = b"alice:$scrypt$ln=1,r=1,p=1$c2FsdA$GtU/iZI/Jr0SqMXsDzrJ9eTIZcSt0Qp1G8Q9iTqNCVE\n"


@pytest.mark.parametrize("hashed", [False, True], ids=["plain", "hashed"])
@pytest.mark.parametrize("book", GUARDED)
def test_with_users(book: str, hashed: bool) -> None:
    """A hash is computed in a thread: another user's is enough for that."""
    content = b"alice:secret\n" + (HASHED.replace(b"alice", b"bob") if hashed else b"")
    users = parse_users(content, "users")
    assert users.hashed == hashed
    Play(Access(users)).perform(GUARDED[book])


class SlowUsers(Users):
    """Users whose passwords take until `go_on` to be hashed; knows how many did at once."""

    def __init__(self) -> None:
        super().__init__({b"alice": ScryptHash(HASHED.strip().partition(b":")[2])})
        self.go_on = threading.Event()
        self._changed = threading.Condition()
        self.now = self.most = 0

    def accept(self, given: Credentials) -> bool:
        with self._changed:
            self.now += 1
            self.most = max(self.most, self.now)
            self._changed.notify_all()
        self.go_on.wait(SECONDS)
        with self._changed:
            self.now -= 1
        return given.password == b"secret"

    def wait_for(self, count: int) -> None:
        """Wait until so many are being hashed."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.now >= count, SECONDS)


def test_no_more_passwords_are_hashed_at_once_than_there_are_processors() -> None:
    """A hash may take 64 MiB, and does so still when its client is late or has hung up."""
    loop, log, users = Loop(), Lines(WARNING), SlowUsers()
    processors = len(os.sched_getaffinity(0))
    over, clients = Mailbox(), []

    async def main() -> None:
        for place in range(2 * processors + 3):
            limits = Limits(handshake=0.05 if place < processors + 1 else SECONDS)
            policy = Policy(Access(users), Rules(), Script(), limits)
            client, ours = stream_pair(loop)
            clients.append(client)
            await client.send(bytes.fromhex("05 01 02 01 05") + b"alice" + b"\6secret")
            loop.spawn(session(ours, policy), pytest.fail)
        for _ in range(processors + 1):
            assert await over.take() == "late"
        users.wait_for(processors)  # a thread may begin later than its client's time is up
        assert users.most == users.now == processors
        users.go_on.set()
        for client in clients[processors + 1 :]:
            with loop.deadline(SECONDS):
                answer = b""
                while len(answer) < 4:
                    answer += await client.receive(4)
            assert answer == b"\5\2\1\0"
            client.close()
            assert await over.take() == "left"

    async def session(stream: Stream, policy: Policy) -> None:
        one = Session(stream, Peer("test"), policy, log)
        try:
            await one.negotiate()
        except Finished as finished:
            over.post({"handshake-timeout": "late", "client-left": "left"}[finished.end])
        finally:
            stream.close()

    loop.run(main())
    for client in clients:
        client.close()
    loop.close()
    assert users.most == processors


@pytest.mark.parametrize("book", ["SOCKS5, a name", "SOCKS4"])
def test_a_trusted_peer_needs_no_password(book: str) -> None:
    trusted = parse_networks("10.0.0.0/8, 192.0.2.0/24")
    users = parse_users(b"alice:secret\n", "users")
    # Where there are users, a SOCKS4 client is not one by just saying so.
    Play(Access(users, trusted)).perform(ANYONE[book].replace("log user=me", "log user=-"))
    with pytest.raises((AssertionError, TimeoutError)):
        Play(Access(users, trusted[:1])).perform(ANYONE["SOCKS5, a name"])
    Play(Access(users, trusted[:1])).perform(GUARDED["right password"])


NEEDS = {
    ("192.0.2.9", "192.0.2.0/24"): False,
    ("::ffff:192.0.2.9", "192.0.2.0/24"): False,
    ("192.0.3.9", "192.0.2.0/24"): True,
    ("192.0.2.9", "::/0"): True,
    ("2001:db8::1", "2001:db8::/32"): False,
    ("2001:db8::1", "0.0.0.0/0"): True,
    ("fe80::1%eth0", "fe80::/10"): False,
    ("/run/unix", "0.0.0.0/0,::/0"): True,
    ("192.0.2.9", ""): True,
}


@pytest.mark.parametrize(("host", "networks"), NEEDS)
def test_who_needs_a_password(host: str, networks: str) -> None:
    users = parse_users(b"alice:secret\n", "users")
    access = Access(users, parse_networks(networks))
    peer = Peer.at(host, 1)
    assert peer is not None
    assert access.needs_password(peer) is NEEDS[host, networks]
    assert not Access().needs_password(peer)


# Where a password is possible, but not needed

MAY_AUTHENTICATE = {
    "only a password": GUARDED["right password"],
    "a wrong one": GUARDED["wrong password"],
    "one of both": """
        >> 05 02 02 00
        << 05 00
        >> 05 01 00 03 04 'host' 0050
        dial host:80 refused
        << 05 02 00 01 00000000 0000
        >> end
        log user=- end=refused-by-rule
    """,
    "neither": """
        >> 05 02 01 03
        << 05 ff
        << end
        >> end
        log end=no-acceptable-method 'detail=a password was not offered'
    """,
    "SOCKS4": """
        >> 04 01 0050 c0000201 'alice' 00
        dial 192.0.2.1:80 refused
        << 00 5b 0000 00000000
        >> end
        log user=- end=refused-by-rule
    """,
}
NETWORKS = parse_networks("192.0.2.0/24")
NINE = bytes((192, 0, 2, 9))  # a Play's client, if nothing else is said


@pytest.mark.parametrize("book", MAY_AUTHENTICATE)
@pytest.mark.parametrize("why", ["trusted", "known"])
def test_who_needs_no_password_may_show_one(tmp_path: Path, why: str, book: str) -> None:
    users = parse_users(b"alice:secret\n", "users")
    known = AuthOnce.at(str(tmp_path / "state"), 1000)
    if why == "known":
        known.remember(NINE)
    Play(Access(users, NETWORKS if why == "trusted" else (), known)).perform(MAY_AUTHENTICATE[book])
    known.close()


# Trusted networks, and nobody else

STRANGER = {
    "SOCKS5": """
        >> 05 02 00 02
        << 05 ff
        << end
        >> end
        log user=- target=- reply=- end=client-refused
    """,
    "SOCKS5, only a password": """
        >> 05 01 02
        << 05 ff
        << end
        >> end
        log reply=- end=client-refused
    """,
    "SOCKS4": """
        >> 04 01 0050 c0000201 'me' 00
        << 00 5b 0000 00000000
        << end
        >> end
        log user=me target=192.0.2.1:80 reply=2 end=client-refused
    """,
}


@pytest.mark.parametrize("book", STRANGER)
@pytest.mark.parametrize("host", ["198.51.100.1", "2001:db8::1", "/run/unix"])
def test_networks_without_users_are_all_there_is(book: str, host: str) -> None:
    play = Play(Access(trusted=NETWORKS), peer=Peer.at(host, 1))
    play.perform(STRANGER[book])
    assert play.log.lines[-1].endswith('detail="the client is in no trusted network"')


@pytest.mark.parametrize("book", ["SOCKS5, a name", "SOCKS4", "no method in common"])
def test_who_is_in_them_comes_in(book: str) -> None:
    Play(Access(trusted=NETWORKS)).perform(ANYONE[book])


def test_whether_access_is_limited() -> None:
    users = parse_users(b"alice:secret\n", "users")
    assert not Access().is_limited
    assert Access(users).is_limited
    assert Access(trusted=NETWORKS).is_limited
    assert Access(users, NETWORKS).is_limited


# An address that has authenticated once


class Once:
    """Access for alice and for the addresses that she has been at."""

    def __init__(self, state: Path) -> None:
        self.files = state / "auth-once"
        self.known = AuthOnce.at(str(state), 1000)
        self.access = Access(parse_users(b"alice:secret\n", "users"), (), self.known)

    @property
    def names(self) -> list[str]:
        return [path.name for path in self.files.iterdir()]

    def play(self, book: str, peer: Peer | None = None, limits: Limits | None = None) -> list[str]:
        """Perform a book for the peer, and give the log."""
        play = Play(self.access, peer=peer, limits=limits)
        play.perform(book)
        return play.log.lines

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Be another process that is at the directory, and does not get on."""
        fd = os.open(self.files, os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
        os.close(fd)


@pytest.fixture
def once(tmp_path: Path) -> Iterator[Once]:
    once = Once(tmp_path / "state")
    yield once
    once.known.close()


@pytest.mark.parametrize("book", ["SOCKS5, a name", "SOCKS5, all at once", "SOCKS4", "SOCKS4a"])
def test_one_password_is_enough(once: Once, book: str) -> None:
    without = ANYONE[book].replace("log user=me", "log user=-")
    with pytest.raises((AssertionError, TimeoutError)):
        once.play(without)
    once.play(GUARDED["right password"])
    assert once.names == ["192.0.2.9"]
    once.play(without)
    once.play(GUARDED["no password offered"], Peer.at("192.0.2.10", 1))


@pytest.mark.parametrize(
    "book", ["wrong password", "unknown user", "no password offered", "SOCKS4 with a user id"]
)
def test_who_was_refused_is_not_remembered(once: Once, book: str) -> None:
    once.play(GUARDED[book])
    assert once.names == []


def test_who_is_trusted_but_shows_a_password_is_remembered(once: Once) -> None:
    once.access.trusted = NETWORKS
    once.play(ANYONE["SOCKS5, a name"])
    assert once.names == []
    once.play(GUARDED["right password"])
    assert once.names == ["192.0.2.9"]


def test_who_came_over_no_network_is_not_remembered(once: Once) -> None:
    for text in ("/run/unix", "@abstract"):
        once.play(GUARDED["right password"], Peer.at(text, 0))
        once.play(GUARDED["no password offered"], Peer.at(text, 0))
    assert once.names == []


def test_what_is_known_counts_when_it_is_asked_for(once: Once) -> None:
    """Not when the connection came: it may be older than the password."""
    play = Play(once.access)
    perform = play._perform_line

    async def perform_line(line: str) -> None:
        if line == "remembered":
            once.known.remember(NINE)
        else:
            await perform(line)

    play._perform_line = perform_line  # type: ignore[method-assign]
    play.perform(">> 05 01\nwait 0.05\nremembered\n>> 00\n<< 05 00\n>> end\nlog end=client-left")


NOT_REMEMBERED = "addresses that have authenticated cannot be remembered: "


def test_what_cannot_be_remembered_is_no_fault_of_the_client(once: Once) -> None:
    """It is told once in a process."""
    once.files.rmdir()
    lines = once.play(GUARDED["right password"])
    assert lines[0] == NOT_REMEMBERED + "No such file or directory"
    assert all("remembered" not in line for line in lines[1:])
    assert all("remembered" not in line for line in once.play(GUARDED["right password"]))


def test_what_cannot_be_looked_up_is_not_known(once: Once, tmp_path: Path) -> None:
    fd = os.open(tmp_path / "file", os.O_CREAT)
    once.access.auth_once = AuthOnce(fd, 1000)  # no directory: whatever is done there fails
    for book in ("no password offered", "SOCKS4 with a user id", "right password"):
        once.access.has_complained = False
        assert once.play(GUARDED[book])[0] == NOT_REMEMBERED + "Not a directory"
    os.close(fd)


def test_what_takes_long_to_remember_is_not_waited_for(
    once: Once, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "_REMEMBERING", 0.1)
    with once.held():
        lines = once.play(GUARDED["right password"])
    assert lines[0] == NOT_REMEMBERED + "the time limit has passed"
    while not once.names:
        time.sleep(0.001)  # the thread goes on: whoever held it up has left


def test_remembering_is_part_of_the_handshake_s_time(once: Once) -> None:
    book = """
        >> 05 01 02 01 05 'alice' 06 'secret'
        << 05 02
        << end
        log end=handshake-timeout
    """
    with once.held():
        lines = once.play(book, limits=Limits(handshake=0.2))
    assert len(lines) == 1
    while not once.names:
        time.sleep(0.001)  # as above


# Negotiation by the byte, for a program that goes on with the client

EXACT = {
    "SOCKS5": "05 01 00 05 01 00 01 c0000201 0050",
    "SOCKS5, methods": "05 ff" + "00" * 255 + "05 01 00 03 04 'host' 0050",
    "SOCKS5, a long name": "05 01 00 05 01 00 03 ff" + "61" * 255 + "0050",
    "SOCKS5, IPv6": "05 01 00 05 01 00 04 20010db8 00000000 00000000 00000001 01bb",
    "SOCKS4": "04 01 0050 c0000201 'me' 00",
    "SOCKS4, no user": "04 01 0050 c0000201 00",
    "SOCKS4a": "04 01 0050 00000001 'me' 00 'host' 00",
    "SOCKS4a, short": "04 01 0050 00000001 00 'h' 00",
}


@pytest.mark.parametrize("what", EXACT)
def test_not_one_byte_is_read_behind_the_request(what: str) -> None:
    """Wherever the stream is cut."""
    request = as_bytes(EXACT[what])
    for cut in range(0, len(request) + 1, 1 + len(request) // 30):
        play = Play()
        behind: list[bytes] = []

        async def negotiate(play: Play = play, cut: int = cut) -> None:
            async def rest() -> None:
                await play.client.send(request[cut:] + b"\5\1\0 behind")

            await play.client.send(request[:cut])
            play.loop.call_soon(lambda: play.loop.spawn(rest(), print) and None)
            server, _ = await play.session.negotiate(exact=True)
            assert server.trailing == b""
            served = play.session.client
            behind.append(await served.receive(1000))  # noqa: B023

        play.loop.run(negotiate())
        play.loop.close()
        assert behind[0] == b"\5\1\0 behind"
