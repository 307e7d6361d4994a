"""A connection on offer to a resident relay: what is known of it, as one message. No I/O.

The message goes with two sockets, the client and the far end, to who relays them (handover.py):

    OFFER 1                       the version of all this
    client 192.0.2.5:49152        who the client is, as in the log
    user 616c696365               the user's bytes, in hexadecimal; - if there is none
    target www.example.com:80     where the client wanted to go
    address 198.51.100.7:80       where that led
    reply 0                       the reply it has got; - if none
    age 0.103                     seconds since the connection was taken over from the client
    idle 900.0                    seconds, both limits as socks-relay(1) explains them
    half-close 120.0
                                  an empty line, and bytes that the client has sent already

Every line is there, in this order, and ends with a newline. The text is printable ASCII.
"""

from __future__ import annotations

from muonsocks.errors import RemoteProtocolError

LARGEST = 65536  # bytes of a message
TAKEN, FULL, GO = b"TAKEN", b"FULL", b"GO"  # what is said after it
LONGEST_WORD = 16  # bytes that are read of one of these

_FIRST_LINE = "OFFER 1"
_NAMES = ("client", "user", "target", "address", "reply", "age", "idle", "half-close")
_LONGEST_TEXT = 512  # characters of a client, target or address
_LONGEST_USER = 255  # bytes, as RFC 1929 has it
_SHORTEST_LIMIT, _LONGEST_TIME = 0.000001, 1e9  # s


class Offer:
    """One connection and what is known of it. Times are in seconds, `user` and `early` bytes."""

    __slots__ = (
        "address",
        "age",
        "client",
        "early",
        "half_close",
        "idle",
        "reply",
        "target",
        "user",
    )

    def __init__(
        self,
        client: str,
        user: bytes,
        target: str,
        address: str,
        reply: int | None,
        age: float,
        idle: float,
        half_close: float,
        early: bytes = b"",
    ) -> None:
        """ValueError if this cannot be said, or not in a log line."""
        for name, text in (("client", client), ("target", target), ("address", address)):
            if not (0 < len(text) <= _LONGEST_TEXT and _is_word(text)):
                raise ValueError(f"its {name} is no word")
        if len(user) > _LONGEST_USER:
            raise ValueError("its user is too long")
        if reply is not None and not 0 <= reply <= 255:
            raise ValueError("its reply is no reply code")
        if not 0 <= age <= _LONGEST_TIME:
            raise ValueError("its age is no time")
        if not all(_SHORTEST_LIMIT <= limit <= _LONGEST_TIME for limit in (idle, half_close)):
            raise ValueError("a limit is no time")
        self.client = client
        self.user = user
        self.target = target
        self.address = address
        self.reply = reply
        self.age = age
        self.idle = idle
        self.half_close = half_close
        self.early = early

    def encode(self) -> bytes:
        """Write it as a message. ValueError if that is too large."""
        values = (
            self.client,
            self.user.hex() or "-",
            self.target,
            self.address,
            "-" if self.reply is None else str(self.reply),
            *(f"{time:.6f}" for time in (self.age, self.idle, self.half_close)),
        )
        lines = [f"{name} {value}" for name, value in zip(_NAMES, values, strict=True)]
        message = "\n".join((_FIRST_LINE, *lines, "", "")).encode() + self.early
        if len(message) > LARGEST:
            raise ValueError("it is too large")
        return message

    @classmethod
    def decode(cls, message: bytes) -> Offer:
        """Read a message. RemoteProtocolError says what is wrong with it, and quotes nothing."""
        try:
            return cls._decode(message)
        except ValueError as error:
            raise RemoteProtocolError(str(error)) from None

    @classmethod
    def _decode(cls, message: bytes) -> Offer:
        head, empty_line, early = message.partition(b"\n\n")
        first, *lines = head.decode("ascii", "replace").split("\n")
        if first != _FIRST_LINE:
            raise ValueError(f"it does not begin with {_FIRST_LINE}: of another version?")
        if not empty_line or len(lines) != len(_NAMES):
            raise ValueError(f"it has not {len(_NAMES)} lines and an empty one")
        values = []
        for name, line in zip(_NAMES, lines, strict=True):
            key, space, value = line.partition(" ")
            if key != name or not space:
                raise ValueError(f"its {name} is not where it should be")
            values.append(value)
        client, user, target, address, reply, age, idle, half_close = values
        return cls(
            client,
            _bytes(user),
            target,
            address,
            None if reply == "-" else _number(reply),
            _seconds(age),
            _seconds(idle),
            _seconds(half_close),
            early,
        )


def _is_word(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def _bytes(text: str) -> bytes:
    if text == "-":
        return b""
    if len(text) % 2 or not text or text.strip("0123456789abcdef"):
        raise ValueError("its user is not in lower-case hexadecimal")
    return bytes.fromhex(text)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 3):
        raise ValueError("its reply is no number")
    return int(text)


def _seconds(text: str) -> float:
    digits = text.replace(".", "", 1)
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 20):
        raise ValueError("a time is no number of seconds")
    return float(text)
