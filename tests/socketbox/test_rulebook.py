"""Where rules come from, and what they are when they are read again."""

import json
from pathlib import Path

import pytest

from muonsocks.errors import UsageError
from muonsocks.socketbox.actions import Fail, ToPath
from muonsocks.socketbox.connection import Connection
from muonsocks.socketbox.grammar import LARGEST_FILE
from muonsocks.socketbox.rulebook import Document, File, OneAction

ANYTHING = Connection.without_addresses()
DOCUMENT = {
    "socketbox-version": 1,
    "incoming": [{"fd": 3}],
    "outgoing": [{"uid": 0, "path_nr": 0}],
    "paths": [{"socket": "/ctl"}],
    "rules": {"_start": {"type": "rule", "rules": [{"jump": "o:0"}]}},
}


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rules"
    book = File(str(path))
    with pytest.raises(FileNotFoundError):
        book.read()
    for name in ("/a", "/b"):
        path.write_text(f"rule-set:0\njump-unix:{name}\n")
        assert book.read().look_up(ANYTHING).action.text == f"jump-unix:{name}"
    path.write_bytes(b"#" * (LARGEST_FILE + 1))
    with pytest.raises(UsageError, match=r"is larger than .*; let one"):
        book.read()


def test_one_action() -> None:
    decision = OneAction(ToPath("/r"), "-S").read().look_up(ANYTHING)
    assert (decision.action.text, decision.why) == ("jump-unix:/r", "-S")
    assert isinstance(decision.otherwise().action, Fail)


def test_a_document(tmp_path: Path) -> None:
    path = tmp_path / "box.json"
    path.write_text(json.dumps(DOCUMENT))
    book = Document(str(path))
    assert book.configuration.slots[0].uid == 0
    assert book.read().look_up(ANYTHING).action.text == "o:0"
    path.write_text(json.dumps(DOCUMENT | {"rules": {"_start": {"type": "rule", "rules": []}}}))
    assert isinstance(book.read().look_up(ANYTHING).action, Fail)
    for change in ({"incoming": [{"fd": 4}]}, {"daemon": {"uid": 1}}, {"final_netns": "/x"}):
        path.write_text(json.dumps(DOCUMENT | change))
        [name] = change
        with pytest.raises(UsageError, match=f"{name} has changed"):
            book.read()
    text = json.dumps(DOCUMENT)
    path.write_text(text.replace('"uid": 0', '"uid": 1, "uid": 0, "uid": 0'))
    assert book.read().warnings == [
        f"{path}: 'uid' stands twice in one object: the last one counts"
    ]
    path.write_text(json.dumps({k: v for k, v in DOCUMENT.items() if k != "rules"}))
    with pytest.raises(UsageError, match="'rules' is missing"):
        book.read()
    path.write_text(json.dumps(DOCUMENT).ljust(LARGEST_FILE))
    assert book.read().warnings == []
    path.write_text(" " * (LARGEST_FILE + 1))
    with pytest.raises(UsageError, match=r"is larger than .*; let one"):
        book.read()
