"""Common parts of all pages: templates, sessions, static files, error pages and security headers."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import time
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from secrets import token_urlsafe
from typing import Annotated
from urllib.parse import quote

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.api.auth import TENANT
from services.api.dashboard import session
from services.api.dashboard.present import COLORS, FILTERS
from services.api.dashboard.progress import runtime, selects
from services.common.problem import problem_of, validation_problem
from tlm_core.errors import TLMError
from tlm_core.jobs.spec import JobRecord
from tlm_core.wire import JsonObject

PREFIX = "/ui"
STATIC = Path(__file__).parent / "static"
Refused = tuple[Mapping[str, str], TLMError] | None  # the texts of a refused form, and the error

# Pages have no inline scripts or styles, and load nothing from other hosts. So a hostile label cannot run code.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class NotSignedIn(Exception):
    """Raised without a valid session. The response redirects to the sign-in page."""


def signed_in(request: Request) -> str:
    """Return the tenant of the session. Raises NotSignedIn, and the error of `check_origin`."""
    token: str = request.app.state.parts.token
    if not session.is_valid(request.cookies.get(session.COOKIE, ""), token, time.time()):
        raise NotSignedIn
    check_origin(request)
    return TENANT


def check_origin(request: Request) -> None:
    """Raise HTTPException 403 for a state-changing request that does not come from a page of this dashboard."""
    if request.method not in ("GET", "HEAD") and not session.is_own(request.headers):
        detail = "The request did not come from a page of the dashboard. Open the dashboard, and repeat the action."
        raise HTTPException(403, detail)


SignedIn = Annotated[str, Depends(signed_in)]


def _job(request: Request, job: str, tenant: SignedIn) -> JobRecord:
    return request.app.state.parts.jobs.get(tenant, job)


# The job in the path of a page. Raises NotFound for an unknown job.
PageJob = Annotated[JobRecord, Depends(_job)]


@dataclass(frozen=True)
class Asset:
    """A static file. url: contains a hash of the content, so browsers may cache the file forever."""

    url: str
    integrity: str


def read_assets(prefix: str) -> dict[str, Asset]:
    """Return path in `static` → asset, for scripts, style sheets, icons and fonts. prefix: path of the dashboard.

    The integrity hashes of vendored files come from vendor.json, so that browsers refuse a changed file.
    """
    recorded = {f"vendor/{entry['file']}": entry["integrity"] for entry in vendored()}
    assets = {}
    for path in sorted(STATIC.rglob("*")):
        if path.suffix in (".js", ".css", ".svg", ".woff2"):
            name = path.relative_to(STATIC).as_posix()
            integrity = recorded.get(name) or integrity_of(path)
            tag = hashlib.sha256(integrity.encode()).hexdigest()[:12]
            assets[name] = Asset(f"{prefix}/static/{name}?v={tag}", integrity)
    return assets


def vendored() -> list[dict[str, str]]:
    """Return a dict for each vendored file: file, package, version, license, integrity."""
    return json.loads((STATIC / "vendor" / "vendor.json").read_text(encoding="utf-8"))


def integrity_of(path: Path) -> str:
    """Return the SHA-384 of a file in the format of the `integrity` attribute."""
    return "sha384-" + base64.b64encode(hashlib.sha384(path.read_bytes()).digest()).decode()


def build_environment() -> Environment:
    """Return the environment of the templates. It escapes every value, and an undefined name is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS, runtime=runtime, selects=selects)
    environment.globals.update(ui=PREFIX, color_count=COLORS, assets=read_assets(PREFIX), new_key=token_urlsafe)
    return environment


def page(
    request: Request, template: str, common: Mapping[str, object] | None = None, *, status: int = 200, **values: object
) -> HTMLResponse:
    """Render a template with `common` and `values`.

    The template also gets `now`, `path`, and `partial`, which is true if a script sent the request.
    """
    environment: Environment = request.app.state.environment
    text = environment.get_template(template).render(
        {**(common or {}), **values}, now=time.time(), partial="hx-request" in request.headers, path=request.url.path
    )
    return HTMLResponse(text, status)


def form_page(request: Request, template: str, refused: Refused, **values: object) -> HTMLResponse:
    """Return a page with a form. refused: texts and error for the template values `typed` and `refused`."""
    typed, error = refused or ({}, None)
    problem = problem_of(error) if error else None
    return page(request, template, values, status=problem.status if problem else 200, typed=typed, refused=problem)


def redirect(request: Request, path: str) -> Response:
    """Redirect the browser to a dashboard page, also if a script sent the request."""
    if "hx-request" in request.headers:
        return Response(status_code=204, headers={"HX-Redirect": path})
    return RedirectResponse(path, 303)


def install_errors(app: FastAPI) -> None:
    """Show every error as a page. For the request of a script, return only the message as an HTML element."""
    app.add_exception_handler(NotSignedIn, _to_sign_in)
    for kind in (TLMError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _on_error)


async def _to_sign_in(request: Request, _: Exception) -> Response:
    target = str(request.url.path) if request.method == "GET" and "hx-request" not in request.headers else ""
    return redirect(request, f"{PREFIX}/sign-in" + (f"?next={quote(target)}" if target else ""))


_TITLES = {
    403: "Request refused",
    404: "Not found",
    409: "Not possible now",
    413: "Upload too large",
    422: "Invalid input",
    500: "Internal error",
    503: "Service unavailable",
    507: "Storage full",
}


async def _on_error(request: Request, error: Exception) -> Response:
    faults: list[JsonObject] = []
    match error:
        case TLMError():
            problem = problem_of(error)
            status, detail, faults = problem.status, problem.detail, problem.errors or []
        case RequestValidationError():
            status, detail = 422, validation_problem(error.errors()).detail
        case HTTPException(status_code=404):
            status, detail = 404, f"There is no page at {request.url.path}."
        case HTTPException():
            status, detail = error.status_code, str(error.detail)
        case _:
            logging.getLogger(__name__).error("%s %s failed: %r", request.method, request.url.path, error)
            status, detail = 500, "An unexpected error occurred. The log of the gateway has the cause."
    template = "_problem.html" if "hx-request" in request.headers else "error.html"
    title = _TITLES.get(status, "The request failed")
    return page(request, template, status=status, title=title, detail=detail, status_code=status, faults=faults)


class Headers:
    """ASGI middleware that sets security headers on every response. Browsers may cache only the files at `urls`."""

    def __init__(self, app: ASGIApp, urls: Set[str]) -> None:
        self._app = app
        self._urls = urls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        url = f"{scope.get('path', '')}?{scope.get('query_string', b'').decode('latin-1')}"

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                # During an upgrade, a page of another release can request a file that this release has changed.
                forever = url in self._urls and message["status"] in (200, 304)
                cache = "public, max-age=31536000, immutable" if forever else "no-store"
                for name, value in {**_HEADERS, "Cache-Control": cache}.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, with_headers)
