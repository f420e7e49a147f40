"""The tables between the domain's enums and those of `proto/`. Each covers its whole enum (a test checks)."""

from collections.abc import Mapping

from app.core.queries import RetrievalStatus
from app.domain.records import DeliveryState, NotificationKind
from app.domain.sinks import EndReason, SinkKind
from app.domain.statuses import Liveness, Source, Status
from app.live import events
from app.pb.terminalstatus.v1 import delivery_pb2, subscription_pb2
from app.pb.terminalstatus.v1 import terminal_status_pb2 as pb

STATUS: Mapping[Status, pb.Status.ValueType] = {
    Status.REACHABLE: pb.STATUS_REACHABLE,
    Status.UNREACHABLE: pb.STATUS_UNREACHABLE,
    Status.BUSY: pb.STATUS_BUSY,
}
SOURCE: Mapping[Source, pb.Source.ValueType] = {
    Source.FETCH: pb.SOURCE_FETCH,
    Source.WATCH: pb.SOURCE_WATCH,
}
LIVENESS: Mapping[Liveness, pb.Liveness.ValueType] = {
    Liveness.LIVE: pb.LIVENESS_LIVE,
    Liveness.STALE: pb.LIVENESS_STALE,
    Liveness.UNKNOWN: pb.LIVENESS_UNKNOWN,
}
RETRIEVAL: Mapping[RetrievalStatus, pb.RetrievalStatus.ValueType] = {
    RetrievalStatus.RETRIEVED: pb.RETRIEVAL_STATUS_RETRIEVED,
    RetrievalStatus.NOT_RETRIEVED: pb.RETRIEVAL_STATUS_NOT_RETRIEVED,
    RetrievalStatus.ERROR: pb.RETRIEVAL_STATUS_ERROR,
}
STREAM_END: Mapping[events.StreamEnd, pb.StreamEndReason.ValueType] = {
    events.StreamEnd.GATEWAY_STOPPING: pb.STREAM_END_REASON_GATEWAY_STOPPING,
    events.StreamEnd.NOTHING_TO_WATCH: pb.STREAM_END_REASON_NOTHING_TO_WATCH,
    events.StreamEnd.CREDENTIALS_EXPIRED: pb.STREAM_END_REASON_CREDENTIALS_EXPIRED,
}
SINK_KIND: Mapping[SinkKind, subscription_pb2.SinkKind.ValueType] = {
    SinkKind.STREAM: subscription_pb2.SINK_KIND_STREAM,
    SinkKind.WEBHOOK: subscription_pb2.SINK_KIND_WEBHOOK,
    SinkKind.SOAP: subscription_pb2.SINK_KIND_SOAP,
}
END_REASON: Mapping[EndReason, subscription_pb2.EndReason.ValueType] = {
    EndReason.EXPIRED: subscription_pb2.END_REASON_EXPIRED,
    EndReason.COUNT_REACHED: subscription_pb2.END_REASON_COUNT_REACHED,
    EndReason.CANCELLED: subscription_pb2.END_REASON_CANCELLED,
    EndReason.CLIENT_DELETED: subscription_pb2.END_REASON_CLIENT_DELETED,
    EndReason.FAILED: subscription_pb2.END_REASON_FAILED,
    EndReason.SINK_GONE: subscription_pb2.END_REASON_SINK_GONE,
    EndReason.TOKEN_EXPIRED: subscription_pb2.END_REASON_TOKEN_EXPIRED,
}
NOTIFICATION_KIND: Mapping[NotificationKind, delivery_pb2.NotificationKind.ValueType] = {
    NotificationKind.STATUS: delivery_pb2.NOTIFICATION_KIND_STATUS,
    NotificationKind.STARTED: delivery_pb2.NOTIFICATION_KIND_STARTED,
    NotificationKind.ERROR: delivery_pb2.NOTIFICATION_KIND_ERROR,
    NotificationKind.ENDED: delivery_pb2.NOTIFICATION_KIND_ENDED,
    NotificationKind.TEST: delivery_pb2.NOTIFICATION_KIND_TEST,
}
DELIVERY_STATE: Mapping[DeliveryState, delivery_pb2.DeliveryState.ValueType] = {
    DeliveryState.PENDING: delivery_pb2.DELIVERY_STATE_PENDING,
    DeliveryState.DELIVERED: delivery_pb2.DELIVERY_STATE_DELIVERED,
    DeliveryState.DEAD: delivery_pb2.DELIVERY_STATE_DEAD,
    DeliveryState.WITHDRAWN: delivery_pb2.DELIVERY_STATE_WITHDRAWN,
}
