"""Networks set up by rtnetlink, and what ip(8) has of them."""

import errno
import json
import socket
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from places import in_own_network, root_only, sh

from muonsocks.intercept.rtnetlink import Network

pytestmark = root_only()
IPV4 = socket.inet_aton("192.0.2.7")
IPV6 = socket.inet_pton(socket.AF_INET6, "2001:db8::7")


def ip(*words: str) -> Any:
    return json.loads(subprocess.run(["ip", "-j", *words], capture_output=True, check=True).stdout)


def in_network(function: Callable[[Network, int], None]) -> None:
    """Call a function with a network that has a link of which nothing is set yet."""

    def there() -> None:
        sh("ip link add name here type veth peer name other", "ip link set other up")
        network = Network()
        try:
            function(network, socket.if_nametoindex("here"))
        finally:
            network.close()

    in_own_network(there)


def test_a_link_is_brought_up():
    def there(network: Network, link: int) -> None:
        network.bring_up(link, mtu=9000)
        (found,) = ip("link", "show", "here")
        assert "UP" in found["flags"] and found["mtu"] == 9000
        network.bring_up(link)
        assert ip("link", "show", "here")[0]["mtu"] == 9000

    in_network(there)


def test_addresses_and_routes():
    def there(network: Network, link: int) -> None:
        network.bring_up(link)
        for packed in (IPV4, IPV6):
            network.add_address(link, packed)
        (found,) = ip("addr", "show", "here")
        shown = {(one["local"], one["prefixlen"]) for one in found["addr_info"]}
        assert {("192.0.2.7", 32), ("2001:db8::7", 128)} <= shown
        network.send_all_to(socket.AF_INET, link, IPV4)
        network.send_all_to(socket.AF_INET6, link, IPV6)
        for host, source in (("198.51.100.1", "192.0.2.7"), ("2001:db8:9::1", "2001:db8::7")):
            (route,) = ip("route", "get", host)
            assert (route["dev"], route["prefsrc"]) == ("here", source)

    in_network(there)


def test_every_address_is_local():
    def there(network: Network, _: int) -> None:
        for family in (socket.AF_INET, socket.AF_INET6):
            network.have_local(family, 1)
        for host in ("198.51.100.1", "2001:db8:9::1"):
            (route,) = ip("route", "get", host)
            assert (route["type"], route["dev"]) == ("local", "lo")

    in_network(there)


def test_one_address_is_local():
    def there(network: Network, link: int) -> None:
        network.bring_up(link)
        network.have_local(socket.AF_INET6, link, IPV6)
        (route,) = ip("route", "get", "2001:db8::7")
        assert (route["type"], route["dev"]) == ("local", "lo")
        done = subprocess.run(["ip", "route", "get", "2001:db8::8"], capture_output=True)
        assert done.returncode == 2

    in_network(there)


def test_what_cannot_be_is_an_error_that_says_what():
    def there(network: Network, link: int) -> None:
        network.add_address(link, IPV4)
        with pytest.raises(OSError, match="address: File exists") as caught:
            network.add_address(link, IPV4)
        assert caught.value.errno == errno.EEXIST
        with pytest.raises(OSError, match="link: No such device"):
            network.bring_up(9999)
        with pytest.raises(OSError, match="route: "):
            network.send_all_to(socket.AF_INET, link, IPV4)  # which is down
        network.have_local(socket.AF_INET, 1)
        with pytest.raises(OSError, match="local route: File exists"):
            network.have_local(socket.AF_INET, 1)

    in_network(there)
