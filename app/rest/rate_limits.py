"""The headers `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-10) on answers to a client whose
calls are limited. The headers of earlier drafts (`RateLimit-Remaining`, …) and `X-RateLimit-…` are left out."""

import math
from typing import Any

from app.auth.policies import Policies
from app.domain.records import Client

QUOTA = "calls"
"""The name of the quota in both headers."""

DOCUMENTED: dict[str, dict[str, Any]] = {
    "RateLimit-Policy": {
        "description": f'The limit of the client\'s calls: `"{QUOTA}";q=20;w=2` permits 20 calls at once (`q`), which '
        "are all available again after 2 seconds without a call (`w`). Absent if the client's calls are not limited.",
        "schema": {"type": "string"},
    },
    "RateLimit": {
        "description": f'What is left after this call: `"{QUOTA}";r=5;t=2` means 5 calls (`r`), and all of them after '
        "2 seconds without a call (`t`). A query counts once per terminal. Absent if the client's calls are not "
        "limited.",
        "schema": {"type": "string"},
    },
}
"""The headers as OpenAPI documents have them."""


def headers_of(policies: Policies, client: Client) -> list[tuple[bytes, bytes]]:
    """Returns the headers; none if the client's calls are not limited, or it has made no call that counts."""
    quota = policies.quota(client)
    if quota is None:
        return []
    full_in_s, window_s = math.ceil(quota.full_in_s), math.ceil(quota.window_s)
    return [
        (b"ratelimit-policy", f'"{QUOTA}";q={quota.calls};w={window_s}'.encode()),
        (b"ratelimit", f'"{QUOTA}";r={quota.left};t={full_in_s}'.encode()),
    ]
