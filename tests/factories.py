"""Example values for tests. Every field can be overridden."""

from __future__ import annotations

from typing import Any

from tlm_core.artifacts import ManifestRef
from tlm_core.jobs.spec import JobSpec, Resolved
from tlm_core.training.recipe import resolve


def make_spec(**over: Any) -> JobSpec:
    return JobSpec(**{"dataset": "toy", "corpus": "docs", **over})


def make_resolved(**over: Any) -> Resolved:
    values: dict[str, Any] = {
        "dataset_id": "ds_1",
        "dataset": ManifestRef(folder="default/datasets/ds_1", digest="0" * 64),
        "corpus_name": "docs",
        "corpus_version": "v1",
        "recipe": resolve("fast", "tiny"),
    }
    return Resolved(**{**values, **over})
