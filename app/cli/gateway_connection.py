"""The connection of a command to a running gateway over gRPC: single calls, streams, and lists page by page."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import typer

from app.cli.configuration import read_settings_without_sip
from app.cli.console import check_utf8, wrong_use
from app.cli.gateway_options import GATEWAY_OPTIONS, credentials_of, warn_of_clear_text, with_options

if TYPE_CHECKING:
    import grpc
    from google.protobuf.message import Message

    from app.cli.call_failures import CallFailed
    from app.cli.credentials import Credentials
    from app.settings.loading import Settings

P = ParamSpec("P")
_Request = TypeVar("_Request", bound="Message")
_Answer = TypeVar("_Answer")
_Item = TypeVar("_Item")

PAGE_SIZE = 1000


class GatewayConnection:
    """`as_json`: whether the command was called with --json."""

    def __init__(
        self, channel: "grpc.Channel", credentials: "Credentials", *, server: str, timeout_s: float, as_json: bool
    ) -> None:
        self.channel = channel
        self.server = server
        self.as_json = as_json
        self._credentials = credentials
        self._timeout_s = timeout_s

    def call(self, method: "grpc.UnaryUnaryMultiCallable[_Request, _Answer]", request: _Request) -> _Answer:
        """Raises CallFailed."""
        import grpc

        try:
            return method(request, timeout=self._timeout_s, metadata=tuple(self._credentials.headers.items()))
        except grpc.RpcError as error:
            raise self._failed(error) from None

    def stream(
        self,
        method: "grpc.UnaryStreamMultiCallable[_Request, _Item]",
        request: _Request,
        *,
        timeout_s: float | None = None,
    ) -> "Iterator[_Item]":
        """Yields messages as they arrive; closing the iterator cancels the call. Raises CallFailed."""
        import grpc

        messages = method(request, timeout=timeout_s, metadata=tuple(self._credentials.headers.items()))
        try:
            yield from messages
        except grpc.RpcError as error:
            raise self._failed(error) from None
        finally:
            messages.cancel()

    def pages(
        self, method: "grpc.UnaryUnaryMultiCallable[Any, Any]", request: Any, items: str, limit: int | None = None
    ) -> Iterator[list[Any]]:
        """Yields a list page by page, up to `limit` items in all. `items` is the answer's repeated field. Raises
        CallFailed."""
        left = PAGE_SIZE if limit is None else limit
        while left:
            request.page_size = min(left, PAGE_SIZE)
            answer = self.call(method, request)
            yield list(getattr(answer, items))
            request.page_token = answer.next_page_token
            if not request.page_token:
                return
            left = PAGE_SIZE if limit is None else left - len(getattr(answer, items))

    def _failed(self, error: "grpc.RpcError") -> "CallFailed":
        from app.cli.call_failures import call_failed

        return call_failed(error, self.server, tls=self._credentials.tls)


def gateway_command(command: Callable[Concatenate[GatewayConnection, P], None]) -> Callable[..., None]:
    """Turns a function that takes a GatewayConnection first into a command with GATEWAY_OPTIONS, which connects and
    prints failures."""

    def run(**options: Any) -> None:
        common = {name: options.pop(name) for name in GATEWAY_OPTIONS}
        for value in options.values():
            check_utf8(value)
        settings = read_settings_without_sip(None, {"grpc_listen": "--server"}, grpc_listen=common["server"])
        with connected(settings, **common) as gateway:
            command(gateway, **options)  # type: ignore[call-arg]  # `with_options` gives `run` the command's signature

    return with_options(command, run, GATEWAY_OPTIONS)


@contextmanager
def connected(
    settings: "Settings", *, server: str | None, timeout_s: float, as_json: bool, **credential_options: Any
) -> Iterator[GatewayConnection]:
    """A connection to `settings.grpc_listen`. A failure inside the block is printed and ends the command."""
    from app.cli.call_failures import CallFailed, print_failure
    from app.cli.credentials import CredentialsUnusable

    try:
        credentials = credentials_of(settings, local=server is None, **credential_options)
        warn_of_clear_text(credentials, settings.grpc_listen)
        with credentials.channel(settings.grpc_listen, timeout_s) as channel:
            yield GatewayConnection(
                channel, credentials, server=settings.grpc_listen, timeout_s=timeout_s, as_json=as_json
            )
    except CredentialsUnusable as error:
        wrong_use(str(error))
    except CallFailed as failed:
        print_failure(failed)
        raise typer.Exit(failed.exit_code) from None
