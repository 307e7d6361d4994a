"""What becomes of a parked socket's connection where the program has gone other ways meanwhile."""

from parked_program import LONG, python, run
from scripted_proxy import proxy


def test_another_socket_that_has_the_number_by_then_is_left_alone() -> None:
    program = """
sock = begin()
kept, other = sock.dup(), socket.socket()
other.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 50000)
other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 7))
os.dup2(other.fileno(), sock.fileno())
assert wait(kept) == select.POLLOUT
assert other.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 100000
assert other.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == struct.pack("ii", 1, 7)
assert error_of(kept) == 0
is_through(kept)
"""
    with proxy(delay=LONG) as one:
        run(one, *python(program))
        assert one.received == [b"hello"]


def test_one_that_is_closed_under_way_has_not_been_up() -> None:
    program = """
begin().close()
again = begin()
assert wait(again)
is_through(again)
"""
    with proxy(delay=LONG) as one:
        done = run(one, *python(program), options=("-v",))
        assert done.log.count("reason=Operation canceled") == 1
        assert done.log.count("connected target=") == 1
