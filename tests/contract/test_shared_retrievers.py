"""Two retrievers behind one address: each request may reach the other one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from services.common.retriever_client import IndexLoad, RetrieverClient
from services.retriever import selection_runs
from services.retriever.app import assemble
from services.retriever.index_loads import IndexLoads
from services.retriever.registry import Run, SharedRegistry
from tests.contract.retriever_harness import TOKEN, RetrieverHarness
from tests.redis_server import RedisServer
from tests.support import wait_for
from tlm_core.errors import IndexUnavailable, StorageUnavailable

PREFIX = "t/artifacts/art_1/job_1-1"


@pytest.fixture
def pair(
    redis_client: redis.Redis,  # noqa: ARG001
    redis_server: RedisServer,
    tmp_path: Path,
) -> Iterator[SimpleNamespace]:
    """Two retrievers with one Redis and one storage, but their own scratch folders and indexes."""
    harness = RetrieverHarness(tmp_path, "embedded", "http://127.0.0.1:1")
    shared = {"redis_url": redis_server.url, "redis_password": redis_server.password}
    with ExitStack() as stack:
        clients = []
        for name in "ab":
            own = harness.settings.model_copy(update={"scratch": tmp_path / name})
            settings = type(own)(**{**own.model_dump(), **shared, "internal_token": TOKEN})
            http = stack.enter_context(TestClient(assemble(settings), headers={"Authorization": f"Bearer {TOKEN}"}))
            clients.append(RetrieverClient(http))
        yield SimpleNamespace(harness=harness, a=clients[0], b=clients[1])


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Selections that report once and then wait until `go` is set, or until they are stopped."""
    state, select = SimpleNamespace(go=threading.Event(), count=0), selection_runs.select

    def waiting(*args: Any, progress: Callable[..., None], **options: Any) -> Any:
        state.count += 1
        while not state.go.wait(0.02):
            progress(1, 3, "queries")
        return select(*args, progress=progress, **options)

    monkeypatch.setattr(selection_runs, "select", waiting)
    yield state
    state.go.set()


def request(pair: SimpleNamespace, prefix: str = PREFIX) -> Any:
    return pair.harness.request(prefix, params={"selector": "none"}, corpus=None, version=None)


def test_selection_of_one_retriever_is_known_to_the_other(pair: SimpleNamespace, slow: SimpleNamespace) -> None:
    pair.a.put_selection("art_1", request(pair))
    assert pair.b.get_selection("art_1").state == "running"
    wait_for(lambda: pair.b.get_selection("art_1").done == 1)
    pair.b.put_selection("art_1", request(pair))
    slow.go.set()
    wait_for(lambda: pair.b.get_selection("art_1").state == "ready")
    assert pair.b.get_selection("art_1") == pair.a.get_selection("art_1")
    assert slow.count == 1, "It runs once."


def test_selection_is_stopped_through_the_other_retriever(pair: SimpleNamespace, slow: SimpleNamespace) -> None:
    pair.a.put_selection("art_1", request(pair))
    wait_for(lambda: slow.count)
    assert not pair.b.stop_selection("art_1", PREFIX)
    wait_for(lambda: pair.b.stop_selection("art_1", PREFIX))
    assert pair.a.get_selection("art_1").state == "unknown"


def test_waiting_selection_is_stopped_through_the_other_retriever(pair: SimpleNamespace, slow: SimpleNamespace) -> None:
    for artifact in ("art_1", "art_2", "art_3"):
        pair.a.put_selection(artifact, request(pair, f"t/artifacts/{artifact}/job_1-1"))
    wait_for(lambda: slow.count == 2)
    assert not pair.b.stop_selection("art_3", "t/artifacts/art_3/job_1-")
    wait_for(lambda: pair.b.stop_selection("art_3", "t/artifacts/art_3/job_1-"))
    assert pair.a.get_selection("art_3").state == "unknown" and not slow.go.is_set()


def test_next_attempt_at_the_other_retriever_replaces_the_run(pair: SimpleNamespace, slow: SimpleNamespace) -> None:
    pair.a.put_selection("art_1", request(pair))
    wait_for(lambda: slow.count)
    pair.b.put_selection("art_1", request(pair, PREFIX[:-1] + "2"))
    wait_for(lambda: slow.count == 2)
    slow.go.set()
    run = wait_for(lambda: (seen := pair.a.get_selection("art_1")).ref and seen)
    assert run.ref.folder == PREFIX[:-1] + "2"


def test_run_of_a_dead_retriever_is_forgotten(
    pair: SimpleNamespace, slow: SimpleNamespace, redis_client: redis.Redis
) -> None:
    pair.a.put_selection("art_1", request(pair))
    wait_for(lambda: slow.count)
    (name,) = redis_client.scan_iter("tlm:retriever:*")
    assert 0 < redis_client.ttl(name) <= 30
    redis_client.hset(name, "run", "of a dead one")
    redis_client.delete(name)  # as if its time had passed
    pair.b.put_selection("art_1", request(pair))
    slow.go.set()
    wait_for(lambda: pair.b.get_selection("art_1").state == "ready")
    assert pair.harness.store.manifest(pair.b.get_selection("art_1").ref).artifact == "art_1"


def test_search_repeats_a_load_that_failed_elsewhere(pair: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(*_: Any) -> None:
        raise StorageUnavailable("The storage does not answer.")

    with monkeypatch.context() as outage:
        outage.setattr(IndexLoads, "_fill", unavailable)
        pair.a.put_corpus(*pair.harness.key, folder="t/corpus", language="en")
        wait_for(lambda: pair.b.corpus(*pair.harness.key).state == "failed")
    with pytest.raises(IndexUnavailable, match="being loaded"):
        pair.b.search(*pair.harness.key, "word3", 1)
    wait_for(lambda: pair.b.corpus(*pair.harness.key).state == "ready")
    assert pair.b.search(*pair.harness.key, "word3", 1)


def test_entry_of_a_run_that_ends_during_a_save_is_deleted(redis_client: redis.Redis) -> None:
    registry = SharedRegistry(redis_client)

    class EndingRun(Run):
        @property
        def is_active(self) -> bool:
            if ending.ident is None:
                ending.start()
            ending.join(0.5)
            return True

    run = EndingRun(status=IndexLoad(state="loading"))
    ending = threading.Thread(target=lambda: registry.forget("docs", run.id))
    registry.claim("docs", run)
    registry.save_active([("docs", run)])
    ending.join()
    assert registry.read("docs") is None


def test_last_status_of_a_run_replaces_the_status_that_is_being_saved(
    redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, run = SharedRegistry(redis_client), Run(status=IndexLoad(state="loading"))
    save = registry._script["save"]

    def end() -> None:
        run.fail(StorageUnavailable("The storage does not answer."))
        registry.save("docs", run)

    def save_during_the_end(**options: Any) -> Any:
        if ending.ident is None:
            ending.start()
            ending.join(0.5)
        return save(**options)

    ending = threading.Thread(target=end)
    registry.claim("docs", run)
    monkeypatch.setitem(registry._script, "save", save_during_the_end)
    registry.save_active([("docs", run)])
    ending.join()
    entry = registry.read("docs")
    assert entry is not None and IndexLoad.model_validate_json(entry.status).state == "failed"


def test_load_runs_at_one_retriever_only(pair: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    go, begun = threading.Event(), list[str]()
    original = IndexLoads._fill

    def waiting(self: Any, key: Any, load: Any) -> None:
        begun.append(load.id)
        go.wait(20)
        original(self, key, load)

    monkeypatch.setattr(IndexLoads, "_fill", waiting)
    pair.a.put_corpus(*pair.harness.key, folder="t/corpus", language="en")
    wait_for(lambda: begun)
    assert pair.b.corpus(*pair.harness.key).state == "loading"
    pair.b.put_corpus(*pair.harness.key, folder="t/corpus", language="en")
    go.set()
    wait_for(lambda: pair.a.corpus(*pair.harness.key).state == "ready")
    assert len(begun) == 1
