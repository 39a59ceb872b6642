"""Post job events to a URL: add, list, attempts, remove.

tlm webhook add https://example.com/tlm
tlm webhook list
"""

from __future__ import annotations

from typing import Annotated

import typer

from tlm_client.console import command_group, open_client, print_result, table

group = command_group(__doc__)

WebhookId = Annotated[str, typer.Argument(metavar="ID", help="ID of the webhook.")]


@group.command("add")
def add_webhook(
    url: Annotated[str, typer.Argument(metavar="URL", help="The URL that receives the events.")],
    event: Annotated[
        list[str] | None, typer.Option(help="Event type, such as job.failed. Repeatable. Default: the ends of jobs.")
    ] = None,
) -> None:
    """Add a webhook. Its secret is shown only once.

    tlm webhook add https://example.com/tlm
    tlm webhook add https://example.com/tlm --event job.failed
    """
    with open_client() as client:
        webhook = client.add_webhook(url, event or ())
    text = f"{webhook.id} receives {', '.join(webhook.events)}. Its secret, which verifies signatures: {webhook.secret}"
    print_result(webhook, text)


@group.command("list")
def list_webhooks() -> None:
    """List the webhooks.

    tlm webhook list
    tlm webhook list --json
    """
    with open_client() as client:
        hooks = client.webhooks()
    reasons = [hook.error["message"] if hook.error else hook.disabled for hook in hooks]
    rows = [(hook.id, hook.url, ", ".join(hook.events), reason) for hook, reason in zip(hooks, reasons, strict=True)]
    empty = "No webhooks. Add one with: tlm webhook add URL"
    print_result(hooks, table(("id", "url", "events", "disabled"), rows, empty=empty))


@group.command("attempts")
def list_attempts(webhook_id: WebhookId) -> None:
    """Show the latest deliveries and their responses.

    tlm webhook attempts wh_ID
    tlm webhook attempts wh_ID --json
    """
    with open_client() as client:
        attempts = client.webhook_attempts(webhook_id)
    rows = [(a.message, a.type, a.number, a.status, a.error) for a in attempts]
    print_result(attempts, table(("message", "event", "try", "status", "error"), rows, empty="No deliveries yet."))


@group.command("remove")
def remove_webhook(webhook_id: WebhookId) -> None:
    """Delete a webhook.

    tlm webhook remove wh_ID
    tlm webhook remove wh_ID --json
    """
    with open_client() as client:
        client.delete_webhook(webhook_id)
    print_result({"removed": webhook_id}, f"Removed {webhook_id}")
