"""What a program has set before it connects, through a proxy, is no hindrance and is not lost."""

import pytest
from parked_program import python, run
from scripted_proxy import proxy
from socksified import expect_isolation

MODES = ["isolate", "async", "hold"]
ENOUGH = """
sock = socket.socket()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 20)
sock.setblocking(BLOCKS)
sock.connect(TARGET) if BLOCKS else sock.connect_ex(TARGET)
assert wait(sock) == select.POLLOUT and error_of(sock) == 0
assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 20
sock.send(b"x" * 19)
assert not wait(sock, select.POLLIN, 0.2)
sock.send(b"x")
assert wait(sock, select.POLLIN)
"""
HIGH = """
import resource
sock = socket.socket()
os.dup2(sock.fileno(), 500)
sock.close()
sock = socket.socket(fileno=500)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 9)
sock.setblocking(False)
poll = select.epoll()
poll.register(sock, select.EPOLLOUT)
assert sock.connect_ex(TARGET) in (0, errno.EINPROGRESS)
assert poll.poll(SECONDS) == [(500, select.EPOLLOUT)]
sock.setblocking(True)
assert error_of(sock) == 0
other = socket.socket()  # nobody is held up by what that is now
other.connect(TARGET)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
is_through(sock)
"""
INTERRUPTED = """
import ctypes, signal
sock = socket.socket()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 7)
signal.signal(signal.SIGALRM, lambda *_: None)
signal.siginterrupt(signal.SIGALRM, True)
signal.setitimer(signal.ITIMER_REAL, 0.1)
address = b"\\2\\0\\0\\x50" + bytes([192, 0, 2, 1]) + bytes(8)
library = ctypes.CDLL(None, use_errno=True)
assert library.connect(sock.fileno(), address, 16) and ctypes.get_errno() == errno.EINTR
assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 7
assert wait(sock) == select.POLLOUT
sock.send(b"x" * 3)
assert not wait(sock, select.POLLIN, 0.2)
assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 7
"""
ONLY_IPV6 = """
with socket.socket(socket.AF_INET6) as sock:
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(sys.argv[1]))
    print(sock.connect_ex(("::ffff:192.0.2.1", 80)))
"""
# The options of sockets that are exchanged
ALSO = """
options = [
    (socket.SOL_SOCKET, 60),  # SO_ZEROCOPY
    (socket.SOL_SOCKET, 35),  # SO_TIMESTAMPNS
    (socket.IPPROTO_IP, 11),  # IP_RECVERR
    (socket.IPPROTO_TCP, 36),  # TCP_INQ
]
sock = socket.socket()
for option in options:
    sock.setsockopt(*option, 1)
sock.setblocking(False)
assert sock.connect_ex(TARGET) in (0, errno.EINPROGRESS)
assert wait(sock) and error_of(sock) == 0
assert [sock.getsockopt(*option) for option in options] == [1] * len(options)
is_through(sock)
"""


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    if request.param == "isolate":
        expect_isolation()
    return str(request.param)


@pytest.mark.parametrize("delay", [0.0, 0.2])
@pytest.mark.parametrize("blocks", [True, False])
def test_how_much_is_enough(mode: str, blocks: bool, delay: float) -> None:
    """SO_RCVLOWAT: answers of proxies are shorter."""
    with proxy(delay=delay) as one:
        run(one, *python(f"BLOCKS = {blocks}{ENOUGH}"), mode=mode)


@pytest.mark.parametrize("mode", ["isolate", "async"], indirect=True)
def test_how_much_is_enough_after_a_signal(mode: str) -> None:
    with proxy(delay=0.5) as one:
        run(one, *python(INTERRUPTED), mode=mode)


@pytest.mark.parametrize("delay", [0.0, 0.2])
def test_a_number_that_could_not_be_had_now(mode: str, delay: float) -> None:
    """As of programs that need fewer from now on: nothing can be put there."""
    with proxy(delay=delay) as one:
        run(one, *python(HIGH), mode=mode)


@pytest.mark.parametrize(("only", "number"), [("0", "0"), ("1", "101")])  # ENETUNREACH
def test_ipv6_only(mode: str, only: str, number: str) -> None:
    with proxy() as one:
        assert run(one, *python(ONLY_IPV6, only), mode=mode).output == f"{number}\n"
        assert len(one.asked) == 1 - int(only)


@pytest.mark.parametrize("delay", [0.0, 0.2])
def test_options_are_those_of_the_next_socket(mode: str, delay: float) -> None:
    with proxy(delay=delay) as one:
        run(one, *python(ALSO), mode=mode)
