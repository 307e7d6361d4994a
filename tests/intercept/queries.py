"""Questions of DNS written, and answers read, by other means than those of the library."""

import struct

A, MX = 1, 15


def wire(name: str) -> bytes:
    labels = [label.encode("latin-1") for label in name.split(".") if label]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def query(
    name: str | bytes = "www.example",
    kind: int = A,
    *,
    of_class: int = 1,
    flags: int = 0x100,
    more: bytes = b"",
    counts: tuple[int, int, int, int] | None = None,
) -> bytes:
    if isinstance(name, str):
        name = wire(name)
    counts = counts or (1, 0, 0, 1 if more else 0)
    return (
        struct.pack("!6H", 0x1234, flags, *counts)
        + name
        + struct.pack("!HH", kind, of_class)
        + more
    )


class Read:
    """An answer, read anew."""

    def __init__(self, message: bytes, asked: bytes) -> None:
        self.identity, self.flags, questions, answers, authorities, more = struct.unpack_from(
            "!6H", message
        )
        assert self.flags & 0x8000 and not authorities
        self.code = self.flags & 15
        place = 12
        if questions:
            while asked[place]:
                place += 1 + asked[place]
            place += 5
            assert message[12:place] == asked[12:place]  # to the letter
        self.records: list[tuple[int, bytes]] = []
        self.options: tuple[int, int] | None = None
        for _ in range(answers):
            assert message[place : place + 2] == b"\xc0\x0c"
            kind, of_class, life, length = struct.unpack_from("!HHIH", message, place + 2)
            assert (of_class, life) == (1, 1)
            self.records.append((kind, message[place + 12 : place + 12 + length]))
            place += 12 + length
        for _ in range(more):
            assert message[place : place + 3] == b"\0\0\x29"
            size, life, length = struct.unpack_from("!HIH", message, place + 3)
            self.options, place = (size, life), place + 11
            assert not length
        assert place == len(message)
