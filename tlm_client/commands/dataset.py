"""Labeled texts: add, list, show, delete.

tlm dataset add reviews train.csv
tlm dataset show reviews
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from tlm_client.client import TLMClient
from tlm_client.console import (
    LANGUAGE,
    Item,
    TextColumn,
    Yes,
    command_group,
    confirm_deletion,
    open_client,
    print_note,
    print_result,
    table,
)
from tlm_client.sources import dataset_files
from tlm_core.errors import InvalidRequest
from tlm_core.names import HUB
from tlm_core.tasks.metrics import METRICS
from tlm_core.wire import Dataset, JsonObject
from tlm_core.wording import value_in_words

group = command_group(__doc__)

_MOST_WARNINGS = 20

DatasetName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the dataset.")]


@group.command("add")
def add_dataset(
    name: DatasetName,
    source: Annotated[str, typer.Argument(metavar="PATH|hub:ID", help="File, folder of split files, or hub ID.")],
    selection: Annotated[Path | None, typer.Option(help="File of passages (text, rank) for selector 'given'.")] = None,
    text_column: TextColumn = None,
    pair_column: Annotated[str | None, typer.Option(help="Column with the second texts of text pairs.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column with the labels. Default: inferred.")] = None,
    delimiter: Annotated[str | None, typer.Option(help="Delimiter of CSV files. Default: inferred.")] = None,
    metric: Annotated[str | None, typer.Option(help=f"Metric: {', '.join(METRICS)}.")] = None,
    positive_label: Annotated[str | None, typer.Option(help="The positive label of the metric f1.")] = None,
    language: Annotated[str | None, typer.Option(help=LANGUAGE)] = None,
    split_seed: Annotated[int, typer.Option(help="Seed for splits that the service creates.")] = 0,
) -> None:
    """Upload a dataset. If it contains errors, print each with its row and column, and store nothing.

    tlm dataset add reviews reviews.csv
    tlm dataset add sciie hub:yxchar/sciie-tlm
    """
    fields = {
        "text_column": text_column, "text_pair_column": pair_column, "label_column": label_column,
        "delimiter": delimiter, "metric": metric, "positive_label": positive_label, "language": language,
        "split_seed": split_seed or None,
    }  # fmt: skip
    options = {key: value for key, value in fields.items() if value is not None}
    with open_client() as client:
        if source.startswith(HUB):
            path = None if selection is None else selection.as_posix()
            dataset = client.add_hub_dataset(name, source, options, selection=path)
        else:
            if selection is not None and not selection.is_file():
                raise InvalidRequest(f"Invalid --selection: no file '{selection}'. Check the path.")
            files = dataset_files(Path(source), notify=print_note)
            dataset = client.add_dataset(name, files | ({"selection": selection} if selection else {}), options)
        _note_equal_version(client, dataset)
    print_result(dataset, *_dataset_items(dataset, dataset.report or {}))


def _note_equal_version(client: TLMClient, dataset: Dataset) -> None:
    """Print a note if an earlier version has the same files and options."""
    if dataset.version == 1:
        return
    for other in client.datasets():
        same = (other.name, other.digest, other.options) == (dataset.name, dataset.digest, dataset.options)
        if same and other.id != dataset.id:
            remedy = f"Delete the new version with `tlm dataset delete {dataset.name}@v{dataset.version}`."
            print_note(f"version {other.version} has the same files and options as version {dataset.version}. {remedy}")
            return


@group.command("list")
def list_datasets() -> None:
    """List the datasets, newest first.

    tlm dataset list
    tlm dataset list --json
    """
    with open_client() as client:
        listed = list(client.datasets())
    rows = [(d.name, d.version, d.id, d.labels, _format_rows(d.rows), d.warnings) for d in listed]
    empty = "No datasets. Add one with `tlm dataset add NAME FILE`."
    print_result(listed, table(("name", "version", "id", "labels", "rows", "warnings"), rows, empty=empty))


@group.command("show")
def show_dataset(name: DatasetName) -> None:
    """Show the labels, warnings and inferred settings of a dataset.

    tlm dataset show reviews
    tlm dataset show reviews@v1
    """
    with open_client() as client:
        dataset = client.dataset(name)
        report = client.dataset_report(dataset.id)
    print_result(dataset.model_copy(update={"report": report}), *_dataset_items(dataset, report))


@group.command("delete")
def delete_dataset(
    dataset: Annotated[str, typer.Argument(metavar="ID|NAME", help="NAME means the newest version.")],
    with_jobs: Annotated[bool, typer.Option("--with-jobs", help="Also delete the version's jobs and models.")] = False,
    yes: Yes = False,
) -> None:
    """Delete one version of a dataset. Fails while an unfinished job uses this version.

    tlm dataset delete reviews@v1
    tlm dataset delete reviews --with-jobs
    """
    with open_client() as client:
        target = client.dataset(dataset)
        confirm_deletion(f"'{target.name}' version {target.version} ({target.id})", yes=yes)
        client.delete_dataset(target.id, with_jobs=with_jobs)
    print_result({"deleted": target.id}, f"Deleted {target.id}")


def _dataset_items(dataset: Dataset, report: JsonObject) -> list[Item]:
    selection = ""
    if dataset.selection is not None:
        selection = f" It contains {dataset.selection:,} passages for the selector 'given'."
    rows = [[entry["label"], *(entry.get(split) for split in dataset.rows)] for entry in report.get("labels", [])]
    labels = table(("label", *dataset.rows), rows)
    if targets := report.get("targets"):
        numbers = [
            (split, *(value_in_words(of[name]) for name in ("min", "max", "mean"))) for split, of in targets.items()
        ]
        labels = table(("targets", "min", "max", "mean"), numbers)
    warnings = report.get("warnings", [])[:_MOST_WARNINGS]
    return [
        f"Dataset '{dataset.name}' version {dataset.version} ({dataset.id}): {_format_rows(dataset.rows)}.{selection}",
        labels,
        *(f"note: {note}" for note in report.get("notes", [])),
        *(f"warning: {warning['message']}" for warning in warnings),
    ]


def _format_rows(rows: Mapping[str, int]) -> str:
    return ", ".join(f"{split} {count:,}" for split, count in rows.items())
