"""The edge to Ray, against a fake job server: every response has a meaning, and every error is translated."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from services.trainer.cluster import RayCluster, Status, Submitted
from tlm_core.errors import ClusterUnavailable

Handler = Callable[[httpx.Request], httpx.Response]


def cluster(handler: Handler) -> RayCluster:
    return RayCluster(httpx.Client(base_url="http://ray", transport=httpx.MockTransport(handler)))


def always(status: int, body: Any = None, text: str | None = None) -> Handler:
    return lambda _: httpx.Response(status, json=body) if text is None else httpx.Response(status, text=text)


class JobServer:
    """The part of Ray's job server that the project uses."""

    def __init__(self) -> None:
        self.jobs: dict[str, str] = {}
        self.bodies: list[dict[str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST" and request.url.path == "/api/jobs/":
            body = json.loads(request.content)
            if body["submission_id"] in self.jobs:
                return httpx.Response(500, text="ValueError: already exists")
            self.bodies.append(body)
            self.jobs[body["submission_id"]] = "PENDING"
            return httpx.Response(200, json={"submission_id": body["submission_id"]})
        name, *verb = request.url.path.removeprefix("/api/jobs/").split("/")
        if name not in self.jobs:
            return httpx.Response(404, text="no such job")
        if request.method == "DELETE":
            if self.jobs[name] in ("PENDING", "RUNNING"):
                return httpx.Response(500, text="RuntimeError: it is in a non-terminal state")
            del self.jobs[name]
            return httpx.Response(200, json={"deleted": True})
        if verb == ["stop"]:
            self.jobs[name] = "STOPPED"
            return httpx.Response(200, json={"stopped": True})
        if verb == ["logs"]:
            return httpx.Response(200, json={"logs": "one\ntwo"})
        return httpx.Response(200, json={"status": self.jobs[name], "message": "why"})


def test_known_submission_is_not_started_again() -> None:
    server = JobServer()
    ray = cluster(server)
    assert ray.status("s") is Status.UNKNOWN
    ray.submit("s", ["python", "-c", "a b"], cpus=2.0)
    assert server.bodies == [{"submission_id": "s", "entrypoint": "python -c 'a b'", "entrypoint_num_cpus": 2.0}]
    assert ray.status("s") is Status.WAITING
    server.jobs["s"] = "RUNNING"
    ray.submit("s", ["python"])
    assert ray.status("s") is Status.RUNNING
    ray.stop("s")
    assert ray.status("s") is Status.FAILED
    assert ray.ending("s").details == "why\none\ntwo"
    ray.stop("unknown")


@pytest.mark.parametrize(
    ("status", "accepted", "lost"), [("PENDING", 99, True), ("PENDING", 101, False), ("RUNNING", 99, False)]
)
def test_submission_that_waited_at_a_restart_of_the_head_is_lost(status: str, accepted: int, lost: bool) -> None:
    head = {"state": "ALIVE", "is_head_node": True, "start_time_ms": 100}
    others = [{**head, "state": "DEAD", "start_time_ms": 120}, {**head, "is_head_node": False, "start_time_ms": 130}]

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/v0/nodes":
            return httpx.Response(200, json={"data": {"result": {"result": [head, *others]}}})
        return httpx.Response(200, json={"status": status, "start_time": accepted})

    assert cluster(answer).is_lost("s") is lost


def test_lost_submission_is_released_once() -> None:
    server = JobServer()
    for _ in range(2):
        cluster(server).release("s")
    (body,) = server.bodies
    assert body["submission_id"] == "s.release" and body["entrypoint"].endswith("_ray_internal_job_actor_s")


def test_deleted_submission_leaves_no_release() -> None:
    server = JobServer()
    ray = cluster(server)
    ray.release("s")
    server.jobs |= {"s": "FAILED", "other": "FAILED"}
    with pytest.raises(ClusterUnavailable, match="non-terminal"):
        ray.delete("s")
    assert server.jobs.keys() == {"s", "s.release", "other"}, "The next sweep deletes both."
    server.jobs["s.release"] = "SUCCEEDED"
    ray.delete("s")
    assert server.jobs.keys() == {"other"}


def no_logs(_: httpx.Request) -> httpx.Response:
    return httpx.Response(500, text="Cannot connect to host 10.0.0.4:52365")


def silent_logs(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadTimeout("timed out", request=request)


@pytest.mark.parametrize(("logs", "says"), [(no_logs, "Cannot connect to host"), (silent_logs, "timed out")])
def test_ending_survives_the_loss_of_the_logs(logs: Handler, says: str) -> None:
    def away(request: httpx.Request) -> httpx.Response:
        return logs(request) if request.url.path.endswith("/logs") else server(request)

    server = JobServer()
    server.jobs["s"] = "FAILED"
    details = cluster(away).ending("s").details
    assert details.startswith("why\n")
    assert says in details


@pytest.mark.parametrize(
    ("exit_code", "summary"),
    [
        (137, "Worker was killed (SIGKILL, often out of memory)."),
        (-9, "Worker was killed (SIGKILL, often out of memory)."),
        (139, "Worker was killed (SIGSEGV)."),
        (1, "Worker ended with exit code 1."),
        (0, "Worker ended without a result. If the code of the service changed since its start, restart the service."),
        (None, "Worker was lost, often with its machine."),
    ],
)
def test_ending_is_one_sentence_and_its_details_have_no_secrets(exit_code: int | None, summary: str) -> None:
    output = "RAY_AUTH_TOKEN=s3cret redis://:hunter2@host/0\nAuthorization: Bearer abc\nstep 7, 12 tokens"
    message = f"Job entrypoint command failed with exit code {exit_code}, last available logs:\n{output}"

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/logs"):
            return httpx.Response(200, json={"logs": output})
        return httpx.Response(200, json={"status": "FAILED", "message": message, "driver_exit_code": exit_code})

    ending = cluster(handler).ending("s")
    assert ending.message == summary
    assert [secret for secret in ("s3cret", "hunter2", "abc") if secret in ending.details] == []
    assert ending.details.count("step 7, 12 tokens") == 1


def test_concurrent_submissions_of_one_id_start_one_job() -> None:
    server = JobServer()

    def race(request: httpx.Request) -> httpx.Response:
        response = server(request)
        if not server.bodies:  # Another coordinator submits right after the first look.
            cluster(server).submit("s", ["other"], cpus=1)
        return response

    cluster(race).submit("s", ["python"], cpus=1)
    assert [body["entrypoint"] for body in server.bodies] == ["other"]
    assert server.jobs == {"s": "PENDING"}


def test_every_ray_status_is_mapped() -> None:
    from ray.job_submission import JobStatus

    server = JobServer()
    ray = cluster(server)
    for status in JobStatus:
        server.jobs["s"] = status.value
        assert (ray.status("s") in (Status.WAITING, Status.RUNNING)) == (not status.is_terminal())


def test_every_transport_error_is_translated() -> None:
    pending: list[type[Exception]] = [httpx.TransportError]
    while pending:
        cls = pending.pop()
        pending.extend(cls.__subclasses__())

        def broken(request: httpx.Request, cls: type[Any] = cls) -> httpx.Response:
            raise cls("failed", request=request)

        with pytest.raises(ClusterUnavailable):
            cluster(broken).status("s")


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (always(401, text="no"), "RAY_AUTH_TOKEN"),
        (always(403, text="no"), "RAY_AUTH_TOKEN"),
        (always(500, text="Traceback\nboom"), "boom"),
        (always(200, text="<html>"), "not JSON"),
        (always(200, {"nothing": 1}), "unknown status"),
    ],
)
def test_invalid_response_raises_cluster_unavailable(handler: Handler, says: str) -> None:
    with pytest.raises(ClusterUnavailable, match=says):
        cluster(handler).status("s")


def test_head_without_an_agent_is_unavailable() -> None:
    def no_agent(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(500, text="No available agent to submit job, please try again later.")
        return httpx.Response(404, text="no such job")

    with pytest.raises(ClusterUnavailable, match="try again later"):
        cluster(no_agent).submit("s", ["python"], cpus=1)


def test_submissions_of_this_service_are_listed_and_deleted() -> None:
    command = "python -m services.trainer.program --tenant t --job job_1 --attempt 2 --group main"
    entries = [
        {"submission_id": "job_1.main.2", "status": "RUNNING", "entrypoint": command},
        {"submission_id": "job_1.main.1", "status": "FAILED", "entrypoint": command, "end_time": 1_500},
        {"submission_id": None, "status": "RUNNING", "entrypoint": command},
        {"submission_id": "other", "status": "FAILED", "entrypoint": "python 'unbalanced"},
        {"submission_id": "other", "status": "FAILED", "entrypoint": "python -m other --tenant t --job j --attempt 1"},
    ]
    requests = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(f"{request.method} {request.url.path}")
        return httpx.Response(200, json=entries if request.method == "GET" else {})

    ray = cluster(answer)
    assert ray.submissions() == [
        Submitted("job_1.main.2", Status.RUNNING, "t", "job_1", 2),
        Submitted("job_1.main.1", Status.FAILED, "t", "job_1", 2, ended_at=1.5),
    ]
    ray.delete("job_1.main.2")
    assert requests[-1] == "DELETE /api/jobs/job_1.main.2"
    cluster(always(404)).delete("unknown")


def test_gpus_of_living_nodes_are_counted() -> None:
    nodes = [
        {"state": "ALIVE", "resources_total": {"CPU": 8.0, "GPU": 2.0}},
        {"state": "ALIVE", "resources_total": {"CPU": 8.0}},
        {"state": "DEAD", "resources_total": {"GPU": 4.0}},
    ]
    assert cluster(always(200, {"data": {"result": {"result": nodes}}})).gpus() == 2.0


@pytest.mark.parametrize("offered", [0.0, 4.0])
def test_driver_runs_off_the_head_where_nodes_offer_room(offered: float) -> None:
    bodies = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.startswith("/api/v0/nodes"):
            nodes = [{"state": "ALIVE", "resources_total": {"driver": offered}}]
            return httpx.Response(200, json={"data": {"result": {"result": nodes}}})
        if request.method == "POST":
            bodies.append(json.loads(request.content))
        return httpx.Response(200 if request.method == "POST" else 404, json={})

    ray = cluster(answer)
    ray.submit("driver", ["run"])
    ray.submit("worker", ["run"], cpus=2.0)
    assert bodies[0].get("entrypoint_resources") == ({"driver": 1} if offered else None)
    assert bodies[1]["entrypoint_num_cpus"] == 2.0 and "entrypoint_resources" not in bodies[1]


def test_reachable_job_server_answers() -> None:
    assert cluster(always(200, {"version": "4"})).answers()
    assert not cluster(always(502, text="bad gateway")).answers()
