"""General texts to retrieve from: add, list, show, search, delete, cancel, refused.

tlm corpus add docs --from-packages
tlm corpus search docs "a text to classify"
"""

from __future__ import annotations

from typing import Annotated

import typer

from tlm_client.console import (
    INTERRUPTED,
    LANGUAGE,
    TextColumn,
    Yes,
    command_group,
    confirm_deletion,
    open_client,
    print_result,
    shorten,
    stderr_console,
    table,
)
from tlm_client.display import Display
from tlm_client.sources import corpus_files
from tlm_core.corpus.states import NearDuplicatesChoice
from tlm_core.errors import InvalidRequest

group = command_group(__doc__)

_FINAL_STATES = frozenset({"ready", "failed", "cancelled"})
_SOURCES = "Files, folders, URLs (s3://…), or hub:OWNER/NAME[:config][:split] to stream."

CorpusName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the corpus.")]


@group.command("add")
def add_corpus(
    name: CorpusName,
    paths: Annotated[list[str] | None, typer.Argument(metavar="PATH…", help=_SOURCES)] = None,
    from_packages: Annotated[
        bool, typer.Option("--from-packages", help="Use installed packages' documentation.")
    ] = False,
    language: Annotated[str, typer.Option(help=LANGUAGE)] = "en",
    text_column: TextColumn = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of passages.")] = None,
    by_service: Annotated[bool, typer.Option("--by-service", help="The service fetches the URLs, if allowed.")] = False,
    near_duplicates: Annotated[NearDuplicatesChoice, typer.Option(help="Drop or keep near duplicates.")] = "drop",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the corpus is ready.")] = True,
) -> None:
    """Split texts into passages on this machine, upload them, and wait until the corpus is ready.

    tlm corpus add docs texts/
    tlm corpus add docs --from-packages
    """
    if bool(paths) == from_packages or (from_packages and text_column):
        raise InvalidRequest("Give PATH (files, folders, URLs or hub IDs), or --from-packages without --text-column.")
    if by_service and (from_packages or text_column or limit):
        raise InvalidRequest("--by-service does not support --from-packages, --text-column and --limit. Omit them.")
    with open_client() as client, Display(stderr_console()) as display:
        display.begin(f"corpus {name}:")
        if by_service:
            load = client.fetch_corpus(name, paths or [], language, near_duplicates=near_duplicates)
        else:
            with corpus_files(
                paths or [], language=language, text_column=text_column, limit=limit, display=display
            ) as files:
                display.line(f"uploading {sum(file.stat().st_size for file in files) / 1e6:,.1f} MB")
                load = client.add_corpus(name, files, language, near_duplicates=near_duplicates)
        text = f"Corpus '{name}' is loading. See `tlm corpus show {name}`"
        if wait:
            try:
                load = client.wait_corpus(name, load.id, display.load)
            except KeyboardInterrupt as error:
                display.line(f"{text}, or stop it with `tlm corpus cancel {name}`")
                raise typer.Exit(INTERRUPTED) from error
            text = f"Corpus '{name}' is ready: {load.total:,} passages, version {load.version}"
            version = next((v for v in client.corpus(name).versions if v.version == load.version), None)
            if version is not None and version.near_duplicates_dropped is not None:
                seconds = version.near_duplicates_seconds or 0.0
                text += f". Dropped {version.near_duplicates_dropped:,} near duplicates in {seconds:,.1f} s"
    print_result(load, text)


@group.command("list")
def list_corpora() -> None:
    """List the corpora.

    tlm corpus list
    tlm corpus list --json
    """
    with open_client() as client:
        listed = list(client.corpora())
    rows = []
    for corpus in listed:
        version = next((v for v in corpus.versions if v.version == corpus.version), None)
        count, language = (f"{version.count:,}", version.language) if version else (None, None)
        rows.append((corpus.name, corpus.version, count, language, corpus.loads[0].state if corpus.loads else ""))
    columns = ("name", "version", "passages", "language", "last load")
    empty = "No corpora. Add one with `tlm corpus add NAME FOLDER`, or with `--from-packages`."
    print_result(listed, table(columns, rows, empty=empty))


@group.command("show")
def show_corpus(name: CorpusName) -> None:
    """Show the versions of a corpus and its latest loads.

    tlm corpus show docs
    tlm corpus show docs --json
    """
    with open_client() as client:
        corpus = client.corpus(name)
    versions = []
    for v in corpus.versions:
        dropped = "–" if v.near_duplicates_dropped is None else f"{v.near_duplicates_dropped:,}"
        facts = (v.version, v.state, f"{v.count:,}", dropped, v.refused or "", v.language)
        versions.append((*facts, (v.error or {}).get("message")))
    columns = ("version", "state", "passages", "near duplicates dropped", "refused", "language", "error")
    loads = [
        (x.id, x.state, f"{x.done:,}/{x.total:,}", x.version, (x.error or {}).get("message") or x.waiting)
        for x in corpus.loads
    ]
    load_table = table(("load", "state", "passages", "version", "error, or why it waits"), loads, title="Loads")
    print_result(corpus, table(columns, versions, title="Versions"), load_table)


@group.command("delete")
def delete_corpus(
    name: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="NAME deletes all versions.")], yes: Yes = False
) -> None:
    """Delete a corpus or one of its versions. Fails while an unfinished job uses the data.

    tlm corpus delete docs
    tlm corpus delete docs@v1 --yes
    """
    corpus, version = _split_version(name)
    target = f"version {version} of corpus '{corpus}'" if version else f"corpus '{corpus}'"
    confirm_deletion(target if version else f"{target} with all its versions", yes=yes)
    with open_client() as client:
        client.delete_corpus(corpus, version)
    print_result({"deleted": corpus, "version": version}, f"Deleted {target}")


@group.command("cancel")
def cancel_load(
    name: CorpusName,
    load: Annotated[
        str | None, typer.Argument(metavar="[LOAD]", help="ID of the load. Default: the active load.")
    ] = None,
) -> None:
    """Cancel an active load. Earlier versions remain.

    tlm corpus cancel docs
    tlm corpus cancel docs load_ID
    """
    with open_client() as client:
        active = (each.id for each in client.corpus(name).loads if each.state not in _FINAL_STATES)
        load_id = load or next(active, None)
        if load_id is None:
            raise InvalidRequest(f"Corpus '{name}' has no active load. `tlm corpus show {name}` lists all loads.")
        canceled = client.cancel_load(name, load_id)
    print_result(canceled, f"{canceled.id} of corpus '{name}' is {canceled.state}")


@group.command("refused")
def list_refused(
    name: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="Default: the current version.")],
) -> None:
    """Show the passages that the index rejected, with the reasons.

    tlm corpus refused docs
    tlm corpus refused docs@v1
    """
    corpus, version = _split_version(name)
    with open_client() as client:
        version = version or client.corpus(corpus).version
        passages = client.refused_passages(corpus, version) if version else []
    rows = [(p.id[:32], p.reason, shorten(p.text, width=200)) for p in passages]
    print_result(passages, table(("id", "reason", "text"), rows))


@group.command("search")
def search_corpus(
    name: CorpusName,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="A text, such as one of your training texts.")],
    limit: Annotated[int, typer.Option("--limit", "-k", min=1, max=100, help="Maximum number of passages.")] = 10,
) -> None:
    """Search a corpus.

    tlm corpus search docs "boiling point of water"
    tlm corpus search docs "a text" --limit 3
    """
    with open_client() as client:
        hits = client.search(name, query, limit)
    rows = [(f"{hit.score:.2f}", hit.source, shorten(hit.text, width=400)) for hit in hits]
    print_result(hits, table(("score", "source", "text"), rows))


def _split_version(name: str) -> tuple[str, str | None]:
    """Split NAME[@VERSION] into name and version (None without `@`). Raises InvalidRequest for an empty version."""
    corpus, at, version = name.partition("@")
    if at and not version:
        raise InvalidRequest(f"'{name}' has no version after '@'. Add a version, or remove '@' for the whole corpus.")
    return corpus, version or None
