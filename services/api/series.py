"""Metric points of a job as series that a chart can draw: thinned out, but with every peak."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from services.common.jobstore import JobStore
from tlm_core.jobs.spec import JobRecord
from tlm_core.wire import Series

_PAGE = 5_000
_FACTS = frozenset({"id", "at", "attempt", "node", "stage", "step"})
Point = tuple[float, float, float]


def series_of(
    jobs: JobStore, job: JobRecord, *, points: int, node: str | None = None, names: Collection[str] = ()
) -> list[Series]:
    """Every series of the job, in the order in which each began; names: only those. points: of each, at most."""
    found: dict[tuple[str, str], list[Point]] = {}
    for one in _all_points(jobs, job):
        if node is not None and one.get("node") != node:
            continue
        for name, value in one.items():
            if name in _FACTS or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if not names or name in names:
                line = found.setdefault((str(one.get("node", "")), name), [])
                _append(line, (float(one.get("step", len(line))), float(one["at"]), float(value)))
    made = []
    for (of_node, name), line in found.items():
        kept = thinned(line, points)
        steps, at, values = zip(*kept, strict=True)
        made.append(Series(node=of_node, name=name, total=len(line), steps=steps, at=at, values=values))
    return made


def thinned(line: Sequence[Point], points: int) -> list[Point]:
    """At most `points` (4 or more) of `line`: the first, the last, and the least and greatest value of each of equal
    parts between them."""
    if len(line) <= points:
        return list(line)
    inner = line[1:-1]
    parts = (points - 2) // 2
    kept = [line[0]]
    for part in range(parts):
        some = range(len(inner) * part // parts, len(inner) * (part + 1) // parts)
        chosen = {min(some, key=lambda i: inner[i][2]), max(some, key=lambda i: inner[i][2])}
        kept.extend(inner[i] for i in sorted(chosen))
    return [*kept, line[-1]]


def _append(line: list[Point], point: Point) -> None:
    """A later attempt that begins at an earlier step takes the place of what the one before did from there on."""
    while line and line[-1][0] >= point[0]:
        line.pop()
    line.append(point)


def _all_points(jobs: JobStore, job: JobRecord) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    after = "0"
    while page := jobs.metrics(job.tenant, job.id, after=after, limit=_PAGE):
        found.extend(page)
        after = page[-1]["id"]
        if len(page) < _PAGE:
            break
    return found
