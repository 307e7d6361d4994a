"""What systemd and s6 are told, on a real socket and a real descriptor."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ends import nothing_left_behind

from muonsocks.errors import UsageError
from muonsocks.resident.notify import Notifier

Read = Callable[[], list[str]]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=["path", "abstract"])
def told(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Read]:
    """Be systemd: give what reads all that it was told."""
    name = str(tmp_path / "notify")
    if request.param == "abstract":
        name = "@" + name
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0", 1))
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", name)

        def read() -> list[str]:
            messages = []
            try:
                while True:
                    messages.append(sock.recv(4096).decode())
            except BlockingIOError:
                return messages

        yield read


def test_systemd_is_told(told: Read) -> None:
    notifier = Notifier()
    assert notifier.to_systemd
    assert notifier.watchdog == 0
    assert told() == []
    notifier.ready()
    notifier.status("connections: 1 open")
    notifier.status("connections: 1 open")  # no news
    notifier.status("connections: 2 open")
    notifier.alive()
    notifier.stopping(40)
    assert told() == [
        "READY=1",
        "STATUS=connections: 1 open",
        "STATUS=connections: 2 open",
        "WATCHDOG=1",
        "STOPPING=1\nEXTEND_TIMEOUT_USEC=40000000",
    ]


def test_a_pipe_that_is_full_is_not_waited_for() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    Notifier(writer).ready()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(writer)
    os.close(reader)


def test_a_reload_is_told_with_its_time(told: Read) -> None:
    """As Type=notify-reload wants it (sd_notify(3))."""
    notifier = Notifier()
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    notifier.ready()
    reloading, ready = told()
    state, stamp = reloading.split("\nMONOTONIC_USEC=")
    assert (state, ready) == ("RELOADING=1", "READY=1")
    assert before <= int(stamp) <= time.monotonic_ns() // 1000


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("3000000", None, 3.0),
        ("500000", "ours", 0.5),
        ("3000000", "1", 0),
        ("", None, 0),
        ("0", None, 0),
        ("-1", None, 0),
        ("x", None, 0),
    ],
)
def test_watchdog(
    told: Read, monkeypatch: pytest.MonkeyPatch, usec: str, pid: str | None, seconds: float
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    if pid is not None:
        monkeypatch.setenv("WATCHDOG_PID", pid.replace("ours", str(os.getpid())))
    assert Notifier().watchdog == seconds


def test_nobody_is_told() -> None:
    notifier = Notifier()
    assert not notifier.to_systemd
    notifier.ready()
    notifier.reloading()
    notifier.status("all is well")
    notifier.alive()
    notifier.stopping(40)
    notifier.close()


def test_systemd_that_does_not_listen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As sd_notify(3) has it, that is no reason not to serve."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notifier = Notifier()
    notifier.ready()
    notifier.stopping(40)


def test_a_descriptor_is_told_once_and_closed() -> None:
    with nothing_left_behind():
        reader, writer = os.pipe()
        notifier = Notifier(writer)
        notifier.reloading()
        notifier.alive()
        os.set_blocking(reader, False)
        with pytest.raises(BlockingIOError):
            os.read(reader, 10)
        notifier.ready()
        assert os.read(reader, 10) == b"\n"
        assert os.read(reader, 10) == b""
        notifier.ready()  # after a reload
        os.close(reader)


def test_who_read_the_descriptor_may_have_gone() -> None:
    with nothing_left_behind():
        reader, writer = os.pipe()
        os.close(reader)
        Notifier(writer).ready()


def test_a_child_closes_it_without_a_word(told: Read) -> None:
    with nothing_left_behind():
        reader, writer = os.pipe()
        notifier = Notifier(writer)
        notifier.close()
        assert os.read(reader, 10) == b""
        notifier.ready()
        notifier.stopping(40)
        notifier.close()
        os.close(reader)
    assert told() == []


def test_both_are_told(told: Read) -> None:
    reader, writer = os.pipe()
    Notifier(writer).ready()
    assert os.read(reader, 10) == b"\n"
    assert told() == ["READY=1"]
    os.close(reader)


def test_systemd_without_its_library(told: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "systemd.daemon", None)
    with pytest.raises(UsageError, match="python3-systemd"):
        Notifier()
