"""The presence documents that the sandbox sends: correct PIDF, and deliberately broken or unusual documents.

Deliberately absent: which terminal gets which document (`__init__.py`, `behaviours.py`).
"""

import gzip
from dataclasses import dataclass
from html import escape

from app.domain.statuses import Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """The body of a NOTIFY, and its headers. An empty body is sent without Content-Type."""

    body: bytes
    content_type: str = "application/pidf+xml"
    content_encoding: str = ""


NOTHING = Document(body=b"")
_NAMESPACES = (
    'xmlns="urn:ietf:params:xml:ns:pidf" xmlns:dm="urn:ietf:params:xml:ns:pidf:data-model" '
    'xmlns:rpid="urn:ietf:params:xml:ns:pidf:rpid"'
)
_ON_THE_PHONE = '<dm:person id="p1"><rpid:activities><rpid:on-the-phone/></rpid:activities></dm:person>'


def _pidf(address: str, content: str, declaration: str = '<?xml version="1.0" encoding="UTF-8"?>') -> Document:
    entity = escape(address)
    return Document(body=f'{declaration}<presence {_NAMESPACES} entity="{entity}">{content}</presence>'.encode())


def _tuple(basic: str, ident: str = ' id="t1"') -> str:
    return f"<tuple{ident}><status><basic>{basic}</basic></status></tuple>"


def document(address: str, status: Status) -> Document:
    """The document (PIDF of RFC 3863, Busy by RFC 4480) that a correct presence server sends for this status."""
    if status is Status.UNREACHABLE:
        return _pidf(address, _tuple("closed"))
    return _pidf(address, _tuple("open") + (_ON_THE_PHONE if status is Status.BUSY else ""))


def big_document(address: str, size: int) -> Document:
    """A Reachable document of `size` bytes, padded with a note and a comment; longer if `size` is too small for it."""
    bare = len(_pidf(address, _tuple("open") + "<note></note><!---->").body)
    padding = max(0, size - bare)
    return _pidf(address, f"{_tuple('open')}<note>{'n' * (padding // 2)}</note><!--{'c' * (padding - padding // 2)}-->")


def bad_document(name: str, address: str) -> Document:
    """The document of the terminal `document-NAME`. Raises KeyError for an unknown name."""
    good = document(address, Status.REACHABLE)
    match name:
        case "no-id":
            return _pidf(address, _tuple("open", ident=""))
        case "comment":
            return _pidf(address, f"<!-- one -->{_tuple('<!-- two -->open<?three?>')}")
        case "prefix":
            return Document(
                body=(
                    '<p:presence xmlns:p="urn:ietf:params:xml:ns:pidf" xmlns:_="urn:ietf:params:xml:ns:pidf:rpid" '
                    f'xmlns:dm.1="urn:ietf:params:xml:ns:pidf:data-model" entity="{escape(address)}">'
                    '<p:tuple id="t1"><p:status><p:basic>open</p:basic></p:status></p:tuple>'
                    '<dm.1:person id="p1"><_:activities><_:on-the-phone/></_:activities></dm.1:person></p:presence>'
                ).encode()
            )
        case "ten-tuples":
            basics = ["closed"] * 6 + ["open"] + ["closed"] * 3
            return _pidf(address, "".join(_tuple(basic, f' id="t{at}"') for at, basic in enumerate(basics)))
        case "latin1":
            body = _pidf(address, f"{_tuple('open')}<note>déjà vu</note>").body.decode().encode("latin-1")
            return Document(body=body)
        case "cut":
            return Document(body=good.body[: len(good.body) * 2 // 3])
        case "gzip":
            return Document(body=gzip.compress(good.body, mtime=0), content_encoding="gzip")
        case "rlmi":
            rlmi = (
                '<?xml version="1.0"?><list xmlns="urn:ietf:params:xml:ns:rlmi" '
                f'uri="{escape(address)}" version="1" fullState="true"><resource uri="{escape(address)}">'
                '<instance id="1" state="active" cid="part2@sandbox"/></resource></list>'
            ).encode()
            parts = [(b"part1", b"application/rlmi+xml", rlmi), (b"part2", b"application/pidf+xml", good.body)]
            body = b"".join(
                b"--cut\r\nContent-ID: <%b@sandbox>\r\nContent-Type: %b\r\n\r\n%b\r\n" % part for part in parts
            )
            media = 'multipart/related;type="application/rlmi+xml";start="<part1@sandbox>";boundary="cut"'
            return Document(body=body + b"--cut--\r\n", content_type=media)
        case "bomb":
            entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
            dtd = f'<?xml version="1.0"?><!DOCTYPE presence [<!ENTITY e0 "boom">{entities}]>'
            return _pidf(address, f"{_tuple('open')}<note>&e9;</note>", dtd)
        case "dtd":
            return _pidf(address, _tuple("open"), '<?xml version="1.0"?><!DOCTYPE presence>')
        case "empty":
            return NOTHING
        case "text":
            return Document(body=b"open\r\n", content_type="text/plain")
    raise KeyError(name)
