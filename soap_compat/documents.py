"""The contract's WSDL and XSD files, as clients load them.

Invariants: the files are read once; a name is looked up among them, so no path is ever made of a client's text.
They import each other by relative address; only the service's own address is put in.

Deliberately absent: WSDLs of versions other than the one in `wsdl/`, although their requests are answered.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

SERVICES: Final[Mapping[str, str]] = {
    "TerminalStatus": "parlayx_terminal_status_service_2_2.wsdl",
    "TerminalStatusNotificationManager": "parlayx_terminal_status_notification_manager_service_2_3.wsdl",
    "TerminalStatusNotification": "parlayx_terminal_status_notification_service_2_2.wsdl",
}
"""The file behind `?wsdl`, by interface. The last is what applications implement."""

_PLACEHOLDER: Final = "http://localhost/parlayx"


class Documents:
    """The files of `wsdl/`, by name."""

    def __init__(self) -> None:
        directory = Path(__file__).parent / "wsdl"
        self._texts = {path.name: path.read_text("utf-8") for path in directory.iterdir() if path.is_file()}

    def __contains__(self, name: object) -> bool:
        return name in self._texts

    def get(self, name: str, base_url: str) -> bytes:
        """Returns the file, with services addressed below `base_url`. Raises KeyError."""
        address = escape(base_url, {'"': "&quot;"})
        return self._texts[name].replace(f'"{_PLACEHOLDER}/', f'"{address}/').encode()
