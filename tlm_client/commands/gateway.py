"""`tlm profile …` and `tlm webhook …`: the gateways that you use, and where they send events."""

from __future__ import annotations

from typing import Annotated

import typer

from tlm_client.console import AsJson, print_result, session_of, table
from tlm_client.http import check_gateway
from tlm_client.profiles import Profile, find_profile, load_profiles, save_profiles

profiles = typer.Typer(no_args_is_help=True, help="Name gateways for `tlm --profile NAME`: add, list, remove.")
webhooks = typer.Typer(no_args_is_help=True, help="Post job events to a URL: add, list, attempts, remove.")

ProfileName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the profile.")]
WebhookId = Annotated[str, typer.Argument(metavar="ID", help="ID of the webhook.")]


@profiles.command("add")
def add_profile(
    context: typer.Context,
    name: ProfileName,
    url: Annotated[str, typer.Argument(metavar="URL", help="URL of the gateway.")],
    token: Annotated[str, typer.Option(prompt=True, hide_input=True, help="API token of the gateway.")],
    as_json: AsJson = False,
) -> None:
    """Add or replace a profile."""
    check_gateway(url, token)
    file = session_of(context).profiles
    save_profiles(file, load_profiles(file) | {name: Profile(url=url, token=token)})
    print_result({"name": name, "url": url}, f"`tlm --profile {name} …` uses {url}", as_json=as_json)


@profiles.command("list")
def list_profiles(context: typer.Context, as_json: AsJson = False) -> None:
    """List the profiles without their tokens."""
    rows = [(name, profile.url) for name, profile in sorted(load_profiles(session_of(context).profiles).items())]
    value = [{"name": name, "url": url} for name, url in rows]
    print_result(value, table(("name", "url"), rows), as_json=as_json)


@profiles.command("remove")
def remove_profile(context: typer.Context, name: ProfileName, as_json: AsJson = False) -> None:
    """Delete a profile."""
    file = session_of(context).profiles
    find_profile(file, name)
    save_profiles(file, {other: profile for other, profile in load_profiles(file).items() if other != name})
    print_result({"removed": name}, f"Removed {name}", as_json=as_json)


@webhooks.command("add")
def add_webhook(
    context: typer.Context,
    url: Annotated[str, typer.Argument(metavar="URL", help="The URL that receives the events.")],
    event: Annotated[
        list[str] | None, typer.Option(help="Event type, such as job.failed. Repeatable. Default: the ends of jobs.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add a webhook. Its secret is shown only once."""
    with session_of(context).client() as client:
        webhook = client.add_webhook(url, event or ())
    text = f"{webhook.id} receives {', '.join(webhook.events)}. Verify signatures with {webhook.secret}"
    print_result(webhook, text, as_json=as_json)


@webhooks.command("list")
def list_webhooks(context: typer.Context, as_json: AsJson = False) -> None:
    """List the webhooks."""
    with session_of(context).client() as client:
        hooks = client.webhooks()
    rows = [(hook.id, hook.url, ", ".join(hook.events), hook.disabled) for hook in hooks]
    print_result(hooks, table(("id", "url", "events", "disabled"), rows), as_json=as_json)


@webhooks.command("attempts")
def list_attempts(context: typer.Context, webhook_id: WebhookId, as_json: AsJson = False) -> None:
    """Show the latest deliveries and their responses."""
    with session_of(context).client() as client:
        attempts = client.webhook_attempts(webhook_id)
    rows = [(a.message, a.type, a.number, a.status, a.error) for a in attempts]
    print_result(attempts, table(("message", "event", "try", "status", "error"), rows), as_json=as_json)


@webhooks.command("remove")
def remove_webhook(context: typer.Context, webhook_id: WebhookId, as_json: AsJson = False) -> None:
    """Delete a webhook."""
    with session_of(context).client() as client:
        client.delete_webhook(webhook_id)
    print_result({"removed": webhook_id}, f"Removed {webhook_id}", as_json=as_json)
