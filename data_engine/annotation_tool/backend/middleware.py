"""ASGI middleware: limit of the request size, and security headers of every response."""

from __future__ import annotations

from contextlib import suppress

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECURITY_HEADERS = {
    # Both together make the page cross-origin isolated, which browsers require for threads in WebAssembly.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; style-src 'self'; "
        "img-src 'self' blob: data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class BodyTooLargeError(Exception):
    """The request body exceeded the limit while it was read."""


class RequestGuard:
    """Rejects bodies larger than `max_body_bytes` with status 413, unread, and adds SECURITY_HEADERS to every response."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self.app, self.max_body_bytes = app, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        response_started, too_large, num_bytes = False, False, 0

        async def receive_limited() -> Message:
            nonlocal num_bytes, too_large
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self.max_body_bytes:
                too_large = True
                raise BodyTooLargeError
            return message

        async def send_with_headers(message: Message) -> None:
            nonlocal response_started
            if too_large and not response_started:
                return  # the application's response to the truncated body; the 413 below replaces it
            if message["type"] == "http.response.start":
                response_started = True
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-cache")
            await send(message)

        length = Headers(scope=scope).get("content-length", "0")
        if not (length.isascii() and length.isdigit()) or int(length) > self.max_body_bytes:
            await self._reject(scope, receive, send_with_headers)
            return
        with suppress(BodyTooLargeError):
            await self.app(scope, receive_limited, send_with_headers)
        if too_large and not response_started:
            too_large = False
            await self._reject(scope, receive, send_with_headers)

    async def _reject(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = f"the body is larger than {self.max_body_bytes} bytes"
        await JSONResponse({"error": message}, 413, {"Connection": "close"})(scope, receive, send)
