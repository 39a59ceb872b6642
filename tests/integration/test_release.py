"""`tlm evaluate` and `tlm convert` on a model and a dataset in the layout of the original TLM release."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from tests.unit.training.made_release import WORDS, Release, made_release
from tlm_client.cli import app
from tlm_client.console import Session
from tlm_core.tasks.metrics import score
from tlm_core.tasks.validate import load_task


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return made_release(tmp_path_factory.mktemp("hub") / "tlm-sciie-small-scale")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.csv, dev.csv and test.csv, labels as numbers."""
    folder = tmp_path_factory.mktemp("sciie-tlm")
    for split, count in (("train", 30), ("dev", 9), ("test", 24)):
        with open(folder / f"{split}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "label"))
            for n in range(count):
                words = [WORDS[(n + k * (len(split) + 1)) % 8] for k in range(2 + n % 6)]
                writer.writerow((" ".join([*words, WORDS[n // 8]]), n % 3))
    return folder


@pytest.fixture(scope="module")
def evaluation(release: Release, data: Path) -> Any:
    """The scores of `tlm evaluate` for the folder of the model."""
    result = CliRunner().invoke(app, ["evaluate", str(release.folder), "--dataset", str(data), "--json"], obj=Session())
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_released_model_is_evaluated_without_conversion(release: Release, data: Path, evaluation: Any) -> None:
    task, _ = load_task(data)
    assert task.labels == ("0", "1", "2")
    encoded = AutoTokenizer.from_pretrained(str(release.folder))(task.texts("test"), padding=True, return_tensors="pt")
    answers = release.logits(encoded["input_ids"], encoded["attention_mask"]).argmax(-1).tolist()
    expected = score(task.label_ids("test"), answers, 3, task.metric, repeated=task.repeated("test"))
    assert len(set(answers)) > 1
    assert evaluation == json.loads(json.dumps(expected))


def test_released_model_is_evaluated_by_hub_id(
    release: Release, data: Path, evaluation: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache of the hub library holds only pickled weights, like the release."""
    repository = tmp_path / "hub" / "models--yxchar--tlm-sciie-small-scale"
    shutil.copytree(release.folder, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    arguments = ["evaluate", "hub:yxchar/tlm-sciie-small-scale", "--dataset", str(data), "--json"]
    result = CliRunner().invoke(app, arguments, obj=Session())
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["accuracy"] == evaluation["accuracy"]


def test_convert_command_writes_a_stock_model(release: Release, tmp_path: Path) -> None:
    target = tmp_path / "stock"
    result = CliRunner().invoke(app, ["convert", str(release.folder), str(target)], obj=Session())
    assert result.exit_code == 0, result.output
    model = AutoModelForSequenceClassification.from_pretrained(str(target)).eval()
    ids = torch.tensor([[2, 5, 6, 7, 3]])
    with torch.inference_mode():
        logits = model(input_ids=ids).logits
    torch.testing.assert_close(logits, release.logits(ids, torch.ones_like(ids)), atol=1e-5, rtol=1e-5)
    assert not list(target.glob("*.bin"))
    again = CliRunner().invoke(app, ["convert", str(release.folder), str(target)], obj=Session())
    assert again.exit_code != 0
