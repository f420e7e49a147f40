"""Builds the messages of `proto/` from the domain's values.

Deliberately absent: reading requests (`request_fields.py`), and the status of a failed call (`errors.py`).
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

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
    NotificationKind,
    OwedNotification,
    Subscription,
    UsageRecord,
)
from app.domain.sinks import (
    PROFILE_CAMARA,
    SINK_HANDSHAKE,
    SINK_TOKEN,
    SINK_TOKEN_EXPIRES_AT,
    EndReason,
    Handshake,
    Sink,
    SinkKind,
    overlap_ends_at,
    token_ends_at,
)
from app.domain.statuses import TerminalStatus
from app.live import events
from app.live.registry import WantedBy
from app.pb.terminalstatus.v1 import admin_pb2, delivery_pb2, group_pb2, subscription_pb2, usage_pb2
from app.pb.terminalstatus.v1 import terminal_status_pb2 as pb
from app.ports.sip import WatchView
from app.rpc.enum_values import (
    AUDIT_ACTION,
    DELIVERY_OUTCOME,
    DELIVERY_STATE,
    END_REASON,
    FACE,
    HANDSHAKE,
    LIVENESS,
    RETRIEVAL,
    SOURCE,
    STATUS,
    STREAM_END,
    USAGE_OPERATION,
    WATCH_STATE,
)
from app.rpc.errors import status_of, status_of_code


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
        observe_time=Timestamp(seconds=int(at.timestamp()), nanos=at.microsecond * 1000),
        source=SOURCE[status.source],
        revision=status.revision,
    )


def terminal_result(result: TerminalResult) -> pb.TerminalResult:
    return pb.TerminalResult(
        address=result.address,
        retrieval_status=RETRIEVAL[result.retrieval],
        status=None if result.status is None else terminal_status(result.status),
        error=None if result.error is None else status_of(result.error),
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
                    liveness_time=timestamp(terminal.since),
                )
            )
        case events.SnapshotComplete():
            return pb.WatchStatusesResponse(
                snapshot_complete=pb.SnapshotComplete(
                    resume_token=event.resume_token,
                    reset=event.reset,
                    bookmark_interval=duration(round(event.bookmark_interval_s * 1000)),
                )
            )
        case events.LivenessChange(terminal=terminal):
            return pb.WatchStatusesResponse(
                liveness_change=pb.LivenessChange(
                    address=terminal.address,
                    liveness=LIVENESS[terminal.liveness],
                    liveness_reason=terminal.reason,
                    liveness_time=timestamp(terminal.since),
                    error=None if event.error is None else status_of(event.error),
                )
            )
        case events.Removed():
            return pb.WatchStatusesResponse(terminal_removed=pb.TerminalRemoved(address=event.address))
        case events.Bookmark():
            return pb.WatchStatusesResponse(bookmark=pb.Bookmark(resume_token=event.resume_token))
        case events.End():
            return stream_end(STREAM_END[event.reason], event.message, event.resume_token)


def change_applied(event: events.ChangeApplied) -> pb.FollowStatusesResponse:
    return pb.FollowStatusesResponse(
        change_applied=pb.ChangeApplied(
            change_id=event.change_id,
            error=None if event.error is None else status_of(event.error),
            resume_token=event.resume_token,
        )
    )


def stream_end(reason: pb.StreamEndReason.ValueType, message: str, resume_token: str) -> pb.WatchStatusesResponse:
    return pb.WatchStatusesResponse(end=pb.StreamEnd(reason=reason, message=message, resume_token=resume_token))


def subscription(stored: Subscription) -> subscription_pb2.Subscription:
    """The message has no secret and no access token."""
    return subscription_pb2.Subscription(
        id=stored.id,
        client_id=stored.client_id,
        addresses=stored.addresses,
        criteria=[value for status, value in STATUS.items() if status in stored.criteria],
        check_immediate=stored.check_immediate,
        min_interval=duration(stored.min_interval_ms),
        max_notification_count=stored.max_notifications,
        sink=sink(stored.sink),
        correlator=stored.correlator,
        state=subscription_pb2.SUBSCRIPTION_STATE_ACTIVE
        if stored.active
        else subscription_pb2.SUBSCRIPTION_STATE_ENDED,
        create_time=timestamp(stored.created_at),
        expire_time=timestamp_or_none(stored.expires_at),
        notification_count=stored.notified,
        last_notification_time=timestamp_or_none(stored.last_notified_at),
        suspend_time=timestamp_or_none(stored.suspended_at),
        end_time=timestamp_or_none(stored.ended_at),
        end_reason=subscription_pb2.END_REASON_UNSPECIFIED
        if stored.end_reason is None
        else END_REASON[stored.end_reason],
        end_detail=stored.end_detail,
        etag=stored.etag,
        x_correlator=stored.x_correlator,
    )


def sink(stored: Sink) -> subscription_pb2.Sink:
    match stored.kind:
        case SinkKind.STREAM:
            return subscription_pb2.Sink(listed=subscription_pb2.ListedSink())
        case SinkKind.SOAP:
            return subscription_pb2.Sink(soap=subscription_pb2.SoapSink(uri=stored.url, version=stored.profile))
        case SinkKind.WEBHOOK if stored.profile == PROFILE_CAMARA:
            camara = subscription_pb2.CamaraSink(uri=stored.url, access_token=_access_token(stored))
            return subscription_pb2.Sink(camara=camara)
        case SinkKind.WEBHOOK:
            handshake = stored.parameters.get(SINK_HANDSHAKE)
            webhook = subscription_pb2.WebhookSink(
                uri=stored.url,
                access_token=_access_token(stored),
                handshake=HANDSHAKE[Handshake(handshake)] if handshake else subscription_pb2.SINK_HANDSHAKE_UNSPECIFIED,
                previous_secret_expire_time=timestamp_or_none(overlap_ends_at(stored)),
            )
            return subscription_pb2.Sink(webhook=webhook)


def _access_token(stored: Sink) -> subscription_pb2.AccessToken | None:
    """When the sink's token expires, without the token; None if the sink has no token."""
    if SINK_TOKEN not in stored.parameters:
        return None
    expires_at = token_ends_at(stored) if SINK_TOKEN_EXPIRES_AT in stored.parameters else None
    return subscription_pb2.AccessToken(expire_time=timestamp_or_none(expires_at))


def group(stored: Group) -> group_pb2.Group:
    return group_pb2.Group(
        address=stored.address,
        client_id=stored.client_id,
        members=stored.members,
        etag=stored.etag,
        create_time=timestamp(stored.created_at),
    )


def notification(owed: OwedNotification) -> delivery_pb2.Notification:
    pending = owed.state is DeliveryState.PENDING
    return delivery_pb2.Notification(
        id=owed.id,
        subscription_id=owed.subscription_id,
        client_id=owed.client_id,
        sequence=owed.sequence,
        create_time=timestamp(owed.created_at),
        next_attempt_time=timestamp(owed.next_attempt_at) if pending else None,
        attempt_count=owed.attempts,
        state=DELIVERY_STATE[owed.state],
        settle_time=timestamp_or_none(owed.settled_at),
        **_content(owed),
    )


def _content(owed: OwedNotification) -> dict[str, Any]:
    """The field of the oneof `content` that the notification has."""
    match owed.kind:
        case NotificationKind.STATUS:
            return {"status_changes": delivery_pb2.StatusChanges(statuses=map(terminal_status, owed.changes))}
        case NotificationKind.STARTED:
            return {"subscription_started": delivery_pb2.SubscriptionStarted()}
        case NotificationKind.ERROR:
            error = status_of_code(owed.code, owed.text)
            failed = delivery_pb2.SubscriptionFailed(address=owed.address or "", error=error)
            return {"subscription_failed": failed}
        case NotificationKind.ENDED:
            reason = END_REASON[EndReason[owed.code]]
            return {"subscription_ended": delivery_pb2.SubscriptionEnded(reason=reason, detail=owed.text)}
        case NotificationKind.TEST:  # sent when a sink is checked, and never stored
            raise AssertionError


def delivery_attempt(attempt: DeliveryAttempt) -> delivery_pb2.DeliveryAttempt:
    return delivery_pb2.DeliveryAttempt(
        number=attempt.number,
        start_time=timestamp(attempt.at),
        http_code=attempt.code,
        duration=duration(attempt.duration_ms),
        outcome=DELIVERY_OUTCOME[attempt.outcome],
        response_body=attempt.answer,
    )


def usage_record(record: UsageRecord) -> usage_pb2.UsageRecord:
    return usage_pb2.UsageRecord(
        id=record.id,
        create_time=timestamp(record.at),
        operation=USAGE_OPERATION[record.operation],
        client_id=record.client_id,
        face=FACE[record.face],
        requester=record.requester,
        targets=record.targets,
        target_count=record.target_count,
        expanded_target_count=record.expanded_count,
        correlator=record.correlator,
        subscription_id=record.subscription_id,
        result=record.result,
        root_cause=record.root_cause,
        expanded_targets=record.expanded_targets,
        x_correlator=record.x_correlator,
    )


def watch(view: WatchView, wanted_by: WantedBy) -> admin_pb2.Watch:
    return admin_pb2.Watch(
        address=view.address,
        state=WATCH_STATE[view.state],
        liveness=LIVENESS[view.liveness],
        state_time=timestamp(view.since),
        expire_time=timestamp_or_none(view.expires_at),
        sip_code=view.code,
        reason=view.reason,
        next_action=view.next_action,
        next_action_time=timestamp_or_none(view.next_at),
        route=view.route,
        subscription_ids=wanted_by.subscription_ids,
        stream_client_ids=wanted_by.stream_client_ids,
    )


def client(stored: Client, keys: Iterable[ClientKey]) -> admin_pb2.Client:
    return admin_pb2.Client(
        id=stored.id,
        name=stored.name,
        admin=stored.admin,
        limits=admin_pb2.ClientLimits(**stored.limits) if stored.limits else None,  # type: ignore[arg-type]
        disabled=stored.disabled,
        create_time=timestamp(stored.created_at),
        keys=[admin_pb2.ClientKey(id=key.id, expire_time=timestamp_or_none(key.expires_at)) for key in keys],
        soap_callback_version=stored.soap_callback_version,
    )


def audit_entry(entry: AuditEntry) -> admin_pb2.AuditEntry:
    return admin_pb2.AuditEntry(
        create_time=timestamp(entry.at),
        actor=entry.actor,
        action=AUDIT_ACTION[entry.action],
        details=entry.details,
    )
