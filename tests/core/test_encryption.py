"""Encryption of sinks' secrets in the database: with a key file, during rotations, and with a wrong key."""

import asyncio
import base64
import subprocess
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import select, text, update
from structlog.testing import capture_logs

from app.core.encryption import encrypt_sinks
from app.delivery.deliverer import Deliverer
from app.domain.changes import Changes
from app.domain.errors import StoreUnavailable
from app.domain.operations import Face
from app.domain.records import DeliveryState, OwedNotification, Subscription
from app.domain.sinks import SINK_UNREADABLE, Sink, SinkKind
from app.main import CannotStart, run_gateway
from app.ports.delivery import Sent
from app.store import DatabaseUnavailable, SqlStore, open_store
from app.store import tables as t
from app.store.encryption import MAKE_ONE, read_keys
from tests.support.core import ALICE, APP, FakeSender, new_database, run_core
from tests.support.outbox import OTHER_SECRET, SECRET
from tests.support.receivers import Request, answer
from tests.support.records import edit_of, make, subscription
from tests.support.settings import settings_for
from tests.support.signed_webhooks import signed
from tests.support.waiting import until

TOKEN = "bearer-of-the-endpoint"
PARAMETERS: Mapping[str, str] = {"secrets": SECRET, "token": TOKEN, "handshake": "none"}
WEBHOOK = Sink(kind=SinkKind.WEBHOOK, url="https://app.example/hook", profile="v1", parameters=PARAMETERS)


class KeyFile:
    """A key file with the test's keys; `ids` are the ids of these keys."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch(0o600)

    def has(self, *keys: bytes) -> Path:
        self.path.write_bytes(b"".join([base64.b64encode(key * 32) + b"\n" for key in keys]))
        return self.path

    def ids(self, *keys: bytes) -> tuple[str, ...]:
        return read_keys(self.has(*keys)).ids


@pytest.fixture
def key_file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys")


async def column(store: SqlStore, *which: Any) -> list[Any]:
    """One column of all subscriptions, as stored."""
    return [tuple(row) for row in await store._all(select(*which).order_by(t.subscriptions.c.seq))]  # noqa: SLF001


async def in_clear(store: SqlStore) -> list[str]:
    """The places in the database where the secrets of these tests are in clear."""
    found = []
    for table in t.METADATA.tables.values():
        for row in await store._all(select(table)):  # noqa: SLF001
            whole = repr(tuple(row))
            found += [f"{table.name}: {one}" for one in (SECRET, OTHER_SECRET, TOKEN) if one[6:] in whole]
    return found


async def change_row(store: SqlStore, which: Any = None, **values: Any) -> None:
    """Changes a row, as an attacker with access to the database could."""
    statement = update(t.subscriptions).values(**values)
    statement = statement if which is None else statement.where(which)
    await store._write(lambda c: c.execute(statement))  # noqa: SLF001


async def test_secrets_are_encrypted_and_read_again(database_url: str, key_file: KeyFile) -> None:
    """With a key file the database has no secret in clear; after a restart the secrets are read unchanged."""
    async with await open_store(database_url, secret_key_file=key_file.has(b"a")) as store:
        await make(store, "s1", sink=WEBHOOK)
        await make(store, "s2", sink=Sink(kind=SinkKind.STREAM))
        assert await in_clear(store) == []
    async with await open_store(database_url, secret_key_file=key_file.path) as store:
        assert await store.subscription("s1") == subscription("s1", sink=WEBHOOK)
        assert [one async for portion in store.active_subscriptions() for one in portion] == [
            subscription("s1", sink=WEBHOOK),
            subscription("s2", sink=Sink(kind=SinkKind.STREAM)),
        ]
        assert await column(store, t.subscriptions.c.sink_key) == [(key_file.ids(b"a")[0],), ("",)]


def contents(folder: Path) -> bytes:
    """All bytes of the database's files."""
    return b"".join([file.read_bytes() for file in folder.glob("x*")])


async def test_no_secret_stands_in_the_file(tmp_path: Path, key_file: KeyFile) -> None:
    """No secret is in the SQLite file or in its log."""
    async with await open_store(f"sqlite:///{tmp_path}/x", secret_key_file=key_file.has(b"a")) as store:
        await make(store, "s1", sink=WEBHOOK)
        data = contents(tmp_path)
    assert b"https://app.example/hook" in data
    assert not [one for one in (SECRET[6:], TOKEN) if one.encode() in data]


async def test_rows_in_clear_are_encrypted_when_they_are_written(database_url: str, key_file: KeyFile) -> None:
    """An older database works: changed rows are encrypted at their change, the others by the first pass after the
    start."""
    async with await open_store(database_url) as store:
        await make(store, "s1", "s2", sink=WEBHOOK)
        assert len(await in_clear(store)) == 4
    async with await open_store(database_url, secret_key_file=key_file.has(b"a")) as store:
        assert await store.subscription("s1") == subscription("s1", sink=WEBHOOK)
        await store.write(Changes(edits=[edit_of(subscription("s1"), sink=WEBHOOK)]))
        assert len(await in_clear(store)) == 2
        with capture_logs() as logs:
            await encrypt_sinks(store)
        assert [(line["event"], line["count"]) for line in logs] == [("sinks_encrypted", 1)]
        assert await in_clear(store) == []
        assert await store.subscription("s2") == subscription("s2", sink=WEBHOOK)


async def test_every_portion_is_encrypted(
    database_url: str, key_file: KeyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All portions are encrypted, even where rows are deleted between portions and the database is away at times."""
    monkeypatch.setattr("app.store.subscriptions.ENCRYPTED_AT_ONCE", 2)
    monkeypatch.setattr("app.core.encryption.RETRY_S", 0.01)
    async with await open_store(database_url) as store:
        await make(store, *(f"s{number}" for number in range(20)), sink=WEBHOOK)
        await store._write(  # noqa: SLF001
            lambda c: c.execute(text("delete from subscription where id in ('s0','s5','s6','s7','s8','s9')"))
        )
    async with await open_store(database_url, secret_key_file=key_file.has(b"a")) as store:
        encrypt, calls = store.encrypt_sinks, iter(range(100))

        async def now_and_then(after: int) -> tuple[int | None, int]:
            if next(calls) % 2:
                raise StoreUnavailable("The test has taken the database away.")
            return await encrypt(after)

        monkeypatch.setattr(store, "encrypt_sinks", now_and_then)
        await encrypt_sinks(store)
        assert await in_clear(store) == []
        assert next(calls) > 10


async def test_rotation(database_url: str, key_file: KeyFile) -> None:
    """With the new key first and the old key second, rows of both are read. Once all rows use the new key, the old key
    may be removed."""
    old, new = key_file.ids(b"o", b"n")
    async with await open_store(database_url, secret_key_file=key_file.has(b"o")) as store:
        await make(store, "s1", "s2", sink=WEBHOOK)
    async with await open_store(database_url, secret_key_file=key_file.has(b"n", b"o")) as store:
        assert await store.subscription("s1") == subscription("s1", sink=WEBHOOK)
        await store.write(Changes(edits=[edit_of(subscription("s1"), sink=WEBHOOK)]))
        assert await column(store, t.subscriptions.c.sink_key) == [(new,), (old,)]
        assert await store.keys_in_use() == sorted([new, old])
    with pytest.raises(DatabaseUnavailable, match=old):
        await open_store(database_url, secret_key_file=key_file.has(b"n"))
    async with await open_store(database_url, secret_key_file=key_file.has(b"n", b"o")) as store:
        await encrypt_sinks(store)
    async with await open_store(database_url, secret_key_file=key_file.has(b"n")) as store:
        assert [(await store.subscription(one)) for one in ("s1", "s2")] == [
            subscription("s1", sink=WEBHOOK, version=2),
            subscription("s2", sink=WEBHOOK),
        ]


@pytest.mark.parametrize("has", [(), (b"b",), (b"b", b"c")])
async def test_wrong_key_is_refused_by_name(database_url: str, key_file: KeyFile, has: tuple[bytes, ...]) -> None:
    """A start without the key, or with another key, names the setting and the missing key."""
    (wanted,) = key_file.ids(b"a")
    async with await open_store(database_url, secret_key_file=key_file.path) as store:
        await make(store, "s1", sink=WEBHOOK)
    given = key_file.ids(*has) if has else ()
    with pytest.raises(DatabaseUnavailable) as refused:
        await open_store(database_url, secret_key_file=key_file.path if has else None)
    message = str(refused.value)
    assert f"encrypted with the key {wanted}, and TS_SECRET_KEY_FILE " in message
    assert message.endswith(" and ".join(given) if has else "is not set")


async def test_gateway_does_not_start_with_a_wrong_key(tmp_path: Path, key_file: KeyFile) -> None:
    """The gateway and the command line refuse a wrong key; the command's message is one line."""
    settings = settings_for(
        "sip:127.0.0.1:9", database_url=f"sqlite:///{tmp_path}/x", secret_key_file=key_file.has(b"a")
    )
    async with await open_store(settings.database_url, secret_key_file=settings.secret_key_file) as store:
        await make(store, "s1", sink=WEBHOOK)
    key_file.has(b"b")
    with pytest.raises(CannotStart, match="TS_SECRET_KEY_FILE"):
        async with run_gateway(settings):
            pytest.fail("it started")


BOUND_TO = [{"id": "s9"}, {"sink_url": "https://attacker.example/"}, {"sink_kind": "SOAP"}, {"sink_profile": "camara"}]


@pytest.mark.parametrize("moved", [*BOUND_TO, {"sink_parameters": "AAAA"}, {"sink_parameters": "é"}], ids=repr)
async def test_secrets_go_to_their_own_endpoint_only(
    database_url: str, key_file: KeyFile, moved: dict[str, str]
) -> None:
    """Secrets that were moved to another row or URL, and text that is not ciphertext, cannot be read; other rows
    can."""
    async with await open_store(database_url, secret_key_file=key_file.has(b"a")) as store:
        await make(store, "s1", sink=WEBHOOK)
        await change_row(store, **moved)
        await make(store, "s2", sink=WEBHOOK)
        name = moved.get("id", "s1")
        with capture_logs() as logs:
            found = await store.subscriptions_by_id([name, "s2"])
        (key,) = key_file.ids(b"a")
        assert (found[name].sink.parameters, found["s2"].sink) == ({SINK_UNREADABLE: key}, WEBHOOK)
        assert [(line["event"], line["subscription"], line["key"]) for line in logs] == [("sink_unreadable", name, key)]
        with pytest.raises(ValueError, match="would be lost"):
            await store.write(Changes(edits=[edit_of(found[name], sink=found[name].sink)]))


class Sending(FakeSender):
    """A sender that keeps the endpoint and the secrets of each attempt."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[str, Mapping[str, str]]] = []

    async def send(self, subscription: Subscription, notification: OwedNotification) -> Sent:
        self.sent.append((subscription.id, subscription.sink.parameters))
        return Sent(delivered=True)


async def test_nothing_is_sent_without_its_secrets(database_url: str, key_file: KeyFile) -> None:
    """A notification whose endpoint's secrets cannot be read waits, unsent and unbilled, while others are delivered. It
    is delivered once its row is restored. Meanwhile its secrets cannot be changed."""
    sender = Sending()
    async with run_core(database_url, secret_key_file=key_file.has(b"a")) as core:
        moved, other = [await core.subscribe(ALICE, sink=WEBHOOK, request_id=one) for one in ("m", "o")]
        store: SqlStore = core.store._store  # noqa: SLF001
        id_is = t.subscriptions.c.id == moved.id
        await change_row(store, id_is, sink_url="https://attacker.example/")
        deliverer = Deliverer(
            cast("Any", core.store), {SinkKind.WEBHOOK: sender}, owner="node", clock=lambda: core.clocks.now
        )
        deliverer.start()
        try:
            await until(lambda: len(sender.sent) == 1 and not deliverer.held)
            assert [one for one, _ in sender.sent] == [other.id]
            (waiting,) = await core.owed(moved)
            assert (waiting.state, waiting.attempts) == (DeliveryState.PENDING, 1)
            assert [one.outcome.value for one in await core.store.attempts(waiting.id)] == ["secret-unreadable"]
            for refused in (
                core.subscription_changes.rotate_secret(APP, moved.id, secret=OTHER_SECRET, face=Face.REST),
                core.subscribe(ALICE, sink=WEBHOOK, request_id="m"),
            ):
                with pytest.raises(StoreUnavailable):
                    await refused
            await change_row(store, id_is, sink_url=WEBHOOK.url)
            core.clocks.advance(60)
            deliverer.hint()
            await until(lambda: len(sender.sent) == 2)
        finally:
            await deliverer.aclose()
    assert sender.sent[1] == (moved.id, moved.sink.parameters)


async def test_no_secret_stands_anywhere(tmp_path: Path, key_file: KeyFile) -> None:
    """After a subscription with a request id, a delivery and a rotation, no table and no log line has a secret."""
    with capture_logs() as logs:
        async with signed(await new_database(tmp_path), secret_key_file=key_file.has(b"a")) as gateway:
            sink = replace(WEBHOOK, url=gateway.there.url)
            gateway.there.behave = echo
            made = await gateway.core.subscribe(ALICE, sink=sink, request_id="r", correlator="c")
            await gateway.rotate(made, OTHER_SECRET)
            gateway.deliverer.hint()
            await gateway.there.wait_for(lambda: bool(gateway.events()))
            assert gateway.events()[0].headers["authorization"] == f"Bearer {TOKEN}"
            await until(lambda: not gateway.deliverer.held)
            await gateway.core.usage_records()
            assert await in_clear(gateway.core.store._store) == []  # noqa: SLF001
    assert not [one for one in (SECRET, OTHER_SECRET, TOKEN) if one[6:] in repr((logs, made))]


async def echo(request: Request, writer: asyncio.StreamWriter) -> None:
    """An endpoint that answers with the request that it got."""
    await answer(200, body=repr(sorted(request.headers.items())).encode())(request, writer)


async def test_a_failed_statement_is_reported_without_its_values(database_url: str) -> None:
    """A logged traceback has the failed statement, and no secret of its row."""
    async with await open_store(database_url) as store:
        await store._write(  # noqa: SLF001
            lambda c: c.execute(text("alter table subscription rename column correlator to another"))
        )
        with pytest.raises(Exception, match=r"changed|correlator") as failed:
            await make(store, "s1", sink=WEBHOOK)
        report = "".join(traceback.format_exception(failed.value))
    assert "INSERT INTO subscription" in report
    assert SECRET[6:] not in report


BAD_FILES: list[tuple[bytes, str]] = [
    (b"", "must have one line with a key"),
    (b"\n \n", "must have one line with a key"),
    (b"x" * 5000, "must have one line with a key"),
    (b"\n".join([base64.b64encode(bytes([one]) * 32) for one in range(3)]), "must have one line with a key"),
    (base64.b64encode(b"a" * 31), "line 1 of "),
    (b"\n" + b"secret! " * 4, "line 2 of "),
    (b"\xff" * 44, "line 1 of "),
]


@pytest.mark.parametrize(("content", "why"), BAD_FILES)
def test_key_file_that_is_none(key_file: KeyFile, content: bytes, why: str) -> None:
    """The message names setting, file and line, and quotes nothing of the file."""
    key_file.path.write_bytes(content)
    with pytest.raises(DatabaseUnavailable, match=why) as refused:
        read_keys(key_file.path)
    assert str(refused.value).startswith("TS_SECRET_KEY_FILE: ")
    assert not [word for word in (b"secret!", content[:40]) if len(word) > 6 and word in str(refused.value).encode()]


def test_key_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A key file that does not exist or cannot be read is refused."""
    with pytest.raises(DatabaseUnavailable, match=r"TS_SECRET_KEY_FILE: .*No such file"):
        read_keys(tmp_path / "none")


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o644])
def test_key_file_that_others_may_use(key_file: KeyFile, mode: int) -> None:
    """A key file that others may read or write is refused, with the command that corrects it; the group may read it."""
    key_file.has(b"a").chmod(mode)
    with pytest.raises(DatabaseUnavailable, match="other accounts") as refused:
        read_keys(key_file.path)
    subprocess.run(str(refused.value).partition(" run: ")[2], shell=True, check=True)
    key_file.path.chmod(0o640)
    assert len(read_keys(key_file.path).ids) == 1


def test_the_command_that_makes_a_key_file(tmp_path: Path) -> None:
    """docs/security.md and the messages have the same command; run twice, it makes the file of a rotation."""
    security = (Path(__file__).parent.parent.parent / "docs" / "security.md").read_text("utf-8")
    assert MAKE_ONE in security
    for name, number in (("one", 1), ("two", 2)):
        file = tmp_path / name
        for _ in range(number):
            command = MAKE_ONE.replace("> FILE", f">> {file}")
            subprocess.run(command, shell=True, check=True)
        assert len(read_keys(file).ids) == number
        assert file.stat().st_mode & 0o777 == 0o600
