"""A session's life as playbooks: what the client says and hears, where is dialled, what is logged.

>> 05 01 00         the client sends; text stands in quotes
<< 05 00            the client receives exactly this
dial host:80        the session dials; an errno, `no-such-name` or `refused` is how that fails
far >> 'data'       the far end receives what the client has sent; `far <<` is what it sends
end                 in place of bytes: the end of file
wait 0.1            nothing happens for so many seconds
log reply=0 ...     the session is over, and its last line has these words
"""

import contextlib
import errno
import fcntl
import os
import re
import shlex
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from muonsocks.address import Endpoint, parse_networks
from muonsocks.errors import DialError, NameNotResolved, RefusedByRule
from muonsocks.log import DEBUG, INFO, WARNING, Log
from muonsocks.net.dial import Dialler
from muonsocks.net.inherit import Peer
from muonsocks.net.loop import Loop
from muonsocks.net.stream import Stream
from muonsocks.net.task import Mailbox
from muonsocks.socks import session
from muonsocks.socks.auth_once import AuthOnce
from muonsocks.socks.policy import Access, Limits, Policy
from muonsocks.socks.request import Credentials
from muonsocks.socks.rules import Rules, parse_rules
from muonsocks.socks.session import Finished, Session
from muonsocks.socks.users import ScryptHash, Users, parse_users

SECONDS = 10  # for whatever takes milliseconds on a machine that is not busy


class Lines(Log):
    """A log that keeps what is written."""

    def __init__(self, level: int) -> None:
        super().__init__("test")
        self.level = level
        self.takes_fields = True
        self.lines: list[str] = []
        self.fields: list[dict[str, str] | None] = []

    def write(self, level: int, message: str, fields: dict[str, str] | None = None) -> None:
        assert level <= self.level, "a line is made for nothing"
        self.lines.append(message)
        self.fields.append(fields)


class Script(Dialler):
    """A dialler that goes where the playbook says."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = Mailbox()
        self.outcome = Mailbox()

    async def dial(
        self, loop: Loop, destination: Endpoint, permit: Callable[[bytes], bool] = lambda _: True
    ) -> Stream:
        self.asked.post(str(destination))
        outcome = await self.outcome.take()
        if isinstance(outcome, Stream):
            return outcome
        raise outcome


def stream_pair(loop: Loop) -> tuple[Stream, Stream]:
    """Two ends of one connection."""
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
    one, other = (Stream(loop, end) for end in ends)
    _opened.extend((one, other))
    return one, other


_opened: list[Stream] = []


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    """Or it is closed in the middle of another test, by the collector."""
    yield
    while _opened:
        stream = _opened.pop()
        stream.close()
        if not stream.loop._epoll.closed:
            stream.loop.close()


def failure(text: str) -> Exception:
    """How dialling fails."""
    if text == "no-such-name":
        return NameNotResolved("host: Name or service not known")
    if text == "refused":
        return RefusedByRule("denied")
    number = getattr(errno, text)
    return DialError(number, os.strerror(number), [("192.0.2.1", number)])


class Play:
    """One performance of a playbook."""

    def __init__(
        self,
        access: Access | None = None,
        limits: Limits | None = None,
        rules: Rules | None = None,
        peer: Peer | None = None,
        level: int = DEBUG,
    ) -> None:
        self.loop = Loop()
        self.client, served = stream_pair(self.loop)
        self.dialler = Script()
        self.far: Stream | None = None
        self.log = Lines(level)
        self.over = Mailbox()
        policy = Policy(
            access or Access(), rules or Rules(), self.dialler, limits or Limits(SECONDS)
        )
        peer = peer or Peer.at("192.0.2.9", 999)
        self.session = Session(served, peer, policy, self.log)

    def perform(self, book: str) -> None:
        self.loop.run(self._perform(book))
        self.loop.close()

    async def _perform(self, book: str) -> None:
        self.loop.spawn(self.session.run(), self.over.post, lambda _: self.over.post(None))
        for line in filter(None, (line.strip() for line in book.splitlines())):
            try:
                with self.loop.deadline(SECONDS):
                    await self._perform_line(line)
            except (AssertionError, TimeoutError, OSError) as error:
                error.add_note(f"in the line: {line}\nlog: {self.log.lines}")
                raise

    async def _perform_line(self, line: str) -> None:
        verb, _, rest = line.partition(" ")
        if verb == "dial":
            await self._dial(*rest.split())
        elif verb == "wait":
            await self.loop.sleep(float(rest))
        elif verb == "log":
            error = await self.over.take()
            assert error is None
            words = shlex.split(self.log.lines[-1])
            assert [word for word in shlex.split(rest) if word not in words] == [], words
        else:
            stream = self.client
            if verb == "far":
                assert self.far is not None
                verb, _, rest = rest.partition(" ")
                stream = self.far
            sends = verb == ("<<" if stream is self.far else ">>")
            await (say if sends else hear)(stream, None if rest == "end" else as_bytes(rest))

    async def _dial(self, destination: str, outcome: str = "") -> None:
        assert await self.dialler.asked.take() == destination
        if outcome:
            self.dialler.outcome.post(failure(outcome))
        else:
            self.far, far = stream_pair(self.loop)
            self.dialler.outcome.post(far)


async def say(stream: Stream, data: bytes | None) -> None:
    if data is None:
        stream.end_output()
    else:
        await stream.send(data)


async def hear(stream: Stream, data: bytes | None) -> None:
    heard = b""
    while len(heard) < len(data or b"."):
        piece = await stream.receive(len(data or b".") - len(heard))
        if not piece:
            break
        heard += piece
    assert heard == (data or b"")


def as_bytes(text: str) -> bytes:
    """Read hexadecimal digits and quoted text."""
    return b"".join(
        word[1:-1].encode() if word.startswith("'") else bytes.fromhex(word)
        for word in re.findall(r"'[^']*'|[0-9a-f]+", text)
    )


ANYONE = {
    "SOCKS5, a name": """
        >> 05 01 00
        << 05 00
        >> 05 01 00 03 04 'host' 0050
        dial host:80
        << 05 00 00 01 00000000 0000
        >> 'question'
        far >> 'question'
        far << 'answer'
        << 'answer'
        >> end
        far >> end
        far << 'the end'
        far << end
        << 'the end'
        << end
        log closed client=192.0.2.9:999 user=- target=host:80 reply=0 in=8 out=13 end=closed
    """,
    "SOCKS5, the far end closes first": """
        >> 05 02 02 00
        << 05 00
        >> 05 01 00 04 20010db8 00000000 00000000 00000001 01bb
        dial [2001:db8::1]:443
        << 05 00 00 01 00000000 0000
        far << 'banner'
        far << end
        << 'banner'
        << end
        >> 'bye'
        >> end
        far >> 'bye'
        far >> end
        log target=[2001:db8::1]:443 reply=0 in=3 out=6 end=closed
    """,
    "SOCKS5, all at once": """
        >> 05 01 00 05 01 00 01 c0000201 0050 'early'
        >> end
        << 05 00
        dial 192.0.2.1:80
        << 05 00 00 01 00000000 0000
        far >> 'early'
        far >> end
        far << end
        << end
        log target=192.0.2.1:80 in=5 out=0 end=closed
    """,
    "SOCKS5, byte by byte": """
        >> 05
        wait 0.01
        >> 02
        >> 80
        wait 0.01
        >> 00
        << 05 00
        >> 05
        >> 01
        wait 0.01
        >> 00 03
        >> 01
        >> 'h'
        >> 00
        wait 0.01
        >> 50
        dial h:80
        << 05 00 00 01 00000000 0000
        >> end
        far >> end
        far << end
        log end=closed
    """,
    "SOCKS4": """
        >> 04 01 0050 c0000201 'me' 00 'early'
        dial 192.0.2.1:80
        << 00 5a 0000 00000000
        far >> 'early'
        >> end
        far >> end
        far << end
        << end
        log user=me target=192.0.2.1:80 reply=0 in=5 out=0 end=closed
    """,
    "SOCKS4a": """
        >> 04 01 0050 00000001 00 'host' 00
        dial host:80
        << 00 5a 0000 00000000
        >> end
        far << end
        log user=- target=host:80 end=closed
    """,
    "a destination that refuses": """
        >> 05 01 00 05 01 00 03 04 'host' 0050
        << 05 00
        dial host:80 ECONNREFUSED
        << 05 05 00 01 00000000 0000
        << end
        >> end
        log reply=5 in=0 out=0 end=dial-failed 'detail=Connection refused'
    """,
    "a network that is unreachable": """
        >> 05 01 00 05 01 00 03 04 'host' 0050
        << 05 00
        dial host:80 ENETUNREACH
        << 05 03 00 01 00000000 0000
        >> end
        log reply=3 end=dial-failed
    """,
    "a host that is unreachable": """
        >> 05 01 00 05 01 00 03 04 'host' 0050
        << 05 00
        dial host:80 EHOSTUNREACH
        << 05 04 00 01 00000000 0000
        >> end
        log reply=4 end=dial-failed
    """,
    "a host that does not answer": """
        >> 04 01 0050 00000001 00 'host' 00
        dial host:80 ETIMEDOUT
        << 00 5b 0000 00000000
        << end
        >> end
        log reply=6 end=dial-failed
    """,
    "a name that does not exist": """
        >> 05 01 00 05 01 00 03 04 'host' 0050
        << 05 00
        dial host:80 no-such-name
        << 05 04 00 01 00000000 0000
        >> end
        log reply=4 end=name-not-found
    """,
    "addresses that rules refuse": """
        >> 05 01 00 05 01 00 03 04 'host' 0050
        << 05 00
        dial host:80 refused
        << 05 02 00 01 00000000 0000
        >> end
        log reply=2 end=refused-by-rule
    """,
    "this host's own side": """
        >> 05 01 00 05 01 00 01 7f000001 0050
        << 05 00
        << 05 02 00 01 00000000 0000
        << end
        >> end
        log target=127.0.0.1:80 reply=2 end=refused-by-rule
    """,
    "bind": """
        >> 05 01 00 05 02 00 01 c0000201 0050
        << 05 00
        << 05 07 00 01 00000000 0000
        << end
        >> end
        log target=192.0.2.1:80 reply=7 end=command-not-supported
    """,
    "SOCKS4 bind": """
        >> 04 02 0050 c0000201 00
        << 00 5b 0000 00000000
        << end
        >> end
        log reply=7 end=command-not-supported
    """,
    "an unknown address type": """
        >> 05 01 00 05 01 00 02
        << 05 00
        << 05 08 00 01 00000000 0000
        << end
        >> end
        log target=- reply=8 end=protocol-error
    """,
    "another protocol": """
        >> 'GET / HTTP/1.0'
        << end
        >> end
        log client=192.0.2.9:999 target=- reply=- in=0 out=0 end=protocol-error
    """,
    "no method in common": """
        >> 05 01 02
        << 05 ff
        << end
        >> end
        log reply=- end=no-acceptable-method
    """,
    "a client that says nothing": """
        >> end
        << end
        log target=- reply=- end=client-left
    """,
    "a client that leaves": """
        >> 05 01 00
        << 05 00
        >> 05 01
        >> end
        << end
        log end=client-left
    """,
}
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


@pytest.mark.parametrize("book", ANYONE)
def test_anyone(book: str) -> None:
    Play().perform(ANYONE[book])


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
        self._lock = threading.Lock()
        self.now = self.most = 0

    def accept(self, given: Credentials) -> bool:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self.go_on.wait(SECONDS)
        with self._lock:
            self.now -= 1
        return given.password == b"secret"


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
    monkeypatch.setattr(session, "_REMEMBERING", 0.1)
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


RULES = parse_rules("deny host 25\ndeny .onion\nallow host\ndeny *", "rules")
RULED = {
    ("host", 80): "dial host:80",
    ("host", 25): "denied by rules:1",
    ("a.onion", 80): "denied by rules:2",
    ("other", 80): "denied by rules:4",
}


@pytest.mark.parametrize(("host", "port"), RULED)
def test_names_are_refused_before_they_are_looked_up(host: str, port: int) -> None:
    outcome = RULED[host, port]
    allowed = outcome.startswith("dial")
    answer = "00" if allowed else "02"
    Play(rules=Rules(RULES)).perform(
        f"""
        >> 05 01 00 05 01 00 03 {len(host):02x} '{host}' {port:04x}
        << 05 00
        {outcome if allowed else ""}
        << 05 {answer} 00 01 00000000 0000
        >> end
        {"far << end" if allowed else ""}
        log {"end=closed" if allowed else f"end=refused-by-rule 'detail={outcome}'"}
        """
    )


def test_refused_by_rule_is_told_apart() -> None:
    for book, refused in (("this host's own side", True), ("bind", False)):
        play = Play()
        play.perform(ANYONE[book])
        assert play.session.refused_by_rule is refused


TIMED = {
    "silent": (Limits(handshake=0.1), "<< end\nlog reply=- end=handshake-timeout"),
    "trickling": (
        Limits(handshake=1),
        ">> 05\nwait 0.3\n>> ff\nwait 0.3\n>> 00\n<< end\nlog end=handshake-timeout",
    ),
    "idle": (
        Limits(SECONDS, idle=0.1),
        ANYONE["SOCKS4"].partition(">> end")[0] + "far >> end\n<< end\nlog in=5 end=idle-timeout",
    ),
    "half-closed": (
        Limits(SECONDS, half_close=0.1),
        ANYONE["SOCKS4"].partition("far << end")[0] + "<< end\nlog in=5 end=half-close-timeout",
    ),
}


@pytest.mark.parametrize("what", TIMED)
def test_time_limits(what: str) -> None:
    limits, book = TIMED[what]
    Play(limits=limits).perform(book)


def test_the_handshake_limit_ends_with_the_request() -> None:
    """How long it takes to dial is the dialler's affair."""
    dialled = ANYONE["SOCKS5, a name"].replace("dial", "wait 0.2\ndial")
    Play(limits=Limits(handshake=0.1)).perform(dialled)


def test_a_connection_has_two_lines() -> None:
    play = Play()
    play.perform(ANYONE["SOCKS5, a name"])
    first, last = play.log.lines
    facts = "client=192.0.2.9:999 user=- target=host:80"
    assert first == f"connected {facts} address=-"
    pattern = rf"closed {re.escape(facts)} reply=0 in=8 out=13 secs=\d+\.\d{{3}} end=closed"
    assert re.fullmatch(pattern, last)


def test_the_fields_are_those_of_the_lines() -> None:
    play = Play()
    play.perform(ANYONE["SOCKS5, a name"])
    for line, fields in zip(play.log.lines, play.log.fields, strict=True):
        assert fields is not None
        assert line.split()[1:] == [f"{name}={value}" for name, value in fields.items()]
    assert [fields and fields.get("end") for fields in play.log.fields] == [None, "closed"]


def test_fields_that_nobody_takes_are_not_collected() -> None:
    play = Play()
    play.log.takes_fields = False
    play.perform(ANYONE["SOCKS5, a name"])
    assert [line.split()[0] for line in play.log.lines] == ["connected", "closed"]
    assert not any(play.log.fields)


def test_the_fields_of_a_failure() -> None:
    play = Play()
    play.perform(ANYONE["a destination that refuses"])
    first, last = play.log.fields
    assert first and last
    known = {"client": "192.0.2.9:999", "user": "-", "target": "host:80"}
    assert first == known | {"tried": "192.0.2.1", "error": "Connection refused"}
    assert last == known | {
        "reply": "5",
        "in": "0",
        "out": "0",
        "secs": last["secs"],
        "end": "dial-failed",
        "detail": "Connection refused",
    }


def test_a_failure_has_one_line_and_the_addresses_with_v() -> None:
    play = Play()
    play.perform(ANYONE["a destination that refuses"])
    first, last = play.log.lines
    facts = "client=192.0.2.9:999 user=- target=host:80"
    assert first == f'{facts} tried=192.0.2.1 error="Connection refused"'
    assert last.startswith(f"closed {facts} reply=5 in=0 out=0 secs=")


def test_quiet() -> None:
    book = ANYONE["SOCKS5, a name"].partition("log ")[0]
    play = Play(level=WARNING)
    play.perform(book)
    assert play.log.lines == []


def test_not_verbose() -> None:
    play = Play(level=INFO)
    play.perform(ANYONE["a destination that refuses"])
    assert len(play.log.lines) == 1


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
            served = play.session._client
            behind.append(await served.receive(1000))  # noqa: B023

        play.loop.run(negotiate())
        play.loop.close()
        assert behind[0] == b"\5\1\0 behind"


def test_what_is_raised_is_logged() -> None:
    """A part of a session that fails ends with a line, and with the error if it is our system's."""
    ends: dict[str, BaseException | None] = {
        "system-error": OSError(errno.EMFILE, "Too many open files"),
        "client-lost": ConnectionResetError(errno.ECONNRESET, "reset"),
        "why": Finished("why", "in detail"),
        "terminated": KeyboardInterrupt(),
    }
    for end, error in ends.items():
        play = Play()

        async def story(error: BaseException | None = error) -> None:
            if error is not None:
                raise error

        try:
            play.loop.run(play.session.logged(story))
        except (OSError, KeyboardInterrupt) as raised:
            assert raised is error and end in ("system-error", "terminated")
        [line] = play.log.lines
        assert f" end={end}" in line
        assert play.session._client.reader == -1  # closed
        play.loop.close()


def test_a_part_that_hands_on_is_not_logged() -> None:
    play = Play()

    async def story() -> None:
        return None

    play.loop.run(play.session.logged(story))
    assert play.log.lines == []
    assert play.session._client.reader >= 0
