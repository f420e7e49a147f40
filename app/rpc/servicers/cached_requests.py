"""Requests of GetStatus, parsed once, each with its last response.

Applications repeat the same request, and a watched terminal's status is the same object until it changes. So a request
is parsed once, and a response serialised once.
"""

from google.protobuf.message import DecodeError

from app.domain.bounded import BoundedDict
from app.domain.errors import InvalidRequest
from app.domain.records import MAX_REQUESTER
from app.domain.statuses import TerminalStatus
from app.pb.terminalstatus.v1 import terminal_status_pb2 as pb
from app.rpc import request_fields, response_messages

MAX_CACHED_REQUESTS = 10_000
MAX_CACHED_BYTES = 500
"""Longer requests are not cached."""


class CachedRequest:
    """A parsed GetStatusRequest with the last response to it."""

    __slots__ = ("_response", "_status", "address", "max_age_s", "requester")

    def __init__(self, data: bytes) -> None:
        """Raises InvalidRequest."""
        try:
            request = pb.GetStatusRequest.FromString(data)
        except DecodeError:
            raise InvalidRequest("The message does not parse as a GetStatusRequest.") from None
        self.address = request.address
        self.max_age_s = request_fields.max_age_s(request)
        self.requester = request_fields.bounded(request.requester, MAX_REQUESTER, "requester")
        self._status: TerminalStatus | None = None
        self._response = b""

    def response(self, status: TerminalStatus) -> bytes:
        """The serialised GetStatusResponse with this status."""
        if self._status is not status:
            message = pb.GetStatusResponse(status=response_messages.terminal_status(status))
            self._response = message.SerializeToString()
            self._status = status
        return self._response


def cached_request(cache: BoundedDict[bytes, CachedRequest], data: bytes) -> CachedRequest:
    """The request parsed from `data`; cached, unless it is longer than MAX_CACHED_BYTES. Raises InvalidRequest."""
    request = cache.get(data)
    if request is None:
        request = CachedRequest(data)
        if len(data) <= MAX_CACHED_BYTES:
            cache[data] = request
    return request
