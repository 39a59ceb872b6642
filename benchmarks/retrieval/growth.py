"""How the time of a query grows with the corpus: below linear is the claim. Leaves a plot in build/bench-retrieval.

`--three-million` adds an index of three million passages, recombined of the real ones' sentences; it takes long.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from benchmarks.report import figure, remark
from benchmarks.retrieval.data import TOP_K, folder, opensearch, passages, queries, recombined
from services.retriever.indexes import CorpusKey, OpenSearchIndexes
from tlm_core.corpus.passages import Passage
from tlm_core.selection.index import PassageIndex
from tlm_core.selection.retrieve import BATCH

SIZES = (50_000, 100_000, 200_000)
_MANY = 3_000_000
_EVERY = 4
_REPEATS = 3


def main() -> None:
    real, asked = passages(), queries()[::_EVERY]
    points: list[tuple[int, float]] = []
    with opensearch(heap="4g" if "--three-million" in sys.argv else "2g") as (_, _, places):
        for size in (*SIZES, len(real)):
            points.append((size, _measure(places, real[:size], size, asked)))
        if "--three-million" in sys.argv:
            made = recombined(real, _MANY - len(real))
            points.append((_MANY, _measure(places, _chain(real, made), _MANY, asked)))
    figure("growth_exponent", [_slope(points)], unit="power of the number of passages", goal=1, better="lower")
    path = folder() / "growth.svg"
    path.write_text(_plot(points), encoding="utf-8")
    remark(f"plotted in {path}")


def _chain(first: Sequence[Passage], rest: Iterator[Passage]) -> Iterator[Passage]:
    yield from first
    yield from rest


def _measure(places: OpenSearchIndexes, found: Iterable[Passage], size: int, asked: Sequence[str]) -> float:
    """Seconds for a query, the median of some runs; prints it."""
    key = CorpusKey("bench", "growth", str(size))
    index, stream = places.begin(key, "en"), iter(found)
    while batch := list(islice(stream, 2_000)):
        index.add(batch)
    index.commit()
    index.close()
    opened = places.open(key)
    _seconds(opened, asked)  # warm: the first run reads the files
    runs = [_seconds(opened, asked) for _ in range(_REPEATS)]
    places.drop(key)
    line = figure(f"growth_seconds_per_query_{size}", runs, unit="s", better="lower")
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
    width, height, margin = 640, 400, 60
    most_x = points[-1][0]
    most_y = max(points[0][1] * most_x / points[0][0], *(seconds for _, seconds in points))

    def at(size: float, seconds: float) -> str:
        x = margin + size / most_x * (width - 2 * margin)
        return f"{x:.1f},{height - margin - seconds / most_y * (height - 2 * margin):.1f}"

    line = " ".join(at(*point) for point in points)
    linear = f"{at(0, 0)} {at(most_x, points[0][1] * most_x / points[0][0])}"
    marks = "".join(
        f'<text x="{at(size, seconds).split(",")[0]}" y="{float(at(size, seconds).split(",")[1]) - 8:.1f}">'
        f"{1000 * seconds:.1f} ms</text>"
        f'<text x="{at(size, 0).split(",")[0]}" y="{height - margin + 20}">{size:,}</text>'
        for size, seconds in points
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="11" text-anchor="middle">'
        f'<polyline points="{linear}" fill="none" stroke="#999" stroke-dasharray="4 4"/>'
        f'<polyline points="{line}" fill="none" stroke="#06c" stroke-width="2"/>{marks}'
        f'<text x="{width // 2}" y="{height - 10}">passages in the index; dashed: linear</text></svg>\n'
    )


if __name__ == "__main__":
    main()
