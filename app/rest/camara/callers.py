"""What CAMARA's operations do around their use cases: who calls, with which scopes, and about which device.

Invariants: every question, start and end leaves a usage record, refused ones too. An API key, a certificate or an
access token without a device is two-legged; a device must then be named in the request, and must not where the access
token names it. An access token needs the operation's scope.

Deliberately absent: which claim names the device (`oidc.py`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, cast

from fastapi import Depends, Header, Request
from starlette.types import Scope

from app.auth.authenticator import KEY_PREFIX, asgi_authorization
from app.auth.oidc import Grant
from app.core.usage import Caller
from app.core.use_cases import UseCases
from app.domain.addresses import TerminalAddress
from app.domain.errors import InvalidAddress, RateLimited, TerminalStatusError
from app.domain.records import Client
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
from app.rest.middleware import CORRELATOR_PATTERN
from app.rest.operation import CLIENT, Operation

FACE = "camara"


@dataclass(frozen=True, slots=True, kw_only=True)
class CamaraDependencies:
    """What the operations need."""

    use_cases: UseCases
    number_pattern: str
    """As `camara.identify` takes it."""
    grant: Callable[[str], Grant] | None
    """What an access token that was found good grants; None where none are taken."""
    clock: Callable[[], datetime]
    """Gives the time in UTC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CamaraCaller:
    """Who calls, and what its access token says, if it has one."""

    client: Client
    grant: Grant | None


class CamaraOperation(Operation):
    """A route that looks itself at what an access token grants."""

    confined_tokens = True


def caller_with(api: CamaraDependencies, scope: str = "") -> Any:
    """A handler's parameter: a caller that may use an operation of this scope (`API:what`; empty: any)."""

    async def dependency(
        request: Request,
        x_correlator: Annotated[  # documentation; `Around` sees to it
            str, Header(max_length=256, pattern=CORRELATOR_PATTERN, description="Correlation id; comes back as it was.")
        ] = "",
    ) -> CamaraCaller:
        client = cast("Client", request.scope[CLIENT])
        caller = CamaraCaller(client=client, grant=_grant(api, request.scope))
        if scope:
            require(caller, scope)
        return caller

    return Depends(dependency)


def require(caller: CamaraCaller, scope: str) -> None:
    """Raises CamaraError where the caller has an access token without this scope, or its API's name for all of it."""
    if caller.grant is not None and not {scope, scope.partition(":")[0]} & caller.grant.scopes:
        raise CamaraError(PERMISSION_DENIED, f"The access token lacks the scope {scope}.")


def _grant(api: CamaraDependencies, scope: Scope) -> Grant | None:
    scheme, _, token = asgi_authorization(scope).partition(" ")
    token = token.strip()
    if api.grant is None or scheme.lower() != "bearer" or token.startswith(KEY_PREFIX):
        return None
    return api.grant(token)


@contextmanager
def recorded(api: CamaraDependencies, caller: CamaraCaller, operation: str) -> Iterator[None]:
    """Leaves the usage record of an operation that is refused before its use case is asked, which leaves its own."""
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
    """The terminal that the caller's access token is about; None for a two-legged one. Raises InvalidAddress."""
    if caller.grant is None or not caller.grant.device:
        return None
    try:
        return devices.device_of_token(caller.grant.device, api.number_pattern)
    except InvalidAddress:  # its message quotes the identifier
        raise InvalidAddress("The access token names a device by what is no address of a terminal.") from None


def identified(api: CamaraDependencies, caller: CamaraCaller, device: Device | None) -> IdentifiedDevice:
    """The device that a request is about, by CAMARA's token rule. Raises CamaraError, InvalidAddress."""
    found = _identified(api, caller, device)
    if api.use_cases.groups.is_group(caller.client.id, found.address):
        raise CamaraError(SERVICE_NOT_APPLICABLE, "This is a group of terminals, and no device.")
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
        raise CamaraError(UNSUPPORTED_IDENTIFIER, "Name the device by phoneNumber or networkAccessIdentifier.")
    return found
