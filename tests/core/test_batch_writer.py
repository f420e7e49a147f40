"""The task that writes gathered items in batches (`app/batch_writer.py`)."""

import asyncio

import pytest

from app.batch_writer import BatchWriter
from app.domain.errors import StoreUnavailable

LIMIT_S = 10.0


class Owner:
    """Collects numbers; each of `failures` is raised by one batch first."""

    def __init__(self, *, most: int = 3, gather_s: float = 0.0, failures: tuple[Exception, ...] = ()) -> None:
        self.items: list[int] = []
        self.batches: list[list[int]] = []
        self.failures = list(failures)
        self.failed: list[Exception] = []
        self.wrote = asyncio.Event()
        self._most = most
        self.writer = BatchWriter(
            "test",
            self._write_batch,
            waiting=lambda: len(self.items),
            on_failed=self.failed.append,
            retry_s=0.0,
            gather_s=gather_s,
            full=most,
        )

    def add(self, *items: int) -> None:
        self.items += items
        self.writer.wake()

    async def written(self) -> None:
        async with asyncio.timeout(LIMIT_S):
            while self.items:
                self.wrote.clear()
                await self.wrote.wait()

    async def _write_batch(self) -> None:
        batch = self.items[: self._most]
        await asyncio.sleep(0)
        if self.failures:
            raise self.failures.pop(0)
        del self.items[: len(batch)]
        self.batches.append(batch)
        self.wrote.set()


async def test_items_are_written_in_their_order_and_in_bounded_batches() -> None:
    owner = Owner()
    owner.writer.start()
    owner.add(1, 2, 3, 4, 5, 6, 7)
    await owner.written()
    owner.add(8)
    await owner.written()
    assert owner.batches == [[1, 2, 3], [4, 5, 6], [7], [8]]
    await owner.writer.aclose(LIMIT_S)


async def test_the_first_item_waits_for_others_and_a_full_batch_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full batch is written at once. A partial batch waits for `gather_s`; a stop does not write it."""
    waits, waiting, sleep = list[float](), asyncio.Event(), asyncio.sleep

    async def observed_sleep(seconds: float) -> None:
        if seconds:
            waits.append(seconds)
            waiting.set()
        await sleep(seconds)

    monkeypatch.setattr(asyncio, "sleep", observed_sleep)
    owner = Owner(gather_s=LIMIT_S * 10)
    owner.writer.start()
    owner.add(1, 2, 3, 4)
    async with asyncio.timeout(LIMIT_S):
        await waiting.wait()
    assert (owner.batches, waits) == ([[1, 2, 3]], [LIMIT_S * 10])
    await owner.writer.aclose(0.0)
    assert owner.items == [4]


async def test_what_failed_is_tried_again_and_nothing_is_lost() -> None:
    away, defect = StoreUnavailable("away"), ValueError("defect")
    owner = Owner(failures=(away, defect))
    owner.writer.start()
    owner.add(1, 2)
    await owner.written()
    assert (owner.batches, owner.failed) == ([[1, 2]], [away, defect])
    await owner.writer.aclose(LIMIT_S)


async def test_closing_writes_what_waits() -> None:
    owner = Owner(failures=(StoreUnavailable("away"),))
    owner.writer.start()
    owner.add(1, 2, 3, 4)
    await owner.writer.aclose(LIMIT_S)
    assert owner.batches == [[1, 2, 3], [4]]


async def test_closing_ends_within_its_limit() -> None:
    owner = Owner(failures=tuple(StoreUnavailable("away") for _ in range(1000)))
    owner.writer.start()
    owner.add(1)
    async with asyncio.timeout(LIMIT_S):
        await owner.writer.aclose(0.0)
    assert owner.items == [1]
    await owner.writer.aclose(0.0)


async def test_closing_one_that_never_started_does_nothing() -> None:
    await Owner().writer.aclose(LIMIT_S)
