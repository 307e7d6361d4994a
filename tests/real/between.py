"""A proxy between two networks, a client's and a server's: there is no other way from one to the
other. For a thread that has a network of its own, which becomes the proxy's.

    with networks() as (nearer, there):
        nearer(subprocess.run, [...])       # where the client is, at CLIENT
        there(subprocess.Popen, [...])      # where the server is, at SERVER
"""

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from clients import MUONSOCKS, SECONDS, SOCKS_INETD, which
from places import another_network, join_networks, sh

CLIENT, PROXY = "198.51.100.2", ("198.51.100.1", 1080)
OURS, SERVER = "192.0.2.1", "192.0.2.2"  # where the server sees the proxy; and itself
PROXIES = {
    "muonsocks": [MUONSOCKS, f"-i{PROXY[0]}", f"-p{PROXY[1]}", "--workers=1"],
    "socks-inetd": [
        *("systemd-socket-activate", "--accept", "--inetd", f"--listen={PROXY[0]}:{PROXY[1]}"),
        SOCKS_INETD,
    ],
}
VSFTPD = """\
listen=YES
background=NO
anonymous_enable=YES
no_anon_password=YES
anon_root={root}
ftp_username=daemon
secure_chroot_dir={empty}
pasv_enable=NO
connect_from_port_20=YES
seccomp_sandbox=NO
"""

Place = Callable[..., Any]


@contextlib.contextmanager
def networks() -> Iterator[tuple[Place, Place]]:
    """Make both networks; gives what calls functions in them."""
    with another_network() as nearer, another_network() as there:
        join_networks(nearer)
        sh("ip link set near down", "ip link set near name nearer", "ip link set nearer up")
        sh(f"ip addr add {PROXY[0]}/24 dev nearer")
        nearer(sh, f"ip addr add {CLIENT}/24 dev far")
        join_networks(there)
        sh(f"ip addr add {OURS}/24 dev near")
        there(sh, f"ip addr add {SERVER}/24 dev far")
        yield nearer, there


def here(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    return function(*arguments, **named)


@contextlib.contextmanager
def running(
    start: Place, command: list[str], log: Path, at: tuple[str, int], **popen: Any
) -> Iterator[None]:
    """Run a server; it is there when somebody can connect."""
    with log.open("wb") as file:
        process = start(subprocess.Popen, command, stdout=file, stderr=file, **popen)
    try:
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                socket.create_connection(at).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.01)  # there is no event for "somebody listens now"
        yield
    finally:
        process.terminate()
        process.wait()
        print(log.read_text())


def vsftpd(there: Place, place: Path, data: bytes) -> contextlib.AbstractContextManager[None]:
    """Run an ftpd in the server's network that serves a `file`, in active mode only."""
    root, empty, config = place / "root", place / "empty", place / "vsftpd.conf"
    for directory in (root, empty):
        directory.mkdir(mode=0o755)
    for directory in (place, *place.parents[:3]):
        if directory.owner() == "root" and directory != Path("/tmp"):
            directory.chmod(0o755)  # pytest's directories are for one user alone
    (root / "file").write_bytes(data)
    config.write_text(VSFTPD.format(root=root, empty=empty))
    return running(there, [which("vsftpd"), str(config)], place / "vsftpd.log", (SERVER, 21))
