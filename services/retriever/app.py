"""The HTTP API of the retriever: loads of corpus versions, searches and selections. Only other services use it."""

from __future__ import annotations

import asyncio
import hmac
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.background import Background, check_running
from services.common.metrics import CONTENT_TYPE, Live, exposition
from services.common.problem import install_problem_handlers, problem_of, problem_response
from services.common.redis_client import connect as connect_redis
from services.common.request_ids import App
from services.common.retriever_client import (
    CorpusFolder,
    IndexLoad,
    SearchQuery,
    SelectionRequest,
    SelectionRun,
    StopResult,
)
from services.retriever.cluster import connect
from services.retriever.index_loads import IndexLoads
from services.retriever.indexes import CorpusIndexes, CorpusKey, EmbeddedIndexes, OpenSearchIndexes
from services.retriever.registry import Registry, SharedRegistry
from services.retriever.selection_runs import SelectionRuns
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.corpus.passages import tidy
from tlm_core.errors import TLMError, Unauthorized, Unavailable
from tlm_core.wire import Hit, Items, RefusedPassage, SearchResult

log = logging.getLogger(__name__)


class RetrieverSettings(BaseSettings):
    """Settings of the retriever, from TLM_RETRIEVER_* variables."""

    model_config = SettingsConfigDict(
        env_prefix="TLM_RETRIEVER_",
        env_ignore_empty=True,
        hide_input_in_errors=True,  # some values are secrets
    )

    storage: str = Field(description="root of the storage: a folder or any fsspec address")
    scratch: Path = Field(description="local folder for partial results and the embedded indexes")
    host: str = "127.0.0.1"
    port: int = 8322
    internal_token: SecretStr = Field(min_length=1, description="bearer token of the other services")
    index: Literal["opensearch", "embedded"] = "embedded"
    opensearch_url: str = "http://127.0.0.1:9200"
    opensearch_user: str | None = None
    opensearch_password: SecretStr | None = None
    opensearch_ca: Path | None = Field(None, description="certificate authority of the cluster, a PEM file")
    opensearch_shards: int = Field(1, ge=1, description="shards of a new index; each holds about ten million passages")
    retry_seconds: float = Field(120.0, description="seconds for which searches and loads retry failed requests")
    selections_at_once: int = Field(2, ge=1, description="maximum number of selections that run at the same time")
    redis_url: str | None = Field(None, description="Redis where several retrievers share loads and selections")
    redis_password: SecretStr | None = None

    def artifact_store(self) -> ArtifactStore:
        # The gateway writes to a new storage before the retriever does, so the storage is never new here.
        return ArtifactStore(self.storage, self.scratch / "artifacts", is_new=lambda: False)


def create_app(
    indexes: CorpusIndexes, loads: IndexLoads, selections: SelectionRuns, *, token: str, close: Callable[[], None]
) -> FastAPI:
    """Return the application. token: bearer token of the other services. close: function to call at shutdown."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        close()

    def authorize(request: Request) -> None:
        header = request.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(header, f"Bearer {token}".encode()):
            raise Unauthorized("Missing or wrong internal token. Send it as bearer token.")

    app = App(title="TLM retriever", lifespan=lifespan)
    install_problem_handlers(app)
    for router in (_corpora(loads), _selections(selections)):
        app.include_router(router, prefix="/v1", dependencies=[Depends(authorize)])
    app.include_router(_health(indexes, (loads.task, selections.task)))
    return app


def _corpora(loads: IndexLoads) -> APIRouter:
    router = APIRouter()

    @router.put("/corpora/{tenant}/{name}/versions/{version}", status_code=202)
    def put_corpus(tenant: str, name: str, version: str, body: CorpusFolder) -> None:
        loads.put(CorpusKey(tenant, name, version), body.folder, body.language)

    @router.get("/corpora/{tenant}/{name}/versions/{version}")
    def get_corpus(tenant: str, name: str, version: str) -> IndexLoad:
        return loads.get(CorpusKey(tenant, name, version))

    @router.get("/corpora/{tenant}/{name}/versions/{version}/refused")
    def get_refused(tenant: str, name: str, version: str) -> Items[RefusedPassage]:
        refused = loads.refused(CorpusKey(tenant, name, version))
        return Items[RefusedPassage](
            data=tuple(RefusedPassage(reason=entry.reason, **entry.passage._asdict()) for entry in refused)
        )

    @router.delete("/corpora/{tenant}/{name}/versions/{version}", status_code=204)
    def delete_corpus(tenant: str, name: str, version: str) -> None:
        loads.drop(CorpusKey(tenant, name, version))

    @router.post("/search")
    def search(body: SearchQuery) -> SearchResult:
        index = loads.ready(CorpusKey(body.tenant, body.corpus, body.version))
        [hits] = index.search([tidy(body.query)], body.k)
        passages = index.fetch([hit.id for hit in hits])
        return SearchResult(
            version=body.version, hits=tuple(Hit(score=hit.score, **passages[hit.id]._asdict()) for hit in hits)
        )

    return router


def _selections(selections: SelectionRuns) -> APIRouter:
    router = APIRouter()

    @router.put("/selections/{artifact}", status_code=202)
    def put_selection(artifact: str, body: SelectionRequest) -> None:
        selections.put(artifact, body)

    @router.get("/selections/{artifact}")
    def get_selection(artifact: str) -> SelectionRun:
        return selections.get(artifact)

    @router.delete("/selections/{artifact}")
    def stop_selection(artifact: str, prefix: str) -> StopResult:
        return StopResult(stopped=selections.stop(artifact, prefix))

    return router


def _health(indexes: CorpusIndexes, tasks: Sequence[Background]) -> APIRouter:
    router = APIRouter()
    ready = True

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:  # Functions without `async` wait for a thread, also for slow searches.
        check_running(tasks)
        return {"status": "alive"}

    def index_up() -> bool:
        try:
            return indexes.check()
        except TLMError:  # `/readyz` returns the reason
            return False

    @router.get("/metrics")
    async def metrics() -> Response:
        up = await asyncio.to_thread(index_up)
        figures = [Live("tlm_index_up", "Whether the index answers and has all its shards.", up)]
        return Response(exposition(figures), media_type=CONTENT_TYPE)

    @router.get("/readyz", response_model=None)
    def readyz() -> Response | dict[str, str]:
        """Return `{"status": "ready"}`, or a problem response if the index or a task fails. Log only changes."""
        nonlocal ready
        try:
            indexes.check()
            for task in tasks:
                if task.error:
                    raise Unavailable(task.condition)
        except TLMError as error:
            if ready:
                log.warning("Not ready: %s", error)
            ready = False
            return problem_response(problem_of(error))
        if not ready:
            log.info("Ready again")
        ready = True
        return {"status": "ready"}

    return router


def assemble(settings: RetrieverSettings) -> FastAPI:
    """Return the application for `settings`. Does not connect to other components."""
    stop = threading.Event()
    indexes: EmbeddedIndexes | OpenSearchIndexes
    if settings.index == "embedded":
        indexes = EmbeddedIndexes(settings.scratch / "indexes")
    else:
        password = settings.opensearch_password
        cluster = connect(
            settings.opensearch_url,
            user=settings.opensearch_user,
            password=password.get_secret_value() if password else None,
            ca=settings.opensearch_ca,
            retry_seconds=settings.retry_seconds,
            stop=stop,
        )
        indexes = OpenSearchIndexes(cluster, shards=settings.opensearch_shards)
    store = settings.artifact_store()
    registry = Registry()
    if settings.redis_url is not None:
        secret = settings.redis_password
        client = connect_redis(settings.redis_url, password=secret.get_secret_value() if secret else None)
        registry = SharedRegistry(client)
    loads = IndexLoads(indexes, store, stop, registry=registry)
    at_once = settings.selections_at_once
    selections = SelectionRuns(loads, store, settings.scratch, stop, at_once=at_once, registry=registry)

    def close() -> None:
        stop.set()
        selections.close()
        loads.close()
        indexes.close()

    return create_app(indexes, loads, selections, token=settings.internal_token.get_secret_value(), close=close)
