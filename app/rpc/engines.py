"""The two engines that can serve gRPC, and the choice between them.

Deliberately absent: everything that is served; servicers and `call_admission.py` do not depend on the engine.
"""

from collections.abc import Sequence
from typing import Any, Literal, Protocol, cast

import grpc.aio
import structlog

from app.rpc.queue_engine import QueueServer, missing_requirements

GrpcEngine = Literal["queue", "aio"]
"""`queue` is grpcio's completion queue (`queue_engine/`), `aio` is `grpc.aio`."""

_log = structlog.get_logger(__name__)


class EngineServer(Protocol):
    """What both engines have: the part of `grpc.aio.Server` that the gateway uses."""

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[Any], /) -> None: ...

    def add_insecure_port(self, address: str, /) -> int:
        """Returns the bound port. Raises RuntimeError."""

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials, /) -> int:
        """Returns the bound port. Raises RuntimeError."""

    async def start(self) -> None: ...

    async def stop(self, grace: float | None, /) -> None:
        """Takes no more calls, waits `grace` seconds (None: not at all) for those in progress, then cancels them."""


def engine_server(engine: GrpcEngine, options: Sequence[tuple[str, Any]]) -> EngineServer:
    """A server of this engine, or of `aio` if the installed grpcio lacks what `queue` needs (logged).

    Call it in the event loop that is to run the server.
    """
    if engine == "queue":
        if not (missing := missing_requirements()):
            return QueueServer(options)
        _log.warning(
            "grpc_engine_unavailable",
            engine="queue",
            used="aio",
            grpcio=grpc.__version__,  # type: ignore[attr-defined, unused-ignore]
            missing=missing[:10],
            hint="install the locked grpcio; `aio` works as well, but each call costs it more CPU",
        )
    return cast("EngineServer", grpc.aio.server(options=options))
