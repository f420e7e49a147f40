"""How clients are added and changed, and how changes by other processes are noticed."""

import asyncio
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import structlog.testing

from app.auth import clients as client_registry
from app.auth.clients import ClientFollower
from app.domain.errors import (
    ClientExists,
    ClientUnknown,
    InvalidRequest,
    TooManyClients,
)
from app.domain.filters import AuditFilter
from app.domain.records import ANONYMOUS
from app.ports.store import Page
from app.store import open_store
from tests.support.access_tokens import (
    START,
)
from tests.support.authentication import Clock, World, bearer


@pytest.mark.parametrize("name", ["", " ", "a" * 65, "a\n", "<b>", " a", "a ", "a/b"])
async def test_names_are_checked(world: World, name: str) -> None:
    """A client's name is short and plain."""
    with pytest.raises(InvalidRequest):
        await world.add(name)


@pytest.mark.parametrize("client_id", [ANONYMOUS, "-a", "a b", "a" * 65, "é", "a_b"])
async def test_ids_are_checked(world: World, client_id: str) -> None:
    """A chosen id is short and plain, and is not the id of anonymous callers."""
    if client_id == "a_b":
        client, _ = await world.add(client_id=client_id)
        assert client.id == client_id
        return
    with pytest.raises(InvalidRequest):
        await world.add(client_id=client_id)


async def test_the_number_of_clients_is_bounded(world: World) -> None:
    """A client above the limit is refused, and is not stored."""
    await world.add("first")
    world.registry.max_clients = len(await world.registry.clients())
    with pytest.raises(TooManyClients):
        await world.add("second")
    assert [one.name for one in await world.registry.clients()] == ["first"]


async def test_clients_are_unique(world: World) -> None:
    """Two clients share neither name nor id, and each is found by both; unknown limits are refused."""
    client, _ = await world.add(client_id="one")
    for name, client_id in (("billing", ""), ("other", "one")):
        with pytest.raises(ClientExists):
            await world.add(name, client_id=client_id)
    with pytest.raises(InvalidRequest):
        await world.add("third", limits={"speed": 1})
    assert await world.registry.find("one") == await world.registry.find("billing") == client
    with pytest.raises(ClientUnknown):
        await world.registry.find("two")


async def test_changes_are_audited(world: World) -> None:
    """The audit log says who made which change of which client."""
    await world.add(client_id="one")
    await world.registry.rotate("one", who="test")
    await world.registry.set_disabled("one", True, who="test")
    await world.registry.set_disabled("one", False, who="test")
    await world.registry.delete("one", who="test")
    entries, _ = await world.store.audit_entries(Page(), AuditFilter(start=START))
    reported = [(entry.actor, entry.action.value, entry.details["client"]) for entry in entries]
    done = ("client added", "client key rotated", "client disabled", "client enabled", "client deleted")
    assert reported == [("test", what, "one") for what in done]


async def test_what_other_processes_do_is_followed(world: World) -> None:
    """A client that another process deletes or disables is reported once, at the next look."""
    reported: list[str] = []

    async def gone(client_id: str) -> None:
        reported.append(f"{client_id} gone")

    follower = ClientFollower(
        world.store, on_deleted=gone, on_disabled=lambda client_id: reported.append(f"{client_id} disabled")
    )
    await follower.look()
    for client_id in ("a", "b", "c"):
        await world.add(client_id, client_id=client_id)
    await follower.look()
    await world.registry.delete("a", who="cli")
    await world.registry.set_disabled("b", True, who="cli")
    for _ in range(2):
        await follower.look()
        assert reported == ["a gone", "b disabled"]


async def test_following_clients_goes_on_after_a_defect(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where following a client's end fails, the failure is logged and the next look tries again."""
    monkeypatch.setattr(client_registry, "FOLLOW_S", 0.001)
    done, reported = asyncio.Event(), list[str]()

    async def gone(client_id: str) -> None:
        reported.append(client_id)
        if len(reported) == 1:
            raise ZeroDivisionError
        done.set()

    follower = ClientFollower(world.store, on_deleted=gone, on_disabled=lambda client_id: None)
    await world.add("a", client_id="a")
    await follower.look()
    await world.registry.delete("a", who="cli")
    with structlog.testing.capture_logs() as logs:
        following = asyncio.create_task(follower.run())
        async with asyncio.timeout(10):
            await done.wait()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    assert reported == ["a", "a"]
    assert [(line["event"], line["log_level"]) for line in logs] == [("clients_not_followed", "error")]


def run_clients(database: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environ = {"TS_DATABASE_URL": f"sqlite:///{database}", "PATH": "/usr/bin:/bin", "COLUMNS": "200"}
    command = [sys.executable, "-m", "app.cli", "clients", *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)


async def test_clients_by_command(tmp_path: Path) -> None:
    """Commands add, list, rotate, disable and delete clients; standard output is the key alone."""
    database = tmp_path / "store.sqlite3"
    added = run_clients(
        *(database, "add", "billing", "--id", "b", "--limit", "max_targets=5", "--limit", "busy_available=no"),
        *("--soap-callback-version", "v2_3"),
    )
    assert (added.returncode, added.stdout.startswith("tsk_")) == (0, True)
    rotated = json.loads(run_clients(database, "rotate", "billing", "--overlap-s", "60", "--json").stdout)
    (listed,) = json.loads(run_clients(database, "list", "--json").stdout)
    assert listed["limits"] == {"max_targets": 5, "busy_available": False}
    assert listed["soap_callback_version"] == "v2_3"
    assert [key["expires_at"] is None for key in listed["keys"]] == [True, False]
    async with await open_store(f"sqlite:///{database}") as store:
        world = World(store, Clock(now=datetime.now(UTC)))
        for key in (added.stdout.strip(), rotated["api_key"]):
            assert (await world.auth.authenticate(bearer(key))).id == "b"
    assert json.loads(run_clients(database, "disable", "b", "--json").stdout)["disabled"] is True
    assert json.loads(run_clients(database, "enable", "b", "--json").stdout)["disabled"] is False
    deleted = json.loads(run_clients(database, "delete", "b", "--yes", "--json").stdout)
    assert deleted == {"id": "b", "ended_subscriptions": 0}
    assert "billing" not in run_clients(database, "list").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("delete", "nobody", "--yes"), 1, "no client with the id or name"),
        (("rotate", "nobody"), 1, "no client with the id or name"),
        (("add", "a", "--limit", "speed=1"), 2, "is not a limit"),
        (("add", "a", "--limit", "speed"), 2, "write NAME=NUMBER"),
        (("add", "<b>"), 2, "name must have 1 to 64"),
        (("add",), 2, "Missing argument"),
    ],
)
def test_wrong_use_of_the_commands(tmp_path: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    """A failed command has exit code 1, wrong use 2; standard output stays empty."""
    done = run_clients(tmp_path / "store.sqlite3", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
