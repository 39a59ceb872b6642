"""The dashboard application, which the gateway mounts."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Form, Request
from fastapi.responses import FileResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from services.api.auth import is_token
from services.api.dashboard import (
    compare_page,
    data_pages,
    job_pages,
    jobs_page,
    models_page,
    result_pages,
    selection_tab,
    session,
    submit_page,
)
from services.api.dashboard.web import (
    POLICY,
    PREFIX,
    STATIC,
    Headers,
    build_environment,
    check_origin,
    install_errors,
    page,
    redirect,
)
from services.api.parts import Parts, refuse_unknown_parameters

router = APIRouter()
_PAGES = (
    jobs_page, job_pages, result_pages, selection_tab, data_pages, models_page, submit_page, compare_page,
)  # fmt: skip


def mount_dashboard(app: FastAPI, parts: Parts) -> None:
    """Mount the dashboard at /ui of the gateway, and redirect / and /docs to its pages."""
    inner = FastAPI(openapi_url=None)
    inner.state.parts = parts
    inner.state.environment = build_environment()
    install_errors(inner)
    for routes in (router, *(module.router for module in _PAGES)):
        inner.include_router(routes, dependencies=[Depends(refuse_unknown_parameters)])
    inner.mount("/static", StaticFiles(directory=STATIC), name="static")
    # Outermost layer, so that responses to unexpected errors get the headers too.
    app.mount(PREFIX, Headers(inner, {asset.url for asset in inner.state.environment.globals["assets"].values()}))
    app.add_api_route("/", index, include_in_schema=False)
    app.add_api_route("/favicon.ico", lambda: FileResponse(STATIC / "icon.svg"), include_in_schema=False)
    app.add_api_route("/docs", lambda: RedirectResponse(f"{PREFIX}/reference", 307), include_in_schema=False)


@router.get("/")
def index() -> Response:
    return RedirectResponse(f"{PREFIX}/jobs", 307)


@router.get("/reference")
def reference(request: Request) -> Response:
    """Show the operations of the API, also without a session. The CSP allows data URLs, which the style sheet has."""
    response = page(request, "reference.html")
    response.headers["Content-Security-Policy"] = POLICY.replace("img-src 'self'", "img-src 'self' data:")
    return response


@router.get("/sign-in")
def sign_in_page(request: Request, next: str = "") -> Response:
    return page(request, "sign_in.html", next=session.local_path(next), refused=False)


@router.post("/sign-in")
def sign_in(request: Request, token: Annotated[str, Form()], next: Annotated[str, Form()] = "") -> Response:
    """Exchange the API token for a session cookie."""
    check_origin(request)
    api_token: str = request.app.state.parts.token
    if not is_token(token, api_token):
        return page(request, "sign_in.html", status=401, next=session.local_path(next), refused=True)
    response = RedirectResponse(session.local_path(next), 303)
    response.set_cookie(
        session.COOKIE, session.issue(api_token, time.time()), max_age=session.LIFETIME_SECONDS, path=PREFIX,
        httponly=True, samesite="strict", secure=request.url.scheme == "https",
    )  # fmt: skip
    return response


@router.post("/sign-out")
def sign_out(request: Request) -> Response:
    check_origin(request)
    response = redirect(request, f"{PREFIX}/sign-in")
    response.delete_cookie(session.COOKIE, path=PREFIX, httponly=True, samesite="strict")
    return response
