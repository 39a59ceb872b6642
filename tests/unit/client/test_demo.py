"""The demo compares fairly, prints the measured result, and reports problems early."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.client.gateway import job_view, report
from tlm_client import demo
from tlm_client.stack.folder import StackFolder
from tlm_core.training.recipe import resolve
from tlm_core.wire import Job


def arm(mean: float, returned: str = "encoder", **over: Any) -> demo.Arm:
    scores = {"macro_f1": mean, "micro_f1": mean, "accuracy": mean}
    test = {"test": scores, "validation": scores}
    seeds = [{"seed": 0, "test": {**scores, "rows": 1050}, "validation": scores}]
    content = {
        **report(),
        "mean": test,
        "spread": {"test": dict.fromkeys(scores, 0.01)},
        "seeds": seeds,
        "best_seed": 0,
        "returned": {"model": returned, "seed": 0, "reason": "It has the best score on validation."},
        "models": {"linear": _scored(0.3), "encoder": _scored(mean), "combined": _scored(mean + 0.05)},
    }
    return demo.Arm(Job.model_validate(job_view(state="succeeded")), {**content, **over}, 12.0)


def _scored(mean: float) -> dict[str, Any]:
    scores = {"macro_f1": mean, "accuracy": mean}
    return {"mean": {"test": scores}, "spread": {"test": dict.fromkeys(scores, 0.01)}}


def test_arms_share_the_encoder_and_the_finetuning() -> None:
    tlm, alone = (
        resolve(spec.recipe, spec.scale, spec.overrides) for spec in (demo.ARMS["TLM"], demo.ARMS["task only"])
    )
    assert (tlm.model, tlm.finetune, tlm.tokenizer, tlm.precision) == (
        alone.model, alone.finetune, alone.tokenizer, alone.precision
    )  # fmt: skip
    assert tlm.joint.enabled and not alone.joint.enabled
    assert tlm.selection.selector == "bm25" and alone.selection.selector == "none"
    assert demo.ARMS["TLM"].seeds == demo.ARMS["task only"].seeds
    assert len(demo.ARMS["TLM"].seeds) == 3


def test_comparison_shows_the_measured_scores(capsys: pytest.CaptureFixture[str]) -> None:
    cost = {"cost": {"total": {"flops": 2.5e13, "seconds": 140.0}}}
    classified = [{"text": "a [bold] text", "label": "torch", "probability": 0.5, "true_label": "ray"}]
    demo._print_comparison({"TLM": arm(0.4, "combined", **cost), "task only": arm(0.5, cost={})}, classified)
    out = capsys.readouterr().out
    rows = {line.split("│")[1].strip(): line for line in out.splitlines() if line.startswith("│")}
    encoder, alone = rows["TLM, encoder"], rows["task only, encoder"]
    assert "0.400 ± 0.010" in encoder and "140" in encoder and "2.50e+13" in encoder
    assert "0.500 ± 0.010" in alone and "n/a" in alone and "model.onnx, seed 0" in alone
    assert "0.450 ± 0.010" in rows["TLM, combined"] and "model.onnx, seed 0" in rows["TLM, combined"]
    assert "0.100" in rows["majority"] and "0.300 ± 0.010" in rows["linear"]
    assert "TLM: model.onnx is the encoder of seed 0 combined with the linear model: macro-F1 0.4000 on test." in out
    assert "a [bold] text" in rows and "1,050 test rows" in out


def test_result_contains_the_scores_of_each_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = demo._result({"TLM": arm(0.6), "task only": arm(0.5)}, Path("t"), Path("c"))
    result: dict[str, Any] = json.loads(json.dumps(content))
    assert result["arms"]["TLM"]["mean"]["test"]["macro_f1"] == 0.6
    assert result["arms"]["task only"]["seeds"][0]["test"] == {"macro_f1": 0.5, "accuracy": 0.5}
    assert result["majority"] == {"macro_f1": 0.1, "accuracy": 0.3}
    assert (result["task"], result["corpus"], result["data"]) == ("t", "c", None)


def test_second_demo_reports_the_running_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = StackFolder(demo.FOLDER / "stack")
    folder.create()
    with folder.locked():
        assert demo.main([]) == 1
    assert "tlm down --data-dir" in capsys.readouterr().err
    assert folder.logs.is_dir()


def test_missing_task_fails_before_the_stack_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert demo.main(["--task", "missing", "--corpus", "missing"]) == 1
    assert "missing" in capsys.readouterr().err
    assert not (tmp_path / "build" / "demo" / "stack").exists()
