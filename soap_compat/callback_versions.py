"""Which version of the callbacks each endpoint knows, where its faults have shown that the assumed version is wrong.

Published drops of the contract differ in the version of the callback's namespace, and startNotification does not name
the version. Invariants: at most MAX_ENDPOINTS endpoints are remembered, those used last. An endpoint that knows neither
version is asked in the other one at most once in TRY_AGAIN_S.

Deliberately absent: a stored memory. After a restart the first callback to an endpoint costs one more request.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from soap_compat.versions import other_version

MAX_ENDPOINTS: Final = 4096
TRY_AGAIN_S: Final = 600.0
"""How long the other version is not tried after it was tried in vain."""


@dataclass(slots=True)
class _Endpoint:
    version: str
    in_vain_until_s: float = 0.0


class CallbackVersions:
    """What is remembered of endpoints, by URL and the version that is assumed for it. `clock_s` never goes back."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._endpoints: OrderedDict[tuple[str, str], _Endpoint] = OrderedDict()

    def of(self, url: str, assumed: str) -> str:
        """The version to send."""
        known = self._endpoints.get((url, assumed))
        if known is None:
            return assumed
        self._endpoints.move_to_end((url, assumed))
        return known.version

    def to_try(self, url: str, assumed: str) -> str | None:
        """The version to try after a fault in the version `of`; None if it was tried in vain a short time ago."""
        known = self._endpoints.get((url, assumed))
        if known is not None and self._clock_s() < known.in_vain_until_s:
            return None
        return other_version(self.of(url, assumed))

    def understood(self, url: str, assumed: str, version: str) -> None:
        """The endpoint knows `version`, and not the one that was sent before."""
        self._remember(url, assumed, _Endpoint(version))

    def not_understood(self, url: str, assumed: str) -> None:
        """The endpoint knows neither version."""
        version = self.of(url, assumed)
        self._remember(url, assumed, _Endpoint(version, self._clock_s() + TRY_AGAIN_S))

    def _remember(self, url: str, assumed: str, endpoint: _Endpoint) -> None:
        self._endpoints[url, assumed] = endpoint
        self._endpoints.move_to_end((url, assumed))
        if len(self._endpoints) > MAX_ENDPOINTS:
            self._endpoints.popitem(last=False)
