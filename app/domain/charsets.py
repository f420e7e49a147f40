"""The encoding of a body by its Content-Type."""

import re

_PARAMETERS = re.compile(r';\s*([^\s=;"]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;\s"]*))')
_ONE_BYTE = re.compile(r"(iso[-_]?8859[-_]\d{1,2}|(windows|cp)-?125\d|latin-?\d)(:\d{4})?")


def stated_encoding(content_type: str, document: bytes) -> str | None:
    """Expat's name for the `charset` of the Content-Type, which wins over the XML declaration (RFC 7303 section 3); a
    byte order mark wins over both, which Expat sees to. None, so that the document decides: without a charset, with an
    unknown one, and with UTF-16 where the document shows that it is not.

    Every word that has a meaning here is ASCII. So one superset of ASCII may stand for another.
    """
    if "charset" not in content_type.lower():
        return None
    named = {name.lower(): quoted or plain for name, quoted, plain in reversed(_PARAMETERS.findall(content_type))}
    charset = named.get("charset", "").strip(" '").lower()
    if charset in ("utf-8", "utf8", "us-ascii", "ascii"):
        return "UTF-8"
    if charset in ("utf-16", "utf-16le", "utf-16be"):
        return charset.upper() if document.startswith((b"\xff\xfe", b"\xfe\xff")) or 0 in document[:2] else None
    return "ISO-8859-1" if _ONE_BYTE.fullmatch(charset) else None
