"""A short run of the fuzz test (`fuzz.py`); `make fuzz SECONDS=600` is a long one."""

from tests.support.fuzz import fuzz

SECONDS = 8


async def test_hostile_presence_server() -> None:
    """Mutated responses and NOTIFYs neither end the workers nor stop their answers, and memory stays bounded."""
    outcome = await fuzz(SECONDS, seed=1)
    assert outcome.faults == []
    assert outcome.sent["UDP"] > 0
    assert outcome.sent["TCP"] > 0
    assert outcome.fetches["answered"] > 0
    assert outcome.observed > 0
