"""How commands show the state and the progress of jobs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.unit.client.gateway import end, event, event_stream, job_summary, job_view, tlm


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"waiting": {"code": "queued", "reason": "Next in the queue.", "position": 1}}, "Waiting: Next in the queue."),
        ({"state": "running", "silent_seconds": 45.0}, "The workers last reported 0:45 ago"),
    ],
)
def test_show_prints_why_a_job_does_not_run(fields: dict[str, Any], line: str) -> None:
    result = tlm(lambda _: httpx.Response(200, json=job_view(**fields)), "show", "job_1")
    assert line in result.stdout.splitlines(), result.output


def test_watch_shows_the_queue_instead_of_the_last_attempt() -> None:
    reason = "Attempt 1 ended. The next attempt can start at 12:00:00 UTC."
    waiting = {"code": "backoff", "reason": reason, "position": 1}
    stream = event_stream(event(1, "job.requeued", message="gone", delay_seconds=4) + end("failed"))
    answers = {"/v1/jobs/job_1/events": stream}

    def handler(request: httpx.Request) -> httpx.Response:
        return answers.get(request.url.path) or httpx.Response(200, json=job_view(state="failed", waiting=waiting))

    assert f"job_1 waiting: {reason}" in tlm(handler, "watch", "job_1").stderr.splitlines()


class SilentStream(httpx.SyncByteStream):
    """An event stream without events until `over` is set."""

    def __init__(self, over: threading.Event) -> None:
        self._over = over

    def __iter__(self) -> Iterator[bytes]:
        yield b": still here\n\n"
        assert self._over.wait(60)
        yield end("failed").encode()


def test_watch_shows_queue_and_silence_without_events(monkeypatch: pytest.MonkeyPatch) -> None:
    # The stream of events sends nothing. `watch` then reads the job: in the queue, with silent workers, in the queue.
    monkeypatch.setattr("tlm_client.commands.jobs._REREAD_SECONDS", 0.01)
    third, second = ({"code": "queued", "reason": f"Place {place}.", "position": place} for place in (3, 2))
    silent = {"state": "running", "progress": PROGRESS, "silent_seconds": 45.0}
    reads: list[dict[str, Any]] = [{"waiting": third}, silent, {"waiting": second}]
    over = threading.Event()

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/events"):
            return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, stream=SilentStream(over))
        if not reads:
            over.set()
        return httpx.Response(200, json=job_view(**(reads.pop(0) if reads else {"state": "failed"})))

    assert tlm(handler, "watch", "job_1").stderr.splitlines()[:3] == [
        "job_1 waiting: Place 3.",
        "job_1 joint.s0  16% workers last reported 0:45 ago",
        "job_1 waiting: Place 2.",
    ]


PROGRESS = {"stage": "joint", "node": "joint.s0", "step": 239, "total": 845, "rate": 3293.0, "unit": "tokens",
            "share": 0.16, "eta_seconds": 805.0, "nodes_done": 3, "nodes_total": 8}  # fmt: skip


def test_jobs_show_progress_time_left_score_and_failure() -> None:
    jobs = [
        job_summary(id="job_3", name="nightly", state="running", progress=PROGRESS),
        job_summary(id="job_2", state="succeeded", interruptions=2, metric="macro_f1", score=0.6128),
        job_summary(
            id="job_1", state="failed", failures=3, error={"code": "worker_lost", "message": "Worker was killed."}
        ),
    ]
    result = tlm(lambda _: httpx.Response(200, json={"data": jobs, "has_more": False}), "jobs")
    for part in (
        "nightly",
        "16% joint.s0",
        "13:25 left",
        "0.613 macro_f1",
        "failures",
        "interruptions",
        "Worker was killed.",
    ):
        assert part in result.stdout, result.stdout


def test_cancelled_job_shows_no_earlier_error() -> None:
    error = {"code": "worker_lost", "message": "Worker was stopped. Resumes from step 95."}
    job = job_summary(state="cancelled", error=error)
    listed = tlm(lambda _: httpx.Response(200, json={"data": [job], "has_more": False}), "jobs")
    shown = tlm(lambda _: httpx.Response(200, json=job_view(state="cancelled", error=error)), "show", "job_1")
    assert "cancelled" in listed.stdout and "cancelled" in shown.stdout
    assert "Resumes" not in listed.stdout + shown.stdout


def test_show_names_the_command_for_the_details_of_an_error() -> None:
    error = {"code": "worker_lost", "message": "Worker was killed.", "details": "(raylet) exit code 137"}
    result = tlm(lambda _: httpx.Response(200, json=job_view(error=error)), "show", "job_1")
    assert result.stdout.count("Worker was killed.") == 1 and "exit code 137" not in result.output
    assert "Run `tlm show job_1 --json` for the details." in result.stdout


def test_jobs_show_no_time_left_while_the_workers_are_silent() -> None:
    job = job_summary(state="running", progress=PROGRESS, silent_seconds=45.0)
    result = tlm(lambda _: httpx.Response(200, json={"data": [job], "has_more": False}), "jobs")
    assert "16% joint.s0" in result.stdout and "The workers last reported 0:45 ago" in result.stdout
    assert "left" not in result.stdout


def test_show_prints_step_rate_and_time_left_of_a_running_job() -> None:
    view = job_view(state="running", name="nightly", attempt=3, interruptions=2, progress=PROGRESS)
    result = tlm(lambda _: httpx.Response(200, json=view), "show", "job_1")
    assert "job_1 (nightly): running, attempt 3, failures: 0, interruptions: 2\n" in result.stdout
    line = "Progress: 16%  joint.s0  239/845  3,293 tokens/s  13:25 left  stage 4 of 8"
    assert line in result.stdout.splitlines(), result.stdout
