"""Comparisons of jobs: differences and verdicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from services.api import compare
from services.api.compare import _predictions, _Tested, _verdict
from services.api.estimate import proposed
from tests.factories import make_resolved, make_spec
from tlm_core.evaluation.summary import BEHIND, PREDICTIONS, REPORT
from tlm_core.jobs.spec import JobRecord
from tlm_core.training.recipe import resolve


def job_of(number: int, scale: str = "tiny", **resolved: Any) -> JobRecord:
    recipe = resolve("fast", scale, {})
    job = proposed("default", make_spec(scale=scale), make_resolved(recipe=recipe, **resolved))
    return job.model_copy(update={"id": f"job_{number}"})


def _differences(jobs: list[JobRecord]) -> dict[str, tuple[object, ...]]:
    return compare._differences(jobs, {job.resolved.dataset.digest: "reviews@v1" for job in jobs})


def test_job_without_encoder_differs_in_its_request_alone() -> None:
    instant = job_of(2, "instant", corpus_name=None, corpus_version=None)
    rows = _differences([job_of(1, corpus_version="c36f7cc01234"), instant])
    assert rows == {"scale": ("tiny", "instant"), "corpus": ("docs (version c36f7cc0)", None)}
    three = _differences([job_of(1), instant, job_of(3, "small")])
    assert three["model.layers"] == (3, None, 6)


def test_name_of_a_dataset_is_no_difference() -> None:
    jobs = [job_of(number, dataset_options={"name": name}) for number, name in enumerate(("reviews", "copy"))]
    assert _differences(jobs) == {}


def test_models_with_equal_predictions_have_no_interval() -> None:
    targets = np.array([0, 1, 1, 0])
    sides = [
        _Tested(f"job_{n}", "macro_f1", ("rows", "bad", "good"), targets, [np.array([0, 1, 0, 0])]) for n in (1, 2)
    ]
    verdict = _verdict(*sides)
    assert (verdict.verdict, verdict.low) == (None, None)
    assert verdict.reason == "Both models predict the same on test."


def test_verdicts_omit_a_seed_that_ended_early(tmp_path: Path) -> None:
    seeds = [{"seed": 0}, {"seed": 1, BEHIND: {"encoder": 0.2, "linear": 0.8}}]
    (tmp_path / REPORT).write_text(json.dumps({"seeds": seeds}), encoding="utf-8")
    np.savez(tmp_path / PREDICTIONS, **{f"test.s{seed}": np.eye(2)[[seed, seed]] for seed in (0, 1)})
    assert [predicted.tolist() for predicted in _predictions(tmp_path, "macro_f1")] == [[0, 0]]
