"""Webhooks by the Standard Webhooks scheme (standardwebhooks.com): signed, numbered, retried.

One gateway at a time reads the feed, a stream with the events of all jobs. A cursor marks the last event that was
read. For each page of events, one transaction queues a delivery per event and subscribed endpoint, and moves the
cursor. So no event is lost. If a gateway sends a delivery twice, both requests have the same webhook-id, which consists
of the job and the number of the event.

Keys (tenant in braces): tlm:{T}:webhooks  id → record      tlm:{T}:webhook-secrets  id → secret
    tlm:{T}:webhook-log:ID  latest attempts                  tlm:webhook:due  deliveries, scored by time
    tlm:webhook:bodies  delivery → JSON                      tlm:webhook:cursor, tlm:webhook:lease
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import secrets
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import redis
from pydantic import BaseModel, ConfigDict, ValidationError
from redis.client import Pipeline

from services.api.outbound import Outbound
from services.common.background import Background
from services.common.jobstore import JobStore
from services.common.metrics import Live
from services.common.redis_client import FEED, PREFIX, key, unreadable
from tlm_core.artifacts import canonical_json
from tlm_core.errors import NotFound, UnreadableRecord
from tlm_core.names import new_id
from tlm_core.wire import EventType, JobEvent, Webhook, WebhookAttempt

log = logging.getLogger(__name__)

# Seconds between the attempts of a delivery, as the scheme recommends: about 32 hours in total.
BACKOFF = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400)
_LEASE_SECONDS = 30  # usually longer than a look-up of a host and one delivery
_MAX_ENDPOINT_SECONDS = 5.0  # in each round. Then the other deliveries to this endpoint wait for the next round.
_PAGE = 200
_GONE = 410  # the HTTP status by which an endpoint refuses all further events
_LOGGED_ATTEMPTS = 20
_DUE, _BODIES, _CURSOR, _LEASE = (f"{PREFIX}:webhook:{name}" for name in ("due", "bodies", "cursor", "lease"))


class _Delivery(BaseModel):
    """A queued message to one endpoint. hook, message: ids. number: the number of the next attempt, from 1."""

    model_config = ConfigDict(frozen=True)

    tenant: str
    hook: str
    message: str
    type: str
    number: int
    body: str


def sign(secret: str, message: str, timestamp: int, body: bytes) -> str:
    """Return the value of `webhook-signature`: `v1,` and the HMAC-SHA256 of message id, time and body in base64.

    secret: `whsec_` and the key in base64. message: the message id. timestamp: Unix seconds.
    """
    key = base64.b64decode(secret.removeprefix("whsec_"))
    content = f"{message}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()


class Webhooks:
    """The endpoints of tenants, and the latest attempts to reach them. Methods raise StoreUnavailable without Redis."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis: Any = client

    def add(self, tenant: str, url: str, events: tuple[EventType, ...]) -> tuple[Webhook, str]:
        """Add an endpoint. Return the endpoint and its secret, which clients cannot read again."""
        hook = Webhook(id=new_id("wh"), url=url, events=events, created_at=time.time())
        secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        pipe = self._redis.pipeline().hset(key(tenant, "webhooks"), hook.id, hook.model_dump_json())
        pipe.hset(key(tenant, "webhook-secrets"), hook.id, secret).execute()
        return hook, secret

    def all(self, tenant: str) -> list[Webhook]:
        """Return all endpoints, oldest first. An endpoint with an unreadable record has only its id and the error."""
        return [_listed(*record) for record in sorted(self._redis.hgetall(key(tenant, "webhooks")).items())]

    def get(self, tenant: str, hook_id: str) -> Webhook:
        """Return the endpoint with this id. Raises NotFound, or UnreadableRecord."""
        record = self._redis.hget(key(tenant, "webhooks"), hook_id)
        if record is None:
            raise _missing(hook_id)
        return _read(hook_id, record)

    def remove(self, tenant: str, hook_id: str) -> None:
        """Delete an endpoint. Its queued deliveries are dropped when they are due. Raises NotFound."""
        pipe = self._redis.pipeline().hdel(key(tenant, "webhooks"), hook_id)
        pipe.hdel(key(tenant, "webhook-secrets"), hook_id).delete(key(tenant, "webhook-log", hook_id))
        if not pipe.execute()[0]:
            raise _missing(hook_id)

    def secret(self, tenant: str, hook_id: str) -> str:
        return str(self._redis.hget(key(tenant, "webhook-secrets"), hook_id) or "")

    def attempts(self, tenant: str, hook_id: str) -> list[WebhookAttempt]:
        """Return the latest attempts that this release can read, newest first."""
        attempts = []
        for record in self._redis.lrange(key(tenant, "webhook-log", hook_id), 0, -1):
            try:
                attempts.append(WebhookAttempt.model_validate_json(record))
            except ValidationError as error:
                log.error("An attempt of webhook %s is damaged or from another release: %s", hook_id, error)
        return attempts

    def log_attempt(self, tenant: str, hook: Webhook, attempt: WebhookAttempt) -> None:
        """Store an attempt, and disable an endpoint that responded with 410. For a deleted endpoint, do nothing."""
        hooks, attempts = key(tenant, "webhooks"), key(tenant, "webhook-log", hook.id)

        def store(pipe: Pipeline) -> None:
            if not self._redis.hexists(hooks, hook.id):
                return
            pipe.multi()
            pipe.lpush(attempts, attempt.model_dump_json())
            pipe.ltrim(attempts, 0, _LOGGED_ATTEMPTS - 1)
            if attempt.status == _GONE:
                disabled = hook.model_copy(update={"disabled": "The endpoint responded with 410 Gone."})
                pipe.hset(hooks, hook.id, disabled.model_dump_json())

        # Redis watches `hooks`. If the endpoint is deleted during `store`, `store` runs again.
        self._redis.transaction(store, hooks)


def _job_of(delivery: str) -> str:
    """Return the job id in the name of a delivery: "job_1" for "wh_1/msg_1_9" (endpoint wh_1, job_1, event 9)."""
    return f"job_{delivery.partition('/msg_')[2].partition('_')[0]}"


def _missing(hook_id: str) -> NotFound:
    return NotFound(f"Webhook '{hook_id}' does not exist. List the webhooks to see their ids.")


def _read(hook_id: str, record: str) -> Webhook:
    try:
        return Webhook.model_validate_json(record)
    except ValidationError as error:
        raise unreadable(f"webhook '{hook_id}'", error, "delete the webhook") from error


def _listed(hook_id: str, record: str) -> Webhook:
    """Return the webhook. For an unreadable record, return a webhook with only the id and the error."""
    try:
        return _read(hook_id, record)
    except UnreadableRecord as error:
        return Webhook(id=hook_id, url="", events=(), created_at=0.0, error=error.as_dict())


class Deliverer:
    """Reads the feed and sends deliveries to endpoints. At one time, only one gateway holds the lease for this work.

    clock: returns the Unix time. The default is the clock of Redis, because gateways share the times of deliveries.
    timer: returns seconds, to measure durations.
    """

    def __init__(
        self,
        client: redis.Redis,
        jobs: JobStore,
        hooks: Webhooks,
        outbound: Outbound,
        *,
        poll_seconds: float = 1.0,
        clock: Callable[[], float] | None = None,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis: Any = client
        self._jobs = jobs
        self._hooks = hooks
        self._outbound = outbound
        self._poll_seconds = poll_seconds
        self._clock = clock or jobs.now
        self._timer = timer
        self._owner = uuid.uuid4().hex
        self._stop = threading.Event()
        self._tenants: set[str] = set()  # tenants whose events this process has read
        self.task = Background("webhooks")

    def start(self) -> threading.Thread:
        """Deliver in a new thread until `stop` is called. Return the thread."""
        return self.task.start(self.round, self._poll_seconds, self._stop)

    def stop(self) -> None:
        self._stop.set()

    def round(self) -> None:
        """Queue deliveries for new events, then send the deliveries that are due.

        The time for each endpoint is limited, so that a slow endpoint does not delay the others.
        """
        if not self._has_lease():
            return
        for tenant in self._tenants:  # Report unreadable webhooks also in a round without events.
            self._enabled(tenant)
        while self._queue_page():
            pass
        # Read all due deliveries, because the waiting deliveries of a slow endpoint could fill a page of any size.
        now = self._clock()
        due = self._redis.zrangebyscore(_DUE, "-inf", now)
        # Times beyond the longest delay were set before the clock went back.
        due += self._redis.zrangebyscore(_DUE, f"({now + BACKOFF[-1] + 60}", "+inf")
        spent: dict[str, float] = {}
        for name in due:
            hook = name.partition("/")[0]
            if spent.get(hook, 0.0) >= _MAX_ENDPOINT_SECONDS:
                continue
            if self._stop.is_set() or not self._has_lease():
                return
            start = self._timer()
            with self.task.item(f"delivery {name}", job_id=_job_of(name)):
                self._attempt(name)
            spent[hook] = spent.get(hook, 0.0) + self._timer() - start
            self._queue_page()

    def backlog(self) -> Live:
        """Return the metric with the number of deliveries that wait for their first or next attempt."""
        return Live("tlm_webhook_backlog", "Webhook deliveries that wait.", self._redis.zcard(_DUE))

    def _has_lease(self) -> bool:
        if self._redis.set(_LEASE, self._owner, nx=True, ex=_LEASE_SECONDS):
            return True
        if self._redis.get(_LEASE) != self._owner:
            return False
        return bool(self._redis.expire(_LEASE, _LEASE_SECONDS))

    def _queue_page(self) -> bool:
        """Queue the deliveries for one page of the feed, and move the cursor. Return whether the feed may have more."""
        cursor = self._redis.get(_CURSOR)
        if cursor is None:  # At the first start, skip earlier events.
            last = self._redis.xrevrange(FEED, count=1)
            self._redis.set(_CURSOR, last[0][0] if last else "0-0")
            return False
        page = self._redis.xrange(FEED, f"({cursor}", "+", count=_PAGE)
        if not page:
            return False
        pipe = self._redis.pipeline(transaction=True)
        hooks: dict[str, list[Webhook]] = {}
        now = self._clock()
        for _, entry in page:
            tenant, job_id = entry["job"].split("/", 1)
            with self.task.item(f"event {entry['seq']} of job {job_id}", job_id=job_id):
                if tenant not in hooks:
                    hooks[tenant] = self._enabled(tenant)
                subscribed = [hook.id for hook in hooks[tenant] if entry["type"] in hook.events]
                if subscribed and (body := self._body(tenant, job_id, int(entry["seq"]))):
                    message = f"msg_{job_id.removeprefix('job_')}_{entry['seq']}"  # see `_job_of`
                    fields = {"tenant": tenant, "message": message, "type": entry["type"], "number": 1, "body": body}
                    for hook_id in subscribed:
                        self._schedule(pipe, _Delivery(hook=hook_id, **fields), now)
        self._tenants |= hooks.keys()
        pipe.set(_CURSOR, page[-1][0])
        pipe.execute()
        return len(page) == _PAGE

    def _enabled(self, tenant: str) -> list[Webhook]:
        """Return the enabled webhooks of a tenant. Log and skip webhooks with an unreadable record."""
        enabled = []
        for hook in self._hooks.all(tenant):
            with self.task.item(f"webhook {hook.id}"):
                if hook.error is not None:
                    raise UnreadableRecord(str(hook.error["message"]))
                if hook.disabled is None:
                    enabled.append(hook)
        return enabled

    def _body(self, tenant: str, job_id: str, seq: int) -> str | None:
        """Return the JSON body of the deliveries for an event, or None if the job was deleted."""
        events = self._jobs.events(tenant, job_id, after=seq - 1, limit=1)
        if not events:
            return None
        data = JobEvent.model_validate(events[0]).model_dump(mode="json")
        return canonical_json({"type": data["type"], "timestamp": data["at"], "data": {"job": job_id, **data}})

    def _schedule(self, pipe: Pipeline, delivery: _Delivery, at: float) -> None:
        name = f"{delivery.hook}/{delivery.message}"
        pipe.hset(_BODIES, name, delivery.model_dump_json())
        pipe.zadd(_DUE, {name: at})

    def _attempt(self, name: str) -> None:
        """Send a delivery. Then drop the delivery, or schedule its next attempt."""
        record = self._redis.hget(_BODIES, name)
        delivery, hook = _Delivery.model_validate_json(record) if record else None, None
        if delivery:
            with suppress(NotFound):
                hook = self._hooks.get(delivery.tenant, delivery.hook)
        if delivery is None or hook is None or hook.disabled is not None:
            self._drop(name)
            return
        status, error = self._send(hook, delivery)
        now = self._clock()
        delivered = status is not None and 200 <= status < 300
        final = delivered or status == _GONE or delivery.number > len(BACKOFF)
        next_at = None if final else now + BACKOFF[delivery.number - 1]
        attempt = WebhookAttempt(
            message=delivery.message, type=delivery.type, at=now, number=delivery.number, status=status,
            error=error, next_at=next_at,
        )  # fmt: skip
        self._hooks.log_attempt(delivery.tenant, hook, attempt)
        if next_at is None:
            self._drop(name)
            return
        pipe = self._redis.pipeline(transaction=True)
        self._schedule(pipe, delivery.model_copy(update={"number": delivery.number + 1}), next_at)
        pipe.execute()

    def _send(self, hook: Webhook, delivery: _Delivery) -> tuple[int | None, str | None]:
        timestamp, body = int(self._clock()), delivery.body.encode()
        headers = {
            "Content-Type": "application/json",
            "webhook-id": delivery.message,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(self._hooks.secret(delivery.tenant, hook.id), delivery.message, timestamp, body),
        }
        return self._outbound.post(hook.url, body, headers)

    def _drop(self, name: str) -> None:
        self._redis.pipeline().zrem(_DUE, name).hdel(_BODIES, name).execute()
