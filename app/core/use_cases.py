"""The use cases of one gateway: what the faces call."""

from dataclasses import dataclass

from app.auth.authenticator import Authenticator
from app.core.administration import Administration
from app.core.deliveries import Deliveries
from app.core.groups import GroupService
from app.core.queries import QueryService
from app.core.subscriptions import SubscriptionService
from app.core.usage import UsageLog
from app.live.engine import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class UseCases:
    """What the faces call."""

    auth: Authenticator
    queries: QueryService
    watching: Engine
    subscriptions: SubscriptionService
    groups: GroupService
    deliveries: Deliveries
    usage: UsageLog
    administration: Administration
