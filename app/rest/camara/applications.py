"""The FastAPI app of each CAMARA API, beside REST API v1's, so that every error of its paths has CAMARA's form."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

from app.rest.camara import status, subscriptions
from app.rest.camara.callers import OPEN_ID, SINK_BEARER, CamaraDependencies, CamaraOperation
from app.rest.camara.errors import ErrorInfo, add_handlers, answer_problem
from app.rest.middleware import RequestMiddleware

STATUS = "device-reachability-status-v1"
SUBSCRIPTIONS = "device-reachability-status-subscriptions-v0.8"
PREFIXES: Mapping[str, str] = {
    STATUS: "/device-reachability-status/v1",
    SUBSCRIPTIONS: "/device-reachability-status-subscriptions/v0.8",
}
"""The path under which each API is served."""
COMMON_PREFIX = "/device-reachability-status"

_ANY_ISSUER = "https://idp.example.com"

ANY_SERVER = "http://localhost:8080"
"""The server's URL in the documents, which `api_page.py` replaces."""

_CREDENTIALS = """

**Credentials.** Send an API key or an access token as `Authorization: Bearer …`. An API key counts as a two-legged \
token: the request must have `device`. With an access token that identifies a device (three-legged), the request must \
not have `device`. An access token needs this API's scopes; to subscribe, the scope of the event type is enough.

**Devices.** A device is identified by `phoneNumber` or `networkAccessIdentifier`; if both are sent, `phoneNumber` is \
used. Devices with IP addresses only are answered `UNSUPPORTED_IDENTIFIER`. A device whose user is on a call is \
reachable."""


def server(prefix: str) -> dict[str, Any]:
    """Returns the server, as OpenAPI documents have it, of paths that begin with `prefix`."""
    return {
        "url": "{apiRoot}" + prefix,
        "description": "The gateway.",
        "variables": {"apiRoot": {"default": ANY_SERVER, "description": "The gateway's URL."}},
    }


def create_apps(dependencies: CamaraDependencies) -> dict[str, FastAPI]:
    """Returns the apps by the names of their OpenAPI documents."""
    return {
        STATUS: _app(
            dependencies,
            status.add_routes,
            STATUS,
            title="Device Reachability Status",
            version="1.1.0",
            description="CAMARA's API to query whether a device is reachable, answered from SIP presence."
            + _CREDENTIALS,
            openapi_tags=[{"name": status.TAG, "description": "The current reachability status of a device."}],
        ),
        SUBSCRIPTIONS: _app(
            dependencies,
            subscriptions.add_routes,
            SUBSCRIPTIONS,
            title="Device Reachability Status Subscriptions",
            version="0.8.0",
            description="CAMARA's API to subscribe to a device's changes between reachable and disconnected. "
            "Reachability by SMS is not offered. Events are sent at least once, in order, as "
            "`application/cloudevents+json`." + _CREDENTIALS,
            openapi_tags=[{"name": subscriptions.TAG, "description": "Subscriptions to a device's reachability."}],
        ),
    }


class _App(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """Adds the schema of errors and the credentials, which FastAPI cannot derive."""
        if self.openapi_schema is None:
            document = super().openapi()
            components = document.setdefault("components", {})
            components.setdefault("schemas", {})["ErrorInfo"] = ErrorInfo.model_json_schema()
            issuer = self.state.issuer or _ANY_ISSUER
            components["securitySchemes"] = {
                OPEN_ID: {
                    "type": "openIdConnect",
                    "openIdConnectUrl": f"{issuer.rstrip('/')}/.well-known/openid-configuration",
                    "description": "An access token with the operation's scope, where the operator accepts tokens.",
                },
                "bearer": {"type": "http", "scheme": "bearer", "description": "An API key."},
            }
            if "/subscriptions" in document["paths"]:
                components["securitySchemes"][SINK_BEARER] = {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "In events: the access token of the sink's credential, if there is one.",
                }
        return self.openapi_schema or {}


def _app(dependencies: CamaraDependencies, add_routes: Any, name: str, **described: Any) -> FastAPI:
    app = _App(
        **described,
        license_info={"name": "Apache 2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0.html"},
        servers=[server(PREFIXES[name])],
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        root_path_in_servers=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.auth = dependencies.use_cases.auth
    app.state.issuer = dependencies.issuer
    app.router.route_class = CamaraOperation
    policies = dependencies.use_cases.policies
    app.add_middleware(RequestMiddleware, answer=answer_problem, policies=policies, strict=True)
    add_handlers(app)
    add_routes(app.router, dependencies)
    return app
