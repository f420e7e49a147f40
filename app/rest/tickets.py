"""REST API v1: tickets, with which browsers open streams of server-sent events."""

from collections.abc import Callable, Coroutine
from typing import Any, cast

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from starlette.datastructures import QueryParams
from starlette.types import Scope

from app.auth.credentials import AUTHORIZATION, asgi_authorization
from app.core.tickets import MAX_TICKET, OPEN_S, RESUME_S, HeldTicket, Tickets
from app.core.use_cases import UseCases
from app.domain.errors import InvalidRequest, TooManyStreams
from app.domain.records import Client
from app.rest.error_examples import failures
from app.rest.operation import CLIENT, Operation, given_several_times
from app.rest.parameters import Caller
from app.rest.responses import json_response
from app.rest.schemas import At
from app.rest.terminals import TAG

PARAMETER = "ticket"
"""The name of the query parameter."""

NO_REFERRER = {"referrer-policy": "no-referrer"}
"""The URL of a stream has a ticket, which must not reach another site."""

_HELD = "held_ticket"


class Ticket(BaseModel):
    """A ticket for one stream."""

    ticket: str = Field(description="The ticket, shown only here. Add it as `ticket` to the URL of the stream.")
    expire_time: At = Field(description="Until when an unused ticket opens a stream (RFC 3339, UTC).")


def add_routes(router: APIRouter, use_cases: UseCases) -> None:
    """Adds the operation to `router`."""
    tickets = use_cases.tickets

    @router.post(
        "/v1/tickets",
        operation_id="createTicket",
        tags=[TAG],
        summary="Make a ticket for a browser",
        description="Makes a ticket with which a browser's EventSource opens one stream of `GET /v1/terminals:watch`, "
        f"since it cannot send an Authorization header. The ticket has your rights. It opens a stream once, within "
        f"{OPEN_S} seconds. A request with `Last-Event-ID` may use the ticket again until {RESUME_S // 60} minutes "
        "after the stream broke, as an EventSource does by itself. A ticket lasts 24 hours at most, and no longer than "
        "the credentials that made it. No other operation accepts a ticket.",
        response_model=Ticket,
        response_description="The ticket.",
        responses=failures(TooManyStreams),
    )
    async def create_ticket(request: Request, client: Caller) -> Response:
        ticket, expires_at = await tickets.make(client, asgi_authorization(request.scope))
        return json_response({"ticket": ticket, "expire_time": expires_at}, headers=NO_REFERRER)


def held_by(scope: Scope) -> HeldTicket | None:
    """Returns the ticket that authenticated the request; None if other credentials did."""
    return cast("HeldTicket | None", scope.get(_HELD))


def operation_with(tickets: Tickets) -> type[Operation]:
    """Returns the route of an operation that also accepts a ticket."""

    class TicketOperation(Operation):
        async def authenticate(self, scope: Scope) -> Client:
            given = QueryParams(scope["query_string"]).getlist(PARAMETER) if b"ticket" in scope["query_string"] else []
            if not given:
                return await super().authenticate(scope)
            if len(given) > 1:
                raise given_several_times(PARAMETER)
            if asgi_authorization(scope):
                raise InvalidRequest(
                    f"The request has both a ticket and an {AUTHORIZATION} header; send one of them.", field=PARAMETER
                )
            resumes = any(name == b"last-event-id" and value for name, value in scope["headers"])
            peer = scope.get("client")
            held = await tickets.open(given[0][: MAX_TICKET + 1], resumes=resumes, peer=peer[0] if peer else "")
            scope[_HELD], scope[CLIENT] = held, held.client
            if on_authenticated := scope.get("on_authenticated"):
                on_authenticated()
            return held.client

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def dropping(request: Request) -> Response:
                try:
                    return await handle(request)
                except BaseException:
                    if (held := held_by(request.scope)) is not None:
                        await tickets.drop(held)
                    raise

            return dropping

    return TicketOperation
