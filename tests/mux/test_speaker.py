"""Both kinds of mux have what who drives them needs. How each does it is in their own tests."""

import ast
import inspect
from pathlib import Path

import pytest

from muonsocks.mux import speaker
from muonsocks.mux.classic import Classic
from muonsocks.mux.machine import Mux

MUXES = [Mux(True, 1, 1, lambda: b"a number"), Classic(True, 1, lambda: 0.0)]


def members() -> dict[str, list[str] | None]:
    """What a Speaker has, as its source says: the parameters of methods, and None for the rest."""
    assert speaker.__file__
    tree = ast.parse(Path(speaker.__file__).read_text())
    [found] = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    has: dict[str, list[str] | None] = {}
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            has[node.target.id] = None
        elif isinstance(node, ast.FunctionDef):
            names = [argument.arg for argument in node.args.args[1:]]
            has[node.name] = None if node.decorator_list else names
    return has


@pytest.mark.parametrize("mux", MUXES, ids=lambda mux: type(mux).__name__)
def test_a_mux_is_a_speaker(mux: Mux | Classic) -> None:
    for name, parameters in members().items():
        value = getattr(mux, name)
        if parameters is None:
            assert isinstance(value, bool | int | list), name
        else:
            assert list(inspect.signature(value).parameters) == parameters, name


@pytest.mark.parametrize("mux", MUXES, ids=lambda mux: type(mux).__name__)
def test_a_mux_has_nothing_else_for_others(mux: Mux | Classic) -> None:
    """Whatever is added to one of them is needed of the other one, too."""
    assert {name for name in dir(mux) if not name.startswith("_")} == set(members())
