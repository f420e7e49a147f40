"""Reads the Content-Type of a request: its media type and its charset.

A proxy may join two header lines with a comma (RFC 9110 section 5.3), and some clients send an empty charset. Such
headers have one meaning as long as their values do not contradict each other.
"""

import re
from typing import Final, NamedTuple

_PIECES: Final = re.compile(r'"(?:[^"\\]|\\.)*"?|[^",;]+|[,;]')


class ContentType(NamedTuple):
    """Values in lower case, in their order, each once; more than one of a kind contradict each other."""

    media_types: tuple[str, ...]
    charsets: tuple[str, ...]


def read_content_type(header: str) -> ContentType:
    """The media types and charsets of all Content-Types in the header. An empty charset counts as absent, and text
    after a comma that names no media type is ignored."""
    media_types: dict[str, None] = {}
    charsets: dict[str, None] = {}
    for content_type in _parted(header.lower()):
        media_type = content_type[0].strip()
        if "/" in media_type:
            media_types[media_type] = None
        for parameter in content_type[1:]:
            key, _, value = parameter.partition("=")
            # Some clients use single quotes.
            if key.strip() == "charset" and (charset := value.strip().strip("\"'").strip()):
                charsets[charset] = None
    return ContentType(tuple(media_types), tuple(charsets))


def _parted(header: str) -> list[list[str]]:
    """The header's Content-Types, each as its media type and its parameters. Separators in quotes are text."""
    found = [[""]]
    for piece in _PIECES.findall(header):
        if piece == ",":
            found.append([""])
        elif piece == ";":
            found[-1].append("")
        else:
            found[-1][-1] += piece
    return found
