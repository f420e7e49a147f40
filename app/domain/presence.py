"""Reads presence documents: PIDF (RFC 3863) with the data model (RFC 4479) and RPID (RFC 4480).

Invariants: the only exception is DocumentUnreadable, whatever the bytes. Time and memory are bounded by MAX_MARKS (a
megabyte of empty elements took 0.4 s, during which the gateway served nothing else). A DTD is refused before its
declarations are read: there are no entities to resolve. Elements are recognized by namespace and place, not by prefix:
a `basic` inside a `timed-status` (RFC 4481: past and future) does not describe the present.

Lenient, because formats older than RFC 4480 are still sent (Asterisk, Cisco, Linphone): every extension namespace of
PIDF may contain `person`, `device`, `activities` and `activity`; an activity may be text; `basic` may have any case and
white space around it; white space may precede the XML declaration; id, status and basic may be missing.
Strict: the root is `presence` in the namespace of PIDF or of its drafts, and every prefix is declared. A tuple is
ignored if its `relationship` names another person (RFC 4480 section 3.9), or its `service-class` is not electronic.

Expat and not lxml: libxml2 keeps every element name for the life of the thread, and publishers can invent new names.
"""

from collections.abc import Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from xml.parsers import expat

from app.domain.charsets import stated_encoding
from app.domain.errors import DocumentUnreadable
from app.domain.statuses import Status
from app.domain.xml_times import read_time

MEDIA_TYPE = "application/pidf+xml"
"""The only media type that is read; a SUBSCRIBE's Accept names it."""

MAX_DOCUMENT_BYTES = 1 << 20
"""Larger documents are refused without being read, with reason `too-large`."""

MAX_DEPTH = 32
"""Documents with deeper elements are refused with reason `too-deep`."""

MAX_MARKS = 10_000
"""Documents with more elements and attributes are refused with reason `too-large`. Reading this many takes 20 ms."""

MAX_WORDS = 10_000
"""Most characters of one `activities`, `relationship` or `service-class`; more are refused as `too-large`."""

MAX_TAG_BYTES = 65_536
"""Longest tag or comment, which Expat buffers whole; longer ones are refused as `too-large`."""

TOLERANCE = timedelta(seconds=60)
"""How far a publisher's clock may be off where `from` and `until` are weighed."""

_ZONES = timedelta(hours=14)
"""How far a time without a stated offset may be from UTC."""

_SLICE = 16_384

_PIDF = "urn:ietf:params:xml:ns:pidf"
_DRAFT = "urn:ietf:params:xml:ns:cpim-pidf"
"""PIDF's namespace in the drafts before RFC 3863, of which some end it with a colon; the elements mean the same."""
_EXTENSIONS = (_PIDF + ":", _DRAFT + ":")
_ANY = _PIDF + ":*"
"""Any extension namespace of PIDF: `person` and `activities` mean the same in all of them."""
_OMA = "urn:oma:xml:"
"""Any namespace of OMA's presence extensions."""

_PLACES = {
    # (place of the parent, namespace, local name): place of the element. Other elements are ignored.
    ("document", _PIDF, "presence"): "presence",
    ("presence", _PIDF, "tuple"): "tuple",
    ("presence", _ANY, "person"): "person",
    ("presence", _ANY, "device"): "device",
    ("tuple", _PIDF, "status"): "status",
    ("status", _PIDF, "basic"): "basic",
    ("person", _ANY, "timestamp"): "timestamp",
    ("person", _PIDF, "timestamp"): "timestamp",
    ("tuple", _ANY, "relationship"): "relationship",
    ("status", _ANY, "relationship"): "relationship",
    ("tuple", _ANY, "service-class"): "service-class",
    # The dialect of IMS and RCS clients, which publish a device without a tuple.
    ("device", _PIDF, "status"): "device-status",
    ("device-status", _PIDF, "basic"): "device-basic",
    ("device", _OMA, "network-availability"): "networks",
    ("networks", _OMA, "network"): "network",
    ("network", _OMA, "active"): "active",
    # The drafts before RFC 4480.
    ("person", _PIDF, "status"): "person-status",
    **{
        (parent, _ANY, name): "activities"
        for parent in ("tuple", "status", "person", "person-status", "device", "device-status")
        for name in ("activities", "activity")
    },
    ("activities", _ANY, "activity"): "activities",
}
_KNOWN = {name for _, _, name in _PLACES} | {
    *("contact", "note", "timestamp", "deviceID", "class", "mood", "place-is", "place-type", "privacy", "sphere"),
    *("status-icon", "time-offset", "user-input", "timed-status"),
    *("card", "display-name", "homepage", "icon", "map", "sound"),
}
"""Elements of PIDF and its extensions (RFC 3863, 4479 to 4482) whose meaning the status rule takes into account, or
which cannot change a status."""
_UNDERSTOOD = frozenset({_PIDF, _ANY, _OMA})
_CHOICES = frozenset({"activities", "relationship", "service-class"})
"""Places whose values are the names of child elements, or the words of the text (the drafts before RFC 4480)."""
_SAME_PERSON = frozenset({"self", "note"})
"""With any other `relationship`, the tuple belongs to another person."""
_NOT_ELECTRONIC = frozenset({"courier", "freight", "in-person", "postal"})
_ENCODINGS = ("UTF-8", "UTF-16", "UTF-16LE", "UTF-16BE", "ISO-8859-1", "US-ASCII")
"""The encodings that Expat decodes itself. For others it would look up a Python codec by a name from the document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """The content of a presence document: whether any tuple is open, and the activities.

    Only tuples of the presentity's own electronic services count; in a document without tuples its devices count as
    such. `activities` has the RPID activities (RFC 4480 section 3.2), such as `on-the-phone`, of the newest persons,
    every device and every open tuple; `closed_activities` has those of closed tuples. The text of the activity `other`
    is left out.
    """

    open: bool
    activities: frozenset[str]
    closed_activities: frozenset[str] = frozenset()


def read_presence(body: bytes, content_type: str, content_encoding: str = "", *, at: datetime) -> Presence:
    """Reads the body of a NOTIFY; `content_type` and `content_encoding` are its header values, "" where absent.

    `at` is the time of the NOTIFY: activities that were over by then, or had not begun, are left out.

    An empty body means that nothing is published: no tuple is open. Without a content type, the body is read as PIDF,
    which every presence server supports (RFC 3856 section 6.5).

    Raises DocumentUnreadable with `details["reason"]` one of `too-large`, `content-encoding`, `content-type`,
    `dtd`, `root`, `too-deep`, `must-understand`, `malformed`.
    """
    if len(body) > MAX_DOCUMENT_BYTES:
        raise DocumentUnreadable(
            f"The presence document has {len(body)} bytes; at most {MAX_DOCUMENT_BYTES} are read.", reason="too-large"
        )
    document = body.lstrip()
    if not document:
        return Presence(open=False, activities=frozenset())
    coding = content_encoding.strip().lower()
    if coding not in ("", "identity") or document.startswith(b"\x1f\x8b"):
        raise DocumentUnreadable(
            f"The presence document is encoded as {coding[:40] or 'gzip'!r}; the gateway accepts no content encoding.",
            reason="content-encoding",
        )
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in (MEDIA_TYPE, ""):
        raise DocumentUnreadable(
            f"The NOTIFY carries {media_type[:80]!r}; the gateway reads {MEDIA_TYPE} only.",
            reason="content-type",
        )
    reader = _Reader(at)
    # Expat's own namespace processing copies the namespace into each name that uses it: the copies of a long namespace
    # take gigabytes. So the reader resolves prefixes itself.
    encoding = stated_encoding(content_type, document)
    parser = expat.ParserCreate(encoding)
    parser.buffer_text = True
    if encoding is None:
        parser.XmlDeclHandler = reader.declare
    parser.StartDoctypeDeclHandler = reader.refuse_dtd
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text.append
    try:
        for begin in range(0, len(document), _SLICE):
            if reader.finished:  # only white space and comments follow
                parser.Parse(document[begin:], False)
                break
            parser.Parse(document[begin : begin + _SLICE], False)
            if begin + _SLICE - parser.CurrentByteIndex > MAX_TAG_BYTES:
                raise _too_large(f"a tag or comment of more than {MAX_TAG_BYTES} bytes")
        parser.Parse(b"", True)
    except expat.ExpatError as error:
        raise _malformed(str(error)) from None
    return reader.presence()


def status_of(presence: Presence, busy_activities: Set[str], *, busy_when_closed: bool = False) -> Status:
    """The status rule: UNREACHABLE without an open tuple, else BUSY with one of `busy_activities`, else REACHABLE.

    With `busy_when_closed`, one of `busy_activities` means BUSY also without an open tuple.
    """
    if presence.open:
        return Status.REACHABLE if presence.activities.isdisjoint(busy_activities) else Status.BUSY
    stated = presence.activities | presence.closed_activities if busy_when_closed else frozenset[str]()
    return Status.UNREACHABLE if stated.isdisjoint(busy_activities) else Status.BUSY


def _malformed(what: str) -> DocumentUnreadable:
    return DocumentUnreadable(f"The presence document is not well-formed: {what}.", reason="malformed")


def _too_large(what: str) -> DocumentUnreadable:
    return DocumentUnreadable(
        f"The presence document has {what}, which is more than the gateway reads.", reason="too-large"
    )


def _meaning_of(namespace: str) -> str:
    """The namespace as which the reader treats another one."""
    if namespace in (_DRAFT, _DRAFT + ":"):
        return _PIDF
    if namespace.startswith(_EXTENSIONS):
        return _ANY
    if namespace.startswith(_OMA):
        return _OMA
    return namespace


class _Reader:
    """Expat's handlers for one document. An exception in one stops the parser at once."""

    __slots__ = (
        "_activities",
        "_at",
        "_chosen",
        "_closed_activities",
        "_device_active",
        "_device_open",
        "_found",
        "_marks",
        "_namespaces",
        "_open_devices",
        "_open_tuples",
        "_persons",
        "_places",
        "_shadowed",
        "_timestamp",
        "_tuple_counts",
        "_tuple_open",
        "_tuples",
        "finished",
        "text",
    )

    def __init__(self, at: datetime) -> None:
        self.finished = False
        """The root has ended."""
        self._at = at
        self._marks = 0
        self._tuples = self._open_tuples = self._open_devices = 0
        self._activities: set[str] = set()  # of devices and open tuples
        self._closed_activities: set[str] = set()
        self._persons: list[tuple[datetime | None, set[str]]] = []  # those that state activities
        self.text: list[str] = []  # since the last tag that has a place
        self._found: set[str] = set()  # the activities of the tuple, person or device being read
        self._chosen: set[str] = set()  # the words of the relationship or service class being read
        self._timestamp: datetime | None = None  # of the person being read
        self._tuple_open = False
        self._tuple_counts = True
        self._device_open: bool | None = None  # None: the device being read has no `basic`
        self._device_active = False
        self._namespaces: dict[str, str | None] = {"": "", "xml": ""}  # by prefix; None: not declared
        # For each open element, from the outermost: its place ("": ignored), and the namespaces, by prefix, that its
        # declarations replace until the element ends.
        self._places = ["document"]
        self._shadowed: list[dict[str, str | None] | None] = []

    def presence(self) -> Presence:
        """What the whole document says. Of persons with a timestamp only the newest count: an older one was replaced,
        for example by another device of the same user. Those without a timestamp cannot be compared."""
        newest = max((stated for stated, _ in self._persons if stated), default=None)
        persons = [activities for stated, activities in self._persons if stated is None or stated == newest]
        return Presence(
            open=bool(self._open_tuples if self._tuples else self._open_devices),
            activities=frozenset(self._activities.union(*persons)),
            closed_activities=frozenset(self._closed_activities),
        )

    def declare(self, version: str, encoding: str | None, standalone: int) -> None:
        if encoding is not None and encoding.upper() not in _ENCODINGS:
            raise _malformed(f"the encoding {encoding[:40]!r} is not one of {', '.join(_ENCODINGS)}")

    def refuse_dtd(self, name: str, system_id: str | None, public_id: str | None, internal_subset: bool) -> None:
        raise DocumentUnreadable("The presence document has a DTD; the gateway reads none.", reason="dtd")

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._marks += 1 + len(attributes)
        if self._marks > MAX_MARKS:
            raise _too_large(f"over {MAX_MARKS} elements and attributes")
        if len(self._places) > MAX_DEPTH:
            raise DocumentUnreadable(
                f"The presence document nests deeper than {MAX_DEPTH} elements.", reason="too-deep"
            )
        self._shadowed.append(self._enter_scope(attributes) if attributes else None)
        prefix, _, local_name = name.rpartition(":")
        namespace = self._namespaces.get(prefix)
        if namespace is None:
            raise _malformed(f"the prefix {prefix[:40]!r} is not declared")
        parent = self._places[-1]
        place = _PLACES.get((parent, namespace, local_name), "")
        if attributes:
            understood = namespace in _UNDERSTOOD and (local_name in _KNOWN or parent in _CHOICES)
            if parent and not understood:
                self._require_optional(name, attributes)
        if attributes and (place == "activities" or parent == "activities") and not self._holds(attributes):
            place = "past"
        elif parent in _CHOICES:
            if not place and (parent != "activities" or local_name != "note"):
                (self._found if parent == "activities" else self._chosen).add(local_name)
            place = place or "choice"
        elif place == "network" and attributes.get("id", "").strip().upper() != "IMS":
            place = ""
        elif not place and parent == "document":
            raise DocumentUnreadable(
                f"The root of the presence document is {name[:40]!r}, not presence in {_PIDF}.", reason="root"
            )
        self._places.append(place)
        if place:
            self.text.clear()

    def end(self, name: str) -> None:
        if shadowed := self._shadowed.pop():
            self._namespaces.update(shadowed)
        place = self._places.pop()
        self.finished = len(self._places) == 1
        if not place:
            return
        if place == "basic":
            self._tuple_open |= self._word() == "open"
        elif place == "device-basic":
            if word := self._word():
                self._device_open = bool(self._device_open) or word == "open"
        elif place == "active":
            self._device_active = True
        elif place == "timestamp":
            self._timestamp = self._later(self._timestamp, read_time("".join(self.text)))
        elif place == "activities":
            # <activity>on-the-phone</activity> in the drafts, <ep:activities>ep:busy</ep:activities> from Asterisk.
            self._found.update(self._words())
        elif place == "relationship":
            self._chosen.update(self._words())
            self._tuple_counts &= {word.lower() for word in self._chosen} <= _SAME_PERSON
            self._chosen.clear()
        elif place == "service-class":
            self._chosen.update(self._words())
            self._tuple_counts &= self._chosen.isdisjoint(_NOT_ELECTRONIC)
            self._chosen.clear()
        elif place == "person":
            if self._found:
                self._persons.append((self._timestamp, self._found))
            self._timestamp, self._found = None, set()
        elif place == "device":
            self._open_devices += self._device_active if self._device_open is None else self._device_open
            self._activities |= self._found
            self._device_open, self._device_active = None, False
            self._found.clear()
        elif place == "tuple":
            self._tuples += 1
            self._open_tuples += self._tuple_open and self._tuple_counts
            if self._tuple_counts:
                (self._activities if self._tuple_open else self._closed_activities).update(self._found)
            self._tuple_open, self._tuple_counts = False, True
            self._found.clear()
        self.text.clear()

    def _holds(self, attributes: dict[str, str]) -> bool:
        """Whether `from` and `until` (RFC 4480 section 3.2) include the time of the NOTIFY; unreadable ones do not
        count."""
        for name, sign in (("from", 1), ("until", -1)):
            if name in attributes and (read := read_time(attributes[name])):
                time, exact = read
                if (time - self._at) * sign > (TOLERANCE if exact else TOLERANCE + _ZONES):
                    return False
        return True

    def _require_optional(self, name: str, attributes: dict[str, str]) -> None:
        """Raises DocumentUnreadable if an element that the gateway does not know has `mustUnderstand`. Not called for
        what stands in an element without a place: the gateway ignores all of that."""
        for key, value in attributes.items():
            prefix, _, local_name = key.rpartition(":")
            stated = local_name == "mustUnderstand" and prefix and self._namespaces.get(prefix) == _PIDF
            if stated and value.strip().lower() in ("1", "true"):
                raise DocumentUnreadable(
                    f"The presence document has the element {name[:40]!r}, which must be understood (RFC 3863 "
                    "section 4.2); the gateway does not know it.",
                    reason="must-understand",
                )

    @staticmethod
    def _later(known: datetime | None, read: tuple[datetime, bool] | None) -> datetime | None:
        """The later of two timestamps; one without an offset cannot be compared with others, and does not count."""
        if read is None or not read[1]:
            return known
        return read[0] if known is None else max(known, read[0])

    def _word(self) -> str:
        return "".join(self.text).strip().lower()

    def _words(self) -> list[str]:
        """The words of the text, without namespace prefixes."""
        text = "".join(self.text)
        if len(text) > MAX_WORDS:
            raise _too_large(f"an element with over {MAX_WORDS} characters of text")
        return [word.rpartition(":")[2] for word in text.split()]

    def _enter_scope(self, attributes: dict[str, str]) -> dict[str, str | None] | None:
        """Applies an element's namespace declarations; returns the namespaces that they replace, by prefix."""
        shadowed = None
        for key, uri in attributes.items():
            if key.startswith("xmlns") and key[5:6] in ("", ":"):
                shadowed = shadowed or {}
                prefix = key[6:]
                shadowed[prefix] = self._namespaces.get(prefix)
                self._namespaces[prefix] = _meaning_of(uri)
        return shadowed
