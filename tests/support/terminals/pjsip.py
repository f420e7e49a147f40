"""PJSIP as a terminal: the wheel that the gateway watches with, in a child process.

PJSIP is a library: its choices here are the three states of its API. `quit` is `libDestroy`, which unpublishes and
unregisters.
"""

import importlib.util

import pjsua2

from tests.support.terminals.process import Account, PythonTerminal, serve


class Pjsip(PythonTerminal):
    """PJSIP 2.15, with its choices."""

    name = "PJSIP"
    package = "Python package pjsua2-python"
    choices = ("online", "busy", "away", "offline")

    @classmethod
    def installed(cls) -> bool:
        return importlib.util.find_spec("pjsua2") is not None


_ACTIVITIES = {"busy": pjsua2.PJRPID_ACTIVITY_BUSY, "away": pjsua2.PJRPID_ACTIVITY_AWAY}


class _Call(pjsua2.Call):  # type: ignore[misc]  # pjsua2 has no types
    def up(self) -> bool:
        return bool(self.isActive() and self.getInfo().state == pjsua2.PJSIP_INV_STATE_CONFIRMED)


class _Account(pjsua2.Account):  # type: ignore[misc]
    incoming: _Call | None = None

    def onIncomingCall(self, what: pjsua2.OnIncomingCallParam) -> None:  # noqa: N802  # pjsua2's name
        self.incoming = _Call(self, what.callId)
        answer = pjsua2.CallOpParam()
        answer.statusCode = 200
        self.incoming.answer(answer)


class _Phone:
    def __init__(self, what: Account) -> None:
        self.outgoing: _Call | None = None
        self.endpoint = endpoint = pjsua2.Endpoint()
        endpoint.libCreate()
        config = pjsua2.EpConfig()
        config.uaConfig.threadCnt = 0
        config.uaConfig.mainThreadOnly = True
        config.medConfig.noVad = True
        config.logConfig.level = config.logConfig.consoleLevel = 0
        endpoint.libInit(config)
        transport = pjsua2.TransportConfig()
        transport.boundAddress = "127.0.0.1"
        endpoint.transportCreate(pjsua2.PJSIP_TRANSPORT_UDP, transport)
        endpoint.libStart()
        endpoint.audDevManager().setNullDev()
        settings = pjsua2.AccountConfig()
        settings.idUri = what.address
        settings.regConfig.registrarUri = "sip:example.com"
        settings.regConfig.timeoutSec = what.register_s
        settings.regConfig.delayBeforeRefreshSec = 1
        settings.sipConfig.proxies.push_back(f"sip:127.0.0.1:{what.registrar_port};lr")
        settings.presConfig.publishEnabled = True
        settings.mediaConfig.transportConfig.boundAddress = "127.0.0.1"
        self.account = _Account()
        self.account.create(settings)

    def turn(self) -> None:
        self.endpoint.libHandleEvents(0)

    def registered(self, _: str) -> bool:
        return bool(self.account.getInfo().regIsActive)

    def choose(self, choice: str) -> None:
        status = pjsua2.PresenceStatus()
        offline = choice == "offline"
        status.status = pjsua2.PJSUA_BUDDY_STATUS_OFFLINE if offline else pjsua2.PJSUA_BUDDY_STATUS_ONLINE
        status.activity = _ACTIVITIES.get(choice, pjsua2.PJRPID_ACTIVITY_UNKNOWN)
        self.account.setOnlineStatus(status)

    def call(self, address: str) -> None:
        self.outgoing = _Call(self.account)
        self.outgoing.makeCall(address, pjsua2.CallOpParam(True))

    def calls(self, _: str) -> int:
        return sum(call.up() for call in (self.outgoing, self.account.incoming) if call)

    def hang_up(self, _: str) -> None:
        self.endpoint.hangupAllCalls()

    def quit(self, _: str) -> None:
        self.endpoint.libDestroy()


if __name__ == "__main__":
    serve(_Phone)
