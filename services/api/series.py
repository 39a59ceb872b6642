"""Metric points of a job as series for charts. `thinned` shortens a long series."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from services.common.history import values_of
from services.common.job_reads import MetricPoint
from services.common.jobstore import JobStore
from tlm_core.jobs.spec import JobRecord
from tlm_core.wire import Series

_PAGE = 5_000
Point = tuple[float, float, float]  # step, time (Unix seconds), value


def series_of(
    jobs: JobStore, job: JobRecord, *, points: int, node: str | None = None, names: Collection[str] = ()
) -> list[Series]:
    """Return the series of a job, ordered by first point. points: the maximum number of points of each series.

    node, names: return only series of this node and of these metrics. By default, return all series.
    """
    lines: dict[tuple[str, str], list[Point]] = {}
    for entry in _all_points(jobs, job):
        step, at = entry.get("step"), entry["at"]
        if node is not None and entry.get("node") != node:
            continue
        assert isinstance(at, float), "the store sets the time of each point"
        for name, value in values_of(entry):
            if not names or name in names:
                line = lines.setdefault((str(entry.get("node", "")), name), [])
                x = float(step) if isinstance(step, int | float) else len(line)
                while line and line[-1][0] >= x:  # A resumed attempt repeats points after its checkpoint.
                    line.pop()
                line.append((x, at, value))
    result = []
    for (line_node, name), line in lines.items():
        steps, times, values = zip(*thinned(line, points), strict=True)
        result.append(Series(node=line_node, name=name, total=len(line), steps=steps, at=times, values=values))
    return result


def thinned(line: Sequence[Point], points: int) -> list[Point]:
    """Return at most `points` (≥ 4) points of `line`: first, last, and minimum and maximum of equal sections."""
    if len(line) <= points:
        return list(line)
    inner = line[1:-1]
    parts = (points - 2) // 2
    result = [line[0]]
    for part in range(parts):
        indices = range(len(inner) * part // parts, len(inner) * (part + 1) // parts)
        extremes = {min(indices, key=lambda i: inner[i][2]), max(indices, key=lambda i: inner[i][2])}
        result.extend(inner[i] for i in sorted(extremes))
    return [*result, line[-1]]


def _all_points(jobs: JobStore, job: JobRecord) -> Iterator[MetricPoint]:
    after = "0"
    while page := jobs.metrics(job.tenant, job.id, after=after, limit=_PAGE):
        yield from page
        if len(page) < _PAGE:
            return
        after = str(page[-1]["id"])
