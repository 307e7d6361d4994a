"""What the errors say, and what those who catch them find in them."""

import errno

from muonsocks.errors import (
    DialError,
    NameNotResolved,
    ProxyFailed,
    RemoteProtocolError,
    UsageError,
)


def test_a_usage_error_is_one_line_with_its_hint() -> None:
    assert str(UsageError("it cannot be")) == "it cannot be"
    assert str(UsageError("it cannot be", "do that")) == "it cannot be; do that"


def test_a_peers_fault_carries_what_it_has_earned() -> None:
    bare, earned = RemoteProtocolError("what"), RemoteProtocolError("what", b"\1\1", 1)
    assert (str(bare), bare.reply, bare.code) == ("what", b"", None)
    assert (str(earned), earned.reply, earned.code) == ("what", b"\1\1", 1)


def test_system_errors_say_why() -> None:
    unresolved = NameNotResolved("no such name")
    assert (unresolved.errno, unresolved.strerror) == (None, "no such name")
    failures = [("192.0.2.1", errno.ETIMEDOUT), ("2001:db8::1", errno.ECONNREFUSED)]
    unreached = DialError(errno.ECONNREFUSED, "refused", failures)
    assert (unreached.errno, unreached.strerror) == (errno.ECONNREFUSED, "refused")
    assert unreached.failures == failures
    assert type(unreached) is DialError, "OSError makes another class of some errnos"


def test_a_proxy_that_fails_may_have_been_dialled() -> None:
    """Whoever looks for what has been tried, or for what we ran out of, finds it there."""
    bare = ProxyFailed("socks5://proxy:1080: it is mad")
    assert (bare.errno, bare.strerror, list(bare.failures)) == (
        0,
        "socks5://proxy:1080: it is mad",
        [],
    )
    failures = [("192.0.2.1", errno.EMFILE)]
    dialled = ProxyFailed("socks5://proxy:1080: Too many open files", errno.EMFILE, failures)
    assert (dialled.errno, dialled.failures) == (errno.EMFILE, failures)
    assert isinstance(dialled, DialError)
