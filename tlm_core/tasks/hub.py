"""Data sets of the Hugging Face hub, by ids such as hub:OWNER/NAME@REVISION:CONFIG."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlm_core.errors import InvalidRequest
from tlm_core.hub import HUB, NAME, hub_errors, refuse_folder
from tlm_core.tasks.columnar import class_names, table_from_arrow
from tlm_core.tasks.findings import Findings
from tlm_core.tasks.glue import NOTE, glue_task
from tlm_core.tasks.options import Limits
from tlm_core.tasks.table import RawTable, check_names
from tlm_core.tasks.task import SPLITS

_ID = re.compile(rf"{HUB}(?P<path>{NAME}/{NAME})(?:@(?P<revision>[^\s@:]+))?(?::(?P<config>[^\s:]+))?")
_FILE = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")
_BATCH = 2_000


@dataclass(frozen=True)
class HubSource:
    """path: OWNER/NAME, or the absolute path of a local folder in the hub's layout.

    revision: branch, tag or commit. config: one of the data set's subsets.
    """

    path: str
    revision: str | None = None
    config: str | None = None

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rsplit("/", 1)[-1]


def parse_hub_id(text: str) -> HubSource:
    """The parts of `hub:OWNER/NAME[@revision][:config]`. Raises InvalidRequest."""
    match = _ID.fullmatch(text)
    if match is None:
        raise InvalidRequest(f"'{text}' is no hub id; write hub:OWNER/NAME, with @REVISION and :CONFIG if needed")
    return HubSource(**match.groupdict())


def read_hub(
    source: HubSource,
    findings: Findings,
    limits: Limits,
    *,
    cache: Path | None = None,
    load: Callable[..., Any] | None = None,
) -> dict[str, RawTable]:
    """The records of each split. Only data files are read: code in a data set's repository is never run.

    A task of GLUE comes with its development set as `test`, and with any second one as `test_NAME`.

    cache: folder for what is downloaded (None: the library's own). load: `datasets.load_dataset`, if another
    is to stand in for it.
    Raises NotFound, InvalidRequest (a config or revision that does not exist) and Unavailable.
    Faults added: no_train, no_rows, doubled_column, too_many_columns.
    """
    if not Path(source.path).is_absolute():
        refuse_folder(source.path)
    found = _load(source, cache, load)
    tables, glue = {}, glue_task(source.path, source.config)
    wanted = glue.splits if glue else {split: split for split in SPLITS}
    if glue:
        findings.note(NOTE)
    for theirs, split in wanted.items():
        if theirs not in found:
            continue
        dataset = found[theirs].with_format("arrow")
        file = f"{theirs} of {source.path}"
        names = list(dataset.column_names)
        if not len(dataset):
            findings.fault("no_rows", f"{file} has no record", split=split)
        elif check_names(names, file, split, findings, limits):
            classes = class_names(dataset.data.schema.metadata)
            tables[split] = table_from_arrow(dataset.iter(_BATCH), names, file, split, findings, classes)
    others = sorted(set(found) - wanted.keys())
    if others:
        findings.note(f"splits not used: {', '.join(others)}")
    if "train" not in found:
        findings.fault("no_train", f"{source.path} has no train split, only {', '.join(others) or 'test data'}")
    return tables


def hub_file(source: HubSource, name: str, *, cache: Path | None = None) -> Path:
    """A file of a hub data set, fetched, or found in `cache` (None: the library's own) where the hub does not answer.

    Raises InvalidRequest for a name that is no path inside the data set, NotFound and Unavailable.
    """
    if not _FILE.fullmatch(name) or ".." in name.split("/"):
        raise InvalidRequest(f"'{name}' names no file of a data set; write it as the hub lists it: small_external.csv")
    from huggingface_hub import hf_hub_download

    with hub_errors(f"'{name}' of the hub data set {source.path}"):
        return Path(hf_hub_download(source.path, name, repo_type="dataset", revision=source.revision, cache_dir=cache))


def _load(source: HubSource, cache: Path | None, load: Callable[..., Any] | None) -> Any:
    if load is None:
        # The library takes seconds to import, and only hub ids need it.
        from datasets import load_dataset

        load = load_dataset
    with hub_errors(f"the hub data set {source.path}"):
        return load(source.path, name=source.config, revision=source.revision, cache_dir=str(cache) if cache else None)
