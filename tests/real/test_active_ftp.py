"""FTP in active mode through BIND: the server connects to who asks for a file, by the proxy.

The proxy is in a network between those of the client and of vsftpd: there is no other way from one
to the other. (To what is near socksify goes directly.)
"""

import contextlib
import hashlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import clients
import pytest
from clients import MUONSOCKS, SOCKS_INETD, body, which
from places import another_network, in_own_network, join_networks, sh

CLIENT, PROXY = "198.51.100.2", ("198.51.100.1", 1080)
OURS, FTP = "192.0.2.1", "192.0.2.2"
SIZE = 50_000_000  # bytes
SERVERS = {
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
SOCKSIFY = f"""\
route {{
    from: 0.0.0.0/0 to: 0.0.0.0/0 via: {PROXY[0]} port = {PROXY[1]}
    proxyprotocol: VERSION
    command: connect bind
    method: none
}}
"""


@contextlib.contextmanager
def running(
    start: Callable[..., Any], command: list[str], log: Path, at: tuple[str, int]
) -> Iterator[None]:
    """Run a server; it is there when somebody can connect."""
    with log.open("wb") as file:
        process = start(subprocess.Popen, command, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + clients.SECONDS
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


def here(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    return function(*arguments, **named)


@pytest.mark.parametrize("version", ["socks_v5", "socks_v4"])
@pytest.mark.parametrize("server", SERVERS)
def test_active_ftp(tmp_path: Path, server: str, version: str) -> None:
    if reason := clients.missing("vsftpd", "tnftp", "socksify", "systemd-socket-activate"):
        pytest.skip(reason)
    root, empty = tmp_path / "root", tmp_path / "empty"
    for place in (root, empty):
        place.mkdir(mode=0o755)
    for place in (tmp_path, *tmp_path.parents[:3]):
        if place.owner() == "root" and place != Path("/tmp"):
            place.chmod(0o755)  # pytest's directories are for one user alone
    (root / "file").write_bytes(body(SIZE))
    config, received = tmp_path / "socks.conf", tmp_path / "received"
    config.write_text(SOCKSIFY.replace("VERSION", version))
    (tmp_path / "vsftpd.conf").write_text(VSFTPD.format(root=root, empty=empty))
    vsftpd = [which("vsftpd"), str(tmp_path / "vsftpd.conf")]
    log = tmp_path / "log"

    def check() -> None:
        with another_network() as nearer, another_network() as there:
            join_networks(nearer)
            sh("ip link set near down", "ip link set near name nearer", "ip link set nearer up")
            sh(f"ip addr add {PROXY[0]}/24 dev nearer")
            nearer(sh, f"ip addr add {CLIENT}/24 dev far")
            join_networks(there)
            sh(f"ip addr add {OURS}/24 dev near")
            there(sh, f"ip addr add {FTP}/24 dev far")
            with (
                running(there, vsftpd, tmp_path / "vsftpd.log", (FTP, 21)),
                running(here, SERVERS[server], log, PROXY),
            ):
                done = nearer(
                    subprocess.run,
                    ["socksify", "tnftp", "-A", "-o", str(received), f"ftp://{FTP}/file"],
                    env=os.environ | {"SOCKS_CONF": str(config), "HOME": str(tmp_path)},
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=clients.SECONDS,
                )
                assert done.returncode == 0, done.stderr
        assert hashlib.sha256(received.read_bytes()).digest() == hashlib.sha256(body(SIZE)).digest()

    in_own_network(check)
    lines = log.read_text()
    assert f" listen={OURS}:" in lines
    assert f" address={FTP}:20" in lines
    assert f" out={SIZE} " in lines
    assert "Traceback" not in lines
    for path in (received, root / "file"):
        path.unlink()
