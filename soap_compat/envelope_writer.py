"""Writes the contract's envelopes: responses, faults and callbacks.

The envelopes are made from templates, not from element trees: a response may have thousands of terminals, and thousands
of callbacks may be sent in a second.

Invariants: an envelope is well-formed and valid against the schemas in `wsdl/` for all values (a test validates each
kind). Children of wrapper elements are qualified, with the prefix `tns`; children of shared types are not.

Deliberately absent: the namespaces (`versions.py`) and the words of statuses (`contract_types.py`).
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from soap_compat.faults import Detail, SoapFault
from soap_compat.request_envelope import SOAP
from soap_compat.xml_input import clip

_UNSAFE = re.compile(r"[&<>\r]|[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ESCAPES: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;"}
_END: Final = "</soap11env:Body></soap11env:Envelope>"


def escape(text: str) -> str:
    """The text escaped for an element's content; characters that XML cannot carry become U+FFFD."""
    if not _UNSAFE.search(text):
        return text
    return _UNSAFE.sub(lambda match: _ESCAPES.get(match[0], "\ufffd"), text)


@lru_cache(maxsize=64)
def _head(namespace: str) -> str:
    declared = f' xmlns:tns="{namespace}"' if namespace else ""
    return (
        "<?xml version='1.0' encoding='UTF-8'?>\n"
        f'<soap11env:Envelope xmlns:soap11env="{SOAP}"{declared}><soap11env:Body>'
    )


def message(namespace: str, name: str, content: str) -> bytes:
    """An envelope with the wrapper element `name` around `content`, whose elements have the prefix `tns`."""
    if not content:
        return f"{_head(namespace)}<tns:{name}/>{_END}".encode()
    return f"{_head(namespace)}<tns:{name}>{content}</tns:{name}>{_END}".encode()


def text_part(name: str, value: str) -> str:
    """A child of the wrapper with text."""
    return f"<tns:{name}>{escape(value)}</tns:{name}>"


def status_part(name: str, address: str, word: str) -> str:
    """A child of the wrapper of type StatusInformation."""
    return f"<tns:{name}><address>{escape(address)}</address><currentStatus>{word}</currentStatus></tns:{name}>"


def retrieved_part(address: str, word: str) -> str:
    """A `result` of type StatusData with a status."""
    return (
        f"<tns:result><address>{escape(address)}</address><reportStatus>Retrieved</reportStatus>"
        f"<currentStatus>{word}</currentStatus></tns:result>"
    )


def not_retrieved_part(address: str, error: Detail | None) -> str:
    """A `result` of type StatusData without a status: Error with `error`, NotRetrieved without."""
    if error is None:
        return f"<tns:result><address>{escape(address)}</address><reportStatus>NotRetrieved</reportStatus></tns:result>"
    return (
        f"<tns:result><address>{escape(address)}</address><reportStatus>Error</reportStatus>"
        f"<errorInformation>{_error(error)}</errorInformation></tns:result>"
    )


def error_part(name: str, error: Detail) -> str:
    """A child of the wrapper of type ServiceError."""
    return f"<tns:{name}>{_error(error)}</tns:{name}>"


def fault(error: SoapFault, common: str) -> bytes:
    """An envelope with a fault; `common` is the namespace of its detail."""
    detail = ""
    if error.detail is not None:
        element = f"common:{error.detail.element}"
        detail = f'<detail><{element} xmlns:common="{common}">{_error(error.detail)}</{element}></detail>'
    return (
        f"{_head('')}<soap11env:Fault><faultcode>soap11env:{error.faultcode}</faultcode>"
        f"<faultstring>{escape(clip(error.faultstring, 1000))}</faultstring>{detail}</soap11env:Fault>{_END}"
    ).encode()


def _error(error: Detail) -> str:
    return f"<messageId>{error.message_id}</messageId><text>{error.text}</text>{_variables(error.variables)}"


def _variables(variables: Iterable[str]) -> str:
    return "".join([f"<variables>{escape(clip(variable))}</variables>" for variable in variables])
