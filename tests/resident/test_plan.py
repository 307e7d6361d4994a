"""What a plan says when nothing else is said."""

from muonsocks.resident.plan import Capacity, Plan


def test_a_connection_takes_two_descriptors_and_no_source_is_limited() -> None:
    capacity = Capacity(7)
    assert (capacity.connections, capacity.per_source, capacity.each) == (7, 0, 2)
    plan = Plan(3, capacity, 30)
    assert (plan.workers, plan.capacity, plan.drain) == (3, capacity, 30)
    assert plan.board.workers == 3
