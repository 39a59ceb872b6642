"""A task is read back as it was written, byte for byte the same each time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.unit.tasks.make import folder, jsonl, put, rows
from tlm_core.errors import CorruptArtifact
from tlm_core.tasks.task import Task
from tlm_core.tasks.validate import load_task, write_task


def pairs(count: int) -> list[dict[str, str]]:
    return [{"text": f"a{n}", "text_pair": f"b{n}", "label": "xy"[n % 2]} for n in range(count)]


@pytest.mark.parametrize("records", [rows(6), pairs(6)], ids=["single", "pair"])
def test_written_task_is_read_back(tmp_path: Path, records: list[dict[str, str]]) -> None:
    task, _ = load_task(folder(tmp_path / "in", records, validation=records[:2], test=records[:3]))
    task.write(tmp_path / "out")
    again = Task.read(tmp_path / "out")
    assert (again.name, again.labels, again.metric, again.pair, again.language, again.counts) == (
        task.name,
        task.labels,
        task.metric,
        task.pair,
        task.language,
        task.counts,
    )
    for split in ("train", "validation", "test"):
        assert again.splits[split].equals(task.splits[split])


def test_the_artifact_has_the_agreed_files_and_columns(tmp_path: Path) -> None:
    report = write_task(folder(tmp_path / "in", pairs(4), validation=pairs(2), test=pairs(2)), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "train.parquet",
        "validation.parquet",
        "test.parquet",
        "task.json",
        "report.json",
    }
    schema = pq.read_schema(tmp_path / "out" / "train.parquet")
    assert [(field.name, str(field.type)) for field in schema] == [
        ("row", "int64"),
        ("text", "string"),
        ("text_pair", "string"),
        ("label", "int32"),
    ]
    assert json.loads((tmp_path / "out" / "task.json").read_text()) == {
        "name": "in",
        "labels": ["x", "y"],
        "metric": "macro_f1",
        "pair": True,
        "language": "en",
        "counts": {"train": 4, "validation": 2, "test": 2},
    }
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report


def test_equal_data_give_equal_bytes_from_any_format(tmp_path: Path) -> None:
    put(tmp_path / "a" / "set.jsonl", jsonl(rows(40)))
    put(tmp_path / "b" / "set.csv", "text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in rows(40)))
    for name in ("a/set.jsonl", "b/set.csv"):
        write_task(tmp_path / name, tmp_path / name[0] / "out")
    for file in ("train.parquet", "validation.parquet", "test.parquet", "task.json"):
        assert (tmp_path / "a" / "out" / file).read_bytes() == (tmp_path / "b" / "out" / file).read_bytes()


def test_inconsistent_task_files_are_rejected(tmp_path: Path) -> None:
    write_task(folder(tmp_path / "in", rows(6)), tmp_path / "out")
    (tmp_path / "out" / "train.parquet").write_bytes((tmp_path / "out" / "test.parquet").read_bytes())
    with pytest.raises(CorruptArtifact, match="do not match"):
        Task.read(tmp_path / "out")
    (tmp_path / "out" / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(CorruptArtifact, match="Retry the job: tlm retry JOB"):
        Task.read(tmp_path / "out")
    with pytest.raises(CorruptArtifact):
        Task.read(tmp_path / "absent")


def test_reading_tasks_needs_neither_torch_nor_datasets() -> None:
    heavy = "{'torch', 'datasets', 'sklearn', 'transformers'}"
    code = f"import sys, tlm_core.tasks.validate; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
