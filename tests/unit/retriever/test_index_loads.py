"""Loads of corpus versions: they resume after an interruption and report refused passages with the reason."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import wait
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.common.retriever_client import IndexLoad
from services.retriever.bulk import LoadCursor, Refused
from services.retriever.corpus_storage import CorpusFiles, LoadRecords
from services.retriever.index_loads import IndexLoads
from services.retriever.indexes import CorpusKey, EmbeddedIndexes
from tests.support import no_file_larger_than
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.corpus.passages import Passage
from tlm_core.errors import Conflict, IndexMismatch, IndexUnavailable, NotFound
from tlm_core.selection.index import Hit

KEY = CorpusKey("t", "docs", "v/1")
COUNT = 9_000
BAD = frozenset({"p00003", "p06000"})


class Killed(BaseException):
    """Simulates the end of the process."""


class FakeIndex:
    """An index in memory that survives the processes that load it. adds_left: adds before one raises Killed."""

    def __init__(self, identity: str, adds_left: float = float("inf")) -> None:
        self.identity = identity
        self.stored: dict[str, Passage] = {}
        self.added = 0
        self.ready = False
        self.adds_left = adds_left
        self.cursor = LoadCursor()

    def resume(self, cursor: LoadCursor) -> None:
        self.cursor = cursor

    def add(self, batch: Sequence[Passage]) -> None:
        self.adds_left -= 1
        if self.adds_left < 0:
            raise Killed
        self.added += len(batch)
        first = self.cursor.position
        refused = [Refused(first + n, p, "bad id") for n, p in enumerate(batch) if p.id in BAD]
        self.stored.update({p.id: p for p in batch if p.id not in BAD})
        self.cursor = LoadCursor(first + len(batch), 0, (*self.cursor.refused, *refused))

    def flush(self) -> None:
        return

    def commit(self, expected: int | None = None) -> None:
        if len(self.stored) + len(self.cursor.refused) != expected:
            raise IndexMismatch(f"{len(self.stored)} stored, {expected} expected")
        self.ready = True

    def count(self) -> int:
        return len(self.stored)

    def close(self) -> None:
        return

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        raise NotImplementedError

    def fetch(self, ids: Collection[str]) -> dict[str, Passage]:
        return {name: self.stored[name] for name in ids}

    def ids(self) -> Iterator[list[str]]:
        yield list(self.stored)


class FakeIndexes:
    """A cluster with one index, or none. prepare: receives the index at the begin of each load."""

    def __init__(self, prepare: Callable[[FakeIndex], None] = lambda _: None) -> None:
        self.index: FakeIndex | None = None
        self._numbers = count()
        self._prepare = prepare

    def open(self, key: CorpusKey, *, wait: bool = False) -> FakeIndex:  # noqa: ARG002
        if self.index is None or not self.index.ready:
            raise NotFound("not loaded")
        return self.index

    def begin(self, key: CorpusKey, language: str) -> FakeIndex:  # noqa: ARG002
        if self.index is None:
            self.index = FakeIndex(f"uuid-{next(self._numbers)}")
        self.index.added, self.index.cursor = 0, LoadCursor()
        self._prepare(self.index)
        return self.index

    def drop(self, key: CorpusKey) -> None:  # noqa: ARG002
        self.index = None

    def check(self) -> None:
        return


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    store = ArtifactStore(str(tmp_path / "storage"), tmp_path / "cache")
    folder = Path(store.path("t/corpus"))
    folder.mkdir(parents=True)
    for number, first in enumerate(range(0, COUNT, 5_000)):
        numbers = range(first, min(first + 5_000, COUNT))
        columns = {
            "id": [f"p{n:05d}" for n in numbers],
            "text": [f"text {n}" for n in numbers],
            "source": ["s"] * len(numbers),
        }
        pq.write_table(pa.table(columns), folder / f"passages-{number:05d}.parquet", row_group_size=1_700)
    return store


def finish(loads: IndexLoads, key: CorpusKey = KEY) -> IndexLoad:
    """Wait until the load ends or its process is killed, and return its status."""
    load = loads._loads[key]
    assert not wait([load.future], 60).not_done
    return load.status


def run_load(store: ArtifactStore, indexes: FakeIndexes) -> IndexLoad:
    """One process that loads until it ends or is killed."""
    ticks = count(step=10)  # so much time between two batches that the progress is saved after each
    loads = IndexLoads(indexes, store, threading.Event(), clock=lambda: float(next(ticks)))
    loads.put(KEY, "t/corpus", "en")
    status = finish(loads)
    loads.close()
    return status


def test_load_records_refused_passages_with_the_reason(store: ArtifactStore) -> None:
    indexes = FakeIndexes()
    load = run_load(store, indexes)
    assert (load.state, load.count, load.loaded, load.refused) == ("ready", COUNT, COUNT, 2)
    assert indexes.index is not None and indexes.index.count() == COUNT - 2
    later = IndexLoads(indexes, store, threading.Event())
    assert ((seen := later.get(KEY)).state, seen.count, seen.refused) == ("ready", COUNT, 2)
    assert later.refused(KEY) == tuple(
        Refused(number, Passage(f"p{number:05d}", f"text {number}", "s"), "bad id") for number in (3, 6000)
    )


@pytest.mark.parametrize("adds", [0, 1, 3, 4])
def test_killed_load_resumes_at_its_cursor(store: ArtifactStore, adds: int) -> None:
    limits = [adds]

    def prepare(index: FakeIndex) -> None:
        index.adds_left = limits.pop() if limits else float("inf")

    indexes = FakeIndexes(prepare)
    assert run_load(store, indexes).state == "loading", "a killed process reports nothing"
    first = indexes.index.added if indexes.index else 0
    assert run_load(store, indexes).state == "ready"
    assert indexes.index is not None
    assert indexes.index.added == COUNT - first, "no passage is sent twice"
    assert sorted(indexes.index.stored) == sorted({f"p{n:05d}" for n in range(COUNT)} - BAD)
    assert [entry.number for entry in LoadRecords(store).progress(KEY).refused] == [3, 6000]


def test_cursor_of_a_deleted_index_is_not_used_for_the_next(store: ArtifactStore) -> None:
    def prepare(index: FakeIndex) -> None:
        index.adds_left = 3 if index.identity == "uuid-0" else float("inf")

    indexes = FakeIndexes(prepare)
    assert run_load(store, indexes).loaded > 0
    indexes.drop(KEY)
    assert run_load(store, indexes).state == "ready"
    assert indexes.index is not None and indexes.index.added == COUNT


def test_load_completed_by_another_process_is_ready(store: ArtifactStore) -> None:
    class Closed(FakeIndex):
        def add(self, batch: Sequence[Passage]) -> None:  # noqa: ARG002
            self.ready = True  # the other process completes it at this moment
            raise Conflict("the index is closed for writing")

    indexes = FakeIndexes()
    indexes.index = Closed("uuid")
    assert run_load(store, indexes).state == "ready"


def test_index_closed_for_writing_fails_the_load(store: ArtifactStore) -> None:
    class Closed(FakeIndex):
        def add(self, batch: Sequence[Passage]) -> None:  # noqa: ARG002
            raise Conflict("the index is closed for writing")

    indexes = FakeIndexes()
    indexes.index = Closed("uuid")
    load = run_load(store, indexes)
    assert load.state == "failed" and load.error is not None and "closed for writing" in load.error["message"]


def test_embedded_index_on_a_full_disk_is_deleted(store: ArtifactStore, tmp_path: Path) -> None:
    indexes = EmbeddedIndexes(tmp_path / "indexes")
    loads = IndexLoads(indexes, store, threading.Event())
    with no_file_larger_than(50_000):
        loads.put(KEY, "t/corpus", "en")
        finish(loads)
    failed = loads.get(KEY)
    assert failed.state == "failed" and failed.error is not None and failed.error["code"] == "storage_full"
    assert [path.name for path in (tmp_path / "indexes").iterdir()] == ["lock"]
    loads.put(KEY, "t/corpus", "en")
    finish(loads)
    assert loads.get(KEY).state == "ready"
    loads.close()
    indexes.close()


# --- dropped loads, and lost responses --------------------------------------------------------------------------------


def test_queued_load_is_dropped_at_once(store: ArtifactStore) -> None:
    begun, resume = threading.Event(), threading.Event()

    def prepare(_: FakeIndex) -> None:
        begun.set()
        assert resume.wait(30)

    indexes, queued = FakeIndexes(prepare), KEY._replace(version="queued")
    loads = IndexLoads(indexes, store, threading.Event())
    loads.put(KEY, "t/corpus", "en")
    assert begun.wait(30)
    loads.put(queued, "t/corpus", "en")
    loads.drop(queued)
    with pytest.raises(NotFound):
        loads.get(queued)
    assert loads.get(KEY).state == "loading"
    resume.set()
    loads.close()


@pytest.mark.parametrize("queued", [True, False])
def test_load_whose_deletion_fails_can_be_requested_again(store: ArtifactStore, queued: bool) -> None:
    class Unavailable(FakeIndexes):
        def drop(self, key: CorpusKey) -> None:  # noqa: ARG002
            raise IndexUnavailable("no answer")

    dropped, begun, resume = KEY._replace(version="dropped"), threading.Event(), threading.Event()

    def prepare(_: FakeIndex) -> None:
        begun.set()
        while not (resume.is_set() or loads._loads[dropped].stop.wait(0.01)):
            pass

    loads = IndexLoads(Unavailable(prepare), store, threading.Event())
    if queued:
        loads.put(KEY, "t/corpus", "en")
    loads.put(dropped, "t/corpus", "en")
    assert begun.wait(30)
    with pytest.raises(IndexUnavailable, match="no answer"):
        loads.drop(dropped)
    failed = loads.get(dropped)
    assert failed.state == "failed" and failed.error is not None and failed.error["retryable"]
    resume.set()
    loads.put(dropped, "t/corpus", "en")
    finish(loads, dropped)
    assert loads.get(dropped).state == "ready"
    loads.close()


@pytest.mark.parametrize("request_kind", ["load", "search"])
def test_load_that_lost_its_last_response_is_ready_on_request(store: ArtifactStore, request_kind: str) -> None:
    class LastResponseLost(FakeIndex):
        def commit(self, expected: int | None = None) -> None:
            super().commit(expected)
            raise IndexUnavailable("the response was lost")

    indexes = FakeIndexes()
    indexes.index = complete = LastResponseLost("uuid")
    loads = IndexLoads(indexes, store, threading.Event())
    loads.put(KEY, "t/corpus", "en")
    finish(loads)
    assert loads.get(KEY).state == "failed"
    if request_kind == "load":
        loads.put(KEY, "t/corpus", "en")
    else:
        assert loads.ready(KEY) is complete
    assert loads.get(KEY).state == "ready" and complete.added == COUNT
    loads.close()


@pytest.mark.parametrize("skip", [0, 1, 1_699, 1_700, 4_999, 5_000, 5_001, 8_999, 9_000])
def test_skipped_passages_are_neither_lost_nor_doubled(store: ArtifactStore, skip: int) -> None:
    names = [p.id for batch in CorpusFiles(store, "t/corpus").batches(skip) for p in batch]
    assert names == [f"p{n:05d}" for n in range(skip, COUNT)]


# --- records in the storage -------------------------------------------------------------------------------------------


def saved_cursor(records: LoadRecords, position: int, *refused: int) -> LoadCursor:
    """Save the progress of index 'i' and return its cursor."""
    index = FakeIndex("i")
    entries = tuple(Refused(n, Passage(f"p{n}", 'tex"t\n\u2028ü', "s"), "why") for n in refused)
    index.cursor = LoadCursor(position, 2**64 - position, entries)
    records.save_progress(KEY, index)
    return index.cursor


def test_progress_is_read_for_the_same_index_only(store: ArtifactStore) -> None:
    records = LoadRecords(store)
    cursor = saved_cursor(records, 100, 5, 70)
    assert records.progress(KEY, "i") == cursor == records.progress(KEY)
    assert records.progress(KEY, "other") == LoadCursor() == records.progress(KEY, "")


def test_deleted_records_leave_no_file(store: ArtifactStore) -> None:
    records = LoadRecords(store)
    records.save_source(KEY, "t/corpus", "en")
    saved_cursor(records, 100, 5)
    assert records.source(KEY) == ("t/corpus", "en")
    records.delete(KEY)
    assert list(Path(store.path("t/indexes/docs")).iterdir()) == []
    with pytest.raises(NotFound, match="was never loaded"):
        records.source(KEY)
    records.delete(KEY)
