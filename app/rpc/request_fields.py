"""Reads and checks the fields of requests: protobuf values in, values for the use cases out.

Invariants: every text and number of a request is bounded here or in the use case. An InvalidRequest names the field as
`proto/` does.

Deliberately absent: the rules about terminals, and building responses (`response_messages.py`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from app.domain.errors import InvalidRequest, SinkRefused
from app.domain.policy import MAX_INTERVAL_MS, Policy
from app.domain.records import DeliveryState
from app.domain.sinks import MAX_URL, SIGNED_PROFILES, Sink, SinkKind
from app.domain.statuses import Status
from app.pb.terminalstatus.v1 import admin_pb2, subscription_pb2, usage_pb2
from app.pb.terminalstatus.v1 import terminal_status_pb2 as pb
from app.ports.store import DEFAULT_PAGE, MAX_PAGE, MAX_PAGE_TOKEN, Page
from app.rpc.enum_values import DELIVERY_STATE, SINK_KIND, STATUS

MAX_PARAMETERS = 20
MAX_PARAMETER_NAME = 64
MAX_PARAMETER = 8000

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NS_PER_S = 1_000_000_000

_FROM_STATUS: Mapping[int, Status] = {value: status for status, value in STATUS.items()}
_FROM_SINK_KIND: Mapping[int, SinkKind] = {
    subscription_pb2.SINK_KIND_UNSPECIFIED: SinkKind.STREAM,
    **{value: kind for kind, value in SINK_KIND.items()},
}
_FROM_DELIVERY_STATE: Mapping[int, DeliveryState] = {value: state for state, value in DELIVERY_STATE.items()}
_SWITCHES = frozenset(field.name for field in fields(Policy) if field.type in (bool, "bool"))


def max_age_s(request: pb.GetStatusRequest | pb.QueryStatusesRequest) -> float:
    """0 if absent. The use case checks the range, so that a call out of range leaves a usage record."""
    return request.max_age.seconds + request.max_age.nanos / _NS_PER_S


def duration_ms(request: Message, field: str) -> int:
    """The Duration in this field of the request in milliseconds, rounded up; 0 if absent. Raises InvalidRequest."""
    return -(-_ns(getattr(request, field), field) // 1_000_000) if request.HasField(field) else 0


def since(
    request: usage_pb2.ListUsageRecordsRequest
    | usage_pb2.ExportUsageRecordsRequest
    | admin_pb2.ListAuditEntriesRequest,
) -> datetime:
    """1970 if absent. Raises InvalidRequest."""
    try:
        return request.since.ToDatetime(UTC) if request.HasField("since") else EPOCH
    except (ValueError, OverflowError):
        raise InvalidRequest("`since` is not a valid Timestamp; send one from year 1 to 9999.", field="since") from None


def page(request: Any) -> Page:
    """The `page_size` and `page_token` of a list request. Raises InvalidRequest."""
    if not 0 <= request.page_size <= MAX_PAGE:
        raise InvalidRequest(f"`page_size` must be 1 to {MAX_PAGE}, or 0 for {DEFAULT_PAGE}.", field="page_size")
    return Page(size=request.page_size or DEFAULT_PAGE, token=bounded(request.page_token, MAX_PAGE_TOKEN, "page_token"))


def bounded(text: str, most: int, field: str) -> str:
    """Returns the text. Raises InvalidRequest if it has more than `most` characters."""
    if len(text) > most:
        raise InvalidRequest(f"`{field}` has {len(text)} characters; at most {most} are allowed.", field=field)
    return text


def criteria(values: Iterable[int]) -> frozenset[Status]:
    """Raises InvalidRequest."""
    try:
        return frozenset([_FROM_STATUS[value] for value in values])
    except KeyError as error:
        names = ", ".join(map(pb.Status.Name, STATUS.values()))
        raise InvalidRequest(
            f"`criteria` has the unknown status {error.args[0]}; allowed are {names}.", field="criteria"
        ) from None


def sink(message: subscription_pb2.Sink) -> Sink:
    """The requested sink. A webhook's profile must be v1: CAMARA's profile needs values that only its own API takes.

    Raises InvalidRequest, SinkRefused.
    """
    if (kind := _FROM_SINK_KIND.get(message.kind)) is None:
        raise InvalidRequest(
            f"`sink.kind` {message.kind} is unknown; allowed are SINK_KIND_STREAM, SINK_KIND_WEBHOOK and "
            "SINK_KIND_SOAP.",
            field="sink.kind",
        )
    if len(message.parameters) > MAX_PARAMETERS:
        raise InvalidRequest(
            f"`sink.parameters` has {len(message.parameters)} entries; at most {MAX_PARAMETERS} are allowed.",
            field="sink.parameters",
        )
    if kind is SinkKind.WEBHOOK and message.profile not in SIGNED_PROFILES:
        raise SinkRefused(
            'A webhook\'s `sink.profile` must be "v1", or empty for the newest. Only the CAMARA API creates '
            'subscriptions of profile "camara".',
            field="sink.profile",
            reason="profile",
        )
    return Sink(
        kind=kind,
        url=bounded(message.url, MAX_URL, "sink.url"),
        profile=bounded(message.profile, MAX_PARAMETER_NAME, "sink.profile"),
        parameters={
            bounded(name, MAX_PARAMETER_NAME, "sink.parameters"): bounded(value, MAX_PARAMETER, "sink.parameters")
            for name, value in message.parameters.items()
        },
    )


def delivery_state(value: int) -> DeliveryState | None:
    """None means every state. Raises InvalidRequest."""
    if value and value not in _FROM_DELIVERY_STATE:
        raise InvalidRequest(f"`state` {value} is not a DeliveryState.", field="state")
    return _FROM_DELIVERY_STATE.get(value)


def limits(values: Mapping[str, int]) -> dict[str, int | bool]:
    """A client's limits. For policies that are switches, 0 and 1 become False and True. The use case checks the
    rest."""
    return {name: bool(value) if name in _SWITCHES and value in (0, 1) else value for name, value in values.items()}


def _ns(duration: Duration, field: str) -> int:
    ns = duration.seconds * _NS_PER_S + duration.nanos
    if not 0 <= ns <= MAX_INTERVAL_MS * 1_000_000:
        raise InvalidRequest(f"`{field}` must be 0 to {MAX_INTERVAL_MS // 86_400_000} days.", field=field)
    return ns
