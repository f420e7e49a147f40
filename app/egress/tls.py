"""TLS towards sinks: the authorities that sign their certificates, and the gateway's own certificate.

Invariants: the files are read at the start. `read_again` (SIGHUP) loads renewed files for new connections; unusable
ones are logged, and those read before stay in use. The lowest version is TLS 1.2.

Deliberately absent: the files of the servers (`app/auth/tls.py`).
"""

import ssl
from pathlib import Path

import structlog

from app.auth.tls import TlsUnusable

_log = structlog.get_logger(__name__)


class SinkTls:
    """The TLS of `Egress`, in `context`. Without `ca_file` the system's authorities are trusted; without `cert_file`
    and `key_file` no certificate is presented. Raises TlsUnusable."""

    def __init__(self, ca_file: str | None, cert_file: Path | None, key_file: Path | None) -> None:
        self._ca_file = ca_file
        self._pair = (cert_file, key_file) if cert_file is not None and key_file is not None else None
        try:
            self.context = ssl.create_default_context(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            raise TlsUnusable(f"TS_SINK_CA_FILE: {ca_file} cannot be used: {error}.") from None
        self._load_pair(self.context)

    @property
    def named(self) -> bool:
        """Whether the settings name a file."""
        return self._ca_file is not None or self._pair is not None

    def read_again(self) -> None:
        """Reads the files again, and logs the result."""
        if self._ca_file is not None:
            try:
                self.context.load_verify_locations(self._ca_file)
                _log.info("sink_ca_file_read", file=self._ca_file)
            except (OSError, ssl.SSLError) as error:
                _log.warning("sink_ca_file_unusable", file=self._ca_file, why=str(error))
        if self._pair is not None:
            try:
                self._load_pair(ssl.create_default_context())  # a pair that does not match would spoil the context
                self._load_pair(self.context)
                _log.info("sink_certificate_read", file=str(self._pair[0]))
            except TlsUnusable as error:
                _log.warning("sink_certificate_unusable", why=str(error))

    def _load_pair(self, context: ssl.SSLContext) -> None:
        if self._pair is None:
            return
        try:
            context.load_cert_chain(*self._pair, password=lambda: "")  # an encrypted key would be asked for
        except (OSError, ValueError) as error:
            files = " and ".join(map(str, self._pair))
            raise TlsUnusable(f"TS_SINK_CERT_FILE, TS_SINK_KEY_FILE: {files} cannot be used: {error}.") from None
