"""CAMARA device-reachability-status-subscriptions v0.8, on the subscriptions that all APIs share.

Invariants: a client sees and ends only its own subscriptions made here; with a three-legged access token only those of
the token's device. A sink's credential is never returned. The list is sent as it is read, so its memory is bounded.

Deliberately absent: protocols other than HTTP, credentials other than access tokens, several event types in one
subscription; `protocolSettings`, which is ignored.
"""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, get_args

import msgspec
from fastapi import APIRouter, Body, Path, Request, Response
from fastapi.responses import StreamingResponse

from app.core.subscription_requests import SubscriptionRequest
from app.domain.errors import SubscriptionUnknown
from app.domain.operations import UsageOperation
from app.domain.policy import MAX_INTERVAL_MS
from app.domain.records import MAX_ID, Client, Subscription
from app.domain.sinks import (
    PROFILE_CAMARA,
    SINK_HANDSHAKE,
    SINK_TOKEN,
    SINK_TOKEN_EXPIRES_AT,
    EndReason,
    Handshake,
    Sink,
    SinkKind,
)
from app.rest.camara import event_types, lifetime, schemas, sink_parameters
from app.rest.camara.callers import (
    FACE,
    SINK_BEARER,
    CamaraCaller,
    CamaraDependencies,
    caller_with,
    identified,
    recorded,
    require,
    scopes,
    token_device,
)
from app.rest.camara.errors import (
    CORRELATED,
    CREDENTIAL_NOT_OFFERED,
    IDENTIFIER_NOT_FOUND,
    INVALID_ARGUMENT,
    INVALID_CREDENTIAL,
    INVALID_PROTOCOL,
    INVALID_SINK,
    INVALID_TOKEN,
    MULTIEVENT,
    NOT_FOUND,
    OUT_OF_RANGE,
    QUOTA_EXCEEDED,
    SERVICE_NOT_APPLICABLE,
    SUBSCRIPTION_MISMATCH,
    CamaraError,
    failures,
)
from app.rest.camara.status import DEVICE_ERRORS
from app.rest.responses import NO_STORE, json_response, location, no_content

TAG = "Device reachability status subscription"
API = "device-reachability-status-subscriptions"
READ, DELETE = f"{API}:read", f"{API}:delete"
PAGE = 500

_EXAMPLE = {
    "id": "5f3a1c0e9b7d4c2f8a6e0d1b2c3f4a5b",
    "protocol": "HTTP",
    "sink": "https://endpoint.example.com/sink",
    "types": [event_types.REACHABILITY_DATA],
    "config": {"subscriptionDetail": {"device": {"phoneNumber": "+123456789"}}, "initialEvent": True},
    "startsAt": "2026-01-17T13:18:23.682Z",
    "expiresAt": "2026-01-18T13:18:23.682Z",
    "status": "ACTIVE",
}

IdInPath = Annotated[str, Path(max_length=MAX_ID, description="The subscription's id.")]


def add_routes(router: APIRouter, api: CamaraDependencies) -> None:
    """Adds the operations to `router`."""
    subscriptions = api.use_cases.subscriptions

    @router.post(
        "/subscriptions",
        status_code=201,
        operation_id="createDeviceReachabilityStatusSubscription",
        tags=[TAG],
        summary="Create a device reachability status event subscription for a device",
        description="Creates a subscription to one type of event of one device. The presence server is asked for the "
        "device first, unless the gateway watches it already: an unknown device is `IDENTIFIER_NOT_FOUND`, one that "
        "may not be watched `SERVICE_NOT_APPLICABLE`. Where the presence server gives no answer in time, the "
        "subscription is created. CAMARA's test definitions of r1.2 require `IDENTIFIER_NOT_FOUND`, and "
        "`INVALID_ARGUMENT` for a `subscriptionExpireTime` in the past; its OpenAPI document lacks the former, and "
        "would allow `OUT_OF_RANGE` for the latter. The test definitions count.",
        response_model=schemas.Subscription,
        response_description="The new subscription.",
        responses={
            **failures(
                *DEVICE_ERRORS,
                IDENTIFIER_NOT_FOUND,
                OUT_OF_RANGE,
                INVALID_PROTOCOL,
                INVALID_CREDENTIAL,
                INVALID_TOKEN,
                INVALID_SINK,
                MULTIEVENT,
                SUBSCRIPTION_MISMATCH,
                QUOTA_EXCEEDED,
            ),
            201: {
                "headers": {**CORRELATED, **location("The subscription's path.")},
                "content": {"application/json": {"example": _EXAMPLE}},
            },
        },
        callbacks=_callbacks(),
        openapi_extra=scopes(*[_scope(kind) for kind in get_args(schemas.EventType)]),
    )
    async def create_subscription(
        http: Request,
        asked: schemas.SubscriptionRequest,
        caller: CamaraCaller = caller_with(api),  # noqa: B008  # FastAPI's way of naming a dependency
    ) -> Response:
        kind = asked.types[0]
        with recorded(api, caller, UsageOperation.START_NOTIFICATION):
            _require_create(caller, kind)
            request = _request(api, caller, asked, kind)
        made = await subscriptions.create(caller.client, request, face=FACE)
        path = f"{http.scope['root_path']}/subscriptions/{made.id}"
        return json_response(_shown(made, token_device(api, caller)), 201, {"location": path})

    @router.get(
        "/subscriptions",
        operation_id="retrieveDeviceReachabilityStatusSubscriptionList",
        tags=[TAG],
        summary="Retrieve a list of device reachability status event subscriptions",
        description="Lists the active subscriptions of the caller; with a three-legged token, those of its device.",
        response_model=list[schemas.Subscription],
        response_description="Active subscriptions, oldest first.",
        responses={**failures(), 200: {"headers": CORRELATED}},
        openapi_extra=scopes(READ),
    )
    async def list_subscriptions(
        caller: CamaraCaller = caller_with(api, READ),  # noqa: B008
    ) -> Response:
        of_token = token_device(api, caller)

        async def parts() -> AsyncIterator[list[Subscription]]:
            async for found in subscriptions.pages(caller.client, PAGE):
                yield [each for each in found if _is_visible(each, caller.client, of_token)]

        portions = parts()
        first = await anext(portions)  # raises the errors of the request
        return StreamingResponse(_array(first, portions, of_token), media_type="application/json", headers=NO_STORE)

    @router.get(
        "/subscriptions/{subscriptionId}",
        operation_id="retrieveDeviceReachabilityStatusSubscription",
        tags=[TAG],
        summary="Retrieve a device reachability status event subscription for a device",
        description="Returns one subscription.",
        response_model=schemas.Subscription,
        response_description="The subscription. One that the client did not delete remains for a time after its end.",
        responses={**failures(NOT_FOUND), 200: {"headers": CORRELATED}},
        openapi_extra=scopes(READ),
    )
    async def get_subscription(
        subscriptionId: IdInPath,  # noqa: N803
        caller: CamaraCaller = caller_with(api, READ),  # noqa: B008
    ) -> Response:
        return json_response(_shown(await own(caller, subscriptionId), token_device(api, caller)))

    @router.delete(
        "/subscriptions/{subscriptionId}",
        status_code=204,
        operation_id="deleteDeviceReachabilityStatusSubscription",
        tags=[TAG],
        summary="Delete a device reachability status event subscription for a device",
        description="Ends one subscription; its sink gets a last event.",
        response_description="The subscription is deleted.",
        responses={**failures(NOT_FOUND), 204: {"headers": CORRELATED}},
        openapi_extra=scopes(DELETE),
    )
    async def delete_subscription(
        subscriptionId: IdInPath,  # noqa: N803
        caller: CamaraCaller = caller_with(api, DELETE),  # noqa: B008
    ) -> Response:
        with recorded(api, caller, UsageOperation.END_NOTIFICATION):
            found = await own(caller, subscriptionId)
        await subscriptions.cancel(caller.client, found.id, face=FACE)
        return no_content()

    async def own(caller: CamaraCaller, subscription_id: str) -> Subscription:
        found = await subscriptions.get(caller.client, subscription_id)
        deleted = found.end_reason is EndReason.CANCELLED
        if deleted or not _is_visible(found, caller.client, token_device(api, caller)):
            raise SubscriptionUnknown("There is no such subscription.")
        return found


def _scope(kind: str) -> str:
    return f"{API}:{kind}:create"


def _require_create(caller: CamaraCaller, kind: str) -> None:
    scope = _scope(kind)
    if caller.grant is not None and not {scope, API} & caller.grant.scopes:
        if any(each.startswith(f"{API}:") and each.endswith(":create") for each in caller.grant.scopes):
            raise CamaraError(
                SUBSCRIPTION_MISMATCH,
                f"The access token lacks the scope {scope}; it has another event type's scope.",
                scope=scope,
            )
        require(caller, scope)


def _request(
    api: CamaraDependencies, caller: CamaraCaller, asked: schemas.SubscriptionRequest, kind: str
) -> SubscriptionRequest:
    if asked.protocol != "HTTP":
        raise CamaraError(INVALID_PROTOCOL, "protocol must be HTTP; others are not offered.")
    credential = asked.sinkCredential
    if not (credential is None or isinstance(credential, schemas.AccessTokenCredential)):
        raise CamaraError(INVALID_CREDENTIAL, CREDENTIAL_NOT_OFFERED)
    if kind not in event_types.CRITERIA:
        raise CamaraError(SERVICE_NOT_APPLICABLE, "The event type reachability-sms is not offered.")
    device = identified(api, caller, asked.config.subscriptionDetail.device)
    now, config = api.clock(), asked.config
    if config.subscriptionExpireTime is not None and config.subscriptionExpireTime <= now + timedelta(milliseconds=1):
        raise CamaraError(INVALID_ARGUMENT, "subscriptionExpireTime has passed; send a time in the future.")
    parameters = {sink_parameters.TYPE: kind, SINK_HANDSHAKE: Handshake.NONE.value}
    if device.identifier:
        parameters[sink_parameters.DEVICE] = json.dumps(device.identifier)
    if config.subscriptionExpireTime is not None:
        parameters[sink_parameters.EXPIRE_TIME] = config.subscriptionExpireTime.isoformat()
    if credential is not None:
        parameters[SINK_TOKEN] = credential.accessToken
        parameters[SINK_TOKEN_EXPIRES_AT] = credential.accessTokenExpiresUtc.isoformat()
    duration_ms, ends_with_token = lifetime.duration(
        now,
        config.subscriptionExpireTime,
        None if credential is None else credential.accessTokenExpiresUtc,
        api.use_cases.subscriptions.default_duration_ms(caller.client),
    )
    if config.subscriptionExpireTime is not None and duration_ms is not None and duration_ms > MAX_INTERVAL_MS:
        most = MAX_INTERVAL_MS // 86_400_000
        raise CamaraError(OUT_OF_RANGE, f"subscriptionExpireTime is too far ahead; at most {most} days are possible.")
    if ends_with_token:
        parameters[sink_parameters.ENDS_WITH_TOKEN] = "yes"
    return SubscriptionRequest(
        addresses=(device.address,),
        criteria=event_types.CRITERIA[kind],
        check_immediate=bool(config.initialEvent),
        duration_ms=duration_ms,
        count=config.subscriptionMaxEvents or 0,
        ask_first=True,
        sink=Sink(kind=SinkKind.WEBHOOK, url=asked.sink, profile=PROFILE_CAMARA, parameters=parameters),
    )


def _is_visible(of: Subscription, client: Client, token_device: str | None) -> bool:
    return (
        of.sink.profile == PROFILE_CAMARA
        and sink_parameters.is_valid(of)
        and of.client_id == client.id
        and (token_device is None or of.addresses == (token_device,))
    )


def _shown(of: Subscription, token_device: str | None) -> dict[str, Any]:
    """Returns the subscription in CAMARA's form; for a three-legged caller without the device's identifier."""
    parameters = of.sink.parameters
    device = sink_parameters.identifier(of) if token_device is None else None
    config: dict[str, Any] = {
        "subscriptionDetail": {} if device is None else {"device": device},
        "initialEvent": of.check_immediate,
    }
    if expire_time := parameters.get(sink_parameters.EXPIRE_TIME):
        config["subscriptionExpireTime"] = datetime.fromisoformat(expire_time).astimezone(UTC)
    if of.max_notifications:
        config["subscriptionMaxEvents"] = of.max_notifications
    shown = {
        "id": of.id,
        "protocol": "HTTP",
        "sink": of.sink.url,
        "types": [parameters[sink_parameters.TYPE]],
        "config": config,
        "startsAt": of.created_at,
        "status": sink_parameters.status(of),
    }
    if of.expires_at is not None:
        shown["expiresAt"] = of.expires_at
    return shown


async def _array(
    first: list[Subscription], others: AsyncIterator[list[Subscription]], token_device: str | None
) -> AsyncIterator[bytes]:
    encode = msgspec.json.Encoder().encode
    some = bool(first)
    yield b"[" + b",".join([encode(_shown(each, token_device)) for each in first])
    async for portion in others:
        if portion:
            yield (b"," if some else b"") + b",".join([encode(_shown(each, token_device)) for each in portion])
            some = True
    yield b"]"


def _callbacks() -> Any:
    router = APIRouter()

    @router.post(
        "{$request.body#/sink}",
        status_code=204,
        operation_id="postNotification",
        summary="notifications callback",
        description="Implemented by the API consumer: the gateway sends events here as `application/cloudevents+json`.",
        response_description="The event is accepted.",
        responses={
            410: {"description": "The sink wants no more events: the subscription ends."},
            401: {"description": "The sink's access token has expired: the subscription ends. Else it is tried again."},
            "default": {"description": "The gateway tries again later."},
        },
        openapi_extra={"security": [{}, {SINK_BEARER: []}]},
    )
    async def post_notification(
        event: Annotated[schemas.CloudEvent, Body(media_type="application/cloudevents+json")],
    ) -> None:
        """Serves only as documentation."""

    return router.routes
