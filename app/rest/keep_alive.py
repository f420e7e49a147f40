"""Names the time for which an idle connection is kept, so that clients do not use a connection that is being closed.

`Keep-Alive` is a header of RFC 2068 section 19.7.1.1 that clients still read (aiohttp, Apache HttpClient, undici). It
belongs to one connection, so `Connection` names it (RFC 9110 section 7.6.1).
"""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


def kept_alive(app: ASGIApp, idle_s: int) -> ASGIApp:
    """The application with both headers in each answer over HTTP/1.1, unless caller or answer close the connection."""
    added = [(b"connection", b"keep-alive"), (b"keep-alive", f"timeout={idle_s}".encode())]

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["http_version"] != "1.1" or _closes(scope["headers"]):
            await app(scope, receive, send)
            return

        async def send_kept(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.get("headers", ())
                if not _closes(headers):
                    message = {**message, "headers": [*headers, *added]}
            await send(message)

        await app(scope, receive, send_kept)

    return wrapped


def _closes(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name == b"connection" and b"close" in value.lower() for name, value in headers)
