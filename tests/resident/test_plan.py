"""What a plan says when nothing else is said, and what a service does that has nothing to do."""

from muonsocks.address import parse_networks
from muonsocks.net.inherit import Peer
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


def test_what_connections_are_counted_by() -> None:
    fronts = parse_networks("192.0.2.0/31, 2001:db8:f::/48")
    capacity = Capacity(7, 3, fronts=fronts)
    for host, source in (
        ("198.51.100.7", bytes((198, 51, 100, 7))),
        ("192.0.2.2", bytes((192, 0, 2, 2))),
        ("192.0.2.1", b""),
        ("::ffff:192.0.2.2", bytes((192, 0, 2, 2))),
        ("2001:db8::1:2:3:4", bytes.fromhex("20010db800000000")),
        ("2001:db8:f::1", b""),
        ("/run/socket", b""),
    ):
        peer = Peer.at(host, 1)
        assert peer is not None
        assert capacity.source(peer) == source, host
        assert Capacity(7).source(peer) == b""
