"""Events are compared and shown; every errno has its reply code."""

import errno
from copy import copy

import pytest

from muonsocks.address import Endpoint
from muonsocks.errors import DialError, NameNotResolved, NobodyCame, ProxyFailed, RequestFailed
from muonsocks.socks.request import (
    REPLY_NAMES,
    UNSPECIFIED,
    Credentials,
    CredentialsVerdict,
    Event,
    MethodChoice,
    MethodOffer,
    Reply,
    ReplyCode,
    Request,
    end_of,
    reply_code,
)

CODES = {
    errno.EACCES: 2,
    errno.EPERM: 2,
    errno.ENETUNREACH: 3,
    errno.ENETDOWN: 3,
    errno.ENONET: 3,
    errno.EHOSTUNREACH: 4,
    errno.EHOSTDOWN: 4,
    errno.ENOENT: 4,
    errno.ECONNREFUSED: 5,
    errno.ECONNRESET: 5,
    errno.ETIMEDOUT: 6,
    errno.EAFNOSUPPORT: 8,
}


def test_reply_code_of_every_errno() -> None:
    for number, name in errno.errorcode.items():
        code = CODES.get(number, 1)
        assert reply_code(OSError(number, "reason")) == code, name
        assert reply_code(DialError(number, "reason", [("192.0.2.1", number)])) == code, name


def test_reply_code_of_others() -> None:
    assert reply_code(NameNotResolved("no such name")) == 4
    assert reply_code(OSError()) == 1
    assert reply_code(TimeoutError()) == 1
    assert reply_code(RequestFailed(240, "what the other one says")) == 240
    for number in errno.errorcode:
        assert reply_code(ProxyFailed("proxy: reason", number)) == 1, "it is not the destination"


def test_how_failures_are_logged() -> None:
    assert end_of(NameNotResolved("no such name"), "dial-failed") == "name-not-found"
    assert end_of(ProxyFailed("proxy: reason"), "dial-failed") == "via-failed"
    assert end_of(NobodyCame("nobody has connected"), "bind-failed") == "bind-timeout"
    for error in (OSError(), DialError(5, "reason", []), RequestFailed(4, "reason")):
        assert end_of(error, "what has failed") == "what has failed"


def test_every_reply_code_has_a_name() -> None:
    codes = {code for name, code in vars(ReplyCode).items() if name.isupper()}
    assert codes - set(REPLY_NAMES) == {ReplyCode.SUCCEEDED, ReplyCode.IDENTITY_REFUSED}


HOST = Endpoint("a.test", 80)
DIFFERENT: tuple[tuple[Event, str], ...] = (
    (MethodOffer(b"\0"), r"MethodOffer(methods=b'\x00')"),
    (MethodOffer(b"\0\0"), r"MethodOffer(methods=b'\x00\x00')"),
    (MethodChoice(0), "MethodChoice(method=0)"),
    (MethodChoice(1), "MethodChoice(method=1)"),
    (Credentials(b"u", b"p"), "Credentials(user=b'u')"),
    (Credentials(b"u", b"q"), "Credentials(user=b'u')"),
    (Credentials(b"v", b"p"), "Credentials(user=b'v')"),
    (CredentialsVerdict(True), "CredentialsVerdict(accepted=True)"),
    (CredentialsVerdict(False), "CredentialsVerdict(accepted=False)"),
    (Request(1, HOST), "Request(command=1, destination=Endpoint('a.test', 80), user=b'')"),
    (Request(2, HOST), "Request(command=2, destination=Endpoint('a.test', 80), user=b'')"),
    (
        Request(1, UNSPECIFIED),
        "Request(command=1, destination=Endpoint('0.0.0.0', 0), user=b'')",
    ),
    (Request(1, HOST, b"u"), "Request(command=1, destination=Endpoint('a.test', 80), user=b'u')"),
    (Reply(0), "Reply(bound=Endpoint('0.0.0.0', 0), code=0)"),
    (Reply(1), "Reply(bound=Endpoint('0.0.0.0', 0), code=1)"),
    (Reply(0, HOST), "Reply(bound=Endpoint('a.test', 80), code=0)"),
)


@pytest.mark.parametrize(("event", "shown"), DIFFERENT)
def test_events(event: Event, shown: str) -> None:
    """An event equals itself, a twin and no other one; no password is shown."""
    assert event == copy(event)
    assert [other for other, _ in DIFFERENT if other == event] == [event]
    assert event != shown
    assert repr(event) == shown
    with pytest.raises(TypeError):
        hash(event)
