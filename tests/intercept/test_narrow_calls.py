"""Datagrams of a program with pointers of four bytes, whose structures are other ones."""

import platform
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from attended import directory
from compiled import compiled
from socksified import run

SOURCE = Path(__file__).with_name("narrow_calls.c")
FREESTANDING = "-m32 -static -nostdlib -ffreestanding -fno-pic -no-pie -fno-stack-protector -O1"


@pytest.fixture(scope="module")
def program() -> Iterator[str]:
    if platform.machine() != "x86_64":
        pytest.skip("this is for x86_64, which runs i386's programs")
    with directory() as place:
        program = compiled(place, SOURCE, "gcc", *FREESTANDING.split())
        try:
            subprocess.run([program, "x"])
        except OSError:
            pytest.skip("this kernel runs no 32-bit programs")
        yield program


@pytest.mark.parametrize("how", ["connect", "to", "message", "n messages"])
def test_a_name_server_is_asked(program: str, how: str) -> None:
    done = run(program, how, mode="async")
    said = done.said.encode(errors="surrogateescape")
    address, source, name = said[:4], said[4:10], said[10:]
    assert socket.inet_ntoa(address) == "198.18.0.1"
    assert source == name  # as the program has it
    told = b"\0\x35\xc0\0\2\x35"  # port 53 of 192.0.2.53
    assert (source == told) == (how == "connect")
    assert how == "connect" or source[2:] == b"\x7f\0\0\1"
