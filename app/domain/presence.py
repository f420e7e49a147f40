"""Reads presence documents: PIDF (RFC 3863) with the data model (RFC 4479) and RPID (RFC 4480).

Invariants: the only exception is DocumentUnreadable, whatever the bytes. Time and memory are bounded by MAX_MARKS (a
megabyte of empty elements took 0.4 s, during which the gateway served nothing else). A DTD is refused before its
declarations are read: there are no entities to resolve. Elements are recognized by namespace and place, not by prefix:
a `basic` inside a `timed-status` (RFC 4481: past and future) does not describe the present.

Lenient, because formats older than RFC 4480 are still sent (Asterisk, Cisco, Linphone): every extension namespace of
PIDF may contain `person`, `device` and `activities`; an activity may be text; `basic` may have any case and white space
around it; white space may precede the XML declaration; id, status and basic may be missing.
Strict: the root is `presence` in PIDF's namespace, and every prefix is declared. A tuple is ignored if its
`relationship` names another person (RFC 4480 section 3.9), or its `service-class` is not electronic (section 3.12).
The encoding is that of the XML declaration or byte order mark; a `charset` parameter is ignored.

Expat and not lxml: libxml2 keeps every element name for the life of the thread, and publishers can invent new names.
Deliberately absent: the clock. `from` and `until` (RFC 4480) and timestamps are ignored.
"""

from collections.abc import Set
from dataclasses import dataclass
from xml.parsers import expat

from app.domain.errors import DocumentUnreadable
from app.domain.statuses import Status

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

_SLICE = 16_384

_PIDF = "urn:ietf:params:xml:ns:pidf"
_EXTENSION = _PIDF + ":"
_ANY = _EXTENSION + "*"
"""Any extension namespace of PIDF: `person` and `activities` mean the same in all of them."""

_PLACES = {
    # (place of the parent, namespace, local name): place of the element. Other elements are ignored.
    ("document", _PIDF, "presence"): "presence",
    ("presence", _PIDF, "tuple"): "tuple",
    ("presence", _ANY, "person"): "person",
    ("presence", _ANY, "device"): "person",
    ("tuple", _PIDF, "status"): "status",
    ("status", _PIDF, "basic"): "basic",
    ("tuple", _ANY, "activities"): "activities",
    ("person", _ANY, "activities"): "activities",
    # The drafts before RFC 4480.
    ("status", _ANY, "activities"): "activities",
    ("person", _PIDF, "status"): "person",
    ("activities", _ANY, "activity"): "activities",
    ("tuple", _ANY, "relationship"): "relationship",
    ("status", _ANY, "relationship"): "relationship",
    ("tuple", _ANY, "service-class"): "service-class",
}
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

    Only tuples of the presentity's own electronic services count. `activities` has the RPID activities (RFC 4480
    section 3.2), such as `on-the-phone`, of every person, every device and every open tuple that counts. The text of
    the activity `other` is left out.
    """

    open: bool
    activities: frozenset[str]


def read_presence(body: bytes, content_type: str, content_encoding: str = "") -> Presence:
    """Reads the body of a NOTIFY; `content_type` and `content_encoding` are its header values, "" where absent.

    An empty body means that nothing is published: no tuple is open. Without a content type, the body is read as PIDF,
    which every presence server supports (RFC 3856 section 6.5).

    Raises DocumentUnreadable with `details["reason"]` one of `too-large`, `content-encoding`, `content-type`,
    `dtd`, `root`, `too-deep`, `malformed`.
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
    if media_type not in ("application/pidf+xml", ""):
        raise DocumentUnreadable(
            f"The NOTIFY carries {media_type[:80]!r}; the gateway reads application/pidf+xml only.",
            reason="content-type",
        )
    reader = _Reader()
    # Expat's own namespace processing copies the namespace into each name that uses it: the copies of a long namespace
    # take gigabytes. So the reader resolves prefixes itself.
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.XmlDeclHandler = reader.declare
    parser.StartDoctypeDeclHandler = reader.refuse_dtd
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text.append
    try:
        for at in range(0, len(document), _SLICE):
            if reader.finished:  # only white space and comments follow
                parser.Parse(document[at:], False)
                break
            parser.Parse(document[at : at + _SLICE], False)
            if at + _SLICE - parser.CurrentByteIndex > MAX_TAG_BYTES:
                raise _too_large(f"a tag or comment of more than {MAX_TAG_BYTES} bytes")
        parser.Parse(b"", True)
    except expat.ExpatError as error:
        raise _malformed(str(error)) from None
    return Presence(open=reader.open, activities=frozenset(reader.activities))


def status_of(presence: Presence, busy_activities: Set[str]) -> Status:
    """The status rule: UNREACHABLE without an open tuple, else BUSY with one of `busy_activities`, else REACHABLE."""
    if not presence.open:
        return Status.UNREACHABLE
    return Status.REACHABLE if presence.activities.isdisjoint(busy_activities) else Status.BUSY


def _malformed(what: str) -> DocumentUnreadable:
    return DocumentUnreadable(f"The presence document is not well-formed: {what}.", reason="malformed")


def _too_large(what: str) -> DocumentUnreadable:
    return DocumentUnreadable(
        f"The presence document has {what}, which is more than the gateway reads.", reason="too-large"
    )


class _Reader:
    """Expat's handlers for one document. An exception in one stops the parser at once."""

    __slots__ = (
        "_chosen",
        "_found",
        "_marks",
        "_namespaces",
        "_places",
        "_shadowed",
        "_tuple_counts",
        "_tuple_open",
        "activities",
        "finished",
        "open",
        "text",
    )

    def __init__(self) -> None:
        self.open = False
        self.finished = False
        """The root has ended."""
        self._marks = 0
        self.activities: set[str] = set()
        self.text: list[str] = []  # since the last tag that has a place
        self._found: set[str] = set()  # the activities of the tuple or person being read
        self._chosen: set[str] = set()  # the words of the relationship or service class being read
        self._tuple_open = False
        self._tuple_counts = True
        self._namespaces: dict[str, str | None] = {"": "", "xml": ""}  # by prefix; None: not declared
        # For each open element, from the outermost: its place ("": ignored), and the namespaces, by prefix, that its
        # declarations replace until the element ends.
        self._places = ["document"]
        self._shadowed: list[dict[str, str | None] | None] = []

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
        if parent in _CHOICES:
            (self._found if parent == "activities" else self._chosen).add(local_name)
            place = place or "choice"
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
            self._tuple_open |= "".join(self.text).strip().lower() == "open"
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
            self.activities |= self._found
            self._found.clear()
        elif place == "tuple":
            if self._tuple_open and self._tuple_counts:
                self.open = True
                self.activities |= self._found
            self._tuple_open, self._tuple_counts = False, True
            self._found.clear()
        self.text.clear()

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
                self._namespaces[prefix] = _ANY if uri.startswith(_EXTENSION) else uri
        return shadowed
