"""The gateway application: routes, background tasks, OpenAPI description."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import Depends, FastAPI
from starlette.concurrency import run_in_threadpool

from services.api.dashboard.app import mount_dashboard
from services.api.dashboard.data_pages import UPLOAD_PATHS
from services.api.openapi import openapi
from services.api.parts import Parts, refuse_unknown_parameters
from services.api.removal import finish_removals
from services.api.routes import corpora, datasets, documentation, jobs, models, results, service, uploads, webhooks
from services.common.problem import install_problem_handlers
from services.common.request_ids import App

_REMOVAL_SECONDS = 300


def create_app(parts: Parts) -> FastAPI:
    """Return the gateway application, which uses the stores and clients in `parts`."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(parts.tailer.run(), name="tailer"),
            asyncio.create_task(_finish_removals(parts), name="removals"),
        ]
        deliveries = parts.deliverer.start()
        try:
            yield
        finally:
            parts.tailer.close()
            parts.deliverer.stop()
            await run_in_threadpool(deliveries.join, 10)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    app = App(
        title="TLM service", version=version("tlm-service"), lifespan=lifespan,
        docs_url=None, redoc_url=None,
    )  # fmt: skip
    app.state.parts = parts
    install_problem_handlers(app, streamed=("/v1/datasets", "/v1/corpora", *UPLOAD_PATHS), raw=("/v1/uploads/",))
    for module in (service, uploads, datasets, corpora, jobs, results, models, webhooks):
        app.include_router(module.router, dependencies=[Depends(refuse_unknown_parameters)])
    app.include_router(documentation.router)
    mount_dashboard(app, parts)
    app.openapi = lambda: openapi(app)  # type: ignore[method-assign]
    return app


async def _finish_removals(parts: Parts) -> None:
    """Complete interrupted deletions when the gateway starts, and every five minutes."""
    with parts.removals.running():
        while True:
            with parts.removals.round():
                await run_in_threadpool(finish_removals, parts)
            await asyncio.sleep(_REMOVAL_SECONDS)
