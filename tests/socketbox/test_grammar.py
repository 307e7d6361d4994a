"""What a file may say, and what is said of one that is wrong."""

import pytest

from muonsocks.errors import UsageError
from muonsocks.socketbox.actions import ToPath
from muonsocks.socketbox.connection import Connection
from muonsocks.socketbox.grammar import LARGEST_FILE, parse_configuration
from muonsocks.socketbox.rules import Rules
from muonsocks.socketbox.sets import MOST_ENTRIES

SHORT = {"R": "rule-set:0", "M": "map-set:0", "D": "rule-set:0; default"}


def written(text: str) -> str:
    """The text of lines that have "; " between; the first one may be short for a usual one."""
    first, separator, rest = text.partition("; ")
    return (SHORT.get(first, first) + separator + rest).replace("; ", "\n")


def rules_of(text: str) -> Rules:
    text = written(text)
    return parse_configuration(text.encode("utf-8", "surrogateescape"), "box")


# What is written, and how the program would write it. The first ones are good for the C program,
# but that it needs sizes and numbers of sets everywhere.
VALID: tuple[tuple[str, str], ...] = (
    (
        "max-maps:1; max-rules:2; ; rule-set:0 size:3; ip:::1 jump-unix:/a; ",
        "max-maps:1; max-rules:2; rule-set:0 size:3; ip:::1 jump-unix:/a",
    ),
    # state goes on from line to line, also within one
    ("rule-set:0 size:2 ip:::1 fail", "rule-set:0 size:2; ip:::1 fail"),
    ("max-rules:1 rule-set:0 size:1 port:80 fail", "max-rules:1; rule-set:0 size:1; port:80 fail"),
    ("R; size:2; fail", "rule-set:0 size:2; fail"),
    ("R; fail; rule-set:1; fail; rule-set:0; jump-fd:3", "R; fail; jump-fd:3; rule-set:1; fail"),
    ("rule-set:0 rule-set:1 map-set:0", "R; rule-set:1; map-set:0"),
    ("rule-set:0 default fail rule-set:0 port:1 jump-fd:3", "R; port:1 jump-fd:3; default fail"),
    ("R; port:1 max-rules:3 jump-fd:3", "max-rules:3; rule-set:0; port:1 jump-fd:3"),
    # any order, the last one counts, no action is fail
    ("R; jump-fd:3 rport:2 port:1 rip:::2 ip:::1", "R; ip:::1 port:1 rip:::2 rport:2 jump-fd:3"),
    ("R; jump-fd:3 fail port:1 jump-unix:/a", "R; port:1 jump-unix:/a"),
    ("R; port:1 port:2 fail", "R; port:2 fail"),
    ("R; port:1", "R; port:1 fail"),
    # the default goes on until the next set
    ("R; default; fail; jump-fd:3; jump-fd:4", "R; default jump-fd:4"),
    ("R; default jump-fd:3; rule-set:0; jump-fd:4", "R; jump-fd:4; default jump-fd:3"),
    ("M; default jump-rule:0", "M; default jump-rule:0"),
    ("R; default", "rule-set:0"),
    # shortened keywords, and values where none is
    ("ru:0; p:80 jump-u:/a", "R; port:80 jump-unix:/a"),
    ("map:0; match-lp:x; i:::1 jump-f:3; d:; f:", "M; match-lport; ip:::1 jump-fd:3; default fail"),
    ("rule-set:0 default:x fail:y", "R; default fail"),
    ("map-s:0 match-rp:", "M; match-rport"),
    ("max-r:1 max-m:1", "max-rules:1; max-maps:1"),
    # numbers as atoi has them
    ("rule-set:+00; port:+080 jump-fd:-0", "R; port:80 jump-fd:0"),
    ("R; port:000000000000000000000080", "R; port:80 fail"),
    ("rule-set:999; jump-rule:2147483647", "rule-set:999; jump-rule:2147483647"),
    # networks
    ("R; ip:2001:db8::1/32", "R; ip:2001:db8::/32 fail"),
    ("R; ip:2001:db8::1/ffff:ffff::", "R; ip:2001:db8::/32 fail"),
    ("R; ip:2001:db8::1/ffff::ffff", "R; ip:2001::1/ffff::ffff fail"),
    ("R; ip:::1/0", "R; fail"),
    ("R; ip:::1/128 rip:::1/0128", "R; ip:::1 rip:::1 fail"),
    ("R; ip:::ffff:192.0.2.1", "R; ip:192.0.2.1 fail"),
    ("R; ip:::ffff:c000:201/120", "R; ip:192.0.2.0/24 fail"),
    ("R; ip:::ffff:192.0.2.1/95", "R; ip:::fffe:0:0/95 fail"),
    # keys
    (
        "M; match-rport match-rip:0 match-lport match-lip:64",
        "M; match-lip:64; match-lport; match-rport",
    ),
    ("M; port:1; match-lip:64; match-lip:32", "M; match-lip:32; port:1 fail"),
    ("M; port:1 match-rip:128 jump-fd:1", "M; match-rip:128; port:1 jump-fd:1"),
    # nothing
    ("", ""),
    ("#; ;   \t; ", ""),
    # From here on the C program has errors, or dies. Comments, tabs, ends of lines
    ("  # a; \t#b; rule-set:0 # c; port:1\tfail # d # e; ", "R; port:1 fail"),
    ("R; port:1 fail:#; ", "R; port:1 fail"),
    ("rule-set:0\r; fail\r; ", "R; fail"),
    ("R; \t port:1 \t jump-fd:3\t", "R; port:1 jump-fd:3"),
    ("R; jump-unix:/g#//7_ #//P_", "R; jump-unix:/g#//7_"),
    # IPv4, ranges, lists
    ("R; ip:192.0.2.1 rip:192.0.2.9/24", "R; ip:192.0.2.1 rip:192.0.2.0/24 fail"),
    ("R; ip:192.0.2.9/255.255.255.0", "R; ip:192.0.2.0/24 fail"),
    ("R; ip:192.0.2.9/255.0.0.255", "R; ip:192.0.0.9/255.0.0.255 fail"),
    ("R; ip:192.0.2.9/::ff", "R; ip:::9/::ff fail"),
    ("R; ip:1.2.3.4/0", "R; ip:0.0.0.0/0 fail"),
    ("R; ip:192.0.2.1-192.0.2.9", "R; ip:192.0.2.1-192.0.2.9 fail"),
    ("R; rip:::1-::ffff", "R; rip:::1-::ffff fail"),
    ("R; ip:192.0.2.1-192.0.2.1", "R; ip:192.0.2.1 fail"),
    ("R; port:80-89,443 rport:0-65535", "R; port:80-89,443 rport:0-65535 fail"),
    ("R; port:80-80 rport:1,1-1", "R; port:80 rport:1 fail"),
    ("R; port:9,2-5,4-7,1,5,7-8,20-21", "R; port:1,2-8,9,20-21 fail"),
    ("map-set:0 match-lip:128; ip:192.0.2.1 fail", "M; match-lip:128; ip:192.0.2.1 fail"),
    # sizes and numbers of sets that are not said, or later, or larger
    ("R; fail; size:1", "rule-set:0 size:1; fail"),
    ("R; fail size:1", "rule-set:0 size:1; fail"),
    ("rule-set:0 size:10000", "rule-set:0 size:10000"),
    (
        "rule-set:4 map-set:7; max-rules:5 max-maps:8",
        "max-rules:5; max-maps:8; rule-set:4; map-set:7",
    ),
    # else
    (
        "R; jump-unix:/a else jump-fd:3 port:1 else jump-rule:0 else fail",
        "R; port:1 jump-unix:/a else jump-fd:3 else jump-rule:0 else fail",
    ),
    ("R; jump-fd:1 jump-fd:2 else jump-fd:3", "R; jump-fd:2 else jump-fd:3"),
    ("R; jump-fd:3" + " else jump-fd:3" * 15, "R; jump-fd:3" + " else jump-fd:3" * 15),
    (
        "rule-set:0 default jump-fd:3 else fail; jump-fd:4 else jump-fd:5",
        "R; default jump-fd:4 else jump-fd:5",
    ),
    (
        "rule-set:0 default jump-fd:3 else fail rule-set:1 jump-fd:4",
        "R; default jump-fd:3 else fail; rule-set:1; jump-fd:4",
    ),
    # paths
    ("R; jump-unix:@a:b@", "R; jump-unix:@a:b@"),
    ("R; jump-unix:relative\udcff\xe9", "R; jump-unix:relative\udcff\xe9"),
)


@pytest.mark.parametrize(("text", "printed"), VALID)
def test_valid(text: str, printed: str) -> None:
    wanted = f"{written(printed)}\n" if printed else ""
    assert rules_of(text).text() == wanted
    assert rules_of(wanted).text() == wanted


ACTIONS = "jump-unix:PATH, jump-fd:N, jump-rule:N, jump-map:N or fail"
CONDITIONS = "ip:ADDRESS, rip:ADDRESS, port:PORT, rport:PORT"
ALL = ACTIONS.replace(" or", ",")
SETS = "rule-set:N or map-set:N"
KEYS = "match-lip:BITS, match-lport, match-rip:BITS, match-rport"

# What is written, of which the last line is wrong; the token and the text of the error.
INVALID: tuple[tuple[str, str, str], ...] = (
    # no such token: what may be here
    ("x", "x", f"there is no such token; write max-rules:N, max-maps:N, {SETS}"),
    ("R; x", "x", f"there is no such token; write {CONDITIONS}, {ALL}, default, size:N, {SETS}"),
    (
        "M; x:1",
        "x:1",
        f"there is no such token; write {CONDITIONS}, {ALL}, default, size:N, {KEYS}, {SETS}",
    ),
    ("D; x", "x", f"there is no such token; write {ALL}, {SETS}"),
    ("R; port:1 x", "x", f"there is no such token; write {CONDITIONS}, {ALL} or else"),
    ("R; jump-fd:3 else x", "x", f"there is no such token; write {ACTIONS}"),
    ("R; :80", ":80", "there is no such token"),
    ("R; Port:80", "Port:80", "there is no such token"),
    ("R; ports:80", "ports:80", "there is no such token"),
    ("R; por", "por", "there is no such token"),
    ("R; el:", "el:", "there is no such token"),
    ("R; fail\xa0port:1", "fail\\xa0port:1", "there is no such token"),
    ("R; " + "x" * 100, "x" * 60, "there is no such token"),
    # short for several
    (
        "R; jump-:1",
        "jump-:1",
        "'jump-' is short for several; write jump-unix:PATH, jump-fd:N, jump-rule:N or jump-map:N",
    ),
    (
        "M; match-l:64",
        "match-l:64",
        "'match-l' is short for several; write match-lip:BITS or match-lport",
    ),
    ("r:1", "r:1", "'r' is short for several; write rule-set:N, rip:ADDRESS or rport:PORT"),
    # no value
    ("max-maps", "max-maps", "a value is missing; write max-maps:N"),
    ("R; port 80", "port", "a value is missing; write port:PORT"),
    ("R; jump-unix:", "jump-unix:", "a value is missing; write jump-unix:PATH"),
    # where it does not belong
    ("default", "default", f"this belongs to no set; write {SETS} first"),
    ("ip:::1", "ip:::1", f"this belongs to no set; write {SETS} first"),
    ("fail", "fail", f"this belongs to no set; write {SETS} first"),
    ("size:3", "size:3", f"this belongs to no set; write {SETS} first"),
    ("match-lport", "match-lport", f"this belongs to no set; write {SETS} first"),
    ("R; port:1 rule-set:1", "rule-set:1", "this line is an entry already; begin a new line"),
    ("R; fail default", "default", "this line is an entry already; begin a new line"),
    ("D; default", "default", f"this is the default already; write {ACTIONS}"),
    (
        "D; ip:::1",
        "ip:::1",
        f"a default has only actions; write {ACTIONS}, or rule-set:0 once more to go back",
    ),
    (
        "D; rport:1",
        "rport:1",
        f"a default has only actions; write {ACTIONS}, or rule-set:0 once more to go back",
    ),
    (
        "D; size:3",
        "size:3",
        f"a default has only actions; write {ACTIONS}, or rule-set:0 once more to go back",
    ),
    (
        "D; match-lport",
        "match-lport",
        f"a default has only actions; write {ACTIONS}, or rule-set:0 once more to go back",
    ),
    ("R; match-lip:4", "match-lip:4", "only a map has a key; write it below map-set:N"),
    # limits, sizes
    ("max-rules:0", "max-rules:0", "0 is out of range; write 1 to 1000"),
    ("max-maps:1001", "max-maps:1001", "1001 is out of range; write 1 to 1000"),
    ("max-maps:1 max-maps:1", "max-maps:1", "max-maps is said twice; leave one of them out"),
    ("rule-set:5; max-rules:5", "max-rules:5", "there is a rule-set:5 already; write more than 5"),
    (
        "max-rules:5; rule-set:5",
        "rule-set:5",
        "5 is out of range; write 0 to 4, or a larger max-rules",
    ),
    ("max-maps:1; map-set:1", "map-set:1", "1 is out of range; write 0 to 0, or a larger max-maps"),
    ("rule-set:1000", "rule-set:1000", "1000 is out of range; write 0 to 999"),
    ("rule-set:-1", "rule-set:-1", "-1 is out of range; write 0 to 999"),
    ("map-set:x", "map-set:x", "'x' is not a number; write 0 to 999"),
    ("R; size:0", "size:0", "0 is out of range; write 1 to 100000"),
    ("R; size:3 size:3", "size:3", "rule-set:0 has a size already; leave one of them out"),
    ("R; fail; fail; size:1", "size:1", "rule-set:0 has 2 entries; write 2 or more"),
    ("R; fail; fail size:1", "size:1", "rule-set:0 has 2 entries; write 2 or more"),
    (
        "R; size:1; fail; port:1 fail",
        "port:1",
        "this is entry 2 of rule-set:0; write a larger size, or leave it out",
    ),
    # keys
    ("M; match-lip:129", "match-lip:129", "129 is out of range; write 0 to 128"),
    ("M; match-rip:-1", "match-rip:-1", "-1 is out of range; write 0 to 128"),
    # addresses
    (
        "R; ip:x",
        "ip:x",
        "'x' is not an address; write ADDRESS, ADDRESS/BITS, ADDRESS/MASK or FIRST-LAST",
    ),
    (
        "R; ip:1.2.3",
        "ip:1.2.3",
        "'1.2.3' is not an address; write ADDRESS, ADDRESS/BITS, ADDRESS/MASK or FIRST-LAST",
    ),
    (
        "R; ip:1.2.3.4.5",
        "ip:1.2.3.4.5",
        "'1.2.3.4.5' is not an address; write ADDRESS, ADDRESS/BITS, ADDRESS/MASK or FIRST-LAST",
    ),
    (
        "R; ip:fe80::1%lo",
        "ip:fe80::1%lo",
        "'fe80::1%lo' is not an address; write ADDRESS, ADDRESS/BITS, ADDRESS/MASK or FIRST-LAST",
    ),
    (
        "R; ip:[::1]",
        "ip:[::1]",
        "'[::1]' is not an address; write ADDRESS, ADDRESS/BITS, ADDRESS/MASK or FIRST-LAST",
    ),
    ("R; ip:x/24", "ip:x/24", "'x' is not an address; write ADDRESS/BITS or ADDRESS/MASK"),
    ("R; ip:::1/129", "ip:::1/129", "129 is out of range; write 0 to 128"),
    ("R; ip:1.2.3.4/33", "ip:1.2.3.4/33", "33 is out of range; write 0 to 32"),
    ("R; ip:1.2.3.4/", "ip:1.2.3.4/", "'' is not a number of bits; write 0 to 32"),
    ("R; ip:::1/+8", "ip:::1/+8", "'+8' is not a number of bits; write 0 to 128"),
    ("R; ip:::1/8x", "ip:::1/8x", "'8x' is not a number; write 0 to 128"),
    (
        "R; ip:::1/255.0.0.0",
        "ip:::1/255.0.0.0",
        "'255.0.0.0' is not a mask; write an IPv6 address or a number of bits",
    ),
    (
        "R; ip:1.2.3.4/255.0.0",
        "ip:1.2.3.4/255.0.0",
        "'255.0.0' is not a mask; write an address or a number of bits",
    ),
    (
        "R; ip:1.2.3.4-1.2.3.3",
        "ip:1.2.3.4-1.2.3.3",
        "'1.2.3.4-1.2.3.3' is not a range of addresses; write the lower one first",
    ),
    (
        "R; ip:1.2.3.4-::5",
        "ip:1.2.3.4-::5",
        "of '1.2.3.4-::5' one end is an IPv4 address and one is not; "
        "write both so; ::ffff:A.B.C.D is IPv4",
    ),
    ("R; jump-unix:a\rb", "jump-unix:a\\rb", "'a\\rb' is no path of a socket"),
    ("R; ip:1.2.3.4-", "ip:1.2.3.4-", "'' is not an address"),
    (
        "M; rip:1.2.3.0/24",
        "rip:1.2.3.0/24",
        "'1.2.3.0/24' is not an address; in a map, write one address in full",
    ),
    (
        "M; rip:::1-::2",
        "rip:::1-::2",
        "'::1-::2' is not an address; in a map, write one address in full",
    ),
    # ports and numbers
    ("R; port:x", "port:x", "'x' is not a number; write 0 to 65535"),
    ("R; port:80abc", "port:80abc", "'80abc' is not a number"),
    ("R; port:0x50", "port:0x50", "'0x50' is not a number"),
    ("R; port:8_0", "port:8_0", "'8_0' is not a number"),
    ("R; port:\u0668\u0660", "port:\u0668\u0660", "'\u0668\u0660' is not a number"),
    ("R; port:65536", "port:65536", "65536 is out of range; write 0 to 65535"),
    ("R; port:-1", "port:-1", "-1 is out of range; write 0 to 65535"),
    ("R; port:" + "9" * 5000, "port:" + "9" * 55, "9" * 60 + " is out of range"),
    ("R; port:80,", "port:80,", "'' is not a port; write 80, 80,443 or 8000-8999"),
    ("R; port:80-", "port:80-", "'80-' is not a port"),
    ("R; port:1,-80", "port:1,-80", "'-80' is not a port"),
    ("R; port:http,80", "port:http,80", "'http' is not a port"),
    ("R; port:1-2-3", "port:1-2-3", "'2-3' is not a number"),
    ("R; port:90-80", "port:90-80", "'90-80' is not a range of ports; write the lower one first"),
    ("R; port:1-65536", "port:1-65536", "65536 is out of range; write 0 to 65535"),
    (
        "M; port:80-81",
        "port:80-81",
        "'80-81' is not a number; in a map, write one port, 0 to 65535",
    ),
    (
        "M; port:80,81",
        "port:80,81",
        "'80,81' is not a number; in a map, write one port, 0 to 65535",
    ),
    # actions
    (
        "R; jump-unix:" + "a" * 108,
        "jump-unix:" + "a" * 50,
        f"'{'a' * 60}' is no path of a socket; a path or @NAME of 107 bytes at most fits",
    ),
    (
        "R; jump-unix:@",
        "jump-unix:@",
        "'@' is no path of a socket; a path or @NAME of 107 bytes at most fits",
    ),
    ("R; jump-unix:a\x00b", "jump-unix:a\\x00b", "'a\\x00b' is no path of a socket"),
    ("R; jump-fd:x", "jump-fd:x", "'x' is not a number; write 0 to 2147483647"),
    ("R; jump-fd:-1", "jump-fd:-1", "-1 is out of range; write 0 to 2147483647"),
    ("R; jump-rule:x", "jump-rule:x", "'x' is not a number"),
    ("R; jump-map:2147483648", "jump-map:2147483648", "2147483648 is out of range"),
    (
        f"R; port:{'0' * 5000}2-1",
        f"port:{'0' * 55}",
        f"'{'0' * 60}' is not a range of ports; write the lower one first",
    ),
    # else
    ("else", "else", f"there is no action before else; write {ACTIONS} first"),
    ("R; port:1 else fail", "else", f"there is no action before else; write {ACTIONS} first"),
    ("R; jump-fd:3 else else fail", "else", "there is no action before else"),
    ("D; jump-fd:3; else fail", "else", "there is no action before else"),
    ("R; fail else jump-fd:3", "else", "fail closes the connection; leave out what comes after it"),
    ("R; jump-fd:3 else", "else", f"there is no action after else; write {ACTIONS}"),
    (
        "R; jump-fd:3" + " else jump-fd:3" * 16,
        "else",
        "this line has 16 actions; leave out the others",
    ),
    ("R; jump-fd:3 else # fail", "else", "there is no action after else"),
    ("D; jump-fd:3 else", "else", "there is no action after else"),
    ("R; jump-fd:3 else port:1", "port:1", f"this does not go after else; write {ACTIONS}"),
    ("R; default jump-fd:3 else rule-set:1", "rule-set:1", "this does not go after else"),
    (
        "R; jump-fd:3 else jump-fd:4 fail",
        "fail",
        "two actions, and others with else between; write else before it",
    ),
)


@pytest.mark.parametrize(("text", "token", "reason"), INVALID)
def test_invalid(text: str, token: str, reason: str) -> None:
    """The last line is wrong."""
    with pytest.raises(UsageError) as caught:
        rules_of(text)
    line = written(text).count("\n") + 1
    said = str(caught.value)
    wanted = f"box:{line}: near '{token}': {reason}"
    assert said == wanted or ("; " not in reason and said.startswith(wanted + "; "))
    assert "\n" not in said


LAST_COUNTS = "of several actions in a line the last one counts; else lets all be tried"


@pytest.mark.parametrize(
    ("text", "token", "warning"),
    [
        ("R; port:1 port:2", "port:2", "port is said twice in a line: only the last one counts"),
        ("R; jump-fd:3 port:1 jump-fd:4", "jump-fd:4", LAST_COUNTS),
        ("R; default jump-fd:3 fail", "fail", LAST_COUNTS),
        ("R; jump-fd:2 jump-fd:3 else fail", "jump-fd:3", LAST_COUNTS),
        ("D; fail; fail:", "fail:", "this replaces the default of box:3"),
        ("D; fail rule-set:0 default fail", "fail", "this replaces the default of box:3"),
        ("R; jump-fd:3 else jump-fd:4; jump-fd:3; default; jump-fd:3", "", ""),
        ("D; fail; jump-fd:3 rule-set:1", "jump-fd:3", "this replaces the default of box:3"),
        ("D; fail; jump-fd:3 # fail", "jump-fd:3", "this replaces the default of box:3"),
    ],
)
def test_warnings(text: str, token: str, warning: str) -> None:
    """What the C program takes, and somebody may have meant otherwise."""
    line = written(text).count("\n") + 1
    wanted = [f"box:{line}: near '{token}': {warning}"] if warning else []
    assert rules_of(text).warnings == wanted


def test_longest_paths() -> None:
    for path in ("a" * 107, "@" + "a" * 106, "\udcff" * 107):
        action = rules_of(f"R; jump-unix:{path}").look_up(Connection.without_addresses()).action
        assert isinstance(action, ToPath)
        assert action.path == path


def test_a_mark_in_front() -> None:
    assert parse_configuration(b"\xef\xbb\xbfrule-set:0\n", "box").text() == "rule-set:0\n"


def test_too_large_a_file() -> None:
    assert parse_configuration(b"#" * LARGEST_FILE, "box").text() == ""
    with pytest.raises(
        UsageError, match=f"^box is larger than {LARGEST_FILE} bytes; let one entry"
    ):
        parse_configuration(b"#" * (LARGEST_FILE + 1), "box")
    line = "ip:2001:db8:1234:5678::9abc:def0 port:443 jump-unix:/run/service/99999.sock\n"
    assert MOST_ENTRIES * len(line) < LARGEST_FILE  # as many as there may be


def test_too_many_entries() -> None:
    """In all sets together."""
    half = "f:\n" * (MOST_ENTRIES // 2)
    text = f"rule-set:0\n{half}map-set:0\n{half}"
    assert sum(len(one.entries) for one in rules_of(text).sets.values()) == MOST_ENTRIES
    line = MOST_ENTRIES + 3
    with pytest.raises(UsageError, match=f"^box:{line}: near 'fail': there are more than 100000"):
        rules_of(text + "fail")
