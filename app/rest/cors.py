"""Lets scripts of other web sites call REST and CAMARA (the Fetch standard, section 3.2), where TS_CORS_ORIGINS names
these sites.

Invariants: no answer permits a script to send a browser's own credentials (cookies, certificates): a script sends an
API key or access token itself.

Deliberately absent: SOAP and the separate address for metrics, which no script calls.
"""

from collections.abc import Collection

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from app.rest import rate_limits

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
REQUEST_HEADERS = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-Match",
    "Last-Event-ID",
    "traceparent",
    "x-correlator",
)
ANSWER_HEADERS = (
    "ETag",
    "Location",
    *rate_limits.DOCUMENTED,
    "Retry-After",
    "traceparent",
    "WWW-Authenticate",
    "x-correlator",
)
MAX_AGE_S = 600
"""How long a browser may keep the answer to a preflight request."""


def allowing(origins: Collection[str], app: ASGIApp) -> ASGIApp:
    """Returns `app` with the headers that let scripts of `origins` call it."""
    return CORSMiddleware(
        app,
        allow_origins=sorted(origins),
        allow_methods=METHODS,
        allow_headers=REQUEST_HEADERS,
        expose_headers=ANSWER_HEADERS,
        max_age=MAX_AGE_S,
    )
