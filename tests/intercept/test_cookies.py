"""What sockets and their networks are known by."""

import socket

from places import another_network, root_only

from muonsocks.intercept.cookies import cookie_of, network_of


def test_cookies_are_of_sockets_and_not_of_descriptors() -> None:
    with socket.socket() as one, socket.socket() as other, one.dup() as same:
        assert cookie_of(one) == cookie_of(same) != cookie_of(other)
        assert network_of(one) == network_of(other) != cookie_of(one)


@root_only()
def test_a_socket_is_of_the_network_that_it_was_made_in() -> None:
    with (
        socket.socket() as here,
        another_network() as there,
        there(socket.socket) as one,
        there(socket.socket, socket.AF_INET6) as other,
    ):
        assert network_of(one) == network_of(other) != network_of(here)
