"""Jobs: submit, estimate, get, list, compare, cancel, pause, resume, retry, clone, delete; events, metrics, logs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Body, Header, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from services.api.auth import PathJob, Tenant
from services.api.compare import compare, curves_of
from services.api.estimate import proposed
from services.api.job_artifacts import situation_of
from services.api.parts import STREAM_ID, AfterId, Limit, Parts, PartsDep, StreamId, problems
from services.api.removal import delete_job
from services.api.series import series_of
from services.api.standing import standings
from services.api.streams import log_stream
from services.api.submission import clone_job, resolve_job, retry_job, submit_job
from services.api.views import dry_run_view, job_summary, job_view
from services.common.situation import Situation
from tlm_core.errors import InvalidRequest
from tlm_core.jobs.spec import JobRecord, JobSpec
from tlm_core.jobs.states import State
from tlm_core.wire import Comparison, DryRun, Estimate, Job, JobEvent, JobSummary, LogLine, MetricPoint, Page, Series

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

SPEC_EXAMPLE = {
    "name": "nightly", "dataset": "reviews", "corpus": "docs", "scale": "tiny", "recipe": "fast", "seeds": [0, 1, 2],
    "overrides": {"finetune.epochs": 10}, "metadata": {"team": "search"},
}  # fmt: skip
_STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255)]


def _streamed(description: str, example: str) -> dict[int | str, dict[str, object]]:
    content = {"text/event-stream": {"schema": {"type": "string"}, "example": example}}
    return {200: {"description": description, "content": content}, **problems(404)}


_RECONNECT = "Sent by browsers when they reconnect."
LastSeq = Annotated[str, Header(alias="Last-Event-ID", pattern=r"^([0-9]{1,15})?$", description=_RECONNECT)]
LastLine = Annotated[str, Header(alias="Last-Event-ID", pattern=f"{STREAM_ID}|^$", description=_RECONNECT)]


@router.post(
    "",
    status_code=202,
    summary="Submit a job",
    responses={200: {"model": DryRun, "description": "With `dry_run`: the resolved job and its estimated cost."},
               **problems(404, 409, 413, 415, 507)},
    response_model=Job,
)  # fmt: skip
def submit(
    spec: Annotated[JobSpec, Body(examples=[SPEC_EXAMPLE])],
    parts: PartsDep,
    tenant: Tenant,
    response: Response,
    idempotency_key: Key = None,
    dry_run: Annotated[bool, Query(description="Validate and estimate the job without creating it.")] = False,
) -> Job | Response:
    """Create a job, and return it when it is stored durably. A repeated Idempotency-Key returns the same job."""
    if dry_run:
        job = proposed(tenant, *resolve_job(parts, tenant, spec))
        view = dry_run_view(Situation.read(parts.jobs, job), parts.estimator.estimate(job))
        return JSONResponse(view.model_dump(mode="json"))
    return _created(parts, response, submit_job(parts, tenant, spec, idempotency_key))


@router.post("/estimate", summary="Estimate the cost of a job", responses=problems(404, 409, 413, 415))
def estimate(spec: Annotated[JobSpec, Body(examples=[SPEC_EXAMPLE])], parts: PartsDep, tenant: Tenant) -> Estimate:
    """Return the expected seconds, FLOPs, memory, disk, GPU hours and passages, without the time in the queue.

    Each figure has a basis: earlier jobs on this service, a short speed measurement, the recipe, or built-in rates.
    Unknown figures are null.
    """
    return parts.estimator.estimate(proposed(tenant, *resolve_job(parts, tenant, spec)))


@router.get("", summary="List jobs", responses=problems())
def list_all(
    parts: PartsDep,
    tenant: Tenant,
    state: State | None = None,
    kind: Annotated[str | None, Query(max_length=40)] = None,
    dataset: Annotated[str | None, Query(max_length=200, description="id, NAME (any version), or NAME@VERSION")] = None,
    label: Annotated[list[str], Query(max_length=16, description="KEY=VALUE in the metadata; repeatable.")] = [],  # noqa: B006
    q: Annotated[str, Query(max_length=100, description="Part of the name, or start of the id.")] = "",
    after: AfterId = None,
    limit: Limit = 20,
) -> Page[JobSummary]:
    """Return jobs that match all filters, newest first."""
    datasets = None if dataset is None else parts.catalog.dataset_ids(tenant, dataset)
    jobs, has_more = parts.jobs.list_jobs(
        tenant, state=state, kind=kind, datasets=datasets, labels=_labels(label), search=q, after=after, limit=limit
    )
    return Page(data=tuple(map(job_summary, jobs, standings(parts.jobs, jobs))), has_more=has_more)


@router.get("/compare", summary="Compare jobs", responses=problems(404))
def compare_jobs(
    parts: PartsDep,
    tenant: Tenant,
    ids: Annotated[list[str], Query(min_length=1, max_length=10, description="Job ids, repeated or comma-separated.")],
    points: Annotated[int, Query(ge=4, le=2000, description="Maximum points per curve.")] = 200,
) -> Comparison:
    """Return the differences, curves, scores and costs of 2 to 10 jobs."""
    job_ids = [job for part in ids for job in part.split(",") if job]
    if not 2 <= len(set(job_ids)) == len(job_ids) <= 10:
        raise InvalidRequest("Invalid ids. Give 2 to 10 different jobs, as ids=A&ids=B or ids=A,B.")
    records = [parts.jobs.get(tenant, job) for job in job_ids]
    comparison = compare(parts.catalog, parts.jobs, parts.artifacts, records)
    return comparison.model_copy(update={"curves": curves_of(parts.jobs, records, points)})


@router.get("/{job}", summary="Get a job", responses=problems(404))
def get(job: PathJob, parts: PartsDep) -> Job:
    """Return the state, progress, error, resolved configuration and stages of a job."""
    return _view(parts, job)


@router.delete("/{job}", status_code=204, summary="Delete a job", responses=problems(404, 409))
def delete(job: PathJob, parts: PartsDep) -> Response:
    """Permanently delete a finished job, its log, and the model and checkpoints that no other job uses."""
    delete_job(parts.jobs, parts.artifacts, job)
    return Response(status_code=204)


@router.post("/{job}/retry", status_code=202, summary="Retry a job", responses=problems(404, 409, 507))
def retry(job: PathJob, parts: PartsDep, response: Response, idempotency_key: Key = None) -> Job:
    """Create a job with the inputs of a failed or cancelled job. The new job reuses the finished stages."""
    return _created(parts, response, retry_job(parts, job, idempotency_key))


@router.post(
    "/{job}/clone", status_code=202, summary="Clone a job with changes", responses=problems(404, 409, 413, 415, 507)
)
def clone(
    job: PathJob,
    changes: Annotated[dict[str, object], Body(examples=[{"seeds": [3, 4], "overrides": {"finetune.epochs": 20}}])],
    parts: PartsDep,
    response: Response,
    idempotency_key: Key = None,
) -> Job:
    """Create a job with the spec of another job and the given changes.

    Changes of `overrides` and `options` replace single keys. The new job uses the same version of an unchanged dataset
    or corpus.
    """
    return _created(parts, response, clone_job(parts, job, changes, idempotency_key))


@router.post("/{job}/cancel", summary="Cancel a job", responses=problems(404, 409))
def cancel(job: str, parts: PartsDep, tenant: Tenant) -> Job:
    """Cancel a job. The job is `cancelling` until all its processes have ended, then `cancelled`. Safe to repeat."""
    return _view(parts, parts.jobs.cancel(tenant, job))


@router.post("/{job}/pause", summary="Pause a job", responses=problems(404, 409))
def pause(job: str, parts: PartsDep, tenant: Tenant) -> Job:
    """Pause a job. The job is `pausing` until a checkpoint is stored, then `paused`. Safe to repeat."""
    return _view(parts, parts.jobs.pause(tenant, job))


@router.post("/{job}/resume", summary="Resume a paused job", responses=problems(404, 409))
def resume(job: str, parts: PartsDep, tenant: Tenant) -> Job:
    """Queue a paused job again. The job continues from its last checkpoint. Safe to repeat."""
    return _view(parts, parts.jobs.resume(tenant, job))


@router.get(
    "/{job}/events",
    summary="List or stream events",
    response_model=Page[JobEvent],
    responses=_streamed(
        "Events in order, or a stream of server-sent events: `id` is the seq, `event` the type; `progress` snapshots "
        "have no id; `end` has the final state and closes the stream.",
        'id: 9\nevent: job.succeeded\ndata: {"type": "job.succeeded", "seq": 9, "at": "2026-11-23T12:12:41Z", '
        '"attempt": 1, "data": {}}\n\nevent: end\ndata: {"state": "succeeded"}\n\n',
    ),
)
async def events(
    job: PathJob,
    request: Request,
    parts: PartsDep,
    after: Annotated[int, Query(ge=0, lt=2**53, description="seq of the last known event.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    stream: Annotated[bool, Query(description="Stream events, like Accept: text/event-stream.")] = False,
    last_event_id: LastSeq = "",
) -> Response:
    """Return the events of a job. `seq` counts from 1 without gaps, so a client can resume a stream."""
    if stream or "text/event-stream" in request.headers.get("accept", ""):
        start = max(after, int(last_event_id or 0))
        messages = parts.tailer.stream(job.tenant, job.id, start)
        return StreamingResponse(messages, media_type="text/event-stream", headers=_STREAM_HEADERS)
    events = await run_in_threadpool(parts.jobs.events, job.tenant, job.id, after=after, limit=limit + 1)
    return _page(JobEvent, events, limit)


@router.get("/{job}/metrics", summary="List metric points", responses=problems(404))
def metrics(
    job: PathJob, parts: PartsDep, after: StreamId = "0", limit: Annotated[int, Query(ge=1, le=5000)] = 1000
) -> Page[MetricPoint]:
    """Return metric points in order of arrival. Each point has `id`, `at`, `attempt`, `node`, `step` and values."""
    points = parts.jobs.metrics(job.tenant, job.id, after=after, limit=limit + 1)
    return Page(data=tuple(map(MetricPoint.model_validate, points[:limit])), has_more=len(points) > limit)


@router.get("/{job}/metrics/series", summary="Get metric series for charts", responses=problems(404))
def series(
    job: PathJob,
    parts: PartsDep,
    points: Annotated[int, Query(ge=4, le=5000, description="Maximum points per series.")] = 300,
    node: Annotated[str | None, Query(max_length=200, description="Only this node.")] = None,
    name: Annotated[list[str], Query(max_length=50, description="Only these metrics.")] = [],  # noqa: B006
) -> Page[Series]:
    """Return the metrics of each node as columns: steps, times and values.

    A series with more than `points` points is thinned to the first point, the last point, and the minimum and maximum
    of equal parts between them.
    """
    result = series_of(parts.jobs, job, points=points, node=node, names=frozenset(name))
    return Page(data=tuple(result), has_more=False)


@router.get(
    "/{job}/logs",
    summary="List or stream log lines",
    response_model=Page[LogLine],
    responses=_streamed(
        "Lines in order, or a stream of server-sent events: `line` with its id; `end` has the final state and closes "
        "the stream.",
        'id: 1795435893698-0\nevent: line\ndata: {"id": "1795435893698-0", "at": "2026-11-23T12:11:33Z", "attempt": 1, '
        '"line": "tokenizer: 8,192 tokens"}\n\nevent: end\ndata: {"state": "succeeded"}\n\n',
    ),
)
async def logs(
    job: PathJob,
    request: Request,
    parts: PartsDep,
    after: StreamId = "0",
    limit: Annotated[int, Query(ge=1, le=5000)] = 1000,
    tail: Annotated[int | None, Query(ge=1, le=5000, description="Only this many last lines.")] = None,
    follow: Annotated[bool, Query(description="Stream until the job ends, like Accept: text/event-stream.")] = False,
    last_event_id: LastLine = "",
) -> Response:
    """Return the log lines of a job. Each line has an `id`, so a client can resume a stream."""
    streams = follow or "text/event-stream" in request.headers.get("accept", "")
    start, lines = last_event_id or after, None
    # A resumed stream ignores `tail`, and sends every line after the last line that the client received.
    if tail is not None and not (streams and last_event_id):
        lines = await run_in_threadpool(parts.jobs.last_logs, job.tenant, job.id, tail, after=start)
        start = _before(lines[0]["id"]) if lines else start
    if streams:
        messages = log_stream(parts.jobs, parts.tailer, job.tenant, job.id, start)
        return StreamingResponse(messages, media_type="text/event-stream", headers=_STREAM_HEADERS)
    if lines is not None:
        return _page(LogLine, lines, len(lines))
    lines = await run_in_threadpool(parts.jobs.logs, job.tenant, job.id, after=start, limit=limit + 1)
    return _page(LogLine, lines, limit)


def _page(kind: type[BaseModel], records: Sequence[object], limit: int) -> Response:
    """Return a page with the first `limit` records. Its `has_more` is true if `records` has more than `limit` items."""
    data = [kind.model_validate(record).model_dump(mode="json") for record in records[:limit]]
    return JSONResponse({"data": data, "has_more": len(records) > limit})


def _created(parts: Parts, response: Response, result: tuple[JobRecord, bool]) -> Job:
    """Return the job, and set the headers of the response. result: the job, and whether the job is new."""
    job, new = result
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    if not new:
        response.headers["Idempotent-Replayed"] = "true"
    return _view(parts, job)


def _labels(values: list[str]) -> list[tuple[str, str]]:
    labels = []
    for text in values:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise InvalidRequest(f"Invalid label filter '{text[:80]}'. Expected label=KEY=VALUE.")
        labels.append((key, value))
    return labels


def _view(parts: Parts, job: JobRecord) -> Job:
    return job_view(situation_of(parts.jobs, job), standings(parts.jobs, [job])[0])


def _before(stream_id: str) -> str:
    """Return the stream id before `stream_id`: "5-1" for "5-2". Lines after this id include the line `stream_id`."""
    milliseconds, _, number = stream_id.partition("-")
    return f"{milliseconds}-{int(number) - 1}" if int(number) else f"{int(milliseconds) - 1}-{2**63}"
