"""A connection is one number, whatever form its addresses have."""

from muonsocks.socketbox.connection import (
    FIELDS,
    LISTENER,
    LOCAL_ADDRESS,
    LOCAL_PORT,
    REMOTE_ADDRESS,
    REMOTE_PORT,
    Connection,
)

V4, V6 = b"\xc0\0\2\1", b"\x20\1\x0d\xb8" + bytes(11) + b"\1"
MAPPED = bytes(10) + b"\xff\xff" + V4


def test_ipv4_and_mapped_are_the_same_connection() -> None:
    assert Connection(V4, 1, MAPPED, 2).key == Connection(MAPPED, 1, V4, 2).key
    assert Connection(V4, 1, V4, 2).key != Connection(bytes(12) + V4, 1, V4, 2).key


def test_parts() -> None:
    key = Connection(V6, 80, MAPPED, 40000, 7).key
    assert LISTENER.of(key) == 7
    assert LOCAL_ADDRESS.of(key) == int.from_bytes(V6, "big")
    assert LOCAL_PORT.of(key) == 80
    assert REMOTE_ADDRESS.of(key) == int.from_bytes(MAPPED, "big")
    assert REMOTE_PORT.of(key) == 40000
    assert sum(field.everything << field.shift for field in FIELDS) == (1 << 320) - 1


def test_a_connection_without_addresses() -> None:
    """As of a unix socket: all is zero, which is not the IPv4 address 0.0.0.0."""
    assert Connection.without_addresses().key == 0
    assert Connection.without_addresses(3).key == 3 << 288
    assert Connection(bytes(4), 0, bytes(4), 0).key != 0


def test_text() -> None:
    assert str(Connection(V4, 80, V4, 40000)) == "from 192.0.2.1:40000 to 192.0.2.1:80"
    assert str(Connection(MAPPED, 80, V6, 1)) == "from [2001:db8::1]:1 to 192.0.2.1:80"
    assert str(Connection.without_addresses()) == "from [::]:0 to [::]:0"
