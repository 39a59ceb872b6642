"""Validate a dataset, and return its task and report. docs/data-errors.md lists the codes of errors and warnings."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlm_core.errors import InvalidRequest
from tlm_core.names import HUB
from tlm_core.selection.given import GIVEN, given_part, write_given
from tlm_core.tables.findings import Findings
from tlm_core.tasks import limits
from tlm_core.tasks.checks import (
    advise_numbers,
    check_label_set,
    check_labels,
    check_texts,
    count_labels,
    rare_labels,
    sort_labels,
)
from tlm_core.tasks.columns import Columns, choose_columns
from tlm_core.tasks.duplicates import scan
from tlm_core.tasks.hub import HubSource, parse_hub_id, read_hub
from tlm_core.tasks.known import glue_task, known_for_hub
from tlm_core.tasks.metrics import METRICS
from tlm_core.tasks.options import DatasetOptions
from tlm_core.tasks.report import Report, SplitData, build_report
from tlm_core.tasks.split_files import select_splits
from tlm_core.tasks.splits import PARTS, bands, cut_splits
from tlm_core.tasks.table import RawTable, read_table
from tlm_core.tasks.targets import as_numbers, check_spread, check_targets, infer_type
from tlm_core.tasks.task import SPLITS, Task, task_schema
from tlm_core.tasks.types import TaskType
from tlm_core.training.params import ValidateParams
from tlm_core.training.stage import StageContext
from tlm_core.wording import counted

Source = Mapping[str, Path] | Path | str | HubSource
HubReader = Callable[[HubSource, Findings], Mapping[str, RawTable]]


def load_task(
    source: Source, options: DatasetOptions | None = None, *, hub: HubReader = read_hub
) -> tuple[Task, Report]:
    """Read and validate a dataset. Return the task and the validation report.

    source: a mapping from splits to files, one file, a folder, or a hub id (`hub:OWNER/NAME[@revision][:config]`). A
    string without `hub:` is a path. hub: reads datasets of the hub, such as `partial(read_hub, cache=FOLDER)`.
    Raises InvalidDataset with all data errors, and StorageUnavailable if the storage does not answer. Raises
    InvalidRequest if the hub id is invalid or the labels do not fit the metric f1. Raises NotFound if the hub lacks the
    dataset, and Unavailable if the hub does not answer.
    """
    options, findings = options or DatasetOptions(), Findings()
    if isinstance(source, str):
        source = parse_hub_id(source) if source.startswith(HUB) else Path(source)
    if isinstance(source, HubSource):
        tables = dict(hub(source, findings))
        options = _with_known(source, options, findings)
    else:
        tables = _read(source, options, findings)
    columns = choose_columns(tables, options, findings) if "train" in tables else None
    if columns is None:
        raise findings.error()
    task_type = infer_type(tables["train"], columns.label, options.metric, findings)
    splits = {split: _check(table, columns, task_type, findings) for split, table in tables.items()}
    counts = {split: count_labels(data.label) if task_type.has_classes else {} for split, data in splits.items()}
    if task_type.has_classes:
        check_label_set(counts, tables, columns.label, findings)
    else:
        check_spread(tables["train"], columns.label, findings)
    del tables
    missing = [split for split in SPLITS if split not in splits]
    if missing:
        _check_can_cut(splits["train"], counts["train"], missing, findings)
        findings.check()
        splits = _cut(splits, missing, options.split_seed, findings)
    metric, language = _metric_and_language(options, task_type, findings)
    findings.check()
    labels = sort_labels(counts["train"]) if task_type.has_classes else [columns.label]
    if METRICS[metric].positive_label:
        labels = _positive_last(labels, options.positive_label, findings)
    _check_sizes(splits, missing, findings)
    _check_validation(splits["validation"], metric, labels[-1], findings)
    report = build_report(splits, columns, findings)
    tables_of = {split: _table(data, labels, metric) for split, data in splits.items()}
    name = options.name or _default_name(source)
    return Task(name, tuple(labels), metric, columns.text_pair is not None, language, tables_of), report


def validate_stage(ctx: StageContext[ValidateParams]) -> dict[str, object]:
    """Write the task of a dataset. Input: `dataset`. Raises what `write_task` raises."""
    write_task(ctx.inputs["dataset"], ctx.out, ctx.params.options)
    return {}


def write_task(
    source: Source, folder: Path, options: DatasetOptions | None = None, *, hub: HubReader = read_hub
) -> Report:
    """Write the `validate` artifact (the task's files and report.json) to `folder` and return the report.

    A selection in the dataset becomes `selection.parquet`. Raises what `load_task` and `write_given` raise.
    """
    task, report = load_task(source, options, hub=hub)
    task.write(folder)
    given = given_part(source)
    if given is not None:
        write_given(given, folder / GIVEN)
    (folder / "report.json").write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return report


def _read(source: Mapping[str, Path] | Path, options: DatasetOptions, findings: Findings) -> dict[str, RawTable]:
    paths = select_splits(source, findings)
    tables = {split: read_table(path, split, findings, delimiter=options.delimiter) for split, path in paths.items()}
    return {split: table for split, table in tables.items() if table is not None}


def _check(table: RawTable, columns: Columns, task_type: TaskType, findings: Findings) -> SplitData:
    for name in columns.texts:
        check_texts(table, name, findings)
    (check_labels if task_type.has_classes else check_targets)(table, columns.label, findings)
    text = table.columns[columns.text].values
    pair = table.columns[columns.text_pair].values if columns.text_pair else None
    return SplitData(table.rows, text, pair, table.columns[columns.label].values, scan(text, pair), task_type)


def _check_can_cut(train: SplitData, counts: Mapping[str, int], missing: list[str], findings: Findings) -> None:
    """Check that splits can be cut from train. counts: label → rows of train. Data errors: too_few_rows, rare_label."""
    wanted = " and ".join(missing)
    texts = len(np.unique(train.scan.keys))
    if texts < limits.MIN_ROWS and findings.ok:  # otherwise invalid rows may be the reason
        message = f"train has {texts} different texts, too few to cut {wanted}. Use at least {limits.MIN_ROWS}."
        findings.fault("too_few_rows", message, split="train")
    advice = advise_numbers(counts)
    for rare in rare_labels(counts, advice):
        message = f"{rare} in train, so {wanted} cannot be cut. Add rows with such labels, or add {wanted}."
        findings.fault("rare_label", message + advice, split="train")


def _cut(splits: Mapping[str, SplitData], missing: list[str], seed: int, findings: Findings) -> dict[str, SplitData]:
    train = splits["train"]
    if train.type.has_classes:
        labels = pc.index_in(train.label, value_set=pc.unique(train.label)).to_numpy()
    else:
        labels = bands(train.targets())
    positions = cut_splits(labels, train.scan.keys, missing, seed)
    cut = {split: train.select(indices) for split, indices in positions.items()}
    shares = ", ".join(f"{split} {len(data.rows):,}" for split, data in cut.items())
    verb = "were" if len(missing) > 1 else "was"
    findings.note(
        f"{' and '.join(missing)} {verb} cut from train by {train.type.target} with seed {seed}: {shares} rows"
    )
    for split in missing:
        if not len(cut[split].rows):
            message = (
                f"No row can be cut for {split}: copies of a text stay together, and each label needs a text in train. "
                f"Add {split} as a file."
            )
            findings.fault("too_few_rows", message, split=split)
        lacking = count_labels(train.label).keys() - count_labels(cut[split].label).keys()
        for label in sort_labels(lacking) if train.type.has_classes else []:
            message = (
                f"The label '{label}' has too few rows to occur in the {split} split that was cut. "
                "Add rows with this label."
            )
            findings.warn("missing_label", message, split=split)
    return {**splits, **cut}


def _with_known(source: HubSource, options: DatasetOptions, findings: Findings) -> DatasetOptions:
    """Return the options. For known tasks, add the metric and, for GLUE, the text columns, if the options lack them."""
    if glue := glue_task(source.path, source.config):
        if options.metric is None:
            findings.note(f"metric: {glue.metric}, as in GLUE")
            positive = options.positive_label or glue.positive
            options = replace(options, metric=glue.metric, positive_label=positive)
        pair = glue.pair or "" if options.text_pair_column is None else options.text_pair_column
        return replace(options, text_column=options.text_column or glue.text, text_pair_column=pair)
    known = known_for_hub(source.path)
    if known is not None and options.metric is None:
        findings.note(f"metric: {known.metric}, as in the TLM paper")
        options = replace(options, metric=known.metric)
    return options


def _default_name(source: Mapping[str, Path] | Path | HubSource) -> str:
    if isinstance(source, Mapping):
        return "task"
    if isinstance(source, Path):
        return source.name.split(".")[0] or source.name
    if source.config and glue_task(source.path, source.config):
        return source.config
    known = known_for_hub(source.path)
    return known.name if known else source.name


def _check_sizes(splits: Mapping[str, SplitData], cut: Sequence[str], findings: Findings) -> None:
    """Check that validation and test are large enough for reliable scores. Warning: few_rows.

    cut: the splits that were cut from train.
    """
    unchosen = "jobs return a combination of models without comparing them, except at the scale instant"
    for split, effect, enough in (
        ("validation", unchosen, limits.ROWS_TO_CHOOSE),
        ("test", "its scores are imprecise", limits.ROWS_TO_SCORE),
    ):
        rows = len(splits[split].rows)
        if rows < enough:
            total = f" For this, the file needs about {enough * PARTS:,} rows." if split in cut else ""
            message = f"{split} has {counted(rows, 'row')}, so {effect}. Add rows until it has {enough}.{total}"
            findings.warn("few_rows", message, split=split)


def _check_validation(validation: SplitData, metric: str, positive: str, findings: Findings) -> None:
    """Check that the metric can compare models on validation. Warning: no_choice.

    No comparison is possible if all regression targets are equal, or if no row has the label that f1 measures.
    """
    lack = None
    if METRICS[metric].positive_label and positive not in count_labels(validation.label):
        lack = f"a row with the label '{positive}'"
    elif not validation.type.has_classes and not np.ptp(validation.targets().astype(np.float32)):
        lack = "rows with different regression targets"
    if lack:
        message = f"validation lacks {lack}, so its {metric} cannot compare models. Add such rows to validation."
        findings.warn("no_choice", message, split="validation")


def _positive_last(labels: list[str], positive: str | None, findings: Findings) -> list[str]:
    """Return the two labels with `positive` last, because f1 measures the last label. None leaves the order unchanged.

    Raises InvalidRequest if there are not two labels, or if `positive` is not one of them.
    """
    if len(labels) != 2:
        raise InvalidRequest(f"The metric f1 needs two labels, and the dataset has {len(labels)}. Use macro_f1.")
    if positive is not None and positive not in labels:
        raise InvalidRequest(f"Unknown positive label '{positive}'. Valid labels: {', '.join(map(repr, labels))}.")
    if positive == labels[0]:
        labels = labels[::-1]
    findings.note(f"f1 measures the label '{labels[1]}'")
    return labels


def _metric_and_language(options: DatasetOptions, task_type: TaskType, findings: Findings) -> tuple[str, str]:
    metric = options.metric or task_type.default_metric
    if options.metric is None:
        findings.note(f"metric: {metric}, the default")
    if options.positive_label is not None and not METRICS[metric].positive_label:
        findings.note(f"positive label '{options.positive_label}' is ignored: it needs the metric f1")
    if options.language is None:
        findings.note("language: en, the default")
    return metric, options.language or "en"


def _table(data: SplitData, labels: list[str], metric: str) -> pa.Table:
    if data.type.has_classes:
        targets = pc.index_in(data.label, value_set=pa.array(labels, pa.string()))
    else:
        targets = as_numbers(data.label)
    pairs = [data.text_pair] if data.text_pair is not None else []
    schema = task_schema(bool(pairs), metric)
    return pa.table([pa.array(data.rows), data.text, *pairs, targets], schema=schema)
