"""SubscriptionService: applications' stored requests to be notified."""

from app.core.sink_secrets import made_secret
from app.core.subscription_changes import SubscriptionChanges
from app.core.subscription_requests import SubscriptionRequest
from app.core.subscriptions import SubscriptionService
from app.domain.errors import InvalidRequest
from app.domain.records import MAX_CORRELATOR, MAX_ID, MAX_REQUESTER
from app.domain.sinks import Sink, SinkKind
from app.pb.terminalstatus.v1 import subscription_pb2 as pb
from app.pb.terminalstatus.v1 import subscription_pb2_grpc as pb_grpc
from app.rpc import list_filters, request_fields, response_messages
from app.rpc.callers import FACE, Context
from app.rpc.open_calls import OpenCalls


class SubscriptionServicer(pb_grpc.SubscriptionServiceServicer):
    def __init__(self, calls: OpenCalls, subscriptions: SubscriptionService, changes: SubscriptionChanges) -> None:
        self._calls = calls
        self._subscriptions = subscriptions
        self._changes = changes

    async def CreateSubscription(  # noqa: N802
        self, request: pb.CreateSubscriptionRequest, context: Context
    ) -> pb.CreateSubscriptionResponse:
        async with self._calls.answer(context, "CreateSubscription") as client:
            with request_fields.sink_fields(request.sink):
                made = await self._subscriptions.create(
                    client,
                    SubscriptionRequest(
                        addresses=request.addresses,
                        criteria=request_fields.criteria(request.criteria),
                        check_immediate=request.check_immediate,
                        min_interval_ms=request_fields.duration_ms(request, "min_interval"),
                        duration_ms=request_fields.duration_ms(request, "duration") or None,
                        count=request.max_notification_count,
                        correlator=request_fields.bounded(request.correlator, MAX_CORRELATOR, "correlator"),
                        sink=request_fields.sink(request.sink)
                        if request.HasField("sink")
                        else Sink(kind=SinkKind.STREAM),
                        request_id=request_fields.bounded(request.request_id, MAX_ID, "request_id"),
                    ),
                    face=FACE,
                    requester=request_fields.bounded(request.requester, MAX_REQUESTER, "requester"),
                )
            return pb.CreateSubscriptionResponse(
                subscription=response_messages.subscription(made), secret=made_secret(made)
            )

    async def GetSubscription(  # noqa: N802
        self, request: pb.GetSubscriptionRequest, context: Context
    ) -> pb.GetSubscriptionResponse:
        async with self._calls.answer(context, "GetSubscription") as client:
            found = await self._subscriptions.get(client, request.subscription_id)
            return pb.GetSubscriptionResponse(subscription=response_messages.subscription(found))

    async def ListSubscriptions(  # noqa: N802
        self, request: pb.ListSubscriptionsRequest, context: Context
    ) -> pb.ListSubscriptionsResponse:
        async with self._calls.answer(context, "ListSubscriptions") as client:
            found, token = await self._subscriptions.list(
                client, request_fields.page(request), list_filters.of_subscriptions(request)
            )
            return pb.ListSubscriptionsResponse(
                subscriptions=map(response_messages.subscription, found), next_page_token=token
            )

    async def CancelSubscription(  # noqa: N802
        self, request: pb.CancelSubscriptionRequest, context: Context
    ) -> pb.CancelSubscriptionResponse:
        async with self._calls.answer(context, "CancelSubscription") as client:
            requester = request_fields.bounded(request.requester, MAX_REQUESTER, "requester")
            if request.subscription_id:
                await self._subscriptions.cancel(client, request.subscription_id, face=FACE, requester=requester)
            elif request.correlator:
                await self._subscriptions.cancel_by_correlator(
                    client, request.correlator, face=FACE, requester=requester
                )
            else:
                raise InvalidRequest(
                    "Name the subscription: set `subscription_id` or `correlator`.", field="subscription_id"
                )
            return pb.CancelSubscriptionResponse()

    async def UpdateSubscription(  # noqa: N802
        self, request: pb.UpdateSubscriptionRequest, context: Context
    ) -> pb.UpdateSubscriptionResponse:
        async with self._calls.answer(context, "UpdateSubscription") as client:
            requester = request_fields.bounded(request.requester, MAX_REQUESTER, "requester")
            etag = request_fields.bounded(request.etag, MAX_ID, "etag")
            with (
                request_fields.fields_within("change", pb.SubscriptionChange.DESCRIPTOR),
                request_fields.sink_fields(request.change.sink),
            ):
                changed = await self._changes.update(
                    client,
                    request.subscription_id,
                    request_fields.subscription_change(request),
                    etag=etag,
                    face=FACE,
                    requester=requester,
                )
            return pb.UpdateSubscriptionResponse(subscription=response_messages.subscription(changed))

    async def RotateSecret(  # noqa: N802
        self, request: pb.RotateSecretRequest, context: Context
    ) -> pb.RotateSecretResponse:
        async with self._calls.answer(context, "RotateSecret") as client:
            changed, made = await self._changes.rotate_secret(
                client,
                request.subscription_id,
                secret=request_fields.bounded(request.secret, request_fields.MAX_SECRET, "secret"),
                drop_old=request.drop_old,
                overlap_s=request_fields.duration_s(request, "overlap"),
                face=FACE,
                requester=request_fields.bounded(request.requester, MAX_REQUESTER, "requester"),
            )
            return pb.RotateSecretResponse(subscription=response_messages.subscription(changed), secret=made)
