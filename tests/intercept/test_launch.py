"""A program under socksify is to its user as it is without: how it ends, what it is sent, what it
has; and nothing of ours is in the way of it, or left of it.
"""

import contextlib
import errno
import os
import re
import resource
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from programs import PYTHON, SECONDS, environment
from real_server import children, is_alive, state, until
from socksified import AS_NOBODY, NOWHERE, SOCKSIFY, Started, expect_isolation, run, started
from typed_terminal import Terminal, shell

from muonsocks.intercept import in_front
from muonsocks.intercept.bpf import Rule, assemble, equals, refuse
from muonsocks.intercept.calls import Architecture
from muonsocks.intercept.job import stay_behind
from muonsocks.intercept.kernel import ARCHITECTURES

# Counts signals; says which have come when it is asked.
COUNTS = """
import signal, sys
come = []
for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCONT,
            signal.SIGWINCH, signal.SIGQUIT):
    signal.signal(one, lambda number, _: come.append(signal.Signals(number).name))
print("ready", flush=True)
for line in sys.stdin:
    said = []
    while come:
        said.append(come.pop(0))
    print(*said, flush=True)
"""


# How it ends


@pytest.mark.parametrize("status", [0, 1, 7, 111, 255])
def test_the_exit_status_is_that_of_the_program(status: int) -> None:
    done = run("sh", "-c", f"echo out; echo err >&2; exit {status}")
    assert (done.status, done.output, done.log) == (status, "out\n", "err\n")


@pytest.mark.parametrize("number", [*map(int, (signal.SIGTERM, signal.SIGKILL, signal.SIGINT)), 34])
def test_a_program_that_is_killed_is_seen_to_be(number: int) -> None:
    done = run("sh", "-c", f"kill -{number} $$")
    assert done.status == -number


def test_there_is_one_core_at_most(place: str) -> None:
    """Whoever waits for us is told that there is none of ours."""
    limit = ("bash", "-c", 'ulimit -c unlimited && exec "$@"', "sh")
    code = "import os; os.kill(os.getpid(), 11)"
    native = subprocess.Popen([*limit, PYTHON, "-c", code], cwd=place)
    _, status = os.waitpid(native.pid, 0)
    native.returncode = -signal.SIGSEGV
    if not os.WCOREDUMP(status):
        pytest.skip("there are no cores here")
    before = [*limit, SOCKSIFY, f"--proxy={NOWHERE}", PYTHON, "-c", code]
    process = subprocess.Popen(before, cwd=place, env=environment())
    _, status = os.waitpid(process.pid, 0)
    process.returncode = -signal.SIGSEGV
    assert os.WTERMSIG(status) == signal.SIGSEGV
    assert not os.WCOREDUMP(status)


@pytest.mark.parametrize(
    ("program", "status", "reason"),
    [
        ("/nowhere/at-all", 127, "/nowhere/at-all cannot be executed: No such file or directory"),
        ("/etc/passwd", 126, "/etc/passwd cannot be executed: Permission denied"),
    ],
)
def test_what_cannot_be_executed_is_said(program: str, status: int, reason: str) -> None:
    done = run(program)
    assert done.status == status
    assert done.log.endswith(f" {reason}\n") and done.log.count("\n") == 1


def test_a_daemon_stays_covered_and_holds_up_nobody() -> None:
    """The program has ended, and what it has started goes on: its supervisor, too."""
    code = "exec >&- 2>&- <&-; sleep 600"
    done = run("sh", "-c", f"( {code} ) & echo $!; exit 3")
    pid = int(done.output)
    assert (done.status, done.log) == (3, "")
    try:
        assert is_alive(pid)
        supervisor = int(_status(pid)["PPid"])
        until("all is let go of", lambda: os.readlink(f"/proc/{supervisor}/cwd") == "/")
        assert os.readlink(f"/proc/{supervisor}/fd/2") == "/dev/null"
        assert _status(pid)["Seccomp"] == "2"
    finally:
        subprocess.run(["pkill", "-KILL", "-P", str(pid)], check=False)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until("the supervisor is gone", lambda: not is_alive(supervisor))


def test_orphans_are_reaped() -> None:
    with started("sh", "-c", "(sh -c 'echo $$' & ); read x") as launched:
        pid = int(launched.line())
        until("it is gone altogether", lambda: state(pid) == "X")
        launched.tell("")
        assert launched.status == 0


def test_a_program_that_ends_with_sigchld_ignored_has_a_status() -> None:
    code = "import signal; print(signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN); exit(5)"
    before = ("env", "--ignore-signal=CHLD", *AS_NOBODY)
    done = run(PYTHON, "-c", code, before=before)
    assert (done.status, done.output) == (5, "True\n")


# Signals


def test_a_signal_for_the_one_in_front_is_for_the_program() -> None:
    with started(PYTHON, "-c", COUNTS) as launched:
        assert launched.line() == "ready"
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT):
            os.kill(launched.front, number)
            until("it is told", lambda name=number.name: _said(launched) == name)


def test_a_signal_for_the_group_comes_once() -> None:
    with started(PYTHON, "-c", COUNTS, start_new_session=True) as launched:
        assert launched.line() == "ready"
        for _ in range(20):
            os.killpg(launched.front, signal.SIGHUP)
            os.kill(launched.front, signal.SIGUSR1)  # behind it, as the lower number is taken first
            come: list[str] = []
            until("both have come", lambda come=come: _more(launched, come, "SIGUSR1"))
            assert sorted(come) == ["SIGHUP", "SIGUSR1"]


def test_a_program_in_a_group_of_its_own_is_sent_what_comes_for_ours() -> None:
    code = "import os; os.setpgid(0, 0)\n" + COUNTS
    with started(PYTHON, "-c", code, start_new_session=True) as launched:
        assert launched.line() == "ready"
        os.killpg(launched.front, signal.SIGTERM)
        until("it is told", lambda: _said(launched) == "SIGTERM")


def test_who_kills_the_one_in_front_kills_the_program() -> None:
    with started("sleep", "600") as launched:
        os.kill(launched.front, signal.SIGKILL)
        assert launched.status == -signal.SIGKILL
        until("nothing is left", lambda: not is_alive(launched.program))
        until("nothing is left", lambda: not is_alive(launched.supervisor))


def test_who_lets_the_program_go_on_lets_the_one_in_front() -> None:
    with started("sleep", "600") as launched:
        os.kill(launched.program, signal.SIGSTOP)
        until("all stop", lambda: state(launched.front) == "T")
        os.kill(launched.program, signal.SIGCONT)
        until("all go on", lambda: state(launched.front) == "S")
        os.kill(launched.program, signal.SIGSTOP)
        until("all stop", lambda: state(launched.front) == "T")
        os.kill(launched.front, signal.SIGCONT)
        until("all go on", lambda: state(launched.program) == "S")


def test_who_kills_a_program_that_has_stopped_ends_all() -> None:
    with started("sleep", "600") as launched:
        os.kill(launched.program, signal.SIGSTOP)
        until("all stop", lambda: state(launched.front) == "T")
        os.kill(launched.program, signal.SIGKILL)
        assert launched.status == -signal.SIGKILL


def test_what_we_tell_the_one_in_front_is_not_for_the_program() -> None:
    with started(PYTHON, "-c", COUNTS) as launched:
        assert launched.line() == "ready"
        os.kill(launched.program, signal.SIGSTOP)
        until("all stop", lambda: state(launched.front) == "T")
        os.kill(launched.program, signal.SIGCONT)
        until("all go on", lambda: state(launched.front) == "S")
        come: list[str] = []
        os.kill(launched.front, signal.SIGUSR1)
        until("it has come", lambda: _more(launched, come, "SIGUSR1"))
        assert come == ["SIGCONT", "SIGUSR1"]


def test_many_signals_lose_none_in_the_end() -> None:
    with started(PYTHON, "-c", COUNTS) as launched:
        assert launched.line() == "ready"
        for _ in range(200):
            os.kill(launched.front, signal.SIGUSR1)
        os.kill(launched.front, signal.SIGTERM)
        come: list[str] = []
        until("the last has come", lambda: _more(launched, come, "SIGTERM"))


# At a terminal


def test_ctrl_c_comes_once() -> None:
    with shell() as terminal:
        terminal.type(f"$s {PYTHON} -c '{COUNTS}'\n")
        terminal.await_text("ready")
        terminal.type("\3")
        terminal.type("\n")
        terminal.await_text(r"\n(SIGINT)\r\n")
        terminal.type("\n\4")
        terminal.await_text(r"^\r\n")
        terminal.type("echo st$?\n")
        terminal.await_text("st0")


def test_ctrl_c_ends_a_program_that_does_not_care() -> None:
    with shell() as terminal:
        terminal.type("$s sh -c 'echo up; exec sleep 600'\n")
        terminal.await_text("up")
        terminal.type("\3")
        terminal.type("echo st$?\n")
        terminal.await_text("st130")


def test_a_supervisor_that_ends_without_having_read_a_signal_has_not_been_killed() -> None:
    """As when Ctrl-C ends the program at once: its end is told, and the signal waits unread."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.send(in_front.WORD.pack(in_front.OF_A_TERMINAL, signal.SIGINT))
        ours.send(in_front.WORD.pack(in_front.HAS_ENDED, 3 << 8))
        ours.close()
        pid = os.fork()
        if not pid:
            in_front.Front(theirs, 0, lambda: os._exit(99)).wait()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3


def test_job_control() -> None:
    """Ctrl-Z, bg, fg, a stop by a read in the background, and by the program itself."""
    with shell() as terminal:
        code = "echo up; read x; echo got $x; kill -STOP $$; echo again; exit 4"
        terminal.type(f"$s sh -c '{code}'\n")
        terminal.await_text("up")
        terminal.type("\x1a")
        terminal.await_text("Stopped")
        terminal.type("bg\n")
        terminal.await_text(r"sh -c[^\n]*&")
        _await_job(terminal, "Stopped")
        terminal.type("fg\n")
        terminal.await_text("sh -c")
        terminal.type("word\n")
        terminal.await_text("got word")
        terminal.await_text("Stopped")
        terminal.type("fg; echo st$?\n")
        terminal.await_text("again")
        terminal.await_text("st4")


def test_output_from_the_background_stops_it_where_the_terminal_says_so() -> None:
    with shell() as terminal:
        terminal.type("stty tostop; $s sh -c 'echo up; exit 6' &\n")
        terminal.await_text(r"\[1\]")
        _await_job(terminal, "Stopped")
        terminal.type("fg; echo st$?\n")
        terminal.await_text("up")
        terminal.await_text("st6")


def test_a_shell_with_jobs_of_its_own() -> None:
    with shell() as terminal:
        terminal.type("$s bash --norc --noediting -i\n")
        terminal.type("echo in''side\n")
        terminal.await_text("inside")
        terminal.type("sh -c 'echo up; read x; echo got $x; exit 3'\n")
        terminal.await_text("up")
        terminal.type("\x1a")
        terminal.await_text("Stopped")
        terminal.type("fg\n")
        terminal.await_text("sh -c")
        terminal.type("word\n")
        terminal.await_text("got word")
        terminal.type("echo st$?\n")
        terminal.await_text("st3")
        terminal.type("suspend\n")
        terminal.await_text("Stopped")
        terminal.type("fg\n")
        terminal.await_text("bash")
        terminal.type("echo bac''k; exit 9\n")
        terminal.await_text("back")
        terminal.type("echo out''side $?\n")
        terminal.await_text("outside 9")


def test_a_program_in_raw_mode() -> None:
    """It gets the keys that would be signals, and the terminal is its own."""
    code = "stty raw -echo; echo up; dd bs=1 count=3 2>/dev/null | od -An -tx1; stty sane -echo"
    with shell() as terminal:
        terminal.type(f"$s sh -c '{code}'\n")
        terminal.await_text("up")
        terminal.type("\3\x1a\x1c")
        terminal.await_text("03 1a 1c")


def test_the_end_of_the_terminal_ends_it() -> None:
    with shell() as terminal:
        terminal.type("$s sh -c 'echo $$; exec sleep 600'\n")
        pid = int(terminal.await_text(r"\n?(\d+)\r\n"))
    until("it is gone", lambda: not is_alive(pid))


# When one of us is killed


def test_without_a_supervisor_nothing_goes_out() -> None:
    code = """
import socket, sys
sys.stdin.readline()
for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    try:
        socket.socket(family).connect((address, int(sys.argv[1])))
        print("connected")
    except OSError as error:
        print(error.errno)
sys.stdout.flush()
sys.exit(9)
"""
    with socket.create_server(("127.0.0.1", 0)) as far:
        port = str(far.getsockname()[1])
        with started(PYTHON, "-c", code, port) as launched:
            os.kill(launched.supervisor, signal.SIGKILL)
            until("it is adopted", lambda: launched.program in children(launched.front))
            launched.tell("")
            assert [launched.line(), launched.line()] == [str(errno.ENOSYS)] * 2
            assert launched.status == 9
            said = launched.log
            assert said.count("\n") == 1
            assert "the supervisor has been killed: nothing can connect any more" in said
        far.settimeout(0)
        with pytest.raises(BlockingIOError):
            far.accept()


@pytest.mark.parametrize("program", ["socksify", "socketbox-preload"])
def test_a_supervisor_that_fails_says_what_that_means(program: str) -> None:
    """In one line; and the program goes on, as far as it can do without."""
    own, receive = ARCHITECTURES[0], 0xC0502100  # SECCOMP_IOCTL_NOTIF_RECV
    numbers = {"ioctl": 16 if os.uname().machine == "x86_64" else 29}
    outer = assemble(
        {"ioctl": (Rule(refuse(errno.ENOMEM), equals(1, receive)),)},
        [Architecture(own.audit, numbers), *ARCHITECTURES[1:]],
    )
    code = """
import socket, sys
try:
    sock = socket.socket()
    (sock.bind if sys.argv[1:] else sock.connect)(("127.0.0.1", 7))
except OSError as error:
    print(error.errno)
sys.exit(9)
"""
    is_server = program == "socketbox-preload"
    chosen = "--listen=*:7=@nobody" if is_server else f"--proxy={NOWHERE}"
    before = [PYTHON, "-c", REFUSING, ".", outer.hex(), *AS_NOBODY]
    words = [str(Path(SOCKSIFY).with_name(program)), chosen, PYTHON, "-c", code]
    words += ["bind"] * is_server
    done = subprocess.run([*before, *words], capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, done.stdout) == (9, f"{errno.ENOSYS}\n")
    assert done.stderr.count("\n") == 1
    assert "Cannot allocate memory: nobody answers the program's calls any more" in done.stderr


def test_without_a_supervisor_signals_and_stops_are_passed_on() -> None:
    with started("sleep", "600") as launched:
        os.kill(launched.supervisor, signal.SIGKILL)
        until("it is adopted", lambda: launched.program in children(launched.front))
        os.kill(launched.program, signal.SIGSTOP)
        until("all stop", lambda: state(launched.front) == "T")
        os.kill(launched.front, signal.SIGCONT)
        until("all go on", lambda: state(launched.program) == "S")
        os.kill(launched.front, signal.SIGTERM)
        assert launched.status == -signal.SIGTERM


# What it has

REPORT = """
import json, os, resource, signal, stat, sys
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps([
    sorted((fd, os.readlink(f"/proc/self/fd/{fd}")) for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}") and fd != "1"),
    {name: status[name] for name in ("SigBlk", "SigIgn", "SigCgt", "ShdPnd", "SigPnd", "Umask")},
    os.getcwd(), os.nice(0), os.getpriority(os.PRIO_PROCESS, 0), dict(os.environ),
    [resource.getrlimit(one) for one in range(16)],
    os.getgroups(), os.getresuid(), os.getresgid(), os.sched_getaffinity(0).__len__(),
    open("/proc/self/oom_score_adj").read(), status.get("Threads"),
]))
"""


def test_it_has_all_that_it_has_without_us(place: str) -> None:
    Path(place, "report.py").write_text(REPORT)
    setting = (
        "umask 027; ulimit -n 300; ulimit -c 0; trap '' USR2 TSTP; "
        'exec nice -n 3 env --block-signal=USR1 "$@" 7</dev/zero 9>/dev/null'
    )
    ours = ["setpriv", "--no-new-privs"] if not AS_NOBODY else [*AS_NOBODY]
    reports = []
    for program in ([SOCKSIFY, f"--proxy={NOWHERE}"], []):
        done = subprocess.run(
            ["bash", "-c", setting, "sh", *ours, *program, PYTHON, "-I", "report.py"],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            cwd=place,
            env=environment(A="B"),
            timeout=SECONDS,
            text=True,
            check=True,
        )
        reports.append(done.stdout)
    assert reports[0] == reports[1]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-"])
def test_closed_descriptors_are_closed(closed: str, tmp_path: Path) -> None:
    seen = []
    for number, words in enumerate(([SOCKSIFY, f"--proxy={NOWHERE}"], [])):
        path = tmp_path / str(number)
        program = " ".join([*words, "bash", "-c", "'cd /proc/$$/fd; echo * >&8; exit 4'"])
        done = subprocess.run(
            ["bash", "-c", f"exec 8>{path} {closed}; exec {program}"],
            timeout=SECONDS,
            env=environment(),
        )
        assert done.returncode == 4
        seen.append(path.read_text())
    assert seen[0] == seen[1]


def test_we_hold_nothing_of_its_descriptors() -> None:
    """Who reads what the program writes is told when it has closed that."""
    reader, writer = os.pipe()
    code = f"exec >&- {writer}>&- <&-; sleep 600"
    with started("bash", "-c", f"read x; {code}", pass_fds=[writer]) as launched:
        os.close(writer)
        launched.tell("")
        assert launched.rest() == ""
        assert os.read(reader, 1) == b""
        until("nobody reads", lambda: _breaks(launched))
    os.close(reader)


def test_root_keeps_its_setuid_programs() -> None:
    if os.geteuid():
        pytest.skip("only root may have a filter without NO_NEW_PRIVS")
    words = ("grep", "NoNewPrivs", "/proc/self/status")
    # In a user namespace of its own a user may have one, too
    assert run(*words, mode="async", before=()).output.split() == ["NoNewPrivs:", "0"]
    assert run(*words, mode="async").output.split() == ["NoNewPrivs:", "1"]


# What cannot be


def test_it_cannot_be_run_in_itself() -> None:
    done = run(SOCKSIFY, f"--proxy={NOWHERE}", "true")
    assert done.status == 111
    assert "another one answers for this process already" in done.log
    assert done.log.count("\n") == 1


REFUSING = """
import os, sys
sys.path.insert(0, sys.argv[1])
import ctypes
instructions = bytes.fromhex(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]
assert not libc.prctl(38, 1, 0, 0, 0)
assert not libc.prctl(22, 2, ctypes.byref(Program(len(instructions) // 8, instructions)))
os.execvp(sys.argv[3], sys.argv[3:])
"""


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EPERM, "not permitted here; a container may need"),
        (errno.ENOSYS, "not there; it takes Linux 5.14"),
        (errno.ENOMEM, ": Cannot allocate memory"),
    ],
)
@pytest.mark.parametrize("mode", ["auto", "isolate", "hold"])
@pytest.mark.parametrize(
    "call", ["seccomp", "pidfd_open", "pidfd_getfd", "process_vm_readv", "process_vm_writev"]
)
def test_what_a_container_does_not_permit_is_named(
    call: str, mode: str, number: int, said: str
) -> None:
    """As Docker's profile does: some calls fail with EPERM. No other mode does without them."""
    if mode == "isolate" and run("true", mode="isolate").status:
        pytest.skip("there is no network of one's own here")
    own = ARCHITECTURES[0]
    numbers = {call: own.numbers[call]}
    outer = assemble(
        {call: (Rule(refuse(number)),)}, [Architecture(own.audit, numbers), *ARCHITECTURES[1:]]
    )
    before = (PYTHON, "-c", REFUSING, ".", outer.hex(), *AS_NOBODY)
    done = run("echo", "run", mode=mode, before=before)
    assert (done.status, done.output) == (111, "")
    assert call in done.log and said in done.log and "does without" not in done.log
    assert done.log.count("\n") == 1


@pytest.mark.parametrize("what", ["nothing", "others"])
def test_proc_of_nothing_or_of_others_is_said_to_be_so(what: str) -> None:
    if os.geteuid():
        pytest.skip("only root may mount something")
    before = {
        "nothing": ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc; exec "$@"', "sh"),
        "others": ("unshare", "--pid", "--fork"),
    }[what]
    done = run("echo", "run", before=(*before, *AS_NOBODY))
    assert (done.status, done.output) == (111, "")
    assert "/proc has not the processes of here" in done.log
    assert done.log.count("\n") == 1


@pytest.mark.parametrize("program", ["socksify", "socketbox-preload"])
def test_few_descriptors(program: str) -> None:
    """Whichever is the first that cannot be had, one line says so."""
    statuses = []
    for number in range(6, 18):
        limit = ("prlimit", f"--nofile={number}:{number}")
        options = (f"--proxy={NOWHERE}", "--mode=async") if program == "socksify" else ()
        words = (*AS_NOBODY, *limit, str(Path(SOCKSIFY).with_name(program)), *options, "true")
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS)
        statuses.append(done.returncode)
        assert done.stderr.count("\n") == (1 if done.returncode else 0), done.stderr
        assert not done.returncode or "Too many open files" in done.stderr
    assert set(statuses) == {0, 111} and statuses == sorted(statuses, reverse=True)


def test_no_process_more() -> None:
    if os.geteuid():
        pytest.skip("only root may become somebody who has no process else")
    before = ("setpriv", "--reuid=61234", "--clear-groups", "prlimit", "--nproc=1")
    done = run("echo", "run", before=before)
    assert (done.status, done.output) == (111, "")
    assert "fork: Resource temporarily unavailable\n" in done.log
    assert done.log.count("\n") == 1


# Parts


def _await_job(terminal: Terminal, state: str) -> None:
    """Ask the shell for its jobs until there is one in a state."""

    def is_so() -> bool:
        terminal.type("jobs; echo en''d\n")
        return bool(re.search(state, terminal.await_text(r"((?s:.*?))end\r\n")))

    until(f"it is {state}", is_so)


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: rest.strip() for name, _, rest in (line.partition(":") for line in lines)}


def _said(launched: Started) -> str:
    launched.tell()
    return launched.line()


def _more(launched: Started, come: list[str], last: str) -> bool:
    come += _said(launched).split()
    return last in come


def _breaks(launched: Started) -> bool:
    try:
        launched.tell()
    except BrokenPipeError:
        return True
    return False


# What could be in the way of the supervisor


def test_no_signal_ends_a_call_of_the_supervisor() -> None:
    """Many children that end must not: half an answer is one, too."""
    with started("sh", "-c", "echo; read x") as launched:
        launched.line()
        for line in Path(f"/proc/{launched.supervisor}/status").read_text().splitlines():
            if line.startswith("SigBlk:"):
                blocked = int(line.split()[1], 16)
    kill_and_stop = 1 << signal.SIGKILL - 1 | 1 << signal.SIGSTOP - 1
    assert all(
        blocked >> number - 1 & 1
        for number in signal.valid_signals()
        if not kill_and_stop >> number - 1 & 1
    )


def test_the_supervisor_stays_behind_without_descriptors() -> None:
    pid = os.fork()
    if not pid:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
            stay_behind()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_socket_is_handed_in_though_the_supervisor_is_stopped() -> None:
    """Whatever moment it is stopped at: socket(2) must not return 0, which is another's."""
    expect_isolation()
    code = """
import os, select, _socket
print(flush=True)
wrong = set()
while not select.select([0], [], [], 0)[0]:
    fds = {_socket.socket(2, 1, 0).detach() for _ in range(9)}
    wrong |= {fd for fd in fds if fd < 3}
    for fd in fds - wrong:
        os.close(fd)
print(wrong)
"""
    with started(PYTHON, "-c", code, mode="isolate") as launched:
        launched.line()
        for _ in range(20000):
            os.kill(launched.supervisor, signal.SIGSTOP)
            os.kill(launched.supervisor, signal.SIGCONT)
        launched.tell("")
        assert launched.line() == "set()"


def test_what_systemd_passes_is_the_programs() -> None:
    """It says by a number for whom its sockets are, and has started another process."""
    start = 'LISTEN_PID=$$ WATCHDOG_PID=1 LISTEN_PIDFDID=7 exec "$@"'
    says = "echo $((LISTEN_PID - $$)) $WATCHDOG_PID ${LISTEN_PIDFDID-none}"
    done = run("sh", "-c", says, before=(*AS_NOBODY, "sh", "-c", start, "sh"))
    assert done.output == "0 1 none\n"
