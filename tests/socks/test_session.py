"""A session from the first byte to the last, and its lines of the log; as playbooks (play.py)."""

import errno
import re

import pytest
from play import ANYONE, SECONDS, Play

from muonsocks.log import INFO, WARNING
from muonsocks.socks.admission import Finished
from muonsocks.socks.policy import Limits
from muonsocks.socks.rules import Rules, parse_rules


@pytest.mark.parametrize("book", ANYONE)
def test_anyone(book: str) -> None:
    Play().perform(ANYONE[book])


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
    for book, refused in (("this host's own side", True), ("an unknown command", False)):
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
        assert play.session.client.reader == -1  # closed
        play.loop.close()


def test_a_part_that_hands_on_is_not_logged() -> None:
    play = Play()

    async def story() -> None:
        return None

    play.loop.run(play.session.logged(story))
    assert play.log.lines == []
    assert play.session.client.reader >= 0
