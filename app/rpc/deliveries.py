"""DeliveryService: owed notifications, their attempts. A handler is check, call, map error, return; no rules here."""

from app.core.deliveries import Deliveries
from app.domain.errors import InvalidRequest
from app.pb.terminalstatus.v1 import delivery_pb2 as pb
from app.pb.terminalstatus.v1 import delivery_pb2_grpc as pb_grpc
from app.rpc import wire
from app.rpc.calls import Calls, Context


class DeliveryServicer(pb_grpc.DeliveryServiceServicer):
    """As the proto says."""

    def __init__(self, calls: Calls, deliveries: Deliveries) -> None:
        self._calls = calls
        self._deliveries = deliveries

    async def ListNotifications(  # noqa: N802
        self, request: pb.ListNotificationsRequest, context: Context
    ) -> pb.ListNotificationsResponse:
        async with self._calls.answer(context, "ListNotifications") as client:
            found, token = await self._deliveries.list(
                client,
                wire.page(request),
                state=wire.delivery_state(request.state),
                subscription_id=request.subscription_id,
            )
            return pb.ListNotificationsResponse(notifications=map(wire.notification, found), next_page_token=token)

    async def ListDeliveryAttempts(  # noqa: N802
        self, request: pb.ListDeliveryAttemptsRequest, context: Context
    ) -> pb.ListDeliveryAttemptsResponse:
        async with self._calls.answer(context, "ListDeliveryAttempts") as client:
            found = await self._deliveries.attempts(client, request.notification_id)
            return pb.ListDeliveryAttemptsResponse(attempts=map(wire.delivery_attempt, found))

    async def SendNotificationsAgain(  # noqa: N802
        self, request: pb.SendNotificationsAgainRequest, context: Context
    ) -> pb.SendNotificationsAgainResponse:
        async with self._calls.answer(context, "SendNotificationsAgain") as client:
            if not request.notification_ids:
                raise InvalidRequest("At least one id is needed.", field="notification_ids")
            sent = await self._deliveries.send_again(client, request.notification_ids)
            return pb.SendNotificationsAgainResponse(sent_again=sent)
