"""What others see of a command line, of real processes."""

import subprocess

import pytest
from programs import PYTHON, ROOT

CODE = """
import sys
sys.path.insert(0, sys.argv[1])
from muonsocks.errors import UsageError
from muonsocks.net.process_list import hide_argument, hide_password
HERE
print(open("/proc/self/cmdline", "rb").read().split(b"\\0")[5:-1])
"""


def shown(what: str, *arguments: str) -> list[str]:
    """What is shown of the arguments when `what` has been done."""
    words = [PYTHON, "-IS", "-c", CODE.replace("HERE", what), str(ROOT / "lib"), *arguments]
    done = subprocess.run(words, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    found: list[str] = [one.decode() for one in eval(done.stdout)]
    return found


@pytest.mark.parametrize("option", ["--proxy=", ""])
@pytest.mark.parametrize("secret", ["secret", "täuschung", "p@ss:word"])
def test_the_password_of_a_url(option: str, secret: str) -> None:
    url = f"socks5h://me:{secret}@192.0.2.1:1"
    hidden = "*" * len(secret.encode())
    assert shown(f"hide_password({url!r}, '')", f"{option}{url}", "x") == [
        f"{option}socks5h://me:{hidden}@192.0.2.1:1",
        "x",
    ]


@pytest.mark.parametrize("url", ["socks5h://192.0.2.1:1", "socks5h://me@192.0.2.1:1"])
def test_without_a_password_there_is_nothing_to_hide(url: str) -> None:
    assert shown(f"hide_password({url!r}, '')", url) == [url]


def test_the_value_of_an_option_and_nothing_else() -> None:
    what = "hide_argument('abc', 'abc', '')"
    assert shown(what, "-P", "abc", "-Pabc", "abcd", "-x") == ["-P", "***", "-P***", "abcd", "-x"]


def test_the_program_itself_has_it_still() -> None:
    what = "hide_argument('abc', 'abc', ''); assert sys.argv[2:] == ['abc']"
    assert shown(what, "abc") == ["***"]


def test_where_it_cannot_be_hidden_there_is_a_hint() -> None:
    what = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))\n"
        "try:\n    hide_argument('abc', 'abc', 'a hint')\n"
        "except UsageError as error:\n    said = str(error)\n"
        "assert 'cannot be hidden from the process list: Too many' in said, said\n"
        "assert said.endswith('; a hint'); print([]); sys.exit()\n"
    )
    assert shown(what, "abc") == []
