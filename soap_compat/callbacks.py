"""Calls applications back: an owed notification -> statusNotification, statusError or statusEnd at their endpoint.

Invariants: a call is in the version in which its notification was started, with the application's own correlator, and
with its own spelling of the addresses that it named. A SOAP fault is a failed attempt, whatever its HTTP status; 410 is
one too, for the contract knows no endpoint that wants nothing more. What the contract has no message for (that it has
started, or was ended by the application) is not sent. A fault is looked for in the first MAX_ANSWER bytes of an answer.

Deliberately absent: retries and order (`app.delivery.deliverer`), connections and their limits (`app.egress.client`),
and what is owed (`app.live.rules`). Whatever else the application answers: the contract's response is empty.
"""

from dataclasses import replace
from typing import Final

from app.domain.errors import SinkRefused
from app.domain.records import NotificationKind, OwedNotification, Subscription
from app.domain.sinks import EndReason
from app.egress.client import MAX_ANSWER, Egress
from app.ports import Sent
from soap_compat import writing
from soap_compat.envelope import has_fault
from soap_compat.faults import reason_for
from soap_compat.schema import STATUS_WORDS, WRITTEN, written
from soap_compat.versions import callback_namespace

HEADERS: Final = {"Content-Type": "text/xml; charset=utf-8", "SOAPAction": '""'}
SOAP_FAULT: Final = "soap-fault"
"""The outcome of an attempt that was answered by a fault with status 200."""

_COMPLETE: Final = {EndReason.EXPIRED.name, EndReason.COUNT_REACHED.name}


def callback(subscription: Subscription, notification: OwedNotification) -> bytes | None:
    """The envelope; None where the contract has no message for the notification."""
    correlator = writing.text_part("correlator", subscription.correlator)
    spelling = written(subscription.sink.parameters.get(WRITTEN, ""))
    namespace = callback_namespace(subscription.sink.profile)
    match notification.kind:
        case NotificationKind.STATUS:
            changes = [
                writing.status_part(
                    "terminalStatus", spelling.get(change.address, change.address), STATUS_WORDS[change.status]
                )
                for change in notification.changes
            ]
            return writing.message(namespace, "statusNotification", correlator + "".join(changes))
        case NotificationKind.ERROR:
            about = _address(subscription, notification)
            about = spelling.get(about, about)
            address = writing.text_part("address", about) if notification.address else ""
            reason = writing.error_part("reason", reason_for(notification.code, about))
            return writing.message(namespace, "statusError", correlator + address + reason)
        case NotificationKind.ENDED if notification.code in _COMPLETE:
            return writing.message(namespace, "statusEnd", correlator)
        case _:
            return None


def _address(subscription: Subscription, notification: OwedNotification) -> str:
    """The terminal that an error is about, where it is known."""
    return notification.address or (subscription.addresses[0] if len(subscription.addresses) == 1 else "")


class CallbackSender:
    """The `Sender` for SinkKind.SOAP."""

    def __init__(self, egress: Egress) -> None:
        self._egress = egress

    async def check(self, subscription: Subscription) -> None:
        """Whether the endpoint may be used, can be resolved and accepts a connection. Nothing is sent to it.

        Raises SinkRefused, SinkUnreachable.
        """
        await self._egress.connect(subscription.sink.url)

    async def send(self, subscription: Subscription, notification: OwedNotification) -> Sent:
        """One attempt."""
        body = callback(subscription, notification)
        if body is None:
            return Sent(delivered=True, outcome="not-told")
        try:
            reply = await self._egress.request("POST", subscription.sink.url, HEADERS, body, keep=MAX_ANSWER)
        except SinkRefused as refused:  # the operator's rules are stricter now than when it was made
            return Sent(delivered=False, outcome=f"refused-{refused.details['reason']}")
        sent = reply.as_sent()
        if sent.gone:
            return replace(sent, gone=False)
        if sent.delivered and has_fault(reply.body):
            return replace(sent, delivered=False, outcome=SOAP_FAULT)
        return sent
