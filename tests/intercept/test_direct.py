"""The way without proxies: each program does, and is told, what it would be without us."""

import subprocess

import pytest
from programs import PYTHON, SECONDS
from socksified import NOWHERE, expect_isolation, run

# A listener on loopback whose queue is full, so that whoever comes waits; and who empties it.
START = """
import ctypes, errno, fcntl, os, select, signal, struct, sys, threading
from socket import *
there = socket(); there.bind(("127.0.0.1", 0)); there.listen(0)
fill = [socket() for _ in range(2)]
for one in fill: one.setblocking(False); one.connect_ex(there.getsockname())
library = ctypes.CDLL(None, use_errno=True)
address = b"\\2\\0" + struct.pack(">H", there.getsockname()[1]) + inet_aton("127.0.0.1") + bytes(8)
kept = []
def let_in():
    def accept():
        while True: kept.append(there.accept())
    threading.Thread(target=accept, daemon=True).start()
def connect(sock):
    "connect(2) with nothing between: Python's would try again."
    ctypes.set_errno(0)
    return library.connect(sock.fileno(), address, 16) and errno.errorcode[ctypes.get_errno()]
def say(*words): print(*words, flush=True)
def blocks(): return not fcntl.fcntl(s, fcntl.F_GETFL) & os.O_NONBLOCK
def is_up(): return bool(select.select([], [s], [], 20)[1])
def limit(seconds):
    s.setsockopt(SOL_SOCKET, SO_SNDTIMEO, struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6)))
def interrupted():
    signal.signal(signal.SIGALRM, lambda *_: None); signal.siginterrupt(signal.SIGALRM, True)
    signal.setitimer(signal.ITIMER_REAL, 0.2); return connect(s)
s = socket()
"""
PROGRAMS = {
    "it comes up": """
threading.Timer(0.2, let_in).start()
say(connect(s), blocks(), s.getpeername() == there.getsockname(), connect(s))
""",
    "nobody listens": """
there.close(); say(connect(s), blocks(), s.getsockopt(SOL_SOCKET, SO_ERROR))
""",
    "a failure is no end": """
port = there.getsockname()[1]; there.close(); say(connect(s))
there = socket(); there.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
there.bind(("127.0.0.1", port)); there.listen(); say(connect(s), connect(s))
""",
    "a signal ends the wait": """
say(interrupted(), blocks()); let_in(); say(connect(s), blocks(), connect(s))
""",
    "what a signal has interrupted comes up by itself": """
say(interrupted(), blocks()); let_in(); say(is_up(), s.getsockopt(SOL_SOCKET, SO_ERROR), blocks())
""",
    "what the program has made of it stays": """
say(interrupted()); s.setblocking(False); say(connect(s)); let_in()
say(is_up(), s.getsockopt(SOL_SOCKET, SO_ERROR), blocks())
try: s.recv(1)
except BlockingIOError: say("it does not block")
say(connect(s), connect(s))
""",
    "begun without a wait": """
s.setblocking(False); say(connect(s)); say(connect(s)); s.setblocking(True)
threading.Timer(0.2, let_in).start(); say(connect(s), connect(s), blocks())
""",
    "time limits": """
limit(0.1); say(connect(s), connect(s), connect(s)); limit(20)
threading.Timer(0.2, let_in).start(); say(connect(s))
""",
    "another thread ends it": """
def wait(): said.append(connect(s))
said = []; one = threading.Thread(target=wait); one.start()
while s.getsockopt(IPPROTO_TCP, TCP_INFO, 1)[0] != 2: pass  # TCP_SYN_SENT
threading.Event().wait(0.1); s.shutdown(SHUT_RDWR); one.join(20); say(said)
""",
    "two threads wait": """
def wait(): said.append(connect(s))
said = []; all = [threading.Thread(target=wait) for _ in range(2)]
for one in all: one.start()
threading.Timer(0.3, let_in).start()
for one in all: one.join(20)
say(sorted(map(str, said)))
""",
    "a mapped address": """
let_in()
address = b"\\x0a\\0" + address[2:4] + bytes(14) + b"\\xff\\xff" + address[4:8] + bytes(4)
for only in (0, 1):
    s = socket(AF_INET6); s.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, only); ctypes.set_errno(0)
    result = library.connect(s.fileno(), address, 28)
    say(result, errno.errorcode.get(ctypes.get_errno()))
""",
}


@pytest.mark.parametrize("mode", ["isolate", "async", "hold"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_it_is_as_without_us(name: str, mode: str) -> None:
    if mode == "isolate":
        expect_isolation()
    words = (PYTHON, "-c", START + PROGRAMS[name])
    expected = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS)
    assert expected.returncode == 0, expected.stderr
    done = run(*words, proxy=NOWHERE, mode=mode)
    assert (done.status, done.output) == (0, expected.stdout), done.log
