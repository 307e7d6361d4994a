"""Unix sockets of others who look names up: a program is refused there, however it gets there.

All this is in mounts of its own, with a socket where systemd-resolved has one.
"""

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from places import in_own_network, sh
from socksified import python, run

CONNECT = (
    "import errno, os, socket, sys\n"
    "def connect(path):\n"
    "    try:\n"
    "        socket.socket(socket.AF_UNIX).connect(path)\n"
    "        return 'connected'\n"
    "    except OSError as error:\n"
    "        return errno.errorcode[error.errno]\n"
)


def said_by(code: str, *arguments: str) -> str:
    return run(*python(CONNECT + code, *arguments), mode="async").said


RESOLVED = "/run/systemd/resolve/io.systemd.Resolve"
NSCD = "/var/run/nscd/socket"


@contextlib.contextmanager
def listening(path: str) -> Iterator[None]:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        os.chmod(path, 0o777)
        server.listen(9)
        thread = threading.Thread(target=_hang_up, args=(server,))
        thread.start()
        yield
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def _hang_up(server: socket.socket) -> None:
    """Others, who are not under socksify, may come and wait for what they ask."""
    with contextlib.suppress(OSError):
        while True:
            server.accept()[0].close()


def in_own_run(function: Callable[[], None]) -> None:
    def there() -> None:
        sh("mount -t tmpfs -o mode=755 none /run")
        assert os.path.realpath("/var/run") == "/run"
        function()

    in_own_network(there)


@pytest.mark.parametrize("path", [RESOLVED, NSCD, "/run/avahi-daemon/socket"])
def test_they_refuse(path: str) -> None:
    def there() -> None:
        with listening(path), listening("/run/other"):
            code = f"print(connect('{path}'), connect('/run/other'))"
            assert said_by(code) == "ECONNREFUSED connected\n"

    in_own_run(there)


def test_by_whatever_way_one_comes() -> None:
    def there() -> None:
        with listening(RESOLVED), listening("/run/tables/io.systemd.Resolve"):
            os.symlink("systemd/../systemd/resolve", "/run/link")
            os.symlink("/run/link/io.systemd.Resolve", "/run/name")
            os.symlink("/run/round", "/run/round")
            os.link(RESOLVED, "/run/hard")
            said = said_by(
                "names = ['/run/link/io.systemd.Resolve', '/run/name', '/run/hard',\n"
                "    '//run/./systemd//resolve/../resolve/io.systemd.Resolve']\n"
                "names += [f'/proc/{one}/root' + '/run/hard' for one in ('self', os.getpid())]\n"
                "os.chdir('/run/systemd/resolve'); names.append('io.systemd.Resolve')\n"
                "names += [f'/proc/self/fd/{os.open(\".\", os.O_PATH)}/io.systemd.Resolve']\n"
                "print({connect(name) for name in names})\n"
                "os.chdir('/run/tables'); print(connect('io.systemd.Resolve'))\n"
                "print([connect(name) for name in ('none', '/run/round', '/run', '\\0none')])\n"
            )
            assert said.splitlines() == [
                "{'ECONNREFUSED'}",
                "connected",
                "['ENOENT', 'ELOOP', 'EACCES', 'ECONNREFUSED']",
            ]

    in_own_run(there)


def test_as_the_program_sees_it(tmp_path: Path) -> None:
    """In another root, where /var/run leads to the /run there."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces for us")

    def there() -> None:
        root = Path("/run/root")
        (root / "var").mkdir(parents=True)
        os.symlink("/run", root / "var/run")
        with listening(f"{root}/run/nscd/socket"), listening(f"{root}/run/other"):
            said = said_by(
                "if not (pid := os.fork()):\n"
                "    import ctypes; library = ctypes.CDLL(None)\n"
                "    assert not library.unshare(0x10000000)\n"
                "    os.chroot(sys.argv[1]); os.chdir('/')\n"
                "    print([connect(name) for name in ('/var/run/nscd/socket', 'run/nscd/socket',\n"
                "                                     '/../run/nscd/socket', '/run/other')])\n"
                "else:\n"
                "    os.waitpid(pid, 0)\n"
                "    print(connect(sys.argv[1] + '/run/other'))\n",
                str(root),
            )
            refused = "ECONNREFUSED"
            assert said.splitlines() == [f"{[refused] * 3 + ['connected']}", "connected"]

    in_own_run(there)
