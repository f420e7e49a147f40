"""The gRPC face: the services of `proto/`, `grpc.health.v1` and reflection.

`server.py` builds the server, on one of the two engines of `engines.py`. A call passes through `call_admission.py`
(with the limits of `call_limits.py` and the authentication of `callers.py`) to its servicer in `servicers/`, which
reads the request with `request_fields.py`, calls one use case of `core/`, and builds the response with
`response_messages.py`. `open_calls.py` ends calls that fail, with the status that `errors.py` gives each error.
`connection_limits.py` limits connections, and blocks addresses that flood the port.

Invariants: a servicer only checks fields, calls, converts and returns. Every failure that gRPC does not answer by
itself carries a `google.rpc.Status` whose `ErrorInfo.reason` is the domain error's code. If the caller cancels, or its
deadline passes, the servicer's method is cancelled, and with it its share of a fetch.

Deliberately absent: interceptors (each costs every call), business rules, and the port with its TLS (`app/servers.py`).
"""

from app.core.use_cases import UseCases
from app.rpc.call_limits import CallLimits
from app.rpc.connection_limits import enforce_connection_limits
from app.rpc.engines import EngineServer, GrpcEngine
from app.rpc.errors import CODES, ERROR_DOMAIN
from app.rpc.server import MAX_REQUEST_BYTES, SERVICE_NAMES, create_server
from app.rpc.servicers.terminal_status import SERVICE_NAME

__all__ = (
    "CODES",
    "ERROR_DOMAIN",
    "MAX_REQUEST_BYTES",
    "SERVICE_NAME",
    "SERVICE_NAMES",
    "CallLimits",
    "EngineServer",
    "GrpcEngine",
    "UseCases",
    "create_server",
    "enforce_connection_limits",
)
