"""Compare the passages per second of a load and of a helper of the client library. Measure the memory of three loads.

The rival is `opensearchpy.helpers.streaming_bulk` with its defaults, into an index with our mapping and the server's
default settings. Both read the same Parquet files.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opensearchpy import OpenSearch
from opensearchpy.helpers import streaming_bulk

from benchmarks.report import alternate, figure, ratios
from benchmarks.retrieval.retrieval_data import opensearch, passages, recombined
from benchmarks.shared import program, result_of
from services.retriever.cluster import Cluster
from services.retriever.corpus_storage import CorpusFiles
from services.retriever.indexes import CorpusKey, OpenSearchIndexes
from services.retriever.opensearch_index import index_body
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.corpus.read import write_corpus

_COUNT = 100_000
_REPEATS = 3


def main() -> None:
    with opensearch() as (url, cluster, indexes), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        real = passages()
        write_corpus(real[:_COUNT], folder / "storage" / "part")
        write_corpus(real, folder / "storage" / "whole")
        write_corpus(recombined(real, 3 * len(real)), folder / "storage" / "thrice")
        del real
        files = CorpusFiles(ArtifactStore(str(folder / "storage"), folder / "cache"), "part")
        rates = alternate(
            {"ours": lambda: _ours(indexes, files), "streaming_bulk": lambda: _theirs(url, cluster, files)}, _REPEATS
        )
        for rival, runs in rates.items():
            figure(f"ingest_{rival}", runs, unit="documents/s")
        figure("ingest_vs_streaming_bulk", ratios(rates["ours"], rates["streaming_bulk"]), unit="times", goal=1.3)
        for corpus in ("part", "whole", "thrice"):
            load = result_of(program("retrieval.load", url, folder, corpus))
            label = f"ingest_memory_{load['passages']}"
            figure(label, [load["peak_bytes"] / 1e6], unit="MB", goal=300, better="lower")
            if corpus == "whole":
                figure("ingest_whole_seconds", [load["seconds"]], unit="s", better="lower")


def _ours(indexes: OpenSearchIndexes, files: CorpusFiles) -> float:
    key = CorpusKey("bench", "ours", "v1")
    indexes.drop(key)
    index = indexes.begin(key, "en")
    start, count = time.perf_counter(), 0
    for batch in files.batches():
        index.add(batch)
        count += len(batch)
    index.flush()
    rate = count / (time.perf_counter() - start)
    index.close()
    indexes.drop(key)
    return rate


def _theirs(url: str, cluster: Cluster, files: CorpusFiles) -> float:
    name = "theirs"
    cluster.call("PUT", f"/{name}", body={"mappings": index_body({}, "standard", 1)["mappings"]})

    def actions() -> Iterator[dict[str, Any]]:
        for batch in files.batches():
            for passage in batch:
                yield {"_index": name, "_id": passage.id, "_source": passage._asdict()}

    with OpenSearch(hosts=[url], timeout=60) as client:
        start = time.perf_counter()
        count = sum(bool(ok) for ok, _ in streaming_bulk(client, actions()))
        rate = count / (time.perf_counter() - start)
    cluster.call("DELETE", f"/{name}")
    return rate


if __name__ == "__main__":
    main()
