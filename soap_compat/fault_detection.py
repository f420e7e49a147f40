"""Whether an application's answer to a callback is a SOAP fault."""

import re
from xml.parsers import expat

from soap_compat.faults import SoapFault
from soap_compat.xml_input import EncodingAliasError, check_declaration, refuse_doctype

_FAULT_TAG = re.compile(rb"<(?:[^\s<>:/]+:)?Fault[\s/>]")


def has_fault(answer: bytes) -> bool:
    """Whether the answer is a SOAP fault: its Body has a child `Fault`, of any prefix or SOAP version, or `Fault` is
    its root. The answer may be cut off. If a syntax error, a DTD or a bad encoding comes before the end of its Body,
    any `Fault` tag counts."""
    search = _FaultSearch()

    def parser(encoding: str | None) -> expat.XMLParserType:
        made = expat.ParserCreate(encoding)  # without namespaces, so that undeclared prefixes are not errors
        made.StartElementHandler = search.on_start
        made.EndElementHandler = search.on_end
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
            # UTF-16 becomes ASCII without its zeros.
            return _FAULT_TAG.search(answer.replace(b"\0", b"")) is not None
    return bool(search.found)


class _FaultSearch:
    def __init__(self) -> None:
        self.found: bool | None = None
        """None while undecided."""
        self._depth = 0
        self._in_body = False

    def on_start(self, tag: str, _: dict[str, str]) -> None:
        self._depth += 1
        name = tag.rpartition(":")[2]
        if self._depth == 2:
            self._in_body = name == "Body"
        elif self.found is None and (self._depth == 1 or (self._depth == 3 and self._in_body)):
            self.found = True if name == "Fault" else None

    def on_end(self, _: str) -> None:
        self._depth -= 1
        if self.found is None and (not self._depth or (self._depth == 1 and self._in_body)):
            self.found = False
