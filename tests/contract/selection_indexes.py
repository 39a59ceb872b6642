"""Indexes of both kinds for the contract tests."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from services.retriever.cluster import Cluster, connect
from services.retriever.indexes import CorpusIndexes, CorpusKey, EmbeddedIndexes, OpenSearchIndexes
from tlm_core.corpus.passages import Passage
from tlm_core.selection.index import PassageIndex

KINDS = ["embedded", pytest.param("opensearch", marks=pytest.mark.opensearch)]


class BuildIndex(Protocol):
    """Returns a committed index with `passages`."""

    def __call__(self, passages: Sequence[Passage], language: str = "en") -> PassageIndex: ...


def new_key() -> CorpusKey:
    return CorpusKey("default", f"corpus-{uuid.uuid4().hex[:12]}", "v1")


@pytest.fixture
def cluster(opensearch_url: str) -> Iterator[Cluster]:
    cluster = connect(opensearch_url, retry_seconds=20)
    yield cluster
    cluster.close()


@pytest.fixture(params=KINDS)
def indexes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CorpusIndexes]:
    """Indexes of one kind."""
    if request.param == "embedded":
        embedded = EmbeddedIndexes(tmp_path / "indexes")
        yield embedded
        embedded.close()
    else:
        yield OpenSearchIndexes(request.getfixturevalue("cluster"), shards=1)


@pytest.fixture
def build_index(indexes: CorpusIndexes) -> Iterator[BuildIndex]:
    with ExitStack() as cleanup:

        def build(passages: Sequence[Passage], language: str = "en") -> PassageIndex:
            key = new_key()
            cleanup.callback(indexes.drop, key)
            loading = indexes.begin(key, language)
            loading.add(passages)
            loading.commit(len(passages))
            loading.close()
            return indexes.open(key)

        yield build
