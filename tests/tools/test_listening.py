"""Where clients come to a program that stays; whole programs are in test_muonsocks*.py."""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from ends import Lines, nothing_left_behind
from senders import accepted, pass_on

from muonsocks.errors import UsageError
from muonsocks.net.entrance import Intake, Listener
from muonsocks.socketbox.entrances import AsTheyCome
from muonsocks.tools import listening
from muonsocks.tools.command_line import Options
from muonsocks.tools.listening import (
    listeners,
    notify_fd,
    receiver_at,
    receivers_at,
    registered,
)

OPEN_PROXY = "an open proxy: whoever can reach it may use it; see --users and -w"
FOR_THIS_HOST = "only for this host, as everybody may come in; see --users, -w and -i"


def given(**options: object) -> Options:
    values = {f"--{name.replace('_', '-')}": value for name, value in options.items()}
    return Options({"--listen": [], "--receive": []} | values, [])


@pytest.fixture
def log() -> Iterator[Lines]:
    with nothing_left_behind():
        yield Lines()


def families(options: Options, is_limited: bool, log: Lines) -> list[tuple[int, str]]:
    """Of which sockets it would take its clients in."""
    found = []
    for entrance in listeners(options, is_limited, log):
        with socket.socket(fileno=os.dup(entrance.fileno())) as sock:
            found.append((sock.family, sock.getsockname()[0]))
        entrance.close()
    return found


# Where they come in


def test_everywhere_or_only_here(log: Lines) -> None:
    """Where nothing is said, it is by whether everybody may come in."""
    here = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
    everywhere = [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")]
    assert families(given(port="0"), False, log) == here
    assert log.lines[1:] == [FOR_THIS_HOST]
    del log.lines[:]
    assert families(given(port="0"), True, log) == everywhere
    assert len(log.lines) == 1


@pytest.mark.parametrize(
    ("address", "words"), [("0.0.0.0", [OPEN_PROXY]), ("127.0.0.2", []), ("[::1]", [])]
)
def test_where_it_is_told(log: Lines, address: str, words: list[str]) -> None:
    [(_, host)] = families(given(listen=[address], port="0"), False, log)
    assert host == address.strip("[]")
    assert log.lines[1:] == words
    assert log.lines[0].startswith(f"listening on {address}:")


def test_a_host_that_has_one_family(log: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is no failure; one that has none is, and so is a port that is taken."""
    original, missing = listening.listen_on, {16: errno.EAFNOSUPPORT}

    def listen_on(address: bytes, port: int) -> socket.socket:
        if len(address) in missing:
            raise OSError(missing[len(address)], "no such luck")
        sock: socket.socket = original(address, port)
        return sock

    monkeypatch.setattr(listening, "listen_on", listen_on)
    assert families(given(port="0"), False, log) == [(socket.AF_INET, "127.0.0.1")]
    missing[4] = errno.EADDRNOTAVAIL
    with pytest.raises(OSError, match="no such luck"):
        listeners(given(port="0"), False, log)
    missing = {4: errno.EADDRINUSE}
    with pytest.raises(OSError, match="no such luck"):
        listeners(given(port="0"), False, log)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"listen": ["x"]}, "-i: 'x' is not an address; give IPv4 or IPv6 in full"),
        (
            {"receive": [""]},
            "--receive: '' is no path of a socket; a path or @NAME of 107 bytes at most fits",
        ),
        (
            {"receive": ["/r"], "port": "1"},
            "-p is for -i, where there is --receive; give -i too, or leave it out",
        ),
    ],
)
def test_wrong_usage(log: Lines, options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError) as error:
        listeners(given(**options), False, log)
    assert str(error.value) == words


# Where they are passed to


def test_where_clients_are_passed_to(log: Lines, tmp_path: Path) -> None:
    """No port is open then, unless it is asked for; and strangers may come from there, too."""
    paths = [str(tmp_path / name) for name in ("one", "two")]
    entrances = listeners(given(receive=paths), False, log)
    assert not any(isinstance(one, Listener) for one in entrances)
    assert log.lines[0] == "listening on " + ", ".join(f"unix:{p} (passed on)" for p in paths)
    assert log.lines[1:] == [OPEN_PROXY]
    for path, entrance in zip(paths, entrances, strict=True):
        with accepted() as (client, conn):
            pass_on(path, conn.fileno())
            taken, peer = entrance.take()
            taken.close()
            assert peer.text == "{}:{}".format(*client.getsockname())
        entrance.shut()
        assert not os.path.exists(path)
        entrance.close()


def test_a_place_that_is_taken(log: Lines, tmp_path: Path) -> None:
    """Leaves no file of the other ones behind."""
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    Path(two).write_text("a file")
    with pytest.raises(OSError, match=f"cannot receive at {two}: Address already in use"):
        listeners(given(receive=[one, two]), True, log)
    assert os.listdir(tmp_path) == ["two"]
    assert log.lines == []


def test_a_lock_that_is_in_the_way(log: Lines, tmp_path: Path) -> None:
    (tmp_path / ".r.lock").mkdir()
    path = tmp_path / "r"
    with pytest.raises(OSError, match=f"at {path}: {tmp_path}/.r.lock: Is a directory"):
        receivers_at(str(path), "PATH", log)


def test_who_may_pass(log: Lines, tmp_path: Path) -> None:
    """Its owner and group; and who else may, is for them to say."""
    path = str(tmp_path / "r")
    [receiver] = receivers_at(path, "PATH", log)
    assert log.lines == [f"receiving at unix:{path}"]
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
    receiver.shut()
    receiver.close()


@pytest.mark.parametrize(("kind", "blocks"), [(Intake, False), (AsTheyCome, True)])
def test_how_they_are_taken(log: Lines, tmp_path: Path, kind: type[Intake], blocks: bool) -> None:
    path = str(tmp_path / "r")
    receiver = receiver_at(path, kind)
    with accepted() as (_, conn):
        pass_on(path, conn.fileno())
        sock, _ = receiver.take()
        assert os.get_blocking(sock.fileno()) == blocks
        sock.close()
    receiver.shut()
    receiver.close()


def test_systemd_has_passed_nothing(log: Lines) -> None:
    with pytest.raises(UsageError, match="systemd has passed no socket; start it by its socket"):
        receivers_at("systemd", "PATH", log)


@pytest.mark.parametrize("group", ["x", "-1", "", "1x", "4294967296", "00000000001", "\u0661"])
def test_what_is_no_group(log: Lines, group: str) -> None:
    with pytest.raises(UsageError) as error:
        registered("/no/such", group, log)
    assert str(error.value) == f"--register: {group!r} is no group; give 0 to 4294967295"


@pytest.mark.parametrize("group", ["0", "4294967295"])
def test_what_is_one(log: Lines, group: str) -> None:
    with pytest.raises(FileNotFoundError):
        registered("/no/such", group, log)
    assert log.lines == []


# Whom it tells


def test_whom_it_tells(log: Lines) -> None:
    """A descriptor that can be written to, and is no program's of ours."""
    assert notify_fd(given()) is None
    reader, writer = os.pipe()
    try:
        os.set_inheritable(writer, True)
        assert notify_fd(given(notify_fd=str(writer))) == writer
        assert not os.get_inheritable(writer)
        for fd, words in (
            (reader, f"descriptor {reader} is only for reading; give the other end"),
            (2, "descriptor 2 is for the log; give another one, say 3"),
            (1 << 20, f"descriptor {1 << 20}: Bad file descriptor; see --help"),
        ):
            with pytest.raises(UsageError) as error:
                notify_fd(given(notify_fd=str(fd)))
            assert str(error.value) == f"--notify-fd: {words}"
    finally:
        os.close(reader)
        os.close(writer)
