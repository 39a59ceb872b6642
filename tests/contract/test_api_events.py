"""Event streams: ordered, complete after reconnections, and with an explicit end."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from services.api.streams import Tailer
from services.common.archive import Archive
from services.common.history import History, Row
from services.common.jobstore import JobStore
from services.trainer.patience import report_error
from tests.contract.gateway import AUTH, TOKEN, Gateway, make_gateway, restarted
from tests.factories import make_resolved, make_spec
from tests.support import wait_for
from tlm_client.client import TLMClient
from tlm_core.errors import NotFound, StoreUnavailable, WorkerLost
from tlm_core.jobs.spec import Event, JobRecord, Progress
from tlm_core.wire import JobEvent

T = "default"


def running(gateway: Gateway) -> JobRecord:
    gateway.parts.jobs.submit(T, make_spec(), make_resolved())
    job = gateway.parts.jobs.claim("a", 60)
    assert job is not None
    return job


def frames(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    """Yield the frames of an event stream. A comment has the key 'comment'."""
    frame: dict[str, str] = {}
    for line in lines:
        if not line:
            if frame:
                yield frame
            frame = {}
        elif line.startswith(":"):
            frame["comment"] = line[1:]
        else:
            key, _, value = line.partition(": ")
            frame[key] = value


def read(
    url: str,
    job: str,
    *,
    last: str | None = None,
    count: int | None = None,
    received: list[dict[str, str]] | None = None,
) -> list[dict[str, str]]:
    """Return the frames of a stream up to its end, or the first `count`; `received` shows them as they arrive."""
    headers = {**AUTH, "Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
    received = [] if received is None else received
    with (
        httpx.Client(timeout=20, verify=False) as client,
        client.stream("GET", f"{url}/v1/jobs/{job}/events", headers=headers) as answer,
    ):
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        for frame in frames(answer.iter_lines()):
            if "event" in frame:
                received.append(frame)
            if count is not None and len(received) >= count:
                break
    return received


def move_streams(store: JobStore) -> None:
    Archive(store).mark_streams()
    Archive(store).move_marked()


def numbered(received: list[dict[str, str]]) -> list[int]:
    return [int(frame["id"]) for frame in received if "id" in frame]


def test_stream_of_a_finished_job_ends(gateway: Gateway) -> None:
    job = running(gateway)
    gateway.parts.jobs.report(T, job.id, 1, events=[("note", {"text": "line\nbreak ü"})])
    gateway.parts.jobs.finish(job, "a", {})
    log = gateway.parts.jobs.events(T, job.id)
    with gateway.served() as url:
        received = read(url, job.id)
        assert [json.loads(f["data"]) for f in received[:-1]] == [
            JobEvent.model_validate(e).model_dump(mode="json") for e in log
        ]
        assert [f["event"] for f in received] == [e.type for e in log] + ["end"]
        assert "id" not in received[-1]
        assert json.loads(received[-1]["data"]) == {"state": "succeeded"}
        assert numbered(read(url, job.id, last="2")) == [e.seq for e in log][2:]
        assert [f["event"] for f in read(url, job.id, last=str(log[-1].seq))] == ["end"]


def test_events_have_json_pages(gateway: Gateway) -> None:
    job = running(gateway)
    with gateway.test_client() as api:
        first = api.get(f"/v1/jobs/{job.id}/events?limit=1").json()
        assert ([e["seq"] for e in first["data"]], first["has_more"]) == ([1], True)
        rest = api.get(f"/v1/jobs/{job.id}/events?after=1").json()
        assert ([e["type"] for e in rest["data"]], rest["has_more"]) == (["job.claimed"], False)
        wrong = api.get(f"/v1/jobs/{job.id}/events?stream=true", headers={"Last-Event-ID": "x"})
        assert wrong.status_code == 422


def test_events_of_errors_have_no_details_and_the_store_no_secrets(gateway: Gateway) -> None:
    store, job = gateway.parts.jobs, running(gateway)
    error = WorkerLost("Worker was killed.", details="x" * 5000 + " redis://:secret@host")
    report_error(store, T, job.id, job.attempt, error)
    stored = store.events(T, job.id)[-1].data
    assert stored["details"].endswith("redis://:[redacted]@host") and len(stored["details"]) == 4000
    with gateway.test_client() as api:
        event = api.get(f"/v1/jobs/{job.id}/events").json()["data"][-1]
    assert event["type"] == "attempt.error"
    assert event["data"] == {"code": "worker_lost", "message": "Worker was killed.", "retryable": True}


def test_reconnecting_streams_lose_and_repeat_no_event(gateway: Gateway) -> None:
    job = running(gateway)
    store, rng = gateway.parts.jobs, random.Random(0)

    def work() -> None:
        for number in range(300):
            store.report(T, job.id, 1, events=[("tick", {"n": number})] * rng.randint(1, 3))
        store.finish(job, "a", {})

    writer = threading.Thread(target=work)
    seen: list[int] = []
    with gateway.served() as url:
        writer.start()
        for cut in range(100):
            received = read(url, job.id, last=str(seen[-1]) if seen else None, count=1 + cut % 4)
            seen.extend(numbered(received))
        writer.join()
        tail = read(url, job.id, last=str(seen[-1]))
        seen.extend(numbered(tail))
    assert tail[-1]["event"] == "end"
    assert seen == [event.seq for event in store.events(T, job.id, limit=10_000)]


@pytest.mark.parametrize("gateways", [1, 3])
def test_clients_cut_at_random_over_restarts_see_the_whole_log(
    redis_client: redis.Redis, tmp_path: Path, gateways: int
) -> None:
    """Twelve clients; each gateway restarts while they read, and the streams move to the storage meanwhile."""
    started = [make_gateway(redis_client, tmp_path) for _ in range(gateways)]
    job, store = running(started[0]), started[0].parts.jobs
    urls: list[str] = []

    def follow(seed: int) -> list[int]:
        rng, seen = random.Random(seed), list[int]()
        while True:
            with suppress(httpx.HTTPError, IndexError):
                last = str(seen[-1]) if seen else None
                received = read(rng.choice(urls), job.id, last=last, count=rng.randint(1, 40))
                seen += numbered(received)
                if received and received[-1]["event"] == "end":
                    return seen

    def write(first: int) -> None:
        for number in range(first, first + 60):
            store.report(T, job.id, 1, events=[("tick", {"n": number})], logs=["line"])

    with ThreadPoolExecutor(12) as clients:
        followed = [clients.submit(follow, seed) for seed in range(12)]
        for life in range(3):
            with ExitStack() as served:
                urls[:] = [served.enter_context(gateway.served()) for gateway in started]
                write(60 * life)
                if life == 2:
                    store.finish(job, "a", {})
                    move_streams(store)
                    [client.result() for client in followed]
            started = [restarted(gateway) for gateway in started]
    log = [event.seq for event in store.events(T, job.id, limit=10_000)]
    assert log == list(range(1, 184))
    assert [client.result() for client in followed] == [log] * 12


def test_live_events_and_progress_arrive(gateway: Gateway) -> None:
    job = running(gateway)
    store = gateway.parts.jobs
    arrived: list[tuple[float, dict[str, str]]] = []

    def listen(url: str) -> None:
        headers = {**AUTH, "Accept": "text/event-stream"}
        with (
            httpx.Client(timeout=20, verify=False) as client,
            client.stream("GET", f"{url}/v1/jobs/{job.id}/events", headers=headers) as answer,
        ):
            for frame in frames(answer.iter_lines()):
                arrived.append((time.monotonic(), frame))

    def has(kind: str, count: int = 1) -> bool:
        return sum(frame.get("event") == kind for _, frame in arrived) >= count

    with gateway.served() as url:
        listener = threading.Thread(target=listen, args=(url,))
        listener.start()
        wait_for(lambda: has("job.claimed"))
        reported_at = time.monotonic()
        store.report(T, job.id, 1, events=[("tick", {})], progress=Progress(stage="joint", node="joint.s0", step=1))
        wait_for(lambda: has("tick") and has("progress"))
        assert next(at for at, f in arrived if f.get("event") == "tick") - reported_at < 2
        started = time.monotonic()
        for step in range(2, 60):
            store.report(T, job.id, 1, progress=Progress(stage="joint", node="joint.s0", step=step))
            time.sleep(0.005)
        store.finish(job, "a", {})
        elapsed = time.monotonic() - started
        listener.join(10)
    snapshots = [json.loads(f["data"])["step"] for _, f in arrived if f.get("event") == "progress"]
    assert snapshots == sorted(set(snapshots))
    assert 2 <= len(snapshots) <= elapsed / 0.1 + 3 < 58, "Progress is sampled."
    assert arrived[-1][1]["event"] == "end"
    assert all("id" not in f for _, f in arrived if f.get("event") in ("progress", "end"))


def test_many_streams_share_one_poll(gateway: Gateway) -> None:
    jobs = [running(gateway) for _ in range(4)]
    with gateway.served() as url, ThreadPoolExecutor(60) as pool:
        readers = [pool.submit(read, url, job.id) for job in jobs for _ in range(15)]
        wait_for(lambda: watcher_count(gateway) == 60)
        before = poll_count(gateway)
        started = time.monotonic()
        time.sleep(0.5)
        elapsed = time.monotonic() - started
        spent = poll_count(gateway) - before
        rounds = elapsed / 0.02
        assert spent <= (rounds + 5) * len(jobs), "Each round polls a job once, not once per stream."
        for job in jobs:
            gateway.parts.jobs.report(T, job.id, 1, events=[("tick", {})])
            gateway.parts.jobs.finish(job, "a", {})
        for reader in readers:
            assert [f["event"] for f in reader.result(20)][-3:] == ["tick", "job.succeeded", "end"]
    assert watcher_count(gateway) == 0


def test_burst_beyond_the_buffer_reaches_open_streams(gateway: Gateway) -> None:
    job, store = running(gateway), gateway.parts.jobs
    with gateway.served() as url, ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read, url, job.id)
        wait_for(lambda: watcher_count(gateway) == 1)
        for size in (250, 1300, 1):
            store.report(T, job.id, 1, events=[("tick", {})] * size)
            polls = poll_count(gateway)
            wait_for(lambda polls=polls: poll_count(gateway) >= polls + 2)
        store.finish(job, "a", {})
        assert numbered(reader.result(20)) == list(range(1, 1555))


class FlakyJobs(JobStore):
    """A job store whose first reads of events fail."""

    failures = 3

    def events(self, tenant: str, job_id: str, *, after: int = 0, limit: int = 100) -> list[Event]:
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("Redis does not answer.")
        return super().events(tenant, job_id, after=after, limit=limit)


def test_job_with_an_unknown_state_does_not_stop_the_streams_of_others(gateway: Gateway) -> None:
    store, tailer = gateway.parts.jobs, gateway.parts.tailer
    newer, job = running(gateway), running(gateway)
    with gateway.served() as url, ThreadPoolExecutor(2) as pool:
        other = pool.submit(read, url, newer.id)
        reader = pool.submit(read, url, job.id)
        wait_for(lambda: watcher_count(gateway) == 2)
        gateway.client.hset(f"tlm:{{{T}}}:job:{newer.id}", "state", "of_tomorrow")
        wait_for(lambda: tailer.task.skipped)
        store.finish(job, "a", {})
        assert numbered(reader.result(20)) == [1, 2, 3]
        assert list(tailer.task.skipped) == [f"job {newer.id}"] and tailer.task.condition == "ok"
        gateway.client.delete(f"tlm:{{{T}}}:job:{newer.id}")
        other.result(20)


def test_record_of_a_wrong_type_does_not_stop_the_streams_of_others(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    (damaged, whole), tailer = (running(gateway), running(gateway)), gateway.parts.tailer
    name, received = f"tlm:{{{T}}}:job:{damaged.id}", list[dict[str, str]]()
    with gateway.served() as url, ThreadPoolExecutor(2) as pool:
        reader = pool.submit(read, url, whole.id)
        other = pool.submit(read, url, damaged.id, received=received)
        gateway.parts.jobs.report(T, damaged.id, 1, progress=Progress(stage="joint", node="joint.s0", step=1))
        # After its first progress, a stream reads nothing before the record changes.
        wait_for(lambda: any(frame.get("event") == "progress" for frame in received))
        gateway.client.pipeline().delete(name).set(name, "x").execute()
        wait_for(lambda: f"skipped job {damaged.id}" in caplog.text)
        gateway.parts.jobs.finish(whole, "a", {})
        assert reader.result(20)[-1]["event"] == "end" and tailer.task.condition == "ok"
        gateway.client.delete(name)
        assert other.result(20) == received, "The stream of a deleted job ends."


def test_ended_job_whose_storage_hangs_delays_no_other_stream(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ended, job), store = (running(gateway), running(gateway)), gateway.parts.jobs
    store.finish(ended, "a", {})
    move_streams(store)
    answer, read_history, received = threading.Event(), History.read, list[dict[str, str]]()

    def hang(*args: Any) -> list[Row]:
        assert answer.wait(30)
        return read_history(*args)

    monkeypatch.setattr(History, "read", hang)
    with gateway.served() as url, ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(read, url, ended.id)
        wait_for(lambda: watcher_count(gateway) == 1)
        reader = pool.submit(read, url, job.id, received=received)
        try:
            wait_for(lambda: len(received) == 2)
            store.finish(job, "a", {})
            assert numbered(reader.result(20)) == [1, 2, 3]
        finally:
            answer.set()
        assert numbered(waiting.result(20)) == [1, 2, 3]


def test_events_that_moved_between_two_polls_reach_open_streams(gateway: Gateway) -> None:
    job, store, tailer = running(gateway), gateway.parts.jobs, gateway.parts.tailer

    async def follow() -> list[list[int] | None]:
        with tailer._watch(T, job.id) as topic:

            def numbers(after: int) -> list[int] | None:
                events = topic.after(after)
                return events and [seq for seq, _ in events]

            await tailer._poll()
            before = numbers(0)
            store.finish(job, "a", {})
            move_streams(store)
            await tailer._poll()
            return [before, numbers(2), numbers(3)]

    # None: the stream reads the events itself.
    assert asyncio.run(follow()) == [[1, 2], None, []]


def test_open_stream_waits_for_the_store(gateway: Gateway) -> None:
    job = running(gateway)
    gateway.parts.jobs.finish(job, "a", {})
    flaky = FlakyJobs(gateway.client)
    tailer = Tailer(gateway.client, flaky, interval=0.02)
    changed = replace(gateway, parts=replace(gateway.parts, tailer=tailer))
    with changed.served() as url:
        assert numbered(read(url, job.id)) == [1, 2, 3]
    assert flaky.failures == 0


def test_streams_of_a_deleted_job_end(gateway: Gateway) -> None:
    job = running(gateway)

    def wait_for_job(url: str) -> Any:
        with TLMClient(url, TOKEN) as client:
            return client.wait(job.id, patience=1)

    with ThreadPoolExecutor(1) as pool, gateway.served() as url:
        waiting = pool.submit(wait_for_job, url)
        wait_for(lambda: watcher_count(gateway) == 1)
        gateway.client.delete(f"tlm:{{{T}}}:job:{job.id}")  # as if it had ended and been deleted between two polls
        assert isinstance(waiting.exception(5), NotFound)
    assert watcher_count(gateway) == 0


def test_streams_end_with_reader_or_server(gateway: Gateway) -> None:
    job = running(gateway)
    received: list[dict[str, str]] = []
    with ThreadPoolExecutor(1) as pool, gateway.served() as url:
        read(url, job.id, count=1)
        wait_for(lambda: watcher_count(gateway) == 0)
        time.sleep(0.1)
        before = poll_count(gateway)
        time.sleep(0.2)
        assert poll_count(gateway) == before, "Without a watcher, no job is polled."
        reader = pool.submit(read, url, job.id, received=received)
        wait_for(lambda: received)
    assert reader.result(10) is received
    assert received[-1]["event"] != "end", "A stream that the server closes has no end event."


def test_streams_survive_unavailable_redis(redis_server: Any, tmp_path: Path) -> None:
    server = type(redis_server)(tmp_path)
    server.start()
    gateway = make_gateway(server.client(), tmp_path)
    job = running(gateway)
    received: list[Any] = []
    try:
        with gateway.served() as url:
            reader = threading.Thread(target=lambda: received.append(read(url, job.id)))
            reader.start()
            wait_for(lambda: watcher_count(gateway) == 1)
            server.kill()
            time.sleep(0.2)
            server.start()
            gateway.parts.jobs.finish(job, "a", {})
            reader.join(15)
    finally:
        server.kill()
    assert [f["event"] for f in received[0]][-2:] == ["job.succeeded", "end"]


def poll_count(gateway: Gateway) -> int:
    """Return how often a gateway has read the state of a job."""
    return int(gateway.client.info("commandstats")["cmdstat_hmget"]["calls"])


def watcher_count(gateway: Gateway) -> int:
    return gateway.parts.tailer.watchers
