"""A whole document: where to accept, who may register, what to become."""

import json
from copy import deepcopy
from typing import Any

import pytest

from muonsocks.errors import UsageError
from muonsocks.socketbox.json_configuration import (
    NOT_CHANGED,
    Configuration,
    Inherited,
    Listener,
    read_json,
)

WHOLE = """
{
    "socketbox-version": 1,
    "daemon": {"uid": 1000, "gid": "1001", "groups": [4, 24], "chroot": "/run/empty"},
    "incoming": [
        {"address": "::", "port": 80},
        {"address": "::ffff:127.0.0.150", "port": 2, "transparent": true,
         "netns": "/run/netns/test_1", "freebind": true, "reuseaddr": false, "reuseport": true,
         "backlog": 7},
        {"fd": 3, "listen": true, "backlog": 9},
        {"address": "fe80::1%eth0", "port": 0},
        {"fd": 4}
    ],
    "final_netns": "/run/netns/test_2",
    "outgoing": [{"uid": 150000, "path_nr": 0}, {"uid": "0", "path_nr": "1"}],
    "paths": [
        {"socket": "/run/socketbox/ctl.sock", "mode": "0777", "uid": 0, "gid": 5},
        {"socket": "other.sock"}
    ],
    "rules": {
        "_start": {
            "type": "rule",
            "rules": [{"l_ip": "::1", "l_port": 80, "incoming_socket": 0, "jump": "r:another"}]
        },
        "another": {"type": "rule", "rules": [{"jump": "o:1"}]}
    }
}
"""
LEAST: dict[str, Any] = {
    "socketbox-version": 1,
    "incoming": [{"address": "::", "port": 80}],
    "rules": {"_start": {"type": "map", "rules": []}},
}


def slots_of(thing: object) -> tuple:
    return tuple(getattr(thing, name) for name in sorted(type(thing).__slots__))


def test_whole() -> None:
    made = read_json(json.loads(WHOLE), "box")
    # address, backlog, freebind, netns, port, reuseaddr, reuseport, scope, transparent
    net = "/run/netns/test_1"
    link_local = b"\xfe\x80" + bytes(13) + b"\1"
    assert [(type(one), slots_of(one)) for one in made.listeners] == [
        (Listener, (bytes(16), 4096, False, "", 80, True, False, "", False)),
        (Listener, (b"\x7f\0\0\x96", 7, True, net, 2, False, True, "", True)),
        (Inherited, (9, 3, True)),
        (Listener, (link_local, 4096, False, net, 0, True, False, "eth0", False)),
        (Inherited, (4096, 4, False)),
    ]
    # gid, mode, path, uid
    assert [slots_of(one) for one in made.control_paths] == [
        (5, 0o777, "/run/socketbox/ctl.sock", 0),
        (NOT_CHANGED, 0o700, "other.sock", NOT_CHANGED),
    ]
    assert [slots_of(one) for one in made.slots] == [(0, 150000), (1, 0)]  # control_path, uid
    assert slots_of(made.daemon) == ("/run/empty", 1001, [4, 24], 1000)  # chroot gid groups uid
    assert made.final_netns == "/run/netns/test_2"
    assert list(made.rules.sets) == ["rules._start", "rules.another"]
    assert made.rules.warnings == []


def test_least() -> None:
    made = read_json(LEAST, "box")
    assert len(made.listeners) == 1
    assert (made.control_paths, made.slots, made.final_netns) == ([], [], "")
    assert slots_of(made.daemon) == ("", None, None, None)
    assert NOT_CHANGED == -1


def changed(**members: Any) -> Configuration:
    return read_json(deepcopy(LEAST) | members, "box")


def path(**members: Any) -> dict:
    return {"paths": [{"socket": "/a"} | members]}


def incoming(**members: Any) -> dict:
    return {"incoming": [{"address": "::", "port": 80} | members]}


KNOWN = "known are socketbox-version, incoming, rules, final_netns, paths, daemon, outgoing"


@pytest.mark.parametrize(
    ("members", "error"),
    [
        ({"extra": 1}, f"extra: there is no such key; {KNOWN}"),
        ({"socketbox-version": 2}, "socketbox-version: this version is not known; write 1"),
        ({"socketbox-version": None}, "socketbox-version: a number is expected, and this is null"),
        ({"incoming": []}, "incoming: there is nowhere to accept connections"),
        ({"incoming": {}}, "incoming: a list is expected, and this is an object"),
        ({"incoming": [1]}, "incoming[0]: an object is expected, and this is a number"),
        ({"incoming": [{"port": 1}]}, "incoming[0]: 'address' is missing"),
        ({"incoming": [{"address": "::"}]}, "incoming[0]: 'port' is missing"),
        (incoming(x=1), "incoming[0].x: there is no such key; known are address, port"),
        (incoming(address="localhost"), "incoming[0].address: 'localhost' is not an address;"),
        (incoming(address="fe80::1%"), "incoming[0].address: 'fe80::1%' is not an address"),
        (incoming(address="fe80::1%\ud800"), "incoming[0].address: 'fe80::1%\\ud800' is not an"),
        (incoming(address="fe80::1%a\0"), "incoming[0].address: 'fe80::1%a\\x00' is not an"),
        (incoming(address="1.2.3.4%lo"), "incoming[0].address: '1.2.3.4%lo' is not an address"),
        (incoming(port=65536), "incoming[0].port: the number is out of range; write 0 to 65535"),
        (incoming(transparent="yes"), "incoming[0].transparent: true or false is expected"),
        (incoming(reuseport=1), "incoming[0].reuseport: true or false is expected"),
        (incoming(backlog=-1), "incoming[0].backlog: the number is out of range; write 0 to"),
        (incoming(netns=""), "incoming[0].netns: '' is no path of a file"),
        ({"incoming": [{"fd": -1}]}, "incoming[0].fd: the number is out of range"),
        ({"incoming": [{"fd": 3, "port": 1}]}, "incoming[0].port: there is no such key;"),
        ({"incoming": [{"fd": 3, "listen": 1}]}, "incoming[0].listen: true or false is expected"),
        ({"final_netns": 1}, "final_netns: a string is expected, and this is a number"),
        ({"paths": [{}]}, "paths[0]: 'socket' is missing"),
        (path(x=1), "paths[0].x: there is no such key; known are socket, mode, uid, gid"),
        (path(socket="a" * 91), "paths[0].socket: the path has 91 characters; at most 90 fit"),
        (path(socket="\u20ac" * 36), "paths[0].socket: the path has 36 characters"),
        (path(socket="a\0"), "paths[0].socket: 'a\\x00' is no path of a file"),
        (path(mode=700), "paths[0].mode: a string is expected, and this is a number"),
        (path(mode="888"), "paths[0].mode: '888' is no mode; write it in octal, \"0770\" for"),
        (path(mode="77777"), "paths[0].mode: '77777' is no mode"),
        (path(mode=""), "paths[0].mode: '' is no mode"),
        (path(mode="0" * 5000), "paths[0].mode: '" + "0" * 60 + "' is no mode"),
        (path(mode="7_7"), "paths[0].mode: '7_7' is no mode"),
        (path(uid=-2), "paths[0].uid: the number is out of range; write -1 to 4294967294"),
        ({"outgoing": [{"uid": 0}]}, "outgoing[0]: 'path_nr' is missing"),
        ({"outgoing": [{"path_nr": 0}]}, "outgoing[0]: 'uid' is missing"),
        ({"outgoing": [{"uid": -1, "path_nr": 0}]}, "outgoing[0].uid: the number is out of range"),
        ({"outgoing": [{"uid": 0, "path_nr": 0, "x": 0}]}, "outgoing[0].x: there is no such key"),
        ({"daemon": []}, "daemon: an object is expected, and this is a list"),
        ({"daemon": {"user": 1}}, "daemon.user: there is no such key; known are chroot, groups"),
        ({"daemon": {"groups": 1}}, "daemon.groups: a list is expected, and this is a number"),
        ({"daemon": {"groups": [1] * 65537}}, "daemon.groups: there are 65537 groups; write 65536"),
        ({"daemon": {"groups": [0, -1]}}, "daemon.groups[1]: the number is out of range"),
        ({"daemon": {"uid": "me"}}, "daemon.uid: a number is expected, and this is a string"),
        ({"daemon": {"gid": 1 << 32}}, "daemon.gid: the number is out of range"),
        ({"daemon": {"uid": 0}}, "daemon.uid: this is root; name a user with less power"),
        ({"daemon": {"chroot": "/x"}}, "daemon.chroot: this does not hold root, who can leave any"),
        ({"daemon": {"chroot": ""}}, "daemon.chroot: '' is no path of a file"),
        ({"rules": []}, "rules: an object is expected, and this is a list"),
    ],
)
def test_errors(members: dict, error: str) -> None:
    with pytest.raises(UsageError) as caught:
        changed(**members)
    assert str(caught.value).startswith(f"box: {error}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["socketbox-version", "incoming", "rules"])
def test_what_must_be_there(name: str) -> None:
    document = {key: value for key, value in LEAST.items() if key != name}
    with pytest.raises(UsageError, match=f"^box: '{name}' is missing$"):
        read_json(document, "box")


def test_no_object() -> None:
    with pytest.raises(UsageError, match=r"^box: an object is expected, and this is a list$"):
        read_json([], "box")


def test_limits_that_are_kept() -> None:
    assert len(changed(daemon={"groups": [1] * 65536}).daemon.groups) == 65536
    assert changed(final_netns="/\udcff").final_netns == "/\udcff"
    made = changed(**path(socket="a" * 90, mode="0o1750", uid=-1, gid=(1 << 32) - 2))
    assert slots_of(made.control_paths[0]) == ((1 << 32) - 2, 0o1750, "a" * 90, -1)
    assert changed(**incoming(address="192.0.2.1", port=65535)).listeners[0].port == 65535


def test_where_a_connection_comes_in() -> None:
    made = changed(
        incoming=[
            {"fd": 3},
            {"address": "::", "port": 80},
            {"address": "0.0.0.0", "port": 81},
            {"address": "192.0.2.1", "port": 80},
            {"address": "::2", "port": 80, "transparent": True},
        ]
    )
    four, one = bytes((192, 0, 2, 1)), bytes(15) + b"\1"
    expected = {(four, 80): 3, (one, 80): 1, (four, 81): 2, (one, 81): 4, (bytes(16), 0): 4}
    assert {end: made.listener_at(*end) for end in expected} == expected
    assert changed(incoming=[{"address": "::", "port": 1}, {"fd": 3}]).listener_at(one, 80) == 1
    assert changed(**incoming()).listener_at(one, 81) == 0


def test_a_control_path_is_a_file() -> None:
    made = changed(**path(socket="@" + "a" * 89))
    assert made.control_paths[0].path == "./@" + "a" * 89


def test_a_slot_that_nobody_can_have() -> None:
    made = changed(outgoing=[{"uid": 0, "path_nr": 0}, {"uid": 0, "path_nr": 1}], **path())
    assert made.rules.warnings == [
        "box: outgoing[1].path_nr: there is no paths[1]: nobody can register for it"
    ]
    many = changed(outgoing=[{"uid": 0, "path_nr": 0}] * 500).rules.warnings
    assert (len(many), many[-1]) == (101, "and 400 more warnings like these")


def test_what_the_rules_may_name() -> None:
    rules = {"_start": {"type": "rule", "rules": [{"incoming_socket": 1, "jump": "o:1"}]}}
    with pytest.raises(UsageError, match="there is no slot 1; there are 0 in outgoing"):
        changed(rules=rules)
    rules["_start"]["rules"][0]["jump"] = "r:_start"
    assert changed(rules=rules).rules.warnings == [
        "box: rules._start.rules[0].incoming_socket: there are only 1, which are counted from 0"
    ]
