"""Sends notifications as webhooks: CloudEvents 1.0 in structured JSON, signed according to Standard Webhooks.

One notification is one event; its id is the event's `id` and the `webhook-id`, the same in each attempt. The signature
covers the bytes that are sent. Each profile has a function that makes its events (`Envelope`); a notification without
an event in its profile counts as delivered without being sent.
Invariants: secrets and tokens are never logged, put into errors or stored, not even if the response repeats them. An
access token is not used after the time that the request stated. A sink that answers 401 to a token that has expired
ends the subscription: its clock may be ahead, and a token that is a JWT may expire before the stated time.

Deliberately absent: CloudEvents' rate agreement (WebHook-Request-Rate).
"""

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http import HTTPStatus

import msgspec

from app.domain.errors import SinkRefused, SinkUnreachable
from app.domain.records import NotificationKind, OwedNotification, Subscription
from app.domain.sinks import (
    HIDDEN_PARAMETERS,
    MAX_SECRETS,
    MAX_SINK_TOKEN,
    SIGNED_PROFILES,
    SINK_HANDSHAKE,
    SINK_MADE,
    SINK_SECRETS,
    SINK_TOKEN,
    SINK_TOKEN_EXPIRES_AT,
    EndReason,
    Handshake,
    Sink,
    read_secret,
    signing_secrets,
    token_ends_at,
)
from app.domain.statuses import TerminalStatus
from app.egress.client import KEPT_ANSWER, Egress, Reply
from app.ports.delivery import Sent, correlation

Envelope = Callable[[Subscription, OwedNotification, str], Mapping[str, object] | None]
"""Makes the CloudEvent of a notification, to be written as JSON; None if the profile has no event for it. The last
argument is the gateway's own URL without a slash at its end, for `source`."""

EVENT_PREFIX = "org.terminalstatus.v1."
EVENT_TYPES: Mapping[NotificationKind, str] = {
    NotificationKind.STATUS: EVENT_PREFIX + "status-changed",
    NotificationKind.STARTED: EVENT_PREFIX + "subscription-started",
    NotificationKind.ERROR: EVENT_PREFIX + "subscription-failed",
    NotificationKind.ENDED: EVENT_PREFIX + "subscription-ended",
    NotificationKind.TEST: EVENT_PREFIX + "sink-test",
}
"""The `type` of the events of profile v1."""

CLOCKS_DIFFER = timedelta(seconds=30)
"""How far a sink's clock may be ahead of the gateway's."""

_REFUSALS = (400, 401, 403)
"""Statuses with which receivers refuse a wrong signature."""

CONTENT_TYPE = "application/cloudevents+json; charset=utf-8"

PARAMETERS = (SINK_SECRETS, SINK_TOKEN, SINK_TOKEN_EXPIRES_AT, SINK_HANDSHAKE)
"""The sink parameters that a client may set for a signed profile."""

_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")  # RFC 6750 section 2.1


def v1_event(subscription: Subscription, notification: OwedNotification, source: str) -> Mapping[str, object]:
    """The CloudEvent of profile v1. Its `sequence` (a CloudEvents extension) orders a subscription's events."""
    data: dict[str, object] = {"subscription_id": subscription.id, "correlator": subscription.correlator}
    match notification.kind:
        case NotificationKind.STATUS:
            data["statuses"] = [_status(status) for status in notification.changes]
        case NotificationKind.STARTED:
            data["addresses"] = subscription.addresses
            data["expire_time"] = subscription.expires_at and rfc3339(subscription.expires_at)
        case NotificationKind.ERROR:
            data["address"] = notification.address
            data["error"] = {"code": notification.code, "detail": notification.text}
        case NotificationKind.ENDED:
            data["reason"] = notification.code
            data["detail"] = notification.text
        case NotificationKind.TEST:
            pass
    event = {
        "specversion": "1.0",
        "id": notification.id,
        "source": f"{source}/v1/subscriptions/{subscription.id}",
        "type": EVENT_TYPES[notification.kind],
        "time": rfc3339(notification.created_at),
        "sequence": f"{notification.sequence:012d}",
        "datacontenttype": "application/json",
        "data": data,
    }
    if len(notification.changes) == 1:
        event["subject"] = notification.changes[0].address
    elif notification.address is not None:
        event["subject"] = notification.address
    return event


def _status(status: TerminalStatus) -> Mapping[str, object]:
    return {
        "address": status.address,
        "status": status.status.value,
        "observe_time": rfc3339(status.observed_at),
        "source": status.source.value,
        "revision": status.revision,
    }


def rfc3339(time: datetime) -> str:
    """A UTC time as text, to the millisecond."""
    return time.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def sign(key: bytes, message_id: str, timestamp_s: int, body: bytes) -> str:
    """Standard Webhooks' symmetric signature, as in the header `webhook-signature`."""
    digest = hmac.digest(key, f"{message_id}.{timestamp_s}.".encode() + body, hashlib.sha256)
    return "v1," + base64.b64encode(digest).decode()


class WebhookSender:
    """The `Sender` for SinkKind.WEBHOOK.

    `envelopes` has the `Envelope` for each `Sink.profile`; `source` is the gateway's own URL ("" if it has none);
    `origin` is the gateway's name in requests for permission (CloudEvents' WebHook-Request-Origin).
    """

    def __init__(
        self,
        egress: Egress,
        *,
        clock: Callable[[], datetime],
        envelopes: Mapping[str, Envelope],
        source: str = "",
        origin: str = "terminal-status-gateway",
    ) -> None:
        self._egress = egress
        self._clock = clock
        self._envelopes = envelopes
        self._source = source.rstrip("/")
        self._origin = origin

    async def check(self, subscription: Subscription) -> None:
        """Checks that the sink is allowed, reachable and wants events, by the handshake in `SINK_HANDSHAKE`.

        Raises SinkRefused and SinkUnreachable, with `details["reason"]`: a word of `Reply.outcome`, `http-CODE`,
        `handshake`, `parameter`, `secret`, `token`, `token-expired` or a word of `allowed.read_endpoint`.
        """
        sink = subscription.sink
        handshake = self._read_parameters(sink)
        if handshake is Handshake.NONE:
            await self._egress.connect(sink.url)
            return
        await self._egress.check(sink.url)
        if handshake is Handshake.TEST:
            now = self._clock()
            test = OwedNotification(
                id=f"test-{subscription.id}",
                subscription_id=subscription.id,
                client_id=subscription.client_id,
                sequence=0,
                kind=NotificationKind.TEST,
                changes=(),
                created_at=now,
                next_attempt_at=now,
            )
            event = self._envelopes[sink.profile](subscription, test, self._source)
            reply = await self._post(
                subscription, test.id, event if event is not None else v1_event(subscription, test, "")
            )
            if 200 <= reply.code < 300:
                return
        else:
            reply = await self._ask_permission(subscription)
            if 200 <= reply.code < 300:
                allowed = reply.headers.get("WebHook-Allowed-Origin", "").strip()
                if allowed == "*" or allowed.lower() == self._origin.lower():
                    return
                raise SinkRefused(
                    f"The sink does not allow {self._origin} (WebHook-Allowed-Origin).", reason="handshake"
                )
        outcome = reply.as_sent().outcome
        if outcome == "forbidden-address":
            raise SinkRefused("The sink's host is at an address that is not allowed.", reason=outcome)
        message = f"The sink failed its test: {outcome}."
        if handshake is Handshake.TEST and reply.code in _REFUSALS and SINK_MADE in sink.parameters:
            message += (
                " It cannot verify the signature yet, because it gets the secret after the subscription is created: "
                f"send `{SINK_SECRETS}` of your own, or choose the handshake `{Handshake.NONE.name}`."
            )
        raise SinkUnreachable(message, reason=outcome)

    async def send(self, subscription: Subscription, notification: OwedNotification) -> Sent:
        """Makes one attempt. With an expired access token, sends nothing and reports that the subscription ends."""
        sink = subscription.sink
        try:
            if self._token_expired(sink):
                return Sent(delivered=False, outcome="token-expired", ends=EndReason.TOKEN_EXPIRED)
            event = self._envelopes[sink.profile](subscription, notification, self._source)
            if event is None:
                return Sent(delivered=True, outcome="not-sent")
            reply = await self._post(subscription, notification.id, event)
        except SinkRefused as refused:  # the operator's rules have become stricter
            return Sent(delivered=False, outcome=f"refused-{refused.details['reason']}")
        sent = reply.as_sent()
        if reply.code == HTTPStatus.UNAUTHORIZED and self._token_expired(sink, refused=True):
            return replace(sent, ends=EndReason.TOKEN_EXPIRED)
        return sent

    async def _post(self, subscription: Subscription, message_id: str, event: Mapping[str, object]) -> Reply:
        sink = subscription.sink
        body = msgspec.json.encode(event)
        headers = {"Content-Type": CONTENT_TYPE, "webhook-id": message_id, **correlation(subscription)}
        now = self._clock()
        timestamp_s = int(now.timestamp())
        headers["webhook-timestamp"] = str(timestamp_s)
        if secrets := signing_secrets(sink, now):
            headers["webhook-signature"] = " ".join(
                sign(read_secret(secret), message_id, timestamp_s, body) for secret in secrets
            )
        return await self._deliver(sink, headers, body)

    async def _ask_permission(self, subscription: Subscription) -> Reply:
        """Sends OPTIONS without the access token, because the receiver has not confirmed yet that it expects events."""
        headers = {"WebHook-Request-Origin": self._origin, **correlation(subscription)}
        return await self._egress.request("OPTIONS", subscription.sink.url, headers, b"")

    async def _deliver(self, sink: Sink, headers: Mapping[str, str], body: bytes) -> Reply:
        token = sink.parameters.get(SINK_TOKEN, "")
        if not token:
            return await self._egress.request("POST", sink.url, headers, body)
        reply = await self._egress.request(
            "POST",
            sink.url,
            {**headers, "Authorization": f"Bearer {token}"},
            body,
            keep=KEPT_ANSWER + len(token),  # a token that begins in the kept part is read whole, and removed
        )
        return replace(reply, body=reply.body.replace(token.encode(), b"*" * len(token))[:KEPT_ANSWER])

    def _read_parameters(self, sink: Sink) -> Handshake:
        if sink.profile not in self._envelopes:
            raise SinkRefused(f"The webhook profile {sink.profile[:32]!r} does not exist.", reason="profile")
        unknown = sink.parameters.keys() - {*PARAMETERS, *HIDDEN_PARAMETERS}
        if unknown and sink.profile in SIGNED_PROFILES:
            names = ", ".join([repr(name) for name in sorted(unknown)])
            raise SinkRefused(
                f"The sink parameters {names} do not exist; the parameters are {', '.join(PARAMETERS)}.",
                reason="parameter",
            )
        secrets = sink.parameters.get(SINK_SECRETS, "").split()
        if len(secrets) > MAX_SECRETS:
            raise SinkRefused(f"A sink has at most {MAX_SECRETS} signing secrets.", reason="secret")
        for secret in secrets:
            read_secret(secret)
        if (
            not secrets and SINK_SECRETS in sink.parameters
        ):  # events would be unsigned, which the client did not request
            raise SinkRefused("The sink parameter `secrets` contains no secret.", reason="secret")
        token = sink.parameters.get(SINK_TOKEN, "")
        if token and not (len(token) <= MAX_SINK_TOKEN and _TOKEN.fullmatch(token)):
            raise SinkRefused("The sink's access token is not a bearer token (RFC 6750).", reason="token")
        if self._token_expired(sink):
            raise SinkRefused("The sink's access token has expired.", reason="token-expired")
        # A test signed with a secret that the receiver does not know yet would fail its verification.
        default = Handshake.NONE if SINK_MADE in sink.parameters else Handshake.TEST
        try:
            return Handshake(sink.parameters.get(SINK_HANDSHAKE, default.value))
        except ValueError:
            raise SinkRefused(
                f"The handshake must be one of {', '.join(each.name for each in Handshake)}.", reason="handshake"
            ) from None

    def _token_expired(self, sink: Sink, *, refused: bool = False) -> bool:
        """`refused`: the sink refuses the token now; then its clock may be ahead, and the token's own expiry counts."""
        ends_at = token_ends_at(sink)
        if ends_at is None:
            return False
        if refused:
            ends_at = min(ends_at, _expiry_of(sink.parameters.get(SINK_TOKEN, "")) or ends_at) - CLOCKS_DIFFER
        return ends_at <= self._clock()


def _expiry_of(token: str) -> datetime | None:
    """The `exp` of a token that is a JWT (RFC 7519 section 4.1.4), without checking the signature; else None."""
    parts = token.split(".")
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=="))
        return datetime.fromtimestamp(claims["exp"], UTC)
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, OSError, RecursionError):
        return None
