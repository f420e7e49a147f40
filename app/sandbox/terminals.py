"""The sandbox's well-behaved terminals, and the script by which some of them change their status.

The script is a pure function of its seed, so every change can be listed in advance.

Deliberately absent: the terminals that misbehave (`behaviours.py`).
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

from app.domain.statuses import Status

FIXED: dict[str, Status] = {
    "alice": Status.REACHABLE,
    "bob": Status.BUSY,
    "carol": Status.UNREACHABLE,
    "+15550001": Status.REACHABLE,
    "+15550002": Status.BUSY,
    "+15550003": Status.UNREACHABLE,
}
"""Terminals that never change, by user part or telephone number (`tel:+15550001`, `sip:+15550001@…;user=phone`)."""

SCRIPTED = (
    "erin",
    "frank",
    "grace",
    "heidi",
    "ivan",
    "judy",
    "mallory",
    "niaj",
    "olivia",
    "peggy",
    "rupert",
    "sybil",
    "trent",
    "victor",
    "+15550005",
    "+15550006",
)
"""Terminals that change by the script."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One step of the script: `at_s` seconds after the start, the status of `user` changes from `old` to `new`."""

    at_s: float
    user: str
    old: Status
    new: Status


def initial_statuses(seed: int) -> dict[str, Status]:
    """The status of each fixed and scripted terminal at the start, by user part."""
    rng = random.Random(f"{seed}/start")  # noqa: S311 - a script to be repeated, not a secret
    return FIXED | {user: rng.choice(list(Status)) for user in SCRIPTED}


def script(seed: int, every_s: float = 3.0) -> Iterator[Change]:
    """An endless series of changes, about one in `every_s` seconds; the same series for the same seed."""
    rng = random.Random(seed)  # noqa: S311 - a script to be repeated, not a secret
    statuses = initial_statuses(seed)
    for index in itertools.count(1):
        user = rng.choice(SCRIPTED)
        old = statuses[user]
        new = rng.choice([status for status in Status if status is not old])
        statuses[user] = new
        yield Change(at_s=round((index + rng.uniform(-0.3, 0.3)) * every_s, 3), user=user, old=old, new=new)
