"""Proxies of a command line: read as they are, and hidden if they have secrets."""

import pytest
from programs import PYTHON, ROOT, run

from muonsocks.errors import UsageError
from muonsocks.tools.proxies import named_by

SHOW = """
import sys
sys.path.insert(0, sys.argv[1])
from muonsocks.tools.proxies import named_by
found = named_by("--proxy", sys.argv[2:])
print(*[one.password.decode() for one in found])
print(open("/proc/self/cmdline").read().replace("\\0", " "))
"""


def test_they_are_read_in_order() -> None:
    found = named_by("--via", ["socks5h://a", "http://b:80"])
    assert [str(one) for one in found] == ["socks5h://a:1080", "http://b:80"]
    assert named_by("--via", []) == ()


@pytest.mark.parametrize("option", ["--via", "--proxy"])
def test_an_error_names_the_option(option: str) -> None:
    with pytest.raises(UsageError, match=f"^{option}: "):
        named_by(option, ["socks5h://a", "b"])


def test_a_chain_has_an_end() -> None:
    assert len(named_by("--via", ["socks5://a"] * 8)) == 8
    with pytest.raises(UsageError, match="more than 8"):
        named_by("--via", ["socks5://a"] * 9)


def test_passwords_are_hidden() -> None:
    """Each where it stands, and nothing else."""
    urls = ["socks5://u:one@h", "http://two:t%77o@two", "socks4://u@h", "socks5://:x@y"]
    done = run(PYTHON, "-c", SHOW, str(ROOT / "lib"), *urls)
    passwords, shown = done.output.decode().splitlines()[0], done.output.decode()
    assert passwords == "one two  x"
    for url in ("socks5://u:***@h", "http://two:*****@two", "socks4://u@h", "socks5://:*@y"):
        assert f" {url} " in shown
