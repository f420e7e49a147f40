"""Builds the HTTP APIs: the ASGI app of REST API v1, with CAMARA's apps beside it.

CAMARA's paths have apps of their own, so that each of their errors has CAMARA's form.

Invariants: `export_openapi` returns the texts of the files in `openapi/`. No page served needs the internet.

Deliberately absent: redirects for a trailing slash; FastAPI's telemetry, which costs 6 µs a request and reads
environment variables.
"""

import asyncio
import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, cast

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from app.auth.oidc import Grant
from app.core.fetcher import FetchService
from app.core.use_cases import UseCases
from app.rest import (
    api_page,
    audit,
    clients,
    cors,
    deliveries,
    groups,
    openapi,
    probes,
    problem,
    streams,
    subscriptions,
    terminals,
    tickets,
    usage,
    watches,
    webhook_events,
)
from app.rest.camara.applications import COMMON_PREFIX, PREFIXES, create_apps, server
from app.rest.camara.callers import CamaraDependencies
from app.rest.middleware import RequestMiddleware
from app.rest.operation import Operation


def create_app(
    service: FetchService,
    use_cases: UseCases,
    *,
    stopping: asyncio.Event | None = None,
    number_pattern: str = "tel:{number}",
    grant: Callable[[str], Grant] | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    max_stream_age_s: float | None = None,
    public_url: str | None = None,
    ready_needs_presence: bool = False,
    token_scope: str = "",
    token_issuer: str = "",
    cors_origins: Collection[str] = (),
    jitter: Callable[[], float] = random.random,
) -> FastAPI:
    """Returns the ASGI app. Routes and mounts may be added to it; their uncaught errors become problems.

    `stopping`: once set, the gateway is not ready. `number_pattern`: the address of a CAMARA `phoneNumber`. `grant`:
    what a valid access token grants (`AccessTokens.grant`); None if access tokens are not accepted. `max_stream_age_s`:
    the age, in seconds, at which a stream of events is ended, for its client to resume. `public_url`: the server named
    in the OpenAPI documents; by default the one that the reader's request names. `ready_needs_presence`: whether the
    gateway is ready only while a presence server answers. `token_scope`: the scope that an access token needs for REST
    API v1, which a challenge names; empty: none. `token_issuer`: the issuer of access tokens, for CAMARA's documents.
    `cors_origins`: the origins whose scripts may call. `jitter` returns a number from 0 to 1 at random.
    """
    dependencies = CamaraDependencies(
        use_cases=use_cases, number_pattern=number_pattern, grant=grant, clock=clock, issuer=token_issuer
    )
    app = _App(
        create_apps(dependencies),
        cors_origins,
        title="Terminal status gateway",
        version=openapi.VERSION,
        summary="Is this SIP/IMS terminal reachable now, and is its user busy?",
        description=openapi.DESCRIPTION,
        openapi_tags=openapi.TAGS,
        license_info={"name": "MIT", "identifier": "MIT"},
        servers=[server("")],
        root_path_in_servers=False,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.auth = use_cases.auth
    app.state.token_scope = token_scope
    documents = _documents(app)
    app.add_middleware(terminals.StatusShortcut, use_cases=use_cases, token_scope=token_scope)
    app.add_middleware(RequestMiddleware, answer=problem.answer, policies=use_cases.policies)
    problem.add_handlers(app)
    # Directly on the app's router: `include_router` would cost 12 µs a request.
    app.router.route_class = Operation
    terminals.add_routes(app.router, use_cases)
    tickets.add_routes(app.router, use_cases)
    streams.add_routes(app.router, use_cases, max_age_s=max_stream_age_s, jitter=jitter)
    for noun in (subscriptions, groups, deliveries, usage, watches, clients, audit):
        noun.add_routes(app.router, use_cases)
    app.router.route_class = APIRoute
    webhook_events.add_webhooks(app)
    api_page.add_routes(app, documents, public_url)
    probes.add_routes(app, service, stopping=stopping or asyncio.Event(), ready_needs_presence=ready_needs_presence)
    return app


def export_openapi() -> dict[str, str]:
    """Returns the OpenAPI documents as JSON texts by name, the same for the same code."""
    # Routes keep the use cases and read them only when called, which does not happen here.
    nothing: Any = dict.fromkeys([each.name for each in fields(UseCases)])
    app = create_app(cast("FetchService", None), UseCases(**nothing))
    return {name: api_page.as_text(document()) for name, document in _documents(cast("_App", app)).items()}


def _documents(app: "_App") -> Mapping[str, Callable[[], dict[str, Any]]]:
    return {openapi.V1: app.openapi, **{name: api.openapi for name, api in app.camara.items()}}


class _App(FastAPI):
    """REST API v1, with CAMARA's apps beside it."""

    def __init__(self, camara_apps: Mapping[str, FastAPI], cors_origins: Collection[str], **described: Any) -> None:
        super().__init__(**described)
        self._serve = cors.allowing(cors_origins, self._call) if cors_origins else self._call
        self.camara = camara_apps
        self._prefixes = [(PREFIXES[name], api) for name, api in camara_apps.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._serve(scope, receive, send)

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(COMMON_PREFIX):
            for prefix, api in self._prefixes:
                if scope["path"].startswith(prefix + "/"):
                    await api({**scope, "root_path": scope.get("root_path", "") + prefix}, receive, send)
                    return
        await super().__call__(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            return openapi.complete(super().openapi())
        return self.openapi_schema
