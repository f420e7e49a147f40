"""/metrics, and the separate address (TS_METRICS_LISTEN) for metrics and probes.

Invariants: without a separate address, the HTTP address serves the metrics to operators' clients, and to callers that
need no credentials. With one, only the separate address serves them, to every caller.
"""

from collections.abc import Callable

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from app.auth.authenticator import Authenticator
from app.domain.errors import NotPermitted
from app.rest.operation import client_of

METRICS = "/metrics"
PATHS = (METRICS, "/healthz", "/readyz")
"""The paths that the separate address serves."""

_SEPARATE = "separate_address"
_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def add_metrics(app: FastAPI, auth: Authenticator, text: Callable[[], bytes], *, separate_address: bool) -> None:
    """Adds /metrics to `app`; with `separate_address` only for the app that `on_separate_address` returns."""

    async def scrape(request: Request) -> Response:
        if not request.scope.get(_SEPARATE):
            if separate_address:
                raise HTTPException(404)
            client = await client_of(auth, request.scope)
            if not client.admin and client is not auth.anonymous:
                raise NotPermitted(
                    "Only an operator's client (--admin) may read the metrics. To serve them without "
                    "credentials, set TS_METRICS_LISTEN."
                )
        return Response(text(), media_type=_MEDIA_TYPE)

    app.add_route(METRICS, scrape, include_in_schema=False)


def on_separate_address(app: ASGIApp) -> ASGIApp:
    """Returns an app that serves only PATHS of `app`."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PATHS:
            scope = {**scope, "path": "/", "raw_path": b"/"}  # a path that does not exist
        await app({**scope, _SEPARATE: True}, receive, send)

    return serve
