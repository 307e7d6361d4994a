"""Command lines: docopt reads them, by the text that is the tool's --help.

It is imported only where there is an option to parse: it costs every connection 8 ms.
"""

from __future__ import annotations

import os

from muonsocks import __version__
from muonsocks.address import expect_unix_path, parse_address
from muonsocks.errors import UsageError
from muonsocks.log import DEBUG, WARNING, Log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


_ONE_MORE = "\0"  # which no argument is


class Options:
    """What a command line says: `arguments`, and the value of every option the tool has."""

    __slots__ = ("_values", "arguments")

    def __init__(self, values: dict[str, Any], arguments: list[str]) -> None:
        self._values = values
        self.arguments = arguments

    def flag(self, name: str) -> bool:
        """Say whether a flag is given."""
        return bool(self._values.get(name))

    def text(self, name: str) -> str | None:
        """Give an option's argument, None without it."""
        value: str | None = self._values.get(name)
        return value

    def seconds(self, name: str, default: float) -> float:
        """Give a time in seconds."""
        text = self.text(name)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = 0
        if not 0 < value <= 1e9:
            raise UsageError(f"{name}: {text!r} is not a time", "give seconds, more than 0")
        return value

    def texts(self, name: str) -> list[str]:
        """Give the arguments of an option that may be repeated."""
        values: list[str] = self._values.get(name) or []
        return values

    def number(self, name: str, largest: int, default: int = 0, smallest: int = 0) -> int:
        """Give a whole number from `smallest` to `largest`; 0x is understood."""
        text = self.text(name)
        if text is None:
            return default
        hint = f"give {smallest} to {largest}"
        try:
            value = int(text, 10 if text.isdecimal() else 0)  # 010 is what atoi(3) has for it
        except ValueError:
            raise UsageError(f"{name}: {text!r} is not a number", hint) from None
        if not smallest <= value <= largest:
            problem = "too large" if value > largest else "too small"
            raise UsageError(f"{name}: {text!r} is {problem}", hint)
        return value


def parse(
    doc: str, arguments: list[str], log: Log, program_follows: bool = False
) -> Options | None:
    """Read a command line by the docopt text `doc`; None if it asked for help or the version.

    With `program_follows` the options end at the first argument that is none. UsageError if the
    command line does not fit.
    """
    ours = arguments
    if program_follows:
        ours = arguments[: next((i for i, a in enumerate(arguments) if a[:1] != "-"), None)]
    if not any(argument.startswith("-") for argument in ours):
        return Options({}, arguments)
    import site

    site.main()  # the programs start without it: only docopt is to be found there
    try:
        from docopt import DocoptExit, docopt
    except ImportError:
        raise UsageError("options need docopt", "install the package python3-docopt") from None

    doc = doc.strip() + "\n"
    try:
        values = docopt(doc, arguments, False, None, program_follows)
    except DocoptExit as error:
        problem = _usage_problem(str(error), doc, ours)
        if not problem and program_follows:
            try:
                problem = _missing(docopt(doc, [*arguments, _ONE_MORE], False, None, True))
            except DocoptExit:
                pass  # it is not only that
        raise UsageError(problem or "the arguments do not fit", "see --help") from None
    if values["--help"]:
        os.write(1, doc.encode())
        return None
    if values["--version"]:
        program = doc.split("Usage:", 1)[1].split(None, 1)[0]
        os.write(1, f"{program} {__version__}\n".encode())
        return None
    if values.get("--verbose"):
        log.level = DEBUG
    elif values.get("--quiet"):
        log.level = WARNING
    words = {name: value for name, value in values.items() if not name.startswith("-")}
    positional = [name for name, value in words.items() if value is True]  # a command
    for value in words.values():
        if isinstance(value, list):
            positional += value
        elif isinstance(value, str):
            positional.append(value)
    if positional[:1] == ["--"]:
        del positional[0]
    return Options(values, positional)


def expect_no_arguments(options: Options) -> None:
    """Refuse arguments where only options are expected. UsageError."""
    if options.arguments:
        raise UsageError(f"{options.arguments[0]!r} is not an option", "see --help")


def _usage_problem(message: str, doc: str, arguments: list[str]) -> str:
    """Say in a few words why docopt, which only shows the usage, refuses a command line; "" if
    there is no more to say.
    """
    first = message.split("\n", 1)[0]
    if first and not first.lower().startswith("usage"):
        return first
    known = doc.replace("=", " ").replace(",", " ").split()
    for argument in arguments:
        name = argument.split("=", 1)[0]
        if name == "--":
            break
        if not name.startswith("--"):
            name = name[:2]
        if len(name) > 1 and name.startswith("-") and name not in known:
            return f"there is no option {name}"
    return ""


def _missing(values: dict[str, Any]) -> str:
    """Say what is missing where a command line fits with one argument more; "" if that is one of
    several that may be there.
    """
    for name, value in values.items():
        if value == _ONE_MORE:
            return "there is no program to run" if name == "PROG" else f"{name} is missing"
    return ""


# What an argument may be


def family(options: Options) -> int | None:
    """Make which family addresses are of, 4 or 6, of -4 and -6; None for both."""
    if options.flag("-4") and options.flag("-6"):
        raise UsageError("-4 and -6 exclude each other", "give neither for both families")
    return 4 if options.flag("-4") else 6 if options.flag("-6") else None


def unix_path(path: str, what: str) -> str:
    """Check the path of a unix socket; with @ in front it is a name, not a file. UsageError."""
    try:
        expect_unix_path(path)
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from None
    return path


def packed_address(text: str, what: str, hint: str = "give IPv4 or IPv6 in full") -> bytes:
    """Pack an address as `parse_address` does; IPv6 may have brackets. UsageError."""
    is_bracketed = text.startswith("[") and text.endswith("]") and ":" in text
    packed = parse_address(text[1:-1] if is_bracketed else text)
    if packed is None:
        raise UsageError(f"{what}: {text[:60]!r} is not an address", hint)
    return packed


def descriptor(text: str, what: str) -> int:
    """Read the number of a descriptor that has been left open for us. UsageError.

    To be asked before anything is opened, which would get the number.
    """
    if not (text.isascii() and text.isdecimal()) or len(text) > 9:
        raise UsageError(f"{what}: {text[:60]!r} is no descriptor", "give its number, say 3")
    fd = int(text)
    try:
        os.fstat(fd)
    except OSError:
        hint = f"leave it open for this program, as a shell does with {fd}<&0"
        raise UsageError(f"{what}: descriptor {fd} is not open", hint) from None
    return fd


def port_number(text: str, what: str) -> int:
    """Read a port."""
    digits = text.lstrip("0") or text[:1]
    if not (digits.isascii() and digits.isdecimal()) or len(digits) > 5 or int(digits) > 65535:
        raise UsageError(f"{what} is {text[:60]!r}", "it must be a port, 0 to 65535")
    return int(digits)
