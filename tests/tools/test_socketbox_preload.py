"""bin/socketbox-preload: its command line. What it does is in tests/intercept and tests/real."""

import pytest
from programs import ROOT, environment, run

PRELOAD = str(ROOT / "bin" / "socketbox-preload")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--listen",), "--listen requires argument; see --help"),
        (("--listen=80", "true"), "--listen: '80' cannot be; write ADDR:PORT=PATH"),
        (("--listen=*:http=/x", "true"), "--listen: "),
        (("--listen=*:80=", "true"), "--listen: "),
        (("--nosuch", "true"), "there is no option --nosuch; see --help"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], problem: str) -> None:
    done = run(PRELOAD, *words)
    assert (done.status, done.output) == (100, b"")
    assert problem in done.log and done.log.count("\n") == 1


def test_a_variable_that_cannot_be_is_named() -> None:
    done = run(PRELOAD, "true", env=environment(SKBOX_PORT_FILTER_IPV6="all"))
    assert done.status == 100 and "SKBOX_PORT_FILTER_IPV6 is 'all'" in done.log
