"""Name gateways for `tlm --profile NAME`: add, list, remove.

tlm profile add team https://tlm.example.com
tlm profile list
"""

from __future__ import annotations

from typing import Annotated

import typer

from tlm_client.console import command_group, print_result, session, table
from tlm_client.http import check_gateway
from tlm_client.profiles import Profile, load_profiles, read_profile, save_profiles

group = command_group(__doc__)

ProfileName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the profile.")]


@group.command("add")
def add_profile(
    name: ProfileName,
    url: Annotated[str, typer.Argument(metavar="URL", help="URL of the gateway.")],
    token: Annotated[str | None, typer.Option(help="API token of the gateway. Default: prompt for it.")] = None,
) -> None:
    """Add or replace a profile.

    tlm profile add team https://tlm.example.com
    tlm profile add local http://127.0.0.1:8321 --token TOKEN
    """
    if token is None:
        token = str(typer.prompt("Token", hide_input=True, err=True))
    check_gateway(url, token)
    file = session().profiles
    save_profiles(file, load_profiles(file) | {name: Profile(url=url, token=token)})
    print_result({"name": name, "url": url}, f"`tlm --profile {name} …` uses {url}")


@group.command("list")
def list_profiles() -> None:
    """List the profiles without their tokens.

    tlm profile list
    tlm profile list --json
    """
    rows = [(name, profile.url) for name, profile in sorted(load_profiles(session().profiles).items())]
    value = [{"name": name, "url": url} for name, url in rows]
    empty = "No profiles. Add one with: tlm profile add NAME URL"
    print_result(value, table(("name", "url"), rows, empty=empty))


@group.command("remove")
def remove_profile(name: ProfileName) -> None:
    """Delete a profile.

    tlm profile remove team
    tlm profile remove team --json
    """
    file = session().profiles
    read_profile(file, name)
    save_profiles(file, {other: profile for other, profile in load_profiles(file).items() if other != name})
    print_result({"removed": name}, f"Removed {name}")
