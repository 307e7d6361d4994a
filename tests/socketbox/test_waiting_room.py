"""How many may wait: exactly so many, whoever else looks at the same moment."""

import os
import socket

import pytest
from box import waiting_room
from places import in_child

from muonsocks.resident.board import OWN_OPEN, Board
from muonsocks.socketbox.waiting_room import WaitingRoom


def entered(room: WaitingRoom, times: int, receiver: bytes = b"r", here: int = 0) -> list[str]:
    """Who is let in, "", or why not; `here` of them wait already, and those who are let in."""
    found: list[str] = []
    for _ in range(times):
        found.append(room.enter(receiver, here + found.count("")))
    return found


def test_so_many_and_no_more() -> None:
    room = waiting_room(1, 2)
    assert entered(room, 3) == ["", "", "2 connections wait already"]
    assert room.waiting == 2
    room.leave(b"r")
    assert entered(room, 2) == ["", "2 connections wait already"]
    assert entered(waiting_room(1, 0), 1) == ["none may wait"]
    assert entered(waiting_room(1, 0, 10), 1) == ["none may wait"]


def test_one_leaves_something_to_others() -> None:
    room = waiting_room(1, 5, 100)
    full = "3 connections wait for it already, with room for 2 more"
    assert entered(room, 4) == ["", "", "", full]
    assert entered(room, 2, b"s") == ["", "1 connections wait for it already, with room for 1 more"]
    assert entered(room, 2, b"t") == ["", "5 connections wait already"]
    room.leave(b"r")
    assert entered(room, 1) == ["2 connections wait for it already, with room for 1 more"]
    assert entered(room, 1, b"u") == [""]
    assert entered(waiting_room(1, 1, 100), 1) == [""]


@pytest.mark.parametrize("others", range(1, 6))
def test_however_many_are_down_there_is_room_for_one_more(others: int) -> None:
    """They have the same share each, and as much is left."""
    room = waiting_room(1, 120, 1000)
    counts = [0] * others
    for _ in range(120):
        for number in range(others):
            counts[number] += room.enter(b"%d" % number, counts[number]) == ""
    share = 120 // (others + 1)
    assert all(share <= count <= share + 1 for count in counts)
    assert entered(room, share // 2, b"good") == [""] * (share // 2)


def test_some_descriptors_are_left() -> None:
    """And those of this process are shared as places are."""
    room = waiting_room(1, 100, 5)
    full = "this process has no descriptors for more that wait for it"
    assert entered(room, 4) == ["", "", "", full]
    assert entered(room, 2, b"s") == ["", full]
    room.leave(b"r")
    assert entered(room, 2, here=2) == [full, full]
    assert entered(room, 1, b"t") == [""]
    assert entered(waiting_room(1, 100), 100) == [""] * 100


def test_one_is_counted_in_all_workers() -> None:
    board = Board(2)
    room = waiting_room(1, 5, 100, board)

    def another_worker() -> None:
        board.take_column(1)
        assert entered(room, 2) == ["", ""]

    in_child(another_worker)
    full = "3 connections wait for it already, with room for 2 more"
    assert entered(room, 2) == ["", full]


def test_in_all_workers_together() -> None:
    board = Board(2)
    room = waiting_room(1, 3, board=board)

    def another_worker() -> None:
        board.take_column(1)
        assert entered(room, 2) == ["", ""]

    assert entered(room, 1) == [""]
    in_child(another_worker)
    assert board.total(OWN_OPEN) == 3
    assert entered(room, 1) == ["3 connections wait already"]
    assert room.waiting == 1
    board.clear(1)  # it has ended, and so nobody waits there
    assert entered(room, 3) == ["", "", "3 connections wait already"]


def test_all_places_are_had() -> None:
    """Workers who want the last ones at the same moment do not keep each other from them."""
    board, crowd, most = Board(4), 4, 3
    room = waiting_room(1, most, board=board)
    for _ in range(50):
        ours, theirs = socket.socketpair()
        children = []
        for number in range(crowd):
            pid = os.fork()
            if pid == 0:
                board.take_column(number)
                theirs.recv(1)  # they all go at the same moment
                os._exit(entered(room, most).count(""))
            children.append(pid)
        ours.send(bytes(crowd))
        got = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        assert sum(got) == most == board.total(OWN_OPEN)
        for number in range(crowd):
            board.clear(number)
        ours.close()
        theirs.close()


def test_a_turn_is_nobodys_once_its_owner_has_died() -> None:
    room = waiting_room(1, 1)

    def dies() -> None:
        os.lockf(room._turn, os.F_LOCK, 0)

    in_child(dies)
    assert entered(room, 1) == [""]


def test_a_turn_is_not_waited_for_for_ever() -> None:
    """Its owner may have been stopped."""
    room = waiting_room(1, 1)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        if (pid := os.fork()) == 0:
            os.lockf(room._turn, os.F_LOCK, 0)
            theirs.send(b"x")
            theirs.recv(1)
            os._exit(0)
        assert ours.recv(1) == b"x"
        assert entered(room, 2) == ["", "1 connections wait already"]
        ours.send(b"x")
        os.waitpid(pid, 0)
