"""Jobs: submit, estimate, look, list, cancel, pause, resume, retry, clone, delete; events, metrics, log lines."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from services.api.auth import Tenant
from services.api.compare import compare
from services.api.estimate import proposed
from services.api.follow_logs import follow_logs
from services.api.parts import STREAM_ID, AfterId, Limit, Parts, PartsDep, StreamId, problems
from services.api.removal import delete_job
from services.api.results import refs_of
from services.api.series import series_of
from services.api.submit import changed, resolve_job
from services.api.views import dry_run_view, job_summary, job_view
from services.common.catalog import dataset_keys
from services.common.situation import Situation
from tlm_core.errors import IllegalTransition, InvalidRequest
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import Event, JobRecord, JobSpec, Origin, Resolved
from tlm_core.jobs.states import State
from tlm_core.wire import Comparison, DryRun, Estimate, Job, JobSummary, Page, Series

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

SPEC_EXAMPLE = {
    "dataset": "reviews", "corpus": "docs", "scale": "tiny", "recipe": "fast", "seeds": [0, 1, 2],
    "set": {"joint.rho2": 5}, "metadata": {"team": "search"},
}  # fmt: skip
_STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255)]


@router.post(
    "",
    status_code=202,
    summary="Submit a job",
    responses={200: {"model": DryRun, "description": "with `dry_run`: what it would mean and cost"},
               **problems(404, 409, 413, 507)},
    response_model=Job,
)  # fmt: skip
def submit(
    spec: Annotated[JobSpec, Body(examples=[SPEC_EXAMPLE])],
    parts: PartsDep,
    tenant: Tenant,
    response: Response,
    idempotency_key: Key = None,
    dry_run: Annotated[bool, Query(description="check everything and tell what it would cost; no job is made")] = False,
) -> Any:
    """Answers when the job is written durably. The same Idempotency-Key again gives the same job, and no second one."""
    if dry_run:
        return JSONResponse(_dry_run(parts, tenant, spec).model_dump(mode="json"))
    return _made(parts, tenant, response, spec, lambda: resolve_job(parts, tenant, spec), idempotency_key)


@router.post("/estimate", summary="What a job would cost", responses=problems(404, 409, 413))
def estimate(spec: Annotated[JobSpec, Body(examples=[SPEC_EXAMPLE])], parts: PartsDep, tenant: Tenant) -> Estimate:
    """Seconds, FLOPs, memory, disk, GPU-hours and passages, each with where it is from: earlier jobs here, the recipe's
    shape, or a built-in rate. What cannot be told is null. Waiting in the queue is not in it."""
    spec, resolved = resolve_job(parts, tenant, spec)
    return parts.estimator.estimate(tenant, spec, resolved)


@router.get("", summary="List jobs", responses=problems())
def list_all(
    parts: PartsDep,
    tenant: Tenant,
    state: State | None = None,
    kind: Annotated[str | None, Query(max_length=40)] = None,
    dataset: Annotated[str | None, Query(max_length=200, description="id, NAME (any version), NAME@VERSION")] = None,
    label: Annotated[list[str], Query(max_length=16, description="KEY=VALUE of the metadata; all must hold")] = [],  # noqa: B006
    after: AfterId = None,
    limit: Limit = 20,
) -> Page[JobSummary]:
    """Newest first; every filter that is given must hold."""
    datasets = None if dataset is None else parts.catalog.dataset_ids(tenant, dataset)
    jobs, more = parts.jobs.list_jobs(
        tenant, state=state, kind=kind, datasets=datasets, labels=_labels(label), after=after, limit=limit
    )
    return Page(data=tuple(map(job_summary, jobs)), has_more=more)


@router.get("/compare", summary="Compare jobs", responses=problems(404))
def compare_jobs(
    parts: PartsDep,
    tenant: Tenant,
    ids: Annotated[list[str], Query(min_length=1, max_length=10, description="once for each job, or with commas")],
    points: Annotated[int, Query(ge=4, le=2000, description="of each curve, at most")] = 200,
) -> Comparison:
    """In what the jobs differ, their curves, scores and costs; 2 to 10 of them."""
    wanted = [one for part in ids for one in part.split(",") if one]
    if not 2 <= len(set(wanted)) == len(wanted) <= 10:
        raise InvalidRequest("name 2 to 10 different jobs, as ids=A&ids=B or ids=A,B")
    return compare(parts.jobs, parts.artifacts, [parts.jobs.get(tenant, one) for one in wanted], points=points)


@router.get("/{job}", summary="One job", responses=problems(404))
def get(job: str, parts: PartsDep, tenant: Tenant) -> Job:
    """Its state, progress, error, what was settled at submission, and which stages are done."""
    return _view(parts, parts.jobs.get(tenant, job))


@router.delete("/{job}", status_code=204, summary="Delete a job", responses=problems(404, 409))
def delete(job: str, parts: PartsDep, tenant: Tenant) -> Response:
    """A job that is over, with its log and the model and checkpoints that no other job shares. Cannot be undone."""
    delete_job(parts.jobs, parts.artifacts, parts.jobs.get(tenant, job))
    return Response(status_code=204)


@router.post("/{job}/retry", status_code=202, summary="Try a job again", responses=problems(404, 409, 507))
def retry(job: str, parts: PartsDep, tenant: Tenant, response: Response, idempotency_key: Key = None) -> Job:
    """A new job that means exactly the same: it takes what stages are done and goes on from the one that failed."""
    earlier = parts.jobs.get(tenant, job)
    if earlier.state not in (State.FAILED, State.CANCELLED):
        raise IllegalTransition(
            f"{job} is {earlier.state}; a job that failed or was cancelled can be tried again, others be cloned",
            state=earlier.state,
        )
    same, origin = (earlier.spec, earlier.resolved), Origin(job=earlier.id, how="retry")
    return _made(parts, tenant, response, earlier.spec, lambda: same, idempotency_key, origin)


@router.post(
    "/{job}/clone", status_code=202, summary="Clone a job with changes", responses=problems(404, 409, 413, 507)
)
def clone(
    job: str,
    changes: Annotated[dict[str, Any], Body(examples=[{"seeds": [3, 4], "set": {"joint.rho2": 10}}])],
    parts: PartsDep,
    tenant: Tenant,
    response: Response,
    idempotency_key: Key = None,
) -> Job:
    """A new job with the fields of a job's spec, those given changed; keys of `set` are added to those there.

    What is not changed means the same bytes as before: the same version of the data set and of the corpus.
    """
    earlier = parts.jobs.get(tenant, job)
    spec, origin = changed(earlier, changes), Origin(job=earlier.id, how="clone")
    return _made(parts, tenant, response, spec, lambda: resolve_job(parts, tenant, spec), idempotency_key, origin)


@router.post("/{job}/cancel", summary="Cancel a job", responses=problems(404, 409))
def cancel(job: str, parts: PartsDep, tenant: Tenant) -> Job:
    """`cancelling` until nothing of it runs any more, then `cancelled`. Twice is no error."""
    return _view(parts, parts.jobs.cancel(tenant, job))


@router.post("/{job}/pause", summary="Pause a job", responses=problems(404, 409))
def pause(job: str, parts: PartsDep, tenant: Tenant) -> Job:
    """`pausing` until a checkpoint is kept, then `paused`."""
    return _view(parts, parts.jobs.pause(tenant, job))


@router.post("/{job}/resume", summary="Resume a paused job", responses=problems(404, 409))
def resume(job: str, parts: PartsDep, tenant: Tenant) -> Job:
    """Back into the queue; it goes on from its last checkpoint."""
    return _view(parts, parts.jobs.resume(tenant, job))


@router.get(
    "/{job}/events",
    summary="What happened to a job",
    response_model=Page[Event],
    responses={
        200: {
            "description": "events in order, or a stream of server-sent events (`id` is seq, `event` the type; "
            "un-numbered `progress` snapshots; `end` with the last state, then the stream closes)",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        **problems(404),
    },
)
async def events(
    job: str,
    request: Request,
    parts: PartsDep,
    tenant: Tenant,
    after: Annotated[int, Query(ge=0, lt=2**53, description="seq of the last event that is known")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    stream: Annotated[bool, Query(description="server-sent events, as with Accept: text/event-stream")] = False,
    last_event_id: Annotated[str | None, Header(description="as browsers send it when they reconnect")] = None,
) -> Response:
    """The log of a job: seq counts from 1 without a gap. A stream can be taken up again where it broke off."""
    await run_in_threadpool(parts.jobs.get, tenant, job)
    if stream or "text/event-stream" in request.headers.get("accept", ""):
        start = max(after, _seq(last_event_id))
        lines = parts.tailer.stream(tenant, job, start)
        return StreamingResponse(lines, media_type="text/event-stream", headers=_STREAM_HEADERS)
    found = await run_in_threadpool(parts.jobs.events, tenant, job, after=after, limit=limit + 1)
    page = Page[Event](data=tuple(found[:limit]), has_more=len(found) > limit)
    return JSONResponse(page.model_dump(mode="json"))


@router.get("/{job}/metrics", summary="Its metric points", responses=problems(404))
def metrics(
    job: str, parts: PartsDep, tenant: Tenant, after: StreamId = "0", limit: Annotated[int, Query(ge=1, le=5000)] = 1000
) -> Page[dict[str, Any]]:
    """Points in the order in which they were told; each has `id`, `at`, `attempt`, `node`, `step` and its values."""
    parts.jobs.get(tenant, job)
    found = parts.jobs.metrics(tenant, job, after=after, limit=limit + 1)
    return Page(data=tuple(found[:limit]), has_more=len(found) > limit)


@router.get("/{job}/metrics/series", summary="Its metrics, for charts", responses=problems(404))
def series(
    job: str,
    parts: PartsDep,
    tenant: Tenant,
    points: Annotated[int, Query(ge=4, le=5000, description="of each series, at most")] = 300,
    node: Annotated[str | None, Query(max_length=200, description="only of this stage")] = None,
    name: Annotated[list[str], Query(max_length=50, description="only these")] = [],  # noqa: B006
) -> Page[Series]:
    """Columns for each metric of each stage. Thinned series keep their first and last point and every peak."""
    found = series_of(parts.jobs, parts.jobs.get(tenant, job), points=points, node=node, names=frozenset(name))
    return Page(data=tuple(found), has_more=False)


@router.get(
    "/{job}/logs",
    summary="Its log lines",
    response_model=Page[dict[str, Any]],
    responses={
        200: {
            "description": "lines in order, or with `follow` a stream of server-sent events (`line` with its id; `end` "
            "with the last state, then the stream closes)",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        **problems(404),
    },
)
async def logs(
    job: str,
    request: Request,
    parts: PartsDep,
    tenant: Tenant,
    after: StreamId = "0",
    limit: Annotated[int, Query(ge=1, le=5000)] = 1000,
    tail: Annotated[int | None, Query(ge=1, le=5000, description="only the last so many")] = None,
    follow: Annotated[
        bool, Query(description="go on until the job is over, as with Accept: text/event-stream")
    ] = False,
    last_event_id: Annotated[str | None, Header(description="as browsers send it when they reconnect")] = None,
) -> Response:
    """Each line has `id`, `at`, `attempt` and `line`. A stream can be taken up again where it broke off."""
    await run_in_threadpool(parts.jobs.state, tenant, job)
    streams = follow or "text/event-stream" in request.headers.get("accept", "")
    broken_off = _stream_id(last_event_id)
    start, found = broken_off or after, None
    # A stream that is taken up again lacks no line, however short its tail is.
    if tail is not None and not (streams and broken_off):
        found = await run_in_threadpool(parts.jobs.last_logs, tenant, job, tail, after=start)
        start = _before(found[0]) if found else start
    if streams:
        lines = follow_logs(parts.jobs, parts.tailer, tenant, job, start)
        return StreamingResponse(lines, media_type="text/event-stream", headers=_STREAM_HEADERS)
    if found is not None:
        return JSONResponse({"data": found, "has_more": False})
    found = await run_in_threadpool(parts.jobs.logs, tenant, job, after=start, limit=limit + 1)
    return JSONResponse({"data": found[:limit], "has_more": len(found) > limit})


def _made(
    parts: Parts,
    tenant: str,
    response: Response,
    spec: JobSpec,
    meant: Callable[[], tuple[JobSpec, Resolved]],
    key: str | None,
    origin: Origin | None = None,
) -> Job:
    """The job that a request makes, or the one that its key made before.

    meant: what the request means now, which is asked for a new job only: data that an earlier one used may be gone.
    """
    job = parts.jobs.submitted_with(tenant, spec, key, origin) if key else None
    new = False
    if job is None:
        spec, resolved = meant()
        needs = dataset_keys(tenant, (one.id for one in resolved.datasets))
        job, new = parts.jobs.submit(tenant, spec, resolved, idempotency_key=key, origin=origin, needs=needs)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    if not new:
        response.headers["Idempotent-Replayed"] = "true"
    return _view(parts, job)


def _labels(asked: list[str]) -> list[tuple[str, str]]:
    pairs = [text.partition("=") for text in asked]
    if not all(key and equals for key, equals, _ in pairs):
        raise InvalidRequest("a label to filter by is KEY=VALUE; give each as label=KEY=VALUE")
    return [(key, value) for key, _, value in pairs]


def _view(parts: Parts, job: JobRecord) -> Job:
    plan = plan_of(job)
    return job_view(job, plan, refs_of(parts.jobs, job, plan))


def _dry_run(parts: Parts, tenant: str, spec: JobSpec) -> DryRun:
    spec, resolved = resolve_job(parts, tenant, spec)
    job = proposed(tenant, spec, resolved)
    plan = plan_of(job)
    found = parts.estimator.estimate(tenant, spec, resolved)
    return dry_run_view(job, plan, Situation.read(parts.jobs, job, plan).done, found)


def _stream_id(last_event_id: str | None) -> str | None:
    if not last_event_id:
        return None
    if not re.fullmatch(STREAM_ID, last_event_id):
        raise InvalidRequest(f"Last-Event-ID '{last_event_id[:40]}' is none that this service gave")
    return last_event_id


def _before(line: dict[str, Any]) -> str:
    """The stream id just before that of `line`, from which a stream tells it too."""
    milliseconds, _, number = line["id"].partition("-")
    return f"{milliseconds}-{int(number) - 1}" if int(number) else f"{int(milliseconds) - 1}-{2**63}"


def _seq(last_event_id: str | None) -> int:
    if last_event_id is None or last_event_id == "":
        return 0
    if not (last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) < 16):
        raise InvalidRequest(f"Last-Event-ID '{last_event_id[:40]}' is none that this service gave")
    return int(last_event_id)
