"""Subscriptions of applications: made, shown, prolonged and ended. (Signatures first; the body follows.)"""

from collections.abc import Sequence
from dataclasses import dataclass

from app.domain import Status
from app.ports import Page
from app.records import Client, Sink, SinkKind, Subscription

NO_SINK = Sink(kind=SinkKind.STREAM)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionRequest:
    """What an application asks for; as the fields of `Subscription` of the same names."""

    addresses: Sequence[str]
    criteria: frozenset[Status] = frozenset()
    check_immediate: bool = False
    min_interval_ms: int = 0
    """0 is the policy's least."""
    duration_ms: int | None = None
    """None and 0 are the policy's default."""
    count: int = 0
    """0 is unlimited."""
    sink: Sink = NO_SINK
    correlator: str = ""
    request_id: str = ""


class SubscriptionService:
    """Makes, shows, prolongs and ends subscriptions. One per process."""

    async def create(
        self, client: Client, request: SubscriptionRequest, *, face: str, requester: str = ""
    ) -> Subscription:
        """Starts a subscription, or returns the one that was made with the same `request_id`.

        Raises BusyNotSupported, CountTooLarge, DuplicateCorrelator, DurationTooLong, GroupNotAllowed, GroupUnknown,
        IntervalTooShort, InvalidAddress, InvalidRequest, NestedGroupNotAllowed, NoValidAddresses, RateLimited,
        RequestIdReused, SinkRefused, SinkUnreachable, StoreUnavailable, TooManyAddresses, TooManySubscriptions,
        UnlimitedCountNotAllowed.
        """
        raise NotImplementedError

    async def get(self, client: Client, subscription_id: str) -> Subscription:
        """One of the client's subscriptions, an ended one for as long as it is kept. Raises RateLimited,
        StoreUnavailable, SubscriptionUnknown."""
        raise NotImplementedError

    async def list(self, client: Client, page: Page, *, active_only: bool = True) -> tuple[list[Subscription], str]:
        """The client's (an admin: everybody's) subscriptions, oldest first, and the next page's token.

        Raises InvalidRequest (the token), RateLimited, StoreUnavailable.
        """
        raise NotImplementedError

    async def cancel(self, client: Client, subscription_id: str, *, face: str, requester: str = "") -> None:
        """Ends a subscription; what is owed already is still delivered. Raises RateLimited, StoreUnavailable,
        SubscriptionUnknown (also where it has ended)."""
        raise NotImplementedError

    async def cancel_by_correlator(self, client: Client, correlator: str, *, face: str, requester: str = "") -> None:
        """As `cancel`, by the name that the application gave it."""
        raise NotImplementedError

    async def renew(self, client: Client, subscription_id: str, duration_ms: int) -> Subscription:
        """Lets an active subscription last for a new duration from now (0: the policy's default).

        Raises DurationTooLong, InvalidRequest, RateLimited, StoreUnavailable, SubscriptionUnknown.
        """
        raise NotImplementedError

    async def delete_client(self, client_id: str) -> None:
        """Deletes a client with its keys and groups, ends its subscriptions and its streams.

        Raises ClientUnknown, StoreUnavailable.
        """
        raise NotImplementedError

    def ended(self, subscription_id: str) -> None:
        """Says that delivery has ended the subscription in the store (SINK_GONE, TOKEN_EXPIRED)."""
        raise NotImplementedError
