"""A client's request for a subscription, or for its change, and how a repeated request is recognized.

Invariants: pure. A request with a `request_id` has a digest, which is stored with the subscription.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

from app.domain.addresses import canonical
from app.domain.errors import InvalidRequest, RequestIdReused
from app.domain.records import MAX_CORRELATOR, MAX_ID, Subscription
from app.domain.sinks import (
    SIGNED_PROFILES,
    SINK_REQUEST,
    SINK_TOKEN_EXPIRES_AT,
    Sink,
    SinkKind,
    require_readable,
)
from app.domain.statuses import Status

NO_SINK = Sink(kind=SinkKind.STREAM)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionRequest:
    """A client's request for a subscription. Fields mean the same as in `Subscription`."""

    addresses: Sequence[str]
    criteria: frozenset[Status] = frozenset()
    check_immediate: bool = False
    min_interval_ms: int = 0
    """0 is the policy's minimum, unless `interval_named`."""
    interval_named: bool = False
    """True if requests of the face always have an interval (Parlay X). Then 0 requests no interval, and is refused if
    the policy has a minimum."""
    duration_ms: int | None = None
    """None and 0 ask for the policy's default."""
    count: int = 0
    """0 is unlimited."""
    sink: Sink = NO_SINK
    correlator: str = ""
    request_id: str = ""
    ask_first: bool = False
    """Terminals without a live watch are fetched first; one that is unknown or refused fails the request (CAMARA)."""
    skip_invalid: bool = False
    """Invalid addresses do not fail the request: the sink is owed a notification for each (Parlay X's statusError)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionChange:
    """New values of a subscription; None leaves a value unchanged."""

    addresses: Sequence[str] | None = None
    """All terminals and groups, not only new ones."""
    criteria: frozenset[Status] | None = None
    duration_ms: int | None = None
    """How long the subscription lasts from now; 0: the policy's default."""
    sink: Sink | None = None
    """A sink of the same kind and profile, without signing secrets."""

    @property
    def named(self) -> tuple[str, ...]:
        """The names of the values to change."""
        return tuple([each.name for each in fields(self) if getattr(self, each.name) is not None])


def check_names(request: SubscriptionRequest) -> None:
    if len(request.correlator) > MAX_CORRELATOR:
        raise InvalidRequest(f"`correlator` is longer than {MAX_CORRELATOR} characters.", field="correlator")
    if len(request.request_id) > MAX_ID:
        raise InvalidRequest(f"`request_id` is longer than {MAX_ID} characters.", field="request_id")


def digest_of(request: SubscriptionRequest) -> str:
    """A digest of the request, with its addresses in canonical form; "" without a request id."""
    return _digest(request, request.sink) if request.request_id else ""


def _digests_of_before(request: SubscriptionRequest) -> Iterator[str]:
    """The digests that versions before typed sinks stored for the same request. Over gRPC a webhook had a profile only
    if the client named it, and the expiry of its access token was the client's text; here it is one that ends in Z."""
    sink = request.sink
    if sink.kind is not SinkKind.WEBHOOK or sink.profile not in SIGNED_PROFILES:
        return
    expiry = sink.parameters.get(SINK_TOKEN_EXPIRES_AT, "")
    for profile in SIGNED_PROFILES:
        for text in {expiry, expiry.replace("+00:00", "Z")}:
            parameters = {**sink.parameters, SINK_TOKEN_EXPIRES_AT: text} if text else sink.parameters
            yield _digest(request, replace(sink, profile=profile, parameters=parameters))


def _digest(request: SubscriptionRequest, sink: Sink) -> str:
    asked = [
        [*dict.fromkeys([canonical(address) for address in request.addresses])],
        sorted([status.value for status in request.criteria]),
        [request.check_immediate, request.min_interval_ms, request.duration_ms or 0, request.count, request.correlator],
        [sink.kind.value, sink.url, sink.profile, sorted(sink.parameters.items())],
    ]
    return sha256(json.dumps(asked))


def repeated(known: Subscription, request: SubscriptionRequest) -> Subscription:
    """`known`, if it was made by the same request. Raises RequestIdReused otherwise."""
    require_readable(known.sink)
    digest = known.sink.parameters.get(SINK_REQUEST, "")
    if digest != digest_of(request) and digest not in tuple(_digests_of_before(request)):
        raise RequestIdReused(
            "This request id (REST: Idempotency-Key) was used before for a different request; use a new one.",
            field="request_id",
            request_id=known.request_id,
        )
    return known


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
