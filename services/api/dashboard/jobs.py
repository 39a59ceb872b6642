"""The pages of jobs: the list, one job with its live part, its log, and what can be done with it."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import JSONResponse, Response

from services.api.dashboard.curves import curves, stages_of
from services.api.dashboard.strip import overall, selects, steps_of
from services.api.dashboard.web import PREFIX, SignedIn, go_to, page
from services.api.parts import AfterId, Parts, PartsDep, StreamId
from services.api.removal import delete_job
from services.api.results import refs_of
from services.common.catalog import dataset_keys
from tlm_core.errors import IllegalTransition, NotFound
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import Event, JobRecord, Origin
from tlm_core.jobs.states import TERMINAL, TRANSITIONS, State, Verb
from tlm_core.tasks.metrics import scores_shown

router = APIRouter(prefix="/jobs")

_LIMIT = 25
_EVENTS = 12
_EVENTS_PAGE = 500
_EVENTS_ON_LOG = 1_000
_LINES = 500
_RETRIED = (State.FAILED, State.CANCELLED)
_ACTIONS = (Verb.PAUSE, Verb.RESUME, Verb.CANCEL)


@router.get("")
def list_page(
    request: Request, parts: PartsDep, tenant: SignedIn, state: State | None = None, after: AfterId = None
) -> Response:
    """The list; asked by a script it is the table alone, which the page then puts in the place of the old one."""
    found, more = parts.jobs.list_jobs(tenant, state=state, after=after, limit=_LIMIT)
    rows = [{"job": job, "share": overall(job), "score": _score(job)} for job in found]
    live = any(job.state not in TERMINAL for job in found)
    template = "_jobs_table.html" if "hx-request" in request.headers else "jobs.html"
    return page(
        request, template, rows=rows, more=more, state=state, after=after, states=list(State), live=live,
        last=found[-1].id if found else None,
    )  # fmt: skip


@router.get("/{job}")
def job_page(
    request: Request,
    job: str,
    parts: PartsDep,
    tenant: SignedIn,
    stage: Annotated[str | None, Query(max_length=40)] = None,
) -> Response:
    record = parts.jobs.get(tenant, job)
    return page(request, "job.html", **_live_values(parts, record), chosen=stage)


@router.get("/{job}/live")
def live(
    request: Request, job: str, parts: PartsDep, tenant: SignedIn, was: Annotated[str, Query(max_length=80)] = ""
) -> Response:
    """The part of a job's page that changes. When the state or the stage with curves has changed since the page was
    made (`was`), the page is loaded anew, since more than this part is different then."""
    values = _live_values(parts, parts.jobs.get(tenant, job))
    if was != values["was"]:
        return Response(status_code=204, headers={"HX-Refresh": "true"})
    return page(request, "_job_poll.html", **values)


@router.get("/{job}/points")
def points(
    job: str,
    parts: PartsDep,
    tenant: SignedIn,
    stage: Annotated[str, Query(max_length=40)],
) -> Response:
    """The curves of one stage, thinned for drawing."""
    record = parts.jobs.get(tenant, job)
    found = curves(parts.jobs, parts.artifacts, record, stage)
    return JSONResponse({"curves": found, "live": record.state not in TERMINAL})


@router.get("/{job}/log")
def log(request: Request, job: str, parts: PartsDep, tenant: SignedIn) -> Response:
    """The last events, and the last lines of the log; the API has them all."""
    record = parts.jobs.get(tenant, job)
    events = _events(parts, record, max(0, record.last_event - _EVENTS_ON_LOG))
    lines = parts.jobs.last_logs(tenant, job, _LINES)
    return page(
        request, "log.html", job=record, events=events, lines=lines, last=lines[-1]["id"] if lines else "0",
        over=record.state in TERMINAL, tab="log", selects=selects(record),
    )  # fmt: skip


@router.get("/{job}/log/more")
def more_log(
    request: Request,
    job: str,
    parts: PartsDep,
    tenant: SignedIn,
    after: StreamId,
) -> Response:
    """The lines after a stream id, followed by the mark that asks for the next ones."""
    record = parts.jobs.get(tenant, job)
    lines = parts.jobs.logs(tenant, job, after=after, limit=_LINES)
    last = lines[-1]["id"] if lines else after
    return page(
        request, "_log_lines.html", job=record, lines=lines, last=last, over=record.state in TERMINAL and not lines
    )


@router.post("/{job}/do/{verb}")
def act(
    request: Request,
    job: str,
    verb: str,
    parts: PartsDep,
    tenant: SignedIn,
    key: Annotated[str, Form(max_length=200)] = "",
) -> Response:
    """Pause, resume, cancel, retry or delete. key: drawn when the page was made, so that a retry sent twice is one."""
    record = parts.jobs.get(tenant, job)
    match verb:
        case "pause" | "resume" | "cancel":
            {"pause": parts.jobs.pause, "resume": parts.jobs.resume, "cancel": parts.jobs.cancel}[verb](tenant, job)
        case "retry":
            return go_to(request, f"{PREFIX}/jobs/{_retry(parts, record, key)}")
        case "delete":
            delete_job(parts.jobs, parts.artifacts, record)
            return go_to(request, f"{PREFIX}/jobs")
        case _:
            raise NotFound(f"nothing called '{verb[:40]}' can be done with a job")
    return go_to(request, f"{PREFIX}/jobs/{job}")


def _retry(parts: Parts, job: JobRecord, key: str) -> str:
    """The id of a new job that means the same and goes on from the stage that failed."""
    if job.state not in _RETRIED:
        raise IllegalTransition(f"{job.id} is {job.state}; only what failed or was cancelled can be tried again")
    origin = Origin(job=job.id, how="retry")
    asked = f"dashboard {key}" if key else None
    again = parts.jobs.submitted_with(job.tenant, job.spec, asked, origin) if asked else None
    if again is None:
        needs = dataset_keys(job.tenant, (one.id for one in job.resolved.datasets))
        again, _ = parts.jobs.submit(
            job.tenant, job.spec, job.resolved, idempotency_key=asked, origin=origin, needs=needs
        )
    return again.id


def _live_values(parts: Parts, job: JobRecord) -> dict[str, Any]:
    plan = plan_of(job)
    done = refs_of(parts.jobs, job, plan)
    steps = steps_of(job, plan, done)
    charted = stages_of(plan)
    begun = [step.stage for step in steps if step.stage in charted and (step.share or step.state == "running")]
    shown = begun[-1] if begun else None
    return {
        "job": job,
        "steps": steps,
        "events": _events(parts, job, max(0, job.last_event - _EVENTS)),
        "actions": [verb for verb in _ACTIONS if job.state in TRANSITIONS[verb].moves],
        "over": job.state in TERMINAL,
        "again": job.state in _RETRIED,
        "key": secrets.token_urlsafe(16),
        "charted": begun,
        "shown": shown,
        "selects": selects(job),
        "was": f"{job.state}.{shown}",
        "tab": "overview",
    }


def _events(parts: Parts, job: JobRecord, after: int) -> list[Event]:
    """Events after `after`, newest first."""
    found: list[Event] = []
    while page := parts.jobs.events(job.tenant, job.id, after=after, limit=_EVENTS_PAGE):
        found.extend(page)
        after = page[-1].seq
    return found[::-1]


def _score(job: JobRecord) -> dict[str, Any] | None:
    """What a job that succeeded scores on test, as its record tells it: means over the seeds.

    `name` and `value` are of the task's own metric where it is none of the usual ones, else of macro-F1.
    """
    summary = (job.result or {}).get("summary") or {}
    test = summary.get("mean", {}).get("test")
    if not test:
        return None
    metric = summary.get("metric", "macro_f1")
    name = "macro_f1" if metric in scores_shown("macro_f1") else metric
    return {"name": name, "value": test.get(name), "accuracy": test.get("accuracy")}
