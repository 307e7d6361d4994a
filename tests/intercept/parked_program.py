"""What programs of tests begin with whose sockets do not block, and how they are run."""

from typing import Any

import socksified
from programs import SECONDS
from scripted_proxy import Proxy
from socksified import Done

LONG = 0.3  # s: so much longer than it takes to be put in its place without having been parked


def python(program: str, *arguments: str) -> tuple[str, ...]:
    """Give the words that run a program of Python's; what `PREAMBLE` has is there."""
    return socksified.python(PREAMBLE + program, *arguments)


def run(proxy: Proxy, *words: str, **named: Any) -> Done:
    """Run a program to its end, which is to be a good one."""
    named.setdefault("mode", "async")
    done = socksified.run(*words, proxy=proxy.url, **named)
    assert done.status == 0, done
    return done


PREAMBLE = f"""
import errno, os, select, socket, struct, sys, threading, time
SECONDS = {SECONDS}
TARGET = ("192.0.2.1", 80)

def begin(family=socket.AF_INET, target=TARGET):
    sock = socket.socket(family)
    sock.setblocking(False)
    number = sock.connect_ex(target)
    assert number == errno.EINPROGRESS, errno.errorcode.get(number, number)
    return sock

def wait(sock, events=select.POLLOUT, patience=SECONDS):
    poll = select.poll()
    poll.register(sock, events)
    return dict(poll.poll(patience * 1000)).get(sock.fileno(), 0)

def error_of(sock):
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

def is_through(sock, data=b"hello"):
    '''Hold that what is sent comes back, and the connection ends as it should.'''
    sock.setblocking(True)
    sock.settimeout(SECONDS)
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
    got = b""
    while piece := sock.recv(1 << 16):
        got += piece
    assert got == data, (len(got), len(data), got[:40])
"""
