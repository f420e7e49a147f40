"""Sends owed notifications as callbacks: statusNotification, statusError or statusEnd at an application's endpoint.

Invariants: a user and password of the endpoint (HTTP Basic) are never logged, put into errors or stored, not even if
the answer repeats them. A callback has the application's correlator and spelling of addresses, and the version that
`versions.callback_version` assumes. If a fault says that the application does not know the element or its namespace,
the same attempt sends the callback once in the other version of the series, and the version that succeeds is
remembered for the endpoint (`callback_versions.py`). A SOAP fault is a failed attempt, whatever its HTTP status; so is
410, since the contract has no means to end callbacks by an answer. A fault is looked for in the first MAX_ANSWER bytes
of an answer; other contents are ignored, because the contract's response is empty. Notifications without a message in
the contract (the start of a subscription, and its end by the application) are not sent.

Deliberately absent: retries and order (`app.delivery.deliverer`), connections and their limits (`app.egress.client`),
and which notifications are owed (`app.live.rules`).
"""

import asyncio
import base64
import re
from dataclasses import replace
from typing import Final
from urllib.parse import urlsplit

import structlog

from app.domain.errors import InvalidAddress, SinkRefused
from app.domain.records import NotificationKind, OwedNotification, Subscription
from app.domain.sinks import SINK_BASIC, EndReason, is_callback_version
from app.egress.client import MAX_ANSWER, Egress, Reply
from app.ports.delivery import Sent, correlation
from soap_compat import envelope_writer
from soap_compat.address_spelling import any_uri, spelling_of
from soap_compat.callback_versions import CallbackVersions
from soap_compat.contract_types import STATUS_WORDS
from soap_compat.fault_detection import fault_text
from soap_compat.faults import reason_for
from soap_compat.versions import callback_namespace, callback_version

HEADERS: Final = {"Content-Type": "text/xml; charset=utf-8", "SOAPAction": '""'}
SOAP_FAULT: Final = "soap-fault"
"""The outcome of an attempt whose answer is a fault with HTTP status 200."""

_COMPLETE: Final = {EndReason.EXPIRED.name, EndReason.COUNT_REACHED.name}
_WRAPPER = re.compile(r"\bstatus(?:Notification|Error|End)\b")
_AXIS_CODE: Final = "Server.userException"
_AXIS_REASON: Final = "org.xml.sax.SAXException"
_log = structlog.get_logger(__name__)


def callback(subscription: Subscription, notification: OwedNotification, version: str = "") -> bytes | None:
    """The envelope, in `version` or else the assumed version; None if the contract has no message for the
    notification."""
    correlator = envelope_writer.text_part("correlator", subscription.correlator)
    spelling = spelling_of(subscription.sink.parameters)
    namespace = callback_namespace(version or callback_version(subscription.sink))
    match notification.kind:
        case NotificationKind.STATUS:
            changes = [
                envelope_writer.status_part(
                    "terminalStatus", spelling.get(change.address, change.address), STATUS_WORDS[change.status]
                )
                for change in notification.changes
            ]
            return envelope_writer.message(namespace, "statusNotification", correlator + "".join(changes))
        case NotificationKind.ERROR:
            terminal = _terminal_of_error(subscription, notification)
            terminal = spelling.get(
                terminal, any_uri(terminal) if notification.code == InvalidAddress.code else terminal
            )
            address = "" if notification.address is None else envelope_writer.text_part("address", terminal)
            reason = envelope_writer.error_part("reason", reason_for(notification.code, terminal))
            return envelope_writer.message(namespace, "statusError", correlator + address + reason)
        case NotificationKind.ENDED if notification.code in _COMPLETE:
            return envelope_writer.message(namespace, "statusEnd", correlator)
        case _:
            return None


def _terminal_of_error(subscription: Subscription, notification: OwedNotification) -> str:
    """The terminal that an error concerns; "" if it concerns several."""
    return notification.address or (subscription.addresses[0] if len(subscription.addresses) == 1 else "")


def is_not_understood(fault: str, version: str) -> bool:
    """Whether a fault (`fault_text`) says that the application does not know the callback's element or namespace.

    JAX-WS: "Cannot find dispatch method for {namespace}statusError". CXF: "Unexpected wrapper element {namespace}…".
    gSOAP and PHP name the element. Axis 1 reports only that its SAX parser met an element that it did not expect.
    """
    if callback_namespace(version) in fault or _WRAPPER.search(fault):
        return True
    return _AXIS_CODE in fault and _AXIS_REASON in fault


class CallbackSender:
    """The `Sender` of SinkKind.SOAP."""

    def __init__(self, egress: Egress, versions: CallbackVersions | None = None) -> None:
        self._egress = egress
        self._versions = versions or CallbackVersions()

    async def check(self, subscription: Subscription) -> None:
        """Checks that the endpoint is allowed and accepts a connection; sends nothing. Raises SinkRefused,
        SinkUnreachable."""
        if subscription.sink.profile and not is_callback_version(subscription.sink.profile):
            raise SinkRefused(
                "The callbacks' version must be one of Parlay X, such as v2_2; leave it out for the newest.",
                reason="version",
            )
        await self._egress.connect(subscription.sink.url)

    async def send(self, subscription: Subscription, notification: OwedNotification) -> Sent:
        """Makes one attempt."""
        url, assumed = subscription.sink.url, callback_version(subscription.sink)
        basic = subscription.sink.parameters.get(SINK_BASIC, "")
        version = self._versions.of(url, assumed)
        body = callback(subscription, notification, version)
        if body is None:
            return Sent(delivered=True, outcome="not-sent")
        due_s = asyncio.get_running_loop().time() + self._egress.total_s
        try:
            reply = await self._post(subscription, notification, body)
            fault = fault_text(reply.body)
            if fault is not None and is_not_understood(fault, version):
                other = self._versions.to_try(url, assumed)
                if other is not None:
                    again = await self._in_version(subscription, notification, other, due_s)
                    if again is not None:
                        reply, fault = again, fault_text(again.body)
        except SinkRefused as refused:  # the operator's rules have become stricter since the start
            return Sent(delivered=False, outcome=f"refused-{refused.details['reason']}")
        sent = _masked(reply, basic).as_sent()
        if sent.gone:
            return replace(sent, gone=False)
        if sent.delivered and fault is not None:
            return replace(sent, delivered=False, outcome=SOAP_FAULT)
        return sent

    async def _in_version(
        self, subscription: Subscription, notification: OwedNotification, version: str, due_s: float
    ) -> Reply | None:
        """Sends the callback in another version, in what is left of the attempt's time. Returns the answer unless it
        shows that the application does not know this version either. Only a success shows that the application knows
        it, and is remembered: an unclear fault would otherwise bind the endpoint to a version that it may not know."""
        url, assumed = subscription.sink.url, callback_version(subscription.sink)
        body = callback(subscription, notification, version)
        assert body is not None  # noqa: S101  # as in the first version
        try:
            async with asyncio.timeout_at(due_s):
                reply = await self._post(subscription, notification, body)
        except TimeoutError:
            return None
        if not reply.code:
            return None
        fault = fault_text(reply.body)
        if fault is not None:
            if is_not_understood(fault, version):
                self._versions.not_understood(url, assumed)
                return None
            return reply  # of the application itself, or of one that names neither element nor namespace
        if not 200 <= reply.code < 300:  # an HTTP error shows nothing about the version
            return None
        self._versions.understood(url, assumed, version)
        _log.info(
            "callback_version_learned",
            host=urlsplit(url).netloc,
            assumed=assumed,
            version=version,
            notification_id=notification.id,
            x_correlator=subscription.x_correlator,
        )
        return reply

    async def _post(self, subscription: Subscription, notification: OwedNotification, body: bytes) -> Reply:
        headers = {**HEADERS, **correlation(subscription), "webhook-id": notification.id}
        if basic := subscription.sink.parameters.get(SINK_BASIC, ""):
            headers["Authorization"] = f"Basic {_encoded(basic)}"
        return await self._egress.request("POST", subscription.sink.url, headers, body, keep=MAX_ANSWER)


def _encoded(basic: str) -> str:
    return base64.b64encode(basic.encode()).decode()


def _masked(reply: Reply, basic: str) -> Reply:
    """The answer without the user and password that it repeats."""
    if not basic:
        return reply
    body = reply.body
    for secret in filter(None, (_encoded(basic), basic, basic.partition(":")[2])):
        body = body.replace(secret.encode(), b"*" * len(secret.encode()))
    return replace(reply, body=body)
