"""`tlm open`, `tlm doctor`: open the dashboard of the gateway, and check the gateway."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import Annotated

import typer

from tlm_client.client import TLMClient
from tlm_client.console import FAILED, NOT_REACHABLE, message_of, open_client, print_result, resolve_job, table
from tlm_core.errors import TLMError, Unavailable

_OK = "ok"


def open(
    job_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="Default: the list of jobs.")] = None,
) -> None:
    """Open the dashboard, or the page of a job, in the browser.

    tlm open
    tlm open @latest
    """
    page = f"/{resolve_job(job_id)}" if job_id else ""
    with open_client() as client:
        url = f"{client.url}/ui/jobs{page}"
    print_result({"url": url}, url)
    typer.launch(url)


def doctor() -> None:
    """Check the gateway, its components, the token and the versions. Exit code 1 if a check fails, 3 without an answer.

    tlm doctor
    tlm doctor --json
    """
    with open_client() as client:
        checks = dict(_checks(client))
    value = {"url": client.url, "checks": checks}
    print_result(value, f"Gateway: {client.url}", table(("check", "result"), checks.items()))
    if "token" not in checks:
        raise typer.Exit(NOT_REACHABLE)
    if set(checks.values()) != {_OK}:
        raise typer.Exit(FAILED)


def _checks(client: TLMClient) -> Iterator[tuple[str, str]]:
    """Yield (name, result) of each check. The result is `ok` or a description of the problem."""
    try:
        yield from client.ready().items()
    except TLMError as error:
        yield "components", error.message
    own = version("tlm-service")
    try:
        theirs = client.info().version
    except Unavailable:
        return  # reported above
    except TLMError as error:
        yield "token", message_of(error)
        return
    yield "token", _OK
    yield "version", _OK if own == theirs else f"tlm has version {own}, the gateway {theirs}. Install equal versions."
