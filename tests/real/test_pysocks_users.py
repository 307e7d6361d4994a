"""requests and urllib3 over PySocks' interface, ours and PySocks itself: the same comes of it."""

import contextlib
import hashlib
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import clients
import pytest
import upstreams
from clients import NAME, TARGET, Network, Web, body

ROOT = Path(__file__).resolve().parents[2]
USER = Path(__file__).with_name("pysocks_user.py")
SIZE = 100_000
SILENT, NOBODY = 2900, 2901  # ports


class Persistent(Web):
    """Says on which connection it is asked, which it keeps."""

    protocol_version = "HTTP/1.1"

    def send_response(self, code: int, message: str | None = None) -> None:
        super().send_response(code, message)
        self.send_header("X-Peer", str(self.client_address[1]))
        if self.command == "PUT":
            self.close_connection = True


@contextlib.contextmanager
def serving(net: Network, context: ssl.SSLContext | None) -> Iterator[int]:
    """Serve pages at TARGET, by HTTPS if there is a context; give the port."""
    server = ThreadingHTTPServer((TARGET, 0), Persistent, bind_and_activate=False)
    server.socket.close()
    server.socket = net.socket((TARGET, 0))
    port = server.socket.getsockname()[1]
    server.daemon_threads = True
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def certificate(work: Path, name: str, address: str) -> Path:
    """A certificate with its key that is its own authority, `public.pem`."""
    path = work / "certificate.pem"
    names = f"subjectAltName=DNS:{name},IP:{address}"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext", names]
    command += ["-keyout", str(path), "-out", str(work / "public.pem")]
    subprocess.run(command, check=True, capture_output=True)
    with path.open("a") as file:
        file.write((work / "public.pem").read_text())
    return path


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What came of everything, by whose PySocks it was."""
    if reason := upstreams.missing("muonsocks") or clients.missing("openssl"):
        pytest.skip(reason)
    for module in ("requests", "urllib3", "socks"):
        pytest.importorskip(module, reason=f"no {module} here: tests/run installs it")
    work = tmp_path_factory.mktemp("work")
    with clients.network(work) as net, contextlib.ExitStack() as stack:
        upstreams.start(net, stack, "muonsocks")
        upstreams.start(net, stack, "muonsocks", with_password=True)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate(work, NAME, TARGET))
        http = stack.enter_context(serving(net, None))
        https = stack.enter_context(serving(net, context))
        silent = stack.enter_context(net.socket((TARGET, SILENT)))
        assert silent.getsockname()[1] == SILENT
        proxies = {
            scheme: upstreams.url("muonsocks", scheme)
            for scheme in upstreams.UPSTREAMS["muonsocks"]
        }
        for scheme in ("socks5", "socks5h"):
            proxies[f"{scheme} with a password"] = upstreams.url(
                "muonsocks", scheme, upstreams.LOGIN
            )
        locked = upstreams.at("muonsocks", True)
        page = f"http://{NAME}:{http}/1"
        closed, absent = f"http://{TARGET}:{NOBODY}/", f"http://absent.invalid:{http}/"
        where = {
            "certificate": str(work / "public.pem"),
            "urls": [f"http://{NAME}:{http}/{SIZE}", f"https://{NAME}:{https}/{SIZE}"],
            "proxies": proxies,
            "failures": [
                ("no proxy", f"socks5h://{TARGET}:{NOBODY}", page),
                ("a wrong password", f"socks5h://alice:wrong@{locked}", page),
                ("no password", f"socks5h://{locked}", page),
                ("refused, socks5", proxies["socks5"], closed),
                ("refused, socks4", proxies["socks4"], closed),
                ("absent, socks5h", proxies["socks5h"], absent),
                ("absent, socks4a", proxies["socks4a"], absent),
                ("absent, socks5", proxies["socks5"], absent),
                ("another certificate", proxies["socks5"], f"https://{TARGET}:{http}/1"),
            ],
            "silent": f"socks5h://{TARGET}:{SILENT}",
        }
        return {
            name: outcome(net, lib, where)
            for name, lib in (("ours", str(ROOT / "lib")), ("theirs", ""))
        }


def outcome(net: Network, lib: str, where: dict[str, Any]) -> dict[str, Any]:
    done = net.run(["/usr/bin/python3", "-X", "dev", str(USER), lib, json.dumps(where)])
    assert done.returncode == 0, done.stderr.decode()
    assert b"ResourceWarning" not in done.stderr
    return {
        name.partition(" http")[0] + (" over TLS" if " https:" in name else ""): result
        for name, result in json.loads(done.stdout).items()
    }


def digest(data: bytes) -> str:
    return f"{len(data)} {hashlib.sha256(data).hexdigest()}"


PAGE = [200, digest(body(SIZE))]
UPLOADED = digest(bytes(1_000_000))
FAILED = ["ConnectionError", "MaxRetryError", "NewConnectionError"]
EXPECTED: dict[str, Any] = {
    **{
        f"{scheme}{login}{tls}": PAGE
        for scheme in ("socks4", "socks4a", "socks5", "socks5h")
        for login in ("", " with a password")
        for tls in ("", " over TLS")
        if not login or "5" in scheme
    },
    **{f"kept alive{tls}": 1 for tls in ("", " over TLS")},
    **{f"upload{tls}": UPLOADED for tls in ("", " over TLS")},
    "pool": [[digest(body(SIZE))], True],
    "no proxy": [*FAILED, "[Errno 111] Connection refused"],
    "a wrong password": FAILED,
    "no password": FAILED,
    "refused, socks5": [*FAILED, "0x05: Connection refused"],
    "refused, socks4": [*FAILED, "0x5b: Request rejected or failed"],
    "absent, socks5h": [*FAILED, "0x04: Host unreachable"],
    "absent, socks4a": [*FAILED, "0x5b: Request rejected or failed"],
    "absent, socks5": FAILED,
    "another certificate": ["SSLError", "MaxRetryError", "SSLError", "SSLError"],
    "timeout": ["ConnectTimeout", "MaxRetryError", "ConnectTimeoutError"],
    "no retries": ["NewConnectionError", "[Errno 111] Connection refused"],
}


@pytest.mark.xdist_group("PySocks' users")
@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_what_comes_of_it(outcomes: dict[str, dict[str, Any]], whose: str) -> None:
    assert outcomes[whose] == EXPECTED, f"of {whose}"
