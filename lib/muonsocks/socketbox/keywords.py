"""The tokens of a file of rules: KEYWORD or KEYWORD:VALUE, and what may be where.

A keyword before a colon may be shortened, as long as it can be one keyword only.
"""

from __future__ import annotations

from muonsocks.address import expect_unix_path
from muonsocks.errors import UsageError
from muonsocks.socketbox.actions import FAIL, Action, Jump, ToDescriptor, ToPath
from muonsocks.socketbox.conditions import read_number

# How each is written. The order is that of the hints.
USAGE = {
    "max-rules": "max-rules:N",
    "max-maps": "max-maps:N",
    "rule-set": "rule-set:N",
    "map-set": "map-set:N",
    "size": "size:N",
    "match-lip": "match-lip:BITS",
    "match-lport": "match-lport",
    "match-rip": "match-rip:BITS",
    "match-rport": "match-rport",
    "default": "default",
    "ip": "ip:ADDRESS",
    "rip": "rip:ADDRESS",
    "port": "port:PORT",
    "rport": "rport:PORT",
    "jump-unix": "jump-unix:PATH",
    "jump-fd": "jump-fd:N",
    "jump-rule": "jump-rule:N",
    "jump-map": "jump-map:N",
    "fail": "fail",
}
ACTIONS = ("jump-unix", "jump-fd", "jump-rule", "jump-map", "fail")
CONDITIONS = ("ip", "rip", "port", "rport")
KEYS = ("match-lip", "match-lport", "match-rip", "match-rport")
SETS = ("rule-set", "map-set")
LIMITS = ("max-rules", "max-maps")
ELSE = "else"  # has no colon and is not shortened
_SET_OF_JUMP = {"jump-rule": "rule-set", "jump-map": "map-set"}
_HIGHEST_INT = (1 << 31) - 1


def usage(*keywords: str) -> str:
    """Write how keywords are used, for the hint of an error: `A, B or C`."""
    *others, last = [USAGE.get(keyword, keyword) for keyword in keywords]
    return f"{', '.join(others)} or {last}" if others else last


def keyword_of(token: str, expected: tuple[str, ...]) -> tuple[str, str]:
    """Divide a token into its keyword and its value. UsageError, which says what was expected, if
    it is none.

    The value is "" where the keyword has none: what stands there is not looked at.
    """
    name, colon, value = token.partition(":")
    meant = [name] if name in USAGE else []
    if not meant and name and colon:
        meant = [keyword for keyword in USAGE if keyword.startswith(name)]
    if not meant:
        raise UsageError("there is no such token", f"write {usage(*expected)}")
    if len(meant) > 1:
        raise UsageError(f"{name!r} is short for several", f"write {usage(*meant)}")
    keyword = meant[0]
    form = USAGE[keyword]
    if ":" not in form:
        return keyword, ""
    if not value:
        raise UsageError("a value is missing", f"write {form}")
    return keyword, value


def read_action(keyword: str, value: str) -> Action:
    """Make an action. UsageError."""
    if keyword == "jump-unix":
        return ToPath(_path(value))
    if keyword == "jump-fd":
        return ToDescriptor(read_number(value, 0, _HIGHEST_INT))
    if keyword in _SET_OF_JUMP:
        number = read_number(value, 0, _HIGHEST_INT)
        return Jump(f"{_SET_OF_JUMP[keyword]}:{number}", f"{keyword}:{number}")
    return FAIL


def _path(text: str) -> str:
    """Check the path of a unix socket. UsageError."""
    expect_unix_path(text)
    if "\r" in text:  # at the end of a line that would be lost
        raise UsageError(f"{text!r} is no path of a socket", "write it without a carriage return")
    return text
