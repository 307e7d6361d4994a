"""Proxies that a command line names, one through the other: --via and --proxy."""

from __future__ import annotations

from muonsocks.errors import UsageError
from muonsocks.socks.proxy_address import ProxyAddress

_ELSEWHERE = {"--via": "put it into a file, see --rules", "--proxy": "put it into $ALL_PROXY"}


def named_by(option: str, urls: list[str], elsewhere: str = "") -> tuple[ProxyAddress, ...]:
    """Read what the option of this name has been given, and hide the passwords in it from the
    process list. UsageError.
    """
    proxies = []
    for url in urls:
        try:
            proxies.append(ProxyAddress.parse(url))
        except UsageError as error:
            raise UsageError(f"{option}: {error}") from None
        if "@" in url:
            from muonsocks.net.process_list import hide_password

            hide_password(url, elsewhere or _ELSEWHERE[option])
    if len(proxies) > 1:
        from muonsocks.socks.rules import expect_chain

        expect_chain(proxies)
    return tuple(proxies)
