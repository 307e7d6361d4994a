"""The root file system of a virtual machine, made of this host's own files.

    build(Path("guest.cpio"), Kernel(Path("unpacked")), {Path("lib"): "/usr/local/lib"})

In it are busybox, Debian's Python with its standard library, docopt and systemd-python, curl, ssh
and nc, the shared libraries that all of them need, the kernel's virtio drivers and whatever else is
named. Links are kept as they are on the host, so that a path means the same in the guest.

The archive is not compressed: an emulated processor takes longer to unpack than QEMU to read.
"""

import importlib.util
import os
import py_compile
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import udev

HERE = Path(__file__).parent
AGENT = "/usr/lib/guest/agent.py"  # what answers the host, see guest_agent.py
PYTHON = "/usr/bin/python3"
PROGRAMS = ("curl", "ssh", "nc.openbsd")
DRIVERS = ("virtio_pci", "virtio_console")
LIBRARIES = ("libgcc_s.so.1",)  # opened by name when a thread ends, and so not in any ldd

# Of Python's library, what nobody wants here: windows, what tests, builds or installs Python or
# with Python, and what is not of the standard library.
NOT_OF_PYTHON = {
    *("__pycache__", "curses", "dbm", "dist-packages", "distutils", "ensurepip", "idlelib"),
    *("lib2to3", "pydoc_data", "site-packages", "sqlite3", "test", "tests", "tkinter"),
    *("turtledemo", "unittest", "venv", "xmlrpc"),
}
NOT_OF_EXTENSIONS = re.compile(
    r"/lib-dynload/(_tkinter|_sqlite3|_curses|_dbm|_gdbm|_test|_ctypes_test)"
)

SYSTEMD_PROGRAMS = ("systemctl", "journalctl", "systemd-analyze", "mount", "umount")
SYSTEMD_UNITS = ("*.target", "*.slice", "systemd-journald*")
AGENT_UNIT = f"""\
[Unit]
Description=What answers the host
Requires=basic.target
After=basic.target
FailureAction=poweroff-force
SuccessAction=poweroff-force
[Service]
Environment=HOME=/root LANG=C.UTF-8
Environment=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ExecStart=/usr/bin/python3 -I {AGENT}
StandardError=tty
"""

DIRECTORIES = ("dev", "etc", "proc", "root", "run", "sys", "tmp", "usr/bin", "usr/lib", "var")
FILES = {
    "/etc/group": "root:x:0:\nsystemd-journal:x:101:\nnogroup:x:65534:\n",
    "/etc/hostname": "guest\n",
    "/etc/hosts": "127.0.0.1 localhost guest\n::1 localhost\n",
    "/etc/machine-id": f"{1:032x}\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
}


class Kernel:
    """A kernel package of Debian's, unpacked into a directory."""

    def __init__(self, unpacked: Path) -> None:
        """FileNotFoundError where there is none."""
        images = sorted(unpacked.glob("boot/vmlinuz-*"))
        if not images:
            raise FileNotFoundError(f"no kernel in {unpacked}: no boot/vmlinuz-*")
        self.image = images[-1]
        self.modules = unpacked / "lib/modules" / self.image.name.removeprefix("vmlinuz-")

    def drivers(self, names: Iterable[str]) -> dict[str, bytes]:
        """{name: module}, each with those it needs before it; what is built in is left out."""
        built_in = {_module(line) for line in (self.modules / "modules.builtin").open()}
        files = {_module(path.name): path for path in self.modules.rglob("*.ko*")}
        found: dict[str, bytes] = {}

        def need(name: str) -> None:
            if name in found or name in built_in:
                return
            code = files[name].read_bytes()
            if files[name].suffix == ".xz":  # since Debian 13
                import lzma

                code = lzma.decompress(code)
            depends = re.search(rb"\0depends=([^\0]*)\0", code)
            for other in depends[1].decode().split(",") if depends and depends[1] else ():
                need(_module(other))
            found[name] = code

        for name in names:
            need(name)
        return found


class Tree:
    """Files, directories and links that become one archive."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[int, bytes, int]] = {}  # path: mode, content, mtime
        self._elsewhere: list[Path] = []  # programs that are not where the host has them

    def directory(self, path: str, mode: int = 0o755) -> None:
        self._enter(path, stat.S_IFDIR | mode, b"", 0)

    def link(self, path: str, to: str) -> None:
        self._enter(path, stat.S_IFLNK | 0o777, to.encode(), 0)

    def file(self, path: str, content: bytes, mode: int = 0o644, mtime: int = 0) -> None:
        self._enter(path, stat.S_IFREG | mode, content, mtime)

    def copy(self, path: str) -> None:
        """A file or link of the host's, and every link on the way to it."""
        at, rest = "/", [part for part in path.split("/") if part]
        while rest:
            at = os.path.join(at, rest.pop(0))
            status = os.lstat(at)
            if stat.S_ISLNK(status.st_mode):
                to = os.readlink(at)
                self.link(at, to)
                whole = os.path.normpath(os.path.join(os.path.dirname(at), to, *rest))
                at, rest = "/", [part for part in whole.split("/") if part]
            elif stat.S_ISDIR(status.st_mode):
                self.directory(at, stat.S_IMODE(status.st_mode))
            else:
                # the times are kept, so that Python takes its compiled files as they are
                self.file(
                    at, Path(at).read_bytes(), stat.S_IMODE(status.st_mode), int(status.st_mtime)
                )

    def copy_all(self, directory: str, leave: Iterable[str] = ()) -> None:
        """What is in a directory of the host's, but for directories of these names."""
        for at, directories, files in os.walk(directory):
            directories[:] = sorted(set(directories) - set(leave))
            for name in files:
                self.copy(os.path.join(at, name))

    def needs(self, program: Path) -> None:
        """Have the libraries of a program, too, that the host has elsewhere."""
        self._elsewhere.append(program)

    def libraries(self) -> None:
        """The shared libraries of everything that is in here by now."""
        kinds = {path: content[:4] == b"\x7fELF" for path, (_, content, _) in self._entries.items()}
        programs = [path for path, is_program in kinds.items() if is_program]
        command = ["ldd", *programs, *self._elsewhere]
        listed = subprocess.run(command, capture_output=True, text=True)
        for library in sorted(set(re.findall(r"(/\S+) \(0x", listed.stdout))):
            self.copy(library)

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def __iter__(self) -> Iterator[bytes]:
        """The archive, in pieces: cpio's "newc" format, as the kernel's
        Documentation/driver-api/early-userspace/buffer-format.rst describes it."""
        for number, path in enumerate(sorted(self._entries), 1):
            mode, content, mtime = self._entries[path]
            yield _member(path.lstrip("/"), number, mode, content, mtime)
        yield _member("TRAILER!!!", 0, 0, b"", 0)

    def _enter(self, path: str, mode: int, content: bytes, mtime: int) -> None:
        above = os.path.dirname(path)
        if above != "/" and above not in self._entries:
            self.directory(above)
        if not stat.S_ISDIR(mode) or path not in self._entries:
            self._entries[path] = mode, content, mtime


def build(target: Path, kernel: Kernel, trees: Mapping[Path, str], systemd: bool = False) -> None:
    """Write the archive; `trees` maps directories of the host's to where the guest has them.

    With `systemd`, that is process 1, and there are a journal and udev; the agent is the default
    unit.
    """
    tree = Tree()
    for top in ("/bin", "/sbin", "/lib", "/lib64"):  # mostly links into /usr
        if os.path.islink(top):
            tree.link(top, os.readlink(top))
    for directory in DIRECTORIES:
        tree.directory(f"/{directory}")
    tree.link("/var/run", "../run")
    for path, text in FILES.items():
        tree.file(path, text.encode())
    _add_python(tree)
    for program in PROGRAMS:
        tree.copy(shutil.which(program) or program)
    tree.link("/usr/bin/nc", "nc.openbsd")
    _add_busybox(tree)
    if systemd:
        _add_systemd(tree)
        udev.add(tree)
    for place in LIBRARIES:
        for found in Path("/usr/lib").glob(f"*/{place}"):
            tree.copy(str(found))
    tree.libraries()
    modules = kernel.drivers(DRIVERS)
    for name, code in modules.items():
        tree.file(f"/modules/{name}.ko", code)
    tree.file("/modules/list", "".join(f"/modules/{name}.ko\n" for name in modules).encode())
    for host, there in trees.items():
        _add_tree(tree, host, there)
    _add_compiled(tree, HERE / "guest_agent.py", AGENT)
    tree.file("/init", (HERE / "guest_init.sh").read_bytes(), 0o755)
    with target.open("wb") as archive:
        archive.writelines(tree)


def _add_python(tree: Tree) -> None:
    version = os.path.basename(os.path.realpath(PYTHON))  # python3.11
    tree.copy(PYTHON)
    library = f"/usr/lib/{version}"
    for at, directories, files in os.walk(library):
        kept = {name for name in directories if not name.startswith("config-")}
        directories[:] = sorted(kept - NOT_OF_PYTHON)
        for name in files:
            path = f"{at}/{name}"
            if name.endswith((".py", ".so")) and not NOT_OF_EXTENSIONS.search(path):
                _add_module(tree, path)
    for name in ("docopt", "systemd"):
        found = importlib.util.find_spec(name)
        assert found and found.origin, f"no Python module {name} here"
        if found.submodule_search_locations:
            tree.copy_all(os.path.dirname(found.origin))
        else:
            _add_module(tree, found.origin)


def _add_module(tree: Tree, path: str) -> None:
    """A module of the host's, and its compiled form where there is one."""
    tree.copy(path)
    compiled = importlib.util.cache_from_source(path)
    if os.path.exists(compiled):
        tree.copy(compiled)


def _add_busybox(tree: Tree) -> None:
    """busybox, and under the names of all it can be, but for those that are there."""
    busybox = shutil.which("busybox")
    assert busybox
    tree.copy(busybox)
    listed = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
    for name in listed.stdout.split():
        if f"/usr/bin/{name}" not in tree:
            tree.link(f"/usr/bin/{name}", busybox)


def _add_systemd(tree: Tree) -> None:
    for program in SYSTEMD_PROGRAMS:
        tree.copy(shutil.which(program) or program)
    for name in ("systemd", "systemd-executor", "systemd-journald"):
        if os.path.exists(f"/lib/systemd/{name}"):  # the second since version 255
            tree.copy(f"/lib/systemd/{name}")
    units = Path("/lib/systemd/system")
    for pattern in SYSTEMD_UNITS:
        for unit in units.glob(pattern):
            if unit.is_file():
                tree.copy(str(unit))
    there = "/etc/systemd/system"
    for wants in (
        "sysinit.target.wants/systemd-journald.service",
        "sockets.target.wants/systemd-journald.socket",
        "sockets.target.wants/systemd-journald-dev-log.socket",
    ):
        tree.link(f"{there}/{wants}", f"{units}/{os.path.basename(wants)}")
    tree.file(f"{there}/guest-agent.service", AGENT_UNIT.encode())


def _add_tree(tree: Tree, host: Path, there: str) -> None:
    for at, directories, files in os.walk(host):
        directories[:] = sorted(set(directories) - {"__pycache__"})
        for name in files:
            path = Path(at, name)
            place = os.path.join(there, path.relative_to(host))
            if path.suffix == ".py":
                _add_compiled(tree, path, place)
            else:
                tree.file(place, path.read_bytes(), stat.S_IMODE(path.stat().st_mode))


def _add_compiled(tree: Tree, host: Path, there: str) -> None:
    """A Python module and its compiled form, which is taken unseen: whatever the times say."""
    tree.file(there, host.read_bytes())
    with tempfile.NamedTemporaryFile(suffix=".pyc") as compiled:
        unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(str(host), compiled.name, there, True, invalidation_mode=unchecked)
        content = Path(compiled.name).read_bytes()
    tree.file(importlib.util.cache_from_source(there), content)


def _module(name: str) -> str:
    """`virtio_pci` for kernel/drivers/virtio/virtio-pci.ko.xz: the kernel reads - as _."""
    return os.path.basename(name.strip()).partition(".")[0].replace("-", "_")


def _member(name: str, number: int, mode: int, content: bytes, mtime: int) -> bytes:
    links = 2 if stat.S_ISDIR(mode) else 1
    path = name.encode() + b"\0"
    fields = (number, mode, 0, 0, links, mtime, len(content), 0, 0, 0, 0, len(path), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)
