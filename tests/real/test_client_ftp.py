"""FTP in active mode by our own library, as people write it: the two scripts are shown to them."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import clients
import pytest
from between import OURS, PROXIES, PROXY, SERVER, here, networks, running, vsftpd
from clients import ROOT, body
from places import in_own_network

SIZE = 20_000_000  # bytes
HERE = Path(__file__).parent


@pytest.mark.parametrize("scheme", ["socks5h", "socks4"])
@pytest.mark.parametrize("script", ["classic_ftp.py", "ftplib_active.py"])
def test_a_script_fetches_a_file(tmp_path: Path, script: str, scheme: str) -> None:
    if reason := clients.missing("vsftpd"):
        pytest.skip(reason)
    assert len((HERE / script).read_text().splitlines()) < 30, "it is to be shown"
    log = tmp_path / "log"

    def check() -> None:
        with (
            networks() as (nearer, there),
            vsftpd(there, tmp_path, body(SIZE)),
            running(here, PROXIES["muonsocks"], log, PROXY),
        ):
            done = nearer(
                subprocess.run,
                [sys.executable, str(HERE / script), SERVER, "file"],
                env={"PYTHONPATH": str(ROOT / "lib"), "all_proxy": f"{scheme}://{PROXY[0]}"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=clients.SECONDS,
            )
        assert done.returncode == 0 and not done.stderr, os.fsdecode(done.stderr)
        assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(body(SIZE)).digest()

    in_own_network(check)
    lines = log.read_text()
    assert f" listen={OURS}:" in lines
    assert f" address={SERVER}:20" in lines
    assert f" out={SIZE} " in lines
    assert "Traceback" not in lines
    (tmp_path / "root" / "file").unlink()
