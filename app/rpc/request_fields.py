"""Reads and checks the fields of requests: protobuf values in, values for the use cases out.

Invariants: every text and number of a request is bounded here or in the use case. An InvalidRequest names the field as
`proto/` does.

Deliberately absent: the rules about terminals, and building responses (`response_messages.py`).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from app.core.subscription_requests import SubscriptionChange
from app.domain.errors import InvalidRequest, SinkRefused, SinkUnreachable, TerminalStatusError
from app.domain.policy import MAX_INTERVAL_MS
from app.domain.sinks import (
    MAX_SECRETS,
    MAX_SINK_TOKEN,
    MAX_URL,
    PROFILE_V1,
    SINK_HANDSHAKE,
    SINK_SECRETS,
    SINK_TOKEN,
    SINK_TOKEN_EXPIRES_AT,
    Handshake,
    Sink,
    SinkKind,
    read_secret,
    refused_part,
)
from app.domain.statuses import Status
from app.pb.terminalstatus.v1 import admin_pb2, subscription_pb2
from app.pb.terminalstatus.v1 import terminal_status_pb2 as pb
from app.ports.store import DEFAULT_PAGE, MAX_PAGE, MAX_PAGE_TOKEN, Page
from app.rpc.enum_values import HANDSHAKE, STATUS

MAX_VERSION = 64
"""Longest version of Parlay X, in characters."""

MAX_SECRET = 200
"""Longest signing secret, in characters."""

_NS_PER_S = 1_000_000_000

_FROM_STATUS: Mapping[int, Status] = {value: status for status, value in STATUS.items()}
_FROM_HANDSHAKE: Mapping[int, Handshake] = {value: handshake for handshake, value in HANDSHAKE.items()}


def max_age_s(request: pb.GetStatusRequest | pb.QueryStatusesRequest) -> float:
    """0 if absent. The use case checks the range, so that a call out of range leaves a usage record."""
    return request.max_age.seconds + request.max_age.nanos / _NS_PER_S


def duration_ms(request: Message, field: str) -> int:
    """The Duration in this field of the request in milliseconds, rounded up; 0 if absent. Raises InvalidRequest."""
    return -(-_ns(getattr(request, field), field) // 1_000_000) if request.HasField(field) else 0


def duration_s(request: Message, field: str) -> int | None:
    """The Duration in this field of the request in seconds, rounded up; None if absent. Raises InvalidRequest."""
    return -(-duration_ms(request, field) // 1000) if request.HasField(field) else None


def time(request: Message, field: str) -> datetime | None:
    """The Timestamp in this field of the request; None if absent. Raises InvalidRequest."""
    if not request.HasField(field):
        return None
    try:
        found: datetime = getattr(request, field).ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"`{field}` is not a valid Timestamp; send one from year 1 to 9999.", field=field
        ) from None
    return found


def page(request: Any) -> Page:
    """The `page_size`, at most MAX_PAGE (AIP-158), and `page_token` of a list request. Raises InvalidRequest."""
    if request.page_size < 0:
        raise InvalidRequest(
            f"`page_size` is below 0; send 1 to {MAX_PAGE}, or 0 for {DEFAULT_PAGE}.", field="page_size"
        )
    size = min(request.page_size or DEFAULT_PAGE, MAX_PAGE)
    return Page(size=size, token=bounded(request.page_token, MAX_PAGE_TOKEN, "page_token"))


def bounded(text: str, most: int, field: str) -> str:
    """Returns the text. Raises InvalidRequest if it has more than `most` characters."""
    if len(text) > most:
        raise InvalidRequest(f"`{field}` has {len(text)} characters; at most {most} are allowed.", field=field)
    return text


def criteria(values: Iterable[int]) -> frozenset[Status]:
    """Raises InvalidRequest."""
    found = []
    for place, value in enumerate(values):
        if (status := _FROM_STATUS.get(value)) is None:
            names = ", ".join(map(pb.Status.Name, STATUS.values()))
            raise InvalidRequest(
                f"`criteria` has the unknown status {value}; allowed are {names}.", field=f"criteria[{place}]"
            )
        found.append(status)
    return frozenset(found)


def sink(message: subscription_pb2.Sink) -> Sink:
    """The requested sink. Raises InvalidRequest, SinkRefused."""
    match message.WhichOneof("kind"):
        case "listed":
            return Sink(kind=SinkKind.STREAM)
        case "webhook":
            return _webhook(message.webhook)
        case "soap":
            return Sink(
                kind=SinkKind.SOAP,
                url=_uri(message.soap.uri, "sink.soap.uri"),
                profile=bounded(message.soap.version, MAX_VERSION, "sink.soap.version"),
            )
        case "camara":
            raise InvalidRequest(
                "`sink.camara` cannot be requested: only the CAMARA API creates such subscriptions. Use `webhook`.",
                field="sink.camara",
            )
    raise InvalidRequest(
        "`sink` has no known kind; set one of `listed`, `webhook` and `soap`, or leave `sink` out.", field="sink"
    )


def subscription_change(request: subscription_pb2.UpdateSubscriptionRequest) -> SubscriptionChange:
    """The values that `update_mask` names. Raises InvalidRequest, SinkRefused."""
    change, names = request.change, set(request.update_mask.paths)
    if unknown := sorted(names.difference(change.DESCRIPTOR.fields_by_name)):
        raise InvalidRequest(
            f"`update_mask` names {unknown[0][:40]!r}, which cannot be changed; name whole fields of `change`: "
            f"{', '.join(change.DESCRIPTOR.fields_by_name)}.",
            field="update_mask",
        )
    if "sink" in names and not change.HasField("sink"):
        raise InvalidRequest("`update_mask` names `sink`, and `change` has none.", field="sink")
    return SubscriptionChange(
        addresses=change.addresses if "addresses" in names else None,
        criteria=criteria(change.criteria) if "criteria" in names else None,
        duration_ms=duration_ms(change, "duration") if "duration" in names else None,
        sink=sink(change.sink) if "sink" in names else None,
    )


@contextmanager
def fields_within(part: str, message: Descriptor) -> Iterator[None]:
    """Errors about a field of `message` name it with the part of the request that has the message, such as
    `open.addresses[1]`."""
    try:
        yield
    except TerminalStatusError as error:
        field = error.details.get("field", "")
        if re.split(r"[.\[]", field, maxsplit=1)[0] in message.fields_by_name:
            error.details["field"] = f"{part}.{field}"
        raise


@contextmanager
def sink_fields(message: subscription_pb2.Sink) -> Iterator[None]:
    """Errors about the sink name the field of `message` that they are about, such as `sink.webhook.uri`."""
    try:
        yield
    except (SinkRefused, SinkUnreachable) as error:
        if kind := message.WhichOneof("kind"):
            error.details.setdefault("field", f"sink.{kind}.{refused_part(error)}")
        raise


def _uri(text: str, field: str) -> str:
    if not text:
        raise InvalidRequest(f"`{field}` is empty; send the URL of the endpoint.", field=field)
    return bounded(text, MAX_URL, field)


def _webhook(message: subscription_pb2.WebhookSink) -> Sink:
    parameters: dict[str, str] = {}
    if len(message.secrets) > MAX_SECRETS:
        raise InvalidRequest(
            f"`sink.webhook.secrets` has {len(message.secrets)} entries; at most {MAX_SECRETS} are allowed.",
            field="sink.webhook.secrets",
        )
    if message.secrets:
        for each in message.secrets:
            read_secret(each)
        parameters[SINK_SECRETS] = " ".join(message.secrets)
    if message.HasField("access_token"):
        token = message.access_token
        if not token.token:
            raise InvalidRequest(
                "`sink.webhook.access_token.token` is empty; send the token, or leave `access_token` out.",
                field="sink.webhook.access_token.token",
            )
        parameters[SINK_TOKEN] = bounded(token.token, MAX_SINK_TOKEN, "sink.webhook.access_token.token")
        with fields_within("sink.webhook.access_token", token.DESCRIPTOR):
            expires_at = time(token, "expire_time")
        if expires_at is not None:
            parameters[SINK_TOKEN_EXPIRES_AT] = expires_at.isoformat()
    if message.handshake:
        if (handshake := _FROM_HANDSHAKE.get(message.handshake)) is None:
            raise InvalidRequest(
                f"`sink.webhook.handshake` {message.handshake} is not a SinkHandshake.", field="sink.webhook.handshake"
            )
        parameters[SINK_HANDSHAKE] = handshake.value
    return Sink(
        kind=SinkKind.WEBHOOK,
        url=_uri(message.uri, "sink.webhook.uri"),
        profile=PROFILE_V1,
        parameters=parameters,
    )


def limits(message: admin_pb2.ClientLimits) -> dict[str, int | bool]:
    """A client's limits that are set. The use case checks their range."""
    return {field.name: value for field, value in message.ListFields()}


def _ns(duration: Duration, field: str) -> int:
    ns = duration.seconds * _NS_PER_S + duration.nanos
    if not 0 <= ns <= MAX_INTERVAL_MS * 1_000_000:
        raise InvalidRequest(f"`{field}` must be 0 to {MAX_INTERVAL_MS // 86_400_000} days.", field=field)
    return ns
