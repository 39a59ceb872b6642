"""Evaluating a stock model locally: labels match by name, and tlm_core computes the scores."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.contract.job_results import make_linear
from tlm_client.cli import app
from tlm_client.console import Session
from tlm_client.evaluation import evaluate_model, load_stock
from tlm_core.errors import InvalidRequest, NotFound
from tlm_core.serving import load_model
from tlm_core.tasks.metrics import score
from tlm_core.tasks.options import DatasetOptions
from tlm_core.tasks.validate import load_task

WORDS = ("good", "bad", "fine", "poor", "text", "film", "plot", "cast")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny stock BERT with random weights, whose labels are in another order than the task's."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    vocabulary = {word: number for number, word in enumerate(("[PAD]", "[UNK]", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16, id2label={0: "pos", 1: "neg"}, label2id={"pos": 0, "neg": 1},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 12), ("validation", 6), ("test", 20)):
        rows = [
            {"text": f"{WORDS[n % 8]} {WORDS[(3 * n + len(split)) % 8]} {split} {n}", "label": ("neg", "pos")[n % 2]}
            for n in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def test_evaluate_scores_the_folder_of_a_download(data: Path, tmp_path: Path) -> None:
    make_linear(tmp_path, {"pos": ["good", "fine"], "neg": ["bad", "poor"]})
    task, _ = load_task(data)
    texts = task.texts("test")
    predicted = [task.labels.index(str(label)) for label in load_model(tmp_path).predict(texts)]
    expected = score(task.targets("test"), np.array(predicted), 2, task.metric, repeated=task.repeated("test"))
    assert evaluate_model(str(tmp_path), task) == expected


def test_evaluate_scores_by_the_labels_of_the_model(model: Path, data: Path) -> None:
    task, _ = load_task(data)
    assert task.labels == ("neg", "pos")
    labels, outputs = load_stock(str(model))
    best = outputs(task.texts("test"), None).argmax(-1).tolist()
    answers = [task.labels.index(labels[number]) for number in best]
    expected = score(task.label_ids("test"), answers, 2, task.metric, repeated=task.repeated("test"))
    for batch in (3, 64):
        assert evaluate_model(str(model), task, batch=batch) == expected


def test_evaluate_command_prints_the_scores(model: Path, data: Path) -> None:
    command = ["evaluate", str(model), "--dataset", str(data), "--json"]
    result = CliRunner().invoke(app, command, obj=Session())
    assert result.exit_code == 0, result.output
    task, _ = load_task(data)
    assert json.loads(result.stdout)["accuracy"] == evaluate_model(str(model), task)["accuracy"]
    assert "warning" not in result.stderr
    seen = CliRunner().invoke(app, [*command, "--split", "validation"], obj=Session())
    assert "If the model learned from validation texts, its score on them is too high." in seen.stderr


def test_evaluate_rejects_other_labels_and_missing_models(model: Path, data: Path, tmp_path: Path) -> None:
    task, _ = load_task(data)
    with pytest.raises(NotFound, match=r"config\.json"):
        evaluate_model(str(tmp_path), task)
    with pytest.raises(InvalidRequest, match="Unknown split"):
        evaluate_model(str(model), task, split="dev")
    for split in ("train", "validation", "test"):
        text = (data / f"{split}.jsonl").read_text(encoding="utf-8").replace('"pos"', '"yes"')
        (tmp_path / f"{split}.jsonl").write_text(text, encoding="utf-8")
    other, _ = load_task(tmp_path)
    with pytest.raises(InvalidRequest, match="Only in the dataset: "):
        evaluate_model(str(model), other)


def test_evaluate_rejects_a_model_of_single_texts_for_text_pairs(data: Path, tmp_path: Path) -> None:
    make_linear(tmp_path, {"pos": ["good", "fine"], "neg": ["bad", "poor"]})
    task, _ = load_task(data)
    tables = {name: table.append_column("text_pair", table["text"]) for name, table in task.splits.items()}
    pairs = dataclasses.replace(task, pair=True, splits=tables)
    with pytest.raises(InvalidRequest, match="has text pairs, but the model reads single texts"):
        evaluate_model(str(tmp_path), pairs)
    labels = json.loads((tmp_path / "labels.json").read_text())
    (tmp_path / "labels.json").write_text(json.dumps({**labels, "pair": True}))
    with pytest.raises(InvalidRequest, match="has single texts, but the model reads text pairs"):
        evaluate_model(str(tmp_path), task)


def test_evaluate_of_a_folder_without_a_clear_label_names_the_upload(model: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "a", "x": "1"}\n{"text": "b", "x": "2"}\n')
    result = CliRunner().invoke(app, ["evaluate", str(model), "--dataset", str(tmp_path)], obj=Session())
    remedy = "Set label_column. To set a column, upload the dataset with `tlm dataset add`"
    assert (result.exit_code, remedy in result.stderr) == (5, True), result.output


def test_evaluate_scores_regression_by_correlation(model: Path, data: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    for split, count in (("train", 60), ("validation", 30), ("test", 30)):
        rows = [{"text": f"{WORDS[n % 8]} {WORDS[n // 8]} {split}", "label": n / 4} for n in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task, _ = load_task(tmp_path, DatasetOptions(metric="spearman"))
    with pytest.raises(InvalidRequest, match="has regression targets, but the model predicts one of several labels"):
        evaluate_model(str(model), task)
    folder = tmp_path / "model"
    regressor = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, ignore_mismatched_sizes=True)
    regressor.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    predicted = load_stock(str(folder))[1](task.texts("test"), None)[:, 0]
    expected = score(task.targets("test"), predicted, 1, "spearman", repeated=task.repeated("test"))
    assert evaluate_model(str(folder), task)["value"] == pytest.approx(expected["value"])
    labeled, _ = load_task(data)
    with pytest.raises(InvalidRequest, match="has labels, but the model predicts one number"):
        evaluate_model(str(folder), labeled)
    arguments = ["evaluate", str(folder), "--dataset", str(tmp_path)]
    result = CliRunner().invoke(app, arguments, obj=Session())
    assert result.exit_code == 0, result.output
    assert "pearson" in result.stdout and "macro_f1" not in result.stdout
