"""What a program is told of names when it asks by DNS: the rules of `client.look_ups`.

A name that a proxy is to look up has addresses that stand for it. Names of this host have those of
loopback. Names that are gone to without a proxy, and all names if the last proxy is not told any,
are looked up here.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from muonsocks.address import Endpoint, parse_address
from muonsocks.client.destinations import is_here
from muonsocks.client.fake_addresses import is_fake
from muonsocks.errors import NameNotResolved, RemoteProtocolError
from muonsocks.intercept import dns
from muonsocks.intercept.dns import AAAA, ANY, PTR, A, Question
from muonsocks.intercept.search import Search, read_search
from muonsocks.intercept.ways import Ways

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    # What names.addresses_of does.
    LookUp = Callable[[str], Awaitable[list[tuple[bytes, int]]]]

_FAMILIES = {A: (AF_INET,), AAAA: (AF_INET6,), ANY: (AF_INET, AF_INET6)}


class Names:
    """Answers questions."""

    __slots__ = ("_destinations", "_has_ipv6", "_look_up", "_search", "_ways")

    def __init__(
        self, ways: Ways, look_up: LookUp, search: Search | None = None, has_ipv6: bool = True
    ) -> None:
        """Without IPv6 no name has an address of that kind: there are no sockets for it."""
        self._ways = ways
        self._destinations = ways.destinations
        self._look_up = look_up
        self._search = search or Search()
        self._has_ipv6 = has_ipv6

    async def answer(self, message: bytes) -> bytes:
        """Answer a message; with nothing, if it has earned that."""
        try:
            question = dns.read(message)
        except RemoteProtocolError as error:
            return error.reply
        if question.kind == PTR:
            return self._name_of(question)
        if question.name is None:
            return question.no_such_name()
        return await self._addresses_of(question, question.name)

    def _name_of(self, question: Question) -> bytes:
        packed = question.address()
        if packed is None:
            return question.no_such_name()
        if is_here(packed):
            return question.pointer(self._destinations.names_here(packed)[0])
        name = self._destinations.name_of(packed) if is_fake(packed) else None
        return question.no_such_name() if name is None else question.pointer(name)

    async def _addresses_of(self, question: Question, name: str) -> bytes:
        if not name:
            return question.no_data()  # the root
        if here := self._destinations.addresses_here(name):
            return question.addresses(self._usable(here))
        chain = self._ways.way_to(Endpoint(name, 0))
        if chain and chain[-1].resolves:
            if self._search.has_made_up(name):
                return question.no_such_name()
            return question.addresses(self._stand_ins(question, name))
        if question.kind not in _FAMILIES:
            return question.no_data()
        try:
            found = await self._look_up(name)
        except NameNotResolved as error:
            return question.failure() if error.errno else question.no_such_name()
        except OSError:
            return question.failure()
        addresses = self._usable(packed for packed, _ in found)
        if not chain:
            for packed in addresses:
                self._destinations.note(packed)
        return question.addresses(addresses)

    def _stand_ins(self, question: Question, name: str) -> list[bytes]:
        families = _FAMILIES.get(question.kind, ())
        texts = [self._destinations.stand_in(name, family) for family in families]
        return self._usable(packed for packed in map(parse_address, texts) if packed is not None)

    def _usable(self, addresses: Iterable[bytes]) -> list[bytes]:
        return [packed for packed in addresses if self._has_ipv6 or len(packed) == 4]


def searched(environ: Mapping[str, str], path: str = "/etc/resolv.conf") -> Search:
    """Read which domains resolvers search, in an environment. Without the file there are none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return read_search(file.read(), environ)
    except OSError:
        return read_search("", environ)
