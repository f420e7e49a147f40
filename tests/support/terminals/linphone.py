"""Linphone as a terminal: Debian's liblinphone through ctypes, in a child process.

`linphone_core_set_consolidated_presence` is what Linphone's programs call for the choices of their menus. `quit` does
what those programs do at their end, `linphone_core_stop`.
"""

import ctypes
from pathlib import Path

from tests.support.terminals.process import Account, PythonTerminal, serve

LIBRARY = "liblinphone.so.10"
_LOG_FATAL = 1 << 5
_RANDOM_PORT = -1
_REGISTERED = 2
_RINGING, _CONNECTED, _RUNNING = 1, 7, 8
"""Numbers of LinphoneCallState: IncomingReceived, Connected, StreamsRunning."""

_CONFIG = """[sip]
bind_address=127.0.0.1
guess_hostname=0
register_only_when_network_is_up=0
[net]
dns_srv_enabled=0
"""


class Linphone(PythonTerminal):
    """Linphone 5.1, with its four choices."""

    name = "Linphone"
    package = "Debian package liblinphone10"
    choices = ("Online", "Busy", "Do not disturb", "Offline")

    @classmethod
    def installed(cls) -> bool:
        return any(Path("/usr/lib").glob(f"*/{LIBRARY}"))


class _Library:
    """The functions of liblinphone that are used: `call("core_iterate", core)`. Pointers are integers."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(LIBRARY)

    def pointer(self, name: str, *arguments: int | bytes | None) -> int:
        """Calls a function that returns a pointer, which must not be NULL."""
        found = self._called(name, ctypes.c_void_p, arguments)
        assert found, name
        return int(found)

    def number(self, name: str, *arguments: int | bytes | None) -> int:
        """Calls a function that returns an int, or nothing."""
        return int(self._called(name, ctypes.c_int, arguments))

    def _called(self, name: str, answer: type, arguments: tuple[int | bytes | None, ...]) -> int:
        function = getattr(self._library, f"linphone_{name}")
        function.restype = answer
        # Pointers are larger than the ints that ctypes would pass.
        passed = [ctypes.c_void_p(each) if isinstance(each, int) else each for each in arguments]
        return function(*passed) or 0


class _Phone:
    def __init__(self, what: Account) -> None:
        self.library = library = _Library()
        library.number("logging_service_set_log_level", library.pointer("logging_service_get"), _LOG_FATAL)
        factory = library.pointer("factory_get")
        Path("linphonerc").write_text(_CONFIG)
        Path(".local/share/linphone").mkdir(parents=True)  # without its database the library does not start
        self.core = core = library.pointer("factory_create_core_3", factory, b"linphonerc", None, None)
        library.number("core_enable_ipv6", core, 0)
        transports = library.pointer("factory_create_transports", factory)
        for name, port in (("udp", _RANDOM_PORT), ("tcp", 0), ("tls", 0)):
            library.number(f"transports_set_{name}_port", transports, port)
        library.number("core_set_transports", core, transports)
        for media in ("audio", "video"):  # the usual ports are the same for each process
            library.number(f"core_set_{media}_port", core, _RANDOM_PORT)
        library.number("core_set_use_files", core, 1)  # in place of audio devices
        assert library.number("core_start", core) == 0
        parameters = library.pointer("core_create_account_params", core)
        server = f"sip:127.0.0.1:{what.registrar_port};transport=udp"
        for name, uri in (("identity", what.address), ("server", server)):
            address = library.pointer("factory_create_address", factory, uri.encode())
            library.number(f"account_params_set_{name}_address", parameters, address)
        for name, value in (
            ("outbound_proxy_enabled", 1),
            ("register_enabled", 1),
            ("expires", what.register_s),
            ("publish_enabled", 1),
            ("publish_expires", what.publish_s),
        ):
            library.number(f"account_params_set_{name}", parameters, value)
        self.account = library.pointer("core_create_account", core, parameters)
        library.number("core_add_account", core, self.account)
        library.number("core_set_default_account", core, self.account)

    def turn(self) -> None:
        self.library.number("core_iterate", self.core)
        if self._call_state() == _RINGING:
            self.library.number("call_accept", self._call())

    def _call(self) -> int:
        return self.library.pointer("core_get_current_call", self.core)

    def _call_state(self) -> int:
        in_call = self.library.number("core_get_calls_nb", self.core)
        return self.library.number("call_get_state", self._call()) if in_call else 0

    def registered(self, _: str) -> bool:
        return self.library.number("account_get_state", self.account) == _REGISTERED

    def choose(self, choice: str) -> None:
        self.library.number("core_set_consolidated_presence", self.core, Linphone.choices.index(choice))

    def call(self, address: str) -> None:
        self.library.pointer("core_invite", self.core, address.encode())

    def calls(self, _: str) -> int:
        return int(self._call_state() in (_CONNECTED, _RUNNING))

    def hang_up(self, _: str) -> None:
        self.library.number("core_terminate_all_calls", self.core)

    def quit(self, _: str) -> None:
        self.library.number("core_stop", self.core)


if __name__ == "__main__":
    serve(_Phone)
