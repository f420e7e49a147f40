"""Tests of `app/domain/presence.py`: each row of the status rule, and each way in which a document can be bad."""

import contextlib
import gc
import gzip
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.errors import DocumentUnreadable
from app.domain.presence import MAX_DEPTH, MAX_DOCUMENT_BYTES, MAX_MARKS, Presence, read_presence, status_of
from app.domain.statuses import Status

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
"""The time of the NOTIFYs."""
BUSY = frozenset({"on-the-phone", "busy"})
PIDF = 'xmlns="urn:ietf:params:xml:ns:pidf"'
EXTENSIONS = 'xmlns:dm="urn:ietf:params:xml:ns:pidf:data-model" xmlns:rpid="urn:ietf:params:xml:ns:pidf:rpid"'
OPEN = "<tuple id='o'><status><basic>open</basic></status></tuple>"
CLOSED = "<tuple id='c'><status><basic>closed</basic></status></tuple>"
PHONE = "<rpid:activities><rpid:on-the-phone/></rpid:activities>"

KAMAILIO_USRLOC = """\
<?xml version="1.0"?>
<presence xmlns="urn:ietf:params:xml:ns:pidf" xmlns:dm="urn:ietf:params:xml:ns:pidf:data-model" \
xmlns:rpid="urn:ietf:params:xml:ns:pidf:rpid" xmlns:c="urn:ietf:params:xml:ns:pidf:cipid" entity="alice@example.com">
  <tuple>
    <status>
      <basic>open</basic>
    </status>
  </tuple>
</presence>
"""
"""As Kamailio's `pua_usrloc` publishes a registration: no id on the tuple, no `sip:` in the entity."""

IMS = """\
<?xml version="1.0" encoding="UTF-8"?>
<pidf:presence xmlns:pidf="urn:ietf:params:xml:ns:pidf" xmlns:op="urn:oma:xml:prs:pidf:oma-pres"
    xmlns:pdm="urn:ietf:params:xml:ns:pidf:data-model" xmlns:r="urn:ietf:params:xml:ns:pidf:rpid"
    entity="tel:+15551234567">
  <pidf:tuple id="a1">
    <pidf:status><pidf:basic>open</pidf:basic></pidf:status>
    <op:service-description>
      <op:service-id>org.3gpp.urn:urn-7:3gpp-service.ims.icsi.mmtel</op:service-id><op:version>1.0</op:version>
    </op:service-description>
    <pdm:deviceID>urn:uuid:48662e19-5fbf-43fc-a2fd-d23002787599</pdm:deviceID>
    <pidf:contact priority="0.8">sip:alice@example.com</pidf:contact>
    <pidf:timestamp>2026-01-02T03:04:05Z</pidf:timestamp>
  </pidf:tuple>
  <pidf:tuple id="a2"><pidf:status><pidf:basic>closed</pidf:basic></pidf:status></pidf:tuple>
  <pdm:person id="p1">
    <op:overriding-willingness><op:basic>open</op:basic></op:overriding-willingness>
    <r:activities><r:note>in a call</r:note><r:on-the-phone/></r:activities>
    <pdm:note xml:lang="en">Back at three</pdm:note>
    <pdm:timestamp>2026-01-02T03:04:05Z</pdm:timestamp>
  </pdm:person>
  <pdm:device id="d1"><pdm:deviceID>urn:uuid:48662e19-5fbf-43fc-a2fd-d23002787599</pdm:deviceID></pdm:device>
</pidf:presence>
"""

CISCO = """\
<?xml version="1.0" encoding="UTF-8" standalone="no" ?>
<presence xmlns="urn:ietf:params:xml:ns:pidf" xmlns:dm="urn:ietf:params:xml:ns:pidf:data-model"
    xmlns:e="urn:ietf:params:xml:ns:pidf:status:rpid" xmlns:ce="urn:cisco:params:xml:ns:pidf:rpid"
    xmlns:sc="urn:ietf:params:xml:ns:pidf:servcaps" entity="sip:1000@192.0.2.1">
<dm:person><e:activities><ce:available/><e:on-the-phone/></e:activities></dm:person>
<tuple id="1"><status><basic>open</basic></status>
  <sc:servcaps><sc:audio>true</sc:audio></sc:servcaps></tuple>
</presence>
"""

ASTERISK = """\
<?xml version="1.0" encoding="ISO-8859-1"?>
<presence xmlns="urn:ietf:params:xml:ns:pidf"
xmlns:pp="urn:ietf:params:xml:ns:pidf:person"
xmlns:es="urn:ietf:params:xml:ns:pidf:rpid:status:rpid-status"
xmlns:ep="urn:ietf:params:xml:ns:pidf:rpid:rpid-person"
entity="sip:6001@192.0.2.1">
<pp:person><status>
<ep:activities><ep:busy/></ep:activities>
</status></pp:person>
<note>On the phone</note>
<tuple id="6001">
<contact priority="1">sip:6001@192.0.2.1</contact>
<status><basic>open</basic></status>
</tuple>
</presence>
"""

LINPHONE_OLD = """\
<?xml version="1.0" encoding="UTF-8"?>
<presence xmlns="urn:ietf:params:xml:ns:pidf"
          xmlns:es="urn:ietf:params:xml:ns:pidf:status:rpid-status"
          entity="sip:bob@example.com">
<tuple id="sg89ae">
<status>
<basic>open</basic>
<es:activities>
  <es:activity>on-the-phone</es:activity>
</es:activities>
</status>
<contact priority="0.8">sip:bob@example.com</contact>
<note>on the phone</note>
</tuple>
</presence>
"""


def pidf(*children: str) -> str:
    return f"<presence {PIDF} {EXTENSIONS} entity='sip:alice@example.com'>{''.join(children)}</presence>"


def person(activities: str) -> str:
    return f"<dm:person id='p'>{activities}</dm:person>"


def read(document: str | bytes) -> Presence:
    body = document if isinstance(document, bytes) else document.encode()
    return read_presence(body, "application/pidf+xml", at=NOW)


def status(document: str | bytes) -> Status:
    return status_of(read(document), BUSY)


def reason(body: bytes, content_type: str = "application/pidf+xml", content_encoding: str = "") -> str:
    with pytest.raises(DocumentUnreadable) as caught:
        read_presence(body, content_type, content_encoding, at=NOW)
    return caught.value.details["reason"]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        pytest.param("", Status.UNREACHABLE, id="empty body"),
        pytest.param(" \r\n\t", Status.UNREACHABLE, id="white space only"),
        pytest.param(pidf(), Status.UNREACHABLE, id="no tuple"),
        pytest.param(pidf(CLOSED), Status.UNREACHABLE, id="closed tuple"),
        pytest.param(pidf(OPEN), Status.REACHABLE, id="open tuple"),
        pytest.param(pidf(CLOSED, OPEN), Status.REACHABLE, id="one open tuple of two"),
        pytest.param(pidf(CLOSED * 9, OPEN), Status.REACHABLE, id="the last of ten tuples is open"),
        pytest.param(pidf(CLOSED * 10), Status.UNREACHABLE, id="ten closed tuples"),
        pytest.param(pidf(OPEN, person(PHONE)), Status.BUSY, id="activity of a person"),
        pytest.param(pidf(person(PHONE), OPEN), Status.BUSY, id="person before tuple"),
        pytest.param(pidf(OPEN, f"<dm:device id='d'>{PHONE}</dm:device>"), Status.BUSY, id="activity of a device"),
        pytest.param(
            pidf(f"<tuple id='t'>{PHONE}<status><basic>open</basic></status></tuple>"),
            Status.BUSY,
            id="activity of an open tuple, stated before its status",
        ),
        pytest.param(
            pidf(OPEN, f"<tuple id='t'><status><basic>closed</basic></status>{PHONE}</tuple>"),
            Status.REACHABLE,
            id="activity of a closed tuple",
        ),
        pytest.param(
            pidf(f"<tuple id='t'><status><basic>closed</basic></status>{PHONE}</tuple>", OPEN),
            Status.REACHABLE,
            id="activity of a closed tuple before an open one",
        ),
        pytest.param(pidf(CLOSED, person(PHONE)), Status.UNREACHABLE, id="activity without an open tuple"),
        pytest.param(
            pidf(OPEN, person("<rpid:activities><rpid:away/></rpid:activities>")),
            Status.REACHABLE,
            id="another activity",
        ),
        pytest.param(
            pidf(OPEN, person("<rpid:activities><rpid:away/><rpid:busy/></rpid:activities>")),
            Status.BUSY,
            id="a busy activity among others",
        ),
        pytest.param(
            pidf(OPEN, person("<rpid:activities/>"), person(PHONE)), Status.BUSY, id="the second person is busy"
        ),
    ],
)
def test_status_rule(document: str, expected: Status) -> None:
    """Each row of the status rule gives its status."""
    assert expected == status(document)


@pytest.mark.parametrize(
    ("document", "activities"),
    [
        pytest.param(KAMAILIO_USRLOC, set(), id="Kamailio pua_usrloc"),
        pytest.param(IMS, {"on-the-phone"}, id="IMS"),
        pytest.param(CISCO, {"available", "on-the-phone"}, id="Cisco"),
        pytest.param(ASTERISK, {"busy"}, id="Asterisk chan_sip"),
        pytest.param(ASTERISK.replace("<ep:busy/>", "ep:busy"), {"busy"}, id="Asterisk chan_pjsip"),
        pytest.param(LINPHONE_OLD, {"on-the-phone"}, id="old Linphone"),
    ],
)
def test_what_is_really_sent(document: str, activities: set[str]) -> None:
    """Documents in the form that real servers and phones write are read: open, with their activities."""
    assert Presence(open=True, activities=frozenset(activities)) == read(document)


@pytest.mark.parametrize(
    "document",
    [
        pytest.param("<tuple><status><basic>open</basic></status></tuple>", id="no id"),
        pytest.param("<tuple id='t'><status><basic> \n OPEN\t</basic></status></tuple>", id="case and white space"),
        pytest.param("<tuple id='t'><status><basic>op<!-- - -->en</basic></status></tuple>", id="comment in the word"),
        pytest.param("<tuple id='t'><status><basic><![CDATA[open]]></basic></status></tuple>", id="CDATA"),
        pytest.param("<tuple id='t'><status><basic>&#111;pen</basic></status></tuple>", id="character reference"),
        pytest.param("<?pi data?><tuple id='t'><status><?pi?><basic>open</basic></status></tuple>", id="instructions"),
        pytest.param("<note>x</note><x xmlns='urn:x'><y/></x>" + OPEN, id="unknown elements"),
        pytest.param("<tuple id='e'/><tuple id='s'><status/></tuple>" + OPEN, id="tuples without status or basic"),
    ],
)
def test_open_however_it_is_written(document: str) -> None:
    """An open tuple is open in every XML notation, and with any other elements beside it."""
    assert Presence(open=True, activities=frozenset()) == read(pidf(document))


@pytest.mark.parametrize(
    "document",
    [
        pytest.param("<tuple id='t'/>", id="no status"),
        pytest.param("<tuple id='t'><status/></tuple>", id="no basic"),
        pytest.param("<tuple id='t'><status><basic/></status></tuple>", id="empty basic"),
        pytest.param("<tuple id='t'><status><basic>opened</basic></status></tuple>", id="unknown word"),
        pytest.param("<tuple id='t'><basic>open</basic></tuple>", id="basic outside status"),
        pytest.param("<status><basic>open</basic></status>", id="status outside tuple"),
        pytest.param("<x xmlns='urn:x'>" + OPEN + "</x>", id="tuple in an unknown element"),
        pytest.param("<tuple id='t'><status><basic xmlns=''>open</basic></status></tuple>", id="no namespace"),
        pytest.param(
            "<tuple id='t'><status><basic>closed</basic></status><ts:timed-status "
            "xmlns:ts='urn:ietf:params:xml:ns:pidf:timed-status' from='2026-01-02T03:04:05Z'>"
            "<basic>open</basic></ts:timed-status></tuple>",
            id="open at another time (RFC 4481)",
        ),
        pytest.param("<!--" + OPEN + "-->", id="in a comment"),
        pytest.param("<note><![CDATA[" + OPEN + "]]></note>", id="in CDATA"),
    ],
)
def test_not_open(document: str) -> None:
    """A tuple is open only by `basic` with the value `open` in its own `status`."""
    assert status(pidf(document)) == Status.UNREACHABLE


@pytest.mark.parametrize(
    "element",
    [
        pytest.param(PHONE, id="outside person"),
        pytest.param(person("<rpid:on-the-phone/>"), id="outside activities"),
        pytest.param(person("<rpid:mood><rpid:busy/></rpid:mood>"), id="in mood"),
        pytest.param(person("<dm:note>busy</dm:note>"), id="in a note"),
        pytest.param(person("<rpid:activities><rpid:other>busy</rpid:other></rpid:activities>"), id="text of other"),
        pytest.param(person("<rpid:activities><rpid:note>busy</rpid:note></rpid:activities>"), id="text of note"),
        pytest.param(person("<rpid:activities><rpid:other><busy/></rpid:other></rpid:activities>"), id="too deep"),
        pytest.param(person("<rpid:activities><rpid:Busy/></rpid:activities>"), id="in another case"),
        pytest.param(person("<activities xmlns='urn:x'><busy/></activities>"), id="in a stranger's namespace"),
        pytest.param(f"<person xmlns='urn:x'>{PHONE}</person>", id="of a stranger's person"),
        pytest.param(
            "<ts:timed-status xmlns:ts='urn:ietf:params:xml:ns:pidf:timed-status'>" + PHONE + "</ts:timed-status>",
            id="at another time (RFC 4481)",
        ),
    ],
)
def test_not_busy(element: str) -> None:
    """Elements that only resemble a busy activity do not make a terminal busy."""
    assert status(pidf(OPEN, element)) == Status.REACHABLE


def test_prefix_meaning_ends_with_its_element() -> None:
    """A prefix that an element redeclares has its earlier namespace again after that element."""
    stranger = "<rpid:x xmlns:rpid='urn:x' xmlns='urn:y' xmlns:new='urn:z'><rpid:y/><new:y/></rpid:x>"
    assert status(pidf(stranger, OPEN, stranger, person(stranger + PHONE))) == Status.BUSY
    assert reason(pidf(stranger, "<new:x/>").encode()) == "malformed"


def test_busy_set_is_the_callers() -> None:
    """The operator chooses which activities make a terminal busy."""
    presence = Presence(open=True, activities=frozenset({"meeting"}))
    assert status_of(presence, BUSY) == Status.REACHABLE
    assert status_of(presence, {"meeting"}) == Status.BUSY
    assert status_of(presence, frozenset()) == Status.REACHABLE


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(pidf(OPEN, person(PHONE)).encode("utf-8-sig"), id="UTF-8 with byte order mark"),
        pytest.param(pidf(OPEN, person(PHONE)).encode("utf-16"), id="UTF-16 with byte order mark"),
        pytest.param(b"\xfe\xff" + pidf(OPEN, person(PHONE)).encode("utf-16-be"), id="UTF-16 big-endian"),
        pytest.param(
            ('<?xml version="1.0" encoding="utf-16"?>' + pidf(OPEN, person(PHONE))).encode("utf-16"), id="UTF-16 stated"
        ),
        pytest.param(
            b'<?xml version="1.0" encoding="iso-8859-1"?>'
            + pidf(OPEN, "<note>Ren\u00e9</note>", person(PHONE)).encode("iso-8859-1"),
            id="ISO-8859-1",
        ),
        pytest.param(pidf(OPEN, "<note>\u65e5\u672c \U0001f4de</note>", person(PHONE)).encode(), id="UTF-8"),
        pytest.param(b'\r\n<?xml version="1.0"?>' + pidf(OPEN, person(PHONE)).encode() + b"\r\n\r\n", id="blank lines"),
    ],
)
def test_encodings(body: bytes) -> None:
    """Each supported encoding gives the same result."""
    assert Presence(open=True, activities=frozenset({"on-the-phone"})) == read(body)


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/pidf+xml",
        "Application/PIDF+XML",
        "application/pidf+xml;charset=utf-16",
        ' application/pidf+xml ; charset="UTF-8"',
    ],
)
def test_content_type_of_pidf(content_type: str) -> None:
    """PIDF's media type is accepted in any case and with any parameters; a missing one is taken as PIDF."""
    assert read_presence(pidf(OPEN).encode(), content_type, "identity", at=NOW).open


@pytest.mark.parametrize(
    "content_type",
    [
        'multipart/related;type="application/rlmi+xml";boundary="50UBfW7LSCVLtggUPe5z"',
        "application/rlmi+xml",
        "application/xpidf+xml",
        "application/cpim-pidf+xml",
        "application/pidf-diff+xml",
        "application/dialog-info+xml",
        "text/plain",
    ],
)
def test_other_content_types_are_refused(content_type: str) -> None:
    """A NOTIFY with another media type, such as a resource list, is unreadable, not unreachable."""
    assert reason(pidf(OPEN).encode(), content_type) == "content-type"


def test_compressed_documents_are_refused() -> None:
    """The error for a compressed body says that it is compressed, even where its header is missing."""
    body = gzip.compress(pidf(OPEN).encode())
    assert reason(body) == "content-encoding"
    assert reason(body, content_encoding="GZIP") == "content-encoding"
    assert reason(pidf(OPEN).encode(), content_encoding="br") == "content-encoding"


def test_empty_body_needs_no_headers() -> None:
    """An empty body means that there is no document, whatever the headers say."""
    assert Presence(open=False, activities=frozenset()) == read_presence(b"", "multipart/related", "gzip", at=NOW)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"Not found", id="not XML"),
        pytest.param(b"<", id="one character"),
        pytest.param(b"\0", id="NUL"),
        pytest.param(pidf(OPEN).encode() + b"\0", id="NUL after it"),
        pytest.param(pidf(OPEN).encode() + b"<presence/>", id="two roots"),
        pytest.param(pidf("<tuple><status></tuple></status>").encode(), id="crossed tags"),
        pytest.param(pidf("<tuple id='1' id='2'/>").encode(), id="attribute twice"),
        pytest.param(pidf("<note>&nbsp;</note>").encode(), id="unknown entity"),
        pytest.param(pidf("<note>&#0;</note>").encode(), id="impossible character"),
        pytest.param(pidf("<oops:x/>").encode(), id="prefix not declared"),
        pytest.param(pidf("<note>Ren\u00e9</note>").encode("iso-8859-1"), id="ISO-8859-1 as UTF-8"),
        pytest.param(b'<?xml version="1.0" encoding="UTF-16"?>' + pidf().encode(), id="UTF-8 as UTF-16"),
        pytest.param(('<?xml version="1.0" encoding="UTF-8"?>' + pidf()).encode("utf-16"), id="UTF-16 as UTF-8"),
        pytest.param(pidf().encode("utf-32"), id="UTF-32"),
        pytest.param(b'<?xml version="1.0" encoding="unicode_escape"?>' + pidf().encode(), id="a Python codec"),
        pytest.param(b'<?xml version="1.0" encoding="x-none"?>' + pidf().encode(), id="no such encoding"),
    ],
)
def test_malformed_documents(body: bytes) -> None:
    """A document that is not well-formed is unreadable, not unreachable."""
    assert reason(body) == "malformed"


@pytest.mark.parametrize("document", [IMS, CISCO, ASTERISK], ids=["IMS", "Cisco", "Asterisk"])
def test_cut_short_anywhere(document: str) -> None:
    """A document that is cut at any byte is unreadable, and never read as a shorter document."""
    body = document.strip().encode()
    assert {"malformed"} == {reason(body[:length]) for length in range(1, len(body))}


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(f"<tuple {PIDF}/>", id="another element"),
        pytest.param("<presence/>", id="no namespace"),
        pytest.param('<presence xmlns="urn:ietf:params:xml:ns:pidf:data-model"/>', id="an extension's namespace"),
        pytest.param('<list xmlns="urn:ietf:params:xml:ns:rlmi" uri="sip:l@example.com" version="1"/>', id="RLMI"),
        pytest.param('<pidf-full xmlns="urn:ietf:params:xml:ns:pidf-diff"/>', id="partial PIDF"),
        pytest.param(f"<x>{pidf(OPEN)}</x>", id="presence inside"),
    ],
)
def test_other_roots_are_refused(document: str) -> None:
    """Only `presence` in PIDF's namespace is a presence document."""
    assert reason(document.encode()) == "root"


DTDS = {
    "name only": "<!DOCTYPE presence>",
    "external": "<!DOCTYPE presence SYSTEM 'http://127.0.0.1:9/pidf.dtd'>",
    "entity": "<!DOCTYPE presence [<!ENTITY e 'open'>]>",
    "external entity": "<!DOCTYPE presence [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>",
    "parameter entity": "<!DOCTYPE presence [<!ENTITY % e SYSTEM 'file:///etc/passwd'> %e;]>",
    "default attribute": "<!DOCTYPE presence [<!ATTLIST presence entity CDATA 'x'>]>",
    "laughs": "<!DOCTYPE presence [<!ENTITY e0 'ha'>"
    + "".join(f"<!ENTITY e{i} '{f'&e{i - 1};' * 10}'>" for i in range(1, 20))
    + "<!ENTITY e '&e19;'>]>",
    # Unbounded recursion in Expat 2.5: if DTDs were read, this document would end the process.
    "chain": "<!DOCTYPE presence [<!ENTITY e0 'ha'>"
    + "".join(f"<!ENTITY e{i} '&e{i - 1};'>" for i in range(1, 30_000))
    + "<!ENTITY e '&e29999;'>]>",
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("dtd", DTDS.values(), ids=DTDS.keys())
def test_dtds_are_refused(dtd: str, encoding: str) -> None:
    """Any DTD is refused before it is read, in any encoding, even behind a comment."""
    body = f"<!-- x -->{dtd}{pidf('<note>&e;</note>', OPEN)}".encode(encoding)
    assert reason(body[:MAX_DOCUMENT_BYTES]) == "dtd"


def test_dtd_in_a_comment_is_no_dtd() -> None:
    """A document that mentions a DTD only in a comment is read."""
    assert status(pidf("<!-- <!DOCTYPE x> --><note><![CDATA[<!DOCTYPE x>]]></note>", OPEN)) == Status.REACHABLE


def test_size_is_bounded() -> None:
    """A document of exactly the limit is read; one byte more is refused without reading the document."""
    document = pidf(OPEN).encode()
    assert read(document.ljust(MAX_DOCUMENT_BYTES)).open
    assert reason(document.ljust(MAX_DOCUMENT_BYTES + 1)) == "too-large"
    assert reason(b" " * (MAX_DOCUMENT_BYTES + 1)) == "too-large"


def test_depth_is_bounded() -> None:
    """A document of exactly the maximum nesting is read; one level more is refused."""

    def nested(depth: int) -> str:
        return pidf(OPEN, "<x>" * (depth - 1), "</x>" * (depth - 1))

    assert read(nested(MAX_DEPTH)).open
    assert reason(nested(MAX_DEPTH + 1).encode()) == "too-deep"
    assert reason(b"<presence xmlns='urn:ietf:params:xml:ns:pidf'>" + b"<x>" * 300_000) == "too-deep"


@pytest.mark.parametrize(
    "filling",
    [
        pytest.param("<x/>" * 200_000, id="elements"),
        pytest.param("<x a=''/>" * MAX_MARKS, id="attributes"),
        pytest.param("<x " + " ".join(f"xmlns:p{i}='u'" for i in range(60_000)) + "/>", id="one tag of prefixes"),
        pytest.param("<x " + " ".join(f"p{i}='u'" for i in range(60_000)) + "/>", id="one tag of attributes"),
        pytest.param(f"<{'x' * 900_000}/>", id="a long name"),
        pytest.param(f"<x p='{'x' * 900_000}'/>", id="a long value"),
        pytest.param(f"<tuple id='w'>{PHONE.replace('<rpid:on-the-phone/>', 'a ' * 400_000)}</tuple>", id="words"),
        pytest.param(f"<!--{'x' * 900_000}-->", id="a long comment"),
    ],
)
def test_hostile_shapes_are_refused(filling: str) -> None:
    """Documents that would block the process are refused by their number of elements and attributes, or by the length
    of one tag."""
    assert reason(pidf(filling, OPEN).encode()) == "too-large"


@pytest.mark.parametrize(
    "filling",
    [
        pytest.param("<x a=''/>" * (MAX_MARKS // 2 - 50), id="elements"),
        pytest.param(f"<x xmlns:p='{'u' * 50_000}'>{'<p:x/>' * 9_000}</x>", id="a long namespace, used often"),
        pytest.param(f"<note>{'x' * 900_000}</note>", id="text"),
        pytest.param(f"<note><![CDATA[{'x' * 900_000}]]></note>", id="cdata"),
        pytest.param("<!-- x -->" * 90_000, id="comments"),
    ],
)
def test_large_documents_are_read(filling: str) -> None:
    """The bounds leave room for elements that are ignored."""
    assert read(pidf(filling, OPEN)).open


def test_nothing_is_left_behind() -> None:
    """Reading leaves no reference cycles, whether it succeeds or not, so the memory is free again at once."""
    gc.collect()
    gc.disable()
    try:
        read(IMS)
        for body in (b"<", b"<!DOCTYPE x>", b"<x/>"):
            with contextlib.suppress(DocumentUnreadable):
                read(body)
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_message_is_bounded() -> None:
    """An error message quotes text of the document, cut to a bound."""
    with pytest.raises(DocumentUnreadable) as caught:
        read_presence(b"<" + b"x" * 10_000 + b"/>", "", at=NOW)
    assert len(str(caught.value)) < 200


RPID = "xmlns='urn:ietf:params:xml:ns:pidf:rpid'"
RPID_TUPLE = "xmlns='urn:ietf:params:xml:ns:pidf:rpid-tuple'"


def of_tuple(element: str, *, in_status: str = "") -> str:
    """A tuple that is open and on the phone, with an element that names its person or its service."""
    return f"<tuple id='t'><status><basic>open</basic>{in_status}</status>{element}{PHONE}</tuple>"


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(of_tuple(f"<relationship {RPID}><assistant/></relationship>"), id="assistant"),
        pytest.param(of_tuple(f"<relationship {RPID}><note>his</note><family/></relationship>"), id="with a note"),
        pytest.param(of_tuple(f"<relationship {RPID}><other>self</other></relationship>"), id="other, called self"),
        pytest.param(of_tuple(f"<relationship {RPID}><unknown/></relationship>"), id="unknown"),
        pytest.param(of_tuple(f"<relationship {RPID}><x xmlns='urn:x'/></relationship>"), id="a word of a stranger"),
        pytest.param(of_tuple(f"<relationship {RPID}><self/><friend/></relationship>"), id="self and friend"),
        pytest.param(of_tuple(f"<relationship {RPID_TUPLE}>assistant</relationship>"), id="rpid-tuple, text"),
        pytest.param(of_tuple(f"<relationship {RPID_TUPLE}><assistant/></relationship>"), id="rpid-tuple, element"),
        pytest.param(of_tuple("", in_status=f"<relationship {RPID}>friend</relationship>"), id="in the status"),
        pytest.param(of_tuple(f"<service-class {RPID}><postal/></service-class>"), id="a postal address"),
        pytest.param(of_tuple(f"<service-class {RPID}><note>by</note><courier/></service-class>"), id="a courier"),
    ],
)
def test_tuples_of_others_count_for_nothing(other: str) -> None:
    """RFC 4480 sections 3.9 and 3.12: a tuple of another person, or of a service that is not electronic, makes a
    terminal neither open nor busy, wherever the tuple is in the document."""
    assert Presence(open=False, activities=frozenset()) == read(pidf(other))
    for document in (pidf(other, OPEN), pidf(OPEN, other), pidf(CLOSED, other, OPEN)):
        assert Presence(open=True, activities=frozenset()) == read(document)
    assert status(pidf(CLOSED, other)) == status(pidf(other, CLOSED)) == Status.UNREACHABLE


@pytest.mark.parametrize(
    "own",
    [
        pytest.param(of_tuple(""), id="none"),
        pytest.param(of_tuple(f"<relationship {RPID}/>"), id="empty"),
        pytest.param(of_tuple(f"<relationship {RPID}> <!-- x -->\n</relationship>"), id="white space"),
        pytest.param(of_tuple(f"<relationship {RPID}><self/></relationship>"), id="self"),
        pytest.param(
            of_tuple(f"<relationship {RPID}><note>assistant</note><self/></relationship>"), id="note and self"
        ),
        pytest.param(of_tuple(f"<relationship {RPID_TUPLE}>\nself </relationship>"), id="rpid-tuple, text"),
        pytest.param(of_tuple("<relationship xmlns='urn:x'><family/></relationship>"), id="a stranger's element"),
        pytest.param(of_tuple(f"<service-class {RPID}><electronic/></service-class>"), id="electronic"),
        pytest.param(of_tuple(f"<service-class {RPID}><unknown/></service-class>"), id="unknown service class"),
        pytest.param(f"<relationship {RPID}><family/></relationship>{of_tuple('')}", id="outside a tuple"),
        pytest.param(person(f"<relationship {RPID}><family/></relationship>") + of_tuple(""), id="in a person"),
    ],
)
def test_own_tuples_count(own: str) -> None:
    """RFC 4480 section 3.9: without `relationship`, or with `self`, a tuple is the presentity's own."""
    assert Presence(open=True, activities=frozenset({"on-the-phone"})) == read(pidf(own))


# --- Properties -----------------------------------------------------------------------------------------------------

ACTIVITIES = st.sets(st.sampled_from(["on-the-phone", "busy", "away", "meeting", "vacation", "other"]))


@dataclass(frozen=True)
class Part:
    """A tuple, person or device of a document; persons have no timestamp."""

    kind: str
    basic: str  # for tuples only
    activities: frozenset[str]


PARTS = st.lists(
    st.builds(
        Part,
        kind=st.sampled_from(["tuple", "person", "device"]),
        basic=st.sampled_from(["open", "closed", ""]),
        activities=ACTIVITIES.map(frozenset),
    ),
    max_size=12,
)
MARKS = st.lists(
    st.sampled_from(["<!---->", "<!-- <basic>open</basic> -->", "<?pi <basic>open</basic>?>", "\r\n  "]), max_size=4
).map("".join)
STRANGERS = st.lists(
    st.sampled_from(
        [
            "<z:z xmlns:z='urn:z'><z:basic>open</z:basic></z:z>",
            "<x xmlns='urn:ietf:params:xml:ns:pidf:caps' xmlns:a='urn:a'><a:busy/></x>",
        ]
    ),
    max_size=2,
).map("".join)
PREFIXES = st.lists(
    st.from_regex(r"([A-Wa-w_][A-Za-z0-9._-]{0,5})?", fullmatch=True), min_size=3, max_size=3, unique=True
)
"""Three different prefixes, one of them perhaps "" (the default namespace); none begins as the reserved `xml` does."""


def meaning(parts: list[Part]) -> Presence:
    """The status rule a second time, on parts instead of XML."""
    counting = [part for part in parts if part.kind != "tuple" or part.basic == "open"]
    return Presence(
        open=any(part.kind == "tuple" for part in counting),
        activities=frozenset().union(*(part.activities for part in counting)),
        closed_activities=frozenset().union(*(part.activities for part in parts if part not in counting)),
    )


def written(parts: list[Part], prefixes: list[str], marks: str = "", strangers: str = "") -> str:
    """A document with these parts, and these prefixes for PIDF, data model and RPID.

    Each gap contains marks (comments and the like), and unknown elements where these have no meaning.
    """
    p, dm, rpid = (f"{prefix}:" if prefix else "" for prefix in prefixes)
    gap = marks + strangers
    declarations = " ".join(
        f"xmlns{':' if prefix else ''}{prefix}='urn:ietf:params:xml:ns:pidf{suffix}'"
        for prefix, suffix in zip(prefixes, ("", ":data-model", ":rpid"), strict=True)
    )
    children = []
    for part in parts:
        activities = marks.join(f"<{rpid}{activity}/>" for activity in part.activities)
        content = f"{gap}<{rpid}activities>{marks}{activities}{marks}</{rpid}activities>{gap}"
        if part.kind == "tuple":
            basic = f"<{p}basic>{marks}{part.basic}{marks}</{p}basic>" if part.basic else ""
            children.append(f"<{p}tuple>{gap}<{p}status>{gap}{basic}{gap}</{p}status>{content}</{p}tuple>")
        else:
            children.append(f"<{dm}{part.kind}>{content}</{dm}{part.kind}>")
    return f"{marks.lstrip()}<{p}presence {declarations}>{gap}{gap.join(children)}{gap}</{p}presence>{marks}"


@settings(max_examples=100, deadline=None)
@given(parts=PARTS, data=st.data())
def test_order_never_matters(parts: list[Part], data: st.DataObject) -> None:
    """A document means the same for every order of its tuples, persons and devices."""
    shuffled = data.draw(st.permutations(parts))
    prefixes = ["", "dm", "rpid"]
    assert meaning(parts) == read(written(parts, prefixes)) == read(written(shuffled, prefixes))


@settings(max_examples=100, deadline=None)
@given(parts=PARTS, prefixes=PREFIXES, marks=MARKS, strangers=STRANGERS)
def test_comments_and_prefixes_never_matter(parts: list[Part], prefixes: list[str], marks: str, strangers: str) -> None:
    """A document means the same with comments, instructions, blanks and unknown elements, under any prefixes."""
    document = written(parts, prefixes, marks, strangers)
    assert read(document) == read(document.encode("utf-16")) == meaning(parts)


def survives(body: bytes) -> None:
    """Reads a body; any exception but DocumentUnreadable fails the test."""
    with contextlib.suppress(DocumentUnreadable):
        read_presence(body, "", at=NOW)


@settings(max_examples=300, deadline=None)
@given(st.binary() | st.text().map(str.encode) | st.text("<>/&;!?[]-=:'\" axpn\n").map(str.encode))
def test_arbitrary_bytes(body: bytes) -> None:
    """Arbitrary bytes raise no exception but DocumentUnreadable."""
    survives(body)


@settings(max_examples=600, deadline=None)
@given(
    document=st.sampled_from(
        [
            *(text.encode() for text in (KAMAILIO_USRLOC, IMS, CISCO, ASTERISK, LINPHONE_OLD)),
            pidf(OPEN, person(PHONE)).encode("utf-16-le"),
            pidf(OPEN, person(PHONE)).encode("utf-16-be"),
            (DTDS["entity"] + pidf(OPEN)).encode(),
        ]
    ),
    edits=st.lists(
        st.tuples(
            st.floats(0, 1),
            st.integers(0, 20),
            st.binary(max_size=3)
            | st.sampled_from(
                [b"<", b">", b"&", b"<!--", b"<![CDATA[", b"<!DOCTYPE x>", b"&#xD800;", b"<?xml?>", b"\xd8\x00"]
            ),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_mutated_documents(document: bytes, edits: list[tuple[float, int, bytes]]) -> None:
    """A document with lost, changed or inserted bytes raises no exception but DocumentUnreadable."""
    for where, lost, put_in in edits:
        at = int(where * len(document))
        document = document[:at] + put_in + document[at + lost :]
    survives(document)
