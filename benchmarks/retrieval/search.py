"""Compare the queries per second (whole texts, top 50) of both indexes with those of the published selection.

The script first checks, on every eighth query, that both indexes return the passages of the published selection. Only
ties may differ. It measures the published selection twice: with the imports of the published script, and with `--lean`
(see `published`).
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import alternate, figure, ratios, remark
from benchmarks.retrieval.retrieval_data import TOP_K, build_index, opensearch, passages, queries, search_seconds
from benchmarks.shared import program, result_of
from services.retriever.indexes import CorpusKey, EmbeddedIndexes
from services.retriever.opensearch_index import OpenSearchIndex
from tlm_core.selection.index import Hit

# The published selection takes 90 s for all queries. Its lists are compared for every eighth query, and its speed is
# measured on every sixteenth.
_EVERY = 8
_REPEATS = 3


def main() -> None:
    real, texts = passages(), queries()
    sample, key = texts[::_EVERY], CorpusKey("bench", "whole", "v1")
    with opensearch() as (url, _, indexes), tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        index = build_index(indexes, key, real)
        assert isinstance(index, OpenSearchIndex)
        remark(f"OpenSearch has indexed {index.count()} passages after {time.perf_counter() - started:.0f} s")
        embedded_indexes = EmbeddedIndexes(Path(folder) / "indexes")
        embedded = build_index(embedded_indexes, key, real)
        remark(f"the embedded index is complete after {time.perf_counter() - started:.0f} s")
        del real
        published = _published(url, index.name, sample, "--lean")
        theirs = [[Hit(name, score / index.scale) for name, score in hits] for hits in published["hits"]]
        for name, candidate in (("OpenSearch", index), ("embedded", embedded)):
            same = sum(identical(a, b) for a, b in zip(candidate.search(sample, TOP_K), theirs, strict=True))
            remark(f"{name}: {same} of {len(sample)} lists equal the published ones, ties aside")
            if same != len(sample):
                raise SystemExit(f"{name} ranks differently from the published search. Fix its ranking first.")
        rates = alternate(
            {
                "published": lambda: _published_rate(url, index.name, sample[::2]),
                "published_lean": lambda: _published_rate(url, index.name, sample[::2], "--lean"),
                "opensearch": lambda: 1 / search_seconds(index, texts),
                "embedded": lambda: 1 / search_seconds(embedded, texts),
            },
            _REPEATS,
        )
        embedded_indexes.close()
    for name, runs in rates.items():
        figure(f"search_{name}", runs, unit="queries/s")
    for ours, prefix, goal in (("opensearch", "search", 12), ("embedded", "search_embedded", 8)):
        figure(f"{prefix}_vs_published", ratios(rates[ours], rates["published"]), unit="times", goal=goal)
        figure(f"{prefix}_vs_published_lean", ratios(rates[ours], rates["published_lean"]), unit="times")


def _published_rate(url: str, index: str, sample: Sequence[str], *flags: str) -> float:
    return len(sample) / float(_published(url, index, sample, *flags)["seconds"])


def _published(url: str, index: str, sample: Sequence[str], *flags: str) -> dict[str, Any]:
    return result_of(program("retrieval.published", url, index, TOP_K, *flags), input=json.dumps(sample))


def identical(ours: Sequence[Hit], theirs: Sequence[Hit]) -> bool:
    """Return whether two lists have the same passages and scores.

    Passages with equal scores may be in another order. At the last score, the lists may have different passages.
    """
    if len(ours) != len(theirs):
        return False
    if not ours:
        return True
    near = all(abs(a.score - b.score) <= 1e-4 * b.score for a, b in zip(ours, theirs, strict=True))
    above_cut = ours[-1].score * (1 + 1e-4)
    return near and {h.id for h in ours if h.score > above_cut} == {h.id for h in theirs if h.score > above_cut}


if __name__ == "__main__":
    main()
