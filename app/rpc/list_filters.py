"""Reads the filters of list requests: protobuf fields in, one filter for the use case out. All raise InvalidRequest."""

import enum
from typing import TypeVar

from google.protobuf.descriptor import EnumDescriptor

from app.domain.errors import InvalidRequest
from app.domain.filters import (
    AuditFilter,
    GroupFilter,
    NotificationFilter,
    SubscriptionFilter,
    SubscriptionState,
    UsageFilter,
    WatchFilter,
)
from app.domain.operations import AuditAction, Face, UsageOperation
from app.domain.records import MAX_ID, DeliveryState
from app.domain.statuses import Liveness
from app.domain.watches import WatchState
from app.domain.x_correlator import MAX_X_CORRELATOR
from app.pb.terminalstatus.v1 import admin_pb2, delivery_pb2, group_pb2, subscription_pb2, usage_pb2
from app.pb.terminalstatus.v1 import terminal_status_pb2 as pb
from app.rpc.request_fields import bounded, time

_E = TypeVar("_E", bound=enum.Enum)


def of_subscriptions(request: subscription_pb2.ListSubscriptionsRequest) -> SubscriptionFilter:
    states = subscription_pb2.SubscriptionState.DESCRIPTOR
    return SubscriptionFilter(
        state=_value(SubscriptionState, states, request.state, "state") or SubscriptionState.ACTIVE,
        client_id=bounded(request.client_id, MAX_ID, "client_id"),
        address=request.address,
        start=time(request, "min_create_time"),
        end=time(request, "max_create_time"),
    )


def of_notifications(request: delivery_pb2.ListNotificationsRequest) -> NotificationFilter:
    return NotificationFilter(
        state=_value(DeliveryState, delivery_pb2.DeliveryState.DESCRIPTOR, request.state, "state"),
        subscription_id=bounded(request.subscription_id, MAX_ID, "subscription_id"),
        client_id=bounded(request.client_id, MAX_ID, "client_id"),
        start=time(request, "start_time"),
        end=time(request, "end_time"),
    )


def of_usage(request: usage_pb2.ListUsageRecordsRequest | usage_pb2.ExportUsageRecordsRequest) -> UsageFilter:
    return UsageFilter(
        client_id=bounded(request.client_id, MAX_ID, "client_id"),
        operation=_value(UsageOperation, usage_pb2.UsageOperation.DESCRIPTOR, request.operation, "operation"),
        face=_value(Face, usage_pb2.Face.DESCRIPTOR, request.face, "face"),
        x_correlator=bounded(request.x_correlator, MAX_X_CORRELATOR, "x_correlator"),
        start=time(request, "start_time"),
        end=time(request, "end_time"),
    )


def of_audit_entries(request: admin_pb2.ListAuditEntriesRequest) -> AuditFilter:
    return AuditFilter(
        actor=bounded(request.actor, MAX_ID, "actor"),
        action=_value(AuditAction, admin_pb2.AuditAction.DESCRIPTOR, request.action, "action"),
        start=time(request, "start_time"),
        end=time(request, "end_time"),
    )


def of_groups(request: group_pb2.ListGroupsRequest) -> GroupFilter:
    return GroupFilter(client_id=bounded(request.client_id, MAX_ID, "client_id"), member=request.member)


def of_watches(request: admin_pb2.ListWatchesRequest) -> WatchFilter:
    return WatchFilter(
        state=_value(WatchState, admin_pb2.WatchState.DESCRIPTOR, request.state, "state"),
        liveness=_value(Liveness, pb.Liveness.DESCRIPTOR, request.liveness, "liveness"),
        address=request.address,
    )


def _value(kind: type[_E], descriptor: EnumDescriptor, number: int, field: str) -> _E | None:
    """The member with the wire value's name without its prefix; None for the value 0, which filters nothing."""
    if not number:
        return None
    prefix = descriptor.values_by_number[0].name.removesuffix("UNSPECIFIED")
    if number not in descriptor.values_by_number:
        names = ", ".join(value.name for value in descriptor.values[1:])
        raise InvalidRequest(f"`{field}` {number} is not a {descriptor.name}; allowed are {names}.", field=field)
    return kind[descriptor.values_by_number[number].name.removeprefix(prefix)]
