"""Health, readiness, version and limits."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import get_args

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from services.api.auth import Tenant
from services.api.parts import PROBLEM, Parts, PartsDep, problems
from services.api.probes import PROBE_SECONDS
from services.api.routes.models import MAX_TEXTS
from services.common.background import check_running, conditions
from services.common.bodies import MAX_JSON_BYTES
from services.common.metrics import CONTENT_TYPE, Live, exposition
from services.common.problem import problem_body, problem_response
from tlm_core.errors import ClusterUnavailable, TLMError, Unavailable
from tlm_core.training.recipe import RecipeName, Scale
from tlm_core.wire import Info

router = APIRouter(tags=["service"])


@router.get(
    "/healthz",
    summary="Check liveness",
    responses={503: {"description": "A background task has stopped.", "content": PROBLEM}},
)
async def healthz(parts: PartsDep) -> dict[str, str]:
    """Return 200 while the process and its background tasks run. Does not check other components."""
    check_running(parts.background)
    return {"status": "ok"}


@router.get(
    "/readyz",
    summary="Check readiness",
    response_model=dict[str, str],
    responses={503: {"description": "A component or background task fails; `checks` names it.", "content": PROBLEM}},
)
async def readyz(parts: PartsDep) -> Response:
    """Check the background tasks, and Redis, storage and retriever with a timeout of a few seconds each.

    `coordinator` is "ok", or the reason why no queued job starts. The gateway is ready without a coordinator.
    """
    components: dict[str, Callable[[], None]] = {
        "redis": parts.jobs.ping,
        "storage": lambda: _check_storage(parts),
        "retriever": parts.retriever.ready,
        "coordinator": lambda: _check_coordinator(parts),
    }
    results = await asyncio.gather(*(_check(parts, name, component) for name, component in components.items()))
    checks = dict(zip(components, results, strict=True))
    checks |= conditions(parts.background)
    failures = [f"{name}: {result}" for name, result in checks.items() if result != "ok" and name != "coordinator"]
    if not failures:
        return JSONResponse(checks)
    problem = problem_body(503, "unavailable", "; ".join(failures), retryable=True)
    return problem_response(problem.model_copy(update={"checks": checks}))


@router.get("/metrics", include_in_schema=False)
async def metrics(parts: PartsDep, tenant: Tenant) -> Response:
    """Return the metrics of this gateway and of the whole service for Prometheus."""
    figures = [Live("tlm_event_streams", "Open event streams of this gateway.", parts.tailer.watchers)]
    up = Live("tlm_storage_up", "Whether the storage answers.", True)
    try:
        figures += [up, *await parts.probes.call("disk", partial(_figures_of_storage, parts))]
    except (TimeoutError, TLMError):
        figures.append(replace(up, value=False))
    figures += await asyncio.to_thread(_figures_of_redis, parts, tenant)
    return Response(exposition(figures), media_type=CONTENT_TYPE)


@router.get("/v1/info", summary="Get version and limits", responses=problems())
def info(parts: PartsDep, _: Tenant) -> Info:
    """Return the version of the service, its scales and recipes, and its size limits."""
    return Info(
        version=version("tlm-service"),
        scales=get_args(Scale),
        recipes=get_args(RecipeName),
        max_upload_bytes=parts.settings.max_upload_bytes,
        max_json_bytes=MAX_JSON_BYTES,
        max_predict_texts=MAX_TEXTS,
    )


async def _check(parts: Parts, name: str, component: Callable[[], None]) -> str:
    try:
        await parts.probes.call(name, component)
    except TimeoutError:
        return f"No response within {PROBE_SECONDS:g} s."
    except TLMError as error:
        return error.message
    return "ok"


def _check_storage(parts: Parts) -> None:
    store = parts.artifacts
    with store.errors("checking the storage"):
        store.check_mounted()
        if store.local:
            os.stat(store.root)  # `check_space` ignores a missing folder.
        store.check_space()


def _check_coordinator(parts: Parts) -> None:
    if obstacle := parts.jobs.obstacle():
        raise ClusterUnavailable(obstacle)


def _figures_of_storage(parts: Parts) -> Sequence[Live]:
    """Return the metric of the free space if the storage is a folder. Raises TLMError if the storage fails."""
    store = parts.artifacts
    with store.errors("checking the storage"):
        store.check_mounted()
        if not store.local:
            return ()
        return (Live("tlm_storage_free_bytes", "Free space of the storage.", shutil.disk_usage(store.root).free),)


def _figures_of_redis(parts: Parts, tenant: str) -> Sequence[Live]:
    """Return the metrics of the whole service.

    If Redis does not answer, `tlm_redis_up` is 0, and all other metrics are missing. If Redis is full, `tlm_redis_up`
    is 0, and the metrics that need no write remain.
    """
    try:
        figures = [*parts.jobs.figures(tenant), parts.deliverer.backlog()]
    except Unavailable:
        figures = []
    up = any(figure.name == "tlm_redis_write_seconds" for figure in figures)
    return [Live("tlm_redis_up", "Whether Redis answers and accepts writes.", up), *figures]
