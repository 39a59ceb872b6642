"""Why a job waits, its place in the queue, and silent workers: in the API and on the dashboard."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from services.common.redis_client import OBSTACLES
from services.common.situation import Situation
from tests.contract.dashboard_pages import Tags, signed_in
from tests.contract.gateway import Gateway
from tests.factories import make_resolved, make_spec
from tlm_core.artifacts import ManifestRef
from tlm_core.errors import ClusterUnavailable, WorkerLost
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import JobRecord, Progress

T = "default"
PROGRESS = Progress(stage="joint", node="joint.s0", step=239, total=845, rate=3293.0, unit="tokens", eta_seconds=805.0,
                    stage_eta_seconds=90.0)  # fmt: skip


def submit(gateway: Gateway, **over: Any) -> str:
    return gateway.parts.jobs.submit(T, make_spec(**over), make_resolved())[0].id


def running(gateway: Gateway, **over: Any) -> JobRecord:
    submit(gateway, **over)
    job = gateway.parts.jobs.claim("a", 60)
    assert job is not None
    gateway.parts.jobs.report(T, job.id, 1, progress=PROGRESS)
    return job


def progress_json(stage: str, total: int) -> str:
    return Progress(stage=stage, node=stage, total=total).model_dump_json()


def beat(gateway: Gateway, job: JobRecord, **ages: float) -> None:
    """Store the last heartbeat of each group. ages: seconds since the heartbeat, by group."""
    now = gateway.parts.jobs.now()
    beats = json.dumps({group: {"at": now - age} for group, age in ages.items()})
    gateway.client.hset(f"tlm:{{{T}}}:job:{job.id}", "beats", beats)


def page_text(gateway: Gateway, path: str) -> str:
    return Tags(signed_in(gateway).get(path).text).words


def test_queued_jobs_show_their_position_and_reason(api: TestClient, gateway: Gateway) -> None:
    running(gateway)
    first, second, urgent = submit(gateway), submit(gateway), submit(gateway, priority=3)
    slot = "The next job starts when the service has room for another job (running jobs: 1)."
    expected = {
        urgent: (1, f"Next in the queue. {slot}"),
        first: (2, f"1 job ahead in the queue. {slot}"),
        second: (3, f"2 jobs ahead in the queue. {slot}"),
    }
    listed = {job["id"]: job["waiting"] for job in api.get("/v1/jobs").json()["data"]}
    for job, (position, reason) in expected.items():
        assert (listed[job]["position"], listed[job]["reason"], listed[job]["code"]) == (position, reason, "queued")
        assert api.get(f"/v1/jobs/{job}").json()["waiting"] == listed[job]
        assert reason in page_text(gateway, f"/ui/jobs/{job}")
    words = page_text(gateway, "/ui/jobs")
    assert all(reason in words for _, reason in expected.values())


def test_queued_job_says_why_no_job_starts(api: TestClient, gateway: Gateway) -> None:
    job, jobs = submit(gateway), gateway.parts.jobs

    def reason() -> str:
        waiting = api.get(f"/v1/jobs/{job}").json()["waiting"]
        assert waiting["reason"] in page_text(gateway, f"/ui/jobs/{job}")
        assert (waiting["code"] == "queued") == (api.get("/readyz").json()["coordinator"] == "ok")
        return str(waiting["reason"])

    gateway.client.hset(OBSTACLES, mapping={"coordinator": "", "b": "{}", "c": '["x", ""]', "d": "3"})
    assert reason().startswith("Next in the queue. No job starts now: No coordinator has reported for 30 s.")
    jobs.report_obstacle("a", "The Ray cluster does not answer.")
    assert reason() == "Next in the queue. No job starts now: The Ray cluster does not answer."
    jobs.report_obstacle("b", "")
    assert reason() == "Next in the queue. The next job starts within seconds.", "another coordinator starts jobs"
    assert gateway.client.hkeys(OBSTACLES) == ["a", "b"], "unreadable reports are deleted"


def test_requeued_job_backs_off_without_the_rate_of_its_last_attempt(api: TestClient, gateway: Gateway) -> None:
    job = running(gateway)
    gateway.parts.jobs.requeue(job, "a", WorkerLost("gone"), 40)
    view = api.get(f"/v1/jobs/{job.id}").json()
    assert (view["waiting"]["code"], view["waiting"]["position"]) == ("backoff", 1)
    assert view["waiting"]["until"] and view["waiting"]["reason"].startswith("Attempt 1 ended. The next attempt can")
    progress = view["progress"]
    assert (progress["step"], progress["rate"]) == (239, None)
    assert (progress["eta_seconds"], progress["stage_eta_seconds"]) == (None, None)
    text = page_text(gateway, f"/ui/jobs/{job.id}")
    assert "The next attempt can start at" in text and "time left" not in text and "3,293" not in text
    assert "13 min" not in page_text(gateway, "/ui/jobs")


def test_running_job_says_what_it_waits_for_until_it_continues(api: TestClient, gateway: Gateway) -> None:
    job, jobs = running(gateway), gateway.parts.jobs
    jobs.report(T, job.id, 1, events=[("job.waiting", ClusterUnavailable("No room for 2 workers.").as_dict())])
    jobs.report(T, job.id, 1)
    waiting = api.get(f"/v1/jobs/{job.id}").json()["waiting"]
    assert (waiting["code"], waiting["reason"]) == ("cluster_unavailable", "No room for 2 workers.")
    assert "No room for 2 workers." in page_text(gateway, f"/ui/jobs/{job.id}")
    jobs.report(T, job.id, 1, progress=PROGRESS)
    assert api.get(f"/v1/jobs/{job.id}").json()["waiting"] is None


@pytest.mark.parametrize(
    ("silent", "shown"), [(29, ""), (31, "orkers last reported 31 s"), (400, "orkers last reported 6 min")]
)
def test_silent_workers_are_visible_from_thirty_seconds_on(
    api: TestClient, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, silent: int, shown: str
) -> None:
    job = running(gateway)
    beat(gateway, job, main=silent)
    now = gateway.parts.jobs.now()
    monkeypatch.setattr(gateway.parts.jobs, "now", lambda: now)
    view = api.get(f"/v1/jobs/{job.id}").json()
    assert (view["silent_seconds"] is not None) == bool(shown)
    for path in (f"/ui/jobs/{job.id}", "/ui/jobs"):
        text = page_text(gateway, path)
        assert ("orkers last reported" in text) == bool(shown) and shown in text


def test_one_silent_group_is_visible_beside_groups_that_report(api: TestClient, gateway: Gateway) -> None:
    job = running(gateway, seeds=(0, 1, 2))
    beat(gateway, job, **{"seed.s0": 1, "seed.s1": 400, "seed.s2": 1})
    assert api.get(f"/v1/jobs/{job.id}").json()["silent_seconds"] >= 400


def test_group_whose_stages_are_done_is_not_silent(api: TestClient, gateway: Gateway) -> None:
    job, jobs = running(gateway), gateway.parts.jobs
    beat(gateway, job, baseline=400)
    assert api.get(f"/v1/jobs/{job.id}").json()["silent_seconds"] >= 400
    for name in ("validate", "baseline"):
        situation = Situation.read(jobs, job)
        artifact, stage = situation.artifact_id(plan_of(job).node(name)), plan_of(job).node(name).stage.name
        ref = ManifestRef(folder=f"{T}/artifacts/{artifact}/{job.id}-1", digest="1" * 64)
        jobs.publish(T, job.id, 1, artifact=artifact, ref=ref, node=name, stage=stage)
    assert api.get(f"/v1/jobs/{job.id}").json()["silent_seconds"] is None
    beat(gateway, job, baseline=400, main=200)
    assert 200 <= api.get(f"/v1/jobs/{job.id}").json()["silent_seconds"] < 400


def test_job_without_workers_is_not_silent(api: TestClient, gateway: Gateway) -> None:
    job = running(gateway)
    gateway.client.hset(f"tlm:{{{T}}}:job:{job.id}", "updated_at", gateway.parts.jobs.now() - 400)
    for stage, total in (("validate", 0), ("select", 1000)):
        gateway.client.hset(f"tlm:{{{T}}}:job:{job.id}", "progress", progress_json(stage, total))
        view = api.get(f"/v1/jobs/{job.id}").json()
        assert (view["silent_seconds"], view["waiting"]) == (None, None), stage


@pytest.mark.parametrize(("quiet", "shown"), [(20, False), (400, True)])
def test_job_says_that_its_selection_waits_in_the_retriever(
    api: TestClient, gateway: Gateway, quiet: int, shown: bool
) -> None:
    job = running(gateway)
    changes = {"updated_at": gateway.parts.jobs.now() - quiet, "progress": progress_json("select", 0)}
    gateway.client.hset(f"tlm:{{{T}}}:job:{job.id}", mapping=changes)
    waiting = api.get(f"/v1/jobs/{job.id}").json()["waiting"]
    assert (waiting and waiting["code"]) == ("selection_waits" if shown else None)
    for path in (f"/ui/jobs/{job.id}", "/ui/jobs"):
        assert ("The selection waits in the retriever" in page_text(gateway, path)) == shown


def test_succeeded_job_is_complete_although_its_last_report_was_not(api: TestClient, gateway: Gateway) -> None:
    job = running(gateway)
    gateway.parts.jobs.finish(job, "a", {})
    progress = api.get(f"/v1/jobs/{job.id}").json()["progress"]
    assert (progress["share"], progress["eta_seconds"]) == (1.0, 0.0)
