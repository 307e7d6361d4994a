"""Performs a session's life: what the client says and hears, where is dialled, what is logged.

>> 05 01 00         the client sends; text stands in quotes
<< 05 00            the client receives exactly this
dial host:80        the session dials; an errno, `no-such-name` or `refused` is how that fails;
                    of addresses that it has looked up itself, all, with commas
far >> 'data'       the far end receives what the client has sent; `far <<` is what it sends
leave               the client hangs up
end                 in place of bytes: the end of file
listens 5 127.0.0.1 the client receives that, in this version, with some port
peer 127.0.0.1      somebody connects there from this address, and is the far end from now on
stranger 127.0.0.2  somebody does, and is reset
meets 5             the client receives the peer's address, in this version
wait 0.1            nothing happens for so many seconds
log reply=0 ...     the session is over, and its last line has these words
"""

import errno
import os
import re
import shlex
import socket
from collections.abc import Callable

import pytest
from programs import VERSIONS

from muonsocks.address import Endpoint
from muonsocks.errors import DialError, NameNotResolved, RefusedByRule
from muonsocks.log import DEBUG, Log
from muonsocks.net.dial import Dialler
from muonsocks.net.inherit import Peer
from muonsocks.net.loop import Loop
from muonsocks.net.stream import Stream
from muonsocks.net.task import Mailbox
from muonsocks.socks.policy import Access, Commands, Limits, Policy
from muonsocks.socks.rules import Rules
from muonsocks.socks.session import Session

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
        return await self._go(str(destination))

    async def dial_any(
        self, loop: Loop, destination: Endpoint, candidates: list[Endpoint]
    ) -> Stream:
        return await self._go(",".join(map(str, candidates)))

    async def _go(self, where: str) -> Stream:
        self.asked.post(where)
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


def close_all() -> None:
    """Close what playbooks have opened."""
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
        commands: Commands | None = None,
    ) -> None:
        self.loop = Loop()
        self.client, served = stream_pair(self.loop)
        self.dialler = Script()
        self.far: Stream | None = None
        self.log = Lines(level)
        self.over = Mailbox()
        policy = Policy(
            access or Access(),
            rules or Rules(),
            self.dialler,
            limits or Limits(SECONDS),
            commands=commands,
        )
        self.listening = ("", 0)
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
        elif verb == "leave":
            self.client.close()
        elif verb == "listens":
            await self._listens(*rest.split())
        elif verb == "peer":
            self.far = self._connect(rest)
        elif verb == "stranger":
            with pytest.raises(ConnectionResetError):
                await self._connect(rest).receive(1)
        elif verb == "meets":
            assert self.far is not None
            met = self.far.socket.getsockname()
            await hear(self.client, VERSIONS[rest].success(*met[:2]))
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

    async def _listens(self, version: str, host: str) -> None:
        length = len(VERSIONS[version].success(host, 0))
        reply = await receive(self.client, length)
        start = 2 if len(reply) == 8 else length - 2
        port = int.from_bytes(reply[start : start + 2], "big")
        assert reply == VERSIONS[version].success(host, port)
        assert port
        self.listening = host, port

    def _connect(self, host: str) -> Stream:
        sock = socket.create_connection(self.listening, SECONDS, (host, 0))
        sock.setblocking(False)
        stream = Stream(self.loop, sock)
        _opened.append(stream)
        return stream


async def say(stream: Stream, data: bytes | None) -> None:
    if data is None:
        stream.end_output()
    else:
        await stream.send(data)


async def hear(stream: Stream, data: bytes | None) -> None:
    assert await receive(stream, len(data or b".")) == (data or b"")


async def receive(stream: Stream, count: int) -> bytes:
    """Read so many bytes, or up to the end of file."""
    heard = b""
    while len(heard) < count and (piece := await stream.receive(count - len(heard))):
        heard += piece
    return heard


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
    "an unknown command": """
        >> 05 01 00 05 09 00 01 c0000201 0050
        << 05 00
        << 05 07 00 01 00000000 0000
        << end
        >> end
        log target=192.0.2.1:80 reply=7 end=command-not-supported
    """,
    "SOCKS4, an unknown command": """
        >> 04 09 0050 c0000201 00
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
