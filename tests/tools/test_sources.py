"""The sockets that the JSON of socketbox makes; the programs are in test_socketbox*.py."""

import os
import socket
from pathlib import Path

import pytest
from ends import Lines, nothing_left_behind
from places import root_only

from muonsocks.socketbox.json_configuration import Configuration
from muonsocks.socketbox.json_value import Node
from muonsocks.tools import sources as module
from muonsocks.tools.sources import Sources, add_from_json


def configuration(**changes: object) -> Configuration:
    content = {
        "socketbox-version": 1,
        "incoming": [{"address": "127.0.0.1", "port": 0}],
        "rules": {"_start": {"type": "rule", "rules": []}},
    }
    return Configuration(Node(content | changes, "test"))


def made_of(document: Configuration) -> Sources:
    sources = Sources()
    add_from_json(sources, document)
    return sources


def close(sources: Sources) -> None:
    for sock in (*sources.sockets, *sources.control):
        sock.close()
    sources.__exit__()


def test_listeners_and_control_paths(tmp_path: Path) -> None:
    """A file that nobody serves is replaced, and one that somebody serves is not."""
    path = tmp_path / "ctl"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stale:
        stale.bind(str(path))
    before = os.umask(0o77)
    with nothing_left_behind():
        made = configuration(paths=[{"socket": str(path), "mode": "640"}])
        sources = made_of(made)
        assert sources.is_for_one_worker
        assert path.stat().st_mode & 0o7777 == 0o640
        [entrance] = sources.entrances(Lines())
        with socket.create_connection(sources.sockets[0].getsockname()):
            entrance.take()[0].close()
        with pytest.raises(OSError, match="in use"):
            made_of(made)
        close(sources)
    os.umask(before)
    assert not path.exists()


def test_backlog() -> None:
    log = Lines()
    sources = made_of(configuration())
    sources.entrances(log)
    port = sources.sockets[0].getsockname()[1]
    assert log.lines == [f"listening on 127.0.0.1:{port}"]
    close(sources)


def test_somebody_else_listens_first() -> None:
    """Two can be bound, and one can listen."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        sources = made_of(configuration(incoming=[{"address": "127.0.0.1", "port": port}]))
        other.listen()
        with pytest.raises(OSError) as caught:
            sources.entrances(Lines())
        problem = f"cannot listen on 127.0.0.1:{port}: Address already in use"
        assert caught.value.strerror == problem
        close(sources)


@root_only()
def test_the_owner_of_a_control_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may write to its directory cannot have another file given away."""
    path, victim = tmp_path / "ctl", tmp_path / "victim"
    victim.touch(0o600)
    bound = module.listen_at

    def listen_at(where: str, **options: int) -> socket.socket:
        sock = bound(where, **options)
        path.rename(tmp_path / "away")
        path.symlink_to(victim)
        return sock

    made = configuration(paths=[{"socket": str(path), "uid": 7, "gid": 8}])
    monkeypatch.setattr(module, "listen_at", listen_at)
    sources = made_of(made)
    assert (path.lstat().st_uid, path.lstat().st_gid) == (7, 8)
    assert (victim.stat().st_uid, victim.stat().st_gid) == (os.getuid(), os.getgid())
    close(sources)
