"""The gateway's own registration, where the IMS wants one: a pjsua2 Account (RFC 3261 section 10).

PJSIP refreshes and retries the registration by itself; only its state is read here.

Deliberately absent: incoming calls and messages to that account, which `incoming_messages.py` drops.
"""

import pjsua2

from app.sip.pjsip.endpoint import Endpoint
from app.sip.pjsip.library import SipStackError
from app.sip.protocol import Configure

RETRY_S = 30


class _Account(pjsua2.Account):  # type: ignore[misc]  # pjsua2 has no types
    active = False

    def onRegState(self, _parameters: object) -> None:  # noqa: N802  # named by pjsua2
        """PJSIP got an answer to REGISTER."""
        self.active = bool(self.getInfo().regIsActive)


class Registration:
    """Registers the watcher identity at `configure.registrar`. Raises SipStackError if that is not a SIP URI."""

    def __init__(self, endpoint: Endpoint, configure: Configure) -> None:
        config = pjsua2.AccountConfig()
        config.idUri = f"<{configure.watcher_identity}>"
        config.regConfig.registrarUri = configure.registrar
        config.regConfig.timeoutSec = configure.watch_expires_s
        config.regConfig.retryIntervalSec = config.regConfig.firstRetryIntervalSec = RETRY_S
        config.presConfig.publishEnabled = False
        config.sipConfig.proxies.push_back(f"<{configure.routes[0].uri}>")
        if (credentials := configure.credentials) is not None:
            config.sipConfig.authCreds.push_back(
                pjsua2.AuthCredInfo("digest", credentials.realm, credentials.username, 0, credentials.password)
            )
        self._account = _Account()
        try:
            self._account.create(config)
        except pjsua2.Error as error:
            raise SipStackError(f"cannot register at {configure.registrar}: {error.reason}") from None

    @property
    def active(self) -> bool:
        """Whether the registrar has accepted the registration."""
        return self._account.active
