"""FTP in active mode through BIND: the server connects to who asks for a file, by the proxy.

(To what is near socksify goes directly, so that the client has a network of its own.)
"""

import hashlib
import os
import subprocess
from pathlib import Path

import clients
import pytest
from between import OURS, PROXIES, PROXY, SERVER, here, networks, running, vsftpd
from clients import body
from places import in_own_network

SIZE = 50_000_000  # bytes
SOCKSIFY = f"""\
route {{
    from: 0.0.0.0/0 to: 0.0.0.0/0 via: {PROXY[0]} port = {PROXY[1]}
    proxyprotocol: VERSION
    command: connect bind
    method: none
}}
"""


@pytest.mark.parametrize("version", ["socks_v5", "socks_v4"])
@pytest.mark.parametrize("server", PROXIES)
def test_active_ftp(tmp_path: Path, server: str, version: str) -> None:
    if reason := clients.missing("vsftpd", "tnftp", "socksify", "systemd-socket-activate"):
        pytest.skip(reason)
    config, received, log = (tmp_path / name for name in ("socks.conf", "received", "log"))
    config.write_text(SOCKSIFY.replace("VERSION", version))

    def check() -> None:
        with (
            networks() as (nearer, there),
            vsftpd(there, tmp_path, body(SIZE)),
            running(here, PROXIES[server], log, PROXY),
        ):
            done = nearer(
                subprocess.run,
                ["socksify", "tnftp", "-A", "-o", str(received), f"ftp://{SERVER}/file"],
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
    assert f" address={SERVER}:20" in lines
    assert f" out={SIZE} " in lines
    assert "Traceback" not in lines
    for path in (received, tmp_path / "root" / "file"):
        path.unlink()
