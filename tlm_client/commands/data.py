"""`tlm dataset …` and `tlm corpus …`."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tlm_client.console import (
    AsJson,
    Item,
    Yes,
    confirm_deletion,
    print_note,
    print_result,
    session_of,
    stderr_console,
    table,
)
from tlm_client.display import Display
from tlm_client.sources import corpus_files, dataset_files
from tlm_core.errors import InvalidRequest
from tlm_core.tasks.metrics import METRICS
from tlm_core.wire import CorpusVersion, Dataset

datasets = typer.Typer(no_args_is_help=True, help="Labeled texts: add, list, show, delete.")
corpora = typer.Typer(
    no_args_is_help=True, help="General texts to retrieve from: add, list, show, search, delete, cancel, refused."
)

_HUB = "hub:"
_FINAL_STATES = frozenset({"ready", "failed", "cancelled"})
_MOST_WARNINGS = 20


METRIC_HELP = f"One of {', '.join(METRICS)}."
SOURCES = "Files, folders, URLs (s3://…), or hub:OWNER/NAME[:config][:split] to stream."
LANGUAGE = "ISO 639 code of the language, such as de."


class NearDuplicates(StrEnum):
    """What to do with near duplicates."""

    DROP = "drop"
    KEEP = "keep"


DatasetName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the dataset.")]
CorpusName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the corpus.")]
TextColumn = Annotated[str | None, typer.Option(help="Column with the texts. Default: inferred.")]


@datasets.command("add")
def add_dataset(
    context: typer.Context,
    name: DatasetName,
    source: Annotated[str, typer.Argument(metavar="PATH|hub:ID", help="File, folder of split files, or hub ID.")],
    selection: Annotated[Path | None, typer.Option(help="File of passages (text, rank) for selector 'given'.")] = None,
    text_column: TextColumn = None,
    pair_column: Annotated[str | None, typer.Option(help="Column with the second texts of text pairs.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column with the labels. Default: inferred.")] = None,
    delimiter: Annotated[str | None, typer.Option(help="Delimiter of CSV files. Default: inferred.")] = None,
    metric: Annotated[str | None, typer.Option(help=METRIC_HELP)] = None,
    positive_label: Annotated[str | None, typer.Option(help="The positive label of the metric f1.")] = None,
    language: Annotated[str | None, typer.Option(help=LANGUAGE)] = None,
    split_seed: Annotated[int, typer.Option(help="Seed for splits that the service creates.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Upload a dataset. If it contains errors, print each with its row and column, and store nothing."""
    fields = {
        "text_column": text_column, "text_pair_column": pair_column, "label_column": label_column,
        "delimiter": delimiter, "metric": metric, "positive_label": positive_label, "language": language,
        "split_seed": split_seed or None,
    }  # fmt: skip
    options = {key: value for key, value in fields.items() if value is not None}
    with session_of(context).client() as client:
        if source.startswith(_HUB):
            path = None if selection is None else selection.as_posix()
            dataset = client.add_hub_dataset(name, source, options, selection=path)
        else:
            if selection is not None and not selection.is_file():
                raise InvalidRequest(f"Invalid --selection: no file '{selection}'. Check the path.")
            files = dataset_files(Path(source), notify=print_note)
            dataset = client.add_dataset(name, files | ({"selection": selection} if selection else {}), options)
    print_result(dataset, *_dataset_items(dataset, dataset.report or {}), as_json=as_json)


@datasets.command("list")
def list_datasets(context: typer.Context, as_json: AsJson = False) -> None:
    """List the datasets, newest first."""
    with session_of(context).client() as client:
        listed = list(client.datasets())
    rows = [(d.name, d.version, d.id, d.labels, _format_rows(d.rows), d.warnings) for d in listed]
    print_result(listed, table(("name", "version", "id", "labels", "rows", "warnings"), rows), as_json=as_json)


@datasets.command("show")
def show_dataset(context: typer.Context, name: DatasetName, as_json: AsJson = False) -> None:
    """Show the labels, warnings and inferred settings of a dataset."""
    with session_of(context).client() as client:
        dataset = client.dataset(name)
        report = client.dataset_report(dataset.id)
    value = dataset.model_copy(update={"report": report})
    print_result(value, *_dataset_items(dataset, report), as_json=as_json)


@datasets.command("delete")
def delete_dataset(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(metavar="ID|NAME", help="NAME deletes its newest version.")],
    with_jobs: Annotated[bool, typer.Option("--with-jobs", help="Also delete its jobs and their models.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete one version of a dataset. Fails while an unfinished job uses it."""
    with session_of(context).client() as client:
        target = client.dataset(dataset)
        confirm_deletion(f"'{target.name}' version {target.version} ({target.id})", yes=yes)
        client.delete_dataset(target.id, with_jobs=with_jobs)
    print_result({"deleted": target.id}, f"Deleted {target.id}", as_json=as_json)


@corpora.command("add")
def add_corpus(
    context: typer.Context,
    name: CorpusName,
    paths: Annotated[list[str] | None, typer.Argument(metavar="PATH…", help=SOURCES)] = None,
    from_packages: Annotated[
        bool, typer.Option("--from-packages", help="Use installed packages' documentation.")
    ] = False,
    language: Annotated[str, typer.Option(help=LANGUAGE)] = "en",
    text_column: TextColumn = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of passages.")] = None,
    by_service: Annotated[bool, typer.Option("--by-service", help="Let the service fetch allowed URLs.")] = False,
    near_duplicates: Annotated[
        NearDuplicates, typer.Option(help="Drop or keep near duplicates.")
    ] = NearDuplicates.DROP,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the corpus is ready.")] = True,
    as_json: AsJson = False,
) -> None:
    """Split texts into passages on this machine, upload them, and wait until the corpus is ready."""
    if bool(paths) == from_packages:
        raise InvalidRequest("Name files, folders or hub IDs, or use --from-packages. Do not combine them.")
    if by_service and (from_packages or text_column or limit):
        raise InvalidRequest("--by-service does not support --from-packages, --text-column and --limit. Omit them.")
    near: Literal["drop", "keep"] = "drop" if near_duplicates is NearDuplicates.DROP else "keep"
    with session_of(context).client() as client, Display(stderr_console()) as display:
        display.begin(f"corpus {name}:")
        if by_service:
            load = client.fetch_corpus(name, paths or [], language, near_duplicates=near)
        else:
            with corpus_files(
                paths or [], language=language, text_column=text_column, limit=limit, display=display
            ) as files:
                display.line(f"uploading {sum(file.stat().st_size for file in files) / 1e6:,.1f} MB")
                load = client.add_corpus(name, files, language, near_duplicates=near)
        version = None
        if wait:
            load = client.wait_corpus(name, load.id, display.load)
            version = next((v for v in client.corpus(name).versions if v.version == load.version), None)
    text = f"Corpus '{name}' is loading. See `tlm corpus show {name}`"
    if wait:
        text = f"Corpus '{name}' is ready: {load.total:,} passages, version {load.version}{_format_dropped(version)}"
    print_result(load, text, as_json=as_json)


@corpora.command("list")
def list_corpora(context: typer.Context, as_json: AsJson = False) -> None:
    """List the corpora."""
    with session_of(context).client() as client:
        listed = list(client.corpora())
    rows = []
    for corpus in listed:
        version = next((v for v in corpus.versions if v.version == corpus.version), None)
        count, language = (f"{version.count:,}", version.language) if version else (None, None)
        rows.append((corpus.name, corpus.version, count, language, corpus.loads[0].state if corpus.loads else ""))
    columns = ("name", "version", "passages", "language", "last upload")
    print_result(listed, table(columns, rows), as_json=as_json)


@corpora.command("show")
def show_corpus(context: typer.Context, name: CorpusName, as_json: AsJson = False) -> None:
    """Show the versions of a corpus and its latest uploads."""
    with session_of(context).client() as client:
        corpus = client.corpus(name)
    versions = []
    for v in corpus.versions:
        dropped = "–" if v.near_duplicates_dropped is None else f"{v.near_duplicates_dropped:,}"
        facts = (v.version, v.state, f"{v.count:,}", dropped, v.refused or "", v.language)
        versions.append((*facts, _error_message(v.error)))
    columns = ("version", "state", "passages", "near duplicates dropped", "refused", "language", "error")
    uploads = [(x.id, x.state, f"{x.done:,}/{x.total:,}", x.version, _error_message(x.error)) for x in corpus.loads]
    upload_table = table(("upload", "state", "passages", "version", "error"), uploads, title="Uploads")
    print_result(corpus, table(columns, versions, title="Versions"), upload_table, as_json=as_json)


@corpora.command("delete")
def delete_corpus(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="NAME deletes all versions.")],
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete a corpus or one of its versions. Fails while an unfinished job uses it."""
    corpus, version = _split_version(name)
    target = f"version {version} of corpus '{corpus}'" if version else f"corpus '{corpus}'"
    confirm_deletion(target if version else f"{target} with all its versions", yes=yes)
    with session_of(context).client() as client:
        client.delete_corpus(corpus, version)
    print_result({"deleted": corpus, "version": version}, f"Deleted {target}", as_json=as_json)


@corpora.command("cancel")
def cancel_upload(
    context: typer.Context,
    name: CorpusName,
    upload: Annotated[str | None, typer.Argument(metavar="[UPLOAD]", help="Default: the active upload.")] = None,
    as_json: AsJson = False,
) -> None:
    """Cancel an active upload. Earlier versions remain."""
    with session_of(context).client() as client:
        active = (load.id for load in client.corpus(name).loads if load.state not in _FINAL_STATES)
        upload_id = upload or next(active, None)
        if upload_id is None:
            raise InvalidRequest(f"Corpus '{name}' has no active upload. `tlm corpus show {name}` lists all uploads.")
        load = client.cancel_load(name, upload_id)
    print_result(load, f"{load.id} of corpus '{name}' is {load.state}", as_json=as_json)


@corpora.command("refused")
def list_refused(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="Default: the current version.")],
    as_json: AsJson = False,
) -> None:
    """Show the passages that the index rejected, with the reasons."""
    corpus, version = _split_version(name)
    with session_of(context).client() as client:
        version = version or client.corpus(corpus).version
        passages = client.refused_passages(corpus, version) if version else []
    rows = [(p.id[:32], p.reason, p.text[:200]) for p in passages]
    print_result(passages, table(("id", "reason", "text"), rows), as_json=as_json)


@corpora.command("search")
def search_corpus(
    context: typer.Context,
    name: CorpusName,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="A text, such as one of your training texts.")],
    k: Annotated[int, typer.Option("-k", min=1, max=100, help="Maximum number of passages.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Search a corpus."""
    with session_of(context).client() as client:
        hits = client.search(name, query, k)
    rows = [(f"{hit.score:.2f}", hit.source, hit.text[:400]) for hit in hits]
    print_result(hits, table(("score", "source", "text"), rows), as_json=as_json)


def _split_version(name: str) -> tuple[str, str | None]:
    """Split NAME[@VERSION]. Raises InvalidRequest for an empty version."""
    corpus, at, version = name.partition("@")
    if at and not version:
        raise InvalidRequest(f"'{name}' has no version after '@'. Add a version, or remove '@' for the whole corpus.")
    return corpus, version or None


def _format_dropped(version: CorpusVersion | None) -> str:
    if version is None or version.near_duplicates_dropped is None:
        return ""
    seconds = version.near_duplicates_seconds or 0.0
    return f". Dropped {version.near_duplicates_dropped:,} near duplicates in {seconds:,.1f} s"


def _dataset_items(dataset: Dataset, report: Mapping[str, Any]) -> list[Item]:
    selection = ""
    if dataset.selection is not None:
        selection = f" It contains {dataset.selection:,} passages for the selector 'given'."
    rows = [[entry["label"], *(entry.get(split) for split in dataset.rows)] for entry in report.get("labels", [])]
    warnings = report.get("warnings", [])[:_MOST_WARNINGS]
    return [
        f"Dataset '{dataset.name}' version {dataset.version} ({dataset.id}): {_format_rows(dataset.rows)}.{selection}",
        table(("label", *dataset.rows), rows),
        *(f"note: {note}" for note in report.get("notes", [])),
        *(f"warning: {warning['message']}" for warning in warnings),
    ]


def _format_rows(rows: Mapping[str, int]) -> str:
    return ", ".join(f"{split} {count:,}" for split, count in rows.items())


def _error_message(error: Mapping[str, object] | None) -> str:
    return str(error.get("message", "")) if error else ""
