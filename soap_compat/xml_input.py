"""What the readers of XML share: supported encodings, the refusal of DOCTYPE, and text for error messages."""

import re
from typing import Final

from soap_compat.faults import client_fault

_ALIASES: Final = {
    "utf-8": ("utf8",),
    "utf-16": ("utf16",),
    "utf-16le": (),
    "utf-16be": (),
    "us-ascii": ("ascii",),
    "iso-8859-1": ("iso8859-1", "iso_8859-1", "latin1", "latin-1"),
    "windows-1252": ("cp1252",),
}
_CHARSETS: Final = {name: encoding for encoding, names in _ALIASES.items() for name in (encoding, *names)}
"""The supported encodings by their names. pyexpat would try Python's codecs for others."""
_NOT_TEXT = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class EncodingAliasError(Exception):
    """The XML declaration names the encoding by an alias that Expat does not know. The argument is Expat's name."""


def encoding_named(charset: str) -> str:
    """Expat's name of the encoding. Raises SoapFault."""
    encoding = _CHARSETS.get(charset.lower())
    if encoding is None:
        raise client_fault(f"The encoding {clip(charset)} is not supported; send UTF-8 or UTF-16.")
    return encoding


def check_declaration(_version: str, encoding: str | None, _standalone: int) -> None:
    """Expat's XmlDeclHandler. Raises EncodingAliasError, SoapFault."""
    if encoding is not None and (known := encoding_named(encoding)) != encoding.lower():
        raise EncodingAliasError(known)


def refuse_doctype(*_: object) -> None:
    """Expat's StartDoctypeDeclHandler. Raises SoapFault, so no entity is ever declared."""
    raise client_fault("The message has a DOCTYPE, which SOAP 1.1 section 3 forbids.")


def clip(text: str, length: int = 200) -> str:
    """A caller's text for an error message: shortened, and without characters that XML cannot carry."""
    return _NOT_TEXT.sub("\ufffd", text if len(text) <= length else f"{text[:length]}…")
