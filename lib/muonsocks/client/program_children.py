"""What multiprocessing starts by spawn or forkserver is the same program in a fresh Python: there
the sockets have to be exchanged once more, before anything of the program is imported.

Such a child reads what it needs to know of its parent from a pipe, by pickle. One value more is
among that, which is the exchange itself.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

_MODULE = "multiprocessing.spawn"
_LIB = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
# The child may have another sys.path, and has not got ours yet.
_AGAIN = (
    "[__import__('sys').path.append({lib!r}), __import__('muonsocks.client.program_children', "
    "fromlist=['*']).exchange_again({environ!r})]"
)


def cover_children(environ: Mapping[str, str]) -> None:
    """Have children go through proxies as well, those of this environment."""
    value = _Exchange(dict(environ))
    module = sys.modules.get(_MODULE)
    if module is None:
        sys.meta_path.insert(0, _Finder(value))
    else:
        _tell(module, value)


def exchange_again(environ: Mapping[str, str]) -> None:
    """Exchange the sockets of such a child. UsageError."""
    from muonsocks.client.look_ups import LookUps
    from muonsocks.client.program import exchange
    from muonsocks.client.program_socket import ProgramSocket

    if not hasattr(ProgramSocket, "look_ups"):  # else its parent has been one, and has forked it
        exchange(LookUps(environ))


class _Exchange:
    """What is no value: a process that reads it with pickle exchanges its sockets."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return eval, (_AGAIN.format(lib=_LIB, environ=self._environ),)


class _Finder:
    """Finds that one module, which is not for every program to load, as it is found without."""

    def __init__(self, value: _Exchange) -> None:
        self._value = value

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _MODULE:
            return None
        spec = PathFinder.find_spec(name, path, target)
        loader = spec.loader if spec is not None else None
        if loader is not None:
            execute = loader.exec_module

            def execute_and_tell(module: ModuleType) -> None:
                execute(module)
                _tell(module, self._value)

            loader.exec_module = execute_and_tell  # type: ignore[method-assign]
        return spec


def _tell(spawn: Any, value: _Exchange) -> None:
    data_without = spawn.get_preparation_data

    def get_preparation_data(name: str) -> dict[str, Any]:
        return {"muonsocks": value, **data_without(name)}

    spawn.get_preparation_data = get_preparation_data
