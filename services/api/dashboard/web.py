"""What all pages share: rendering, who is signed in, errors as pages, and the headers that keep a page to itself."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.api.dashboard import session
from services.api.dashboard.assets import read_assets
from services.api.dashboard.present import FILTERS
from services.common.problem import problem_of, validation_problem
from tlm_core.errors import TLMError

PREFIX = "/ui"
_TENANT = "default"

# No inline script or style and nothing from elsewhere: what a hostile label smuggles in does not run.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class NotSignedIn(Exception):
    """Answered with the way to the sign-in page."""


class ForeignOrigin(Exception):
    """A write that does not come from a page of ours."""


def signed_in(request: Request) -> str:
    """The tenant of the session. Raises NotSignedIn, and ForeignOrigin for a write from elsewhere."""
    token: str = request.app.state.parts.token
    if not session.is_valid(request.cookies.get(session.COOKIE, ""), token, time.time()):
        raise NotSignedIn
    check_origin(request)
    return _TENANT


def check_origin(request: Request) -> None:
    """Raises ForeignOrigin for a write that does not come from a page of ours."""
    if request.method not in ("GET", "HEAD") and not session.is_own(request.headers):
        raise ForeignOrigin


SignedIn = Annotated[str, Depends(signed_in)]


def make_environment() -> Environment:
    """Templates in which everything is escaped and a name that is not given is an error."""
    folder = Path(__file__).parent / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    environment.globals.update(ui=PREFIX, assets=read_assets(PREFIX))
    return environment


def page(request: Request, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """A rendered template. `now` is the time at which it is rendered; `partial` tells whether a script asked."""
    environment: Environment = request.app.state.environment
    text = environment.get_template(template).render(
        values, now=time.time(), partial="hx-request" in request.headers, path=request.url.path
    )
    return HTMLResponse(text, status)


def go_to(request: Request, path: str) -> Response:
    """Send the browser to a page of ours, also where a script made the request."""
    if "hx-request" in request.headers:
        return Response(status_code=204, headers={"HX-Redirect": path})
    return RedirectResponse(path, 303)


def install_errors(app: FastAPI) -> None:
    """Show every error as a page, or as a part of one where a script asked."""
    app.add_exception_handler(NotSignedIn, _to_sign_in)
    app.add_exception_handler(ForeignOrigin, _on_foreign)
    app.add_exception_handler(TLMError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_unexpected)


async def _to_sign_in(request: Request, _: Exception) -> Response:
    wanted = str(request.url.path) if request.method == "GET" and "hx-request" not in request.headers else ""
    return go_to(request, f"{PREFIX}/sign-in" + (f"?next={quote(wanted)}" if wanted else ""))


async def _on_foreign(request: Request, _: Exception) -> Response:
    detail = "this did not come from a page of the dashboard; open the dashboard itself and do it there"
    return _failure(request, 403, "Forbidden", detail)


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, TLMError)
    problem = problem_of(error)
    return _failure(request, problem["status"], problem["title"], problem["detail"], problem.get("errors"))


async def _on_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _failure(request, 422, "Not accepted", validation_problem(error.errors())["detail"])


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = "there is no such page" if error.status_code == 404 else str(error.detail)
    return _failure(request, error.status_code, "Not found" if error.status_code == 404 else "Not possible", detail)


async def _on_unexpected(request: Request, error: Exception) -> Response:
    logging.getLogger(__name__).error("%s %s failed: %r", request.method, request.url.path, error)
    return _failure(request, 500, "Our fault", "the service met an error it did not expect; its log has the cause")


def _failure(request: Request, status: int, title: str, detail: str, faults: Any = None) -> HTMLResponse:
    return page(request, "error.html", status=status, title=title, detail=detail, status_code=status, faults=faults)


class Headers:
    """ASGI layer: sets the headers of every answer of the dashboard. Pages are not kept, static files are."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        static = scope.get("path", "").startswith(f"{PREFIX}/static/")

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                if static:
                    headers["Cache-Control"] = "public, max-age=31536000, immutable"
                else:
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, with_headers)
