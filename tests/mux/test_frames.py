"""What goes over the port, byte for byte: another implementation can be tested with this table."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from played import NAME, V4, V6, frames_in, wire
from strategies import endpoints, octets

from muonsocks.address import Endpoint
from muonsocks.errors import RemoteProtocolError
from muonsocks.mux.frames import (
    CONTROL,
    HEADER,
    HELLO_SIZE,
    HELLO_START,
    LARGEST,
    MAGIC,
    MOST_CONNECTIONS,
    WHOLE,
    Answer,
    Batch,
    Control,
    Credit,
    Done,
    Eof,
    Goodbye,
    Hello,
    Open,
    Ping,
    Pong,
    Reset,
    decode,
    frames_of,
    start_of_hello,
)

IN_V4 = "01 c0000207 0050"
IN_V6 = "04 20010db8000000000000000000000007 1f90"
IN_NAME = "03 0c 6578616d706c652e74657374 01bb"
IN_MAGIC = "fea39e96cec7f5ef a5d7fca080bc8ca6 feebc0f5e0c48bbd 95c9bfb8e2a9bac1"

MESSAGES: dict[str, tuple[str, Control]] = {
    "a guest's first HELLO": (
        f"ffff 3400  {IN_MAGIC}  0100 0000  0102030405060708 0000000000000000",
        Hello(1, 0, bytes(range(1, 9)), bytes(8)),
    ),
    "a host's HELLO, which has heard that": (
        f"ffff 3400  {IN_MAGIC}  0100 0010  1112131415161718 0102030405060708",
        Hello(1, 4096, bytes(range(0x11, 0x19)), bytes(range(1, 9))),
    ),
    "OPEN to IPv4": (f"ffff 0e00  01 0300 00000400  {IN_V4}", Open(3, 1 << 18, V4)),
    "OPEN to IPv6": (f"ffff 1a00  01 ff7f 00400000  {IN_V6}", Open(0x7FFF, 1 << 14, V6)),
    "OPEN to a name": (f"ffff 1700  01 0000 04030201  {IN_NAME}", Open(0, 0x01020304, NAME)),
    "ANSWER": (f"ffff 0f00  02 0300 00000400 00  {IN_V4}", Answer(3, 1 << 18, 0, V4)),
    "ANSWER, refused": (
        "ffff 0f00  02 0201 00000000 05  01 00000000 0000",
        Answer(0x102, 0, 5, Endpoint("0.0.0.0", 0)),
    ),
    "ANSWER with IPv6": (f"ffff 1b00  02 0300 ffffffff ff  {IN_V6}", Answer(3, 2**32 - 1, 255, V6)),
    "CREDIT": ("ffff 0700  03 0300 00000200", Credit(3, 1 << 17)),
    "EOF": ("ffff 0300  04 0102", Eof(0x201)),
    "RESET": ("ffff 0400  05 0300 02", Reset(3, 2)),
    "DONE": ("ffff 0300  06 0300", Done(3)),
    "PING": ("ffff 0900  07 0011223344556677", Ping(bytes.fromhex("0011223344556677"))),
    "PONG": ("ffff 0900  08 0011223344556677", Pong(bytes.fromhex("0011223344556677"))),
    "OPEN that ends as a HELLO begins": (
        "ffff 0e00  01 0300 00000400  01 c0000207 ffff  ffff 0000",
        Open(3, 1 << 18, Endpoint("192.0.2.7", 0xFFFF)),
    ),
    "PONG that ends as a HELLO begins": (
        "ffff 0900  08 000000ffff3400fe  ffff 0000",
        Pong(bytes.fromhex("000000ffff3400fe")),
    ),
    "GOODBYE": ("ffff 0500  09 64 6f 6e 65", Goodbye("done")),
    "GOODBYE without a word": ("ffff 0100  09", Goodbye("")),
}
NOTHING = bytes.fromhex("ffff 0000")
each_message = pytest.mark.parametrize(("digits", "message"), MESSAGES.values(), ids=MESSAGES)

u16, u32 = st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)
eight = st.binary(min_size=8, max_size=8)
printable = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=200)
controls = st.one_of(
    st.builds(Hello, u16, u16, eight, eight),
    st.builds(Open, u16, u32, endpoints),
    st.builds(Answer, u16, u32, octets, endpoints),
    st.builds(Credit, u16, u32),
    st.builds(Eof, u16),
    st.builds(Reset, u16, octets),
    st.builds(Done, u16),
    st.builds(Ping, eight),
    st.builds(Pong, eight),
    st.builds(Goodbye, printable),
)


def body_of(digits: str) -> bytes:
    """The body of the frame, without what may be behind it."""
    return frames_in(bytes.fromhex(digits))[0][1]


# Control messages


@each_message
def test_a_message_on_the_wire(digits: str, message: Control) -> None:
    assert message.encode().hex() == bytes.fromhex(digits).hex()


@each_message
def test_a_message_from_the_wire(digits: str, message: Control) -> None:
    assert decode(body_of(digits)) == message


@given(controls)
def test_what_is_encoded_is_decoded(message: Control) -> None:
    (number, body), *nothing = frames_in(message.encode())
    assert number == CONTROL
    assert decode(body) == message
    assert nothing in ([], [(CONTROL, b"")])


def test_the_constants() -> None:
    assert (len(MAGIC), HELLO_SIZE, WHOLE) == (32, 56, 32768)
    assert all(0x80 <= byte <= 0xFE for byte in MAGIC), "a header might have a part in it"
    assert LARGEST < 0x8000 and MOST_CONNECTIONS <= 0x8000
    assert bytes.fromhex(f"ffff 3400 {IN_MAGIC}") == HELLO_START
    assert not any(MAGIC.startswith(MAGIC[k:]) for k in range(1, 32)), "it overlaps with itself"


@each_message
def test_a_message_that_is_too_short(digits: str, message: Control) -> None:
    body = body_of(digits)
    least = 1 if isinstance(message, Goodbye) else len(body)  # any length of text is a text
    for size in range(least):
        with pytest.raises(RemoteProtocolError):
            decode(body[:size])


@each_message
@pytest.mark.parametrize("more", [b"\0", b"\xff", bytes(300)], ids=["0", "255", "300 bytes"])
def test_a_message_that_is_too_long(digits: str, message: Control, more: bytes) -> None:
    body = body_of(digits)
    if isinstance(message, Goodbye) and len(more) == 1:
        return  # that is a longer text
    with pytest.raises(RemoteProtocolError):
        decode(body + more)


def test_a_message_of_an_unknown_type() -> None:
    for kind in (0, *range(10, 256)):
        for size in (1, 3, 4, 7, 9, 14, 52):
            with pytest.raises(RemoteProtocolError, match=f"of type {kind} with {size} bytes"):
                decode(bytes((kind,)) + bytes(size - 1))


@pytest.mark.parametrize(
    "address",
    [
        "00 c0000207 0050",
        "02 c0000207 0050",
        "01 c0000207 00",
        "01 c0000207 0050 00",
        "04 c0000207 0050",
        "01 20010db8000000000000000000000007 1f90",
        "03 00 0050",
        "03 01 0050",
        "03 03 612062 0050",  # a space
        "03 03 61005c 0050",
        "03 03 2d6162 0050",  # a hyphen in front
        "03 02 c3a4 0050",  # no ASCII
        "03 04 616263 0050",
        "03 02 616263 0050",
        "03",
        "",
    ],
)
@pytest.mark.parametrize(
    "start", ["01 0300 00000400", "02 0300 00000400 00"], ids=["OPEN", "ANSWER"]
)
def test_an_address_that_is_none(start: str, address: str) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(bytes.fromhex(start + address))


def test_the_longest_name() -> None:
    longest = Open(1, 2, Endpoint("n" * 255, 3))
    assert decode(longest.encode()[HEADER.size :]) == longest


def test_a_goodbye_is_short_and_plain() -> None:
    said = Goodbye("naïve\n" + "x" * 300).encode()
    ((_, body),) = frames_in(said)
    assert body == b"\x09na\\xefve\n" + b"x" * 191  # 200 bytes of text
    heard = decode(body)
    assert isinstance(heard, Goodbye)
    assert heard.reason == "na\\xefve?" + "x" * 191
    with pytest.raises(RemoteProtocolError):
        decode(b"\x09" + b"x" * 201)
    assert decode(b"\x09\x1b[2J\xff\x7f") == Goodbye("?[2J??")  # it may be logged


def test_a_mapped_address_is_the_address_that_it_means() -> None:
    body = bytes.fromhex("01 0300 00000400 04 00000000000000000000ffffc0000207 0050")
    assert decode(body) == Open(3, 1 << 18, V4)


# Data


def pattern(size: int) -> bytes:
    """Bytes of which no two places look alike, without MAGIC in them, or what HELLO begins with."""
    return b"".join(b"%07d." % n for n in range(size // 8 + 1))[:size]


def batched(batch: Batch, connection: int, data: bytes) -> bytes:
    """Have a batch make frames of data, as one that reads does it."""
    rest = data
    for place in batch.places_for(len(data)):
        place[:], rest = rest[: len(place)], rest[len(place) :]
    assert not rest
    return bytes(batch.frames(connection, len(data)))


BATCH = Batch(4)
SIZES = [
    whole * LARGEST + more
    for whole in range(4)
    for more in (-3, -2, -1, 0, 1, 2, 3, 4, 5, 4095, 4096, 16384)
    if whole * LARGEST + more > 0
]


@pytest.mark.parametrize("size", SIZES)
def test_a_batch_carries_what_is_put_in(size: int) -> None:
    data = pattern(size)
    frames = frames_in(batched(BATCH, 7, data))
    assert b"".join(body for _, body in frames) == data
    assert {number for number, _ in frames} == {7}
    sizes = [len(body) for _, body in frames]
    assert sizes[:-1] == [LARGEST] * (len(sizes) - 1)
    assert 0 < sizes[-1] <= LARGEST


@pytest.mark.parametrize("size", SIZES)
def test_frames_of_carries_what_it_is_given(size: int) -> None:
    assert frames_of(7, pattern(size)) == batched(BATCH, 7, pattern(size))
    assert frames_of(7, pattern(size)) == wire(
        *((7, pattern(size)[start : start + LARGEST]) for start in range(0, size, LARGEST))
    )


def test_no_data_is_no_frame() -> None:
    assert frames_of(7, b"") == b""


def test_a_batch_has_room_for_what_it_says() -> None:
    assert BATCH.size == 4 * LARGEST
    for size in (1, LARGEST, LARGEST + 1, BATCH.size):
        assert sum(map(len, BATCH.places_for(size))) == size
    data = pattern(BATCH.size)
    assert b"".join(body for _, body in frames_in(batched(BATCH, 7, data))) == data


def test_a_batch_takes_part_of_what_there_was_room_for() -> None:
    places = BATCH.places_for(3 * LARGEST)
    data = pattern(LARGEST + 5)
    places[0][:] = data[:LARGEST]
    places[1][:5] = data[LARGEST:]
    assert frames_in(bytes(BATCH.frames(7, LARGEST + 5))) == [
        (7, data[:LARGEST]),
        (7, data[LARGEST:]),
    ]


# What ends as a HELLO begins

ENDS = [HELLO_START[:size] for size in range(1, 35)]  # a longer one is divided


@pytest.mark.parametrize("end", ENDS, ids=range(1, 35))
@pytest.mark.parametrize("size", [0, 1, 100, LARGEST, LARGEST + 7, 2 * LARGEST])
def test_data_that_ends_as_a_hello_begins(size: int, end: bytes) -> None:
    fills = size % LARGEST == 0 and size > 0
    data = pattern(size - len(end) if fills else size) + end
    for made in (frames_of(7, data), batched(BATCH, 7, data)):
        frames = frames_in(made)
        assert frames.pop() == (CONTROL, b"")
        assert b"".join(body for number, body in frames if number == 7) == data
        assert {number for number, _ in frames} == {7}


def test_a_full_batch_that_ends_as_a_hello_begins() -> None:
    data = pattern(BATCH.size - 1) + b"\xff"
    assert batched(BATCH, 7, data)[4 * WHOLE - 1 :] == b"\xff" + NOTHING


@pytest.mark.parametrize("end", ["fe", "ff34", "ffff35", "fffe", "ffff340001", "fea39e96", "ff00"])
def test_data_that_ends_nearly_as_a_hello_begins(end: str) -> None:
    data = bytes.fromhex(end)
    assert frames_in(frames_of(7, data)) == frames_in(batched(BATCH, 7, data)) == [(7, data)]


@pytest.mark.parametrize(
    "message",
    [
        Hello(1, 0, bytes(8), b"1234567\xff"),
        Open(1, 2, Endpoint("192.0.2.7", 0xFFFF)),
        Answer(1, 2, 0, Endpoint("2001:db8::ff", 255)),
        Ping(b"1234\xff\xff\x34\x00"),
        Pong(b"123\xff\xff\x34\x00\xfe"),
        Reset(7, 255),
    ],
    ids=repr,
)
def test_a_message_that_ends_as_a_hello_begins(message: Control) -> None:
    assert message.encode().endswith(NOTHING)
    assert frames_in(message.encode())[1:] == [(CONTROL, b"")]


@given(controls)
def test_no_message_ends_as_a_hello_begins(message: Control) -> None:
    made = message.encode()
    assert not any(made.endswith(end) for end in ENDS)


@pytest.mark.parametrize("size", range(1, 37))
def test_where_a_hello_may_begin(size: int) -> None:
    begun = HELLO_START[:size]
    whole = size == len(HELLO_START)  # then MAGIC tells where it is
    for before in (b"", b"\xff", b"\xff\xff\x34", bytes(100)):
        memory = bytearray(before + begun + b"\xff")
        end = len(memory) - 1
        place = start_of_hello(memory, 0, end)
        assert place == (end if whole else len(before)) or begun == b"\xff" == before
        assert start_of_hello(memory, len(before), end) == (end if whole else len(before))
        assert start_of_hello(memory, end, end) == end
        assert start_of_hello(memory + b"x", 0, end + 2) == end + 2


# MAGIC is on the wire in a HELLO only

OF_MAGIC = st.one_of(
    st.just(MAGIC),
    st.just(MAGIC[:-1]),
    st.just(MAGIC[:15]),  # where it is divided
    st.just(MAGIC[15:]),
    st.integers(0, 31).map(lambda n: MAGIC[:n]),
    st.integers(0, 31).map(lambda n: MAGIC[n:]),
    st.just(HELLO_START),
    st.just(b"\xff\xff\x34\x00"),
)
FILLING = st.integers(1, 40).map(lambda n: LARGEST - n) | st.integers(0, 64)
LOW_BYTE = MAGIC[-1]  # of a connection's number: a header that begins as MAGIC ends
CONNECTIONS = st.sampled_from((LOW_BYTE, 0x7F00 | LOW_BYTE, 0, 0x7FFF)) | st.integers(0, 0x7FFF)


@st.composite
def tempting(draw: st.DrawFn) -> bytes:
    """Data with MAGIC in it, whole and in parts, also where a frame ends."""
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        parts.append(bytes(draw(FILLING)))
        parts += draw(st.lists(OF_MAGIC | st.binary(max_size=5), min_size=1, max_size=5))
    return b"".join(parts)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(CONNECTIONS, tempting()), min_size=1, max_size=3), st.booleans())
@example([(1, MAGIC[:-1]), (LOW_BYTE, b"x")], True)
@example([(1, MAGIC[:-1]), (LOW_BYTE, b"x")], False)
@example([(1, bytes(LARGEST - 31) + MAGIC[:-1]), (LOW_BYTE, b"x")], True)
@example([(LOW_BYTE, bytes(LARGEST - 31) + MAGIC)], True)
@example([(LOW_BYTE, bytes(LARGEST - 31) + MAGIC)], False)
@example([(LOW_BYTE, MAGIC[:-1] * 3 + MAGIC)], False)
def test_data_with_magic_in_it(writes: list[tuple[int, bytes]], in_batch: bool) -> None:
    sent = b""
    for connection, data in writes:
        made = batched(BATCH, connection, data) if in_batch else frames_of(connection, data)
        frames = frames_in(made)
        carried = b"".join(body for number, body in frames if number != CONTROL)
        assert carried == data
        assert {number for number, _ in frames} - {CONTROL} <= {connection}
        assert all(len(body) <= LARGEST for _, body in frames)
        sent += made
        assert not any(made.endswith(end) for end in ENDS)
    assert MAGIC not in sent


def test_a_message_of_each_kind_next_to_each_other_has_no_magic() -> None:
    number = int.from_bytes(MAGIC[-1:] + b"\x7f", "little")
    parts = (MAGIC[:8], MAGIC[8:16], MAGIC[16:24], MAGIC[24:])
    address = Endpoint.at(MAGIC[:16], int.from_bytes(MAGIC[16:18], "big"))
    said: list[Control] = [Ping(part) for part in parts] + [Pong(part) for part in parts]
    said += Open(number, 1 << 18, address), Answer(number, 1 << 18, MAGIC[0], address)
    said += Eof(number), Done(number), Reset(number, MAGIC[0]), Credit(number, 0x7AFEFEFE)
    said.append(Goodbye(MAGIC.decode("latin-1")))
    for one in said:
        for other in said:
            assert MAGIC not in wire(one, other)
    hello = Hello(1, 1, MAGIC[:8], MAGIC[8:16])
    for one in said:
        assert wire(hello, one).count(MAGIC) == wire(one, hello).count(MAGIC) == 1
