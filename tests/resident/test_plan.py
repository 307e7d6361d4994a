"""What a plan says when nothing else is said, and what a service does that has nothing to do."""

from muonsocks.net.loop import Loop
from muonsocks.resident.plan import Capacity, Plan, Service


def test_a_connection_takes_two_descriptors_and_no_source_is_limited() -> None:
    capacity = Capacity(7)
    assert (capacity.connections, capacity.per_source, capacity.each) == (7, 0, 2)
    plan = Plan(3, capacity, 30)
    assert (plan.workers, plan.capacity, plan.drain) == (3, capacity, 30)
    assert plan.board.workers == 3


def test_a_service_that_is_not_configured() -> None:
    """Can be told to read again, has nothing to get ready, and ends with nothing to do."""
    service, loop = Service(), Loop()
    retired: list[object] = []
    service.take(service.reread())
    service.settle(loop, retired.append)
    service.finish()
    assert service.state() == ""
    assert not retired and not loop.handlers
    loop.close()
