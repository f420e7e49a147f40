"""Between the domain's values and the messages of `proto/`: each message is made, and each part checked, here.

Invariants: the tables of enums are total, which tests hold them to. What a request says is bounded before it goes on;
what cannot be used is InvalidRequest naming the field in the words of the proto.

Deliberately absent: rules about terminals, and errors (`errors.py`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from app.auth.clients import ClientKey
from app.core.queries import RetrievalStatus, TerminalResult
from app.domain.errors import InvalidRequest, SinkRefused
from app.domain.policy import MAX_INTERVAL_MS, Policy
from app.domain.records import (
    AuditEntry,
    Client,
    DeliveryAttempt,
    DeliveryState,
    Group,
    NotificationKind,
    OwedNotification,
    Subscription,
    UsageRecord,
)
from app.domain.sinks import HIDDEN_PARAMETERS, MAX_URL, SIGNED_PROFILES, EndReason, Sink, SinkKind
from app.domain.statuses import Liveness, Source, Status, TerminalStatus
from app.live import events
from app.pb.terminalstatus.v1 import admin_pb2, delivery_pb2, group_pb2, subscription_pb2, usage_pb2
from app.pb.terminalstatus.v1 import terminal_status_pb2 as pb
from app.ports import DEFAULT_PAGE, MAX_PAGE, MAX_PAGE_TOKEN, Page, WatchView
from app.rpc.errors import failure

MAX_PARAMETERS = 20
MAX_PARAMETER_NAME = 64
MAX_PARAMETER = 8000

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NS = 1_000_000_000

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
_FROM_STATUS: Mapping[int, Status] = {value: status for status, value in STATUS.items()}
_FROM_SINK_KIND: Mapping[int, SinkKind] = {
    subscription_pb2.SINK_KIND_UNSPECIFIED: SinkKind.STREAM,
    **{value: kind for kind, value in SINK_KIND.items()},
}
_FROM_DELIVERY_STATE: Mapping[int, DeliveryState] = {value: state for state, value in DELIVERY_STATE.items()}
_YES_OR_NO = frozenset(field.name for field in fields(Policy) if field.type in (bool, "bool"))


def timestamp(at: datetime) -> Timestamp:
    """An aware UTC datetime to the microsecond."""
    return Timestamp(seconds=int(at.timestamp() // 1), nanos=at.microsecond * 1000)


def timestamp_or_none(at: datetime | None) -> Timestamp | None:
    """As `timestamp`."""
    return None if at is None else timestamp(at)


def duration(ms: int) -> Duration:
    """Milliseconds, from 0."""
    return Duration(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)


def terminal_status(status: TerminalStatus) -> pb.TerminalStatus:
    """A terminal's status."""
    at = status.observed_at
    return pb.TerminalStatus(
        address=status.address,
        status=STATUS[status.status],
        observed_at=Timestamp(seconds=int(at.timestamp()), nanos=at.microsecond * 1000),
        source=SOURCE[status.source],
        revision=status.revision,
    )


def terminal_result(result: TerminalResult) -> pb.TerminalResult:
    """One result of a query."""
    return pb.TerminalResult(
        address=result.address,
        retrieval_status=RETRIEVAL[result.retrieval],
        status=None if result.status is None else terminal_status(result.status),
        failure=None if result.error is None else failure(result.error),
    )


def watch_event(event: events.WatchEvent) -> pb.WatchStatusesResponse:
    """One message of a stream."""
    match event:
        case events.Change():
            return pb.WatchStatusesResponse(change=pb.StatusChange(status=terminal_status(event.status)))
        case events.Snapshot(terminal=terminal):
            return pb.WatchStatusesResponse(
                snapshot_item=pb.WatchedTerminal(
                    address=terminal.address,
                    status=None if terminal.status is None else terminal_status(terminal.status),
                    liveness=LIVENESS[terminal.liveness],
                    liveness_reason=terminal.reason,
                    liveness_since=timestamp(terminal.since),
                )
            )
        case events.SnapshotComplete():
            complete = pb.SnapshotComplete(resume_token=event.resume_token, reset=event.reset)
            return pb.WatchStatusesResponse(snapshot_complete=complete)
        case events.LivenessChange(terminal=terminal):
            return pb.WatchStatusesResponse(
                liveness_change=pb.LivenessChange(
                    address=terminal.address,
                    liveness=LIVENESS[terminal.liveness],
                    reason=terminal.reason,
                    since=timestamp(terminal.since),
                    failure=None if event.error is None else failure(event.error),
                )
            )
        case events.Removed():
            return pb.WatchStatusesResponse(terminal_removed=pb.TerminalRemoved(address=event.address))
        case events.Bookmark():
            return pb.WatchStatusesResponse(bookmark=pb.Bookmark(resume_token=event.resume_token))
        case events.End():
            return stream_end(STREAM_END[event.reason], event.message, event.resume_token)


def stream_end(reason: pb.StreamEndReason.ValueType, message: str, resume_token: str) -> pb.WatchStatusesResponse:
    """The last message of a stream."""
    return pb.WatchStatusesResponse(end=pb.StreamEnd(reason=reason, message=message, resume_token=resume_token))


def subscription(of: Subscription) -> subscription_pb2.Subscription:
    """A subscription, without its sink's secrets."""
    return subscription_pb2.Subscription(
        id=of.id,
        client_id=of.client_id,
        addresses=of.addresses,
        criteria=[value for status, value in STATUS.items() if status in of.criteria],
        check_immediate=of.check_immediate,
        min_interval=duration(of.min_interval_ms),
        max_notifications=of.max_notifications,
        sink=subscription_pb2.Sink(
            kind=SINK_KIND[of.sink.kind],
            url=of.sink.url,
            profile=of.sink.profile,
            parameters={name: "" for name in of.sink.parameters if name not in HIDDEN_PARAMETERS},
        ),
        correlator=of.correlator,
        request_id=of.request_id,
        created_at=timestamp(of.created_at),
        expires_at=timestamp_or_none(of.expires_at),
        notified=of.notified,
        last_notified_at=timestamp_or_none(of.last_notified_at),
        suspended_at=timestamp_or_none(of.suspended_at),
        ended_at=timestamp_or_none(of.ended_at),
        end_reason=subscription_pb2.END_REASON_UNSPECIFIED if of.end_reason is None else END_REASON[of.end_reason],
        end_detail=of.end_detail,
    )


def group(of: Group) -> group_pb2.Group:
    """A group."""
    return group_pb2.Group(
        address=of.address,
        client_id=of.client_id,
        members=of.members,
        version=of.version,
        created_at=timestamp(of.created_at),
    )


def notification(of: OwedNotification) -> delivery_pb2.Notification:
    """An owed or settled notification."""
    pending = of.state is DeliveryState.PENDING
    return delivery_pb2.Notification(
        id=of.id,
        subscription_id=of.subscription_id,
        client_id=of.client_id,
        sequence=of.sequence,
        kind=NOTIFICATION_KIND[of.kind],
        changes=map(terminal_status, of.changes),
        address=of.address or "",
        code=of.code,
        text=of.text,
        created_at=timestamp(of.created_at),
        next_attempt_at=timestamp(of.next_attempt_at) if pending else None,
        attempts=of.attempts,
        state=DELIVERY_STATE[of.state],
        settled_at=timestamp_or_none(of.settled_at),
    )


def delivery_attempt(of: DeliveryAttempt) -> delivery_pb2.DeliveryAttempt:
    """One attempt to deliver."""
    return delivery_pb2.DeliveryAttempt(
        number=of.number,
        at=timestamp(of.at),
        code=of.code,
        duration=duration(of.duration_ms),
        outcome=of.outcome,
        answer=of.answer,
    )


def usage_record(of: UsageRecord) -> usage_pb2.UsageRecord:
    """A usage record."""
    return usage_pb2.UsageRecord(
        id=of.id,
        at=timestamp(of.at),
        operation=of.operation,
        client_id=of.client_id,
        face=of.face,
        requester=of.requester,
        targets=of.targets,
        target_count=of.target_count,
        expanded_count=of.expanded_count,
        correlator=of.correlator,
        subscription_id=of.subscription_id,
        result=of.result,
        root_cause=of.root_cause,
    )


def watch(of: WatchView, wanted_by: Iterable[str]) -> admin_pb2.Watch:
    """A standing SIP subscription."""
    return admin_pb2.Watch(
        address=of.address,
        state=of.state,
        liveness=LIVENESS[of.liveness],
        since=timestamp(of.since),
        expires_at=timestamp_or_none(of.expires_at),
        sip_code=of.code,
        reason=of.reason,
        next_action=of.next_action,
        next_at=timestamp_or_none(of.next_at),
        route=of.route,
        wanted_by=wanted_by,
    )


def client(of: Client, keys: Iterable[ClientKey]) -> admin_pb2.Client:
    """A client with its keys, without their secrets."""
    return admin_pb2.Client(
        id=of.id,
        name=of.name,
        admin=of.admin,
        limits={name: int(value) for name, value in of.limits.items()},
        disabled=of.disabled,
        created_at=timestamp(of.created_at),
        keys=[admin_pb2.ClientKey(id=key.id, expires_at=timestamp_or_none(key.expires_at)) for key in keys],
    )


def max_age_s(request: pb.GetStatusRequest | pb.QueryStatusesRequest) -> float:
    """Seconds, 0 where it is absent; the use case bounds them, and counts a call that is out of bounds."""
    return request.max_age.seconds + request.max_age.nanos / _NS


def duration_ms(request: Message, field: str) -> int:
    """The request's Duration of that name in milliseconds, rounded up; absent is 0. Raises InvalidRequest."""
    return -(-_ns(getattr(request, field), field) // 1_000_000) if request.HasField(field) else 0


def audit_entry(of: AuditEntry) -> admin_pb2.AuditEntry:
    """An entry of the audit log."""
    return admin_pb2.AuditEntry(at=timestamp(of.at), who=of.who, what=of.what, details=of.details)


def since(
    request: usage_pb2.ListUsageRecordsRequest
    | usage_pb2.ExportUsageRecordsRequest
    | admin_pb2.ListAuditEntriesRequest,
) -> datetime:
    """Raises InvalidRequest."""
    try:
        return request.since.ToDatetime(UTC) if request.HasField("since") else EPOCH
    except (ValueError, OverflowError):
        raise InvalidRequest("The time since when is none.", field="since") from None


def page(request: Any) -> Page:
    """`page_size` and `page_token` of a list's request. Raises InvalidRequest."""
    if not 0 <= request.page_size <= MAX_PAGE:
        raise InvalidRequest(f"The page size is 1 to {MAX_PAGE}; 0 is {DEFAULT_PAGE}.", field="page_size")
    return Page(size=request.page_size or DEFAULT_PAGE, token=bounded(request.page_token, MAX_PAGE_TOKEN, "page_token"))


def bounded(text: str, most: int, field: str) -> str:
    """The text, if it is no longer than allowed. Raises InvalidRequest."""
    if len(text) > most:
        raise InvalidRequest(f"At most {most} characters are allowed in {field}.", field=field)
    return text


def criteria(values: Iterable[int]) -> frozenset[Status]:
    """Raises InvalidRequest."""
    try:
        return frozenset([_FROM_STATUS[value] for value in values])
    except KeyError:
        raise InvalidRequest("A status among the criteria is none.", field="criteria") from None


def sink(of: subscription_pb2.Sink) -> Sink:
    """A sink as it was asked for; a webhook's profile is v1, since CAMARA's needs what only its own API takes.

    Raises InvalidRequest, SinkRefused.
    """
    if (kind := _FROM_SINK_KIND.get(of.kind)) is None:
        raise InvalidRequest("The kind of sink is none.", field="sink.kind")
    if len(of.parameters) > MAX_PARAMETERS:
        raise InvalidRequest(f"At most {MAX_PARAMETERS} parameters are allowed.", field="sink.parameters")
    if kind is SinkKind.WEBHOOK and of.profile not in SIGNED_PROFILES:
        raise SinkRefused(
            "A webhook's profile is v1, or empty for the newest; CAMARA's are made by CAMARA's API alone.",
            field="sink.profile",
            reason="profile",
        )
    return Sink(
        kind=kind,
        url=bounded(of.url, MAX_URL, "sink.url"),
        profile=bounded(of.profile, MAX_PARAMETER_NAME, "sink.profile"),
        parameters={
            bounded(name, MAX_PARAMETER_NAME, "sink.parameters"): bounded(value, MAX_PARAMETER, "sink.parameters")
            for name, value in of.parameters.items()
        },
    )


def delivery_state(value: int) -> DeliveryState | None:
    """None is every state. Raises InvalidRequest."""
    if value and value not in _FROM_DELIVERY_STATE:
        raise InvalidRequest("The state is none.", field="state")
    return _FROM_DELIVERY_STATE.get(value)


def limits(values: Mapping[str, int]) -> dict[str, int | bool]:
    """A client's limits; 0 and 1 are no and yes where a policy is that. The use case checks the rest."""
    return {name: bool(value) if name in _YES_OR_NO and value in (0, 1) else value for name, value in values.items()}


def _ns(of: Duration, field: str) -> int:
    ns = of.seconds * _NS + of.nanos
    if not 0 <= ns <= MAX_INTERVAL_MS * 1_000_000:
        raise InvalidRequest(f"{field} must be 0 to {MAX_INTERVAL_MS // 86_400_000} days.", field=field)
    return ns
