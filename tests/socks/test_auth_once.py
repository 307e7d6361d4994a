"""Addresses that have authenticated: how long, how many, and with whoever else is at it."""

import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from muonsocks.address import parse_address
from muonsocks.errors import UsageError
from muonsocks.socks import auth_once
from muonsocks.socks.auth_once import MOST_ADDRESSES, AuthOnce

LIB = str(Path(auth_once.__file__).parents[2])
NOBODY = 65534
SECONDS = 60
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root, who may become others")


def packed(text: str) -> bytes:
    address = parse_address(text)
    assert address is not None
    return address


ALICE, BOB, CAROL = (packed(text) for text in ("192.0.2.1", "192.0.2.2", "2001:db8::3"))


class Place:
    """A state directory, and what is in it."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.files = state / "auth-once"

    def open(self, ttl: float = 1000) -> AuthOnce:
        return AuthOnce.at(str(self.state), ttl)

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in self.files.iterdir())

    def age(self, name: str, seconds: float) -> None:
        """Make a file so old, or leave one that is."""
        then = time.time_ns() - int(seconds * 1e9)
        with (self.files / name).open("wb") as file:
            os.utime(file.fileno(), ns=(then, then))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "state")


@pytest.fixture
def known(place: Place) -> Iterator[AuthOnce]:
    known = place.open()
    yield known
    known.close()


@pytest.fixture(autouse=True)
def leaks_no_descriptor() -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


def in_child(work: Callable[[], None]) -> int:
    """Do something in a process of its own. Give its number; `ended` says how it went."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# One at a time


def test_an_address_is_known_once_it_is_remembered(place: Place, known: AuthOnce) -> None:
    for address in (ALICE, CAROL):
        assert not known.knows(address)
        known.remember(address)
        assert known.knows(address)
    assert not known.knows(BOB)
    assert place.names == ["192.0.2.1", "2001:db8::3"]
    assert [(place.files / name).stat().st_size for name in place.names] == [0, 0]


def test_all_who_share_the_directory_know(place: Place, known: AuthOnce) -> None:
    known.remember(ALICE)
    other = place.open()
    assert other.knows(ALICE)
    other.close()


def test_a_mapped_address_is_the_ipv4_address(place: Place, known: AuthOnce) -> None:
    mapped = bytes(10) + b"\xff\xff"
    known.remember(mapped + ALICE)
    assert known.knows(ALICE) and place.names == ["192.0.2.1"]
    known.remember(BOB)
    assert known.knows(mapped + BOB)


def test_a_link_local_address_is_not_one_host_s(place: Place, known: AuthOnce) -> None:
    for text, is_kept in (("fe80::1", False), ("febf::1", False), ("fec0::1", True)):
        known.remember(packed(text))
        assert known.knows(packed(text)) is is_kept
    assert place.names == ["fec0::1"]


@pytest.mark.parametrize(
    ("age", "is_known"),
    [(0, True), (990, True), (1001, False), (1e8, False), (-10, False), (-1e8, False)],
)
def test_how_long(place: Place, known: AuthOnce, age: float, is_known: bool) -> None:
    """A time still to come is that of a clock that was wrong: else it would let in for ever."""
    place.age("192.0.2.1", age)
    assert known.knows(ALICE) is is_known
    assert place.names == (["192.0.2.1"] if is_known else [])


def test_time_runs_out(place: Place) -> None:
    known = place.open(ttl=0.05)
    known.remember(ALICE)
    while known.knows(ALICE):
        time.sleep(0.001)  # that the clock goes on is no event
    assert place.names == []
    known.close()


def test_only_a_password_is_a_reason_to_stay(place: Place, known: AuthOnce) -> None:
    place.age("192.0.2.1", 500)
    before = (place.files / "192.0.2.1").stat().st_mtime_ns
    assert known.knows(ALICE)
    assert (place.files / "192.0.2.1").stat().st_mtime_ns == before
    known.remember(ALICE)
    assert time.time_ns() - (place.files / "192.0.2.1").stat().st_mtime_ns < 100e9


# A bound


def test_the_bound_is_held_by_the_oldest(place: Place, known: AuthOnce) -> None:
    for number in range(MOST_ADDRESSES):
        place.age(f"10.0.{number >> 8}.{number & 255}", 900 - number / 100)
    known.remember(packed("10.0.7.7"))  # not new: nobody has to go
    assert len(place.names) == MOST_ADDRESSES and known.knows(packed("10.0.0.0"))
    known.remember(ALICE)
    known.remember(BOB)
    assert len(place.names) == MOST_ADDRESSES
    assert not known.knows(packed("10.0.0.0")) and not known.knows(packed("10.0.0.1"))
    assert all(known.knows(packed(text)) for text in ("10.0.0.2", "10.0.7.7", "192.0.2.1"))


def test_whoever_has_expired_goes_first(
    place: Place, known: AuthOnce, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth_once, "MOST_ADDRESSES", 5)
    for name, age in {"10.0.0.1": 999, "10.0.0.2": 5000, "10.0.0.3": -5000, "::1": 5}.items():
        place.age(name, age)
    known.remember(ALICE)
    assert len(place.names) == 5
    known.remember(BOB)
    assert place.names == ["10.0.0.1", "192.0.2.1", "192.0.2.2", "::1"]


def test_more_than_the_bound_is_brought_down_to_it(
    place: Place, known: AuthOnce, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(9):
        place.age(f"10.0.0.{number}", 10 + number)
    monkeypatch.setattr(auth_once, "MOST_ADDRESSES", 5)
    known.remember(ALICE)
    assert place.names == ["10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.3", "192.0.2.1"]


NOT_OURS = ["README", "192.0.2.01", "192.0.2", "::ffff:192.0.2.9", "2001:DB8::1", "0::1", ".x", "é"]


def test_what_is_not_ours_is_left_alone(
    place: Place, known: AuthOnce, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(auth_once, "MOST_ADDRESSES", 1)
    for name in [*NOT_OURS, "fe80::7"]:
        place.age(name, 1e7)
    (place.files / "10.0.0.1").mkdir()
    (place.files / "10.0.0.2").symlink_to(tmp_path / "nowhere")
    before = place.names
    known.remember(ALICE)
    known.remember(BOB)
    assert place.names == sorted([*before, "192.0.2.2"])


# What is planted in the directory


@pytest.mark.parametrize("kind", ["symlink", "dangling symlink", "directory", "fifo", "socket"])
def test_what_is_no_file_lets_nobody_in(
    place: Place, known: AuthOnce, tmp_path: Path, kind: str
) -> None:
    outside, planted = tmp_path / "outside", place.files / "192.0.2.1"
    if kind == "symlink":
        outside.write_bytes(b"")
        os.utime(outside, (1e9, 1e9))
    if kind.endswith("symlink"):
        planted.symlink_to(outside)
    elif kind == "directory":
        planted.mkdir()
    else:
        os.mknod(planted, 0o600 | {"fifo": 0o010000, "socket": 0o140000}[kind])
    assert not known.knows(ALICE)
    with pytest.raises(OSError):
        known.remember(ALICE)
    assert not known.knows(ALICE)
    assert os.path.lexists(planted)
    if kind == "dangling symlink":
        assert not outside.exists()
    if kind == "symlink":
        assert outside.stat().st_mtime == 1e9
    known.remember(BOB)  # nobody else is kept from anything


# Several at once


def test_what_is_expired_is_left_to_whoever_is_at_it(place: Place, known: AuthOnce) -> None:
    """To look somebody up never waits."""
    place.age("192.0.2.1", 5000)
    with Locked(place.files):
        assert not known.knows(ALICE)
        assert place.names == ["192.0.2.1"]
    assert not known.knows(ALICE)
    assert place.names == []


class Locked:
    """Be at the directory, as another process."""

    def __init__(self, files: Path) -> None:
        self._files = files

    def __enter__(self) -> None:
        self._fd = os.open(self._files, os.O_RDONLY)
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def test_to_remember_waits_for_whoever_is_at_it(place: Place, known: AuthOnce) -> None:
    thread = threading.Thread(target=known.remember, args=(ALICE,))
    with Locked(place.files):
        thread.start()
        thread.join(0.1)
        assert thread.is_alive() and place.names == []
    thread.join(SECONDS)
    assert known.knows(ALICE)


class Overtaken(AuthOnce):
    """Finds that somebody has renewed what it has just seen to be expired."""

    __slots__ = ("renew",)

    def _lock(self, operation: int) -> int:
        self.renew()
        return super()._lock(operation)


def test_what_was_renewed_meanwhile_is_not_removed(place: Place, known: AuthOnce) -> None:
    slow = Overtaken(os.open(place.files, os.O_RDONLY), 1000)
    slow.renew = lambda: known.remember(ALICE)
    place.age("192.0.2.1", 5000)
    slow.knows(ALICE)
    assert known.knows(ALICE)
    slow.close()


class TidiedUp(AuthOnce):
    """Finds that somebody, who knows of no lock, has removed what it is about to remove."""

    __slots__ = ("files",)

    def _is_valid(self, modified: int) -> bool:
        for path in self.files.iterdir():
            path.unlink()
        return False


def test_who_removes_files_by_hand_is_in_nobody_s_way(
    place: Place, known: AuthOnce, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth_once, "MOST_ADDRESSES", 1)
    slow = TidiedUp(os.open(place.files, os.O_RDONLY), 1000)
    slow.files = place.files
    place.age("192.0.2.1", 5000)
    assert not slow.knows(ALICE)
    place.age("192.0.2.1", 5000)
    slow.remember(BOB)
    assert place.names == ["192.0.2.2"]
    slow.close()


def at_once(work: Callable[[int], None], count: int) -> None:
    """Let so many processes work, each with its number. None fails."""
    pids = [in_child(lambda number=number: work(number)) for number in range(count)]
    assert [ended(pid) for pid in pids] == [0] * count


@pytest.mark.parametrize("shared", [True, False], ids=["one descriptor", "one each"])
def test_processes_at_once(
    place: Place, known: AuthOnce, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They remember, look up, let expire and evict, and nobody gets an error."""
    most = 20
    monkeypatch.setattr(auth_once, "MOST_ADDRESSES", most)

    def work(number: int) -> None:
        mine = known if shared else place.open()
        dice = random.Random(number)
        for _ in range(150):
            common = dice.randrange(4)  # all want these, and they expire again and again
            mine.remember(bytes((10, 0, 0, common)))
            place.age(f"10.0.0.{dice.randrange(4)}", dice.choice([5000, -5000]))
            mine.knows(bytes((10, 0, 0, common)))
            mine.remember(bytes((10, 1, number, dice.randrange(100))))

    at_once(work, 8)
    known.remember(ALICE)
    assert known.knows(ALICE)
    assert len(place.names) <= most


@pytest.mark.parametrize("shared", [True, False], ids=["one descriptor", "one each"])
def test_the_bound_holds_at_any_moment(
    place: Place, known: AuthOnce, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 10
    monkeypatch.setattr(auth_once, "MOST_ADDRESSES", most)

    def work(number: int) -> None:
        mine = known if shared else place.open()
        for turn in range(200):
            mine.remember(bytes((10, turn, number, 1)))
            with Locked(place.files):
                assert len(place.names) <= most

    at_once(work, 6)
    assert len(place.names) == most


def test_nobody_is_lost_to_whoever_tidies_up(place: Place, known: AuthOnce) -> None:
    """One renews its address, over and over; others find it expired at that moment."""
    parent = os.getpid()

    def tidy() -> None:
        while os.getppid() == parent:
            known.knows(ALICE)

    pids = [in_child(tidy) for _ in range(3)]
    try:
        for _ in range(500):
            place.age("192.0.2.1", 5000)
            known.remember(ALICE)
            assert known.knows(ALICE)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            assert ended(pid) == -signal.SIGKILL


# Another root, another user


@as_root
def test_workers_have_another_root_and_user(place: Place, tmp_path: Path) -> None:
    """Root opens it for them; nothing but the descriptor is left to go by."""
    jail = tmp_path / "jail"
    jail.mkdir()
    known = AuthOnce.at(str(place.state), 1000, (NOBODY, NOBODY))
    for path in (place.state, place.files):
        status = path.stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (NOBODY, NOBODY, 0o700)
    place.state.chmod(0)

    def work(number: int) -> None:
        os.chroot(jail)
        os.chdir("/")
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        for turn in range(20):
            address = bytes((10, 0, number, turn))
            known.remember(address)
            assert known.knows(address)
        known.remember(ALICE)

    at_once(work, 4)
    assert known.knows(ALICE) and len(place.names) == 81
    old = place.files / "10.0.0.0"
    os.utime(old, (1, 1))
    at_once(lambda _: work(0), 1)
    assert (place.files / "192.0.2.1").stat().st_uid == NOBODY
    known.close()
    os.chown(place.state, 0, 0)
    place.state.chmod(0o700)


@as_root
def test_what_was_begun_for_another_user_is_finished(place: Place) -> None:
    """By whoever comes upon it: it was cut short between making it and giving it away."""
    place.state.mkdir(0)
    place.files.mkdir(0)
    AuthOnce.at(str(place.state), 1000, (NOBODY, NOBODY)).close()
    assert place.files.stat().st_uid == NOBODY
    assert place.files.stat().st_mode & 0o777 == 0o700


@as_root
def test_made_for_another_user_by_several_at_once(tmp_path: Path) -> None:
    for turn in range(20):
        place = Place(tmp_path / str(turn))
        at_once(lambda _, p=place: AuthOnce.at(str(p.state), 9, (NOBODY, NOBODY)).close(), 4)


def test_made_by_several_at_once(tmp_path: Path) -> None:
    for turn in range(20):
        place = Place(tmp_path / str(turn))
        at_once(lambda _, p=place: p.open().remember(ALICE), 4)
        assert place.names == ["192.0.2.1"]


# What cannot be used


def as_nobody(work: Callable[[], None]) -> None:
    """Do something as another user. It has to succeed."""

    def drop_and_work() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        work()

    assert ended(in_child(drop_and_work)) == 0


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o722, 0o720, 0o1777, 0o702])
def test_a_directory_in_which_others_may_write(place: Place, mode: int) -> None:
    place.state.mkdir()
    place.state.chmod(mode)
    with pytest.raises(UsageError, match=f"^{place.state} is open to others, .*--state=DIR$"):
        place.open()
    assert not place.files.exists()
    place.state.chmod(0o755)
    place.open().close()


@pytest.mark.parametrize("mode", [0o777, 0o755, 0o740, 0o704, 0o710, 0o701, 0o1777])
def test_others_have_no_business_in_auth_once(place: Place, mode: int) -> None:
    """Who can read it can lock it, and keep everybody waiting."""
    place.open().close()
    place.files.chmod(mode)
    with pytest.raises(UsageError, match=f"^{place.files} is open .*; run chmod 700 {place.files}"):
        place.open()
    place.files.chmod(0o700)
    place.open().close()


@as_root
@pytest.mark.parametrize("which", ["state", "files"])
def test_a_directory_of_somebody_else(place: Place, which: str) -> None:
    place.open().close()
    os.chown(getattr(place, which), NOBODY, NOBODY)
    with pytest.raises(UsageError, match=f"^{getattr(place, which)} belongs to user {NOBODY}"):
        place.open()


@as_root
def test_an_ordinary_user_may_use_root_s_directory_but_not_root_s_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # which others could not name
    place = Place(Path("state"))
    place.state.mkdir()
    place.files.mkdir(0o700)
    tmp_path.chmod(0o755)
    os.chown(place.files, NOBODY, NOBODY)

    def use() -> None:
        known = place.open()
        known.remember(ALICE)
        assert known.knows(ALICE)

    def find_it_unusable() -> None:
        with pytest.raises(UsageError, match=r"no directory that can be used.*Permission denied"):
            place.open()

    as_nobody(use)
    os.chown(place.files, 0, 0)
    as_nobody(find_it_unusable)
    with pytest.raises(UsageError, match=f"belongs to user 0, and is for user {NOBODY}"):
        AuthOnce.at(str(place.state), 1000, (NOBODY, NOBODY))
    shutil.rmtree(place.files)
    as_nobody(find_it_unusable)


def test_only_the_last_part_is_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"No such file or directory; make it, or give another"):
        AuthOnce.at(str(tmp_path / "a" / "b"), 1000)
    assert not (tmp_path / "a").exists()
    AuthOnce.at(str(tmp_path / "a"), 1000).close()
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["file", "symlink", "dangling symlink", "fifo"])
@pytest.mark.parametrize("which", ["state", "files"])
def test_what_is_no_directory(place: Place, tmp_path: Path, which: str, kind: str) -> None:
    """A link to one will do for the state directory, as systemd makes it; not below it."""
    if which == "files":
        place.state.mkdir(0o700)
    planted, elsewhere = getattr(place, which), tmp_path / "elsewhere"
    if kind == "file":
        planted.write_bytes(b"")
    elif kind == "fifo":
        os.mkfifo(planted)
    else:
        planted.symlink_to(elsewhere)
        if kind == "symlink":
            elsewhere.mkdir(0o700)
    if (which, kind) == ("state", "symlink"):
        place.open().close()
        assert (elsewhere / "auth-once").is_dir()
        return
    with pytest.raises(UsageError, match=f"^{planted} is no directory that can be used or made"):
        place.open()


# A disk that is full, or read-only


IN_TMPFS = """
import errno, os, sys
from muonsocks.socks.auth_once import AuthOnce
def fails_with(number, address):
    try:
        known.remember(address)
    except OSError as error:
        assert error.errno == number, error
        return
    raise AssertionError("it is remembered")
place, alice, bob = sys.argv[1], bytes((192, 0, 2, 1)), bytes((192, 0, 2, 2))
known = AuthOnce.at(place, 1000)
known.remember(alice)
"""
FULL = """
fails_with(errno.ENOSPC, bob)
assert known.knows(alice) and not known.knows(bob)
known.remember(alice)  # takes no room
os.utime(f"{place}/auth-once/192.0.2.1", (1, 1))
assert not known.knows(alice)  # and makes some
known.remember(bob)
assert known.knows(bob)
"""
READ_ONLY = """
import subprocess
subprocess.run(["mount", "-o", "remount,ro", place], check=True)
fails_with(errno.EROFS, alice)
fails_with(errno.EROFS, bob)
assert known.knows(alice) and not known.knows(bob)
known = AuthOnce.at(place, 1000)
assert known.knows(alice)
known = AuthOnce.at(place, 1e-9)
assert not known.knows(alice)
assert os.path.exists(f"{place}/auth-once/192.0.2.1")
"""


@pytest.mark.parametrize("what", ["full", "read-only"])
def test_a_disk_that_is(tmp_path: Path, what: str) -> None:
    if not shutil.which("unshare"):
        pytest.skip("no unshare here")
    private = ["unshare", "--mount"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
    mount = 'mount -t tmpfs -o mode=700,nr_inodes=3 none "$1" && exec "$2" -c "$3" "$1"'
    script = IN_TMPFS + (FULL if what == "full" else READ_ONLY)
    command = [*private, "sh", "-c", mount, "sh", str(tmp_path), sys.executable, script]
    probe = [*private, "mount", "-t", "tmpfs", "none", str(tmp_path)]
    if (refused := subprocess.run(probe, capture_output=True, text=True)).returncode:
        pytest.skip(f"nothing can be mounted here: {refused.stderr}")
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": LIB}, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
