"""Datasets of the Hugging Face hub, by ids such as hub:OWNER/NAME@REVISION:CONFIG."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tlm_core.errors import InvalidRequest
from tlm_core.hub import hub_errors, refuse_folder, refuse_outside_files
from tlm_core.names import HUB, HUB_NAME
from tlm_core.tables.findings import Findings
from tlm_core.tables.records import Records, TableFile, arrow_records, check_names, class_names
from tlm_core.tasks.known import GLUE_NOTE, glue_task
from tlm_core.tasks.table import RawTable, collect
from tlm_core.tasks.task import SPLITS

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_ID = re.compile(rf"{HUB}(?P<path>{HUB_NAME}/{HUB_NAME})(?:@(?P<revision>[^\s@:]+))?(?::(?P<config>[^\s:]+))?")
_FILE = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")
_BATCH = 2_000

Load = Callable[..., "DatasetDict"]


@dataclass(frozen=True)
class HubSource:
    """A dataset of the hub. path: OWNER/NAME, or the absolute path of a local folder in the hub's layout.

    revision: a branch, tag or commit. config: the name of a configuration (subset) of the dataset.
    """

    path: str
    revision: str | None = None
    config: str | None = None

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rsplit("/", 1)[-1]


def parse_hub_id(text: str) -> HubSource:
    """Return path, revision and config of an id `hub:OWNER/NAME[@REVISION][:CONFIG]`. Raises InvalidRequest."""
    match = _ID.fullmatch(text)
    if match is None:
        raise InvalidRequest(f"Invalid hub id '{text}'. Expected hub:OWNER/NAME[@REVISION][:CONFIG].")
    return HubSource(**match.groupdict())


def read_hub(
    source: HubSource, findings: Findings, *, cache: Path | None = None, load: Load | None = None
) -> dict[str, RawTable]:
    """Read a hub dataset without running its code. Return split → table of records.

    The development set of a GLUE task becomes `test`. The second development set of MNLI becomes `test_mismatched`.
    cache: folder for downloads; None: the default of `datasets`. load: replaces `datasets.load_dataset`.
    Raises NotFound, InvalidRequest (an unknown config or revision) and Unavailable.
    Data errors: no_train, no_rows, doubled_column, too_many_columns, bad_character, bad_encoding.
    """
    if not Path(source.path).is_absolute():
        refuse_folder(source.path)
    datasets = _load(source, cache, load)
    tables, glue = {}, glue_task(source.path, source.config)
    splits = glue.splits if glue else {split: split for split in SPLITS}
    if glue:
        findings.note(GLUE_NOTE)
    for hub_split, split in splits.items():
        if hub_split not in datasets:
            continue
        dataset = datasets[hub_split].with_format("arrow")
        label = f"{hub_split} of {source.path}"
        file = TableFile(Path(hub_split), findings, split, label=label)
        names = list(dataset.column_names)
        if not len(dataset):
            file.fault("no_rows", f"{label} has no records. Choose another dataset or config.")
        elif check_names(names, file) and (table := _table(dataset, names, file)):
            tables[split] = table
    others = sorted(set(datasets) - splits.keys())
    if others:
        findings.note(f"splits not used: {', '.join(others)}")
    if "train" not in datasets:
        present = ", ".join(sorted(datasets))
        findings.fault("no_train", f"{source.path} has no train split, only {present}. Choose another dataset.")
    return tables


def _table(dataset: Dataset, names: list[str], file: TableFile) -> RawTable | None:
    classes = class_names(dataset.data.schema.metadata)
    return collect(Records(names, lambda _: arrow_records(dataset.iter(_BATCH), classes), damaged=True), file)


def hub_file(source: HubSource, name: str, *, cache: Path | None = None) -> Path:
    """Download a file of a hub dataset, and return its path. If the hub does not answer, return an earlier download.

    name: the path of the file in the dataset. cache: folder for downloads; None: the default of `huggingface_hub`.
    Raises InvalidRequest if the name leads outside the dataset, NotFound and Unavailable.
    """
    if not _FILE.fullmatch(name) or ".." in name.split("/"):
        raise InvalidRequest(f"Invalid file name '{name}'. Write it as the hub lists it, such as small_external.csv.")
    from huggingface_hub import hf_hub_download

    with hub_errors(f"'{name}' of the hub dataset {source.path}"):
        return Path(hf_hub_download(source.path, name, repo_type="dataset", revision=source.revision, cache_dir=cache))


def _load(source: HubSource, cache: Path | None, load: Load | None) -> DatasetDict:
    with hub_errors(f"the hub dataset {source.path}"):
        if load is None:
            # The library takes seconds to import, and only hub ids need it.
            from datasets import load_dataset

            refuse_outside_files(source.path, source.revision)
            load = load_dataset
        return load(source.path, name=source.config, revision=source.revision, cache_dir=str(cache) if cache else None)
