"""The list of jobs, with search and order."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from services.api.dashboard.progress import runtime
from services.api.dashboard.web import PREFIX, SignedIn, page
from services.api.parts import AfterId, Parts, PartsDep
from services.api.standing import standings
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import TERMINAL, State
from tlm_core.tasks.metrics import scores_shown

router = APIRouter(prefix="/jobs")

_LIMIT = 25
# A search or a sort order reads the `_READ` newest jobs, and shows the first `_SHOWN` matching jobs on one page.
_READ, _SHOWN = 1_000, 100
# The states in which a job can stay for long.
_FILTERS = (State.QUEUED, State.RUNNING, State.PAUSED, State.SUCCEEDED, State.FAILED, State.CANCELLED)


@router.get("")
def list_page(
    request: Request,
    parts: PartsDep,
    tenant: SignedIn,
    state: State | None = None,
    after: AfterId = None,
    q: Annotated[str, Query(max_length=200)] = "",
    sort: Literal["", "score", "runtime", "failures"] = "",
) -> Response:
    """Show the list of jobs. For a request by a script, return only the table."""
    words, matching = q.lower().split(), list[JobRecord]()
    if words or sort:
        matching, more = _ordered(parts, tenant, state, words, sort)
        jobs = matching[:_SHOWN]
    else:
        jobs, more = parts.jobs.list_jobs(tenant, state=state, after=after, limit=_LIMIT)
    current = {"state": state, "q": q.strip(), "sort": sort}

    def link(**changes: str | None) -> str:
        query = urlencode({name: value for name, value in (current | changes).items() if value})
        return f"{PREFIX}/jobs" + (f"?{query}" if query else "")

    rows = [
        {"job": job, "standing": standing, "score": _score(job), "runtime": runtime(job)}
        for job, standing in zip(jobs, standings(parts.jobs, jobs), strict=True)
    ]
    return page(
        request, "_jobs_table.html" if "hx-request" in request.headers else "jobs.html", current, rows=rows, more=more,
        after=after, states=_FILTERS, live=any(job.state not in TERMINAL for job in jobs), link=link, read=_READ,
        last=jobs[-1].id if jobs else None, paged=not (words or sort), matching=len(matching),
    )  # fmt: skip


def _ordered(
    parts: Parts, tenant: str, state: State | None, words: list[str], sort: str
) -> tuple[list[JobRecord], bool]:
    """Return (jobs among the newest `_READ` whose texts contain all words, whether older jobs exist).

    sort: the value by which the jobs are sorted, or "" for newest first.
    """
    jobs, more = parts.jobs.list_jobs(tenant, state=state, limit=_READ)
    matching = [job for job in jobs if _contains(job, words)]
    if sort:
        matching.sort(key=lambda job: -_value(job, sort))
    return matching, more


def _contains(job: JobRecord, words: list[str]) -> bool:
    spec = job.spec
    labels = (f"{key}={value}" for key, value in spec.metadata.items())
    texts = (job.id, spec.name or "", spec.dataset, job.resolved.corpus_name or "", spec.kind, spec.scale, spec.recipe)
    text = " ".join((*texts, *labels)).lower()
    return all(word in text for word in words)


def _value(job: JobRecord, sort: str) -> float:
    """Return the value of a job by which the list is sorted, highest first. A job without a score is last."""
    match sort:
        case "score":
            score = _score(job)
            value = score["value"] if score else None
            return value if isinstance(value, float) else float("-inf")
        case "runtime":
            return runtime(job) or 0.0
    return job.failures


def _score(job: JobRecord) -> dict[str, str | float | None] | None:
    """Return {"name": …, "value": …} of the mean test score, or None for a job without scores.

    For the metrics accuracy, micro-F1 and macro-F1, the score is macro-F1. Otherwise it is the job's metric.
    """
    summary = job.result.summary if job.result else None
    if summary is None or not (test := summary.mean.get("test")):
        return None
    metric = summary.metric
    name = "macro_f1" if metric in scores_shown("macro_f1") else metric
    return {"name": name, "value": test.get(name)}
