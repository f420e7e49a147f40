"""Sends owed notifications as callbacks: statusNotification, statusError or statusEnd at an application's endpoint.

Invariants: a callback has the version of the request that started the subscription, the application's correlator, and
the application's spelling of addresses. A SOAP fault is a failed attempt, whatever its HTTP status; so is 410, since
the contract has no means to end callbacks by an answer. A fault is looked for in the first MAX_ANSWER bytes of an
answer; other contents are ignored, because the contract's response is empty. Notifications without a message in the
contract (the start of a subscription, and its end by the application) are not sent.

Deliberately absent: retries and order (`app.delivery.deliverer`), connections and their limits (`app.egress.client`),
and which notifications are owed (`app.live.rules`).
"""

from dataclasses import replace
from typing import Final

from app.domain.errors import InvalidAddress, SinkRefused
from app.domain.records import NotificationKind, OwedNotification, Subscription
from app.domain.sinks import EndReason
from app.egress.client import MAX_ANSWER, Egress
from app.ports.delivery import Sent
from soap_compat import envelope_writer
from soap_compat.address_spelling import any_uri, spelling_of
from soap_compat.contract_types import STATUS_WORDS
from soap_compat.fault_detection import has_fault
from soap_compat.faults import reason_for
from soap_compat.versions import callback_namespace, is_version

HEADERS: Final = {"Content-Type": "text/xml; charset=utf-8", "SOAPAction": '""'}
SOAP_FAULT: Final = "soap-fault"
"""The outcome of an attempt whose answer is a fault with HTTP status 200."""

_COMPLETE: Final = {EndReason.EXPIRED.name, EndReason.COUNT_REACHED.name}


def callback(subscription: Subscription, notification: OwedNotification) -> bytes | None:
    """The envelope; None if the contract has no message for the notification."""
    correlator = envelope_writer.text_part("correlator", subscription.correlator)
    spelling = spelling_of(subscription.sink.parameters)
    namespace = callback_namespace(subscription.sink.profile)
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


class CallbackSender:
    """The `Sender` of SinkKind.SOAP."""

    def __init__(self, egress: Egress) -> None:
        self._egress = egress

    async def check(self, subscription: Subscription) -> None:
        """Checks that the endpoint is allowed and accepts a connection; sends nothing. Raises SinkRefused,
        SinkUnreachable."""
        if subscription.sink.profile and not is_version(subscription.sink.profile):
            raise SinkRefused(
                "The callbacks' version must be one of Parlay X, such as v2_2; leave it out for the newest.",
                reason="version",
            )
        await self._egress.connect(subscription.sink.url)

    async def send(self, subscription: Subscription, notification: OwedNotification) -> Sent:
        """Makes one attempt."""
        body = callback(subscription, notification)
        if body is None:
            return Sent(delivered=True, outcome="not-sent")
        try:
            reply = await self._egress.request("POST", subscription.sink.url, HEADERS, body, keep=MAX_ANSWER)
        except SinkRefused as refused:  # the operator's rules have become stricter since the start
            return Sent(delivered=False, outcome=f"refused-{refused.details['reason']}")
        sent = reply.as_sent()
        if sent.gone:
            return replace(sent, gone=False)
        if sent.delivered and has_fault(reply.body):
            return replace(sent, delivered=False, outcome=SOAP_FAULT)
        return sent
