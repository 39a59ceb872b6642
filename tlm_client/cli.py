"""The `tlm` command.

Exit codes: 0 success; 1 the job failed, or another error; 2 wrong usage; 3 the gateway, or a service that it needs,
does not answer; 4 not found; 5 invalid input; 130 interrupted.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tlm_client.commands import analysis, data, gateway, jobs, models, stack, submit, suspects
from tlm_client.console import exit_code, print_error, session_of
from tlm_core.errors import TLMError


class _RootGroup(TyperGroup):
    """All commands. Prints errors and sets the exit code."""

    def invoke(self, ctx: Any) -> object:
        try:
            return super().invoke(ctx)
        except TLMError as error:
            print_error(error, as_json=session_of(ctx).as_json)
            raise typer.Exit(exit_code(error)) from error
        except typer.Abort as error:
            # Typer raises Abort both for the answer "no" and for Ctrl-C at a prompt.
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            raise


app = typer.Typer(
    cls=_RootGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train small text classifiers from scratch: retrieve text, train, download the model.",
    epilog="Exit codes: 0 success, 1 failed, 2 wrong usage, 3 not reachable, 4 not found, 5 invalid input, "
    "130 interrupted.",
)
_PANELS = {
    "Service": (stack.up, stack.down, stack.status),
    "Jobs": (
        *(submit.submit, submit.estimate, submit.retry, submit.clone),
        *(jobs.jobs, jobs.show, jobs.watch, jobs.logs, jobs.cancel, jobs.pause, jobs.resume, jobs.delete),
    ),
    "Results": (
        *(analysis.compare, analysis.why, suspects.suspects),
        *(models.download, models.predict, models.evaluate, models.convert),
    ),
}
for panel, commands in _PANELS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
for name, group in (("dataset", data.datasets), ("corpus", data.corpora)):
    app.add_typer(group, name=name, rich_help_panel="Data")
for name, group in (("webhook", gateway.webhooks), ("profile", gateway.profiles)):
    app.add_typer(group, name=name, rich_help_panel="Service")


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"tlm {version('tlm-service')}")
        raise typer.Exit


def _is_on_command_line(context: typer.Context, name: str) -> bool:
    """Return whether an option comes from the command line, not from the environment."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


@app.callback()
def connect(
    context: typer.Context,
    profile: Annotated[str | None, typer.Option(envvar="TLM_PROFILE", help="Profile with URL and token.")] = None,
    url: Annotated[
        str | None, typer.Option(envvar="TLM_URL", help="URL of the gateway. Default: this machine.")
    ] = None,
    token: Annotated[str | None, typer.Option(envvar="TLM_TOKEN", help="API token of the gateway.")] = None,
    data_dir: Annotated[Path | None, typer.Option(envvar="TLM_DATA_DIR", help="Data folder of `tlm up`.")] = None,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    session = session_of(context)
    typed = {name for name in ("profile", "url", "token") if _is_on_command_line(context, name)}
    if {"profile", "url"} <= typed:
        raise typer.BadParameter("--profile and --url both select a gateway. Use only one of them.")
    if "url" in typed:
        profile = None
    if profile is not None and "token" not in typed:
        token = None  # TLM_TOKEN belongs to another gateway
    session.profile = profile or session.profile
    session.url = url or session.url
    session.token = token or session.token
    session.data_dir = data_dir or session.data_dir
