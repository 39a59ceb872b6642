"""Data sets in the hub's layout are read through the datasets library; its errors become ours."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT
from tests.unit.tasks.make import put
from tlm_core.errors import InvalidRequest
from tlm_core.tables.findings import Findings
from tlm_core.tasks.hub import HubSource, parse_hub_id, read_hub
from tlm_core.tasks.options import DatasetOptions
from tlm_core.tasks.validate import load_task


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hub:yxchar/rct-20k-tlm", HubSource("yxchar/rct-20k-tlm")),
        ("hub:a/b.c_d@refs/pr/1:sub-set", HubSource("a/b.c_d", "refs/pr/1", "sub-set")),
        ("hub:nyu-mll/glue:sst2", HubSource("nyu-mll/glue", None, "sst2")),
    ],
)
def test_hub_ids_are_parsed(text: str, source: HubSource) -> None:
    assert parse_hub_id(text) == source


@pytest.mark.parametrize(
    "text", ["hub:", "hub:imdb", "hub:../x", "hub:./x", "hub:/etc/x", "hub:a/b/c", "hub:a b/c", "hub:a/b@", "a/b"]
)
def test_invalid_hub_ids_are_rejected(text: str) -> None:
    with pytest.raises(InvalidRequest, match="Invalid hub id"):
        parse_hub_id(text)


def test_a_folder_in_the_papers_layout_is_loaded(tmp_path: Path) -> None:
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    folder = tmp_path / "chemprot-tlm"
    for split, count in (("train", 5), ("dev", 2), ("test", 3)):
        lines = [f'"{split} text, {n}",{n % 2}' for n in range(count)]
        put(folder / f"{split}.csv", "\n".join(["text,label", *lines]) + "\n")
    findings = Findings()
    tables = read_hub(HubSource(str(folder)), findings, cache=tmp_path / "cache", load=load_dataset)
    assert findings.ok
    assert {split: len(table.rows) for split, table in tables.items()} == {"train": 5, "validation": 2, "test": 3}
    assert tables["test"].columns["text"].values.to_pylist() == [f"test text, {n}" for n in range(3)]
    assert tables["train"].columns["label"].values.to_pylist() == ["0", "1", "0", "1", "0"]
    assert tables["train"].rows.tolist() == [1, 2, 3, 4, 5]


PROGRAM = """
from tlm_core.errors import TLMError
from tlm_core.tasks.hub import hub_file, parse_hub_id
for name in ("small_external.csv", "large_external.csv", "../secrets", "/etc/passwd"):
    try:
        print(hub_file(parse_hub_id("hub:yxchar/sciie-tlm"), name).read_text().splitlines()[1])
    except TLMError as error:
        print(type(error).__name__, error.message)
"""


def test_hub_file_is_read_from_the_cache_when_offline(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "datasets--yxchar--sciie-tlm"
    put(repository / "snapshots" / ("a" * 40) / "small_external.csv", "text,id,rank\na passage,7,1\n")
    put(repository / "refs" / "main", "a" * 40)
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    first_line, missing, *outside = done.stdout.splitlines()
    assert first_line == "a passage,7,1", done.stderr
    assert missing.startswith("Unavailable Cannot fetch 'large_external.csv' of the hub dataset yxchar/sciie-tlm")
    assert all(line.startswith("InvalidRequest") for line in outside) and len(outside) == 2


def test_local_folder_with_the_name_of_a_hub_id_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "owner" / "name" / "train.csv", "text,label\na,b\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidRequest, match="is also a local folder"):
        read_hub(HubSource("owner/name"), Findings())


class Hub:
    """A fake `datasets.load_dataset` that records its arguments and returns or raises `answer`."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.arguments: dict[str, Any] = {}

    def __call__(self, path: str, **kwargs: Any) -> Any:
        self.arguments = {"path": path, **kwargs}
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def dataset_splits(**splits: dict[str, list[Any]]) -> dict[str, Any]:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    return {name: Dataset.from_dict(columns, features=features) for name, columns in splits.items()}


def test_revision_and_config_are_passed_on_and_remote_code_is_never_allowed() -> None:
    hub = Hub(dataset_splits(train={"sentence": ["a"], "label": [1]}))
    read_hub(HubSource("a/b", "v1", "small"), Findings(), load=hub)
    assert hub.arguments == {"path": "a/b", "name": "small", "revision": "v1", "cache_dir": None}


def test_hub_class_names_are_labels_and_hidden_labels_are_null() -> None:
    hub = Hub(
        dataset_splits(
            train={"sentence": ["a", "b"], "label": [1, 0]},
            test={"sentence": ["c"], "label": [-1]},
            unsupervised={"sentence": ["d"], "label": [0]},
        )
    )
    findings = Findings()
    tables = read_hub(HubSource("a/b"), findings, load=hub)
    assert tables["train"].columns["label"].values.to_pylist() == ["pos", "neg"]
    assert tables["test"].columns["label"].values.to_pylist() == [None]
    assert findings.notes == ["splits not used: unsupervised"]


def test_known_task_sets_name_and_metric_by_default() -> None:
    columns = {"sentence": [f"text {n}" for n in range(6)], "label": [0, 1] * 3}
    hub = partial(read_hub, load=Hub(dataset_splits(train=columns, validation=columns, test=columns)))
    task, report = load_task("hub:yxchar/chemprot-tlm", hub=hub)
    assert (task.name, task.metric, task.labels) == ("chemprot", "micro_f1", ("neg", "pos"))
    assert "metric: micro_f1, as in the TLM paper" in report["notes"]
    task, _ = load_task("hub:yxchar/chemprot-tlm", DatasetOptions(metric="accuracy", name="mine"), hub=hub)
    assert (task.name, task.metric) == ("mine", "accuracy")
    assert load_task("hub:someone/news@v1", hub=hub)[0].name == "news"


def test_hub_dataset_without_train_or_rows_is_a_data_error() -> None:
    findings = Findings()
    read_hub(HubSource("a/b"), findings, load=Hub(dataset_splits(test={"sentence": [], "label": []})))
    assert [fault.code for fault in findings.faults] == ["no_rows", "no_train"]
