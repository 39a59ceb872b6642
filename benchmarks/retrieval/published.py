"""The published selection, rebuilt as a rival: what the release's script does, with the client that speaks OpenSearch.

One search request for each query, four processes, a new pool for every four queries, the full `_source` of each hit,
`multi_match` `cross_fields` on `text`. A program of its own:

    python -m benchmarks.retrieval.published URL INDEX K [--lean] < queries.json

prints {"seconds", "hits": [[[id, score], …], …]} for a JSON list of queries. Its processes are forked from one that has
imported torch, datasets and pandas, as the script's have; `--lean` leaves these imports out, which the script cannot.
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
_IMPORTED = ("torch", "numpy", "datasets", "pandas")  # by the script; they make every fork dearer


_client: OpenSearch
_index: str
_k: int


def _search(query: str) -> list[dict[str, Any]]:
    """One query. Each process opens its own connection, as they are forked before any is open."""
    match = {"query": query, "type": "cross_fields", "fields": ["text"]}
    answer = _client.search(index=_index, body={"query": {"multi_match": match}, "size": _k})
    hits: list[dict[str, Any]] = answer["hits"]["hits"]
    return hits


def main() -> None:
    global _client, _index, _k
    url, _index, k, *lean = sys.argv[1:]
    for name in () if lean else _IMPORTED:
        importlib.import_module(name)
    _client, _k = OpenSearch(hosts=[url], timeout=60), int(k)
    queries = json.load(sys.stdin)
    context = multiprocessing.get_context("fork")
    found: list[list[dict[str, Any]]] = []
    began = time.perf_counter()
    for start in range(0, len(queries), _PROCESSES):
        with context.Pool(_PROCESSES) as pool:
            found.extend(pool.map(_search, queries[start : start + _PROCESSES]))
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "hits": [[[hit["_id"], hit["_score"]] for hit in hits] for hits in found]}))


if __name__ == "__main__":
    main()
