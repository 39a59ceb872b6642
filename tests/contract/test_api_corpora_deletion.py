"""Corpora over HTTP: deleted corpora and cancelled loads leave no files."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from services.loader.loads import LoadWorker
from tests.contract.corpora import LINES, T, idle_corpus, post, queue_load, wait_for_corpus
from tests.contract.gateway import Gateway, upload
from tests.support import wait_for
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.corpus.passages import Passage
from tlm_core.corpus.read import source_files
from tlm_core.corpus.states import LoadState
from tlm_core.errors import IndexUnavailable


def two_versions(api: TestClient) -> tuple[str, str]:
    post(api)
    old = str(wait_for_corpus(api)["version"])
    post(api, text=LINES.replace("sentence", "phrase"))
    return old, str(wait_for(lambda: (c := idle_corpus(api, "docs")) and len(c["versions"]) == 2 and c)["version"])


def test_deleted_version_loses_index_and_files(api: TestClient, gateway: Gateway) -> None:
    old, new = two_versions(api)
    assert api.delete(f"/v1/corpora/docs/versions/{new}").status_code == 204
    assert (corpus := api.get("/v1/corpora/docs").json())["version"] == old and len(corpus["versions"]) == 1
    assert [path for path in gateway.retriever.loads if new in path] == []
    assert not [path for path in gateway.leftovers() if new in path] and [p for p in gateway.leftovers() if old in p]
    assert api.post("/v1/corpora/docs/search", json={"query": "x", "version": new}).status_code == 404
    assert api.delete(f"/v1/corpora/docs/versions/{new}").status_code == 404


def test_deleted_corpus_loses_all_versions(api: TestClient, gateway: Gateway) -> None:
    two_versions(api)
    assert api.delete("/v1/corpora/docs").status_code == 204
    assert api.get("/v1/corpora/docs").status_code == api.delete("/v1/corpora/docs").status_code == 404
    assert gateway.retriever.loads == {} and not [p for p in gateway.leftovers() if "corpora" in p]
    post(api)
    assert wait_for_corpus(api)["version"], "The name can be used again."


def test_corpus_in_use_is_not_deleted(api: TestClient, gateway: Gateway, redis_client: redis.Redis) -> None:
    old, new = two_versions(api)
    assert upload(api).status_code == 201
    job = api.post("/v1/jobs", json={"dataset": "toy", "corpus": f"docs@{old}"}).json()["id"]
    for path in ("", f"/versions/{old}"):
        refused = api.delete(f"/v1/corpora/docs{path}")
        assert (refused.status_code, refused.json()["facts"]["job"]) == (409, job)
    assert api.delete(f"/v1/corpora/docs/versions/{new}").status_code == 204
    other = api.post("/v1/jobs", json={"dataset": "toy", "corpus": f"docs@{old}"}).json()["id"]
    redis_client.hset(f"tlm:{{default}}:job:{other}", "resolved", "{}")
    refused = api.delete("/v1/corpora/docs").json()
    assert refused["facts"]["job"] == other and "unreadable record, so it may use" in refused["detail"]
    for queued in (other, job):
        api.post(f"/v1/jobs/{queued}/cancel")  # of the unreadable job it cannot show the result
    wait_for(lambda: gateway.parts.jobs.claim("me", 60) is None)
    assert api.delete("/v1/corpora/docs").status_code == 204


def test_delete_without_retriever_changes_nothing(api: TestClient, gateway: Gateway) -> None:
    post(api)
    version = wait_for_corpus(api)["version"]
    gateway.retriever.unavailable = True
    assert api.delete("/v1/corpora/docs").status_code == 503
    assert api.get("/v1/corpora/docs").json()["version"] == version
    gateway.retriever.unavailable = False
    assert api.delete("/v1/corpora/docs").status_code == 204


def wait_until_cancelled(api: TestClient, load: str) -> Any:
    """Wait until the load is cancelled, and return it."""
    path = f"/v1/corpora/docs/loads/{load}"
    return wait_for(lambda: (view := api.get(path).json())["state"] == "cancelled" and view)


def start_stuck_load(api: TestClient, gateway: Gateway, text: str) -> str:
    """Start a load that the retriever cannot finish, and return its id."""
    gateway.retriever.failure = IndexUnavailable("the index is away").as_dict()
    load = str(post(api, text).json()["id"])
    wait_for(lambda: api.get(f"/v1/corpora/docs/loads/{load}").json()["state"] == "indexing")
    return load


def test_cancelled_load_leaves_only_the_earlier_version(api: TestClient, gateway: Gateway) -> None:
    post(api)
    before = wait_for_corpus(api)
    wait_for(lambda: not [path for path in gateway.leftovers() if "uploads" in path])
    files, indexes = gateway.leftovers(), dict(gateway.retriever.loads)
    load = start_stuck_load(api, gateway, LINES.replace("sentence", "phrase"))
    wait_for(lambda: len(gateway.retriever.loads) == 2)
    response = api.post(f"/v1/corpora/docs/loads/{load}/cancel")
    assert (response.status_code, response.json()["state"]) == (200, "cancelling")
    assert wait_until_cancelled(api, load)["error"] is None
    after = api.get("/v1/corpora/docs").json()
    assert (after["version"], after["versions"]) == (before["version"], before["versions"])
    assert gateway.retriever.loads.keys() == indexes.keys()
    assert sorted(gateway.leftovers()) == sorted(files)
    assert api.post(f"/v1/corpora/docs/loads/{load}/cancel").json()["state"] == "cancelled", (
        "A second cancel is not an error."
    )
    gateway.retriever.failure = None
    post(api, LINES.replace("sentence", "phrase"))
    assert wait_for(lambda: (c := idle_corpus(api, "docs")) and len(c["versions"]) == 2)


def test_cancelled_reload_keeps_the_version(api: TestClient, gateway: Gateway) -> None:
    post(api)
    version = wait_for_corpus(api)["version"]
    load = start_stuck_load(api, gateway, LINES)
    api.post(f"/v1/corpora/docs/loads/{load}/cancel")
    wait_until_cancelled(api, load)
    assert (corpus := api.get("/v1/corpora/docs").json())["version"] == version
    assert [path for path in gateway.retriever.loads if version in path]
    assert gateway.parts.artifacts.verify(gateway.parts.catalog.corpus(T, "docs").versions[0].passages)
    assert len(corpus["versions"]) == 1


def test_load_stays_cancelling_without_retriever(api: TestClient, gateway: Gateway) -> None:
    load = start_stuck_load(api, gateway, LINES)
    gateway.retriever.unavailable = True
    for _ in range(2):
        assert api.post(f"/v1/corpora/docs/loads/{load}/cancel").json()["state"] == "cancelling"
    assert post(api).status_code == 409, "The cancelled load blocks the next one."
    gateway.retriever.unavailable = False
    wait_until_cancelled(api, load)
    assert gateway.retriever.loads == {} and gateway.leftovers() == []


@pytest.fixture
def splitting_allowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """An event that starts the splitting of files named slow.jsonl."""
    event = threading.Event()

    def slow(sources: list[str], **options: Any) -> Iterator[Iterator[Passage]]:
        if sources[0].endswith("slow.jsonl"):
            event.wait(20)
        yield from source_files(sources, **options)

    monkeypatch.setattr("tlm_core.corpus.read.source_files", slow)
    yield event
    event.set()


def state_of(api: TestClient, name: str) -> str:
    return str(api.get(f"/v1/corpora/{name}").json()["loads"][0]["state"])


def test_splitting_does_not_delay_other_loads(
    api: TestClient, gateway: Gateway, splitting_allowed: threading.Event
) -> None:
    gateway.retriever.unavailable = True
    post(api, name="third")
    wait_for(lambda: state_of(api, "third") == "indexing")
    post(api, name="long", file="slow.jsonl")
    wait_for(lambda: state_of(api, "long") == "cutting")
    queued = post(api).json()["id"]
    api.post(f"/v1/corpora/docs/loads/{queued}/cancel")
    wait_until_cancelled(api, queued)
    gateway.retriever.unavailable = False
    assert wait_for_corpus(api, "third")["version"]
    assert state_of(api, "long") == "cutting"
    splitting_allowed.set()
    assert wait_for_corpus(api, "long")["version"]


def test_cancelled_load_is_undone_after_its_splitting_stops(
    api: TestClient, gateway: Gateway, splitting_allowed: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = str(post(api, file="slow.jsonl").json()["id"])
    wait_for(lambda: state_of(api, "docs") == "cutting")
    api.post(f"/v1/corpora/docs/loads/{load}/cancel")
    rounds, run_round = [], gateway.loads.round

    def counted_round(*args: Any) -> None:
        run_round(*args)
        rounds.append(args)

    monkeypatch.setattr(gateway.loads, "round", counted_round)
    wait_for(lambda: len(rounds) > 2)
    assert state_of(api, "docs") == "cancelling", "The worker still reads its files."
    splitting_allowed.set()
    wait_until_cancelled(api, load)
    wait_for(lambda: gateway.leftovers() == [])


class CancellingStorage(ArtifactStore):
    """Storage that cancels a load while the passages are written."""

    cancel: Callable[[], object] = staticmethod(lambda: None)

    def write(self, *args: Any, **kwargs: Any) -> Any:
        ref = super().write(*args, **kwargs)
        self.cancel()
        return ref


def test_load_cancelled_during_splitting_leaves_nothing(gateway: Gateway) -> None:
    load_id = queue_load(gateway)
    parts = gateway.parts
    store = CancellingStorage(parts.settings.storage, gateway.root / "cache")
    store.cancel = lambda: parts.catalog.cancel_load(T, load_id)
    worker = LoadWorker(parts.catalog, store, parts.retriever, parts.settings.scratch)
    worker.round()
    assert parts.catalog.load(T, load_id).state is LoadState.CANCELLING
    worker.round()
    assert parts.catalog.load(T, load_id).state is LoadState.CANCELLED
    assert [path for path in gateway.leftovers() if path.startswith("storage")] == []
    assert parts.catalog.corpus(T, "docs").versions == () and parts.catalog.open_loads() == []


def test_finished_or_unknown_load_cannot_be_cancelled(api: TestClient) -> None:
    load = post(api).json()["id"]
    version = wait_for_corpus(api)["version"]
    refused = api.post(f"/v1/corpora/docs/loads/{load}/cancel")
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert api.get("/v1/corpora/docs").json()["version"] == version
    for path in ("docs/loads/load_none", f"none/loads/{load}"):
        assert api.post(f"/v1/corpora/{path}/cancel").status_code == 404


def test_load_belongs_to_one_corpus(api: TestClient, gateway: Gateway) -> None:
    gateway.loads.stop()
    load = post(api).json()["id"]
    post(api, name="other")
    for refused in (api.get(f"/v1/corpora/other/loads/{load}"), api.post(f"/v1/corpora/other/loads/{load}/cancel")):
        assert (refused.status_code, "belongs to corpus 'docs'" in refused.json()["detail"]) == (404, True), (
            refused.text
        )
    assert state_of(api, "docs") != "cancelling"
