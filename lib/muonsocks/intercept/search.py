"""Names that a resolver makes up by itself: search domains, resolv.conf(5). No I/O.

A program asks for api.github.com, and its resolver may ask for api.github.com.office.example first,
if that domain is searched. Whoever answers all names alike would answer this one, too. With
`ndots:N` a resolver asks for a name as it is first, and then for no other if that has an address,
once there are as many dots in it: so what is made up has fewer in front of the domain. A name that
has any there, but fewer, is held to be made up: there is no such name. That is at times wrong, with
an N that is not 1 as it mostly is: with N = 2, a.b.office.example cannot be asked for by that name
(but those that no_proxy has are looked up, and can).

What has no dot, and is asked for in a searched domain, is meant to be there: such names are
answered.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_LARGEST = 15  # RES_MAXNDOTS


class Search:
    """Which domains are searched, in lower case, and from how many dots on a name is asked as it
    is first.
    """

    __slots__ = ("domains", "dots")

    def __init__(self, domains: Iterable[str] = (), dots: int = 1) -> None:
        self.domains = tuple(one.lower().strip(".") for one in domains if one.strip("."))
        self.dots = dots

    def has_made_up(self, name: str) -> bool:
        """Say whether a name is one that a resolver has made up."""
        for domain in self.domains:
            if name.endswith(f".{domain}"):
                rest = name[: -len(domain) - 1]
                if 0 < rest.count(".") < self.dots:
                    return True
        return False


def read_search(configuration: str, environ: Mapping[str, str]) -> Search:
    """Read resolv.conf(5), and what the environment has in place of that. What makes no sense there
    is left out, as the C library does.
    """
    domains: list[str] = []
    options: list[str] = []
    for line in configuration.splitlines():
        word, *rest = line.partition("#")[0].partition(";")[0].split() or [""]
        if word in ("search", "domain"):
            domains = rest if word == "search" else rest[:1]  # the last one counts
        elif word == "options":
            options += rest
    domains = environ.get("LOCALDOMAIN", "").split() or domains
    dots = 1
    for option in [*options, *environ.get("RES_OPTIONS", "").split()]:
        name, _, value = option.partition(":")
        if name == "ndots" and value.isascii() and value.isdecimal():
            dots = min(int(value[:4]), _LARGEST)
    return Search(domains, dots)
