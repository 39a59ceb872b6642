"""`tlm profile …`: gateways by name."""

from __future__ import annotations

from typing import Annotated

import typer

from tlm_client.client import check_gateway
from tlm_client.console import AsJson, emit, guarded, say, session_of, table
from tlm_client.profiles import Profile, load, profile, save

profiles = typer.Typer(no_args_is_help=True, help="Gateways by name, for `tlm --profile NAME`: add, list, remove.")

Name = Annotated[str, typer.Argument(metavar="NAME")]


@profiles.command("add")
@guarded
def add(
    context: typer.Context,
    name: Name,
    url: Annotated[str, typer.Argument(metavar="URL")],
    token: Annotated[
        str, typer.Option(prompt=True, hide_input=True, help="API token of that gateway; asked for if not given.")
    ],
    as_json: AsJson = False,
) -> None:
    """Add a gateway, or change the one of that name."""
    check_gateway(url, token)
    file = session_of(context).profiles
    save(file, load(file) | {name: Profile(url=url, token=token)})
    emit({"name": name, "url": url}) if as_json else say(f"`tlm --profile {name} …` goes to {url}")


@profiles.command("list")
@guarded
def list_all(context: typer.Context, as_json: AsJson = False) -> None:
    """List the gateways; tokens are not shown."""
    found = load(session_of(context).profiles)
    if as_json:
        emit([{"name": name, "url": one.url} for name, one in sorted(found.items())])
    else:
        table(("name", "url"), [(name, one.url) for name, one in sorted(found.items())])


@profiles.command("remove")
@guarded
def remove(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Forget a gateway."""
    file = session_of(context).profiles
    profile(file, name)
    save(file, {other: one for other, one in load(file).items() if other != name})
    emit({"removed": name}) if as_json else say(f"removed {name}")
