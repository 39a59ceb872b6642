"""Jobs in one process: they resume with the next node, and a report is computed once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.quality import runs
from benchmarks.quality.runs import META, print_scores, report_folder, run_plan, train
from tests.unit.training.made import made_task, tiny
from tlm_core.errors import InvalidRequest
from tlm_core.jobs.spec import JobSpec
from tlm_core.json_files import read_json
from tlm_core.kinds.prune import PruneOptions
from tlm_core.training.recipe import Recipe


def pruning_job(level: float) -> tuple[JobSpec, Recipe]:
    options = PruneOptions(levels=(level,), tickets=("winning", "losing"))
    recipe = tiny(
        joint__enabled=False, selection__selector="none", model__heads=4, finetune__epochs=1, finetune__evaluations=1
    )
    return JobSpec(kind="prune", dataset="made", seeds=(0,), options=options), recipe


def test_interrupted_job_resumes_and_report_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (spec, recipe), task = pruning_job(0.25), made_task(tmp_path / "task", (30, 12, 12))
    monkeypatch.setattr(runs, "FOLDER", tmp_path)
    compute, computed = runs.compute, []

    def interrupted(stage: object, *arguments: object) -> object:
        computed.append(stage.name)
        if stage.name == "phases" and computed.count("phases") == 1:
            raise KeyboardInterrupt
        return compute(stage, *arguments)

    monkeypatch.setattr(runs, "compute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        report_folder(spec, recipe, [task], "prune")
    finetuned = [path.parent.name.partition("-")[0] for path in (tmp_path / "nodes").rglob("model.safetensors")]
    assert "ticket" in finetuned and finetuned.count("ticket") == 1, "Only the winning ticket keeps its weights."
    before = len(computed)
    folder = report_folder(spec, recipe, [task], "prune")
    assert computed[before:] == ["phases"]
    assert report_folder(spec, recipe, [task], "prune") == folder
    assert computed[before:] == ["phases"]
    points = read_json(folder / "report.json")["curves"]
    assert [point["ticket"] for point in points] == ["dense", "winning", "losing"]
    assert read_json(folder / "seconds.json")["phases"] > 0
    assert (folder / "plot.svg").exists()


def test_jobs_that_differ_only_in_finetuning_share_all_earlier_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, spec = made_task(tmp_path / "task", (30, 12, 12)), JobSpec(dataset="made", seeds=(0,))
    monkeypatch.setattr(runs, "FOLDER", tmp_path)
    short = tiny(selection__selector="none", joint__budget__steps=2, finetune__epochs=1, finetune__evaluations=1)
    _, first = run_plan(spec, short, [task], "short")
    longer = short.model_copy(update={"finetune": short.finetune.model_copy(update={"epochs": 2})})
    _, second = run_plan(spec, longer, [task], "longer")
    shared = {node for node in first if first[node] == second[node]}
    assert shared == {"validate", "baseline", "prepare", "joint.s0", "refit_linear"}
    assert all(read_json(folder / META)["seconds"] >= 0 for folder in second.values())


def test_impossible_job_is_refused_before_it_writes_anything(tmp_path: Path) -> None:
    spec, recipe = pruning_job(0.95)
    with pytest.raises(InvalidRequest, match="at most"):
        run_plan(spec, recipe, [tmp_path], "run")
    assert not list(tmp_path.iterdir())


def test_comparisons_of_recipes_show_no_test_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = {"seeds": [{"chosen": {"score": 0.25}, "test": {"value": 0.75}}]}
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    (tmp_path / "seconds.json").write_text(json.dumps({"joint.s0": 2.0, "evaluate": 1.0}), encoding="utf-8")
    monkeypatch.setattr(runs, "report_of_run", lambda *_: tmp_path)
    print_scores("made", train("made", "change", tiny(), [0]))
    printed = capsys.readouterr().out
    assert "made_validation" in printed and "0.25" in printed
    assert "test" not in printed and "0.75" not in printed
