"""Tests of `app/domain/presence.py` with what servers and clients in the field send: dialects, older drafts, times."""

from datetime import UTC, datetime, timedelta

import pytest

from app.domain.errors import DocumentUnreadable
from app.domain.presence import Presence, read_presence, status_of
from app.domain.statuses import Status
from app.domain.xml_times import read_time

BUSY = frozenset({"on-the-phone", "busy"})
NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
"""The time of the NOTIFYs."""
PIDF = "urn:ietf:params:xml:ns:pidf"
NAMESPACES = (
    f'xmlns:dm="{PIDF}:data-model" xmlns:rp="{PIDF}:rpid" xmlns:op="urn:oma:xml:prs:pidf:oma-pres" xmlns:p="{PIDF}"'
)
OPEN = "<tuple id='o'><status><basic>open</basic></status></tuple>"
CLOSED = "<tuple id='c'><status><basic>closed</basic></status></tuple>"
ON_THE_PHONE = "<rp:activities><rp:on-the-phone/></rp:activities>"
AWAY = "<rp:activities><rp:away/></rp:activities>"


def pidf(*children: str, namespace: str = PIDF) -> str:
    return f"<presence xmlns='{namespace}' {NAMESPACES} entity='sip:ana@example.com'>{''.join(children)}</presence>"


def person(*children: str) -> str:
    return f"<dm:person id='p'>{''.join(children)}</dm:person>"


def at(timestamp: str, activities: str) -> str:
    return person(activities, f"<dm:timestamp>{timestamp}</dm:timestamp>")


def read(document: str | bytes, content_type: str = "application/pidf+xml") -> Presence:
    body = document if isinstance(document, bytes) else document.encode()
    return read_presence(body, content_type, at=NOW)


def status(document: str) -> Status:
    return status_of(read(document), BUSY)


def reason(document: str | bytes, content_type: str = "application/pidf+xml") -> str:
    with pytest.raises(DocumentUnreadable) as caught:
        read(document, content_type)
    return caught.value.details["reason"]


# --- Devices --------------------------------------------------------------------------------------------------------


def device(*children: str) -> str:
    return f"<dm:device id='d'>{''.join(children)}<dm:deviceID>urn:uuid:1</dm:deviceID></dm:device>"


def network(name: str, state: str) -> str:
    return f"<op:network-availability><op:network id='{name}'><op:{state}/></op:network></op:network-availability>"


BASIC_OPEN, BASIC_CLOSED = "<status><basic>open</basic></status>", "<status><basic>closed</basic></status>"


@pytest.mark.parametrize(
    ("children", "expected"),
    [
        pytest.param([device(BASIC_OPEN)], Status.REACHABLE, id="open"),
        pytest.param([device(BASIC_CLOSED)], Status.UNREACHABLE, id="closed"),
        pytest.param([device(BASIC_CLOSED), device(BASIC_OPEN)], Status.REACHABLE, id="one of two is open"),
        pytest.param([device(BASIC_OPEN), device(BASIC_CLOSED)], Status.REACHABLE, id="the first of two is open"),
        pytest.param([device()], Status.UNREACHABLE, id="neither"),
        pytest.param([device(network("IMS", "active"))], Status.REACHABLE, id="IMS is active"),
        pytest.param([device(network("IMS", "terminated"))], Status.UNREACHABLE, id="IMS is terminated"),
        pytest.param([device(network("2G-PS", "active"))], Status.UNREACHABLE, id="another network"),
        pytest.param([device(BASIC_CLOSED, network("IMS", "active"))], Status.UNREACHABLE, id="closed, IMS active"),
        pytest.param([device(network("IMS", "active"), BASIC_CLOSED)], Status.UNREACHABLE, id="the same, swapped"),
        pytest.param([device(BASIC_CLOSED), device(network("IMS", "active"))], Status.REACHABLE, id="two devices"),
        pytest.param([device(BASIC_OPEN), person(ON_THE_PHONE)], Status.BUSY, id="on the phone"),
        pytest.param([device(network("IMS", "active"), ON_THE_PHONE)], Status.BUSY, id="activity of the device"),
        pytest.param([device(BASIC_CLOSED), person(ON_THE_PHONE)], Status.UNREACHABLE, id="closed, on the phone"),
        pytest.param([CLOSED, device(BASIC_OPEN)], Status.UNREACHABLE, id="closed tuple"),
        pytest.param([device(BASIC_OPEN, network("IMS", "active")), CLOSED], Status.UNREACHABLE, id="a tuple later"),
        pytest.param([device(BASIC_CLOSED), OPEN], Status.REACHABLE, id="open tuple, closed device"),
        pytest.param([person(BASIC_OPEN)], Status.UNREACHABLE, id="basic of a person"),
        pytest.param([person(network("IMS", "active"))], Status.UNREACHABLE, id="network of a person"),
        pytest.param([device("<x xmlns='urn:x'><active/></x>")], Status.UNREACHABLE, id="a stranger's element"),
    ],
)
def test_devices_count_where_there_is_no_tuple(children: list[str], expected: Status) -> None:
    """IMS and RCS clients publish a device with PIDF's `status` or OMA's `network-availability`, and no tuple (RFC 4479
    section 3.3 has neither). A device's own `basic` decides before the network, which these clients always call
    active."""
    assert status(pidf(*children)) == expected


# --- from and until -------------------------------------------------------------------------------------------------


def during(attributes: str, tag: str = "activities") -> str:
    return pidf(OPEN, person(f"<rp:{tag} {attributes}><rp:on-the-phone/></rp:{tag}>"))


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ("until='2026-06-01T11:30:00Z'", Status.REACHABLE),
        ("until='2026-06-01T12:30:00Z'", Status.BUSY),
        ("until='2026-06-01T11:59:00Z'", Status.BUSY),
        ("until='2026-06-01T11:58:59Z'", Status.REACHABLE),
        ("from='2026-06-01T12:01:00Z'", Status.BUSY),
        ("from='2026-06-01T12:01:01Z'", Status.REACHABLE),
        ("from='2026-06-01T11:00:00Z' until='2026-06-01T13:00:00Z'", Status.BUSY),
        ("from='2026-06-01T14:00:00+02:00'", Status.BUSY),
        ("until='2026-06-01T13:30:00+02:00'", Status.REACHABLE),
        ("from='2026-06-01T13:00:00Z' until='2026-06-01T14:00:00Z'", Status.REACHABLE),
        ("until=' 2026-06-01t11:30:00.5z '", Status.REACHABLE),
        ("until='2026-05-31T24:00:00Z'", Status.REACHABLE),
        ("until='soon'", Status.BUSY),
        ("until=''", Status.BUSY),
        ("until='2026-13-01T11:30:00Z'", Status.BUSY),
        ("until='2026-06-01T11:30:00'", Status.BUSY),
        ("until='2026-05-31T21:00:00'", Status.REACHABLE),
        ("id='2019-01-01T00:00:00Z'", Status.BUSY),
    ],
)
def test_from_and_until(attributes: str, expected: Status) -> None:
    """RFC 4480 section 3.2: activities hold from `from` to `until`, here at the time of the NOTIFY, give or take 60 s.
    A time without an offset may be anywhere within 14 h (XML Schema part 2, section 3.2.7.4); an unreadable one counts
    for nothing."""
    assert status(during(attributes)) == expected


@pytest.mark.parametrize(
    "activities",
    [
        pytest.param("<rp:activities><rp:on-the-phone until='2019-02-04T09:30:00Z'/></rp:activities>", id="of one"),
        pytest.param("<rp:activity until='2019-02-04T09:30:00Z'>busy</rp:activity>", id="older draft"),
        pytest.param(
            "<rp:activities><rp:activity until='2019-02-04T09:30:00Z'>busy</rp:activity></rp:activities>", id="draft"
        ),
        pytest.param("<rp:activities until='2019-02-04T09:30:00Z'>rp:busy</rp:activities>", id="text"),
        pytest.param(
            "<rp:activities><rp:away until='2019-02-04T09:30:00Z'>busy</rp:away></rp:activities>", id="text in one"
        ),
    ],
)
def test_past_activities_in_every_form(activities: str) -> None:
    """Also a single activity, and those of the drafts before RFC 4480, may have `until`; what they contain is left
    out."""
    assert read(pidf(OPEN, person(activities))) == Presence(open=True, activities=frozenset())
    assert status(pidf(OPEN, person(activities, ON_THE_PHONE))) == Status.BUSY


def test_the_time_is_the_callers() -> None:
    """`from` and `until` are compared with the time of the NOTIFY, not with the clock."""
    body = during("from='2026-06-01T11:00:00Z' until='2026-06-01T13:00:00Z'").encode()
    for hours, expected in ((-2, set[str]()), (0, {"on-the-phone"}), (2, set[str]())):
        assert read_presence(body, "", at=NOW + timedelta(hours=hours)).activities == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-06-01T12:00:00Z", (NOW, True)),
        ("2026-06-01T05:00:00.0000000001-07:00", (NOW, True)),
        ("2026-06-01T12:00:00", (NOW, False)),
        ("2016-12-31T23:59:60Z", (datetime(2016, 12, 31, 23, 59, 59, tzinfo=UTC), True)),
        ("9999-12-31T24:00:00Z", None),
        ("0001-01-01T00:00:00+14:00", None),
        ("2026-06-01", None),
        ("2026-06-01T12:00:00+25:00", None),
        ("2026-06-01T12:00:00Z" + " " * 100, None),
        ("\u0662026-06-01T12:00:00Z", None),
    ],
)
def test_times(text: str, expected: tuple[datetime, bool] | None) -> None:
    """Times are xs:dateTime or RFC 3339; whatever cannot be one is no time, without an exception."""
    assert read_time(text) == expected


# --- Persons --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("persons", "expected"),
    [
        pytest.param(
            [at("2026-06-01T10:00:00Z", AWAY), at("2026-05-31T10:00:00Z", ON_THE_PHONE)], Status.REACHABLE, id="away"
        ),
        pytest.param(
            [at("2026-06-01T10:00:00Z", ON_THE_PHONE), at("2026-05-31T10:00:00Z", AWAY)], Status.BUSY, id="on the phone"
        ),
        pytest.param(
            [at("2026-06-01T10:00:00Z", ON_THE_PHONE), at("2026-06-01T11:30:00+02:00", AWAY)],
            Status.BUSY,
            id="compared as times, not as text",
        ),
        pytest.param(
            [at("2026-06-01T10:00:00Z", AWAY), at("2026-06-01T12:00:00+02:00", ON_THE_PHONE)], Status.BUSY, id="equal"
        ),
        pytest.param([at("2026-06-01T10:00:00Z", AWAY), person(ON_THE_PHONE)], Status.BUSY, id="one without"),
        pytest.param([person(AWAY), person(ON_THE_PHONE)], Status.BUSY, id="both without"),
        pytest.param([at("2026-06-01T10:00:00Z", AWAY), at("now", ON_THE_PHONE)], Status.BUSY, id="unreadable"),
        pytest.param(
            [at("2026-06-01T10:00:00Z", ""), at("2026-05-31T10:00:00Z", ON_THE_PHONE)],
            Status.BUSY,
            id="the newest states none",
        ),
        pytest.param(
            [
                at("2026-06-01T10:00:00Z", "<rp:activities><rp:note>x</rp:note></rp:activities>"),
                at("2026-05-31T10:00:00Z", ON_THE_PHONE),
            ],
            Status.BUSY,
            id="the newest has a note only",
        ),
        pytest.param(
            [
                at("2026-06-01T10:00:00Z", AWAY.replace("activities>", "activities until='2019-01-01T00:00:00Z'>", 1)),
                at("2026-05-31T10:00:00Z", ON_THE_PHONE),
            ],
            Status.BUSY,
            id="the newest is over",
        ),
        pytest.param(
            [
                at("2026-06-01T10:00:00Z", ON_THE_PHONE),
                at("2026-06-01T11:00:00Z", AWAY),
                at("2026-06-01T09:00:00Z", AWAY),
            ],
            Status.REACHABLE,
            id="the newest is in the middle",
        ),
    ],
)
def test_newest_person_counts(persons: list[str], expected: Status) -> None:
    """RFC 4479 section 3.1 allows several persons, with timestamps: a server that joins publications sends several.
    Among those that state activities the newest counts; of equal or missing timestamps all."""
    assert status(pidf(OPEN, *persons)) == status(pidf(*reversed(persons), OPEN)) == expected


def test_devices_and_tuples_beside_the_newest_person() -> None:
    """Only persons are compared: the activities of devices and open tuples count beside them."""
    newest = at("2026-06-01T10:00:00Z", AWAY)
    assert status(pidf(OPEN, newest, f"<dm:device id='d'>{ON_THE_PHONE}</dm:device>")) == Status.BUSY
    assert status(pidf(newest, f"<tuple id='t'>{BASIC_OPEN}{ON_THE_PHONE}</tuple>")) == Status.BUSY


# --- Drafts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(
            pidf("<tuple id='t'><status><basic>open</basic><rp:activity>on-the-phone</rp:activity></status></tuple>"),
            id="in the status",
        ),
        pytest.param(
            pidf(
                "<tuple id='t'><status><rp:activity><rp:on-the-phone/></rp:activity><basic>open</basic></status>"
                "</tuple>"
            ),
            id="as an element",
        ),
        pytest.param(
            pidf(f"<tuple id='t'>{BASIC_OPEN}<rp:activity>on-the-phone</rp:activity></tuple>"), id="in a tuple"
        ),
        pytest.param(pidf(OPEN, person("<rp:activity>\n on-the-phone </rp:activity>")), id="in a person"),
        pytest.param(
            pidf(OPEN, person("<status><rp:activity>on-the-phone</rp:activity></status>")), id="in a person's status"
        ),
        pytest.param(pidf(OPEN, person(ON_THE_PHONE), namespace="urn:ietf:params:xml:ns:cpim-pidf"), id="cpim-pidf"),
        pytest.param(
            pidf(OPEN, person(ON_THE_PHONE), namespace="urn:ietf:params:xml:ns:cpim-pidf:"), id="with a colon"
        ),
        pytest.param(
            "<c:presence xmlns:c='urn:ietf:params:xml:ns:cpim-pidf' xmlns:r='urn:ietf:params:xml:ns:cpim-pidf:rpid'>"
            "<c:tuple id='t'><c:status><c:basic>open</c:basic><r:activity>on-the-phone</r:activity></c:status>"
            "</c:tuple></c:presence>",
            id="cpim-pidf by prefixes",
        ),
    ],
)
def test_drafts(document: str) -> None:
    """The drafts before RFC 4480 have `activity` directly in `status`; those before RFC 3863 have the namespace
    cpim-pidf."""
    assert read(document) == Presence(open=True, activities=frozenset({"on-the-phone"}))


def test_closed_tuple_of_a_draft() -> None:
    """The activity of a closed tuple is kept apart, in the drafts' forms too."""
    closed = "<tuple id='t'><status><basic>closed</basic><rp:activity>busy</rp:activity></status></tuple>"
    assert status(pidf(closed)) == Status.UNREACHABLE
    assert status(pidf(closed, OPEN)) == Status.REACHABLE


# --- charset --------------------------------------------------------------------------------------------------------

NOTE = "<note>Ren\u00e9</note>"
DECLARED = '<?xml version="1.0" encoding="UTF-8"?>'


@pytest.mark.parametrize(
    ("body", "charset"),
    [
        pytest.param(pidf(OPEN, NOTE).encode("iso-8859-1"), "iso-8859-1", id="Latin-1, not declared"),
        pytest.param((DECLARED + pidf(OPEN, NOTE)).encode("iso-8859-1"), '"ISO-8859-1"', id="declared as UTF-8"),
        pytest.param(pidf(OPEN, NOTE).encode("cp1252"), "windows-1252", id="windows-1252"),
        pytest.param(
            b'<?xml version="1.0" encoding="koi8-r"?>' + pidf(OPEN, NOTE).encode(), "UTF-8", id="the charset wins"
        ),
        pytest.param(pidf(OPEN, NOTE).encode(), "us-ascii", id="UTF-8 called ASCII"),
        pytest.param((DECLARED + pidf(OPEN, NOTE)).encode("utf-16"), "utf-16", id="UTF-16 declared as UTF-8"),
        pytest.param((DECLARED + pidf(OPEN, NOTE)).encode("utf-16-be"), "utf-16be", id="UTF-16BE without a mark"),
        pytest.param((DECLARED + pidf(OPEN, NOTE)).encode("utf-16"), "utf-8", id="UTF-16 mark beside UTF-8"),
        pytest.param(pidf(OPEN, NOTE).encode("utf-8-sig"), "iso-8859-1", id="UTF-8 mark beside Latin-1"),
        pytest.param(pidf(OPEN, NOTE).encode("utf-8-sig"), "utf-16", id="UTF-8 mark beside UTF-16"),
        pytest.param(pidf(OPEN, NOTE).encode(), "x-unknown", id="unknown charset"),
        pytest.param(pidf(OPEN, NOTE).encode(), "", id="empty charset"),
    ],
)
def test_charset(body: bytes, charset: str) -> None:
    """RFC 7303 section 3: a byte order mark wins over the charset parameter, and that over the XML declaration."""
    for content_type in (f"application/pidf+xml;charset={charset}", f"application/pidf+xml; x=1 ; CharSet = {charset}"):
        assert read(body, content_type) == Presence(open=True, activities=frozenset())


def test_charset_that_does_not_fit() -> None:
    """A body that is not in its charset is malformed; text in another parameter is not a charset."""
    body = pidf(OPEN, NOTE).encode("iso-8859-1")
    assert reason(body, "application/pidf+xml;charset=utf-8") == "malformed"
    assert reason(body, 'application/pidf+xml;x=";charset=iso-8859-1"') == "malformed"


# --- mustUnderstand -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "element",
    [
        "<q:gone xmlns:q='urn:x' p:mustUnderstand='1'/>",
        "<q:gone xmlns:q='urn:x' p:mustUnderstand=' true '>x</q:gone>",
        f"<gone xmlns='urn:x' xmlns:z='{PIDF}' z:mustUnderstand='1'/>",
        "<rp:invented p:mustUnderstand='1'/>",
        "<invented p:mustUnderstand='1'/>",
    ],
)
def test_what_must_be_understood(element: str) -> None:
    """RFC 3863 section 4.2: what must be understood and is not makes the document unreadable, with a reason of its own,
    wherever it is."""
    for document in (
        pidf(OPEN, element),
        pidf(f"<tuple id='t'>{BASIC_OPEN}{element}</tuple>"),
        pidf(f"<tuple id='t'><status><basic>open</basic>{element}</status></tuple>"),
        pidf(OPEN, person(element)),
        pidf(device(BASIC_OPEN, element)),
    ):
        assert reason(document) == "must-understand"


@pytest.mark.parametrize(
    "element",
    [
        pytest.param("<q:gone xmlns:q='urn:x' p:mustUnderstand='0'/>", id="0"),
        pytest.param("<q:gone xmlns:q='urn:x' p:mustUnderstand='false'/>", id="false"),
        pytest.param("<q:gone xmlns:q='urn:x' q:mustUnderstand='1'/>", id="another namespace's attribute"),
        pytest.param("<q:gone xmlns:q='urn:x' mustUnderstand='1'/>", id="no namespace"),
        pytest.param("<note p:mustUnderstand='1'>x</note>", id="PIDF's note"),
        pytest.param("<rp:mood p:mustUnderstand='1'><rp:happy/></rp:mood>", id="RPID's mood"),
        pytest.param("<dm:person id='p' p:mustUnderstand='1'/>", id="the data model's person"),
        pytest.param(person("<rp:activities><rp:away p:mustUnderstand='1'/></rp:activities>"), id="an activity"),
        pytest.param("<q:x xmlns:q='urn:x'><q:y p:mustUnderstand='1'/></q:x>", id="in an element that is ignored"),
    ],
)
def test_what_need_not_be_understood(element: str) -> None:
    """RFC 3863 section 4.2: the gateway knows the elements of PIDF, the data model, RPID and CIPID; an unknown element
    that need not be understood is ignored, with all in it."""
    assert status(pidf(element, OPEN)) == Status.REACHABLE


# --- Closed and busy ------------------------------------------------------------------------------------------------

ASTERISK_PJSIP = f"""\
<?xml version="1.0" encoding="UTF-8"?>
<presence entity="sip:6001@192.0.2.1" xmlns="{PIDF}" xmlns:dm="{PIDF}:data-model" xmlns:rpid="{PIDF}:rpid">
 <note>On the phone</note>
 <tuple id="6001"><status><basic>closed</basic></status><contact priority="1">sip:6001@192.0.2.1</contact></tuple>
 <dm:person><rpid:activities><rpid:on-the-phone/></rpid:activities></dm:person>
</presence>
"""
"""In the form of Asterisk's PJSIP channel, whose tuple is open only while the extension is idle."""
ASSISTANT = f"<tuple id='a'>{BASIC_CLOSED}<rp:relationship><rp:assistant/></rp:relationship>{ON_THE_PHONE}</tuple>"


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        pytest.param(ASTERISK_PJSIP, Status.BUSY, id="Asterisk with PJSIP"),
        pytest.param(pidf(CLOSED, person(ON_THE_PHONE)), Status.BUSY, id="person"),
        pytest.param(pidf(person(ON_THE_PHONE)), Status.BUSY, id="no tuple"),
        pytest.param(pidf(device(BASIC_CLOSED, ON_THE_PHONE)), Status.BUSY, id="closed device"),
        pytest.param(pidf(f"<tuple id='t'>{BASIC_CLOSED}{ON_THE_PHONE}</tuple>"), Status.BUSY, id="in the tuple"),
        pytest.param(pidf(CLOSED, person(AWAY)), Status.UNREACHABLE, id="another activity"),
        pytest.param(pidf(CLOSED), Status.UNREACHABLE, id="no activity"),
        pytest.param("", Status.UNREACHABLE, id="no document"),
        pytest.param(pidf(CLOSED, ASSISTANT), Status.UNREACHABLE, id="the assistant's"),
        pytest.param(
            pidf(OPEN, f"<tuple id='t'>{BASIC_CLOSED}{ON_THE_PHONE}</tuple>"), Status.REACHABLE, id="open too"
        ),
        pytest.param(pidf(OPEN, person(ON_THE_PHONE)), Status.BUSY, id="open and busy"),
    ],
)
def test_busy_when_closed(document: str, expected: Status) -> None:
    """RFC 4480 section 3.2 relates no activity to `basic`: by default a closed terminal is UNREACHABLE; with
    TS_BUSY_WHEN_CLOSED a busy activity counts without an open tuple. An open tuple decides as ever."""
    presence = read(document)
    assert status_of(presence, BUSY, busy_when_closed=True) == expected
    assert status_of(presence, BUSY) == (expected if presence.open else Status.UNREACHABLE)
