"""Scripts of other web sites, over REST and CAMARA: which sites may call, with what, and what they may read."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.core import ALICE, new_database, run_core
from tests.support.http_face import STATUS, HttpFace, face, http_face

__all__ = ["face"]  # fixtures

SITE, OTHER_SITE = "https://console.example.com", "https://other.example.com"
RETRIEVE = "/device-reachability-status/v1/retrieve"
WATCH = f"/v1/terminals:watch?address={ALICE}"


@pytest_asyncio.fixture
async def open_face(tmp_path: Path) -> AsyncIterator[HttpFace]:
    """A gateway whose TS_CORS_ORIGINS names SITE."""
    async with run_core(await new_database(tmp_path)) as core, http_face(core, cors_origins=[SITE]) as running:
        yield running


def asks(method: str, *headers: str, origin: str = SITE) -> dict[str, str]:
    """The headers of a preflight request."""
    return {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": ",".join(headers),
    }


@pytest.mark.parametrize(
    ("method", "path", "header"),
    [
        ("GET", WATCH, "last-event-id"),
        ("POST", "/v1/subscriptions", "idempotency-key"),
        ("PATCH", "/v1/subscriptions/x", "if-match"),
        ("PUT", "/v1/groups/x/members", "content-type"),
        ("DELETE", "/v1/groups/x", "if-match"),
        ("POST", RETRIEVE, "x-correlator"),
    ],
)
async def test_preflight(open_face: HttpFace, method: str, path: str, header: str) -> None:
    """Fetch standard section 3.2.2: a preflight request has no credentials, and is answered with the site, the method
    and the headers; never with leave for the browser's own credentials."""
    answer = await open_face.call("OPTIONS", path, client="", headers=asks(method, "authorization", header))
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, SITE)
    assert method in answer.headers["access-control-allow-methods"].split(", ")
    assert {"authorization", header} <= set(answer.headers["access-control-allow-headers"].lower().split(", "))
    assert answer.headers["access-control-max-age"] == "600"
    assert "access-control-allow-credentials" not in answer.headers
    assert "Origin" in answer.headers["vary"]


async def test_answers_can_be_read(open_face: HttpFace) -> None:
    """Fetch standard section 3.2.3: answers name the site, errors too, with the headers that a script may read; a
    stream as well."""
    for path, client, status in ((STATUS, "app", 200), (STATUS, "", 401), ("/nowhere", "", 404), (RETRIEVE, "", 405)):
        answer = await open_face.call("GET", path, client=client, headers={"origin": SITE})
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, SITE)
        assert {"ETag", "Location", "Retry-After"} <= set(answer.headers["access-control-expose-headers"].split(", "))
        assert "Origin" in answer.headers["vary"]
    async with open_face.events(WATCH, origin=SITE) as stream:
        assert stream.response.headers["access-control-allow-origin"] == SITE
        await stream.until("snapshot-complete")


async def test_other_sites(open_face: HttpFace) -> None:
    """A site that the setting does not name gets no leave, neither do `null` and a site that only begins like it."""
    for origin in (OTHER_SITE, "null", f"{SITE}.evil.example", SITE.replace("https", "http"), f"{SITE}:8443"):
        for path in (STATUS, RETRIEVE):
            asked = await open_face.call("OPTIONS", path, client="", headers=asks("GET", origin=origin))
            got = await open_face.call("GET", path, headers={"origin": origin})
            assert asked.status == 400
            for answer in (asked, got):
                assert "access-control-allow-origin" not in answer.headers


async def test_none_by_default(face: HttpFace) -> None:
    """Without the setting no site gets leave."""
    asked = await face.call("OPTIONS", STATUS, client="", headers=asks("GET"))
    got = await face.call("GET", STATUS, headers={"origin": SITE})
    assert (asked.status, got.status) == (405, 200)
    for answer in (asked, got):
        assert not [name for name in answer.headers if name.startswith("access-control-")]
