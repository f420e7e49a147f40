"""The tables between the domain's enums and those of `proto/`. Each covers its whole enum (a test checks)."""

from collections.abc import Mapping

from app.core.queries import RetrievalStatus
from app.domain.records import DeliveryState
from app.domain.sinks import EndReason, Handshake
from app.domain.statuses import Liveness, Source, Status
from app.domain.watches import WatchState
from app.live import events
from app.pb.terminalstatus.v1 import admin_pb2, delivery_pb2, subscription_pb2, usage_pb2
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
HANDSHAKE: Mapping[Handshake, subscription_pb2.SinkHandshake.ValueType] = {
    Handshake.TEST: subscription_pb2.SINK_HANDSHAKE_TEST,
    Handshake.OPTIONS: subscription_pb2.SINK_HANDSHAKE_OPTIONS,
    Handshake.NONE: subscription_pb2.SINK_HANDSHAKE_NONE,
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
DELIVERY_STATE: Mapping[DeliveryState, delivery_pb2.DeliveryState.ValueType] = {
    DeliveryState.PENDING: delivery_pb2.DELIVERY_STATE_PENDING,
    DeliveryState.DELIVERED: delivery_pb2.DELIVERY_STATE_DELIVERED,
    DeliveryState.DEAD: delivery_pb2.DELIVERY_STATE_DEAD,
    DeliveryState.WITHDRAWN: delivery_pb2.DELIVERY_STATE_WITHDRAWN,
}
WATCH_STATE: Mapping[WatchState, admin_pb2.WatchState.ValueType] = {
    WatchState.INITIAL: admin_pb2.WATCH_STATE_INITIAL,
    WatchState.ACCEPTED: admin_pb2.WATCH_STATE_ACCEPTED,
    WatchState.ACTIVE: admin_pb2.WATCH_STATE_ACTIVE,
    WatchState.PENDING: admin_pb2.WATCH_STATE_PENDING,
    WatchState.REFRESHING: admin_pb2.WATCH_STATE_REFRESHING,
    WatchState.WAITING: admin_pb2.WATCH_STATE_WAITING,
    WatchState.ENDING: admin_pb2.WATCH_STATE_ENDING,
    WatchState.TERMINATED: admin_pb2.WATCH_STATE_TERMINATED,
}
FACE: Mapping[str, usage_pb2.Face.ValueType] = {
    "grpc": usage_pb2.FACE_GRPC,
    "rest": usage_pb2.FACE_REST,
    "camara": usage_pb2.FACE_CAMARA,
    "soap": usage_pb2.FACE_SOAP,
    "gateway": usage_pb2.FACE_GATEWAY,
}
USAGE_OPERATION: Mapping[str, usage_pb2.UsageOperation.ValueType] = {
    "getStatus": usage_pb2.USAGE_OPERATION_GET_STATUS,
    "getStatusForGroup": usage_pb2.USAGE_OPERATION_GET_STATUS_FOR_GROUP,
    "startNotification": usage_pb2.USAGE_OPERATION_START_NOTIFICATION,
    "endNotification": usage_pb2.USAGE_OPERATION_END_NOTIFICATION,
    "statusNotification_DeliveryAttempted": usage_pb2.USAGE_OPERATION_STATUS_NOTIFICATION_DELIVERY_ATTEMPTED,
    "statusNotification_DeliveryResult": usage_pb2.USAGE_OPERATION_STATUS_NOTIFICATION_DELIVERY_RESULT,
    "statusChanged_DeliveryAttempted": usage_pb2.USAGE_OPERATION_STATUS_CHANGED_DELIVERY_ATTEMPTED,
    "statusChanged_DeliveryResult": usage_pb2.USAGE_OPERATION_STATUS_CHANGED_DELIVERY_RESULT,
    "statusError_DeliveryAttempted": usage_pb2.USAGE_OPERATION_STATUS_ERROR_DELIVERY_ATTEMPTED,
    "statusError_DeliveryResult": usage_pb2.USAGE_OPERATION_STATUS_ERROR_DELIVERY_RESULT,
    "statusEnd_DeliveryAttempted": usage_pb2.USAGE_OPERATION_STATUS_END_DELIVERY_ATTEMPTED,
    "statusEnd_DeliveryResult": usage_pb2.USAGE_OPERATION_STATUS_END_DELIVERY_RESULT,
}
AUDIT_ACTION: Mapping[str, admin_pb2.AuditAction.ValueType] = {
    "client added": admin_pb2.AUDIT_ACTION_CLIENT_ADDED,
    "client key rotated": admin_pb2.AUDIT_ACTION_CLIENT_KEY_ROTATED,
    "client disabled": admin_pb2.AUDIT_ACTION_CLIENT_DISABLED,
    "client enabled": admin_pb2.AUDIT_ACTION_CLIENT_ENABLED,
    "client deleted": admin_pb2.AUDIT_ACTION_CLIENT_DELETED,
    "group created": admin_pb2.AUDIT_ACTION_GROUP_CREATED,
    "group changed": admin_pb2.AUDIT_ACTION_GROUP_CHANGED,
    "group deleted": admin_pb2.AUDIT_ACTION_GROUP_DELETED,
    "subscription created": admin_pb2.AUDIT_ACTION_SUBSCRIPTION_CREATED,
    "subscription changed": admin_pb2.AUDIT_ACTION_SUBSCRIPTION_CHANGED,
    "subscription cancelled": admin_pb2.AUDIT_ACTION_SUBSCRIPTION_CANCELLED,
    "subscription secret rotated": admin_pb2.AUDIT_ACTION_SUBSCRIPTION_SECRET_ROTATED,
    "old subscription secret dropped": admin_pb2.AUDIT_ACTION_SUBSCRIPTION_OLD_SECRET_DROPPED,
    "watch refreshed": admin_pb2.AUDIT_ACTION_WATCH_REFRESHED,
    "subscription renewed": admin_pb2.AUDIT_ACTION_SUBSCRIPTION_RENEWED,
}
_DELIVERY_OUTCOME: Mapping[str, delivery_pb2.DeliveryOutcome.ValueType] = {
    "delivered": delivery_pb2.DELIVERY_OUTCOME_DELIVERED,
    "listed": delivery_pb2.DELIVERY_OUTCOME_LISTED,
    "not-sent": delivery_pb2.DELIVERY_OUTCOME_NOT_SENT,
    "timed-out": delivery_pb2.DELIVERY_OUTCOME_TIMED_OUT,
    "refused": delivery_pb2.DELIVERY_OUTCOME_CONNECTION_REFUSED,
    "unreachable": delivery_pb2.DELIVERY_OUTCOME_UNREACHABLE,
    "reset": delivery_pb2.DELIVERY_OUTCOME_CONNECTION_RESET,
    "dns": delivery_pb2.DELIVERY_OUTCOME_NAME_NOT_RESOLVED,
    "tls": delivery_pb2.DELIVERY_OUTCOME_TLS_FAILED,
    "malformed": delivery_pb2.DELIVERY_OUTCOME_MALFORMED_RESPONSE,
    "forbidden-address": delivery_pb2.DELIVERY_OUTCOME_ADDRESS_FORBIDDEN,
    "gone": delivery_pb2.DELIVERY_OUTCOME_SUBSCRIPTION_ENDED,
    "token-expired": delivery_pb2.DELIVERY_OUTCOME_TOKEN_EXPIRED,
    "secret-unreadable": delivery_pb2.DELIVERY_OUTCOME_SECRET_UNREADABLE,
    "no-sender": delivery_pb2.DELIVERY_OUTCOME_NO_SENDER,
    "defect": delivery_pb2.DELIVERY_OUTCOME_DEFECT,
}


def delivery_outcome(stored: str) -> delivery_pb2.DeliveryOutcome.ValueType:
    """The outcome for the stored word; DELIVERY_OUTCOME_UNSPECIFIED for a word of another version."""
    if stored.startswith("http-"):
        return delivery_pb2.DELIVERY_OUTCOME_HTTP_ERROR
    if stored.startswith("refused-"):
        return delivery_pb2.DELIVERY_OUTCOME_SINK_REFUSED
    return _DELIVERY_OUTCOME.get(stored, delivery_pb2.DELIVERY_OUTCOME_UNSPECIFIED)
