"""GLUE's tasks by hub id, on made data in the layout of nyu-mll/glue, read by the library's own loader."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tlm_core.errors import InvalidRequest
from tlm_core.tasks.known import GLUE, GLUE_NOTE
from tlm_core.tasks.options import DatasetOptions
from tlm_core.tasks.task import Task
from tlm_core.tasks.validate import load_task, write_task

CLASSES = {"cola": ["unacceptable", "acceptable"], "mrpc": ["not_equivalent", "equivalent"],
           "mnli": ["entailment", "neutral", "contradiction"], "qnli": ["entailment", "not_entailment"]}  # fmt: skip


def put_config(root: Path, config: str, sets: dict[str, int]) -> None:
    """One configuration as parquet files, named as the hub names them."""
    from datasets import ClassLabel, Dataset, Features, Value

    names = [name for name in (GLUE[config].text, GLUE[config].pair) if name]
    label = ClassLabel(names=CLASSES[config]) if config in CLASSES else Value("float32")
    features = Features({**{name: Value("string") for name in names}, "label": label, "idx": Value("int32")})
    for split, rows in sets.items():
        hidden = split.startswith("test")
        values = [
            -1 if hidden else n % len(CLASSES[config]) if config in CLASSES else (n % 26) / 5 for n in range(rows)
        ]
        columns = {name: [f"{split} {name} number {n}" for n in range(rows)] for name in names}
        data = Dataset.from_dict({**columns, "label": values, "idx": list(range(rows))}, features=features)
        path = root / config / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        data.to_parquet(str(path))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Reads hub ids as the gateway does, with the folder in the hub's place."""
    from datasets import disable_progress_bars, load_dataset

    from tlm_core.tasks.hub import read_hub

    disable_progress_bars()
    root = tmp_path_factory.mktemp("glue")
    usual = {"train": 60, "validation": 20, "test": 5}
    mnli = {"train": 60, "validation_matched": 20, "validation_mismatched": 12, "test_matched": 5, "test_mismatched": 5}
    sets = {"cola": usual, "mrpc": usual, "stsb": usual, "qnli": usual, "mnli": mnli}
    lines = ["---", "configs:"]
    for config, of_config in sets.items():
        put_config(root, config, of_config)
        lines += [f"- config_name: {config}", "  data_files:"]
        lines += [part for split in of_config for part in (f"  - split: {split}", f"    path: {config}/{split}-*")]
    (root / "README.md").write_text("\n".join([*lines, "---", ""]))

    def load(path: str, **options: Any) -> Any:
        assert path == "nyu-mll/glue"
        return load_dataset(str(root), name=options["name"], cache_dir=str(root / "cache"))

    return partial(read_hub, load=load)


def test_its_development_set_is_test_and_validation_is_cut_from_train(reader: Any) -> None:
    task, report = load_task("hub:nyu-mll/glue:cola", hub=reader)
    assert task.counts == {"train": 54, "validation": 6, "test": 20}
    assert all(text.startswith("validation ") for text in task.texts("test"))
    assert all(text.startswith("train ") for split in ("train", "validation") for text in task.texts(split))
    assert GLUE_NOTE in report["notes"] and "splits not used: test" in report["notes"]
    assert (task.name, task.metric, task.pair) == ("cola", "matthews", False)


def test_f1_is_that_of_glues_positive_label(reader: Any) -> None:
    task, report = load_task("hub:nyu-mll/glue:mrpc", hub=reader)
    assert (task.metric, task.labels, task.pair) == ("f1", ("not_equivalent", "equivalent"), True)
    assert "f1 measures the label 'equivalent'" in report["notes"]
    options, _ = load_task("hub:nyu-mll/glue:mrpc", DatasetOptions(metric="accuracy"), hub=reader)
    assert (options.metric, options.labels) == ("accuracy", ("equivalent", "not_equivalent"))


def test_sts_b_is_regression(reader: Any) -> None:
    task, report = load_task("hub:nyu-mll/glue:stsb", hub=reader)
    assert (task.metric, task.labels, task.type.name) == ("pearson", ("label",), "regression")
    assert sorted(set(task.targets("test").round(1))) == pytest.approx([n / 5 for n in range(20)])
    assert report["labels"] == [] and report["targets"]["test"]["max"] == pytest.approx(3.8)


def test_the_question_comes_first_and_the_sentence_second(reader: Any) -> None:
    task, _ = load_task("hub:nyu-mll/glue:qnli", hub=reader)
    pairs = task.text_pairs("test")
    assert task.texts("test")[0] == "validation question number 0"
    assert pairs is not None and pairs[0] == "validation sentence number 0"


def test_second_mnli_test_set_is_a_further_test(reader: Any, tmp_path: Path) -> None:
    write_task("hub:nyu-mll/glue:mnli", tmp_path / "task", hub=reader)
    task = Task.read(tmp_path / "task")
    assert task.further_tests == ["test_mismatched"]
    assert task.counts == {"train": 54, "validation": 6, "test": 20, "test_mismatched": 12}
    assert all(text.startswith("validation_mismatched ") for text in task.texts("test_mismatched"))


def test_f1_of_three_labels_is_refused(reader: Any) -> None:
    with pytest.raises(InvalidRequest, match="Use macro_f1"):
        load_task("hub:nyu-mll/glue:mnli", DatasetOptions(metric="f1"), hub=reader)
