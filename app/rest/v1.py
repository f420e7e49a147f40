"""REST API v1: `GET /v1/terminals/{address}/status`.

Invariants: a handler is check, call, map, return; errors are mapped in `problem`. The words are the domain's. Within v1
members and values are added, never removed or given another meaning. Unknown query parameters and a body are ignored.

Deliberately absent: business rules, caching.
"""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from fastapi.routing import APIRoute
from pydantic import AwareDatetime, BaseModel, Field
from starlette.convertors import Convertor, register_url_convertor

from app import domain
from app.rest.problem import NO_STORE, documented, internal_error, problem_of
from app.service import StatusService


class TerminalStatus(BaseModel):
    """What the presence server said about a terminal, and when."""

    address: str = Field(
        description="The terminal in canonical form, by which equal terminals are equal strings: scheme, host and "
        "parameters in lower case, a telephone number without visual separators. May differ from the request's."
    )
    status: domain.Status = Field(
        description="`REACHABLE`: registered, and nothing says that the user is busy. `UNREACHABLE`: not registered. "
        "`BUSY`: registered, and the user is occupied. Take a value you do not know as an unknown status."
    )
    observed_at: AwareDatetime = Field(
        description="When the presence server stated the status, by the gateway's clock (RFC 3339, UTC)."
    )
    source: domain.Source = Field(
        description="Where the status came from. `FETCH`: the presence server was asked for this very answer."
    )


class _AnyText(Convertor[str]):
    """As Starlette's `path`, but line ends too: a domain rule refuses them, not a 404."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("any_text", _AnyText())


def add_routes(router: APIRouter, service: StatusService) -> None:
    """Adds the operations of v1 to `router`, answered by `service`."""

    async def get_terminal_status(
        address: Annotated[
            str,
            Path(
                description="The terminal: a `sip:`, `sips:` (RFC 3261, without password and headers) or `tel:` URI "
                "(RFC 3966). Percent-encode what a path cannot hold, such as `/`, `?`, `#` and `%`; `+` is a plus.",
                min_length=1,
                max_length=domain.MAX_ADDRESS_LENGTH,
                openapi_examples={
                    "sip": {"summary": "A SIP URI", "value": "sip:alice@example.com"},
                    "tel": {"summary": "A telephone number", "value": "tel:+15551234567"},
                },
            ),
        ],
    ) -> Response:
        found = await service.get_status(address)
        body = TerminalStatus(
            address=found.address, status=found.status, observed_at=found.observed_at, source=found.source
        )
        return Response(body.model_dump_json(), headers=NO_STORE, media_type="application/json")

    router.add_api_route(
        "/v1/terminals/{address:any_text}/status",
        get_terminal_status,
        methods=["GET"],
        operation_id="getTerminalStatus",
        tags=["Terminal status"],
        summary="Get a terminal's status",
        description="Asks the presence server for the terminal's status now, and returns its answer. A terminal that "
        "exists and is not registered is no error: it is `UNREACHABLE`. Concurrent questions about one terminal share "
        "one SIP SUBSCRIBE. Unknown query parameters are ignored.",
        response_model=TerminalStatus,
        response_description="The terminal's status.",
        responses={
            **documented(*map(problem_of, EXAMPLE_ERRORS), internal_error("6f1c3f0d9c0b4b0c8a3f0e6f6d1c2b7a")),
            200: {"content": {"application/json": {"examples": _EXAMPLE_STATUSES}}},
        },
        route_class_override=_StringsOnly,
    )


class _StringsOnly(APIRoute):
    """A route that hands the path's parameters, as strings, straight to its endpoint, which returns a Response.

    FastAPI's solving of dependencies costs 40 µs of CPU in each request, more than all else here, to find a string
    that the router has found already. What the signature says is documentation; the domain checks the value.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Callable[..., Coroutine[Any, Any, Response]] = self.endpoint

        async def handle(request: Request) -> Response:
            return await endpoint(**request.path_params)

        return handle


_ALICE = "sip:alice@example.com"
EXAMPLE_ERRORS: tuple[domain.TerminalStatusError, ...] = (
    domain.InvalidAddress(
        "The address 'alice' is no sip:, sips: or tel: URI such as sip:alice@example.com or tel:+15551234567."
    ),
    domain.TerminalUnknown("The presence server answered 404 Not Found.", sip_code="404", address=_ALICE),
    domain.WatcherRefused("The presence server answered 403 Forbidden.", sip_code="403", address=_ALICE),
    domain.WatcherUnauthenticated(
        "The presence server answered 401 Unauthorized. The gateway has no credentials it accepts.",
        sip_code="401",
        address=_ALICE,
    ),
    domain.FetchTimedOut("The presence server did not answer within 1000 ms.", address=_ALICE),
    domain.PresenceUnavailable(
        "The presence server answered 503 Service Unavailable.", retry_after_s=30, sip_code="503", address=_ALICE
    ),
    domain.WatcherRestarting("The SIP worker is being replaced.", retry_after_s=1, address=_ALICE),
    domain.GatewayOverloaded("1000 fetches are in flight, as many as allowed; try again.", retry_after_s=1),
    domain.PresenceMisconfigured("The presence server answered 489 Bad Event.", sip_code="489", address=_ALICE),
    domain.DocumentUnreadable(
        "The presence document was cut short: 3000 of 4500 bytes arrived.", reason="cut", address=_ALICE
    ),
)
"""One of each error, as the OpenAPI document shows it."""

_EXAMPLE_STATUSES: dict[str, Any] = {
    status.value: {
        "summary": summary,
        "value": {"address": _ALICE, "status": status, "observed_at": "2026-01-02T03:04:05.678Z", "source": "FETCH"},
    }
    for status, summary in {
        domain.Status.REACHABLE: "Registered, nothing says that the user is busy",
        domain.Status.UNREACHABLE: "Not registered",
        domain.Status.BUSY: "Registered, the user is on the phone",
    }.items()
}
