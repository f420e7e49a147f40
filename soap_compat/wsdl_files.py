"""The contract's WSDL and XSD files, as clients load them.

The files import each other by relative addresses; only the address of the service is filled in.

Invariants: the files are read once, and looked up by name: no path is made of a client's text.

Deliberately absent: WSDL files of other versions; requests in those versions are still answered.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

SERVICES: Final[Mapping[str, str]] = {
    "TerminalStatus": "parlayx_terminal_status_service_2_2.wsdl",
    "TerminalStatusNotificationManager": "parlayx_terminal_status_notification_manager_service_2_3.wsdl",
    "TerminalStatusNotification": "parlayx_terminal_status_notification_service_2_2.wsdl",
}
"""The file behind `?wsdl`, by interface. Applications implement the last one."""

_PLACEHOLDER: Final = "http://localhost/parlayx"


class WsdlFiles:
    def __init__(self) -> None:
        directory = Path(__file__).parent / "wsdl"
        self._texts = {path.name: path.read_text("utf-8") for path in directory.iterdir() if path.is_file()}

    def __contains__(self, name: object) -> bool:
        return name in self._texts

    def get(self, name: str, base_url: str) -> bytes:
        """Returns the file, with the services' addresses below `base_url`. Raises KeyError."""
        address = escape(base_url, {'"': "&quot;"})
        return self._texts[name].replace(f'"{_PLACEHOLDER}/', f'"{address}/').encode()


def etag_of(file: bytes) -> bytes:
    """A strong validator (RFC 9110 section 8.8.3): the same bytes have the same one in every gateway."""
    return f'"{hashlib.sha256(file).hexdigest()[:32]}"'.encode()


def is_current(if_none_match: str, etag: bytes) -> bool:
    """Whether a request's If-None-Match names the file, by the weak comparison (RFC 9110 section 13.1.2)."""
    named = [each.strip().removeprefix("W/") for each in if_none_match.split(",")]
    return "*" in named or etag.decode() in named
