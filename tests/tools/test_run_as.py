"""As whom the JSON of socketbox has it run; options are in test_socketbox.py."""

import os
from pathlib import Path

import pytest
from ends import Lines
from places import root_only

from muonsocks.errors import UsageError
from muonsocks.socketbox.json_configuration import Daemon
from muonsocks.socketbox.json_value import Node
from muonsocks.tools.command_line import Options
from muonsocks.tools.run_as import by_json, by_options

WARNING = "a group is root's still; -g and -G name others, and so do gid and groups"


@root_only()
@pytest.mark.parametrize(
    ("daemon", "expected"),
    [
        ({}, None),
        ({"chroot": "/usr", "uid": 7}, (7, None, None)),
        ({"uid": 7}, (7, None, None)),
        ({"uid": 7, "gid": 8}, (7, 8, ())),
        ({"uid": 7, "gid": 0}, (7, 0, ())),
        ({"gid": 8, "groups": []}, (None, 8, ())),
        ({"uid": 7, "groups": [3, 4]}, (7, None, (3, 4))),
    ],
)
def test_as_whom(daemon: dict[str, object], expected: tuple[object, ...] | None) -> None:
    log = Lines()
    made, root = by_json(Daemon(Node(daemon, "test")), log)
    assert root == daemon.get("chroot")
    assert log.lines == [WARNING] * (expected is not None and expected[:2] in ((7, None), (7, 0)))
    assert (None if made is None else (made.uid, made.gid, made.groups)) == expected


@root_only()
def test_a_root_directory_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkdir("root")
    options = Options({"--user": "nobody", "--chroot": "root"}, [])
    daemon = Daemon(Node({"uid": 7, "gid": 8, "chroot": "root"}, "test"))
    log = Lines()
    assert by_options(options, log)[1] == by_json(daemon, log)[1] == f"{tmp_path}/root"
    os.rmdir("root")
    Path("root").touch()
    for of_file, name in (
        (lambda: by_options(options, log), "-x"),
        (lambda: by_json(daemon, log), "daemon.chroot"),
    ):
        with pytest.raises(UsageError, match=f"{name}: 'root' is not a directory"):
            of_file()
    assert log.lines == []
