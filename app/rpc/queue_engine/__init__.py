"""A gRPC server on grpcio's completion queue, answered from the event loop.

`grpc.aio` spends about 200 µs of CPU on a call, most of it in its own Python. This server uses the same C core below it
(`grpc._cython.cygrpc`, as `grpc._server` does) and costs a third of that. It has the part of `grpc.aio.Server` that the
gateway uses, and its calls the same part of `grpc.aio.ServicerContext`: servicers do not know which of the two serves
them.

Two threads. The poller (`poller.py`) waits for the core's events and queues them; the event loop does everything else,
for all queued events in one pass (`server.py` starts calls, `call.py` is one call). Only the flags of a call's write
are shared by both threads. `requirements.py` checks at start that the installed grpcio has what this package uses.

- A deadline is kept by the core: when it passes, the core cancels the call, as if the client had cancelled it.
- When a client cancels, or its connection breaks, the core's close event cancels the task of the call
  (`QueueCall.on_closed`).
- `QueueCall.write` sends the next message of a stream. One message is in flight; the next write waits for it.
- `QueueServer.stop` waits for the calls in progress, at most for its grace. Then the core cancels them, and `stop`
  waits for their tasks and for the poller.

Deliberately absent: authentication and limits (`app/rpc/call_admission.py`), interceptors, and requests that are not
read as streams.
"""

from app.rpc.queue_engine.requirements import missing_requirements
from app.rpc.queue_engine.server import QueueServer

__all__ = ("QueueServer", "missing_requirements")
