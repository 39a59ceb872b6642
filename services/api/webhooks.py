"""Webhooks by the Standard Webhooks scheme (standardwebhooks.com): signed, numbered, tried again with patience.

One deliverer of all gateways follows the feed of what happened to jobs. From its cursor on it writes down a delivery
for each endpoint that wants the event, and moves the cursor in the same step: nothing is left out, and a delivery that
is made twice has the same webhook-id.

Keys (tenant in braces): tlm:{T}:webhooks  id → record      tlm:{T}:webhook-secrets  id → secret
    tlm:{T}:webhook-log:ID  the latest attempts              tlm:webhook:due  deliveries, scored by time
    tlm:webhook:bodies  delivery → what is sent              tlm:webhook:cursor, tlm:webhook:lease
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import secrets
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import redis

from services.api.outgoing import Outgoing
from services.common.jobstore import JobStore
from services.common.redis_client import FEED, PREFIX, key, translated_errors
from tlm_core.artifacts import canonical_json
from tlm_core.errors import NotFound, TLMError
from tlm_core.jobs.spec import new_id
from tlm_core.wire import EventType, Webhook, WebhookAttempt

log = logging.getLogger(__name__)

# Seconds between the attempts of one delivery, as the scheme recommends: about a day and a half in all.
BACKOFF = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400)
_LEASE_SECONDS = 30
_SHARE_SECONDS = 5.0  # of a round, after which an endpoint's other deliveries wait for the next one
_PAGE = 200
_LOGGED = 20


def sign(secret: str, message: str, timestamp: int, body: bytes) -> str:
    """The webhook-signature of the scheme: HMAC-SHA256 over id, time and body. secret: `whsec_` and base64."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    content = f"{message}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()


class Webhooks:
    """The endpoints of tenants, and what was tried lately. Raises StoreUnavailable when Redis is away."""

    def __init__(self, client: redis.Redis, *, clock: Callable[[], float] = time.time) -> None:
        self._redis: Any = client
        self._clock = clock

    def add(self, tenant: str, url: str, events: tuple[EventType, ...]) -> tuple[Webhook, str]:
        """A new endpoint, and its secret, which is told only now."""
        hook = Webhook(id=new_id("wh"), url=url, events=events, created_at=self._clock())
        secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        with translated_errors():
            pipe = self._redis.pipeline(transaction=True)
            pipe.hset(key(tenant, "webhooks"), hook.id, hook.model_dump_json())
            pipe.hset(key(tenant, "webhook-secrets"), hook.id, secret)
            pipe.execute()
        return hook, secret

    def all(self, tenant: str) -> list[Webhook]:
        with translated_errors():
            found = self._redis.hvals(key(tenant, "webhooks"))
        return sorted((Webhook.model_validate_json(one) for one in found), key=lambda hook: hook.id)

    def get(self, tenant: str, hook_id: str) -> Webhook:
        """Raises NotFound."""
        with translated_errors():
            found = self._redis.hget(key(tenant, "webhooks"), hook_id)
        if found is None:
            raise NotFound(f"no webhook '{hook_id}'; list the webhooks to see their ids")
        return Webhook.model_validate_json(found)

    def remove(self, tenant: str, hook_id: str) -> None:
        """What is still to be delivered to it is dropped when its time comes."""
        self.get(tenant, hook_id)
        with translated_errors():
            pipe = self._redis.pipeline(transaction=True)
            pipe.hdel(key(tenant, "webhooks"), hook_id)
            pipe.hdel(key(tenant, "webhook-secrets"), hook_id)
            pipe.delete(key(tenant, "webhook-log", hook_id))
            pipe.execute()

    def disable(self, tenant: str, hook: Webhook, reason: str) -> None:
        with translated_errors():
            changed = hook.model_copy(update={"disabled": reason})
            self._redis.hset(key(tenant, "webhooks"), hook.id, changed.model_dump_json())

    def secret(self, tenant: str, hook_id: str) -> str:
        with translated_errors():
            return str(self._redis.hget(key(tenant, "webhook-secrets"), hook_id) or "")

    def attempts(self, tenant: str, hook_id: str) -> list[WebhookAttempt]:
        """The latest attempts, newest first."""
        with translated_errors():
            found = self._redis.lrange(key(tenant, "webhook-log", hook_id), 0, -1)
        return [WebhookAttempt.model_validate_json(one) for one in found]

    def note(self, tenant: str, hook_id: str, attempt: WebhookAttempt) -> None:
        with translated_errors():
            pipe = self._redis.pipeline(transaction=True)
            pipe.lpush(key(tenant, "webhook-log", hook_id), attempt.model_dump_json())
            pipe.ltrim(key(tenant, "webhook-log", hook_id), 0, _LOGGED - 1)
            pipe.execute()


class Deliverer:
    """Follows the feed and delivers. Any number may run; the one with the lease works."""

    def __init__(
        self,
        client: redis.Redis,
        jobs: JobStore,
        hooks: Webhooks,
        outgoing: Outgoing,
        *,
        poll_seconds: float = 1.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._redis: Any = client
        self._jobs = jobs
        self._hooks = hooks
        self._outgoing = outgoing
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._owner = uuid.uuid4().hex
        self._stop = threading.Event()

    def stop(self) -> None:
        self._stop.set()

    def run(self) -> None:
        """Work until stopped."""
        away = False
        while not self._stop.is_set():
            try:
                self.round()
                away = False
            except TLMError as error:
                if not away:
                    log.warning("webhooks wait: %s", error)
                away = True
            self._stop.wait(self._poll_seconds)

    def round(self) -> None:
        """Write down what has happened since the cursor, then try what is due.

        An endpoint that has taken its share of the round waits for the next one: one that is slow, or silent until
        the time is up, holds up no other for longer.
        """
        if not self._has_lease():
            return
        while self._take_in():
            pass
        with translated_errors():
            due = self._redis.zrangebyscore(f"{PREFIX}:webhook:due", "-inf", self._clock())
        spent: dict[str, float] = {}
        for delivery in due:
            hook = delivery.partition("/")[0]
            if spent.get(hook, 0.0) >= _SHARE_SECONDS:
                continue
            if self._stop.is_set() or not self._has_lease():
                return
            began = self._clock()
            self._try(delivery)
            spent[hook] = spent.get(hook, 0.0) + self._clock() - began
            self._take_in()

    def _has_lease(self) -> bool:
        lease = f"{PREFIX}:webhook:lease"
        with translated_errors():
            if self._redis.set(lease, self._owner, nx=True, ex=_LEASE_SECONDS):
                return True
            if self._redis.get(lease) != self._owner:
                return False
            return bool(self._redis.expire(lease, _LEASE_SECONDS))

    def _take_in(self) -> bool:
        """A page of the feed becomes deliveries; the cursor moves with them. False at the end of the feed."""
        with translated_errors():
            cursor = self._redis.get(f"{PREFIX}:webhook:cursor")
            if cursor is None:  # what happened before there was a deliverer is nobody's news
                last = self._redis.xrevrange(FEED, count=1)
                self._redis.set(f"{PREFIX}:webhook:cursor", last[0][0] if last else "0-0")
                return False
            page = self._redis.xrange(FEED, f"({cursor}", "+", count=_PAGE)
            if not page:
                return False
            pipe = self._redis.pipeline(transaction=True)
            hooks: dict[str, list[Webhook]] = {}
            for _, entry in page:
                tenant, job_id = entry["job"].split("/", 1)
                if tenant not in hooks:
                    hooks[tenant] = [one for one in self._hooks.all(tenant) if one.disabled is None]
                for hook in hooks[tenant]:
                    if entry["type"] in hook.events:
                        self._write_down(pipe, tenant, hook, job_id, int(entry["seq"]), entry["type"])
            pipe.set(f"{PREFIX}:webhook:cursor", page[-1][0])
            pipe.execute()
        return len(page) == _PAGE

    def _write_down(self, pipe: Any, tenant: str, hook: Webhook, job_id: str, seq: int, kind: str) -> None:
        found = self._jobs.events(tenant, job_id, after=seq - 1, limit=1)
        if not found:  # deleted since
            return
        event = found[0]
        body = {"type": kind, "timestamp": _iso(event.at), "data": {"job": job_id, **event.model_dump(mode="json")}}
        delivery = {
            "tenant": tenant, "hook": hook.id, "message": f"msg_{job_id.removeprefix('job_')}_{seq}", "type": kind,
            "number": 1, "body": canonical_json(body),
        }  # fmt: skip
        name = f"{hook.id}/{delivery['message']}"
        pipe.hset(f"{PREFIX}:webhook:bodies", name, canonical_json(delivery))
        pipe.zadd(f"{PREFIX}:webhook:due", {name: self._clock()})

    def _try(self, name: str) -> None:
        with translated_errors():
            stored = self._redis.hget(f"{PREFIX}:webhook:bodies", name)
        delivery = json.loads(stored) if stored else None
        if delivery is None:
            self._over(name)
            return
        tenant, number, message = delivery["tenant"], delivery["number"], delivery["message"]
        try:
            hook = self._hooks.get(tenant, delivery["hook"])
        except NotFound:
            self._over(name)
            return
        if hook.disabled is not None:
            self._over(name)
            return
        status, error = self._send(tenant, hook, message, delivery["body"].encode())
        good = status is not None and 200 <= status < 300
        left = None if good or status == 410 or number > len(BACKOFF) else BACKOFF[number - 1]
        next_at = None if left is None else self._clock() + left
        self._hooks.note(
            tenant, hook.id,
            WebhookAttempt(message=message, type=delivery["type"], at=self._clock(), number=number, status=status,
                    error=error, next_at=next_at),
        )  # fmt: skip
        if status == 410:
            self._hooks.disable(tenant, hook, "the endpoint answered 410 Gone")
        if next_at is None:
            self._over(name)
            return
        with translated_errors():
            pipe = self._redis.pipeline(transaction=True)
            pipe.hset(f"{PREFIX}:webhook:bodies", name, canonical_json({**delivery, "number": number + 1}))
            pipe.zadd(f"{PREFIX}:webhook:due", {name: next_at})
            pipe.execute()

    def _send(self, tenant: str, hook: Webhook, message: str, body: bytes) -> tuple[int | None, str | None]:
        timestamp = int(self._clock())
        headers = {
            "Content-Type": "application/json",
            "webhook-id": message,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(self._hooks.secret(tenant, hook.id), message, timestamp, body),
        }
        return self._outgoing.post(hook.url, body, headers)

    def _over(self, name: str) -> None:
        with translated_errors():
            pipe = self._redis.pipeline(transaction=True)
            pipe.zrem(f"{PREFIX}:webhook:due", name)
            pipe.hdel(f"{PREFIX}:webhook:bodies", name)
            pipe.execute()


def _iso(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
