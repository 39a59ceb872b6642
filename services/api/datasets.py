"""Taking a data set in: check it whole, keep the raw files and the report, record it. On a fault nothing is kept."""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.api.removal import taken_back
from services.api.uploads import ReceivedFile
from services.common.catalog import Catalog
from services.common.catalog_records import DatasetRecord
from tlm_core.artifacts import ArtifactStore, ManifestRef, storage_errors
from tlm_core.errors import InvalidRequest
from tlm_core.hub import HUB, refuse_folder
from tlm_core.jobs.spec import NAME_PATTERN, new_id
from tlm_core.tasks.metrics import METRICS

if TYPE_CHECKING:
    from tlm_core.tasks.options import DatasetOptions
    from tlm_core.tasks.task import Task

LoadTask = Callable[[Mapping[str, Path] | str, "DatasetOptions"], tuple["Task", dict[str, Any]]]
# What a data set is sent as, as regular expressions. Letters are counted since a file in storage is named by them.
PARTS = ("train", "validation", "test", "test_[a-z]{1,40}", "selection", "file")
ENDINGS = ("jsonl", "ndjson", "json", "csv", "tsv", "tab", "parquet", "pq")


class Intake:
    """Adds data sets to the catalog. Raises InvalidDataset with every fault; then nothing is stored."""

    def __init__(self, catalog: Catalog, artifacts: ArtifactStore, scratch: Path, load_task: LoadTask) -> None:
        self._catalog = catalog
        self._artifacts = artifacts
        self._scratch = scratch
        self._load_task = load_task

    def files(
        self, tenant: str, name: str, files: Mapping[str, ReceivedFile], options: DatasetOptions
    ) -> DatasetRecord:
        """Take files in by split; `file` alone stands for a train split from which the others are cut."""
        check_dataset_name(name)
        splits = _by_split(files)
        endings = {split: _ending(file.name) for split, file in splits.items()}
        options = _named(options, name)
        _, report = self._load_task({split: file.path for split, file in splits.items()}, options)
        with self._work() as raw:
            for split, file in splits.items():
                shutil.move(file.path, raw / f"{split}{endings[split]}")
            selection = self._check_given(raw)
            return self._keep(tenant, name, raw, report, options, selection)

    def _check_given(self, raw: Path) -> int | None:
        """Passages of the selection that the data set brings. Raises InvalidDataset with every fault in it."""
        from tlm_core.selection.given import GIVEN, given_part, write_given

        given = given_part(raw)
        if given is None:
            return None
        with self._work() as work, storage_errors("checking the selection"):
            return write_given(given, work / GIVEN)

    def hub(
        self, tenant: str, name: str, hub: str, options: DatasetOptions, selection: str | None = None
    ) -> DatasetRecord:
        """Take a data set of the hub in: `OWNER/NAME[@REVISION][:CONFIG]`. What is kept are its texts and labels, and
        the passages of its file `selection`, if one is named."""
        from tlm_core.selection.given import GIVEN_PART
        from tlm_core.tasks.hub import hub_file, parse_hub_id

        check_dataset_name(name)
        hub = f"{HUB}{hub.removeprefix(HUB)}"
        source = parse_hub_id(hub)
        refuse_folder(source.path)  # what lies on this machine is not for callers
        task, report = self._load_task(hub, _named(options, name))
        with self._work() as raw:
            with storage_errors("writing the data set"):
                _write_raw(task, raw)
            kept = replace(
                options, name=options.name or name, metric=task.metric, language=task.language, text_column="text",
                text_pair_column="text_pair" if task.pair else "", label_column="label", delimiter=None,
                positive_label=task.labels[-1] if METRICS[task.metric].positive_label else None,
            )  # fmt: skip
            passages = None
            if selection is not None:
                file = hub_file(source, selection, cache=self._scratch / "hub")
                with storage_errors("keeping the selection"):
                    shutil.copyfile(file, raw / f"{GIVEN_PART}{_ending(selection)}")
                passages = self._check_given(raw)
            return self._keep(tenant, name, raw, report, kept, passages)

    def _keep(
        self,
        tenant: str,
        name: str,
        raw: Path,
        report: dict[str, Any],
        options: DatasetOptions,
        selection: int | None = None,
    ) -> DatasetRecord:
        dataset_id = new_id("ds")
        folder = f"{tenant}/datasets/{dataset_id}"
        with taken_back(self._artifacts, folder):
            # Neither id nor name goes into the manifest: equal bytes have an equal digest, and stages find them again.
            raw_ref = self._artifacts.write(f"{folder}/raw", raw, artifact="dataset", stage="dataset")
            report_ref = self._write_report(f"{folder}/report", report)
            return self._catalog.add_dataset(
                tenant, dataset_id, name, raw=raw_ref, report=report_ref, options=given(options),
                summary=_summary(report) | ({} if selection is None else {"selection": selection}),
            )  # fmt: skip

    def _write_report(self, folder: str, report: dict[str, Any]) -> ManifestRef:
        with self._work() as work:
            with storage_errors("writing the validation report"):
                (work / "report.json").write_text(json.dumps(report, ensure_ascii=False), encoding="utf-8")
            return self._artifacts.write(folder, work, artifact="report", stage="dataset")

    @contextmanager
    def _work(self) -> Iterator[Path]:
        folder = self._scratch / "work" / uuid.uuid4().hex
        with storage_errors("making room for the upload"):
            folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def report_of(artifacts: ArtifactStore, record: DatasetRecord) -> dict[str, Any]:
    """The validation report of a data set."""
    with artifacts.open(record.report, "report.json") as handle:
        report: dict[str, Any] = json.load(handle)
    return report


def check_dataset_name(name: str) -> None:
    """Raises InvalidRequest for what cannot be a data set's name."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidRequest(
            f"'{name[:80]}' cannot be a name; use up to 63 letters, digits, dots, dashes and underscores"
        )
    if name.startswith("ds_"):
        raise InvalidRequest("a name cannot begin with 'ds_', as ids do; choose another")


def given(options: DatasetOptions) -> dict[str, Any]:
    """The options that differ from their defaults, so that a new option does not change what old ones mean."""
    defaults = asdict(type(options)())
    return {key: value for key, value in asdict(options).items() if value != defaults[key]}


def _named(options: DatasetOptions, name: str) -> DatasetOptions:
    return options if options.name else replace(options, name=name)


def _by_split(files: Mapping[str, ReceivedFile]) -> dict[str, ReceivedFile]:
    if "file" in files:
        if files.keys() - {"file", "selection"}:
            raise InvalidRequest("give either one 'file', or 'train' with 'validation' and 'test'; not both")
        return {"train" if name == "file" else name: file for name, file in files.items()}
    if "train" not in files:
        raise InvalidRequest(
            "the form lacks a file: give 'train' (with 'validation' and 'test' if you have them) or 'file'"
        )
    further = sorted(name for name in files if name.startswith("test_"))
    if further and "test" not in files:
        raise InvalidRequest(f"'{further[0]}' is a further test set and stands beside 'test'; give 'test' too")
    return dict(files)


def _ending(name: str) -> str:
    """Ending of a file's name that tells the type, such as .csv.gz. Raises InvalidRequest."""
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    packed = suffixes[-1:] == [".gz"]
    kind = suffixes[-2:-1] if packed else suffixes[-1:]
    if not kind or kind[0][1:] not in ENDINGS:
        raise InvalidRequest(
            f"'{name}' does not tell its type; name it with one of {', '.join(ENDINGS)} (text forms also with .gz)"
        )
    return kind[0] + (".gz" if packed else "")


def _write_raw(task: Task, folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for split, table in task.splits.items():
        columns = {name: table[name] for name in ("text", *(("text_pair",) if task.pair else ()))}
        pq.write_table(
            pa.table({**columns, "label": task.label_values(split)}), folder / f"{split}.parquet", compression="zstd"
        )


def _summary(report: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "rows": report.get("counts", {}),
        "labels": len(report.get("labels", [])),
        "warnings": len(report.get("warnings", [])),
    }
