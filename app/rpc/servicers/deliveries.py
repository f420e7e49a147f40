"""DeliveryService: notifications and their delivery attempts."""

from app.core.deliveries import Deliveries
from app.domain.errors import InvalidRequest
from app.pb.terminalstatus.v1 import delivery_pb2 as pb
from app.pb.terminalstatus.v1 import delivery_pb2_grpc as pb_grpc
from app.ports.store import MAX_PAGE_TOKEN
from app.rpc import list_filters, request_fields, response_messages
from app.rpc.callers import Context
from app.rpc.open_calls import OpenCalls


class DeliveryServicer(pb_grpc.DeliveryServiceServicer):
    def __init__(self, calls: OpenCalls, deliveries: Deliveries) -> None:
        self._calls = calls
        self._deliveries = deliveries

    async def ListNotifications(  # noqa: N802
        self, request: pb.ListNotificationsRequest, context: Context
    ) -> pb.ListNotificationsResponse:
        async with self._calls.answer(context, "ListNotifications") as client:
            found, token = await self._deliveries.list(
                client, request_fields.page(request), list_filters.of_notifications(request)
            )
            return pb.ListNotificationsResponse(
                notifications=map(response_messages.notification, found), next_page_token=token
            )

    async def GetNotification(  # noqa: N802
        self, request: pb.GetNotificationRequest, context: Context
    ) -> pb.GetNotificationResponse:
        async with self._calls.answer(context, "GetNotification") as client:
            found = await self._deliveries.get(client, request.notification_id)
            return pb.GetNotificationResponse(notification=response_messages.notification(found))

    async def ListDeliveryAttempts(  # noqa: N802
        self, request: pb.ListDeliveryAttemptsRequest, context: Context
    ) -> pb.ListDeliveryAttemptsResponse:
        async with self._calls.answer(context, "ListDeliveryAttempts") as client:
            page = request_fields.page(request)
            found, token = await self._deliveries.attempts(client, request.notification_id, page)
            return pb.ListDeliveryAttemptsResponse(
                delivery_attempts=map(response_messages.delivery_attempt, found), next_page_token=token
            )

    async def SendNotificationsAgain(  # noqa: N802
        self, request: pb.SendNotificationsAgainRequest, context: Context
    ) -> pb.SendNotificationsAgainResponse:
        async with self._calls.answer(context, "SendNotificationsAgain") as client:
            if not request.notification_ids:
                raise InvalidRequest(
                    "`notification_ids` is empty; name at least one notification.", field="notification_ids"
                )
            sent = await self._deliveries.send_again(client, request.notification_ids)
            return pb.SendNotificationsAgainResponse(sent_again_count=sent)

    async def ReplayNotifications(  # noqa: N802
        self, request: pb.ReplayNotificationsRequest, context: Context
    ) -> pb.ReplayNotificationsResponse:
        async with self._calls.answer(context, "ReplayNotifications") as client:
            replayed, token = await self._deliveries.replay(
                client,
                request.subscription_id,
                start=request_fields.time(request, "start_time"),
                end=request_fields.time(request, "end_time"),
                page_token=request_fields.bounded(request.page_token, MAX_PAGE_TOKEN, "page_token"),
            )
            return pb.ReplayNotificationsResponse(replayed_count=replayed, next_page_token=token)
