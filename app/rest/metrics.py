"""The metrics, and the address of their own that metrics and probes may have.

Invariants: on the HTTP address the metrics are for operators' clients, and for callers who need no credentials; on an
address of their own (TS_METRICS_LISTEN) they are for everybody who reaches it, and nowhere else.

Deliberately absent: the probes themselves (`probes.py`), which both addresses serve, and what is measured.
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
"""What the address of their own serves."""

_OWN = "own_address"
_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def add_metrics(app: FastAPI, auth: Authenticator, text: Callable[[], bytes], *, own_address: bool) -> None:
    """Adds the metrics to `app`; with `own_address` for `on_own_address` alone."""

    async def scrape(request: Request) -> Response:
        if not request.scope.get(_OWN):
            if own_address:
                raise HTTPException(404)
            client = await client_of(auth, request.scope)
            if not client.admin and client is not auth.anonymous:
                raise NotPermitted("The metrics are for operators' clients (--admin); see also TS_METRICS_LISTEN.")
        return Response(text(), media_type=_MEDIA_TYPE)

    app.add_route(METRICS, scrape, include_in_schema=False)


def on_own_address(app: ASGIApp) -> ASGIApp:
    """What is served on the metrics' own address: of `app`, PATHS alone."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PATHS:
            scope = {**scope, "path": "/", "raw_path": b"/"}  # where nothing is
        await app({**scope, _OWN: True}, receive, send)

    return serve
