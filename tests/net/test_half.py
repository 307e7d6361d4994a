"""One direction of a relay: files, urgent data, and where splice or its pipes cannot be had."""

import errno
import os
import resource
import select
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from conformance import Thread
from ends import (
    KINDS,
    PATIENCE,
    End,
    Ours,
    at_once,
    noise,
)
from joined import MIB, Pair, as_a_server, carried, leaks_nothing, relayed  # noqa: F401
from places import descriptor_limit, in_child

from muonsocks.net import half, pipes
from muonsocks.net.loop import Loop
from muonsocks.net.relay import Relay
from muonsocks.net.stream import Stream

# Regular files, which epoll refuses


@pytest.mark.parametrize("size", [0, 1, 65536, 3 * MIB + 1])
@pytest.mark.parametrize("kind", ["tcp", "unix", "pipes", "fifos"])
def test_regular_files(tmp_path: Path, kind: str, size: int) -> None:
    (tmp_path / "in").write_bytes(noise(size))
    client = Ours(
        os.open(tmp_path / "in", os.O_RDONLY),
        os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT),
    )
    our_far, far = KINDS[kind].make(tmp_path if kind != "fifos" else make(tmp_path / "fifos"))
    over = relayed(client, our_far)
    answer = noise(size, 2)
    received, _ = at_once(far.read_to_end, lambda: far.send(answer))
    assert received == (noise(size), "end")
    far.close()
    assert over() == ("closed", size, size)
    assert (tmp_path / "out").read_bytes() == answer


def test_terminal_that_nobody_else_has_open_has_ended(tmp_path: Path) -> None:
    """To its master side that is told as an error, but it is the end and all there was."""
    (our_client, client), (our_far, far) = (
        KINDS[kind].make(tmp_path) for kind in ("master", "tcp")
    )
    over = relayed(our_client, our_far)
    client.send(b"last words")
    client.close()
    assert far.read_to_end() == (b"last words", "end")
    far.close()
    assert over() == ("closed", 10, 0)


def make(directory: Path) -> Path:
    directory.mkdir()
    return directory


@pytest.mark.parametrize("spliced", [True, False])
def test_more_than_one_turn_of_what_is_always_ready(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spliced: bool
) -> None:
    """No event says that there is more of a file."""
    real, moved = half.splice, [0]

    def splice(*arguments: Any, **options: Any) -> int:
        moved.append(real(*arguments, **options))
        return moved[-1]

    monkeypatch.setattr(half, "splice", splice)
    size = 40 * MIB if spliced else 3 * MIB
    with open(tmp_path / "in", "wb") as file:
        file.truncate(size)
    out = os.O_WRONLY | os.O_CREAT | (0 if spliced else os.O_APPEND)
    over = relayed(
        Ours(os.open(tmp_path / "in", os.O_RDONLY), os.open("/dev/null", os.O_WRONLY)),
        Ours(os.open("/dev/null", os.O_RDONLY), os.open(tmp_path / "out", out)),
    )
    assert over() == ("closed", size, 0)
    assert (tmp_path / "out").stat().st_size == size
    assert sum(moved) > size if spliced else sum(moved) < size


def test_dev_null_on_both_sides() -> None:
    client = Ours(os.open("/dev/null", os.O_RDONLY), os.open("/dev/null", os.O_WRONLY))
    our_far, far = KINDS["unix"].make(Path())
    over = relayed(client, our_far)
    far.send(noise(MIB))
    assert far.read_to_end() == (b"", "end")
    far.close()
    assert over() == ("closed", 0, MIB)


@pytest.mark.parametrize("size", [1000, 40_000, 3 * MIB])
def test_append_only_file_cannot_be_spliced_to(tmp_path: Path, size: int) -> None:
    out = tmp_path / "out"
    out.write_bytes(b"before ")
    reader, writer = os.pipe()
    over = relayed(Ours(reader, os.open(out, os.O_WRONLY | os.O_APPEND)), far_of(ends := []))
    os.close(writer)
    data = noise(size)
    ends[0].send(data)
    assert ends[0].read_to_end() == (b"", "end")
    ends[0].close()
    assert over() == ("closed", 0, size)
    assert out.read_bytes() == b"before " + data


def far_of(ends: list[End], kind: str = "tcp") -> Ours:
    ours, end = KINDS[kind].make(Path())
    ends.append(end)
    return ours


def test_file_that_takes_little_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(half, "write", lambda fd, data: os.write(fd, data[:1000]))
    out = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    over = relayed(Ours(os.open("/dev/null", os.O_RDONLY), out), far_of(ends := []))
    data = noise(50_000)
    ends[0].send(data)
    ends[0].close()
    assert over()[1:] == (0, len(data))
    assert (tmp_path / "out").read_bytes() == data


@pytest.mark.parametrize("limit", [10_000, 100_000, 200_000, 2 * MIB + 1])
def test_file_that_takes_only_a_part(tmp_path: Path, limit: int) -> None:
    """A disk that is full: a short write and then an error, and no event for either."""

    def run() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        out = tmp_path / "out"
        client = Ours(os.open("/dev/null", os.O_RDONLY), os.open(out, os.O_WRONLY | os.O_CREAT))
        over = relayed(client, far_of(ends := []), half_close=5)
        data = noise(3 * MIB)
        with pytest.raises(ConnectionError):
            ends[0].send(data)
            ends[0].send(data)
        ends[0].close()
        assert over() == ("broken-pipe", 0, limit)
        assert out.read_bytes() == data[:limit]

    in_child(run)


# Urgent data stays in its place


@pytest.mark.parametrize("behind", [b"", b"behind"])
@pytest.mark.parametrize("direction", [0, 1], ids=["up", "down"])
@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 200_000, 3 * MIB])
def test_urgent_byte(direction: int, size: int, behind: bytes) -> None:
    with Pair() as pair:
        writer, reader = [(pair.client, pair.far), (pair.far, pair.client)][direction]
        data = noise(size)

        def write() -> None:
            writer.send(data)
            send_urgent(writer)
            writer.send(behind)

        _, received = at_once(write, lambda: reader.read_exactly(size + 1 + len(behind)))
        assert received == data + b"!" + behind


def send_urgent(end: End) -> None:
    assert end.sock
    assert end.wait_for(select.POLLOUT)
    end.sock.send(b"!", socket.MSG_OOB)


@pytest.mark.parametrize("direction", [0, 1], ids=["up", "down"])
def test_urgent_bytes_amid_bulk(direction: int) -> None:
    pieces = [noise(size, size) for size in (MIB, 3 * MIB, 1, 0, 65536, 2 * MIB, 5)]
    with Pair() as pair:
        writer, reader = [(pair.client, pair.far), (pair.far, pair.client)][direction]

        def write() -> None:
            for piece in pieces:
                writer.send(piece)
                send_urgent(writer)
            writer.end_output()

        _, received = at_once(write, reader.read_to_end)
        assert received == (b"".join(piece + b"!" for piece in pieces), "end")


@pytest.mark.parametrize("size", [150_000, 200_000, 250_000])
@pytest.mark.parametrize("ends", [False, True], ids=["goes-on", "ends"])
def test_urgent_byte_while_the_sink_is_full(size: int, ends: bool) -> None:
    """The event that tells of it comes when it is of no use."""
    with Pair() as pair:
        data = noise(size)
        # More than the sink takes while nobody reads, and less than what there is room for.
        pair.client.send(data)
        send_urgent(pair.client)
        pair.client.send(data[:1000])
        if ends:
            pair.client.end_output()
        pair.client.wait_until_acknowledged()
        assert pair.far.read_exactly(size + 1001) == data + b"!" + data[:1000]
        pair.client.close()
        assert pair.far.read_to_end() == (b"", "end")


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("ends", [False, True], ids=["goes-on", "ends"])
def test_urgent_byte_just_before_a_splice(
    monkeypatch: pytest.MonkeyPatch, nth: int, ends: bool
) -> None:
    """It comes between the event and the splice, which stops in front of it and gives 0."""
    real, calls, late, data = half.splice, [0], noise(MIB, 2), noise(150_000)
    pair = Pair(far="unix", sent=data)

    def splice(source: int, sink: int, count: int, **options: Any) -> int:
        calls[0] += 1
        if calls[0] == nth:
            pair.client.send(b"in front")
            send_urgent(pair.client)
            pair.client.send(b"behind")
            if ends:
                pair.client.end_output()
            pair.client.wait_until_acknowledged()
        return real(source, sink, count, **options)

    monkeypatch.setattr(half, "splice", splice)
    with pair:
        assert pair.far.read_exactly(len(data) + 15) == data + b"in front!behind"
        pair.client.send(late[: 0 if ends else MIB])
        assert pair.far.read_exactly(0 if ends else MIB) == late[: 0 if ends else MIB]


# Where splice or its pipes cannot be had


@pytest.mark.parametrize("side", ["source", "sink"])
@pytest.mark.parametrize("kinds", [("tcp", "tcp"), ("pipes", "unix")])
def test_descriptor_that_cannot_be_spliced(
    monkeypatch: pytest.MonkeyPatch, side: str, kinds: tuple[str, str]
) -> None:
    real, refused = half.splice, [0]

    def splice(source: int, sink: int, count: int, **options: Any) -> int:
        refuses = (count == pipes.SIZE) == (side == "source")
        if refuses and (side == "source" or pipes._in_use):
            refused[0] += 1
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(source, sink, count, **options)

    monkeypatch.setattr(half, "splice", splice)
    data = noise(5 * MIB)
    with Pair(*kinds) as pair:
        for _ in range(2):
            at_once(
                lambda: pair.client.send(data),
                lambda: pair.far.send(data),
                lambda: check(pair.client, data),
                lambda: check(pair.far, data),
            )
        assert refused[0] == 2, "it is tried once in each direction"


def check(end: End, data: bytes) -> None:
    assert end.read_exactly(len(data)) == data


def test_no_pipes_to_be_had() -> None:
    with Pair() as pair:
        pair.client.send(b"up and running")
        check(pair.far, b"up and running")
        data = noise(5 * MIB)
        with descriptor_limit(0):
            sender = Thread(lambda: pair.client.send(data))
            check(pair.far, data)
            sender.join()
            assert not pipes._pool
        # And when there are descriptors again, so are pipes; if not always for data that is read as
        # quickly as it comes.
        for _ in range(50):
            at_once(lambda: pair.client.send(data), lambda: check(pair.far, data))
            if pipes._pool:
                break
        assert pipes._pool


def test_more_stuffed_relays_than_pipes() -> None:
    """Those that get no pipe copy; the others hold theirs until somebody reads."""
    count = pipes._MOST + 6
    loop = Loop()
    (data, ends, results) = (noise(600_000), [], [])

    async def one(client: Stream, far: Stream) -> None:
        joined = Relay(client, far)
        ended = await carried(joined, PATIENCE, PATIENCE)
        results.append((ended.reason, joined.up.count))
        client.close()
        far.close()

    async def main() -> None:
        for _ in range(count):
            streams = []
            for _ in range(2):
                ours, theirs = socket.socketpair()
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
                theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MIB)
                streams.append(Ours(ours.fileno(), ours.fileno(), ours).stream(loop))
                ends.append(theirs)
            ends[-2].sendall(data)
            ends[-2].shutdown(socket.SHUT_WR)
            loop.spawn(one(*streams), pytest.fail)
        with loop.deadline(PATIENCE):
            await loop.sleep(0.01)
            assert pipes._in_use <= pipes._MOST
            for far in ends[1::2]:
                received = bytearray()
                far.setblocking(False)
                while len(received) < len(data):
                    try:
                        received += far.recv(MIB)
                    except BlockingIOError:
                        await loop.sleep(0)
                assert received == data
            for end in ends:
                end.close()
            while len(results) < count:
                await loop.sleep(0.001)

    loop.run(main())
    loop.close()
    assert {delivered for _, delivered in results} == {len(data)}
