"""The HTTP APIs served over real use cases and a real store, for tests; the presence server is played."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest_asyncio

from app.auth.authenticator import Authenticator, TokenVerifier
from app.auth.clients import ClientRegistry
from app.auth.oidc import Grant
from app.rest.application import create_app
from app.servers import bound, serve_http
from tests.support.core import (
    ADMIN,
    ALICE,
    APP,
    OTHER,
    Core,
    new_database,
    run_core,
)
from tests.support.fakes import FakeWatcher, make_service

LIMIT_S = 10.0


@dataclass
class Answer:
    """An HTTP answer: status, headers and body."""

    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class HttpFace:
    """The running server, and its clients' keys by id."""

    core: Core
    auth: Authenticator
    registry: ClientRegistry
    url: str
    keys: dict[str, str]
    http: httpx2.AsyncClient

    async def call(
        self, method: str, path: str, body: Any = None, *, client: str = APP.id, raw: bytes | None = None, **more: Any
    ) -> Answer:
        """Sends one request with the client's key ("" for none); `body` is sent as JSON, `raw` unchanged."""
        headers = {**({"authorization": f"Bearer {self.keys[client]}"} if client else {}), **more.pop("headers", {})}
        if body is not None:
            raw = json.dumps(body).encode()
        if raw is not None:
            headers = {"content-type": "application/json", **headers}
        response = await self.http.request(method, self.url + path, content=raw, headers=headers, **more)
        return Answer(response.status_code, response.headers, response.content)

    @asynccontextmanager
    async def events(self, path: str, *, client: str = APP.id, **headers: str) -> AsyncIterator["EventSource"]:
        """Opens a stream of server-sent events; the test decides when to read."""
        headers = {"authorization": f"Bearer {self.keys[client]}", **headers}
        async with self.http.stream("GET", self.url + path, headers=headers) as response:
            yield EventSource(response)


class EventSource:
    """Reads those server-sent events that the gateway sends, by the rules of the HTML standard."""

    def __init__(self, response: httpx2.Response) -> None:
        self.response = response
        self.comments = 0
        self._lines = response.aiter_lines()

    async def next(self) -> tuple[str, str, Any]:
        """Name, id and data of the next event."""
        name, token, data = "", "", ""
        async with asyncio.timeout(LIMIT_S):
            async for line in self._lines:
                if not line:
                    if name:
                        return name, token, json.loads(data)
                    continue
                field, _, value = line.partition(":")
                value = value.removeprefix(" ")
                if field == "event":
                    name = value
                elif field == "id":
                    token = value
                elif field == "data":
                    data = value
                elif not field:
                    self.comments += 1
        raise EOFError

    async def until(self, name: str) -> tuple[str, Any]:
        """Id and data of the next event of this name; skips other events."""
        while True:
            found, token, data = await self.next()
            if found == name:
                return token, data

    async def rest(self) -> list[str]:
        """The names of the events until the end."""
        names = []
        try:
            while True:
                names.append((await self.next())[0])
        except EOFError:
            return names


@asynccontextmanager
async def http_face(
    core: Core,
    *,
    tokens: TokenVerifier | None = None,
    grant: Callable[[str], Grant] | None = None,
    monotonic: Callable[[], float] | None = None,
    **options: Any,
) -> AsyncIterator[HttpFace]:
    """The server while the context is open; APP, OTHER and ADMIN have keys."""
    auth = core.authenticator(monotonic=monotonic or (lambda: core.clocks.now_s), open_allowed=False, tokens=tokens)
    use_cases = core.make_use_cases(auth)
    keys = {}
    for each in (APP, OTHER, ADMIN):
        _, keys[each.id] = await use_cases.clients.rotate(each.id, who="test")
    app = create_app(make_service(FakeWatcher()), use_cases, grant=grant, clock=lambda: core.clocks.now, **options)
    with bound("127.0.0.1:0") as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        async with (
            httpx2.AsyncClient(timeout=LIMIT_S, trust_env=False, verify=False) as http,
            serve_http(app, sock, None),
        ):
            try:
                yield HttpFace(core, auth, use_cases.clients, url, keys, http)
            finally:
                core.streams.end_all()


STATUS = f"/v1/terminals/{ALICE}/status"


@pytest_asyncio.fixture
async def face(tmp_path: Path) -> AsyncIterator[HttpFace]:
    async with run_core(await new_database(tmp_path)) as core, http_face(core) as running:
        yield running


def problem(answer: Answer, status: int, code: str) -> dict[str, Any]:
    """The problem document of an answer, which must have this status and code."""
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json"), answer.body
    found: dict[str, Any] = answer.json
    assert (found["status"], found["code"]) == (status, code), found
    return found
