"""The retriever over HTTP, for behavior that does not depend on the index: runs, attempts, restarts, rejections."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from services.common.retriever_client import RetrieverClient
from services.retriever import selection_runs
from services.retriever.app import RetrieverSettings, assemble
from services.retriever.index_loads import IndexLoads
from services.retriever.indexes import EmbeddedIndexes
from services.retriever.registry import Registry, Run
from services.retriever.selection_runs import SelectingRun, SelectionRuns
from tests.contract.retriever_harness import TOKEN, RetrieverHarness, wait_while
from tests.redis_server import free_port
from tests.support import ROOT, wait_for
from tests.unit.selection.toy_selector import SHORTEST
from tlm_core.artifacts import ManifestRef
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import AlreadyRunning, IndexUnavailable, InvalidRecipe, StorageUnavailable
from tlm_core.selection.retrieve import PART
from tlm_core.selection.selectors import SELECTORS


@pytest.fixture
def harness(tmp_path: Path) -> RetrieverHarness:
    return RetrieverHarness(tmp_path, "embedded", "http://127.0.0.1:1")


def test_uploaded_selection_needs_no_corpus(harness: RetrieverHarness) -> None:
    harness.task = harness.write_task(["any"], given="text,rank\nsecond,2\nfirst,1\n")
    with harness.retriever() as api:
        request = harness.request(params={"selector": "given"}, corpus=None, version=None)
        api.put_selection("art_1", request)
        run = wait_while(lambda: api.get_selection("art_1"), "running")
    assert run.ref is not None, run
    folder = harness.store.localize(run.ref)
    assert pq.read_table(folder / "passages.parquet")["text"].to_pylist() == ["first", "second"]


def test_registered_selector_runs_through_the_api(harness: RetrieverHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SELECTORS, "shortest", SHORTEST)
    with harness.retriever() as api:
        harness.load(api)
        run = harness.select(api, params={"selector": "shortest", "max_passages": 3})
    assert run.ref is not None, run
    folder = harness.store.localize(run.ref)
    assert pq.read_table(folder / "passages.parquet")["id"].to_pylist() == ["p000", "p001", "p002"]


def test_missing_upload_or_corpus_fails_the_selection(harness: RetrieverHarness) -> None:
    with harness.retriever() as api:
        run = harness.select(api, params={"selector": "given"})
        assert run.state == "failed" and "has no selection" in str(run.failure)
        api.put_selection("art_2", harness.request(corpus=None))
        run = wait_while(lambda: api.get_selection("art_2"), "running")
        assert run.state == "failed" and "needs a corpus" in str(run.failure)


def test_selection_resumes_after_a_restart_of_the_retriever(harness: RetrieverHarness) -> None:
    harness.task = harness.write_task([f"word{n % 10} word{n % 7} number{n}" for n in range(3 * PART)])
    with harness.retriever() as api:
        harness.load(api)
        api.put_selection("art_1", harness.request())
        wait_for(lambda: api.get_selection("art_1").done > PART, 120)
    parts = list((harness.folder / "scratch" / "selections" / "art_1").rglob("hits-*.parquet"))
    assert 1 <= len(parts) < 3, "The first retriever must stop in the middle."
    with harness.retriever() as api:
        api.put_selection("art_1", harness.request(prefix="t/artifacts/a/2"))
        wait_for(lambda: api.get_selection("art_1").done > 0, 120)
        assert api.get_selection("art_1").done >= len(parts) * PART
        resumed = wait_while(lambda: api.get_selection("art_1"), "running")
        # The manifest contains the artifact id, so the same id is selected again from the start.
        again = harness.select(api, prefix="t/artifacts/a/3")
    assert resumed.ref is not None and again.ref is not None
    assert resumed.ref.digest == again.ref.digest
    assert list((harness.folder / "scratch" / "selections").iterdir()) == []


def test_partial_results_survive_a_restart_for_a_week(harness: RetrieverHarness) -> None:
    folder = harness.folder / "scratch" / "selections"
    for name, days in (("art_new", 1), ("art_old", 8)):
        (folder / name).mkdir(parents=True)
        os.utime(folder / name, (time.time() - days * 86_400,) * 2)
    with harness.retriever():
        assert [path.name for path in folder.iterdir()] == ["art_new"]


def test_start_of_a_selection_deletes_old_partial_results_of_others(harness: RetrieverHarness) -> None:
    folder = harness.folder / "scratch" / "selections"
    with harness.retriever() as api:
        harness.load(api)
        for name, days in (("art_new", 1), ("art_old", 8)):
            (folder / name).mkdir(parents=True)
            os.utime(folder / name, (time.time() - days * 86_400,) * 2)
        assert harness.select(api).state == "ready"
        assert [path.name for path in folder.iterdir()] == ["art_new"]


def test_new_attempt_has_its_own_run(harness: RetrieverHarness) -> None:
    with harness.retriever() as api:
        harness.load(api)
        refs = [harness.select(api, prefix=f"t/a/{n}").ref for n in range(3)]
        assert [ref.folder for ref in refs if ref] == ["t/a/0", "t/a/1", "t/a/2"]


def test_another_job_resumes_a_stopped_selection(harness: RetrieverHarness) -> None:
    harness.task = harness.write_task([f"word{n % 10} word{n % 7} number{n}" for n in range(3 * PART)])
    with harness.retriever() as api:
        harness.load(api)
        api.put_selection("art_1", harness.request(prefix="t/artifacts/a/job_1-2"))
        wait_for(lambda: api.get_selection("art_1").done > PART, 120)
        assert api.stop_selection("art_1", "t/artifacts/a/job_12-"), "the selection of another job is not affected"
        assert api.get_selection("art_1").state == "running"
        wait_for(lambda: api.stop_selection("art_1", "t/artifacts/a/job_1-"), 120)
        assert api.get_selection("art_1").state == "unknown"
        assert harness.select(api, prefix="t/artifacts/a/job_12-1").state == "ready"
    assert [path.name for path in (harness.folder / "storage/t/artifacts/a").iterdir()] == ["job_12-1"]


class WaitingStore(ArtifactStore):
    """Blocks at the end of each write until `resume` is set."""

    def __init__(self, storage: str, cache: Path) -> None:
        super().__init__(storage, cache)
        self.writing, self.resume = threading.Event(), threading.Event()

    def write(self, *args: Any, **options: Any) -> ManifestRef:
        ref = super().write(*args, **options)
        self.writing.set()
        assert self.resume.wait(60)
        return ref


def test_stopped_selection_leaves_no_file(harness: RetrieverHarness) -> None:
    harness.task = harness.write_task(["any"], given="text,rank\nsecond,2\nfirst,1\n")
    store, stop = WaitingStore(harness.settings.storage, harness.folder / "cache"), threading.Event()
    indexes = EmbeddedIndexes(harness.folder / "indexes")
    loads = IndexLoads(indexes, store, stop)
    runs = SelectionRuns(loads, store, harness.folder / "scratch", stop, at_once=1)
    for artifact in ("art_1", "art_2"):
        runs.put(artifact, harness.request(prefix=f"t/artifacts/{artifact}/job_1-1", params={"selector": "given"}))
    assert store.writing.wait(60)
    assert runs.stop("art_2", "t/artifacts/art_2/job_1-"), "it is queued behind the first"
    assert not runs.stop("art_1", "t/artifacts/art_1/job_1-"), "it is being written"
    store.resume.set()
    wait_for(lambda: runs.stop("art_1", "t/artifacts/art_1/job_1-"), 120)
    for part in (runs, loads, indexes):
        part.close()
    assert runs.get("art_1").state == runs.get("art_2").state == "unknown"
    assert not list((harness.folder / "storage/t/artifacts").rglob("*.*"))


def test_state_is_known_while_a_failed_selection_starts_again(harness: RetrieverHarness) -> None:
    states = list[str]()

    class WatchedRegistry(Registry):
        def claim(self, name: str, run: Run, *, instead_of: str = "") -> bool:
            reading.start()
            reading.join(0.5)
            return super().claim(name, run, instead_of=instead_of)

    stop = threading.Event()
    indexes = EmbeddedIndexes(harness.folder / "indexes")
    loads = IndexLoads(indexes, harness.store, stop)
    runs = SelectionRuns(loads, harness.store, harness.folder / "scratch", stop, at_once=1, registry=WatchedRegistry())
    failed = SelectingRun(prefix="t/artifacts/a/1")
    failed.fail(StorageUnavailable("The storage does not answer."))
    runs._runs["art_1"] = failed
    reading = threading.Thread(target=lambda: states.append(runs.get("art_1").state))
    runs.put("art_1", harness.request())
    reading.join()
    for part in (runs, loads, indexes):
        part.close()
    assert states and states != ["unknown"]


def test_temporary_failure_is_retried_on_request(harness: RetrieverHarness) -> None:
    with harness.retriever() as api:
        harness.load(api)
    shutil.rmtree(harness.folder / "scratch")
    with harness.retriever() as api:
        run = harness.select(api)
        assert run.failure is not None and run.failure.retryable
        wait_while(lambda: api.corpus(*harness.key), "loading")
        assert harness.select(api).state == "ready"


def test_permanent_failure_is_reported_until_stopped(harness: RetrieverHarness) -> None:
    with harness.retriever() as api:
        assert harness.select(api, params={"selector": "given"}).state == "failed"
        assert harness.select(api, params={"selector": "given"}).state == "failed"
        assert api.stop_selection("art_1", "t/artifacts/a/another_job-")
        assert api.get_selection("art_1").state == "unknown"


def test_parallel_selections_do_not_affect_each_other(harness: RetrieverHarness) -> None:
    with harness.retriever() as api:
        harness.load(api)
        for number in range(6):
            api.put_selection(f"art_{number}", harness.request(prefix=f"t/b/{number}"))
        runs = [wait_while(lambda n=n: api.get_selection(f"art_{n}"), "running") for n in range(6)]  # type: ignore[misc]
    assert {run.state for run in runs} == {"ready"}


@pytest.mark.parametrize("prefix", ["/etc", "../x", "a/../../b", "", "a//b"])
def test_prefix_outside_the_storage_is_rejected(harness: RetrieverHarness, prefix: str) -> None:
    body = harness.request().model_dump(mode="json") | {"prefix": prefix}
    with TestClient(assemble(harness.settings), headers={"Authorization": f"Bearer {TOKEN}"}) as http:
        answer = http.put("/v1/selections/art_1", json=body)
    assert answer.status_code == 422 and "prefix" in answer.json()["detail"]


def test_invalid_params_are_rejected_at_once(harness: RetrieverHarness) -> None:
    with harness.retriever() as api, pytest.raises(InvalidRecipe, match="top_k"):
        api.put_selection("art_1", harness.request(params={"top_k": 0}))


def test_requests_without_the_token_see_health_only(harness: RetrieverHarness) -> None:
    with TestClient(assemble(harness.settings)) as http:
        assert http.get("/healthz").status_code == http.get("/readyz").status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}):
            answer = http.get("/v1/selections/art_1", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


def test_unavailable_cluster_fails_at_once_and_logs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    harness = RetrieverHarness(tmp_path, "opensearch", "http://127.0.0.1:1")
    with harness.retriever() as api:
        began = time.monotonic()
        for call in (api.ready, api.ready, lambda: api.search(*harness.key, "q", 1), lambda: api.corpus(*harness.key)):
            with pytest.raises(IndexUnavailable):
                call()
        assert time.monotonic() - began < 5
    assert [
        record.levelname
        for record in caplog.records
        if record.name == "services.retriever.app" and "eady" in record.message
    ] == ["WARNING"]


def test_second_retriever_with_the_same_scratch_folder_fails(harness: RetrieverHarness) -> None:
    with harness.retriever(), pytest.raises(AlreadyRunning, match="scratch"):
        assemble(harness.settings)


def is_ready(api: RetrieverClient) -> bool:
    with suppress(IndexUnavailable):
        api.ready()
        return True
    return False


def test_service_starts_answers_and_stops_as_a_process(harness: RetrieverHarness) -> None:
    port = free_port()
    settings = {"STORAGE": harness.settings.storage, "SCRATCH": str(harness.settings.scratch), "PORT": str(port),
              "INTERNAL_TOKEN": TOKEN, "INDEX": "embedded"}  # fmt: skip
    environment = {**os.environ, **{f"TLM_RETRIEVER_{name}": value for name, value in settings.items()}}
    process = subprocess.Popen([sys.executable, "-m", "services.retriever"], env=environment, cwd=ROOT)
    http = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {TOKEN}"})
    try:
        api = RetrieverClient(http)
        wait_for(lambda: process.poll() is not None or is_ready(api), 60)
        assert process.poll() is None
        assert harness.load(api).state == "ready"
        assert harness.select(api).state == "ready"
    finally:
        http.close()
        with socket.create_connection(("127.0.0.1", port)) as unfinished:
            unfinished.sendall(b"POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
            time.sleep(0.5)  # until the server has read the request
            process.terminate()
            assert process.wait(30) in (0, -15)


def test_failing_task_makes_the_retriever_unready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: SelectionRuns) -> None:
        raise ValueError("unexpected")

    monkeypatch.setattr(selection_runs, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(SelectionRuns, "_beat", failing)
    settings = RetrieverSettings(storage=str(tmp_path), scratch=tmp_path, internal_token=SecretStr("t"))
    with TestClient(assemble(settings)) as http:
        wait_for(lambda: http.get("/readyz").status_code == 503, 10)
        assert "The task 'selections' fails: ValueError: unexpected" in http.get("/readyz").json()["detail"]
        assert http.get("/healthz").status_code == 200


def test_retriever_whose_task_has_stopped_is_not_healthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection_runs, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(SelectionRuns, "_beat", lambda runs: runs._stop.set())
    settings = RetrieverSettings(storage=str(tmp_path), scratch=tmp_path, internal_token=SecretStr("t"))
    with TestClient(assemble(settings)) as http:
        wait_for(lambda: http.get("/healthz").status_code == 503, 10)
        assert "has stopped. Restart the process." in http.get("/healthz").json()["detail"]


def test_health_survives_requests_that_all_wait_for_the_index(
    harness: RetrieverHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, waiting = threading.Event(), list[EmbeddedIndexes]()

    def hang(indexes: EmbeddedIndexes) -> bool:
        waiting.append(indexes)
        return answer.wait(60)

    monkeypatch.setattr(EmbeddedIndexes, "check", hang)
    with TestClient(assemble(harness.settings)) as http, ThreadPoolExecutor(60) as pool:
        requests = [pool.submit(http.get, "/readyz") for _ in range(50)]
        try:
            wait_for(lambda: len(waiting) == 40)
            assert pool.submit(http.get, "/healthz").result(20).json() == {"status": "alive"}
            assert len(waiting) == 40
        finally:
            answer.set()
        assert {request.result().status_code for request in requests} == {200}


def test_health_checks_log_a_starting_index_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = RetrieverSettings(
        storage=str(tmp_path), scratch=tmp_path, internal_token=SecretStr("t"), index="opensearch",
        opensearch_url="http://127.0.0.1:1",
    )  # fmt: skip
    with caplog.at_level(logging.INFO), TestClient(assemble(settings)) as http:
        assert [http.get("/readyz").status_code for _ in range(3)] == [503] * 3
    lines = [record.message for record in caplog.records if record.name.startswith("services")]
    assert [line.partition(":")[0] for line in lines] == ["Not ready", "Error answer"]
