"""A gateway with real Redis and storage and a fake retriever, over TestClient or a socket."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import redis
import uvicorn
from fastapi.testclient import TestClient

from services.api import intake
from services.api.app import create_app
from services.api.forms import ReceivedFile
from services.api.models import Models
from services.api.outbound import Outbound
from services.api.parts import Parts
from services.api.predict import Predictor
from services.api.resumable_uploads import Uploads
from services.api.settings import ApiSettings
from services.api.streams import Tailer
from services.api.webhook_delivery import Deliverer, Webhooks
from services.common.catalog import Catalog
from services.common.catalog_records import CorpusVersion
from services.common.history import History
from services.common.jobstore import JobStore
from services.common.redis_client import OBSTACLES
from services.common.retriever_client import RetrieverClient
from services.loader.loads import LoadWorker
from tests.redis_server import free_port
from tests.support import files_under
from tlm_core.artifacts import ManifestRef
from tlm_core.artifacts.store import MARK, ArtifactStore
from tlm_core.corpus.states import CorpusState, LoadState
from tlm_core.errors import StoreUnavailable
from tlm_core.tasks.options import DatasetOptions
from tlm_core.tasks.validate import load_task

T = "default"
TOKEN = "tlm_test"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
REF = ManifestRef(folder="default/corpora/docs/v1", digest="1" * 64)
TRAIN = "text,label\n" + "".join(f"good film {n},pos\nbad film {n},neg\n" for n in range(20))


@dataclass
class FakeRetriever:
    """Answers like the retriever. A load is ready at the second request, and a search returns one passage.

    failure: the error of all loads, if set. refused: the number of passages that each load refuses.
    """

    loads: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: list[tuple[str, str, Any]] = field(default_factory=list)
    unavailable: bool = False
    failure: dict[str, Any] | None = None
    refused: int = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.unavailable:
            raise httpx.ConnectError("refused", request=request)
        path, body = request.url.path, json.loads(request.content or b"null")
        self.requests.append((request.method, path, body))
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
    """A gateway with its retriever, Redis client, folder and loader, which works while the gateway is served."""

    parts: Parts
    retriever: FakeRetriever
    client: redis.Redis
    root: Path
    loads: LoadWorker

    @contextmanager
    def _loading(self) -> Iterator[None]:
        thread = threading.Thread(target=self.loads.run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.loads.stop()
            thread.join(10)

    @contextmanager
    def test_client(self) -> Iterator[TestClient]:
        with self._loading(), TestClient(create_app(self.parts), headers=AUTH, raise_server_exceptions=False) as client:
            yield client

    @contextmanager
    def served(self) -> Iterator[str]:
        """Serve the gateway on a socket and yield its URL."""
        port = free_port()
        config = uvicorn.Config(create_app(self.parts), host="127.0.0.1", port=port, log_config=None, access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            thread.join(0.01)
            assert thread.is_alive(), "The gateway did not start."
        try:
            with self._loading():
                yield f"http://127.0.0.1:{port}"
        finally:
            self.parts.tailer.close()
            server.should_exit = True
            thread.join(10)

    def leftovers(self) -> list[str]:
        """Return the files below the folder, except the mark of the storage."""
        return [str(path.relative_to(self.root)) for path in files_under(self.root) if path.name != MARK]


def make_gateway(client: redis.Redis, root: Path, **overrides: Any) -> Gateway:
    """Return a gateway that stores its files below `root`."""
    retriever = FakeRetriever()
    settings = ApiSettings(
        storage=str(root / "storage"), scratch=root / "scratch", token_file=root / "token", **overrides
    )
    (root / "storage").mkdir(parents=True, exist_ok=True)
    with suppress(StoreUnavailable):
        client.hset(OBSTACLES, "coordinator", json.dumps([2e9, ""]))  # as if a coordinator ran
    artifacts = ArtifactStore(settings.storage, settings.scratch / "artifacts")
    jobs, catalog = JobStore(client, History(artifacts)), Catalog(client)
    webhooks, outbound = Webhooks(client), Outbound(private=settings.webhook_private)
    parts = Parts(
        settings=settings,
        token=TOKEN,
        jobs=jobs,
        catalog=catalog,
        artifacts=artifacts,
        retriever=retriever.client(),
        tailer=Tailer(client, jobs, interval=0.02, progress_interval=0.1),
        predictor=Predictor(artifacts, capacity=1 << 30),
        load_task=load_task,
        webhooks=webhooks,
        outbound=outbound,
        deliverer=Deliverer(client, jobs, webhooks, outbound, poll_seconds=0.05),
        models=Models(client, jobs),
        uploads=Uploads(client, artifacts, settings.scratch, max_bytes=settings.max_upload_bytes),
    )
    loads = LoadWorker(catalog, artifacts, retriever.client(), settings.scratch, poll_seconds=0.02)
    return Gateway(parts, retriever, client, root, loads)


def restarted(gateway: Gateway) -> Gateway:
    """Return the gateway after a restart: a new process with the same storage and Redis."""
    again = make_gateway(gateway.client, gateway.root)
    again.retriever.loads.update(gateway.retriever.loads)
    return again


def upload(client: Any, *, name: str = "toy", train: str = TRAIN, **fields: Any) -> Any:
    """Post a dataset of one CSV file."""
    data = {"name": name, **fields}
    return client.post("/v1/datasets", data=data, files={"train": ("train.csv", train)})


def upload_in_one_part(client: Any, name: str, data: bytes) -> str:
    """Upload a file in one part, and return the id of the upload."""
    upload_id = str(client.post("/v1/uploads", json={"name": name, "size": len(data)}).json()["id"])
    headers = {"Content-Range": f"bytes 0-{len(data) - 1}/{len(data)}", "Content-Type": "application/octet-stream"}
    assert client.put(f"/v1/uploads/{upload_id}", content=data, headers=headers).status_code == 200
    return upload_id


def add_dataset(gateway: Gateway, name: str, tables: dict[str, str], **options: Any) -> str:
    """Add a dataset of one CSV file per split, and return its id."""
    parts, files = gateway.parts, {}
    (gateway.root / "files").mkdir(parents=True, exist_ok=True)
    for split, body in tables.items():
        path = gateway.root / "files" / f"{name}-{split}.csv"
        path.write_text(body)
        files[split] = ReceivedFile(split, path.name, path, len(body))
    return intake.add_dataset(parts, T, name, files, DatasetOptions(**options)).id


def add_version(gateway: Gateway, name: str, version: str, state: CorpusState, count: int = 3) -> None:
    """Add a corpus version with `count` passages whose load has ended."""
    catalog = gateway.parts.catalog
    load = catalog.add_load(T, name, "en", REF)
    assert catalog.lease_load(T, load.id, "me", 30)
    over = load.model_copy(update={"state": LoadState.READY if state is CorpusState.READY else LoadState.FAILED})
    record = CorpusVersion(
        version=version, language="en", passages=REF, count=count, state=state, created_at=load.created_at
    )
    catalog.save_load(over, "me", record)
