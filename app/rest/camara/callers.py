"""The caller of a CAMARA operation: its client, its access token's scopes, and the device that the call is about.

Invariants: every query, start and end of a subscription leaves a usage record, also if refused. API keys, certificates
and access tokens without a device are two-legged: the request must identify the device. A three-legged access token
identifies it, and the request must not. An access token needs the operation's scope.

Deliberately absent: the claim that names the device (`auth/oidc.py`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, cast

from fastapi import Depends, Header, Request
from starlette.types import Scope

from app.auth.credentials import KEY_PREFIX, asgi_authorization
from app.auth.oidc import Grant
from app.core.usage import Caller
from app.core.use_cases import UseCases
from app.domain.addresses import TerminalAddress
from app.domain.errors import InvalidAddress, RateLimited, TerminalStatusError
from app.domain.operations import Face, UsageOperation
from app.domain.records import Client
from app.domain.x_correlator import MAX_X_CORRELATOR, PATTERN
from app.rest.camara import devices
from app.rest.camara.devices import IdentifiedDevice
from app.rest.camara.errors import (
    MISSING_IDENTIFIER,
    PERMISSION_DENIED,
    SERVICE_NOT_APPLICABLE,
    UNNECESSARY_IDENTIFIER,
    UNSUPPORTED_IDENTIFIER,
    CamaraError,
)
from app.rest.camara.schemas import Device
from app.rest.operation import CLIENT, Operation

FACE = Face.CAMARA
OPEN_ID = "openId"
SINK_BEARER = "notificationsBearerAuth"
"""The names of CAMARA's security schemes: OpenID Connect for calls, and a sink's access token for events."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CamaraDependencies:
    """What CAMARA's operations are built with."""

    use_cases: UseCases
    number_pattern: str
    """As `devices.identify` takes it."""
    grant: Callable[[str], Grant] | None
    """Returns what a valid access token grants; None if access tokens are not accepted."""
    clock: Callable[[], datetime]
    """Returns the time in UTC."""
    issuer: str
    """The issuer of access tokens, for the documents; empty if unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CamaraCaller:
    """The client that calls, and what its access token grants, if it sent one."""

    client: Client
    grant: Grant | None


class CamaraOperation(Operation):
    """A route whose handler checks the access token's scopes and device itself."""

    confined_tokens = True


def caller_with(api: CamaraDependencies, scope: str = "") -> Any:
    """Returns a handler's parameter: the caller, which needs this scope (`API:action`; empty: none)."""

    async def dependency(
        request: Request,
        x_correlator: Annotated[  # documentation only: the middleware handles it
            str, Header(max_length=MAX_X_CORRELATOR, pattern=PATTERN, description="Correlation id of the call.")
        ] = "",
    ) -> CamaraCaller:
        client = cast("Client", request.scope[CLIENT])
        caller = CamaraCaller(client=client, grant=_grant(api, request.scope))
        if scope:
            require(caller, scope)
        return caller

    return Depends(dependency)


def scopes(*names: str) -> dict[str, Any]:
    """Returns FastAPI's `openapi_extra` for an operation whose access tokens need one of these scopes."""
    return {"security": [{OPEN_ID: [*names]}, {"bearer": []}]}


def require(caller: CamaraCaller, scope: str) -> None:
    """Raises CamaraError for an access token that has neither this scope nor the API's name, which means all scopes."""
    if caller.grant is not None and not {scope, scope.partition(":")[0]} & caller.grant.scopes:
        raise CamaraError(PERMISSION_DENIED, f"The access token lacks the scope {scope}.", scope=scope)


def _grant(api: CamaraDependencies, scope: Scope) -> Grant | None:
    scheme, _, token = asgi_authorization(scope).partition(" ")
    token = token.strip()
    if api.grant is None or scheme.lower() != "bearer" or token.startswith(KEY_PREFIX):
        return None
    return api.grant(token)


@contextmanager
def recorded(api: CamaraDependencies, caller: CamaraCaller, operation: UsageOperation) -> Iterator[None]:
    """Writes the usage record of an operation that is refused before its use case runs; the use case writes its own."""
    try:
        yield
    except RateLimited:
        raise
    except (CamaraError, TerminalStatusError) as error:
        code = error.code[1] if isinstance(error, CamaraError) else error.code
        usage = api.use_cases.usage
        usage.record(usage.make(operation, Caller(client=caller.client, face=FACE), result=code, root_cause=str(error)))
        raise


def token_device(api: CamaraDependencies, caller: CamaraCaller) -> TerminalAddress | None:
    """Returns the terminal that the access token identifies; None for a two-legged caller. Raises InvalidAddress."""
    if caller.grant is None or not caller.grant.device:
        return None
    try:
        return devices.device_of_token(caller.grant.device, api.number_pattern)
    except InvalidAddress:  # its message quotes the identifier
        raise InvalidAddress(
            "The access token identifies a device by something that is not a terminal's address."
        ) from None


def identified(api: CamaraDependencies, caller: CamaraCaller, device: Device | None) -> IdentifiedDevice:
    """Returns the device of a request, by CAMARA's rules for tokens. Raises CamaraError, InvalidAddress."""
    found = _identified(api, caller, device)
    if api.use_cases.groups.is_group(caller.client.id, found.address):
        raise CamaraError(SERVICE_NOT_APPLICABLE, "The identifier names a group of terminals, not a device.")
    return found


def _identified(api: CamaraDependencies, caller: CamaraCaller, device: Device | None) -> IdentifiedDevice:
    of_token = token_device(api, caller)
    if of_token is not None:
        if device is not None:
            raise CamaraError(UNNECESSARY_IDENTIFIER, "The device is already identified by the access token.")
        return IdentifiedDevice(identifier={}, address=of_token)
    if device is None:
        raise CamaraError(MISSING_IDENTIFIER, "The device cannot be identified.")
    found = devices.identify(device.phoneNumber, device.networkAccessIdentifier, api.number_pattern)
    if found is None:
        raise CamaraError(UNSUPPORTED_IDENTIFIER, "Identify the device by phoneNumber or networkAccessIdentifier.")
    return found
