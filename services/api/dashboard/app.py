"""The dashboard as an application of its own, which the gateway mounts."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, FastAPI, Form, Request
from fastapi.responses import RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from services.api.dashboard import compare, data, jobs, results, session, submit
from services.api.dashboard.assets import STATIC
from services.api.dashboard.web import PREFIX, Headers, check_origin, go_to, install_errors, make_environment, page
from services.api.parts import Parts

router = APIRouter()


def mount_dashboard(app: FastAPI, parts: Parts) -> None:
    """Put the dashboard under /ui of the gateway, and the way to it at /."""
    inner = FastAPI(openapi_url=None)
    inner.state.parts = parts
    inner.state.environment = make_environment()
    install_errors(inner)
    for routes in (router, jobs.router, results.router, data.router, submit.router, compare.router):
        inner.include_router(routes)
    inner.mount("/static", StaticFiles(directory=STATIC), name="static")
    # Around the whole of it, so that the answer to an unexpected error has them too.
    app.mount(PREFIX, Headers(inner))
    app.add_api_route("/", _home, include_in_schema=False)


def _home() -> Response:
    return RedirectResponse(f"{PREFIX}/jobs", 307)


@router.get("/")
def index() -> Response:
    return RedirectResponse(f"{PREFIX}/jobs", 307)


@router.get("/sign-in")
def sign_in_page(request: Request, next: str = "") -> Response:
    return page(request, "sign_in.html", next=session.local_path(next), refused=False)


@router.post("/sign-in")
def sign_in(request: Request, token: Annotated[str, Form()], next: Annotated[str, Form()] = "") -> Response:
    """Changes the API token, typed once, for a session."""
    check_origin(request)
    known: str = request.app.state.parts.token
    if not session.is_token(token, known):
        return page(request, "sign_in.html", status=401, next=session.local_path(next), refused=True)
    answer = RedirectResponse(session.local_path(next), 303)
    answer.set_cookie(
        session.COOKIE, session.issue(known, time.time()), max_age=session.LIFETIME_SECONDS, path=PREFIX,
        httponly=True, samesite="strict", secure=request.url.scheme == "https",
    )  # fmt: skip
    return answer


@router.post("/sign-out")
def sign_out(request: Request) -> Response:
    check_origin(request)
    answer = go_to(request, f"{PREFIX}/sign-in")
    answer.delete_cookie(session.COOKIE, path=PREFIX, httponly=True, samesite="strict")
    return answer
