"""A few lines, and then a count."""

import pytest

from muonsocks.net.loop import Loop
from muonsocks.resident import repeats
from muonsocks.resident.repeats import MOST, Repeats


def test_a_few_and_a_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "_PERIOD", 0.02)
    loop, reports = Loop(), list[int]()
    seldom = Repeats(loop, reports.append)

    async def main() -> None:
        for times, more in ((MOST + 5, 5), (MOST, 0), (1, 0)):
            assert sum([seldom.may() for _ in range(times)]) == min(times, MOST)
            await loop.sleep(0.05)
            assert reports.pop() == more
        assert not reports
        for _ in range(MOST + 3):
            seldom.may()
        seldom.close()
        seldom.close()
        assert reports == [3]
        assert seldom.may()
        seldom.close()

    loop.run(main())
    loop.close()
