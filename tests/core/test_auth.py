"""Authentication: credentials over a real store, and the making of clients."""

import asyncio
import base64
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from app.auth import authenticator as auth
from app.auth import failures
from app.auth.authenticator import Authenticator, OpenToAll, listens_on_loopback
from app.auth.clients import MAX_KEYS, ClientRegistry
from app.auth.credentials import (
    Credentials,
    asgi_credentials,
    certificate_names,
    hash_secret,
    parse_key,
    password_equivalent,
)
from app.auth.proxies import TrustedProxies
from app.domain.errors import (
    ClientUnknown,
    InvalidRequest,
    RateLimited,
    StoreUnavailable,
    Unauthenticated,
)
from app.domain.records import ANONYMOUS
from app.sinks import SINK_CONTRACTS
from app.store import SqlStore
from tests.support.authentication import World, basic, bearer


async def test_without_clients_everybody_is_anonymous(world: World) -> None:
    """While no client is configured, callers need no credentials and are not operators; once there is a client,
    credentials are needed. A warning says what is open to whom."""
    with structlog.testing.capture_logs() as logs:
        assert await world.auth.start({"TS_GRPC_LISTEN": "127.0.0.1:1"})
    (line,) = logs
    assert (line["event"], line["log_level"]) == ("no_client_configured", "warning")
    assert (line["open"], "TS_GRPC_LISTEN (127.0.0.1:1)" in line["to"]) == ("every operation but operators'", True)
    caller = await world.auth.authenticate(Credentials())
    assert (caller.id, caller.admin) == (ANONYMOUS, False)
    await world.add()
    assert "API key" in await world.refused(Credentials())


@pytest.mark.parametrize("exposed", [False, True])
async def test_a_gateway_that_takes_nobody(world: World, exposed: bool) -> None:
    """Where anonymous callers are never allowed, a gateway without clients starts on any address and refuses each call.
    It logs so at its start, and accepts a client that is added later."""
    closed = world.authenticator(open_allowed=False)
    listens = {"TS_GRPC_LISTEN": "127.0.0.1:1", **({"TS_HTTP_LISTEN": "0.0.0.0:8080"} if exposed else {})}
    with structlog.testing.capture_logs() as logs:
        assert not await closed.start(listens, closed_is_meant=True)
    assert [(line["event"], line["open"]) for line in logs] == [("no_client_configured", "nothing")]
    with pytest.raises(Unauthenticated):
        await closed.authenticate(Credentials())
    client, key = await world.add()
    assert await closed.authenticate(bearer(key)) == client
    with structlog.testing.capture_logs() as logs:
        assert not await closed.start(listens, closed_is_meant=True)
    assert logs == []


async def test_a_lost_database_still_requires_credentials(world: World) -> None:
    """Once a client was seen, credentials stay required until the gateway ends, even if no client is left; credentials
    of deleted clients are refused."""
    client, key = await world.add()
    await world.auth.start({"TS_GRPC_LISTEN": "127.0.0.1:1"})
    await world.auth.authenticate(bearer(key))
    await ClientRegistry(world.store, contracts=SINK_CONTRACTS, clock=world.clock).delete(client.id, who="cli")
    world.clock.pass_s(auth.CACHE_S)
    for credentials in (Credentials(), bearer(key), Credentials(certificate_names=(client.id,))):
        await world.refused(credentials)


async def test_a_first_client_of_another_process_is_noticed(world: World) -> None:
    """A first client that another process adds is noticed within CACHE_S."""
    await world.auth.authenticate(Credentials())
    await ClientRegistry(world.store, contracts=SINK_CONTRACTS, clock=world.clock).add("billing", who="cli")
    assert (await world.auth.authenticate(Credentials())).id == ANONYMOUS
    world.clock.pass_s(auth.CACHE_S)
    await world.refused(Credentials())


async def test_open_to_all_is_refused(world: World) -> None:
    """Without clients the gateway refuses to start on an address that others can reach, and says what to do."""
    listens = {"TS_GRPC_LISTEN": "127.0.0.1:1", "TS_HTTP_LISTEN": "0.0.0.0:8080"}
    closed = world.authenticator(open_allowed=False)
    with pytest.raises(OpenToAll, match=r"TS_HTTP_LISTEN \(0\.0\.0\.0:8080\).*clients add"):
        await closed.start(listens)
    with pytest.raises(Unauthenticated):
        await closed.authenticate(Credentials())
    await world.add()
    assert not await closed.start(listens)


async def test_an_api_key_names_its_client(world: World) -> None:
    """A key is accepted as bearer token, and with the client's id by HTTP Basic; after that it is checked without the
    store."""
    client, key = await world.add()
    for credentials in (bearer(key), Credentials(authorization=f"bearer  {key} "), basic(client.id, key)):
        assert world.auth.known(credentials.authorization) is None
        assert await world.auth.authenticate(credentials) == client
        assert world.auth.known(credentials.authorization) == client


async def test_nothing_else_is_taken(world: World) -> None:
    """Every other key, scheme and spelling is refused with the same message."""
    client, key = await world.add()
    other, other_key = await world.add("other")
    _, key_id, secret = key.split("_", 2)
    shown = [
        *("Bearer", "Bearer ", "Basic", "Basic !", "Digest x", key, f"Bearer {key}x", f"Bearer {key[:-1]}"),
        *(f"Bearer tsk_{key_id}_", f"Bearer tsk__{secret}", f"Bearer TSK_{key_id}_{secret}", "Bearer tsk_é_é"),
        *(f"Bearer tsk_{key_id}_{other_key.split('_', 2)[2]}", "Bearer a.b.c", "Bearer " + "x" * 9000),
        *(basic("", key).authorization, basic(other.id, key).authorization, basic(client.id, "").authorization),
        "Basic " + base64.b64encode(b"\xff:\xff").decode(),
    ]
    messages = set()
    for authorization in shown:
        world.auth = world.authenticator()  # each case with its own count of failures
        messages.add(await world.refused(Credentials(authorization=authorization)))
    assert messages == {"The credentials are not accepted."}


def test_keys_are_long_and_random() -> None:
    """Text in another form than a key is not read as a key."""
    assert parse_key("tsk_a_b_c") == ("a", "b_c")
    for text in ("", "tsk_", "tsk_a", "tsk_a_", "tsk__b", "xxx_a_b", "tsk_a_" + "b" * 300, "tsk_ü_b"):
        assert parse_key(text) is None


async def test_secrets_are_not_kept(world: World, tmp_path: Path) -> None:
    """Neither the database, the cache, the audit log nor the log of failures has a secret or part of a secret."""
    with structlog.testing.capture_logs() as logs:
        _, key = await world.add()
        await world.auth.authenticate(bearer(key))
        await world.refused(bearer(key + "x"))
    secret = key.split("_", 2)[2]
    stored = b"".join([path.read_bytes() for path in tmp_path.iterdir()])  # noqa: ASYNC240  # nothing else runs
    assert secret.encode() not in stored
    assert key.split("_")[1].encode() in stored
    assert secret not in repr([*logs, *vars(world.auth).values()])
    assert [log["shown"] for log in logs] == [key.split("_")[1]]


async def test_rotation_overlaps(world: World) -> None:
    """After a rotation both keys are valid; the old key until the overlap is over, even where it is remembered."""
    client, old = await world.add()
    _, new = await world.registry.rotate(client.id, who="test", overlap_s=5)
    assert (await world.auth.authenticate(bearer(old))).id == client.id
    world.clock.pass_s(5)
    await world.refused(bearer(old))
    assert (await world.auth.authenticate(bearer(new))).id == client.id


async def test_rotation_without_overlap(world: World) -> None:
    """An overlap of 0 ends the earlier keys at once; a negative or endless overlap is refused."""
    client, old = await world.add()
    await world.auth.authenticate(bearer(old))
    _, new = await world.registry.rotate(client.id, who="test", overlap_s=0)
    await world.refused(bearer(old))
    assert await world.auth.authenticate(bearer(new)) == client
    for overlap_s in (-1, 91 * 86_400):
        with pytest.raises(InvalidRequest):
            await world.registry.rotate(client.id, who="test", overlap_s=overlap_s)


async def test_keys_are_bounded(world: World) -> None:
    """A client that keeps rotating has at most MAX_KEYS keys, and a key's end is never put off."""
    client, _ = await world.add()
    for overlap_s in (60, *[86_400] * (MAX_KEYS + 3)):
        await world.registry.rotate(client.id, who="test", overlap_s=overlap_s)
    keys = await world.registry.keys(client.id)
    assert len(keys) == MAX_KEYS
    assert keys[0].expires_at is None


async def test_disabled_and_deleted_clients_are_refused(world: World) -> None:
    """A disabled client is refused at once, until it is enabled; a deleted one for good."""
    client, key = await world.add()
    await world.auth.authenticate(bearer(key))
    await world.registry.set_disabled(client.id, True, who="test")
    await world.refused(bearer(key))
    await world.refused(Credentials(certificate_names=(client.id,)))
    await world.registry.set_disabled(client.id, False, who="test")
    await world.auth.authenticate(bearer(key))
    await world.add("other")
    await world.registry.delete(client.id, who="test")
    await world.refused(bearer(key))
    with pytest.raises(ClientUnknown):
        await world.registry.delete(client.id, who="test")


async def test_a_deleted_last_client_opens_nothing(world: World) -> None:
    """A gateway that others can reach still requires credentials after its last client was deleted."""
    closed = world.authenticator(open_allowed=False)
    client, key = await world.add()
    await closed.start({"TS_GRPC_LISTEN": "0.0.0.0:1"})
    assert await closed.authenticate(bearer(key)) == client
    await world.registry.delete(client.id, who="test")
    closed.forget()
    for credentials in (Credentials(), bearer(key)):
        with pytest.raises(Unauthenticated):
            await closed.authenticate(credentials)


async def test_a_client_certificate_names_its_client(world: World) -> None:
    """The first name in a verified certificate that is a client's id names the caller; an Authorization header has
    precedence."""
    client, _ = await world.add(client_id="billing.example")
    _, other_key = await world.add("other")
    names = ("CN of nobody", "billing.example")
    assert await world.auth.authenticate(Credentials(certificate_names=names)) == client
    assert (
        await world.auth.authenticate(Credentials(authorization=f"Bearer {other_key}", certificate_names=names))
    ).name == "other"
    await world.refused(Credentials(certificate_names=("nobody", "", "x" * 1000)))
    await world.refused(Credentials(authorization="Bearer x", certificate_names=names))


def test_names_of_a_certificate() -> None:
    """Common name, DNS names and URIs are read from what Python's ssl returns; an empty certificate has no names."""
    certificate = {
        "subject": ((("countryName", "SE"),), (("commonName", "billing"),)),
        "subjectAltName": (("DNS", "b.example"), ("URI", "urn:b"), ("IP Address", "192.0.2.1")),
    }
    assert certificate_names(certificate) == ("billing", "b.example", "urn:b")
    assert certificate_names(None) == certificate_names({}) == ()


def test_credentials_of_a_request() -> None:
    """Header, peer and certificate are read from an ASGI scope; each may be missing."""
    scope = {
        "headers": [(b"host", b"x"), (b"authorization", b"Bearer \xff")],
        "client": ("192.0.2.1", 5),
        "extensions": {"tls": {"client_cert_names": ("billing",)}},
    }
    expected = Credentials(authorization="Bearer \xff", certificate_names=("billing",), peer="192.0.2.1")
    assert asgi_credentials(scope) == expected
    assert asgi_credentials({"headers": [], "client": None}) == Credentials()


@pytest.mark.parametrize(
    ("listen", "loopback"),
    [
        *(("127.0.0.1:1", True), ("127.9.9.9:1", True), ("localhost:1", True), ("[::1]:1", True)),
        *(("0.0.0.0:1", False), ("[::]:1", False), ("192.0.2.1:1", False), ("gateway.example:1", False)),
    ],
)
def test_loopback(listen: str, loopback: bool) -> None:
    """Which addresses only this machine can reach."""
    assert listens_on_loopback(listen) is loopback


async def test_failures_of_a_peer_are_limited(world: World) -> None:
    """A peer that guesses keys is asked to wait, and its failures are no longer logged; a good key from the same peer
    is still accepted."""
    client, key = await world.add()
    with structlog.testing.capture_logs() as logs:
        for number in range(failures.FAILURE_BURST):
            await world.refused(bearer(f"tsk_a_{number}"))
        for number in range(failures.LOOK_UP_BURST - failures.FAILURE_BURST - 1):
            with pytest.raises(RateLimited) as caught:
                await world.auth.authenticate(bearer(f"tsk_b_{number}"))
    assert len(logs) == failures.FAILURE_BURST
    assert caught.value.retry_after_s == pytest.approx(failures.FAILURE_EVERY_S)
    await world.auth.authenticate(bearer(key))
    _, fresh = await world.registry.rotate(client.id, who="test")
    assert await world.auth.authenticate(bearer(fresh)) == client
    assert await world.auth.authenticate_with(client.id, lambda password: True, peer="192.0.2.1") == client
    with pytest.raises(RateLimited):
        await world.auth.authenticate_with(client.id, lambda password: False, peer="192.0.2.1")
    world.clock.pass_s(failures.FAILURE_EVERY_S)
    await world.refused(bearer("tsk_c_d"))


async def test_a_trusted_proxy_is_not_limited(world: World) -> None:
    """Failures that come from a proxy itself lock out nobody behind it, and the log stays bounded. An IPv6 network
    counts as one peer."""
    proxied = Authenticator(
        world.store,
        clock=world.clock,
        monotonic=world.clock.monotonic,
        open_allowed=False,
        proxies=TrustedProxies.of(["10.0.0.1"]),
    )
    with structlog.testing.capture_logs() as logs:
        for number in range(failures.FAILURE_BURST * 2):
            with pytest.raises(Unauthenticated):
                await proxied.authenticate(Credentials(authorization=f"Bearer tsk_a_{number}", peer="10.0.0.1"))
    assert len(logs) == failures.FAILURE_BURST
    for peer in ("behind 10.0.0.1", "2001:db8::{}"):
        with pytest.raises(RateLimited):  # noqa: PT012  # the last of them
            for number in range(failures.FAILURE_BURST + 1):
                shown = Credentials(authorization=f"Bearer tsk_{len(peer)}_{number}", peer=peer.format(number))
                with contextlib.suppress(Unauthenticated):
                    await proxied.authenticate(shown)


async def test_one_bad_key_locks_out_nobody(world: World) -> None:
    """A client that repeats the same bad key fails each time, and other callers at its address are still accepted."""
    _, key = await world.add()
    for _ in range(failures.FAILURE_BURST * 10):
        await world.refused(bearer("tsk_a_b"))
        world.clock.pass_s(0.1)
    await world.auth.authenticate(bearer(key))


async def test_what_is_remembered_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remembered credentials and peers are bounded; the oldest are forgotten first."""
    monkeypatch.setattr(auth, "MAX_CACHED", 3)
    monkeypatch.setattr(failures, "MAX_PEERS", 2)
    world.auth = world.authenticator()
    keys = [(await world.add(f"c{number}"))[1] for number in range(5)]
    for number, key in enumerate(keys):
        await world.auth.authenticate(bearer(key))
        await world.refused(bearer(f"{key}x", peer=str(number)))
    assert [world.auth.known(f"Bearer {key}") is not None for key in keys] == [False, False, True, True, True]


@contextmanager
def reads(world: World) -> Iterator[list[str]]:
    """The ids of keys and clients that were looked up, in order."""
    asked: list[str] = []

    def counted(look_up: Callable[[str], Awaitable[Any]]) -> Callable[[str], Awaitable[Any]]:
        def counting(wanted: str) -> Awaitable[Any]:
            asked.append(wanted)
            return look_up(wanted)

        return counting

    with pytest.MonkeyPatch.context() as patch:
        for name in ("key", "keys", "client"):
            patch.setattr(world.store, name, counted(getattr(world.store, name)))
        yield asked


async def test_wrong_credentials_are_limited_before_they_are_looked_up(world: World) -> None:
    """A peer that guesses keys or passwords costs the store LOOK_UP_BURST look-ups and a few more each second.
    Credentials that were accepted before stay accepted, whatever changed since; new credentials from the same
    address are accepted between the guesses."""
    client, key = await world.add()
    other, unseen = await world.add("other")
    good = Credentials(authorization=f"Bearer {key}", peer="192.0.2.1")
    await world.auth.authenticate(good)
    await world.auth.authenticate_with(client.id, lambda password: True, peer="192.0.2.1")

    async def guess(number: int) -> None:
        with pytest.raises((Unauthenticated, RateLimited)):
            await world.auth.authenticate(bearer(f"tsk_guess{number}_x"))
        with pytest.raises((Unauthenticated, RateLimited)):
            await world.auth.authenticate_with(f"guess{number}", lambda password: True, peer="192.0.2.1")

    with reads(world) as looked_up:
        for number in range(1000):
            await guess(number)
    assert len(looked_up) == failures.LOOK_UP_BURST
    for changed in (False, True):
        world.clock.pass_s(0 if changed else auth.CACHE_S)
        for number in range(1000, 2000):
            await guess(number)
        if changed:
            world.auth.forget()
        assert await world.auth.authenticate(good) == client
        assert await world.auth.authenticate_with(client.id, lambda password: True, peer="192.0.2.1") == client
    assert await world.auth.authenticate(bearer(unseen, peer="192.0.2.2")) == other
    with pytest.raises(RateLimited) as refused:
        await world.auth.authenticate_with(other.id, lambda password: True, peer="192.0.2.1")
    assert refused.value.retry_after_s is not None
    world.clock.pass_s(refused.value.retry_after_s + 0.001)
    assert await world.auth.authenticate_with(other.id, lambda password: True, peer="192.0.2.1") == other


async def test_wrong_passwords_of_a_client_are_compared_without_a_look_up(world: World) -> None:
    """A client's keys are remembered for CACHE_S, and no longer than until they change."""
    client, key = await world.add()
    with reads(world) as looked_up:
        for _ in range(50):
            with pytest.raises((Unauthenticated, RateLimited)):
                await world.auth.authenticate_with(client.id, lambda password: False)
    assert len(looked_up) == 3
    old = password_equivalent(hash_secret(key.split("_", 2)[2]))
    assert await world.auth.authenticate_with(client.id, lambda password: password == old) == client
    await world.registry.rotate(client.id, who="test", overlap_s=0)
    with pytest.raises((Unauthenticated, RateLimited)):
        await world.auth.authenticate_with(client.id, lambda password: password == old)


async def test_after_a_change_every_caller_is_looked_up_again(world: World) -> None:
    """After a change that this process knows of, every caller is looked up again, even while the store is away."""
    client, key = await world.add()
    await world.auth.authenticate(bearer(key))
    await world.registry.set_disabled(client.id, disabled=True, who="test")
    world.auth._store, store = Away(), world.auth._store  # noqa: SLF001
    attempts = [world.auth.authenticate(bearer(key)) for _ in range(3)]
    found = await asyncio.gather(*attempts, return_exceptions=True)
    assert [type(each) for each in found] == [StoreUnavailable] * 3
    world.auth._store = store  # noqa: SLF001
    await world.refused(bearer(key))


class Away(SqlStore):
    """A store whose reads fail."""

    def __init__(self) -> None: ...

    async def key(self, key_id: str) -> Any:
        raise StoreUnavailable("away")

    async def clients(self) -> Any:
        raise StoreUnavailable("away")


async def test_known_clients_get_in_while_the_store_is_away(world: World) -> None:
    """While the store cannot be read, clients that were accepted recently stay accepted for STALE_S; others are asked
    to wait."""
    client, key = await world.add()
    _, fresh = await world.add("fresh")
    await world.auth.authenticate(bearer(key))
    world.auth._store = Away()  # noqa: SLF001  # the store goes away
    world.clock.pass_s(auth.STALE_S - 1)
    assert await world.auth.authenticate(bearer(key)) == client
    with pytest.raises(StoreUnavailable):
        await world.auth.authenticate(bearer(fresh))
    world.clock.pass_s(auth.STALE_S)
    with pytest.raises(StoreUnavailable):
        await world.auth.authenticate(bearer(key))


async def test_expired_keys_are_refused(world: World) -> None:
    """An expired key is never accepted: not while the store is away, and not while other calls look it up."""
    client, key = await world.add()
    await world.registry.rotate(client.id, who="test", overlap_s=15)
    for _ in range(2):
        await world.auth.authenticate(bearer(key))
        world.clock.pass_s(auth.CACHE_S)
    store, world.auth._store = world.auth._store, Away()  # noqa: SLF001  # the store goes away
    with pytest.raises(StoreUnavailable):
        await world.auth.authenticate(bearer(key))
    world.auth._store = store  # noqa: SLF001
    attempts = await asyncio.gather(*(world.auth.authenticate(bearer(key)) for _ in range(3)), return_exceptions=True)
    assert [type(each) for each in attempts] == [Unauthenticated] * 3


async def test_transports_that_compare_by_themselves(world: World) -> None:
    """A digest is compared with each valid key by a password equivalent, which is not itself a key."""
    client, old = await world.add()
    _, new = await world.registry.rotate(client.id, who="test", overlap_s=5)
    asked: list[str] = []

    def matches(wanted: str) -> Callable[[str], bool]:
        return lambda equivalent: asked.append(equivalent) or equivalent == wanted  # type: ignore[func-returns-value]

    equivalents = [password_equivalent(hash_secret(key.split("_", 2)[2])) for key in (old, new)]
    for equivalent in equivalents:
        assert await world.auth.authenticate_with(client.id, matches(equivalent)) == client
    world.clock.pass_s(5)
    for client_id, equivalent in ((client.id, equivalents[0]), ("nobody", equivalents[1]), ("", "")):
        with pytest.raises(Unauthenticated):
            await world.auth.authenticate_with(client_id, matches(equivalent))
    assert set(asked) <= set(equivalents)
