"""DNS as a server speaks it over UDP: questions read, answers written (RFC 1035, EDNS by RFC 6891).
No I/O.

A message is a header, a question, and records. The name of a question stands there in full: one
that leads elsewhere is malformed, so that there is nothing to go round in.
"""

from __future__ import annotations

from struct import Struct

from muonsocks.address import is_name, parse_address
from muonsocks.errors import RemoteProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# RFC 1035 section 3.2.2, RFC 3596
A, PTR, AAAA, ANY = 1, 12, 28, 255
_OPT = 41
_IN, _ANY_CLASS = 1, 255
# RFC 1035 section 4.1.1: RCODE; of the last one a part is in the OPT record (RFC 6891 section 9)
NO_ERROR, FORMAT_ERROR, SERVER_FAILURE, NO_SUCH_NAME, NOT_IMPLEMENTED = range(5)
_BAD_VERSION = 16

_HEADER = Struct("!HHHHHH")
_KIND_AND_CLASS = Struct("!HH")
_RECORD = Struct("!HHIH")  # behind its name: type, class, time to live, length
_IS_ANSWER, _OPCODE, _RECURSION_DESIRED, _RECURSION_AVAILABLE = 0x8000, 0x7800, 0x100, 0x80
_CHECKING_DISABLED = 0x10
_WANTS_DNSSEC = 0x8000  # of the flags in an OPT record (RFC 3225)
_THERE = b"\xc0\x0c"  # the name of the question, right behind the header
_LONGEST_NAME = 255  # bytes, with a length in front of each label and the end
_LONGEST_LABEL = 63
_POINTER = 0xC0
DOMAIN = 53  # the port of name servers
SHORTEST_LIMIT = 512  # bytes of a message that everybody takes
LARGEST = 1232  # bytes that pass any network in one piece
TIME_TO_LIVE = 1  # s: what an address stands for is known here alone


class Question:
    """What somebody wants to know. `name` is in lower case and without a dot at the end, "" for the
    root; None if it can be that of no host. `limit` is the bytes of the longest answer.
    """

    __slots__ = ("_flags", "_identity", "_options", "_section", "kind", "limit", "name")

    def __init__(
        self, identity: int, flags: int, section: bytes, kind: int, name: str | None
    ) -> None:
        self._identity = identity
        self._flags = flags
        self._section = section  # as it has come: its case may be looked at
        self._options: int | None = None  # flags of the OPT record, if there is one
        self.kind = kind
        self.name = name
        self.limit = SHORTEST_LIMIT

    def _answered(self, code: int, records: Sequence[bytes] = ()) -> bytes:
        flags = _IS_ANSWER | _RECURSION_AVAILABLE | code & 0xF
        flags |= self._flags & (_OPCODE | _RECURSION_DESIRED | _CHECKING_DISABLED)
        has_options = self._options is not None
        parts = [
            _HEADER.pack(
                self._identity, flags, 1 if self._section else 0, len(records), 0, has_options
            ),
            self._section,
            *records,
        ]
        if self._options is not None:
            life = code >> 4 << 24 | self._options & _WANTS_DNSSEC
            parts.append(b"\0" + _RECORD.pack(_OPT, LARGEST, life, 0))
        return b"".join(parts)

    def _record(self, kind: int, data: bytes) -> bytes:
        return _THERE + _RECORD.pack(kind, _IN, TIME_TO_LIVE, len(data)) + data

    def addresses(self, found: Iterable[bytes]) -> bytes:
        """Answer with those of some packed addresses that are asked for, as many as fit."""
        wanted = {A: (4,), AAAA: (16,), ANY: (4, 16)}.get(self.kind, ())
        records = [
            self._record(A if len(one) == 4 else AAAA, one) for one in found if len(one) in wanted
        ]
        room = self.limit - len(self._answered(NO_ERROR))
        fitting: list[bytes] = []
        for record in records:
            room -= len(record)
            if room < 0:
                break
            fitting.append(record)
        return self._answered(NO_ERROR, fitting)

    def pointer(self, name: str) -> bytes:
        """Answer with the name of the address that is asked for; that there is none if it cannot be
        written (RFC 1035 section 2.3.4).
        """
        labels = name.rstrip(".").encode("ascii").split(b".")
        if not all(0 < len(label) <= _LONGEST_LABEL for label in labels):
            return self.no_such_name()
        data = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
        if len(data) > _LONGEST_NAME:
            return self.no_such_name()
        return self._answered(NO_ERROR, [self._record(PTR, data)])

    def no_data(self) -> bytes:
        """Answer that there is the name, but nothing of this kind (RFC 2308 section 2.2)."""
        return self._answered(NO_ERROR)

    def no_such_name(self) -> bytes:
        """Answer that there is no such name."""
        return self._answered(NO_SUCH_NAME)

    def failure(self) -> bytes:
        """Answer that it could not be found out."""
        return self._answered(SERVER_FAILURE)

    def address(self) -> bytes | None:
        """Give the packed address that the name is that of (RFC 1035 section 3.5, RFC 3596 section
        2.5); None if it is none.
        """
        name = self.name or ""
        if name.endswith(".in-addr.arpa"):
            return parse_address(".".join(reversed(name.split(".")[:-2])))
        digits = name.removesuffix(".ip6.arpa").split(".")
        if not name.endswith(".ip6.arpa") or len(digits) != 32:
            return None
        if not all(len(one) == 1 and one in "0123456789abcdef" for one in digits):
            return None
        return bytes.fromhex("".join(reversed(digits)))


def read(message: bytes) -> Question:
    """Read a question. RemoteProtocolError if it is none, with the reply it has earned: for what is
    an answer itself, or has no header, that is none at all.
    """
    if len(message) < _HEADER.size:
        raise RemoteProtocolError("it is too short for a message")
    identity, flags, questions, answers, authorities, additional = _HEADER.unpack_from(message)
    if flags & _IS_ANSWER:
        raise RemoteProtocolError("it is an answer")  # and to answer it might go on for ever
    nothing = Question(identity, flags, b"", 0, None)
    if flags & _OPCODE:
        raise _error("it is no query", nothing, NOT_IMPLEMENTED)
    try:
        if questions != 1 or answers or authorities:
            raise ValueError("it is not one question")
        labels, place = _labels(message, _HEADER.size)
        kind, of_class = _KIND_AND_CLASS.unpack(_part(message, place, _KIND_AND_CLASS.size))
        place += _KIND_AND_CLASS.size
        section = message[_HEADER.size : place]
        question = Question(identity, flags, section, kind, _host_name(labels))
        version = _read_additional(question, message, place, additional)
    except ValueError as error:
        raise _error(str(error), nothing, FORMAT_ERROR) from None
    if version:
        raise _error(f"EDNS {version} is not known", question, _BAD_VERSION)
    if of_class not in (_IN, _ANY_CLASS):
        raise _error(f"class {of_class} is not known", question, NOT_IMPLEMENTED)
    return question


def _error(reason: str, question: Question, code: int) -> RemoteProtocolError:
    return RemoteProtocolError(reason, question._answered(code))


def _part(message: bytes, place: int, size: int) -> bytes:
    part = message[place : place + size]
    if len(part) < size:
        raise ValueError("it ends too early")
    return part


def _labels(message: bytes, place: int) -> tuple[list[bytes], int]:
    """Read a name that stands here in full: its labels, and where it ends."""
    labels: list[bytes] = []
    start = place
    while length := _part(message, place, 1)[0]:
        if length > _LONGEST_LABEL:
            raise ValueError("a label is not one")
        labels.append(_part(message, place + 1, length))
        place += 1 + length
        if place + 1 - start > _LONGEST_NAME:
            raise ValueError("a name is too long")
    return labels, place + 1


def _read_additional(question: Question, message: bytes, place: int, count: int) -> int:
    """Read the records behind a question, of which one may be OPT; give the version of that."""
    version = 0
    for _ in range(count):
        place, is_root = _past_name(message, place)
        kind, limit, life, length = _RECORD.unpack(_part(message, place, _RECORD.size))
        place += _RECORD.size
        _part(message, place, length)
        place += length
        if kind != _OPT:
            continue
        if not is_root or question._options is not None:
            raise ValueError("OPT is not as it should be")
        question._options = life & 0xFFFF
        question.limit = min(max(limit, SHORTEST_LIMIT), LARGEST)
        version = life >> 16 & 0xFF
    if place != len(message):
        raise ValueError("something follows that belongs to nothing")
    return version


def _past_name(message: bytes, place: int) -> tuple[int, bool]:
    """Say where a name ends that may lead elsewhere, and whether it is empty."""
    start = place
    while length := _part(message, place, 1)[0]:
        if length >= _POINTER:
            _part(message, place, 2)
            return place + 2, False
        if length > _LONGEST_LABEL:
            raise ValueError("a label is not one")
        place += 1 + length
    return place + 1, place == start


def _host_name(labels: list[bytes]) -> str | None:
    """Give a name as proxies are told it; None if they can be told no such name, or might take it
    for an address, as inet_aton(3) does with some that end in a number.
    """
    if not labels:
        return ""
    raw = b".".join(labels)
    if any(b"." in label for label in labels) or not is_name(raw):
        return None
    name = raw.decode("ascii").lower()
    last = labels[-1].lower()
    if last.isdigit() or last.startswith(b"0x") or parse_address(name) is not None:
        return None
    return name
