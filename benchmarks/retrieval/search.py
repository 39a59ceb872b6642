"""Queries a second, whole texts, top 50, over the whole corpus: ours and the embedded index against the published way.

All rank the same; that their lists are identical (but for ties) is checked here, else nothing is printed. The published
way is measured twice: as its script runs it, and lean (see `published`), which is told beside it and claims nothing.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import alternate, figure, ratios, remark
from benchmarks.retrieval.retrieval_data import TOP_K, fill, opensearch, passages, program, queries
from services.retriever.indexes import EmbeddedIndexes
from services.retriever.opensearch_index import OpenSearchIndex
from tlm_core.selection.index import Hit, PassageIndex
from tlm_core.selection.retrieve import BATCH

# The published way takes a minute and a half for all queries. Its lists are compared for every eighth, its speed is
# taken on every sixteenth of them; ours gets them all.
_EVERY = 8
_REPEATS = 3


def main() -> None:
    real, asked = passages(), queries()
    sample = asked[::_EVERY]
    with opensearch() as (url, _, places), tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        index = fill(places, "whole", real)
        assert isinstance(index, OpenSearchIndex)
        remark(f"OpenSearch holds {index.count()} passages after {time.perf_counter() - began:.0f} s")
        embedded_place = EmbeddedIndexes(Path(folder) / "indexes")
        embedded = fill(embedded_place, "whole", real)
        remark(f"the embedded index holds them after {time.perf_counter() - began:.0f} s")
        del real
        published = _published(url, index.name, sample, "--lean")
        theirs = [[Hit(name, score / index.scale) for name, score in hits] for hits in published["hits"]]
        for name, place in (("OpenSearch", index), ("embedded", embedded)):
            same = sum(identical(a, b) for a, b in zip(place.search(sample, TOP_K), theirs, strict=True))
            remark(f"{name}: {same} of {len(sample)} lists are those of the published search, ties aside")
            if same != len(sample):
                raise SystemExit(f"{name} ranks otherwise than the published search; its speed means nothing")
        rates = alternate(
            {
                "published": lambda: _published_rate(url, index.name, sample[::2]),
                "published_lean": lambda: _published_rate(url, index.name, sample[::2], "--lean"),
                "opensearch": lambda: _rate(index, asked),
                "embedded": lambda: _rate(embedded, asked),
            },
            _REPEATS,
        )
        embedded_place.close()
    for name, runs in rates.items():
        figure(f"search_{name}", runs, unit="queries/s")
    figure("search_vs_published", ratios(rates["opensearch"], rates["published"]), unit="times", goal=12)
    figure("search_embedded_vs_published", ratios(rates["embedded"], rates["published"]), unit="times", goal=8)
    figure("search_vs_published_lean", ratios(rates["opensearch"], rates["published_lean"]), unit="times")
    figure("search_embedded_vs_published_lean", ratios(rates["embedded"], rates["published_lean"]), unit="times")


def _published_rate(url: str, index: str, sample: Sequence[str], *how: str) -> float:
    return len(sample) / float(_published(url, index, sample, *how)["seconds"])


def _published(url: str, index: str, sample: Sequence[str], *how: str) -> dict[str, Any]:
    command = program("published", url, index, TOP_K, *how)
    done = subprocess.run(command, input=json.dumps(sample), stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _rate(index: PassageIndex, asked: Sequence[str]) -> float:
    """Queries a second, in the batches that a selection asks in."""
    began = time.perf_counter()
    for start in range(0, len(asked), BATCH):
        index.search(asked[start : start + BATCH], TOP_K)
    return len(asked) / (time.perf_counter() - began)


def identical(mine: Sequence[Hit], theirs: Sequence[Hit]) -> bool:
    """Whether two lists hold the same passages at the same scores; within one score the order, and at the cut the
    choice, is free."""
    if len(mine) != len(theirs):
        return False
    if not mine:
        return True
    near = all(abs(a.score - b.score) <= 1e-4 * b.score for a, b in zip(mine, theirs, strict=True))
    above_cut = mine[-1].score * (1 + 1e-4)
    return near and {h.id for h in mine if h.score > above_cut} == {h.id for h in theirs if h.score > above_cut}


if __name__ == "__main__":
    main()
