"""Pages of one job: the overview, whose live part a script refreshes, the log, and the actions on the job."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import JSONResponse, Response

from services.api.dashboard.curves import curves, stages_of
from services.api.dashboard.present import facts
from services.api.dashboard.progress import node_titles, steps_of
from services.api.dashboard.web import PREFIX, PageJob, SignedIn, page, redirect
from services.api.job_artifacts import situation_of
from services.api.parts import Parts, PartsDep, StreamId
from services.api.removal import delete_job
from services.api.standing import standings
from services.api.submission import retry_job
from tlm_core.artifacts import ManifestRef
from tlm_core.errors import CorruptArtifact, NotFound
from tlm_core.evaluation.summary import REPORT, headline
from tlm_core.jobs.event_words import sentence
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import Event, JobRecord
from tlm_core.jobs.states import RETRYABLE, TERMINAL, TRANSITIONS, State, Verb
from tlm_core.stages import BASELINE

router = APIRouter(prefix="/jobs")

_EVENTS = 12
_EVENTS_PAGE = 500
_EVENTS_ON_LOG = 1_000
_LINES = 500
_SEARCHED = 1_000  # jobs whose names contain the searched name
_ACTIONS = (Verb.PAUSE, Verb.RESUME, Verb.CANCEL)


@dataclass(frozen=True)
class EventLine:
    """An event as the page shows it. at: Unix seconds. words: a sentence, or type and data of the event."""

    at: float
    words: str


@router.get("/{job}")
def job_page(
    request: Request,
    job: str,
    parts: PartsDep,
    tenant: SignedIn,
    stage: Annotated[str | None, Query(max_length=40)] = None,
) -> Response:
    """Show a job. If `job` is a name, redirect to the newest job with this name."""
    try:
        return page(request, "job.html", _live_values(parts, parts.jobs.get(tenant, job)), chosen=stage)
    except NotFound:
        similar, _ = parts.jobs.list_jobs(tenant, search=job, limit=_SEARCHED)
        for named in similar:
            if named.spec.name == job:
                return redirect(request, f"{PREFIX}/jobs/{named.id}")
        raise


@router.get("/{job}/live")
def live(request: Request, job: PageJob, parts: PartsDep, was: Annotated[str, Query(max_length=80)] = "") -> Response:
    """Return the live part of a job page. Reload the page if its state and stage, such as "running.joint", changed."""
    values = _live_values(parts, job)
    if was != values["was"]:
        return Response(status_code=204, headers={"HX-Refresh": "true"})
    return page(request, "_job_live.html", values)


@router.get("/{job}/points")
def points(job: PageJob, parts: PartsDep, stage: Annotated[str, Query(max_length=40)]) -> Response:
    """Return the curves of one stage, thinned for charts."""
    lines = curves(parts.jobs, parts.artifacts, job, stage)
    return JSONResponse({"curves": lines, "live": job.state not in TERMINAL})


@router.get("/{job}/log")
def log(request: Request, job: PageJob, parts: PartsDep) -> Response:
    """Show the latest events and log lines."""
    events = _events(parts, job, node_titles(plan_of(job)), _EVENTS_ON_LOG)
    lines = parts.jobs.last_logs(job.tenant, job.id, _LINES)
    return page(
        request, "log.html", job=job, events=events, lines=lines, last=lines[-1]["id"] if lines else "0",
        over=job.state in TERMINAL, tab="log",
    )  # fmt: skip


@router.get("/{job}/log/more")
def more_log(request: Request, job: PageJob, parts: PartsDep, after: StreamId) -> Response:
    """Return the log lines after a stream id, and the element that requests the next lines."""
    lines = parts.jobs.logs(job.tenant, job.id, after=after, limit=_LINES)
    last = lines[-1]["id"] if lines else after
    return page(request, "_log_lines.html", job=job, lines=lines, last=last, over=job.state in TERMINAL and not lines)


@router.post("/{job}/do/{verb}")
def act(
    request: Request, job: PageJob, verb: str, parts: PartsDep, key: Annotated[str, Form(max_length=200)] = ""
) -> Response:
    """Pause, resume, cancel, retry or delete a job.

    key: a random key of the page. Several retries with the same key create one job.
    """
    match verb:
        case "pause":
            parts.jobs.pause(job.tenant, job.id)
        case "resume":
            parts.jobs.resume(job.tenant, job.id)
        case "cancel":
            parts.jobs.cancel(job.tenant, job.id)
        case "retry":
            retried, _ = retry_job(parts, job, f"dashboard {key}" if key else None)
            return redirect(request, f"{PREFIX}/jobs/{retried.id}")
        case "delete":
            delete_job(parts.jobs, parts.artifacts, job)
            return redirect(request, f"{PREFIX}/jobs")
        case _:
            raise NotFound(f"Unknown action '{verb[:40]}'. Valid actions: pause, resume, cancel, retry, delete.")
    return redirect(request, f"{PREFIX}/jobs/{job.id}")


def _live_values(parts: Parts, job: JobRecord) -> dict[str, object]:
    """Return the template values of the live part of a job page."""
    situation = situation_of(parts.jobs, job)
    plan, done, titles = situation.plan, situation.done, node_titles(situation.plan)
    steps = steps_of(situation)
    charted = stages_of(plan)
    started = [step.stage for step in steps if step.stage in charted and (step.share or step.state == "running")]
    shown = started[-1] if started else None
    return {
        "job": job,
        "standing": standings(parts.jobs, [job])[0],
        "steps": steps,
        "progress": job.progress if job.progress and job.progress.node not in done else None,
        "titles": titles,
        "events": _events(parts, job, titles, _EVENTS),
        "actions": [verb for verb in _ACTIONS if job.state in TRANSITIONS[verb]],
        "over": job.state in TERMINAL,
        "headline": _headline(parts, job, done.get(plan.report)),
        "linear_answers": BASELINE.name in done and plan.model not in done and job.state not in TERMINAL,
        "retryable": job.state in RETRYABLE,
        "charted": started,
        "shown": shown,
        "was": f"{job.state}.{shown}",
        "tab": "overview",
    }


def _headline(parts: Parts, job: JobRecord, ref: ManifestRef | None) -> str:
    """Return a sentence on the returned model or the result of a study. Return "" for a job without a result."""
    if job.state is not State.SUCCEEDED or ref is None:
        return ""
    with suppress(NotFound, CorruptArtifact):
        report = parts.artifacts.read_json(ref, REPORT)
        return headline(report) if "returned" in report else str(report.get("words", ""))
    return ""


def event_line(event: Event, titles: Mapping[str, str]) -> EventLine:
    """Return an event as a sentence, or as type and data if it has no sentence. titles: from `node_titles`."""
    words = sentence(event.type, event.attempt, event.data, titles)
    return EventLine(event.at, words or " · ".join(filter(None, (event.type, facts(event.data)))))


def _events(parts: Parts, job: JobRecord, titles: Mapping[str, str], count: int) -> list[EventLine]:
    """Return the last `count` events at the time of the record `job`, and all later events, newest first."""
    lines, after = list[EventLine](), max(0, job.last_event - count)
    while chunk := parts.jobs.events(job.tenant, job.id, after=after, limit=_EVENTS_PAGE):
        lines.extend(event_line(event, titles) for event in chunk)
        after = chunk[-1].seq
    return lines[::-1]
