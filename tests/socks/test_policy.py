"""Who may come in: users, trusted networks, and addresses that have authenticated once."""

import pytest

from muonsocks.address import parse_address, parse_networks
from muonsocks.net.inherit import Peer
from muonsocks.socks.policy import Access
from muonsocks.socks.users import single_user

USERS = single_user("alice", "secret")
NETWORKS = parse_networks("192.0.2.0/24")
INSIDE, OUTSIDE = (Peer(text, parse_address(text)) for text in ("192.0.2.7", "198.51.100.7"))
NOWHERE = Peer("unix")


@pytest.mark.parametrize("peer", [INSIDE, OUTSIDE, NOWHERE], ids=["inside", "outside", "nowhere"])
@pytest.mark.parametrize(
    ("access", "limited", "barred", "asked"),
    [
        (Access(), False, "", ""),
        (Access(USERS), True, "", "inside outside nowhere"),
        (Access(None, NETWORKS), True, "outside nowhere", ""),
        (Access(USERS, NETWORKS), True, "", "outside nowhere"),
    ],
    ids=["anybody", "users", "networks", "both"],
)
def test_who_may_come_in(
    access: Access, limited: bool, barred: str, asked: str, peer: Peer
) -> None:
    who = {INSIDE: "inside", OUTSIDE: "outside", NOWHERE: "nowhere"}[peer]
    assert access.is_limited == limited
    assert access.bars(peer) == (who in barred.split())
    assert access.needs_password(peer) == (who in asked.split())
    assert access.trusts(peer) == (peer is INSIDE and bool(access.trusted))
