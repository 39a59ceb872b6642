"""OpenSearch is killed during a load and a search: no passage is lost or duplicated."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.retriever.cluster import connect
from services.retriever.indexes import OpenSearchIndexes
from tests.contract.selection_indexes import new_key
from tests.opensearch_server import OpenSearchServer
from tests.support import skip_or_fail
from tlm_core.corpus.passages import Passage
from tlm_core.errors import IndexUnavailable

COUNT = 6000


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[OpenSearchServer]:
    if os.environ.get("OPENSEARCH_URL"):
        skip_or_fail("OPENSEARCH_URL names a server that this test must not kill")
    server = OpenSearchServer(tmp_path, heap="512m")
    server.start()
    yield server
    server.kill()


@pytest.mark.opensearch
def test_load_and_search_survive_a_server_restart(own_server: OpenSearchServer) -> None:
    cluster = connect(own_server.url, retry_seconds=90, timeout=20)
    indexes, complete, interrupted = OpenSearchIndexes(cluster, shards=1), new_key(), new_key()
    passages = [Passage(f"p{n:05d}", f"passage {n} of word{n % 17}", "s") for n in range(COUNT)]
    index = indexes.begin(complete, "en")
    index.add(passages)
    index.commit(COUNT)
    hits = index.search(["word3"], 1000)
    assert len(hits[0]) == len(range(3, COUNT, 17))
    loading_index = indexes.begin(interrupted, "en")
    loading_index.add(passages[:50])

    def load() -> None:
        for start in range(0, COUNT, 100):
            loading_index.add(passages[start : start + 100])
        loading_index.commit(COUNT)

    with ThreadPoolExecutor(2) as pool:
        loading = pool.submit(load)
        own_server.kill()
        assert not loading.done()
        searching = pool.submit(index.search, ["word3"], 1000)
        with pytest.raises(IndexUnavailable):
            indexes.open(complete)
        own_server.start()
        loading.result(60)
        assert searching.result(60) == hits
    assert indexes.open(interrupted).search(["word3"], 1000) == hits
    assert indexes.open(interrupted).count() == COUNT
    cluster.close()
