"""The retriever over HTTP, with either index behind it: loads, searches, selections, and what a restart leaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from services.common.retriever_client import (
    CorpusLoad,
    RetrieverClient,
    SelectionRequest,
    SelectionRun,
)
from services.retriever.app import assemble
from services.retriever.indexes import EmbeddedIndexes
from services.retriever.loads import CorpusLoads
from services.retriever.selections import SelectionRuns
from services.retriever.settings import RetrieverSettings
from tests.contract.selection_indexes import KINDS, new_key
from tests.redis_server import free_port
from tests.support import ROOT, no_file_larger_than
from tlm_core.artifacts import ArtifactStore, ManifestRef
from tlm_core.errors import (
    AlreadyRunning,
    CorruptArtifact,
    EmptySelection,
    IndexUnavailable,
    InvalidRecipe,
    InvalidRequest,
    NotFound,
    StorageFull,
)
from tlm_core.selection.given import GIVEN, write_given
from tlm_core.selection.retrieve import PART
from tlm_core.tasks.task import Task, task_schema

TOKEN = "secret of the stack"
PASSAGES = [(f"p{n:03d}", f"passage {n} of word{n % 10} and word{n % 7}", f"s{n % 2}") for n in range(200)]


class Place:
    """A storage with a corpus and a task, and retrievers over it."""

    def __init__(self, folder: Path, kind: str, url: str) -> None:
        self.folder = folder
        self.key = new_key()
        self.settings = RetrieverSettings(
            storage=str(folder / "storage"), scratch=folder / "scratch", internal_token=TOKEN, index=kind,
            opensearch_url=url, patience_seconds=20,
        )  # type: ignore[arg-type]  # fmt: skip
        self.store = ArtifactStore(self.settings.storage, folder / "cache")
        self.write_corpus(PASSAGES)
        self.task = self.write_task(["word1 word2", "word3", "absent"])

    def write_corpus(self, rows: list[tuple[str, str, str]], name: str = "passages-00000.parquet") -> None:
        path = self.folder / "storage" / "t" / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = zip(*rows, strict=True) if rows else ((), (), ())
        pq.write_table(pa.table(dict(zip(("id", "text", "source"), map(list, columns), strict=True))), path)

    def write_task(self, texts: list[str], given: str | None = None) -> ManifestRef:
        schema = task_schema(False)
        rows = pa.table([range(1, len(texts) + 1), texts, [0] * len(texts)], schema=schema)
        task = Task("t", ("a", "b"), "macro_f1", False, "en", {"train": rows, "validation": rows[:0], "test": rows[:0]})
        task.write(self.folder / "task")
        if given is not None:
            (self.folder / "given.csv").write_text(given)
            write_given(self.folder / "given.csv", self.folder / "task" / GIVEN)
        return self.store.write("t/task", self.folder / "task", artifact="art_task", stage="validate")

    @contextmanager
    def retriever(self) -> Iterator[RetrieverClient]:
        """A process of the service, from start to end."""
        with TestClient(assemble(self.settings), headers={"Authorization": f"Bearer {TOKEN}"}) as http:
            yield RetrieverClient(http)

    def load(self, api: RetrieverClient, folder: str = "t/corpus", language: str = "en") -> CorpusLoad:
        api.put_corpus(*self.key, folder=folder, language=language)
        return settled(lambda: api.corpus(*self.key), "loading")

    def request(self, prefix: str = "t/artifacts/a/1", **over: Any) -> SelectionRequest:
        tenant, corpus, version = self.key
        values = {"params": {"top_k": 5}, "task": self.task, "prefix": prefix, **over}
        return SelectionRequest(tenant=tenant, corpus=corpus, version=version, **values)

    def select(self, api: RetrieverClient, artifact: str = "art_1", **over: Any) -> SelectionRun:
        api.put_selection(artifact, self.request(**over))
        return settled(lambda: api.get_selection(artifact), "running")


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def settled(look: Callable[[], Any], while_in: str) -> Any:
    deadline = time.monotonic() + 120
    while (seen := look()).state == while_in:
        assert time.monotonic() < deadline, f"still {seen}"
        time.sleep(0.02)
    return seen


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    url = request.getfixturevalue("opensearch_url") if request.param == "opensearch" else "http://127.0.0.1:1"
    made = Place(tmp_path, request.param, url)
    yield made
    with made.retriever() as api:
        api.delete_corpus(*made.key)


@pytest.fixture
def api(place: Place) -> Iterator[RetrieverClient]:
    with place.retriever() as made:
        yield made


def test_a_corpus_is_loaded_and_searched(place: Place, api: RetrieverClient) -> None:
    assert api.corpus(*place.key).state == "unknown"
    load = place.load(api)
    assert (load.state, load.count, load.loaded) == ("ready", 200, 200)
    hits = api.search(*place.key, "word1 word2", 3)
    assert [hit.id for hit in hits] == sorted(hit.id for hit in hits)
    assert hits[0].text in {text for _, text, _ in PASSAGES} and hits[0].score > 0
    assert api.search(*place.key, "nothing-like-it", 3) == []
    api.put_corpus(*place.key, folder="t/corpus", language="en")
    assert api.corpus(*place.key).state == "ready"


def test_a_selection_is_written_to_storage_under_its_prefix(place: Place, api: RetrieverClient) -> None:
    place.load(api)
    run = place.select(api)
    assert (run.state, run.done, run.total, run.error) == ("ready", 3, 3, None)
    assert run.ref is not None and run.ref.folder == "t/artifacts/a/1"
    manifest = place.store.verify(run.ref)
    assert (manifest.artifact, manifest.stage) == ("art_1", "select")
    folder = place.store.localize(run.ref)
    facts = json.loads((folder / "selection.json").read_text())
    assert facts["asked"]["without_hit"] == {"count": 1, "rows": [3]}
    assert facts["corpus"] == {"name": place.key.name, "version": "v1", "passages": 200}
    assert len(pq.read_table(folder / "passages.parquet")) == facts["passages"] == 10
    assert list((place.folder / "scratch" / "selections").iterdir()) == []


def test_equal_selections_have_equal_digests(place: Place, api: RetrieverClient) -> None:
    place.load(api)
    first, second = (place.select(api, "art_1", prefix=f"t/artifacts/a/{n}").ref for n in (1, 2))
    assert first is not None and second is not None
    assert (first.digest, first.folder) == (second.digest, "t/artifacts/a/1") and second.folder == "t/artifacts/a/2"


def test_asking_again_adopts_what_is_there_even_after_a_restart(place: Place) -> None:
    with place.retriever() as api:
        place.load(api)
        ref = place.select(api).ref
        written = (place.folder / "storage" / "t/artifacts/a/1" / "manifest.json").stat().st_mtime_ns
        assert place.select(api).ref == ref
    with place.retriever() as api:
        assert api.get_selection("art_1").state == "unknown"
        assert api.corpus(*place.key).state == "ready"
        assert place.select(api).ref == ref
    assert (place.folder / "storage" / "t/artifacts/a/1" / "manifest.json").stat().st_mtime_ns == written


@pytest.mark.parametrize("lost", ["everything", "a file", "half of a file"])
@pytest.mark.parametrize("again", ["t/artifacts/a/1", "t/artifacts/a/2"])
def test_a_selection_whose_files_are_lost_is_made_again(
    place: Place, api: RetrieverClient, lost: str, again: str
) -> None:
    place.load(api)
    before = place.select(api).ref
    assert before is not None
    path = place.store.localize(before) / "passages.parquet"
    if lost == "everything":
        place.store.delete(before.folder)
    elif lost == "a file":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-100])
    assert api.get_selection("art_1").state == "unknown"
    after = place.select(api, prefix=again).ref
    assert after is not None and (after.digest, after.folder) == (before.digest, again)
    place.store.verify(after)


def test_a_selection_that_finds_no_room_is_told_and_leaves_nothing(place: Place, api: RetrieverClient) -> None:
    place.load(api)
    with no_file_larger_than(500):
        run = place.select(api)
    assert run.state == "failed" and isinstance(run.failure, StorageFull)
    assert list((place.folder / "scratch" / "selections").iterdir()) == []


def test_a_lost_index_is_built_again_from_storage(place: Place) -> None:
    with place.retriever() as api:
        before = place.load(api)
        hits = api.search(*place.key, "word3", 5)
    if place.settings.index == "embedded":
        shutil.rmtree(place.folder / "scratch")
    else:
        from services.retriever.cluster import connect
        from services.retriever.indexes import OpenSearchIndexes

        cluster = connect(place.settings.opensearch_url)
        OpenSearchIndexes(cluster, shards=1).drop(place.key)
        cluster.close()
    with place.retriever() as api:
        assert api.corpus(*place.key).state == "unknown"
        with pytest.raises(IndexUnavailable, match="being loaded"):
            api.search(*place.key, "word3", 5)
        assert settled(lambda: api.corpus(*place.key), "loading") == before
        assert api.search(*place.key, "word3", 5) == hits


def test_what_nobody_loaded_is_not_found(place: Place, api: RetrieverClient) -> None:
    with pytest.raises(NotFound, match="load it first"):
        api.search(*place.key, "q", 3)
    run = place.select(api)
    assert run.state == "failed" and isinstance(run.failure, NotFound)
    api.delete_corpus(*place.key)


@pytest.mark.parametrize("place", KINDS[1:], indirect=True)
def test_a_passage_that_opensearch_refuses_is_left_out_and_told_with_the_reason(
    place: Place, api: RetrieverClient
) -> None:
    place.write_corpus([*PASSAGES, ("x" * 600, "an id that is too long", "s")])
    load = place.load(api)
    assert (load.state, load.count, load.loaded, load.refused) == ("ready", 201, 201, 1)
    [refused] = api.refused(*place.key)
    assert refused.text == "an id that is too long" and "too long" in refused.reason
    assert len(api.search(*place.key, "passage", 1000)) == 200


def test_a_deleted_corpus_is_gone(place: Place, api: RetrieverClient) -> None:
    place.load(api)
    api.delete_corpus(*place.key)
    assert api.corpus(*place.key).state == "unknown"
    with pytest.raises(NotFound):
        api.search(*place.key, "word1", 3)
    assert place.load(api).state == "ready"


def test_a_task_that_shares_no_word_fails_with_the_reason(place: Place, api: RetrieverClient) -> None:
    place.load(api)
    run = place.select(api, task=place.write_task(["zebra", "gnu"]))
    assert run.state == "failed" and isinstance(run.failure, EmptySelection)
    assert place.select(api, task=place.task).state == "failed", "the same attempt is not tried again"


@pytest.mark.parametrize("kind", ["repeated id", "no parquet", "torn", "no text"])
def test_a_corpus_at_fault_says_so_and_is_never_searched(place: Place, api: RetrieverClient, kind: str) -> None:
    path = place.folder / "storage" / "t" / "corpus" / "passages-00000.parquet"
    if kind == "repeated id":
        place.write_corpus([*PASSAGES, PASSAGES[3]])
    elif kind == "no parquet":
        path.unlink()
    elif kind == "torn":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        pq.write_table(pa.table({"id": ["a"]}), path)
    load = place.load(api)
    assert load.state == "failed" and load.failure is not None
    assert {"repeated id": "unique", "no parquet": "upload", "torn": "whole", "no text": "text"}[kind] in str(
        load.failure
    )
    with pytest.raises((CorruptArtifact, NotFound, type(load.failure))):
        api.search(*place.key, "word1", 3)
    place.write_corpus(PASSAGES)
    assert place.load(api).state == "ready"


def test_several_files_are_one_corpus_in_its_own_language(place: Place, api: RetrieverClient) -> None:
    place.write_corpus([("j1", "自然言語処理の研究", "s"), ("j2", "今日は良い天気", "s")], "passages-00001.parquet")
    assert place.load(api, language="ja").count == 202
    assert [hit.id for hit in api.search(*place.key, "言語の処理", 2)] == ["j1"]


@pytest.mark.parametrize("selector", ["random", "whole", "dsir", "classifier"])
def test_every_selector_works_over_either_index(place: Place, api: RetrieverClient, selector: str) -> None:
    place.load(api)
    run = place.select(api, params={"selector": selector, "max_passages": 20})
    assert run.state == "ready" and run.ref is not None, run
    folder = place.store.localize(run.ref)
    found = pq.read_table(folder / "passages.parquet")
    assert len(set(found["id"].to_pylist())) == 20 and found["rank"].to_pylist() == list(range(1, 21))
    assert (None in found["score"].to_pylist()) == (selector in ("random", "whole"))
    assert list((place.folder / "scratch" / "selections").iterdir()) == []


# --- what does not hang on the index ----------------------------------------------------------------------------------


@pytest.fixture
def embedded(tmp_path: Path) -> Place:
    return Place(tmp_path, "embedded", "http://127.0.0.1:1")


def test_a_given_selection_needs_no_corpus(embedded: Place) -> None:
    embedded.task = embedded.write_task(["any"], given="text,rank\nsecond,2\nfirst,1\n")
    with embedded.retriever() as api:
        request = embedded.request(params={"selector": "given"}).model_copy(update={"corpus": None, "version": None})
        api.put_selection("art_1", request)
        run = settled(lambda: api.get_selection("art_1"), "running")
    assert run.ref is not None, run
    folder = embedded.store.localize(run.ref)
    assert pq.read_table(folder / "passages.parquet")["text"].to_pylist() == ["first", "second"]


def test_a_selection_that_is_not_there_or_lacks_its_corpus_says_so(embedded: Place) -> None:
    with embedded.retriever() as api:
        run = embedded.select(api, params={"selector": "given"})
        assert run.state == "failed" and "brings no selection" in str(run.failure)
        api.put_selection("art_2", embedded.request().model_copy(update={"corpus": None}))
        run = settled(lambda: api.get_selection("art_2"), "running")
        assert run.state == "failed" and "needs a corpus" in str(run.failure)


def test_a_selection_goes_on_where_the_retriever_was_stopped(embedded: Place) -> None:
    embedded.task = embedded.write_task([f"word{n % 10} word{n % 7} number{n}" for n in range(16 * PART)])
    with embedded.retriever() as api:
        embedded.load(api)
        api.put_selection("art_1", embedded.request())
        wait_for(lambda: api.get_selection("art_1").done > PART)
    parts = list((embedded.folder / "scratch" / "selections" / "art_1").rglob("hits-*.parquet"))
    assert 1 <= len(parts) < 16, "the first retriever was to be stopped in the middle"
    with embedded.retriever() as api:
        api.put_selection("art_1", embedded.request(prefix="t/artifacts/a/2"))
        wait_for(lambda: api.get_selection("art_1").done > 0)
        assert api.get_selection("art_1").done >= len(parts) * PART
        resumed = settled(lambda: api.get_selection("art_1"), "running")
        # The manifest holds the artifact's name, so the same name is selected once more from nothing.
        again = embedded.select(api, prefix="t/artifacts/a/3")
    assert resumed.ref is not None and again.ref is not None
    assert resumed.ref.digest == again.ref.digest
    assert list((embedded.folder / "scratch" / "selections").iterdir()) == []


def test_parts_of_work_under_way_survive_a_restart_and_go_when_forgotten(embedded: Place) -> None:
    folder = embedded.folder / "scratch" / "selections"
    for name, days in (("art_young", 1), ("art_old", 8)):
        (folder / name).mkdir(parents=True)
        os.utime(folder / name, (time.time() - days * 86_400,) * 2)
    with embedded.retriever():
        assert [path.name for path in folder.iterdir()] == ["art_young"]


def test_a_newer_attempt_has_its_own_run(embedded: Place) -> None:
    with embedded.retriever() as api:
        embedded.load(api)
        refs = [embedded.select(api, prefix=f"t/a/{n}").ref for n in range(3)]
        assert [ref.folder for ref in refs if ref] == ["t/a/0", "t/a/1", "t/a/2"]


def test_a_selection_that_is_stopped_runs_no_more_and_another_job_goes_on_from_there(embedded: Place) -> None:
    embedded.task = embedded.write_task([f"word{n % 10} word{n % 7} number{n}" for n in range(16 * PART)])
    with embedded.retriever() as api:
        embedded.load(api)
        api.put_selection("art_1", embedded.request(prefix="t/artifacts/a/job_1-2"))
        wait_for(lambda: api.get_selection("art_1").done > PART)
        assert api.stop_selection("art_1", "t/artifacts/a/job_12-"), "another job's is none of it"
        assert api.get_selection("art_1").state == "running"
        wait_for(lambda: api.stop_selection("art_1", "t/artifacts/a/job_1-"))
        assert api.get_selection("art_1").state == "unknown"
        assert embedded.select(api, prefix="t/artifacts/a/job_12-1").state == "ready"
    assert [path.name for path in (embedded.folder / "storage/t/artifacts/a").iterdir()] == ["job_12-1"]


class WaitingStore(ArtifactStore):
    """Waits before it ends a write."""

    def __init__(self, storage: str, cache: Path) -> None:
        super().__init__(storage, cache)
        self.writing, self.go_on = threading.Event(), threading.Event()

    def write(self, *args: Any, **options: Any) -> ManifestRef:
        ref = super().write(*args, **options)
        self.writing.set()
        assert self.go_on.wait(60)
        return ref


def test_a_selection_that_is_stopped_before_it_begins_or_while_it_is_written_leaves_nothing(embedded: Place) -> None:
    embedded.task = embedded.write_task(["any"], given="text,rank\nsecond,2\nfirst,1\n")
    store, stop = WaitingStore(embedded.settings.storage, embedded.folder / "cache"), threading.Event()
    indexes = EmbeddedIndexes(embedded.folder / "indexes")
    loads = CorpusLoads(indexes, store, stop)
    runs = SelectionRuns(loads, store, embedded.folder / "scratch", stop, at_once=1)
    for artifact in ("art_1", "art_2"):
        runs.put(artifact, embedded.request(prefix=f"t/artifacts/{artifact}/job_1-1", params={"selector": "given"}))
    assert store.writing.wait(60)
    assert runs.stop("art_2", "t/artifacts/art_2/job_1-"), "it waits for the first"
    assert not runs.stop("art_1", "t/artifacts/art_1/job_1-"), "it is being written"
    store.go_on.set()
    wait_for(lambda: runs.stop("art_1", "t/artifacts/art_1/job_1-"))
    for part in (runs, loads, indexes):
        part.close()
    assert runs.get("art_1") is None and runs.get("art_2") is None
    assert not list((embedded.folder / "storage/t/artifacts").rglob("*.*"))


def test_a_failure_that_may_pass_is_tried_again(embedded: Place) -> None:
    with embedded.retriever() as api:
        embedded.load(api)
    shutil.rmtree(embedded.folder / "scratch")
    with embedded.retriever() as api:
        run = embedded.select(api)
        assert run.failure is not None and run.failure.retryable
        settled(lambda: api.corpus(*embedded.key), "loading")
        assert embedded.select(api).state == "ready"


def test_selections_in_parallel_do_not_disturb_each_other(embedded: Place) -> None:
    with embedded.retriever() as api:
        embedded.load(api)
        for number in range(6):
            api.put_selection(f"art_{number}", embedded.request(prefix=f"t/b/{number}"))
        runs = [settled(lambda n=n: api.get_selection(f"art_{n}"), "running") for n in range(6)]  # type: ignore[misc]
    assert {run.state for run in runs} == {"ready"}


@pytest.mark.parametrize("prefix", ["/etc", "../x", "a/../../b", "", "a//b"])
def test_nothing_is_written_outside_the_storage(embedded: Place, prefix: str) -> None:
    with embedded.retriever() as api, pytest.raises(InvalidRequest, match="prefix"):
        api.put_selection("art_1", embedded.request(prefix=prefix))


def test_impossible_params_are_refused_at_once(embedded: Place) -> None:
    with embedded.retriever() as api, pytest.raises(InvalidRecipe, match="top_k"):
        api.put_selection("art_1", embedded.request(params={"top_k": 0}))


def test_without_the_token_only_health_is_told(embedded: Place) -> None:
    with TestClient(assemble(embedded.settings)) as http:
        assert http.get("/healthz").status_code == http.get("/readyz").status_code == 200
        for shown in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}):
            answer = http.get("/v1/selections/art_1", headers=shown)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


def test_a_cluster_that_is_away_is_told_at_once(tmp_path: Path) -> None:
    place = Place(tmp_path, "opensearch", "http://127.0.0.1:1")
    with place.retriever() as api:
        began = time.monotonic()
        for call in (api.ready, lambda: api.search(*place.key, "q", 1), lambda: api.corpus(*place.key)):
            with pytest.raises(IndexUnavailable):
                call()
        assert time.monotonic() - began < 5


def test_two_retrievers_never_share_one_scratch_folder(embedded: Place) -> None:
    with embedded.retriever(), pytest.raises(AlreadyRunning, match="scratch"):
        assemble(embedded.settings)


def test_the_service_starts_answers_and_ends_as_a_process(embedded: Place) -> None:
    port = free_port()
    chosen = {"STORAGE": embedded.settings.storage, "SCRATCH": str(embedded.settings.scratch), "PORT": str(port),
              "INTERNAL_TOKEN": TOKEN, "INDEX": "embedded"}  # fmt: skip
    environment = {**os.environ, **{f"TLM_RETRIEVER_{name}": value for name, value in chosen.items()}}
    process = subprocess.Popen([sys.executable, "-m", "services.retriever"], env=environment, cwd=ROOT)
    http = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {TOKEN}"})
    try:
        api = RetrieverClient(http)
        deadline = time.monotonic() + 60
        while True:
            try:
                api.ready()
                break
            except IndexUnavailable:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
        assert embedded.load(api).state == "ready"
        assert embedded.select(api).state == "ready"
    finally:
        http.close()
        process.terminate()
        assert process.wait(30) in (0, -15)
