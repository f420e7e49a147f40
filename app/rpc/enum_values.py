"""The tables between the domain's enums and those of `proto/`. Each covers its whole enum (a test checks)."""

from collections.abc import Mapping

from app.core.queries import RetrievalStatus
from app.domain.operations import AuditAction, Face
from app.domain.operations import UsageOperation as Operation
from app.domain.outcomes import DeliveryOutcome
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
FACE: Mapping[Face, usage_pb2.Face.ValueType] = {
    Face.UNKNOWN: usage_pb2.FACE_UNSPECIFIED,
    Face.GRPC: usage_pb2.FACE_GRPC,
    Face.REST: usage_pb2.FACE_REST,
    Face.CAMARA: usage_pb2.FACE_CAMARA,
    Face.SOAP: usage_pb2.FACE_SOAP,
    Face.GATEWAY: usage_pb2.FACE_GATEWAY,
}
USAGE_OPERATION: Mapping[Operation, usage_pb2.UsageOperation.ValueType] = {
    Operation.UNKNOWN: usage_pb2.USAGE_OPERATION_UNSPECIFIED,
    Operation.GET_STATUS: usage_pb2.USAGE_OPERATION_GET_STATUS,
    Operation.GET_STATUS_FOR_GROUP: usage_pb2.USAGE_OPERATION_GET_STATUS_FOR_GROUP,
    Operation.START_NOTIFICATION: usage_pb2.USAGE_OPERATION_START_NOTIFICATION,
    Operation.END_NOTIFICATION: usage_pb2.USAGE_OPERATION_END_NOTIFICATION,
    Operation.STATUS_NOTIFICATION_DELIVERY_ATTEMPTED: usage_pb2.USAGE_OPERATION_STATUS_NOTIFICATION_DELIVERY_ATTEMPTED,
    Operation.STATUS_NOTIFICATION_DELIVERY_RESULT: usage_pb2.USAGE_OPERATION_STATUS_NOTIFICATION_DELIVERY_RESULT,
    Operation.STATUS_CHANGED_DELIVERY_ATTEMPTED: usage_pb2.USAGE_OPERATION_STATUS_CHANGED_DELIVERY_ATTEMPTED,
    Operation.STATUS_CHANGED_DELIVERY_RESULT: usage_pb2.USAGE_OPERATION_STATUS_CHANGED_DELIVERY_RESULT,
    Operation.STATUS_ERROR_DELIVERY_ATTEMPTED: usage_pb2.USAGE_OPERATION_STATUS_ERROR_DELIVERY_ATTEMPTED,
    Operation.STATUS_ERROR_DELIVERY_RESULT: usage_pb2.USAGE_OPERATION_STATUS_ERROR_DELIVERY_RESULT,
    Operation.STATUS_END_DELIVERY_ATTEMPTED: usage_pb2.USAGE_OPERATION_STATUS_END_DELIVERY_ATTEMPTED,
    Operation.STATUS_END_DELIVERY_RESULT: usage_pb2.USAGE_OPERATION_STATUS_END_DELIVERY_RESULT,
}
AUDIT_ACTION: Mapping[AuditAction, admin_pb2.AuditAction.ValueType] = {
    AuditAction.UNKNOWN: admin_pb2.AUDIT_ACTION_UNSPECIFIED,
    AuditAction.CLIENT_ADDED: admin_pb2.AUDIT_ACTION_CLIENT_ADDED,
    AuditAction.CLIENT_KEY_ROTATED: admin_pb2.AUDIT_ACTION_CLIENT_KEY_ROTATED,
    AuditAction.CLIENT_DISABLED: admin_pb2.AUDIT_ACTION_CLIENT_DISABLED,
    AuditAction.CLIENT_ENABLED: admin_pb2.AUDIT_ACTION_CLIENT_ENABLED,
    AuditAction.CLIENT_DELETED: admin_pb2.AUDIT_ACTION_CLIENT_DELETED,
    AuditAction.GROUP_CREATED: admin_pb2.AUDIT_ACTION_GROUP_CREATED,
    AuditAction.GROUP_CHANGED: admin_pb2.AUDIT_ACTION_GROUP_CHANGED,
    AuditAction.GROUP_DELETED: admin_pb2.AUDIT_ACTION_GROUP_DELETED,
    AuditAction.SUBSCRIPTION_CREATED: admin_pb2.AUDIT_ACTION_SUBSCRIPTION_CREATED,
    AuditAction.SUBSCRIPTION_CHANGED: admin_pb2.AUDIT_ACTION_SUBSCRIPTION_CHANGED,
    AuditAction.SUBSCRIPTION_CANCELLED: admin_pb2.AUDIT_ACTION_SUBSCRIPTION_CANCELLED,
    AuditAction.SUBSCRIPTION_SECRET_ROTATED: admin_pb2.AUDIT_ACTION_SUBSCRIPTION_SECRET_ROTATED,
    AuditAction.SUBSCRIPTION_OLD_SECRET_DROPPED: admin_pb2.AUDIT_ACTION_SUBSCRIPTION_OLD_SECRET_DROPPED,
    AuditAction.WATCH_REFRESHED: admin_pb2.AUDIT_ACTION_WATCH_REFRESHED,
    AuditAction.SUBSCRIPTION_RENEWED: admin_pb2.AUDIT_ACTION_SUBSCRIPTION_RENEWED,
}
DELIVERY_OUTCOME: Mapping[DeliveryOutcome, delivery_pb2.DeliveryOutcome.ValueType] = {
    DeliveryOutcome.UNKNOWN: delivery_pb2.DELIVERY_OUTCOME_UNSPECIFIED,
    DeliveryOutcome.DELIVERED: delivery_pb2.DELIVERY_OUTCOME_DELIVERED,
    DeliveryOutcome.LISTED: delivery_pb2.DELIVERY_OUTCOME_LISTED,
    DeliveryOutcome.NOT_SENT: delivery_pb2.DELIVERY_OUTCOME_NOT_SENT,
    DeliveryOutcome.HTTP_ERROR: delivery_pb2.DELIVERY_OUTCOME_HTTP_ERROR,
    DeliveryOutcome.SOAP_FAULT: delivery_pb2.DELIVERY_OUTCOME_SOAP_FAULT,
    DeliveryOutcome.TIMED_OUT: delivery_pb2.DELIVERY_OUTCOME_TIMED_OUT,
    DeliveryOutcome.CONNECTION_REFUSED: delivery_pb2.DELIVERY_OUTCOME_CONNECTION_REFUSED,
    DeliveryOutcome.UNREACHABLE: delivery_pb2.DELIVERY_OUTCOME_UNREACHABLE,
    DeliveryOutcome.CONNECTION_RESET: delivery_pb2.DELIVERY_OUTCOME_CONNECTION_RESET,
    DeliveryOutcome.NAME_NOT_RESOLVED: delivery_pb2.DELIVERY_OUTCOME_NAME_NOT_RESOLVED,
    DeliveryOutcome.TLS_FAILED: delivery_pb2.DELIVERY_OUTCOME_TLS_FAILED,
    DeliveryOutcome.MALFORMED_RESPONSE: delivery_pb2.DELIVERY_OUTCOME_MALFORMED_RESPONSE,
    DeliveryOutcome.ADDRESS_FORBIDDEN: delivery_pb2.DELIVERY_OUTCOME_ADDRESS_FORBIDDEN,
    DeliveryOutcome.SINK_REFUSED: delivery_pb2.DELIVERY_OUTCOME_SINK_REFUSED,
    DeliveryOutcome.SUBSCRIPTION_ENDED: delivery_pb2.DELIVERY_OUTCOME_SUBSCRIPTION_ENDED,
    DeliveryOutcome.TOKEN_EXPIRED: delivery_pb2.DELIVERY_OUTCOME_TOKEN_EXPIRED,
    DeliveryOutcome.SECRET_UNREADABLE: delivery_pb2.DELIVERY_OUTCOME_SECRET_UNREADABLE,
    DeliveryOutcome.NO_SENDER: delivery_pb2.DELIVERY_OUTCOME_NO_SENDER,
    DeliveryOutcome.DEFECT: delivery_pb2.DELIVERY_OUTCOME_DEFECT,
}
