"""Fetches an OpenID provider's JWK set over HTTPS, for `auth/oidc.py`, which parses and remembers it.

Invariants: time and size are bounded; redirects and the environment's proxies are not used.
"""

import aiohttp

TIMEOUT_S = 5.0
MAX_BYTES = 256 * 1024


async def fetch_keys(url: str) -> bytes:
    """The document at `url`. Raises OSError."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=False) as session,
            session.get(url, allow_redirects=False, headers={"Accept": "application/json"}) as response,
        ):
            if response.status != 200:
                raise OSError(f"{url} answered {response.status}")
            document = await response.content.read(MAX_BYTES + 1)
            while len(document) <= MAX_BYTES and (more := await response.content.read(MAX_BYTES + 1 - len(document))):
                document += more
    except (aiohttp.ClientError, TimeoutError) as error:
        raise OSError(f"{url} cannot be fetched: {str(error) or type(error).__name__}") from None
    if len(document) > MAX_BYTES:
        raise OSError(f"{url} answered with more than {MAX_BYTES} bytes")
    return document
