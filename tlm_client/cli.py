"""The `tlm` command.

Exit codes: 0 done; 1 the job failed, or another error; 2 wrong usage; 3 the gateway, or what it needs, does not
answer; 4 not found; 5 what was sent is not acceptable; 130 interrupted.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tlm_client.commands import again, data, jobs, look, models, profiles, stack, webhooks
from tlm_client.console import session_of


class _Commands(TyperGroup):
    """All commands. Ctrl-C at a question ends them as it does elsewhere; typer tells it as it tells a no."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.Abort as error:
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            raise


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train small text classifiers from scratch: retrieve, train, take the model away.",
    epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 not reachable, 4 not found, 5 invalid input, 130 interrupted.",
)
app.add_typer(data.datasets, name="dataset")
app.add_typer(data.corpora, name="corpus")
app.add_typer(webhooks.webhooks, name="webhook")
app.add_typer(profiles.profiles, name="profile")
for command in (
    stack.up, stack.down, stack.status, jobs.submit, jobs.estimate, jobs.jobs, jobs.show, jobs.watch, look.logs,
    look.compare, look.why, jobs.cancel, jobs.pause, jobs.resume, again.retry, again.clone, again.delete,
    models.download, models.predict, models.evaluate, models.convert,
):  # fmt: skip
    app.command()(command)


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tlm {version('tlm-service')}")
        raise typer.Exit


def _is_typed(context: typer.Context, name: str) -> bool:
    """Whether an option was given on the command line, not by the environment."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


@app.callback()
def connect(
    context: typer.Context,
    profile: Annotated[
        str | None, typer.Option(envvar="TLM_PROFILE", help="One of `tlm profile list`, instead of URL and token.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(envvar="TLM_URL", help="Gateway; default: the one of this machine.")
    ] = None,
    token: Annotated[str | None, typer.Option(envvar="TLM_TOKEN", help="API token of that gateway.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(envvar="TLM_DATA_DIR", help="Data folder of the service on this machine.")
    ] = None,
    _version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", callback=_tell_version, is_eager=True)
    ] = False,
) -> None:
    session = session_of(context)
    typed = {name for name in ("profile", "url", "token") if _is_typed(context, name)}
    if {"profile", "url"} <= typed:
        raise typer.BadParameter("--profile and --url each name a gateway; leave one of them out")
    if "url" in typed:
        profile = None
    if profile is not None and "token" not in typed:
        token = None  # that of the environment is for another gateway
    session.profile = profile or session.profile
    session.url = url or session.url
    session.token = token or session.token
    session.data_dir = data_dir or session.data_dir
