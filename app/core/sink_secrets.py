"""Signing secrets and access tokens of webhook sinks, users and passwords of SOAP endpoints.

Invariants: pure; entropy is an argument. No secret is logged.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from app.core.subscription_requests import sha256
from app.domain.errors import SinkRefused
from app.domain.records import Subscription
from app.domain.sinks import (
    HIDDEN_PARAMETERS,
    MAX_SECRETS,
    SECRET_BYTES,
    SIGNED_PROFILES,
    SINK_BASIC,
    SINK_CALLBACK_VERSION,
    SINK_MADE,
    SINK_OVERLAP_ENDS_AT,
    SINK_REQUEST,
    SINK_SECRETS,
    SINK_TOKEN,
    TOKEN_LEAD,
    Sink,
    SinkKind,
    overlap_ends_at,
    read_secret,
    signing_secret,
    signing_secrets,
    token_ends_at,
    with_secrets,
    without_user_info,
)


def prepared(sink: Sink, digest: str, entropy: Callable[[int], bytes], *, callback_version: str = "") -> Sink:
    """The sink with the parameters that the gateway adds, and with a signing secret if it needs one.
    `callback_version` is the client's `soap_callback_version`.

    Raises SinkRefused.
    """
    _check_own(sink)
    if sink.kind is SinkKind.SOAP:
        sink = without_user_info(sink)
    added = {SINK_REQUEST: digest} if digest else {}
    if sink.kind is SinkKind.WEBHOOK and sink.profile in SIGNED_PROFILES and not sink.parameters.get(SINK_SECRETS):
        secret = signing_secret(entropy(SECRET_BYTES))
        added |= {SINK_SECRETS: secret, SINK_MADE: sha256(secret)}
    if sink.kind is SinkKind.SOAP and callback_version:
        added[SINK_CALLBACK_VERSION] = callback_version
    return replace(sink, parameters={**sink.parameters, **added})


_KEPT = (SINK_SECRETS, SINK_MADE, SINK_OVERLAP_ENDS_AT, SINK_REQUEST)
"""Parameters that stay with a subscription when its webhook is replaced. Of a SOAP endpoint all stay but SINK_BASIC."""


def moved(sink: Sink, to: Sink) -> Sink:
    """`to` with the signing secrets of `sink`, which it replaces. Raises SinkRefused."""
    _check_own(to)
    signed = sink.profile in SIGNED_PROFILES and to.profile in SIGNED_PROFILES
    if to.kind is not sink.kind or not (to.profile == sink.profile or signed):
        raise SinkRefused(
            "The sink of a subscription can be replaced only by a sink of the same kind; create another subscription.",
            field="sink",
            reason="kind",
        )
    if SINK_SECRETS in to.parameters:
        raise SinkRefused(
            "The webhook keeps its signing secrets; leave `secrets` out. To change them, rotate the secret.",
            field="sink",
            reason="secret",
        )
    if sink.kind is SinkKind.SOAP:
        to = without_user_info(to)
        kept = {name: value for name, value in sink.parameters.items() if name != SINK_BASIC}
    else:
        kept = {name: sink.parameters[name] for name in _KEPT if name in sink.parameters}
    return replace(to, profile=sink.profile, parameters={**to.parameters, **kept})


def checked(sink: Sink) -> Sink:
    """The sink for the check of its new endpoint: without SINK_MADE, so that the default handshake is a signed test
    event. The client has had the secret since the creation, even if the gateway generated it."""
    return replace(sink, parameters={name: value for name, value in sink.parameters.items() if name != SINK_MADE})


def _check_own(sink: Sink) -> None:
    if own := sorted(sink.parameters.keys() & set(HIDDEN_PARAMETERS)):
        raise SinkRefused(
            f"The sink parameter {own[0]} is reserved for the gateway; leave it out.",
            field="sink",
            reason="parameter",
        )
    if sink.kind is SinkKind.STREAM and (sink.url or sink.profile or sink.parameters):
        raise SinkRefused(
            "A sink of kind LISTED has no URI, version or parameters; leave them out.",
            field="sink",
            reason="kind",
        )


def rotated(sink: Sink, newest: str, *, now: datetime, overlap_s: int) -> Sink:
    """The sink with `newest` before its other secrets, of which the first signs for `overlap_s` seconds more; ""
    keeps its newest secret. A call that is repeated does not extend the overlap."""
    kept = signing_secrets(sink, now)
    ends_at = now + timedelta(seconds=overlap_s)
    if newest and kept and read_secret(kept[0]) == read_secret(newest):
        ends_at = min(ends_at, overlap_ends_at(sink) or ends_at)
    if newest:
        kept = [newest, *[one for one in kept if read_secret(one) != read_secret(newest)]]
    return with_secrets(sink, kept[: MAX_SECRETS if overlap_s else 1], ends_at) if kept else sink


def made_secret(subscription: Subscription) -> str:
    """The signing secret that the gateway made for the subscription, while it is the newest; otherwise ""."""
    newest = subscription.sink.parameters.get(SINK_SECRETS, "").partition(" ")[0]
    return newest if newest and sha256(newest) == subscription.sink.parameters.get(SINK_MADE) else ""


def before_token_ends(expires_at: datetime | None, sink: Sink, now: datetime) -> datetime | None:
    """The earlier of `expires_at` and the time TOKEN_LEAD before the sink's access token expires. Raises SinkRefused
    if the latter has passed."""
    token_ends = token_ends_at(sink) if sink.kind is SinkKind.WEBHOOK and sink.parameters.get(SINK_TOKEN) else None
    if token_ends is None:
        return expires_at
    if token_ends - TOKEN_LEAD <= now:
        raise SinkRefused(
            "The sink's access token has expired or is about to expire; send a newer one.", reason="token-expired"
        )
    return token_ends - TOKEN_LEAD if expires_at is None else min(expires_at, token_ends - TOKEN_LEAD)
