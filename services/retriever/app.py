"""The retriever's HTTP API, for the other services only: loads of corpora, a search box, selections."""

from __future__ import annotations

import hmac
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from services.common.problem import install_problem_handlers
from services.common.retriever_client import SelectionRequest
from services.retriever.cluster import connect
from services.retriever.indexes import CorpusIndexes, CorpusKey, EmbeddedIndexes, OpenSearchIndexes
from services.retriever.loads import CorpusLoads
from services.retriever.selections import SelectionRuns
from services.retriever.settings import RetrieverSettings
from tlm_core.artifacts import ManifestRef
from tlm_core.errors import Unauthorized
from tlm_core.wire import Hit, RefusedPassage


def _inside(folder: str) -> str:
    if folder.startswith("/") or not folder or any(part in ("", ".", "..") for part in folder.split("/")):
        raise ValueError("must be a folder relative to the storage root")
    return folder


Folder = Annotated[str, AfterValidator(_inside)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CorpusBody(_Body):
    """Where a corpus version's Parquet files lie, and the language of its texts."""

    folder: Folder
    language: str = "en"


class LoadAnswer(_Body):
    """How far a load is, in passages; `refused` are those of the loaded that the index will never take."""

    state: Literal["loading", "ready", "failed"]
    count: int
    loaded: int
    refused: int = 0
    error: dict[str, Any] | None = None


class RefusedAnswer(_Body):
    """The passages of a corpus version that the index will never take."""

    refused: list[RefusedPassage]


class SearchBody(_Body):
    """A query against one corpus version."""

    tenant: str
    corpus: str
    version: str
    query: str
    k: int = Field(10, ge=1, le=1000)


class SearchAnswer(_Body):
    """The passages found, best first."""

    hits: list[Hit]


class SelectionBody(SelectionRequest):
    """A selection to make: of which task and corpus, how, and where to write it."""

    prefix: Folder


class SelectionAnswer(_Body):
    """How far a selection is, in `unit`, `rate` of them a second; `ref` when it is ready."""

    state: Literal["unknown", "running", "ready", "failed"]
    done: int = 0
    total: int = 0
    unit: str = "queries"
    rate: float | None = None
    ref: ManifestRef | None = None
    error: dict[str, Any] | None = None


class StopAnswer(_Body):
    """Whether a selection that is to be stopped runs no more."""

    over: bool


def create_app(
    indexes: CorpusIndexes, loads: CorpusLoads, selections: SelectionRuns, *, token: str, close: Callable[[], None]
) -> FastAPI:
    """The application over parts that are put together already. close: called when the server ends."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        close()

    def authorised(request: Request) -> None:
        shown = request.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(shown, f"Bearer {token}".encode()):
            raise Unauthorized("show the internal token as bearer token")

    app = FastAPI(title="TLM retriever", lifespan=lifespan)
    install_problem_handlers(app)
    inner = [Depends(authorised)]

    @app.put("/v1/corpora/{tenant}/{name}/versions/{version}", status_code=202, dependencies=inner)
    def put_corpus(tenant: str, name: str, version: str, body: CorpusBody) -> None:
        loads.put(CorpusKey(tenant, name, version), body.folder, body.language)

    @app.get("/v1/corpora/{tenant}/{name}/versions/{version}", dependencies=inner)
    def get_corpus(tenant: str, name: str, version: str) -> LoadAnswer:
        load = loads.get(CorpusKey(tenant, name, version))
        return LoadAnswer(
            state=load.state, count=load.count, loaded=load.loaded, refused=load.refused, error=load.error
        )

    @app.get("/v1/corpora/{tenant}/{name}/versions/{version}/refused", dependencies=inner)
    def get_refused(tenant: str, name: str, version: str) -> RefusedAnswer:
        found = loads.refused(CorpusKey(tenant, name, version))
        return RefusedAnswer(refused=[RefusedPassage(reason=r.reason, **r.passage._asdict()) for r in found])

    @app.delete("/v1/corpora/{tenant}/{name}/versions/{version}", status_code=204, dependencies=inner)
    def delete_corpus(tenant: str, name: str, version: str) -> None:
        loads.drop(CorpusKey(tenant, name, version))

    @app.post("/v1/search", dependencies=inner)
    def search(body: SearchBody) -> SearchAnswer:
        index = loads.ready(CorpusKey(body.tenant, body.corpus, body.version))
        [found] = index.search([body.query], body.k)
        passages = index.fetch([hit.id for hit in found])
        return SearchAnswer(hits=[Hit(**passages[hit.id]._asdict(), score=hit.score) for hit in found])

    @app.put("/v1/selections/{artifact}", status_code=202, dependencies=inner)
    def put_selection(artifact: str, body: SelectionBody) -> None:
        selections.put(artifact, body)

    @app.get("/v1/selections/{artifact}", dependencies=inner)
    def get_selection(artifact: str) -> SelectionAnswer:
        run = selections.get(artifact)
        if run is None:
            return SelectionAnswer(state="unknown")
        shown = ("state", "done", "total", "unit", "rate", "ref", "error")
        return SelectionAnswer(**{name: getattr(run, name) for name in shown})

    @app.delete("/v1/selections/{artifact}", dependencies=inner)
    def stop_selection(artifact: str, prefix: str) -> StopAnswer:
        return StopAnswer(over=selections.stop(artifact, prefix))

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz")
    def readyz() -> dict[str, str]:
        indexes.check()
        return {"status": "ready"}

    return app


def assemble(settings: RetrieverSettings) -> FastAPI:
    """Put the retriever together as `settings` say. Opens no connection yet."""
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
            patience=settings.patience_seconds,
            stop=stop,
        )
        indexes = OpenSearchIndexes(cluster, shards=settings.opensearch_shards)
    store = settings.artifact_store()
    loads = CorpusLoads(indexes, store, stop)
    selections = SelectionRuns(loads, store, settings.scratch, stop, at_once=settings.selections_at_once)

    def close() -> None:
        stop.set()
        selections.close()
        loads.close()
        indexes.close()

    return create_app(indexes, loads, selections, token=settings.internal_token.get_secret_value(), close=close)
