"""The `tlm` command.

Exit codes: 0 success; 1 the job failed, or another error; 2 wrong usage; 3 the gateway, or a service that it needs,
does not answer; 4 not found; 5 invalid input; 130 interrupted.

`tlm` imports only the command that runs. The help reads the summaries of all commands from their source.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib import import_module
from importlib.metadata import version
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from tlm_core.errors import InvalidRequest, TLMError

Command = TyperCommand | TyperGroup
_Internal = Any  # a class that typer does not export

# Panel of the help → module of tlm_client.commands → its commands; () means a group with the name of the module.
_PANELS: dict[str, dict[str, tuple[str, ...]]] = {
    "Run": {"submit": ("submit", "estimate", "retry", "clone"), "recipe": ()},
    "Jobs": {
        "jobs": ("jobs", "show", "watch", "logs", "cancel", "pause", "resume", "delete"),
        "analysis": ("compare", "why", "suspects"),
    },
    "Data": {"dataset": (), "corpus": ()},
    "Models": {
        "models": ("predict", "models", "alias", "download", "quantize", "evaluate", "convert", "push", "mlflow")
    },
    "Service": {"stack": ("up", "down", "status"), "gateway": ("open", "doctor"), "profile": (), "webhook": ()},
}
_MODULES = {
    name: module for modules in _PANELS.values() for module, names in modules.items() for name in names or (module,)
}


@cache
def _load(name: str) -> Command:
    """Import and return the command or the group of commands with this name."""
    module = import_module(f"tlm_client.commands.{_MODULES[name]}")
    commands: typer.Typer | None = getattr(module, "group", None)
    if commands is None:
        commands = typer.Typer(add_completion=False, rich_markup_mode=None)
        commands.command()(getattr(module, name))
    command = typer.main.get_command(commands)
    assert isinstance(command, Command)
    _complete(command)
    return command


def _note_json(requested: bool) -> None:
    from tlm_client.console import session

    session().as_json = requested


def _shared(
    _json: Annotated[
        bool, typer.Option("--json", help="Print only JSON to stdout.", callback=_note_json, is_eager=True)
    ] = False,
) -> None:
    """Declare the options that all commands share."""


def _complete(command: Command) -> None:
    """Add the shared options to a command or to its subcommands, and format the examples of the help.

    The lines of the examples start with `tlm`.
    """
    if command.help and "\n\ntlm " in (text := cleandoc(command.help)):
        text, examples = text.split("\n\ntlm ", 1)
        # Without \b, the lines would become one paragraph.
        command.help = "\n".join([text, "\n\b\nExamples:", *(f"  {line}" for line in f"tlm {examples}".splitlines())])
    for subcommand in getattr(command, "commands", {}).values():
        _complete(subcommand)
    if isinstance(command, TyperGroup):
        return
    shared = typer.Typer(add_completion=False)
    shared.command()(_shared)
    for option in typer.main.get_command(shared).params:
        option.expose_value = False
        command.params.append(option)


@cache
def _summaries(module: str) -> dict[str, str]:
    """Return {name: first sentence of the docstring} for a module of commands and each function in the module."""
    path = Path(__file__).with_name("commands") / f"{module}.py"
    source = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in source.body if isinstance(node, ast.FunctionDef)]
    texts = {module: ast.get_docstring(source)} | {node.name: ast.get_docstring(node) for node in functions}
    return {name: (text or "").partition("\n")[0].partition(". ")[0].rstrip(".") for name, text in texts.items()}


class _RootGroup(TyperGroup):
    """The group of all commands. It prints errors and sets the exit code."""

    def resolve_command(self, ctx: _Internal, args: list[str]) -> tuple[str | None, _Internal, list[str]]:
        # For a misspelled command, typer suggests one of these names.
        self.commands = dict.fromkeys(_MODULES)  # type: ignore[assignment]
        return super().resolve_command(ctx, args)

    def list_commands(self, _: object) -> list[str]:
        return list(_MODULES)

    def get_command(self, _: object, name: str) -> Command | None:
        return _load(name) if name in _MODULES else None

    def format_commands(self, _: object, formatter: _Internal) -> None:
        for panel, modules in _PANELS.items():
            rows = [
                (name, _summaries(module)[name]) for module, names in modules.items() for name in names or (module,)
            ]
            with formatter.section(panel):
                formatter.write_dl(rows)

    def invoke(self, ctx: _Internal) -> object:
        try:
            return super().invoke(ctx)
        except (TLMError, OSError) as error:
            from tlm_client.console import begin_session, exit_code, print_error
            from tlm_core.artifacts.faults import NO_SPACE

            if isinstance(error, OSError):
                if error.filename is None or error.errno in NO_SPACE:  # `main` handles a full disk
                    raise
                error = InvalidRequest(f"{error}. Check the path and its permissions.")
            begin_session(ctx)  # The error may precede the callback that begins the session.
            print_error(error)
            raise typer.Exit(exit_code(error)) from error
        except typer.Abort as error:
            # Typer raises Abort both for the answer "no" and for Ctrl-C at a prompt.
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            raise
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")  # Pydantic adds this prefix
            raise
        except TyperException as error:
            unknown = getattr(error, "option_name", None)
            if any(unknown in option.opts for option in self.params):
                raise typer.BadParameter(f"{unknown} goes before the command: tlm {unknown} … COMMAND") from error
            raise


app = typer.Typer(
    cls=_RootGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich takes longer than printing the help
    help="Train small text classifiers from scratch: retrieve text, train, download the model.",
    epilog="Exit codes: 0 success, 1 failed, 2 wrong usage, 3 not reachable, 4 not found, 5 invalid input, "
    "130 interrupted.",
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"tlm {version('tlm-service')}")
        raise typer.Exit


@app.callback()
def connect(
    context: typer.Context,
    profile: Annotated[str | None, typer.Option(envvar="TLM_PROFILE", help="Profile with URL and token.")] = None,
    url: Annotated[
        str | None, typer.Option(envvar="TLM_URL", help="URL of the gateway. Default: the stack on this machine.")
    ] = None,
    token: Annotated[str | None, typer.Option(envvar="TLM_TOKEN", help="API token of the gateway.")] = None,
    data_dir: Annotated[Path | None, typer.Option(envvar="TLM_DATA_DIR", help="Data folder of `tlm up`.")] = None,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    from tlm_client.console import begin_session

    session = begin_session(context)
    sources = {name: context.get_parameter_source(name) for name in ("profile", "url", "token")}
    typed = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    if {"profile", "url"} <= typed:
        raise typer.BadParameter("--profile and --url both select a gateway. Use only one of them.")
    if "url" in typed:
        profile = None
    if profile is not None and "token" not in typed:
        token = None  # TLM_TOKEN may belong to another gateway
    session.profile = profile or session.profile
    session.url = url or session.url
    session.token = token or session.token
    session.data_dir = data_dir or session.data_dir
