"""The report of a job with several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tlm_core.evaluation.combine import COMBINED, LINEAR, Outputs
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


def reported(*behind: dict[str, float] | None, refit: Sequence[bool | None] = ()) -> dict[str, Any]:
    """Return the report of an ensemble. behind, refit: of the encoder of each seed, from 0 on."""
    task = make_task()
    encoders = [
        EncoderResult(seed, outputs(task, 20.0 if late else 0.5, seed), {}, {}, behind=late, refit=again)
        for seed, (late, again) in enumerate(zip_longest(behind, refit))
    ]
    of_linear = outputs(task, 3.0, 9)
    linear = LinearResult(of_linear | {HELD_OUT: of_linear["train"]}, {"cost": COST})
    return job_report(task, encoders, {LINEAR: linear}, {"prepare": COST, "baseline": COST}, ensemble=True)[0]


def test_ensemble_omits_an_encoder_that_is_behind_the_linear_model() -> None:
    report = reported(None, BEHIND)
    assert report["returned"]["model"] != LINEAR and report["returned"]["seeds"] == [0]
    good, bad = (entry["test"]["macro_f1"] for entry in report["seeds"])
    assert report["models"]["ensemble"]["mean"]["test"]["macro_f1"] == good > bad
    first, ended, *_ = sentences(report)
    assert first.startswith("model.onnx is the encoder of seed 0 ")
    assert ended.startswith("Training of seed 1 ended at half the joint budget")


@pytest.mark.parametrize("late", [None, BEHIND])
def test_ensemble_has_all_encoders_if_none_or_each_is_behind(late: dict[str, float] | None) -> None:
    report = reported(late, late)
    assert report["returned"]["seeds"] == [0, 1]
    assert (report["returned"]["model"] == LINEAR) == (late is not None)
    ended = [text for text in sentences(report) if text.startswith("Training ended at half the joint budget")]
    assert len(ended) == (late is not None)


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
