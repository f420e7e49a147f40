"""Deliveries by the real webhook sender, to receivers that fail, and from a gateway that is killed."""

import asyncio
import random
import sys
from collections import defaultdict
from datetime import UTC, datetime, timedelta

from app.store import SqlStore
from tests.support.deliveries import (
    ROOT,
    delivering,
    owe,
    sending,
    settled,
    store,
    until_owed,
)
from tests.support.outbox import make_subscription
from tests.support.receivers import answer, hang, in_turn, receiver

__all__ = ["store"]  # fixtures


async def test_a_receiver_that_was_away_gets_everything_once_in_order(store: SqlStore) -> None:
    """A receiver is killed and comes back at the same port: each event arrives once by id, in order within its
    subscription."""
    async with receiver() as there:
        port = there.port
    for number in range(5):
        await owe(store, 4, subscription=make_subscription(there.url, subscription_id=f"s{number}"))
    async with sending() as webhooks, delivering(store, webhooks):
        await until_owed(store, lambda all_: all(each.attempts >= 2 for each in all_ if each.sequence == 1))
        async with receiver(port=port) as back:
            await until_owed(store, settled)
    got = [request.headers["webhook-id"] for request in back.requests]
    for number in range(5):
        assert [each for each in got if each.startswith(f"s{number}/")] == [f"s{number}/{n}" for n in range(4)]
    assert len(got) == 20


async def test_a_receiver_that_answers_429_is_left_alone(store: SqlStore) -> None:
    """429 with Retry-After delays the next attempt by that time."""
    async with receiver(in_turn(answer(429, {"Retry-After": "3600"}), answer())) as there, sending() as webhooks:
        await owe(store, subscription=make_subscription(there.url))
        async with delivering(store, webhooks):
            (waiting,) = await until_owed(store, lambda all_: all_[0].attempts == 1)
        assert waiting.next_attempt_at > datetime.now(UTC) + timedelta(minutes=59)
        assert len(there.requests) == 1


async def test_a_receiver_that_answers_too_late_has_failed(store: SqlStore) -> None:
    """200 after the time limit is a failed attempt; the same event is sent again."""
    async with receiver(in_turn(hang, answer())) as there, sending(total_s=0.3) as webhooks:
        (notification_id,) = await owe(store, subscription=make_subscription(there.url))
        async with delivering(store, webhooks):
            await until_owed(store, settled)
        first_, second = there.requests
        assert first_.headers["webhook-id"] == second.headers["webhook-id"] == notification_id
    assert [each.outcome.value for each in await store.attempts(notification_id)] == ["timed-out", "delivered"]


async def test_killed_again_and_again_nothing_is_lost(store: SqlStore, database_url: str) -> None:
    """Deliverers are killed (SIGKILL) at any moment: every event arrives under its id, perhaps twice, and never before
    its predecessor."""
    chance = random.Random(4)
    async with receiver() as there:
        subscriptions = [make_subscription(there.url, subscription_id=f"s{number}") for number in range(15)]
        ids = [notification_id for each in subscriptions for notification_id in await owe(store, 8, subscription=each)]
        kills = 0
        while True:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.support.deliverer_process", database_url, cwd=ROOT
            )
            try:
                if kills == 4:
                    await until_owed(store, settled)
                    break
                await there.wait_for_requests(len(there.requests) + chance.randint(1, 20))
            except TimeoutError:
                break  # nothing is left to send
            finally:
                process.kill()
                await process.wait()
            kills += 1
    assert kills >= 2
    got = defaultdict(list)
    for request in there.requests:
        subscription_id, _, number = request.headers["webhook-id"].partition("/")
        got[subscription_id].append(int(number))
    assert {f"{subscription_id}/{number}" for subscription_id in got for number in got[subscription_id]} == set(ids)
    assert all(numbers == sorted(numbers) for numbers in got.values())
