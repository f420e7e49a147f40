"""CAMARA's APIs at release r1.2: device-reachability-status v1, device-reachability-status-subscriptions v0.8.

One FastAPI app for each, which stand beside REST API v1 and not under it, so that every failure of their paths has
CAMARA's form.
Invariants: members of requests that are unknown are ignored, as CAMARA's schemas have it. What a device is named by is
never sent to anybody but who named it.

Deliberately absent: what CAMARA's words mean (`app.rest.camara.model`), reachability by SMS, and devices named by IP
addresses, which are refused as the standard says.
"""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

from app.rest.camara import status, subscriptions
from app.rest.camara.callers import CamaraDependencies, CamaraOperation
from app.rest.camara.errors import ErrorInfo, add_handlers, answer_problem
from app.rest.middleware import RequestMiddleware

__all__ = ("ANY_SERVER", "COMMON_PREFIX", "PREFIXES", "CamaraDependencies", "create_apps")

STATUS = "device-reachability-status-v1"
SUBSCRIPTIONS = "device-reachability-status-subscriptions-v0.8"
PREFIXES: Mapping[str, str] = {
    STATUS: "/device-reachability-status/v1",
    SUBSCRIPTIONS: "/device-reachability-status-subscriptions/v0.8",
}
"""The path under which each API is served."""
COMMON_PREFIX = "/device-reachability-status"

ANY_SERVER = "http://localhost:8080"
"""Stands in the documents for the server's URL."""

_CREDENTIALS = """

Credentials are an API key (which counts as a two-legged token: `device` must be given) or an access token, as
`Authorization: Bearer …`. Where an access token names a device (three-legged), `device` must not be given. An access
token needs this API's scopes.

A device is named by `phoneNumber` or `networkAccessIdentifier`; where both are given the first is used. IP addresses
are `UNSUPPORTED_IDENTIFIER`. A terminal whose user is on a call is reachable."""


def create_apps(dependencies: CamaraDependencies) -> dict[str, FastAPI]:
    """The apps by the name of their OpenAPI document."""
    return {
        STATUS: _app(
            dependencies,
            status.add_routes,
            STATUS,
            title="Device Reachability Status",
            version="1.1.0",
            description="CAMARA's API to ask whether a device is reachable, over SIP presence." + _CREDENTIALS,
            openapi_tags=[{"name": status.TAG, "description": "The current reachability status of a device."}],
        ),
        SUBSCRIPTIONS: _app(
            dependencies,
            subscriptions.add_routes,
            SUBSCRIPTIONS,
            title="Device Reachability Status Subscriptions",
            version="0.8.0",
            description="CAMARA's API to be told when a device becomes reachable or disconnected. Reachability by SMS "
            "is not offered. Events are sent at least once, in order, as `application/cloudevents+json`."
            + _CREDENTIALS,
            openapi_tags=[{"name": subscriptions.TAG, "description": "Subscriptions to a device's reachability."}],
        ),
    }


class _App(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """Adds what FastAPI does not know: the form of failures, and the credentials."""
        if self.openapi_schema is None:
            document = super().openapi()
            components = document.setdefault("components", {})
            components.setdefault("schemas", {})["ErrorInfo"] = ErrorInfo.model_json_schema()
            components["securitySchemes"] = {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An API key or an access token."}
            }
            document["security"] = [{"bearer": []}]
        return self.openapi_schema or {}


def _app(dependencies: CamaraDependencies, add_routes: Any, name: str, **described: Any) -> FastAPI:
    api_root = {"default": ANY_SERVER, "description": "Where the gateway is reached."}
    app = _App(
        **described,
        license_info={"name": "Apache 2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0.html"},
        servers=[{"url": "{apiRoot}" + PREFIXES[name], "variables": {"apiRoot": api_root}}],
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        root_path_in_servers=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.auth = dependencies.use_cases.auth
    app.router.route_class = CamaraOperation
    app.add_middleware(RequestMiddleware, answer=answer_problem)
    add_handlers(app)
    add_routes(app.router, dependencies)
    return app
