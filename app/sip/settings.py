"""The SIP workers' configuration from the settings, and the limits of the PJSIP that the workers found.

Deliberately absent: validation (`loading.py`).
"""

from app.settings.loading import Settings
from app.sip.protocol import Build, Configure, Credentials, Route

DEFAULT_TRANSPORT = "tcp"
"""For a presence server named without a transport: documents above 3 KB do not fit PJSIP's datagrams."""


def sip_configuration(settings: Settings, version: str) -> Configure:
    """The configuration of the SIP workers; `version` is sent in User-Agent."""
    host, _, port = settings.sip_listen.rpartition(":")
    headers = [("User-Agent", f"terminal-status-gateway/{version}")]
    if settings.asserted_identity:
        headers.append(("P-Asserted-Identity", f"<{settings.asserted_identity}>"))
    if settings.privacy:
        headers.append(("Privacy", settings.privacy))
    credentials = None
    if settings.sip_username:
        credentials = Credentials(settings.sip_realm, settings.sip_username, settings.sip_password.get_secret_value())
    return Configure(
        listen_host=host,
        listen_port=int(port),
        public_host=settings.sip_public_host or "",
        routes=[_route(text) for text in settings.presence_server.split(",")],
        watcher_identity=settings.watcher_identity,
        headers=headers,
        sip_log_level=settings.sip_log_level,
        charging_orig_ioi=settings.charging_orig_ioi or "",
        credentials=credentials,
        tls_ca_file=str(settings.sip_tls_ca_file or ""),
        tls_verify=settings.sip_tls_verify,
        nameservers=list(settings.sip_nameservers),
        answers_from=sorted(settings.sip_answers_from),
        registrar=settings.sip_registrar or "",
        max_body_bytes=settings.max_document_bytes,
        watch_expires_s=settings.watch_expires_s,
        setups_per_s=settings.setups_per_s,
        probe_every_s=settings.probe_every_s,
    )


def watcher_limits(build: Build, max_document_bytes: int) -> list[str]:
    """The limits of this PJSIP, one sentence each."""
    limits = []
    if not build.ipv6:
        limits.append("no IPv6: the presence server must be reached by IPv4")
    limits.append(
        f"messages up to {build.max_message_bytes} bytes over UDP, larger ones are cut; over TCP and TLS bodies up to "
        f"{max_document_bytes} bytes pass"
    )
    if build.tls != "1.3":
        limits.append(f"TLS {build.tls} at most: put a SIP edge beside the gateway for TLS 1.3")
    return limits


def _route(text: str) -> Route:
    uri, _, transport = text.removesuffix(";lr").partition(";transport=")
    transport = transport or DEFAULT_TRANSPORT
    return Route(f"{uri};transport={transport};lr", transport)
