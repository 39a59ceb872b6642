"""What all commands share: the session, output for people and for programs, errors and exit codes."""

from __future__ import annotations

import codecs
import json
import re
import sys
from collections.abc import Collection, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic_core import to_jsonable_python
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tlm_client.client import TLMClient
from tlm_client.profiles import profiles_file, read_profile
from tlm_client.stack.folder import StackFolder, default_data_dir
from tlm_core.errors import InvalidRequest, NotFound, TLMError, Unauthorized, Unavailable
from tlm_core.names import is_job_id

if TYPE_CHECKING:
    import httpx

FAILED, USAGE, NOT_REACHABLE, NOT_FOUND, INVALID, INTERRUPTED = 1, 2, 3, 4, 5, 130
_MOST_DATA_ERRORS = 20
_WIDTH_WITHOUT_TERMINAL = 160
# Field of a request → the option or argument of a command that sets it.
_ARGUMENTS = {
    "alias": "alias", "events": "--event", "seeds": "--seed", "texts": "TEXT", "pairs": "--pair",
    "overrides": "--set", "metadata": "--label", "max_attempts": "--max-attempts",
    "max_runtime_seconds": "--max-runtime",
}  # fmt: skip
# Control characters of a text could command the terminal, for example to change the clipboard.
_CONTROLS = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {ord("\t"), ord("\n")}, "\ufffd")

Item = str | Table


@dataclass
class Session:
    """The connection options of one `tlm` call.

    profile: name of a profile. The URL of the profile replaces `url`. The token of the profile applies if `token` is
    not set. data_dir: data folder of the local stack. profiles: the file with all profiles. as_json: whether to print
    JSON. transport: replaces the network in tests.
    """

    profile: str | None = None
    url: str | None = None
    token: str | None = None
    data_dir: Path = field(default_factory=default_data_dir)
    profiles: Path = field(default_factory=profiles_file)
    as_json: bool = False
    transport: httpx.BaseTransport | None = None

    def client(self) -> TLMClient:
        """Return a client of the selected gateway, by default of the stack on this machine.

        Raises Unavailable if no gateway is selected and no stack runs, and NotFound for an unknown profile.
        """
        url, token = self.url, self.token
        if self.profile is not None:
            profile = read_profile(self.profiles, self.profile)
            url, token = profile.url, token or profile.token
        if not (url and token):
            folder = StackFolder(self.data_dir)
            state = folder.running_state()
            if state is not None and url in (None, state.url, f"{state.url}/"):
                url, token = state.url, token or folder.token_file.read_text(encoding="utf-8").strip()
        if url is None:
            raise Unavailable(
                f"No stack runs with the data folder {self.data_dir}, and no URL is set. Start one with `tlm up`, "
                "or set --url and --token (TLM_URL, TLM_TOKEN)."
            )
        return TLMClient(url, token or "", transport=self.transport)


_session: ContextVar[Session] = ContextVar("session")


def begin_session(context: typer.Context) -> Session:
    """Return the session of this `tlm` call. All later calls of `session` return the same object."""
    _session.set(context.ensure_object(Session))
    return session()


def session() -> Session:
    """Return the session of this `tlm` call."""
    return _session.get()


def open_client() -> TLMClient:
    """Return a client of the selected gateway."""
    return session().client()


def resolve_job(reference: str) -> str:
    """Return the id of the job that `reference` means. reference: see `TLMClient.job_id`."""
    if is_job_id(reference):  # A full id needs no connection.
        return reference
    with open_client() as client:
        return client.job_id(reference)


def _job_ids(references: list[str]) -> list[str]:
    if not 2 <= len(references) <= 10:
        raise typer.BadParameter("Give two to ten jobs.")
    ids = list(map(resolve_job, references))
    for job in ids:
        if len(same := [name for name, other in zip(references, ids, strict=True) if other == job]) > 1:
            raise typer.BadParameter(f"'{same[0]}' and '{same[1]}' mean the same job. Name each job once.")
    return ids


_JOB_HELP = "ID or name of the job, a unique start of the ID, an alias of its model, or @latest."
JobId = Annotated[str, typer.Argument(metavar="ID", help=_JOB_HELP, callback=resolve_job)]
JobIds = Annotated[list[str], typer.Argument(metavar="ID ID…", help="Two to ten jobs.", callback=_job_ids)]
TextColumn = Annotated[str | None, typer.Option(help="Column with the texts. Default: inferred.")]
LANGUAGE = "ISO 639 code of the language, such as de."
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
Watch = Annotated[bool, typer.Option("--watch", "-w", help="Show the progress until the job ends.")]


def command_group(summary: str | None) -> typer.Typer:
    """Return an empty group of commands. summary: the text of its help."""
    group = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, help=summary)
    group.callback()(lambda: None)  # otherwise a group with one command would become that command
    return group


def exit_code(error: TLMError) -> int:
    """Return the documented exit code of an error."""
    if isinstance(error, Unavailable):
        return NOT_REACHABLE
    if isinstance(error, NotFound):
        return NOT_FOUND
    return INVALID if isinstance(error, InvalidRequest) else FAILED


def stderr_console() -> Console:
    """Return the console for progress and notes. Only results go to stdout."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def shorten(text: str, terms: Sequence[str] = (), width: int = 100) -> str:
    """Return the words of `text` around the first match of one of `terms`, or the first words if no term matches.

    "…" replaces the rest of the text. width: maximum number of characters, not counting "…".
    """
    line = " ".join(text.split())
    match = re.search(rf"(?i)\b({'|'.join(map(re.escape, terms))})\b", line) if terms else None
    start = max(0, match.start() - width // 3) if match else 0
    if match and start:
        start = max(start, line.find(" ", start, match.start()) + 1)
    shown = line[start : start + width]
    if start + width < len(line):
        end = shown.rfind(" ", match.end() - start if match else 0)
        shown = f"{shown[:end] if end > 0 else shown} …"
    return f"… {shown}" if start else shown


def printable(text: str) -> str:
    """Return the text with U+FFFD instead of control characters. Tabs and line ends stay."""
    return text.translate(_CONTROLS)


def as_markup(text: str) -> str:
    """Return the markup of rich that prints `text` without control characters."""
    return escape(printable(text))


def print_line(text: str, *, err: bool = False) -> None:
    """Print a text without control characters to stdout, or with `err` to stderr."""
    typer.echo(printable(text), err=err)


def table(
    columns: Sequence[str], rows: Collection[Sequence[object]], *, title: str = "", empty: str = "Nothing found."
) -> Item:
    """Return a table, or the line `empty` if there are no rows. Cells of type Text are styled and must be printable."""
    if not rows:
        return empty
    result = Table(title=as_markup(title) or None, title_justify="left", header_style="bold")
    for column in columns:
        result.add_column(as_markup(column), no_wrap=column == "id", overflow="fold")
    for row in rows:
        cells = ("" if cell is None else cell for cell in row)
        result.add_row(*(cell if isinstance(cell, Text) else as_markup(str(cell)) for cell in cells))
    return result


def print_items(*items: Item) -> None:
    """Print lines and tables to stdout. Markup in lines is shown as text."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH_WITHOUT_TERMINAL
    for item in items:
        if isinstance(item, Table):
            console.print(item)
        else:
            print_line(item)


def print_json(value: object, *, err: bool = False) -> None:
    """Print a value as one JSON line to stdout, or with `err` to stderr. A stream without UTF-8 gets ASCII escapes."""
    # A closed stream is None and prints nothing.
    encoding = getattr(sys.stderr if err else sys.stdout, "encoding", None) or "utf-8"
    is_utf8 = codecs.lookup(encoding).name == "utf-8"
    typer.echo(json.dumps(to_jsonable_python(value, by_alias=False), ensure_ascii=not is_utf8), err=err)


def print_result(value: object, *items: Item) -> None:
    """Print `value` as JSON if the session requests it, else the lines and tables."""
    print_json(value) if session().as_json else print_items(*items)


def print_note(text: str) -> None:
    """Print a note to stderr without interpreting markup."""
    print_line(f"note: {text}", err=True)


def confirm_deletion(what: str, *, yes: bool) -> None:
    """Prompt for a confirmation if `yes` is False. Raises typer.Abort if the answer is no or missing."""
    try:
        if not yes:
            typer.confirm(f"Delete {what} permanently?", abort=True, err=True)
    except typer.Abort as error:
        if isinstance(error.__context__, EOFError):
            typer.echo("\nThe deletion needs a confirmation, but stdin has ended. Answer y, or add --yes.", err=True)
        raise


def print_error(error: TLMError) -> None:
    """Print an error and its data errors to stderr, because stdout is for results."""
    if session().as_json:
        print_json({"error": error.as_dict()}, err=True)
        return
    print_line(f"error: {message_of(error)}", err=True)
    if request_id := error.facts.get("request_id"):
        print_line(f"  The log of the gateway contains this request with the id {request_id}.", err=True)
    lists = (error.facts.get(name) for name in ("faults", "errors"))
    entries = [entry for listed in lists if isinstance(listed, list) for entry in listed]
    lines = (": ".join(str(entry[key]) for key in ("pointer", "message") if entry.get(key)) for entry in entries)
    more = [line for line in lines if line not in error.message]
    for line in more[:_MOST_DATA_ERRORS]:
        print_line(f"  {_in_own_words(line)}", err=True)
    if len(more) > _MOST_DATA_ERRORS:
        rest = f"{len(more) - _MOST_DATA_ERRORS} more errors. Use --json to print them."
        print_line(f"  {rest} Of errors with the same code, the service lists the first 100.", err=True)


def message_of(error: TLMError) -> str:
    """Return the message of an error. Options and arguments of commands replace the names of fields and headers."""
    if isinstance(error, Unauthorized):
        problem = error.message.partition(" Send the header ")[0]
        return f"{problem} Set --token or TLM_TOKEN, or select a profile with --profile."
    return _in_own_words(error.message)


def _in_own_words(text: str) -> str:
    """Replace JSON pointers in a text by options and arguments of commands, such as `/seeds` by `--seed`."""

    def argument(pointer: re.Match[str]) -> str:
        return _ARGUMENTS[pointer[1]] + (f" (number {int(pointer[2]) + 1})" if pointer[2] else "")

    return re.sub(rf"(?<!\S)/({'|'.join(_ARGUMENTS)})(?:/(\d+))?(?=: )", argument, text)
