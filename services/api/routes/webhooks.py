"""Webhooks: where to send what happens to jobs, and how the sending went."""

from __future__ import annotations

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from services.api.auth import Tenant
from services.api.parts import PartsDep, problems
from tlm_core.errors import Conflict
from tlm_core.wire import EventType, Page, Webhook, WebhookAttempt, WebhookCreated

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])

_MOST = 50


class WebhookBody(BaseModel):
    """An endpoint, and which events it wants."""

    model_config = ConfigDict(
        frozen=True, extra="forbid",
        json_schema_extra={"examples": [{"url": "https://example.com/tlm", "events": ["job.succeeded", "job.failed"]}]},
    )  # fmt: skip

    url: str = Field(min_length=1, max_length=2000)
    events: tuple[EventType, ...] = Field(("job.succeeded", "job.failed", "job.cancelled"), min_length=1, max_length=20)


@router.post("", status_code=201, summary="Add a webhook", responses=problems(409, 413))
def create(body: WebhookBody, parts: PartsDep, tenant: Tenant) -> WebhookCreated:
    """Events are posted as JSON, signed by the Standard Webhooks scheme (`webhook-id`, `-timestamp`, `-signature`), and
    tried again for a day and a half until an answer of 200 to 299."""
    parts.outgoing.check(body.url)
    if len(parts.webhooks.all(tenant)) >= _MOST:
        raise Conflict(f"there are {_MOST} webhooks already; delete one first")
    hook, secret = parts.webhooks.add(tenant, body.url, body.events)
    return WebhookCreated(**hook.model_dump(), secret=secret)


@router.get("", summary="List webhooks", responses=problems())
def list_all(parts: PartsDep, tenant: Tenant) -> Page[Webhook]:
    """All of them, oldest first."""
    return Page(data=tuple(parts.webhooks.all(tenant)), has_more=False)


@router.get("/{webhook}", summary="One webhook", responses=problems(404))
def get(webhook: str, parts: PartsDep, tenant: Tenant) -> Webhook:
    """`disabled` says why nothing is sent to it any more."""
    return parts.webhooks.get(tenant, webhook)


@router.get("/{webhook}/attempts", summary="Its latest deliveries", responses=problems(404))
def attempts(webhook: str, parts: PartsDep, tenant: Tenant) -> Page[WebhookAttempt]:
    """The latest attempts, newest first, with what was answered."""
    parts.webhooks.get(tenant, webhook)
    return Page(data=tuple(parts.webhooks.attempts(tenant, webhook)), has_more=False)


@router.delete("/{webhook}", status_code=204, summary="Delete a webhook", responses=problems(404))
def delete(webhook: str, parts: PartsDep, tenant: Tenant) -> Response:
    """Nothing more is sent to it."""
    parts.webhooks.remove(tenant, webhook)
    return Response(status_code=204)
