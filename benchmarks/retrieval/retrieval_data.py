"""The real corpus, real queries and a real OpenSearch for every retrieval benchmark."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.shared import shared_data
from services.retriever.cluster import Cluster, connect
from services.retriever.indexes import CorpusIndexes, CorpusKey, OpenSearchIndexes
from tests.opensearch_server import FOR_SPEED, OpenSearchServer
from tlm_core.corpus.passages import Passage, build_passage
from tlm_core.selection.index import PassageIndex
from tlm_core.selection.retrieve import BATCH

TOP_K = 50
_BATCH = 2_000
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


def queries() -> list[str]:
    """Return the 3,219 training texts of SciERC."""
    lines = (shared_data() / "tasks" / "sciie" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def passages() -> list[Passage]:
    """Return the corpus in a fixed random order, so that its first n passages are a sample."""
    corpus: list[Passage] = []
    for path in sorted((shared_data() / "corpus").glob("*.parquet")):
        columns = pq.read_table(path, columns=list(Passage._fields)).to_pydict().values()
        corpus.extend(Passage(*row) for row in zip(*columns, strict=True))
    return sorted(corpus, key=lambda passage: hashlib.blake2b(passage.id.encode(), digest_size=8).digest())


def recombined(real: Sequence[Passage], count: int, seed: int = 0) -> Iterator[Passage]:
    """Yield `count` distinct passages of randomly drawn real sentences, about as long as real passages."""
    draw = random.Random(seed)
    sentences = [(s, len(s.split())) for passage in real for s in _SENTENCE.split(passage.text) if s]
    lengths = [len(passage.text.split()) for passage in real]
    seen: set[int] = set()
    while len(seen) < count:
        remaining, drawn = draw.choice(lengths), []
        while remaining > 0:
            sentence, words = draw.choice(sentences)
            drawn.append(sentence)
            remaining -= words
        passage = build_passage(" ".join(drawn), f"recombined-{len(seen) % 16}")
        if (key := hash(passage.id)) not in seen:  # passages of one sentence can repeat
            seen.add(key)
            yield passage


def build_index(indexes: CorpusIndexes, key: CorpusKey, corpus: Iterable[Passage]) -> PassageIndex:
    """Replace the index of `key` by an index of the passages in `corpus`, and return it."""
    indexes.drop(key)
    index, remaining, count = indexes.begin(key, "en"), iter(corpus), 0
    while batch := list(islice(remaining, _BATCH)):
        index.add(batch)
        count += len(batch)
    index.commit(count)
    index.close()
    return indexes.open(key)


@contextmanager
def opensearch_url(folder: Path, **options: Any) -> Iterator[str]:
    """Yield OPENSEARCH_URL, or the address of a server that starts in `folder` and stops at the end."""
    if url := os.environ.get("OPENSEARCH_URL"):
        yield url
        return
    folder.mkdir(parents=True, exist_ok=True)
    server = OpenSearchServer(folder, **options)
    server.start()
    try:
        yield server.url
    finally:
        server.stop()


@contextmanager
def opensearch(heap: str = "2g") -> Iterator[tuple[str, Cluster, OpenSearchIndexes]]:
    """Start OpenSearch, or use OPENSEARCH_URL, and yield the server's address, a client of it and our indexes."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-opensearch-") as folder,
        opensearch_url(Path(folder), heap=heap, options=FOR_SPEED) as url,
        closing(connect(url)) as cluster,
    ):
        yield url, cluster, OpenSearchIndexes(cluster, shards=1)


def search_seconds(index: PassageIndex, texts: Sequence[str]) -> float:
    """Return the seconds per query, in batches as large as those of a selection."""
    start = time.perf_counter()
    for first in range(0, len(texts), BATCH):
        index.search(texts[first : first + BATCH], TOP_K)
    return (time.perf_counter() - start) / len(texts)
