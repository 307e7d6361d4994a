"""What a decision tells whoever carries it out."""

import pytest

from muonsocks.socketbox.actions import FAIL, Action, Jump, ToDescriptor, ToGroup, ToPath, Verdict


@pytest.mark.parametrize(
    ("action", "told", "text"),
    [
        (ToPath("@a"), {"path": "@a"}, "jump-unix:@a"),
        (ToDescriptor(7), {"number": 7}, "jump-fd:7"),
        (ToGroup(3), {"number": 3}, "o:3"),
        (Jump("map-set:1", "jump-map:1"), {"target": "map-set:1"}, "jump-map:1"),
        (FAIL, {}, "fail"),
    ],
)
def test_actions(action: Action, told: dict, text: str) -> None:
    assert {name: getattr(action, name) for name in type(action).__slots__} == told
    assert action.text == text


def test_verdict() -> None:
    verdict = Verdict((ToPath("/a"), ToDescriptor(3), FAIL), "box:1")
    assert verdict.text == "jump-unix:/a else jump-fd:3 else fail"
    assert verdict.origin == "box:1"
