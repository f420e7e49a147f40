"""Converts the domain's values to the JSON objects of REST API v1, which `schemas.py` describes.

Invariants: every answer has every member, null if without a value; of a client's limits it has only those that are set.
No answer has secrets or tokens. The contract tests compare answers with the documents.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from app.auth.clients import ClientKey
from app.core.queries import TerminalResult
from app.domain.errors import TerminalStatusError
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
    Handshake,
    Sink,
    SinkKind,
    overlap_ends_at,
    token_ends_at,
)
from app.domain.statuses import Status, TerminalStatus, WatchedTerminal
from app.live import events
from app.live.registry import WantedBy
from app.ports.sip import WatchView

Json = Mapping[str, Any]

"""The beginning of what needs a watch, where that is a stream; the client's id follows."""


def terminal_status(of: TerminalStatus) -> Json:
    return {
        "address": of.address,
        "status": of.status,
        "observe_time": of.observed_at,
        "source": of.source,
        "revision": of.revision,
    }


def terminal_error(of: TerminalStatusError) -> Json:
    """Converts the error of one terminal, as part of a larger answer. `problem.py` has the errors of whole requests."""
    return {
        "code": of.code,
        "detail": str(of),
        "retryable": of.retryable,
        "retry_after_s": of.retry_after_s,
        "details": of.details,
    }


def terminal_result(of: TerminalResult) -> Json:
    return {
        "address": of.address,
        "retrieval_status": of.retrieval,
        "status": of.status and terminal_status(of.status),
        "error": of.error and terminal_error(of.error),
    }


def stream_event(of: events.StreamEvent) -> tuple[str, Json]:
    """Returns the name and the data of one event of a stream."""
    match of:
        case events.Change():
            return "change", terminal_status(of.status)
        case events.Snapshot():
            return "snapshot-item", {
                **_liveness(of.terminal),
                "status": of.terminal.status and terminal_status(of.terminal.status),
            }
        case events.SnapshotComplete():
            return "snapshot-complete", {
                "resume_token": of.resume_token,
                "reset": of.reset,
                "bookmark_interval_ms": round(of.bookmark_interval_s * 1000),
            }
        case events.LivenessChange():
            return "liveness-change", {**_liveness(of.terminal), "error": of.error and terminal_error(of.error)}
        case events.Removed():
            return "terminal-removed", {"address": of.address}
        case events.Bookmark():
            return "bookmark", {"resume_token": of.resume_token}
        case events.End():
            return "end", {"reason": of.reason, "message": of.message, "resume_token": of.resume_token}


def _liveness(of: WatchedTerminal) -> Json:
    return {
        "address": of.address,
        "liveness": of.liveness,
        "liveness_reason": of.reason,
        "liveness_time": of.since,
    }


def subscription(of: Subscription) -> Json:
    return {
        "id": of.id,
        "client_id": of.client_id,
        "addresses": of.addresses,
        "criteria": [status for status in Status if status in of.criteria],
        "check_immediate": of.check_immediate,
        "min_interval_ms": of.min_interval_ms,
        "max_notification_count": of.max_notifications,
        "sink": sink(of.sink),
        "correlator": of.correlator,
        "create_time": of.created_at,
        "expire_time": of.expires_at,
        "notification_count": of.notified,
        "last_notification_time": of.last_notified_at,
        "suspend_time": of.suspended_at,
        "end_time": of.ended_at,
        "end_reason": of.end_reason,
        "end_detail": of.end_detail,
        "etag": of.etag,
        "x_correlator": of.x_correlator,
    }


def sink(of: Sink) -> Json:
    match of.kind:
        case SinkKind.STREAM:
            return {"kind": "LISTED"}
        case SinkKind.SOAP:
            return {"kind": "SOAP", "uri": of.url, "version": of.profile}
        case SinkKind.WEBHOOK if of.profile == PROFILE_CAMARA:
            return {"kind": "CAMARA", "uri": of.url, "access_token": _access_token(of)}
        case SinkKind.WEBHOOK:
            handshake = of.parameters.get(SINK_HANDSHAKE)
            return {
                "kind": "WEBHOOK",
                "uri": of.url,
                "access_token": _access_token(of),
                "handshake": Handshake(handshake).name if handshake else None,
                "previous_secret_expire_time": overlap_ends_at(of),
            }


def _access_token(of: Sink) -> Json | None:
    """Returns the expiry of the sink's token; None if the sink has no token."""
    if SINK_TOKEN not in of.parameters:
        return None
    return {"expire_time": token_ends_at(of)}


def group(of: Group) -> Json:
    return {
        "address": of.address,
        "client_id": of.client_id,
        "members": of.members,
        "etag": of.etag,
        "create_time": of.created_at,
    }


def notification(of: OwedNotification) -> Json:
    return {
        "id": of.id,
        "subscription_id": of.subscription_id,
        "client_id": of.client_id,
        "sequence": of.sequence,
        "content": _content(of),
        "create_time": of.created_at,
        "next_attempt_time": of.next_attempt_at if of.state is DeliveryState.PENDING else None,
        "attempt_count": of.attempts,
        "state": of.state,
        "settle_time": of.settled_at,
    }


def _content(of: OwedNotification) -> Json:
    match of.kind:
        case NotificationKind.STATUS:
            return {"kind": "STATUS_CHANGES", "statuses": [terminal_status(status) for status in of.changes]}
        case NotificationKind.STARTED:
            return {"kind": "SUBSCRIPTION_STARTED"}
        case NotificationKind.ERROR:
            return {
                "kind": "SUBSCRIPTION_FAILED",
                "address": of.address,
                "error": {"code": of.code, "detail": of.text},
            }
        case NotificationKind.ENDED:
            return {"kind": "SUBSCRIPTION_ENDED", "reason": of.code, "detail": of.text}
        case NotificationKind.TEST:  # sent when a sink is checked, and never stored
            raise AssertionError


def delivery_attempt(of: DeliveryAttempt) -> Json:
    """`response_body` is decoded as UTF-8, with replacement characters."""
    return {
        "number": of.number,
        "start_time": of.at,
        "http_code": of.code,
        "duration_ms": of.duration_ms,
        "outcome": of.outcome.name,
        "response_body": of.answer.decode("utf-8", "replace"),
    }


def usage_record(of: UsageRecord) -> Json:
    return {
        "id": of.id,
        "create_time": of.at,
        "operation": of.operation.name,
        "client_id": of.client_id,
        "face": of.face.name,
        "requester": of.requester,
        "targets": of.targets,
        "target_count": of.target_count,
        "expanded_target_count": of.expanded_count,
        "correlator": of.correlator,
        "subscription_id": of.subscription_id,
        "result": of.result,
        "root_cause": of.root_cause,
        "expanded_targets": of.expanded_targets,
        "x_correlator": of.x_correlator,
    }


def audit_entry(of: AuditEntry) -> Json:
    return {"create_time": of.at, "actor": of.actor, "action": of.action.name, "details": of.details}


def watch(of: WatchView, wanted_by: WantedBy) -> Json:
    return {
        "address": of.address,
        "state": of.state.name,
        "liveness": of.liveness,
        "state_time": of.since,
        "expire_time": of.expires_at,
        "sip_code": of.code,
        "reason": of.reason,
        "next_action": of.next_action,
        "next_action_time": of.next_at,
        "route": of.route,
        "subscription_ids": wanted_by.subscription_ids,
        "stream_client_ids": wanted_by.stream_client_ids,
    }


def client(of: Client, keys: Iterable[ClientKey]) -> Json:
    return {
        "id": of.id,
        "name": of.name,
        "admin": of.admin,
        "limits": of.limits or None,
        "disabled": of.disabled,
        "soap_callback_version": of.soap_callback_version,
        "create_time": of.created_at,
        "keys": [{"id": key.id, "expire_time": key.expires_at} for key in keys],
    }
