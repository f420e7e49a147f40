"""Answers the SOAP requests to one Parlay X interface: a request's bytes in, the response's bytes out.

Spyne holds the types, and drives a call through our protocol: dispatch, deserialise, call, serialise. The caller is
authenticated before the soap:Body is read: by HTTP credentials before anything is read, otherwise after the
soap:Header.

Invariants: everything runs in the event loop, without threads. Every call ends with an envelope in the client's
dialect: the result, or a fault that the operation declares. A declared fault to an authenticated client leaves a usage
record. The use case writes it; if no use case was called, this module does. A call leaves no reference cycle, so a
burst of calls takes no more memory than the calls in progress.

Deliberately absent: HTTP (`server.py`), XML (`request_envelope.py`, `part_reader.py`, `envelope_writer.py`), and
Spyne's own Soap11, which costs eight times the CPU of a call and parses by libxml2 (docs/decisions.md).
"""

import asyncio
import math
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog
from spyne import Application, EventManager, MethodContext, Service
from spyne.protocol import ProtocolBase
from spyne.server import ServerBase

from app.auth.credentials import Credentials
from app.core.queries import RetrievalStatus, TerminalResult
from app.core.usage import Caller
from app.domain.errors import InvalidAddress, TerminalStatusError, TooManyAddresses, Unauthenticated
from app.domain.operations import UsageOperation
from app.domain.statuses import Status
from soap_compat import envelope_writer
from soap_compat.address_spelling import any_uri
from soap_compat.authentication import SoapAuthenticator
from soap_compat.contract_types import STATUS_WORDS
from soap_compat.faults import OPERATIONS, Detail, SoapFault, client_fault, declared_fault, detail_for, fault_for
from soap_compat.operations import FACE, Call, UseCases
from soap_compat.part_reader import PartReader
from soap_compat.request_envelope import ENCODED, MAX_ELEMENTS, BodyError, Part, RequestEnvelope
from soap_compat.versions import Dialect, dialect_of
from soap_compat.xml_input import clip

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Answer:
    """An envelope to send, with HTTP status 200, or 500 for a fault (SOAP 1.1 section 6.2)."""

    envelope: bytes
    fault: bool
    retry_after_s: int | None
    challenge: bool = False
    """The caller must send (other) HTTP credentials: status 401."""


class _Context(MethodContext):  # type: ignore[misc]  # Spyne has no types
    """Spyne's context without features that are not used here; they were a third of a call's cost."""

    TransportContext = None
    __setattr__ = object.__setattr__  # Spyne's looks for misspelt attributes

    def copy(self) -> "_Context":
        return self  # Spyne copies for its auxiliary methods

    def fire_event(self, event: str, *args: Any, **kwargs: Any) -> None:
        """Does nothing: there are no listeners."""


class _NoEvents(EventManager):  # type: ignore[misc]  # Spyne has no types
    def fire_event(self, event_name: str, ctx: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing: there are no listeners, and Spyne's own method leaves a reference cycle."""


class _Protocol(ProtocolBase):  # type: ignore[misc]  # Spyne has no types
    """Reads and writes Parlay X's SOAP 1.1 for Spyne."""

    mime_type = "text/xml; charset=utf-8"

    def __init__(self) -> None:
        super().__init__()
        self.event_manager = _NoEvents(self)
        self._readers: dict[str, PartReader] = {}

    def set_app(self, value: Any) -> None:
        super().set_app(value)
        if value is not None:
            for method in value.interface.method_id_map.values():
                self._readers[method.name] = PartReader(method.in_message)

    @property
    def operations(self) -> str:
        """The names of the operations, for error messages."""
        return ", ".join(sorted(self._readers))

    def get_context(self, parent: Any, transport: Any) -> None:
        """Returns None: this protocol has no state, and Spyne's own context would be a reference cycle."""

    def create_in_document(self, ctx: Any, charset: str | None = None) -> None:
        request = ctx.in_string[0]
        if request.payload is None:
            raise client_fault(f"The soap:Body is empty; send one of: {self.operations}.")
        dialect = dialect_of(request.namespace, self.app.tns, request.common)
        if dialect is None:
            raise client_fault(
                f"The namespace {clip(request.namespace)!r} of {clip(request.name)} is not supported here; "
                f"use {self.app.tns} with one of: {self.operations}."
            )
        if request.name not in self._readers:
            raise client_fault(f"There is no operation {clip(request.name)}; use one of: {self.operations}.")
        if request.payload.refers:
            raise client_fault(f"The element {request.name} has `href` in place of its parts. {ENCODED}")
        ctx.udc.dialect = dialect
        ctx.in_document = request
        ctx.method_request_string = request.name

    def decompose_incoming_envelope(self, ctx: Any, message: Any = None) -> None:
        ctx.in_body_doc = ctx.in_document.payload

    def deserialize(self, ctx: Any, message: Any) -> None:
        if ctx.in_document.truncated:
            raise _too_many_addresses(ctx.descriptor.name)
        ctx.in_object = self._readers[ctx.descriptor.name].read(ctx.in_body_doc)

    def serialize(self, ctx: Any, message: Any) -> None:
        if ctx.out_error is not None:
            ctx.out_document = envelope_writer.fault(ctx.out_error, ctx.udc.dialect.common)
        else:
            name = ctx.descriptor.name
            content = _CONTENTS[name](ctx.out_object[0])
            ctx.out_document = envelope_writer.message(ctx.udc.dialect.local, f"{name}Response", content)

    def create_out_string(self, ctx: Any, charset: str | None = None) -> None:
        ctx.out_string = (ctx.out_document,)


def _too_many_addresses(operation: str) -> SoapFault:
    reason = f"The message has more than {MAX_ELEMENTS} elements; send fewer addresses."
    if "POL0003" not in OPERATIONS[operation].messages:
        return client_fault(reason)
    return declared_fault("POL0003", "addresses", reason=reason, result=TooManyAddresses.code)


def _status(status: Status) -> str:
    return envelope_writer.text_part("result", STATUS_WORDS[status])


def _results(results: list[tuple[str, TerminalResult]]) -> str:
    return "".join([_result(address, result) for address, result in results])


def _result(address: str, result: TerminalResult) -> str:
    if result.status is not None:
        return envelope_writer.retrieved_part(address, STATUS_WORDS[result.status.status])
    error: Detail | None = None
    if result.retrieval is RetrievalStatus.ERROR and result.error is not None:
        error = detail_for(result.error, "getStatusForGroup")
        if isinstance(result.error, InvalidAddress):
            address = any_uri(address)
    return envelope_writer.not_retrieved_part(address, error)


def _nothing(_: None) -> str:
    return ""


_CONTENTS: Final[Mapping[str, Callable[[Any], str]]] = {
    "getStatus": _status,
    "getStatusForGroup": _results,
    "startNotification": _nothing,
    "endNotification": _nothing,
}
"""Writes the content of each operation's response."""


class Interface(ServerBase):  # type: ignore[misc]  # Spyne has no types
    """Answers the requests to one interface: `operations` is its class in `operations.py`, `served` the dialect of its
    WSDL."""

    transport = "http://schemas.xmlsoap.org/soap/http"

    def __init__(
        self, operations: type[Service], served: Dialect, use_cases: UseCases, authenticator: SoapAuthenticator
    ) -> None:
        super().__init__(
            Application(
                [operations], served.local, operations.__name__, in_protocol=_Protocol(), out_protocol=_Protocol()
            )
        )
        self._served = served
        self._use_cases = use_cases
        self._authenticator = authenticator
        self._operation = next(iter(operations.public_methods))

    async def answer(
        self,
        body: Callable[[], Awaitable[tuple[bytes, bool]]],
        charset: str | None,
        caller: Credentials,
        on_authenticated: Callable[[], None] = lambda: None,
        wait_for_turn: Callable[[str], Awaitable[None]] | None = None,
    ) -> Answer:
        """Answers one request.

        `body` returns the next bytes of the body, and whether more follow; `charset` is the parameter of the
        Content-Type. Calls `on_authenticated` once the caller is authenticated, and `wait_for_turn` with the client's
        id ("" before) as `RequestEnvelope.read` does. Raises the BodyErrors of `body`.
        """
        ctx = self._context()
        request: RequestEnvelope | None = None
        try:
            client = self._authenticator.known(caller)
            if client is None and caller.authorization:
                client = await self._authenticator.authenticate(caller, None)
            request = RequestEnvelope(charset)
            if client is None:
                await request.read(body, header_only=True, wait_for_turn=wait_for_turn)
                client = await self._authenticator.authenticate(caller, request.token)
            ctx.udc.client = client
            on_authenticated()
            await request.read(body, wait_for_turn=wait_for_turn, client_id=client.id)
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
            # Before authentication the operation is unknown; these errors have the same fault in every operation.
            dialect = ctx.udc.dialect
            if request is not None and request.payload is not None:  # a small body has been parsed with its header
                dialect = dialect_of(request.namespace, self._served.local, request.common)
            answer = self.refuse(fault_for(error, ctx.method_request_string or self._operation), dialect)
            by_http = request is None or request.token is None
            return replace(answer, challenge=isinstance(error, Unauthenticated) and by_http)
        except asyncio.CancelledError:  # by the server, at the end of its grace when it stops
            return self.refuse(declared_fault("SVC0001", "GATEWAY_STOPPING"), ctx.udc.dialect)
        except Exception:
            reference = secrets.token_hex(8)
            _log.exception("soap_call_failed", operation=ctx.method_request_string, reference=reference)
            return self.refuse(declared_fault("SVC0001", reference), ctx.udc.dialect)
        finally:
            if request is not None:
                request.close()

    def refuse(self, fault: SoapFault, dialect: Dialect | None = None) -> Answer:
        """The envelope with a fault."""
        return Answer(
            envelope=envelope_writer.fault(fault, (dialect or self._served).common),
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
        """Records a request that was refused here, before a use case was called."""
        client = ctx.udc.client
        if client is None or fault.detail is None:
            return
        payload, usage = ctx.in_document.payload, self._use_cases.usage
        references = [part for part in payload.parts if part.name == "reference"]
        correlators = [text for part in (payload, *references) for text in _texts(part, "correlator")]
        usage.record(
            usage.make(
                UsageOperation(ctx.method_request_string),
                Caller(client=client, face=FACE, requester="".join(_texts(payload, "requester")[:1])),
                targets=_texts(payload, "address", "addresses"),
                correlator="".join(correlators[:1]),
                result=fault.result,
                root_cause=fault.faultstring,
            )
        )


def _texts(part: Part, *names: str) -> list[str]:
    return [child.text.strip() for child in part.parts if child.name in names and not child.parts]
