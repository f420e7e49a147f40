"""Reads a SOAP 1.1 request: bytes of anyone -> the one element of its Body, and who says that he sent it. Of an answer
to a callback it reads whether that is a fault.

Invariants: the work is bounded by the body's size, `MAX_DEPTH` and `MAX_ELEMENTS`; a DOCTYPE is refused when it
begins, so no entity is ever declared; whatever is wrong is a `SoapFault`, but too many `addresses`, for which the
contract has a fault: they are read as far as they fit (`Request.full`). The parts handed on have no namespaces: a
client that qualifies them differently is understood.

Expat reads, not libxml2: libxml2 keeps every element and attribute name it ever saw in a dictionary that lxml
shares by all documents of a thread and never frees, so invented names would fill the memory for good.

Deliberately absent: SOAP encoding (`href`, `xsi:type`): the contract is document/literal. Of WS-Security, whatever is
no UsernameToken.
"""

import re
from collections.abc import Callable
from typing import Final
from xml.parsers import expat

from soap_compat.faults import SoapFault, client_fault

SOAP: Final = "http://schemas.xmlsoap.org/soap/envelope/"
MAX_DEPTH: Final = 32
MAX_ELEMENTS: Final = 20_000

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
    """What a request asks: the payload, and its namespace as the client wrote it."""

    __slots__ = (
        "_depth",
        "_elements",
        "_open",
        "_section",
        "_security",
        "_text",
        "full",
        "namespace",
        "payload",
        "token",
    )

    def __init__(self) -> None:
        self.namespace = ""
        self.payload: Part | None = None
        self.token: Part | None = None
        """The UsernameToken of a WS-Security header for this node."""
        self.full = False
        """There are more `addresses` than are read."""
        self._depth = self._elements = 0
        self._section = ""
        self._security = ""
        self._open: list[Part] = []
        self._text: list[str] = []

    @property
    def name(self) -> str:
        """The operation's name as the client wrote it."""
        return "" if self.payload is None else self.payload.name

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        self._elements += 1
        if self._elements > MAX_ELEMENTS and self._open == [self.payload] and tag.rpartition("}")[2] == "addresses":
            raise _FullError
        if self._depth > MAX_DEPTH or self._elements > MAX_ELEMENTS:
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

    def read(self, body: bytes, charset: str | None) -> None:
        """Reads `body`; `charset` is the Content-Type's parameter. Raises SoapFault. Once per instance."""
        encoding = None if charset is None else _encoding(charset)
        # A byte order mark wins over the parameter, which wins over the XML declaration (RFC 7303 section 3).
        if body.startswith(_BYTE_ORDER_MARKS):
            encoding = None

        def parser(encoding: str | None) -> expat.XMLParserType:
            made = expat.ParserCreate(encoding, namespace_separator="}")
            made.buffer_text = True
            made.StartElementHandler = self._start
            made.EndElementHandler = self._end
            made.CharacterDataHandler = self._data
            return made

        try:
            _parse(parser, encoding, body, final=True)
        except _FullError:
            self.full = True
        except expat.ExpatError as error:
            raise client_fault(f"The message is not well-formed XML: {error}.") from None


def has_fault(answer: bytes) -> bool:
    """Whether the answer, or as much of it as was read, is a SOAP fault: the Body has a child `Fault`, of whatever
    prefix or version, or the answer is nothing but that. What is no XML as far as its Body is one if it looks so."""
    reading = _Answer()

    def parser(encoding: str | None) -> expat.XMLParserType:
        made = expat.ParserCreate(encoding)  # without namespaces, so an undeclared prefix is none of our concern either
        made.StartElementHandler = reading.start
        made.EndElementHandler = reading.end
        return made

    try:
        _parse(parser, None, answer.lstrip(), final=False)
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


class _FullError(Exception):
    """One more of `addresses` begins, and it is one too many."""


class _NamedOtherwiseError(Exception):
    """The XML declaration calls the encoding by a name that Expat does not know; the argument is one that it does."""


def _parse(
    parser: Callable[[str | None], expat.XMLParserType], encoding: str | None, body: bytes, *, final: bool
) -> None:
    """Reads `body` by what `parser` makes for an encoding (None: the XML declaration's). Raises ExpatError,
    SoapFault."""
    made = parser(encoding)
    made.StartDoctypeDeclHandler = _refuse_doctype
    if encoding is None:
        made.XmlDeclHandler = _check_declaration
    try:
        made.Parse(body, final)
    except _NamedOtherwiseError as error:  # nothing but the declaration has been read
        _parse(parser, str(error), body, final=final)


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
