"""Whether an application's answer to a callback is a SOAP fault, and what its fault says."""

import re
from typing import Final
from xml.parsers import expat

from soap_compat.faults import SoapFault
from soap_compat.xml_input import EncodingAliasError, check_declaration, refuse_doctype

MAX_TEXT: Final = 4096
"""Characters of a fault that are read."""

_FAULT_TAG = re.compile(rb"<(?:[^\s<>:/]+:)?Fault[\s/>]")
_DETAILS: Final = frozenset({"detail", "Detail"})


def has_fault(answer: bytes) -> bool:
    """Whether the answer is a SOAP fault: its Body has a child `Fault`, of any prefix or SOAP version, or `Fault` is
    its root. The answer may be cut off. If a syntax error, a DTD or a bad encoding comes before the end of its Body,
    any `Fault` tag counts."""
    return fault_text(answer) is not None


def fault_text(answer: bytes) -> str | None:
    """The texts of a fault (its code and its reason, without its detail), one per line, of MAX_TEXT characters at most;
    None if the answer is not a fault, as `has_fault` says."""
    search = _FaultSearch()

    def parser(encoding: str | None) -> expat.XMLParserType:
        made = expat.ParserCreate(encoding)  # without namespaces, so that undeclared prefixes are not errors
        made.StartElementHandler = search.on_start
        made.EndElementHandler = search.on_end
        made.CharacterDataHandler = search.on_text
        made.StartDoctypeDeclHandler = refuse_doctype
        if encoding is None:
            made.XmlDeclHandler = check_declaration
        return made

    answer = answer.lstrip()
    try:
        try:
            parser(None).Parse(answer, False)
        except EncodingAliasError as error:
            parser(str(error)).Parse(answer, False)
    except (expat.ExpatError, SoapFault):
        if search.found is None:
            plain = answer.replace(b"\0", b"")  # UTF-16 becomes ASCII without its zeros
            tag = _FAULT_TAG.search(plain)
            return None if tag is None else plain[tag.end() : tag.end() + MAX_TEXT].decode("utf-8", "replace")
    return search.text if search.found else None


class _FaultSearch:
    def __init__(self) -> None:
        self.found: bool | None = None
        """None while undecided."""
        self.text = ""
        self._depth = 0
        self._in_body = False
        self._fault_depth = 0
        """The depth of the fault while it is open."""
        self._detail_depth = 0

    def on_start(self, tag: str, _: dict[str, str]) -> None:
        self._depth += 1
        name = tag.rpartition(":")[2]
        if self._depth == 2:
            self._in_body = name == "Body"
        elif self.found is None and (self._depth == 1 or (self._depth == 3 and self._in_body)):
            self.found = True if name == "Fault" else None
            self._fault_depth = self._depth if self.found else 0
        if self._fault_depth and self._depth == self._fault_depth + 1 and name in _DETAILS:
            self._detail_depth = self._depth

    def on_end(self, _: str) -> None:
        if self._depth == self._fault_depth:
            self._fault_depth = 0
        if self._depth == self._detail_depth:
            self._detail_depth = 0
        elif self._fault_depth:
            self.on_text("\n")
        self._depth -= 1
        if self.found is None and (not self._depth or (self._depth == 1 and self._in_body)):
            self.found = False

    def on_text(self, text: str) -> None:
        if self._fault_depth and not self._detail_depth and len(self.text) < MAX_TEXT:
            self.text += text[: MAX_TEXT - len(self.text)]
