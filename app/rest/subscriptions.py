"""REST API v1: subscriptions.

Invariants: a signing secret that the gateway made is returned only in the answer to the call that made it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Response

from app.core.sink_secrets import made_secret
from app.core.subscription_requests import SubscriptionChange, SubscriptionRequest
from app.core.use_cases import UseCases
from app.domain import records
from app.domain.errors import (
    BusyNotSupported,
    ChangeNotAllowed,
    CountTooLarge,
    DuplicateCorrelator,
    DurationTooLong,
    GatewayOverloaded,
    IntervalTooShort,
    InvalidAddress,
    RequestIdReused,
    SinkRefused,
    SinkUnreachable,
    SubscriptionChanged,
    SubscriptionUnknown,
    TooManySubscriptions,
    TooManyWatchedTerminals,
    UnlimitedCountNotAllowed,
)
from app.domain.filters import SubscriptionFilter, SubscriptionState
from app.domain.records import MAX_ID, MAX_REQUESTER, Client
from app.domain.sinks import (
    PROFILE_V1,
    SINK_HANDSHAKE,
    SINK_SECRETS,
    SINK_TOKEN,
    SINK_TOKEN_EXPIRES_AT,
    Handshake,
    Sink,
    SinkKind,
    read_secret,
    refused_part,
)
from app.rest import subscription_schemas, to_json
from app.rest.error_examples import failures
from app.rest.operation import FACE
from app.rest.parameters import Caller, ClientId, Paged, RequestId
from app.rest.responses import json_response, location, no_content
from app.rest.schemas import Rfc3339
from app.rest.terminals import LIST_ERRORS

TAG = "Subscriptions"
MAX_ETAG = 100

IfMatch = Annotated[
    str,
    Header(
        max_length=MAX_ETAG,
        description="The ETag of the version to change; if the subscription has another version, the answer is 412 "
        "SUBSCRIPTION_CHANGED. Absent or `*`: any version.",
    ),
]
_ETAG = {"ETag": {"description": "The subscription's version, for If-Match.", "schema": {"type": "string"}}}

IdInPath = Annotated[str, Path(max_length=MAX_ID, description="The subscription's id.")]


def add_routes(router: APIRouter, use_cases: UseCases) -> None:
    """Adds the operations to `router`."""
    subscriptions, changes = use_cases.subscriptions, use_cases.subscription_changes

    @router.post(
        "/v1/subscriptions",
        status_code=201,
        operation_id="createSubscription",
        tags=[TAG],
        summary="Subscribe to terminals",
        description="Creates a subscription, which outlives connections and restarts of the gateway. First checks the "
        "webhook's endpoint, as `sink.handshake` says.",
        response_model=subscription_schemas.CreatedSubscription,
        response_description="The subscription, made by this call or by an earlier one with the same Idempotency-Key.",
        responses={
            **failures(
                *LIST_ERRORS,
                SinkRefused,
                SinkUnreachable,
                DuplicateCorrelator,
                RequestIdReused,
                UnlimitedCountNotAllowed,
                CountTooLarge,
                IntervalTooShort,
                DurationTooLong,
                BusyNotSupported,
                TooManySubscriptions,
                TooManyWatchedTerminals,
                GatewayOverloaded,
            ),
            201: {
                "headers": {
                    **location("The subscription's path."),
                    **_ETAG,
                },
                "links": {
                    "get": {"operationId": "getSubscription", "parameters": {"subscription_id": "$response.body#/id"}}
                },
            },
        },
    )
    async def create_subscription(
        client: Caller, request_id: RequestId, asked: subscription_schemas.SubscriptionRequest
    ) -> Response:
        with _sink_fields(asked.sink):
            made = await subscriptions.create(
                client,
                SubscriptionRequest(
                    addresses=asked.addresses,
                    criteria=frozenset(asked.criteria),
                    check_immediate=asked.check_immediate,
                    min_interval_ms=asked.min_interval_ms,
                    duration_ms=asked.duration_ms or None,
                    count=asked.max_notification_count,
                    sink=sink_of(asked.sink),
                    correlator=asked.correlator,
                    request_id=request_id,
                ),
                face=FACE,
                requester=asked.requester,
            )
        return json_response(
            {**to_json.subscription(made), "secret": made_secret(made) or None},
            201,
            {"location": f"/v1/subscriptions/{made.id}", "etag": f'"{made.etag}"'},
        )

    @router.get(
        "/v1/subscriptions",
        operation_id="listSubscriptions",
        tags=[TAG],
        summary="List your subscriptions",
        description="Lists your subscriptions; an operator's client sees those of all clients.",
        response_model=subscription_schemas.Subscriptions,
        response_description="Oldest first.",
        responses=failures(InvalidAddress),
    )
    async def list_subscriptions(
        client: Caller,
        page: Paged,
        state: Annotated[
            SubscriptionState,
            Query(description="`ACTIVE`: those that have not ended. `ENDED`: those that the gateway still keeps."),
        ] = SubscriptionState.ACTIVE,
        client_id: ClientId = "",
        address: Annotated[
            str,
            Query(
                description="Only subscriptions whose `addresses` name this address; members of groups do not count."
            ),
        ] = "",
        min_create_time: Annotated[
            Rfc3339 | None, Query(description="Only subscriptions created at this time or later (RFC 3339).")
        ] = None,
        max_create_time: Annotated[
            Rfc3339 | None,
            Query(
                description="Only subscriptions created before this time (RFC 3339). Must be later than "
                "`min_create_time`."
            ),
        ] = None,
    ) -> Response:
        only = SubscriptionFilter(
            state=state, client_id=client_id, address=address, start=min_create_time, end=max_create_time
        )
        found, token = await subscriptions.list(client, page, only)
        return json_response(
            {"subscriptions": [to_json.subscription(each) for each in found], "next_page_token": token}
        )

    @router.get(
        "/v1/subscriptions/{subscription_id:id}",
        operation_id="getSubscription",
        tags=[TAG],
        summary="Get a subscription",
        description="Returns one of your subscriptions; an ended one while the gateway keeps it.",
        response_model=subscription_schemas.Subscription,
        response_description="The subscription.",
        responses={**failures(SubscriptionUnknown), 200: {"headers": _ETAG}},
    )
    async def get_subscription(client: Caller, subscription_id: IdInPath) -> Response:
        return _returned(await subscriptions.get(client, subscription_id))

    @router.delete(
        "/v1/subscriptions/{subscription_id:id}",
        status_code=204,
        operation_id="cancelSubscription",
        tags=[TAG],
        summary="End a subscription",
        description="Notifications that are owed already are still delivered, except to a SOAP endpoint, where they "
        "are withdrawn. A subscription that has ended answers 404.",
        response_description="The subscription has ended.",
        responses=failures(SubscriptionUnknown),
    )
    async def cancel_subscription(
        client: Caller,
        subscription_id: IdInPath,
        requester: Annotated[
            str, Query(max_length=MAX_REQUESTER, description="On whose behalf the client calls.")
        ] = "",
    ) -> Response:
        await subscriptions.cancel(client, subscription_id, face=FACE, requester=requester)
        return no_content()

    @router.post(
        "/v1/subscriptions:cancel",
        status_code=204,
        operation_id="cancelSubscriptionByCorrelator",
        tags=[TAG],
        summary="End the subscription with a correlator",
        description="Ends the active subscription that has the correlator, as `cancelSubscription` does.",
        response_description="The subscription has ended.",
        responses=failures(SubscriptionUnknown),
    )
    async def cancel_by_correlator(client: Caller, asked: subscription_schemas.CancelRequest) -> Response:
        await subscriptions.cancel_by_correlator(client, asked.correlator, face=FACE, requester=asked.requester)
        return no_content()

    @router.patch(
        "/v1/subscriptions/{subscription_id:id}",
        operation_id="updateSubscription",
        tags=[TAG],
        summary="Change a subscription",
        description="Changes the members that the body has; the others keep their values. A new sink is checked as in "
        "`createSubscription`, and gets the notifications that are owed already. Terminals that are added are treated "
        "as at the start of a subscription; what was reported of the others stays known. A subscription of "
        "CAMARA's API cannot be changed.",
        response_model=subscription_schemas.Subscription,
        response_description="The changed subscription.",
        responses={
            **failures(
                *LIST_ERRORS,
                SubscriptionUnknown,
                SubscriptionChanged,
                ChangeNotAllowed,
                SinkRefused,
                SinkUnreachable,
                DurationTooLong,
                BusyNotSupported,
                TooManyWatchedTerminals,
                GatewayOverloaded,
            ),
            200: {"headers": _ETAG},
        },
    )
    async def update_subscription(
        client: Caller,
        subscription_id: IdInPath,
        asked: subscription_schemas.UpdateSubscriptionRequest,
        if_match: IfMatch = "*",
    ) -> Response:
        given = asked.model_fields_set
        with _sink_fields(asked.sink if "sink" in given else None):
            change = SubscriptionChange(
                addresses=asked.addresses if "addresses" in given else None,
                criteria=frozenset(asked.criteria) if "criteria" in given else None,
                duration_ms=asked.duration_ms if "duration_ms" in given else None,
                sink=_new_sink(asked.sink) if "sink" in given else None,
            )
            etag = await etag_of(client, subscription_id, if_match)
            changed = await changes.update(
                client, subscription_id, change, etag=etag, face=FACE, requester=asked.requester
            )
        return _returned(changed)

    async def etag_of(client: Client, subscription_id: str, if_match: str) -> str:
        """The etag that If-Match names; of several, the subscription's present one if it is among them."""
        tags = [tag.strip() for tag in if_match.split(",")]
        if tags == ["*"]:
            return ""
        if len(tags) == 1 and len(tags[0]) > 2 and tags[0][0] == tags[0][-1] == '"':
            return tags[0][1:-1]
        subscription = await subscriptions.get(client, subscription_id)
        if f'"{subscription.etag}"' not in tags:
            raise SubscriptionChanged(
                "If-Match does not name the subscription's present ETag. Read it again before you change it.",
                field="etag",
            )
        return subscription.etag

    @router.post(
        "/v1/subscriptions/{subscription_id:id}:rotateSecret",
        operation_id="rotateSubscriptionSecret",
        tags=[TAG],
        summary="Change a webhook's signing secret",
        description="Gives the webhook a new signing secret: yours, or one that the gateway makes. From now on "
        "notifications are signed with the new secret, and until the end of the overlap with the previous one too; a "
        "call with `drop_old` ends the overlap. Then the gateway forgets the previous secret. With a secret of "
        "your own the call is safe to repeat. Without, each call makes another secret, and only "
        "the newest two sign.",
        response_model=subscription_schemas.RotatedSubscription,
        response_description="The subscription, and the secret if the gateway made it.",
        responses={**failures(SubscriptionUnknown, ChangeNotAllowed, SinkRefused), 200: {"headers": _ETAG}},
    )
    async def rotate_secret(
        client: Caller, subscription_id: IdInPath, asked: subscription_schemas.RotateSecretRequest | None = None
    ) -> Response:
        asked = asked or subscription_schemas.RotateSecretRequest.model_validate({})
        changed, made = await changes.rotate_secret(
            client,
            subscription_id,
            secret=asked.secret,
            drop_old=asked.drop_old,
            overlap_s=None if asked.overlap_ms is None else -(-asked.overlap_ms // 1000),
            face=FACE,
            requester=asked.requester,
        )
        return _returned(changed, secret=made or None)


def _returned(subscription: records.Subscription, **more: str | None) -> Response:
    body = {**to_json.subscription(subscription), **more}
    return json_response(body, 200, {"etag": f'"{subscription.etag}"'})


@contextmanager
def _sink_fields(asked: subscription_schemas.SinkRequest | None) -> Iterator[None]:
    """Errors about the sink that was sent name the member that they are about, such as `sink.uri`."""
    try:
        yield
    except (SinkRefused, SinkUnreachable) as error:
        if asked is not None:
            error.details.setdefault("field", f"sink.{refused_part(error)}")
        raise


def _new_sink(asked: subscription_schemas.SinkRequest) -> Sink:
    """The sink of a change. Without `handshake` its endpoint is tested: the client knows the webhook's secret."""
    sink = sink_of(asked)
    if isinstance(asked, subscription_schemas.WebhookSinkRequest) and "handshake" not in asked.model_fields_set:
        kept = {name: text for name, text in sink.parameters.items() if name != SINK_HANDSHAKE}
        return replace(sink, parameters=kept)
    return sink


def sink_of(asked: subscription_schemas.SinkRequest | None) -> Sink:
    """Returns the requested sink. Raises SinkRefused."""
    match asked:
        case subscription_schemas.WebhookSinkRequest():
            return _webhook(asked)
        case subscription_schemas.SoapSinkRequest():
            return Sink(kind=SinkKind.SOAP, url=asked.uri, profile=asked.version)
        case _:
            return Sink(kind=SinkKind.STREAM)


def _webhook(asked: subscription_schemas.WebhookSinkRequest) -> Sink:
    parameters = {SINK_HANDSHAKE: Handshake[asked.handshake.name].value}
    for each in asked.secrets:
        read_secret(each)
    if asked.secrets:
        parameters[SINK_SECRETS] = " ".join(asked.secrets)
    if asked.access_token is not None:
        parameters[SINK_TOKEN] = asked.access_token.token
        if asked.access_token.expire_time is not None:
            parameters[SINK_TOKEN_EXPIRES_AT] = asked.access_token.expire_time.isoformat()
    return Sink(kind=SinkKind.WEBHOOK, url=asked.uri, profile=PROFILE_V1, parameters=parameters)
