"""What every command shares: finding the gateway, printing for people or programs, exit codes."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import httpx
import typer
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tlm_client.client import TLMClient
from tlm_client.profiles import profile, profiles_file
from tlm_client.stack.control import stack_state
from tlm_client.stack.folder import StackFolder, default_data_dir
from tlm_core.errors import InvalidRequest, NotFound, TLMError, Unavailable

FAILED, USAGE, NOT_REACHABLE, NOT_FOUND, INVALID, INTERRUPTED = 1, 2, 3, 4, 5, 130
_SHOWN_FAULTS = 20
_FILE_WIDTH = 160

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass
class Session:
    """Where the commands go. profile: stands in place of url, and of token if that is None. profiles: file with
    gateways by name. transport: stands in for the network in tests."""

    profile: str | None = None
    url: str | None = None
    token: str | None = None
    data_dir: Path = field(default_factory=lambda: default_data_dir(os.environ))
    profiles: Path = field(default_factory=lambda: profiles_file(os.environ))
    transport: httpx.BaseTransport | None = None

    def client(self) -> TLMClient:
        """A client of the gateway that was named, else of the stack that runs on this machine. Raises Unavailable."""
        url, token = self.url, self.token
        if self.profile is not None:
            known = profile(self.profiles, self.profile)
            url, token = known.url, token or known.token
        if url is None:
            state = stack_state(self.data_dir)
            if state is None:
                raise Unavailable(
                    f"no stack is running on {self.data_dir} and no URL is given; start one with `tlm up`, "
                    "or set --url and --token (TLM_URL, TLM_TOKEN)"
                )
            url = state.url
            token = token or StackFolder(self.data_dir).token_file.read_text(encoding="utf-8").strip()
        return TLMClient(url, token or "", transport=self.transport)


def session_of(context: typer.Context) -> Session:
    return context.ensure_object(Session)


def exit_code(error: TLMError) -> int:
    """The documented exit code for an error."""
    if isinstance(error, Unavailable):
        return NOT_REACHABLE
    if isinstance(error, NotFound):
        return NOT_FOUND
    return INVALID if isinstance(error, InvalidRequest) else FAILED


def guarded(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """Turn the project's errors into a message and an exit code."""

    @functools.wraps(command)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return command(*args, **kwargs)
        except TLMError as error:
            tell_error(error, as_json=bool(kwargs.get("as_json")))
            raise typer.Exit(exit_code(error)) from error

    return run


def notes() -> Console:
    """Where progress and remarks go, so that stdout holds results alone."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def emit(value: Any) -> None:
    """One JSON value on stdout, on one line."""
    typer.echo(json.dumps(_plain(value), ensure_ascii=False))


def say(text: str) -> None:
    """A line for people on stdout; the text is shown as it is."""
    typer.echo(text)


def confirm_deletion(what: str, *, yes: bool) -> None:
    """Ask before anything is deleted, unless `yes` was given; a no ends the command."""
    if not yes:
        typer.confirm(f"delete {what} for good?", abort=True, err=True)


def remark(text: str) -> None:
    """A note for people on stderr; the text is shown as it is."""
    typer.echo(f"note: {text}", err=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """A table for people on stdout. Cells are data: markup in them is shown, not obeyed."""
    shown = Table(title=escape(title) if title else None, title_justify="left", header_style="bold")
    for column in columns:
        shown.add_column(column, no_wrap=column == "id", overflow="fold")
    for row in rows:
        shown.add_row(*("" if cell is None else escape(str(cell)) for cell in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    console.print(shown)


def tell_error(error: TLMError, *, as_json: bool) -> None:
    """The sentence, and each fault with its place, on stderr; with --json the whole error on stdout as well."""
    if as_json:
        emit({"error": error.as_dict()})
    typer.echo(f"error: {error.message}", err=True)
    faults: list[Mapping[str, Any]] = [*error.facts.get("faults", []), *error.facts.get("errors", [])]
    for fault in faults[:_SHOWN_FAULTS]:
        typer.echo(f"  {_place(fault)}{fault.get('message', '')}", err=True)
    if len(faults) > _SHOWN_FAULTS:
        typer.echo(f"  and {len(faults) - _SHOWN_FAULTS} more (--json lists them all)", err=True)


def _place(fault: Mapping[str, Any]) -> str:
    parts = [
        str(fault["split"]) if fault.get("split") else "",
        f"row {fault['row']}" if fault.get("row") is not None else "",
        f"column '{fault['column']}'" if fault.get("column") else "",
        str(fault.get("pointer") or ""),
    ]
    place = ", ".join(part for part in parts if part)
    return f"{place}: " if place else ""


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value
