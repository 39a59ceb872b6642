"""A learning curve from its plan to its report, on a generated task."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.unit.studies.local_plan import check_resume, make_job, read_report, run_plan
from tests.unit.training.made import LABELS, made_task, tiny
from tlm_core.errors import InvalidRecipe
from tlm_core.jobs.plan import plan_of
from tlm_core.kinds.learning_curve import BILSTM, LearningCurveOptions, bilstm_params
from tlm_core.linear.fit import fit as fit_linear
from tlm_core.linear.model import LinearModel, rows_of
from tlm_core.serving import METADATA, load_model
from tlm_core.studies.bilstm import load_bilstm
from tlm_core.studies.curve import words
from tlm_core.studies.fit import compare
from tlm_core.tasks.metrics import score
from tlm_core.tasks.task import Task
from tlm_core.training.local import run_stage

RECIPE = tiny(joint__budget__steps=6, finetune__epochs=3, finetune__evaluations=2, precision="fp32")
LSTM = {"layers": 1, "hidden": 16, "embedding": 16, "dropout": 0.0, "lr": 0.01}
OPTIONS = {"sizes": [2, 24, 60, 150], "models": ["bilstm", "bilstm_tlm", "encoder", "tlm"], "lstm": LSTM}
JOB = make_job(RECIPE, kind="learning_curve", seeds=(0, 1), options=OPTIONS)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("curve")
    return run_plan(JOB, made_task(folder / "task", (150, 40, 60)), folder / "run")


@pytest.fixture
def report(done: Mapping[str, Path]) -> dict[str, Any]:
    return read_report(done["curve"])


def test_size_that_loses_a_class_is_dropped_with_reason(report: dict[str, Any]) -> None:
    assert report["sizes"] == [24, 60, 150]
    (dropped,) = report["dropped"]
    assert dropped["rows"] == 2 and "none with the label" in dropped["dropped"]
    assert "The size of 2 labels was dropped" in report["words"]


def test_points_have_mean_and_spread_over_seeds(report: dict[str, Any]) -> None:
    assert list(report["models"]) == [*OPTIONS["models"], "linear"]
    for model, entry in report["models"].items():
        points = entry["points"]
        assert [point["labels"] for point in points] == [24, 60, 150]
        for point in points:
            values = [run["accuracy"] for run in point["runs"]]
            assert point["mean"]["test"]["accuracy"] == pytest.approx(np.mean(values))
            assert point["spread"]["test"]["accuracy"] == pytest.approx(np.std(values, ddof=1))
            assert (point["cost"]["flops"] > 0) == (model != "linear") and point["cost"]["seconds"] > 0
    lstm = report["models"]["bilstm"]["points"]
    assert lstm[-1]["mean"]["test"]["accuracy"] > report["majority"]["test"]["accuracy"] + 0.1


def test_costs_count_shared_stages_once(done: Mapping[str, Path], report: dict[str, Any]) -> None:
    def cost(node: str, size: int, seed: int) -> float:
        file = "data.json" if node.startswith("prepare.") else "history.json"
        return float(json.loads((done[f"{node}.n{size}.s{seed}"] / file).read_text())["cost"]["tokens"])

    stages_before = {"bilstm": [], "encoder": [], "tlm": ["joint"], "bilstm_tlm": ["joint"]}
    for model, before in stages_before.items():
        family = "tlm" if before else "own"
        nodes = [f"prepare.{family}", *before, f"finetune.{model}"]
        for point in report["models"][model]["points"]:
            expected = sum(cost(node, point["labels"], seed) for node in nodes for seed in (0, 1))
            assert point["cost"]["tokens"] == pytest.approx(expected), model
    stages = {"prepare": ["own", "tlm"], "joint": [""], "finetune": list(stages_before)}
    for stage, owners in stages.items():
        names = [f"{stage}.{owner}" if owner else stage for owner in owners]
        expected = sum(cost(name, size, seed) for name in names for size in (24, 60, 150) for seed in (0, 1))
        assert report["cost"][stage]["tokens"] == pytest.approx(expected), stage


def test_report_states_the_gain_of_the_bilstm_over_the_linear_model(report: dict[str, Any]) -> None:
    bilstm, linear = (report["models"][name]["points"][-1]["mean"]["test"]["macro_f1"] for name in ("bilstm", "linear"))
    assert report["gain"]["value"] == pytest.approx(bilstm - linear)
    assert report["gain"]["low"] <= report["gain"]["value"] <= report["gain"]["high"]
    assert report["words"].endswith(report["gain"]["words"]) and "the BiLSTM is" in report["gain"]["words"]
    assert report["gain"]["seconds"] == report["cost"]["total"]["seconds"] and "on the clock" not in report["words"]


def test_linear_model_is_fitted_on_the_subset_of_each_seed(done: Mapping[str, Path], report: dict[str, Any]) -> None:
    task = Task.read(done["validate"])
    for seed in (0, 1):
        subset = Task.read(done[f"subset.n24.s{seed}"])
        model = LinearModel.read(done[f"baseline.n24.s{seed}"])
        assert model.features.alphabet == fit_linear(subset).model.features.alphabet
        accuracy = (model.outputs(rows_of(task, "test")).argmax(axis=1) == task.label_ids("test")).mean()
        assert report["models"]["linear"]["points"][0]["runs"][seed]["accuracy"] == pytest.approx(accuracy)
    fitted = [json.loads((done[f"baseline.n24.s{seed}"] / "baseline.json").read_text()) for seed in (0, 1)]
    point, seconds = report["models"]["linear"]["points"][0], [facts["cost"]["seconds"] for facts in fitted]
    assert point["cost"]["seconds"] == pytest.approx(sum(seconds))


def test_each_model_is_compared_with_the_linear_model(report: dict[str, Any]) -> None:
    assert list(report["passes_linear"]) == OPTIONS["models"]
    linear = [point["mean"]["test"]["accuracy"] for point in report["models"]["linear"]["points"]]
    for model, entry in report["passes_linear"].items():
        own = [point["mean"]["test"]["accuracy"] for point in report["models"][model]["points"]]
        behind = [place for place in range(3) if own[place] <= linear[place]]
        first = behind[-1] + 1 if behind else 0
        assert entry["measured"] == ([24, 60, 150, None][first])
        assert entry["margin"] == 0 and (entry["labels"] is None) == ("reason" in entry)
        assert f"'{model}' is " in report["words"]
    assert "linear" not in report["against"], "a crossing with the linear model is in passes_linear"


def test_report_contains_laws_crossings_and_speeds(report: dict[str, Any]) -> None:
    assert set(report["against"]) == {"encoder", "tlm"}
    for model, against in report["against"].items():
        assert against["speed_up"] > 0 and against["speed_up_int8"] > 0
        assert f"'{model}'" in report["words"]
        assert (against["labels"] is None) == ("reason" in against)
    for entry in report["models"].values():
        assert entry["law"]["a"] >= 0 and entry["inference"]["bytes"] > 0


def test_bilstm_with_tlm_embeddings_has_its_own_crossings(report: dict[str, Any]) -> None:
    models = report["models"]
    assert [name for name, entry in models.items() if "against" in entry] == ["bilstm_tlm"]
    points = {name: [(p["labels"], [1 - run["accuracy"] for run in p["runs"]]) for p in entry["points"]]
              for name, entry in models.items()}  # fmt: skip
    for model, against in models["bilstm_tlm"]["against"].items():
        expected = compare(points["bilstm_tlm"], points[model], margin=0.01)
        assert {name: against[name] for name in expected} == expected
        seconds = [models[name]["inference"]["seconds_per_text"] for name in (model, "bilstm_tlm")]
        assert against["speed_up"] == pytest.approx(seconds[0] / seconds[1])
        assert "speed_up_int8" not in against, "only the exported BiLSTM has 8-bit weights"
    assert set(models["bilstm_tlm"]["against"]) == set(report["against"]) == {"encoder", "tlm"}
    assert "('bilstm_tlm') the BiLSTM has" in report["words"]


def test_bilstm_tlm_starts_from_embeddings_of_joint_stage(done: Mapping[str, Path], tmp_path: Path) -> None:
    inputs = {"prepared": done["prepare.tlm.n24.s0"], "joint": done["joint.n24.s0"]}
    params = bilstm_params(RECIPE, LearningCurveOptions(lstm=LSTM | {"lr": 1e-12}), 0)
    folder = run_stage(BILSTM, inputs, params, tmp_path / "bilstm")
    learned = load_file(done["joint.n24.s0"] / "model.safetensors")["encoder.tokens.weight"]
    torch.testing.assert_close(load_file(folder / "model.safetensors")["encoder.tokens.weight"], learned)


PASSED = {"measured": 1000, "labels": 820.0, "interval": [600.0, 1100.0]}


def report_of(
    own: list[float], other: list[float], crossing: dict[str, Any], passed: dict[str, Any] = PASSED
) -> dict[str, Any]:
    """Return the part of a report that `words` reads: accuracies of a BiLSTM and an encoder, and their crossing.

    passed: the encoder's entry of `passes_linear`.
    """
    models = {
        name: {
            "points": [
                {"labels": n, "mean": {"test": {"accuracy": mean}}} for n, mean in zip((100, 1000), means, strict=True)
            ]
        }
        for name, means in (("bilstm", own), ("tlm", other), ("linear", [0.61, 0.74]))
    }
    models["bilstm"]["int8"] = {"agreement": 0.98}
    against = {"tlm": {"margin": 0.01, "speed_up": 4.0, "speed_up_int8": 8.0, **crossing}}
    dropped = [{"rows": 5, "dropped": "5 texts include none with the label 'red'"}]
    common = {"metric": "accuracy", "models": models, "dropped": dropped}
    return {**common, "against": against, "passes_linear": {"tlm": passed}}


def test_words_describe_crossing_interval_and_speed() -> None:
    crossing = {"labels": 123_456.0, "interval": [98_000.0, None], "note": "an extrapolation"}
    text = words(report_of([0.5, 0.7], [0.6, 0.75], crossing))
    for part in (
        "With 1,000 labels the BiLSTM has 0.7000 in accuracy on test",
        "5.0% below that of 'tlm'",
        "within 1.0% of 'tlm' from about 120,000 labels",
        "4.0 times as fast",
        "is 98,000 to beyond the searched range",
        "The crossing point is an extrapolation.",
        "98.0% of validation texts",
        "The size of 5 labels was dropped: 5 texts include none with the label 'red'.",
        "The linear model has 0.7400. 'tlm' is more accurate than the linear model from the measured size 1,000 on; "
        "by the fitted power laws from about 820 labels (90% interval 600 to 1,100).",
    ):
        assert part in text, text


def test_words_give_reason_without_crossing() -> None:
    reason = {"labels": None, "interval": None, "reason": "they never meet", "speed_up": 0.8, "speed_up_int8": 1.4}
    text = words(report_of([0.5, 0.8], [0.6, 0.75], reason))
    assert "5.0% above that of 'tlm'" in text and "The crossing point is unknown (they never meet)" in text
    assert "It takes 1.2 times as long on one core; with 8-bit weights it runs 1.4 times as fast." in text


def test_words_name_no_better_model_if_accuracies_are_equal() -> None:
    never = {"labels": None, "interval": None, "reason": "they never meet", "speed_up": 2.0, "speed_up_int8": 2.0}
    assert "Its accuracy is within 0.1% of that of 'tlm'." in words(report_of([0.5, 0.75], [0.6, 0.75], never))


def test_words_say_that_a_model_does_not_pass_the_linear_model() -> None:
    crossing = {"labels": 200.0, "interval": None}
    beyond = {"measured": None, "labels": 19_100.0, "interval": None, "note": "an extrapolation"}
    start = "At the largest size 'tlm' is not more accurate than the linear model; "
    text = words(report_of([0.5, 0.7], [0.6, 0.73], crossing, beyond))
    assert f"{start}by the fitted power laws from about 19,000 labels. The crossing point is an extrapolation." in text
    never = {"measured": None, "labels": None, "interval": None, "reason": "they never meet"}
    text = words(report_of([0.5, 0.7], [0.6, 0.73], crossing, never))
    assert f"{start}the fitted crossing point is unknown (they never meet)." in text


def test_interrupted_bilstm_equals_uninterrupted_one(
    done: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_resume(plan_of(JOB).node("finetune.bilstm.n150.s1"), done, tmp_path, monkeypatch)


def test_table_and_plot_contain_the_points_of_the_report(done: Mapping[str, Path], report: dict[str, Any]) -> None:
    with open(done["curve"] / "curves.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * 3 * 2
    assert {row["model"] for row in rows} == set(report["models"])
    assert float(rows[0]["accuracy"]) == report["models"]["bilstm"]["points"][0]["runs"][0]["accuracy"]
    root = ElementTree.parse(done["curve"] / "plot.svg").getroot()
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 5 * 3


def test_exported_bilstm_has_reported_scores_in_the_gateway(done: Mapping[str, Path], report: dict[str, Any]) -> None:
    model, task = load_model(done["curve"]), Task.read(done["validate"])
    assert (model.labels, model.type.name, model.name) == (LABELS, task.type.name, "encoder")
    facts = json.loads((done["curve"] / METADATA).read_text())
    assert facts["task_type"] == task.type.name
    predicted = model.probabilities(task.texts("test")).argmax(axis=1)
    place = [0, 1].index(report["best_seed"])
    scores = score(task.label_ids("test"), predicted, 3, "macro_f1")
    expected = report["models"]["bilstm"]["points"][-1]["runs"][place]
    assert scores["macro_f1"] == pytest.approx(expected["macro_f1"], abs=1e-6)


def test_report_has_the_common_fields(report: dict[str, Any]) -> None:
    assert report["kind"] == "learning_curve"
    assert [entry["seed"] for entry in report["seeds"]] == [0, 1]
    assert {"task", "metric", "labels", "mean", "spread", "majority", "best_seed", "cost"} <= set(report)


def test_seeds_share_the_linear_model_of_the_full_train_split(tmp_path: Path) -> None:
    recipe = tiny(finetune__epochs=1, finetune__evaluations=1, precision="fp32", model__init="counts")
    options = {"sizes": [20, 40, 1], "models": ["bilstm"], "lstm": LSTM}
    job = make_job(recipe, kind="learning_curve", seeds=(3, 4), options=options)
    done = run_plan(job, made_task(tmp_path / "task", (60, 20, 30)), tmp_path / "run")
    report = read_report(done["curve"])
    assert "baseline.n1.s3" in done and "baseline.n1.s4" not in done
    point, facts = report["models"]["linear"]["points"][-1], (done["baseline.n1.s3"] / "baseline.json").read_text()
    assert point["runs"][0] == point["runs"][1] and point["spread"]["test"]["accuracy"] == 0
    assert point["cost"]["seconds"] == json.loads(facts)["cost"]["seconds"], "the fit counts once"
    assert load_bilstm(done["finetune.bilstm.n1.s3"]).shape.embedding == recipe.model.hidden != LSTM["embedding"]


def test_curve_supports_other_metrics_and_several_rates(tmp_path: Path) -> None:
    task = replace(Task.read(made_task(tmp_path / "original", (80, 30, 30))), metric="matthews")
    task.write(tmp_path / "task")
    recipe, rates = tiny(finetune__epochs=1, finetune__rates=(1e-3, 1e-4), precision="fp32"), {1e-3, 1e-4}
    options = {"sizes": [2, 40, 80], "models": ["bilstm", "encoder"], "lstm": LSTM}
    job = make_job(recipe, kind="learning_curve", seeds=(0,), options=options)
    done = run_plan(job, tmp_path / "task", tmp_path / "run")
    report = read_report(done["curve"])
    assert (report["metric"], report["sizes"]) == ("matthews", [40, 80])
    lstm, encoder = (report["models"][model]["points"] for model in ("bilstm", "encoder"))
    assert f"{lstm[-1]['mean']['test']['matthews']:.4f} in matthews" in report["words"]
    with open(done["curve"] / "curves.csv", newline="") as file:
        assert {"accuracy", "matthews"} < set(next(csv.DictReader(file)))
    for point in encoder:
        (run,) = point["runs"]
        tries = [done[f"finetune.encoder.n{point['labels']}.s0.lr{rate:g}"] for rate in rates]
        histories = [json.loads((folder / "history.json").read_text()) for folder in tries]
        prepared = json.loads((done[f"prepare.own.n{point['labels']}.s0"] / "data.json").read_text())
        expected = sum(entry["cost"]["tokens"] for entry in [*histories, prepared])
        assert run["lr"] in rates and point["cost"]["tokens"] == pytest.approx(expected)
    assert all("lr" not in run for point in lstm for run in point["runs"]), "a BiLSTM has a single rate"


def test_unsupported_pretrained_model_is_rejected_before_training(tmp_path: Path) -> None:
    (tmp_path / "distilled").mkdir()
    config = {"model_type": "distilbert", "vocab_size": 100, "n_layers": 2, "n_heads": 2, "dim": 32}
    (tmp_path / "distilled" / "config.json").write_text(json.dumps(config))
    options = {**OPTIONS, "models": ["bilstm", "tlm", "pretrained"], "pretrained": str(tmp_path / "distilled")}
    job = make_job(RECIPE, kind="learning_curve", seeds=(0, 1), options=options)
    with pytest.raises(InvalidRecipe, match="is a 'distilbert' model"):
        run_plan(job, made_task(tmp_path / "task", (150, 40, 60)), tmp_path / "run")
    stages = {path.name.partition(".")[0] for path in (tmp_path / "run").iterdir()}
    assert not stages & {"joint", "finetune", "prepare"}
