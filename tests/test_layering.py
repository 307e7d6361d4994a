"""Arrows point down, and what is pure stays pure: DESIGN, "Rooms", held against every import."""

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

LIB = Path(__file__).resolve().parents[1] / "lib"

# What each room may use besides itself. The three files beside the rooms are rooms of one module.
BELOW_ALL = {"address", "errors", "log"}
MAY_USE = {
    "errors": set[str](),
    "address": {"errors"},
    "log": {"errors"},
    "net": BELOW_ALL - {"log"},  # library code raises; sessions, servers and tools log
    "socks": {"net"} | BELOW_ALL,
    "resident": {"net"} | BELOW_ALL,
    "client": {"socks", "net"} | BELOW_ALL,
    "mux": {"resident", "socks", "net"} | BELOW_ALL,
    "socketbox": {"resident", "socks", "net"} | BELOW_ALL,
    "intercept": {"client", "socks", "net"} | BELOW_ALL,
    "tools": {"intercept", "client", "mux", "socketbox", "resident", "socks", "net"} | BELOW_ALL,
}

# Importing muonsocks.mux.frames runs the __init__ of each package above it: they are pure too.
# In socks/ a module is pure unless it is named here.
PURE = {
    "muonsocks",
    "muonsocks.address",
    "muonsocks.client.fake_addresses",
    "muonsocks.errors",
    "muonsocks.intercept",
    "muonsocks.intercept.bpf",
    "muonsocks.intercept.calls",
    "muonsocks.intercept.conventions",
    "muonsocks.intercept.dns",
    "muonsocks.intercept.search",
    "muonsocks.intercept.packets",
    "muonsocks.intercept.socket_address",
    "muonsocks.intercept.socket_rules",
    "muonsocks.mux",
    "muonsocks.mux.classic",
    "muonsocks.mux.connection",
    "muonsocks.mux.events",
    "muonsocks.mux.frames",
    "muonsocks.mux.intake",
    "muonsocks.mux.life",
    "muonsocks.mux.machine",
    "muonsocks.mux.speaker",
    "muonsocks.mux.windows",
    "muonsocks.socketbox",
    "muonsocks.socketbox.actions",
    "muonsocks.socketbox.conditions",
    "muonsocks.socketbox.connection",
    "muonsocks.socketbox.destination",
    "muonsocks.socketbox.explain",
    "muonsocks.socketbox.grammar",
    "muonsocks.socketbox.json_configuration",
    "muonsocks.socketbox.json_rules",
    "muonsocks.socketbox.json_value",
    "muonsocks.socketbox.keywords",
    "muonsocks.socketbox.rules",
    "muonsocks.socketbox.sets",
    "muonsocks.socketbox.substitution",
}
IMPURE_IN_SOCKS = {
    "muonsocks.socks.admission",
    "muonsocks.socks.associate",
    "muonsocks.socks.association",
    "muonsocks.socks.auth_once",
    "muonsocks.socks.bind",
    "muonsocks.socks.datagram_way",
    "muonsocks.socks.proxy_chain",
    "muonsocks.socks.relays",
    "muonsocks.socks.datagram_destinations",
    "muonsocks.socks.handover",
    "muonsocks.socks.introduction",
    "muonsocks.socks.lookup",
    "muonsocks.socks.policy",
    "muonsocks.socks.resolve",
    "muonsocks.socks.session",
    "muonsocks.socks.ways",
}
# Functions of their arguments and of nothing else: no clock, no descriptor, no environment.
PURE_STDLIB = {
    "__future__",
    "_operator",
    "_struct",
    "base64",
    "binascii",
    "bisect",
    "errno",
    "hashlib",
    "hmac",
    "struct",
}
FOR_TYPES_ONLY = {"collections.abc", "types", "typing"}
# Of _socket these are plain functions of the C library, and the constant they take.
PURE_NAMES = {
    "muonsocks.address": {
        f"_socket.{name}" for name in ("AF_INET", "AF_INET6", "inet_ntop", "inet_pton")
    }
}

THIRD_PARTY = {"docopt", "systemd"}


class Import(NamedTuple):
    line: int
    module: str  # absolute
    name: str  # of `from module import name`, else empty
    for_types: bool  # below `if TYPE_CHECKING:`


def imports(name: str, is_package: bool, tree: ast.AST) -> Iterator[Import]:
    """Every import in a module, wherever it stands; `__import__` of anything unknown is ''."""
    package = name if is_package else name.rpartition(".")[0]

    def walk(node: ast.AST, for_types: bool) -> Iterator[Import]:
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield Import(node.lineno, alias.name, "", for_types)
            case ast.ImportFrom(module=module, names=names, level=level):
                if level:
                    parents = package.split(".")
                    above = ".".join(parents[: len(parents) - level + 1])
                    module = f"{above}.{module}" if module else above
                for alias in names:
                    yield Import(node.lineno, module or "", alias.name, for_types)
            case ast.Call(
                lineno=line,
                func=ast.Name(id="__import__" | "import_module")
                | ast.Attribute(attr="__import__" | "import_module"),
                args=[what, *_],
            ):
                module = str(what.value) if isinstance(what, ast.Constant) else ""
                yield Import(line, module, "", for_types)
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                for part in node.body:
                    yield from walk(part, True)
                for part in node.orelse:
                    yield from walk(part, for_types)
                return
        for child in ast.iter_child_nodes(node):
            yield from walk(child, for_types)

    yield from walk(tree, False)


def room(module: str) -> str:
    """`net` for muonsocks.net.loop, `` for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def is_pure(module: str) -> bool:
    return module in PURE or (room(module) == "socks" and module not in IMPURE_IN_SOCKS)


def faults(sources: Mapping[str, str]) -> list[str]:
    """What is wrong with the imports of {path below lib/: source}, a line each."""
    found: list[str] = []
    names = {
        path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path
        for path in sources
    }
    for name, path in names.items():
        tree = ast.parse(sources[path], path)
        for line, module, item, for_types in imports(name, path.endswith("__init__.py"), tree):
            if f"{module}.{item}" in names:
                module, item = f"{module}.{item}", ""
            why = fault(name, module, item, for_types, names)
            if why:
                found.append(f"{path}:{line}: {name} {why}")
    return found


def fault(name: str, module: str, item: str, for_types: bool, ours: Mapping[str, str]) -> str:
    here, there = room(name), room(module)
    if not module:
        # The stub names the tool to run, and who will have no way to the files loads all of two
        # rooms below; a program's first word of a room finds its module in a table. Nowhere else
        # is a name made up.
        known = name in ("muonsocks.tools", "muonsocks.tools.muonsocks", "muonsocks.client")
        return "" if known else "imports by a name it computes"
    if module.split(".")[0] == "muonsocks":
        if module not in ours:
            return f"imports {module}, which is not there"
        if there and there != here and there not in MAY_USE.get(here, set()):
            return f"may not use {module}: arrows go down only"
        if is_pure(name) and not is_pure(module):
            return f"is pure and may not use {module}, which is not"
        return ""
    top = module.split(".")[0]
    if top not in sys.stdlib_module_names and top not in THIRD_PARTY:
        return f"imports {module}, which is neither Python's nor docopt nor systemd"
    if is_pure(name) and not (
        module in PURE_STDLIB
        or (for_types and module in FOR_TYPES_ONLY)
        or f"{module}.{item}" in PURE_NAMES.get(name, set())
    ):
        return f"is pure and may not use {f'{module}.{item}'.rstrip('.')}"
    return ""


def test_imports_of_the_library() -> None:
    sources = {str(path.relative_to(LIB)): path.read_text() for path in LIB.rglob("*.py")}
    assert len(sources) > 1
    assert not faults(sources)


def test_every_room_is_known() -> None:
    rooms = {room(".".join(p.relative_to(LIB).with_suffix("").parts)) for p in LIB.rglob("*.py")}
    assert rooms - {"__init__"} <= MAY_USE.keys()


GOOD = {
    "muonsocks/__init__.py": "",
    "muonsocks/errors.py": "",
    "muonsocks/address.py": "from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton",
    "muonsocks/log.py": "import os, time\nfrom .errors import Error",
    "muonsocks/net/__init__.py": "",
    "muonsocks/net/loop.py": "import select\nfrom muonsocks import errors\nfrom ..address import A",
    "muonsocks/socks/__init__.py": "",
    "muonsocks/socks/request.py": "import hashlib\nfrom muonsocks.address import Address",
    "muonsocks/socks/session.py": "from muonsocks.net.loop import run\nfrom . import request",
    "muonsocks/mux/__init__.py": "",
    "muonsocks/client/__init__.py": "from muonsocks.socks import session",
    "muonsocks/tools/__init__.py": "def run(name):\n    __import__('muonsocks.tools.' + name)",
    "muonsocks/tools/t.py": "def main():\n    from docopt import docopt\nimport muonsocks.client",
}


def test_a_good_tree_has_no_faults() -> None:
    assert faults(GOOD) == []


@pytest.mark.parametrize(
    ("path", "source", "why"),
    [
        ("net/loop.py", "from muonsocks.socks import request", "arrows go down"),
        ("net/loop.py", "import muonsocks.socks.request", "arrows go down"),
        ("net/loop.py", "from muonsocks import socks", "arrows go down"),
        ("net/loop.py", "from .. import socks", "arrows go down"),
        ("net/loop.py", "from ..log import Log", "arrows go down"),
        ("net/loop.py", "def f():\n    from ..socks.request import R", "arrows go down"),
        ("net/loop.py", "if TYPE_CHECKING:\n    from ..socks.request import R", "arrows go down"),
        ("net/loop.py", "__import__('muonsocks.socks.request')", "arrows go down"),
        ("net/loop.py", "importlib.import_module(name)", "a name it computes"),
        ("mux/link.py", "import muonsocks.client", "arrows go down"),
        ("client/c.py", "from muonsocks import mux", "arrows go down"),
        ("socks/session.py", "import muonsocks.tools.t", "arrows go down"),
        ("resident/worker.py", "from muonsocks.socks import session", "arrows go down"),
        ("errors.py", "import muonsocks.log", "arrows go down"),
        ("errors.py", "import muonsocks.address", "arrows go down"),
        ("log.py", "import muonsocks.address", "arrows go down"),
        ("net/dial.py", "from muonsocks.net import gone", ""),
        ("net/dial.py", "import muonsocks.net.gone", "not there"),
        ("net/dial.py", "import requests", "neither"),
        ("net/dial.py", "from pytest import mark", "neither"),
        ("__init__.py", "import os", "is pure"),
        ("errors.py", "import socket", "is pure"),
        ("address.py", "import _socket", "is pure"),
        ("address.py", "from _socket import AF_INET, socket", "is pure"),
        ("socks/request.py", "from _socket import inet_pton", "is pure"),
        ("socks/socks5.py", "try:\n    import time\nfinally:\n    pass", "is pure"),
        ("socks/socks5.py", "from muonsocks import log", "is pure"),
        ("socks/socks5.py", "from . import session", "is pure"),
        ("socks/socks5.py", "from collections.abc import Iterator", "is pure"),
        ("socks/socks5.py", "if TYPE_CHECKING:\n    from collections.abc import Set", ""),
        ("socks/socks5.py", "if TYPE_CHECKING:\n    import select", "is pure"),
        ("socks/socks5.py", "if TYPE_CHECKING:\n    x = 1\nelse:\n    import typing", "is pure"),
        ("socks/__init__.py", "from .session import serve", "is pure"),
    ],
)
def test_a_fault_is_found(path: str, source: str, why: str) -> None:
    found = faults(GOOD | {f"muonsocks/{path}": source})
    assert [why for line in found if why in line] == ([why] if why else []), found
    assert bool(found) == bool(why)
