"""Webhooks: endpoints that receive job events, and their delivery attempts."""

from __future__ import annotations

from fastapi import APIRouter, Response
from pydantic import ConfigDict, Field

from services.api.auth import Tenant
from services.api.parts import PartsDep, RequestBody, problems
from tlm_core.errors import Conflict
from tlm_core.wire import EventType, Page, Webhook, WebhookAttempt, WebhookCreated

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])

_MAX_WEBHOOKS = 50


class WebhookBody(RequestBody):
    """An endpoint, and the types of events that the endpoint receives."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"url": "https://example.com/tlm", "events": ["job.succeeded", "job.failed"]}]}
    )

    url: str = Field(min_length=1, max_length=2000)
    events: tuple[EventType, ...] = Field(("job.succeeded", "job.failed", "job.cancelled"), min_length=1, max_length=20)


@router.post("", status_code=201, summary="Add a webhook", responses=problems(409, 413, 415))
def create(body: WebhookBody, parts: PartsDep, tenant: Tenant) -> WebhookCreated:
    """Register an endpoint. The service posts each event as JSON. Without a 2xx response, it retries for 32 hours.

    The service signs the events by the Standard Webhooks scheme, with the headers `webhook-id`, `webhook-timestamp` and
    `webhook-signature`.
    """
    parts.outbound.check(body.url)
    if len(parts.webhooks.all(tenant)) >= _MAX_WEBHOOKS:
        raise Conflict(f"The limit of {_MAX_WEBHOOKS} webhooks is reached. Delete a webhook, then add this one.")
    hook, secret = parts.webhooks.add(tenant, body.url, body.events)
    return WebhookCreated(**hook.model_dump(), secret=secret)


@router.get("", summary="List webhooks", responses=problems())
def list_all(parts: PartsDep, tenant: Tenant) -> Page[Webhook]:
    """Return all webhooks, oldest first."""
    return Page(data=tuple(parts.webhooks.all(tenant)), has_more=False)


@router.get("/{webhook}", summary="Get a webhook", responses=problems(404))
def get(webhook: str, parts: PartsDep, tenant: Tenant) -> Webhook:
    """Return a webhook. If the webhook receives no more events, `disabled` gives the reason."""
    return parts.webhooks.get(tenant, webhook)


@router.get("/{webhook}/attempts", summary="List delivery attempts", responses=problems(404))
def attempts(webhook: str, parts: PartsDep, tenant: Tenant) -> Page[WebhookAttempt]:
    """Return the latest attempts to deliver events to a webhook, newest first, with the status of each response."""
    parts.webhooks.get(tenant, webhook)
    return Page(data=tuple(parts.webhooks.attempts(tenant, webhook)), has_more=False)


@router.delete("/{webhook}", status_code=204, summary="Delete a webhook", responses=problems(404))
def delete(webhook: str, parts: PartsDep, tenant: Tenant) -> Response:
    """Delete a webhook and drop its queued deliveries."""
    parts.webhooks.remove(tenant, webhook)
    return Response(status_code=204)
