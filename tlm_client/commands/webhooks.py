"""`tlm webhook …`: have events of jobs posted somewhere."""

from __future__ import annotations

from typing import Annotated

import typer

from tlm_client.console import AsJson, emit, guarded, say, session_of, table

webhooks = typer.Typer(no_args_is_help=True, help="Post what happens to jobs somewhere: add, list, attempts, remove.")

HookId = Annotated[str, typer.Argument(metavar="ID")]


@webhooks.command("add")
@guarded
def add(
    context: typer.Context,
    url: Annotated[str, typer.Argument(metavar="URL")],
    event: Annotated[
        list[str] | None, typer.Option(help="Such as job.failed; several times. Default: how jobs ended.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add an endpoint; its secret is told only now."""
    with session_of(context).client() as client:
        made = client.add_webhook(url, event or ())
    if as_json:
        emit(made)
    else:
        say(f"{made.id} gets {', '.join(made.events)}; check signatures with {made.secret}")


@webhooks.command("list")
@guarded
def list_all(context: typer.Context, as_json: AsJson = False) -> None:
    """List the endpoints."""
    with session_of(context).client() as client:
        found = client.webhooks()
    if as_json:
        emit(found)
    else:
        table(("id", "url", "events", "disabled"), [(w.id, w.url, ", ".join(w.events), w.disabled) for w in found])


@webhooks.command("attempts")
@guarded
def attempts(context: typer.Context, webhook_id: HookId, as_json: AsJson = False) -> None:
    """Show its latest deliveries and what was answered."""
    with session_of(context).client() as client:
        found = client.webhook_attempts(webhook_id)
    if as_json:
        emit(found)
    else:
        table(("message", "event", "try", "status", "error"),
              [(a["message"], a["type"], a["number"], a["status"], a["error"]) for a in found])  # fmt: skip


@webhooks.command("remove")
@guarded
def remove(context: typer.Context, webhook_id: HookId, as_json: AsJson = False) -> None:
    """Send nothing more to an endpoint."""
    with session_of(context).client() as client:
        client.delete_webhook(webhook_id)
    emit({"removed": webhook_id}) if as_json else say(f"removed {webhook_id}")
