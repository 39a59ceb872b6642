"""A gateway for tests: real Redis and storage, a retriever that is played, over TestClient or a real socket."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import redis
import uvicorn
from fastapi.testclient import TestClient

from services.api.app import create_app
from services.api.corpus_loads import LoadWorker
from services.api.forms import ReceivedFile
from services.api.outbound import Outbound
from services.api.parts import Parts
from services.api.predict import Predictor
from services.api.resumable_uploads import Uploads
from services.api.settings import ApiSettings
from services.api.streams import Tailer
from services.api.webhook_delivery import Deliverer, Webhooks
from services.common.catalog import Catalog
from services.common.catalog_records import CorpusVersion
from services.common.jobstore import JobStore
from services.common.retriever_client import RetrieverClient
from tests.redis_server import free_port
from tests.support import files_under
from tlm_core.artifacts import MARK, ArtifactStore, ManifestRef
from tlm_core.tasks.options import DatasetOptions
from tlm_core.tasks.validate import load_task
from tlm_core.wire import CorpusState, LoadState

T = "default"
TOKEN = "tlm_test"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
REF = ManifestRef(folder="default/corpora/docs/v1", digest="1" * 64)
TRAIN = "text,label\n" + "".join(f"good film {n},pos\nbad film {n},neg\n" for n in range(20))


@dataclass
class PlayedRetriever:
    """Answers as the retriever does: a load is ready at the second look, a search finds one passage."""

    loads: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    away: bool = False
    failure: dict[str, Any] | None = None
    refused: int = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.away:
            raise httpx.ConnectError("refused", request=request)
        path, body = request.url.path, json.loads(request.content or b"null")
        self.asked.append((request.method, path, body))
        if path == "/readyz":
            return httpx.Response(200, json={})
        if path == "/v1/search":
            hit = {"id": "p1", "score": 1.5, "text": f"about {body['query']}", "source": "docs"}
            return httpx.Response(200, json={"version": "1", "hits": [hit]})
        if request.method == "PUT":
            self.loads.setdefault(path, {"state": "loading", "count": 3, "loaded": 0, "refused": self.refused})
            return httpx.Response(202, json={})
        if path.endswith("/refused"):
            passage = {"id": "p9", "text": "too long", "source": "docs", "reason": "id is too long"}
            return httpx.Response(200, json={"data": [passage] * self.refused})
        load = self.loads.get(path)
        if request.method == "DELETE":
            self.loads.pop(path, None)
            return httpx.Response(204)
        if load is None:
            return httpx.Response(404, json={"code": "not_found", "detail": "no such version"})
        answer = dict(load)
        if self.failure:
            return httpx.Response(200, json={**answer, "state": "failed", "error": self.failure})
        load |= {"state": "ready", "loaded": 3} if load["loaded"] else {"loaded": 1}
        return httpx.Response(200, json=answer)

    def client(self) -> RetrieverClient:
        return RetrieverClient(httpx.Client(transport=httpx.MockTransport(self), base_url="http://retriever"))


@dataclass
class Gateway:
    """The parts of a gateway, and what stands behind them."""

    parts: Parts
    retriever: PlayedRetriever
    client: redis.Redis
    root: Path

    @contextmanager
    def test_client(self) -> Iterator[TestClient]:
        with TestClient(create_app(self.parts), headers=AUTH, raise_server_exceptions=False) as client:
            yield client

    @contextmanager
    def served(self) -> Iterator[str]:
        """The address of this gateway on a real socket."""
        port = free_port()
        config = uvicorn.Config(create_app(self.parts), host="127.0.0.1", port=port, log_config=None, access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            thread.join(0.01)
            assert thread.is_alive(), "the gateway did not start"
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            self.parts.tailer.close()
            server.should_exit = True
            thread.join(10)

    def leftovers(self) -> list[str]:
        """Files under scratch and storage."""
        return [str(path.relative_to(self.root)) for path in files_under(self.root) if path.name != MARK]


def make_gateway(client: redis.Redis, root: Path, **settings: Any) -> Gateway:
    """A gateway on the folder `root`; settings override the defaults."""
    retriever = PlayedRetriever()
    made = ApiSettings(storage=str(root / "storage"), scratch=root / "scratch", token_file=root / "token", **settings)
    (root / "storage").mkdir(parents=True, exist_ok=True)
    jobs, catalog = JobStore(client), Catalog(client)
    artifacts = ArtifactStore(made.storage, made.scratch / "artifacts")
    webhooks, outbound = Webhooks(client), Outbound(private=made.webhook_private)
    parts = Parts(
        settings=made,
        token=TOKEN,
        jobs=jobs,
        catalog=catalog,
        artifacts=artifacts,
        retriever=retriever.client(),
        tailer=Tailer(client, jobs, interval=0.02, progress_interval=0.1),
        predictor=Predictor(artifacts, capacity=1 << 30),
        loads=LoadWorker(catalog, artifacts, retriever.client(), made.scratch, poll_seconds=0.02),
        load_task=load_task,
        webhooks=webhooks,
        outbound=outbound,
        deliverer=Deliverer(client, jobs, webhooks, outbound, poll_seconds=0.05),
        uploads=Uploads(client, artifacts, made.scratch, max_bytes=made.max_upload_bytes),
    )
    return Gateway(parts, retriever, client, root)


def restarted(gateway: Gateway) -> Gateway:
    """The same gateway as a new process would be: nothing but storage and Redis is kept."""
    again = make_gateway(gateway.client, gateway.root)
    again.retriever.loads.update(gateway.retriever.loads)
    return again


def upload(client: Any, *, name: str = "toy", train: str = TRAIN, **more: Any) -> Any:
    """Post a data set of one CSV file."""
    data = {"name": name, **more}
    return client.post("/v1/datasets", data=data, files={"train": ("train.csv", train)})


def in_parts(client: Any, name: str, data: bytes) -> str:
    """The id of a file that has arrived whole, in one part."""
    one = str(client.post("/v1/uploads", json={"name": name, "size": len(data)}).json()["id"])
    headers = {"Content-Range": f"bytes 0-{len(data) - 1}/{len(data)}", "Content-Type": "application/octet-stream"}
    assert client.put(f"/v1/uploads/{one}", content=data, headers=headers).status_code == 200
    return one


def add_dataset(gateway: Gateway, name: str, tables: dict[str, str], **options: Any) -> str:
    """A data set of CSV files by their split, read with `options`; its id."""
    parts, files = gateway.parts, {}
    (gateway.root / "made").mkdir(parents=True, exist_ok=True)
    for split, body in tables.items():
        path = gateway.root / "made" / f"{name}-{split}.csv"
        path.write_text(body)
        files[split] = ReceivedFile(split, path.name, path, len(body))
    return parts.dataset_intake.add_files(T, name, files, DatasetOptions(**options)).id


def add_version(gateway: Gateway, name: str, version: str, state: CorpusState, count: int = 3) -> None:
    """A version of a corpus of `count` passages, whose load is over."""
    catalog = gateway.parts.catalog
    load = catalog.add_load(T, name, "en", REF)
    assert catalog.lease_load(T, load.id, "me", 30)
    over = load.model_copy(update={"state": LoadState.READY if state is CorpusState.READY else LoadState.FAILED})
    made = CorpusVersion(
        version=version, language="en", passages=REF, count=count, state=state, created_at=load.created_at
    )
    catalog.save_load(over, "me", made)
