"""Ingest and selection killed at random points, again and again, over a real OpenSearch: the result stays the same."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from services.common.retriever_client import SelectionRequest
from services.retriever.cluster import connect
from services.retriever.indexes import CorpusKey, OpenSearchIndexes
from services.retriever.loads import CorpusLoads
from services.retriever.records import LoadRecords
from services.retriever.selections import SelectionRuns
from tests.contract.retriever_place import Place
from tlm_core.artifacts import ArtifactStore

KILLS = 20
PASSAGES = 5_000
QUERIES = 1_100  # more than fit into one file of hits, so that a selection has something to go on from
PREFIX = "t/artifacts/a/1"


def life(url: str, folder: str, key: CorpusKey, request: SelectionRequest) -> None:
    """What a retriever does from its start on: load, then select. It notes its cursor after every batch."""
    stop, cluster = threading.Event(), connect(url, patience=60)
    store = ArtifactStore(f"{folder}/storage", Path(folder) / "cache")
    indexes = OpenSearchIndexes(cluster, shards=1)
    loads = CorpusLoads(indexes, store, stop, clock=lambda: 1000 * time.monotonic())
    runs = SelectionRuns(loads, store, Path(folder) / "scratch", stop, at_once=1)
    loads.put(key, "t/corpus", "en")
    wait_while(lambda: loads.get(key).state == "loading")
    assert loads.get(key).state == "ready", loads.get(key).error
    runs.put("art_1", request)
    wait_while(lambda: (run := runs.get("art_1")) is not None and run.state == "running")
    run = runs.get("art_1")
    assert run is not None and run.state == "ready", run


def wait_while(holds: Callable[[], bool]) -> None:
    while holds():
        time.sleep(0.005)


class Lives:
    """Retrievers that come and go over one storage and one cluster."""

    def __init__(self, place: Place, url: str) -> None:
        # Forked from a process that has imported everything: a start then costs no second.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        self._place = place
        request = place.request(PREFIX, params={"top_k": 10})
        self._arguments = (url, str(place.folder), place.key, request)
        self._cluster = connect(url, patience=60)
        self._indexes = OpenSearchIndexes(self._cluster, shards=1)

    def live(self, seconds: float) -> bool:
        """Let one live for at most so long. Answers whether it came to the end of its work."""
        process = self._context.Process(target=life, args=self._arguments)
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
        process.join()
        assert process.exitcode in (0, -9), "it ended by itself, and not well"
        return process.exitcode == 0

    def made(self) -> tuple[str, list[str]]:
        """What is there at the end: the selection's bytes by their digest, and the ids that the index holds."""
        manifest = (self._place.folder / "storage" / PREFIX / "manifest.json").read_text()
        index = self._indexes.open(self._place.key)
        names = [name for batch in index.ids() for name in batch]
        assert index.count() == len(names) == PASSAGES
        return manifest, names

    def forget(self) -> None:
        """Begin from nothing."""
        self._indexes.drop(self._place.key)
        LoadRecords(self._place.store).forget(self._place.key)
        shutil.rmtree(self._place.folder / "storage" / PREFIX, ignore_errors=True)
        shutil.rmtree(self._place.folder / "scratch", ignore_errors=True)

    def close(self) -> None:
        self.forget()
        self._cluster.close()


@pytest.mark.opensearch
@pytest.mark.timeout(900)  # half a minute on a free machine; a busy one must not make it fail
def test_whatever_is_killed_whenever_the_selection_is_the_same(opensearch_url: str, tmp_path: Path) -> None:
    draw = random.Random(11)
    words = [f"word{number}" for number in range(600)]
    place = Place(tmp_path, "opensearch", opensearch_url)
    place.write_corpus([(f"p{n:05d}", " ".join(draw.choices(words, k=40)), f"s{n % 3}") for n in range(PASSAGES)])
    place.task = place.write_task([" ".join(draw.choices(words, k=6)) for _ in range(QUERIES)])
    lives, kills = Lives(place, opensearch_url), 0
    assert lives.live(600)
    undisturbed = lives.made()
    lives.forget()
    began = time.monotonic()
    assert lives.live(600)
    longest = time.monotonic() - began
    assert lives.made() == undisturbed
    lives.forget()
    while kills < KILLS:
        if lives.live(draw.uniform(0, longest)):
            assert lives.made() == undisturbed
            lives.forget()
        else:
            kills += 1
    assert lives.live(600)
    assert lives.made() == undisturbed
    lives.close()
