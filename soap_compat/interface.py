"""One Parlay X interface on Spyne's core: a request's bytes -> the answer's bytes, in the event loop.

Who calls is known before the soap:Body is read: with HTTP credentials before anything is, else after the soap:Header.

Invariants: Spyne holds the model and drives a call through our protocol: read, dispatch, deserialise, call, serialise;
between its two halves the caller is recognised and the use case is awaited, so no thread is taken and none is blocked.
Every call ends in an answer in the client's dialect: the result, or a fault that the operation declares. A declared
fault to a known client leaves a usage record: the use case's, or, where none was called, one made here.
A call leaves nothing to the cycle collector, so a burst of calls holds no more than the calls in flight.

Deliberately absent: HTTP (`server.py`), reading and writing of XML (`envelope.py`, `reading.py`, `writing.py`), and
Spyne's own XML protocols, which serialise a thousand terminals in seconds.
"""

import math
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog
from spyne import Application, EventManager, MethodContext, Service
from spyne.protocol import ProtocolBase
from spyne.server import ServerBase

from app.auth.authenticator import Credentials
from app.core.queries import RetrievalStatus, TerminalResult
from app.core.usage import Caller
from app.domain.errors import TerminalStatusError, TooManyAddresses, Unauthenticated
from app.domain.statuses import Status
from soap_compat import writing
from soap_compat.envelope import MAX_ELEMENTS, BodyError, Part, Request, clip
from soap_compat.faults import OPERATIONS, Detail, SoapFault, client_fault, declared_fault, detail_for, fault_for
from soap_compat.reading import Reader
from soap_compat.schema import FACE, STATUS_WORDS, Call, UseCases
from soap_compat.security import Gatekeeper
from soap_compat.versions import Dialect, dialect_of

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Answer:
    """An envelope to send: with status 200, or 500 if it holds a fault (SOAP 1.1 section 6.2)."""

    envelope: bytes
    fault: bool
    retry_after_s: int | None
    challenge: bool = False
    """The caller showed HTTP no credentials, or bad ones, and needs some."""


class _Context(MethodContext):  # type: ignore[misc]  # Spyne has no types
    """Spyne's context without what nothing here uses, which made up a third of a call's cost."""

    TransportContext = None
    __setattr__ = object.__setattr__  # Spyne's looks for misspelt attributes

    def copy(self) -> "_Context":
        return self  # Spyne copies for its auxiliary methods

    def fire_event(self, event: str, *args: Any, **kwargs: Any) -> None:
        """Nobody listens."""


class _Unheard(EventManager):  # type: ignore[misc]  # Spyne has no types
    def fire_event(self, event_name: str, ctx: Any, *args: Any, **kwargs: Any) -> None:
        """Nobody listens, and Spyne's own makes a reference cycle of each event."""


class _Protocol(ProtocolBase):  # type: ignore[misc]  # Spyne has no types
    """SOAP 1.1 as Parlay X has it: our reading and writing, Spyne's model."""

    mime_type = "text/xml; charset=utf-8"

    def __init__(self) -> None:
        super().__init__()
        self.event_manager = _Unheard(self)
        self._readers: dict[str, Reader] = {}

    def set_app(self, value: Any) -> None:
        super().set_app(value)
        if value is not None:
            for method in value.interface.method_id_map.values():
                self._readers[method.name] = Reader(method.in_message)

    @property
    def operations(self) -> str:
        """The operations' names, for people."""
        return ", ".join(sorted(self._readers))

    def get_context(self, parent: Any, transport: Any) -> None:
        """No protocol context: ours has no state, and Spyne's is a reference cycle."""

    def create_in_document(self, ctx: Any, charset: str | None = None) -> None:
        request = ctx.in_string[0]
        if request.payload is None:
            raise client_fault(f"The soap:Body is empty; it takes one of: {self.operations}.")
        dialect = dialect_of(request.namespace, self.app.tns)
        if dialect is None:
            raise client_fault(
                f"No operation is {clip(request.name)} in the namespace {clip(request.namespace)!r}; "
                f"there are, in {self.app.tns}: {self.operations}."
            )
        if request.name not in self._readers:
            raise client_fault(f"No operation is {clip(request.name)}; there are: {self.operations}.")
        ctx.udc.dialect = dialect
        ctx.in_document = request
        ctx.method_request_string = request.name

    def decompose_incoming_envelope(self, ctx: Any, message: Any = None) -> None:
        ctx.in_body_doc = ctx.in_document.payload

    def deserialize(self, ctx: Any, message: Any) -> None:
        if ctx.in_document.full:
            raise _too_many_addresses(ctx.descriptor.name)
        ctx.in_object = self._readers[ctx.descriptor.name].read(ctx.in_body_doc)

    def serialize(self, ctx: Any, message: Any) -> None:
        if ctx.out_error is not None:
            ctx.out_document = writing.fault(ctx.out_error, ctx.udc.dialect.common)
        else:
            name = ctx.descriptor.name
            content = _CONTENTS[name](ctx.out_object[0])
            ctx.out_document = writing.message(ctx.udc.dialect.local, f"{name}Response", content)

    def create_out_string(self, ctx: Any, charset: str | None = None) -> None:
        ctx.out_string = (ctx.out_document,)


def _too_many_addresses(operation: str) -> SoapFault:
    reason = f"A message has {MAX_ELEMENTS} elements at most."
    if "POL0003" not in OPERATIONS[operation].messages:
        return client_fault(reason)
    return declared_fault("POL0003", "addresses", reason=reason, result=TooManyAddresses.code)


def _status(status: Status) -> str:
    return writing.text_part("result", STATUS_WORDS[status])


def _results(results: list[tuple[str, TerminalResult]]) -> str:
    return "".join([_result(address, result) for address, result in results])


def _result(address: str, result: TerminalResult) -> str:
    if result.status is not None:
        return writing.retrieved_part(address, STATUS_WORDS[result.status.status])
    error: Detail | None = None
    if result.retrieval is RetrievalStatus.ERROR and result.error is not None:
        error = detail_for(result.error, "getStatusForGroup")
    return writing.not_retrieved_part(address, error)


def _nothing(_: None) -> str:
    return ""


_CONTENTS: Final[Mapping[str, Callable[[Any], str]]] = {
    "getStatus": _status,
    "getStatusForGroup": _results,
    "startNotification": _nothing,
    "endNotification": _nothing,
}
"""What is in an operation's response, by operation."""


class Interface(ServerBase):  # type: ignore[misc]  # Spyne has no types
    """Answers the requests to one interface. `operations` is its class in `schema.py`, `served` its WSDL's dialect."""

    transport = "http://schemas.xmlsoap.org/soap/http"

    def __init__(self, operations: type[Service], served: Dialect, use_cases: UseCases, gatekeeper: Gatekeeper) -> None:
        super().__init__(
            Application(
                [operations], served.local, operations.__name__, in_protocol=_Protocol(), out_protocol=_Protocol()
            )
        )
        self._served = served
        self._use_cases = use_cases
        self._gatekeeper = gatekeeper
        self._operation = next(iter(operations.public_methods))

    async def answer(
        self,
        body: Callable[[], Awaitable[tuple[bytes, bool]]],
        charset: str | None,
        caller: Credentials,
        authenticated: Callable[[], None] = lambda: None,
        turn: Callable[[str], Awaitable[None]] | None = None,
    ) -> Answer:
        """Answers one request; `body` gives its next bytes and whether more come, `charset` is its Content-Type's
        parameter. Calls `authenticated` once the caller is known, and awaits `turn`, with the client's id or "", before
        a slice is read. Raises the BodyErrors of `body`."""
        ctx = self._context()
        request: Request | None = None
        try:
            client = self._gatekeeper.known(caller)
            if client is None and caller.authorization:
                client = await self._gatekeeper.admit(caller, None)
            request = Request(charset)
            if client is None:
                await request.read(body, head_only=True, turn=turn)
                client = await self._gatekeeper.admit(caller, request.token)
            ctx.udc.client = client
            authenticated()
            await request.read(body, turn=turn, turn_of=client.id)
            ctx.in_string = (request,)
            self.generate_contexts(ctx)
            if ctx.in_error is None:
                self.get_in_object(ctx)
            if ctx.in_error is None:
                self.get_out_object(ctx)
                ctx.out_object = [await ctx.out_object[0]]
            return self._write(ctx)
        except BodyError:
            raise
        except SoapFault as fault:
            self._record(ctx, fault)
            return self.refuse(fault, ctx.udc.dialect)
        except TerminalStatusError as error:
            # Of a caller that is not known its operation is not either; that makes no difference to those faults.
            answer = self.refuse(fault_for(error, ctx.method_request_string or self._operation), ctx.udc.dialect)
            by_http = request is None or request.token is None
            return replace(answer, challenge=isinstance(error, Unauthenticated) and by_http)
        except Exception:
            reference = secrets.token_hex(8)
            _log.exception("soap_call_failed", operation=ctx.method_request_string, reference=reference)
            return self.refuse(declared_fault("SVC0001", reference), ctx.udc.dialect)
        finally:
            if request is not None:
                request.end()

    def refuse(self, fault: SoapFault, dialect: Dialect | None = None) -> Answer:
        """Puts a fault into an envelope."""
        return Answer(
            envelope=writing.fault(fault, (dialect or self._served).common),
            fault=True,
            retry_after_s=None if fault.retry_after_s is None else max(0, math.ceil(fault.retry_after_s)),
        )

    def _context(self) -> Any:
        ctx = _Context(self, MethodContext.SERVER)
        ctx.event = None  # refers back to the context
        ctx.udc = Call(self._use_cases, self._served)
        return ctx

    def _write(self, ctx: Any) -> Answer:
        if ctx.out_error is not None:
            fault = ctx.out_error
            ctx.in_error = ctx.out_error = None  # the traceback refers back to the context
            self._record(ctx, fault)
            return self.refuse(fault, ctx.udc.dialect)
        self.get_out_string(ctx)
        return Answer(envelope=b"".join(ctx.out_string), fault=False, retry_after_s=None)

    def _record(self, ctx: Any, fault: SoapFault) -> None:
        """Of what was refused here, and so by no use case."""
        client = ctx.udc.client
        if client is None or fault.detail is None:
            return
        payload, usage = ctx.in_document.payload, self._use_cases.usage
        references = [part for part in payload.parts if part.name == "reference"]
        correlators = [text for part in (payload, *references) for text in _texts(part, "correlator")]
        usage.record(
            usage.make(
                ctx.method_request_string,
                Caller(client=client, face=FACE, requester="".join(_texts(payload, "requester")[:1])),
                targets=_texts(payload, "address", "addresses"),
                correlator="".join(correlators[:1]),
                result=fault.result,
                root_cause=fault.faultstring,
            )
        )


def _texts(part: Part, *names: str) -> list[str]:
    return [child.text.strip() for child in part.parts if child.name in names and not child.parts]
