"""All use cases of one gateway, for its faces."""

from dataclasses import dataclass

from app.auth.authenticator import Authenticator
from app.auth.clients import ClientRegistry
from app.auth.policies import Policies
from app.core.administration import Administration
from app.core.deliveries import Deliveries
from app.core.groups import GroupService
from app.core.queries import QueryService
from app.core.streams import StreamService
from app.core.subscription_changes import SubscriptionChanges
from app.core.subscriptions import SubscriptionService
from app.core.tickets import Tickets
from app.core.usage import UsageLog
from app.live.engine import Engine
from app.live.registry import TerminalRegistry


@dataclass(frozen=True, slots=True, kw_only=True)
class UseCases:
    """The use cases, made by `wiring.py`. `engine` and `registry` are there for metrics."""

    auth: Authenticator
    queries: QueryService
    streams: StreamService
    subscriptions: SubscriptionService
    subscription_changes: SubscriptionChanges
    groups: GroupService
    deliveries: Deliveries
    usage: UsageLog
    clients: ClientRegistry
    administration: Administration
    tickets: Tickets
    policies: Policies
    engine: Engine
    registry: TerminalRegistry
