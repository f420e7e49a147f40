"""Whether the installed grpcio has what this package uses of it.

`grpc._cython.cygrpc` is not public: its names have been the same for years, but a later version may change them. Each
is used once here, as the engine uses it.
"""

from types import ModuleType

from grpc._cython import cygrpc  # type: ignore[attr-defined, unused-ignore]  # its types lack it

_NAMES = {
    "Call": ("start_server_batch", "peer"),
    "CompletionQueue": ("poll", "shutdown"),
    "CompletionType": ("operation_complete",),
    "ReceiveCloseOnServerOperation": ("cancelled",),
    "ReceiveMessageOperation": ("message",),
    "RequestCallEvent": ("call", "call_details", "invocation_metadata", "success", "tag"),
    "BatchOperationEvent": ("batch_operations", "success", "tag"),
    "CallDetails": ("deadline", "method"),
    "Server": (
        "add_http2_port",
        "cancel_all_calls",
        "destroy",
        "register_completion_queue",
        "request_call",
        "shutdown",
        "start",
    ),
    "auth_context": (),
}


def missing_requirements(core: ModuleType = cygrpc) -> list[str]:
    """What is missing or has changed, a phrase each; empty if the engine can be used."""
    missing = []
    for name, members in _NAMES.items():
        if not hasattr(core, name):
            missing.append(f"{name} is missing")
            continue
        missing += [f"{name}.{member} is missing" for member in members if not hasattr(getattr(core, name), member)]
    if not missing:
        try:
            _use(core)
        except Exception as error:
            missing.append(f"{type(error).__name__}: {error}")
    return missing


def _use(core: ModuleType) -> None:
    """Makes each operation, and starts and stops a server without a port. Raises what a changed signature raises."""
    for operation in (
        core.SendInitialMetadataOperation(None, 0),
        core.SendInitialMetadataOperation((("name", "value"),), 0),
        core.SendMessageOperation(b"", 0),
        core.SendStatusFromServerOperation(None, 0, b"", 0),
        core.ReceiveMessageOperation(0),
        core.ReceiveCloseOnServerOperation(0),
    ):
        operation.type()
    queue, tags = core.CompletionQueue(), {"call", "stopped"}
    server = core.Server((("grpc.so_reuseport", 0),), False)
    server.register_completion_queue(queue)
    server.start()
    server.request_call(queue, queue, "call")
    server.shutdown(queue, "stopped")
    while tags:
        event = queue.poll()
        if event.completion_type != core.CompletionType.operation_complete:
            raise RuntimeError("the completion queue ended early")
        tags.discard(event.tag)
    server.destroy()
    queue.shutdown()
    if queue.poll().completion_type == core.CompletionType.operation_complete:
        raise RuntimeError("the completion queue has not ended")
