"""Webhooks on a real store: each event is signed, delivered once, and retried after failures."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from fastapi.testclient import TestClient

from services.api.outbound import Outbound
from services.api.webhook_delivery import BACKOFF, Deliverer, sign
from tests.contract.gateway import Gateway, make_gateway
from tests.factories import make_resolved, make_spec
from tlm_core.errors import WorkerLost
from tlm_core.jobs.spec import JobRecord

T = "default"


@dataclass
class WebhookHarness:
    """A gateway with a fake endpoint and a movable clock. The test runs the rounds of the deliverer."""

    gateway: Gateway
    now: float = 1_000_000.0
    answer: Callable[[httpx.Request], int] = lambda _: 204
    received: list[httpx.Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        def handle(request: httpx.Request) -> httpx.Response:
            self.received.append(request)
            status = self.answer(request)
            if status == 0:
                raise httpx.ConnectError("refused", request=request)
            return httpx.Response(status)

        self.outbound = Outbound(
            private=False, transport=httpx.MockTransport(handle), resolve=lambda *_: ["93.184.216.34"]
        )
        self.deliverer = Deliverer(
            self.gateway.client, self.gateway.parts.jobs, self.gateway.parts.webhooks, self.outbound,
            clock=lambda: self.now, timer=lambda: self.now,
        )  # fmt: skip
        self.deliverer.round()

    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(request.content) for request in self.received]

    def job(self) -> JobRecord:
        self.gateway.parts.jobs.submit(T, make_spec(), make_resolved())
        job = self.gateway.parts.jobs.claim("a", 60)
        assert job is not None
        return job


@pytest.fixture
def harness(redis_client: redis.Redis, tmp_path: Path) -> WebhookHarness:
    return WebhookHarness(make_gateway(redis_client, tmp_path))


@pytest.fixture
def api(harness: WebhookHarness) -> Iterator[TestClient]:
    harness.gateway.parts.deliverer.stop()
    with harness.gateway.test_client() as client:
        yield client


def hook(harness: WebhookHarness, *events: Any) -> tuple[str, str]:
    webhook, secret = harness.gateway.parts.webhooks.add(T, "https://example.com/hook", events or ("job.succeeded",))
    return webhook.id, secret


def test_event_is_delivered_once_and_signed(harness: WebhookHarness) -> None:
    _, secret = hook(harness, "job.claimed", "job.succeeded")
    job = harness.job()
    harness.gateway.parts.jobs.finish(job, "a", {})
    for _ in range(3):
        harness.deliverer.round()
    assert [body["type"] for body in harness.bodies()] == ["job.claimed", "job.succeeded"]
    assert harness.bodies()[1]["data"]["job"] == job.id
    for request in harness.received:
        message, at = request.headers["webhook-id"], int(request.headers["webhook-timestamp"])
        assert request.headers["webhook-signature"] == sign(secret, message, at, request.content)
        assert at == harness.now
    assert len({request.headers["webhook-id"] for request in harness.received}) == 2


def test_signature_follows_the_standard_webhooks_specification() -> None:
    signature = sign(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_cancelling_a_queued_job_sends_an_event(harness: WebhookHarness) -> None:
    hook(harness, "job.cancelled")
    job = harness.gateway.parts.jobs.submit(T, make_spec(), make_resolved())[0]
    harness.gateway.parts.jobs.cancel(T, job.id)
    harness.deliverer.round()
    assert [(body["type"], body["data"]["job"]) for body in harness.bodies()] == [("job.cancelled", job.id)]


def test_failed_delivery_is_retried_with_the_same_id(harness: WebhookHarness) -> None:
    hook_id, _ = hook(harness)
    harness.answer = lambda _: 500 if len(harness.received) % 2 else 0
    harness.gateway.parts.jobs.finish(harness.job(), "a", {})
    for wait in (0, *BACKOFF):
        harness.now += wait - 1 if wait else 0
        before = len(harness.received)
        harness.deliverer.round()
        assert len(harness.received) == (before if wait else before + 1), "A retry waits for its time."
        harness.now += 1 if wait else 0
        harness.deliverer.round()
        assert harness.deliverer.backlog().value == (wait != BACKOFF[-1])
    harness.now += 10 * BACKOFF[-1]
    harness.deliverer.round()
    assert len(harness.received) == len(BACKOFF) + 1
    assert len({request.headers["webhook-id"] for request in harness.received}) == 1
    log = harness.gateway.parts.webhooks.attempts(T, hook_id)
    assert [attempt.number for attempt in log] == list(range(len(BACKOFF) + 1, 0, -1))
    assert (log[0].next_at, {attempt.status for attempt in log}) == (None, {None, 500})
    assert harness.gateway.client.keys("tlm:webhook:*[sed]") == ["tlm:webhook:lease"], "No delivery is pending."


def test_retry_is_sent_after_the_clock_went_back(harness: WebhookHarness) -> None:
    hook(harness)
    harness.answer = lambda _: 500
    harness.gateway.parts.jobs.finish(harness.job(), "a", {})
    harness.deliverer.round()
    harness.now -= 1
    harness.deliverer.round()
    assert len(harness.received) == 1, "A retry waits for its time."
    harness.now -= 2 * BACKOFF[-1]
    harness.deliverer.round()
    assert len(harness.received) == 2


def test_deliveries_use_the_time_of_redis(harness: WebhookHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = harness.gateway
    monkeypatch.setattr(time, "time", lambda: 0.0)
    deliverer = Deliverer(gateway.client, gateway.parts.jobs, gateway.parts.webhooks, harness.outbound)
    gateway.client.delete("tlm:webhook:lease")
    hook(harness)
    gateway.parts.jobs.finish(harness.job(), "a", {})
    deliverer.round()
    (sent,) = harness.received
    assert abs(int(sent.headers["webhook-timestamp"]) - gateway.parts.jobs.now()) < 60


def test_silent_endpoint_does_not_delay_others(harness: WebhookHarness) -> None:
    hooks, jobs = harness.gateway.parts.webhooks, harness.gateway.parts.jobs
    hooks.add(T, "https://dead.example.com/", ("job.succeeded",))
    alive = hooks.add(T, "https://alive.example.com/", ("job.succeeded",))[0].id
    late = harness.job()

    def answer(request: httpx.Request) -> int:
        if request.headers["Host"] != "dead.example.com":
            return 204
        harness.now += 10
        jobs.finish(late, "a", {})
        return 0

    for _ in range(20):
        jobs.finish(harness.job(), "a", {})
    harness.answer = answer
    harness.deliverer.round()
    assert Counter(request.headers["Host"] for request in harness.received) == {
        "dead.example.com": 1, "alive.example.com": 20,
    }  # fmt: skip
    waiting = harness.gateway.client.zrange("tlm:webhook:due", 0, -1)
    assert [name for name in waiting if name.startswith(alive)], "Events during the round are already recorded."
    harness.answer = lambda _: 204
    harness.deliverer.round()
    assert [request.headers["Host"] for request in harness.received].count("alive.example.com") == 21


def test_backlog_of_a_slow_endpoint_does_not_delay_others(harness: WebhookHarness) -> None:
    hooks, jobs = harness.gateway.parts.webhooks, harness.gateway.parts.jobs
    hooks.add(T, "https://slow.example.com/", ("job.cancelled",))

    def answer(request: httpx.Request) -> int:
        harness.now += 10 * (request.headers["Host"] == "slow.example.com")
        return 204

    def cancelled_jobs(count: int) -> None:
        for _ in range(count):
            jobs.cancel(T, jobs.submit(T, make_spec(), make_resolved())[0].id)

    harness.answer = answer
    cancelled_jobs(250)
    harness.deliverer.round()
    hooks.add(T, "https://alive.example.com/", ("job.cancelled",))
    cancelled_jobs(1)
    harness.deliverer.round()
    hosts = [request.headers["Host"] for request in harness.received]
    assert hosts == ["slow.example.com", "slow.example.com", "alive.example.com"]


def test_killed_deliverer_loses_no_event(harness: WebhookHarness) -> None:
    hook(harness)
    for _ in range(3):
        harness.gateway.parts.jobs.finish(harness.job(), "a", {})

    def die(_: httpx.Request) -> int:
        raise SystemExit("killed")

    harness.answer = die
    with pytest.raises(SystemExit):
        harness.deliverer.round()
    harness.gateway.client.delete("tlm:webhook:lease")
    again = WebhookHarness(harness.gateway, now=harness.now)
    again.deliverer.round()
    assert [body["type"] for body in again.bodies()] == ["job.succeeded"] * 3
    assert len({request.headers["webhook-id"] for request in again.received}) == 3


def test_unreadable_delivery_delays_no_other(harness: WebhookHarness, redis_client: redis.Redis) -> None:
    hook(harness, "job.cancelled")
    harness.deliverer.round()
    redis_client.hset(f"tlm:{{{T}}}:webhooks", "wh_0", '{"of_tomorrow": 1}')
    redis_client.hset("tlm:webhook:bodies", "wh_0/msg_0", '{"of_tomorrow": 1}')
    redis_client.zadd("tlm:webhook:due", {"wh_0/msg_0": 0})
    job, _ = harness.gateway.parts.jobs.submit(T, make_spec(), make_resolved())
    harness.gateway.parts.jobs.cancel(T, job.id)
    harness.deliverer.round()
    assert len(harness.bodies()) == 1
    for _ in range(2):
        with harness.deliverer.task.round():
            harness.deliverer.round()
        assert sorted(harness.deliverer.task.skipped) == ["delivery wh_0/msg_0", "webhook wh_0"]
    harness.gateway.parts.webhooks.remove(T, "wh_0")
    with harness.deliverer.task.round():
        harness.deliverer.round()
    assert list(harness.deliverer.task.skipped) == ["delivery wh_0/msg_0"]


def test_webhook_with_a_damaged_record_can_be_deleted(
    harness: WebhookHarness, api: TestClient, redis_client: redis.Redis
) -> None:
    hook_id, _ = hook(harness)
    redis_client.lpush(f"tlm:{{{T}}}:webhook-log:{hook_id}", "{")
    assert api.get(f"/v1/webhooks/{hook_id}/attempts").json()["data"] == []
    redis_client.hset(f"tlm:{{{T}}}:webhooks", hook_id, "{")
    (stub,) = api.get("/v1/webhooks").json()["data"]
    assert (stub["id"], stub["error"]["code"]) == (hook_id, "unreadable_record")
    assert api.get(f"/v1/webhooks/{hook_id}").json()["code"] == "unreadable_record"
    assert api.delete(f"/v1/webhooks/{hook_id}").status_code == 204
    assert api.delete(f"/v1/webhooks/{hook_id}").status_code == 404


def test_deliverer_takes_over_an_expired_lease(harness: WebhookHarness) -> None:
    hook(harness)
    other = WebhookHarness(harness.gateway, now=harness.now)
    harness.gateway.parts.jobs.finish(harness.job(), "a", {})
    other.deliverer.round()
    assert other.received == []
    harness.gateway.client.delete("tlm:webhook:lease")
    other.deliverer.round()
    harness.deliverer.round()
    assert (len(other.received), len(harness.received)) == (1, 0)


def test_gone_endpoint_is_disabled(harness: WebhookHarness, api: TestClient) -> None:
    hook_id, _ = hook(harness)
    harness.answer = lambda _: 410
    for _ in range(2):
        harness.gateway.parts.jobs.finish(harness.job(), "a", {})
        harness.deliverer.round()
    assert len(harness.received) == 1
    assert "410" in api.get(f"/v1/webhooks/{hook_id}").json()["disabled"]


def test_webhook_deleted_during_its_delivery_stays_deleted(harness: WebhookHarness, api: TestClient) -> None:
    hook_id, _ = hook(harness)

    def delete(_: httpx.Request) -> int:
        harness.gateway.parts.webhooks.remove(T, hook_id)
        return 410

    harness.answer = delete
    harness.gateway.parts.jobs.finish(harness.job(), "a", {})
    harness.deliverer.round()
    assert len(harness.received) == 1
    assert api.get("/v1/webhooks").json()["data"] == []
    assert harness.gateway.client.keys("*webhook-log*") == []


def test_webhook_secret_is_returned_once(harness: WebhookHarness, api: TestClient) -> None:
    answer = api.post("/v1/webhooks", json={"url": "https://93.184.216.34/x", "events": ["job.failed"]})
    assert answer.status_code == 201, answer.text
    created = answer.json()
    assert created["secret"].startswith("whsec_")
    listed = api.get("/v1/webhooks").json()["data"]
    assert [webhook["id"] for webhook in listed] == [created["id"]] and "secret" not in listed[0]
    harness.gateway.parts.jobs.fail(harness.job(), "a", WorkerLost("gone"))
    harness.deliverer.round()
    (attempt,) = api.get(f"/v1/webhooks/{created['id']}/attempts").json()["data"]
    assert (attempt["type"], attempt["status"], attempt["next_at"]) == ("job.failed", 204, None)
    assert api.delete(f"/v1/webhooks/{created['id']}").status_code == 204
    assert api.get(f"/v1/webhooks/{created['id']}").status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {"url": "https://127.0.0.1/x"},
        {"url": "https://169.254.169.254/latest"},
        {"url": "https://[::1]/x"},
        {"url": "http://93.184.216.34/x"},
        {"url": "https://xn--a/x"},
        {"url": "https://93.184.216.34/x", "events": ["job.danced"]},
        {"url": "https://93.184.216.34/x", "events": []},
    ],
)
def test_invalid_webhook_url_is_refused(api: TestClient, body: dict[str, Any]) -> None:
    assert api.post("/v1/webhooks", json=body).status_code == 422
    assert api.get("/v1/webhooks").json()["data"] == []
