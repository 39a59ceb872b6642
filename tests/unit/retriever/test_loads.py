"""Loads of corpus versions: killed anywhere they go on, and refused passages are kept with the reason."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import wait
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.retriever.bulk import Refused, Taken
from services.retriever.indexes import CorpusKey, EmbeddedIndexes
from services.retriever.loads import CorpusLoads, Load
from services.retriever.passages_in import CorpusFiles
from services.retriever.records import LoadRecords
from tests.support import no_file_larger_than
from tlm_core.artifacts import ArtifactStore
from tlm_core.corpus.passages import Passage
from tlm_core.errors import Conflict, IndexMismatch, IndexUnavailable, NotFound
from tlm_core.selection.index import Hit

KEY = CorpusKey("t", "docs", "v/1")
COUNT = 9_000
BAD = frozenset({"p00003", "p06000"})


class Killed(BaseException):
    """The process dies here."""


class PlayedIndex:
    """An index in memory that outlives the processes which fill it. dies_in: adds until one kills the process."""

    def __init__(self, identity: str, dies_in: float = float("inf")) -> None:
        self.identity = identity
        self.held: dict[str, Passage] = {}
        self.added = 0
        self.ready = False
        self.dies_in = dies_in
        self.at = Taken()

    @property
    def taken(self) -> int:
        return self.at.taken

    @property
    def checksum(self) -> int:
        return self.at.checksum

    @property
    def refused(self) -> Sequence[Refused]:
        return self.at.refused

    def go_on(self, at: Taken) -> None:
        self.at = at

    def add(self, batch: Sequence[Passage]) -> None:
        self.dies_in -= 1
        if self.dies_in < 0:
            raise Killed
        self.added += len(batch)
        refused = [Refused(self.taken + n, p, "bad id") for n, p in enumerate(batch) if p.id in BAD]
        self.held.update({p.id: p for p in batch if p.id not in BAD})
        self.at = Taken(self.taken + len(batch), 0, (*self.at.refused, *refused))

    def flush(self) -> None:
        return

    def commit(self, expected: int | None = None) -> None:
        if len(self.held) + len(self.refused) != expected:
            raise IndexMismatch(f"{len(self.held)} and {len(self.refused)}, not {expected}")
        self.ready = True

    def count(self) -> int:
        return len(self.held)

    def close(self) -> None:
        return

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        raise NotImplementedError

    def fetch(self, ids: Collection[str]) -> dict[str, Passage]:
        return {name: self.held[name] for name in ids}

    def ids(self) -> Iterator[list[str]]:
        yield list(self.held)


class PlayedIndexes:
    """One index, or none, as a cluster would keep it. prepared: called with the index that is begun or gone on with."""

    def __init__(self, prepared: Callable[[PlayedIndex], None] = lambda _: None) -> None:
        self.index: PlayedIndex | None = None
        self._numbers = count()
        self._prepared = prepared

    def open(self, key: CorpusKey, *, patient: bool = False) -> PlayedIndex:  # noqa: ARG002
        if self.index is None or not self.index.ready:
            raise NotFound("not loaded")
        return self.index

    def begin(self, key: CorpusKey, language: str) -> PlayedIndex:  # noqa: ARG002
        if self.index is None:
            self.index = PlayedIndex(f"uuid-{next(self._numbers)}")
        self.index.added, self.index.at = 0, Taken()
        self._prepared(self.index)
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


def loaded(store: ArtifactStore, indexes: PlayedIndexes) -> Load:
    """One process that loads until it ends, in whatever way."""
    ticks = count(step=10)  # so much time passes between two looks that the cursor is kept each time
    loads = CorpusLoads(indexes, store, threading.Event(), clock=lambda: float(next(ticks)))
    loads.put(KEY, "t/corpus", "en")
    load = loads._loads[KEY]
    assert not wait([load.future], 30).not_done
    loads.close()
    return load


def letters(store: ArtifactStore) -> list[dict[str, Any]]:
    lines = Path(LoadRecords(store).refused_path(KEY)).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_a_load_keeps_refused_passages_with_the_reason_and_counts_them(store: ArtifactStore) -> None:
    indexes = PlayedIndexes()
    load = loaded(store, indexes)
    assert (load.state, load.count, load.loaded, load.refused) == ("ready", COUNT, COUNT, 2)
    assert indexes.index is not None and indexes.index.count() == COUNT - 2
    assert letters(store) == [
        {"number": 3, "id": "p00003", "text": "text 3", "source": "s", "reason": "bad id"},
        {"number": 6000, "id": "p06000", "text": "text 6000", "source": "s", "reason": "bad id"},
    ]
    later = CorpusLoads(indexes, store, threading.Event())
    assert ((seen := later.get(KEY)).state, seen.count, seen.refused) == ("ready", COUNT, 2)
    assert [entry.passage.id for entry in later.refused(KEY)] == sorted(BAD)


@pytest.mark.parametrize("lives", [0, 1, 3, 4])
def test_a_load_that_was_killed_goes_on_behind_what_it_had_kept(store: ArtifactStore, lives: int) -> None:
    deaths = [lives]

    def prepared(index: PlayedIndex) -> None:
        index.dies_in = deaths.pop() if deaths else float("inf")

    indexes = PlayedIndexes(prepared)
    assert loaded(store, indexes).state == "loading", "it died without a word"
    first = indexes.index.added if indexes.index else 0
    assert loaded(store, indexes).state == "ready"
    assert indexes.index is not None
    assert indexes.index.added == COUNT - first, "nothing is sent twice"
    assert sorted(indexes.index.held) == sorted({f"p{n:05d}" for n in range(COUNT)} - BAD)
    assert [letter["number"] for letter in letters(store)] == [3, 6000]


def test_the_cursor_of_an_index_that_is_gone_is_never_taken_for_that_of_its_successor(store: ArtifactStore) -> None:
    def prepared(index: PlayedIndex) -> None:
        index.dies_in = 3 if index.identity == "uuid-0" else float("inf")

    indexes = PlayedIndexes(prepared)
    assert loaded(store, indexes).loaded > 0
    indexes.drop(KEY)
    assert loaded(store, indexes).state == "ready"
    assert indexes.index is not None and indexes.index.added == COUNT


def test_a_load_that_another_process_brought_to_its_end_is_ready(store: ArtifactStore) -> None:
    class Closed(PlayedIndex):
        def add(self, batch: Sequence[Passage]) -> None:  # noqa: ARG002
            self.ready = True  # as the other one makes it in this moment
            raise Conflict("the index is closed for writing")

    indexes = PlayedIndexes()
    indexes.index = Closed("uuid")
    assert loaded(store, indexes).state == "ready"


def test_an_index_closed_by_someone_else_fails_the_load(store: ArtifactStore) -> None:
    class Closed(PlayedIndex):
        def add(self, batch: Sequence[Passage]) -> None:  # noqa: ARG002
            raise Conflict("the index is closed for writing")

    indexes = PlayedIndexes()
    indexes.index = Closed("uuid")
    load = loaded(store, indexes)
    assert load.state == "failed" and load.error is not None and "closed for writing" in load.error["message"]


def test_an_embedded_index_that_finds_no_room_leaves_nothing(store: ArtifactStore, tmp_path: Path) -> None:
    indexes = EmbeddedIndexes(tmp_path / "indexes")
    loads = CorpusLoads(indexes, store, threading.Event())
    with no_file_larger_than(50_000):
        loads.put(KEY, "t/corpus", "en")
        wait([loads._loads[KEY].future], 60)
    failed = loads.get(KEY)
    assert failed.state == "failed" and failed.error is not None and failed.error["code"] == "storage_full"
    assert [path.name for path in (tmp_path / "indexes").iterdir()] == ["lock"]
    loads.put(KEY, "t/corpus", "en")
    wait([loads._loads[KEY].future], 60)
    assert loads.get(KEY).state == "ready"
    loads.close()
    indexes.close()


# --- loads that are dropped, and last answers that are lost -----------------------------------------------------------


def test_a_load_that_waits_for_another_is_dropped_at_once(store: ArtifactStore) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def prepared(_: PlayedIndex) -> None:
        begun.set()
        assert go_on.wait(30)

    indexes, queued = PlayedIndexes(prepared), KEY._replace(version="queued")
    loads = CorpusLoads(indexes, store, threading.Event())
    loads.put(KEY, "t/corpus", "en")
    assert begun.wait(30)
    loads.put(queued, "t/corpus", "en")
    loads.drop(queued)
    with pytest.raises(NotFound):
        loads.get(queued)
    assert loads.get(KEY).state == "loading"
    go_on.set()
    loads.close()


@pytest.mark.parametrize("waits", [True, False])
def test_a_load_whose_dropping_failed_does_not_seem_to_go_on_and_may_be_asked_for_again(
    store: ArtifactStore, waits: bool
) -> None:
    class Away(PlayedIndexes):
        def drop(self, key: CorpusKey) -> None:  # noqa: ARG002
            raise IndexUnavailable("away")

    dropped, begun, go_on = KEY._replace(version="dropped"), threading.Event(), threading.Event()

    def prepared(_: PlayedIndex) -> None:
        begun.set()
        while not (go_on.is_set() or loads._loads[dropped].stop.wait(0.01)):
            pass

    loads = CorpusLoads(Away(prepared), store, threading.Event())
    if waits:
        loads.put(KEY, "t/corpus", "en")
    loads.put(dropped, "t/corpus", "en")
    assert begun.wait(30)
    with pytest.raises(IndexUnavailable, match="away"):
        loads.drop(dropped)
    failed = loads.get(dropped)
    assert failed.state == "failed" and failed.error is not None and failed.error["retryable"]
    go_on.set()
    loads.put(dropped, "t/corpus", "en")
    wait([loads._loads[dropped].future], 30)
    assert loads.get(dropped).state == "ready"
    loads.close()


@pytest.mark.parametrize("asked", ["by a load", "by a search"])
def test_a_load_that_lost_only_its_last_answer_is_ready_when_asked_for_again(store: ArtifactStore, asked: str) -> None:
    class LastAnswerLost(PlayedIndex):
        def commit(self, expected: int | None = None) -> None:
            super().commit(expected)
            raise IndexUnavailable("the answer was lost")

    indexes = PlayedIndexes()
    indexes.index = whole = LastAnswerLost("uuid")
    loads = CorpusLoads(indexes, store, threading.Event())
    loads.put(KEY, "t/corpus", "en")
    wait([loads._loads[KEY].future], 30)
    assert loads.get(KEY).state == "failed"
    if asked == "by a load":
        loads.put(KEY, "t/corpus", "en")
    else:
        assert loads.ready(KEY) is whole
    assert loads.get(KEY).state == "ready" and whole.added == COUNT
    loads.close()


@pytest.mark.parametrize("skip", [0, 1, 1_699, 1_700, 4_999, 5_000, 5_001, 8_999, 9_000])
def test_what_is_skipped_is_neither_lost_nor_doubled(store: ArtifactStore, skip: int) -> None:
    names = [p.id for batch in CorpusFiles(store, "t/corpus").batches(skip) for p in batch]
    assert names == [f"p{n:05d}" for n in range(skip, COUNT)]


# --- the notes in storage ---------------------------------------------------------------------------------------------


def at(taken: int, *numbers: int) -> Taken:
    refused = (Refused(n, Passage(f"p{n}", 'tex"t\n\u2028ü', "s"), "why") for n in numbers)
    return Taken(taken, 2**64 - taken, tuple(refused))


def index_at(taken: Taken, identity: str = "i") -> PlayedIndex:
    index = PlayedIndex(identity)
    index.go_on(taken)
    return index


def test_what_was_kept_is_found_again_for_the_same_index_only(store: ArtifactStore) -> None:
    records, kept = LoadRecords(store), at(100, 5, 70)
    records.keep(KEY, index_at(kept))
    assert records.taken(KEY, "i") == kept
    assert records.taken(KEY, "other") == Taken() == records.taken(KEY, "")
    assert records.refused(KEY) == 2


def test_letters_behind_the_cursor_are_not_counted(store: ArtifactStore) -> None:
    records = LoadRecords(store)
    records.keep(KEY, index_at(at(100, 5)))
    cursor = Path(store.path("t/indexes/docs/v%2F1.cursor.json"))
    before = cursor.read_bytes()
    records.keep(KEY, index_at(at(200, 5, 170)))
    cursor.write_bytes(before)  # killed between the two files
    assert records.taken(KEY, "i") == at(100, 5)


def test_letters_that_are_lost_begin_the_load_anew(store: ArtifactStore) -> None:
    records = LoadRecords(store)
    records.keep(KEY, index_at(at(100, 5)))
    Path(records.refused_path(KEY)).unlink()
    assert records.taken(KEY, "i") == Taken()


def test_forgetting_leaves_nothing(store: ArtifactStore) -> None:
    records = LoadRecords(store)
    records.note(KEY, "t/corpus", "en")
    records.keep(KEY, index_at(at(100, 5)))
    assert records.noted(KEY) == ("t/corpus", "en")
    records.forget(KEY)
    assert list(Path(store.path("t/indexes/docs")).iterdir()) == []
    with pytest.raises(NotFound, match="load it first"):
        records.noted(KEY)
    records.forget(KEY)
