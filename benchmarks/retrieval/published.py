"""The published selection, rebuilt as a rival: the release's script with a client for OpenSearch.

The script sends one `multi_match` request with `cross_fields` on `text` per query, and reads the full `_source` of each
hit. It creates a new pool of four processes for every four queries.

    python -m benchmarks.retrieval.published URL INDEX K [--lean] < queries.json

This prints {"seconds", "hits": [[[id, score], …], …]} for a JSON list of queries. Like the script, it forks its
processes after importing torch, datasets and pandas. `--lean` omits these imports; the script cannot omit them.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import sys
import time
from typing import Any

from opensearchpy import OpenSearch

_PROCESSES = 4
_IMPORTED = ("torch", "numpy", "datasets", "pandas")  # imports of the script; they slow down each fork


_client: OpenSearch
_index: str
_k: int


def _search(query: str) -> list[dict[str, Any]]:
    """Search for one query. Each process opens its own connection, because the parent has none when it forks."""
    match = {"query": query, "type": "cross_fields", "fields": ["text"]}
    return _client.search(index=_index, body={"query": {"multi_match": match}, "size": _k})["hits"]["hits"]


def main() -> None:
    global _client, _index, _k
    url, _index, k, *lean = sys.argv[1:]
    for name in () if lean else _IMPORTED:
        importlib.import_module(name)
    _client, _k = OpenSearch(hosts=[url], timeout=60), int(k)
    queries = json.load(sys.stdin)
    context = multiprocessing.get_context("fork")
    results: list[list[dict[str, Any]]] = []
    started = time.perf_counter()
    for start in range(0, len(queries), _PROCESSES):
        with context.Pool(_PROCESSES) as pool:
            results.extend(pool.map(_search, queries[start : start + _PROCESSES]))
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "hits": [[[hit["_id"], hit["_score"]] for hit in hits] for hits in results]}))


if __name__ == "__main__":
    main()
