"""Jobs: submitting, the verbs, watching."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tlm_client.events import Frame, follow, job_event
from tlm_client.operations.base import at, items, model, pages
from tlm_client.operations.data import POLL_SECONDS
from tlm_client.steps import Ask, Listing, Sleep, call, consumed, transformed
from tlm_core.jobs.spec import FROM_JOB, JobSpec
from tlm_core.wire import Comparison, DryRun, Estimate, Job, JobEvent, JobSummary, Series


def submit(spec: JobSpec, *, key: str | None = None) -> Ask[Job]:
    """Submit a job; it is stored durably when this returns.

    key: the idempotency key, a fresh one by default; a repeated request cannot make a second job.
    """
    return model(Job, (yield from call("POST", "/v1/jobs", json=_body(spec), headers=_once(key), repeat=True)))


def dry_run(spec: JobSpec) -> Ask[DryRun]:
    """What submitting would mean and cost, checked as a submission is; no job is made."""
    answer = yield from call("POST", "/v1/jobs", json=_body(spec), params={"dry_run": True}, repeat=True)
    return model(DryRun, answer)


def estimate(spec: JobSpec) -> Ask[Estimate]:
    """What a job would take: seconds, FLOPs, memory, disk, GPU-hours, passages; None where that is not known."""
    return model(Estimate, (yield from call("POST", "/v1/jobs/estimate", json=_body(spec), repeat=True)))


def retry(job_id: str, *, key: str | None = None) -> Ask[Job]:
    """A new job like one that failed or was cancelled; it goes on from the stage that was not done."""
    path = at("/v1/jobs/{job}/retry", job=job_id)
    return model(Job, (yield from call("POST", path, headers=_once(key), repeat=True)))


def clone(job_id: str, changes: Mapping[str, Any] | None = None, *, key: str | None = None) -> Ask[Job]:
    """A new job like another with some fields of its spec changed; keys of `set` are added to those there."""
    path = at("/v1/jobs/{job}/clone", job=job_id)
    return model(Job, (yield from call("POST", path, json=dict(changes or {}), headers=_once(key), repeat=True)))


def jobs(
    state: str | None = None,
    *,
    kind: str | None = None,
    dataset: str | None = None,
    labels: Mapping[str, str] | None = None,
) -> Listing[JobSummary]:
    """Jobs, newest first, for which every filter that is given holds. dataset: id or name; labels: of the metadata."""
    filters: dict[str, Any] = {"state": state, "kind": kind, "dataset": dataset}
    given = {name: value for name, value in filters.items() if value is not None}
    if labels:
        given["label"] = [f"{name}={value}" for name, value in labels.items()]
    return pages(JobSummary, "/v1/jobs", lambda job: job.id, given)


def job(job_id: str) -> Ask[Job]:
    """Its state, progress, error, what was settled when it was accepted, and its stages."""
    return model(Job, (yield from call("GET", at("/v1/jobs/{job}", job=job_id), repeat=True)))


def delete_job(job_id: str) -> Ask[None]:
    """Delete a job that is over, with the model and checkpoints that no other job shares."""
    yield from call("DELETE", at("/v1/jobs/{job}", job=job_id))


def cancel(job_id: str) -> Ask[Job]:
    """Two-phase: `cancelling` until nothing of the job runs any more. Cancelling twice is no error."""
    return model(Job, (yield from call("POST", at("/v1/jobs/{job}/cancel", job=job_id))))


def pause(job_id: str) -> Ask[Job]:
    """`paused` follows when the worker has left a checkpoint."""
    return model(Job, (yield from call("POST", at("/v1/jobs/{job}/pause", job=job_id))))


def resume(job_id: str) -> Ask[Job]:
    """Back into the queue; it goes on from its last checkpoint."""
    return model(Job, (yield from call("POST", at("/v1/jobs/{job}/resume", job=job_id))))


def compare(job_ids: Sequence[str], *, points: int = 200) -> Ask[Comparison]:
    """Two to ten jobs side by side: in what they differ, their scores, costs and curves of at most `points`."""
    params = {"ids": list(job_ids), "points": points}
    return model(Comparison, (yield from call("GET", "/v1/jobs/compare", params=params, repeat=True)))


def events(job_id: str, *, after: int = 0, patience: float = 120.0) -> Listing[JobEvent]:
    """The job's events with seq > after, and progress snapshots between them, until the job is over.

    A broken connection is taken up where it ended. That the iterator ends says nothing about how the job ended:
    ask `job`. patience: seconds without the gateway after which Unavailable is raised.
    """
    path = at("/v1/jobs/{job}/events", job=job_id)
    return transformed(follow(path, str(after), patience=patience), job_event)


def past_events(job_id: str) -> Listing[JobEvent]:
    """What has happened to the job so far, in order; it does not wait for more."""
    return pages(JobEvent, at("/v1/jobs/{job}/events", job=job_id), lambda event: str(event.seq))


def wait(job_id: str, on_event: Callable[[JobEvent], None] | None = None, *, patience: float = 120.0) -> Ask[Job]:
    """Wait until the job is over and return it, whether it succeeded or not."""
    after = 0

    def take(event: JobEvent) -> None:
        nonlocal after
        after = event.seq or after
        if on_event is not None:
            on_event(event)

    while True:
        yield from consumed(events(job_id, after=after, patience=patience), take)
        found = yield from job(job_id)
        if found.is_over:
            return found
        yield Sleep(POLL_SECONDS)


def metrics(job_id: str) -> Listing[dict[str, Any]]:
    """The points of the job's metric series, in order."""
    return items(at("/v1/jobs/{job}/metrics", job=job_id), lambda point: str(point["id"]))


def series(job_id: str, *, points: int = 300, node: str | None = None, names: Sequence[str] = ()) -> Ask[list[Series]]:
    """The job's metrics as columns of at most `points`, with every peak kept. node, names: only those."""
    params: dict[str, Any] = {"points": points, "name": list(names)} | ({"node": node} if node else {})
    found = yield from call("GET", at("/v1/jobs/{job}/metrics/series", job=job_id), params=params, repeat=True)
    return [model(Series, one) for one in found["data"]]


def logs(job_id: str) -> Listing[dict[str, Any]]:
    """The job's log lines, in order."""
    return items(at("/v1/jobs/{job}/logs", job=job_id), lambda line: str(line["id"]))


def last_logs(job_id: str, count: int) -> Ask[list[dict[str, Any]]]:
    """The last `count` log lines, in order."""
    path = at("/v1/jobs/{job}/logs", job=job_id)
    return list((yield from call("GET", path, params={"tail": count}, repeat=True))["data"])


def follow_logs(job_id: str, *, after: str = "0", patience: float = 120.0) -> Listing[dict[str, Any]]:
    """Log lines behind stream id `after` as they come, until the job is over; broken connections are taken up."""

    def line(frame: Frame) -> dict[str, Any]:
        return dict(json.loads(frame.data))

    return transformed(follow(at("/v1/jobs/{job}/logs", job=job_id), after, patience=patience), line)


def _body(spec: JobSpec) -> dict[str, Any]:
    """Without defaults, except of what a job that is pruned would bring: there a default may contradict it."""
    given = spec.model_dump(mode="json", include=spec.model_fields_set & set(FROM_JOB))
    return spec.model_dump(mode="json", exclude_defaults=True) | given


def _once(key: str | None) -> dict[str, str]:
    return {"Idempotency-Key": key or str(uuid.uuid4())}
