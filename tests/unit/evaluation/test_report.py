"""The report of a job with several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tlm_core.evaluation.combine import COMBINED, LINEAR, Outputs, temperature
from tlm_core.evaluation.report import HELD_OUT, EncoderResult, LinearResult, gain, job_report
from tlm_core.evaluation.summary import learned_again, refit_in_words, sentences
from tlm_core.tasks.task import Task, task_schema

BEHIND = {"encoder": 0.2, "linear": 0.8}
COST = {"flops": 0.0, "tokens": 0.0, "seconds": 1.0, "gpu_seconds": 0.0}
ROWS = 120


def make_task() -> Task:
    labels = np.arange(ROWS) % 3
    tables = {
        split: pa.table([range(1, ROWS + 1), [f"{split} {n}" for n in range(ROWS)], labels], task_schema(False))
        for split in ("train", "validation", "test")
    }
    return Task("t", ("a", "b", "c"), "macro_f1", False, "en", tables)


def outputs(task: Task, noise: float, seed: int) -> dict[str, Outputs]:
    """Return logits of each split that point to the label, with normal noise."""
    random = np.random.default_rng(seed)
    return {
        split: (np.eye(3)[task.targets(split)] + random.normal(0, noise, (ROWS, 3))).astype(np.float32)
        for split in task.splits
    }


def reported(
    *behind: dict[str, float] | None, refit: Sequence[bool | None] = (), ensemble: bool = True, noise: float = 3.0
) -> dict[str, Any]:
    """Return the report of a job. behind, refit: of the encoder of each seed, from 0 on. noise: of the linear model."""
    task = make_task()
    encoders = [
        EncoderResult(seed, outputs(task, 20.0 if late else 0.5, seed), {}, {}, behind=late, refit=again)
        for seed, (late, again) in enumerate(zip_longest(behind, refit))
    ]
    of_linear = outputs(task, noise, 9)
    linear = LinearResult(of_linear | {HELD_OUT: of_linear["train"]}, {"cost": COST})
    return job_report(task, encoders, {LINEAR: linear}, {"prepare": COST, "baseline": COST}, ensemble=ensemble)[0]


def test_ensemble_omits_an_encoder_that_is_behind_the_linear_model() -> None:
    report = reported(None, BEHIND)
    assert report["returned"]["model"] != LINEAR and report["returned"]["seeds"] == [0]
    good, bad = (entry["test"]["macro_f1"] for entry in report["seeds"])
    assert report["models"]["ensemble"]["mean"]["test"]["macro_f1"] == good > bad
    first, ended, *_ = sentences(report)
    assert first.startswith("model.onnx is the encoder of seed 0: ")
    assert ended.startswith("Training of seed 1 ended at half the joint budget")


@pytest.mark.parametrize("late", [None, BEHIND])
def test_ensemble_has_all_encoders_if_none_or_each_is_behind(late: dict[str, float] | None) -> None:
    report = reported(late, late)
    assert report["returned"]["seeds"] == ([] if late else [0, 1])
    assert (report["returned"]["model"] == LINEAR) == (late is not None)
    ended = [text for text in sentences(report) if "ended at half the joint budget" in text]
    assert [text[:19] for text in ended] == (["Training of seed 0 ", "Training of seed 1 "] if late else [])


def test_each_seed_that_ended_early_has_a_sentence_with_its_scores() -> None:
    other = {"encoder": 0.3, "linear": 0.7}
    ended = [text for text in sentences(reported(None, BEHIND, other)) if "ended at half" in text]
    assert [("seed 1" in text, "0.200" in text, "0.800" in text) for text in ended] == [(True,) * 3, (False,) * 3]
    assert [("seed 2" in text, "0.300" in text, "0.700" in text) for text in ended] == [(False,) * 3, (True,) * 3]
    assert any(text.startswith("Training ended at half the joint budget") for text in sentences(reported(BEHIND)))


def test_without_ensemble_seeds_that_ended_early_count_nowhere() -> None:
    report, alone = (reported(*behind, None, ensemble=False, noise=1.0) for behind in ((BEHIND,), ()))
    assert report["best_seed"] == 1 and len(report["seeds"]) == 2 and report["returned"]["seeds"] == [1]
    good = report["seeds"][1]
    assert report["returned"]["model"] == alone["returned"]["model"] != LINEAR
    for model in ("encoder", "combined"):
        assert report["models"][model]["mean"]["test"]["macro_f1"] == good["models"][model]["test"]["macro_f1"]
    assert report["mean"]["test"]["macro_f1"] == report["returned"]["scores"]["test"]["macro_f1"]


def test_gain_without_ensemble_is_that_of_the_returned_file() -> None:
    report = reported(None, None, None, ensemble=False)
    file, linear = (
        report["returned"]["scores"]["test"]["macro_f1"],
        report["models"][LINEAR]["mean"]["test"]["macro_f1"],
    )
    assert report["returned"]["model"] != LINEAR and file != report["mean"]["test"]["macro_f1"]
    assert report["gain"]["value"] == pytest.approx(file - linear)


@pytest.mark.parametrize("ensemble", [True, False])
def test_linear_model_of_several_seeds_has_no_spread_and_no_seeds(ensemble: bool) -> None:
    report = reported(None, None, ensemble=ensemble, noise=0.1)
    assert (report["returned"]["model"], report["returned"]["seeds"]) == (LINEAR, [])
    assert report["models"][LINEAR]["spread"]["test"]["macro_f1"] is None is report["spread"]["test"]["macro_f1"]
    assert report["spread"]["reason"] == "the returned model is one model of all seeds"
    assert report["models"]["encoder"]["spread"]["test"]["macro_f1"] > 0


@pytest.mark.parametrize(("noise", "advice"), [(3.0, "; give more seeds"), (0.1, "")])
def test_only_a_returned_encoder_advises_more_seeds(noise: float, advice: str) -> None:
    report = reported(None, ensemble=False, noise=noise)
    assert report["spread"]["reason"] == f"one run has no spread{advice}"
    assert report["models"][LINEAR]["spread"]["reason"] == "one run has no spread"


@pytest.mark.parametrize(("late", "against"), [(None, LINEAR), (BEHIND, COMBINED)])
def test_gain_compares_a_returned_linear_model_with_the_best_other_one(
    late: dict[str, float] | None, against: str
) -> None:
    report = reported(late, late)
    first, second = (
        report["models"][name]["mean"]["test"]["macro_f1"] for name in (report["returned"]["model"], against)
    )
    assert report["gain"]["against"] == against
    assert report["gain"]["value"] == pytest.approx(first - second)
    says = (
        "The job returns the linear model. Training ended early, behind the linear model. On test the linear model is "
    )
    assert report["gain"]["words"].startswith(says if late else "On test the returned model is better than the linear")


def test_model_folder_has_the_best_encoder_beside_a_returned_linear_model() -> None:
    task = make_task()
    encoders = [EncoderResult(seed, outputs(task, noise, seed), {}, {}) for seed, noise in enumerate((20.0, 3.0, 9.0))]
    of_linear = outputs(task, 0.1, 9)
    linear = LinearResult(of_linear | {HELD_OUT: of_linear["train"]}, {"cost": COST})
    report = job_report(task, encoders, {LINEAR: linear}, {"baseline": COST})[0]
    assert (report["returned"]["model"], report["best_seed"]) == (LINEAR, 1)
    best = report["seeds"][1]["models"]["encoder"]["test"]["macro_f1"]
    assert report["models"]["stock"]["mean"]["test"]["macro_f1"] == best
    logits, targets = encoders[1].outputs["validation"], task.targets("validation")
    assert report["seeds"][1]["scales"]["encoder_temperature"] == temperature(task.type, logits, targets) != 1


def test_study_returns_its_encoder_beside_a_linear_model() -> None:
    task = make_task()
    report = job_report(task, [EncoderResult(0, outputs(task, 0.5, 0), {}, {})], {}, {"prepare": COST})[0]
    assert sentences(report)[1] == "A study returns its encoder, even if the linear model is better."


def test_each_seed_of_an_ensemble_has_its_encoder_and_combination() -> None:
    report = reported(None, None)
    for entry in report["seeds"]:
        assert entry["models"]["encoder"]["test"]["value"] == entry["test"]["value"]
        assert entry["models"]["combined"]["test"]["value"] > 0


@pytest.mark.parametrize(
    ("behind", "refit", "words"),
    [
        (
            (BEHIND, None, None), (False, False, True),
            "After all choices, the refit trained these models again, on train and validation: "
            "the linear model, the encoder of seed 2. It copied the encoder of seed 0, because training ended early. "
            "It copied the encoder of seed 1, because finetuning brought no gain on validation.",
        ),
        (
            (None, None), (False, False),
            "After all choices, the refit trained these models again, on train and validation: the linear model. "
            "It copied the encoders of seeds 0, 1, because finetuning brought no gain on validation.",
        ),
        ((None, None), (None, None), ""),
    ],
)  # fmt: skip
def test_words_name_each_model_that_the_refit_copied(
    behind: Sequence[dict[str, float] | None], refit: Sequence[bool | None], words: str
) -> None:
    assert refit_in_words(reported(*behind, refit=refit)) == words


@pytest.mark.parametrize(
    ("model", "refit", "again"),
    [("ensemble", (False, False), False), ("ensemble", (False, True), True), ("combined", (False, False), True)],
)
def test_returned_model_learned_again_if_a_part_did(model: str, refit: Sequence[bool], again: bool) -> None:
    report = reported(None, None, refit=refit)
    report["returned"]["model"] = model
    assert learned_again(report) == again


def test_gain_states_the_cost_of_the_job_and_of_the_returned_model() -> None:
    words = reported(BEHIND, BEHIND)["gain"]["words"]  # returns the linear model
    assert words.endswith("The whole job took 2 seconds of training. The returned model alone took 1 second.")
    assert reported(None, None)["gain"]["words"].endswith("The whole job took 2 seconds of training.")


def test_equal_predictions_are_stated_instead_of_a_verdict() -> None:
    task = make_task()
    of_linear = outputs(task, 3.0, 9)
    linear = LinearResult(of_linear | {HELD_OUT: of_linear["train"]}, {"cost": COST})
    report = job_report(task, [EncoderResult(0, of_linear, {}, {})], {LINEAR: linear}, {"baseline": COST})[0]
    words = gain(task, report, ("the encoder", "the linear model"), [of_linear["test"]], [of_linear["test"] * 2])[
        "words"
    ]
    assert words.startswith("On test the encoder makes the same predictions as the linear model. The whole job took ")
