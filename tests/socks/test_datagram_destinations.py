"""Where headers lead: judged once, looked up without waiting, forgotten again, and never many."""

import errno
from collections.abc import Iterator
from typing import Any

import pytest
from ends import no_garbage

from muonsocks.address import Endpoint
from muonsocks.errors import NameNotResolved, RefusedByRule, RemoteProtocolError
from muonsocks.net.dial import Dialler
from muonsocks.net.loop import Loop
from muonsocks.net.task import Mailbox
from muonsocks.socks import datagram_destinations
from muonsocks.socks.datagram import encode_header
from muonsocks.socks.datagram_destinations import LIFE, Destination, Destinations
from muonsocks.socks.policy import Access, Limits, Policy
from muonsocks.socks.rules import Rules, parse_rules

FIRST, SECOND = bytes((192, 0, 2, 1)), bytes((192, 0, 2, 2))
RULES = """\
deny associate 192.0.2.66
deny associate bad.example
via socks5://proxy.example associate 192.0.2.77
via socks5h://proxy.example associate far.example
deny connect *
"""


class Fixture:
    """Destinations with a clock and look-ups of one's own; `sent` is what has waited and gone."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.asked: list[str] = []
        self.answers = Mailbox()
        self.sent: list[tuple[Any, bytes]] = []
        self.reported: list[tuple[str, str]] = []
        self.failures: list[BaseException] = []
        self.obstacle: OSError | None = None
        policy = Policy(
            Access(), Rules(parse_rules(RULES, "rules")), Dialler(lookup=self.look_up), Limits()
        )
        self.them = Destinations(
            self.loop,
            policy,
            self.way_out,
            lambda there, data: self.sent.append((there.to, data)),
            lambda endpoint, why: self.reported.append((str(endpoint), why)),
            self.failures.append,
        )

    async def look_up(self, host: str) -> list[tuple[bytes, int]]:
        self.asked.append(host)
        answer = await self.answers.take()
        if isinstance(answer, Exception):
            raise type(answer)(*answer.args[-1:])  # that one is in frames which it would be in
        return [(one, 0) for one in answer]

    def answer(self, answer: object) -> None:
        self.answers.post(answer)

    def way_out(self, via: Any, endpoint: Endpoint) -> tuple[Any, Any]:
        if via:
            raise RefusedByRule("no such way")
        if self.obstacle is not None:
            raise self.obstacle
        return lambda data, to: len(data), (endpoint.host, endpoint.port)

    def find(self, host: str, data: bytes = b"data", port: int = 53) -> Any:
        """Where a datagram goes, or None."""
        there = self.them.find(encode_header(Endpoint(host, port)), memoryview(data))
        if there is None:
            return None
        assert isinstance(there, Destination)
        there.used = self.loop.now
        return there.to

    def wait(self, seconds: float) -> None:
        self.loop.now += seconds


@pytest.fixture
def f() -> Iterator[Fixture]:
    fixture = Fixture()
    yield fixture
    if fixture.them.dropped >= 0:
        fixture.them.close()
    fixture.loop.close()


def test_addresses(f: Fixture) -> None:
    assert f.find("192.0.2.1") == ("192.0.2.1", 53)
    assert f.find("192.0.2.1", port=54) == ("192.0.2.1", 54)
    assert f.find("2001:db8::1") == ("2001:db8::1", 53)
    assert len(f.them.mappings) == len(f.them.sources) == 3
    head = f.them.sources["192.0.2.1", 53].head
    assert head == encode_header(Endpoint("192.0.2.1", 53))
    assert f.them.dropped == 0


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("192.0.2.66", "denied by rules:1"),
        ("bad.example", "denied by rules:2"),
        ("192.0.2.77", "no such way"),
        ("far.example", "no such way"),
        ("127.0.0.1", "127.0.0.1 is on this host's own side, see --allow-local"),
        ("::ffff:127.0.0.1", "127.0.0.1 is on this host's own side, see --allow-local"),
        ("224.0.0.1", "224.0.0.1 is on this host's own side, see --allow-local"),
    ],
)
def test_what_is_refused(f: Fixture, host: str, why: str) -> None:
    """It is judged, and reported, once for some time, and counted each time."""
    for _ in range(3):
        assert f.find(host) is None
    assert f.them.dropped == 3
    assert [said for _, said in f.reported] == [why]
    f.wait(61)
    assert f.find(host) is None
    assert len(f.reported) == 2
    assert f.asked == []


def test_no_way(f: Fixture) -> None:
    f.obstacle = OSError(errno.EMFILE, "Too many open files")
    assert f.find("192.0.2.1") is None
    assert f.reported == [("192.0.2.1:53", "Too many open files")]
    f.obstacle = None
    f.wait(61)
    assert f.find("192.0.2.1") == ("192.0.2.1", 53)


def test_a_wrong_header_leaves_nothing(f: Fixture) -> None:
    for head in (b"", b"\0\0\1\1abcd\0\1", b"\0\0\0\3\1 \0\1"):
        with pytest.raises(RemoteProtocolError):
            f.them.find(head, memoryview(b""))
    assert f.them.mappings == {}


def test_a_name_is_looked_up_once_and_what_waits_is_sent(f: Fixture) -> None:
    assert [f.find("host", data) for data in (b"1", b"2", b"")] == [None] * 3
    assert f.asked == ["host"]
    f.answer([FIRST, SECOND])
    to = ("192.0.2.1", 53)
    assert f.sent == [(to, b"1"), (to, b"2"), (to, b"")]
    assert f.find("host") == to
    assert (f.asked, f.them.dropped) == (["host"], 0)


def test_a_name_is_looked_up_again_and_stays_where_it_was(f: Fixture) -> None:
    f.find("host")
    f.answer([FIRST, SECOND])
    f.wait(61)
    for _ in range(2):
        assert f.find("host") == ("192.0.2.1", 53), "nothing waits meanwhile"
    assert f.asked == ["host", "host"]
    f.answer([SECOND, FIRST])
    assert f.find("host") == ("192.0.2.1", 53)
    f.wait(61)
    f.find("host")
    f.answer([SECOND])
    assert f.find("host") == ("192.0.2.2", 53)
    assert len(f.sent) == 1


def test_names_are_judged_by_their_addresses(f: Fixture) -> None:
    f.find("host")
    f.answer([bytes((192, 0, 2, 66)), bytes((127, 0, 0, 1)), SECOND])
    assert f.find("host") == ("192.0.2.2", 53)
    f.find("other")
    f.answer([bytes((192, 0, 2, 66)), bytes((127, 0, 0, 1))])
    assert f.find("other") is None
    assert f.reported == [("other:53", "denied by rules:1")]
    assert f.them.dropped == 2


@pytest.mark.parametrize("error", [NameNotResolved("no such name"), OSError("no such name")])
def test_a_name_that_fails(f: Fixture, error: Exception) -> None:
    f.find("host")
    f.answer(error)
    assert f.them.dropped == 1
    assert f.find("host") is None
    assert (f.them.dropped, f.asked) == (2, ["host"])
    assert f.reported == [("host:53", "no such name")]
    f.wait(6)
    f.find("host")
    f.answer([FIRST])
    assert f.find("host") == ("192.0.2.1", 53)


def test_a_name_that_fails_later_goes_where_it_went(f: Fixture) -> None:
    f.find("host")
    f.answer([FIRST])
    f.wait(61)
    for times in (2, 3):
        assert f.find("host") == ("192.0.2.1", 53)
        f.answer(NameNotResolved("no answer in time"))
        assert f.find("host") == ("192.0.2.1", 53)
        assert f.asked == ["host"] * times, "not again so soon"
        f.wait(6)
    f.find("host")
    f.answer([SECOND])
    assert f.find("host") == ("192.0.2.2", 53)
    assert (f.them.dropped, f.reported) == (0, [])


def test_a_fault_of_ours_is_no_name_s(f: Fixture) -> None:
    f.find("host")
    f.answer(ZeroDivisionError())
    assert [type(error) for error in f.failures] == [ZeroDivisionError]


def test_look_ups_have_a_bound(f: Fixture) -> None:
    for number in range(100):
        assert f.find(f"host{number}") is None
    assert len(f.asked) == 16
    assert f.them.dropped == 84
    f.answer([FIRST])
    assert len(f.sent) == 1
    assert f.find("host99") is None
    assert f.asked[16:] == ["host99"]


def test_what_waits_has_a_bound(f: Fixture) -> None:
    for _ in range(100):
        f.find("host", b"x")
    assert f.them.dropped == 36
    f.answer([FIRST])
    assert len(f.sent) == 64
    f.find("other", bytes(65000))
    for _ in range(9):
        f.find("other", bytes(65000))
    assert f.them.dropped == 36 + 6
    f.answer([FIRST])
    f.find("third", bytes(65000))
    f.answer([FIRST])
    assert len(f.sent) == 64 + 4 + 1, "what has been sent makes room"


def test_headers_have_a_bound_and_the_oldest_go(f: Fixture) -> None:
    f.find("host")  # it waits
    for number in range(5000):
        f.find("192.0.2.1", port=1 + number)
        f.find("2001:db8::1")
        f.wait(0.001)
    assert len(f.them.mappings) <= 1024
    assert len(f.them.sources) <= 1024
    assert ("2001:db8::1", 53) in f.them.sources, "it was in use"
    assert ("192.0.2.1", 5000) in f.them.sources
    assert ("192.0.2.1", 1) not in f.them.sources
    f.answer([FIRST])
    assert f.sent == [(("192.0.2.1", 53), b"data")]


def test_headers_that_all_come_at_the_same_time(f: Fixture) -> None:
    for number in range(3000):
        f.find("127.0.0.1" if number % 2 else "192.0.2.1", port=1 + number)
    assert len(f.them.mappings) <= 1024


def test_what_is_not_used_is_forgotten(f: Fixture) -> None:
    f.find("192.0.2.1")
    f.find("127.0.0.1")
    f.find("192.0.2.2")
    f.find("name")
    f.answer([SECOND])
    f.wait(LIFE - 10)
    f.find("192.0.2.2")
    f.wait(20)
    f.find("waits")
    f.them.forget_old()
    assert {str(mapping.endpoint) for mapping in f.them.mappings.values()} == {
        "192.0.2.2:53",
        "name:53",  # leads to the same, which is in use
        "waits:53",
    }
    assert [*f.them.sources] == [("192.0.2.2", 53)]


def test_the_end_leaves_no_look_up_and_no_garbage() -> None:
    f = Fixture()
    loop = f.loop  # which is there once, and has cycles of its own
    with no_garbage():
        f.find("192.0.2.1")
        f.find("host")
        f.find("other")
        f.answer(NameNotResolved("no"))
        f.them.close()
        f.answer([FIRST])
        assert (f.sent, f.failures) == ([], [])
        assert not any(timer.callback for _, _, timer in loop.timers)
        f.__dict__.clear()
    loop.close()


def test_an_answer_at_once(f: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(host: str) -> list[tuple[bytes, int]]:
        if host == "bad":
            raise NameNotResolved("no such name")
        return [(FIRST, 0)]

    monkeypatch.setattr(f.them._policy.dialler, "lookup", at_once)
    assert f.find("host") == ("192.0.2.1", 53)
    assert f.find("bad") is None
    assert f.them.dropped == 1


def test_no_answer_in_time(f: Fixture) -> None:
    f.them._policy.dialler.dial_timeout = 0.05
    f.find("host")
    f.loop.run(f.loop.sleep(0.3))
    assert f.them.dropped == 1
    assert f.reported == [("host:53", "host: no answer in time")]
    assert datagram_destinations._MOST_LOOK_UPS - len(f.them._look_ups) == 16
