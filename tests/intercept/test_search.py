"""Names that a resolver makes up out of the domains that it searches."""

import pytest

from muonsocks.intercept.search import Search, read_search


@pytest.mark.parametrize(
    ("name", "dots", "is_made_up"),
    [
        ("api.github.com.office.example", 5, True),
        ("api.github.com.office.example", 3, True),
        ("api.github.com.office.example", 2, False),  # it was asked for as api.github.com first
        ("a.b.office.example", 2, True),
        ("a.b.office.example", 1, False),
        ("intranet.office.example", 5, False),
        ("office.example", 5, False),
        ("backoffice.example", 5, False),
        ("a.b.backoffice.example", 5, False),
        ("api.github.com", 5, False),
        ("x.y.other.example", 2, True),
    ],
)
def test_what_has_dots_but_too_few_is_made_up(name: str, dots: int, is_made_up: bool) -> None:
    search = Search(["Office.Example.", "", "other.example"], dots)
    assert search.has_made_up(name) is is_made_up


@pytest.mark.parametrize(
    ("text", "environ", "domains", "dots"),
    [
        ("", {}, (), 1),
        ("nameserver 192.0.2.1\nsearch a.example B.example\n", {}, ("a.example", "b.example"), 1),
        ("search a.example\ndomain b.example c.example", {}, ("b.example",), 1),
        ("search a.example # b.example\n;search c.example", {}, ("a.example",), 1),
        ("search a.example\nsearch\n", {}, (), 1),
        ("search a\noptions rotate ndots:5\noptions timeout:1", {}, ("a",), 5),
        ("options ndots:99999999999", {}, (), 15),
        ("options ndots:x ndots: ndots:-1 ndots", {}, (), 1),
        ("search a\noptions ndots:2", {"LOCALDOMAIN": "b c"}, ("b", "c"), 2),
        ("search a\noptions ndots:2", {"RES_OPTIONS": "ndots:3"}, ("a",), 3),
    ],
)
def test_where_that_is_said(
    text: str, environ: dict[str, str], domains: tuple[str, ...], dots: int
) -> None:
    search = read_search(text, environ)
    assert (search.domains, search.dots) == (domains, dots)
