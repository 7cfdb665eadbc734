"""What every request meets before the server looks at it, and what every answer carries."""

from __future__ import annotations

from contextlib import suppress

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECURITY_HEADERS = {
    # Both together make the page cross-origin isolated, without which a browser has no threads for WebAssembly.
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
    """A body went past the limit while it was read."""


class RequestGuard:
    """ASGI middleware: bodies of at most `max_body_bytes` (413 before more is read), and SECURITY_HEADERS on every answer."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self.app, self.max_body_bytes = app, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, too_large, num_bytes = False, False, 0

        async def counted() -> Message:
            nonlocal num_bytes, too_large
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self.max_body_bytes:
                too_large = True
                raise BodyTooLargeError
            return message

        async def with_headers(message: Message) -> None:
            nonlocal began
            if too_large and not began:
                return  # what the application makes of its broken body: the answer follows below
            if message["type"] == "http.response.start":
                began = True
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-cache")
            await send(message)

        length = Headers(scope=scope).get("content-length", "0")
        if not (length.isascii() and length.isdigit()) or int(length) > self.max_body_bytes:
            await self._refuse(scope, receive, with_headers)
            return
        with suppress(BodyTooLargeError):
            await self.app(scope, counted, with_headers)
        if too_large and not began:
            too_large = False
            await self._refuse(scope, receive, with_headers)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = f"the body is larger than {self.max_body_bytes} bytes"
        await JSONResponse({"error": message}, 413, {"Connection": "close"})(scope, receive, send)
