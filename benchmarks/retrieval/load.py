"""Run one load as the service does, and print its time and peak memory:

    python -m benchmarks.retrieval.load URL FOLDER CORPUS

FOLDER/storage/CORPUS has the Parquet files. The output is {"passages", "seconds", "peak_bytes"}.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

from benchmarks.memory import peak_bytes
from services.retriever.cluster import connect
from services.retriever.index_loads import IndexLoads
from services.retriever.indexes import CorpusKey, OpenSearchIndexes
from tlm_core.artifacts.store import ArtifactStore


def main() -> None:
    url, folder, corpus = sys.argv[1:]
    cluster = connect(url)
    indexes = OpenSearchIndexes(cluster, shards=1)
    store = ArtifactStore(f"{folder}/storage", Path(folder) / "cache")
    loads = IndexLoads(indexes, store, threading.Event())
    key = CorpusKey("bench", corpus, "v1")
    start = time.perf_counter()
    loads.put(key, corpus, "en")
    while (load := loads.get(key)).state == "loading":
        time.sleep(0.1)
    seconds = time.perf_counter() - start
    if load.state != "ready":
        raise SystemExit(str(load.error))
    print(json.dumps({"passages": load.count, "seconds": seconds, "peak_bytes": peak_bytes()}))
    loads.drop(key)
    loads.close()
    cluster.close()


if __name__ == "__main__":
    main()
