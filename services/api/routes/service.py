"""Health, readiness, version and limits, and the page of error codes."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import get_args

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.concurrency import run_in_threadpool

from services.api.auth import Tenant
from services.api.parts import PROBLEM, Parts, PartsDep, problems
from services.api.routes.results import PredictBody
from services.common.bodies import MAX_JSON_BYTES
from services.common.problem import ERROR_PAGE, problem_body, problem_response
from tlm_core.errors import MissingDependency, StorageFull, TLMError
from tlm_core.training.recipe import RecipeName, Scale
from tlm_core.wire import Info

router = APIRouter(tags=["service"])

_TIMEOUT_SECONDS = 3.0
_MIN_FREE_BYTES = 50 * 2**20
# A wheel has the page beside the package's modules, a checkout in docs/.
_ERROR_PAGES = (Path(__file__).parents[1] / "errors.md", Path(__file__).parents[3] / "docs" / "errors.md")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_STYLE = (
    ":root{color-scheme:light dark}body{max-width:44rem;margin:2rem auto;padding:0 1rem;"
    "font:1rem/1.5 system-ui,sans-serif}:target{background:Mark;color:MarkText}code{font-family:monospace}"
)


@router.get("/healthz", summary="Check liveness")
async def healthz() -> dict[str, str]:
    """Return 200 while the process runs. Checks no other component."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    summary="Check readiness",
    response_model=dict[str, str],
    responses={503: {"description": "A component does not respond; `checks` names it.", "content": PROBLEM}},
)
async def readyz(parts: PartsDep) -> Response:
    """Check Redis, storage and retriever, each with a timeout of a few seconds."""
    components: dict[str, Callable[[], None]] = {
        "redis": parts.jobs.ping,
        "storage": lambda: _check_storage(parts),
        "retriever": parts.retriever.ready,
    }
    results = await asyncio.gather(*(_check(component) for component in components.values()))
    checks = dict(zip(components, results, strict=True))
    checks |= {task.name: task.condition for task in parts.background}
    failures = [f"{name}: {result}" for name, result in checks.items() if result != "ok"]
    if not failures:
        return JSONResponse(checks)
    problem = problem_body(503, "unavailable", "; ".join(failures), retryable=True)
    return problem_response({**problem, "checks": checks})


@router.get("/v1/info", summary="Get version and limits", responses=problems())
def info(parts: PartsDep, _: Tenant) -> Info:
    """Return the version of the service, its scales and recipes, and its size limits."""
    texts = next(m.max_length for m in PredictBody.model_fields["texts"].metadata if hasattr(m, "max_length"))
    return Info(
        version=version("tlm-service"),
        scales=get_args(Scale),
        recipes=get_args(RecipeName),
        max_upload_bytes=parts.settings.max_upload_bytes,
        max_json_bytes=MAX_JSON_BYTES,
        max_predict_texts=texts,
    )


@router.get(ERROR_PAGE, include_in_schema=False)
def error_page() -> HTMLResponse:
    """The page that the `type` of every problem links to: docs/errors.md. It needs no token."""
    headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
    return HTMLResponse(_rendered_error_page(), headers=headers)


def render_errors(markdown: str) -> str:
    """The Markdown page as HTML. The id of a heading is its text, so `#not_found` is the section of that code."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False})
    tokens = parser.parse(markdown)
    for heading, text in pairwise(tokens):
        if heading.type == "heading_open":
            heading.attrSet("id", text.content)
    body = parser.renderer.render(tokens, parser.options, {})
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Errors</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>\n'
        f"<body>\n{body}</body></html>\n"
    )


@cache
def _rendered_error_page() -> str:
    path = next((path for path in _ERROR_PAGES if path.is_file()), None)
    if path is None:
        raise MissingDependency(f"The error page {_ERROR_PAGES[0]} is missing. Reinstall the service.")
    return render_errors(path.read_text(encoding="utf-8"))


async def _check(component: Callable[[], None]) -> str:
    try:
        await asyncio.wait_for(run_in_threadpool(component), _TIMEOUT_SECONDS)
    except TimeoutError:
        return f"No response within {_TIMEOUT_SECONDS:g} s."
    except TLMError as error:
        return error.message
    return "ok"


def _check_storage(parts: Parts) -> None:
    store = parts.artifacts
    with store.errors("checking the storage"):
        store.check_mounted()
        if store.local:
            free = shutil.disk_usage(store.root).free
            if free < _MIN_FREE_BYTES:
                raise StorageFull(f"The storage has only {free >> 20} MiB of free space. Free some space.")
