"""The server: the page, and the routes of api.py.

An error is {"error": sentence} with a status of 4xx; then nothing was written.
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
    mimetypes.add_type(kind, ending)  # not what the machine's own table says

pages = APIRouter()


def create_app(context: AppContext, *, allowed_hosts: Sequence[str], max_body_bytes: int = MAX_BODY_BYTES) -> FastAPI:
    """The application. `allowed_hosts`: names under which it may be asked, so that no foreign page can by a name of its own."""
    app = FastAPI(title="sam-annotate", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.context = context
    app.include_router(pages)
    app.include_router(api)
    app.mount("/static", StaticFiles(directory=STATIC))
    app.add_exception_handler(HttpError, _refused)
    app.add_exception_handler(HTTPException, _not_had)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts), www_redirect=False)
    app.add_middleware(RequestGuard, max_body_bytes=max_body_bytes)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    return JSONResponse({"error": str(error)}, error.status)


async def _not_had(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = "; ".join(f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()[:5])
    return JSONResponse({"error": found}, 422)


@pages.get("/", response_model=None)
def page(request: Request) -> Response:
    """The page, or the way to log in."""
    try:
        user_of(request)
    except HttpError:
        return RedirectResponse("/login", 303)
    return FileResponse(STATIC / "index.html")


@pages.get("/login", response_model=None)
def login_page() -> Response:
    """The form."""
    return FileResponse(STATIC / "login.html")


@pages.post("/login", response_model=None)
async def login(request: Request) -> Response:
    """The token goes into a cookie that no script reads and no other site sends."""
    form = parse_qs((await request.body()).decode("utf-8", "replace"))
    token = form.get("token", [""])[0].strip()
    try:
        app_context_of(request).access.authenticate(token)
    except HttpError:
        return RedirectResponse("/login?refused", 303)
    answer = RedirectResponse("/", 303)
    answer.set_cookie(COOKIE, token, max_age=30 * 86_400, httponly=True, samesite="strict", secure=request.url.scheme == "https")
    return answer


@pages.post("/logout", response_model=None)
def logout() -> Response:
    """Forget the cookie."""
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(COOKIE)
    return answer


@pages.get(f"/static/{ORT}", response_model=None)
def runtime() -> Response:
    """WebAssembly of onnxruntime-web: kept compressed, a quarter of its size, and sent so."""
    return FileResponse(STATIC / f"{ORT}.gz", media_type="application/wasm", headers={"Content-Encoding": "gzip"})
