"""The FastAPI application: the page, and the routes of api.py.

An error response is {"error": message} with a 4xx status; a request with an error response writes nothing.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from data_engine.annotation_tool.backend.api import api
from data_engine.annotation_tool.backend.app_context import COOKIE, AppContext, app_context_of, user_of
from data_engine.annotation_tool.backend.http_errors import HttpError
from data_engine.annotation_tool.backend.middleware import RequestGuard

STATIC = Path(__file__).parents[1] / "static"
ORT = "ort/ort-wasm-simd-threaded.wasm"
MAX_BODY_BYTES = 16 << 20

for ending, kind in ((".js", "text/javascript"), (".mjs", "text/javascript"), (".css", "text/css")):
    mimetypes.add_type(kind, ending)  # independent of the machine's own table

pages = APIRouter()


def create_app(context: AppContext, *, allowed_hosts: Sequence[str], max_body_bytes: int = MAX_BODY_BYTES) -> FastAPI:
    """Return the application. `allowed_hosts`: accepted values of the Host header, a protection against DNS rebinding."""
    app = FastAPI(title="sam-annotate", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.context = context
    app.include_router(pages)
    app.include_router(api)
    app.mount("/static", StaticFiles(directory=STATIC))
    app.add_exception_handler(HttpError, _handle_http_error)
    app.add_exception_handler(HTTPException, _handle_starlette_error)
    app.add_exception_handler(RequestValidationError, _handle_invalid_request)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts), www_redirect=False)
    app.add_middleware(RequestGuard, max_body_bytes=max_body_bytes)
    return app


async def _handle_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    return JSONResponse({"error": str(error)}, error.status)


async def _handle_starlette_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)


async def _handle_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    message = "; ".join(f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()[:5])
    return JSONResponse({"error": message}, 422)


@pages.get("/", response_model=None)
def page(request: Request) -> Response:
    """Return the page, or redirect to the login."""
    try:
        user_of(request)
    except HttpError:
        return RedirectResponse("/login", 303)
    return FileResponse(STATIC / "index.html")


@pages.get("/login", response_model=None)
def login_page() -> Response:
    """Return the login form."""
    return FileResponse(STATIC / "login.html")


@pages.post("/login", response_model=None)
async def login(request: Request) -> Response:
    """Store the token in a cookie that scripts cannot read and other sites cannot send."""
    form = parse_qs((await request.body()).decode("utf-8", "replace"))
    token = form.get("token", [""])[0].strip()
    try:
        app_context_of(request).access.authenticate(token)
    except HttpError:
        return RedirectResponse("/login?invalid", 303)
    response = RedirectResponse("/", 303)
    response.set_cookie(
        COOKIE, token, max_age=30 * 86_400, httponly=True, samesite="strict", secure=request.url.scheme == "https"
    )
    return response


@pages.post("/logout", response_model=None)
def logout() -> Response:
    """Delete the cookie."""
    response = RedirectResponse("/login", 303)
    response.delete_cookie(COOKIE)
    return response


@pages.get(f"/static/{ORT}", response_model=None)
def onnx_runtime() -> Response:
    """Return the WebAssembly of onnxruntime-web, which is stored and sent compressed (a quarter of its size)."""
    return FileResponse(STATIC / f"{ORT}.gz", media_type="application/wasm", headers={"Content-Encoding": "gzip"})
