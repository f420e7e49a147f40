"""baresip as a terminal: Debian's program, driven by its module `ctrl_tcp` (commands and events as JSON netstrings)."""

import asyncio
import contextlib
import json
import shutil
from typing import Any

from tests.support.kamailio import free_port
from tests.support.terminals.process import ANSWER_S, RealTerminal

MODULES = "/usr/lib/baresip/modules"

_CONFIG = """poll_method epoll
net_interface 127.0.0.1
sip_listen 127.0.0.1:0
dns_server 127.0.0.1:9
ctrl_tcp_listen 127.0.0.1:{port}
module_path {modules}
module g711.so
module_tmp account.so
module_app menu.so
module_app presence.so
module_app ctrl_tcp.so
"""
_ACCOUNT = '<{address}>;outbound="sip:127.0.0.1:{port}";regint={register_s};pubint={publish_s};answermode=auto\n'
_COMMANDS = {"call": "dial", "hang_up": "hangup", "quit": "quit"}


class Baresip(RealTerminal):
    """baresip 1.0, with the two choices of its presence module."""

    name = "baresip"
    package = "Debian package baresip-core"
    choices = ("online", "offline")

    @classmethod
    def installed(cls) -> bool:
        return shutil.which("baresip") is not None

    def _command(self) -> list[str]:
        self._port = free_port()
        config = _CONFIG.format(port=self._port, modules=MODULES)
        (self.directory / "config").write_text(config)
        account = self.account
        line = _ACCOUNT.format(
            address=account.address,
            port=account.registrar_port,
            register_s=account.register_s,
            publish_s=account.publish_s,
        )
        (self.directory / "accounts").write_text(line)
        return ["baresip", "-4", "-f", str(self.directory)]

    async def ask(self, action: str, value: str = "") -> Any:
        if action == "registered":
            return "OK" in await self._do("reginfo")
        if action == "calls":
            return (await self._do("listcalls")).count("ESTABLISHED")
        if action == "choose":
            return await self._do(f"presence_{value}")
        return await self._do(_COMMANDS[action], value)

    async def _do(self, command: str, parameters: str = "") -> str:
        """Runs one of baresip's commands, over a new connection; "" before baresip listens, and after its end."""
        request = json.dumps({"command": command, "params": parameters}).encode()
        async with asyncio.timeout(ANSWER_S):
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                try:
                    writer.write(b"%d:%s," % (len(request), request))
                    while True:
                        length = int((await reader.readuntil(b":"))[:-1])
                        message = json.loads((await reader.readexactly(length + 1))[:-1])
                        if message.get("response"):  # others are events
                            return str(message["data"])
                finally:
                    writer.close()
                    await asyncio.gather(writer.wait_closed(), return_exceptions=True)
        return ""
