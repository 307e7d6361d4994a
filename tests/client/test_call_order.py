import errno
import socket
from collections.abc import Callable
from typing import Any

import pytest
from classic_calls import BIND, CONNECT, HOST, PEER, forget_all, listening, reach
from ends import at_once
from places import in_child
from upstream import Upstream

from muonsocks.client import call_order, rsocks
from muonsocks.client.call_order import OutOfOrder, Program, Reached
from muonsocks.client.classic_socket import program

CALLS: dict[str, Callable[[socket.socket], Any]] = {
    "Rconnect": lambda sock: rsocks.Rconnect(sock, (HOST, 21)),
    "Rbind": lambda sock: rsocks.Rbind(sock, ("", 0), HOST),
    "Rgetsockname": rsocks.Rgetsockname,
    "Rlisten": rsocks.Rlisten,
    "Raccept": rsocks.Raccept,
}
SEQUENCE = ("Rbind", "Rgetsockname", "Rlisten", "Raccept")

# After which calls; what is out of order then, and what the message says.
TABLE = [
    ((), "Rbind", f"a successful Rconnect to {HOST}"),
    ((), "Rgetsockname", "Rconnect or Rbind"),
    ((), "Rlisten", "Rconnect"),
    ((), "Raccept", "Rconnect"),
    (("elsewhere",), "Rlisten", "Rbind"),
    (("elsewhere",), "Raccept", "Rbind"),
    (("elsewhere",), "Rgetsockname", "Rconnect or Rbind"),
    (("Rconnect",), "Rbind", "another socket"),
    (("Rconnect",), "Rlisten", "Rbind of another socket"),
    (("Rconnect",), "Raccept", "Rbind of another socket"),
    *[
        (("elsewhere", *SEQUENCE[: place + 1]), call, due)
        for place, due in enumerate(SEQUENCE[1:])
        for call in CALLS
        if call != due and (call, due) not in (("Rgetsockname", "Rlisten"),)
        if (call, due) != ("Rgetsockname", "Raccept")
    ],
    *[
        (("elsewhere", *SEQUENCE), call, due)
        for call, due in (
            ("Rconnect", "another socket"),
            ("Rbind", "another socket"),
            ("Rgetsockname", "Rbind of another socket"),
            ("Rlisten", "Rbind of another socket"),
            ("Raccept", "Rbind of another socket"),
        )
    ],
]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_all(monkeypatch)


@pytest.mark.parametrize(("before", "call", "due"), TABLE)
def test_a_call_out_of_order(before: tuple[str, ...], call: str, due: str) -> None:
    with Upstream(CONNECT, [*BIND, PEER]) as proxy, socket.socket() as sock:
        rsocks.SOCKSinit("ftp", proxy.url("socks5h"))
        for one in before:
            if one == "elsewhere":
                reach().close()
            elif one == "Raccept":
                rsocks.Raccept(sock)[0].close()
            else:
                CALLS[one](sock)
        with pytest.raises(OutOfOrder) as caught:
            CALLS[call](sock)
        assert caught.value.errno == errno.EINVAL
        assert caught.value.due == due
        assert str(caught.value).startswith(f"[Errno 22] ftp: {due} is due before {call}")


def test_a_call_out_of_order_changes_nothing() -> None:
    with Upstream(CONNECT, [*BIND, PEER]) as proxy, socket.socket() as sock:
        rsocks.SOCKSinit(proxy=proxy.url("socks5h"))
        for step in ("Rconnect", *SEQUENCE):
            for call in CALLS:
                if call not in (step, "Rconnect", "Rgetsockname"):
                    with pytest.raises(OutOfOrder, match="SOCKSclient: "):
                        CALLS[call](sock)
            if step == "Rconnect":
                reach().close()
            elif step == "Raccept":
                rsocks.Raccept(sock)[0].close()
            else:
                CALLS[step](sock)
        assert len(proxy.heard) == 2


@pytest.mark.parametrize("call", CALLS)
def test_socksinit_comes_first(call: str) -> None:
    rsocks.SOCKSinit("first")
    rsocks.SOCKSinit("last", "direct")
    with socket.socket() as sock:
        sock.settimeout(5)
        with pytest.raises(OSError):
            CALLS[call](sock) if call != "Rconnect" else rsocks.Rconnect(sock, ("127.0.0.1", 1))
    with pytest.raises(OSError, match="last: SOCKSinit comes before") as caught:
        rsocks.SOCKSinit("late")
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("reached", "named"),
    [
        ("FTP.example.", "ftp.EXAMPLE"),
        ("2001:DB8::0:1", "2001:db8::1"),
        ("::ffff:192.0.2.7", HOST),
        ("bücher.example", "xn--bcher-kva.example"),
    ],
)
def test_a_host_is_known_however_it_is_spelled(reached: str, named: str) -> None:
    one, known = Program(), Reached(21, ("", 0))
    one.has_reached(known, reached)
    assert one.reached(named) is known
    with pytest.raises(OutOfOrder, match=r"Rconnect to \S+8 is due before Rbind for 192"):
        one.reached("192.0.2.8")


def test_only_so_many_hosts_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_order, "_MOST_HOSTS", 2)
    one = Program()
    for host in ("a", "b", "a", "c"):
        one.has_reached(Reached(1, ("", 0)), host)
    assert one.reached("a") and one.reached("c")
    with pytest.raises(OutOfOrder):
        one.reached("b")


def test_threads_have_sockets_of_their_own() -> None:
    def story() -> None:
        reach().close()
        sock, _ = listening()
        with sock:
            conn, peer = rsocks.Raccept(sock)
            with conn:
                assert peer == (HOST, 20)

    # Which of them comes when is open, so that all are told the same.
    with Upstream([*CONNECT, PEER]) as proxy:
        rsocks.SOCKSinit(proxy=proxy.url("socks5h"))
        at_once(*[story] * 8)
        assert len(proxy.heard) == 16


def test_a_child_process_goes_on() -> None:
    with Upstream(CONNECT, [*BIND, PEER]) as proxy:
        rsocks.SOCKSinit(proxy=proxy.url("socks5h"))
        reach().close()

        def child() -> None:
            with listening()[0] as sock:
                assert rsocks.Raccept(sock)[1] == (HOST, 20)

        with program._lock:  # as another thread may have it at that moment
            in_child(child)
