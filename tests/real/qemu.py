"""A virtual machine with a virtio-serial port and no network card, under software emulation.

    image = build(directory, trees={Path("bin"): "/usr/local/bin", Path("lib"): "/usr/local/lib"})
    with Guest(image) as guest:
        guest.run("ls -l /dev/virtio-ports")
        host.connect(str(guest.port))  # /dev/virtio-ports/org.muonsocks.0 in the guest

It boots in four seconds, from an archive of this host's own programs (initramfs.py), and has
nothing on disk. Commands go through a second port, to guest_agent.py.

Needs the Debian packages qemu-system-x86 and busybox, and a kernel that tests/run unpacks.
"""

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import initramfs
import udev
from guest_agent import CONTROL
from guest_link import GuestGone, Link, Process
from qmp import Monitor

QEMU = "qemu-system-x86_64"
PORT = "org.muonsocks.0"
KERNEL = Path(
    os.environ.get("MUONSOCKS_KERNEL", str(Path.home() / ".cache/muonsocks-tests/kernel"))
)
BOOT_SECONDS = 90  # takes 4; more when every core is busy with other tests
SECONDS = 60  # for a command, unless told
END_SECONDS = 10
MEMORY = 256  # MiB; the archive of 60 is in it twice while it is unpacked
# all the emulator has: the kernel starts a fifth faster than on its default, qemu64
PROCESSOR = "max"
# MiB of translated code. It is full, and emptied, now and then: each page of what is left from
# before a reset would be looked up as the next kernel overwrites it, and that takes 3 to 7 seconds.
TRANSLATED = 64
# a kernel that panics restarts, at which QEMU ends as long as the guest has not booted
KERNEL_OPTIONS = "console=ttyS0 quiet panic=-1 rdinit=/init mitigations=off random.trust_cpu=on"


class BootError(Exception):
    """No virtual machine could be booted here, for the reason given."""


class Image(NamedTuple):
    kernel: Path
    archive: Path


def missing(*, systemd: bool = False) -> str | None:
    """Why no virtual machine, or none with systemd, can be booted on this host, or None."""
    if os.uname().machine != "x86_64":
        return f"the virtual machine is x86_64, this host's programs are {os.uname().machine}"
    if not shutil.which(QEMU):
        return f"no {QEMU} here (Debian package qemu-system-x86)"
    for program, package in (
        ("busybox", "busybox"),
        ("curl", "curl"),
        ("ssh", "openssh-client"),
        ("nc.openbsd", "netcat-openbsd"),
    ):
        if not shutil.which(program):
            return f"no {program} here (Debian package {package})"
    if systemd and not os.path.exists("/lib/systemd/systemd-journald"):
        return "no systemd here (Debian package systemd)"
    if systemd and (reason := udev.missing()):
        return reason
    if not list(KERNEL.glob("boot/vmlinuz-*")):
        return f"no kernel in {KERNEL}: tests/run unpacks one"
    return None


def build(directory: Path, trees: Mapping[Path, str], *, systemd: bool = False) -> Image:
    """Make what a guest boots from; `trees` maps directories of the host's to the guest's.

    With `systemd`, that is process 1, with udev, and the guest takes 9 s to boot.
    """
    kernel = initramfs.Kernel(KERNEL)
    archive = directory / "guest.cpio"
    initramfs.build(archive, kernel, trees, systemd)
    return Image(kernel.image, archive)


class Guest:
    """A virtual machine; a context manager that ends it and leaves nothing behind.

    `port` is the host's end of org.muonsocks.0. QEMU listens there, or, with `calls`, connects to
    whoever listens there, and again a second after it was left.
    """

    def __init__(self, image: Image, *, calls: bool = False, memory: int = MEMORY) -> None:
        self._image = image
        self._calls = calls
        self._memory = memory  # MiB
        self._cleanup = contextlib.ExitStack()
        self._plugged = 2  # the number of the port is 2 and 3 in turn; 1 is the control port's
        self._qemu: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Guest":
        try:
            self._boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- what runs in it

    def run(
        self, command: str, *, input: str = "", check: bool = True, timeout: float = SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command in the guest; one that fails is an AssertionError, unless told.

        One that takes longer than `timeout` seconds is killed, with all it has started, and
        subprocess.TimeoutExpired says so. GuestGone when the guest ends or is reset meanwhile.
        """
        process = self.start("/bin/sh", "-c", command)
        process.write(input.encode())
        process.close_input()
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill(group=True)
            raise
        done = subprocess.CompletedProcess(
            command, status, process.stdout.decode(), process.stderr.decode()
        )
        if check and status != 0:
            raise AssertionError(f"{process}exit status {status}")
        return done

    def start(self, *command: str) -> Process:
        """Start a program in the guest, with nothing in its input as yet."""
        return self._link.start(command)

    def python(self, code: str, *, timeout: float = SECONDS) -> str:
        """What a Python program printed."""
        return self.run(f"exec python3 -c {shlex.quote(code)}", timeout=timeout).stdout

    def put(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Write a file in the guest, with the directories it needs."""
        where = shlex.quote(path)
        write = f"mkdir -p $(dirname {where}) && cat > {where} && chmod {mode:o} {where}"
        process = self.start("/bin/sh", "-c", write)
        process.write(content)
        process.close_input()
        assert process.wait() == 0, process

    # -- what is done to it

    def connect(self) -> socket.socket:
        """Connect to the port, where QEMU listens; nobody else may be connected."""
        stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(SECONDS)
        stream.connect(str(self.port))
        return stream

    def has_host(self) -> bool:
        """Whether QEMU has accepted a connection to the port, or made one."""
        [port] = [c for c in self._chardevs() if c["label"] == f"port{self._plugged}"]
        return not str(port["filename"]).startswith("disconnected:")

    def pause(self) -> None:
        """Stop the guest's processor; what it has sent can be read."""
        self.monitor("stop")

    def resume(self) -> None:
        self.monitor("cont")

    def reset(self) -> None:
        """Press the button, and wait until the guest has booted again."""
        self._link.forget()
        self.monitor("system_reset")
        self.await_boot()

    def await_boot(self) -> None:
        """Wait until it has booted: after it was reset, or a program in it was lost by a reboot."""
        self._link.await_port(PORT, None, BOOT_SECONDS)

    def kill(self) -> None:
        """End the emulator at once, as if the host's power had failed."""
        assert self._qemu
        self._qemu.kill()
        self._qemu.wait(END_SECONDS)

    def restart(self) -> None:
        """End it, if it has not ended, and boot again; the port's path is another then."""
        self.close()
        self._boot()

    def is_running(self) -> bool:
        """Whether QEMU answers; the guest may yet be paused, or have lost its way."""
        try:
            self.monitor("query-status")
        except GuestGone:
            return False
        return True

    def end_programs(self) -> None:
        """Kill what was started and has not ended, with all that it has started."""
        for process in self._link.running():
            process.kill(group=True)
            process.wait()

    def replug(self, *, calls: bool) -> None:
        """Take the port out of the guest, and put in a new one, in which there is nothing yet."""
        before = self._link.ports.get(PORT)
        plugged = f"port{self._plugged}"
        self.monitor("device_del", id=plugged)
        self._monitor.await_event("DEVICE_DELETED", device=plugged)
        self.monitor("chardev-remove", id=plugged)
        self.port.unlink(missing_ok=True)
        self._plug(calls=calls)
        self._link.await_port(PORT, before, SECONDS)

    def monitor(self, command: str, **arguments: object) -> object:
        """Ask QEMU (its QMP reference has the commands); what it does not do is a RuntimeError."""
        if self._qemu is None:
            raise GuestGone("the virtual machine was closed")
        return self._monitor.ask(command, **arguments)

    def said(self) -> str:
        """What QEMU and the guest's console have said, for a reader who looks for a reason."""
        logs = [self._work / "qemu", self._work / "console"]
        return "".join(log.read_text(errors="replace") for log in logs if log.exists())

    def close(self) -> None:
        """End the guest, there and then, and remove what it left here; harmless to repeat."""
        self._cleanup.close()
        self._qemu = None

    def _chardevs(self) -> list[dict[str, object]]:
        answer = self.monitor("query-chardev")
        assert isinstance(answer, list)
        return answer

    def _plug(self, *, calls: bool) -> None:
        """Add the port, of another number than the last, so that the guest can tell them apart."""
        self._plugged = 5 - self._plugged
        name = f"port{self._plugged}"
        address = {"type": "unix", "data": {"path": str(self.port)}}
        how = {"server": False, "reconnect": 1} if calls else {"server": True, "wait": False}
        backend = {"type": "socket", "data": {"addr": address, **how}}
        self.monitor("chardev-add", id=name, backend=backend)
        port = {"driver": "virtserialport", "nr": self._plugged, "chardev": name, "name": PORT}
        self.monitor("device_add", id=name, **port)

    # -- booting

    def _boot(self) -> None:
        reason = missing()
        if reason:
            raise BootError(reason)
        self._work = Path(tempfile.mkdtemp(prefix="muonsocks-qemu-"))
        self._cleanup.callback(shutil.rmtree, self._work, ignore_errors=True)
        self.port = self._work / "port"
        control, qemus_control = socket.socketpair()
        monitor, qemus_monitor = socket.socketpair()
        command = [QEMU, "-nodefaults", "-no-user-config", "-display", "none"]
        command += ["-M", "pc", "-nic", "none", "-smp", "1", "-m", f"{self._memory}M"]
        command += ["-accel", f"tcg,tb-size={TRANSLATED}", "-cpu", PROCESSOR]
        command += ["-action", "reboot=shutdown"]
        command += ["-kernel", str(self._image.kernel), "-initrd", str(self._image.archive)]
        command += ["-append", KERNEL_OPTIONS]
        command += ["-serial", f"file:{self._work}/console"]
        command += ["-chardev", f"socket,id=monitor,fd={qemus_monitor.fileno()}"]
        command += ["-mon", "chardev=monitor,mode=control"]
        command += ["-device", "virtio-serial-pci"]
        command += ["-chardev", f"socket,id=control,fd={qemus_control.fileno()}"]
        command += ["-device", f"virtserialport,nr=1,chardev=control,name={CONTROL}"]
        with qemus_control, qemus_monitor, (self._work / "qemu").open("wb") as log:
            self._qemu = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[qemus_control.fileno(), qemus_monitor.fileno()],
                start_new_session=True,  # an interrupt from the keyboard is for the tests
            )
        self._cleanup.callback(self.kill)
        self._end_with_this_process(self._qemu.pid)
        self._link = Link(control)
        self._cleanup.callback(self._link.close)
        self._cleanup.enter_context(monitor)
        try:
            self._monitor = Monitor(monitor)
            self._cleanup.callback(self._monitor.close)
            self._plug(calls=self._calls)
            self.await_boot()
            self.monitor("set-action", reboot="reset")
        except (GuestGone, TimeoutError, OSError) as error:
            raise BootError(f"{error}\n{self.said()}") from error

    def _end_with_this_process(self, process: int) -> None:
        """See to it that the emulator and its files do not outlive us, however we end."""
        kill = ["/bin/sh", "-c", 'cat; kill -KILL "$1"; rm -rf "$2"', "sh"]
        watcher = subprocess.Popen(
            [*kill, str(process), str(self._work)], stdin=subprocess.PIPE, start_new_session=True
        )

        def dismiss() -> None:
            watcher.kill()
            watcher.communicate()

        self._cleanup.callback(dismiss)
