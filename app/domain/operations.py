"""What usage records and the audit log name: faces, billable operations, administrative changes.

Invariants: the values are stored. Reading never fails: a value that this version does not know is UNKNOWN.
"""

import enum
from typing import Self


class _Stored(enum.Enum):
    @classmethod
    def _missing_(cls, value: object) -> Self:
        return cls("")


class Face(_Stored):
    """An API of the gateway."""

    UNKNOWN = ""
    """Written by another version of the gateway."""
    GRPC = "grpc"
    REST = "rest"
    CAMARA = "camara"
    SOAP = "soap"
    GATEWAY = "gateway"
    """The gateway itself, which delivers notifications."""


class UsageOperation(_Stored):
    """A billable operation. The values are Parlay X's names."""

    UNKNOWN = ""
    """Written by another version of the gateway."""
    GET_STATUS = "getStatus"
    GET_STATUS_FOR_GROUP = "getStatusForGroup"
    START_NOTIFICATION = "startNotification"
    END_NOTIFICATION = "endNotification"
    STATUS_NOTIFICATION_DELIVERY_ATTEMPTED = "statusNotification_DeliveryAttempted"
    STATUS_NOTIFICATION_DELIVERY_RESULT = "statusNotification_DeliveryResult"
    STATUS_CHANGED_DELIVERY_ATTEMPTED = "statusChanged_DeliveryAttempted"
    STATUS_CHANGED_DELIVERY_RESULT = "statusChanged_DeliveryResult"
    STATUS_ERROR_DELIVERY_ATTEMPTED = "statusError_DeliveryAttempted"
    STATUS_ERROR_DELIVERY_RESULT = "statusError_DeliveryResult"
    STATUS_END_DELIVERY_ATTEMPTED = "statusEnd_DeliveryAttempted"
    STATUS_END_DELIVERY_RESULT = "statusEnd_DeliveryResult"


class AuditAction(_Stored):
    """A kind of change in the audit log."""

    UNKNOWN = ""
    """Written by another version of the gateway."""
    CLIENT_ADDED = "client added"
    CLIENT_KEY_ROTATED = "client key rotated"
    CLIENT_DISABLED = "client disabled"
    CLIENT_ENABLED = "client enabled"
    CLIENT_DELETED = "client deleted"
    GROUP_CREATED = "group created"
    GROUP_CHANGED = "group changed"
    GROUP_DELETED = "group deleted"
    SUBSCRIPTION_CREATED = "subscription created"
    SUBSCRIPTION_CHANGED = "subscription changed"
    SUBSCRIPTION_CANCELLED = "subscription cancelled"
    SUBSCRIPTION_SECRET_ROTATED = "subscription secret rotated"  # noqa: S105  # not a secret
    SUBSCRIPTION_OLD_SECRET_DROPPED = "old subscription secret dropped"  # noqa: S105  # not a secret
    WATCH_REFRESHED = "watch refreshed"
    SUBSCRIPTION_RENEWED = "subscription renewed"
    """Written by versions that could only renew a subscription, not change it."""
