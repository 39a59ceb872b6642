"""The stages of the studies that train: killed or stopped and run again, they end where a run without a break ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.studies.local_plan import make_job, run_plan
from tests.unit.training.killed import DyingReporter, Killed, Run, content
from tests.unit.training.made import made_task, tiny
from tlm_core.jobs.plan import plan_of
from tlm_core.training.local import LocalReporter
from tlm_core.training.stage import StopRequested

LSTM = {"layers": 1, "hidden": 16, "embedding": 16, "dropout": 0.2, "lr": 0.01}
RECIPE = tiny(joint__budget__steps=4, finetune__epochs=3, finetune__evaluations=3, model__heads=4, checkpoint_steps=2)
JOBS: dict[str, dict[str, Any]] = {
    "bilstm": {
        "kind": "learning_curve",
        "options": {"sizes": [0.5, 1.0], "models": ["bilstm", "encoder"], "lstm": LSTM},
    },
    "ticket": {"kind": "prune", "options": {"levels": [0.25], "tickets": ["winning"]}},
    "share": {"kind": "share_tickets", "options": {"others": ["second"], "level": 0.25}},
}


@pytest.mark.parametrize("stage", JOBS)
def test_killed_and_stopped_it_ends_where_a_run_without_a_break_ends(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tlm_core.training.loop.REPORT_SECONDS", 0.0)
    job = make_job(RECIPE, others=int(stage == "share"), dataset="first", seeds=(0,), **JOBS[stage])
    done = run_plan(job, made_task(tmp_path / "task", (40, 12, 12)), tmp_path / "whole")
    # The last: of the largest size, and of sharing's two systems the one with tickets.
    node = [node for node in plan_of(job).nodes if node.stage.name == stage][-1]
    whole = content(done[node.name])
    run = Run(
        tmp_path / "broken", node.stage, {name: done[source] for name, source in node.inputs.items()}, node.params
    )
    with pytest.raises(Killed):
        run(DyingReporter(die_at=3))
    with pytest.raises(StopRequested):
        run(LocalReporter(keep_going=lambda step: step < 4))
    assert (tmp_path / "broken" / "checkpoints" / "step-000000005").exists(), "within one step"
    assert content(run()) == whole
