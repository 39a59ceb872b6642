"""The rows and sentences about a report."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.client.gateway import report
from tlm_core.evaluation.summary import (
    BEHIND,
    averaged_seeds,
    model_rows,
    model_title,
    returned_seconds,
    sentences,
    training_time,
)


def returning(model: str, **over: Any) -> dict[str, Any]:
    changed = report()
    return changed | {"returned": {**changed["returned"], "model": model}} | over


def test_rows_name_each_model_and_mark_the_returned_file() -> None:
    rows = model_rows(returning("encoder"))
    assert [(row.name, row.file) for row in rows] == [
        ("majority", ""), ("linear", ""), ("encoder", "model.onnx and model/, seed 3"), ("combined", ""),
    ]  # fmt: skip
    assert [row.mean["macro_f1"] for row in rows] == [0.1, 0.4, 0.45, 0.5]
    # The linear model is the same for each seed.
    assert next(row.file for row in model_rows(returning("linear")) if row.file) == "model.onnx"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("linear", "the linear model"),
        ("encoder", "the encoder of seed 3"),
        ("combined", "the encoder of seed 3 combined with the linear model"),
    ],
)
def test_first_sentence_gives_the_score_of_the_returned_file(model: str, words: str) -> None:
    first, reason, gain = sentences(returning(model))
    assert first == f"model.onnx is {words}: macro-F1 0.5000 on test."
    assert reason == "It has the lowest loss on validation (0.7000)." and "better than the linear model" in gain


def test_combination_names_the_linear_model_that_it_uses() -> None:
    changed = returning("combined")
    changed["models"] = {"linear": {}, "self_trained": {}, **changed["models"]}
    assert "the encoder of seed 3 combined with the self-trained linear model:" in sentences(changed)[0]


def test_title_of_a_model_is_no_identifier() -> None:
    assert [model_title(name) for name in ("linear", "self_trained")] == ["linear", "self-trained"]


def test_reason_that_the_gain_repeats_is_stated_once() -> None:
    gain = {"words": "The job returns the linear model. It has the lowest loss on validation (0.7000)."}
    assert sentences(returning("linear", gain=gain))[1:] == [gain["words"]]


def test_time_of_several_seeds_is_also_given_on_the_clock() -> None:
    entries = [{"cost": {"joint": {"seconds": s}, "finetune": {"seconds": 60.0}}} for s in (120.0, 180.0, 120.0)]
    shared = {"cost": {"total": {"seconds": 30.0 + 600.0}}}
    assert training_time(shared | {"seeds": entries[:1]}) == "10.5 minutes of training"
    assert training_time(shared | {"seeds": entries}) == (
        "10.5 minutes of training, 4.5 minutes on the clock if the 3 seeds train side by side"
    )
    assert training_time({"cost": {}}) == "training time unknown"


def test_time_of_a_study_is_only_the_sum_over_its_models() -> None:
    seeds = [{"cost": {"finetune": {"seconds": 60.0}}}] * 2  # of one model of the study
    study = {"kind": "learning_curve", "cost": {"total": {"seconds": 400.0}}, "seeds": seeds}
    assert training_time(study) == "6.7 minutes of training"


def test_missing_test_score_is_no_number() -> None:
    returned = {"model": "encoder", "seeds": [3], "reason": "", "scores": {"test": {"macro_f1": None}}}
    assert sentences(report() | {"returned": returned})[0] == "model.onnx is the encoder of seed 3: no test score."


def test_ensemble_names_all_its_seeds() -> None:
    changed = returning("combined")
    changed["returned"]["seeds"] = [0, 1, 4]
    words = "the mean of the encoders of seeds 0, 1, 4 combined with the linear model"
    assert sentences(changed)[0] == f"model.onnx is {words}: macro-F1 0.5000 on test."
    assert "model.onnx, seeds 0, 1, 4" in [row.file for row in model_rows(changed)]


def test_encoder_in_the_stock_folder_has_a_row_of_its_own() -> None:
    changed = returning("combined")
    changed["seeds"] = [{"seed": 1}, {"seed": 3}]
    changed["models"]["stock"] = changed["models"]["encoder"]
    files = {row.name: row.file for row in model_rows(changed)}
    assert (files["encoder"], files["stock"]) == ("", "model/, seed 3")
    assert {row.name: row.file for row in model_rows(returning("combined"))}["encoder"] == "model/, seed 3"


def test_seeds_that_ended_early_are_not_averaged_unless_all_did() -> None:
    ended = {"seed": 1, BEHIND: {"encoder": 0.2, "linear": 0.8}}
    assert averaged_seeds([{"seed": 0}, ended, {"seed": 2}]) == [0, 2]
    assert averaged_seeds([ended]) == [1]


def test_report_of_a_study_has_one_model_and_no_sentence() -> None:
    study = {name: value for name, value in report().items() if name not in ("returned", "models", "gain")}
    assert [row.name for row in model_rows(study)] == ["majority", "model"]
    assert sentences(study) == []


def costing(model: str) -> dict[str, Any]:
    shared = {
        name: {"seconds": seconds} for name, seconds in (("baseline", 3.0), ("self_train", 5.0), ("prepare", 7.0))
    }
    seeds = [{"seed": seed, "cost": {"joint": {"seconds": 100.0}}} for seed in (1, 3)]
    return returning(model, seeds=seeds, cost={**shared, "joint": {"seconds": 200.0}, "total": {"seconds": 215.0}})


@pytest.mark.parametrize(("model", "seconds"), [("linear", 3.0), ("self_trained", 8.0), ("encoder", 115.0)])
def test_cost_of_the_returned_model_omits_other_models(model: str, seconds: float) -> None:
    assert returned_seconds(costing(model)) == seconds


@pytest.mark.parametrize(("rows", "warned"), [(1, "1 row"), (29, "29 rows"), (30, None)])
def test_score_on_few_test_rows_has_a_warning(rows: int, warned: str | None) -> None:
    changed = returning("encoder")
    changed["seeds"] = [{"seed": 3, "test": {"rows": rows}}]
    warning = f"Test has only {warned}, so its scores are imprecise."
    expected = "model.onnx is the encoder of seed 3: macro-F1 0.5000 on test." + (f" {warning}" if warned else "")
    assert sentences(changed)[0] == expected
    study = {name: value for name, value in changed.items() if name != "returned"}
    assert sentences(study) == ([warning] if warned else [])
