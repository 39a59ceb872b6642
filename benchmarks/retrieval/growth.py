"""Measure how the time of a query grows with the corpus, and plot it in build/bench-retrieval/growth.svg.

`--three-million` adds an index of three million passages of recombined sentences, which takes long to build. With
OPENSEARCH_URL, the indexes remain and the next run uses them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from statistics import linear_regression, median

from benchmarks.report import figure, remark
from benchmarks.retrieval.retrieval_data import (
    TOP_K,
    build_index,
    opensearch,
    passages,
    queries,
    recombined,
    search_seconds,
)
from benchmarks.shared import ROOT
from services.retriever.indexes import CorpusKey, OpenSearchIndexes
from tlm_core.corpus.passages import Passage
from tlm_core.errors import NotFound
from tlm_core.selection.index import PassageIndex
from tlm_core.studies.plot import Curve, plot

SIZES = (50_000, 100_000, 200_000)
_MANY = 3_000_000
_EVERY = 4
_REPEATS = 3
_PLOT = ROOT / "build/bench-retrieval/growth.svg"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--three-million", action="store_true")
    options = parser.parse_args()
    real, texts = passages(), queries()[::_EVERY]
    points: list[tuple[int, float]] = []
    with opensearch(heap="4g" if options.three_million else "2g") as (_, _, indexes):
        for size in (*SIZES, len(real), *([_MANY] if options.three_million else [])):
            points.append((size, _measure(_index(indexes, real, size), size, texts)))
    sizes, seconds = ([math.log(value) for value in values] for values in zip(*points, strict=True))
    exponent = linear_regression(sizes, seconds).slope
    figure("growth_exponent", [exponent], unit="power of the number of passages", goal=1, better="lower")
    _write_plot(points)


def _index(indexes: OpenSearchIndexes, real: Sequence[Passage], size: int) -> PassageIndex:
    """Return an index of `size` passages: the first real ones, and recombined ones if there are too few."""
    key = CorpusKey("bench", "growth", str(size))
    try:
        existing = indexes.open(key)
        if existing.count() == size:
            return existing
    except NotFound:
        pass
    extra: Iterable[Passage] = recombined(real, size - len(real)) if size > len(real) else ()
    return build_index(indexes, key, chain(islice(real, size), extra))


def _measure(index: PassageIndex, size: int, texts: Sequence[str]) -> float:
    """Print and return the median of the seconds per query. size: the number of passages in the index."""
    search_seconds(index, texts)  # warm-up: the first run reads the files
    runs = [search_seconds(index, texts) for _ in range(_REPEATS)]
    figure(f"growth_seconds_per_query_{size}", runs, unit="s", better="lower")
    return median(runs)


def _write_plot(points: Sequence[tuple[int, float]]) -> None:
    """Plot milliseconds per query by corpus size. A dashed line shows linear growth."""
    first, seconds = points[0]
    curves = [
        Curve("OpenSearch", [(size, 1000 * duration, None) for size, duration in points]),
        Curve("linear growth", [(size, 1000 * seconds * size / first, None) for size, _ in points], dashed=True),
    ]
    title = f"Time of a query, whole text, top {TOP_K}"
    drawing = plot(curves, title=title, x="passages in the index", y="milliseconds", log_x=True)
    _PLOT.parent.mkdir(parents=True, exist_ok=True)
    _PLOT.write_text(drawing, encoding="utf-8")
    remark(f"plotted in {_PLOT}")


if __name__ == "__main__":
    main()
