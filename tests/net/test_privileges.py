"""Privileges that were given up, looked at from outside: /proc/PID of processes that did it."""

import ctypes
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from ends import PATIENCE, descriptors
from places import root_only

from muonsocks.errors import UsageError
from muonsocks.net import privileges
from muonsocks.net.identity import Identity
from muonsocks.net.privileges import expect_rights, give_up

LIB = Path(__file__).resolve().parents[2] / "lib"
NOBODY = Identity(65534, 65534)
_CLONE_NEWUSER = 0x10000000
CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapAmb")


class Child:
    """A process that prepares itself, gives privileges up and waits to be looked at."""

    def __init__(
        self,
        identity: Identity | None,
        root: str | None = None,
        prepare: Callable[[], object] = lambda: None,
        afterwards: Callable[[], object] = lambda: None,
    ) -> None:
        report, self._report = os.pipe()
        self._hold, hold = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(hold)
            try:
                prepare()
                before = descriptors()
                give_up(identity, root)
                assert root is not None or descriptors().keys() == before.keys()
                afterwards()
                said = "done"
            except UsageError as error:
                said = f"UsageError: {error}"
            except OSError as error:
                said = f"OSError: {error.strerror}"
            except BaseException:
                said = traceback.format_exc()
            os.write(self._report, said.encode())
            os.close(self._report)
            os.read(self._hold, 1)
            os._exit(0)
        os.close(self._hold)
        os.close(self._report)
        self._hold = hold
        with open(report, "rb") as file:
            self.said = file.read().decode()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._hold)
        os.waitpid(self.pid, 0)

    @property
    def status(self) -> dict[str, str]:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}

    def link(self, name: str) -> str:
        return os.readlink(f"/proc/{self.pid}/{name}")

    def is_nobody(self) -> None:
        """Hold that it is that, through and through."""
        assert self.said == "done"
        status = self.status
        assert status["Uid"].split() == ["65534"] * 4
        assert status["Gid"].split() == ["65534"] * 4
        assert status["Groups"] == ""
        self.is_powerless()

    def is_powerless(self) -> None:
        status = self.status
        assert {name: int(status[name], 16) for name in CAPABILITIES} == dict.fromkeys(
            CAPABILITIES, 0
        )
        assert status["NoNewPrivs"] == "1"


def become_nobody() -> None:
    os.setgroups([4242])
    os.setresgid(*(65534,) * 3)
    os.setresuid(*(65534,) * 3)


# A user, a group and groups, each by itself


@root_only()
def test_parts_that_are_taken_on() -> None:
    def prepare() -> None:
        os.setgroups([1, 2])

    for identity, uid, gid, groups in (
        (Identity(4321, None, None, implied=False), "4321", "0", "1 2"),
        (Identity(4321, 1234, (), implied=False), "4321", "1234", ""),
        (Identity(4321, 1234, (5, 6), implied=False), "4321", "1234", "5 6"),
        (Identity(4321, None, (5,), implied=False), "4321", "0", "5"),
        (Identity(4321, 1234, None, implied=False), "4321", "1234", "1 2"),
    ):
        with Child(identity, prepare=prepare) as child:
            assert child.said == "done"
            assert child.status["Uid"].split() == [uid] * 4
            assert child.status["Gid"].split() == [gid] * 4
            assert child.status["Groups"] == groups
            child.is_powerless()


@root_only()
@pytest.mark.parametrize(
    ("identity", "root", "is_root", "said"),
    [
        (Identity(1, 1), None, False, "UsageError: to become another user or group takes root's"),
        (Identity(None, 1, None, implied=False), None, False, "UsageError: to become another user"),
        (Identity(65534, None, (7,), implied=False), None, False, "UsageError: to become another"),
        (NOBODY, "/usr", False, "UsageError: -r takes root's privileges; start it as root, or"),
        (None, "/usr", True, "UsageError: -r alone does not hold root"),
        (NOBODY, "/etc/passwd", True, "UsageError: -r: '/etc/passwd' is not a directory"),
        (NOBODY, "/no/such", True, "OSError: No such file or directory"),
        (NOBODY, None, False, "done"),
        (Identity(65534, 65534, (4242,), implied=False), None, False, "done"),
        (None, None, False, "done"),
        (NOBODY, "/usr", True, "done"),
    ],
)
def test_rights_that_are_looked_at_before(
    identity: Identity | None, root: str | None, is_root: bool, said: str
) -> None:
    """What is found good then can be done."""

    def prepare() -> None:
        if not is_root:
            become_nobody()
        expect_rights(identity, root, "-r")

    with Child(identity, root, prepare) as child:
        assert child.said.startswith(said)


def test_where_nothing_is_asked_for_nothing_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """There need be no /proc."""
    with monkeypatch.context() as without:
        without.setattr(os, "open", lambda *_: pytest.fail())
        assert expect_rights(None, None, "-r") is None


@root_only()
def test_a_group_alone_leaves_root_its_capabilities() -> None:
    """Root without any could not do what it is kept for."""
    with Child(Identity(None, 1234, (5,), implied=False)) as child:
        assert child.said == "done"
        assert child.status["Uid"].split() == ["0"] * 4
        assert child.status["Gid"].split() == ["1234"] * 4
        assert child.status["Groups"] == "5"
        assert int(child.status["CapEff"], 16)
        assert child.status["NoNewPrivs"] == "1"


@root_only()
def test_a_group_alone_does_not_hold_root_in_a_directory(tmp_path: Path) -> None:
    with Child(Identity(None, 1234, (), implied=False), str(tmp_path)) as child:
        assert child.said.startswith("OSError: privileges cannot be given up: root can leave")


@root_only()
def test_groups_that_one_is_not_in_are_not_to_be_had() -> None:
    for identity in (
        Identity(None, 1234, None, implied=False),
        Identity(65534, None, (5,), implied=False),
    ):
        with Child(identity, prepare=become_nobody) as child:
            assert child.said.startswith("OSError: the user cannot be changed to ")
    with Child(Identity(65534, 65534, (4242,), implied=False), prepare=become_nobody) as child:
        assert child.said == "done"


@root_only()
@pytest.mark.parametrize("step", ["setgroups", "setresgid", "setresuid"])
def test_a_part_that_is_left_out_is_noticed(step: str) -> None:
    identity = Identity(4321, 1234, (5, 6), implied=False)
    with Child(identity, prepare=lambda: leave_out(step)) as child:
        assert child.said == f"OSError: privileges cannot be given up: {LEFT_OUT[step]}"


@root_only()
def test_a_program_that_is_executed_may_get_privileges() -> None:
    def prepare() -> None:
        give_up(NOBODY, None, for_program=True)

    with Child(None, prepare=prepare) as child:
        assert child.said == "done"
        assert child.status["NoNewPrivs"] == "0"
        assert child.status["Uid"].split() == ["65534"] * 4
        assert {child.status[name].strip("0") for name in CAPABILITIES} == {""}


# As root


@root_only()
def test_user() -> None:
    with Child(NOBODY, prepare=lambda: os.setgroups([1, 2, 3])) as child:
        child.is_nobody()
        assert child.link("root") == "/"
        assert child.link("cwd") == os.getcwd()
        # Nobody of the same number may trace it, or look through its descriptors.
        assert os.stat(f"/proc/{child.pid}/status").st_uid == 0


@root_only()
def test_user_and_directory(tmp_path: Path) -> None:
    (tmp_path / "inside").touch()
    tmp_path.chmod(0o755)

    def look() -> None:
        assert os.listdir("/") == os.listdir(".") == ["inside"]
        assert os.listdir("/../..") == ["inside"]
        assert not os.path.exists("/proc")

    with Child(NOBODY, str(tmp_path), afterwards=look) as child:
        child.is_nobody()
        assert child.link("root") == child.link("cwd") == str(tmp_path)


@root_only()
def test_directory_that_the_user_may_not_look_into(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with Child(NOBODY, str(tmp_path)) as child:
        child.is_nobody()
        assert child.link("root") == child.link("cwd") == str(tmp_path)


@root_only()
def test_relative_directory(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with Child(NOBODY, "a", prepare=lambda: os.chdir(tmp_path)) as child:
        child.is_nobody()
        assert child.link("root") == child.link("cwd") == f"{tmp_path}/a"


@root_only()
def test_directory_alone_does_not_hold_root(tmp_path: Path) -> None:
    with Child(None, str(tmp_path)) as child:
        assert child.said.startswith("OSError: privileges cannot be given up: root can leave")
        assert child.link("root") == "/"


def test_nothing_asked_for_is_nothing_done() -> None:
    with Child(None) as child:
        assert child.said == "done"
        assert child.status["NoNewPrivs"] == "0"
        assert child.status["Uid"].split() == [str(uid) for uid in os.getresuid()] + [
            str(os.geteuid())
        ]


@root_only()
def test_directory_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, reason in {"file": "Not a directory", "none": "No such file or directory"}.items():
        with Child(NOBODY, str(tmp_path / name)) as child:
            assert child.said == f"OSError: {reason}"


@root_only()
def test_a_directory_that_is_open_is_a_way_out(tmp_path: Path) -> None:
    with Child(
        NOBODY, str(tmp_path), prepare=lambda: os.dup2(os.open("/", os.O_PATH), 77)
    ) as child:
        assert child.said.startswith("OSError: privileges cannot be given up: descriptor ")
        assert child.said.endswith(" is a directory outside of the new root")
        assert child.link("root") == "/"


LEFT_OUT = {
    "setgroups": "the groups are still others",
    "setresgid": "the groups are still others",
    "setresuid": "the user is still another one",
    "chdir": "the working directory is outside of it",
    "capset": "capabilities are left",
    "prctl": "a program that is executed could get privileges",
}


def leave_out(step: str) -> None:
    """Let one step seem to succeed and do nothing."""
    if hasattr(os, step):
        setattr(os, step, lambda *_: None)
    else:
        call = privileges._call
        privileges._call = lambda name, *rest: None if name == step else call(name, *rest)


@root_only()
@pytest.mark.parametrize("step", LEFT_OUT)
def test_a_step_that_is_left_out_is_noticed(tmp_path: Path, step: str) -> None:
    def prepare() -> None:
        os.setgroups([1, 2, 3])
        keep_inheritable()
        leave_out(step)

    with Child(NOBODY, str(tmp_path), prepare) as child:
        assert child.said == f"OSError: privileges cannot be given up: {LEFT_OUT[step]}"


@root_only()
@pytest.mark.parametrize("ids", ["setresgid", "setresuid"])
@pytest.mark.parametrize("left", [0, 2], ids=["real", "saved"])
def test_half_a_change_is_noticed(ids: str, left: int) -> None:
    """An effective number alone is a disguise, which can be taken off."""
    change = getattr(os, ids)

    def change_partly(*numbers: int) -> None:
        change(*(-1 if place == left else number for place, number in enumerate(numbers)))

    with Child(NOBODY, prepare=lambda: setattr(os, ids, change_partly)) as child:
        assert child.said == f"OSError: privileges cannot be given up: {LEFT_OUT[ids]}"


@root_only()
@pytest.mark.parametrize("way", ["setuid", "setgid", "setgroups"])
def test_every_way_back_is_tried(way: str) -> None:
    """As if the kernel let us: then it is not trusted."""
    with Child(NOBODY, prepare=lambda: setattr(os, way, lambda _: None)) as child:
        assert child.said.startswith("OSError: privileges cannot be given up: ")
        assert "again" in child.said


@root_only()
def test_other_threads_would_keep_what_this_one_gives_up() -> None:
    def start_thread() -> None:
        import _thread

        lock = _thread.allocate_lock()
        lock.acquire()
        _thread.start_new_thread(lock.acquire, ())

    with Child(NOBODY, prepare=start_thread) as child:
        assert "before there are threads" in child.said
        assert child.status["Uid"].split() == ["0"] * 4


# Capabilities, where they come from elsewhere than the user's number


def keep_inheritable() -> None:
    """Have all capabilities in the inheritable set, which a change of the user leaves alone."""
    held = Path("/proc/self/status").read_text().partition("CapPrm:")[2].split()[0]
    low, high = (int(half, 16).to_bytes(4, sys.byteorder) for half in (held[8:], held[:8]))
    privileges._call("capset", privileges._CAPABILITY_HEADER, low * 3 + high * 3)


SCRIPT = """
import os, sys
sys.path.insert(0, sys.argv[1])
from muonsocks.net.identity import Identity
from muonsocks.net.privileges import give_up
give_up(Identity(65534, 65534), None)
sys.stdout.write(open("/proc/self/status").read())
"""


def given_up_under(*launcher: str) -> dict[str, str]:
    """What a process that something has started is after it gave up."""
    command = [*launcher, "/usr/bin/python3", "-ISc", SCRIPT, str(LIB)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    lines = (line.partition(":") for line in done.stdout.splitlines())
    return {key: value.strip() for key, _, value in lines}


@root_only()
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--inh-caps=+chown"],
        ["--inh-caps=+net_bind_service", "--ambient-caps=+net_bind_service"],
        ["--securebits=+noroot", "--inh-caps=+setuid,+setgid", "--ambient-caps=+setuid,+setgid"],
        ["--securebits=+no_setuid_fixup"],
        ["--reuid=65534", "--keep-groups", "--inh-caps=+chown", "--ambient-caps=+chown"],
        ["--reuid=1", "--keep-groups", "--inh-caps=+setuid,+setgid,+chown"]
        + ["--ambient-caps=+setuid,+setgid,+chown"],
    ],
    ids=" ".join,
)
def test_capabilities_from_elsewhere(options: list[str]) -> None:
    """Inheritable ones stay by a change of the user, others by the grace of securebits."""
    status = given_up_under("setpriv", *options)
    assert {status[name].strip("0") for name in CAPABILITIES} == {""}
    assert status["NoNewPrivs"] == "1"
    assert status["Uid"].split() == ["65534"] * 4


# As an ordinary user


@root_only()
def test_own_user_stays_as_it_is() -> None:
    with Child(NOBODY, prepare=become_nobody) as child:
        assert child.said == "done"
        assert child.status["Uid"].split() == ["65534"] * 4
        assert child.status["Groups"] == "4242"
        child.is_powerless()


@root_only()
def test_another_user_is_not_to_be_had() -> None:
    with Child(Identity(1, 1), prepare=become_nobody) as child:
        assert child.said == "OSError: the user cannot be changed to 1:1: Operation not permitted"
        assert child.status["Uid"].split() == ["65534"] * 4


@root_only()
@pytest.mark.parametrize("identity", [None, NOBODY])
def test_ordinary_user_has_no_other_directory(identity: Identity | None) -> None:
    with Child(identity, "/usr", prepare=become_nobody) as child:
        assert child.said == "OSError: Operation not permitted"
        assert child.link("root") == "/"


def enter_user_namespace() -> None:
    """Be root where there are ten users; a process outside of there says which they are."""
    reader, writer = os.pipe()
    us, mapper = os.getpid(), os.fork()
    if mapper == 0:
        os.read(reader, 1)
        for kind in ("uid", "gid"):
            Path(f"/proc/{us}/{kind}_map").write_text("0 0 10")
        os._exit(0)
    assert ctypes.CDLL(None).unshare(_CLONE_NEWUSER) == 0
    os.write(writer, b"!")
    assert os.waitpid(mapper, 0)[1] == 0
    os.close(reader)
    os.close(writer)


@root_only()
def test_user_that_is_not_in_this_namespace() -> None:
    with Child(NOBODY, prepare=enter_user_namespace) as child:
        problem = "the user cannot be changed to 65534:65534: Invalid argument"
        assert child.said == f"OSError: {problem}"
    with Child(Identity(3, 4), prepare=enter_user_namespace) as child:
        assert child.said == "done"
        assert child.status["Uid"].split() == ["3"] * 4
        assert child.status["Gid"].split() == ["4"] * 4
        child.is_powerless()


@root_only()
def test_capability_for_a_directory_is_enough_for_one(tmp_path: Path) -> None:
    """No user is named, and the one that has it is not root: that holds."""
    script = SCRIPT.replace("Identity(65534, 65534), None", f"None, {str(tmp_path)!r}").replace(
        'open("/proc/self/status").read()', 'str(os.listdir("/"))'
    )
    (tmp_path / "inside").touch()
    tmp_path.chmod(0o755)
    command = ["setpriv", "--reuid=65534", "--clear-groups"]
    command += ["--inh-caps=+sys_chroot,+dac_override", "--ambient-caps=+sys_chroot,+dac_override"]
    command += ["/usr/bin/python3", "-ISc", script, str(LIB)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (0, "['inside']"), done.stderr
