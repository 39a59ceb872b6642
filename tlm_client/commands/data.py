"""`tlm dataset …` and `tlm corpus …`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tlm_client.console import AsJson, Yes, confirm_deletion, emit, guarded, notes, remark, say, session_of, table
from tlm_client.display import Display
from tlm_client.models import CorpusVersion, Dataset
from tlm_client.sources import corpus_files, dataset_files
from tlm_core.errors import InvalidRequest

datasets = typer.Typer(no_args_is_help=True, help="Labelled texts: add, list, show.")
corpora = typer.Typer(no_args_is_help=True, help="General text to retrieve from: add, list, show, search.")

_HUB = "hub:"
_OVER = frozenset({"ready", "failed", "cancelled"})


class NearChoice(StrEnum):
    """What becomes of near duplicates."""

    DROP = "drop"
    KEEP = "keep"


Name = Annotated[str, typer.Argument(metavar="NAME")]


@datasets.command("add")
@guarded
def dataset_add(
    context: typer.Context,
    name: Name,
    source: Annotated[
        str, typer.Argument(metavar="PATH|hub:ID", help="File, folder with train/dev/test files, or hub id.")
    ],
    selection: Annotated[
        Path | None,
        typer.Option(help="Passages (text, rank) for the selector 'given': a file here, or of the hub's data set."),
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of the texts; guessed if not given.")] = None,
    pair_column: Annotated[str | None, typer.Option(help="Column of second texts.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the labels.")] = None,
    delimiter: Annotated[str | None, typer.Option(help="Of CSV files.")] = None,
    metric: Annotated[
        str | None, typer.Option(help="macro_f1, micro_f1, accuracy, f1, matthews, pearson or spearman.")
    ] = None,
    positive_label: Annotated[str | None, typer.Option(help="The label of which the metric f1 is taken.")] = None,
    language: Annotated[str | None, typer.Option(help="ISO 639 code, such as de.")] = None,
    split_seed: Annotated[int, typer.Option(help="Decides which rows a split that has to be cut gets.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Upload a data set; every fault in it is told with its row and column, and then nothing is stored."""
    given: dict[str, Any] = {
        "text_column": text_column,
        "text_pair_column": pair_column,
        "label_column": label_column,
        "delimiter": delimiter,
        "metric": metric,
        "positive_label": positive_label,
        "language": language,
        "split_seed": split_seed or None,
    }
    options = {key: value for key, value in given.items() if value is not None}
    with session_of(context).client() as client:
        if source.startswith(_HUB):
            file = None if selection is None else selection.as_posix()
            dataset = client.add_hub_dataset(name, source, options, selection=file)
        else:
            if selection is not None and not selection.is_file():
                raise InvalidRequest(f"--selection: there is no file '{selection}'; check the path")
            files = dataset_files(Path(source), say=remark) | ({} if selection is None else {"selection": selection})
            dataset = client.add_dataset(name, files, options)
    if as_json:
        emit(dataset)
    else:
        _show(dataset, dataset.report or {})


@datasets.command("list")
@guarded
def dataset_list(context: typer.Context, as_json: AsJson = False) -> None:
    """List the data sets, newest first."""
    with session_of(context).client() as client:
        found = list(client.datasets())
    if as_json:
        emit(found)
    else:
        rows = [(d.name, d.version, d.id, d.labels, _counts(d.rows), d.warnings) for d in found]
        table(("name", "version", "id", "labels", "rows", "warnings"), rows)


@datasets.command("show")
@guarded
def dataset_show(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Show what was found in a data set: labels, lengths, duplicates, guesses with their reasons."""
    with session_of(context).client() as client:
        dataset = client.dataset(name)
        report = client.dataset_report(dataset.id)
    if as_json:
        emit(dataset.model_copy(update={"report": report}))
    else:
        _show(dataset, report)


@datasets.command("delete")
@guarded
def dataset_delete(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(metavar="ID|NAME", help="A name means its newest version.")],
    with_jobs: Annotated[bool, typer.Option("--with-jobs", help="The jobs on it and their models too.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete one version of a data set. Refused while a job that is not over needs it."""
    with session_of(context).client() as client:
        found = client.dataset(dataset)
        confirm_deletion(f"'{found.name}' version {found.version} ({found.id})", yes=yes)
        client.delete_dataset(found.id, with_jobs=with_jobs)
    emit({"deleted": found.id}) if as_json else say(f"deleted {found.id}")


@corpora.command("add")
@guarded
def corpus_add(
    context: typer.Context,
    name: Name,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH…",
            help="Files, folders, addresses (s3://…), or hub:OWNER/NAME[:config][:split], streamed.",
        ),
    ] = None,
    from_packages: Annotated[
        bool, typer.Option("--from-packages", help="Documentation of the Python packages installed here.")
    ] = False,
    language: Annotated[str, typer.Option(help="ISO 639 code of the texts.")] = "en",
    text_column: Annotated[str | None, typer.Option(help="Column of the texts; guessed if not given.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many passages.")] = None,
    by_service: Annotated[
        bool, typer.Option("--by-service", help="The service fetches the addresses itself, where its operator allows.")
    ] = False,
    near_duplicates: Annotated[
        NearChoice, typer.Option(help="What becomes of passages that are nearly equal to an earlier one.")
    ] = NearChoice.DROP,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until it can be searched.")] = True,
    as_json: AsJson = False,
) -> None:
    """Cut texts into passages here, upload them, and wait until they can be searched."""
    if bool(paths) == from_packages:
        raise InvalidRequest("give files, folders or hub ids, or --from-packages; not both")
    if by_service and (from_packages or text_column or limit):
        raise InvalidRequest("--by-service takes addresses alone; leave out --from-packages, --text-column and --limit")
    near: Literal["drop", "keep"] = "drop" if near_duplicates is NearChoice.DROP else "keep"
    with session_of(context).client() as client, Display(notes()) as display:
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
    if as_json:
        emit(load)
    elif wait:
        say(f"corpus '{name}' is ready: {load.total:,} passages, version {load.version}{_near(version)}")
    else:
        say(f"corpus '{name}' is on its way; see `tlm corpus show {name}`")


@corpora.command("list")
@guarded
def corpus_list(context: typer.Context, as_json: AsJson = False) -> None:
    """List the corpora."""
    with session_of(context).client() as client:
        found = list(client.corpora())
    if as_json:
        emit(found)
        return
    rows = []
    for corpus in found:
        version = next((v for v in corpus.versions if v.version == corpus.version), None)
        loading = corpus.loads[0].state if corpus.loads else ""
        count = f"{version.count:,}" if version else None
        rows.append((corpus.name, corpus.version, count, version.language if version else None, loading))
    table(("name", "version", "passages", "language", "last upload"), rows)


@corpora.command("show")
@guarded
def corpus_show(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Show the versions of a corpus and its latest uploads."""
    with session_of(context).client() as client:
        corpus = client.corpus(name)
    if as_json:
        emit(corpus)
        return
    rows = [
        (v.version, v.state, f"{v.count:,}", _counted(v.near_duplicates_dropped), v.refused or "", v.language,
         _message(v.error))
        for v in corpus.versions
    ]  # fmt: skip
    names = ("version", "state", "passages", "near duplicates dropped", "refused", "language", "error")
    table(names, rows, title="versions")
    loads = [(x.id, x.state, f"{x.done:,}/{x.total:,}", x.version, _message(x.error)) for x in corpus.loads]
    table(("upload", "state", "passages", "version", "error"), loads, title="uploads")


@corpora.command("delete")
@guarded
def corpus_delete(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="All versions, or the one named.")],
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete a corpus or one version of it; refused while a job that is not over needs it."""
    corpus, version = _versioned(name)
    what = f"version {version} of corpus '{corpus}'" if version else f"corpus '{corpus}'"
    confirm_deletion(what if version else f"{what} with all its versions", yes=yes)
    with session_of(context).client() as client:
        client.delete_corpus(corpus, version)
    emit({"deleted": corpus, "version": version}) if as_json else say(f"deleted {what}")


@corpora.command("cancel")
@guarded
def corpus_cancel(
    context: typer.Context,
    name: Name,
    load: Annotated[str | None, typer.Argument(metavar="[UPLOAD]", help="Else the one under way.")] = None,
    as_json: AsJson = False,
) -> None:
    """Give up an upload that is under way; versions from before stay as they are."""
    with session_of(context).client() as client:
        chosen = load or next((one.id for one in client.corpus(name).loads if one.state not in _OVER), None)
        if chosen is None:
            raise InvalidRequest(f"no upload of corpus '{name}' is under way; `tlm corpus show {name}` lists them")
        found = client.cancel_load(name, chosen)
    emit(found) if as_json else say(f"{found.id} of corpus '{name}' is {found.state}")


@corpora.command("refused")
@guarded
def corpus_refused(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="Else the version that the name means.")],
    as_json: AsJson = False,
) -> None:
    """Show the passages that the index would not take, with the reasons."""
    corpus, version = _versioned(name)
    with session_of(context).client() as client:
        chosen = version or client.corpus(corpus).version
        found = client.refused_passages(corpus, chosen) if chosen else []
    if as_json:
        emit(found)
    else:
        table(("id", "reason", "text"), [(entry.id[:32], entry.reason, entry.text[:200]) for entry in found])


@corpora.command("search")
@guarded
def corpus_search(
    context: typer.Context,
    name: Name,
    query: Annotated[str, typer.Argument(metavar="QUERY")],
    k: Annotated[int, typer.Option("-k", min=1, max=100, help="At most so many passages.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Try a query, as a training text would be one."""
    with session_of(context).client() as client:
        hits = client.search(name, query, k)
    if as_json:
        emit(hits)
    else:
        table(("score", "source", "text"), [(f"{hit.score:.2f}", hit.source, hit.text[:400]) for hit in hits])


def _versioned(name: str) -> tuple[str, str | None]:
    """NAME or NAME@VERSION in its parts. Raises InvalidRequest for a version that is empty."""
    corpus, at, version = name.partition("@")
    if at and not version:
        raise InvalidRequest(f"'{name}' names no version behind '@'; give one, or leave out the '@' for the corpus")
    return corpus, version or None


def _counted(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"


def _near(version: CorpusVersion | None) -> str:
    """What looking for near duplicates found and cost, if anybody looked."""
    if version is None or version.near_duplicates_dropped is None:
        return ""
    took = version.near_duplicates_seconds or 0.0
    return f"; {version.near_duplicates_dropped:,} near duplicates dropped, which took {took:,.1f} s"


def _show(dataset: Dataset, report: dict[str, Any]) -> None:
    say(f"data set '{dataset.name}' version {dataset.version} ({dataset.id}): {_counts(dataset.rows)}")
    if dataset.selection is not None:
        say(f"it brings a selection of {dataset.selection:,} passages, for the selector 'given'")
    splits = list(dataset.rows)
    rows = [[entry["label"], *(entry.get(split) for split in splits)] for entry in report.get("labels", [])]
    table(("label", *splits), rows)
    for note in report.get("notes", []):
        say(f"note: {note}")
    for warning in report.get("warnings", [])[:20]:
        say(f"warning: {warning['message']}")


def _counts(rows: dict[str, int]) -> str:
    return ", ".join(f"{split} {count:,}" for split, count in rows.items())


def _message(error: dict[str, Any] | None) -> str:
    return str(error.get("message", "")) if error else ""
