"""Is the process there, can it work, and what is it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from importlib.metadata import version
from typing import get_args

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from services.api.auth import Tenant
from services.api.parts import Parts, PartsDep, problems
from services.api.routes.results import PredictBody
from services.common.bodies import MAX_JSON_BYTES
from services.common.problem import problem_body, problem_response
from tlm_core.errors import StorageFull, TLMError
from tlm_core.training.recipe import RecipeName, Scale
from tlm_core.wire import Info

router = APIRouter(tags=["service"])

_PATIENCE_SECONDS = 3.0
_LEAST_FREE_BYTES = 50 * 2**20


@router.get("/healthz", summary="The process lives")
async def healthz() -> dict[str, str]:
    """Answers as long as the process does; asks nothing else."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    summary="All components answer",
    response_model=dict[str, str],
    responses={503: {"description": "a component does not answer; `checks` says which",
                     "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}}},
)  # fmt: skip
async def readyz(parts: PartsDep) -> Response:
    """Asks Redis, storage and retriever, each for at most a few seconds."""
    wanted: dict[str, Callable[[], None]] = {
        "redis": parts.jobs.ping,
        "storage": lambda: _storage(parts),
        "retriever": parts.retriever.ready,
    }
    told = await asyncio.gather(*(_check(ask) for ask in wanted.values()))
    checks = dict(zip(wanted, told, strict=True)) | {"events": "ok" if parts.tailer.alive else "the tailer has ended"}
    missing = [name for name, answer in checks.items() if answer != "ok"]
    if not missing:
        return JSONResponse(checks)
    detail = "; ".join(f"{name}: {checks[name]}" for name in missing)
    return problem_response(problem_body(503, "unavailable", detail, retryable=True, checks=checks))


@router.get("/v1/info", summary="Version and limits", responses=problems())
def info(parts: PartsDep, _: Tenant) -> Info:
    """What this service is and how much it takes at once."""
    texts = next(m.max_length for m in PredictBody.model_fields["texts"].metadata if hasattr(m, "max_length"))
    return Info(
        version=version("tlm-service"),
        scales=get_args(Scale),
        recipes=get_args(RecipeName),
        max_upload_bytes=parts.settings.max_upload_bytes,
        max_json_bytes=MAX_JSON_BYTES,
        max_predict_texts=texts,
    )


async def _check(ask: Callable[[], None]) -> str:
    try:
        await asyncio.wait_for(run_in_threadpool(ask), _PATIENCE_SECONDS)
    except TimeoutError:
        return f"no answer within {_PATIENCE_SECONDS:g} s"
    except TLMError as error:
        return error.message
    return "ok"


def _storage(parts: Parts) -> None:
    store = parts.artifacts
    with store.errors("looking at the storage"):
        store.check_mounted()
        if store.local:
            free = shutil.disk_usage(store.root).free
            if free < _LEAST_FREE_BYTES:
                raise StorageFull(f"only {free >> 20} MiB are free on the storage; free some space")
