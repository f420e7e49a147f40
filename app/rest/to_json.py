"""Converts the domain's values to the JSON objects of REST API v1, which `schemas.py` describes.

Invariants: every answer has every member, null if without a value. No answer has secrets or tokens. The contract tests
compare answers with `schemas.py`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from app.auth.clients import ClientKey
from app.core.queries import TerminalResult
from app.domain.errors import TerminalStatusError
from app.domain.records import (
    Client,
    DeliveryAttempt,
    DeliveryState,
    Group,
    OwedNotification,
    Subscription,
    UsageRecord,
)
from app.domain.sinks import SINK_HANDSHAKE, SINK_SECRETS, SINK_TOKEN, SINK_TOKEN_EXPIRES_AT, Sink
from app.domain.statuses import Status, TerminalStatus, WatchedTerminal
from app.live import events
from app.ports.sip import WatchView

Json = Mapping[str, Any]


def terminal_status(of: TerminalStatus) -> Json:
    return {
        "address": of.address,
        "status": of.status,
        "observed_at": of.observed_at,
        "source": of.source,
        "revision": of.revision,
    }


def failure(of: TerminalStatusError) -> Json:
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
        "failure": of.error and failure(of.error),
    }


def stream_event(of: events.StreamEvent) -> tuple[str, Json]:
    """Returns the name and the data of one event of a stream."""
    match of:
        case events.Change():
            return "change", terminal_status(of.status)
        case events.Snapshot():
            return "snapshot", _watched(of.terminal)
        case events.SnapshotComplete():
            return "snapshot-complete", {"resume_token": of.resume_token, "reset": of.reset}
        case events.LivenessChange():
            return "liveness", {**_watched(of.terminal), "failure": of.error and failure(of.error)}
        case events.Removed():
            return "removed", {"address": of.address}
        case events.Bookmark():
            return "bookmark", {"resume_token": of.resume_token}
        case events.End():
            return "end", {"reason": of.reason, "message": of.message, "resume_token": of.resume_token}


def _watched(of: WatchedTerminal) -> Json:
    return {
        "address": of.address,
        "status": of.status and terminal_status(of.status),
        "liveness": of.liveness,
        "reason": of.reason,
        "since": of.since,
    }


def subscription(of: Subscription) -> Json:
    return {
        "id": of.id,
        "client_id": of.client_id,
        "addresses": of.addresses,
        "criteria": [status for status in Status if status in of.criteria],
        "check_immediate": of.check_immediate,
        "min_interval_ms": of.min_interval_ms,
        "max_notifications": of.max_notifications,
        "sink": _sink(of.sink),
        "correlator": of.correlator,
        "created_at": of.created_at,
        "expires_at": of.expires_at,
        "notified": of.notified,
        "last_notified_at": of.last_notified_at,
        "suspended_at": of.suspended_at,
        "ended_at": of.ended_at,
        "end_reason": of.end_reason,
        "end_detail": of.end_detail,
    }


def _sink(of: Sink) -> Json:
    parameters = of.parameters
    return {
        "kind": of.kind,
        "url": of.url,
        "profile": of.profile,
        "signed": bool(parameters.get(SINK_SECRETS)),
        "with_access_token": bool(parameters.get(SINK_TOKEN)),
        "access_token_expires_at": parameters.get(SINK_TOKEN_EXPIRES_AT) or None,
        "handshake": parameters.get(SINK_HANDSHAKE) or None,
    }


def group(of: Group) -> Json:
    return {
        "address": of.address,
        "client_id": of.client_id,
        "members": of.members,
        "version": of.version,
        "created_at": of.created_at,
    }


def notification(of: OwedNotification) -> Json:
    return {
        "id": of.id,
        "subscription_id": of.subscription_id,
        "client_id": of.client_id,
        "sequence": of.sequence,
        "kind": of.kind,
        "changes": [terminal_status(status) for status in of.changes],
        "address": of.address,
        "code": of.code,
        "text": of.text,
        "created_at": of.created_at,
        "next_attempt_at": of.next_attempt_at if of.state is DeliveryState.PENDING else None,
        "attempts": of.attempts,
        "state": of.state,
        "settled_at": of.settled_at,
    }


def delivery_attempt(of: DeliveryAttempt) -> Json:
    """`answer` is decoded as UTF-8, with replacement characters."""
    return {
        "number": of.number,
        "at": of.at,
        "code": of.code,
        "duration_ms": of.duration_ms,
        "outcome": of.outcome,
        "answer": of.answer.decode("utf-8", "replace"),
    }


def usage_record(of: UsageRecord) -> Json:
    return {
        "id": of.id,
        "at": of.at,
        "operation": of.operation,
        "client_id": of.client_id,
        "face": of.face,
        "requester": of.requester,
        "targets": of.targets,
        "target_count": of.target_count,
        "expanded_count": of.expanded_count,
        "correlator": of.correlator,
        "subscription_id": of.subscription_id,
        "result": of.result,
        "root_cause": of.root_cause,
    }


def watch(of: WatchView, wanted_by: Iterable[str]) -> Json:
    return {
        "address": of.address,
        "state": of.state,
        "liveness": of.liveness,
        "since": of.since,
        "expires_at": of.expires_at,
        "sip_code": of.code,
        "reason": of.reason,
        "next_action": of.next_action,
        "next_at": of.next_at,
        "route": of.route,
        "wanted_by": list(wanted_by),
    }


def client(of: Client, keys: Iterable[ClientKey]) -> Json:
    return {
        "id": of.id,
        "name": of.name,
        "admin": of.admin,
        "limits": of.limits,
        "disabled": of.disabled,
        "created_at": of.created_at,
        "keys": [{"id": key.id, "expires_at": key.expires_at} for key in keys],
    }
