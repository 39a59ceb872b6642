"""A study's plan in one process: kept part by part, gone on with where it stopped, refused before it begins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.quality.plans import META, free, run
from tests.unit.training.made import made_task, tiny
from tlm_core.errors import InvalidRequest
from tlm_core.jobs.spec import JobSpec
from tlm_core.kinds.prune import PruneOptions
from tlm_core.training.recipe import Recipe


def study(*levels: float) -> tuple[JobSpec, Recipe]:
    options = PruneOptions(levels=levels, tickets=("winning", "losing"))
    recipe = tiny(
        joint__enabled=False, selection__selector="none", model__heads=4, finetune__epochs=1, finetune__evaluations=1
    )
    return JobSpec(kind="prune", dataset="made", seeds=(0,), options=options), recipe


def test_a_run_that_was_stopped_goes_on_and_one_that_is_done_is_not_run_again(tmp_path: Path) -> None:
    spec, recipe = study(0.25)
    task, folder = made_task(tmp_path / "task", (30, 12, 12)), tmp_path / "run"
    last = run(spec, recipe, [task], folder)
    report = json.loads((last / "report.json").read_text())
    assert [point["ticket"] for point in report["curves"]] == ["dense", "winning", "losing"]
    assert not (folder / "ticket.losing.l0.25.s0" / "model.safetensors").exists()
    (folder / f"phases.{META}").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob(f"*.{META}")}
    assert run(spec, recipe, [task], folder) == last
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob(f"*.{META}")}
    assert {name: after[name] for name in before} == before and f"phases.{META}" in after
    free(folder)
    assert not list(folder.rglob("*.safetensors"))


def test_what_cannot_be_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    spec, recipe = study(0.95)
    with pytest.raises(InvalidRequest, match="at most"):
        run(spec, recipe, [tmp_path], tmp_path / "run")
    assert not (tmp_path / "run").exists()
