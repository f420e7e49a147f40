"""TLS and mutual TLS of both addresses, with certificates that the tests make."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import httpx2 as httpx
import pytest
import structlog.testing

from app.auth import tls
from app.auth.clients import ClientRegistry
from app.auth.credentials import Credentials, asgi_credentials
from app.auth.tls import Tls, TlsUnusable
from app.domain.errors import Unauthenticated
from app.domain.records import Client
from app.pb.terminalstatus.v1 import terminal_status_pb2 as pb
from app.pb.terminalstatus.v1.terminal_status_pb2_grpc import TerminalStatusServiceStub
from app.ports.store import Page
from app.sandbox import Sandbox
from app.servers import CannotStart, bound, serve_http
from app.sinks import SINK_CONTRACTS
from app.store import open_store
from tests.support import soap
from tests.support.certificates import NOW, Party, grpc_credentials, http_context, sign
from tests.support.settings import settings_for

pytestmark = pytest.mark.asyncio(loop_scope="module")
ALICE = "sip:alice@example.com"


@pytest.fixture
def party(tmp_path: Path) -> Party:
    authority = sign(tmp_path, "authority")
    return Party(
        authority,
        sign(tmp_path, "server", authority),
        sign(tmp_path, "billing", authority),
        sign(tmp_path, "stranger", sign(tmp_path, "other-authority")),
    )


async def add_client(database_url: str, client_id: str) -> tuple[Client, str]:
    """Adds a client as `terminal-status clients add` does."""
    async with await open_store(database_url) as store:
        return await ClientRegistry(store, contracts=SINK_CONTRACTS, clock=lambda: NOW).add(
            client_id, who="test", client_id=client_id
        )


async def status_of(address: str, credentials: grpc.ChannelCredentials, metadata: Any = None) -> int:
    options = [("grpc.ssl_target_name_override", "localhost"), ("grpc.enable_http_proxy", 0)]
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        stub: Any = TerminalStatusServiceStub(channel)
        answer = await stub.GetStatus(pb.GetStatusRequest(address=ALICE), timeout=10, metadata=metadata)
    return int(answer.status.status)


async def test_a_certificate_is_a_client_over_grpc(sandbox: Sandbox, party: Party, tmp_path: Path) -> None:
    """With mutual TLS a certificate names its client; an API key beside it names another one."""
    from app.main import run_gateway

    settings = settings_for(
        f"{sandbox.uri};transport=udp",
        database_url=f"sqlite:///{tmp_path}/store.sqlite3",
        tls_cert_file=party.server.cert_file,
        tls_key_file=party.server.key_file,
        tls_client_ca_file=party.authority.cert_file,
    )
    async with run_gateway(settings) as gateway:
        _, key = await add_client(settings.database_url, "keyed")
        gateway.use_cases.auth.forget()
        with_certificate = grpc_credentials(party, party.client)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await status_of(gateway.grpc_address, with_certificate)
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED  # no client with this id yet
        await status_of(gateway.grpc_address, with_certificate, (("authorization", f"Bearer {key}"),))
        await add_client(settings.database_url, "billing")
        gateway.use_cases.auth.forget()
        assert await status_of(gateway.grpc_address, with_certificate) != pb.STATUS_UNSPECIFIED
        for shown in (None, party.stranger):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await status_of(gateway.grpc_address, grpc_credentials(party, shown))
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE  # the handshake fails


async def test_a_certificate_is_a_client_over_soap(sandbox: Sandbox, party: Party, tmp_path: Path) -> None:
    """A getStatus with a client certificate over real TLS: the certificate names the client, and the usage record is
    that client's."""
    from app.main import run_gateway

    settings = settings_for(
        f"{sandbox.uri};transport=udp",
        database_url=f"sqlite:///{tmp_path}/store.sqlite3",
        tls_cert_file=party.server.cert_file,
        tls_key_file=party.server.key_file,
        tls_client_ca_file=party.authority.cert_file,
    )
    body = soap.envelope(soap.payload(f"<address>{ALICE}</address>")).encode()
    async with run_gateway(settings) as gateway:
        await add_client(settings.database_url, "keyed")
        gateway.use_cases.auth.forget()
        url = f"https://localhost:{gateway.http_address.rpartition(':')[2]}/parlayx/TerminalStatus"
        async with httpx.AsyncClient(verify=http_context(party, party.client), trust_env=False) as client:

            async def ask() -> soap.Reply:
                answer = await client.post(url, content=body, headers={"Content-Type": "text/xml"})
                return soap.Reply(answer.status_code, dict(answer.headers), answer.content)

            assert (await ask()).fault.startswith("POL0001")  # no client with this id yet
            billing, _ = await add_client(settings.database_url, "billing")
            gateway.use_cases.auth.forget()
            assert (await ask()).result == "getStatusResponse:Reachable"
        async with asyncio.timeout(10):
            while not (await gateway.use_cases.usage.page(billing, Page()))[0]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        records, _ = await gateway.use_cases.usage.page(billing, Page())
        assert [(record.operation.value, record.face.value) for record in records] == [("getStatus", "soap")]


@asynccontextmanager
async def echo(secured: Tls) -> AsyncIterator[str]:
    """An HTTP server that answers with the names in the caller's certificate."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = json.dumps(asgi_credentials(scope).certificate_names).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    with bound("127.0.0.1:0") as sock:
        async with serve_http(app, sock, secured):
            yield f"https://localhost:{sock.getsockname()[1]}/"


async def test_http_speaks_tls(party: Party) -> None:
    """With a certificate the HTTP address speaks only TLS, version 1.2 at least."""
    async with echo(party.tls(mutual=False)) as url:
        async with httpx.AsyncClient(verify=http_context(party, None), trust_env=False) as client:
            assert (await client.get(url)).json() == []
        async with httpx.AsyncClient(trust_env=False) as client:
            with pytest.raises(httpx.HTTPError):
                await client.get(url.replace("https", "http"))
        old = http_context(party, None)
        old.minimum_version = ssl.TLSVersion.TLSv1_2
        async with httpx.AsyncClient(verify=old, trust_env=False) as client:
            assert (await client.get(url)).status_code == 200


async def test_http_passes_on_the_names_of_a_verified_certificate(party: Party) -> None:
    """With mutual TLS the names of the caller's certificate reach the face; callers without one get no connection."""
    async with echo(party.tls(mutual=True)) as url:
        async with httpx.AsyncClient(verify=http_context(party, party.client), trust_env=False) as client:
            for _ in range(2):  # on one connection
                assert (await client.get(url)).json() == ["billing", "localhost", "billing"]
        for shown in (None, party.stranger):
            async with httpx.AsyncClient(verify=http_context(party, shown), trust_env=False) as client:
                with pytest.raises(httpx.HTTPError):
                    await client.get(url)


def renew(party: Party, directory: Path, *, half: bool = False) -> None:
    """Replaces the server's files, or half of them, by files of another authority, which also signs its clients'
    certificates."""
    authority = sign(directory, "new-authority")
    server = sign(directory, "new-server", authority)
    party.server.cert_file.write_bytes(server.cert_file.read_bytes())
    if not half:
        party.server.key_file.write_bytes(server.key_file.read_bytes())
        party.authority.cert_file.write_bytes(authority.cert_file.read_bytes())
        party.authority = authority
        party.client = sign(directory, "new-billing", authority)


async def test_renewed_files_over_http(party: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renewed files apply to new connections; while they do not fit each other, the earlier ones stay in use."""
    monkeypatch.setattr(tls, "RELOAD_S", 0.01)
    async with echo(party.tls(mutual=True)) as url:

        async def names() -> list[str]:
            async with httpx.AsyncClient(verify=http_context(party, party.client), trust_env=False) as client:
                found: list[str] = (await client.get(url)).json()
                return found

        with structlog.testing.capture_logs() as logs:
            renew(party, tmp_path, half=True)
            async with asyncio.timeout(10):
                while not logs:  # noqa: ASYNC110  # no event to await
                    await asyncio.sleep(0.01)
            assert "billing" in await names()
            renew(party, tmp_path)
            async with asyncio.timeout(10):
                while logs[-1]["event"] != "tls_files_renewed":  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        assert logs[0]["event"] == "tls_files_unusable"
        assert "TS_TLS_KEY_FILE" in logs[0]["why"]
        assert "new-billing" in await names()


async def test_renewed_files_over_grpc(
    sandbox: Sandbox, party: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As over HTTP; an authority that was removed from the file is no longer trusted."""
    from app.main import run_gateway

    monkeypatch.setattr(tls, "RELOAD_S", 0)
    settings = settings_for(
        f"{sandbox.uri};transport=udp",
        tls_cert_file=party.server.cert_file,
        tls_key_file=party.server.key_file,
        tls_client_ca_file=party.authority.cert_file,
    )
    async with run_gateway(settings) as gateway:

        async def answered(credentials: grpc.ChannelCredentials) -> bool:
            try:
                return bool(await status_of(gateway.grpc_address, credentials))
            except grpc.aio.AioRpcError as error:
                return error.code() != grpc.StatusCode.UNAVAILABLE  # where the handshake fails

        before = grpc_credentials(party, party.client)
        assert await answered(before)
        renew(party, tmp_path, half=True)
        assert await answered(before)
        renew(party, tmp_path)
        assert await answered(grpc_credentials(party, party.client))
        assert not await answered(before)


async def test_files_that_cannot_be_used_are_named(party: Party, tmp_path: Path) -> None:
    """Files that are missing, not PEM, or do not fit each other are named with their setting before a port is
    opened."""
    nothing, text = tmp_path / "nothing.pem", tmp_path / "text.pem"
    text.write_text("no PEM")
    cert, key = party.server.cert_file, party.server.key_file
    for cert_file, key_file, ca_file, said in (
        (nothing, key, None, "TS_TLS_CERT_FILE"),
        (text, key, None, "TS_TLS_CERT_FILE"),
        (cert, text, None, "TS_TLS_KEY_FILE"),
        (cert, party.client.key_file, None, "TS_TLS_KEY_FILE"),
        (cert, key, nothing, "TS_TLS_CLIENT_CA_FILE"),
        (cert, key, text, "TS_TLS_CLIENT_CA_FILE"),
        (None, None, cert, "TS_TLS_CLIENT_CA_FILE needs"),
    ):
        with pytest.raises(TlsUnusable, match=said):
            tls.load(cert_file, key_file, ca_file)
    assert tls.load(None, None, None) is None


async def test_no_start_for_everybody(sandbox: Sandbox, tmp_path: Path) -> None:
    """Without clients the gateway does not start on an address that others can reach, unless a proxy in front
    authenticates."""
    from app.main import run_gateway

    values = {"database_url": f"sqlite:///{tmp_path}/store.sqlite3", "http_listen": "0.0.0.0:0"}
    with pytest.raises(CannotStart, match=r"TS_HTTP_LISTEN.*clients add"):
        async with run_gateway(settings_for(f"{sandbox.uri};transport=udp", **values)):
            pass
    opened = settings_for(f"{sandbox.uri};transport=udp", **values, anonymous_access="anywhere")
    async with run_gateway(opened) as gateway:
        assert not gateway.use_cases.auth.anonymous.admin
    async with run_gateway(
        settings_for(f"{sandbox.uri};transport=udp", database_url=values["database_url"])
    ) as gateway:
        assert not gateway.use_cases.auth.anonymous.admin
    closed = settings_for(f"{sandbox.uri};transport=udp", **values, anonymous_access="never")
    async with run_gateway(closed) as gateway:
        with pytest.raises(Unauthenticated):
            await gateway.use_cases.auth.authenticate(Credentials())
    made = await add_client(closed.database_url, "billing")
    async with run_gateway(settings_for(f"{sandbox.uri};transport=udp", **values)) as gateway:
        assert await gateway.use_cases.auth.authenticate_with(made[0].id, lambda _: True) == made[0]


async def test_a_client_that_another_process_disables(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disabled client's key is refused as soon as the gateway has noticed, though it was accepted a moment before."""
    from app.main import run_gateway

    monkeypatch.setattr("app.auth.clients.FOLLOW_S", 0.05)
    settings = settings_for(f"{sandbox.uri};transport=udp")
    async with run_gateway(settings) as gateway, await open_store(settings.database_url) as store:
        auth, elsewhere = gateway.use_cases.auth, ClientRegistry(store, contracts=SINK_CONTRACTS, clock=lambda: NOW)
        client, key = await elsewhere.add("one", who="cli")
        shown = f"Bearer {key}"
        assert await auth.authenticate(Credentials(authorization=shown)) == client
        await asyncio.sleep(0.2)  # the key is accepted and remembered
        await elsewhere.set_disabled(client.id, True, who="cli")
        async with asyncio.timeout(2):
            while auth.known(shown) is not None:  # noqa: ASYNC110  # no event to await
                await asyncio.sleep(0.01)
        with pytest.raises(Unauthenticated):
            await auth.authenticate(Credentials(authorization=shown))
