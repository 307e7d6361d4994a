"""The virtual machine itself: what runs in it, and what is done to it."""

import contextlib
import hashlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import guest_port
import initramfs
import pytest
import qemu
import raw_port
from guest_link import GuestGone
from qemu import Guest

pytestmark = [pytest.mark.qemu, pytest.mark.xdist_group("qemu")]

SECONDS = 20  # for what takes milliseconds on a machine that is not busy
PORT = f"/dev/virtio-ports/{qemu.PORT}"


def until(condition: Callable[[], bool]) -> None:
    """Ask until it is so: for what is QEMU's own, and not told to anybody."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline


# -- what runs in it


def test_it_has_the_port_and_no_network(guest: Guest) -> None:
    assert guest.run(f"cat /sys/class/virtio-ports/$(basename $(readlink {PORT}))/name").stdout == (
        f"{qemu.PORT}\n"
    )
    assert guest.run(f"test -c {PORT} && stat -Lc %a:%U {PORT}").stdout == "600:root\n"
    assert guest.run("ls /sys/class/net").stdout == "lo\n"
    assert "UP" in guest.run("ip address show dev lo").stdout
    assert guest.run("hostname").stdout == "guest\n"


def test_a_command_has_input_output_and_status(guest: Guest) -> None:
    done = guest.run("cat; echo oh >&2; exit 3", input="in\n", check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("in\n", "oh\n", 3)
    with pytest.raises(AssertionError, match="exit status 3"):
        guest.run("exit 3")
    assert guest.python("print(6 * 7)") == "42\n"


def test_what_cannot_be_started_says_so(guest: Guest) -> None:
    process = guest.start("/no/such/program")
    assert process.wait(SECONDS) == 127
    assert b"No such file" in process.stderr


def test_a_command_that_takes_too_long_is_killed_with_all_it_started(guest: Guest) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        guest.run("sleep 4711 & sleep 4711", timeout=0.5)
    guest.run("while pidof sleep; do :; done", timeout=SECONDS)


def test_much_output_and_input(guest: Guest) -> None:
    data = os.urandom(3_000_000)
    guest.put("/tmp/some/where", data, 0o741)
    digest = hashlib.sha256(data).hexdigest()
    assert guest.run("sha256sum /tmp/some/where").stdout.split()[0] == digest
    assert guest.run("stat -c %a /tmp/some/where").stdout == "741\n"
    process = guest.start("cat", "/tmp/some/where")
    assert process.wait() == 0
    assert hashlib.sha256(process.stdout).hexdigest() == digest


def test_the_output_of_a_program_that_left_a_child_does_not_wait_for_the_child(
    guest: Guest,
) -> None:
    done = guest.run("echo first; sleep 4712 >/dev/null & echo second", timeout=SECONDS)
    assert done.stdout == "first\nsecond\n"
    assert guest.run("echo first; sleep 4713 &", timeout=SECONDS).stdout == "first\n"
    guest.run("kill $(pidof sleep)")


def test_much_output_of_many_at_once(guest: Guest) -> None:
    """All of it has come when they have ended."""
    many = [guest.start("head", "-c", "200000", "/dev/zero") for _ in range(24)]
    for process in many:
        assert process.wait() == 0
        assert len(process.stdout) == 200_000


def test_programs_run_at_the_same_time(guest: Guest) -> None:
    guest.run("mkdir -p /tmp/web && head -c 5000000 /dev/urandom > /tmp/web/file")
    server = guest.start(
        *("python3", "-u", "-m", "http.server", "--bind", "127.0.0.1", "-d", "/tmp/web", "8000")
    )
    server.wait_for(b"Serving")
    fetch = "curl -sS --limit-rate 2M http://127.0.0.1:8000/file"
    client = guest.start("/bin/sh", "-c", f"{fetch} | sha256sum")
    server.wait_for(b"GET /file")
    assert guest.run("echo meanwhile").stdout == "meanwhile\n"
    assert client.returncode is None
    assert client.wait() == 0
    assert client.stdout == guest.run("sha256sum < /tmp/web/file").stdout.encode()
    server.kill(signal.SIGINT)
    assert server.wait(SECONDS) == 0


def test_a_program_is_fed_and_killed(guest: Guest) -> None:
    process = guest.start("cat")
    process.write(b"some")
    process.wait_for(b"some", SECONDS)
    process.write(b" more\n")
    process.close_input()
    assert process.wait(SECONDS) == 0
    assert process.stdout == b"some more\n"
    process = guest.start("sleep", "4714")
    process.kill(signal.SIGTERM)
    assert process.wait(SECONDS) == -signal.SIGTERM
    process.kill()  # it has ended: nothing happens
    process = guest.start("cat")
    with pytest.raises(AssertionError, match="no b'never'"):
        process.close_input()
        process.wait_for(b"never", SECONDS)


def test_the_projects_programs_and_what_a_user_has_run_there(guest: Guest) -> None:
    assert guest.run("socks-inetd --help").stdout.startswith("Serve one SOCKS client")
    for command in (
        "curl --version",
        "ssh -V",
        "nc -h",
        "python3 -c 'import docopt, systemd.daemon'",
    ):
        guest.run(command)
    # of all that ran until now nothing had to be compiled: a directory of the boot is newer
    assert guest.run("find /usr -name '*.pyc' -newer /dev/shm").stdout == ""


# -- what is done to the machine


def test_pause_and_resume(guest: Guest) -> None:
    with raw_port.served(guest), guest.connect() as host:
        raw_port.ping(host, 1)
        guest.pause()
        host.sendall(guest_port.REQUEST.pack(b"E", 1, False) + b"x")
        host.settimeout(0.5)
        with pytest.raises(TimeoutError):
            host.recv(1)
        guest.resume()
        host.settimeout(SECONDS)
        assert host.recv(1) == b"x"


def test_reset(guest: Guest) -> None:
    guest.put("/tmp/file", b"")
    before = guest.run("cat /proc/sys/kernel/random/boot_id").stdout
    lost = guest.start("sleep", "4715")
    talking = guest.start("yes")
    talking.wait_for(b"y\ny\n")  # so that the control port is full of it
    with guest.connect() as host:
        guest.reset()
        with pytest.raises(GuestGone):
            lost.wait(SECONDS)
        assert guest.run("cat /proc/sys/kernel/random/boot_id").stdout != before
        guest.run("test ! -e /tmp/file && ! pidof sleep && ! pidof yes")
        with raw_port.served(guest):  # the host is connected still, and has seen nothing of it
            raw_port.ping(host, 1)


def test_a_reboot_from_within(guest: Guest) -> None:
    with pytest.raises(GuestGone):
        guest.run("reboot -f; sleep 4716")
    guest.await_boot()
    assert guest.run("echo again").stdout == "again\n"


def test_a_guest_that_powers_off_is_gone(guest: Guest) -> None:
    with pytest.raises(GuestGone):
        guest.run("poweroff -f; sleep 4717")
    with pytest.raises(GuestGone):
        guest.run("true")


def test_kill_leaves_nothing(guest: Guest) -> None:
    """Neither a process, nor a thread, a descriptor or a file."""
    process = guest.start("sleep", "4718")
    host = guest.connect()
    work = guest.port.parent
    guest.kill()
    with host, contextlib.suppress(ConnectionResetError):  # that, or the end
        assert host.recv(1) == b""
    with pytest.raises(GuestGone):
        process.wait(SECONDS)
    guest.close()
    assert not work.exists()
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    guest.restart()
    assert guest.run("echo again").stdout == "again\n"
    assert guest.port.parent.exists()
    guest.close()
    assert not guest.port.parent.exists()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert threading.active_count() == threads
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    assert not [pid for pid in children.split() if "qemu" in Path(f"/proc/{pid}/comm").read_text()]


def test_the_machine_does_not_outlive_its_tests(guest: Guest, guest_image: qemu.Image) -> None:
    guest.close()  # one at a time
    code = (
        "import os, signal, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import pathlib, qemu\n"
        f"image = qemu.Image(*map(pathlib.Path, {[str(part) for part in guest_image]!r}))\n"
        "with qemu.Guest(image) as guest:\n"
        "    print(guest._qemu.pid, guest.port, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=100
    )
    pid, port = done.stdout.split()
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(int(pid))
        assert select.select([descriptor], [], [], SECONDS)[0]
        os.close(descriptor)
    until(lambda: not Path(port).parent.exists())


def test_what_does_not_boot_says_why(guest: Guest, guest_image: qemu.Image, tmp_path: Path) -> None:
    guest.close()  # one at a time
    tree = initramfs.Tree()
    tree.file("/init", b"neither a program nor a script", 0o755)
    archive = tmp_path / "archive"
    archive.write_bytes(b"".join(tree))
    with (
        pytest.raises(qemu.BootError, match=r"has ended[\s\S]*Kernel panic"),
        Guest(guest_image._replace(archive=archive)),
    ):
        pass
