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
from app.ports.sip import WatchView
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


def stream_event(event: events.StreamEvent) -> pb.WatchStatusesResponse:
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


def subscription(stored: Subscription) -> subscription_pb2.Subscription:
    """The message hides the values of the sink's parameters."""
    return subscription_pb2.Subscription(
        id=stored.id,
        client_id=stored.client_id,
        addresses=stored.addresses,
        criteria=[value for status, value in STATUS.items() if status in stored.criteria],
        check_immediate=stored.check_immediate,
        min_interval=duration(stored.min_interval_ms),
        max_notifications=stored.max_notifications,
        sink=subscription_pb2.Sink(
            kind=SINK_KIND[stored.sink.kind],
            url=stored.sink.url,
            profile=stored.sink.profile,
            parameters={name: "" for name in stored.sink.parameters if name not in HIDDEN_PARAMETERS},
        ),
        correlator=stored.correlator,
        request_id=stored.request_id,
        created_at=timestamp(stored.created_at),
        expires_at=timestamp_or_none(stored.expires_at),
        notified=stored.notified,
        last_notified_at=timestamp_or_none(stored.last_notified_at),
        suspended_at=timestamp_or_none(stored.suspended_at),
        ended_at=timestamp_or_none(stored.ended_at),
        end_reason=subscription_pb2.END_REASON_UNSPECIFIED
        if stored.end_reason is None
        else END_REASON[stored.end_reason],
        end_detail=stored.end_detail,
    )


def group(stored: Group) -> group_pb2.Group:
    return group_pb2.Group(
        address=stored.address,
        client_id=stored.client_id,
        members=stored.members,
        version=stored.version,
        created_at=timestamp(stored.created_at),
    )


def notification(owed: OwedNotification) -> delivery_pb2.Notification:
    pending = owed.state is DeliveryState.PENDING
    return delivery_pb2.Notification(
        id=owed.id,
        subscription_id=owed.subscription_id,
        client_id=owed.client_id,
        sequence=owed.sequence,
        kind=NOTIFICATION_KIND[owed.kind],
        changes=map(terminal_status, owed.changes),
        address=owed.address or "",
        code=owed.code,
        text=owed.text,
        created_at=timestamp(owed.created_at),
        next_attempt_at=timestamp(owed.next_attempt_at) if pending else None,
        attempts=owed.attempts,
        state=DELIVERY_STATE[owed.state],
        settled_at=timestamp_or_none(owed.settled_at),
    )


def delivery_attempt(attempt: DeliveryAttempt) -> delivery_pb2.DeliveryAttempt:
    return delivery_pb2.DeliveryAttempt(
        number=attempt.number,
        at=timestamp(attempt.at),
        code=attempt.code,
        duration=duration(attempt.duration_ms),
        outcome=attempt.outcome,
        answer=attempt.answer,
    )


def usage_record(record: UsageRecord) -> usage_pb2.UsageRecord:
    return usage_pb2.UsageRecord(
        id=record.id,
        at=timestamp(record.at),
        operation=record.operation,
        client_id=record.client_id,
        face=record.face,
        requester=record.requester,
        targets=record.targets,
        target_count=record.target_count,
        expanded_count=record.expanded_count,
        correlator=record.correlator,
        subscription_id=record.subscription_id,
        result=record.result,
        root_cause=record.root_cause,
    )


def watch(view: WatchView, wanted_by: Iterable[str]) -> admin_pb2.Watch:
    return admin_pb2.Watch(
        address=view.address,
        state=view.state,
        liveness=LIVENESS[view.liveness],
        since=timestamp(view.since),
        expires_at=timestamp_or_none(view.expires_at),
        sip_code=view.code,
        reason=view.reason,
        next_action=view.next_action,
        next_at=timestamp_or_none(view.next_at),
        route=view.route,
        wanted_by=wanted_by,
    )


def client(stored: Client, keys: Iterable[ClientKey]) -> admin_pb2.Client:
    return admin_pb2.Client(
        id=stored.id,
        name=stored.name,
        admin=stored.admin,
        limits={name: int(value) for name, value in stored.limits.items()},
        disabled=stored.disabled,
        created_at=timestamp(stored.created_at),
        keys=[admin_pb2.ClientKey(id=key.id, expires_at=timestamp_or_none(key.expires_at)) for key in keys],
    )


def audit_entry(entry: AuditEntry) -> admin_pb2.AuditEntry:
    return admin_pb2.AuditEntry(at=timestamp(entry.at), who=entry.who, what=entry.what, details=entry.details)
