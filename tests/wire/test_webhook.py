"""Tests of `app/egress/webhook.py`: what receivers are sent, how they verify it, and how an endpoint is checked."""

import itertools
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from app.core.sink_secrets import made_secret
from app.domain.errors import SinkRefused, SinkUnreachable, TerminalStatusError
from app.domain.records import NotificationKind, OwedNotification, Subscription
from app.domain.sinks import EndReason, Sink, SinkKind, read_secret, signing_secret
from app.egress.allowed import Rules
from app.egress.client import Egress
from app.egress.webhook import CONTENT_TYPE, WebhookSender, sign, v1_event
from app.rest.subscription_schemas import SinkHandshake, WebhookSinkRequest
from tests.support.access_tokens import signed
from tests.support.core import new_database, run_core
from tests.support.outbox import ALICE, BOB, NOW, OTHER_SECRET, SECRET, change, make_owed, make_subscription
from tests.support.receivers import Behaviour, Receiver, Request, answer, drip, gigabyte, hang, raw, receiver, reset

LOOPBACK = Rules.of(["127.0.0.0/8"], allow_http=True)
TOKEN = "secret-token.abc~123=="


def camara_like(subscription: Subscription, notification: OwedNotification, source: str) -> Mapping[str, object] | None:
    """The events of another profile, which has none for errors."""
    if notification.kind is NotificationKind.ERROR:
        return None
    return {"specversion": "1.0", "id": notification.id, "source": source or "/", "type": "org.example.other"}


@asynccontextmanager
async def sender(
    rules: Rules = LOOPBACK, *, now: datetime | None = None, total_s: float = 5.0, **options: Any
) -> AsyncIterator[WebhookSender]:
    """A sender whose clock stops at `now`, or runs."""
    egress = Egress(rules, total_s=total_s)
    try:
        yield WebhookSender(
            egress,
            clock=lambda: now or datetime.now(UTC),
            envelopes={"": v1_event, "v1": v1_event, "other": camara_like},
            source="https://gateway.example/",
            **options,
        )
    finally:
        await egress.aclose()


def verified(request: Request, secret: str = SECRET) -> Any:
    """The event, as a receiver reads it with the reference library."""
    return Webhook(secret).verify(request.body, dict(request.headers))


def test_the_signature_is_that_of_the_specification() -> None:
    """The signature equals the test vector of Standard Webhooks' libraries."""
    signature = sign(read_secret(SECRET), "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@given(st.binary(min_size=24, max_size=64), st.text("abc-_.0123", min_size=1), st.text())
def test_signatures_are_the_reference_librarys(entropy: bytes, message_id: str, body: str) -> None:
    """For any content and secret the signature equals the reference library's."""
    secret = signing_secret(entropy)
    theirs = Webhook(secret).sign(message_id, NOW, body)
    assert sign(read_secret(secret), message_id, int(NOW.timestamp()), body.encode()) == theirs


async def test_a_receiver_can_verify_what_it_gets() -> None:
    """One POST: a CloudEvent in structured JSON with the three headers, which the reference library accepts."""
    async with sender() as webhooks, receiver() as there:
        subscription = make_subscription(there.url, parameters={"secrets": SECRET})
        sent = await webhooks.send(subscription, make_owed(subscription))
        assert (sent.delivered, sent.code, sent.outcome) == (True, 204, "delivered")
        (request,) = there.requests
        assert (request.method, request.target) == ("POST", "/events")
        assert request.headers["content-type"] == CONTENT_TYPE
        assert request.headers["webhook-id"] == "n-1"
        assert "authorization" not in request.headers
        assert verified(request) == {
            "specversion": "1.0",
            "id": "n-1",
            "source": "https://gateway.example/v1/subscriptions/sub-1",
            "type": "org.terminalstatus.v1.status-changed",
            "subject": ALICE,
            "time": "2026-01-02T03:04:05.678Z",
            "sequence": "000000000001",
            "datacontenttype": "application/json",
            "data": {
                "subscription_id": "sub-1",
                "correlator": "correlator of sub-1",
                "statuses": [
                    {
                        "address": ALICE,
                        "status": "BUSY",
                        "observe_time": "2026-01-02T03:04:05.678Z",
                        "source": "WATCH",
                        "revision": 7,
                    }
                ],
            },
        }


async def test_what_is_altered_does_not_verify() -> None:
    """A changed body, id or time, or another secret, does not verify."""
    async with sender() as webhooks, receiver() as there:
        subscription = make_subscription(there.url, parameters={"secrets": SECRET})
        await webhooks.send(subscription, make_owed(subscription))
        (good,) = there.requests
    later = str(int(good.headers["webhook-timestamp"]) + 1)
    for bad in (
        replace(good, body=good.body.replace(b"BUSY", b"GONE")),
        replace(good, headers={**good.headers, "webhook-id": "n-2"}),
        replace(good, headers={**good.headers, "webhook-timestamp": later}),
    ):
        with pytest.raises(WebhookVerificationError):
            verified(bad)
    with pytest.raises(WebhookVerificationError):
        verified(good, OTHER_SECRET)


async def test_two_secrets_during_rotation() -> None:
    """While two secrets are set, a receiver with either can verify."""
    async with sender() as webhooks, receiver() as there:
        subscription = make_subscription(there.url, parameters={"secrets": f"{SECRET} {OTHER_SECRET}"})
        await webhooks.send(subscription, make_owed(subscription))
        (request,) = there.requests
        assert verified(request, SECRET) == verified(request, OTHER_SECRET)
        assert request.headers["webhook-signature"].count("v1,") == 2


async def test_an_attempt_is_signed_when_it_is_made() -> None:
    """A later attempt has the same id and body and its own time, so that receivers may refuse old timestamps."""
    async with receiver() as there:
        subscription = make_subscription(there.url, parameters={"secrets": SECRET})
        for now in (NOW, NOW + timedelta(days=2)):
            async with sender(now=now) as webhooks:
                await webhooks.send(subscription, make_owed(subscription))
        first, second = there.requests
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        assert first.body == second.body
        assert int(second.headers["webhook-timestamp"]) - int(first.headers["webhook-timestamp"]) == 2 * 86400


EVENTS: Mapping[NotificationKind, tuple[str, dict[str, object]]] = {
    NotificationKind.STARTED: (
        "org.terminalstatus.v1.subscription-started",
        {"addresses": [ALICE, BOB], "expire_time": "2026-02-01T03:04:05.678Z"},
    ),
    NotificationKind.ERROR: (
        "org.terminalstatus.v1.subscription-failed",
        {"address": BOB, "error": {"code": "TERMINAL_UNKNOWN", "detail": "No such terminal."}},
    ),
    NotificationKind.ENDED: (
        "org.terminalstatus.v1.subscription-ended",
        {"reason": "EXPIRED", "detail": "Its time is over."},
    ),
    NotificationKind.TEST: ("org.terminalstatus.v1.sink-test", {}),
}


@pytest.mark.parametrize("kind", EVENTS)
def test_lifecycle_events(kind: NotificationKind) -> None:
    """Start, error, end and test each have their type and their data."""
    subscription = make_subscription()
    said = {
        NotificationKind.ERROR: {"address": BOB, "code": "TERMINAL_UNKNOWN", "text": "No such terminal."},
        NotificationKind.ENDED: {"code": "EXPIRED", "text": "Its time is over."},
    }.get(kind, {})
    event = v1_event(subscription, make_owed(subscription, kind=kind, **said), "")  # type: ignore[arg-type]
    type_, data = EVENTS[kind]
    assert (event["type"], event["source"]) == (type_, "/v1/subscriptions/sub-1")
    ours = {"subscription_id": "sub-1", "correlator": "correlator of sub-1"}
    assert json.loads(json.dumps(event["data"])) == ours | data
    assert event.get("subject") == (BOB if kind is NotificationKind.ERROR else None)


def test_several_changes_are_one_event_without_subject() -> None:
    """Changes of several terminals in one notification are one event without `subject`."""
    subscription = make_subscription()
    event = v1_event(subscription, make_owed(subscription, changes=[change(), change(BOB)]), "")
    assert "subject" not in event
    assert [each["address"] for each in event["data"]["statuses"]] == [ALICE, BOB]  # type: ignore[index]


async def test_profiles_have_their_own_events() -> None:
    """The subscription's profile makes the event; a notification for which the profile has no event counts as delivered
    without sending."""
    async with sender() as webhooks, receiver() as there:
        subscription = make_subscription(there.url, profile="other")
        assert (await webhooks.send(subscription, make_owed(subscription))).delivered
        error = make_owed(subscription, kind=NotificationKind.ERROR)
        sent = await webhooks.send(subscription, error)
        assert (sent.delivered, sent.outcome, len(there.requests)) == (True, "not-sent", 1)
        assert json.loads(there.requests[0].body)["type"] == "org.example.other"


async def test_the_token_is_sent_and_never_echoed() -> None:
    """The access token is sent to the endpoint, and is removed from the stored answer if the endpoint repeats it."""

    async def echo(request: Request, writer: Any) -> None:
        text = request.headers["authorization"].encode()
        await answer(500, {}, b"x" * (2048 - 15) + text + b" and " + text)(request, writer)

    async with sender() as webhooks, receiver(echo) as there:
        subscription = make_subscription(there.url, parameters={"token": TOKEN})
        sent = await webhooks.send(subscription, make_owed(subscription))
        assert there.requests[0].headers["authorization"] == f"Bearer {TOKEN}"
        assert TOKEN.encode()[:4] not in sent.answer
        assert sent.answer.endswith(b"Bearer ********")
        assert "webhook-signature" not in there.requests[0].headers


@pytest.mark.parametrize("expires_at", ["2026-01-02T03:04:05Z", "2026-01-02T05:04:05+02:00"])
async def test_an_expired_token_is_not_used(expires_at: str) -> None:
    """With an expired token nothing is sent, and the subscription is to end with TOKEN_EXPIRED."""
    async with sender(now=NOW) as webhooks, receiver() as there:
        subscription = make_subscription(there.url, parameters={"token": TOKEN, "token_expires_at": expires_at})
        sent = await webhooks.send(subscription, make_owed(subscription))
        assert (sent.delivered, sent.ends, sent.outcome) == (False, EndReason.TOKEN_EXPIRED, "token-expired")
        with pytest.raises(SinkRefused, match="expired"):
            await webhooks.check(subscription)
        assert there.connections == 0
        later = make_subscription(there.url, parameters={"token": TOKEN, "token_expires_at": "2026-01-02T03:04:06Z"})
        assert (await webhooks.send(later, make_owed(later))).delivered


ODD_CLAIMS: list[object] = [[], {}, {"exp": "1"}, {"exp": 1e300}, {"exp": [1]}, b"\xff{", b"[" * 4000]
JWT_ENDED = signed({"alg": "ES256"}, {"exp": int(NOW.timestamp()) - 1})


@pytest.mark.parametrize(
    ("token", "expires_at", "ends"),
    [
        (TOKEN, "2026-01-02T03:04:35Z", EndReason.TOKEN_EXPIRED),
        (TOKEN, "2026-01-02T03:04:36Z", None),
        (TOKEN, "", None),
        (JWT_ENDED, "2027-01-02T03:04:05Z", EndReason.TOKEN_EXPIRED),
        (JWT_ENDED, "", None),
        (signed({"alg": "ES256"}, {"exp": int(NOW.timestamp()) + 60}), "2027-01-02T03:04:05Z", None),
        *[(signed({}, odd), "2027-01-02T03:04:05Z", None) for odd in ODD_CLAIMS],
        ("a.b", "2027-01-02T03:04:05Z", None),
    ],
    ids=itertools.count(),
)
async def test_a_refused_token_that_has_expired(token: str, expires_at: str, ends: EndReason | None) -> None:
    """A sink that answers 401 to a token that has expired ends the subscription (RFC 6750 section 3.1; CAMARA
    AccessTokenCredential: `exp` of a JWT counts too). The sink's clock may be 30 s ahead. Any other 401 is tried
    again, and so is the one of a sink for which no expiry was stated, whose token can be changed."""
    async with sender(now=NOW) as webhooks, receiver(answer(401)) as there:
        subscription = make_subscription(there.url, parameters={"token": token, "token_expires_at": expires_at})
        sent = await webhooks.send(subscription, make_owed(subscription))
        assert (sent.delivered, sent.code, sent.outcome, sent.ends) == (False, 401, "http-401", ends)
        there.behave = answer(403)
        assert (await webhooks.send(subscription, make_owed(subscription))).ends is None


@pytest.mark.parametrize(
    ("behaviour", "outcome"),
    [
        (answer(301, {"Location": "http://169.254.169.254/"}), "http-301"),
        (answer(429, {"Retry-After": "30"}), "http-429"),
        (answer(410), "http-410"),
        (answer(500, {}, b"{" * 100_000), "http-500"),
        (hang, "timed-out"),
        (drip(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"), "timed-out"),
        (reset, "reset"),
        (raw(b"\x16\x03\x01\x00\x00"), "malformed"),
    ],
)
async def test_receivers_that_do_not_take_it(behaviour: Behaviour, outcome: str) -> None:
    """A redirect, 429, 410, 500, silence, dripping, a reset and garbage are failures with their reason; the endpoint's
    check fails with the same reason."""
    async with sender(total_s=0.6) as webhooks, receiver(behaviour) as there:
        subscription = make_subscription(there.url, parameters={"handshake": "test"})
        sent = await webhooks.send(subscription, make_owed(subscription))
        assert (sent.delivered, sent.outcome, sent.gone) == (False, outcome, outcome == "http-410")
        assert len(sent.answer) <= 2048
        with pytest.raises(SinkUnreachable) as caught:
            await webhooks.check(subscription)
        assert caught.value.details["reason"] == outcome


async def test_a_gigabyte_in_answer_is_cut() -> None:
    """A receiver that answers 200 and then a gigabyte has accepted the event; 2 KiB of the answer are kept."""
    async with sender() as webhooks, receiver(gigabyte()) as there:
        subscription = make_subscription(there.url)
        sent = await webhooks.send(subscription, make_owed(subscription))
        assert (sent.delivered, len(sent.answer)) == (True, 2048)


async def test_an_endpoint_that_is_no_longer_allowed() -> None:
    """Where the operator's rules became stricter, an attempt fails without connecting."""
    async with receiver() as there:
        subscription = make_subscription(there.url)
        for rules, outcome in (
            (Rules.of(["127.0.0.0/8"], allow_http=False), "refused-scheme"),
            (Rules(allow_http=True), "forbidden-address"),
        ):
            async with sender(rules) as webhooks:
                sent = await webhooks.send(subscription, make_owed(subscription))
                assert (sent.delivered, sent.outcome) == (False, outcome)
        assert there.connections == 0


async def check_with(there: Receiver, handshake: str, **parameters: str) -> TerminalStatusError | None:
    """The error of this endpoint's check."""
    async with sender(total_s=1) as webhooks:
        try:
            await webhooks.check(make_subscription(there.url, parameters={"handshake": handshake, **parameters}))
        except TerminalStatusError as error:
            return error
    return None


async def test_the_check_by_a_signed_test_event() -> None:
    """The default where secrets are named: the endpoint must answer 2xx to a test event, signed like all others."""
    async with receiver(answer(200)) as there:
        assert await check_with(there, "test", secrets=SECRET) is None
        assert verified(there.requests[0])["type"] == "org.terminalstatus.v1.sink-test"
        there.behave = answer(401)
        assert isinstance(await check_with(there, "test"), SinkUnreachable)


async def test_the_check_where_the_gateway_makes_the_secret(tmp_path: Path) -> None:
    """Where the gateway makes the secret, the receiver does not know it yet: the endpoint is checked by a connection,
    unless a handshake is named. With the handshake TEST, a refusal says what to do."""
    database = await new_database(tmp_path)
    async with (
        sender() as webhooks,
        receiver(answer(401)) as there,
        run_core(database, senders={SinkKind.WEBHOOK: webhooks}) as core,
    ):
        for profile in ("", "v1"):
            sink = Sink(kind=SinkKind.WEBHOOK, url=there.url, profile=profile)
            assert made_secret(await core.subscribe(ALICE, sink=sink))
            assert there.requests == []
            with pytest.raises(
                SinkUnreachable, match=r"http-401.*`secrets` of your own, or choose the handshake `NONE`"
            ):
                await core.subscribe(ALICE, sink=replace(sink, parameters={"handshake": "test"}))
            there.requests.clear()
        with pytest.raises(SinkUnreachable) as caught:
            await core.subscribe(ALICE, sink=replace(sink, parameters={"secrets": SECRET}))
        assert str(caught.value) == "The sink failed its test: http-401."
        assert verified(there.requests[0])["type"] == "org.terminalstatus.v1.sink-test"


def test_the_handshake_that_rest_takes_where_none_is_named() -> None:
    """REST's default handshake is TEST only where secrets are named."""
    for asked, handshake in (
        ({}, SinkHandshake.NONE),
        ({"secrets": []}, SinkHandshake.NONE),
        ({"secrets": [SECRET]}, SinkHandshake.TEST),
        ({"handshake": "TEST"}, SinkHandshake.TEST),
        ({"secrets": [SECRET], "handshake": "OPTIONS"}, SinkHandshake.OPTIONS),
    ):
        sink = WebhookSinkRequest.model_validate({"kind": "WEBHOOK", "uri": "https://example.com", **asked})
        assert sink.handshake is handshake


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        (answer(200, {"WebHook-Allowed-Origin": "*"}), None),
        (answer(204, {"webhook-allowed-origin": "Terminal-Status-Gateway", "WebHook-Allowed-Rate": "100"}), None),
        (answer(200, {"WebHook-Allowed-Origin": "other.example"}), SinkRefused),
        (answer(200), SinkRefused),
        (answer(405), SinkUnreachable),
        (answer(302, {"WebHook-Allowed-Origin": "*", "Location": "/"}), SinkUnreachable),
        (reset, SinkUnreachable),
    ],
)
async def test_the_check_by_cloudevents_handshake(behaviour: Behaviour, error: type[Exception] | None) -> None:
    """OPTIONS with WebHook-Request-Origin must be answered 2xx, with that origin or any origin allowed."""
    async with receiver(behaviour) as there:
        raised = await check_with(there, "options", token=TOKEN)
        assert type(raised) is (type(None) if error is None else error)
        request = there.requests[0]
        assert request.method == "OPTIONS"
        assert request.headers["webhook-request-origin"] == "terminal-status-gateway"
        assert "authorization" not in request.headers


async def test_the_check_of_the_address_alone() -> None:
    """Without a handshake a connection is enough; nothing is sent over it, not even an access token."""
    async with receiver(answer(405)) as there:
        assert await check_with(there, "none", token=TOKEN) is None
        await there.wait_for(lambda: there.connections == 1)
        assert there.requests == []
    assert isinstance(await check_with(there, "none"), SinkUnreachable)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://127.0.0.1/", "forbidden-address"),
        ("https://169.254.169.254/latest/meta-data/", "forbidden-address"),
        ("https://[::1]/", "forbidden-address"),
        ("https://10.0.0.1/", "forbidden-address"),
        ("https://localhost/", "forbidden-address"),
        ("https://2130706433/", "host"),
        ("https://0177.0.0.1/", "host"),
        ("https://user:pw@example.com/", "credentials"),
        ("http://example.com/", "scheme"),
        ("ftp://example.com/", "scheme"),
    ],
)
async def test_endpoints_that_no_subscription_may_have(url: str, reason: str) -> None:
    """Loopback, link-local, private, unusual notations, credentials and other schemes are refused at the creation."""
    async with sender(Rules()) as webhooks:
        with pytest.raises(SinkRefused) as caught:
            await webhooks.check(make_subscription(url))
        assert caught.value.details["reason"] == reason


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"secrets": "whsec_short"}, "secret"),
        ({"secrets": "whsec_" + "A" * 20}, "secret"),
        ({"secrets": f"{SECRET} {SECRET} {SECRET}"}, "secret"),
        ({"secrets": "whsec_é"}, "secret"),
        ({"token": "two words"}, "token"),
        ({"token": "a\r\nX-Injected: b"}, "token"),
        ({"token": "a" * 5000}, "token"),
        ({"token": "a", "token_expires_at": "soon"}, "token"),
        ({"token": "a", "token_expires_at": "2036-01-02T03:04:05"}, "token"),
        ({"handshake": "firm"}, "handshake"),
        ({"access_token": "abc"}, "parameter"),
        ({"secret": SECRET}, "parameter"),
    ],
)
async def test_parameters_that_are_wrong(parameters: Mapping[str, str], reason: str) -> None:
    """An unusable secret, token, time or handshake is refused at the creation; the message does not repeat a secret or
    token."""
    async with sender() as webhooks, receiver() as there:
        with pytest.raises(SinkRefused) as caught:
            await webhooks.check(make_subscription(there.url, parameters=parameters))
        assert caught.value.details == {"reason": reason}
        assert not any(
            value in str(caught.value)
            for key, value in parameters.items()
            if key in {"secrets", "token"} and len(value) > 1
        )
        assert there.connections == 0


async def test_parameters_that_are_misspelt_are_named() -> None:
    """Parameters that profile v1 does not have are refused, with their names and the valid ones. Parameters of the
    gateway itself and of other profiles are left alone."""
    async with sender() as webhooks, receiver(answer(200)) as there:
        wrong = make_subscription(there.url, parameters={"handshake": "none", "secret": "a", "access_token": "b"})
        with pytest.raises(SinkRefused) as caught:
            await webhooks.check(wrong)
        assert str(caught.value) == (
            "The sink parameters 'access_token', 'secret' do not exist; "
            "the parameters are secrets, token, token_expires_at, handshake."
        )
        kept = {"secrets": SECRET, "token": TOKEN, "token_expires_at": "9999-12-31T00:00:00Z", "handshake": "none"}
        await webhooks.check(make_subscription(there.url, parameters={**kept, "made": "x", "request": "x"}))
        await webhooks.check(make_subscription(there.url, profile="other", parameters={"type": "x"}))


async def test_a_profile_that_is_none() -> None:
    """An unknown profile is refused."""
    async with sender() as webhooks:
        with pytest.raises(SinkRefused):
            await webhooks.check(make_subscription(profile="unheard"))
