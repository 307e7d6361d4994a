"""Methods that go before those of a socket's class for a while."""

from muonsocks.client.parts import be_again, become, own_kind
from muonsocks.client.socks_socket import SocksSocket


class Another:
    def gettimeout(self) -> float:
        return 7.0


class Kind(SocksSocket):
    """A program's own."""


def test_they_come_and_go() -> None:
    with Kind(proxy=None) as sock:
        number = sock.fileno()
        become(sock, Another)
        assert (sock.gettimeout(), sock.fileno()) == (7.0, number)
        assert isinstance(sock, Kind) and own_kind(sock) is Kind
        assert (type(sock).__name__, type(sock).__module__) == ("Kind", Kind.__module__)
        be_again(sock)
        assert type(sock) is Kind and sock.gettimeout() is None


def test_one_may_be_before_another() -> None:
    class First:
        def gettimeout(self) -> float:
            return 1.0

    with Kind(proxy=None) as sock:
        become(sock, Another)
        become(sock, First)
        assert sock.gettimeout() == 1.0 and own_kind(sock) is Kind
        be_again(sock)
        assert sock.gettimeout() == 7.0
        be_again(sock)
        assert type(sock) is Kind


def test_a_class_is_made_once() -> None:
    with Kind(proxy=None) as one, Kind(proxy=None) as other, SocksSocket(proxy=None) as plain:
        for sock in (one, other, plain):
            become(sock, Another)
        assert type(one) is type(other) is not type(plain)
        for sock in (one, other, plain):
            be_again(sock)
