"""Builds the messages of `proto/` from the domain's values.

Deliberately absent: reading requests (`request_fields.py`), and the status of a failed call (`errors.py`).
"""

from collections.abc import Iterable
from datetime import datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from app.auth.clients import ClientKey
from app.core.queries import TerminalResult
from app.domain.records import (
    AuditEntry,
    Client,
    DeliveryAttempt,
    DeliveryState,
    Group,
    OwedNotification,
    Subscription,
    UsageRecord,
)
from app.domain.sinks import HIDDEN_PARAMETERS
from app.domain.statuses import TerminalStatus
from app.live import events
from app.pb.terminalstatus.v1 import admin_pb2, delivery_pb2, group_pb2, subscription_pb2, usage_pb2
from app.pb.terminalstatus.v1 import terminal_status_pb2 as pb
from app.ports import WatchView
from app.rpc.enum_values import (
    DELIVERY_STATE,
    END_REASON,
    LIVENESS,
    NOTIFICATION_KIND,
    RETRIEVAL,
    SINK_KIND,
    SOURCE,
    STATUS,
    STREAM_END,
)
from app.rpc.errors import failure


def timestamp(at: datetime) -> Timestamp:
    return Timestamp(seconds=int(at.timestamp() // 1), nanos=at.microsecond * 1000)


def timestamp_or_none(at: datetime | None) -> Timestamp | None:
    return None if at is None else timestamp(at)


def duration(ms: int) -> Duration:
    return Duration(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)


def terminal_status(status: TerminalStatus) -> pb.TerminalStatus:
    at = status.observed_at
    return pb.TerminalStatus(
        address=status.address,
        status=STATUS[status.status],
        observed_at=Timestamp(seconds=int(at.timestamp()), nanos=at.microsecond * 1000),
        source=SOURCE[status.source],
        revision=status.revision,
    )


def terminal_result(result: TerminalResult) -> pb.TerminalResult:
    return pb.TerminalResult(
        address=result.address,
        retrieval_status=RETRIEVAL[result.retrieval],
        status=None if result.status is None else terminal_status(result.status),
        failure=None if result.error is None else failure(result.error),
    )


def watch_event(event: events.WatchEvent) -> pb.WatchStatusesResponse:
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
    return pb.WatchStatusesResponse(end=pb.StreamEnd(reason=reason, message=message, resume_token=resume_token))


def subscription(of: Subscription) -> subscription_pb2.Subscription:
    """The message hides the values of the sink's parameters."""
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
    return group_pb2.Group(
        address=of.address,
        client_id=of.client_id,
        members=of.members,
        version=of.version,
        created_at=timestamp(of.created_at),
    )


def notification(of: OwedNotification) -> delivery_pb2.Notification:
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
    return delivery_pb2.DeliveryAttempt(
        number=of.number,
        at=timestamp(of.at),
        code=of.code,
        duration=duration(of.duration_ms),
        outcome=of.outcome,
        answer=of.answer,
    )


def usage_record(of: UsageRecord) -> usage_pb2.UsageRecord:
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
    return admin_pb2.Client(
        id=of.id,
        name=of.name,
        admin=of.admin,
        limits={name: int(value) for name, value in of.limits.items()},
        disabled=of.disabled,
        created_at=timestamp(of.created_at),
        keys=[admin_pb2.ClientKey(id=key.id, expires_at=timestamp_or_none(key.expires_at)) for key in keys],
    )


def audit_entry(of: AuditEntry) -> admin_pb2.AuditEntry:
    return admin_pb2.AuditEntry(at=timestamp(of.at), who=of.who, what=of.what, details=of.details)
