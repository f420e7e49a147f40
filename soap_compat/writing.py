"""Writes the envelopes of the contract: answers, faults and callbacks.

Invariants: what is written is well-formed and valid by the schemas in `wsdl/`, whatever the values are: a test
validates all of it. Children of wrappers are qualified, children of shared types are not; the prefix of the wrappers'
namespace is always `tns`. By templates, and not by building trees: results may have thousands of terminals, and
callbacks are sent by the thousand a second.

Deliberately absent: namespaces and words themselves (`versions.py`, `schema.py`).
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from soap_compat.envelope import SOAP, clip
from soap_compat.faults import Detail, SoapFault

_UNSAFE = re.compile(r"[&<>\r]|[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ESCAPES: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;"}
_END: Final = "</soap11env:Body></soap11env:Envelope>"


def escape(text: str) -> str:
    """The text as it stands in an element: what XML cannot carry is replaced."""
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
    """An envelope with the wrapper `name` around `content`, whose own elements have the prefix `tns`."""
    if not content:
        return f"{_head(namespace)}<tns:{name}/>{_END}".encode()
    return f"{_head(namespace)}<tns:{name}>{content}</tns:{name}>{_END}".encode()


def text_part(name: str, value: str) -> str:
    """A part that is a child of the wrapper."""
    return f"<tns:{name}>{escape(value)}</tns:{name}>"


def status_part(name: str, address: str, word: str) -> str:
    """A part of type StatusInformation."""
    return f"<tns:{name}><address>{escape(address)}</address><currentStatus>{word}</currentStatus></tns:{name}>"


def retrieved_part(address: str, word: str) -> str:
    """A `result` of type StatusData that was retrieved."""
    return (
        f"<tns:result><address>{escape(address)}</address><reportStatus>Retrieved</reportStatus>"
        f"<currentStatus>{word}</currentStatus></tns:result>"
    )


def not_retrieved_part(address: str, error: Detail | None) -> str:
    """A `result` of type StatusData: Error with its information, or NotRetrieved."""
    if error is None:
        return f"<tns:result><address>{escape(address)}</address><reportStatus>NotRetrieved</reportStatus></tns:result>"
    return (
        f"<tns:result><address>{escape(address)}</address><reportStatus>Error</reportStatus>"
        f"<errorInformation>{_error(error)}</errorInformation></tns:result>"
    )


def error_part(name: str, error: Detail) -> str:
    """A part of type ServiceError."""
    return f"<tns:{name}>{_error(error)}</tns:{name}>"


def fault(answer: SoapFault, common: str) -> bytes:
    """An envelope with a fault; `common` is the namespace of its detail."""
    detail = ""
    if answer.detail is not None:
        element = f"common:{answer.detail.element}"
        detail = f'<detail><{element} xmlns:common="{common}">{_error(answer.detail)}</{element}></detail>'
    return (
        f"{_head('')}<soap11env:Fault><faultcode>soap11env:{answer.faultcode}</faultcode>"
        f"<faultstring>{escape(clip(answer.faultstring, 1000))}</faultstring>{detail}</soap11env:Fault>{_END}"
    ).encode()


def _error(error: Detail) -> str:
    return f"<messageId>{error.message_id}</messageId><text>{error.text}</text>{_variables(error.variables)}"


def _variables(variables: Iterable[str]) -> str:
    return "".join([f"<variables>{escape(clip(variable))}</variables>" for variable in variables])
