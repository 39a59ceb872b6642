"""Webhooks on a real store: each event once to whoever wants it, signed, and again until it is taken."""

from __future__ import annotations

import json
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
class World:
    """A gateway whose deliverer a test drives, with an endpoint that answers as the test says, and a clock."""

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

        outbound = Outbound(private=False, transport=httpx.MockTransport(handle), resolve=lambda *_: ["93.184.216.34"])
        self.deliverer = Deliverer(
            self.gateway.client, self.gateway.parts.jobs, self.gateway.parts.webhooks, outbound, clock=lambda: self.now
        )
        self.deliverer.round()

    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(request.content) for request in self.received]

    def job(self) -> JobRecord:
        self.gateway.parts.jobs.submit(T, make_spec(), make_resolved())
        job = self.gateway.parts.jobs.claim("a", 60)
        assert job is not None
        return job


@pytest.fixture
def world(redis_client: redis.Redis, tmp_path: Path) -> World:
    return World(make_gateway(redis_client, tmp_path))


@pytest.fixture
def api(world: World) -> Iterator[TestClient]:
    world.gateway.parts.deliverer.stop()
    with world.gateway.test_client() as client:
        yield client


def hook(world: World, *events: Any) -> tuple[str, str]:
    made, secret = world.gateway.parts.webhooks.add(T, "https://example.com/hook", events or ("job.succeeded",))
    return made.id, secret


def test_event_is_delivered_once_and_signed(world: World) -> None:
    _, secret = hook(world, "job.claimed", "job.succeeded")
    job = world.job()
    world.gateway.parts.jobs.finish(job, "a", {})
    for _ in range(3):
        world.deliverer.round()
    assert [body["type"] for body in world.bodies()] == ["job.claimed", "job.succeeded"]
    assert world.bodies()[1]["data"]["job"] == job.id
    for request in world.received:
        message, at = request.headers["webhook-id"], int(request.headers["webhook-timestamp"])
        assert request.headers["webhook-signature"] == sign(secret, message, at, request.content)
        assert at == world.now
    assert len({request.headers["webhook-id"] for request in world.received}) == 2


def test_cancelling_a_queued_job_sends_an_event(world: World) -> None:
    hook(world, "job.cancelled")
    job = world.gateway.parts.jobs.submit(T, make_spec(), make_resolved())[0]
    world.gateway.parts.jobs.cancel(T, job.id)
    world.deliverer.round()
    assert [(body["type"], body["data"]["job"]) for body in world.bodies()] == [("job.cancelled", job.id)]


def test_failed_delivery_is_retried_with_the_same_id(world: World) -> None:
    hook_id, _ = hook(world)
    world.answer = lambda _: 500 if len(world.received) % 2 else 0
    world.gateway.parts.jobs.finish(world.job(), "a", {})
    for wait in (0, *BACKOFF):
        world.now += wait - 1 if wait else 0
        before = len(world.received)
        world.deliverer.round()
        assert len(world.received) == (before if wait else before + 1), "not before its time"
        world.now += 1 if wait else 0
        world.deliverer.round()
    world.now += 10 * BACKOFF[-1]
    world.deliverer.round()
    assert len(world.received) == len(BACKOFF) + 1
    assert len({request.headers["webhook-id"] for request in world.received}) == 1
    log = world.gateway.parts.webhooks.attempts(T, hook_id)
    assert [one.number for one in log] == list(range(len(BACKOFF) + 1, 0, -1))
    assert (log[0].next_at, {one.status for one in log}) == (None, {None, 500})
    assert world.gateway.client.keys("tlm:webhook:*[sed]") == ["tlm:webhook:lease"], "nothing is left to deliver"


def test_silent_endpoint_does_not_delay_others(world: World) -> None:
    hooks, jobs = world.gateway.parts.webhooks, world.gateway.parts.jobs
    hooks.add(T, "https://dead.example.com/", ("job.succeeded",))
    alive = hooks.add(T, "https://alive.example.com/", ("job.succeeded",))[0].id
    late = world.job()

    def answer(request: httpx.Request) -> int:
        if request.headers["Host"] != "dead.example.com":
            return 204
        world.now += 10
        jobs.finish(late, "a", {})
        return 0

    for _ in range(20):
        jobs.finish(world.job(), "a", {})
    world.answer = answer
    world.deliverer.round()
    assert Counter(request.headers["Host"] for request in world.received) == {
        "dead.example.com": 1, "alive.example.com": 20,
    }  # fmt: skip
    waiting = world.gateway.client.zrange("tlm:webhook:due", 0, -1)
    assert [name for name in waiting if name.startswith(alive)], "what happened meanwhile is written down already"
    world.answer = lambda _: 204
    world.deliverer.round()
    assert [request.headers["Host"] for request in world.received].count("alive.example.com") == 21


def test_killed_deliverer_loses_no_event(world: World) -> None:
    hook(world)
    for _ in range(3):
        world.gateway.parts.jobs.finish(world.job(), "a", {})

    def die(_: httpx.Request) -> int:
        raise RuntimeError("killed")

    world.answer = die
    with pytest.raises(RuntimeError):
        world.deliverer.round()
    world.gateway.client.delete("tlm:webhook:lease")
    again = World(world.gateway, now=world.now)
    again.deliverer.round()
    assert [body["type"] for body in again.bodies()] == ["job.succeeded"] * 3
    assert len({request.headers["webhook-id"] for request in again.received}) == 3


def test_deliverer_takes_over_an_expired_lease(world: World) -> None:
    hook(world)
    other = World(world.gateway, now=world.now)
    world.gateway.parts.jobs.finish(world.job(), "a", {})
    other.deliverer.round()
    assert other.received == []
    world.gateway.client.delete("tlm:webhook:lease")
    other.deliverer.round()
    world.deliverer.round()
    assert (len(other.received), len(world.received)) == (1, 0)


def test_gone_endpoint_is_disabled(world: World, api: TestClient) -> None:
    hook_id, _ = hook(world)
    world.answer = lambda _: 410
    for _ in range(2):
        world.gateway.parts.jobs.finish(world.job(), "a", {})
        world.deliverer.round()
    assert len(world.received) == 1
    assert "410" in api.get(f"/v1/webhooks/{hook_id}").json()["disabled"]


def test_webhook_secret_is_returned_once(world: World, api: TestClient) -> None:
    answer = api.post("/v1/webhooks", json={"url": "https://93.184.216.34/x", "events": ["job.failed"]})
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert made["secret"].startswith("whsec_")
    listed = api.get("/v1/webhooks").json()["data"]
    assert [one["id"] for one in listed] == [made["id"]] and "secret" not in listed[0]
    world.gateway.parts.jobs.fail(world.job(), "a", WorkerLost("gone"))
    world.deliverer.round()
    (tried,) = api.get(f"/v1/webhooks/{made['id']}/attempts").json()["data"]
    assert (tried["type"], tried["status"], tried["next_at"]) == ("job.failed", 204, None)
    assert api.delete(f"/v1/webhooks/{made['id']}").status_code == 204
    assert api.get(f"/v1/webhooks/{made['id']}").status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {"url": "https://127.0.0.1/x"},
        {"url": "https://169.254.169.254/latest"},
        {"url": "https://[::1]/x"},
        {"url": "http://93.184.216.34/x"},
        {"url": "https://93.184.216.34/x", "events": ["job.danced"]},
        {"url": "https://93.184.216.34/x", "events": []},
    ],
)
def test_invalid_webhook_url_is_refused(api: TestClient, body: dict[str, Any]) -> None:
    assert api.post("/v1/webhooks", json=body).status_code == 422
    assert api.get("/v1/webhooks").json()["data"] == []
