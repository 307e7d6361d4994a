"""bin/socketbox-preload: its command line. What it does is in tests/intercept and tests/real."""

import pytest
from programs import ROOT, environment, run

PRELOAD = str(ROOT / "bin" / "socketbox-preload")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "there is no program to run; see --help"),
        (("-v",), "; see --help"),
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


@pytest.mark.parametrize(
    ("words", "status", "output"),
    [
        (("printf", "%s", "--version", "-q"), 0, b"--version-q"),
        (("--", "echo", "-v"), 0, b"-v\n"),
        (("sh", "-c", "exit 9"), 9, b""),
        (("sh", "-c", "kill -HUP $$"), -1, b""),
    ],
)
def test_the_words_and_the_end_are_the_programs(
    words: tuple[str, ...], status: int, output: bytes
) -> None:
    done = run(PRELOAD, *words)
    assert (done.status, done.output, done.log) == (status, output, "")


@pytest.mark.parametrize(("program", "status"), [("/no/such", 127), ("/etc/passwd", 126)])
def test_what_cannot_be_executed(program: str, status: int) -> None:
    done = run(PRELOAD, program)
    assert done.status == status
    assert f"{program} cannot be executed: " in done.log and done.log.count("\n") == 1


def test_a_variable_that_cannot_be_is_named() -> None:
    done = run(PRELOAD, "true", env=environment(SKBOX_PORT_FILTER_IPV6="all"))
    assert done.status == 100 and "SKBOX_PORT_FILTER_IPV6 is 'all'" in done.log
