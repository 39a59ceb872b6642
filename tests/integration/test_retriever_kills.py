"""Load and selection killed at random times on a real OpenSearch: the result stays the same."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from services.common.retriever_client import SelectionRequest
from services.retriever.cluster import connect
from services.retriever.corpus_storage import LoadRecords
from services.retriever.index_loads import IndexLoads
from services.retriever.indexes import CorpusKey, OpenSearchIndexes
from services.retriever.selection_runs import SelectionRuns
from tests.contract.retriever_harness import RetrieverHarness
from tests.integration.worker_processes import process_context
from tlm_core.artifacts.store import ArtifactStore

KILLS = 12
PASSAGES = 3_000
QUERIES = 1_100  # more than one part, so that a killed selection can resume
PREFIX = "t/artifacts/a/1"


def life(url: str, folder: str, key: CorpusKey, request: SelectionRequest) -> None:
    """Run a retriever: load, then select. It saves its progress after every batch."""
    stop, cluster = threading.Event(), connect(url, retry_seconds=60)
    store = ArtifactStore(f"{folder}/storage", Path(folder) / "cache")
    indexes = OpenSearchIndexes(cluster, shards=1)
    loads = IndexLoads(indexes, store, stop, clock=lambda: 1000 * time.monotonic())
    runs = SelectionRuns(loads, store, Path(folder) / "scratch", stop, at_once=1)
    loads.put(key, "t/corpus", "en")
    wait_while(lambda: loads.get(key).state == "loading")
    assert loads.get(key).state == "ready", loads.get(key).error
    runs.put("art_1", request)
    wait_while(lambda: runs.get("art_1").state == "running")
    assert runs.get("art_1").state == "ready", runs.get("art_1")


def wait_while(condition: Callable[[], bool]) -> None:
    while condition():
        time.sleep(0.005)


class Lives:
    """Retriever processes that use one storage and one cluster, one after another."""

    def __init__(self, harness: RetrieverHarness, url: str) -> None:
        self._context = process_context()
        self._harness = harness
        request = harness.request(PREFIX, params={"top_k": 10})
        self._arguments = (url, str(harness.folder), harness.key, request)
        self._cluster = connect(url, retry_seconds=60)
        self._indexes = OpenSearchIndexes(self._cluster, shards=1)

    def live(self, seconds: float) -> bool:
        """Run a retriever process, and kill it after `seconds`. Return whether it finished before."""
        process = self._context.Process(target=life, args=self._arguments)
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
        process.join()
        assert process.exitcode in (0, -9), "The retriever failed."
        return process.exitcode == 0

    def result(self) -> tuple[str, list[str]]:
        """Return the manifest of the selection and the ids in the index."""
        manifest = (self._harness.folder / "storage" / PREFIX / "manifest.json").read_text()
        index = self._indexes.open(self._harness.key)
        names = [name for batch in index.ids() for name in batch]
        assert index.count() == len(names) == PASSAGES
        return manifest, names

    def reset(self) -> None:
        """Delete the index, the records and the selection."""
        self._indexes.drop(self._harness.key)
        LoadRecords(self._harness.store).delete(self._harness.key)
        shutil.rmtree(self._harness.folder / "storage" / PREFIX, ignore_errors=True)
        shutil.rmtree(self._harness.folder / "scratch", ignore_errors=True)

    def close(self) -> None:
        self.reset()
        self._cluster.close()


@pytest.mark.opensearch
@pytest.mark.timeout(900)  # half a minute on an idle machine
def test_result_is_the_same_after_random_kills(opensearch_url: str, tmp_path: Path) -> None:
    rng = random.Random(11)
    words = [f"word{number}" for number in range(600)]
    harness = RetrieverHarness(tmp_path, "opensearch", opensearch_url)
    harness.write_corpus([(f"p{n:05d}", " ".join(rng.choices(words, k=40)), f"s{n % 3}") for n in range(PASSAGES)])
    harness.task = harness.write_task([" ".join(rng.choices(words, k=6)) for _ in range(QUERIES)])
    lives, kills = Lives(harness, opensearch_url), 0
    began = time.monotonic()
    assert lives.live(600)
    longest = time.monotonic() - began
    undisturbed = lives.result()
    lives.reset()
    while kills < KILLS:
        began = time.monotonic()
        if lives.live(rng.uniform(0, longest)):
            longest = min(longest, time.monotonic() - began)  # Later runs are faster, because OpenSearch is warm.
            assert lives.result() == undisturbed
            lives.reset()
        else:
            kills += 1
    assert lives.live(600)
    assert lives.result() == undisturbed
    lives.close()
