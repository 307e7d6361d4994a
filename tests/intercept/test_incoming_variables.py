"""Programs under socketbox-preload that go by its variables and addresses."""

import os
import socket
import stat
from pathlib import Path

import pytest
from preloaded import PRELOAD, SERVER, by_variables, hears, preloaded
from programs import run
from senders import Front


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("::", "X0000/00000_00080"),
        ("0.0.0.0", "X0004/00000_00080"),
        ("127.180.1.2", "X4001/00002_00080"),
        ("::ffff:127.180.1.2", "X4001/00002_00080"),
        ("fe8f::2:1:2", "00001/00002_00080"),
        ("fe8f::1:2", "in-file-00080"),
    ],
)
def test_connections_are_passed(root: str, host: str, name: str) -> None:
    entries = bytes(256) + f"{root}/in-file-_@SB_".encode().ljust(108, b"\0")
    Path(root, "skbox_dir_00001").write_bytes(entries)
    with by_variables(root, SERVER, host) as there, Front(f"{root}/{name}") as front:
        assert there.line() == str((host, 80))
        assert stat.S_IMODE(os.stat(f"{root}/{name}").st_mode) == 0o660
        with front.client() as client:
            assert hears(client)
            peer = "::ffff:127.0.0.1" if ":" in host else "127.0.0.1"
            assert there.line() == f"{peer} True"


@pytest.mark.parametrize(
    ("host", "name"),
    [("127.181.1.2", "X4001/00002_00080"), ("fe8f::3:1:2", "00001/00002_00080")],
)
def test_streams_are_listened_at(root: str, host: str, name: str) -> None:
    with by_variables(root, SERVER, host) as there:
        assert there.line() == str((host, 80))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{root}/{name}")
            assert hears(client)
        assert there.line() == f"{'::1' if ':' in host else '127.0.0.1'} True"


@pytest.mark.parametrize("case", ["missing", "short", "empty"])
def test_files_that_do_not_help(root: str, case: str) -> None:
    if case != "missing":
        Path(root, "skbox_dir_00001").write_bytes(bytes(107 if case == "short" else 108))
    with by_variables(root, 'say(failure(listener, "fe8f::1:0", 80))') as there:
        assert there.line() == {"short": "ERANGE"}.get(case, "ENOENT")


def test_who_comes_later_takes_over(root: str) -> None:
    path = f"{root}/00001/00002_00080"
    with by_variables(root, SERVER, "fe8f::2:1:2") as first:
        first.line()
        with by_variables(root, SERVER, "fe8f::2:1:2") as second, Front(path) as front:
            second.line()
            with front.client() as client:
                assert hears(client)
                assert second.line()
    assert Path(root, "00001").is_dir()


@pytest.mark.parametrize(
    ("more", "said"),
    [({}, "EINVAL EINVAL None"), ({"SKBOX_BLOCK_LISTEN_EMPTY_ADDR": "0"}, "None None None")],
)
def test_listening_at_a_port_of_the_kernels_choice(
    root: str, more: dict[str, str], said: str
) -> None:
    code = 's = socket(); s.bind(("127.0.0.1", 0))\n'
    code += "say(failure(socket().listen), failure(socket(AF_INET6).listen), failure(s.listen))"
    with by_variables(root, code, **more) as there:
        assert there.line() == said


@pytest.mark.parametrize("kind", ["datagrams", "stream", "messages"])
def test_a_socket_that_was_there_before(root: str, kind: str) -> None:
    # As systemd passes it, or another program.
    make = {
        "datagrams": f"u = socket(AF_UNIX, SOCK_DGRAM); u.bind('{root}/u')",
        "stream": "u, w = socketpair()",
        "messages": "u, w = socketpair(AF_UNIX, SOCK_SEQPACKET)",
    }[kind]
    code = f"""
{make}
if {kind != "datagrams"}: send_fds(w, [b"x"], [sys.stdin.fileno()]); send_fds(w, [b"x"], [t])
"""
    code = "l = create_server(('127.0.0.1', 0)); k = create_connection(l.getsockname())\n" + (
        f"n, _ = l.accept(); t = n.fileno()\n{code}"
        f"""
if {kind == "datagrams"}:
    w = socket(AF_UNIX, SOCK_DGRAM); w.connect('{root}/u'); send_fds(w, [b"x"], [t])
fd, a = u._accept(); say(a == k.getsockname()); n.close()
if {kind != "datagrams"}: w.close()
else: u.shutdown(SHUT_RDWR)
say(failure(u._accept))
"""
    )
    with by_variables(root, code, SKBOX_ACCEPT_STREAM="1") as there:
        assert [there.line(), there.line()] == ["True", "EINVAL"]


def test_one_that_was_there_in_another_network_namespace(root: str) -> None:
    """The list of sockets that we see does not have it."""
    code = """
import ctypes
say(ctypes.CDLL(None).unshare(0x50000000))  # CLONE_NEWUSER, CLONE_NEWNET
u, w = socketpair(AF_UNIX, SOCK_DGRAM); c, d = socketpair()
t = threading.Thread(target=lambda: say(len(u._accept()))); t.start()
while open(f"/proc/self/task/{t.native_id}/syscall").read().split()[0] == "running": pass
say(failure(listener, "127.180.1.2"))
send_fds(w, [b"x"], [d.fileno()])
"""
    with by_variables(root, code, SKBOX_PORT_FILTER_IPV4="9000") as there:
        if there.line() != "0":
            pytest.skip("no user namespace can be had here")
        assert [there.line(), there.line()] == ["None", "2"]


# The program itself


def test_it_cannot_be_run_in_itself() -> None:
    with preloaded(program=(PRELOAD, "true")) as there:
        assert there.status == 111
        assert "it cannot be run in itself" in there.log


def test_standard_error_is_the_programs(root: str) -> None:
    # Also where it is where standard output is.
    with preloaded(program=("sh", "-c", "exec 2>&1; echo one >&2; echo two")) as there:
        assert [there.line(), there.line()] == ["one", "two"]
    done = run("sh", "-c", f"{PRELOAD} sh -c 'echo one >&2' 2>&1")
    assert done.output == b"one\n"
