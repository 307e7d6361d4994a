"""The pool of pipes: how many, how large, and what comes back into it."""

import fcntl
import os
import resource

import pytest
from ends import descriptors, nothing_left_behind
from places import descriptor_limit, in_child, root_only

from muonsocks.net import pipes


@pytest.fixture(autouse=True)
def leaks_nothing():
    with nothing_left_behind():
        yield


def take() -> pipes.Pipe:
    pipe = pipes.take()
    assert pipe is not None
    return pipe


def test_pipe_is_large_and_never_blocks() -> None:
    pipe = take()
    assert fcntl.fcntl(pipe.writer, fcntl.F_GETPIPE_SZ) == pipes.SIZE
    for fd in (pipe.reader, pipe.writer):
        assert not os.get_blocking(fd)
        assert not os.get_inheritable(fd)
    pipe.release()


def test_released_pipe_is_used_again() -> None:
    first = take()
    first.release()
    assert take() is first
    second = take()
    assert second is not first
    first.release()
    second.release()


def test_pipe_with_bytes_in_it_is_closed() -> None:
    pipe = take()
    pipe.left = os.write(pipe.writer, b"undelivered")
    pipe.release()
    assert not pipes._pool
    with pytest.raises(OSError):
        os.fstat(pipe.reader)
    with pytest.raises(OSError):
        os.fstat(pipe.writer)


def test_contents() -> None:
    pipe = take()
    pipe.left = os.write(pipe.writer, b"a" * 70000) + os.write(pipe.writer, b"b")
    assert pipe.contents() == b"a" * 70000 + b"b"
    assert pipe.left == 0
    assert pipe.contents() == b""
    pipe.release()


def test_there_is_a_bound() -> None:
    taken = [take() for _ in range(pipes._MOST)]
    assert pipes.take() is None
    taken.pop().release()
    taken.append(take())
    assert pipes.take() is None
    for pipe in taken:
        pipe.release()
    again = [take() for _ in range(pipes._MOST)]
    assert {id(pipe) for pipe in again} == {id(pipe) for pipe in taken}, "more than the bound"
    assert pipes.take() is None
    for pipe in again:
        pipe.release()


@pytest.mark.parametrize("more", [0, 1])
def test_out_of_descriptors(more: int) -> None:
    with descriptor_limit(more):
        assert pipes.take() is None
    take().release()


@root_only()
def test_user_with_too_many_pipes_has_none() -> None:
    """Over pipe-user-pages-soft a new pipe has 8 KiB, which is worse than none."""

    def as_nobody() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        assert pipes.take() is not None
        hoard = []
        for _ in range(1000):
            hoard.append(os.pipe())
            try:
                fcntl.fcntl(hoard[-1][1], fcntl.F_SETPIPE_SZ, pipes.SIZE)
            except PermissionError:
                if fcntl.fcntl(hoard[-1][1], fcntl.F_GETPIPE_SZ) < 65536:
                    break
        else:
            os._exit(0)  # this kernel sets no such limit
        before = descriptors()
        assert pipes.take() is None
        assert pipes._in_use == 1
        assert descriptors() == before

    in_child(as_nobody)


def test_few_descriptors_allow_few_pipes() -> None:
    assert pipes.limit(7) == 6
    try:
        taken = [take() for _ in range(3)]
        assert pipes.take() is None
        for pipe in taken:
            pipe.release()
    finally:
        assert pipes.limit(1 << 20) == 2 * pipes._MOST
    taken = [take() for _ in range(4)]
    for pipe in taken:
        pipe.release()
