"""Small datasets for the tests of this folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tlm_core.errors import InvalidDataset
from tlm_core.tasks.options import DatasetOptions
from tlm_core.tasks.task import Task
from tlm_core.tasks.validate import Source, load_task

Row = Mapping[str, Any]


def rows(count: int, labels: Sequence[str] = ("bad", "good"), start: str = "text") -> list[dict[str, Any]]:
    """Return `count` records with different texts. The labels alternate."""
    return [{"text": f"{start} number {index}", "label": labels[index % len(labels)]} for index in range(count)]


def jsonl(records: Iterable[Any]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def folder(
    root: Path, train: Iterable[Any] | str, validation: Iterable[Any] | None = None, test: Iterable[Any] | None = None
) -> Path:
    """Write a dataset of three JSONL files, and return `root`. train: the rows, or the content of the file."""
    put(root / "train.jsonl", train if isinstance(train, str) else jsonl(train))
    put(root / "validation.jsonl", jsonl(rows(4, start="validation") if validation is None else validation))
    put(root / "test.jsonl", jsonl(rows(4, start="test") if test is None else test))
    return root


def validate(source: Source, options: DatasetOptions | None = None, **hub: Any) -> tuple[Task | None, dict[str, Any]]:
    """Return the task and its report. For a dataset with faults, return None and only the entries about faults."""
    try:
        task, report = load_task(source, options, **hub)
    except InvalidDataset as error:
        return None, {"ok": False, "faults": [asdict(fault) for fault in error.faults], "message": str(error)}
    return task, dict(report)


def faults(
    source: Source, options: DatasetOptions | None = None
) -> list[tuple[str, str | None, int | None, str | None]]:
    """Return (code, split, row, column) of every fault."""
    report = validate(source, options)[1]
    return [(fault["code"], fault["split"], fault["row"], fault["column"]) for fault in report["faults"]]


def messages(report: Mapping[str, Any], kind: str, code: str) -> list[str]:
    return [entry["message"] for entry in report[kind] if entry["code"] == code]
