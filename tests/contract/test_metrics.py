"""The figures of each process for Prometheus, and the ids in log lines across processes."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from fastapi.testclient import TestClient
from prometheus_client import start_http_server
from prometheus_client.parser import text_string_to_metric_families

from services.api.app import create_app
from services.common.background import Background
from services.common.jobstore import JobStore
from services.common.logs import log_context, request_id, set_up_logging
from services.common.metrics import REGISTRY, STAGES
from services.common.redis_client import DISK_FREE, QUEUE, REMOVALS, TO_MOVE, connect
from services.common.retriever_client import RetrieverClient
from services.common.situation import Situation
from services.trainer.cluster import Status
from services.trainer.local_stages import LocalThreads
from services.trainer.reporter import JobReporter
from services.trainer.sweeper import _DEPTHS
from tests.contract.coordinator_harness import CoordinatorHarness, MovableClockStore, T
from tests.contract.gateway import AUTH, Gateway, make_gateway, upload
from tests.contract.retriever_harness import RetrieverHarness
from tests.factories import make_resolved, make_spec
from tests.redis_server import RedisServer, free_port
from tests.support import wait_for
from tlm_core.errors import EmptySelection, WorkerLost, error_classes
from tlm_core.jobs.spec import Progress
from tlm_core.jobs.states import State

Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Figures:
    """Return the value of each sample by name and labels."""
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}


def value(figures: Figures, name: str, **labels: str) -> float:
    return figures[name, frozenset(labels.items())]


def increase(before: Figures, after: Figures, name: str, **labels: str) -> float:
    """Return by how much a figure has grown. It may be absent before, and is then 0."""
    return value(after, name, **labels) - before.get((name, frozenset(labels.items())), 0.0)


@pytest.fixture
def harness(redis_client: redis.Redis, tmp_path: Path) -> CoordinatorHarness:
    return CoordinatorHarness(MovableClockStore(redis_client), tmp_path)


@pytest.fixture
def gateway(redis_client: redis.Redis, tmp_path: Path) -> Gateway:
    return make_gateway(redis_client, tmp_path)


@pytest.fixture
def memory_limit(redis_client: redis.Redis) -> Iterator[int]:
    """The limit of the memory of Redis, in bytes."""
    redis_client.config_set("maxmemory", 1 << 30)
    yield 1 << 30
    redis_client.config_set("maxmemory", 0)


def test_gateway_shows_the_queue_redis_and_requests(
    gateway: Gateway, redis_client: redis.Redis, memory_limit: int
) -> None:
    redis_client.set(DISK_FREE, 10 << 20)
    redis_client.zadd("tlm:webhook:due", {"wh_1/msg_1_1": time.time() + 3600})
    with gateway.test_client() as api:
        before = parsed(api.get("/metrics").text)
        assert upload(api).status_code == 201
        assert api.post("/v1/jobs", json={"dataset": "toy"}).status_code == 202
        api.get("/v1/jobs/job_1m83r73xbd01k988mks")
        figures = parsed(api.get("/metrics").text)
        assert value(figures, "tlm_jobs", state="queued") == 1
        assert 0 <= value(figures, "tlm_queue_oldest_seconds") < 60
        (member,) = redis_client.zrange(QUEUE, 0, -1)
        redis_client.zincrby(QUEUE, -100, member)
        assert 60 < value(parsed(api.get("/metrics").text), "tlm_queue_oldest_seconds") < 160
        redis_client.hset(f"tlm:{{default}}:job:{member.split('/')[1]}", "due_at", 9e9)
        assert value(parsed(api.get("/metrics").text), "tlm_queue_oldest_seconds") == 0
        assert value(figures, "tlm_redis_up") == 1
        assert 0 < value(figures, "tlm_redis_write_seconds") < 5
        memory: Any = redis_client.info("memory")
        assert value(figures, "tlm_redis_memory_bytes") == pytest.approx(memory["used_memory"], rel=0.2)
        assert value(figures, "tlm_redis_memory_limit_bytes") == memory_limit
        assert value(figures, "tlm_webhook_backlog") == 1
        assert value(figures, "tlm_redis_disk_free_bytes") == 10 << 30
        assert value(figures, "tlm_storage_free_bytes") > 0
        assert value(figures, "tlm_process_resident_memory_bytes") > 1e6
        labels = {"method": "GET", "route": "/v1/jobs/{job}", "status": "404"}
        assert increase(before, figures, "tlm_request_seconds_count", **labels) == 1
        with gateway.parts.removals.round():
            raise RuntimeError("a bug")
        assert value(parsed(api.get("/metrics").text), "tlm_background_failing", task="removals") == 1
        with gateway.parts.removals.round():
            pass
        assert value(parsed(api.get("/metrics").text), "tlm_background_failing", task="removals") == 0


def test_gateway_shows_deletions_and_streams_that_wait(gateway: Gateway, redis_client: redis.Redis) -> None:
    api = TestClient(create_app(gateway.parts), headers=AUTH)  # Its tasks do not run.
    figures = parsed(api.get("/metrics").text)
    assert (value(figures, "tlm_removals"), value(figures, "tlm_streams_to_move")) == (0, 0)
    redis_client.hset(REMOVALS, mapping={"default/job_1": "{}", "default/job_2": "{}"})
    redis_client.sadd(TO_MOVE, "default/job_1", "default/job_2", "default/job_3")
    figures = parsed(api.get("/metrics").text)
    assert (value(figures, "tlm_removals"), value(figures, "tlm_streams_to_move")) == (2, 3)


def test_gateway_shows_its_open_event_streams(gateway: Gateway) -> None:
    with gateway.served() as url, httpx.Client(base_url=url, headers=AUTH, trust_env=False, timeout=20) as api:
        upload(api)
        job_id = api.post("/v1/jobs", json={"dataset": "toy"}).json()["id"]

        def streams() -> float:
            return value(parsed(api.get("/metrics").text), "tlm_event_streams")

        assert streams() == 0
        with api.stream("GET", f"/v1/jobs/{job_id}/events", headers={"Accept": "text/event-stream"}) as answer:
            wait_for(lambda: streams() == 1, 20)
            assert answer.status_code == 200
        wait_for(lambda: streams() == 0, 20)


def test_coordinator_logs_claims_and_releases_with_the_job(harness: CoordinatorHarness, lines: Any) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    coordinator.round()
    harness.store._redis.delete(f"tlm:{{{T}}}:job:{job_id}")
    coordinator.round()
    logged = {line["event"].split()[0]: line["job_id"] for line in lines() if job_id in line["event"]}
    assert logged == {"Claimed": job_id, "Released": job_id}


def test_gateway_without_its_storage_shows_the_other_figures(gateway: Gateway) -> None:
    with gateway.test_client() as api:
        assert value(parsed(api.get("/metrics").text), "tlm_storage_up") == 1
        shutil.rmtree(gateway.root / "storage")
        figures = parsed(api.get("/metrics").text)
    assert (value(figures, "tlm_redis_up"), value(figures, "tlm_storage_up")) == (1, 0)
    assert "tlm_storage_free_bytes" not in {name for name, _ in figures}


def test_figures_of_the_gateway_need_the_token_but_not_redis(gateway: Gateway, monkeypatch: Any) -> None:
    with gateway.test_client() as api:
        assert TestClient(api.app).get("/metrics").status_code == 401
        monkeypatch.setattr(gateway.parts.jobs, "_redis", connect("redis://127.0.0.1:1/0"))
        answer = api.get("/metrics")
        assert answer.status_code == 200
        assert value(parsed(answer.text), "tlm_redis_up") == 0


def test_gateway_shows_the_memory_of_a_full_redis(gateway: Gateway, redis_client: redis.Redis) -> None:
    with gateway.test_client() as api:
        redis_client.config_set("maxmemory", 1)
        try:
            figures = parsed(api.get("/metrics").text)
        finally:
            redis_client.config_set("maxmemory", 0)
    assert value(figures, "tlm_redis_up") == 0
    assert value(figures, "tlm_redis_memory_bytes") > value(figures, "tlm_redis_memory_limit_bytes") == 1


def test_damaged_time_of_a_job_hides_no_figures(gateway: Gateway, redis_client: redis.Redis) -> None:
    with gateway.test_client() as api:
        upload(api)
        job_id = api.post("/v1/jobs", json={"dataset": "toy"}).json()["id"]
        redis_client.hset(f"tlm:{{default}}:job:{job_id}", "due_at", "damaged")
        assert value(parsed(api.get("/metrics").text), "tlm_jobs", state="queued") == 1


@pytest.fixture
def scrape() -> Iterator[Callable[[], Figures]]:
    """Yield a function that reads the figures of this process as Prometheus does."""
    port = free_port()
    server, thread = start_http_server(port, "127.0.0.1", registry=REGISTRY)

    def read() -> Figures:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            return parsed(answer.read().decode())

    yield read
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def grown(scrape: Callable[[], Figures]) -> Callable[..., float]:
    """Return a function that returns by how much a figure has grown since the test began."""
    before = scrape()
    return lambda name, **labels: increase(before, scrape(), name, **labels)


def report_rate(harness: CoordinatorHarness, job_id: str, rate: float) -> None:
    progress = Progress(stage="self_train", node="self_train", step=3, total=9, rate=rate, unit="tokens")
    harness.store.report(T, job_id, 1, progress=progress)


def test_coordinator_counts_claims_stages_and_requeues(
    harness: CoordinatorHarness, grown: Callable[..., float]
) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    submission = harness.until_submitted(coordinator, job_id)
    report_rate(harness, job_id, 512.0)
    harness.beat(job_id, phase="starting")
    coordinator.round()
    assert coordinator._held[job_id].rate == 0.0, "This progress is of an earlier attempt."
    harness.beat(job_id, rate=512.0)
    coordinator.round()
    assert coordinator._held[job_id].rate == 512.0
    harness.work(submission)
    coordinator.round()
    lost = harness.submit(seeds=(5,))
    harness.cluster.statuses[harness.until_submitted(coordinator, lost)] = Status.FAILED
    coordinator.round()
    assert grown("tlm_claims_total", adopted="false") == 2
    assert grown("tlm_first_step_seconds_count") == 1
    assert grown("tlm_stage_seconds_count", stage="self_train") == 1
    assert grown("tlm_requeues_total", cause=WorkerLost.code) == 1


def test_time_of_a_stage_is_zero_before_its_first_end(
    harness: CoordinatorHarness, scrape: Callable[[], Figures]
) -> None:
    STAGES.clear()
    coordinator, job_id = harness.coordinator(), harness.submit()
    harness.until_submitted(coordinator, job_id)
    report_rate(harness, job_id, 512.0)
    harness.beat(job_id, rate=512.0)
    coordinator.round()
    assert value(scrape(), "tlm_stage_seconds_count", stage="self_train") == 0


def test_job_is_idle_while_it_waits_for_room_or_for_ray(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    submission = harness.until_submitted(coordinator, job_id)
    harness.cluster.statuses[submission] = Status.WAITING
    harness.beat(job_id, phase="waiting")
    coordinator.round()
    assert coordinator.idle_jobs == 1
    harness.cluster.statuses[submission] = Status.RUNNING
    harness.beat(job_id)
    coordinator.round()
    assert coordinator.idle_jobs == 0
    harness.cluster.away = True
    coordinator.round()
    assert coordinator.idle_jobs == 1


def test_coordinator_counts_failures_by_cause(harness: CoordinatorHarness, grown: Callable[..., float]) -> None:
    harness.validate_error = EmptySelection("No passage matches.")
    job = harness.until_ended(harness.coordinator(), harness.submit())
    assert job.state is State.FAILED
    assert grown("tlm_failures_total", cause=EmptySelection.code) == 1
    assert grown("tlm_failures_total", cause=WorkerLost.code) == 0


def test_worker_shows_speed_and_step_of_its_stage(redis_client: redis.Redis, scrape: Callable[[], Figures]) -> None:
    store = JobStore(redis_client)
    store.submit(T, make_spec(), make_resolved())
    job = store.claim("a", 60)
    assert job is not None
    situation = Situation.read(store, job)
    with closing(JobReporter(store, T, job.id, job.attempt, "main")) as reporter:
        reporter.start_node(situation, situation.plan.node("prepare"))
        reporter.progress(step=3, total=9, rate=512.0, unit="tokens", eta_seconds=None)
        labels = {"job_id": job.id, "node": "prepare"}
        assert value(scrape(), "tlm_worker_step", **labels) == 3
        assert value(scrape(), "tlm_worker_speed", unit="tokens", **labels) == 512.0
        reporter.start_node(situation, situation.plan.node("evaluate"))
        assert "tlm_worker_speed" not in {name for name, _ in scrape()}, "The speed was of the earlier stage."


def test_counters_show_zero_before_their_first_event() -> None:
    program = (
        "import services.trainer.sweeper; from services.common.metrics import exposition as e; print(e().decode())"
    )
    figures = parsed(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
    retryable = {code for code, error in error_classes().items() if error.retryable}
    for name, label, shown in (
        ("tlm_claims_total", "adopted", {"false", "true"}),
        ("tlm_requeues_total", "cause", retryable),
        ("tlm_failures_total", "cause", error_classes().keys()),
        ("tlm_orphans_total", "kind", {"submission", "indexes", "parts", *_DEPTHS}),
    ):
        samples = {labels: number for (of, labels), number in figures.items() if of == name}
        assert samples == {frozenset({(label, entry)}): 0.0 for entry in shown}, name


def test_running_coordinator_shows_rounds_tokens_and_taken_jobs(
    harness: CoordinatorHarness, scrape: Callable[[], Figures], grown: Callable[..., float]
) -> None:
    coordinator, stop, job_id = harness.coordinator(poll_seconds=0.01), threading.Event(), harness.submit()
    harness.until_submitted(coordinator, job_id)
    report_rate(harness, job_id, 512.0)
    harness.beat(job_id, rate=512.0)
    runner = threading.Thread(target=coordinator.run, args=(stop,))
    runner.start()
    try:
        wait_for(lambda: value(scrape(), "tlm_tokens_per_second") == 512.0, 10)
        wait_for(lambda: grown("tlm_round_seconds_count") >= 3, 10)
    finally:
        stop.set()
        runner.join(20)
    assert (value(scrape(), "tlm_held_jobs"), value(scrape(), "tlm_idle_jobs")) == (1, 0)
    assert 0 < grown("tlm_round_seconds_sum") < 20
    harness.coordinator("next").round()
    coordinator.round()
    assert (grown("tlm_claims_total", adopted="true"), grown("tlm_lease_losses_total")) == (1, 1)


@pytest.mark.parametrize(
    ("service", "tasks"),
    [
        ("loader", {"splitting of uploads", "loads"}),
        ("trainer", {"rounds", "leases", "streams", "marks", "archive", "sweep", "orphans"}),
    ],
)
def test_process_without_a_server_shows_its_tasks(
    service: str, tasks: set[str], redis_server: RedisServer, tmp_path: Path
) -> None:
    port = free_port()
    values = {
        "redis_url": f"redis://127.0.0.1:{redis_server.port}/0", "redis_password": redis_server.password,
        "storage": tmp_path / "storage", "scratch": tmp_path / "scratch", "metrics_host": "127.0.0.1",
        "metrics_port": port, "retriever_url": "http://127.0.0.1:1",
    } | ({"ray_url": "http://127.0.0.1:1"} if service == "trainer" else {})  # fmt: skip
    settings = {f"TLM_{service}_{name}".upper(): str(value) for name, value in values.items()}
    command = [sys.executable, "-m", f"services.{service}"]

    def answer() -> httpx.Response | None:
        with suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False)
        return None

    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(command, env={**os.environ, **settings}, stderr=log) as process,
    ):
        try:
            ready = wait_for(answer, 60)
            assert (ready.status_code, ready.json()) == (200, dict.fromkeys(tasks, "ok"))
            process.terminate()
            assert process.wait(60) == 0, (tmp_path / "log").read_text()
        finally:
            process.kill()


def test_retriever_shows_its_requests(tmp_path: Path) -> None:
    harness = RetrieverHarness(tmp_path, "embedded", "http://127.0.0.1:1")
    with harness.retriever() as api:
        before = parsed(api._http.get("/metrics").text)
        assert api.corpus(*harness.key).state == "unknown"
        after = parsed(api._http.get("/metrics").text)
    labels = {"method": "GET", "route": "/corpora/{tenant}/{name}/versions/{version}", "status": "404"}
    assert increase(before, after, "tlm_request_seconds_count", **labels) == 1
    assert value(after, "tlm_index_up") == 1


def test_retriever_shows_an_outage_of_opensearch(tmp_path: Path) -> None:
    with RetrieverHarness(tmp_path, "opensearch", "http://127.0.0.1:1").retriever() as api:
        assert value(parsed(api._http.get("/metrics").text), "tlm_index_up") == 0


def test_repeated_task_shows_that_it_has_stopped() -> None:
    task = Background("test")
    with task.running():
        pass
    assert REGISTRY.get_sample_value("tlm_background_failing", {"task": "test"}) == 1


def test_request_id_reaches_coordinator_and_worker(gateway: Gateway, redis_client: redis.Redis, tmp_path: Path) -> None:
    with gateway.test_client() as api:
        upload(api)
        job_id = api.post("/v1/jobs", json={"dataset": "toy"}, headers={"X-Request-ID": "from-client"}).json()["id"]
    harness = CoordinatorHarness(MovableClockStore(redis_client), tmp_path)
    submission = harness.until_submitted(harness.coordinator(), job_id)
    assert harness.job(job_id).request_id == "from-client"
    assert harness.cluster.assignment(submission).request_id == "from-client"


def test_stage_in_a_thread_of_the_coordinator_logs_the_ids(harness: CoordinatorHarness, lines: Any) -> None:
    local, log = harness.local, logging.getLogger("services.test")

    def logged(*args: Any) -> Any:
        log.info("a stage")
        return local(*args)

    with ThreadPoolExecutor(1) as harness.executor:
        coordinator = harness.coordinator()
        coordinator.local = LocalThreads(logged, lambda: harness.executor)
        with log_context(request_id="req_1"):
            job_id = harness.submit()
        coordinator.round()
    (line,) = (line for line in lines() if line["event"] == "a stage")
    assert (line["job_id"], line["attempt"], line["request_id"]) == (job_id, 1, "req_1")


@pytest.mark.parametrize("service", ["api", "loader", "retriever", "trainer"])
def test_service_without_settings_ends_with_a_json_line(service: str) -> None:
    process = subprocess.run([sys.executable, "-m", f"services.{service}"], capture_output=True, text=True)
    (line,) = map(json.loads, process.stderr.splitlines())
    assert process.returncode == 1 and line["service"] == service
    assert "storage" in line["event"] and "ValidationError" in line["exception"]


def test_worker_process_logs_the_ids_in_every_thread(lines: Any) -> None:  # noqa: ARG001
    stream = io.StringIO()
    set_up_logging("worker", {"job_id": "job_1", "attempt": 2, "request_id": "req_1"}, stream=stream)
    with ThreadPoolExecutor(1) as threads:
        threads.submit(logging.getLogger("services.test").info, "a line").result()
    line = json.loads(stream.getvalue())
    assert (line["job_id"], line["attempt"], line["request_id"]) == ("job_1", 2, "req_1")


def test_request_id_reaches_the_loader(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []
    monkeypatch.setattr(gateway.loads, "_step", lambda _: seen.append(request_id()))
    with gateway.test_client() as api:
        body = {"data": {"name": "docs"}, "files": {"files": ("a.txt", "text")}, "headers": {"X-Request-ID": "mine"}}
        assert api.post("/v1/corpora", **body).status_code == 202  # type: ignore[arg-type]
        wait_for(lambda: seen, 10)
    assert set(seen) == {"mine"}


def test_request_id_reaches_the_retriever() -> None:
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("X-Request-ID"))
        return httpx.Response(200, json={})

    client = RetrieverClient(httpx.Client(transport=httpx.MockTransport(answer), base_url="http://retriever"))
    with log_context(request_id="req_1"):
        client.ready()
    client.ready()
    assert seen == ["req_1", None]
