"""In which order addresses race, and which failure tells most; test_dial.py has the races."""

import errno

import pytest

from muonsocks.address import Endpoint
from muonsocks.net.race import dial_error, interleaved, most_telling


@pytest.mark.parametrize(
    "found, order",
    [
        ("", ""),
        ("a", "a"),
        ("A", "A"),
        ("abc", "abc"),
        ("aAbBcC", "aAbBcC"),
        ("abcABC", "aAbBcC"),
        ("ABCabc", "AaBbCc"),
        ("abcA", "aAbc"),
        ("ABCa", "AaBC"),
        ("aABC", "aABC"),
    ],
)
def test_families_take_turns(found: str, order: str) -> None:
    """Lower case is IPv4, upper case IPv6; within a family getaddrinfo's order stays."""

    def candidate(letter: str) -> Endpoint:
        return Endpoint.at(letter.encode() * (4 if letter.islower() else 16), 80)

    got = interleaved([candidate(letter) for letter in found])
    assert "".join(chr((one.packed or b" ")[0]) for one in got) == order


@pytest.mark.parametrize(
    "numbers, told",
    [
        ([errno.ENETUNREACH, errno.ECONNREFUSED, errno.EADDRNOTAVAIL], errno.ECONNREFUSED),
        ([errno.EHOSTUNREACH, errno.ETIMEDOUT], errno.ETIMEDOUT),
        ([errno.ENETUNREACH, errno.EHOSTUNREACH], errno.EHOSTUNREACH),
        ([errno.EMFILE, errno.ENETUNREACH], errno.ENETUNREACH),
        ([errno.ETIMEDOUT, errno.ECONNRESET], errno.ECONNRESET),
        ([errno.EACCES, errno.EPERM], errno.EACCES),
        ([errno.ENODEV], errno.ENODEV),
        ([], errno.ENETUNREACH),
    ],
)
def test_most_telling_failure(numbers: list[int], told: int) -> None:
    assert most_telling(numbers) == told


def test_the_error_of_several_failures() -> None:
    failures = [("192.0.2.1", errno.EHOSTUNREACH), ("192.0.2.2", errno.ECONNREFUSED)]
    error = dial_error(failures)
    assert (error.errno, error.strerror) == (errno.ECONNREFUSED, "Connection refused")
    assert error.failures == failures
