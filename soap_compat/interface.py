"""One Parlay X interface on Spyne's core: a request's bytes -> the answer's bytes, in the event loop.

Invariants: Spyne dispatches, deserialises and serialises; between its two halves the use case is awaited, so no
thread is taken and none is blocked. Every call ends in an answer in the client's dialect: the result, or a fault.
A call leaves nothing to the cycle collector, so a burst of calls holds no more than the calls in flight.

Deliberately absent: HTTP (`server.py`), and reading XML of strangers (`envelope.py`).
"""

import math
import secrets
from dataclasses import dataclass
from typing import Any

import structlog
from lxml import etree
from spyne import AnyUri, Application, EventManager, MethodContext, Service
from spyne.protocol.soap import Soap11
from spyne.server import ServerBase

from app.domain import TerminalStatusError
from app.service import StatusService
from soap_compat.envelope import SOAP, Request, clip
from soap_compat.faults import SoapFault, client_fault, declared_fault, fault_for
from soap_compat.schema import DIALECT, Dialect, dialect_of

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Answer:
    """An envelope to send: with status 200, or 500 if it holds a fault (SOAP 1.1 section 6.2)."""

    envelope: bytes
    fault: bool
    retry_after_s: int | None


@dataclass(slots=True)
class _Call:
    """What an operation finds in `ctx.udc`."""

    service: StatusService
    dialect: Dialect = DIALECT


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


class _Protocol(Soap11):  # type: ignore[misc]  # Spyne has no types
    """SOAP 1.1 as Parlay X has it: our reading, Spyne's model, answers in the client's dialect."""

    def __init__(self) -> None:
        super().__init__(parse_xsi_type=False, cleanup_namespaces=False)
        self.event_manager = _Unheard(self)
        self._from_unicode_handlers[AnyUri] = lambda _, text: text.strip(" \t\r\n")  # whiteSpace="collapse"
        self._attributes: dict[Any, Any] = {}
        self._parts: dict[str, list[tuple[str, int, float]]] = {}
        self._names: frozenset[str] = frozenset()

    def set_app(self, value: Any) -> None:
        super().set_app(value)
        if value is None:
            return
        value.interface.nsmap = {"soap11env": SOAP, "tns": value.tns}  # Spyne's holds a dozen that no answer needs
        for method in value.interface.method_id_map.values():
            parts = method.in_message.get_flat_type_info(method.in_message).items()
            self._parts[method.name] = [(n, p.Attributes.min_occurs, p.Attributes.max_occurs) for n, p in parts]
        self._names = frozenset(name for parts in self._parts.values() for name, *_ in parts).union(self._parts)

    @property
    def operations(self) -> str:
        """The operations' names, for people."""
        return ", ".join(sorted(self._parts))

    def get_cls_attrs(self, cls: Any) -> Any:
        attributes = self._attributes.get(cls)
        if attributes is None:
            attributes = self._attributes[cls] = super().get_cls_attrs(cls)
        return attributes

    def get_context(self, parent: Any, transport: Any) -> None:
        """No protocol context: ours has no state, and Spyne's is a reference cycle."""

    def create_in_document(self, ctx: Any, charset: str | None = None) -> None:
        request = Request(self._names)
        request.read(ctx.in_string[0], charset)
        if request.payload is None:
            raise client_fault(f"The soap:Body is empty; it takes one of: {self.operations}.")
        dialect = dialect_of(request.namespace, self.app.tns)
        if dialect is None:
            raise client_fault(
                f"No operation is {clip(request.name)} in the namespace {clip(request.namespace)!r}; "
                f"there are, in {self.app.tns}: {self.operations}."
            )
        ctx.udc.dialect = dialect
        ctx.in_document = ctx.in_body_doc = request.payload
        ctx.method_request_string = request.name

    def decompose_incoming_envelope(self, ctx: Any, message: Any = None) -> None:
        """Nothing is left to take apart."""

    def get_call_handles(self, ctx: Any) -> list[Any]:
        handles: list[Any] = super().get_call_handles(ctx)
        if not handles:
            raise client_fault(f"No operation is {clip(ctx.method_request_string)}; there are: {self.operations}.")
        return handles

    def deserialize(self, ctx: Any, message: Any) -> None:
        for name, at_least, at_most in self._parts[ctx.descriptor.name]:
            found = list(ctx.in_body_doc.iterchildren(name))
            if not at_least <= len(found) <= at_most:
                raise declared_fault("SVC0002", name, reason=f"It is there {len(found)} times.")
            if any(len(element) for element in found):
                raise declared_fault("SVC0002", name, reason="It holds an element where text is expected.")
        super().deserialize(ctx, message)

    def serialize(self, ctx: Any, message: Any) -> None:
        super().serialize(ctx, message)
        served, asked = self.app.tns, ctx.udc.dialect.local
        if asked != served:
            for element in ctx.out_body_doc.iter(f"{{{served}}}*"):
                element.tag = f"{{{asked}}}{etree.QName(element).localname}"
        if asked != served or ctx.out_error is not None:
            etree.cleanup_namespaces(ctx.out_document)  # the namespace declared for results was not used

    def fault_to_parent(self, ctx: Any, cls: Any, inst: Any, parent: Any, ns: Any, *args: Any, **kwargs: Any) -> None:
        fault = etree.SubElement(parent, f"{{{SOAP}}}Fault")
        etree.SubElement(fault, "faultcode").text = f"{self.soap_env}:{inst.faultcode}"
        etree.SubElement(fault, "faultstring").text = clip(inst.faultstring, 1000)
        if inst.detail is None:
            return
        common = ctx.udc.dialect.common
        exception = etree.SubElement(
            etree.SubElement(fault, "detail"), f"{{{common}}}{inst.detail.element}", nsmap={"common": common}
        )
        etree.SubElement(exception, "messageId").text = inst.detail.message_id
        etree.SubElement(exception, "text").text = inst.detail.text
        for variable in inst.detail.variables:
            etree.SubElement(exception, "variables").text = clip(variable)


class Interface(ServerBase):  # type: ignore[misc]  # Spyne has no types
    """Answers the requests to one interface. `operations` is its class in `schema.py`, `namespace` its wrappers'."""

    transport = "http://schemas.xmlsoap.org/soap/http"

    def __init__(self, operations: type[Service], namespace: str, service: StatusService) -> None:
        super().__init__(
            Application([operations], namespace, operations.__name__, in_protocol=_Protocol(), out_protocol=_Protocol())
        )
        self._service = service

    async def answer(self, body: bytes, charset: str | None) -> Answer:
        """Answers one request; `charset` is its Content-Type's parameter. Raises nothing."""
        ctx = self._context()
        ctx.in_string = (body,)
        try:
            self.generate_contexts(ctx, charset)
            if ctx.in_error is None:
                self.get_in_object(ctx)
            if ctx.in_error is None:
                self.get_out_object(ctx)
                ctx.out_object = [await ctx.out_object[0]]
            return self._write(ctx)
        except TerminalStatusError as error:
            return self.refuse(fault_for(error), ctx.udc.dialect)
        except Exception:
            reference = secrets.token_hex(8)
            _log.exception("soap_call_failed", operation=ctx.method_request_string, reference=reference)
            return self.refuse(declared_fault("SVC0001", reference), ctx.udc.dialect)

    def refuse(self, fault: SoapFault, dialect: Dialect = DIALECT) -> Answer:
        """Puts a fault into an envelope."""
        ctx = self._context()
        ctx.udc.dialect = dialect
        ctx.out_error = fault
        return self._write(ctx)

    def _context(self) -> Any:
        ctx = _Context(self, MethodContext.SERVER)
        ctx.event = None  # refers back to the context
        ctx.udc = _Call(self._service)
        return ctx

    def _write(self, ctx: Any) -> Answer:
        self.get_out_string(ctx)
        fault = ctx.out_error
        ctx.in_error = ctx.out_error = None  # the traceback refers back to the context
        retry_after_s = None if fault is None else fault.retry_after_s
        return Answer(
            envelope=b"".join(ctx.out_string),
            fault=fault is not None,
            retry_after_s=None if retry_after_s is None else max(0, math.ceil(retry_after_s)),
        )
