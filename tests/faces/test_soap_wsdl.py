"""The WSDL documents as the SOAP face serves them, and client stubs made from them."""

from collections.abc import Iterator
from typing import Any

import pytest
import zeep
from lxml import etree

from soap_compat.operations import INTERFACES
from soap_compat.wsdl_files import SERVICES
from tests.support.soap import (
    WSDL,
    Reply,
    app_for,
    call,
    served,
)

__all__ = ["served"]  # a fixture


def location(reply: Reply) -> str:
    (address,) = etree.fromstring(reply.body).iter("{http://schemas.xmlsoap.org/wsdl/soap/}address")
    return str(address.get("location"))


@pytest.mark.parametrize(
    ("host", "public_url", "expected"),
    [
        ("gateway.example:8443", None, "http://gateway.example:8443/parlayx/TerminalStatus"),
        ("[2001:db8::1]:80", None, "http://[2001:db8::1]:80/parlayx/TerminalStatus"),
        ("", None, "http://127.0.0.1:8080/parlayx/TerminalStatus"),
        ("evil.example", "https://a.example/api/", "https://a.example/api/parlayx/TerminalStatus"),
        ("evil.example", "https://a.example/?a=1&b=<2>", "https://a.example/?a=1&b=<2>/parlayx/TerminalStatus"),
    ],
)
async def test_wsdl_address(host: str, public_url: str | None, expected: str) -> None:
    """The WSDL has the configured address, or else the address that its reader used."""
    reply = await call(app_for(public_url=public_url), method="GET", query=b"WSDL", host=host)
    assert (reply.status, reply.headers["content-type"]) == (200, "text/xml; charset=utf-8")
    assert location(reply) == expected


@pytest.mark.parametrize("host", ['x"/><evil', "a b", "a/b", "user@host", "a\u00e9", "host:port", "[::1", "-"])
async def test_wsdl_host_is_checked(host: str) -> None:
    """An invalid Host header is not copied into the WSDL."""
    assert (await call(app_for(), method="GET", query=b"wsdl", host=host)).status == 400


FILES = ["/TerminalStatus?wsdl", "/TerminalStatusNotification?wsdl", "/parlayx_common_types_2_1.xsd"]


async def read(path: str, app: Any = None, *, method: str = "GET", if_none_match: str = "") -> Reply:
    name, _, query = path.partition("?")
    app = app or app_for()
    return await call(app, method=method, path=name, query=query.encode(), if_none_match=if_none_match)


@pytest.mark.parametrize("path", FILES)
async def test_files_are_cached(path: str) -> None:
    """Each file may be kept for a while, and has a validator: a request that names it gets 304 without a body, with the
    same headers (RFC 9110 sections 13.1.2 and 15.4.5)."""
    first = await read(path)
    etag = first.headers["etag"]
    assert first.headers["cache-control"] == "public, max-age=3600"
    for named in (etag, f"W/{etag}", f'"x", {etag}', "*"):
        again = await read(path, if_none_match=named)
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", etag)
        assert again.headers["cache-control"] == first.headers["cache-control"]
        assert (await read(path, method="HEAD", if_none_match=named)).status == 304
    for named in ('"x"', etag.strip('"'), ""):
        assert (await read(path, if_none_match=named)).body == first.body


async def test_validator_changes_with_the_address() -> None:
    """Files with different bytes have different validators: the address in a WSDL is part of it."""
    tags = {
        (await read(path, app_for(public_url=url))).headers["etag"]
        for path in FILES
        for url in ("https://a.example", "https://b.example")
    }
    assert len(tags) == len(FILES) + 1  # only the first of them has the gateway's address


def test_files_hang_together() -> None:
    """Each file is well-formed, and imports only files beside it, by relative address."""
    names = {path.name for path in WSDL.iterdir()}
    imported = set()
    for name in names:
        for element in etree.parse(WSDL / name).iter("{*}import"):
            imported.add(element.get("location") or element.get("schemaLocation"))
    assert imported | set(SERVICES.values()) == names


@pytest.mark.parametrize("name", INTERFACES)
def test_wsdl_declares_what_is_served(name: str) -> None:
    """The operations and parts of the WSDL are those of the Spyne model, with shared types and both faults; only
    `requester`, a part of 3.x, is missing from the 2.x WSDL."""
    operations, dialect = INTERFACES[name]
    interface = etree.parse(WSDL / SERVICES[name].replace("_service_", "_interface_"))
    served = {}
    for operation, method in operations.public_methods.items():
        served[operation] = members(method.in_message)
        assert served[operation].pop("requester") == ("anyURI", "0", "1")
        served[f"{operation}Response"] = members(method.out_message)
    (schema,) = interface.iter("{*}schema")
    assert schema.get("targetNamespace") == dialect.local
    assert declared(schema) == served
    for element in interface.iterfind("{http://schemas.xmlsoap.org/wsdl/}portType/{*}operation"):
        assert [fault.get("name") for fault in element.iter("{*}fault")] == ["ServiceException", "PolicyException"]


def test_shared_types_are_declared_as_they_are_read() -> None:
    """The members and enumerations of the shared Spyne types are those of the XSD files."""
    from spyne.model.enum import EnumBase  # after soap_compat, which suppresses the warnings of Spyne's imports

    files = [
        etree.parse(WSDL / f"parlayx_{name}.xsd").getroot()
        for name in ("common_types_2_1", "terminal_status_types_2_2")
    ]
    written: dict[str, Any] = {}
    for file in files:
        written |= declared(file)
        for simple in file.iterfind("{*}simpleType"):
            written[simple.get("name", "")] = {value.get("value") for value in simple.iter("{*}enumeration")}
    seen = dict(models())
    assert seen.keys() >= {"SimpleReference", "TimeMetric", "TimeMetrics", "Status", "StatusData", "ServiceError"}
    for name, model in seen.items():
        assert written[name] == (set(model.__values__) if issubclass(model, EnumBase) else members(model)), name


def declared(schema: etree._Element) -> dict[str, dict[str, tuple[str, str, str]]]:
    """Type, minOccurs and maxOccurs of each member of each complex type of a schema, in order."""
    return {
        kind.get("name", ""): {
            member.get("name", ""): (
                member.get("type", "").partition(":")[2],
                member.get("minOccurs", "1"),
                member.get("maxOccurs", "1"),
            )
            for member in kind.iter("{*}element")
        }
        for kind in schema.iterfind("{*}complexType")
    }


def members(model: Any) -> dict[str, tuple[str, str, str]]:
    """The same facts about a Spyne model."""
    found = {}
    for name, member in model.get_flat_type_info(model).items():
        if member.get_type_name() is None:
            continue
        attributes = member.Attributes
        most = "unbounded" if attributes.max_occurs > 1 else "1"
        found[name] = (member.get_type_name(), str(attributes.min_occurs), most)
    return found


def models(*tops: Any) -> Iterator[tuple[str, Any]]:
    """The shared types of the operations, by name."""
    from spyne import ComplexModel
    from spyne.model.enum import EnumBase

    methods = [method for operations, _ in INTERFACES.values() for method in operations.public_methods.values()]
    for top in tops or [message for method in methods for message in (method.in_message, method.out_message)]:
        for member in top.get_flat_type_info(top).values():
            if issubclass(member, ComplexModel | EnumBase):
                yield member.get_type_name(), member
            if issubclass(member, ComplexModel):
                yield from models(member)


def test_stub_generator(served: str) -> None:
    """A client generated from the WSDL gets the status, and reads a fault's fields."""
    with zeep.Client(f"{served}?wsdl") as client:  # type: ignore[no-untyped-call]  # zeep has few types
        assert client.service.getStatus("sip:alice@example.com") == "Busy"
        assert client.service.getStatus(address="sip:alice@example.com") == "Busy"
        with pytest.raises(zeep.exceptions.Fault) as caught:
            client.service.getStatus("sip:bob@example.com")
        (detail,) = caught.value.detail
        fault = client.wsdl.types.deserialize(detail)
    assert (fault.messageId, fault.variables) == ("POL0002", ["sip:bob@example.com"])
    assert fault.text == "Privacy verification failed for address %1, request is refused"
    assert caught.value.code.endswith(":Server")
