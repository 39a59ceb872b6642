"""Validate and store uploads. If the validation fails, nothing is stored.

The validation of a dataset is complete. The validation of a corpus covers only names, language, options, file types and
addresses. The loader reads the files later.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args
from urllib.parse import unquote

from pydantic import TypeAdapter, ValidationError

from services.api.forms import ReceivedFile
from services.common.bodies import UnsupportedJSON, check_json
from services.common.catalog_records import CorpusLoad, DatasetRecord, DatasetSummary
from services.common.problem import validation_problem
from tlm_core.artifacts import storage_errors, temporary_folder
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.corpus.remote import is_address
from tlm_core.corpus.states import NearDuplicatesChoice
from tlm_core.errors import InvalidRequest, StoreUnavailable
from tlm_core.hub import refuse_folder
from tlm_core.names import HUB, HUB_NAME, NAME_PATTERN, new_id
from tlm_core.tables.records import SUPPORTED, format_of
from tlm_core.tables.textfile import name_without_packing
from tlm_core.tasks.metrics import METRICS
from tlm_core.tasks.options import DatasetOptions

if TYPE_CHECKING:
    from services.api.parts import Parts
    from tlm_core.tasks.report import Report
    from tlm_core.tasks.task import Task

LoadTask = Callable[[Mapping[str, Path] | str, "DatasetOptions"], tuple["Task", "Report"]]
# Names of a dataset's files, as regular expressions. The storage uses them as file names, so their length is limited.
PARTS = ("train", "validation", "test", "test_[a-z]{1,40}", "selection", "file")
CORPUS_FIELDS = ("name", "language", "near_duplicates")

# Parts of an unquoted address that can lead out of an allowed folder: `..`, chained fsspec addresses
# (`zip://…::file://…`), and percent-encoding that remains after `_unquoted`.
_ESCAPE = re.compile(r"::|\\|(^|/)\.\.(/|$|[?#;])|[\x00-\x1f]|%[0-9a-fA-F]{2}")
# Accept only OWNER/NAME, because the hub library reads a local folder if it gets a path.
_REPOSITORY = re.compile(rf"{HUB}(?P<path>{HUB_NAME}/{HUB_NAME})(:[^\s:]*){{0,2}}")


def add_dataset(
    parts: Parts, tenant: str, name: str, files: Mapping[str, ReceivedFile], options: DatasetOptions, request: str = ""
) -> DatasetRecord:
    """Validate and store a dataset, and return its record. Missing validation and test splits are split off from train.

    files: name that matches `PARTS` → file. The name `file` means `train`. request: see Catalog.add_dataset. Raises
    InvalidRequest for an invalid name, type or combination of files, and InvalidDataset with every error in the files.
    """
    _check_dataset_name(name)
    splits = _by_split(files)
    extensions = {split: _extension(file.name) for split, file in splits.items()}
    options = replace(options, name=options.name or name)
    _, report = parts.load_task({split: file.path for split, file in splits.items()}, options)
    with _work(parts) as raw:
        for split, file in splits.items():
            shutil.move(file.path, raw / f"{split}{extensions[split]}")
        return _store(parts, tenant, name, raw, report, options, request)


def add_hub_dataset(
    parts: Parts, tenant: str, name: str, hub: str, options: DatasetOptions, selection: str | None = None
) -> DatasetRecord:
    """Download and validate a hub dataset, store its texts and labels, and return the record. Raises as `add_dataset`.

    hub: OWNER/NAME[@REVISION][:CONFIG]. selection: path of a file in the hub dataset, which becomes the selection.
    """
    from tlm_core.selection.given import GIVEN_PART
    from tlm_core.tasks.hub import hub_file, parse_hub_id

    _check_dataset_name(name)
    hub = f"{HUB}{hub.removeprefix(HUB)}"
    source = parse_hub_id(hub)
    refuse_folder(source.path)  # Callers may not read folders of this machine.
    task, report = parts.load_task(hub, replace(options, name=options.name or name))
    with _work(parts) as raw:
        with storage_errors("writing the dataset"):
            _write_splits(task, raw)
        stored = replace(
            options, name=options.name or name, metric=task.metric, language=task.language, text_column="text",
            text_pair_column="text_pair" if task.pair else "", label_column="label", delimiter=None,
            positive_label=task.labels[-1] if METRICS[task.metric].positive_label else None,
        )  # fmt: skip
        if selection is not None:
            file = hub_file(source, selection, cache=parts.settings.scratch / "hub")
            with storage_errors("storing the selection"):
                shutil.copyfile(file, raw / f"{GIVEN_PART}{_extension(selection)}")
        return _store(parts, tenant, name, raw, report, stored)


def add_corpus(
    parts: Parts,
    tenant: str,
    name: str,
    language: str,
    files: Sequence[ReceivedFile] = (),
    near_duplicates: str = "drop",
    sources: Sequence[str] = (),
    request: str = "",
) -> CorpusLoad:
    """Store `files`, and return a new load of `files` and of the addresses `sources`. request: see Catalog.add_load."""
    _check_corpus(name, language, files, near_duplicates, sources)
    check_sources(sources, parts.settings.sources)
    folder = f"{tenant}/uploads/{uuid.uuid4().hex}"
    with temporary_folder(parts.settings.scratch / "work", "storing the upload") as work:
        with storage_errors("storing the upload"):
            for file in files:
                shutil.move(file.path, work / file.name)
        choice = cast(NearDuplicatesChoice, near_duplicates)
        with _deleted_on_error(parts.artifacts, folder):
            upload = parts.artifacts.write(folder, work, artifact="upload", stage="corpus")
            load = parts.catalog.add_load(tenant, name, language, upload, choice, sources, request)
    if load.upload.folder != folder:
        parts.artifacts.delete(folder)
    return load


def _store(
    parts: Parts, tenant: str, name: str, raw: Path, report: Report, options: DatasetOptions, request: str = ""
) -> DatasetRecord:
    """Store a dataset with the files of the folder `raw`. Raises InvalidDataset for an invalid selection file."""
    from tlm_core.selection.given import GIVEN, given_part, write_given

    dataset_id, selection = new_id("ds"), None
    folder = f"{tenant}/datasets/{dataset_id}"
    if part := given_part(raw):
        with _work(parts) as work, storage_errors("checking the selection"):
            selection = write_given(part, work / GIVEN)
    counts = {"labels": len(report["labels"]), "warnings": len(report["warnings"])}
    summary = DatasetSummary(rows=report["counts"], selection=selection, **counts)
    with _deleted_on_error(parts.artifacts, folder), _work(parts) as work:
        # The manifest has neither id nor name. So equal files have equal digests, and jobs on them reuse artifacts.
        raw_ref = parts.artifacts.write(f"{folder}/raw", raw, artifact="dataset", stage="dataset")
        with storage_errors("writing the validation report"):
            (work / "report.json").write_text(json.dumps(report, ensure_ascii=False), encoding="utf-8")
        report_ref = parts.artifacts.write(f"{folder}/report", work, artifact="report", stage="dataset")
        record = parts.catalog.add_dataset(
            tenant, dataset_id, name, raw=raw_ref, report=report_ref, options=changed_options(options),
            summary=summary, request=request,
        )  # fmt: skip
    if record.id != dataset_id:
        parts.artifacts.delete(folder)
    return record


def _work(parts: Parts) -> AbstractContextManager[Path]:
    return temporary_folder(parts.settings.scratch / "work", "preparing the upload")


def _check_dataset_name(name: str) -> None:
    _check_name(name)
    if name.startswith("ds_"):
        raise InvalidRequest(f"Invalid name '{name}'. Names cannot begin with 'ds_', the prefix of dataset ids.")


def parse_options(text: str) -> DatasetOptions:
    """Parse the JSON options of an upload. Raises InvalidRequest."""
    try:
        check_json(text.encode())
        return TypeAdapter(DatasetOptions).validate_json(text)
    except UnsupportedJSON as error:
        raise InvalidRequest(f"options: {error}") from error
    except ValidationError as error:
        detail = validation_problem(error.errors(), "options").detail
        raise InvalidRequest(f"options: {detail}") from error


def changed_options(options: DatasetOptions) -> dict[str, object]:
    """Return name → value of the options that differ from their defaults. Records store only these options."""
    defaults = asdict(DatasetOptions())
    return {key: value for key, value in asdict(options).items() if value != defaults[key]}


def check_sources(sources: Sequence[str], allowed: Sequence[str]) -> None:
    """Raise InvalidRequest for the first source that is not a valid address below one of the `allowed` prefixes."""
    for source in sources:
        if source.startswith(HUB):
            match = _REPOSITORY.fullmatch(source)
            if not match:
                raise InvalidRequest(f"Invalid hub dataset '{source[:200]}'. Expected hub:OWNER/NAME[:CONFIG][:SPLIT].")
            refuse_folder(match["path"])
        elif not is_address(source):
            raise InvalidRequest(
                f"Invalid source '{source[:200]}'. Expected an address such as s3://bucket/folder. "
                "To use local files, upload them."
            )
        if _ESCAPE.search(_unquoted(source)) or not any(_lies_under(source, prefix) for prefix in allowed):
            raise InvalidRequest(
                f"This service may not fetch '{source[:200]}'. Sources allowed by TLM_API_SOURCES: "
                f"{', '.join(allowed) or 'none'}. Upload the files instead."
            )


def _unquoted(source: str) -> str:
    """Return `source` after four steps of percent-decoding. A server may decode a path more than once."""
    for _ in range(4):
        source = unquote(source)
    return source


def _lies_under(source: str, prefix: str) -> bool:
    """Return whether `source` lies below `prefix`, which is a folder, a scheme (`s3://`, `hub:`) or a hub dataset."""
    if source == prefix or prefix.endswith(("/", ":")):
        return source.startswith(prefix)
    # After the id of a hub dataset, a colon begins its configuration. After another prefix, a colon can begin a port.
    return source.startswith((f"{prefix}/", f"{prefix}:") if prefix.startswith(HUB) else f"{prefix}/")


@contextmanager
def _deleted_on_error(artifacts: ArtifactStore, folder: str) -> Iterator[None]:
    """Delete `folder` if the block raises an error. The block writes the folder, and then records it in Redis.

    After StoreUnavailable the folder stays, because Redis may have stored the record.
    """
    try:
        yield
    except StoreUnavailable:
        raise
    except BaseException:
        artifacts.delete(folder)
        raise


def _check_name(name: str) -> None:
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidRequest(
            f"Invalid name '{name[:80]}'. Use at most 63 letters, digits, dots, dashes and underscores. "
            "Begin with a letter or digit."
        )


def _check_corpus(
    name: str, language: str, files: Sequence[ReceivedFile], near_duplicates: str, sources: Sequence[str]
) -> None:
    from tlm_core.corpus import files as corpus

    _check_name(name)
    if not re.fullmatch(r"[a-z]{2,3}", language):
        raise InvalidRequest(f"Invalid language '{language[:20]}'. Expected an ISO 639 code such as en, de or zh.")
    if near_duplicates not in get_args(NearDuplicatesChoice):
        raise InvalidRequest(f"Invalid near_duplicates '{near_duplicates[:20]}'. Valid values: drop, keep.")
    if not files and not sources:
        raise InvalidRequest("The form has no file. Send at least one file in the field 'files'.")
    for file in files:
        if corpus.format_of(Path(file.name)) is None:
            raise InvalidRequest(f"Unknown file type of '{file.name}'. {corpus.SUPPORTED}")


def _by_split(files: Mapping[str, ReceivedFile]) -> dict[str, ReceivedFile]:
    """Return split → file, with `train` for the name `file`. Raises InvalidRequest for an invalid combination."""
    if "file" in files:
        if files.keys() - {"file", "selection"}:
            raise InvalidRequest(
                "The request has 'file' and files of splits. Send 'file' alone, or 'train' and the other splits."
            )
        return {"train" if name == "file" else name: file for name, file in files.items()}
    if "train" not in files:
        raise InvalidRequest(
            "The request has no training data. Send 'train' (optionally with 'validation' and 'test') or 'file'."
        )
    extra = sorted(name for name in files if name.startswith("test_"))
    if extra and "test" not in files:
        raise InvalidRequest(f"The additional test set '{extra[0]}' requires a test set. Send 'test' as well.")
    return dict(files)


def _extension(name: str) -> str:
    """Return the extension of a file, such as .csv.gz. Raises InvalidRequest for an unknown file type."""
    unpacked = name_without_packing(name)
    if format_of(name) is None:
        raise InvalidRequest(f"Unknown file type of '{name}'. {SUPPORTED}")
    return (Path(unpacked).suffix + name[len(unpacked) :]).lower()


def _write_splits(task: Task, folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for split, table in task.splits.items():
        columns = {name: table[name] for name in ("text", *(("text_pair",) if task.pair else ()))}
        pq.write_table(
            pa.table({**columns, "label": task.label_values(split)}), folder / f"{split}.parquet", compression="zstd"
        )
