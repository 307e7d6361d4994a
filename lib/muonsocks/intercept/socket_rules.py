"""Which sockets a program may have: none that leads past the proxies. No I/O.

Of the internet's there are TCP and UDP, which are seen to when they are connected or sent from.
What sends packets of its own making, or speaks another protocol, is refused: raw sockets and ICMP,
SCTP, DCCP, UDP-Lite, packet(7), vsock(7) and all families that nothing is known of. Nor may a
socket have its packets go by way of another host (source routing), or join a group, which the
kernel tells to all in the network (IGMP, MLD).
"""

from __future__ import annotations

import errno

from muonsocks.intercept.bpf import ALLOW, Rule, equals, refuse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.intercept.bpf import Rules

# linux/socket.h, linux/net.h, linux/in.h
_UNIX, _INET, _INET6, _NETLINK, _ALG = 1, 2, 10, 16, 38
_STREAM, _DATAGRAM, _TYPE = 1, 2, 0xF
_TCP, _UDP, MPTCP = 6, 17, 262
TCP_PROTOCOLS = (_TCP, MPTCP)
_IP, _IP_OPTIONS, _IPV6 = 0, 4, 41
# IP_ADD_MEMBERSHIP, IP_ADD_SOURCE_MEMBERSHIP, IPV6_ADD_MEMBERSHIP, IPV6_JOIN_ANYCAST; both levels
# have MCAST_JOIN_GROUP, MCAST_JOIN_SOURCE_GROUP.
_JOINING = {_IP: (35, 39, 42, 46), _IPV6: (20, 27, 42, 46)}
_ROUTING_HEADERS = (5, 57)  # IPV6_2292RTHDR, IPV6_RTHDR

_ELSEWHERE = refuse(errno.EACCES)
_UNKNOWN = refuse(errno.EAFNOSUPPORT)

SOCKET_RULES: Rules = {
    "socket": (
        *(Rule(ALLOW, equals(0, family)) for family in (_UNIX, _NETLINK, _ALG)),
        *(
            Rule(ALLOW, equals(0, family), equals(1, kind, _TYPE), equals(2, protocol))
            for family in (_INET, _INET6)
            for kind, protocols in ((_STREAM, (0, *TCP_PROTOCOLS)), (_DATAGRAM, (0, _UDP)))
            for protocol in protocols
        ),
        *(Rule(_ELSEWHERE, equals(0, family)) for family in (_INET, _INET6)),
        Rule(_UNKNOWN),
    ),
    "setsockopt": (
        Rule(refuse(errno.EPERM), equals(1, _IP), equals(2, _IP_OPTIONS)),
        *(
            Rule(refuse(errno.EPERM), equals(1, _IPV6), equals(2, option))
            for option in _ROUTING_HEADERS
        ),
        *(
            Rule(refuse(errno.ENODEV), equals(1, level), equals(2, option))
            for level, options in _JOINING.items()
            for option in options
        ),
    ),
}
