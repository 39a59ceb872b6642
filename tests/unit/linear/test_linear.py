"""The linear model: its n-grams, its fit, its ONNX graph and its stages."""

from __future__ import annotations

import json
import os
import random
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import f1_score

from tests.unit.training.made import made_selection, made_task
from tlm_core.evaluation.bootstrap import Difference
from tlm_core.evaluation.combine import log_softmax
from tlm_core.jobs.nodes import PlanInputs
from tlm_core.kinds import train
from tlm_core.linear import fit as fit_module
from tlm_core.linear import linear_stages, self_training
from tlm_core.linear.fit import fit
from tlm_core.linear.model import Features, LinearModel, read_alphabet, rows_of
from tlm_core.linear.ngrams import FAMILIES, START_WORDS, Alphabet, Ngrams, split_words
from tlm_core.linear.params import BaselineParams, most_fits
from tlm_core.linear.self_training import (
    LEAST_GAIN,
    LEAST_GAIN_OF_OTHERS,
    most_confident,
    pieces_of,
    self_train,
    separability,
)
from tlm_core.serving import load_model
from tlm_core.stages import BASELINE
from tlm_core.tasks.task import Task, task_schema
from tlm_core.training.local import LocalReporter, run_stage
from tlm_core.training.recipe import resolve
from tlm_core.training.stage import StopRequested

TEXTS = ["The [[ BERT ]] model uses << ELMo >> .", "It's a <b>test</b>, a a a!", "", "naïve  Café\n\tİstanbul", "a"]


def odd_texts(count: int) -> list[str]:
    """Return texts of random characters of many scripts, with runs of blanks and marks."""
    draw = random.Random(0)
    characters = "abcdefgh ÄöüßİﬁΩ  \t\n中文字符かなไทย한국어🙂[[<<>>]]{}().,'\"-_/\\0123456789\u0000\u200b\ufeff"
    return ["".join(draw.choices(characters, k=draw.randrange(0, 60))) for _ in range(count)]


def write_task(folder: Path, texts: list[str], labels: list[int], names: tuple[str, ...]) -> Path:
    """Write a task whose three splits hold the same rows."""
    columns = {"row": np.arange(1, len(texts) + 1), "text": texts, "label": np.array(labels, np.int32)}
    table = pa.table(columns, schema=task_schema(False))
    Task("made", names, "macro_f1", False, "zh", dict.fromkeys(("train", "validation", "test"), table)).write(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_features_equal_those_of_scikit_learn(family: str) -> None:
    rows = [(text,) for text in TEXTS]
    common = {"sublinear_tf": True, "norm": "l2"}
    if family == "words":
        expected = TfidfVectorizer(tokenizer=split_words, token_pattern=None, ngram_range=(1, 2), **common)
    else:
        expected = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), **common)
    matrix = expected.fit_transform(TEXTS)
    features, sequences = Features.learn(rows, [family])
    ours = features.matrix(sequences)
    assert ours.shape == matrix.shape
    np.testing.assert_allclose((ours @ ours.T).toarray(), (matrix @ matrix.T).toarray(), atol=1e-6)


def test_entity_marks_are_words_and_unspaced_scripts_are_split() -> None:
    assert split_words("the [[ cat ]]s") == ["the", "[[", "cat", "]]", "s"]
    assert split_words("我爱 nlp。") == ["我", "爱", "nlp", "。"]


def test_label_may_depend_on_the_first_words(tmp_path: Path) -> None:
    draw, texts = random.Random(0), []
    for _ in range(120):
        words = draw.sample(["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen"], 8)
        texts.append(" ".join(words))
    labels = [int("ant" in text.split()[:START_WORDS]) for text in texts]
    done = run_stage(
        BASELINE,
        {"task": write_task(tmp_path / "task", texts, labels, ("late", "early"))},
        BaselineParams(),
        tmp_path / "done",
    )
    model = LinearModel.read(done)
    early, late = "dog ant fox eel cat bee gnu", "dog fox eel cat bee gnu ant"
    assert model.outputs([(early,), (late,)]).argmax(axis=1).tolist() == [1, 0]
    assert "ant (first words)" in model.features.word_names()
    assert_graph_agrees(done, [early, late, *odd_texts(300)])


def test_first_words_are_no_part_without_a_gain(tmp_path: Path) -> None:
    fitted = fit(Task.read(made_task(tmp_path / "task", (300, 60, 90))))
    assert fitted.setting.start_words == fitted.model.features.alphabet.start_words == 0


def test_parallel_fits_give_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task.read(made_task(tmp_path / "task", (300, 60, 90)))
    alone = fit(task)
    monkeypatch.setattr(fit_module, "LARGE", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    started = Mock(wraps=fit_module.processes)
    monkeypatch.setattr(fit_module, "processes", started)
    parallel = fit(task)
    started.assert_called_once_with(2)
    assert parallel.setting == alone.setting and parallel.tried == alone.tried
    np.testing.assert_array_equal(parallel.model.weights, alone.model.weights)
    np.testing.assert_array_equal(parallel.held_out, alone.held_out)


def test_model_without_first_words_still_reads_its_texts(tmp_path: Path) -> None:
    alphabet = {"words": [{"cat": 5000}], "characters": [{" ": 1}]}
    (tmp_path / "ngrams.json").write_text(json.dumps(alphabet))
    assert read_alphabet(tmp_path).encode(("the cat",)) == [0, 5000, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0]


def test_vocabulary_holds_the_most_frequent_ngrams_up_to_its_limit() -> None:
    alphabet = Alphabet.learn([("a b",), ("a c",), ("a b",)])
    sequences = alphabet.sequences([("a b",), ("a c",), ("a b",)])
    ngrams = Ngrams.learn(sequences, "words", alphabet.spaces, limit=3)
    assert len(ngrams) == 3
    assert ngrams.counts(sequences).toarray().sum(axis=0).tolist() == [3, 2, 2]


@pytest.mark.parametrize("pair", [False, True])
def test_graph_and_training_agree_on_odd_texts(pair: bool, tmp_path: Path) -> None:
    done = run_stage(
        BASELINE, {"task": made_task(tmp_path / "task", pair=pair)}, BaselineParams(), tmp_path / "baseline"
    )
    texts = [*odd_texts(1000), "common1 red2 blue3 " * 400]
    assert_graph_agrees(done, texts, list(reversed(texts)) if pair else None)


def assert_graph_agrees(done: Path, texts: list[str], pairs: list[str] | None = None) -> None:
    """Compare the probabilities of the graph with those of the fitted model. done: what the baseline stage wrote."""
    rows = list(zip(texts, pairs, strict=True)) if pairs else [(text,) for text in texts]
    divisor = json.loads((done / "baseline.json").read_text())["temperature"]
    logits = LinearModel.read(done).outputs(rows) / divisor
    expected = np.exp(logits - logits.max(axis=1, keepdims=True))
    served = load_model(done).probabilities(texts, pairs)
    np.testing.assert_allclose(served, expected / expected.sum(axis=1, keepdims=True), atol=1e-5)


def test_model_learns_and_reports_how_it_was_chosen(tmp_path: Path) -> None:
    task = Task.read(made_task(tmp_path / "task", (300, 60, 90)))
    fitted = fit(task)
    predicted = fitted.model.outputs(rows_of(task, "test")).argmax(axis=1)
    assert f1_score(task.targets("test"), predicted, average="macro") > 0.9
    assert fitted.score is not None and fitted.score > 0.9
    assert fitted.held_out.shape == (300, 3)
    assert (fitted.held_out.argmax(axis=1) == task.targets("train")).mean() > 0.9
    assert {setting.class_weight for setting, _ in fitted.tried} == {None, "balanced"}


def test_chinese_texts_are_classified(tmp_path: Path) -> None:
    good, bad = (
        ["这部电影很好看", "非常喜欢这本书", "服务很好值得推荐"],
        ["这部电影太难看", "非常讨厌这本书", "服务很差不推荐"],
    )
    texts = [text + tail for text in good + bad for tail in ("。", "！", "啊", "了", "呢", "吧")]
    labels = [0] * 18 + [1] * 18
    task = Task.read(write_task(tmp_path / "task", texts, labels, ("good", "bad")))
    model = fit(task).model
    assert model.outputs([("这家店很好",), ("这家店太差",)]).argmax(axis=1).tolist() == [0, 1]


def test_canonically_equal_texts_have_equal_ngrams() -> None:
    composed, decomposed = "Drôle, İstanbul, 가", unicodedata.normalize("NFD", "Drôle, İstanbul, 가")
    alphabet = Alphabet.learn([(composed,)])
    assert decomposed != composed and alphabet.encode((decomposed,)) == alphabet.encode((composed,))
    assert Alphabet.learn([(decomposed,)]) == alphabet


def test_alphabet_of_an_earlier_model_reads_texts_unchanged(tmp_path: Path) -> None:
    nukta = "হ\u09df"  # NFC divides its last letter into two characters
    ids = {"words": [{nukta: 4096}], "characters": [{" ": 1, "হ": 2, "\u09df": 3}]}
    (tmp_path / "ngrams.json").write_text(json.dumps(ids), encoding="utf-8")
    assert read_alphabet(tmp_path).encode((nukta,)) == [4096, 0, 1, 2, 3, 1, 0]


def test_label_without_train_rows_is_never_predicted(tmp_path: Path) -> None:
    task = Task.read(write_task(tmp_path / "task", ["a b", "c d"] * 6, [0, 2] * 6, ("x", "unseen", "y")))
    outputs = fit(task).model.outputs([("a b",), ("c d",), ("nothing known",)])
    assert outputs[:2].argmax(axis=1).tolist() == [0, 2]
    assert (outputs.argmax(axis=1) != 1).all()


@pytest.mark.parametrize("rows", [(1, 1), (1, 1, 1), (2, 2, 2), (4, 1, 1)])
def test_few_rows_of_each_label_are_enough(rows: tuple[int, ...], tmp_path: Path) -> None:
    words = [f"word{label} tail" for label, count in enumerate(rows) for _ in range(count)]
    labels = [label for label, count in enumerate(rows) for _ in range(count)]
    names = ("x", "y", "z")[: len(rows)]
    fitted = fit(Task.read(write_task(tmp_path / "task", words, labels, names)))
    assert fitted.held_out.shape == (sum(rows), len(rows))
    assert np.isfinite(fitted.model.weights).all() and len(fitted.tried) > 0


def rare_task(train: int, validation: int) -> Task:
    """Return a task with the metric `f1`, and with this many positive rows of 100 in train and of 30 in validation."""
    draw, tables = random.Random(0), {}
    for name, rows, positives in (("train", 100, train), ("validation", 30, validation), ("test", 30, 3)):
        texts = [" ".join([*draw.choices("abcdefgh", k=6), "rare" * (row < positives)]) for row in range(rows)]
        labels = [int(row < positives) for row in range(rows)]
        columns = {"row": range(rows), "text": texts, "label": labels}
        tables[name] = pa.table(columns, schema=task_schema(False))
    return Task("made", ("common", "rare"), "f1", False, "en", tables)


@pytest.mark.parametrize("validation", [3, 0])
def test_folds_without_the_positive_label_do_not_end_the_search(validation: int) -> None:
    fitted = fit(rare_task(4, validation))
    assert fitted.tried and fitted.score == 1.0


def test_search_without_any_score_has_the_default_setting() -> None:
    fitted = fit(rare_task(0, 0))
    assert fitted.tried == () and fitted.score is None


@pytest.mark.parametrize("amounts", [(0.0, 0.1, 0.2), (0.2, 0.1)])
def test_smallest_amount_is_chosen_if_validation_has_no_score(amounts: tuple[float, ...]) -> None:
    task, pieces = rare_task(4, 0), ["a b c", "d e rare", "f g rare"] * 10
    fitted = fit(task)
    teacher = log_softmax(fitted.model.outputs([(piece,) for piece in pieces]))
    trained = self_train(
        task, fitted.model.outputs(rows_of(task, "validation")), teacher, pieces, fitted.setting, amounts
    )
    assert trained.amount == min(amounts) and trained.scores == dict.fromkeys(sorted(amounts))
    assert (trained.student is None) == (0.0 in amounts)


def test_instant_job_returns_the_linear_model(tmp_path: Path) -> None:
    recipe = resolve("fast", "instant")
    done = {"validate": made_task(tmp_path / "task")}
    plan = train.plan(PlanInputs(None, recipe, (0,), (), (), None))
    for node in plan.nodes:
        inputs = {name: done[source] for name, source in node.inputs.items()}
        done[node.name] = run_stage(node.stage, inputs, node.params, tmp_path / node.name)
    assert [node.name for node in plan.nodes] == ["baseline", "refit_linear", "evaluate", "export"]
    report = json.loads((done["export"] / "report.json").read_text())
    assert report["returned"]["model"] == "linear"
    task, served = Task.read(done["validate"]), load_model(done["export"])
    probabilities = served.probabilities(task.texts("test"))
    predicted = probabilities.argmax(axis=1)
    score = f1_score(task.targets("test"), predicted, average="macro")
    assert report["mean"]["test"]["macro_f1"] == pytest.approx(score, abs=1e-4)
    card = (done["export"] / "README.md").read_text()
    assert f"model.onnx is the linear model: macro-F1 {score:.4f} on test." in card
    assert "| test, linear |" in card and "| model.onnx |" in card and "always the most frequent label" in card
    assert "| baseline | 0 |" in card
    wrong = (predicted != task.targets("test")).mean()
    last = report["risk_coverage"]["test"]["points"][-1]
    assert last["risk"] == pytest.approx(wrong)
    assert last["threshold"] == pytest.approx(probabilities.max(axis=1).min(), abs=1e-4)  # of the served model
    assert report["calibration"]["test"]["error"] > 0
    assert report["suspects"]["total"] >= len(report["suspects"]["rows"])


def test_passages_are_cut_into_equal_pieces() -> None:
    assert list(pieces_of(["a b c d e f", "g", "h i j"], 3)) == ["a b c", "d e f", "g", "h i j"]


def test_text_without_spaces_is_cut_between_characters() -> None:
    assert list(pieces_of(["我们 提出新的方法。", "ab c"], 3)) == ["我们 提", "出新的", "方法。", "ab c"]


def test_no_piece_begins_with_a_mark_of_the_letter_before() -> None:
    assert list(pieces_of(["ที่นี่ดีกว่า", "မြန်မာဘာသာ"], 2)) == ["ที่นี่", "ดีก", "ว่า", "မြန်", "မာဘာသာ"]


def task_and_passages(folder: Path, text: str, passage: str, count: int) -> tuple[Task, Path]:
    """Return a task of equal texts, and the folder of a selection of equal passages."""
    selection = made_selection(folder / "selection", count)
    table = pq.read_table(selection / "passages.parquet")
    place = table.column_names.index("text")
    pq.write_table(table.set_column(place, "text", pa.array([passage] * count)), selection / "passages.parquet")
    return Task.read(write_task(folder / "task", [text] * 4, [0, 1, 0, 1], ("a", "b"))), selection


def test_pieces_are_as_long_as_texts_without_spaces(tmp_path: Path) -> None:
    task, selection = task_and_passages(tmp_path, "我们提出方法", "机器翻译系统" * 4, 2)
    assert linear_stages._pieces(selection, task) == ["机器翻译系统"] * 8


@pytest.mark.parametrize(("limit", "numbers"), [(11, range(10)), (10, range(10)), (9, range(0, 10, 2))])
def test_pieces_beyond_the_limit_are_skipped_evenly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, numbers: range
) -> None:
    task, selection = task_and_passages(tmp_path, "a b c d e", "", 1)
    monkeypatch.setattr(linear_stages, "MOST_PIECES", limit)
    monkeypatch.setattr(linear_stages, "pieces_of", lambda *_: map(str, range(10)))
    assert linear_stages._pieces(selection, task) == list(map(str, numbers))


class Counted(str):
    """A text that counts how many of its kind exist at once."""

    alive = highest = 0

    def __init__(self, _: object) -> None:
        Counted.alive += 1
        Counted.highest = max(Counted.highest, Counted.alive)

    def __del__(self) -> None:
        Counted.alive -= 1


def test_pieces_beyond_the_limit_use_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, selection = task_and_passages(tmp_path, "a b c d e", "", 1)
    monkeypatch.setattr(linear_stages, "MOST_PIECES", 10)
    monkeypatch.setattr(linear_stages, "pieces_of", lambda *_: map(Counted, range(1000)))
    assert len(linear_stages._pieces(selection, task)) == 10
    assert Counted.highest < 20


def test_confident_pieces_are_chosen_by_the_shares_of_the_labels() -> None:
    teacher = np.log(np.array([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.3, 0.7], [0.2, 0.8]], np.float32))
    assert most_confident(teacher, np.array([0.5, 0.5]), 2).tolist() == [0, 4]
    assert most_confident(teacher, np.array([0.75, 0.25]), 4).tolist() == [0, 1, 2, 4]


def test_student_learns_words_that_only_passages_contain(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    words = {
        letters: ["".join(draw.choices(letters, k=4)) for _ in range(8)] for letters in ("abc", "def", "ghi", "jkl")
    }
    known, new = {"x": words["abc"], "y": words["def"]}, {"x": words["ghi"], "y": words["jkl"]}

    def texts(words: Mapping[str, list[str]], count: int) -> tuple[list[str], list[int]]:
        labels = [number % 2 for number in range(count)]
        return [" ".join(draw.choices(words["xy"[label]], k=6)) for label in labels], labels

    splits = {"train": texts(known, 20), "validation": texts(new, 40), "test": texts(new, 40)}
    tables = {
        name: pa.table({"row": range(len(rows)), "text": rows, "label": labels}, schema=task_schema(False))
        for name, (rows, labels) in splits.items()
    }
    task = Task("made", ("x", "y"), "macro_f1", False, "en", tables)
    pieces = [" ".join([*draw.choices(known[label], k=3), *draw.choices(new[label], k=3)]) for label in "xy" * 60]
    fitted = fit(task)
    teacher = log_softmax(fitted.model.outputs([(piece,) for piece in pieces]))
    baseline = fitted.model.outputs(rows_of(task, "validation"))
    trained = self_train(task, baseline, teacher, pieces, fitted.setting, (0.0, 3.0))
    student = trained.student
    assert student is not None and len(student.chosen) == len(student.outputs) == 60
    assert trained.amount == 3.0 and trained.scores[3.0] > trained.scores[0.0] + 0.2
    assert (student.model.outputs(rows_of(task, "test")).argmax(axis=1) == task.targets("test")).mean() > 0.9
    perfect = np.eye(2, dtype=np.float32)[task.targets("validation")]
    without = self_train(task, perfect, teacher, pieces, fitted.setting, (0.0, 3.0))
    assert without.amount == 0.0 and without.student is None and without.scores[0.0] == 1.0
    for least, separable in ((LEAST_GAIN, 0.9), (LEAST_GAIN_OF_OTHERS, 0.91)):
        monkeypatch.setattr(self_training, "separability", Mock(return_value=separable))
        for gain, amount in ((0.9 * least, 0.0), (1.1 * least, 3.0)):
            uncertain = Difference(value=gain, low=gain - 2, high=gain + 2, error=1.0)
            monkeypatch.setattr(self_training, "paired_difference", Mock(return_value=uncertain))
            chosen = self_train(task, baseline, teacher, pieces, fitted.setting, (0.0, 3.0))
            assert (chosen.amount, chosen.separability) == (amount, separable)


def test_pieces_unlike_the_train_texts_are_separable() -> None:
    draw = random.Random(0)
    own, other = (["".join(draw.choices(letters, k=4)) for _ in range(20)] for letters in ("abc", "def"))

    def texts(words: list[str]) -> list[str]:
        return [" ".join(draw.choices(words, k=8)) for _ in range(60)]

    rows = [(text,) for text in texts(own)]
    assert separability(rows, texts(own)) < 0.7
    assert separability(rows, texts(other)) > 0.99
    assert separability(rows[:1], texts(own)) == 1.0


def test_baseline_reports_the_models_that_it_has_fitted(tmp_path: Path) -> None:
    task, report = (
        write_task(tmp_path, [f"w{n % 7} x{n % 3}" for n in range(40)], [n % 2 for n in range(40)], ("a", "b")),
        LocalReporter(),
    )
    run_stage(BASELINE, {"task": task}, BaselineParams(), tmp_path / "run", report)
    assert report.steps and sorted(report.steps) == list(range(1, len(report.steps) + 1))
    assert set(report.totals) == {most_fits(40, 2)} and len(report.steps) <= most_fits(40, 2)
    stopping = LocalReporter(should_continue_at=lambda step: step < 3)
    with pytest.raises(StopRequested):
        run_stage(BASELINE, {"task": task}, BaselineParams(), tmp_path / "stopped", stopping)
    assert stopping.steps == [1, 2, 3]
