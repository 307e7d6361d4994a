"""The command as a session carries it out: who may have it, what is said, and what is logged."""

import errno
import socket

import pytest
from associated import Associated, ask, endpoint, far_end
from ends import Lines, no_garbage, nothing_left_behind, tcp_pair
from places import descriptor_limit

from muonsocks.log import DEBUG, INFO, WARNING
from muonsocks.net.dial import Dialler
from muonsocks.net.inherit import Peer
from muonsocks.net.loop import Loop
from muonsocks.net.stream import Stream
from muonsocks.socks import associate
from muonsocks.socks.policy import Access, Limits, Policy
from muonsocks.socks.rules import Rules, parse_rules
from muonsocks.socks.session import Session

SECONDS = 15


class Stage:
    """A session with a client that is in the test's hands."""

    def __init__(
        self, loop: Loop, rules: str = "", peer: str = "127.0.0.1", level: int = DEBUG
    ) -> None:
        self.loop = loop
        ours, self.client = tcp_pair()
        ours.setblocking(False)
        self.client.settimeout(SECONDS)
        limits = Limits(SECONDS, SECONDS, SECONDS)
        policy = Policy(
            Access(), Rules(parse_rules(rules, "rules"), allow_local=True), Dialler(), limits
        )
        self.log = Lines()
        self.log.level = level
        self.session = Session(Stream(loop, ours), Peer.at(peer, 99), policy, self.log)
        self.failures: list[BaseException] = []
        self.over: list[object] = []
        loop.spawn(self.session.run(), self.failures.append, self.over.append)

    def turn(self) -> None:
        """Let the loop go on for a while."""
        self.loop.run(self.loop.sleep(0.005))

    def hear(self, sock: socket.socket, count: int = 1 << 16) -> bytes:
        """Receive once, as soon as there is something."""
        sock.setblocking(False)
        while True:
            self.turn()
            try:
                return sock.recv(count)
            except BlockingIOError:
                continue

    def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count and (piece := self.hear(self.client, count - len(data))):
            data += piece
        return data

    def ask(self, *arguments: object) -> bytes:
        return ask(self.client.sendall, self.read, *arguments)  # type: ignore[arg-type]

    def until_over(self) -> None:
        self.client.close()
        while not self.over and not self.failures:
            self.turn()


def test_what_is_logged() -> None:
    with nothing_left_behind():
        loop = Loop()
        stage = Stage(loop)
        reply = stage.ask() + stage.read(6)
        relay, _ = endpoint(reply[3:])
        assert relay[0] == "127.0.0.1" and relay[1]
        ends = Associated(relay)
        with far_end() as far:
            ends.send(*far.getsockname(), b"data")
            stage.hear(far)
        ends.close()
        stage.until_over()
        start, end = stage.log.lines
        facts = "client=127.0.0.1:99 user=- target=0.0.0.0:0"
        assert start == f"associated {facts} relay=127.0.0.1:{relay[1]}"
        head = f"closed {facts} reply=0 in=4 out=0 datagrams-in=1 datagrams-out=0 dropped=0 secs="
        assert end.startswith(head)
        assert end.endswith(" end=closed")
        assert stage.over == [0]
        loop.close()


@pytest.mark.parametrize("level", [WARNING, INFO, DEBUG])
def test_lines_for_what_is_dropped_have_a_bound(
    level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(associate, "_MOST_REPORTS", 3)
    loop = Loop()
    stage = Stage(loop, "deny 127.0.0.1", level=level)
    reply = stage.ask() + stage.read(6)
    ends = Associated(endpoint(reply[3:])[0])
    for port in range(1, 11):
        ends.send("127.0.0.1", port, b"")
    stage.turn()
    ends.close()
    stage.until_over()
    found = [line for line in stage.log.lines if " dropped=127" in line]
    facts = "client=127.0.0.1:99 user=- target=0.0.0.0:0"
    expected = [f'{facts} dropped=127.0.0.1:{n} error="denied by rules:1"' for n in (1, 2, 3)]
    assert found == (expected if level == DEBUG else [])
    loop.close()


REFUSED = {
    "a rule": ("deny associate", "127.0.0.1", ("0.0.0.0", 0), 2, "refused-by-rule"),
    "all": ("deny *", "127.0.0.1", ("0.0.0.0", 0), 2, "refused-by-rule"),
    "somebody else": ("", "127.0.0.1", ("127.0.0.2", 0), 2, "client-refused"),
    "another family": ("", "127.0.0.1", ("::1", 0), 2, "client-refused"),
    "over another family": ("", "2001:db8::1", ("::", 0), 7, "command-not-supported"),
    "not over a network": ("", "/run/x", ("0.0.0.0", 0), 7, "command-not-supported"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    rules, peer, wanted, code, end = REFUSED[name]
    with nothing_left_behind():
        loop = Loop()
        stage = Stage(loop, rules, peer)
        assert stage.ask(*wanted)[1] == code
        stage.until_over()
        assert f"reply={code} " in stage.log.lines[-1]
        assert f"end={end} detail=" in stage.log.lines[-1]
        assert stage.session.refused_by_rule == (end == "refused-by-rule")
        loop.close()


def test_a_rule_for_others_is_none_for_it() -> None:
    loop = Loop()
    stage = Stage(loop, "deny connect\ndeny bind *")
    assert stage.ask()[1] == 0
    stage.until_over()
    loop.close()


def test_no_descriptor_for_it() -> None:
    """The client is told, and whoever has started the session is."""
    loop = Loop()
    with no_garbage():
        stage = Stage(loop)
        stage.turn()
        import muonsocks.socks.association  # noqa: F401  or there were no descriptor for that

        with descriptor_limit(0):
            assert stage.ask()[1] == 1
            stage.until_over()
        assert [getattr(error, "errno", 0) for error in stage.failures] == [errno.EMFILE]
        assert "reply=1 " in stage.log.lines[-1]
        assert "end=system-error" in stage.log.lines[-1]
        stage.failures.clear()
        del stage
    loop.close()


def test_a_client_that_leaves_before_the_reply() -> None:
    with nothing_left_behind():
        loop = Loop()
        stage = Stage(loop)
        stage.client.sendall(b"\5\1\0\5\3\0\1" + bytes(6))
        stage.client.close()
        while not stage.over:
            stage.turn()
        assert stage.failures == []
        loop.close()
