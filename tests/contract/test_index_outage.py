"""OpenSearch dies in the middle of a load and of a search, and comes back: nothing is lost, doubled or left out."""

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
def mortal(tmp_path: Path) -> Iterator[OpenSearchServer]:
    if os.environ.get("OPENSEARCH_URL"):
        skip_or_fail("OPENSEARCH_URL names a server that this test must not kill")
    server = OpenSearchServer(tmp_path, heap="512m")
    server.start()
    yield server
    server.kill()


@pytest.mark.opensearch
def test_a_load_and_a_search_outlive_the_death_of_the_server(mortal: OpenSearchServer) -> None:
    cluster = connect(mortal.url, patience=90, timeout=20)
    indexes, whole, half = OpenSearchIndexes(cluster, shards=1), new_key(), new_key()
    passages = [Passage(f"p{n:05d}", f"passage {n} of word{n % 17}", "s") for n in range(COUNT)]
    index = indexes.begin(whole, "en")
    index.add(passages)
    index.commit(COUNT)
    found = index.search(["word3"], 1000)
    assert len(found[0]) == len(range(3, COUNT, 17))
    broken = indexes.begin(half, "en")
    broken.add(passages[:50])

    def load() -> None:
        for start in range(0, COUNT, 100):
            broken.add(passages[start : start + 100])
        broken.commit(COUNT)

    with ThreadPoolExecutor(2) as pool:
        loading = pool.submit(load)
        mortal.kill()
        assert not loading.done()
        searching = pool.submit(index.search, ["word3"], 1000)
        with pytest.raises(IndexUnavailable):
            indexes.open(whole)
        mortal.start()
        loading.result(60)
        assert searching.result(60) == found
    assert indexes.open(half).search(["word3"], 1000) == found
    assert indexes.open(half).count() == COUNT
    cluster.close()
