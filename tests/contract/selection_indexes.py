"""Makes indexes of both kinds for the contract tests."""

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


class Filled(Protocol):
    """Answers a committed index that holds `passages`."""

    def __call__(self, passages: Sequence[Passage], language: str = "en") -> PassageIndex: ...


def new_key() -> CorpusKey:
    return CorpusKey("default", f"corpus-{uuid.uuid4().hex[:12]}", "v1")


@pytest.fixture
def cluster(opensearch_url: str) -> Iterator[Cluster]:
    made = connect(opensearch_url, patience=20)
    yield made
    made.close()


@pytest.fixture(params=KINDS)
def indexes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CorpusIndexes]:
    """An empty place for indexes."""
    if request.param == "embedded":
        embedded = EmbeddedIndexes(tmp_path / "indexes")
        yield embedded
        embedded.close()
    else:
        yield OpenSearchIndexes(request.getfixturevalue("cluster"), shards=1)


@pytest.fixture
def filled(indexes: CorpusIndexes) -> Iterator[Filled]:
    with ExitStack() as dropped:

        def fill(passages: Sequence[Passage], language: str = "en") -> PassageIndex:
            key = new_key()
            dropped.callback(indexes.drop, key)
            loading = indexes.begin(key, language)
            loading.add(passages)
            loading.commit(len(passages))
            loading.close()
            return indexes.open(key)

        yield fill
