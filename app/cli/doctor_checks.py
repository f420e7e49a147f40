"""The checks of `terminal-status doctor`: can the gateway start here, and does the presence server answer?

Each check is a dict with `check`, `ok`, `found` (the finding, or what is wrong and what to do) and maybe `notes`. The
checks change nothing, except that opening a new SQLite file creates it.
"""

import asyncio
from pathlib import Path
from typing import Any

from app import VERSION
from app.domain.addresses import parse_address
from app.domain.errors import TerminalStatusError
from app.settings.loading import ConfigurationError, load_settings
from app.sip.settings import sip_configuration, watcher_limits
from app.sip.watcher import SipWatcher, WatcherCannotStart
from app.store import DatabaseUnavailable, check_database, read_keys, shown_url

Check = dict[str, Any]

_PRESENCE_REFUSALS = {"TERMINAL_UNKNOWN", "ADDRESS_IS_LIST", "WATCHER_REFUSED"}
"""Refusals that pass the check: only a server that understands presence gives them."""

_OLD_TLS = (
    "warning: this OpenSSL is part of PJSIP's wheel and gets no security updates; let a SIP proxy on this machine, "
    "such as Kamailio, speak TLS to the presence server, and set TS_PRESENCE_SERVER to the proxy, over TCP"
)


async def check_everything(config_file: Path | None) -> list[Check]:
    """Runs the checks in order; without usable settings only the first, of the settings themselves."""
    try:
        settings = load_settings(config_file=config_file)
    except ConfigurationError as error:
        return [_check("configuration", False, " ".join(error.problems))]
    checks = [_check("configuration", True, f"presence server {settings.presence_server}")]
    watcher = SipWatcher(sip_configuration(settings, VERSION))
    try:
        await watcher.start()
    except WatcherCannotStart as error:
        checks.append(_check("PJSIP", False, f"{error}. See TS_SIP_LISTEN."))
    else:
        assert watcher.build is not None  # noqa: S101  # set by a start that succeeds
        found = f"{watcher.build.version}, all {watcher.build.symbols} functions found"
        checks.append(_check("PJSIP", True, found, watcher_limits(watcher.build, settings.max_document_bytes)))
        if "transport=tls" in settings.presence_server:
            found = f"{watcher.build.openssl}, TLS {watcher.build.tls} at most"
            checks.append(_check("SIP over TLS", True, found, [_OLD_TLS]))
        checks.append(await _presence_server(watcher, settings.watcher_identity, settings.fetch_timeout_ms / 1000))
    finally:
        await watcher.aclose()
    try:
        checks.append(_check("database", True, await check_database(settings.database_url)))
    except DatabaseUnavailable as error:
        found = f"{shown_url(settings.database_url)} cannot be opened: {error}. See TS_DATABASE_URL."
        checks.append(_check("database", False, found))
    if settings.secret_key_file is not None:
        try:
            first, *others = read_keys(settings.secret_key_file).ids
            found = f"{first} encrypts" + "".join([f", {key_id} decrypts" for key_id in others])
            checks.append(_check("secret key", True, found))
        except DatabaseUnavailable as error:
            checks.append(_check("secret key", False, f"{error}."))
    return checks


async def _presence_server(watcher: SipWatcher, identity: str, timeout_s: float) -> Check:
    name = "presence server"
    try:
        async with asyncio.timeout(timeout_s):
            await watcher.fetch(parse_address(identity))
    except TimeoutError:
        why = f"no answer within {timeout_s * 1000:.0f} ms. See TS_PRESENCE_SERVER, TS_SIP_LISTEN and the firewall."
        return _check(name, False, why)
    except TerminalStatusError as error:
        return _check(name, error.code in _PRESENCE_REFUSALS, f"{error} (fetched {identity})")
    return _check(name, True, f"answered a fetch of {identity}")


def _check(name: str, ok: bool, found: str, notes: list[str] | None = None) -> Check:
    return {"check": name, "ok": ok, "found": found} | ({"notes": notes} if notes else {})
