"""The tasks of the quality benchmarks and their corpora."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.quality import data
from tlm_core.selection.selectors import Selection
from tlm_core.tasks.task import Task


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(data, "FOLDER", tmp_path / "build")
    monkeypatch.setattr(data, "shared_data", lambda: tmp_path / "shared")
    folder = tmp_path / "shared" / "tasks" / "colors"
    folder.mkdir(parents=True)
    for split, count in (("train", 40), ("validation", 8), ("test", 8)):
        rows = [{"text": f"{split} text {n} about {'ab'[n % 2]} things", "label": "ab"[n % 2]} for n in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "shared" / "corpus").mkdir()
    (tmp_path / "shared" / "corpus" / "c.jsonl").write_text('{"text": "general text about things"}\n', encoding="utf-8")
    return folder


def selected(name: str) -> set[str]:
    """Return the passages that the task selects."""
    folder = data.select_once(data.task_folder(name), Selection(top_k=30))
    return set(pq.read_table(folder / "passages.parquet")["text"].to_pylist())


@pytest.mark.usefixtures("shared")
def test_task_with_few_labels_selects_from_its_other_train_texts() -> None:
    name = data.few_labels("colors", 10)
    labeled = set(Task.read(data.task_folder(name)).texts("train"))
    assert len(labeled) == 10
    passages = selected(name)
    assert passages and all(passage.startswith("train text") for passage in passages)
    assert not passages & labeled


@pytest.mark.usefixtures("shared")
def test_shared_task_selects_from_the_shared_corpus() -> None:
    assert selected("colors") == {"general text about things"}


def test_libraries_selects_from_its_own_corpus(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(folder: Path, _: object) -> None:
        (folder / "corpus").mkdir(parents=True)
        text = json.dumps({"text": "documentation about things"})
        (folder / "corpus" / "c.jsonl").write_text(text, encoding="utf-8")
        shared.rename(folder / "task")

    monkeypatch.setattr(data, "generate_demo", generate)
    assert selected("libraries") == {"documentation about things"}
