"""What every retrieval benchmark works on: the real corpus, the real queries, a real OpenSearch of its own."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.shared import ROOT, shared_data
from services.retriever.cluster import Cluster, connect
from services.retriever.indexes import CorpusIndexes, CorpusKey, OpenSearchIndexes
from tests.opensearch_server import FOR_SPEED, OpenSearchServer
from tlm_core.corpus.passages import Passage, make_passage
from tlm_core.selection.index import PassageIndex

TOP_K = 50
_BATCH = 2_000
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


def queries() -> list[str]:
    """The 3,219 train texts of SciERC, in their order."""
    lines = (shared_data() / "tasks" / "sciie" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def passages() -> list[Passage]:
    """The whole corpus, in an order that depends on no source, so that its first n are a sample of it."""
    found: list[Passage] = []
    for path in sorted((shared_data() / "corpus").glob("*.parquet")):
        columns = pq.read_table(path, columns=list(Passage._fields)).to_pydict().values()
        found.extend(Passage(*row) for row in zip(*columns, strict=True))
    return sorted(found, key=lambda passage: hashlib.blake2b(passage.id.encode(), digest_size=8).digest())


def recombined(real: Sequence[Passage], count: int, seed: int = 0) -> Iterator[Passage]:
    """`count` passages as long as real ones, each of sentences drawn from all of them: none is another's copy."""
    draw = random.Random(seed)
    sentences = [(s, len(s.split())) for passage in real for s in _SENTENCE.split(passage.text) if s]
    lengths = [len(passage.text.split()) for passage in real]
    seen: set[int] = set()
    while len(seen) < count:
        left, drawn = draw.choice(lengths), []
        while left > 0:
            sentence, words = draw.choice(sentences)
            drawn.append(sentence)
            left -= words
        made = make_passage(" ".join(drawn), f"made-{len(seen) % 16}")
        if (key := hash(made.id)) not in seen:  # single sentences come again
            seen.add(key)
            yield made


def write_corpus(found: Sequence[Passage] | Iterator[Passage], folder: Path) -> None:
    """Parquet files as a corpus version has them."""
    import pyarrow as pa

    folder.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([(name, pa.string()) for name in Passage._fields])
    with pq.ParquetWriter(folder / "passages-00000.parquet", schema, compression="zstd") as writer:
        rows: list[Passage] = []
        for passage in found:
            rows.append(passage)
            if len(rows) == 10_000:
                writer.write_table(_table(rows, schema))
                rows = []
        if rows:
            writer.write_table(_table(rows, schema))


def _table(rows: list[Passage], schema: object) -> object:
    import pyarrow as pa

    return pa.table([list(column) for column in zip(*rows, strict=True)], schema=schema)


def fill(place: CorpusIndexes, name: str, found: Sequence[Passage]) -> PassageIndex:
    """A committed index of `found`."""
    key = CorpusKey("bench", name, "v1")
    place.drop(key)
    index = place.begin(key, "en")
    for start in range(0, len(found), _BATCH):
        index.add(found[start : start + _BATCH])
    index.commit(len(found))
    index.close()
    return place.open(key)


@contextmanager
def opensearch(heap: str = "2g") -> Iterator[tuple[str, Cluster, OpenSearchIndexes]]:
    """The address of an OpenSearch of this run (OPENSEARCH_URL if it is given), and our indexes on it."""
    with tempfile.TemporaryDirectory(prefix="bench-opensearch-") as folder:
        server = None
        url = os.environ.get("OPENSEARCH_URL")
        if not url:
            server = OpenSearchServer(Path(folder), heap=heap, options=FOR_SPEED)
            server.start()
            url = server.url
        cluster = connect(url)
        try:
            yield url, cluster, OpenSearchIndexes(cluster, shards=1)
        finally:
            cluster.close()
            if server is not None:
                server.stop()


def program(module: str, *arguments: object) -> list[str]:
    """The command line of another benchmark module, for what needs a process of its own."""
    return [sys.executable, "-m", f"benchmarks.retrieval.{module}", *map(str, arguments)]


def folder() -> Path:
    """Where plots are left."""
    made = ROOT / "build" / "bench-retrieval"
    made.mkdir(parents=True, exist_ok=True)
    return made
