"""The limits of one client, as REST API v1 takes and returns them.

Invariants: the members are the fields of `domain/policy.Policy`, as a test checks.

Deliberately absent: their ranges, which the use case checks.
"""

from pydantic import Field

from app.rest.schemas import Request


class ClientLimits(Request):
    """A client's own limits, each optional. A limit has an effect only if it is stricter than the operator's."""

    busy_available: bool | None = Field(
        None, description="Whether BUSY is reported; otherwise a busy terminal is REACHABLE."
    )
    max_notification_addresses: int | None = Field(
        None, description="Terminals of one subscription or stream; members of groups count."
    )
    min_interval_ms: int | None = Field(None, description="Shortest `min_interval_ms` of a subscription or stream.")
    max_duration_ms: int | None = Field(None, description="Longest duration of a subscription; 0: no limit.")
    default_duration_ms: int | None = Field(
        None, description="Duration of a subscription that requests none; 0: the longest allowed."
    )
    max_count: int | None = Field(None, description="Greatest `max_notification_count` of a subscription; 0: no limit.")
    unlimited_count_allowed: bool | None = Field(
        None, description="Whether a subscription may leave its number of notifications unlimited."
    )
    group_support: bool | None = Field(None, description="Whether groups may be created and queried.")
    nested_group_support: bool | None = Field(None, description="Whether a group may contain groups.")
    max_targets: int | None = Field(None, description="Terminals of one query; members of groups count.")
    process_up_to_limit: bool | None = Field(
        None, description="Whether a query above `max_targets` is answered for that many terminals, instead of refused."
    )
    max_group_size: int | None = Field(None, description="Members of one group.")
    max_groups: int | None = Field(None, description="Groups of the client.")
    max_subscriptions: int | None = Field(None, description="Active subscriptions of the client.")
    max_streams: int | None = Field(None, description="Open streams of the client.")
    max_watched_terminals: int | None = Field(
        None, description="Terminals watched for the client's subscriptions and streams, each once."
    )
    rate_per_s: int | None = Field(
        None, description="Calls per second on average; a query counts once for each terminal. 0: no limit."
    )
    rate_burst: int | None = Field(None, description="Calls at once after a pause; 0: as many as in one second.")
