"""What programs are told: of which class, with which number, and who is to blame."""

import errno
import pickle
import socket

import pytest

from muonsocks import client
from muonsocks.client import (
    DestinationRefused,
    DestinationTimedOut,
    DestinationUnreachable,
    LoginRefused,
    NameNotFound,
    NameTimedOut,
    ProxyError,
    ProxyMisbehaved,
    ProxyTimedOut,
    ProxyUnreachable,
    RequestRefused,
)
from muonsocks.client.errors import told
from muonsocks.errors import (
    SHORTAGES,
    DialError,
    NameNotResolved,
    NotAdmittedByProxy,
    ProxyFailed,
    ProxyNotReached,
    RequestFailed,
    RequestImpossible,
)

# By what a program may catch each, besides its own class.
CAUGHT_BY: dict[type[OSError], tuple[type[OSError], ...]] = {
    ProxyUnreachable: (),
    ProxyMisbehaved: (),
    LoginRefused: (),
    RequestRefused: (),
    ProxyTimedOut: (TimeoutError,),
    DestinationUnreachable: (),
    DestinationRefused: (DestinationUnreachable, ConnectionRefusedError, ConnectionError),
    DestinationTimedOut: (DestinationUnreachable, TimeoutError),
    NameNotFound: (socket.gaierror,),
    NameTimedOut: (NameNotFound, socket.gaierror, TimeoutError),
}
BUILT_IN = (TimeoutError, ConnectionError, ConnectionRefusedError, socket.gaierror)


@pytest.mark.parametrize("kind", CAUGHT_BY)
def test_what_catches_it(kind: type[OSError]) -> None:
    assert issubclass(kind, (ProxyError, OSError))
    for one in (*CAUGHT_BY, *BUILT_IN):
        assert issubclass(kind, one) == (one is kind or one in CAUGHT_BY[kind]), one
    assert getattr(client, kind.__name__) is kind


R = "socks5://proxy:1080: reason"
TOLD: list[tuple[OSError, type[OSError], int | None, int | None, str]] = [
    # what the rooms below say; the class, errno, code, and the side that a program is told
    (RequestFailed(1, R), RequestRefused, errno.ECONNABORTED, 1, "proxy"),
    (RequestFailed(2, R), RequestRefused, errno.EACCES, 2, "proxy"),
    (RequestFailed(3, R), DestinationUnreachable, errno.ENETUNREACH, 3, "destination"),
    (RequestFailed(4, R), DestinationUnreachable, errno.EHOSTUNREACH, 4, "destination"),
    (RequestFailed(5, R), DestinationRefused, errno.ECONNREFUSED, 5, "destination"),
    (RequestFailed(6, R), DestinationTimedOut, errno.ETIMEDOUT, 6, "destination"),
    (RequestFailed(7, R), RequestRefused, errno.EOPNOTSUPP, 7, "proxy"),
    (RequestFailed(8, R), RequestRefused, errno.EAFNOSUPPORT, 8, "proxy"),
    (RequestFailed(0x5D, R), RequestRefused, errno.ECONNABORTED, 0x5D, "proxy"),
    (RequestFailed(255, R), RequestRefused, errno.ECONNABORTED, 255, "proxy"),
    (RequestImpossible(7, R), RequestRefused, errno.EOPNOTSUPP, None, "here"),
    (RequestImpossible(8, R), RequestRefused, errno.EAFNOSUPPORT, None, "here"),
    (NameNotResolved(R), NameNotFound, socket.EAI_NONAME, None, "here"),
    (NameNotResolved(R, errno.ETIMEDOUT), NameTimedOut, errno.ETIMEDOUT, None, "here"),
    (NotAdmittedByProxy(R), LoginRefused, errno.EACCES, None, "proxy"),
    (ProxyNotReached(R), ProxyUnreachable, errno.EHOSTUNREACH, None, "proxy"),
    (ProxyNotReached(R, errno.ECONNREFUSED), ProxyUnreachable, errno.ECONNREFUSED, None, "proxy"),
    (ProxyNotReached(R, errno.ENOENT), ProxyUnreachable, errno.ENOENT, None, "proxy"),
    (ProxyNotReached(R, errno.ETIMEDOUT), ProxyTimedOut, errno.ETIMEDOUT, None, "proxy"),
    (ProxyNotReached(R, errno.EADDRINUSE), ProxyUnreachable, errno.EADDRINUSE, None, "here"),
    *[(ProxyNotReached(R, one), ProxyUnreachable, one, None, "here") for one in SHORTAGES],
    (ProxyFailed(R), ProxyMisbehaved, errno.EPROTO, None, "proxy"),
    (ProxyFailed(R, errno.ECONNRESET), ProxyMisbehaved, errno.ECONNRESET, None, "proxy"),
    (ProxyFailed(R, errno.EPIPE), ProxyMisbehaved, errno.ECONNRESET, None, "proxy"),
    (ProxyFailed(R, errno.ETIMEDOUT), ProxyTimedOut, errno.ETIMEDOUT, None, "proxy"),
]


@pytest.mark.parametrize(("error", "kind", "number", "code", "side"), TOLD)
def test_what_is_told(
    error: OSError, kind: type[OSError], number: int, code: int | None, side: str
) -> None:
    got = told(error)
    assert type(got) is kind
    assert isinstance(got, ProxyError)
    assert (got.errno, got.code, got.side, got.strerror) == (number, code, side, R)
    assert str(got) == f"[Errno {number}] {R}"
    if isinstance(error, ProxyNotReached | ProxyFailed):
        late = told(error, is_late=True)
        assert isinstance(late, TimeoutError) and late.errno == errno.ETIMEDOUT


def test_a_class_is_not_changed_by_one_of_it() -> None:
    assert told(RequestImpossible(7, R)).side == "here"  # type: ignore[attr-defined]
    assert RequestRefused.side == ProxyError.side == "proxy"


def test_errors_of_connections_without_a_proxy() -> None:
    """They are what connect(2) has."""
    for number, kind in (
        (errno.ECONNREFUSED, ConnectionRefusedError),
        (errno.ETIMEDOUT, TimeoutError),
        (errno.ENETUNREACH, OSError),
    ):
        got = told(DialError(number, "reason", []))
        assert (type(got), got.errno, got.strerror) == (kind, number, "reason")
    late = told(DialError(errno.ECONNREFUSED, "Connection refused", []), is_late=True)
    assert type(late) is TimeoutError
    assert late.strerror == "Connection refused, and then the time limit has passed"
    other = PermissionError(errno.EPERM, "no")
    assert told(other) is other


@pytest.mark.parametrize("kind", CAUGHT_BY)
def test_they_go_from_process_to_process(kind: type[OSError]) -> None:
    """As with concurrent.futures or multiprocessing."""
    error = kind(5, "reason")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and again.args == error.args
    assert (again.code, again.side) == (None, kind.side)  # type: ignore[attr-defined]
    coded = RequestRefused(5, "reason", 7)
    assert pickle.loads(pickle.dumps(coded)).code == 7
