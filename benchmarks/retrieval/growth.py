"""How the time of a query grows with the corpus: below linear is the claim. Leaves a plot (`--plot FILE`).

`--three-million` adds an index of three million passages, recombined of the real ones' sentences; making it takes long.
On a cluster of one's own (OPENSEARCH_URL) the indexes stay, and the next run takes them as they are.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path

from benchmarks.report import figure, remark
from benchmarks.retrieval.retrieval_data import TOP_K, folder, opensearch, passages, queries, recombined
from services.retriever.indexes import CorpusKey, OpenSearchIndexes
from tlm_core.corpus.passages import Passage
from tlm_core.errors import NotFound
from tlm_core.selection.index import PassageIndex
from tlm_core.selection.retrieve import BATCH
from tlm_core.studies.plot import Curve, plot

SIZES = (50_000, 100_000, 200_000)
_MANY = 3_000_000
_EVERY = 4
_REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--three-million", action="store_true")
    parser.add_argument("--plot", type=Path, default=folder() / "growth.svg")
    options = parser.parse_args()
    real, asked = passages(), queries()[::_EVERY]
    points: list[tuple[int, float]] = []
    with opensearch(heap="4g" if options.three_million else "2g") as (_, _, places):
        for size in (*SIZES, len(real), *([_MANY] if options.three_million else [])):
            points.append((size, _measure(_index(places, real, size), size, asked)))
    figure("growth_exponent", [_slope(points)], unit="power of the number of passages", goal=1, better="lower")
    options.plot.write_text(_plot(points), encoding="utf-8")
    remark(f"plotted in {options.plot}")


def _index(places: OpenSearchIndexes, real: Sequence[Passage], size: int) -> PassageIndex:
    """An index of the first `size` passages, and of recombined ones if there are not so many."""
    key = CorpusKey("bench", "growth", str(size))
    try:
        there = places.open(key)
        if there.count() == size:
            return there
    except NotFound:
        pass
    places.drop(key)
    made: Iterable[Passage] = recombined(real, size - len(real)) if size > len(real) else ()
    index, stream = places.begin(key, "en"), chain(islice(real, size), made)
    while batch := list(islice(stream, 2_000)):
        index.add(batch)
    index.commit()
    index.close()
    return places.open(key)


def _measure(index: PassageIndex, size: int, asked: Sequence[str]) -> float:
    """Seconds for a query, the median of some runs; prints it."""
    _seconds(index, asked)  # warm: the first run reads the files
    line = figure(
        f"growth_seconds_per_query_{size}", [_seconds(index, asked) for _ in range(_REPEATS)], unit="s", better="lower"
    )
    return float(str(line["value"]))


def _seconds(index: PassageIndex, asked: Sequence[str]) -> float:
    began = time.perf_counter()
    for start in range(0, len(asked), BATCH):
        index.search(asked[start : start + BATCH], TOP_K)
    return (time.perf_counter() - began) / len(asked)


def _slope(points: Sequence[tuple[int, float]]) -> float:
    """The power with which seconds grow: the slope of a line through the logarithms."""
    xs, ys = [math.log(size) for size, _ in points], [math.log(seconds) for _, seconds in points]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    above = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return above / sum((x - mean_x) ** 2 for x in xs)


def _plot(points: Sequence[tuple[int, float]]) -> str:
    """Milliseconds for a query over passages; dashed: as it would grow in a line from the first point on."""
    first, seconds = points[0]
    curves = [
        Curve("OpenSearch", [(size, 1000 * taken, None) for size, taken in points]),
        Curve("if it were linear", [(size, 1000 * seconds * size / first, None) for size, _ in points], dashed=True),
    ]
    title = f"Time of a query, whole text, top {TOP_K}"
    return plot(curves, title=title, x="passages in the index", y="milliseconds", log_x=True)


if __name__ == "__main__":
    main()
