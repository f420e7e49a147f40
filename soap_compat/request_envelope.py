"""Reads a SOAP 1.1 request: the one element of its Body, and a UsernameToken of its Header.

Expat parses, not libxml2: libxml2 keeps every element and attribute name in a dictionary that lxml shares over all
documents of a thread and never frees, so invented names would fill the memory for good.

Invariants: the work is linear in the size of the body, and the event loop runs meanwhile: Expat gets SLICE_BYTES at a
time. Expat writes the namespace's name before each name, so the lengths of names, namespaces and tags are bounded (an
envelope of 900 kB took nine seconds without these bounds), and so are depth and the numbers of elements, attributes and
declarations. A DOCTYPE is refused when it begins. Every error raises `SoapFault`, except too many `addresses`: the
contract has its own fault for them, so `RequestEnvelope.truncated` is set. The resulting parts have no namespaces, so
that clients may qualify them differently.

Deliberately absent: SOAP encoding, since the contract is document/literal (`xsi:type` is ignored, `href` is named in
the fault); and WS-Security other than UsernameToken.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final
from xml.parsers import expat

from soap_compat.faults import SoapFault, client_fault
from soap_compat.versions import is_common
from soap_compat.xml_input import EncodingAliasError, check_declaration, clip, encoding_named, refuse_doctype

SOAP: Final = "http://schemas.xmlsoap.org/soap/envelope/"
MAX_DEPTH: Final = 32
MAX_ELEMENTS: Final = 20_000
MAX_NODES: Final = 4 * MAX_ELEMENTS
"""Elements, attributes and namespace declarations together."""
MAX_NAME: Final = 256
MAX_NAMESPACE: Final = 512
MAX_TAG_BYTES: Final = 16_384
"""Greatest length of a tag, comment or processing instruction, which Expat buffers whole."""
MAX_HEADER_BYTES: Final = 65_536
"""How far a request of an unauthenticated caller is read: the soap:Header must end within it."""
SLICE_BYTES: Final = 4_096
SLICES_PER_STEP: Final = 2
"""Slices between two suspensions: about 3,000 elements, or 8 ms."""
SMALL_SLICE_BYTES: Final = 1_024
"""An authenticated client's slice of at most this size does not wait for its turn; most requests are smaller."""

_WSSE: Final = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd"
_ENVELOPE, _HEADER, _BODY = (f"{SOAP}}}{name}" for name in ("Envelope", "Header", "Body"))
_MUST_UNDERSTAND, _ACTOR = f"{SOAP}}}mustUnderstand", f"{SOAP}}}actor"
_SECURITY: Final = f"{_WSSE}}}Security"
_TOKEN: Final = f"{_WSSE}}}UsernameToken"
_NIL: Final = "http://www.w3.org/2001/XMLSchema-instance}nil"
_IGNORED_IN_SECURITY: Final = {"Timestamp"}
_TRUE: Final = ("1", "true")
_THIS_NODE: Final = {"", "http://schemas.xmlsoap.org/soap/actor/next"}  # SOAP 1.1 section 4.2.2
ENCODED: Final = (
    "`href` belongs to SOAP encoding (SOAP 1.1 section 5), and this contract is document/literal: write the value into "
    "the element, or generate the client for document/literal wrapped."
)
"""The sentence for a client that writes a value elsewhere and refers to it, as stubs for rpc/encoded do."""

_BYTE_ORDER_MARKS: Final = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


class Part:
    """An element without its namespace: its text, if it is a leaf, and its children in order."""

    __slots__ = ("href", "kind", "name", "nil", "parts", "text")

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = ""
        self.parts: list[Part] = []
        self.nil = False
        """`xsi:nil` is true: the client sends an empty element in place of an absent one."""
        self.kind = ""
        """The attribute `Type`, of a UsernameToken's Password."""
        self.href = False
        """The element has the attribute `href`: by SOAP encoding its value is another element."""

    @property
    def refers(self) -> bool:
        """The value is elsewhere (SOAP 1.1 section 5.4.1), since the element has `href` and no content."""
        return self.href and not self.parts and not self.text.strip()


class RequestEnvelope:
    """A request's payload, and its namespace as the client wrote it. `charset` is the parameter of the Content-Type."""

    __slots__ = (
        "_depth",
        "_elements",
        "_encoding",
        "_fed",
        "_finished",
        "_first",
        "_more_comes",
        "_nodes",
        "_open",
        "_parser",
        "_refers",
        "_section",
        "_security",
        "_slices",
        "_text",
        "_unparsed",
        "common",
        "header_read",
        "namespace",
        "payload",
        "token",
        "truncated",
    )

    def __init__(self, charset: str | None = None) -> None:
        """Raises SoapFault."""
        self.namespace = ""
        self.payload: Part | None = None
        self.token: Part | None = None
        """The UsernameToken of the WS-Security header that is addressed to this node."""
        self.common: set[str] = set()
        """The namespaces of Parlay X's common types that the message declares."""
        self.header_read = False
        """The soap:Header, if there is one, has been read."""
        self.truncated = False
        """The payload has more `addresses` than MAX_ELEMENTS allows, and was not read to its end."""
        self._depth = self._elements = self._nodes = self._fed = self._slices = 0
        self._refers = False
        """An element of the payload has `href`."""
        self._section = ""
        self._security = ""
        self._open: list[Part] = []
        self._text: list[str] = []
        self._encoding = None if charset is None else encoding_named(charset)
        self._parser: expat.XMLParserType | None = None
        self._first = b""
        """The beginning of the body, kept while it may contain the XML declaration."""
        self._unparsed = memoryview(b"")
        self._more_comes = True
        """The body has more than `_unparsed`."""
        self._finished = False

    @property
    def name(self) -> str:
        """The operation's name as the client wrote it."""
        return "" if self.payload is None else self.payload.name

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        self._elements += 1
        self._nodes += 1
        if attributes or len(tag) > MAX_NAME:
            self._count(len(attributes), tag, *attributes)
        if self._depth > MAX_DEPTH or self._elements > MAX_ELEMENTS:
            if self._open == [self.payload] and tag.rpartition("}")[2] == "addresses":
                raise _TooManyAddressesError
            raise client_fault(
                f"The message is nested deeper than {MAX_DEPTH} levels, or has more than {MAX_ELEMENTS} elements."
            )
        if self._open:
            part = Part(tag.rpartition("}")[2])
            if attributes:
                part.nil = attributes.get(_NIL, "").strip() in _TRUE
                part.kind = attributes.get("Type", "")
                if "href" in attributes:
                    part.href = self._refers = True
            self._open[-1].parts.append(part)
            self._open.append(part)
            self._text.clear()
        elif self._depth == 1:
            _check_envelope(tag)
        elif self._depth == 2:
            self._section = tag
            self.header_read = self.header_read or tag == _BODY
        elif self._section == _BODY:
            self._start_payload(tag, attributes)
        elif self._section == _HEADER:
            self._start_header(tag, attributes)

    def _start_payload(self, tag: str, attributes: dict[str, str]) -> None:
        self.namespace, _, name = tag.rpartition("}")
        if self.payload is not None:
            encoded = self._refers or name == "multiRef"
            raise client_fault(
                "The soap:Body has more than one element; send one operation." + (f" {ENCODED}" if encoded else "")
            )
        self.payload = Part(name)
        self.payload.href = self._refers = "href" in attributes
        self._open.append(self.payload)
        self._text.clear()

    def _start_header(self, tag: str, attributes: dict[str, str]) -> None:
        if self._depth == 3:
            here = attributes.get(_ACTOR, "") in _THIS_NODE
            needed = here and attributes.get(_MUST_UNDERSTAND) in _TRUE
            self._security = ("needed" if needed else "here") if here and tag == _SECURITY else ""
            if needed and not self._security:
                raise _not_understood(tag)
        elif self._depth == 4 and self._security:
            if tag == _TOKEN:
                if self.token is not None:
                    raise client_fault("The message has more than one UsernameToken; send one.")
                self.token = Part("UsernameToken")
                self._open.append(self.token)
            elif self._security == "needed" and tag.rpartition("}")[2] not in _IGNORED_IN_SECURITY:
                raise _not_understood(tag)

    def _data(self, data: str) -> None:
        if self._open:
            self._text.append(data)

    def _end(self, _: str) -> None:
        self._depth -= 1
        if self._open:
            self._open.pop().text = "".join(self._text)
            self._text.clear()
        elif self._depth == 1 and self._section == _HEADER:
            self.header_read = True

    def _declare(self, prefix: str | None, namespace: str | None) -> None:
        self._nodes += 1
        if namespace and len(namespace) > MAX_NAMESPACE:
            raise client_fault(f"The name of a namespace is longer than {MAX_NAMESPACE} characters.")
        if namespace and is_common(namespace):
            self.common.add(namespace)
        if self._nodes > MAX_NODES or (prefix and len(prefix) > MAX_NAME):
            self._count(0, prefix or "")

    def _count(self, nodes: int, *names: str) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise client_fault(
                f"The message has more than {MAX_NODES} elements, attributes and namespace declarations."
            )
        for name in names:
            if len(name) > MAX_NAME and len(name.rpartition("}")[2]) > MAX_NAME:
                raise client_fault(f"A name is longer than {MAX_NAME} characters.")

    async def read(
        self,
        more_of: Callable[[], Awaitable[tuple[bytes, bool]]],
        *,
        header_only: bool = False,
        wait_for_turn: Callable[[str], Awaitable[None]] | None = None,
        client_id: str = "",
    ) -> None:
        """Reads the body to its end. With `header_only`, stops at `header_read`; a second call reads the rest.

        `more_of` returns the next bytes, and whether more follow. `wait_for_turn(client_id)` is awaited before each
        slice; before a small slice only with `header_only`. Raises SoapFault, and what `more_of` raises.
        """
        while not self._finished and not (header_only and self.header_read):
            if not self._unparsed and self._more_comes:
                chunk, self._more_comes = await more_of()
                self._unparsed = memoryview(chunk)
            piece, self._unparsed = bytes(self._unparsed[:SLICE_BYTES]), self._unparsed[SLICE_BYTES:]
            if wait_for_turn is not None and (header_only or len(piece) > SMALL_SLICE_BYTES):
                await wait_for_turn(client_id)
            # With `header_only` an error after the header is left to the call that reads the rest.
            last = not self._more_comes and not self._unparsed and not (header_only and piece)
            self._feed(piece, last=last)
            self._finished = self.truncated or last
            if header_only and not self.header_read and self._fed > MAX_HEADER_BYTES:
                raise client_fault(
                    f"The soap:Header does not end within {MAX_HEADER_BYTES} bytes; "
                    "shorten it, or send HTTP credentials."
                )
            self._slices += 1
            if not self._slices % SLICES_PER_STEP:
                await asyncio.sleep(0)

    def close(self) -> None:
        """Drops the parser: it and this object refer to each other, and would wait for the cycle collector."""
        self._parser = None

    def _feed(self, piece: bytes, *, last: bool = False) -> None:
        if self._parser is None:
            self._first += piece
            if len(self._first) < 3 and not last:
                return
            # A byte order mark wins over the parameter, which wins over the XML declaration (RFC 7303 section 3).
            encoding = None if self._first.startswith(_BYTE_ORDER_MARKS) else self._encoding
            self._parser = self._new_parser(encoding)
            piece = self._first
        elif self._first:
            self._first = self._first + piece if self._fed <= MAX_TAG_BYTES else b""
        try:
            try:
                self._parser.Parse(piece, last)
            except EncodingAliasError as error:  # only the declaration has been parsed
                self._parser = self._new_parser(str(error))
                self._parser.Parse(self._first, last)
        except _TooManyAddressesError:
            self.truncated = True
        except expat.ExpatError as error:
            raise client_fault(f"The message is not well-formed XML: {error}.") from None
        self._fed += len(piece)
        tag_bytes = self._fed - self._parser.CurrentByteIndex if self._fed > MAX_TAG_BYTES else 0
        if tag_bytes > MAX_TAG_BYTES and not self.truncated:
            raise client_fault(f"A tag or comment is longer than {MAX_TAG_BYTES} bytes.")

    def _new_parser(self, encoding: str | None) -> expat.XMLParserType:
        made = expat.ParserCreate(encoding, namespace_separator="}")
        made.buffer_text = True
        made.StartElementHandler = self._start
        made.EndElementHandler = self._end
        made.CharacterDataHandler = self._data
        made.StartNamespaceDeclHandler = self._declare
        made.StartDoctypeDeclHandler = refuse_doctype
        if encoding is None:
            made.XmlDeclHandler = check_declaration
        return made


class BodyError(Exception):
    """The body did not arrive as it should. The `more_of` of `RequestEnvelope.read` may raise it."""


class _TooManyAddressesError(Exception):
    """Ends the parsing at the first of `addresses` beyond MAX_ELEMENTS."""


def _check_envelope(tag: str) -> None:
    if tag == _ENVELOPE:
        return
    if tag.rpartition("}")[2] == "Envelope":
        raise SoapFault("VersionMismatch", f"This is a SOAP 1.1 endpoint; send an Envelope of the namespace {SOAP}.")
    raise client_fault(f"The message is not a SOAP envelope: its root element is {_shown(tag)}.")


def _not_understood(tag: str) -> SoapFault:
    return SoapFault("MustUnderstand", f"The header {_shown(tag)} has mustUnderstand, and is not supported here.")


def _shown(tag: str) -> str:
    """An element's name for error messages, in Clark notation. Our namespace separator `}` omits the opening brace."""
    return clip(f"{{{tag}" if "}" in tag else tag)
