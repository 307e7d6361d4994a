"""
Run a Python program that knows nothing of proxies, so that it goes through them.

Usage:
  python3 -m muonsocks.client [--proxy=URL]... PROGRAM.py [ARGUMENT...]
  python3 -m muonsocks.client [--proxy=URL]... -m MODULE [ARGUMENT...]
  python3 -m muonsocks.client (-h | --help)

Options:
  --proxy=URL   through this proxy, socks5h://HOST:PORT say; one through the other if it is
                repeated. It is all_proxy for the program and what that starts.

Without --proxy the proxies are those of the environment: all_proxy, ALL_PROXY, SOCKS5_SERVER,
SOCKS_SERVER or SOCKS4_SERVER; what no_proxy or NO_PROXY has goes without. If there is none the
program is not run.

What uses the sockets of Python, that is ssl, asyncio, urllib and nearly everything else, goes
through the proxies, or nowhere; names are looked up there. Datagrams go by UDP ASSOCIATE, if the
last proxy can do that. What the program listens for comes to this host.

Not covered are libraries in C that make sockets themselves, programs that import _socket, and child
processes that are other programs, also Python when it is started anew, as subprocess does. Those
that know ALL_PROXY find it in the environment. Forks are covered, and what multiprocessing starts.
"""

from __future__ import annotations

import builtins
import io
import os
import socket
import sys
from importlib import reload
from importlib.machinery import SourceFileLoader
from types import ModuleType
from zipimport import ZipImportError, zipimporter

from muonsocks.address import Endpoint
from muonsocks.client.look_ups import LookUps
from muonsocks.client.program_children import cover_children
from muonsocks.client.program_socket import ProgramSocket
from muonsocks.client.proxies import chain_of, from_environment
from muonsocks.client.replaceable import Replaceable
from muonsocks.errors import UsageError, in_one_line
from muonsocks.net.process_list import hide_password

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any

_USAGE = 100
_HINT = "write python3 -m muonsocks.client [--proxy URL]... PROGRAM.py or -m MODULE"
_FUNCTIONS = ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr", "getnameinfo")


def main(arguments: list[str]) -> int:
    """Run a program as the command line says: 100 if that, or the environment, is wrong. What the
    program raises, SystemExit too, is passed on.
    """
    if arguments[:1] in (["--help"], ["-h"]):
        print((__doc__ or "").strip())
        return 0
    try:
        proxies, module, words = _read(arguments)
        if proxies:
            chain_of(proxies)
            for url in proxies:
                hide_password(url, "put it into $ALL_PROXY")
            os.environ.update(all_proxy=" ".join(proxies))  # it goes before ALL_PROXY
        _expect_proxies()
        start = _module(module, words) if module else _script(words)
        exchange(LookUps(os.environ))
    except (UsageError, OSError) as error:
        print(f"muonsocks.client: {in_one_line(error)}", file=sys.stderr)
        return _USAGE
    try:
        start()
    except BaseException as error:
        _hide_ourselves(error)
        raise
    return 0


def _read(arguments: list[str]) -> tuple[list[str], str, list[str]]:
    """Read the command line: the proxies, the module if it is one, what becomes sys.argv."""
    proxies: list[str] = []
    words = list(arguments)
    while words and words[0].startswith("-"):
        word = words.pop(0)
        option, equals, value = word.partition("=")
        if word == "-m" or (word.startswith("-m") and word[2:3] != "-"):
            value = word[2:] or (words.pop(0) if words else "")
            if not value:
                raise UsageError("-m is not followed by a module", _HINT)
            return proxies, value, ["-m", *words]
        if word == "--":
            break
        if option != "--proxy":
            raise UsageError(f"there is no option {word[:40]!r} in front of a program", _HINT)
        if not equals:
            value = words.pop(0) if words else ""
        if not value:
            raise UsageError("--proxy is not followed by a URL", _HINT)
        proxies.append(value)
    if not words:
        raise UsageError("there is no program to run", _HINT)
    return proxies, "", words


def _expect_proxies() -> None:
    environ = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
    if not from_environment(Endpoint("0.0.0.0", 0), environ):
        hint = "write --proxy socks5h://HOST:PORT, or set ALL_PROXY"
        raise UsageError("there is no proxy to go through", hint)


# The exchange


def exchange(look_ups: LookUps) -> None:
    """Let the sockets of this process go through proxies from now on, and names be looked up as
    `look_ups` has it: socket.socket is ProgramSocket, and what the module has about names is
    `look_ups`' own. UsageError if something has been loaded for which that is too late.
    """
    ssl = sys.modules.get("ssl")  # by site, or a .pth file of it
    for kind in socket.socket.__subclasses__():
        if not issubclass(kind, Replaceable) and kind.__module__ != "ssl":
            problem = f"{kind.__module__} is loaded already, and has sockets of its own"
            raise UsageError(problem, "find out which .pth file of Python's does that")
    ProgramSocket.look_ups = look_ups
    os.register_at_fork(after_in_child=look_ups.renew_lock)
    cover_children(look_ups.environ)
    exchanged: list[tuple[Any, Any]] = [
        (socket.socket, ProgramSocket),
        (socket.SocketType, ProgramSocket),  # which is that of _socket
    ]
    exchanged += [(getattr(socket, name), getattr(look_ups, name)) for name in _FUNCTIONS]
    _put_in_place(socket, exchanged)
    if ssl is not None:
        reload(ssl)  # its sockets derive from socket.socket
    for module in [*sys.modules.values()]:
        name = getattr(module, "__name__", "")
        if isinstance(module, ModuleType) and not name.startswith(("muonsocks.", "_socket")):
            _put_in_place(module, exchanged)


def _put_in_place(module: ModuleType, exchanged: list[tuple[Any, Any]]) -> None:
    """Let a module have the new for the old, by whatever names it has that."""
    for name, value in [*vars(module).items()]:
        for old, new in exchanged:
            if value is old:
                setattr(module, name, new)


# The program


def _script(words: list[str]) -> Callable[[], None]:
    """Give what runs a file as python3 does, or a directory or an archive with a __main__. OSError
    if there is none.
    """
    path = os.path.join(os.getcwd(), words[0])
    if os.path.isdir(path) or _is_archive(path):
        if not sys.flags.safe_path:
            sys.path.pop(0)
        sys.path.insert(0, path)
        return _module("__main__", words)
    with io.open_code(path) as file:
        source = file.read()
    sys.argv[:] = words
    if not sys.flags.safe_path:
        sys.path[0] = os.path.dirname(os.path.realpath(path))

    def run() -> None:
        main = _fresh_main()
        main.__file__ = path
        main.__loader__ = SourceFileLoader("__main__", path)
        exec(compile(source, path, "exec", dont_inherit=True), vars(main))

    return run


def _module(name: str, words: list[str]) -> Callable[[], None]:
    """Give what runs a module as python3 -m does."""
    sys.argv[:] = words

    def run() -> None:
        import runpy

        _fresh_main()
        by_name = name != "__main__"
        runpy._run_module_as_main(name, alter_argv=by_name)  # type: ignore[attr-defined]

    return run


def _is_archive(path: str) -> bool:
    try:
        zipimporter(path)
    except ZipImportError:
        return False
    return True


def _fresh_main() -> ModuleType:
    """Have a module __main__ with nothing in it."""
    main = ModuleType("__main__")
    vars(main).update(__builtins__=builtins, __annotations__={}, __cached__=None)
    sys.modules["__main__"] = main
    return main


def _hide_ourselves(error: BaseException) -> None:
    """Have a traceback, if there is to be one, begin with the program."""
    trace, hook = error.__traceback__, sys.excepthook
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next

    def show(kind: type[BaseException], value: BaseException, whole: TracebackType | None) -> None:
        if value is error:
            hook(kind, value.with_traceback(trace), trace)
        else:
            hook(kind, value, whole)

    sys.excepthook = show
