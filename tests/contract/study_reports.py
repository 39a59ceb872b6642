"""Reports of studies as their last stages write them, from random outputs instead of trained models."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.contract.filled_dashboard import LABELS, make_cost, make_encoders, make_report, tickets
from tlm_core.compression.shared_report import COMPARED, _average
from tlm_core.evaluation.combine import LINEAR
from tlm_core.evaluation.report import job_report
from tlm_core.studies.curve import BILSTM, _bilstm_report, _cost, _model

SEEDS, SIZES = (0, 1), (20, 40, 60)
_IN_CURVE = (BILSTM, "encoder", LINEAR)


def study_report(kind: str) -> dict[str, Any]:
    """Return the report of a study, without figures of model files."""
    return {"kind": kind, **{"learning_curve": _curve, "prune": _prune, "share_tickets": _share}[kind]()}


def _curve() -> dict[str, Any]:
    of_seeds = {seed: make_report(LABELS, (seed,), 0.7)[0] for seed in SEEDS}
    reports = {(model, rows, seed): of_seeds[seed] for model in _IN_CURVE for rows in SIZES for seed in SEEDS}
    return {
        **_bilstm_report([reports[BILSTM, SIZES[-1], seed] for seed in SEEDS]),
        "cost": _cost(reports),
        "sizes": list(SIZES),
        "dropped": [],
        "models": {model: _model(model, reports, SIZES, SEEDS) for model in _IN_CURVE},
    }


def _prune() -> dict[str, Any]:
    task, dense = tickets(LABELS), make_report(LABELS, SEEDS, 0.7)[0]
    encoders = make_encoders(task, SEEDS, 0.6, np.random.default_rng(2))
    report = job_report(task, encoders, {}, make_cost(len(SEEDS)))[0] | {"cut_texts": {}, "warnings": []}
    report["models"][LINEAR] = dense["models"][LINEAR]
    dense_encoder = {**dense["models"]["encoder"], "cost": dense["cost"]}
    return report | {"dense": dense_encoder, "linear": dense["linear"], "suspects": dense["suspects"]}


def _share() -> dict[str, Any]:
    report = make_report(LABELS, SEEDS, 0.7)[0]
    scores = {name: report[name] for name in ("seeds", "mean", "spread")}
    tasks = [
        {"name": name, "metric": "macro_f1", "tests": ["test"], **dict.fromkeys(COMPARED, scores)} for name in "ab"
    ]
    average = {system: _average(tasks, system) for system in COMPARED}
    return {
        "task": "a + b",
        "metric": "value",
        "tasks": tasks,
        "average": average,
        "cost": report["cost"],
        "mean": {"test": {"value": average["tickets"]["mean"]}},
        "spread": {"test": {"value": average["tickets"]["std"]}},
    }
