"""The request and the response of getStatus, as a Parlay X client writes and reads them; for the command line."""

from dataclasses import dataclass
from xml.sax.saxutils import escape

from lxml import etree

_ENVELOPE = "http://schemas.xmlsoap.org/soap/envelope/"
_LOCAL = "http://www.csapi.org/schema/parlayx/terminal_status/v2_2/local"
_PARSER = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=False)


@dataclass(frozen=True, slots=True)
class Fault:
    """A SOAP fault: the Parlay X message id (or the fault code), and the text with its variables filled in."""

    message_id: str
    text: str

    def __str__(self) -> str:
        return self.text


def get_status_request(address: str) -> bytes:
    """The body of `POST …/parlayx/TerminalStatus` that calls getStatus for `address`."""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><e:Envelope xmlns:e="{_ENVELOPE}"><e:Body>'
        f'<l:getStatus xmlns:l="{_LOCAL}"><l:address>{escape(address)}</l:address></l:getStatus>'
        "</e:Body></e:Envelope>"
    ).encode()


def read_get_status(body: bytes) -> tuple[str, Fault]:
    """The status (`Reachable`, `Unreachable`, `Busy`), or "" and the fault. Raises ValueError for any other body."""
    try:
        root = etree.fromstring(body, _PARSER)
    except etree.XMLSyntaxError as error:
        raise ValueError(str(error)) from None
    result = root.findtext(f".//{{{_LOCAL}}}getStatusResponse/{{{_LOCAL}}}result")
    if result:
        return result, Fault("", "")
    fault = root.find(f".//{{{_ENVELOPE}}}Fault")
    if fault is None:
        raise ValueError("the body has neither a result nor a fault")
    text = fault.findtext(".//text") or fault.findtext("faultstring") or ""
    for number, variable in enumerate(fault.findall(".//variables"), start=1):
        text = text.replace(f"%{number}", variable.text or "")
    return "", Fault(fault.findtext(".//messageId") or fault.findtext("faultcode") or "", text)
