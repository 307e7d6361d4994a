"""The way of a connection is told as it is."""

import pytest

from muonsocks.address import parse_address
from muonsocks.errors import UsageError
from muonsocks.socketbox.connection import Connection
from muonsocks.socketbox.explain import explain, read_connection
from muonsocks.socketbox.grammar import parse_configuration

# What the transcripts of the specification are from: rule-set 0, rule-set 1, map 0.
SAMPLE = """\
max-rules:2
max-maps:1

rule-set:0 size:3
ip:::1 port:7001 jump-unix:r1.sock
ip:::ffff:127.0.0.6 fail
jump-rule:1

rule-set:1 size:1
port:7001 jump-map:0

map-set:0 size:2
match-lip:128
ip:::ffff:127.0.0.9 jump-unix:m9.sock
ip:::ffff:127.0.0.10 jump-unix:m10.sock else jump-unix:@m10
"""


def said(text: str, address: str, port: int = 7001) -> str:
    packed, remote = parse_address(address), parse_address("127.0.0.1")
    assert packed and remote
    rules = parse_configuration(text.encode(), "box")
    return "\n".join(explain(rules, Connection(packed, port, remote, 48190)))


def test_sample() -> None:
    assert (
        said(SAMPLE, "127.0.0.9")
        == """\
connection from 127.0.0.1:48190 to 127.0.0.9:7001
hop 1: rule-set:0, 3 entries
  box:5: ip:::1 port:7001 jump-unix:r1.sock: no, the local address is 127.0.0.9
  box:6: ip:127.0.0.6 fail: no, the local address is 127.0.0.9
  box:7: jump-rule:1: matches
hop 2: rule-set:1, 1 entry
  box:10: port:7001 jump-map:0: matches
hop 3: map-set:0, 2 entries
  the key by match-lip:128 is ip:127.0.0.9
  box:14: ip:127.0.0.9 jump-unix:m9.sock: matches
decision: jump-unix:m9.sock (box:14)
if that is full or not there:
then: fail (there is no other receiver)"""
    )


def test_sample_without_a_jump() -> None:
    assert (
        said(SAMPLE, "::1")
        == """\
connection from 127.0.0.1:48190 to [::1]:7001
hop 1: rule-set:0, 3 entries
  box:5: ip:::1 port:7001 jump-unix:r1.sock: matches
decision: jump-unix:r1.sock (box:5)
if that is full or not there:
then: fail (there is no other receiver)"""
    )


def test_sample_where_it_fails() -> None:
    assert (
        said(SAMPLE, "127.0.0.6", 80)
        == """\
connection from 127.0.0.1:48190 to 127.0.0.6:80
hop 1: rule-set:0, 3 entries
  box:5: ip:::1 port:7001 jump-unix:r1.sock: no, the local address is 127.0.0.6 and \
the local port is 80
  box:6: ip:127.0.0.6 fail: matches
decision: fail (box:6)"""
    )


@pytest.mark.parametrize(
    ("address", "port", "end"),
    [
        (
            "127.0.0.11",
            7001,
            """\
hop 3: map-set:0, 2 entries
  the key by match-lip:128 is ip:127.0.0.11
  no entry matches, and there is no default
decision: fail (map-set:0 has nothing for it, and no default)""",
        ),
        (
            "127.0.0.9",
            80,
            """\
hop 2: rule-set:1, 1 entry
  box:10: port:7001 jump-map:0: no, the local port is 80
  no entry matches, and there is no default
decision: fail (rule-set:1 has nothing for it, and no default)""",
        ),
        (
            "127.0.0.10",
            7001,
            """\
decision: jump-unix:m10.sock (box:15)
if that is full or not there:
then: jump-unix:@m10 (box:15)
if that is full or not there:
then: fail (there is no other receiver)""",
        ),
    ],
)
def test_other_ends(address: str, port: int, end: str) -> None:
    assert said(SAMPLE, address, port).endswith(f"\n{end}")


def test_default_and_an_alternative_elsewhere() -> None:
    text = """\
rule-set:0
rip:10.0.0.0/8 fail
default jump-fd:3 else jump-map:1
map-set:1
match-lip:96
match-rport
ip:127.0.0.0 rport:80 fail
default jump-rule:9
"""
    assert (
        said(text, "127.0.0.9")
        == """\
connection from 127.0.0.1:48190 to 127.0.0.9:7001
hop 1: rule-set:0, 1 entry
  box:2: rip:10.0.0.0/8 fail: no, the remote address is 127.0.0.1
  box:3: default jump-fd:3 else jump-map:1
decision: jump-fd:3 (box:3)
if that is full or not there:
hop 2: map-set:1, 1 entry
  the key by match-lip:96 match-rport is ip:0.0.0.0 rport:48190
  box:8: default jump-rule:9
then: fail (there is no rule-set:9)"""
    )


def test_a_map_without_a_key() -> None:
    lines = said("rule-set:0\njump-map:0\nmap-set:0\nport:1 fail", "::1").splitlines()
    assert lines[3:] == [
        "hop 2: map-set:0, 1 entry",
        "  the key is empty: every connection has it, and every entry",
        "  box:4: port:1 fail: matches",
        "decision: fail (box:4)",
    ]


def test_nothing_is_there() -> None:
    assert said("", "::1").splitlines()[1:] == ["decision: fail (there is no rule-set:0)"]


def many(count: int) -> str:
    entries = [f"ip:10.{n >> 8}.{n & 255}.1 port:7001 jump-unix:/{n}" for n in range(count)]
    return "\n".join(("rule-set:0", *entries))


def test_of_many_entries_the_nearest_are_shown() -> None:
    """Those with the fewest conditions that do not hold, and of these by the fewest bits."""
    nine = said(many(9), "10.0.5.9").splitlines()[2:]
    assert nine == [
        "  9 entries do not match, of which 3 are nearest:",
        "  box:6: ip:10.0.4.1 port:7001 jump-unix:/4: no, the local address is 10.0.5.9",
        "  box:7: ip:10.0.5.1 port:7001 jump-unix:/5: no, the local address is 10.0.5.9",
        "  box:8: ip:10.0.6.1 port:7001 jump-unix:/6: no, the local address is 10.0.5.9",
        "  no entry matches, and there is no default",
        "decision: fail (rule-set:0 has nothing for it, and no default)",
    ]
    eight = said(many(8), "10.0.5.9").splitlines()[2:]
    assert len(eight) == 8 + 2
    all_but_the_last = said(many(10_000), "10.39.15.1").splitlines()[1:4]
    assert all_but_the_last[:2] == [
        "hop 1: rule-set:0, 10,000 entries",
        "  9,999 entries do not match, of which 3 are nearest:",
    ]
    other_port = said(many(9) + "\nip:10.9.9.9 fail", "10.0.5.1", 80).splitlines()[2:6]
    assert other_port[1:] == [
        "  box:6: ip:10.0.4.1 port:7001 jump-unix:/4: no, the local address is 10.0.5.1 and "
        "the local port is 80",
        "  box:7: ip:10.0.5.1 port:7001 jump-unix:/5: no, the local port is 80",
        "  box:11: ip:10.9.9.9 fail: no, the local address is 10.0.5.1",
    ]


def test_paths_with_an_address_in_them() -> None:
    text = "rule-set:0\njump-unix:/#//P_ else jump-unix:@#//7_ else jump-fd:3"
    rules, key = parse_configuration(text.encode(), "box"), Connection(bytes(16), 80, bytes(16), 1)
    said = [line for line in explain(rules, key) if line.startswith(("decision", "then"))]
    assert said[:2] == ["decision: jump-unix:/#//P_ (box:2)", "then: jump-unix:@#//7_ (box:2)"]
    said = [line for line in explain(rules, key, True) if line.startswith(("decision", "then"))]
    assert said == [
        "decision: jump-unix:/00080 (box:2)",
        "then: jump-unix:@00000 (box:2)",
        "then: jump-fd:3 (box:2)",
        "then: fail (there is no other receiver)",
    ]


def test_none_is_asked_twice() -> None:
    """Also where two rules have the same path after all, and where the way leads round."""
    text = """\
rule-set:0
jump-rule:1 else jump-unix:/a else jump-unix:/b
rule-set:1
jump-unix:/a else jump-unix:/#//P_ else jump-unix:/00080 else jump-rule:0
"""
    rules, key = parse_configuration(text.encode(), "box"), Connection(bytes(16), 80, bytes(16), 1)
    lines = explain(rules, key, substitutes=True)
    said = [line for line in lines if line.startswith(("decision", "then"))]
    assert said == [
        "decision: jump-unix:/a (box:4)",
        "then: jump-unix:/00080 (box:4)",
        "then: fail (the way does not end within 100 sets, the last jump is box:4)",
    ]


def test_connections_of_a_command_line() -> None:
    made = read_connection("192.0.2.1:80", "[2001:db8::1]:40000")
    assert str(made) == "from [2001:db8::1]:40000 to 192.0.2.1:80"
    mapped = read_connection("[::ffff:192.0.2.1]:80", "unix")
    assert mapped.key == 0xFFFF_C000_0201_0050 << 144
    assert read_connection("unix", "unix").key == 0


NO_ENDS = ("", "x", "80", "::1", "::1:80", "[::1]", "[::1:80", "::1]:80", "[]:80", "host:80")
NO_ENDS += ("[192.0.2.1]:80",)
HINT = "write 192.0.2.1:80, [2001:db8::1]:80 or unix"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        *((text, f"{text!r} is not an address and a port; {HINT}") for text in NO_ENDS),
        ("192.0.2.1:", f"'192.0.2.1:' has no port; {HINT}"),
        ("192.0.2.1:+80", f"'192.0.2.1:+80' has no port; {HINT}"),
        ("[::1]:65536", "65536 is out of range; write 0 to 65535"),
    ],
)
def test_no_connection(text: str, reason: str) -> None:
    for ends in ((text, "unix"), ("unix", text)):
        with pytest.raises(UsageError) as caught:
            read_connection(*ends)
        assert str(caught.value) == reason
