"""The x-correlator of a gRPC call: read from the call's metadata, returned in its trailing metadata.

Success returns it only if the caller sent one, or a `traceparent`; every error returns it (`errors.py`).
"""

from app.domain import x_correlator
from app.rpc.callers import Context


def begin(context: Context) -> None:
    """The current task handles this call from now on."""
    sent = traceparent = ""
    for name, value in context.invocation_metadata() or ():
        if name == x_correlator.HEADER:
            sent = x_correlator.joined(sent, str(value))
        elif name == x_correlator.TRACE_HEADER:
            traceparent = x_correlator.joined(traceparent, str(value))
    call = x_correlator.read(sent, traceparent)
    x_correlator.begin(call)
    if call.sent or call.invalid:
        context.set_trailing_metadata(((x_correlator.HEADER, call.text),))
