"""Reads a SOAP 1.1 request: bytes of anyone -> the one element of its Body, and who says that he sent it. Of an answer
to a callback it reads whether that is a fault.

Invariants: the work is linear in the body's size, and others run while it is done: Expat gets SLICE bytes at a time.
Expat writes the namespace's name before each name, so names, namespaces and tags are bounded (an envelope of 900 kB
took nine seconds before that was so), as are depth, elements, attributes and declarations. A DOCTYPE is refused when it
begins, so no entity is ever declared; whatever is wrong is a `SoapFault`, but too many `addresses`, for which the
contract has a fault: they are read as far as they fit (`Request.full`). The parts handed on have no namespaces: a
client that qualifies them differently is understood.

Expat reads, not libxml2: libxml2 keeps every element and attribute name it ever saw in a dictionary that lxml
shares by all documents of a thread and never frees, so invented names would fill the memory for good.

Deliberately absent: SOAP encoding (`href`, `xsi:type`): the contract is document/literal. Of WS-Security, whatever is
no UsernameToken.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Final
from xml.parsers import expat

from soap_compat.faults import SoapFault, client_fault

SOAP: Final = "http://schemas.xmlsoap.org/soap/envelope/"
MAX_DEPTH: Final = 32
MAX_ELEMENTS: Final = 20_000
MAX_MARKS: Final = 4 * MAX_ELEMENTS
"""Elements, attributes and declarations of namespaces together."""
MAX_NAME: Final = 256
MAX_NAMESPACE: Final = 512
MAX_TAG_BYTES: Final = 16_384
"""One tag, comment or processing instruction: Expat reads those whole."""
MAX_HEAD_BYTES: Final = 65_536
"""What is read of a client that is not known yet, at most: as far as the soap:Header's end."""
SLICE: Final = 4_096
SLICES_AT_ONCE: Final = 2
"""After so many others run; some 3,000 elements, or 8 ms."""
SMALL: Final = 1_024
"""What a client that is known need not wait its turn for; most requests are smaller."""

_WSSE: Final = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd"
_ENVELOPE, _HEADER, _BODY = (f"{SOAP}}}{name}" for name in ("Envelope", "Header", "Body"))
_MUST_UNDERSTAND, _ACTOR = f"{SOAP}}}mustUnderstand", f"{SOAP}}}actor"
_SECURITY: Final = f"{_WSSE}}}Security"
_TOKEN: Final = f"{_WSSE}}}UsernameToken"
_NIL: Final = "http://www.w3.org/2001/XMLSchema-instance}nil"
_IGNORED_IN_SECURITY: Final = {"Timestamp"}
_TRUE: Final = ("1", "true")
_THIS_NODE: Final = {"", "http://schemas.xmlsoap.org/soap/actor/next"}  # SOAP 1.1 section 4.2.2
_ALIASES: Final = {
    "utf-8": ("utf8",),
    "utf-16": ("utf16",),
    "utf-16le": (),
    "utf-16be": (),
    "us-ascii": ("ascii",),
    "iso-8859-1": ("iso8859-1", "iso_8859-1", "latin1", "latin-1"),
    "windows-1252": ("cp1252",),
}
_CHARSETS: Final = {name: encoding for encoding, names in _ALIASES.items() for name in (encoding, *names)}
"""The encodings that are read, by what they are called: pyexpat would look for others among Python's codecs."""
_BYTE_ORDER_MARKS: Final = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_FAULT = re.compile(rb"<(?:[^\s<>:/]+:)?Fault[\s/>]")
_NOT_TEXT = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Part:
    """An element without namespace: its text, if it is a leaf, and its children in order."""

    __slots__ = ("kind", "name", "nil", "parts", "text")

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = ""
        self.parts: list[Part] = []
        self.nil = False
        """`xsi:nil` is true: the client means that the part is not there."""
        self.kind = ""
        """The attribute `Type`."""


class Request:
    """What a request asks: the payload, and its namespace as the client wrote it. `charset` is the Content-Type's
    parameter."""

    __slots__ = (
        "_comes",
        "_depth",
        "_elements",
        "_encoding",
        "_ended",
        "_fed",
        "_first",
        "_left",
        "_marks",
        "_open",
        "_parser",
        "_section",
        "_security",
        "_slices",
        "_text",
        "full",
        "head_read",
        "namespace",
        "payload",
        "token",
    )

    def __init__(self, charset: str | None = None) -> None:
        """Raises SoapFault."""
        self.namespace = ""
        self.payload: Part | None = None
        self.token: Part | None = None
        """The UsernameToken of a WS-Security header for this node."""
        self.head_read = False
        """The soap:Header is read, if there is one."""
        self.full = False
        """There are more `addresses` than are read."""
        self._depth = self._elements = self._marks = self._fed = self._slices = 0
        self._section = ""
        self._security = ""
        self._open: list[Part] = []
        self._text: list[str] = []
        self._encoding = None if charset is None else _encoding(charset)
        self._parser: expat.XMLParserType | None = None
        self._first = b""
        """What came first, as long as the XML declaration may stand in it."""
        self._left = memoryview(b"")
        self._comes = True
        """More comes than what is left."""
        self._ended = False

    @property
    def name(self) -> str:
        """The operation's name as the client wrote it."""
        return "" if self.payload is None else self.payload.name

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        self._elements += 1
        self._marks += 1
        if attributes or len(tag) > MAX_NAME:
            self._count(len(attributes), tag, *attributes)
        if self._depth > MAX_DEPTH or self._elements > MAX_ELEMENTS:
            if self._open == [self.payload] and tag.rpartition("}")[2] == "addresses":
                raise _FullError
            raise client_fault(f"The message is nested deeper than {MAX_DEPTH} or has over {MAX_ELEMENTS} elements.")
        if self._open:
            part = Part(tag.rpartition("}")[2])
            if attributes:
                part.nil = attributes.get(_NIL, "").strip() in _TRUE
                part.kind = attributes.get("Type", "")
            self._open[-1].parts.append(part)
            self._open.append(part)
            self._text.clear()
        elif self._depth == 1:
            _check_envelope(tag)
        elif self._depth == 2:
            self._section = tag
            self.head_read = self.head_read or tag == _BODY
        elif self._section == _BODY:
            self._start_payload(tag)
        elif self._section == _HEADER:
            self._start_header(tag, attributes)

    def _start_payload(self, tag: str) -> None:
        if self.payload is not None:
            raise client_fault("The soap:Body holds more than one element.")
        self.namespace, _, name = tag.rpartition("}")
        self.payload = Part(name)
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
                    raise client_fault("The message has more than one UsernameToken.")
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
            self.head_read = True

    def _declare(self, prefix: str | None, namespace: str | None) -> None:
        self._marks += 1
        if namespace and len(namespace) > MAX_NAMESPACE:
            raise client_fault(f"A namespace's name is longer than {MAX_NAMESPACE} characters.")
        if self._marks > MAX_MARKS or (prefix and len(prefix) > MAX_NAME):
            self._count(0, prefix or "")

    def _count(self, marks: int, *names: str) -> None:
        self._marks += marks
        if self._marks > MAX_MARKS:
            raise client_fault(f"The message has over {MAX_MARKS} elements, attributes and namespaces.")
        for name in names:
            if len(name) > MAX_NAME and len(name.rpartition("}")[2]) > MAX_NAME:
                raise client_fault(f"A name is longer than {MAX_NAME} characters.")

    async def read(
        self,
        more_of: Callable[[], Awaitable[tuple[bytes, bool]]],
        *,
        head_only: bool = False,
        turn: Callable[[str], Awaitable[None]] | None = None,
        turn_of: str = "",
    ) -> None:
        """Reads what `more_of` brings, which says too whether more comes, to the end or, `head_only`, until
        `head_read`; may then be called again. Awaits `turn`, with `turn_of`, before each slice, but a small one where
        more than the head is read. Raises SoapFault, and what `more_of` raises."""
        while not self._ended and not (head_only and self.head_read):
            if not self._left and self._comes:
                chunk, self._comes = await more_of()
                self._left = memoryview(chunk)
            piece, self._left = bytes(self._left[:SLICE]), self._left[SLICE:]
            if turn is not None and (head_only or len(piece) > SMALL):
                await turn(turn_of)
            # What is wrong behind the head of a message that is whole is found by the call that reads the rest.
            last = not self._comes and not self._left and not (head_only and piece)
            self._feed(piece, last=last)
            self._ended = self.full or last
            if head_only and not self.head_read and self._fed > MAX_HEAD_BYTES:
                raise client_fault(
                    f"The soap:Header does not end within {MAX_HEAD_BYTES} bytes; shorten it, or show HTTP credentials."
                )
            self._slices += 1
            if not self._slices % SLICES_AT_ONCE:
                await asyncio.sleep(0)

    def end(self) -> None:
        """Nothing more is read: Expat's parser refers back to the request."""
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
            except _NamedOtherwiseError as error:  # nothing but the declaration has been read
                self._parser = self._new_parser(str(error))
                self._parser.Parse(self._first, last)
        except _FullError:
            self.full = True
        except expat.ExpatError as error:
            raise client_fault(f"The message is not well-formed XML: {error}.") from None
        self._fed += len(piece)
        if self._fed > MAX_TAG_BYTES and not self.full and self._fed - self._parser.CurrentByteIndex > MAX_TAG_BYTES:
            raise client_fault(f"A tag or comment is longer than {MAX_TAG_BYTES} bytes.")

    def _new_parser(self, encoding: str | None) -> expat.XMLParserType:
        made = expat.ParserCreate(encoding, namespace_separator="}")
        made.buffer_text = True
        made.StartElementHandler = self._start
        made.EndElementHandler = self._end
        made.CharacterDataHandler = self._data
        made.StartNamespaceDeclHandler = self._declare
        made.StartDoctypeDeclHandler = _refuse_doctype
        if encoding is None:
            made.XmlDeclHandler = _check_declaration
        return made


def has_fault(answer: bytes) -> bool:
    """Whether the answer, or as much of it as was read, is a SOAP fault: the Body has a child `Fault`, of whatever
    prefix or version, or the answer is nothing but that. What is no XML as far as its Body is one if it looks so."""
    reading = _Answer()

    def parser(encoding: str | None) -> expat.XMLParserType:
        made = expat.ParserCreate(encoding)  # without namespaces, so an undeclared prefix is none of our concern either
        made.StartElementHandler = reading.start
        made.EndElementHandler = reading.end
        made.StartDoctypeDeclHandler = _refuse_doctype
        if encoding is None:
            made.XmlDeclHandler = _check_declaration
        return made

    answer = answer.lstrip()
    try:
        try:
            parser(None).Parse(answer, False)
        except _NamedOtherwiseError as error:
            parser(str(error)).Parse(answer, False)
    except (expat.ExpatError, SoapFault):
        if reading.fault is None:
            # Without the zeros UTF-16 is ASCII.
            return _FAULT.search(answer.replace(b"\0", b"")) is not None
    return bool(reading.fault)


class _Answer:
    """Looks for the fault in an answer that is read."""

    def __init__(self) -> None:
        self.fault: bool | None = None
        """None while it is not known."""
        self._depth = 0
        self._in_body = False

    def start(self, tag: str, _: dict[str, str]) -> None:
        self._depth += 1
        name = tag.rpartition(":")[2]
        if self._depth == 2:
            self._in_body = name == "Body"
        elif self.fault is None and (self._depth == 1 or (self._depth == 3 and self._in_body)):
            self.fault = True if name == "Fault" else None

    def end(self, _: str) -> None:
        self._depth -= 1
        if self.fault is None and (not self._depth or (self._depth == 1 and self._in_body)):
            self.fault = False


class BodyError(Exception):
    """Of a body that does not come as it should; what `Request.read` is given may raise it."""


class _FullError(Exception):
    """One more of `addresses` begins, and it is one too many."""


class _NamedOtherwiseError(Exception):
    """The XML declaration calls the encoding by a name that Expat does not know; the argument is one that it does."""


def _check_envelope(tag: str) -> None:
    if tag == _ENVELOPE:
        return
    if tag.rpartition("}")[2] == "Envelope":
        raise SoapFault("VersionMismatch", f"This is a SOAP 1.1 endpoint; the Envelope's namespace is {SOAP}.")
    raise client_fault(f"The message is no SOAP envelope: its root element is {_shown(tag)}.")


def _not_understood(tag: str) -> SoapFault:
    return SoapFault("MustUnderstand", f"The header {_shown(tag)} is marked mustUnderstand and is not understood.")


def _encoding(charset: str) -> str:
    encoding = _CHARSETS.get(charset.lower())
    if encoding is None:
        raise client_fault(f"The encoding {clip(charset)} is not supported; send UTF-8 or UTF-16.")
    return encoding


def _check_declaration(_version: str, encoding: str | None, _standalone: int) -> None:
    if encoding is not None and (known := _encoding(encoding)) != encoding.lower():
        raise _NamedOtherwiseError(known)


def _refuse_doctype(*_: object) -> None:
    raise client_fault("The message has a DOCTYPE, which SOAP 1.1 section 3 forbids.")


def _shown(tag: str) -> str:
    """An element's name, for people: in Clark notation, of which Expat leaves out the opening brace."""
    return clip(f"{{{tag}" if "}" in tag else tag)


def clip(text: str, length: int = 200) -> str:
    """Returns a stranger's text as it may stand in a fault: short, and with nothing that XML cannot carry."""
    return _NOT_TEXT.sub("\ufffd", text if len(text) <= length else f"{text[:length]}…")
