"""Paths with an address in them, as the C program makes them."""

import pytest

from muonsocks.address import parse_address
from muonsocks.socketbox.connection import Connection
from muonsocks.socketbox.substitution import substitute

ALL = "#//0_#//1_#//2_#//3_#//4_#//5_#//6_#//7_"


@pytest.mark.parametrize(
    ("address", "port", "path", "wanted"),
    [
        ("::1", 7008, "/g#//7_-p#//P_-a#//0_.s", "/g00001-p07008-a00000.s"),
        ("1:22:333:4444:55:6:ffff:8000", 1, ALL, "0000100034008191747600085000066553532768"),
        ("192.0.2.1", 65535, ALL + "#//P_", "0" * 25 + "655354915200513" + "65535"),
        ("::ffff:192.0.2.1", 80, "@#//6_.#//7_", "@49152.00513"),
        # once each, the first of them
        ("::1", 80, "#//7_#//7_#//P_#//P_", "00001#//7_00080#//P_"),
        # and nothing else
        ("::1", 80, "#//8_#//p_#/7_#//7#//-1_#7_", "#//8_#//p_#/7_#//7#//-1_#7_"),
        ("::1", 80, "/run/a.sock", "/run/a.sock"),
        ("::1", 80, "##//7_", "#00001"),
    ],
)
def test_substitution(address: str, port: int, path: str, wanted: str) -> None:
    packed = parse_address(address)
    assert packed
    assert substitute(path, Connection(packed, port, bytes(16), 9)) == wanted
    assert len(wanted) == len(path)


def test_without_addresses() -> None:
    assert substitute("/#//7_-#//P_", Connection.without_addresses()) == "/00000-00000"
